//! Character sets that are switched within a message: ISO 2022, by its own escape sequences (0x1B) or by HL7's
//! `\Cxxyy\` and `\Mxxyyzz\`.
//!
//! Invariant: a switch lasts to the next one or to the end of its segment, or to a `|` that can be no part of a character. Between switches nothing is looked for in
//! a two-byte set, because its bytes may look like separators.

use encoding_rs::Encoding;
use std::borrow::Cow;

/// What [`decode`] makes of some bytes.
pub(super) struct Switched {
    pub(super) text: String,
    /// Whether a set was switched to at all.
    pub(super) any: bool,
    /// The character set of the parts that no switch governs, where it was not the declared one.
    pub(super) charset: Option<&'static str>,
    /// Where bytes were met that are no characters.
    pub(super) bad: Option<usize>,
    /// Where a two-byte set ended without a switch back.
    pub(super) left_open: Option<usize>,
    /// Where an escape sequence was met that names no known set.
    pub(super) unknown: Option<usize>,
}

/// A set that an escape sequence can call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Set {
    /// ASCII, and JIS X 0201 Roman, whose yen sign stands where HL7 has its escape character.
    Ascii,
    /// JIS X 0201 Katakana.
    Katakana,
    /// A set of 94 by 94, read by an encoding that has it in its upper half, after a prefix.
    Double(&'static Encoding, Option<u8>),
    /// The upper half of a single-byte encoding.
    Upper(&'static Encoding),
}

/// Which half of the code table a set goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Lower,
    Upper,
}

/// The sets that are known by the bytes which follow the escape character.
///
/// # Source
/// ISO 2022 and the ISO-IR register; HL7 v2.5.1 section 2.7.2.
fn designated(sequence: &[u8]) -> Option<(Half, Set, usize)> {
    let japanese = Set::Double(encoding_rs::EUC_JP, None);
    let supplement = Set::Double(encoding_rs::EUC_JP, Some(0x8f));
    let korean = Set::Double(encoding_rs::EUC_KR, None);
    let chinese = Set::Double(encoding_rs::GBK, None);
    Some(match sequence {
        [b'(', b'B' | b'J', ..] => (Half::Lower, Set::Ascii, 2),
        [b'(', b'I', ..] => (Half::Lower, Set::Katakana, 2),
        [b')', b'I', ..] => (Half::Upper, Set::Katakana, 2),
        [b'$', b'@' | b'B', ..] => (Half::Lower, japanese, 2),
        [b'$', b'A', ..] => (Half::Lower, chinese, 2),
        [b'$', b'(', b'@' | b'B', ..] => (Half::Lower, japanese, 3),
        [b'$', b'(', b'D', ..] => (Half::Lower, supplement, 3),
        [b'$', b'(', b'C', ..] => (Half::Lower, korean, 3),
        [b'$', b'(', b'A', ..] => (Half::Lower, chinese, 3),
        [b'$', b')', b'B', ..] => (Half::Upper, japanese, 3),
        [b'$', b')', b'D', ..] => (Half::Upper, supplement, 3),
        [b'$', b')', b'C', ..] => (Half::Upper, korean, 3),
        [b'$', b')', b'A', ..] => (Half::Upper, chinese, 3),
        [b'-', last, ..] => {
            let encoding = match last {
                b'A' => encoding_rs::WINDOWS_1252,
                b'B' => encoding_rs::ISO_8859_2,
                b'C' => encoding_rs::ISO_8859_3,
                b'D' => encoding_rs::ISO_8859_4,
                b'F' => encoding_rs::ISO_8859_7,
                b'G' => encoding_rs::ISO_8859_6,
                b'H' => encoding_rs::ISO_8859_8,
                b'L' => encoding_rs::ISO_8859_5,
                b'M' => encoding_rs::WINDOWS_1254,
                b'T' => encoding_rs::WINDOWS_874,
                b'V' => encoding_rs::ISO_8859_10,
                b'Y' => encoding_rs::ISO_8859_13,
                b'_' => encoding_rs::ISO_8859_14,
                b'b' => encoding_rs::ISO_8859_15,
                b'f' => encoding_rs::ISO_8859_16,
                _ => return None,
            };
            (Half::Upper, Set::Upper(encoding), 2)
        }
        _ => return None,
    })
}

