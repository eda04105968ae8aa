//! Escape sequences: between the text of a value and the characters that a message may hold.
//!
//! Two laws: `decode(encode(v)) == v` for every string, and nothing that [`encode`] answers can end a field, a segment
//! or a frame.

use super::separators::Separators;
use memchr::memchr;
use std::borrow::Cow;

/// The most line breaks or blanks that one formatting command may ask for. A larger number is kept as text.
const FORMAT_REPEAT_MAX: usize = 99;

/// The text of a value, its escape sequences replaced.
///
/// * `\F\ \S\ \T\ \R\ \E\ \P\` become the separators (the recommended one if the message has none of that kind).
/// * `\Xdd..\` becomes its bytes, read as UTF-8 if they are that, else as ISO 8859-1.
/// * `\.br\ \.sp\ \.ce\` break the line, `\.sk\ \.ti\` leave blanks; `\.in\ \.fi\ \.nf\` and the highlighting `\H\ \N\`
///   have no form in plain text and leave nothing.
/// * `\C2842\` (back to ASCII) leaves nothing. Every other character set escape has been acted upon when the bytes were
///   decoded ([`super::charset`]); one that is still here is unknown.
/// * Everything else, unknown, malformed or unterminated, is kept as it stands.
///
/// # Source
/// HL7 v2.5.1 section 2.7 (escape sequences); v2.7 section 2.5.5.2 for `\P\`.
pub fn decode<'t>(raw: &'t str, separators: &Separators) -> Cow<'t, str> {
    let Some(escape) = separators.escape else { return Cow::Borrowed(raw) };
    let Some(first) = memchr(escape, raw.as_bytes()) else { return Cow::Borrowed(raw) };
    let mut text = String::with_capacity(raw.len());
    text.push_str(&raw[..first]);
    let mut rest = &raw[first..];
    // `rest` begins with an escape character on every turn.
    loop {
        let body_and_more = &rest[1..];
        let Some(end) = memchr(escape, body_and_more.as_bytes()) else {
            text.push_str(rest);
            return Cow::Owned(text);
        };
        let body = &body_and_more[..end];
        let after = if replace(body, separators, &mut text) {
            &body_and_more[end + 1..]
        } else if looks_like_a_sequence(body) {
            text.push_str(&rest[..end + 2]);
            &body_and_more[end + 1..]
        } else {
            // A lone escape character in running text: the next one may open a sequence of its own.
            text.push_str(&rest[..end + 1]);
            &body_and_more[end..]
        };
        match memchr(escape, after.as_bytes()) {
            None => {
                text.push_str(after);
                return Cow::Owned(text);
            }
            Some(next) => {
                text.push_str(&after[..next]);
                rest = &after[next..];
            }
        }
    }
}

/// What in a value is no escape sequence of the standard and is therefore kept as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Oddity {
    /// A sequence that is not known, malformed, or local to the sender (`\Z..\`).
    Unknown,
    /// An escape character that no other one closes.
    Unterminated,
}

/// The first oddity of a value, found as [`decode`] goes through it.
pub(super) fn oddity(raw: &str, separators: &Separators) -> Option<Oddity> {
    let escape = separators.escape?;
    let mut rest = raw;
    let mut scratch = String::new();
    loop {
        let body = &rest[memchr(escape, rest.as_bytes())? + 1..];
        let Some(end) = memchr(escape, body.as_bytes()) else { return Some(Oddity::Unterminated) };
        if !replace(&body[..end], separators, &mut scratch) {
            return Some(if looks_like_a_sequence(&body[..end]) {
                Oddity::Unknown
            } else {
                Oddity::Unterminated
            });
        }
        scratch.clear();
        rest = &body[end + 1..];
    }
}

/// Appends what a sequence stands for. False, and nothing appended, if it is not known.
fn replace(body: &str, separators: &Separators, text: &mut String) -> bool {
    let or = |separator: Option<u8>, recommended: char| separator.map_or(recommended, char::from);
    match body {
        "F" => text.push(char::from(separators.field)),
        "S" => text.push(char::from(separators.component)),
        "T" => text.push(or(separators.subcomponent, '&')),
        "R" => text.push(or(separators.repetition, '~')),
        "E" => text.push(or(separators.escape, '\\')),
        "P" => text.push(or(separators.truncation, '#')),
        "H" | "N" | "C2842" => {}
        _ => {
            if let Some(command) = body.strip_prefix('.') {
                return format(command, text);
            }
            if let Some(digits) = body.strip_prefix('X') {
                return hexadecimal(digits, text);
            }
            return false;
        }
    }
    true
}

