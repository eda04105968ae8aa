//! Bodies that hold several documents, taken apart: the items of a JSON list, the lines of NDJSON, the records of CSV.
//!
//! Invariants: each part keeps its own bytes as they came, and nothing of a body is in no part; one part that is no document says so
//! and leaves the others alone.

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use serde_json::value::RawValue;

/// The byte order mark of UTF-8, and those of UTF-16.
const BOM: &[u8] = b"\xEF\xBB\xBF";
const UTF16: [&[u8]; 2] = [b"\xFF\xFE", b"\xFE\xFF"];

/// What a body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON document, or a list of them.
    Json,
    /// A JSON document a line.
    Lines,
    /// Records.
    Csv(Csv),
}

/// How CSV is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Csv {
    /// What stands between values.
    pub(crate) separator: u8,
    /// Whether the first record names the columns; it goes with each of the others.
    pub(crate) header: bool,
}

/// One document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its bytes.
    pub(crate) bytes: Bytes,
    /// Why it is none.
    pub(crate) fault: Option<String>,
}

/// Why a body cannot be taken apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// It is not written as it should be.
    #[error("not {format}: line {line}, column {column}")]
    Syntax {
        format: &'static str,
        /// Counted from 1.
        line: usize,
        /// Counted from 1; 0 where it is not known.
        column: usize,
    },
    /// It is in UTF-16.
    #[error("written in UTF-16, and UTF-8 is expected")]
    Utf16,
    /// It holds too many.
    #[error("more than {0} documents")]
    TooMany(usize),
}

impl Form {
    /// By the media type of a body, without its parameters.
    pub(crate) fn of(media_type: &str, csv: Csv) -> Option<Form> {
        let media_type = media_type.to_ascii_lowercase();
        Some(match media_type.as_str() {
            "application/json" => Form::Json,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Form::Lines,
            "text/csv" => Form::Csv(csv),
            _ if media_type.starts_with("application/") && media_type.ends_with("+json") => Form::Json,
            _ => return None,
        })
    }

    /// Takes a body apart into at most so many documents.
    ///
    /// # Errors
    /// [`Fault`] when it cannot be told where they begin and end.
    pub(crate) fn parts(self, body: &Bytes, max: usize) -> Result<Vec<Part>, Fault> {
        if UTF16.iter().any(|mark| body.starts_with(mark)) {
            return Err(Fault::Utf16);
        }
        let body = if body.starts_with(BOM) { body.slice(BOM.len()..) } else { body.clone() };
        let parts = match self {
            Form::Json => json(&body, max)?,
            Form::Lines => lines(&body, max)?,
            Form::Csv(csv) => csv.parts(&body, max)?,
        };
        if parts.len() > max { Err(Fault::TooMany(max)) } else { Ok(parts) }
    }

    /// The value at a place of a document: a JSON pointer (RFC 6901), or the name of a column. `None` without one.
    pub(crate) fn value_at(self, part: &Bytes, place: &str) -> Option<String> {
        let found = match self {
            Form::Json | Form::Lines => {
                let document: Value = serde_json::from_slice(part).ok()?;
                match document.pointer(place)? {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    _ => return None,
                }
            }
            Form::Csv(csv) => csv.value_at(part, place)?,
        };
        Some(found.trim().to_owned()).filter(|found| !found.is_empty())
    }
}

fn json(body: &Bytes, max: usize) -> Result<Vec<Part>, Fault> {
    let whole = |raw: &RawValue| Part { bytes: body.slice_ref(raw.get().as_bytes()), fault: None };
    if body.trim_ascii_start().first() != Some(&b'[') {
        let raw: &RawValue = serde_json::from_slice(body).map_err(|error| syntax(&error))?;
        return Ok(vec![whole(raw)]);
    }
    let items: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| syntax(&error))?;
    Ok(items.into_iter().take(max.saturating_add(1)).map(whole).collect())
}

fn syntax(error: &serde_json::Error) -> Fault {
    Fault::Syntax { format: "JSON", line: error.line(), column: error.column() }
}

fn lines(body: &Bytes, max: usize) -> Result<Vec<Part>, Fault> {
    let mut parts = Vec::new();
    for (number, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if parts.len() == max {
            return Err(Fault::TooMany(max));
        }
        let read: Result<&RawValue, _> = serde_json::from_slice(line);
        let fault = read.err().map(|error| {
            Fault::Syntax { format: "JSON", line: number + 1, column: error.column() }.to_string()
        });
        parts.push(Part { bytes: body.slice_ref(line), fault });
    }
    Ok(parts)
}

