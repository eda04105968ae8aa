//! The rows of the guide's CSV files.

use super::{GuideError, Kind};
use std::path::{Path, PathBuf};

/// One row that counts: a segment's or data type's with a FHIR attribute, a message's with a primary target.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) map: String,
    /// Both lines of headings counted, from 1.
    pub(super) number: usize,
    pub(super) source: String,
    pub(super) target: String,
    /// What is assigned, such as the URL of an extension.
    pub(super) assigned: String,
}

impl Row {
    /// The URL of the extension that the row is about.
    pub(super) fn url(&self) -> Option<&str> {
        let url = self.assigned.trim_matches('"').trim();
        (self.target.trim_end_matches(')').ends_with("extension.url") || self.target.contains("].url"))
            .then_some(url)
            .filter(|url| url.starts_with("http"))
    }
}

/// The column of the v2 side: it has no heading in some sheets.
const SOURCE: usize = 1;

/// One CSV file of the guide, without its two lines of headings.
pub(super) struct Sheet {
    pub(super) map: String,
    pub(super) headings: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// Reads every sheet of a folder.
pub(super) fn sheets(folder: &Path) -> Result<Vec<Sheet>, GuideError> {
    let failed =
        |path: &Path, why: &dyn std::fmt::Display| GuideError::File(path.to_owned(), why.to_string());
    let listed = std::fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
    let mut paths: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "csv"));
    paths.sort();
    let mut sheets = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let mut reader = csv::ReaderBuilder::new();
        let mut reader = reader.has_headers(false).flexible(true).from_reader(text.as_bytes());
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|error| failed(&path, &error))?;
            rows.push(record.iter().map(|cell| cell.trim().to_owned()).collect::<Vec<_>>());
        }
        if rows.len() < 2 {
            return Err(failed(&path, &"expected two lines of headings"));
        }
        let headings = rows.drain(..2).nth(1).unwrap_or_default();
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        // "HL7 Segment - FHIR R4_ PID[Patient] - PID"
        let name = name.split_once("_ ").map_or(&*name, |(_, rest)| rest);
        let name = name.rsplit_once(" - ").map_or(name, |(name, _)| name);
        sheets.push(Sheet { map: name.trim().to_owned(), headings, rows });
    }
    Ok(sheets)
}

impl Sheet {
    /// The column under a heading that begins so.
    pub(super) fn column(&self, heading: &str) -> Option<usize> {
        self.headings.iter().position(|known| known.starts_with(heading))
    }
}

/// Every row of messages, segments and data types that counts.
pub(super) fn read(folder: &Path) -> Result<Vec<Row>, GuideError> {
    let mut found = Vec::new();
    for (kind, name, heading) in [
        (Kind::Message, "messages", "Primary Target"),
        (Kind::Segment, "segments", "FHIR Attribute"),
        (Kind::DataType, "datatypes", "FHIR Attribute"),
    ] {
        let folder = folder.join(name);
        for sheet in sheets(&folder)? {
            let missing =
                |what: &str| GuideError::File(folder.join(&sheet.map), format!("there is no column {what}"));
            let target = sheet.column(heading).ok_or_else(|| missing(heading))?;
            for (row, number) in sheet.rows.iter().zip(3..) {
                let cell = |column: usize| row.get(column).map(|text| one_line(text)).unwrap_or_default();
                if cell(target).is_empty() {
                    continue;
                }
                found.push(Row {
                    kind,
                    map: sheet.map.clone(),
                    number,
                    source: cell(SOURCE),
                    target: cell(target),
                    assigned: sheet.column("Assignment").map(cell).unwrap_or_default(),
                });
            }
        }
    }
    Ok(found)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
