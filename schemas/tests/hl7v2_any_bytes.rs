//! Whatever the bytes are: nothing panics, nothing is lost, and what is found agrees with itself.

use proptest::prelude::*;
use schemas::hl7v2::{Element, Header, Limits, Message, Path, charset, emit, escape, split};

/// Pieces that make messages, near-messages and noise.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"MSH|^~\\&|A|B|C|D|2024||ADT^A01|1|P|2.5.1\r".to_vec()),
        1 => Just(b"MSH|^~\\&#|A\r".to_vec()),
        1 => Just(b"MSH*|~".to_vec()),
        1 => Just(b"msh|^~\\&|".to_vec()),
        1 => Just(b"MSH|^~\\&|A||||||||||||||||UNICODE UTF-8~ISO IR87\r".to_vec()),
        2 => Just(b"PID|1||A^B&C~D||\"\"\r".to_vec()),
        2 => Just(b"OBX|1|TX|||".to_vec()),
        1 => Just(b"ADD|more".to_vec()),
        1 => Just(b"\x0b".to_vec()),
        1 => Just(b"\x1c\r".to_vec()),
        1 => Just(b"BHS|^~\\&\r".to_vec()),
        1 => Just(b"BTS|2\r".to_vec()),
        2 => "[|^~&\\\\]{1,6}".prop_map(String::into_bytes),
        2 => "[\r\n\t ]{1,3}".prop_map(String::into_bytes),
        1 => "\\\\[A-Z.][a-z0-9+-]{0,4}\\\\".prop_map(String::into_bytes),
        1 => Just("Zoë山".as_bytes().to_vec()),
        1 => Just(b"\x1b$B;3\x1b(B".to_vec()),
        1 => Just(b"\xef\xbb\xbf".to_vec()),
        1 => Just(b"\xff\xfeM\0S\0H\0|\0".to_vec()),
        2 => proptest::collection::vec(any::<u8>(), 1..5),
    ];
    proptest::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

fn limits() -> impl Strategy<Value = Limits> {
    prop_oneof![
        9 => Just(Limits::default()),
        1 => (0usize..200, 0usize..5, 0usize..40).prop_map(|(bytes, segments, delimiters)| Limits { bytes, segments, delimiters }),
    ]
}

/// Asks every accessor about every part.
fn walk(message: &Message<'_>) {
    let header = message.header();
    for field in 0..30 {
        let _ = (header.raw(field), header.component(field, 1), header.component(field, 2));
    }
    let _ = (header.charsets().count(), header.profiles().count());
    let mut seen = 0;
    for (n, segment) in message.segments().iter().enumerate() {
        assert!(segment.text().end <= message.text().len());
        assert_eq!(message.find_all(segment.name()).nth(segment.occurrence() as usize - 1), Some(n));
        for (number, field) in message.fields(n) {
            assert_eq!(message.field(n, number), field);
            seen += part(message, &field);
        }
        assert!(message.field(n, 0).is_absent());
    }
    assert_eq!(seen, message.leaves().len(), "every leaf is in one field of one segment");
    for leaf in 0..message.leaves().len() {
        let path = message.path_of(leaf);
        let read: Path = path.to_string().parse().expect("a path that was written is read");
        assert_eq!(read.to_string(), path.to_string());
        assert_eq!(message.at(&path).range(), leaf..leaf + 1, "{path} names one leaf");
        assert_eq!(message.is_null(leaf), message.raw(leaf) == "\"\"");
        let _ = escape::encode(&message.value(leaf), message.separators());
    }
    assert_eq!(message.raw(message.leaves().len()), "");
    let _ = format!("{message:?} {header:?}");
}

/// Walks down from an element and counts its leaves.
fn part(message: &Message<'_>, element: &Element) -> usize {
    let leaves = element.leaves(message).len();
    let parts: Vec<Element> = element.parts(message).collect();
    assert_eq!(parts.iter().map(|part| part.leaves(message).len()).sum::<usize>(), leaves);
    let _ = (
        element.text(message),
        element.is_null(message),
        element.raw(message),
        message.path_of_element(element),
    );
    for n in [0, 1, 2, 65_535] {
        let _ =
            (element.repetition(message, n), element.component(message, n), element.part(message, n as u16));
    }
    for inner in &parts {
        if inner.level != element.level {
            part(message, inner);
        }
    }
    leaves
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn nothing_breaks_and_nothing_is_lost(bytes in bytes(), limits in limits(), fallback in proptest::option::of("8859/2|x")) {
        let split = split::split(&bytes);
        for piece in &split.pieces {
            let piece = &bytes[piece.range.clone()];
            let decoded = charset::decode(piece, fallback.as_deref());
            let _ = Header::peek(&decoded.text).map(|header| header.control_id().is_some());
            match Message::parse(&decoded.text, &limits) {
                Ok(message) => {
                    walk(&message);
                    conserved(&message);
                    let emitted = emit::emit(&message);
                    let again = Message::parse(&emitted, &Limits::default()).expect("good form is readable");
                    prop_assert_eq!(again.leaves().len(), message.leaves().len());
                }
                Err(error) => {
                    let _ = (error.answer(), error.code(), error.location(), error.closes(), error.to_string());
                }
            }
        }
    }

    #[test]
    fn pure_noise_breaks_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for piece in split::split(&bytes).pieces {
            let decoded = charset::decode(&bytes[piece.range], None);
            let _ = Message::parse(&decoded.text, &Limits::default());
        }
        let text = String::from_utf8_lossy(&bytes);
        let _ = Message::parse(&text, &Limits::default());
    }
}

/// Every character of the text is in a leaf, is a separator, a line end, a blank, or part of a segment name.
fn conserved(message: &Message<'_>) {
    let text = message.text().as_bytes();
    let mut covered = vec![false; text.len()];
    for leaf in message.leaves() {
        covered[leaf.start as usize..leaf.end as usize].fill(true);
    }
    for segment in message.segments() {
        let start = segment.text().start;
        covered[start..start + segment.name().as_str().len()].fill(true);
    }
    for (at, byte) in text.iter().enumerate() {
        let mark = text[at..].starts_with(b"\xef\xbb\xbf")
            || (at >= 1 && text[at - 1..].starts_with(b"\xef\xbb\xbf"))
            || (at >= 2 && text[at - 2..].starts_with(b"\xef\xbb\xbf"));
        let structure = message.separators().contains(*byte) || *byte <= b' ' || mark;
        assert!(covered[at] || structure, "the byte at {at} is nowhere");
    }
}
