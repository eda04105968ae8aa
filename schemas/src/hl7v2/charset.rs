//! From bytes to text by MSH-18, and what to do when MSH-18 does not tell the truth.
//!
//! Invariant: the bytes decide. A declared character set is believed where the bytes allow it; otherwise they are read
//! as what they are, and an issue says so. No byte is left out.

use super::continuation;
use super::header;
use super::iso2022;
use crate::issue::{Issue, Severity};
use encoding_rs::{DecoderResult, Encoding};
use memchr::memchr;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::fmt;

/// The text of a message and how it was read.
#[derive(Clone)]
pub struct Decoded<'b> {
    /// The text, without a byte order mark, segments that ADD continues made whole.
    pub text: Cow<'b, str>,
    /// What it was read as: a code of table 0211, or `windows-1252`.
    pub charset: &'static str,
    /// What was not as MSH-18 says.
    pub issues: Vec<Issue>,
}

/// Shows sizes only: the text is a patient's.
impl fmt::Debug for Decoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoded")
            .field("bytes", &self.text.len())
            .field("charset", &self.charset)
            .field("issues", &self.issues)
            .finish()
    }
}

/// How the bytes of one character set become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ascii,
    Utf8,
    /// Two or four bytes a character throughout.
    Wide,
    /// One byte a character, ASCII below 0x80.
    Single(&'static Encoding),
    /// One or more bytes a character, ASCII below 0x80.
    Multi(&'static Encoding),
    /// Seven-bit Japanese, switched by escape sequences of ISO 2022.
    Japanese,
    /// A set of table 0211 for which there is no decoder.
    Unsupported,
}

/// A character set: its code in table 0211, other names it goes by (letters and digits only, without `ISO`), its kind.
struct Charset {
    code: &'static str,
    names: &'static [&'static str],
    kind: Kind,
}

const fn row(code: &'static str, names: &'static [&'static str], kind: Kind) -> Charset {
    Charset { code, names, kind }
}

/// Table 0211, and the names that senders write instead. `8859/1` and `8859/9` are read as the windows code pages
/// that contain them.
static CHARSETS: [Charset; 31] = [
    row("ASCII", &["ASCII", "USASCII", "646"], Kind::Ascii),
    row("8859/1", &["88591", "LATIN1"], Kind::Single(encoding_rs::WINDOWS_1252)),
    row("8859/2", &["88592", "LATIN2"], Kind::Single(encoding_rs::ISO_8859_2)),
    row("8859/3", &["88593"], Kind::Single(encoding_rs::ISO_8859_3)),
    row("8859/4", &["88594"], Kind::Single(encoding_rs::ISO_8859_4)),
    row("8859/5", &["88595"], Kind::Single(encoding_rs::ISO_8859_5)),
    row("8859/6", &["88596"], Kind::Single(encoding_rs::ISO_8859_6)),
    row("8859/7", &["88597"], Kind::Single(encoding_rs::ISO_8859_7)),
    row("8859/8", &["88598"], Kind::Single(encoding_rs::ISO_8859_8)),
    row("8859/9", &["88599", "LATIN5"], Kind::Single(encoding_rs::WINDOWS_1254)),
    row("8859/10", &["885910"], Kind::Single(encoding_rs::ISO_8859_10)),
    row("8859/11", &["885911", "TIS620"], Kind::Single(encoding_rs::WINDOWS_874)),
    row("8859/13", &["885913"], Kind::Single(encoding_rs::ISO_8859_13)),
    row("8859/14", &["885914"], Kind::Single(encoding_rs::ISO_8859_14)),
    row("8859/15", &["885915", "LATIN9"], Kind::Single(encoding_rs::ISO_8859_15)),
    row("8859/16", &["885916"], Kind::Single(encoding_rs::ISO_8859_16)),
    row("UNICODE UTF-8", &["UNICODEUTF8", "UTF8"], Kind::Utf8),
    row("UNICODE", &["UNICODE", "106461", "10646"], Kind::Utf8),
    row("UNICODE UTF-16", &["UNICODEUTF16", "UTF16", "UTF16LE", "UTF16BE", "UCS2"], Kind::Wide),
    row("UNICODE UTF-32", &["UNICODEUTF32", "UTF32", "UTF32LE", "UTF32BE"], Kind::Wide),
    row("GB 18030-2000", &["GB180302000", "GB18030", "GBK", "GB2312"], Kind::Multi(encoding_rs::GB18030)),
    row("BIG-5", &["BIG5"], Kind::Multi(encoding_rs::BIG5)),
    row("KS X 1001", &["KSX1001", "KSC5601", "EUCKR"], Kind::Multi(encoding_rs::EUC_KR)),
    row("CNS 11643-1992", &["CNS116431992", "CNS11643"], Kind::Unsupported),
    row("ISO IR6", &["IR6"], Kind::Ascii),
    row("ISO IR14", &["IR14"], Kind::Japanese),
    row("ISO IR87", &["IR87", "2022JP"], Kind::Japanese),
    row("ISO IR159", &["IR159"], Kind::Japanese),
    row("JIS X 0202", &["JISX0202"], Kind::Japanese),
    row("JAS2020", &["JAS2020"], Kind::Japanese),
    row("windows-1252", &["WINDOWS1252", "CP1252", "ANSI"], Kind::Single(encoding_rs::WINDOWS_1252)),
];

static SHIFT_JIS: Charset = row("Shift_JIS", &[], Kind::Multi(encoding_rs::SHIFT_JIS));
static EUC_JP: Charset = row("EUC-JP", &[], Kind::Multi(encoding_rs::EUC_JP));

fn by_code(code: &str) -> &'static Charset {
    CHARSETS.iter().find(|charset| charset.code == code).expect("a code of the table above")
}

