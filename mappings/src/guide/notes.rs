//! What `guide.yaml` says about rows of the guide.

use super::NOTES;
use crate::catalog::FileMistake;
use schemas::yaml::{Fields, Mistake, Node, Place};
use std::collections::HashMap;

/// What is said about one row.
#[derive(Clone, Debug)]
pub(super) struct Note {
    /// Why it is left out.
    pub(super) skip: Option<String>,
    /// How its target is read, where the text has a slip.
    pub(super) reads: Option<String>,
}

/// What is said, by map and row.
pub(super) struct Notes {
    by_row: HashMap<(String, usize), (Place, Note)>,
}

fn one(place: Place, text: &str) -> FileMistake {
    FileMistake { file: NOTES.to_owned(), mistake: Mistake { place, key: "rows".into(), text: text.into() } }
}

impl Notes {
    /// Reads the file.
    pub(super) fn of(text: &str) -> Result<Notes, Vec<FileMistake>> {
        let of_file = |mistake| FileMistake { file: NOTES.to_owned(), mistake };
        let documents = schemas::yaml::read(text).map_err(|mistake| vec![of_file(mistake)])?;
        let mut mistakes = Vec::new();
        let mut by_row = HashMap::new();
        let mut wrong = Vec::new();
        for document in &documents {
            let mut fields = Fields::new(document, "", &mut mistakes);
            for node in fields.take_list("rows") {
                let mut note = Fields::new(node, "rows", fields.mistakes());
                let map = note.take_required("map").and_then(Node::text).unwrap_or_default().to_owned();
                let rows = note.take_required("rows").and_then(Node::text).unwrap_or_default();
                let skip = note.take_text("skip").map(str::to_owned);
                let reads = note.take_text("reads").map(str::to_owned);
                let because = note.take_text("because");
                note.finish();
                if skip.is_some() == reads.is_some() || reads.is_some() != because.is_some() {
                    wrong.push(one(node.place, "expected `skip:` with a reason, or `reads:` and `because:`"));
                }
                let Some(numbers) = numbers(rows) else {
                    wrong.push(one(node.place, "expected rows such as 5 or 7-9, parted by commas"));
                    continue;
                };
                for number in numbers {
                    let note = Note { skip: skip.clone(), reads: reads.clone() };
                    if by_row.insert((map.clone(), number), (node.place, note)).is_some() {
                        wrong.push(one(node.place, &format!("{map} {number} stands here twice")));
                    }
                }
            }
            fields.finish();
        }
        wrong.extend(mistakes.into_iter().map(of_file));
        if wrong.is_empty() { Ok(Notes { by_row }) } else { Err(wrong) }
    }

    /// What is said about a row.
    pub(super) fn take(&mut self, map: &str, row: usize) -> Option<Note> {
        self.by_row.remove(&(map.to_owned(), row)).map(|(_, note)| note)
    }

    /// What is left is said about rows that the guide does not have.
    pub(super) fn finish(self) -> Result<(), Vec<FileMistake>> {
        let left = self.by_row.into_iter();
        let mut left: Vec<FileMistake> = left
            .map(|((map, row), (place, _))| one(place, &format!("the guide has no counted row {map} {row}")))
            .collect();
        left.sort_by_key(|mistake| mistake.mistake.place);
        if left.is_empty() { Ok(()) } else { Err(left) }
    }
}

/// `5`, `7-9`, `3, 5-6`.
fn numbers(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for piece in text.split(',') {
        let piece = piece.trim();
        let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if first > last || last - first > 1000 {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notes_that_come_with_the_program_can_be_read() {
        let read = Notes::of(include_str!("../../guide.yaml"));
        assert!(read.is_ok(), "{:?}", read.err());
    }

    #[test]
    fn what_is_wrong_in_a_note_is_told() {
        for text in [
            "rows: [{map: X, rows: '1'}]",
            "rows: [{map: X, rows: '1', reads: a}]",
            "rows: [{map: X, rows: one, skip: so}]",
            "rows: [{map: X, rows: '1,1', skip: so}]",
            "rows: [{map: X, rows: '1', skip: so, skipp: so}]",
        ] {
            assert!(Notes::of(text).is_err(), "{text}");
        }
        let Ok(mut notes) = Notes::of("rows: [{map: X, rows: 1-2, skip: so}]") else { panic!("it is right") };
        assert!(notes.take("X", 1).is_some() && notes.take("X", 1).is_none() && notes.take("Y", 2).is_none());
        assert!(notes.finish().is_err(), "X 2 is left");
    }
}
