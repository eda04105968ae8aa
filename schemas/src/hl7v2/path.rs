//! Paths such as `PID-3[2].1.4`: the names that people use for places in a message.

use std::fmt;
use std::str::FromStr;

/// The name of a segment: two to four capital letters and digits, three in the standard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentName([u8; 4]);

impl SegmentName {
    /// Reads a name: letters are raised to capitals. `None` if it has not two to four ASCII letters and digits.
    pub const fn new(name: &str) -> Option<Self> {
        SegmentName::from_bytes(name.as_bytes())
    }

    pub(crate) const fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < 2 || bytes.len() > 4 {
            return None;
        }
        let mut name = [0; 4];
        let mut n = 0;
        while n < bytes.len() {
            if !bytes[n].is_ascii_alphanumeric() {
                return None;
            }
            name[n] = bytes[n].to_ascii_uppercase();
            n += 1;
        }
        Some(SegmentName(name))
    }

    /// One bit of 64, always the same for a name; other names may have it, too.
    pub const fn bit(self) -> u64 {
        1 << (u32::from_le_bytes(self.0).wrapping_mul(0x9e37_79b9) >> 26)
    }

    /// The name of a segment of the standard or a Z-segment, checked when it is compiled.
    ///
    /// # Panics
    /// When it is no name; meant for constants.
    pub const fn of(name: &str) -> Self {
        match SegmentName::new(name) {
            Some(name) => name,
            None => panic!("a segment name has two to four letters and digits"),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let length = if self.0[3] != 0 {
            4
        } else if self.0[2] != 0 {
            3
        } else {
            2
        };
        std::str::from_utf8(&self.0[..length]).expect("ASCII letters and digits, checked when it was made")
    }

    /// Whether it is shaped as the standard shapes one: three characters, the first a letter.
    pub(crate) const fn is_standard(&self) -> bool {
        self.0[3] == 0 && self.0[2] != 0 && self.0[0].is_ascii_uppercase()
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq<str> for SegmentName {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for SegmentName {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

/// A place in a message, counted from 1 as HL7 counts. `PID-3[2].1.4` is the fourth subcomponent of the first component
/// of the second repetition of the third field of the first PID; `OBX[3]-5` the fifth field of the third OBX.
///
/// A level that the path does not reach is 0: `PID` has `field` 0, `PID-3` has `component` 0. A `repetition` of 0 names
/// the field with all its repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path {
    /// The segment's name.
    pub segment: SegmentName,
    /// Which of the segments of that name, from 1.
    pub occurrence: u32,
    /// Field, from 1; 0 names the whole segment.
    pub field: u16,
    /// Repetition, from 1; 0 names the field with all its repetitions.
    pub repetition: u32,
    /// Component, from 1; 0 names the whole repetition.
    pub component: u32,
    /// Subcomponent, from 1; 0 names the whole component.
    pub subcomponent: u16,
}

impl Path {
    /// The path of a whole segment.
    pub fn segment(segment: SegmentName, occurrence: u32) -> Self {
        Path { segment, occurrence, field: 0, repetition: 0, component: 0, subcomponent: 0 }
    }

    /// The path of a field with all its repetitions.
    pub fn field(segment: SegmentName, occurrence: u32, field: u16) -> Self {
        Path { field, ..Path::segment(segment, occurrence) }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.segment.as_str())?;
        if self.occurrence > 1 {
            write!(f, "[{}]", self.occurrence)?;
        }
        if self.field == 0 {
            return Ok(());
        }
        write!(f, "-{}", self.field)?;
        if self.repetition > 1 {
            write!(f, "[{}]", self.repetition)?;
        }
        if self.component == 0 {
            return Ok(());
        }
        write!(f, ".{}", self.component)?;
        if self.subcomponent > 0 {
            write!(f, ".{}", self.subcomponent)?;
        }
        Ok(())
    }
}

/// Why a text is no [`Path`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a segment name.
    #[error("a path begins with the name of a segment, such as PID")]
    Segment,
    /// A number is missing, zero, or too large.
    #[error("{0} is counted from 1")]
    Number(&'static str),
    /// Something stands after the path.
    #[error("a path looks like PID-3[2].1.4 or OBX[3]-5")]
    Form,
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let end = text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len());
        let (name, mut rest) = text.split_at(end);
        let mut path = Path::segment(SegmentName::new(name).ok_or(PathError::Segment)?, 1);
        if name.bytes().any(|b| b.is_ascii_lowercase()) {
            return Err(PathError::Segment);
        }
        if let Some(inner) = rest.strip_prefix('[') {
            path.occurrence = number(inner, &mut rest, "the segment")?;
            rest = rest.strip_prefix(']').ok_or(PathError::Form)?;
        }
        if rest.is_empty() {
            return Ok(path);
        }
        rest = rest.strip_prefix('-').ok_or(PathError::Form)?;
        path.field = narrow(number(rest, &mut rest, "the field")?, "the field")?;
        if let Some(inner) = rest.strip_prefix('[') {
            path.repetition = number(inner, &mut rest, "the repetition")?;
            rest = rest.strip_prefix(']').ok_or(PathError::Form)?;
        }
        if let Some(inner) = rest.strip_prefix('.') {
            path.component = number(inner, &mut rest, "the component")?;
            path.repetition = path.repetition.max(1);
            if let Some(inner) = rest.strip_prefix('.') {
                path.subcomponent =
                    narrow(number(inner, &mut rest, "the subcomponent")?, "the subcomponent")?;
            }
        }
        if rest.is_empty() { Ok(path) } else { Err(PathError::Form) }
    }
}

