//! Rows of the guide's tables, against the ConceptMaps.

use super::rows::{Sheet, sheets};
use super::{Counted, GuideError, Kind, State};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// What a ConceptMap says about one code.
struct Said {
    /// `None`: it has no target.
    target: Option<(String, String)>,
    /// Why, where it differs from the guide.
    comment: Option<String>,
}

/// Every row with a source code.
pub(super) fn count(folder: &Path, files: &[(String, String)]) -> Result<Vec<(Counted, State)>, GuideError> {
    let maps: HashMap<String, Value> = files
        .iter()
        .filter(|(file, _)| file.starts_with("table/") && file.ends_with(".json"))
        .filter_map(|(_, text)| serde_json::from_str::<Value>(text).ok())
        .filter_map(|map| Some((plain(map["name"].as_str()?), map)))
        .collect();
    let mut counted = Vec::new();
    for sheet in sheets(&folder.join("codesystems"))? {
        let said = maps.get(&plain(&sheet.map)).map(says).unwrap_or_default();
        for (row, number) in sheet.rows.iter().zip(3..) {
            let [code, target, system] = cells(&sheet, row);
            if code.is_empty() {
                continue;
            }
            let state = match said.get(code) {
                None => State::Open,
                Some(all) if all.iter().any(|said| same(said, target, system)) => State::Done,
                Some(all) => match all.iter().find_map(|said| said.comment.clone()) {
                    Some(comment) => State::Skipped(comment),
                    None => State::Open,
                },
            };
            let row = Counted {
                kind: Kind::Table,
                map: sheet.map.clone(),
                number,
                source: code.to_owned(),
                target: target.to_owned(),
                state: State::Open,
            };
            counted.push((row, state));
        }
    }
    Ok(counted)
}

/// Source code, target code and target system of a row.
fn cells<'r>(sheet: &Sheet, row: &'r [String]) -> [&'r str; 3] {
    let columns = |heading: &'static str| {
        let found = sheet.headings.iter().enumerate().filter(move |(_, known)| known.starts_with(heading));
        found.map(|(column, _)| column)
    };
    let cell = |column: Option<usize>| column.and_then(|column| row.get(column)).map_or("", String::as_str);
    // `Code` stands first for v2 and then for FHIR; `Code System` begins with it, too.
    let mut codes = columns("Code").filter(|column| sheet.headings[*column] == "Code");
    let (source, target) = (codes.next(), codes.next());
    [cell(source), cell(target), cell(columns("Code System").nth(1))]
}

/// Letters and digits: a ConceptMap's name may hold nothing else.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect()
}

fn says(map: &Value) -> HashMap<String, Vec<Said>> {
    let mut said: HashMap<String, Vec<Said>> = HashMap::new();
    for group in map["group"].as_array().into_iter().flatten() {
        let system = group["target"].as_str().unwrap_or_default();
        for element in group["element"].as_array().into_iter().flatten() {
            let Some(code) = element["code"].as_str() else { continue };
            for target in element["target"].as_array().into_iter().flatten() {
                let named = target["code"].as_str().filter(|_| target["equivalence"] != "unmatched");
                said.entry(code.to_owned()).or_default().push(Said {
                    target: named.map(|named| (named.to_owned(), system.to_owned())),
                    comment: target["comment"].as_str().map(str::to_owned),
                });
            }
        }
    }
    said
}

/// Whether a ConceptMap says what the guide says.
fn same(said: &Said, target: &str, system: &str) -> bool {
    match &said.target {
        None => target.is_empty(),
        Some((code, of)) => code == target && (system.is_empty() || of == system.trim_end_matches('/')),
    }
}
