//! Bodies that hold several documents, taken apart: the items of a JSON list, the lines of NDJSON, the records of CSV.
//!
//! Invariants: each part keeps its own bytes as they came, and nothing of a body is in no part; one part that is no document says so
//! and leaves the others alone.

use crate::Reads;
use bytes::{Bytes, BytesMut};
use schemas::records::{Csv, Limits};
use serde::de::{self, DeserializeSeed, SeqAccess, Visitor};
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
    /// With the header before each of its records it is too large.
    #[error("the header and the records together are too large for one request")]
    TooLarge,
}

impl Form {
    /// By the media type of a body, without its parameters; `None` if a mapping does not read that.
    pub(crate) fn of(media_type: &str, reads: Reads) -> Option<Form> {
        let media_type = media_type.to_ascii_lowercase();
        match (reads, media_type.as_str()) {
            (Reads::Csv(csv), "text/csv") => Some(Form::Csv(csv)),
            (Reads::Csv(_), _) => None,
            (Reads::Json, "application/json") => Some(Form::Json),
            (Reads::Json, "application/x-ndjson" | "application/ndjson" | "application/jsonl") => {
                Some(Form::Lines)
            }
            (Reads::Json, other) => {
                (other.starts_with("application/") && other.ends_with("+json")).then_some(Form::Json)
            }
        }
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
        let mut parts = match self {
            Form::Json => json(&body, max)?,
            Form::Lines => lines(&body, max)?,
            Form::Csv(csv) => csv_parts(csv, &body, max)?,
        };
        // No mapping would ever read it.
        for part in parts.iter_mut().filter(|part| part.bytes.len() > Limits::DEFAULT.bytes) {
            part.fault = Some(format!("larger than {} bytes", Limits::DEFAULT.bytes));
        }
        Ok(parts)
    }

    /// The value at a place of a document: a JSON pointer (RFC 6901), or the name of a member or a column. `None` without one.
    pub(crate) fn value_at(self, part: &Bytes, place: &str) -> Option<String> {
        let found = match self {
            Form::Json | Form::Lines => {
                let document: Value = serde_json::from_slice(part).ok()?;
                let found =
                    if place.starts_with('/') { document.pointer(place) } else { document.get(place) };
                match found? {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    _ => return None,
                }
            }
            Form::Csv(csv) => csv_value_at(csv, part, place)?,
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
    let mut items = Items { max, found: Vec::new(), is_over: false };
    let mut reader = serde_json::Deserializer::from_slice(body);
    let read = items.deserialize(&mut reader).and_then(|()| reader.end());
    match read {
        Err(_) if items.is_over => Err(Fault::TooMany(max)),
        Err(error) => Err(syntax(&error)),
        Ok(()) => Ok(items.found.into_iter().map(whole).collect()),
    }
}

/// The items of a list, no more than so many.
struct Items<'b> {
    max: usize,
    found: Vec<&'b RawValue>,
    is_over: bool,
}

impl<'b> DeserializeSeed<'b> for &mut Items<'b> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'b>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'b> Visitor<'b> for &mut Items<'b> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'b>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element()? {
            if self.found.len() == self.max {
                self.is_over = true;
                return Err(de::Error::custom("too many"));
            }
            self.found.push(item);
        }
        Ok(())
    }
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

/// How large the records of a body may become with the header before each of them.
const EXPANDED_MAX: usize = 64 << 20;

fn csv_reader(csv: Csv, bytes: &[u8]) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new().delimiter(csv.separator).has_headers(false).flexible(true).from_reader(bytes)
}

fn csv_parts(csv: Csv, body: &Bytes, max: usize) -> Result<Vec<Part>, Fault> {
    let mut reader = csv_reader(csv, body);
    let mut record = csv::ByteRecord::new();
    let mut header: Option<&[u8]> = None;
    let mut parts = Vec::new();
    let (mut began, mut expanded) = (0, 0_usize);
    loop {
        let line = usize::try_from(reader.position().line()).unwrap_or_default();
        let fault = Fault::Syntax { format: "CSV", line, column: 0 };
        if !reader.read_byte_record(&mut record).map_err(|_| fault.clone())? {
            return Ok(parts);
        }
        let ended = usize::try_from(reader.position().byte()).unwrap_or(body.len());
        // Blanks and tabulators at either end may be empty values.
        let own = without_line_ends(&body[began..ended]);
        began = ended;
        if own.is_empty() {
            continue;
        }
        // A quote that is never closed takes all that follows for its value.
        let quotes = || memchr::memchr_iter(b'"', own).count();
        if ended == body.len() && memchr::memchr2(b'\r', b'\n', own).is_some() && quotes() % 2 == 1 {
            return Err(fault);
        }
        match header {
            None if csv.header => header = Some(own),
            _ if parts.len() == max => return Err(Fault::TooMany(max)),
            None => parts.push(Part { bytes: body.slice_ref(own), fault: None }),
            Some(header) => {
                expanded += header.len() + own.len() + 1;
                if expanded > EXPANDED_MAX {
                    return Err(Fault::TooLarge);
                }
                let mut bytes = BytesMut::with_capacity(header.len() + own.len() + 1);
                bytes.extend_from_slice(header);
                bytes.extend_from_slice(b"\n");
                bytes.extend_from_slice(own);
                parts.push(Part { bytes: bytes.freeze(), fault: None });
            }
        }
    }
}

