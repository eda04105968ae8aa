//! Segments that ADD continues.

use super::header;
use super::path::{Path, SegmentName};
use crate::issue::{Issue, Severity};

/// Makes segments whole that were broken within a message: the text after `ADD|` is the next character of the segment
/// before it. `None` if there is no such ADD.
///
/// An ADD without fields only marks that its segment goes on in another message, and one that follows MSH goes on with
/// a segment of the message before; both stay as they are.
///
/// # Source
/// HL7 v2.5.1 section 2.10.2 (continuation messages and segments).
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
