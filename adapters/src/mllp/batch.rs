//! The batch protocol in one frame: FHS and BHS around messages, each of which is taken on its own; one batch of
//! acknowledgements goes back.
//!
//! Invariant: only a frame that says it is a batch is split. Two messages in a frame that says nothing may be one that
//! lost its end and the next, which nobody should take for two.
//!
//! Source: HL7 v2.5.1 sections 2.10.3 (batch protocol), 2.15.2 (BHS), 2.15.3 (BTS).

use super::ack::Identity;
use bytes::Bytes;
use memchr::memchr2;
use schemas::hl7v2::split;

/// The most messages of one batch.
pub(super) const MESSAGES_MAX: usize = 10_000;

/// A batch taken apart.
#[derive(Debug)]
pub(super) struct Batch {
    /// BHS, or FHS where there is no BHS.
    pub(super) header: Bytes,
    /// The messages, in order.
    pub(super) messages: Vec<Bytes>,
    /// Lines that belong to no message.
    pub(super) strays: Vec<Bytes>,
    /// What the batch says of itself and is not so, such as its count; codes without values.
    pub(super) oddities: Vec<String>,
}

impl Batch {
    /// Takes a frame apart if it is a batch.
    pub(super) fn read(frame: &Bytes) -> Option<Self> {
        let header = header(frame)?;
        let split = split::split(frame);
        let (messages, strays) = split.pieces.into_iter().partition::<Vec<_>, _>(|piece| piece.has_header);
        let bytes =
            |pieces: Vec<split::Piece>| pieces.into_iter().map(|piece| frame.slice(piece.range)).collect();
        Some(Batch {
            header,
            messages: bytes(messages),
            strays: bytes(strays),
            oddities: split.issues.into_iter().map(|issue| issue.code).collect(),
        })
    }
}

/// The last of the batch's headers that stand before its first message.
fn header(frame: &Bytes) -> Option<Bytes> {
    let mut found = None;
    let mut from = frame.len() - frame.trim_ascii_start().len();
    while matches!(frame.get(from..from + 3), Some(b"FHS" | b"BHS")) {
        let end = memchr2(b'\r', b'\n', &frame[from..]).map_or(frame.len(), |end| from + end);
        found = Some(frame.slice(from..end));
        from = frame.len() - frame[end..].trim_ascii_start().len();
    }
    found
}

/// The batch of acknowledgements, without its frame. `answers` are segments as they follow each other, `count` how many
/// messages they are.
pub(super) fn answer(header: &[u8], us: &Identity, answers: &[u8], count: usize) -> Vec<u8> {
    let separator = header.get(3).copied().unwrap_or(b'|');
    let fields: Vec<&[u8]> = header.split(|byte| *byte == separator).collect();
    // BHS-1 is the separator itself, so BHS-2 is the first behind the name.
    let field = |number: usize| fields.get(number - 1).copied().unwrap_or_default();
    let or_ours = |field: &'_ [u8], ours: &str| {
        if field.is_empty() { ours.as_bytes().to_vec() } else { field.to_vec() }
    };
    let parts: [&[u8]; 12] = [
        b"BHS",
        field(2),
        &or_ours(field(5), &us.application),
        &or_ours(field(6), &us.facility),
        field(3),
        field(4),
        b"",
        b"",
        b"",
        b"",
        b"",
        // BHS-12, reference batch control id: theirs was BHS-11.
        field(11),
    ];
    let mut out = parts.join(&separator);
    out.push(b'\r');
    out.extend_from_slice(answers);
    out.extend_from_slice(b"BTS");
    out.push(separator);
    out.extend_from_slice(count.to_string().as_bytes());
    out.push(b'\r');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us() -> Identity {
        Identity { application: "PONS".to_owned(), facility: String::new() }
    }

    #[test]
    fn a_batch_is_taken_apart_and_nothing_of_it_is_lost() {
        let frame = Bytes::from_static(
            b"FHS|^~\\&|A|B\rBHS|^~\\&|A|B|C|D|2026||||B1\rMSH|^~\\&|1\rPID|1\rMSH|^~\\&|2\rPID|2\rBTS|3\rFTS|1\r",
        );
        let batch = Batch::read(&frame).expect("a batch");
        assert_eq!(&batch.header[..], b"BHS|^~\\&|A|B|C|D|2026||||B1");
        assert_eq!(batch.messages.len(), 2);
        assert!(
            batch.messages[0].starts_with(b"MSH|^~\\&|1\rPID|1")
                && batch.messages[1].starts_with(b"MSH|^~\\&|2")
        );
        assert!(batch.strays.is_empty());
        assert_eq!(batch.oddities.len(), 1, "the count is wrong: {:?}", batch.oddities);
    }

    #[test]
    fn what_does_not_say_that_it_is_a_batch_is_none() {
        for frame in ["MSH|^~\\&|1\rMSH|^~\\&|2\r", "", "FH", "XBHS|"] {
            assert!(Batch::read(&Bytes::from_static(frame.as_bytes())).is_none(), "{frame:?}");
        }
    }

    #[test]
    fn the_answer_names_the_batch_that_it_answers() {
        let header = b"BHS|^~\\&|TESTAPP|TESTFAC|PONSAPP|PONSFAC|2026||||B1";
        assert_eq!(
            answer(header, &us(), b"MSH|x\rMSA|AA|1\r", 1),
            b"BHS|^~\\&|PONSAPP|PONSFAC|TESTAPP|TESTFAC||||||B1\rMSH|x\rMSA|AA|1\rBTS|1\r"
        );
        assert_eq!(answer(b"FHS", &us(), b"", 0), b"BHS||PONS|||||||||\rBTS|0\r");
    }
}
