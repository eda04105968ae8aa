//! The acknowledgement: a pure function of the message's MSH segment, of who we are and of what became of the message.
//!
//! Invariant: only a [`Stored`] makes a positive answer. A repeat of a message gets the same bytes, because nothing else
//! goes in: no clock, no counter. The sender's own header fields go back as they came, in its character set; of the rest
//! of its message nothing does.
//!
//! Source: HL7 v2.5.1 sections 2.9 (processing rules), 2.15.8 (MSA), 2.15.5 (ERR); v2.3 to v2.4 section 2.24 for the older ERR;
//! tables 0008 (acknowledgment code), 0155 (accept/application acknowledgment conditions), 0357 (error condition).

use crate::{Rejection, RejectionKind, Stored};
use jiff::Timestamp;
use memchr::{memchr, memchr2, memchr2_iter};
use uuid::Uuid;

/// The longest header field that is echoed; HL7 allows 427 bytes at most (MSH-3 of v2.7 and later has 227, MSH-10 199).
const ECHO_MAX: usize = 1_000;

/// How far into a message that does not begin with MSH one is looked for.
const SOUGHT_MAX: usize = 64 * 1024;

/// MSH-1 to MSH-18; nothing behind them matters to an answer.
const FIELDS: usize = 18;

/// The longest MSA-3 (v2.1 to v2.6).
const MSA_3_MAX: usize = 80;

/// Who answers, where the message does not say whom it meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// MSH-3 of an answer to a message without MSH-5.
    pub application: String,
    /// MSH-4 of an answer to a message without MSH-6.
    pub facility: String,
}

/// The MSH segment of a message, as bytes: what an acknowledgement needs, without reading the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msh<'m> {
    /// Where the segment begins in the message.
    offset: usize,
    segment: &'m [u8],
    fields: [&'m [u8]; FIELDS],
}

impl<'m> Msh<'m> {
    /// Finds MSH: at the beginning of a message, behind white space and a byte order mark; else, so that even a message with
    /// something before it can be answered, the first line that begins with it. `None` if there is none.
    pub fn read(message: &'m [u8]) -> Option<Self> {
        let start = message.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(message).trim_ascii_start();
        if start.starts_with(b"MSH") {
            return Self::at(message, message.len() - start.len());
        }
        let head = &message[..message.len().min(SOUGHT_MAX)];
        memchr2_iter(b'\r', b'\n', head)
            .find(|line_end| message[line_end + 1..].starts_with(b"MSH"))
            .and_then(|line_end| Self::at(message, line_end + 1))
    }

    fn at(message: &'m [u8], offset: usize) -> Option<Self> {
        let message = &message[offset..];
        let end = memchr2(b'\r', b'\n', message).unwrap_or(message.len());
        let segment = &message[..end];
        let separator = *segment.strip_prefix(b"MSH")?.first()?;
        if separator.is_ascii_alphanumeric() || !separator.is_ascii_graphic() {
            return None;
        }
        let mut fields: [&[u8]; FIELDS] = [b""; FIELDS];
        fields[0] = &segment[3..4];
        let mut rest = &segment[4..];
        for field in &mut fields[1..] {
            let end = memchr(separator, rest).unwrap_or(rest.len());
            *field = &rest[..end.min(ECHO_MAX)];
            match rest.get(end + 1..) {
                Some(behind) => rest = behind,
                None => break,
            }
        }
        Some(Msh { offset, segment, fields })
    }

    /// How many bytes of the message the segment takes, with what stands before it.
    pub fn end(&self) -> usize {
        self.offset + self.segment.len()
    }