fn number<'a>(text: &'a str, rest: &mut &'a str, what: &'static str) -> Result<u32, PathError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, after) = text.split_at(end);
    *rest = after;
    match digits.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(PathError::Number(what)),
    }
}

fn narrow(n: u32, what: &'static str) -> Result<u16, PathError> {
    u16::try_from(n).map_err(|_| PathError::Number(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: (u32, u16, u32, u32, u16)) {
        let path: Path = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let found = (path.occurrence, path.field, path.repetition, path.component, path.subcomponent);
        assert_eq!(found, expected, "{text}");
        assert_eq!(path.to_string(), text);
    }

    #[test]
    fn paths_are_read_and_written() {
        check("PID", (1, 0, 0, 0, 0));
        check("OBX[3]", (3, 0, 0, 0, 0));
        check("OBX[3]-5", (3, 5, 0, 0, 0));
        check("PID-3.1", (1, 3, 1, 1, 0));
        check("PID-3[2]", (1, 3, 2, 0, 0));
        check("PID-3[2].1.4", (1, 3, 2, 1, 4));
        check("ZX1-2", (1, 2, 0, 0, 0));
    }

    #[test]
    fn the_first_repetition_is_not_the_field() {
        let first: Path = "PID-3[1]".parse().unwrap();
        assert_eq!(first.repetition, 1);
        assert_eq!(first.to_string(), "PID-3");
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in [
            "",
            "P",
            "pid-3",
            "PIDDY",
            "P-3",
            "PID-",
            "PID-0",
            "PID-3.0",
            "PID-3[0]",
            "PID[0]-3",
            "PID-3[2",
            "PID-3]",
            "PID-3.",
            "PID.3",
            "PID-3.1.4.5",
            "PID-99999",
            "PID-3 ",
            "PID--3",
            "PID-3.1[2]",
            "\u{e9}-1",
        ] {
            assert!(text.parse::<Path>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_read_back(occurrence in 1u32.., field in 1u16.., repetition in 2u32.., component in 1u32.., sub in 0u16..) {
            let segment = SegmentName::of("OBX");
            let path = Path { segment, occurrence, field, repetition, component, subcomponent: sub };
            prop_assert_eq!(path.to_string().parse::<Path>(), Ok(path));
        }

        #[test]
        fn no_text_breaks_the_reader(text in ".*") {
            let _ = text.parse::<Path>();
        }
    }
}