/// Decodes bytes with switches in them. `plain` reads a range that no switch governs and says in which character set. `None` if
/// there is no switch at all.
pub(super) fn decode<'b>(
    bytes: &'b [u8],
    escape: Option<u8>,
    mut plain: impl FnMut(std::ops::Range<usize>) -> (Cow<'b, str>, &'static str),
) -> Option<Switched> {
    let may_switch = |at: usize| bytes[at] == 0x1b || matches!(bytes.get(at + 1), Some(b'C' | b'M'));
    if !memchr::memchr2_iter(0x1b, escape.unwrap_or(0x1b), bytes).any(may_switch) {
        return None;
    }
    let mut state = State { lower: None, upper: None };
    let text = String::with_capacity(bytes.len());
    let mut result = Switched { text, any: false, charset: None, bad: None, left_open: None, unknown: None };
    // The run of bytes since the last switch.
    let mut run = 0;
    let mut at = 0;
    let mut flush = |state: &State, range: std::ops::Range<usize>, result: &mut Switched| {
        if range.is_empty() {
            return;
        }
        if *state == (State { lower: None, upper: None }) {
            let is_ascii = bytes[range.clone()].is_ascii();
            let (text, charset) = plain(range);
            if !is_ascii {
                result.charset = Some(charset);
            }
            result.text.push_str(&text);
        } else {
            state.decode(bytes, range, result);
        }
    };
    while at < bytes.len() {
        match switch(&bytes[at..], escape) {
            Some(Ok((half, set, length))) => {
                flush(&state, run..at, &mut result);
                match half {
                    Half::Lower => state.lower = (set != Set::Ascii).then_some(set),
                    Half::Upper => state.upper = Some(set),
                }
                result.any = true;
                at += length;
                run = at;
            }
            Some(Err(())) => {
                result.unknown.get_or_insert(at);
                at += 1;
            }
            None if matches!(bytes[at], b'\r' | b'\n') || state.forgotten(bytes[at]) => {
                flush(&state, run..at, &mut result);
                if matches!(state.lower, Some(Set::Double(..))) {
                    result.left_open.get_or_insert(at);
                }
                state = State { lower: None, upper: None };
                run = at;
                at += 1;
            }
            None => at += state.step(&bytes[at..]),
        }
    }
    flush(&state, run..at, &mut result);
    (result.any || result.unknown.is_some()).then_some(result)
}

/// A switch at the beginning of some bytes: the half and the set, and the length of the sequence; or one that is not
/// known.
fn switch(bytes: &[u8], escape: Option<u8>) -> Option<Result<(Half, Set, usize), ()>> {
    match bytes {
        [0x1b, rest @ ..] => Some(designated(rest).map(|(half, set, n)| (half, set, n + 1)).ok_or(())),
        [first, b'C' | b'M', rest @ ..] if Some(*first) == escape => {
            let length = rest.iter().take(9).position(|b| b == first)?;
            let digits = &rest[..length];
            if !(4..=6).contains(&length) || length % 2 == 1 {
                return None;
            }
            let digit = |b: u8| char::from(b).to_digit(16);
            let mut sequence = [0; 3];
            for (byte, pair) in sequence.iter_mut().zip(digits.chunks_exact(2)) {
                // Two digits of base 16 fit a byte.
                *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
            }
            let sequence = &sequence[..length / 2];
            let known = designated(sequence).filter(|(_, _, used)| *used == sequence.len());
            Some(known.map(|(half, set, _)| (half, set, length + 3)).ok_or(()))
        }
        _ => None,
    }
}

/// The sets in force; `None` is what the message has without a switch.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    lower: Option<Set>,
    upper: Option<Set>,
}

impl State {
    /// Whether a byte shows that the sender forgot to switch back: `|` begins no character of JIS X 0208, JIS X 0212 or
    /// GB 2312.
    fn forgotten(&self, byte: u8) -> bool {
        byte == b'|'
            && matches!(self.lower, Some(Set::Double(encoding, _)) if encoding != encoding_rs::EUC_KR)
    }

    /// How many bytes the next character has.
    fn step(&self, bytes: &[u8]) -> usize {
        match (bytes, self.lower, self.upper) {
            ([0x21..=0x7e, 0x21..=0x7e, ..], Some(Set::Double(..)), _) => 2,
            ([0xa1..=0xfe, 0xa1..=0xfe, ..], _, Some(Set::Double(..))) => 2,
            _ => 1,
        }
    }

    fn decode(&self, bytes: &[u8], range: std::ops::Range<usize>, result: &mut Switched) {
        let mut at = range.start;
        while at < range.end {
            let length = self.step(&bytes[at..range.end]);
            let character = &bytes[at..at + length];
            let set = if character[0] < 0x80 { self.lower } else { self.upper };
            let decoded = match (character, set) {
                ([0..=0x20 | 0x7f], _) | ([0..0x80], None | Some(Set::Ascii)) => {
                    result.text.push(char::from(character[0]));
                    true
                }
                ([b], Some(Set::Katakana)) => match b & 0x7f {
                    b @ 0x21..=0x5f => {
                        let katakana = char::from_u32(0xff61 + u32::from(b - 0x21));
                        result.text.push(katakana.expect("the half-width forms U+FF61 to U+FF9F"));
                        true
                    }
                    _ => false,
                },
                ([b], Some(Set::Upper(encoding))) => push(&[b | 0x80], encoding, &mut result.text),
                ([a, b], Some(Set::Double(encoding, prefix))) => {
                    let pair = [a | 0x80, b | 0x80];
                    match prefix {
                        Some(prefix) => push(&[prefix, pair[0], pair[1]], encoding, &mut result.text),
                        None => push(&pair, encoding, &mut result.text),
                    }
                }
                _ => false,
            };
            if !decoded {
                result.text.push(char::REPLACEMENT_CHARACTER);
                result.bad.get_or_insert(at);
            }
            at += length;
        }
    }
}

fn push(bytes: &[u8], encoding: &'static Encoding, text: &mut String) -> bool {
    match encoding.decode_without_bom_handling_and_without_replacement(bytes) {
        Some(decoded) => {
            text.push_str(&decoded);
            true
        }
        None => false,
    }
}
