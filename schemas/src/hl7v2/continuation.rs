//! What is too long for one segment (ADD) or for one message (DSC and MSH-14).
//!
//! Source: HL7 v2.5.1 section 2.10.2 (continuation messages and segments).

use super::header;
use super::message::Message;
use super::path::{Path, SegmentName};
use crate::issue::{Issue, Severity};

/// Makes segments whole that were broken within a message: the text after `ADD|` is the next character of the segment
/// before it. `None` if there is no such ADD.
///
/// An ADD without fields only marks that its segment goes on in another message, and one that follows MSH goes on with
/// a segment of the message before; both stay as they are, for [`join`].
pub(super) fn join_added(text: &str) -> Option<(String, Issue)> {
    memchr::memmem::find(text.as_bytes(), b"ADD")?;
    let bytes = text.as_bytes();
    let start = header::find(bytes)?;
    let separator = bytes[start + 3];
    let is_end = |b: u8| matches!(b, b'\r' | b'\n');
    let mut whole = String::with_capacity(text.len());
    // What has been copied, the line that is looked at, and the last segment before it.
    let (mut copied, mut line) = (0, start);
    let mut anchor: Option<(SegmentName, usize)> = None;
    let mut first = None;
    while line < bytes.len() {
        let end = memchr::memchr2(b'\r', b'\n', &bytes[line..]).map_or(bytes.len(), |n| line + n);
        let content = &bytes[line..end];
        match (content, anchor) {
            ([b'A', b'D', b'D', s, rest @ ..], Some((name, anchor_end)))
                if *s == separator && !rest.is_empty() && name != "MSH" =>
            {
                whole.push_str(&text[copied..anchor_end]);
                copied = line + 4;
                first.get_or_insert((name, line));
                anchor = Some((name, end));
            }
            ([a, b, c, ..], _) => {
                if let Some(name) = SegmentName::from_bytes(&[*a, *b, *c]) {
                    anchor = Some((name, end));
                }
            }
            _ => {}
        }
        line = end;
        while line < bytes.len() && is_end(bytes[line]) {
            line += 1;
        }
    }
    let (name, at) = first?;
    whole.push_str(&text[copied..]);
    let before = text[..at].split(['\r', '\n']).filter(|line| line.starts_with(name.as_str())).count();
    // A message has fewer than four billion bytes.
    let path = Path::segment(name, before as u32).to_string();
    let text = "segments that ADD continues are made whole";
    Some((whole, Issue::new(Severity::Information, "segment-continued", path, text)))
}

const ADD: SegmentName = SegmentName::of("ADD");
const DSC: SegmentName = SegmentName::of("DSC");

/// DSC-1 of a message that goes on in another: the other one has the same in MSH-14.
pub fn goes_on(message: &Message<'_>) -> Option<String> {
    let last = message.segments().len() - 1;
    let ends = message.segments()[last].name() == DSC;
    ends.then(|| message.field(last, 1).text(message)).flatten().map(|pointer| pointer.into_owned())
}

/// Makes one message of two parts: `next` goes on where `first` left off, as MSH-14 and DSC-1 say. The text has MSH of
/// the first and DSC of the second, if it goes on still. `None` if they do not belong together or write with different
/// separators.
pub fn join(first: &Message<'_>, next: &Message<'_>) -> Option<String> {
    let pointer = goes_on(first)?;
    let same = next.header().continuation_pointer().is_some_and(|other| other == pointer);
    if !same || first.separators() != next.separators() {
        return None;
    }
    let mut segments = first.segments();
    segments = &segments[..segments.len() - 1];
    let mut rest = &next.segments()[1..];
    // An ADD without fields marks that the segment before it goes on in the next message, after its ADD.
    let marked = segments.last().is_some_and(|segment| segment.name() == ADD && segment.leaves().is_empty());
    if marked {
        segments = &segments[..segments.len() - 1];
    }
    let mut text = String::with_capacity(first.text().len() + next.text().len());
    for segment in segments {
        text.push_str(&first.text()[segment.text()]);
        text.push('\r');
    }
    if let Some((segment, others)) = rest.split_first()
        && segment.name() == ADD
        && segments.len() > 1
    {
        rest = others;
        text.pop();
        // ADD and its field separator.
        text.push_str(next.text()[segment.text()].get(4..).unwrap_or_default());
        text.push('\r');
    }
    for segment in rest {
        text.push_str(&next.text()[segment.text()]);
        text.push('\r');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hl7v2::Limits;

    fn joined(first: &str, next: &str) -> Option<String> {
        let read = |text| Message::parse(text, &Limits::default()).unwrap();
        join(&read(first), &read(next))
    }

    const FIRST: &str = "MSH|^~\\&|A|||||||1\rPID|1\rOBX|1|TX|||first ha\rADD|\rDSC|ptr|F\r";

    #[test]
    fn a_segment_goes_on_in_the_next_message() {
        let next = "MSH|^~\\&|A|||||||2||||ptr\rADD|lf||||||F\rNTE|1\r";
        let whole = "MSH|^~\\&|A|||||||1\rPID|1\rOBX|1|TX|||first half||||||F\rNTE|1\r";
        assert_eq!(joined(FIRST, next).as_deref(), Some(whole));
    }

    #[test]
    fn a_message_goes_on_with_its_next_segment() {
        let first = "MSH|^~\\&|A\rPID|1\rDSC|ptr\r";
        let next = "MSH|^~\\&|A|||||||||||ptr\rOBX|1\rDSC|more\r";
        assert_eq!(joined(first, next).as_deref(), Some("MSH|^~\\&|A\rPID|1\rOBX|1\rDSC|more\r"));
    }

    #[test]
    fn what_does_not_belong_together_is_not_joined() {
        for next in [
            "MSH|^~\\&|A|||||||||||other\rADD|lf\r",
            "MSH|^~\\&|A\rADD|lf\r",
            "MSH|^~\\&#|A|||||||||||ptr\rADD|lf\r",
        ] {
            assert_eq!(joined(FIRST, next), None, "{next}");
        }
        assert_eq!(joined("MSH|^~\\&|A\rPID|1\r", "MSH|^~\\&|A|||||||||||ptr\rADD|lf\r"), None);
        assert_eq!(joined("MSH|^~\\&|A\rDSC|\r", "MSH|^~\\&|A|||||||||||\rPID|1\r"), None);
    }
}