    /// A field from MSH-1 to MSH-18 as it stands; HL7's null (`""`) counts as empty here.
    fn field(&self, number: usize) -> &'m [u8] {
        let field = self.fields[number - 1];
        if field == b"\"\"" { b"" } else { field }
    }

    /// MSH-1, the field separator.
    pub fn separator(&self) -> u8 {
        self.fields[0][0]
    }

    /// MSH-10, the control id, as it stands.
    pub fn control_id(&self) -> &'m [u8] {
        self.field(10).trim_ascii()
    }

    /// Whether MSH-9.1 says that this message is itself an acknowledgement, which is never answered.
    pub fn is_acknowledgement(&self) -> bool {
        self.component(9, 1) == b"ACK"
    }

    /// What the sender wants to hear, by MSH-15 and MSH-16.
    pub fn mode(&self) -> Mode {
        match (self.field(15).trim_ascii(), self.field(16).trim_ascii()) {
            (b"", b"") => Mode::Original,
            (accept, application) => {
                Mode::Enhanced { accept: When::read(accept), application: When::read(application) }
            }
        }
    }

    /// A delimiter of MSH-2, counted from 0: component, repetition, escape, subcomponent.
    fn delimiter(&self, index: usize) -> u8 {
        self.field(2).get(index).copied().unwrap_or(b"^~\\&"[index])
    }

    fn component(&self, field: usize, number: usize) -> &'m [u8] {
        let component = self.delimiter(0);
        self.field(field).split(|byte| *byte == component).nth(number - 1).unwrap_or_default()
    }

    /// MSH-12.1 as numbers; (0, 0, 0) if it is none, which sorts before every version.
    fn version(&self) -> (u8, u8, u8) {
        let text = std::str::from_utf8(self.component(12, 1).trim_ascii()).unwrap_or_default();
        let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
        let mut part = || parts.next().unwrap_or(0);
        (part(), part(), part())
    }
}

/// The two modes of acknowledgement, HL7 v2.5.1 section 2.9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Neither MSH-15 nor MSH-16 is valued: one answer, always.
    Original,
    /// At least one is valued; the other counts as never.
    Enhanced {
        /// MSH-15: when the accept acknowledgement is due.
        accept: When,
        /// MSH-16: when the application acknowledgement is due.
        application: When,
    },
}

/// Table 0155: when an acknowledgement is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// `AL`, and any word that the table does not know: an answer too many is the lesser harm.
    Always,
    /// `NE`, and an empty field beside one that is valued.
    Never,
    /// `ER`
    OnError,
    /// `SU`
    OnSuccess,
}

impl When {
    fn read(field: &[u8]) -> Self {
        match field {
            b"" | b"NE" => When::Never,
            b"ER" => When::OnError,
            b"SU" => When::OnSuccess,
            _ => When::Always,
        }
    }

    /// Whether it is due for a result.
    pub fn is_due(self, positive: bool) -> bool {
        match self {
            When::Always => true,
            When::Never => false,
            When::OnError => !positive,
            When::OnSuccess => positive,
        }
    }
}

/// Which of its two answers a message gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Original mode: `AA`, `AE`, `AR`.
    Original,
    /// The accept acknowledgement of enhanced mode: `CA`, `CE`, `CR`.
    Accept,
    /// The application acknowledgement of enhanced mode: `AA`, `AE`, `AR`; wants no answer itself.
    Application,
}

/// What an acknowledgement says.
#[derive(Clone, Copy, Debug)]
pub enum Said<'a> {
    /// It is durable; at [`Level::Application`] also normalized.
    Taken(&'a Stored),
    /// It is durable, and waits in quarantine.
    Quarantined(&'a Stored, &'a Rejection),
    /// It was not taken. The time is the answer's if the rejection has none.
    Refused(&'a Rejection, Timestamp),
}

/// Writes an acknowledgement, without its frame.
pub fn write(msh: &Msh, us: &Identity, level: Level, said: Said) -> Vec<u8> {
    let (code, rejection) = match said {
        Said::Taken(_) => (code(level, None), None),
        Said::Quarantined(_, rejection) | Said::Refused(rejection, _) => {
            (code(level, Some(rejection.kind)), Some(rejection))
        }
    };
    let mut out = Vec::with_capacity(320);
    write_msh(msh, us, level, said, &mut out);
    write_msa(msh, code, rejection, &mut out);
    if let Some(rejection) = rejection {
        write_err(msh, rejection, &mut out);
    }
    out
}

/// Table 0008.
fn code(level: Level, refusal: Option<RejectionKind>) -> &'static [u8; 2] {
    match (level, refusal) {
        (Level::Original | Level::Application, None) => b"AA",
        (Level::Original | Level::Application, Some(RejectionKind::Error)) => b"AE",
        (Level::Original | Level::Application, Some(RejectionKind::Reject)) => b"AR",
        (Level::Accept, None) => b"CA",
        (Level::Accept, Some(RejectionKind::Error)) => b"CE",
        (Level::Accept, Some(RejectionKind::Reject)) => b"CR",
    }
}