/// The character set of a name, and whether the name is its code in table 0211.
fn find(name: &str) -> Option<(&'static Charset, bool)> {
    if let Some(charset) = CHARSETS.iter().find(|charset| charset.code == name) {
        return Some((charset, charset.code != "windows-1252"));
    }
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect();
    let plain = plain.strip_prefix("ISO").unwrap_or(&plain);
    let known = CHARSETS.iter().find(|charset| charset.names.contains(&plain));
    let charset = known.or_else(|| {
        let label = Encoding::for_label(name.as_bytes())?;
        let is_label =
            |charset: &&Charset| matches!(charset.kind, Kind::Single(of) | Kind::Multi(of) if of == label);
        CHARSETS.iter().chain([&SHIFT_JIS, &EUC_JP]).find(is_label)
    })?;
    Some((charset, false))
}

/// Whether a name can be the fallback of [`decode`]: a code of table 0211 or another common name of a character set
/// that this program reads.
pub fn is_known(name: &str) -> bool {
    find(name).is_some_and(|(charset, _)| charset.kind != Kind::Unsupported)
}

/// Reads the bytes of one message as text.
///
/// The order in which the character set is decided: a byte order mark, or the zero bytes of UTF-16 and UTF-32; then
/// MSH-18; then `fallback`, a character set that the configuration gives for senders that declare none; then UTF-8 if
/// the bytes are that, else windows-1252. MSH-18 is not believed when its set is not one of Unicode and the bytes
/// are UTF-8, nor when the bytes cannot be what it says. Alternate character sets (repetitions of MSH-18) are switched
/// to by `\Cxxyy\`, `\Mxxyyzz\` or the escape sequences of ISO 2022, and last to the end of the segment at most.
///
/// # Source
/// HL7 v2.5.1 section 2.15.9.18 (MSH-18), 2.7.2 (escape sequences for character sets), table 0211.
pub fn decode<'b>(bytes: &'b [u8], fallback: Option<&str>) -> Decoded<'b> {
    let mut decoded = match Wide::of(bytes) {
        Some(wide) => decode_wide(bytes, wide),
        None => decode_narrow(bytes, fallback),
    };
    if let Some((whole, issue)) = continuation::join_added(&decoded.text) {
        decoded.text = Cow::Owned(whole);
        decoded.issues.push(issue);
    }
    decoded
}

/// UTF-16 or UTF-32, seen by a byte order mark or by the zero bytes beside its first four characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wide {
    /// Bytes of a code unit: 2 or 4.
    pub(crate) width: usize,
    /// The high byte comes first.
    pub(crate) big: bool,
    /// Bytes of the mark.
    pub(crate) mark: usize,
}

impl Wide {
    pub(crate) fn of(bytes: &[u8]) -> Option<Wide> {
        let wide = |width, big, mark| Wide { width, big, mark };
        match *bytes {
            [0xff, 0xfe, 0, 0, ..] => return Some(wide(4, false, 4)),
            [0, 0, 0xfe, 0xff, ..] => return Some(wide(4, true, 4)),
            [0xff, 0xfe, ..] => return Some(wide(2, false, 2)),
            [0xfe, 0xff, ..] => return Some(wide(2, true, 2)),
            _ => {}
        }
        let begins_with_ascii = |wide: &Wide| {
            let mut units = bytes.chunks_exact(wide.width).take(4);
            units.len() == 4 && units.all(|unit| (0x01..0x80).contains(&wide.unit(unit)))
        };
        [wide(4, false, 0), wide(4, true, 0), wide(2, false, 0), wide(2, true, 0)]
            .into_iter()
            .find(begins_with_ascii)
    }

    /// The code unit in some bytes.
    pub(crate) fn unit(self, bytes: &[u8]) -> u32 {
        let add = |n: u32, b: &u8| n << 8 | u32::from(*b);
        if self.big { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) }
    }
}