/// The formatting commands of FT, section 2.7.6.
fn format(command: &str, text: &mut String) -> bool {
    let Some((name, number)) = command.get(..2).zip(command.get(2..)) else { return false };
    let count = match number.strip_prefix(['+', '-']).unwrap_or(number) {
        "" => 1,
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse::<usize>() {
            Ok(n) if n <= FORMAT_REPEAT_MAX => n,
            _ => return false,
        },
        _ => return false,
    };
    let plain = !number.starts_with(['+', '-']);
    match name {
        "br" | "ce" if number.is_empty() => text.push('\n'),
        "fi" | "nf" if number.is_empty() => {}
        "sp" if plain => text.extend(std::iter::repeat_n('\n', count)),
        "sk" if plain => text.extend(std::iter::repeat_n(' ', count)),
        "ti" if number.starts_with('-') => {}
        "ti" => text.extend(std::iter::repeat_n(' ', count)),
        "in" => {}
        _ => return false,
    }
    true
}

fn hexadecimal(digits: &str, text: &mut String) -> bool {
    if digits.is_empty() || !digits.len().is_multiple_of(2) || !digits.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return false;
    }
    let value = |digit: u8| (char::from(digit).to_digit(16).expect("checked above")) as u8;
    let bytes: Vec<u8> =
        digits.as_bytes().chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect();
    match String::from_utf8(bytes) {
        Ok(decoded) => text.push_str(&decoded),
        Err(error) => text.extend(error.as_bytes().iter().copied().map(char::from)),
    }
    true
}

/// Whether something between two escape characters has the form of a sequence that we do not know: a letter or a
/// dot, then letters, digits and signs.
fn looks_like_a_sequence(body: &str) -> bool {
    let bytes = body.as_bytes();
    matches!(bytes.first(), Some(b) if b.is_ascii_alphabetic() || *b == b'.')
        && bytes[1..].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-'))
}

/// A value as it may stand in a message with these separators: separators and control characters are escaped, line
/// ends included, and the text `""` (which would mean HL7's null).
///
/// The separators should have an escape character ([`Separators::complete`]); without one, what cannot be written is
/// replaced by blanks, because nothing may break the message.
pub fn encode<'v>(value: &'v str, separators: &Separators) -> Cow<'v, str> {
    if value == "\"\"" {
        let text = separators.escape.map(char::from).map(|e| format!("{e}X2222{e}"));
        return Cow::Owned(text.unwrap_or_else(|| "  ".to_owned()));
    }
    let special = |b: u8| b < 0x20 || b == 0x7f || separators.contains(b);
    let Some(first) = value.bytes().position(special) else { return Cow::Borrowed(value) };
    let mut text = String::with_capacity(value.len() + 16);
    text.push_str(&value[..first]);
    encode_into(&value[first..], separators, &mut text);
    Cow::Owned(text)
}

