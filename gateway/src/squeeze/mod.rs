//! How bytes are compressed: rows of both stores, and events on their way through the broker.
//!
//! zstd with a dictionary, because what is compressed is short and alike: the slots of an Observation are a third of a page, and
//! nearly all of it is names of slots, systems and codes. What is longer repeats itself and goes without. Each is one frame of zstd as
//! RFC 8878 has it, so that `zstd -d -D gateway/src/squeeze/first.zdict` reads one too. The dictionary is frozen, as rows depend on it; a
//! better one becomes a second file beside it. Invariant: `expand(squeeze(x)) == x`, and bytes that are no such frame are `None`, never a
//! panic or an allocation out of proportion.

use std::cell::RefCell;
use std::sync::LazyLock;
use zstd::bulk::{Compressor, Decompressor};
use zstd::dict::{DecoderDictionary, EncoderDictionary};
use zstd::zstd_safe::{self, CParameter};

/// The content of the dictionary; SOURCE.md beside it says how it was made.
const FIRST: &[u8] = include_bytes!("first.zdict");
/// The fastest of zstd's ordinary levels; the next ones save a twentieth for half as much time again.
const LEVEL: i32 = 1;
/// Beyond this many bytes the dictionary saves a tenth and takes half as long again.
const SHORT: usize = 8 << 10;
/// Nothing longer is compressed, and no frame that claims more is ours.
const LONGEST: usize = 1 << 30;
/// What a block may hold at most, and the least that it takes in a frame.
const BLOCK: [usize; 2] = [128 << 10, 4];

static TO: LazyLock<EncoderDictionary<'static>> = LazyLock::new(|| EncoderDictionary::copy(FIRST, LEVEL));
static FROM: LazyLock<DecoderDictionary<'static>> = LazyLock::new(|| DecoderDictionary::copy(FIRST));

/// A larger buffer is not kept for the next one.
const SCRATCH_MAX: usize = 1 << 20;

thread_local! {
    static COMPRESSING: RefCell<Option<Compressing>> = RefCell::new(Compressing::new().ok());
    static EXPANDING: RefCell<Option<Expanding>> = RefCell::new(Expanding::new().ok());
}

/// What a thread needs to compress.
struct Compressing {
    short: Compressor<'static>,
    long: Compressor<'static>,
    /// Where it compresses to: what is kept takes no more memory than it needs.
    out: Vec<u8>,
}

impl Compressing {
    fn new() -> std::io::Result<Compressing> {
        let mut short = Compressor::with_prepared_dictionary(&TO)?;
        // Whoever reads a frame knows which dictionary it may be by.
        short.set_parameter(CParameter::DictIdFlag(false))?;
        Ok(Compressing { short, long: Compressor::new(LEVEL)?, out: Vec::new() })
    }
}

/// What a thread needs to expand. What was written without the dictionary is read without it: a dictionary also says where a frame begins
/// to look back.
struct Expanding {
    short: Decompressor<'static>,
    long: Decompressor<'static>,
}

impl Expanding {
    fn new() -> std::io::Result<Expanding> {
        Ok(Expanding { short: Decompressor::with_prepared_dictionary(&FROM)?, long: Decompressor::new()? })
    }
}

/// The compressed form; `None` where that does not save an eighth.
pub(crate) fn squeeze(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.len() > LONGEST {
        return None;
    }
    COMPRESSING.with_borrow_mut(|compressing| {
        let Compressing { short, long, out } = compressing.as_mut()?;
        out.clear();
        out.reserve(zstd_safe::compress_bound(bytes.len()));
        let by = if bytes.len() > SHORT { long } else { short };
        let written = by.compress_to_buffer(bytes, out).ok()?;
        let packed = (written < bytes.len() - bytes.len() / 8).then(|| out.to_vec());
        if out.capacity() > SCRATCH_MAX {
            *out = Vec::new();
        }
        packed
    })
}

/// What [`squeeze`] was given; `None` if these bytes are not from there.
pub(crate) fn expand(packed: &[u8]) -> Option<Vec<u8>> {
    let length = zstd_safe::get_frame_content_size(packed).ok()??;
    let length = usize::try_from(length).ok()?;
    // Nothing is never compressed; zstd has frames of other kinds that hold nothing.
    if length == 0 || length > LONGEST || length.div_ceil(BLOCK[0]) * BLOCK[1] > packed.len() {
        return None;
    }
    EXPANDING.with_borrow_mut(|expanding| {
        let Expanding { short, long } = expanding.as_mut()?;
        let by = if length > SHORT { long } else { short };
        by.decompress(packed, length).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_pons_writes_shrinks_to_a_fraction() {
        let observation = r#"{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation","code":"H"}]}"#;
        assert!(squeeze(observation.as_bytes()).unwrap().len() < observation.len() / 2);
        let zeros = vec![0; 10 << 20];
        let packed = squeeze(&zeros).unwrap();
        assert!(packed.len() < 4096);
        assert_eq!(expand(&packed), Some(zeros));
    }

    #[test]
    fn what_does_not_shrink_is_left_as_it_is() {
        assert_eq!(squeeze(b""), None);
        assert_eq!(squeeze(b"\x9c\x01\xfe\x77\x52\xa8\x13"), None);
    }

    #[test]
    fn a_length_that_cannot_be_true_takes_no_memory() {
        // A frame's head that claims 2 to the 40 bytes, then one that claims 2 to the 29 in a few bytes.
        for length in [1_u64 << 40, 1 << 29] {
            let head =
                [&0xFD2F_B528_u32.to_le_bytes()[..], &[0xE0], &length.to_le_bytes(), &[1, 0, 0]].concat();
            assert_eq!(
                zstd_safe::get_frame_content_size(&head).unwrap(),
                Some(length),
                "the head is well-formed"
            );
            assert_eq!(expand(&head), None);
        }
        assert_eq!(expand(&[]), None);
        assert_eq!(expand(b"\x50\x2a\x4d\x18\0\0\0\0"), None, "a frame to be skipped");
        assert_eq!(expand(b"{\"specversion\":\"1.0\"}"), None);
    }

    proptest! {
        #[test]
        fn squeezed_bytes_expand_to_what_they_were(
            piece in proptest::collection::vec(any::<u8>(), 0..2000),
            text in "[A-C|^]{0,3000}",
            times in 1_usize..100,
        ) {
            for bytes in [piece.repeat(times), piece, text.into_bytes()] {
                if let Some(packed) = squeeze(&bytes) {
                    prop_assert_eq!(expand(&packed), Some(bytes));
                }
            }
        }

        #[test]
        fn a_damaged_frame_is_refused_or_read_but_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            cut in any::<prop::sample::Index>(),
        ) {
            let _ = expand(&bytes);
            let _ = expand(&[&0xFD2F_B528_u32.to_le_bytes()[..], &bytes].concat());
            let whole = squeeze(&bytes.repeat(3));
            if let Some(mut whole) = whole {
                let at = cut.index(whole.len());
                prop_assert_eq!(expand(&whole[..at]), None);
                whole[at] ^= 0x41;
                let _ = expand(&whole);
            }
        }
    }
}