fn decode_wide(bytes: &[u8], wide: Wide) -> Decoded<'_> {
    let body = &bytes[wide.mark..];
    let (text, bad, charset) = if wide.width == 2 {
        let encoding = if wide.big { encoding_rs::UTF_16BE } else { encoding_rs::UTF_16LE };
        let (text, bad) = encoding.decode_without_bom_handling(body);
        (text.into_owned(), bad, "UNICODE UTF-16")
    } else {
        let characters = body.chunks(4).map(|unit| match unit.len() {
            4 => char::from_u32(wide.unit(unit)).unwrap_or(char::REPLACEMENT_CHARACTER),
            _ => char::REPLACEMENT_CHARACTER,
        });
        let text: String = characters.collect();
        let bad = text.contains(char::REPLACEMENT_CHARACTER);
        (text, bad, "UNICODE UTF-32")
    };
    let mut issues = Vec::new();
    if bad {
        let text = "code units that are no characters stand as U+FFFD";
        issues.push(Issue::new(Severity::Error, "charset-undecodable", "", text));
    }
    let declared = header::Header::peek(&text).and_then(|header| header.charsets().next());
    let says = declared.as_deref().and_then(find).map(|(known, _)| known.kind);
    if says != Some(Kind::Wide) {
        let text = format!("the bytes are {charset}, which is not what MSH-18 says, and are read as that");
        issues.push(Issue::new(Severity::Warning, "charset-untrue", "MSH-18", text));
    }
    Decoded { text: Cow::Owned(text), charset, issues }
}

fn decode_narrow<'b>(bytes: &'b [u8], fallback: Option<&str>) -> Decoded<'b> {
    let mut issues = Vec::new();
    let body = match bytes.strip_prefix("\u{feff}".as_bytes()) {
        Some(body) => {
            let text = "a byte order mark before the message is left out";
            issues.push(Issue::new(Severity::Information, "byte-order-mark", "", text));
            body
        }
        None => bytes,
    };
    let marked = body.len() < bytes.len();
    let header = Declared::of(body);
    let mut sets: SmallVec<[&Charset; 2]> = SmallVec::new();
    for name in header.charsets.iter() {
        match find(name) {
            Some((charset, official)) => {
                if !official {
                    let text = format!("not a code of table 0211, read as {}", charset.code);
                    issues.push(Issue::new(Severity::Information, "charset-name", "MSH-18", text));
                }
                sets.push(charset);
            }
            None => {
                let text = "not a character set of table 0211, it is left out of account";
                issues.push(Issue::new(Severity::Warning, "charset-unknown", "MSH-18", text));
            }
        }
    }
    let stated = sets.first().copied();
    let ascii = by_code("ASCII");
    let configured = fallback.and_then(find).map(|(charset, _)| charset);
    let mut primary = if marked { by_code("UNICODE UTF-8") } else { stated.or(configured).unwrap_or(ascii) };
    if primary.kind == Kind::Wide {
        let text = format!("the bytes are not {}: they are read as UTF-8 if they are that", primary.code);
        issues.push(Issue::new(Severity::Warning, "charset-untrue", "MSH-18", text));
        primary = by_code("UNICODE UTF-8");
    }
    let undeclared = stated.is_none() && !marked;
    // HL7's escape sequences switch only between declared sets; those of ISO 2022 are control characters otherwise.
    let switching = sets.len() > 1 || primary.kind == Kind::Japanese;
    if switching || memchr(0x1b, body).is_some() {
        let escape = header.escape.filter(|_| switching);
        let mut found = Vec::new();
        let switched = iso2022::decode(body, escape, |range| {
            let start = range.start;
            let before = found.len();
            let read = primary_text(&body[range], primary, configured, &mut found);
            found[before..].iter_mut().for_each(|finding| finding.at += start);
            read
        });
        // An escape character that begins no sequence is a control character like others.
        if let Some(switched) = switched.filter(|switched| switching || switched.any) {
            if !switching {
                let text = "escape sequences of ISO 2022, which MSH-18 does not announce, are obeyed";
                issues.push(Issue::new(Severity::Warning, "charset-untrue", "MSH-18", text));
            }
            // Each line is a run of its own; one finding of a kind is enough.
            for (n, finding) in found.iter().enumerate() {
                let alike = |other: &Finding| {
                    std::mem::discriminant(&other.kind) == std::mem::discriminant(&finding.kind)
                };
                if !found[..n].iter().any(alike) {
                    issues.push(finding.issue(body, primary, undeclared));
                }
            }
            let charset = switched.charset.unwrap_or(primary.code);
            if let Some(at) = switched.bad {
                let text = "bytes that are no characters of the character set in force stand as U+FFFD";
                issues.push(Issue::new(Severity::Error, "charset-undecodable", place(body, at), text));
            }
            if let Some(at) = switched.left_open {
                let text = "a two-byte character set is not switched back from before the field ends";
                issues.push(Issue::new(Severity::Warning, "charset-switch", place(body, at), text));
            }
            if let Some(at) = switched.unknown {
                let text = "an escape sequence for a character set that is not known is kept";
                issues.push(Issue::new(Severity::Warning, "charset-escape", place(body, at), text));
            }
            return Decoded { text: Cow::Owned(switched.text), charset, issues };
        }
    }
    let mut found = Vec::new();
    let (text, charset) = primary_text(body, primary, configured, &mut found);
    issues.extend(found.iter().map(|finding| finding.issue(body, primary, undeclared)));
    Decoded { text, charset, issues }
}

/// What [`primary_text`] has to say, and about which offset into its bytes.
struct Finding {
    at: usize,
    kind: FindingKind,
}