fn write_msh(msh: &Msh, us: &Identity, level: Level, said: Said, out: &mut Vec<u8>) {
    let or_else = |field: &'_ [u8], ours: &str| {
        if field.is_empty() { ours.as_bytes().to_vec() } else { field.to_vec() }
    };
    let (at, id) = match said {
        Said::Taken(stored) | Said::Quarantined(stored, _) => (stored.received_at, stored.message.0),
        Said::Refused(rejection, now) => {
            (rejection.received_at.unwrap_or(now), Uuid::new_v5(&Uuid::NAMESPACE_OID, msh.segment))
        }
    };
    let component = msh.delimiter(0);
    let mut message_type = b"ACK".to_vec();
    let trigger = msh.component(9, 2);
    if !trigger.is_empty() && msh.version() >= (2, 2, 0) {
        message_type.push(component);
        message_type.extend_from_slice(trigger);
        if msh.version() >= (2, 3, 1) {
            message_type.push(component);
            message_type.extend_from_slice(b"ACK");
        }
    }
    let wants: &[u8] = if level == Level::Application { b"NE" } else { b"" };
    let encoding = if msh.fields[1].is_empty() { b"^~\\&" } else { msh.fields[1] };
    let time = at.strftime("%Y%m%d%H%M%S+0000").to_string();
    let fields: [&[u8]; 17] = [
        encoding,
        &or_else(msh.field(5), &us.application),
        &or_else(msh.field(6), &us.facility),
        msh.field(3),
        msh.field(4),
        time.as_bytes(),
        b"",
        &message_type,
        &control_id(level, id),
        msh.field(11),
        msh.field(12),
        b"",
        b"",
        wants,
        wants,
        b"",
        msh.field(18),
    ];
    out.extend_from_slice(b"MSH");
    write_fields(msh, &fields, out);
}

/// MSH-10 of an answer: twenty characters (the limit up to v2.6) from the message's id, other ones at each level.
fn control_id(level: Level, id: Uuid) -> [u8; 20] {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let mut bits = id.as_u128();
    let mut text = [if level == Level::Accept { b'C' } else { b'A' }; 20];
    for digit in text[1..].iter_mut().rev() {
        *digit = DIGITS[(bits & 31) as usize];
        bits >>= 5;
    }
    text
}

fn write_msa(msh: &Msh, code: &[u8; 2], rejection: Option<&Rejection>, out: &mut Vec<u8>) {
    let mut text = Vec::new();
    if let Some(rejection) = rejection
        && msh.version() < (2, 7, 0)
    {
        write_text(msh, &rejection.text, MSA_3_MAX, &mut text);
    }
    out.extend_from_slice(b"MSA");
    write_fields(msh, &[code, msh.control_id(), &text], out);
}