fn without_line_ends(record: &[u8]) -> &[u8] {
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let begin = record.iter().position(|byte| !is_end(byte)).unwrap_or(record.len());
    let end = record.iter().rposition(|byte| !is_end(byte)).map_or(begin, |last| last + 1);
    &record[begin..end]
}

/// By the name of its column, or its number from 1.
fn csv_value_at(csv: Csv, part: &Bytes, column: &str) -> Option<String> {
    let mut reader = csv_reader(csv, part);
    let mut record = csv::ByteRecord::new();
    let mut at = column.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    if csv.header {
        reader.read_byte_record(&mut record).ok()?;
        let named = record.iter().position(|name| name.trim_ascii() == column.as_bytes());
        at = named.or(at);
    }
    reader.read_byte_record(&mut record).ok()?.then_some(())?;
    Some(String::from_utf8_lossy(record.get(at?)?).into_owned())
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
    fn an_empty_value_at_either_end_of_a_record_stays_where_it_is() {
        let tabs = Csv { separator: b'\t', header: true };
        let body = "mrn\tv\tnote\r\n\t5\t\r\n7\t\t\r\n";
        let parts = Form::Csv(tabs).parts(&Bytes::copy_from_slice(body.as_bytes()), 9).expect("taken apart");
        assert_eq!(
            parts.iter().map(|part| &part.bytes[..]).collect::<Vec<_>>(),
            [b"mrn\tv\tnote\n\t5\t", b"mrn\tv\tnote\n7\t\t"]
        );
        let value = |place| Form::Csv(tabs).value_at(&parts[0].bytes, place);
        assert_eq!((value("mrn"), value("v").as_deref()), (None, Some("5")), "5 is nobody's number");
    }

    #[test]
    fn a_header_may_begin_with_a_column_without_a_name_and_a_record_may_hold_nothing() {
        let tabs = Csv { separator: b'\t', header: true };
        assert_eq!(texts(Form::Csv(tabs), "\tmrn\n0\t7\n\t\n"), ["\tmrn\n0\t7", "\tmrn\n\t"]);
    }

    #[test]
    fn a_quote_that_is_never_closed_and_a_header_out_of_proportion_are_refused() {
        let rows = "id,note\n1,a\n2,\"5 foot\n3,b\n4,c\n";
        assert_eq!(fault(Form::Csv(COMMAS), rows.as_bytes()), "not CSV: line 3, column 0");
        assert_eq!(texts(Form::Csv(COMMAS), "id,note\n1,5\" pipe").len(), 1);
        let header = "x".repeat(40 << 20);
        let told = fault(Form::Csv(COMMAS), format!("{header}\n1\n2\n").as_bytes());
        assert_eq!(told, "the header and the records together are too large for one request");
    }

    #[test]
    fn what_no_mapping_would_read_is_refused_by_itself() {
        let body = format!("[{{}},\"{}\"]", "x".repeat(Limits::DEFAULT.bytes));
        let parts = Form::Json.parts(&Bytes::from(body), 9).expect("taken apart");
        assert_eq!(parts[0].fault, None);
        assert_eq!(parts[1].fault.as_deref(), Some("larger than 8388608 bytes"));
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
        assert_eq!(Form::of("application/JSON", Reads::Json), Some(Form::Json));
        assert_eq!(Form::of("application/vnd.maker+json", Reads::Json), Some(Form::Json));
        assert_eq!(Form::of("application/x-ndjson", Reads::Json), Some(Form::Lines));
        assert_eq!(Form::of("Text/CSV", Reads::Csv(COMMAS)), Some(Form::Csv(COMMAS)));
        assert_eq!(Form::of("text/html", Reads::Json), None);
        assert_eq!(Form::of("text/csv", Reads::Json), None, "what its mapping does not read");
        assert_eq!(Form::of("application/json", Reads::Csv(COMMAS)), None);
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