enum FindingKind {
    /// Read as another character set than the one that was to be.
    ReadAs(&'static str),
    /// Single bytes that are no UTF-8, read as another set.
    SomeReadAs(&'static str),
    /// Bytes that no character has.
    Undecodable,
    /// Bytes 0x80 to 0x9F, which the windows code page has and ISO 8859 has not.
    CodePage,
}

impl Finding {
    fn issue(&self, bytes: &[u8], primary: &Charset, undeclared: bool) -> Issue {
        let (severity, code, text) = match self.kind {
            FindingKind::ReadAs(charset) if undeclared => {
                (Severity::Warning, "charset-undeclared", format!("MSH-18 is empty: read as {charset}"))
            }
            FindingKind::ReadAs(charset) => {
                let text = format!("the bytes are not what MSH-18 says: read as {charset}");
                (Severity::Warning, "charset-untrue", text)
            }
            FindingKind::SomeReadAs(charset) => {
                let text = format!("bytes that are no {} are read as {charset}", primary.code);
                (Severity::Warning, "charset-untrue", text)
            }
            FindingKind::Undecodable => {
                let text = format!("bytes that are no characters of {} stand as U+FFFD", primary.code);
                (Severity::Error, "charset-undecodable", text)
            }
            FindingKind::CodePage => {
                let text = "bytes that ISO 8859 leaves to control characters are read as the windows code page has them";
                (Severity::Information, "charset-code-page", text.to_owned())
            }
        };
        Issue::new(severity, code, place(bytes, self.at), text)
    }
}

/// Reads bytes in which no character set is switched.
fn primary_text<'b>(
    bytes: &'b [u8],
    primary: &Charset,
    fallback: Option<&Charset>,
    findings: &mut Vec<Finding>,
) -> (Cow<'b, str>, &'static str) {
    let utf8 = std::str::from_utf8(bytes);
    let Some(at) = first_high(bytes) else {
        let text = utf8.expect("bytes below 0x80 are UTF-8");
        return (Cow::Borrowed(text), primary.code);
    };
    match primary.kind {
        Kind::Utf8 => match utf8 {
            Ok(text) => (Cow::Borrowed(text), primary.code),
            Err(_) => mixed(bytes, fallback, findings),
        },
        Kind::Single(encoding) => {
            // One accented capital and one sign can look like UTF-8; in Latin-1 that is no word, elsewhere it may be.
            let enough = if encoding == encoding_rs::WINDOWS_1252 { 1 } else { 3 };
            if let Ok(text) = utf8
                && text.chars().filter(|c| !c.is_ascii()).take(enough).count() == enough
            {
                findings.push(Finding { at, kind: FindingKind::ReadAs("UNICODE UTF-8") });
                return (Cow::Borrowed(text), "UNICODE UTF-8");
            }
            if primary.code.starts_with("8859/")
                && let Some(at) = bytes.iter().position(|b| (0x80..0xa0).contains(b))
            {
                findings.push(Finding { at, kind: FindingKind::CodePage });
            }
            (replaced(bytes, encoding, findings), primary.code)
        }
        Kind::Multi(encoding) => {
            if let Ok(text) = utf8
                && text.chars().filter(|c| !c.is_ascii()).take(2).count() == 2
                && text.chars().all(|c| c.is_ascii() || c.len_utf8() >= 3)
            {
                findings.push(Finding { at, kind: FindingKind::ReadAs("UNICODE UTF-8") });
                return (Cow::Borrowed(text), "UNICODE UTF-8");
            }
            match (encoding.decode_without_bom_handling_and_without_replacement(bytes), utf8) {
                (Some(text), _) => (text, primary.code),
                (None, Ok(text)) => {
                    findings.push(Finding { at, kind: FindingKind::ReadAs("UNICODE UTF-8") });
                    (Cow::Borrowed(text), "UNICODE UTF-8")
                }
                (None, Err(_)) => (replaced(bytes, encoding, findings), primary.code),
            }
        }
        Kind::Japanese if utf8.is_err() => {
            let guess = [&SHIFT_JIS, &EUC_JP].into_iter().find_map(|charset| match charset.kind {
                Kind::Multi(encoding) => {
                    let text = encoding.decode_without_bom_handling_and_without_replacement(bytes)?;
                    Some((text, charset.code))
                }
                _ => None,
            });
            if let Some((text, charset)) = guess {
                findings.push(Finding { at, kind: FindingKind::ReadAs(charset) });
                return (text, charset);
            }
            undeclared(bytes, at, fallback, findings)
        }
        Kind::Unsupported if utf8.is_err() => {
            findings.push(Finding { at, kind: FindingKind::Undecodable });
            let text: String = bytes
                .iter()
                .map(|b| if b.is_ascii() { char::from(*b) } else { char::REPLACEMENT_CHARACTER })
                .collect();
            (Cow::Owned(text), primary.code)
        }
        Kind::Ascii | Kind::Wide | Kind::Japanese | Kind::Unsupported => {
            undeclared(bytes, at, fallback, findings)
        }
    }
}

/// Reads bytes of which nobody has said truly what they are.
fn undeclared<'b>(
    bytes: &'b [u8],
    at: usize,
    fallback: Option<&Charset>,
    findings: &mut Vec<Finding>,
) -> (Cow<'b, str>, &'static str) {
    match (std::str::from_utf8(bytes), fallback) {
        (Ok(text), _) => {
            findings.push(Finding { at, kind: FindingKind::ReadAs("UNICODE UTF-8") });
            (Cow::Borrowed(text), "UNICODE UTF-8")
        }
        (Err(_), Some(Charset { kind: Kind::Single(encoding) | Kind::Multi(encoding), code, .. })) => {
            findings.push(Finding { at, kind: FindingKind::ReadAs(code) });
            (replaced(bytes, encoding, findings), code)
        }
        (Err(_), _) => {
            findings.push(Finding { at, kind: FindingKind::ReadAs("windows-1252") });
            (replaced(bytes, encoding_rs::WINDOWS_1252, findings), "windows-1252")
        }
    }
}

