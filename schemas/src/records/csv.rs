//! CSV as records: each line is one.

use super::build::Builder;
use super::shape::{ShapeId, Shapes};
use super::{Limits, Records, UNDECLARED, Unreadable};
use std::collections::HashSet;
use std::sync::Arc;

/// How a CSV file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csv {
    /// What stands between values: `,`, `;` or a tabulator, mostly.
    pub separator: u8,
    /// Whether the first line says what the columns are called. Without it they are the members of the record in their order.
    pub header: bool,
}

impl Default for Csv {
    fn default() -> Self {
        Csv { separator: b',', header: true }
    }
}

/// Reads a CSV file. The shape of the document has one member, a list of records: the lines.
///
/// Values stand between double quotes where they must, and blanks around the names of columns do not matter. A line with more values than
/// there are columns keeps them under a name of their own; one with fewer lacks the rest.
///
/// # Errors
/// [`Unreadable`] says why, and where.
///
/// # Panics
/// When the shape is not a list of records, which whoever declares it checks.
///
/// # Source
/// RFC 4180.
pub fn read_csv(
    text: &str,
    form: Csv,
    shapes: &Arc<Shapes>,
    root: ShapeId,
    limits: &Limits,
) -> Result<Records, Unreadable> {
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    if text.len() > limits.bytes {
        return Err(Unreadable::OverLimit { limit: limits.bytes, unit: "bytes" });
    }
    let (member, line) = shapes.lines(root).expect("the shape of a CSV document is a list of records");
    let mut builder = Builder::new(shapes, *limits);
    let document = builder.root(root);
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(form.separator)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut columns: Option<Vec<String>> = None;
    let mut row = ::csv::StringRecord::new();
    while reader.read_record(&mut row).map_err(|error| syntax(&error))? {
        if form.header && columns.is_none() {
            let names: Vec<String> = row.iter().map(|name| name.trim().to_owned()).collect();
            let mut seen = HashSet::new();
            if let Some(at) = names.iter().position(|name| !name.is_empty() && !seen.insert(name.as_str())) {
                let declared = shapes.get(line).written(&names[at]);
                let told = declared
                    .map_or_else(|| format!("column {}", at + 1), |(_, member)| member.written.clone());
                return Err(Unreadable::Twice(told));
            }
            if !names.iter().any(|name| shapes.get(line).written(name).is_some()) {
                return Err(Unreadable::NoHeader);
            }
            columns = Some(names);
            continue;
        }
        let record = builder.record(document, Some(line), member, true, 1)?;
        for (index, value) in row.iter().enumerate() {
            let name = columns.as_ref().map(|columns| columns.get(index).map_or(UNDECLARED, String::as_str));
            let known = match name {
                Some(name) => shapes.get(line).written(name).map(|(number, _)| number),
                None => shapes.get(line).members.get(index).and_then(|_| u16::try_from(index + 1).ok()),
            };
            match known {
                Some(number) => builder.value(record, number, 1, value)?,
                None => {
                    builder.other(record, name.unwrap_or(UNDECLARED), nth_of(name, &columns, index), value)?
                }
            }
        }
    }
    Ok(builder.finish())
}

/// Values beyond the last column, and those of columns without a name, have one name: they are told apart as a list's are.
fn nth_of(name: Option<&str>, columns: &Option<Vec<String>>, index: usize) -> u32 {
    let named =
        name.is_some_and(|name| !name.is_empty()) && columns.as_ref().is_some_and(|all| index < all.len());
    if named { 1 } else { u32::try_from(index + 1).unwrap_or(u32::MAX) }
}

fn syntax(error: &::csv::Error) -> Unreadable {
    let line = error.position().map_or(0, |position| usize::try_from(position.line()).unwrap_or(usize::MAX));
    Unreadable::Syntax { format: "CSV", line, column: 0 }
}
