//! MSH: what intake, acknowledgement and routing need to know of a message, without reading the rest of it.

use super::escape;
use super::separators::{Separators, SeparatorsError};
use memchr::{memchr, memchr2};
use std::borrow::Cow;
use std::fmt;

/// The highest field of MSH that the standard knows, since v2.7.
const FIELDS: usize = 25;

/// The MSH segment of a message. Fields are decoded when they are asked for; one that is empty, absent or HL7's null
/// is `None`.
///
/// # Source
/// HL7 v2.5.1 section 2.15.9, v2.8.2 section 2.14.9 (MSH).
#[derive(Clone, Copy)]
pub struct Header<'t> {
    text: &'t str,
    separators: Separators,
    /// Begin and end of each field in `text`; fields that are left out are empty.
    fields: [(u32, u32); FIELDS],
}

impl<'t> Header<'t> {
    /// Reads the first line that begins with `MSH`, whatever stands before and after it. So an answer can be addressed
    /// even when the message itself cannot be read. `None` if there is none or its separators are of no use.
    pub fn peek(text: &'t str) -> Option<Header<'t>> {
        let start = find(text.as_bytes())?;
        Header::at(text, start)?.ok()
    }

    /// Reads the MSH that begins at `start`. `None` if there is no `MSH` and field separator.
    pub(crate) fn at(text: &'t str, start: usize) -> Option<Result<Header<'t>, SeparatorsError>> {
        let bytes = &text.as_bytes()[start..];
        if bytes.len() < 4 || !bytes[..3].eq_ignore_ascii_case(b"MSH") {
            return None;
        }
        let end = memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
        if end < 4 || !bytes[3].is_ascii() {
            return None;
        }
        Some(Header::of_line(&text[start..start + end]))
    }

    /// Reads one line that begins with `MSH` and an ASCII field separator.
    fn of_line(text: &'t str) -> Result<Header<'t>, SeparatorsError> {
        let bytes = text.as_bytes();
        let field = bytes[3];
        let mut at = memchr(field, &bytes[4..]).map_or(bytes.len(), |n| n + 4);
        let (separators, _) = Separators::read(field, &bytes[4..at])?;
        let mut fields = [(0, 0); FIELDS];
        fields[0] = (3, 4);
        // The line is shorter than the message, whose length fits u32.
        fields[1] = (4, at as u32);
        for place in fields.iter_mut().skip(2) {
            if at >= bytes.len() {
                break;
            }
            let start = at + 1;
            at = memchr(field, &bytes[start..]).map_or(bytes.len(), |n| n + start);
            *place = (start as u32, at as u32);
        }
        Ok(Header { text, separators, fields })
    }

    /// MSH-1 and MSH-2.
    pub fn separators(&self) -> &Separators {
        &self.separators
    }

    /// A field as it stands, escapes and separators and all; empty if it is absent. Counted from 1.
    pub fn raw(&self, field: usize) -> &'t str {
        let (start, end) = field.checked_sub(1).and_then(|n| self.fields.get(n)).copied().unwrap_or_default();
        &self.text[start as usize..end as usize]
    }

    /// A component of the first repetition of a field, decoded; both counted from 1.
    pub fn component(&self, field: usize, component: usize) -> Option<Cow<'t, str>> {
        let mut raw = self.raw(field);
        if let Some(repetition) = self.separators.repetition {
            raw = &raw[..memchr(repetition, raw.as_bytes()).unwrap_or(raw.len())];
        }
        let raw = raw.split(char::from(self.separators.component)).nth(component.checked_sub(1)?)?;
        self.value(raw)
    }

    fn value(&self, raw: &'t str) -> Option<Cow<'t, str>> {
        let subcomponent = self.separators.subcomponent.and_then(|s| memchr(s, raw.as_bytes()));
        let raw = &raw[..subcomponent.unwrap_or(raw.len())];
        let value = escape::decode(raw, &self.separators);
        if value.is_empty() || raw == "\"\"" { None } else { Some(value) }
    }

    /// MSH-3.1, the namespace id of the sending application.
    pub fn sending_application(&self) -> Option<Cow<'t, str>> {
        self.component(3, 1)
    }

    /// MSH-4.1, the namespace id of the sending facility.
    pub fn sending_facility(&self) -> Option<Cow<'t, str>> {
        self.component(4, 1)
    }