/// UTF-8 with bytes in it that are none: what is UTF-8 is kept, the rest is read byte by byte.
fn mixed<'b>(
    bytes: &'b [u8],
    fallback: Option<&Charset>,
    findings: &mut Vec<Finding>,
) -> (Cow<'b, str>, &'static str) {
    let (encoding, charset) = match fallback {
        Some(Charset { kind: Kind::Single(encoding), code, .. }) => (*encoding, *code),
        _ => (encoding_rs::WINDOWS_1252, "windows-1252"),
    };
    let mut text = String::with_capacity(bytes.len() + 16);
    let mut first = None;
    let mut at = 0;
    let mut proper = false;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        proper |= !chunk.valid().is_ascii();
        at += chunk.valid().len();
        if !chunk.invalid().is_empty() {
            first.get_or_insert(at);
            text.push_str(&encoding.decode_without_bom_handling(chunk.invalid()).0);
        }
        at += chunk.invalid().len();
    }
    findings.push(Finding { at: first.unwrap_or(0), kind: FindingKind::SomeReadAs(charset) });
    (Cow::Owned(text), if proper { "UNICODE UTF-8" } else { charset })
}

/// Decodes, with U+FFFD for what cannot be decoded.
fn replaced<'b>(bytes: &'b [u8], encoding: &'static Encoding, findings: &mut Vec<Finding>) -> Cow<'b, str> {
    if let Some(text) = encoding.decode_without_bom_handling_and_without_replacement(bytes) {
        return text;
    }
    findings.push(Finding { at: first_undecodable(bytes, encoding), kind: FindingKind::Undecodable });
    encoding.decode_without_bom_handling(bytes).0
}

fn first_undecodable(bytes: &[u8], encoding: &'static Encoding) -> usize {
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let space = decoder.max_utf8_buffer_length_without_replacement(bytes.len());
    let mut text = String::with_capacity(space.unwrap_or(bytes.len()));
    match decoder.decode_to_string_without_replacement(bytes, &mut text, true) {
        (DecoderResult::Malformed(length, after), read) => {
            read.saturating_sub(usize::from(length) + usize::from(after))
        }
        _ => 0,
    }
}

pub(crate) fn first_high(bytes: &[u8]) -> Option<usize> {
    if bytes.is_ascii() { None } else { bytes.iter().position(|b| !b.is_ascii()) }
}

/// What MSH says before its bytes are text.
struct Declared<'b> {
    charsets: SmallVec<[Cow<'b, str>; 2]>,
    escape: Option<u8>,
}

