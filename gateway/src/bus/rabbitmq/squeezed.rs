//! How events lie in Pons's own queues: compressed, as every one of them is written to disk by each node of the broker and
//! read by Pons alone. What goes into a subscriber's own queue is never compressed.

use std::borrow::Cow;

/// The content encoding of a compressed event: LZ4 block, after the length of what it was, 4 bytes little-endian.
pub(super) const ENCODING: &str = "x-lz4-block";
/// Below this many bytes compressing does not pay.
const SMALL_BYTES: usize = 1024;
/// No event is longer; a length beyond it is not ours, and no memory is taken for it.
const LONGEST: usize = 1 << 30;

/// The body to publish, compressed where it pays.
pub(super) fn squeeze(body: &[u8]) -> Cow<'_, [u8]> {
    if body.len() < SMALL_BYTES || body.len() > LONGEST {
        return Cow::Borrowed(body);
    }
    let packed = lz4_flex::block::compress_prepend_size(body);
    if packed.len() < body.len() { Cow::Owned(packed) } else { Cow::Borrowed(body) }
}

/// What [`squeeze`] was given; `None` if it is not a compressed body.
pub(super) fn expand(packed: &[u8]) -> Option<Vec<u8>> {
    let (length, _) = packed.split_first_chunk::<4>()?;
    // LZ4 makes no more than 255 bytes of one.
    let length = u32::from_le_bytes(*length) as usize;
    if length > LONGEST || length / 255 > packed.len() {
        return None;
    }
    lz4_flex::block::decompress_size_prepended(packed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_that_cannot_be_true_takes_no_memory() {
        assert_eq!(expand(&[0xff, 0xff, 0xff, 0x3f, 0x10, 0x61]), None);
        assert_eq!(expand(&[]), None);
        assert_eq!(expand(b"{\"specversion\":\"1.0\"}"), None);
    }

    proptest! {
        #[test]
        fn a_compressed_body_expands_to_what_it_was(
            piece in prop::collection::vec(any::<u8>(), 1..60),
            times in 1_usize..200,
        ) {
            let body = piece.repeat(times);
            match squeeze(&body) {
                Cow::Owned(packed) => prop_assert_eq!(expand(&packed), Some(body)),
                Cow::Borrowed(same) => prop_assert_eq!(same, &body[..]),
            }
        }

        #[test]
        fn any_bytes_are_looked_at_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = expand(&bytes);
        }
    }
}
