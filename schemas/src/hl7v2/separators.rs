//! The separators of one message: MSH-1 and MSH-2.

use crate::issue::{Issue, Severity};
use std::fmt;

/// The characters that structure a message, as MSH-1 and MSH-2 declare them. All are printable ASCII, no letter, no
/// digit, no two alike.
///
/// # Source
/// HL7 v2.5.1 section 2.5.4 (message delimiters); v2.7 section 2.5.4 for the truncation character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Separators {
    /// MSH-1, between fields; `|` by recommendation.
    pub field: u8,
    /// First character of MSH-2, between components; `^`.
    pub component: u8,
    /// Second character of MSH-2, between repetitions; `~`. Without one, no field repeats.
    pub repetition: Option<u8>,
    /// Third character of MSH-2, opens and closes an escape sequence; `\`. Without one, nothing is escaped.
    pub escape: Option<u8>,
    /// Fourth character of MSH-2, between subcomponents; `&`. Without one, there are no subcomponents.
    pub subcomponent: Option<u8>,
    /// Fifth character of MSH-2, since v2.7: marks a truncated value; `#`.
    pub truncation: Option<u8>,
}

/// The recommended ones: `|^~\&`.
impl Default for Separators {
    fn default() -> Self {
        Separators {
            field: b'|',
            component: b'^',
            repetition: Some(b'~'),
            escape: Some(b'\\'),
            subcomponent: Some(b'&'),
            truncation: None,
        }
    }
}

/// Why MSH-1 and MSH-2 cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeparatorsError {
    /// There is no component separator.
    #[error("MSH-2 is empty, one to five separators were expected")]
    Empty,
    /// More than five characters.
    #[error("MSH-2 has more than five characters")]
    TooMany,
    /// A letter, a digit, a blank, a control character, or not ASCII.
    #[error("MSH-1 or MSH-2 holds a letter, a digit, a blank or a control character")]
    NotPrintable,
    /// The same character twice.
    #[error("MSH-1 and MSH-2 name the same character twice")]
    Twice,
}

impl Separators {
    /// Reads MSH-1 and MSH-2 (`encoding`, the text between the first two field separators).
    ///
    /// Four or five characters are what the standard asks for. With fewer, what is left out does not exist: the
    /// message has no subcomponents, then no escapes, then no repetitions. The one exception is `&` in third place:
    /// the standard lets a sender omit the escape character, and `&` is its recommended subcomponent separator, so
    /// `^~&` is read as that. `^~\\&`, the escape character doubled, is read as `^~\&`. Each such case is reported.
    ///
    /// # Errors
    /// When a message cannot be taken apart with them.
    pub fn read(field: u8, encoding: &[u8]) -> Result<(Separators, Option<Issue>), SeparatorsError> {
        let trimmed = encoding.trim_ascii_end();
        if trimmed.len() < encoding.len() {
            let (separators, issue) = Separators::read(field, trimmed)?;
            let text = "blanks after the separators are left out";
            let issue =
                issue.unwrap_or_else(|| Issue::new(Severity::Information, "separators", "MSH-2", text));
            return Ok((separators, Some(issue)));
        }
        if encoding.is_empty() {
            return Err(SeparatorsError::Empty);
        }
        if encoding.len() > 5 {
            return Err(SeparatorsError::TooMany);
        }
        if let [component, repetition, escape, again, subcomponent] = *encoding
            && escape == again
        {
            let (separators, _) = Separators::read(field, &[component, repetition, escape, subcomponent])?;
            let text = "the escape character is written twice, as in program code; it is taken once";
            return Ok((separators, Some(Issue::new(Severity::Warning, "separators", "MSH-2", text))));
        }
        let mut seen = [field, 0, 0, 0, 0, 0];
        for (n, &character) in encoding.iter().enumerate() {
            if seen.contains(&character) {
                return Err(SeparatorsError::Twice);
            }
            seen[n + 1] = character;
        }
        if !usable(field) || !encoding.iter().copied().all(usable) {
            return Err(SeparatorsError::NotPrintable);
        }
        let at = |n: usize| encoding.get(n).copied();
        let mut separators = Separators {
            field,
            component: encoding[0],
            repetition: at(1),
            escape: at(2),
            subcomponent: at(3),
            truncation: at(4),
        };
        let issue = match encoding {
            [_, _, b'&'] => {
                separators.escape = None;
                separators.subcomponent = Some(b'&');
                Some(
                    "three characters: `&` is taken as the subcomponent separator, there is no escape character",
                )
            }
            [_, _, _] => Some("three characters: the message has no subcomponents"),
            [_, _] => Some("two characters: the message has no escape character and no subcomponents"),
            [_] => Some(
                "one character: the message has no repetitions, no escape character and no subcomponents",
            ),
            _ => None,
        };
        Ok((separators, issue.map(|text| Issue::new(Severity::Warning, "separators", "MSH-2", text))))
    }