/// ERR: up to v2.4 one field with place and code in it, later one field each.
fn write_err(msh: &Msh, rejection: &Rejection, out: &mut Vec<u8>) {
    let (component, subcomponent) = (msh.delimiter(0), msh.delimiter(3));
    let join = |parts: &[&[u8]], with: u8| parts.join(&with);
    let number = rejection.code.to_string();
    let meaning = meaning(rejection.code).as_bytes();
    let place = Location::read(&rejection.location);
    out.extend_from_slice(b"ERR");
    if msh.version() >= (2, 5, 0) {
        let place = place.map(|place| join(&place.parts(), component)).unwrap_or_default();
        let condition = join(&[number.as_bytes(), meaning, b"HL70357"], component);
        let mut text = Vec::new();
        write_text(msh, &rejection.text, 250, &mut text);
        write_fields(msh, &[b"", &place, &condition, b"E", b"", b"", b"", &text], out);
    } else {
        let condition = join(&[number.as_bytes(), meaning, b"HL70357"], subcomponent);
        let mut parts: Vec<&[u8]> = place.as_ref().map(Location::parts).unwrap_or_default();
        parts.resize(3, b"");
        parts.push(&condition);
        write_fields(msh, &[&join(&parts, component)], out);
    }
}

/// Table 0357, error conditions.
fn meaning(code: u16) -> &'static str {
    match code {
        100 => "Segment sequence error",
        101 => "Required field missing",
        102 => "Data type error",
        103 => "Table value not found",
        200 => "Unsupported message type",
        201 => "Unsupported event code",
        202 => "Unsupported processing id",
        203 => "Unsupported version id",
        204 => "Unknown key identifier",
        205 => "Duplicate key identifier",
        206 => "Application record locked",
        _ => "Application internal error",
    }
}

/// A path such as `OBX[3]-6[2].1.4` in the parts of ERR-2: segment, its sequence, field, repetition, component,
/// subcomponent.
struct Location<'l> {
    parts: [&'l str; 6],
    valued: usize,
}

impl<'l> Location<'l> {
    fn read(path: &'l str) -> Option<Self> {
        let (segment, element) = path.split_once('-').unwrap_or((path, ""));
        let (segment, sequence) = indexed(segment);
        let mut elements = element.split('.');
        let (field, repetition) = indexed(elements.next().unwrap_or_default());
        let parts = [
            segment,
            sequence,
            field,
            repetition,
            elements.next().unwrap_or(""),
            elements.next().unwrap_or(""),
        ];
        if segment.len() != 3 {
            return None;
        }
        // The repetition is implied unless something stands behind it or it is not the first.
        let valued = match (field, parts[4]) {
            ("", _) => 2,
            (_, "") => {
                if repetition == "1" {
                    3
                } else {
                    4
                }
            }
            _ => 4 + parts[4..].iter().take_while(|part| !part.is_empty()).count(),
        };
        Some(Location { parts, valued })
    }

    fn parts(&self) -> Vec<&'l [u8]> {
        self.parts[..self.valued].iter().map(|part| part.as_bytes()).collect()
    }
}

/// `OBX[3]` as `OBX` and `3`; without an index it is the first.
fn indexed(text: &str) -> (&str, &str) {
    match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        Some((name, index)) => (name, index),
        None => (text, "1"),
    }
}

/// Writes fields behind the segment's name, leaves out empty ones at the end, and ends the segment.
fn write_fields(msh: &Msh, fields: &[&[u8]], out: &mut Vec<u8>) {
    let valued = fields.iter().rposition(|field| !field.is_empty()).map_or(0, |last| last + 1);
    for field in &fields[..valued] {
        out.push(msh.separator());
        out.extend_from_slice(field);
    }
    out.push(b'\r');
}