    /// MSH-5.1, the namespace id of the receiving application.
    pub fn receiving_application(&self) -> Option<Cow<'t, str>> {
        self.component(5, 1)
    }

    /// MSH-6.1, the namespace id of the receiving facility.
    pub fn receiving_facility(&self) -> Option<Cow<'t, str>> {
        self.component(6, 1)
    }

    /// MSH-7.1, when the message was made, as the sender wrote it; see [`super::time::Ts`].
    pub fn made_at(&self) -> Option<Cow<'t, str>> {
        self.component(7, 1)
    }

    /// MSH-9.1, the message type, such as `ADT`.
    pub fn message_code(&self) -> Option<Cow<'t, str>> {
        self.component(9, 1)
    }

    /// MSH-9.2, the trigger event, such as `A01`.
    pub fn trigger(&self) -> Option<Cow<'t, str>> {
        self.component(9, 2)
    }

    /// MSH-9.3, the message structure, such as `ADT_A01`; since v2.3.1.
    pub fn structure(&self) -> Option<Cow<'t, str>> {
        self.component(9, 3)
    }

    /// MSH-10, the control id.
    pub fn control_id(&self) -> Option<Cow<'t, str>> {
        self.component(10, 1)
    }

    /// MSH-11.1, `P`, `T` or `D` of table 0103.
    pub fn processing_id(&self) -> Option<Cow<'t, str>> {
        self.component(11, 1)
    }

    /// MSH-12.1, the version, such as `2.5.1`.
    pub fn version(&self) -> Option<Cow<'t, str>> {
        self.component(12, 1)
    }

    /// MSH-13, the sequence number, as it stands.
    pub fn sequence_number(&self) -> Option<Cow<'t, str>> {
        self.component(13, 1)
    }

    /// MSH-14, the continuation pointer: this message goes on where the one whose DSC-1 says the same left off.
    pub fn continuation_pointer(&self) -> Option<Cow<'t, str>> {
        self.component(14, 1)
    }

    /// MSH-15, when an accept acknowledgement is due: `AL`, `NE`, `ER` or `SU` of table 0155.
    pub fn accept_ack(&self) -> Option<Cow<'t, str>> {
        self.component(15, 1)
    }

    /// MSH-16, when an application acknowledgement is due.
    pub fn application_ack(&self) -> Option<Cow<'t, str>> {
        self.component(16, 1)
    }

    /// MSH-17, the country code.
    pub fn country(&self) -> Option<Cow<'t, str>> {
        self.component(17, 1)
    }

    /// MSH-18, the character sets of table 0211, the default one first.
    pub fn charsets(&self) -> impl Iterator<Item = Cow<'t, str>> {
        let header = *self;
        let repetition = self.separators.repetition.map_or('\r', char::from);
        self.raw(18).split(repetition).filter_map(move |raw| header.value(raw))
    }

    /// MSH-21.1, the identifiers of the message profiles to which the message conforms.
    pub fn profiles(&self) -> impl Iterator<Item = Cow<'t, str>> {
        let header = *self;
        let repetition = self.separators.repetition.map_or('\r', char::from);
        let component = char::from(self.separators.component);
        self.raw(21)
            .split(repetition)
            .filter_map(move |raw| header.value(raw.split(component).next().unwrap_or_default()))
    }

    /// Whether the sender asks for enhanced acknowledgement: MSH-15 or MSH-16 is valued.
    pub fn is_enhanced(&self) -> bool {
        self.accept_ack().is_some() || self.application_ack().is_some()
    }
}

/// Shows no values: a header names people and places.
impl fmt::Debug for Header<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header").field("separators", &self.separators).finish_non_exhaustive()
    }
}