    /// MSH-2 as these separators write it.
    pub fn encoding_characters(&self) -> String {
        [Some(self.component), self.repetition, self.escape, self.subcomponent, self.truncation]
            .into_iter()
            .flatten()
            .map(char::from)
            .collect()
    }

    /// The same separators with every one that is missing filled in, so that any value can be written with them. The
    /// truncation character stays as it is.
    #[must_use]
    pub fn complete(&self) -> Separators {
        let mut full = *self;
        full.repetition = Some(self.repetition.unwrap_or_else(|| full.free(b"~*!%=")));
        full.escape = Some(self.escape.unwrap_or_else(|| full.free(b"\\/!%=*")));
        full.subcomponent = Some(self.subcomponent.unwrap_or_else(|| full.free(b"&@!%=*+")));
        full
    }

    /// The first of some characters that is not taken. There are at most five others, so six candidates suffice.
    fn free(&self, candidates: &[u8]) -> u8 {
        candidates.iter().copied().find(|c| !self.contains(*c)).unwrap_or(b';')
    }

    /// Whether a byte is one of the separators, the escape character or the truncation character.
    pub fn contains(&self, byte: u8) -> bool {
        byte == self.field
            || byte == self.component
            || [self.repetition, self.escape, self.subcomponent, self.truncation].contains(&Some(byte))
    }
}

/// As MSH-1 and MSH-2 show them: `|^~\&`.
impl fmt::Display for Separators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", char::from(self.field), self.encoding_characters())
    }
}

fn usable(character: u8) -> bool {
    character.is_ascii_punctuation()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(field: u8, encoding: &str) -> Result<Separators, SeparatorsError> {
        Separators::read(field, encoding.as_bytes()).map(|(separators, _)| separators)
    }

    #[test]
    fn the_unusable_ones_are_refused() {
        assert_eq!(read(b'|', ""), Err(SeparatorsError::Empty));
        assert_eq!(read(b'|', "^~\\&#!"), Err(SeparatorsError::TooMany));
        assert_eq!(read(b'|', "^~\\|"), Err(SeparatorsError::Twice));
        assert_eq!(read(b'|', "^~^&"), Err(SeparatorsError::Twice));
        assert_eq!(read(b'|', "^~\\&&"), Err(SeparatorsError::Twice));
        assert_eq!(read(b'|', "^~\\\\^"), Err(SeparatorsError::Twice));
        assert_eq!(read(b'|', "  "), Err(SeparatorsError::Empty));
        for odd in ["a~\\&", "^1\\&", "^ \\&", "^\t\\&", "^\u{e9}&"] {
            assert_eq!(read(b'|', odd), Err(SeparatorsError::NotPrintable), "{odd:?}");
        }
        assert_eq!(read(b'A', "^~\\&"), Err(SeparatorsError::NotPrintable));
        assert_eq!(read(0x0b, "^~\\&"), Err(SeparatorsError::NotPrintable));
    }

    #[test]
    fn what_is_left_out_does_not_exist_and_is_reported() {
        let standard = Separators::default();
        assert_eq!(Separators::read(b'|', b"^~\\&"), Ok((standard, None)));
        assert_eq!(
            Separators::read(b'|', b"^~\\&#"),
            Ok((Separators { truncation: Some(b'#'), ..standard }, None))
        );
        assert_eq!(read(b'|', "^~\\"), Ok(Separators { subcomponent: None, ..standard }));
        assert_eq!(read(b'|', "^~&"), Ok(Separators { escape: None, ..standard }), "the escape is left out");
        assert_eq!(read(b'|', "^~"), Ok(Separators { escape: None, subcomponent: None, ..standard }));
        assert_eq!(read(b'|', "^~\\\\&"), Ok(standard), "as a message pasted from program code has it");
        assert_eq!(read(b'|', "^~\\& "), Ok(standard));
        for short in ["^~\\& ", "^~\\\\&", "^", "^~", "^~&", "^~\\"] {
            assert!(matches!(Separators::read(b'|', short.as_bytes()), Ok((_, Some(_)))), "{short}");
        }
    }

    #[test]
    fn what_is_missing_is_filled_with_free_characters() {
        for encoding in ["^", "~", "\\", "&", "^~", "~^", "\\&", "&\\", "^&", "^~&", "&~^", "*!%", "/@!"] {
            let full = read(b'|', encoding).unwrap().complete();
            let written = full.encoding_characters();
            assert_eq!(read(b'|', &written), Ok(full), "{encoding} became {written}");
        }
    }
}