impl<'b> Declared<'b> {
    fn of(bytes: &'b [u8]) -> Declared<'b> {
        let none = Declared { charsets: SmallVec::new(), escape: None };
        let Some(start) = header::find(bytes) else { return none };
        let line = &bytes[start..];
        let end = memchr::memchr2(b'\r', b'\n', line).unwrap_or(line.len());
        let line = &line[..end];
        let separator = line[3];
        let mut fields = line.split(|b| *b == separator).skip(1);
        let encoding = fields.next().unwrap_or_default();
        // MSH-2 was the first of these, so MSH-18 is the sixteenth after it.
        let Some(field) = fields.nth(15) else {
            return Declared { escape: encoding.get(2).copied(), ..none };
        };
        let repetition = encoding.get(1).copied();
        let component = encoding.first().copied();
        let names = field.split(|b| Some(*b) == repetition).map(|name| {
            let end = component.and_then(|c| memchr(c, name)).unwrap_or(name.len());
            String::from_utf8_lossy(name[..end].trim_ascii())
        });
        let charsets = names.filter(|name| !name.is_empty() && name != "\"\"").collect();
        Declared { charsets, escape: encoding.get(2).copied() }
    }
}

/// The path of the field in which an offset lies, as far as bytes can tell.
fn place(bytes: &[u8], at: usize) -> String {
    let Some(start) = header::find(bytes) else { return String::new() };
    let separator = bytes[start + 3];
    let is_end = |b: &u8| matches!(b, b'\r' | b'\n');
    let at = at.min(bytes.len());
    let line_start = bytes[..at].iter().rposition(is_end).map_or(0, |n| n + 1);
    let name_of = |line: &[u8]| {
        super::path::SegmentName::from_bytes(line.split(|b| *b == separator).next()?.trim_ascii())
    };
    let Some(name) = name_of(&bytes[line_start..bytes.len().min(line_start + 16)]) else {
        return String::new();
    };
    let before = &bytes[start.min(line_start)..line_start];
    let same = before.split(is_end).filter(|line| name_of(&line[..line.len().min(16)]) == Some(name)).count();
    let fields = bytes[line_start..at].iter().filter(|b| **b == separator).count();
    let fields = if name == "MSH" { fields + 1 } else { fields };
    // A message has fewer than four billion bytes.
    super::path::Path::field(name, same as u32 + 1, u16::try_from(fields).unwrap_or(u16::MAX)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message with this MSH-18 and this PID-5.
    fn message(charset: &str, name: &[u8]) -> Vec<u8> {
        let head = format!("MSH|^~\\&|A|B|C|D|20240301||ADT^A01|1|P|2.5.1||||||{charset}\rPID|1||TEST||");
        [head.as_bytes(), name, b"||19700101\rPV1|1|I\r"].concat()
    }

    fn name(decoded: &Decoded<'_>) -> String {
        decoded.text.split('|').nth(22).unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn check(charset: &str, bytes: &[u8], expected: &str, read_as: &str, issues: &[&str]) {
        let bytes = message(charset, bytes);
        let decoded = decode(&bytes, None);
        let found: Vec<&str> = decoded.issues.iter().map(|issue| issue.code.as_str()).collect();
        assert_eq!(
            (name(&decoded).as_str(), decoded.charset, &*found),
            (expected, read_as, issues),
            "{charset}"
        );
        assert!(decoded.text.ends_with("||19700101\rPV1|1|I\r"), "{charset}: the rest of the message");
    }

    #[test]
    fn each_set_of_table_0211_is_read() {
        for (code, encoding, text) in [
            ("8859/1", encoding_rs::WINDOWS_1252, "Müller^Zoë"),
            ("8859/2", encoding_rs::ISO_8859_2, "Łukasiewicz^Jaś"),
            ("8859/3", encoding_rs::ISO_8859_3, "Ĉapelo^Ŭ"),
            ("8859/4", encoding_rs::ISO_8859_4, "Šķēle^Ģ"),
            ("8859/5", encoding_rs::ISO_8859_5, "Иванов^Иван"),
            ("8859/6", encoding_rs::ISO_8859_6, "محمد^علي"),
            ("8859/7", encoding_rs::ISO_8859_7, "Παπαδοπούλου^Ελένη"),
            ("8859/8", encoding_rs::ISO_8859_8, "כהן^שרה"),
            ("8859/9", encoding_rs::WINDOWS_1254, "Yıldız^Çağla"),
            ("8859/15", encoding_rs::ISO_8859_15, "Œuvre^Žižek"),
            ("UNICODE UTF-8", encoding_rs::UTF_8, "Müller^山田"),
            ("UNICODE", encoding_rs::UTF_8, "Müller^山田"),
            ("GB 18030-2000", encoding_rs::GB18030, "张伟^联通"),
            ("BIG-5", encoding_rs::BIG5, "陳大文^許功蓋"),
            ("KS X 1001", encoding_rs::EUC_KR, "김철수^가"),
        ] {
            let (bytes, _, unmappable) = encoding.encode(text);
            assert!(!unmappable, "{code}: the test is wrong");
            check(code, &bytes, text, code, &[]);
        }
        check("ASCII", b"TEST^JANE", "TEST^JANE", "ASCII", &[]);
        check("", b"TEST^JANE", "TEST^JANE", "ASCII", &[]);
        check("ISO IR6", b"TEST^JANE", "TEST^JANE", "ISO IR6", &[]);
    }

    #[test]
    fn a_trailing_byte_that_looks_like_a_separator_does_not_split() {
        // The second byte of the first character is 0x5C, of the second 0x7C.
        check("BIG-5", b"\xb3\x5c\xb3\x7c", "許逖", "BIG-5", &[]);
    }

    #[test]
    fn japanese_is_switched_by_escape_sequences() {
        let kanji = b"\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B";
        check("ISO IR87", kanji, "山田^太郎", "ISO IR87", &[]);
        check("~ISO IR87", kanji, "山田^太郎", "ISO IR87", &[]);
        check("ASCII~ISO IR87", kanji, "山田^太郎", "ASCII", &[]);
        check("ISO IR87~ASCII", kanji, "山田^太郎", "ISO IR87", &[]);
        check("", kanji, "山田^太郎", "ASCII", &["charset-untrue"]);
        // Second bytes 0x5C and 0x7C inside of the two-byte set.
        check("ISO IR87", b"\x1b$BK\\5|\x1b(B", "本亨", "ISO IR87", &[]);
        check("ISO IR159", b"\x1b$(D\x22\x2f\x1b(B", "\u{2d8}", "ISO IR159", &[]);
        check("ISO IR87", b"\x1b$B;3ED", "山田", "ISO IR87", &["charset-switch"]);
        check("ISO IR14~ISO IR87", b"\xd4\xcf\xc0\xde", "ﾔﾏﾀﾞ", "Shift_JIS", &["charset-untrue"]);
        check("ASCII~ISO IR14", b"\x1b)I\xd4\xcf\xc0", "ﾔﾏﾀ", "ASCII", &[]);
    }

    #[test]
    fn hl7_escapes_switch_between_declared_sets() {
        check("ASCII~ISO IR87", b"\\M2442\\;3ED\\C2842\\^J", "山田^J", "ASCII", &[]);
        check("ASCII~ISO IR159", b"\\M242844\\\x22\x2f\\C2842\\", "\u{2d8}", "ASCII", &[]);
        check("ASCII~8859/5", b"\\C2D4C\\\xb8\xd2", "Ив", "ASCII", &[]);
        check("8859/1~8859/7", b"M\xfcller \\C2D46\\\xc5", "Müller Ε", "8859/1", &[]);
        check("UNICODE UTF-8~KS X 1001", b"\xc3\xbc\x1b$)C\xb1\xe8", "ü김", "UNICODE UTF-8", &[]);
        // Not declared: text.
        check("ASCII", b"\\M2442\\;3ED\\C2842\\", "\\M2442\\;3ED\\C2842\\", "ASCII", &[]);
        check("ASCII~ISO IR87", b"\\M243B5D\\x", "\\M243B5D\\x", "ASCII", &["charset-escape"]);
    }

    #[test]
    fn a_switch_ends_with_its_segment() {
        let bytes = message("ASCII~ISO IR87", b"\x1b$B;3ED");
        let text = decode(&bytes, None).text.into_owned();
        assert!(text.ends_with("||19700101\rPV1|1|I\r"), "fields and segments behind it are whole");
        let end = message("ASCII~KS X 1001", b"\x1b$(C1h|");
        let decoded = decode(&end, None);
        assert!(decoded.text.ends_with("\rPV1|1|I\r"), "the next segment is ASCII again");
        assert!(decoded.issues.iter().any(|issue| issue.code == "charset-switch"), "{:?}", decoded.issues);
    }

    #[test]
    fn msh_18_that_lies_is_not_believed() {
        let utf8 = "Müller^Zoë";
        check("8859/1", utf8.as_bytes(), utf8, "UNICODE UTF-8", &["charset-untrue"]);
        check("8859/15", "Müller^Zoë ß".as_bytes(), "Müller^Zoë ß", "UNICODE UTF-8", &["charset-untrue"]);
        check("ASCII", utf8.as_bytes(), utf8, "UNICODE UTF-8", &["charset-untrue"]);
        check("", utf8.as_bytes(), utf8, "UNICODE UTF-8", &["charset-undeclared"]);
        check("GB 18030-2000", "张伟".as_bytes(), "张伟", "UNICODE UTF-8", &["charset-untrue"]);
        let latin = b"M\xfcller^Zo\xeb";
        check("UNICODE UTF-8", latin, utf8, "windows-1252", &["charset-untrue"]);
        check("ASCII", latin, utf8, "windows-1252", &["charset-untrue"]);
        check("", latin, utf8, "windows-1252", &["charset-undeclared"]);
        check("UNICODE UTF-16", latin, utf8, "windows-1252", &["charset-untrue", "charset-untrue"]);
        check("UNICODE UTF-16", b"TEST", "TEST", "UNICODE UTF-8", &["charset-untrue"]);
        check("KLINGON", latin, utf8, "windows-1252", &["charset-unknown", "charset-undeclared"]);
        // What is UTF-8 stays so beside bytes that are not.
        check("UNICODE UTF-8", b"M\xc3\xbcller^Zo\xeb", utf8, "UNICODE UTF-8", &["charset-untrue"]);
        check("8859/1", b"\x93quoted\x94 \x80", "“quoted” €", "8859/1", &["charset-code-page"]);
    }

    #[test]
    fn a_short_word_that_happens_to_look_like_utf_8_is_read_as_declared() {
        check("8859/5", b"\xc2\xb0", "ТА", "8859/5", &[]);
        check("8859/2", b"ST\xd3\xa3", "STÓŁ", "8859/2", &[]);
    }

    #[test]
    fn what_cannot_be_decoded_is_an_error_with_a_place() {
        check("8859/6", b"TEST\xa1", "TEST\u{fffd}", "8859/6", &["charset-undecodable"]);
        check("GB 18030-2000", b"TEST\xff", "TEST\u{fffd}", "GB 18030-2000", &["charset-undecodable"]);
        check("CNS 11643-1992", b"\xc4\xe3", "\u{fffd}\u{fffd}", "CNS 11643-1992", &["charset-undecodable"]);
        let bytes = message("8859/6", b"TEST\xa1");
        assert_eq!(decode(&bytes, None).issues[0].path, "PID-5");
    }

    #[test]
    fn other_names_are_known_and_reported() {
        for other in ["ISO-8859-2", "iso8859-2", "ISO 8859/2", "8859-2", "latin2"] {
            check(other, b"\xa3", "Ł", "8859/2", &["charset-name"]);
        }
        check("UTF-8", "ü".as_bytes(), "ü", "UNICODE UTF-8", &["charset-name"]);
        check("utf8", "ü".as_bytes(), "ü", "UNICODE UTF-8", &["charset-name"]);
        check("windows-1252", b"\x80", "€", "windows-1252", &["charset-name"]);
        assert!(is_known("8859/1") && is_known("windows-1250") == find("windows-1250").is_some());
        assert!(!is_known("KLINGON") && !is_known("CNS 11643-1992") && !is_known(""));
    }

    #[test]
    fn the_configured_set_is_for_those_who_declare_none() {
        let latin2 = message("", b"\xa3");
        let decoded = decode(&latin2, Some("8859/2"));
        assert_eq!((name(&decoded).as_str(), decoded.charset, decoded.issues.len()), ("Ł", "8859/2", 0));
        let bytes = message("UNICODE UTF-8", b"\xa3");
        assert_eq!(
            name(&decode(&bytes, Some("8859/2"))),
            "Ł",
            "and for bytes that are not what they are said to be"
        );
        let bytes = message("8859/1", b"\xa3");
        assert_eq!(name(&decode(&bytes, Some("8859/2"))), "£");
    }

    #[test]
    fn marks_and_zero_bytes_decide_first() {
        let text = String::from_utf8(message("UNICODE UTF-16", "Zoë^山".as_bytes())).unwrap();
        let units = |big: bool| {
            text.encode_utf16()
                .flat_map(move |u| if big { u.to_be_bytes() } else { u.to_le_bytes() })
                .collect::<Vec<u8>>()
        };
        let points = |big: bool| {
            text.chars()
                .map(u32::from)
                .flat_map(move |c| if big { c.to_be_bytes() } else { c.to_le_bytes() })
                .collect::<Vec<u8>>()
        };
        for (mark, bytes, charset) in [
            (&b"\xff\xfe"[..], units(false), "UNICODE UTF-16"),
            (b"\xfe\xff", units(true), "UNICODE UTF-16"),
            (b"", units(false), "UNICODE UTF-16"),
            (b"", units(true), "UNICODE UTF-16"),
            (b"\xff\xfe\0\0", points(false), "UNICODE UTF-32"),
            (b"\0\0\xfe\xff", points(true), "UNICODE UTF-32"),
            (b"", points(false), "UNICODE UTF-32"),
            (b"", points(true), "UNICODE UTF-32"),
        ] {
            let bytes = [mark, &bytes].concat();
            let decoded = decode(&bytes, None);
            assert_eq!((&*decoded.text, decoded.charset, decoded.issues.len()), (text.as_str(), charset, 0));
        }
        let marked = [b"\xef\xbb\xbf", &*message("8859/1", "ü".as_bytes())].concat();
        let decoded = decode(&marked, None);
        assert_eq!((name(&decoded).as_str(), decoded.charset), ("ü", "UNICODE UTF-8"));
        assert_eq!(decoded.issues[0].code, "byte-order-mark");
    }

    #[test]
    fn segments_that_add_continues_are_made_whole() {
        let bytes = b"MSH|^~\\&|A\rOBX|1|TX|||first ha\rADD|lf, second half||\rADD||F\rOBX|2\rADD|\rDSC|1\r";
        let decoded = decode(bytes, None);
        let expected = "MSH|^~\\&|A\rOBX|1|TX|||first half, second half|||F\rOBX|2\rADD|\rDSC|1\r";
        assert_eq!(decoded.text, expected);
        assert_eq!(
            (decoded.issues[0].code.as_str(), decoded.issues[0].path.as_str()),
            ("segment-continued", "OBX")
        );
        let after_msh = b"MSH|^~\\&|A||||||||||||ptr\rADD|rest|F\r";
        assert_eq!(
            decode(after_msh, None).text.as_bytes(),
            after_msh,
            "goes on with a segment of another message"
        );
    }

    #[test]
    fn debug_shows_no_text() {
        let bytes = message("", b"TEST^JANE");
        assert!(!format!("{:?}", decode(&bytes, None)).contains("JANE"));
    }

    proptest! {
        #[test]
        fn ascii_and_utf_8_are_borrowed(name in "[ -~]{0,20}") {
            let bytes = message("UNICODE UTF-8", name.as_bytes());
            prop_assert!(matches!(decode(&bytes, None).text, Cow::Borrowed(_)));
        }

        #[test]
        fn no_bytes_break_the_decoder(
            charset in "(|ASCII|8859/[0-9]|UNICODE UTF-(8|16)|GB 18030-2000|BIG-5|ISO IR(14|87|159)|.{0,8})(~ISO IR87)?",
            name in proptest::collection::vec(any::<u8>(), 0..60),
            fallback in proptest::option::of("8859/2|BIG-5|UNICODE UTF-16|x"),
        ) {
            let bytes = message(&charset, &name);
            let _ = decode(&bytes, fallback.as_deref());
            let _ = decode(&name, fallback.as_deref());
        }

        #[test]
        fn no_switching_breaks_the_decoder(
            name in proptest::collection::vec(prop_oneof![
                Just(b"\x1b$B".to_vec()), Just(b"\x1b$(D".to_vec()), Just(b"\x1b(B".to_vec()), Just(b"\\M2442\\".to_vec()),
                Just(b"\\C2D41\\".to_vec()), Just(b"\x1b".to_vec()), Just(b"\\M24".to_vec()), any::<[u8; 3]>().prop_map(|a| a.to_vec()),
            ], 0..12),
        ) {
            let bytes = message("8859/1~ISO IR87", &name.concat());
            let _ = decode(&bytes, None);
        }
    }
}