impl Csv {
    fn reader<'b>(&self, bytes: &'b [u8]) -> csv::Reader<&'b [u8]> {
        csv::ReaderBuilder::new()
            .delimiter(self.separator)
            .has_headers(false)
            .flexible(true)
            .from_reader(bytes)
    }

    fn parts(self, body: &Bytes, max: usize) -> Result<Vec<Part>, Fault> {
        let mut reader = self.reader(body);
        let mut record = csv::ByteRecord::new();
        let mut header: Option<&[u8]> = None;
        let mut parts = Vec::new();
        let place =
            |reader: &csv::Reader<&[u8]>| usize::try_from(reader.position().byte()).unwrap_or(body.len());
        let mut began = 0;
        loop {
            let line = usize::try_from(reader.position().line()).unwrap_or_default();
            let syntax = |_| Fault::Syntax { format: "CSV", line, column: 0 };
            if !reader.read_byte_record(&mut record).map_err(syntax)? {
                return Ok(parts);
            }
            let ended = place(&reader);
            let own = body[began..ended].trim_ascii();
            began = ended;
            if own.is_empty() {
                continue;
            }
            match header {
                None if self.header => header = Some(own),
                _ if parts.len() == max => return Err(Fault::TooMany(max)),
                None => parts.push(Part { bytes: body.slice_ref(own), fault: None }),
                Some(header) => {
                    let mut bytes = BytesMut::with_capacity(header.len() + own.len() + 1);
                    bytes.extend_from_slice(header);
                    bytes.extend_from_slice(b"\n");
                    bytes.extend_from_slice(own);
                    parts.push(Part { bytes: bytes.freeze(), fault: None });
                }
            }
        }
    }

    /// By the name of its column, or its number from 1.
    fn value_at(self, part: &Bytes, column: &str) -> Option<String> {
        let mut reader = self.reader(part);
        let mut record = csv::ByteRecord::new();
        let mut at = column.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        if self.header {
            reader.read_byte_record(&mut record).ok()?;
            let named = record.iter().position(|name| name.trim_ascii() == column.as_bytes());
            at = named.or(at);
        }
        reader.read_byte_record(&mut record).ok()?.then_some(())?;
        Some(String::from_utf8_lossy(record.get(at?)?).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COMMAS: Csv = Csv { separator: b',', header: true };

    fn texts(form: Form, body: &str) -> Vec<String> {
        let parts = form.parts(&Bytes::copy_from_slice(body.as_bytes()), 100).expect("taken apart");
        parts
            .into_iter()
            .map(|part| {
                let text = String::from_utf8(part.bytes.to_vec()).expect("UTF-8");
                part.fault.map_or(text.clone(), |fault| format!("{fault}: {text}"))
            })
            .collect()
    }

    fn fault(form: Form, body: &[u8]) -> String {
        form.parts(&Bytes::copy_from_slice(body), 2).expect_err("refused").to_string()
    }

    #[test]
    fn a_json_body_is_one_document_or_a_list_of_them_each_with_its_own_digits() {
        assert_eq!(texts(Form::Json, " {\"a\":1.50}\r\n"), ["{\"a\":1.50}"]);
        assert_eq!(
            texts(Form::Json, "\u{FEFF}[{\"a\": [1]} , {\"b\":2.0}]"),
            ["{\"a\": [1]}", "{\"b\":2.0}"]
        );
        assert_eq!(texts(Form::Json, "[]"), [""; 0]);
        assert_eq!(fault(Form::Json, b"{\"a\":1"), "not JSON: line 1, column 6");
        assert_eq!(fault(Form::Json, b"[{}\n,{]"), "not JSON: line 2, column 3");
        assert_eq!(fault(Form::Json, b"{} {}"), "not JSON: line 1, column 4");
        assert_eq!(fault(Form::Json, b""), "not JSON: line 1, column 0");
        assert_eq!(fault(Form::Json, b"{\"a\":\"\xFF\"}"), "not JSON: line 1, column 7");
        assert_eq!(fault(Form::Json, b"[1,2,3]"), "more than 2 documents");
        assert_eq!(fault(Form::Json, b"\xFF\xFE{\0}\0"), "written in UTF-16, and UTF-8 is expected");
    }

    #[test]
    fn one_line_that_is_no_json_leaves_the_others_alone() {
        assert_eq!(
            texts(Form::Lines, "{\"a\":1}\r\n\n {\"b\":}\n{\"c\":3}"),
            ["{\"a\":1}", "not JSON: line 3, column 6: {\"b\":}", "{\"c\":3}"]
        );
        assert_eq!(fault(Form::Lines, b"1\n2\n3\n"), "more than 2 documents");
    }

    #[test]
    fn each_record_of_csv_goes_with_the_header_whatever_stands_in_its_quotes() {
        let body = "id,note\r\n1,\"a\nb, \"\"c\"\"\"\r\n\r\n2,ü\r\n";
        assert_eq!(texts(Form::Csv(COMMAS), body), ["id,note\n1,\"a\nb, \"\"c\"\"\"", "id,note\n2,ü"]);
        let bare = Csv { separator: b';', header: false };
        assert_eq!(texts(Form::Csv(bare), "1;a\n2;\"b;\nc\""), ["1;a", "2;\"b;\nc\""]);
        assert_eq!(texts(Form::Csv(COMMAS), "id,note\n"), [""; 0]);
        assert_eq!(fault(Form::Csv(bare), b"1\n2\n3\n"), "more than 2 documents");
    }

    #[test]
    fn a_value_is_found_by_its_place_and_a_record_of_another_kind_has_none() {
        let at = |form: Form, part: &str, place: &str| {
            form.value_at(&Bytes::copy_from_slice(part.as_bytes()), place)
        };
        assert_eq!(at(Form::Json, r#"{"who":{"mrn":" 7 "}}"#, "/who/mrn").as_deref(), Some("7"));
        assert_eq!(at(Form::Json, r#"{"who":{"mrn":00}}"#, "/who/mrn"), None);
        assert_eq!(at(Form::Json, r#"{"who":70}"#, "/who").as_deref(), Some("70"));
        assert_eq!(at(Form::Json, r#"{"who":{"mrn":null}}"#, "/who/mrn"), None);
        assert_eq!(at(Form::Csv(COMMAS), "id, mrn\n1,77", "mrn").as_deref(), Some("77"));
        assert_eq!(at(Form::Csv(COMMAS), "id,mrn\n1", "mrn"), None);
        let bare = Csv { separator: b';', header: false };
        assert_eq!(at(Form::Csv(bare), "1;77", "2").as_deref(), Some("77"));
        assert_eq!(at(Form::Csv(bare), "1;77", "0"), None);
    }

    #[test]
    fn a_body_says_by_its_media_type_what_it_is() {
        assert_eq!(Form::of("application/JSON", COMMAS), Some(Form::Json));
        assert_eq!(Form::of("application/vnd.maker+json", COMMAS), Some(Form::Json));
        assert_eq!(Form::of("application/x-ndjson", COMMAS), Some(Form::Lines));
        assert_eq!(Form::of("text/csv", COMMAS), Some(Form::Csv(COMMAS)));
        assert_eq!(Form::of("text/html", COMMAS), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_taken_apart_or_refused(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let body = Bytes::from(body);
            for form in [Form::Json, Form::Lines, Form::Csv(COMMAS)] {
                let _ = form.parts(&body, 10);
                let _ = form.value_at(&body, "/a");
            }
        }

        #[test]
        fn what_was_written_as_csv_is_read_as_the_same_values(
            rows in proptest::collection::vec(proptest::collection::vec("[a-c,;\"\n ü]{0,6}", 2..3), 1..6),
        ) {
            let mut writer = csv::WriterBuilder::new().quote_style(csv::QuoteStyle::Always).from_writer(Vec::new());
            writer.write_record(["x", "y"]).unwrap();
            for row in &rows {
                writer.write_record(row).unwrap();
            }
            let body = Bytes::from(writer.into_inner().unwrap());
            let parts = Form::Csv(COMMAS).parts(&body, 100).unwrap();
            prop_assert_eq!(parts.len(), rows.len());
            for (part, row) in parts.iter().zip(&rows) {
                let value = Form::Csv(COMMAS).value_at(&part.bytes, "y");
                let expected = row[1].trim();
                prop_assert_eq!(value.unwrap_or_default(), expected);
            }
        }
    }
}