fn encode_into(value: &str, separators: &Separators, text: &mut String) {
    let Some(escape) = separators.escape.map(char::from) else {
        let blank = |c: char| {
            if u8::try_from(c).is_ok_and(|b| b < 0x20 || b == 0x7f || separators.contains(b)) {
                ' '
            } else {
                c
            }
        };
        text.extend(value.chars().map(blank));
        return;
    };
    for character in value.chars() {
        let Ok(byte) = u8::try_from(character) else {
            text.push(character);
            continue;
        };
        let code = if byte == separators.field {
            'F'
        } else if byte == separators.component {
            'S'
        } else if Some(byte) == separators.subcomponent {
            'T'
        } else if Some(byte) == separators.repetition {
            'R'
        } else if Some(byte) == separators.escape {
            'E'
        } else if Some(byte) == separators.truncation {
            'P'
        } else if byte < 0x20 || byte == 0x7f {
            text.push(escape);
            text.push('X');
            text.push(char::from(b"0123456789ABCDEF"[usize::from(byte >> 4)]));
            text.push(char::from(b"0123456789ABCDEF"[usize::from(byte & 15)]));
            text.push(escape);
            continue;
        } else {
            text.push(character);
            continue;
        };
        text.push(escape);
        text.push(code);
        text.push(escape);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(raw: &str, expected: &str) {
        assert_eq!(decode(raw, &Separators::default()), expected, "{raw}");
    }

    #[test]
    fn separators_are_restored() {
        check(r"a\F\b\S\c\T\d\R\e\E\f\P\g", r"a|b^c&d~e\f#g");
        check(r"\F\", "|");
        check(r"\F\\S\", "|^");
        check(r"山田\T\x", "山田&x");
        check(r"Müller \T\ Söhne", "Müller & Söhne");
    }

    #[test]
    fn separators_of_the_message_are_restored_not_the_recommended_ones() {
        let separators = Separators::read(b'!', b"@*/%").unwrap().0;
        assert_eq!(decode(r"a/F/b/S/c/T/d/R/e/E/f\F\", &separators), r"a!b@c%d*e/f\F\");
    }

    #[test]
    fn hexadecimal_is_bytes() {
        check(r"\X41\", "A");
        check(r"a\X0D0A\b", "a\r\nb");
        check(r"\Xc3bc\", "ü");
        check(r"\XFC\", "ü");
        check(r"\X4\", r"\X4\");
        check(r"\X\", r"\X\");
        check(r"\X4G\", r"\X4G\");
        check(r"\X+1\", r"\X+1\");
    }

    #[test]
    fn formatting_becomes_plain_text() {
        check(r"a\.br\b", "a\nb");
        check(r"a\.sp\b\.sp2\c\.sp+2\", "a\nb\n\nc\\.sp+2\\");
        check(r"a\.sk3\b", "a   b");
        check(r"\.in+2\a\.ti-2\b\.ti+2\c\.fi\d\.nf\e\.ce\f", "ab  cde\nf");
        check(r"\H\bold\N\", "bold");
    }

    #[test]
    fn a_formatting_command_cannot_ask_for_gigabytes() {
        check(r"\.sp99999999999999999999\", r"\.sp99999999999999999999\");
        check(r"\.sk100\", r"\.sk100\");
    }

    #[test]
    fn the_unknown_and_the_unterminated_are_kept() {
        check(r"\Q\", r"\Q\");
        check(r"\Z1\ and \.zz\", r"\Z1\ and \.zz\");
        check(r"\.\", r"\.\");
        check(r"C:\temp and text", r"C:\temp and text");
        check(r"C:\temp\new", r"C:\temp\new");
        check(r"a\", r"a\");
        check(r"\", r"\");
        check(r"\\", r"\\");
        check(r"\\F\", r"\|");
        check(r"a \ b \F\ c", r"a \ b | c");
        check(r"\M2442\ and \C2842\", r"\M2442\ and ");
    }

    #[test]
    fn what_is_kept_as_text_is_an_oddity() {
        let check = |raw: &str, expected| assert_eq!(oddity(raw, &Separators::default()), expected, "{raw}");
        check(r"a\F\b \X41\ \.br\ \H\bold\N\ \C2842\", None);
        check("", None);
        check(r"\Q\", Some(Oddity::Unknown));
        check(r"\F\\Z1\", Some(Oddity::Unknown));
        check(r"\M2442\", Some(Oddity::Unknown));
        check(r"\F\ a \ b", Some(Oddity::Unterminated));
        check(r"a \ b \F\", Some(Oddity::Unterminated));
    }

    #[test]
    fn without_an_escape_character_nothing_is_escaped() {
        let separators = Separators { escape: None, ..Separators::default() };
        assert_eq!(decode(r"a\F\b", &separators), r"a\F\b");
        assert_eq!(encode("a|b\rc", &separators), "a b c");
    }

    #[test]
    fn null_cannot_be_written_by_accident() {
        assert_eq!(encode("\"\"", &Separators::default()), r"\X2222\");
        assert_eq!(encode("\"", &Separators::default()), "\"");
    }

    fn separators() -> impl Strategy<Value = Separators> {
        prop_oneof![
            Just(Separators::default()),
            Just(Separators { truncation: Some(b'#'), ..Separators::default() }),
            Just(Separators::read(b'!', b"@*/%").unwrap().0),
            Just(Separators::read(b'"', b".~X&").map_or_else(|_| Separators::default(), |(s, _)| s)),
            Just(Separators::read(b'$', b"^").unwrap().0.complete()),
        ]
    }

    /// Text in which what matters is frequent.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![".*", r#"[\\|^~&#/.XFE4\r\n"a-c0-9ü\x00-\x1f]*"#]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_again(value in text(), separators in separators()) {
            let encoded = encode(&value, &separators);
            prop_assert_eq!(decode(&encoded, &separators), value.as_str());
        }

        #[test]
        fn nothing_encoded_breaks_a_message(value in text(), separators in separators()) {
            let encoded = encode(&value, &separators);
            let breaks = |b: u8| b < 0x20 || (separators.contains(b) && Some(b) != separators.escape);
            prop_assert!(!encoded.bytes().any(breaks));
            prop_assert_ne!(encoded, "\"\"");
        }

        #[test]
        fn nothing_encoded_is_odd(raw in text(), separators in separators()) {
            let encoded = encode(&raw, &separators);
            prop_assert_eq!(oddity(&encoded, &separators), None);
            let _ = oddity(&raw, &separators);
        }

        #[test]
        fn decoding_anything_ends_and_stays_in_proportion(raw in text(), separators in separators()) {
            prop_assert!(decode(&raw, &separators).len() <= raw.len() * (FORMAT_REPEAT_MAX + 1));
        }
    }
}