/// Where the first line that begins with `MSH` and a field separator begins, blanks before it left out.
pub(crate) fn find(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    loop {
        let start = line + blanks(&bytes[line..]);
        if is_header(&bytes[start..]) {
            return Some(start);
        }
        line = start + memchr2(b'\r', b'\n', &bytes[start..])? + 1;
    }
}

/// Whether a line begins with `MSH` and what may be a field separator.
pub(crate) fn is_header(line: &[u8]) -> bool {
    line.len() >= 4 && line[..3].eq_ignore_ascii_case(b"MSH") && line[3].is_ascii_punctuation()
}

/// How many bytes of blanks, byte order mark and control characters other than line ends a line begins with.
pub(crate) fn blanks(line: &[u8]) -> usize {
    let mut n = 0;
    loop {
        match line.get(n) {
            Some(b'\r' | b'\n') | None => return n,
            Some(b) if *b <= b' ' => n += 1,
            Some(0xef) if line[n..].starts_with("\u{feff}".as_bytes()) => n += 3,
            Some(_) => return n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "MSH|^~\\&|SND&1.2.3&ISO^x|FAC|RCV|RFAC|20240301120000+0100||ADT^A01^ADT_A01|ID\\T\\1|P^A|2.5.1^DEU\
                        |7|ptr|AL|NE|DEU|UNICODE UTF-8~8859/1|||prof1^ns~prof2\rPID|1\r";

    fn text(value: Option<Cow<'_, str>>) -> String {
        value.map_or_else(|| "-".to_owned(), Cow::into_owned)
    }

    #[test]
    fn every_field_is_found() {
        let header = Header::peek(FULL).unwrap();
        let found = [
            header.sending_application(),
            header.sending_facility(),
            header.receiving_application(),
            header.receiving_facility(),
            header.made_at(),
            header.message_code(),
            header.trigger(),
            header.structure(),
            header.control_id(),
            header.processing_id(),
            header.version(),
            header.sequence_number(),
            header.continuation_pointer(),
            header.accept_ack(),
            header.application_ack(),
            header.country(),
        ]
        .map(text);
        let expected = [
            "SND",
            "FAC",
            "RCV",
            "RFAC",
            "20240301120000+0100",
            "ADT",
            "A01",
            "ADT_A01",
            "ID&1",
            "P",
            "2.5.1",
            "7",
            "ptr",
            "AL",
            "NE",
            "DEU",
        ];
        assert_eq!(found, expected);
        assert_eq!(header.charsets().collect::<Vec<_>>(), ["UNICODE UTF-8", "8859/1"]);
        assert_eq!(header.profiles().collect::<Vec<_>>(), ["prof1", "prof2"]);
        assert_eq!(header.raw(3), "SND&1.2.3&ISO^x");
        assert_eq!((header.raw(1), header.raw(2)), ("|", "^~\\&"));
        assert_eq!((header.raw(0), header.raw(22), header.raw(99)), ("", "", ""));
        assert!(header.is_enhanced());
    }

    #[test]
    fn what_is_missing_is_none() {
        for text in ["MSH|^~\\&", "MSH|^~\\&|", "MSH|^~\\&||||||||\"\"|\"\"|\"\"", "MSH|^~\\&|||||||||^|~"] {
            let header = Header::peek(text).unwrap();
            assert_eq!(
                (header.control_id(), header.version(), header.message_code()),
                (None, None, None),
                "{text}"
            );
            assert!(!header.is_enhanced());
        }
    }

    #[test]
    fn a_header_is_found_behind_anything() {
        for before in ["", "\r\n", "\u{feff}", " \t", "PID|1\r", "\u{b}", "garbage\n  "] {
            let text = format!("{before}{FULL}");
            assert_eq!(Header::peek(&text).and_then(|h| h.version()).as_deref(), Some("2.5.1"), "{before:?}");
        }
        for text in ["", "MSH", "MSH|", "MSH|\r", "MSHX^~\\&|", "xMSH|^~\\&|", "MSH\u{e9}^~\\&|", "MSH|aa|"] {
            assert!(Header::peek(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn debug_shows_no_value() {
        assert!(!format!("{:?}", Header::peek(FULL).unwrap()).contains("SND"));
    }
}