/// Writes our own text, at most `max` characters of it, with the sender's delimiters escaped.
fn write_text(msh: &Msh, text: &str, max: usize, out: &mut Vec<u8>) {
    let escape = msh.delimiter(2);
    let delimiters = [
        (msh.separator(), b'F'),
        (msh.delimiter(0), b'S'),
        (msh.delimiter(1), b'R'),
        (escape, b'E'),
        (msh.delimiter(3), b'T'),
    ];
    for c in text.chars().take(max) {
        let byte = if c.is_ascii_graphic() || c == ' ' { c as u8 } else { b'?' };
        match delimiters.iter().find(|(delimiter, _)| *delimiter == byte) {
            Some((_, name)) => out.extend_from_slice(&[escape, *name, escape]),
            None => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::message::MessageId;

    const A01: &[u8] = b"MSH|^~\\&|TESTAPP|TESTFAC|PONSAPP|PONSFAC|20260102030405||ADT^A01^ADT_A01|TEST1|P|2.5.1|||||NLD|UNICODE UTF-8\rPID|1||TEST-7\r";

    fn us() -> Identity {
        Identity { application: "PONS".to_owned(), facility: String::new() }
    }

    fn stored() -> Stored {
        Stored {
            message: MessageId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001)),
            received_at: "2026-11-20T23:00:00.5Z".parse().expect("a time"),
            repeat: false,
        }
    }

    fn rejection(location: &str) -> Rejection {
        Rejection {
            kind: RejectionKind::Error,
            code: 101,
            location: location.to_owned(),
            text: "the control id is missing".to_owned(),
            close: false,
            received_at: Some("2026-11-20T23:00:00Z".parse().expect("a time")),
        }
    }

    fn text(message: &[u8], level: Level, said: Said) -> String {
        let msh = Msh::read(message).expect("MSH");
        String::from_utf8(write(&msh, &us(), level, said)).expect("ASCII")
    }

    fn taken(message: &str) -> String {
        text(message.as_bytes(), Level::Original, Said::Taken(&stored()))
    }

    #[test]
    fn a_positive_answer_swaps_sender_and_receiver_and_follows_the_sender() {
        assert_eq!(
            text(A01, Level::Original, Said::Taken(&stored())),
            "MSH|^~\\&|PONSAPP|PONSFAC|TESTAPP|TESTFAC|20261120230000+0000||ACK^A01^ACK|A000E008000000000001|P|2.5.1||||||UNICODE UTF-8\r\
             MSA|AA|TEST1\r"
        );
    }

    #[test]
    fn a_repeat_gets_the_same_bytes() {
        let repeat = Stored { repeat: true, ..stored() };
        for level in [Level::Original, Level::Accept, Level::Application] {
            assert_eq!(text(A01, level, Said::Taken(&stored())), text(A01, level, Said::Taken(&repeat)));
        }
    }

    #[test]
    fn each_level_has_its_codes_and_its_own_control_id() {
        let (stored, rejection) = (stored(), rejection("MSH-10"));
        let now = Timestamp::UNIX_EPOCH;
        let refused = Rejection { kind: RejectionKind::Reject, ..rejection.clone() };
        let mut ids = Vec::new();
        for (level, codes) in [
            (Level::Original, ["AA", "AE", "AR"]),
            (Level::Accept, ["CA", "CE", "CR"]),
            (Level::Application, ["AA", "AE", "AR"]),
        ] {
            let said = [Said::Taken(&stored), Said::Refused(&rejection, now), Said::Refused(&refused, now)];
            for (said, code) in said.into_iter().zip(codes) {
                let ack = text(A01, level, said);
                assert!(ack.contains(&format!("\rMSA|{code}|TEST1")), "{ack}");
            }
            ids.push(text(A01, level, Said::Taken(&stored)).split('|').nth(9).expect("MSH-10").to_owned());
        }
        assert_ne!(ids[0], ids[1]);
        assert_ne!(ids[1], ids[2]);
    }

    #[test]
    fn an_application_answer_wants_no_answer() {
        let ack = text(A01, Level::Application, Said::Taken(&stored()));
        assert!(ack.contains("|2.5.1|||NE|NE||UNICODE UTF-8\r"), "{ack}");
    }

    #[test]
    fn message_type_and_error_follow_the_version() {
        for (version, message_type, err) in [
            ("2.1", "ACK", "ERR|MSH^1^10^101&Required field missing&HL70357\r"),
            ("2.2", "ACK^A01", "ERR|MSH^1^10^101&Required field missing&HL70357\r"),
            ("2.3", "ACK^A01", "ERR|MSH^1^10^101&Required field missing&HL70357\r"),
            ("2.3.1", "ACK^A01^ACK", "ERR|MSH^1^10^101&Required field missing&HL70357\r"),
            ("2.4", "ACK^A01^ACK", "ERR|MSH^1^10^101&Required field missing&HL70357\r"),
            (
                "2.5",
                "ACK^A01^ACK",
                "ERR||MSH^1^10|101^Required field missing^HL70357|E||||the control id is missing\r",
            ),
            (
                "2.8.2",
                "ACK^A01^ACK",
                "ERR||MSH^1^10|101^Required field missing^HL70357|E||||the control id is missing\r",
            ),
        ] {
            let message = format!("MSH|^~\\&|A|B|C|D|2026||ADT^A01|7|P|{version}\r");
            let ack = text(
                message.as_bytes(),
                Level::Original,
                Said::Refused(&rejection("MSH-10"), Timestamp::UNIX_EPOCH),
            );
            assert!(ack.contains(&format!("||{message_type}|A")), "{version}: {ack}");
            assert!(ack.ends_with(err), "{version}: {ack}");
            assert_eq!(
                ack.contains("MSA|AE|7|the control id is missing\r"),
                version != "2.8.2",
                "{version}: {ack}"
            );
        }
    }

    #[test]
    fn a_place_becomes_the_parts_of_err_2() {
        for (path, expected) in [
            ("MSH-10", "MSH^1^10"),
            ("OBX[3]-6", "OBX^3^6"),
            ("OBX[3]-6.2", "OBX^3^6^1^2"),
            ("PID-3[2].1.4", "PID^1^3^2^1^4"),
            ("PID-3[2]", "PID^1^3^2"),
            ("ZZZ[4]", "ZZZ^4"),
            ("", ""),
            ("garbage", ""),
        ] {
            let ack = text(A01, Level::Original, Said::Refused(&rejection(path), Timestamp::UNIX_EPOCH));
            assert!(ack.contains(&format!("\rERR||{expected}|101^")), "{path}: {ack}");
        }
    }

    #[test]
    fn the_senders_own_delimiters_are_used_and_escaped() {
        let message = b"MSH#*!?%#A#B#C#D#2026##ADT*A01#7*1#P#2.6\r";
        let loud = Rejection { text: "what! a*b #1 100% ?".to_owned(), ..rejection("PID-3.1") };
        assert_eq!(
            text(message, Level::Original, Said::Refused(&loud, Timestamp::UNIX_EPOCH)),
            format!(
                "MSH#*!?%#C#D#A#B#20261120230000+0000##ACK*A01*ACK#{}#P#2.6\r\
                 MSA#AE#7*1#what?R? a?S?b ?F?1 100?T? ?E?\r\
                 ERR##PID*1*3*1*1#101*Required field missing*HL70357#E####what?R? a?S?b ?F?1 100?T? ?E?\r",
                String::from_utf8_lossy(&control_id(
                    Level::Original,
                    Uuid::new_v5(&Uuid::NAMESPACE_OID, message.trim_ascii_end())
                ))
            )
        );
    }

    #[test]
    fn what_the_header_lacks_is_left_out_or_ours() {
        assert_eq!(
            taken("MSH|^~\\&"),
            "MSH|^~\\&|PONS||||20261120230000+0000||ACK|A000E008000000000001\rMSA|AA\r"
        );
        assert!(
            taken("\u{feff}\r\n MSH|^~\\&|||\"\"|\"\"|||ADT^A01|7|P|2.5\n")
                .starts_with("MSH|^~\\&|PONS||||2026")
        );
        assert!(taken("MSH|").starts_with("MSH|^~\\&|PONS||"));
    }

    #[test]
    fn bytes_of_any_character_set_go_back_as_they_came() {
        let message = b"MSH|^~\\&|K\xFCche|B|C|D|2026||ADT^A01|\x83\x65|P|2.4||||||8859/1\r";
        let msh = Msh::read(message).expect("MSH");
        let ack = write(&msh, &us(), Level::Original, Said::Taken(&stored()));
        let has = |part: &[u8]| ack.windows(part.len()).any(|window| window == part);
        assert!(has(b"|C|D|K\xFCche|B|") && has(b"\rMSA|AA|\x83\x65\r") && has(b"|2.4||||||8859/1\r"));
    }

    #[test]
    fn an_endless_field_is_not_echoed_whole() {
        let message =
            [b"MSH|^~\\&|A|B|C|D|2026||ADT^A01|".as_slice(), &vec![b'7'; 1_000_000], b"|P|2.5\r"].concat();
        let msh = Msh::read(&message).expect("MSH");
        assert!(write(&msh, &us(), Level::Original, Said::Taken(&stored())).len() < 2_000);
    }

    #[test]
    fn what_is_no_header_is_not_read() {
        let late = Msh::read(b"noise\r\nMSH|^~\\&|||||||ADT^A01|7|P|2.5\rPID|1").expect("MSH");
        assert_eq!((late.control_id(), late.end()), (&b"7"[..], 37));
        for message in ["", "MS", "MSH", "MSHA", "MSH\r|^~\\&", "PID|1", "FHS|^~\\&", "MSH \u{7}"] {
            assert_eq!(Msh::read(message.as_bytes()), None, "{message:?}");
        }
    }

    #[test]
    fn the_mode_is_enhanced_as_soon_as_one_field_is_valued() {
        use When::{Always, Never, OnError, OnSuccess};
        let enhanced = |accept, application| Mode::Enhanced { accept, application };
        for (fields, mode) in [
            ("|", Mode::Original),
            ("\"\"|\"\"", Mode::Original),
            ("AL|NE", enhanced(Always, Never)),
            ("NE|NE", enhanced(Never, Never)),
            ("AL|", enhanced(Always, Never)),
            ("|AL", enhanced(Never, Always)),
            ("ER|SU", enhanced(OnError, OnSuccess)),
            ("XX|ER", enhanced(Always, OnError)),
        ] {
            let message = format!("MSH|^~\\&|A|B|C|D|2026||ADT^A01|7|P|2.5|||{fields}\r");
            assert_eq!(Msh::read(message.as_bytes()).expect("MSH").mode(), mode, "{fields}");
        }
    }

    use proptest::prelude::*;

    proptest! {
        /// Whatever a readable header holds, the answer is a message that the reader takes, and it names the right one.
        #[test]
        fn an_answer_to_a_readable_message_is_itself_readable(
            separators in prop_oneof![Just("|^~\\&"), Just("#*!?%"), Just("|^~\\&#"), Just("$:;/=")],
            fields in proptest::collection::vec("[A-Za-z0-9 .^~&\\\\äß漢\u{b}\u{1c}-]{0,12}", 16),
            negative in any::<bool>(),
        ) {
            let (separator, encoding) = separators.split_at(1);
            let message = format!("MSH{separator}{encoding}{separator}{}\rPID{separator}1\r", fields.join(separator));
            let limits = schemas::hl7v2::Limits::default();
            let parsed = schemas::hl7v2::Message::parse(&message, &limits).expect("readable");
            let msh = Msh::read(message.as_bytes()).expect("the reader found it");
            let (stored, rejection) = (stored(), rejection("PID-3[2].1"));
            let said = if negative { Said::Quarantined(&stored, &rejection) } else { Said::Taken(&stored) };
            let ack = String::from_utf8(write(&msh, &us(), Level::Application, said)).expect("UTF-8 in, UTF-8 out");
            let answer = schemas::hl7v2::Message::parse(&ack, &limits).expect("readable");
            let names: Vec<String> = answer.segments().iter().map(|segment| segment.name().to_string()).collect();
            let expected: &[&str] = if negative { &["MSH", "MSA", "ERR"] } else { &["MSH", "MSA"] };
            prop_assert_eq!(names, expected);
            let msa_2 = answer.field(1, 2).text(&answer).unwrap_or_default().into_owned();
            let control_id = parsed.header().control_id().unwrap_or_default().into_owned();
            prop_assert_eq!(msa_2.trim(), control_id.trim());
            let message_code = answer.header().message_code().unwrap_or_default().into_owned();
            prop_assert_eq!(message_code, "ACK");
        }
    }
}
