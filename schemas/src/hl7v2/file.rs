//! The messages of a file, as text: split, decoded, and whole where they were sent in parts.

use super::charset::{self, Decoded};
use super::continuation;
use super::message::{Limits, Message};
use super::split;
use crate::issue::{Issue, Severity};
use memchr::memmem;
use std::borrow::Cow;
use std::ops::Range;

/// How many parts of a message are joined; what a sender splits further stays in parts.
const PARTS_MAX: usize = 100;

/// What should be one message of a file.
#[derive(Clone, Debug)]
pub struct FileMessage<'b> {
    /// Where it stands in the file, all its parts.
    pub range: Range<usize>,
    /// Its text.
    pub decoded: Decoded<'b>,
}

/// What [`read`] finds.
#[derive(Clone, Debug, Default)]
pub struct File<'b> {
    /// What should be a message each, in order; those that are none are refused by [`Message::parse`].
    pub messages: Vec<FileMessage<'b>>,
    /// What was not as frames and batches should be.
    pub issues: Vec<Issue>,
}

/// Reads a file of one or many messages: MLLP frames, FHS/BHS batches, several MSH in a row. A message that DSC continues
/// is joined with the next one if that one's MSH-14 says so. `fallback` is the character set of messages that declare
/// none; see [`charset::decode`].
///
/// ```
/// use schemas::hl7v2::{Limits, Message, file};
/// let file = file::read(b"MSH|^~\\&|A\rPID|1\rMSH|^~\\&|B\rPID|2\r", None, &Limits::default());
/// let messages: Vec<_> =
///     file.messages.iter().map(|one| Message::parse(&one.decoded.text, &Limits::default()).unwrap()).collect();
/// assert_eq!(messages[1].header().sending_application().as_deref(), Some("B"));
/// ```
pub fn read<'b>(bytes: &'b [u8], fallback: Option<&str>, limits: &Limits) -> File<'b> {
    let split = split::split(bytes);
    let mut messages: Vec<FileMessage<'b>> = Vec::with_capacity(split.pieces.len());
    let mut parts = 1;
    for split::Piece { range, .. } in split.pieces {
        let next = charset::decode(&bytes[range.clone()], fallback);
        let last = messages.last_mut().filter(|last| parts < PARTS_MAX && may_go_on(&last.decoded.text));
        match last.and_then(|last| Some((joined(&last.decoded.text, &next.text, limits)?, last))) {
            Some((whole, last)) => {
                parts += 1;
                let text = "the message was sent in parts, which are joined by DSC-1 and MSH-14";
                last.range.end = range.end;
                last.decoded.text = Cow::Owned(whole);
                last.decoded.issues.extend(next.issues);
                last.decoded.issues.push(Issue::new(Severity::Information, "message-joined", "DSC-1", text));
            }
            None => {
                parts = 1;
                messages.push(FileMessage { range, decoded: next });
            }
        }
    }
    File { messages, issues: split.issues }
}

/// A quick look before two messages are read for nothing.
fn may_go_on(text: &str) -> bool {
    let end = &text.as_bytes()[text.len().saturating_sub(256)..];
    memmem::find(end, b"DSC").is_some()
}

fn joined(first: &str, next: &str, limits: &Limits) -> Option<String> {
    continuation::join(&Message::parse(first, limits).ok()?, &Message::parse(next, limits).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
        let file = read(bytes, None, &Limits::default());
        let issues = file
            .messages
            .iter()
            .flat_map(|message| message.decoded.issues.iter().map(|issue| issue.code.clone()));
        (file.messages.iter().map(|message| message.decoded.text.to_string()).collect(), issues.collect())
    }

    #[test]
    fn a_message_in_three_parts_is_one() {
        let parts = "MSH|^~\\&|A\rOBX|1|TX|||one \rADD\rDSC|a\r\
                     MSH|^~\\&|A|||||||||||a\rADD|two \rADD\rDSC|b\r\
                     MSH|^~\\&|A|||||||||||b\rADD|three\rNTE|1\r\
                     MSH|^~\\&|B\r";
        let (texts, issues) = texts(parts.as_bytes());
        assert_eq!(texts, ["MSH|^~\\&|A\rOBX|1|TX|||one two three\rNTE|1\r", "MSH|^~\\&|B\r"]);
        assert_eq!(issues, ["message-joined", "message-joined"]);
    }

    #[test]
    fn a_part_whose_next_is_missing_stays_alone() {
        let parts = "MSH|^~\\&|A\rOBX|1|TX|||one \rADD\rDSC|a\rMSH|^~\\&|B\rPID|1\r";
        let (texts, issues) = texts(parts.as_bytes());
        assert_eq!((texts.len(), issues.len()), (2, 0));
        let message = Message::parse(&texts[0], &Limits::default()).unwrap();
        assert!(message.issues().iter().any(|issue| issue.code == "part-of-message"));
    }
}
