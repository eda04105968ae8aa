//! How much of HL7's guide "HL7 Version 2 to FHIR" the mappings do, row by row, shown by their tests.
//!
//! A row is done when the lineage of a test that holds has its pair of v2 path and FHIR target; nobody says so by hand. What
//! is skipped, and how a row is read whose text has a slip, stands in `guide.yaml`, each with its reason.

mod facts;
mod notes;
mod rows;
mod tables;
mod target;

use crate::catalog::{Catalog, FileMistake};
use facts::Facts;
use notes::{Note, Notes};
use rows::Row;
use serde_json::{Value, json};
use std::fmt;
use std::path::{Path, PathBuf};

/// The file that says what is skipped and how rows with a slip are read.
pub(crate) const NOTES: &str = "guide.yaml";

/// The four kinds of maps that the guide has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Which resources a message has.
    Message,
    /// What a segment says.
    Segment,
    /// What a data type says.
    DataType,
    /// Which code answers to which.
    Table,
}

impl Kind {
    /// Every kind, in the order in which they are told.
    pub const ALL: [Kind; 4] = [Kind::Message, Kind::Segment, Kind::DataType, Kind::Table];

    /// `messages`, ...
    pub fn word(self) -> &'static str {
        match self {
            Kind::Message => "messages",
            Kind::Segment => "segments",
            Kind::DataType => "data types",
            Kind::Table => "tables",
        }
    }
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// A test shows it, or the table says the same.
    Done,
    /// It is left out, for this reason.
    Skipped(String),
    /// Neither.
    Open,
}

impl State {
    /// Its place among the counts.
    fn place(&self) -> usize {
        match self {
            State::Done => 0,
            State::Skipped(_) => 1,
            State::Open => 2,
        }
    }
}

/// One row of the guide and what became of it.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Which kind of map it stands in.
    pub kind: Kind,
    /// The map: `PID[Patient]`, `ADT_A01`, `AdministrativeSex`.
    pub map: String,
    /// Its number in the file, from 1, both lines of headings counted.
    pub number: usize,
    /// The v2 side: `PID-5`, `XPN.2`, `ADT_A01.PID`, a code.
    pub source: String,
    /// The FHIR side.
    pub target: String,
    /// What became of it.
    pub state: State,
}

/// Every row of the guide.
#[derive(Clone, Debug)]
pub struct Coverage {
    /// The rows, by kind, map and number.
    pub rows: Vec<Counted>,
}

/// Why the guide cannot be counted.
#[derive(Debug)]
pub enum GuideError {
    /// A file of the guide cannot be read.
    File(PathBuf, String),
    /// `guide.yaml` is wrong.
    Notes(Vec<FileMistake>),
}

impl fmt::Display for GuideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuideError::File(path, why) => write!(f, "{}: {why}", path.display()),
            GuideError::Notes(mistakes) => {
                let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}

impl std::error::Error for GuideError {}

/// Counts the rows of the guide whose folder is given: the one that holds `mappings/`, or that folder itself. `files`: those of
/// which the catalog was made.
///
/// # Errors
/// [`GuideError`]; a note about a row that the guide does not have is one.
pub fn measure(catalog: &Catalog, files: &[(String, String)], guide: &Path) -> Result<Coverage, GuideError> {
    let notes = files.iter().find(|(file, _)| file == NOTES).map_or("", |(_, text)| text);
    let mut notes = Notes::of(notes).map_err(GuideError::Notes)?;
    let folder = if guide.join("mappings").is_dir() { guide.join("mappings") } else { guide.to_owned() };
    let facts = Facts::of(&catalog.explain_tests());
    let mut rows = Vec::new();
    for row in rows::read(&folder)? {
        let note = notes.take(&row.map, row.number);
        let reads = match &note {
            Some(Note { reads: Some(reads), .. }) => reads,
            _ => &row.target,
        };
        let state = if facts.show(&row, reads) {
            State::Done
        } else if let Some(Note { skip: Some(reason), .. }) = note {
            State::Skipped(reason)
        } else {
            State::Open
        };
        let Row { kind, map, number, source, target, .. } = row;
        rows.push(Counted { kind, map, number, source, target, state });
    }
    for (mut row, state) in tables::count(&folder, files)? {
        let skip = notes.take(&row.map, row.number).and_then(|note| note.skip);
        row.state = match (state, skip) {
            (State::Open, Some(reason)) => State::Skipped(reason),
            (state, _) => state,
        };
        rows.push(row);
    }
    notes.finish().map_err(GuideError::Notes)?;
    rows.sort_by(|a, b| (a.kind, &a.map, a.number).cmp(&(b.kind, &b.map, b.number)));
    Ok(Coverage { rows })
}

impl Coverage {
    /// How many rows of a kind are done, skipped and open.
    pub fn count(&self, kind: Kind) -> [usize; 3] {
        let mut count = [0; 3];
        for row in self.rows.iter().filter(|row| row.kind == kind) {
            count[row.state.place()] += 1;
        }
        count
    }

    /// The counts as a whole, by kind and by map, and every row that is not done with its reason.
    pub fn to_json(&self) -> Value {
        let counts = |rows: &mut dyn Iterator<Item = &Counted>| {
            let mut count = [0; 3];
            rows.for_each(|row| count[row.state.place()] += 1);
            json!({"done": count[0], "skipped": count[1], "open": count[2]})
        };
        let mut kinds = serde_json::Map::new();
        for kind in Kind::ALL {
            let of_kind = || self.rows.iter().filter(move |row| row.kind == kind);
            let mut maps = serde_json::Map::new();
            for row in of_kind() {
                if !maps.contains_key(&row.map) {
                    let count = counts(&mut of_kind().filter(|other| other.map == row.map));
                    maps.insert(row.map.clone(), count);
                }
            }
            let mut one = counts(&mut of_kind());
            one["maps"] = maps.into();
            kinds.insert(kind.word().to_owned(), one);
        }
        let rest = self.rows.iter().filter(|row| row.state != State::Done).map(|row| {
            let mut one = json!({
                "kind": row.kind.word(), "map": row.map, "row": row.number, "v2": row.source, "fhir": row.target,
                "state": if row.state == State::Open { "open" } else { "skipped" },
            });
            if let State::Skipped(reason) = &row.state {
                one["reason"] = json!(reason);
            }
            one
        });
        json!({"total": counts(&mut self.rows.iter()), "kinds": kinds, "rows": rest.collect::<Vec<_>>()})
    }
}
