//! The odd cases: what may arrive on a port, what becomes of it, and the clause that decides.
//!
//! Each row is read as a file would be (split, decoded, parsed). `pieces` is the outcome of each message in it; `issues`
//! the codes of everything that was reported, in order.

use schemas::hl7v2::{Answer, Limits, Message, charset, split};

/// What a place holds.
#[derive(Debug, PartialEq)]
enum Value {
    Is(&'static str),
    Null,
    Absent,
}
use Value::{Absent, Is, Null};

/// What becomes of a message.
#[derive(Debug)]
enum Outcome {
    Taken(&'static [(&'static str, Value)]),
    /// The answer that is due, ERR-3, ERR-2.
    Refused(Answer, u16, &'static str),
}
use Outcome::{Refused, Taken};

struct Row {
    name: &'static str,
    bytes: Vec<u8>,
    pieces: Vec<Outcome>,
    issues: &'static [&'static str],
    clause: &'static str,
}

fn row(
    name: &'static str,
    bytes: impl AsRef<[u8]>,
    pieces: impl Into<Vec<Outcome>>,
    issues: &'static [&'static str],
    clause: &'static str,
) -> Row {
    Row { name, bytes: bytes.as_ref().to_vec(), pieces: pieces.into(), issues, clause }
}

const MSH: &str = "MSH|^~\\&|SND|FAC|RCV|RFAC|20240301||ADT^A01^ADT_A01|1|P|2.5.1";
const PID: &str = "PID|1||TEST1^^^HOSP&1.2.3&ISO||TEST^JANE||19700101|F";
const PLAIN: &[(&str, Value)] = &[
    ("MSH-10", Is("1")),
    ("PID-3.1", Is("TEST1")),
    ("PID-3.4.2", Is("1.2.3")),
    ("PID-5.2", Is("JANE")),
    ("PID-8", Is("F")),
];

/// Segments, each ended by CR.
fn cr(segments: &[&str]) -> Vec<u8> {
    segments.iter().flat_map(|segment| segment.bytes().chain([b'\r'])).collect()
}

/// A message whose MSH-18 and PID-5 are given.
fn in_charset(code: &str, name: &[u8]) -> Vec<u8> {
    [MSH.as_bytes(), b"||||||", code.as_bytes(), b"\rPID|1||TEST1||", name, b"||19700101|F\r"].concat()
}

fn line_ends() -> Vec<Row> {
    const SEGMENT: &str = "2.5.1 section 2.5.4: the segment terminator is always a carriage return";
    const ROBUST: &str = "2.5.1 section 2.6 and design: what can be attributed is taken, and said";
    let [crlf, lf] = ["\r\n", "\n"].map(|end| format!("{MSH}{end}{PID}{end}"));
    vec![
        row("CR", cr(&[MSH, PID]), [Taken(PLAIN)], &[], SEGMENT),
        row("CRLF", crlf, [Taken(PLAIN)], &["line-ends"], ROBUST),
        row("LF", lf, [Taken(PLAIN)], &["line-ends"], ROBUST),
        row("no last CR", format!("{MSH}\r{PID}"), [Taken(PLAIN)], &["no-final-line-end"], SEGMENT),
        row(
            "cut off in the middle of a segment",
            format!("{MSH}\r{PID}\rOBX|1|NM|718-7^Hemoglobin^LN||13."),
            [Taken(&[("OBX-5", Is("13."))])],
            &["no-final-line-end"],
            SEGMENT,
        ),
        row(
            "LF after one segment, CR after the others",
            format!("{MSH}\rEVN|A01\n{PID}\r"),
            [Taken(PLAIN)],
            &["mixed-line-ends"],
            ROBUST,
        ),
        row(
            "CRLF after one, CR after the others",
            format!("{MSH}\rEVN|A01\r\n{PID}\r"),
            [Taken(PLAIN)],
            &["line-ends"],
            ROBUST,
        ),
        row(
            "blank lines between segments",
            format!("{MSH}\r\r{PID}\r \t\r\r"),
            [Taken(PLAIN)],
            &["blank-line", "blank-line", "blank-line"],
            ROBUST,
        ),
        row(
            "blank lines before MSH",
            format!("\r\n\n{MSH}\r{PID}\r"),
            [Taken(PLAIN)],
            &["blank-line"],
            ROBUST,
        ),
        row("blanks before MSH", format!("  \t{MSH}\r{PID}\r"), [Taken(PLAIN)], &["leading-blanks"], ROBUST),
        row(
            "byte order mark",
            format!("\u{feff}{MSH}\r{PID}\r"),
            [Taken(PLAIN)],
            &["byte-order-mark"],
            ROBUST,
        ),
        row(
            "blanks before a segment",
            format!("{MSH}\r  {PID}\r"),
            [Taken(PLAIN)],
            &["leading-blanks"],
            ROBUST,
        ),
        row(
            "LF CR as line end",
            format!("{MSH}\n\r{PID}\n\r"),
            [Taken(PLAIN)],
            &["blank-line", "blank-line", "line-ends"],
            ROBUST,
        ),
        row(
            "line feeds inside of a value, CR between segments",
            cr(&[MSH, "NTE|1||first\nsecond\n\nlast", PID]),
            [Taken(&[("NTE-3", Is("first\nsecond\n\nlast")), ("PID-8", Is("F"))])],
            &["line-feed-in-value", "line-feed-in-value", "line-feed-in-value"],
            SEGMENT,
        ),
        row(
            "a line feed inside of a value before something like a segment",
            cr(&[MSH, "NTE|1||see\nOBX notes and\nOBX", PID]),
            [Taken(&[("NTE-3", Is("see\nOBX notes and\nOBX")), ("PID-8", Is("F"))])],
            &["line-feed-in-value", "line-feed-in-value"],
            SEGMENT,
        ),
        row(
            "a line of text after CR",
            cr(&[MSH, PID, "OBX|1|TX|||first line", "second line|||F"]),
            [Refused(Answer::Error, 100, "OBX")],
            &[],
            "2.5.1 section 2.5.1: a segment begins with its name; design section 6: AE for what belongs to no segment",
        ),
        row(
            "a line of text where LF ends segments",
            format!("{MSH}\n{PID}\nOBX|1|TX|||first line\nsecond line|||F\n"),
            [Refused(Answer::Error, 100, "OBX")],
            &[],
            "the same: a torn segment and a text cannot be told apart",
        ),
    ]
}

fn separators() -> Vec<Row> {
    const DELIMITERS: &str = "2.5.1 section 2.5.4, message delimiters";
    let with = |encoding: &str| cr(&[&MSH.replace("^~\\&", encoding), PID]);
    let unusable =
        |name, bytes: Vec<u8>| row(name, bytes, [Refused(Answer::Close, 100, "MSH-2")], &[], DELIMITERS);
    vec![
        row(
            "v2.7 with a truncation character",
            cr(&[
                &MSH.replace("^~\\&", "^~\\&#").replace("2.5.1", "2.7"),
                PID,
                "NTE|1||long#",
                "NTE|2||a\\P\\b",
            ]),
            [Taken(&[
                ("MSH-2", Is("^~\\&#")),
                ("MSH-3", Is("SND")),
                ("MSH-12", Is("2.7")),
                ("PID-3.4.2", Is("1.2.3")),
                ("NTE-3", Is("long#")),
                ("NTE[2]-3", Is("a#b")),
            ])],
            &[],
            "2.7 section 2.5.5.2, truncation",
        ),
        row(
            "three characters, the subcomponent separator last",
            with("^~&"),
            [Taken(PLAIN)],
            &["separators"],
            DELIMITERS,
        ),
        row(
            "three characters, the escape character last",
            with("^~\\"),
            [Taken(&[("PID-3.4", Is("HOSP&1.2.3&ISO")), ("PID-3.4.2", Absent)])],
            &["separators"],
            DELIMITERS,
        ),
        row(
            "two characters",
            cr(&[&MSH.replace("^~\\&", "^~"), "PID|1||A~B||T\\S\\T^J"]),
            [Taken(&[("PID-3[2]", Is("B")), ("PID-5.1", Is("T\\S\\T"))])],
            &["separators"],
            DELIMITERS,
        ),
        row(
            "one character",
            cr(&[&MSH.replace("^~\\&", "^"), "PID|1||A~B||T^J"]),
            [Taken(&[("PID-3", Is("A~B")), ("PID-5.2", Is("J"))])],
            &["separators"],
            DELIMITERS,
        ),
        row(
            "separators of the sender's own",
            cr(&["MSH$*!/%$SND$FAC$$$20240301$$ADT*A01$1$P$2.5.1", "PID$1$$A*B%C!D$$T/S/T|^*J"]),
            [Taken(&[
                ("MSH-9.2", Is("A01")),
                ("PID-3.2.2", Is("C")),
                ("PID-3[2]", Is("D")),
                ("PID-5.1", Is("T*T|^")),
            ])],
            &[],
            DELIMITERS,
        ),
        row("the escape character doubled", with("^~\\\\&"), [Taken(PLAIN)], &["separators"], DELIMITERS),
        row("blanks behind the separators", with("^~\\& \t"), [Taken(PLAIN)], &["separators"], DELIMITERS),
        unusable("no separators", with("")),
        unusable("the same separator twice", with("^~^&")),
        unusable("a component separator like the field separator", cr(&["MSH||~\\&|SND"])),
        unusable("a letter as separator", with("^~a&")),
        unusable("a control character as separator", with("^~\u{1}&")),
        row(
            "a letter beyond ASCII as separator",
            with("^~\u{e9}&"),
            [Refused(Answer::Close, 100, "MSH-2")],
            &["charset-undeclared"],
            DELIMITERS,
        ),
        unusable("six separators", with("^~\\&#!")),
        unusable("MSH and nothing else", b"MSH|".to_vec()),
        unusable("MSH and a word", cr(&["MSH|garbage", PID])),
        row(
            "MSH-2 and nothing else",
            cr(&["MSH|^~\\&"]),
            [Taken(&[("MSH-2", Is("^~\\&")), ("MSH-10", Absent), ("MSH-12", Absent)])],
            &["required-field", "required-field", "required-field", "required-field"],
            "2.5.1 section 2.15.9: what is missing is for intake to say (ERR-3 101)",
        ),
    ]
}

fn segments() -> Vec<Row> {
    const NAMES: &str =
        "2.5.1 section 2.5.1: a segment name has three characters; Z-segments are the sender's";
    const ATTRIBUTED: &str =
        "design section 6: bytes that belong to no segment are AE, everything smaller is reported";
    vec![
        row("not HL7", b"{\"resourceType\":\"Patient\"}", [Refused(Answer::Close, 100, "")], &[], ATTRIBUTED),
        row("nothing", b"", [], &[], ATTRIBUTED),
        row("nothing but blanks", b"\r\n \r\n", [], &[], ATTRIBUTED),
        row(
            "a segment before MSH",
            cr(&["PID|1||TEST9", MSH, PID]),
            [Refused(Answer::Close, 100, ""), Taken(PLAIN)],
            &[],
            "2.5.1 section 2.5: MSH is the first segment; what is before it belongs to no message",
        ),
        row(
            "MSH in small letters",
            cr(&[&MSH.replace("MSH", "msh"), PID]),
            [Taken(PLAIN)],
            &["segment-name"],
            NAMES,
        ),
        row(
            "a segment name in small letters",
            cr(&[MSH, &PID.replace("PID", "pid")]),
            [Taken(PLAIN)],
            &["segment-name"],
            NAMES,
        ),
        row(
            "segment names of two and four characters",
            cr(&[MSH, PID, "Z1|a", "ZABC|b"]),
            [Taken(&[("Z1-1", Is("a")), ("ZABC-1", Is("b"))])],
            &["segment-name", "segment-name"],
            NAMES,
        ),
        row(
            "a segment name that begins with a digit",
            cr(&[MSH, PID, "1AB|a"]),
            [Taken(&[("1AB-1", Is("a"))])],
            &["segment-name"],
            NAMES,
        ),
        row(
            "a blank after the segment name",
            cr(&[MSH, &PID.replace("PID|", "PID |")]),
            [Taken(PLAIN)],
            &["leading-blanks"],
            NAMES,
        ),
        row(
            "an unknown segment",
            cr(&[MSH, "ZZZ|a^b", PID]),
            [Taken(&[("ZZZ-1.2", Is("b")), ("PID-8", Is("F"))])],
            &[],
            NAMES,
        ),
        row(
            "a segment name of five characters",
            cr(&[MSH, PID, "PATID|1"]),
            [Refused(Answer::Error, 100, "PID")],
            &[],
            ATTRIBUTED,
        ),
        row(
            "a line that begins with a separator",
            cr(&[MSH, PID, "|1|2"]),
            [Refused(Answer::Error, 100, "PID")],
            &[],
            ATTRIBUTED,
        ),
        row(
            "a line with a component separator first",
            cr(&[MSH, PID, "OBX^1|2"]),
            [Refused(Answer::Error, 100, "PID")],
            &[],
            ATTRIBUTED,
        ),
        row(
            "a segment without fields",
            cr(&[MSH, "EVN", PID]),
            [Taken(PLAIN)],
            &["no-fields"],
            "2.5.1 section 2.6: fields at the end may be left out",
        ),
        row(
            "a segment with empty fields",
            cr(&[MSH, "EVN|", "PV1|||^^&~|", PID]),
            [Taken(&[("PV1-3", Absent), ("PID-8", Is("F"))])],
            &[],
            "the same",
        ),
        row(
            "segments out of order and twice",
            cr(&[MSH, PID, "EVN|A01", "PID|2||TEST2"]),
            [Taken(&[("PID-1", Is("1")), ("PID[2]-3", Is("TEST2")), ("EVN-1", Is("A01"))])],
            &[],
            "reading is no matter of order; the groups are (schemas::hl7v2::grammar)",
        ),
        row(
            "more fields, repetitions and components than the standard knows",
            cr(&[MSH, &format!("{PID}{}x{}y{}z", "|".repeat(200), "~".repeat(300), "^".repeat(400))]),
            [Taken(&[("PID-208", Is("x")), ("PID-208[301].1", Is("y")), ("PID-208[301].401", Is("z"))])],
            &[],
            "2.5.1 section 2.6: unexpected fields are not an error",
        ),
        row(
            "a second MSH in one frame",
            [b"\x0b", &*cr(&[MSH, PID, MSH, PID]), b"\x1c\r"].concat(),
            [Taken(PLAIN), Taken(PLAIN)],
            &[],
            "MLLP release 1 has one message a frame; a file has many",
        ),
        row(
            "control characters inside of values",
            cr(&[MSH, &PID.replace("JANE", "JA\u{0}NE\t\u{1b}[A")]),
            [Taken(&[("PID-5.2", Is("JA\u{0}NE\t\u{1b}[A")), ("PID-8", Is("F"))])],
            &["control-character", "control-character", "control-character"],
            "2.5.1 section 2.7.1: values are displayable characters",
        ),
        row(
            "0x1C and 0x0B inside of a value without a frame",
            cr(&[MSH, &PID.replace("JANE", "JA\u{1c}\u{b}NE")]),
            [Taken(&[("PID-5.2", Is("JA\u{1c}\u{b}NE"))])],
            &["control-character", "control-character"],
            "the same",
        ),
        row(
            "a Ctrl-Z at the end of a file",
            [&*cr(&[MSH, PID]), b"\x1a"].concat(),
            [Taken(PLAIN)],
            &["blank-line"],
            ATTRIBUTED,
        ),
        row(
            "a segment that ADD continues",
            cr(&[MSH, PID, "OBX|1|TX|||first ha", "ADD|lf", "ADD|, second half|||||F"]),
            [Taken(&[("OBX-5", Is("first half, second half")), ("OBX-10", Is("F"))])],
            &["segment-continued"],
            "2.5.1 section 2.10.2",
        ),
        row(
            "a message that goes on in another",
            cr(&[MSH, PID, "OBX|1|TX|||first ha", "ADD", "DSC|ptr|F"]),
            [Taken(&[("OBX-5", Is("first ha")), ("DSC-1", Is("ptr"))])],
            &["no-fields", "part-of-message"],
            "2.5.1 section 2.10.2: ADD without fields marks that the segment goes on",
        ),
        row(
            "the message that goes on",
            cr(&[&format!("{MSH}||ptr"), "ADD|lf||||F"]),
            [Taken(&[("MSH-14", Is("ptr")), ("ADD-1", Is("lf"))])],
            &["part-of-message"],
            "2.5.1 section 2.10.2",
        ),
        row(
            "MSH-10 missing",
            cr(&[&MSH.replace("|1|P", "||P"), PID]),
            [Taken(&[("MSH-10", Absent)])],
            &["required-field"],
            "for intake: ERR-3 101",
        ),
        row(
            "MSH-9 missing",
            cr(&[&MSH.replace("ADT^A01^ADT_A01", ""), PID]),
            [Taken(&[("MSH-9", Absent)])],
            &["required-field"],
            "for intake",
        ),
        row(
            "MSH-12 missing",
            cr(&[&MSH.replace("|2.5.1", ""), PID]),
            [Taken(&[("MSH-12", Absent)])],
            &["required-field"],
            "for intake",
        ),
    ]
}

fn values() -> Vec<Row> {
    const NULL: &str = "2.5.1 section 2.6.3: \"\" deletes, an empty field leaves alone";
    const ESCAPES: &str = "2.5.1 section 2.7";
    let note = |text: &str| cr(&[MSH, &format!("NTE|1||{text}")]);
    vec![
        row(
            "null, empty and absent",
            cr(&[MSH, "PID|1||\"\"||\"\"^JANE|||\"\"|"]),
            [Taken(&[
                ("PID-3", Null),
                ("PID-5.1", Null),
                ("PID-5.2", Is("JANE")),
                ("PID-7", Absent),
                ("PID-8", Null),
                ("PID-30", Absent),
            ])],
            &[],
            NULL,
        ),
        row(
            "quotes that are not null",
            note("\"\"\"\" and \"x\""),
            [Taken(&[("NTE-3", Is("\"\"\"\" and \"x\""))])],
            &[],
            NULL,
        ),
        row("two quotes that are text", note("\\X2222\\"), [Taken(&[("NTE-3", Is("\"\""))])], &[], NULL),
        row("blanks are a value", note("  "), [Taken(&[("NTE-3", Is("  "))])], &[], NULL),
        row(
            "an empty place is not filled by its neighbour",
            cr(&[MSH, "PID|1||^^^HOSP||^JANE~TEST^JO"]),
            [Taken(&[
                ("PID-3", Absent),
                ("PID-3.1", Absent),
                ("PID-5", Absent),
                ("PID-5.2", Is("JANE")),
                ("PID-5[2].1", Is("TEST")),
            ])],
            &[],
            "2.5.1 section 2.5.3",
        ),
        row(
            "all separators escaped",
            note("\\F\\\\S\\\\T\\\\R\\\\E\\"),
            [Taken(&[("NTE-3", Is("|^&~\\"))])],
            &[],
            ESCAPES,
        ),
        row(
            "escapes beside letters beyond ASCII",
            note("Müller \\T\\ Söhne 山\\F\\"),
            [Taken(&[("NTE-3", Is("Müller & Söhne 山|"))])],
            &["charset-undeclared"],
            ESCAPES,
        ),
        row("hexadecimal line end", note("a\\X0D0A\\b"), [Taken(&[("NTE-3", Is("a\r\nb"))])], &[], ESCAPES),
        row(
            "formatting",
            note("a\\.br\\b\\.sp2\\\\H\\c\\N\\"),
            [Taken(&[("NTE-3", Is("a\nb\n\nc"))])],
            &[],
            "2.5.1 section 2.7.6",
        ),
        row(
            "an unknown escape",
            note("a\\Q\\b"),
            [Taken(&[("NTE-3", Is("a\\Q\\b"))])],
            &["escape-unknown"],
            ESCAPES,
        ),
        row(
            "an escape of the sender's own",
            note("a\\Z12\\b"),
            [Taken(&[("NTE-3", Is("a\\Z12\\b"))])],
            &["escape-unknown"],
            "2.5.1 section 2.7.7",
        ),
        row(
            "an unterminated escape",
            note("C:\\temp and more"),
            [Taken(&[("NTE-3", Is("C:\\temp and more"))])],
            &["escape-unterminated"],
            ESCAPES,
        ),
        row(
            "an escape cut off by a separator",
            note("a\\F^b"),
            [Taken(&[("NTE-3.1", Is("a\\F")), ("NTE-3.2", Is("b"))])],
            &["escape-unterminated"],
            ESCAPES,
        ),
        row(
            "an odd number of hexadecimal digits",
            note("a\\X4\\b"),
            [Taken(&[("NTE-3", Is("a\\X4\\b"))])],
            &["escape-unknown"],
            ESCAPES,
        ),
    ]
}

fn charsets() -> Vec<Row> {
    const MSH_18: &str = "2.5.1 section 2.15.9.18 (MSH-18), table 0211";
    const LIES: &str = "design section 7: the bytes decide, and it is said";
    let utf16: Vec<u8> = String::from_utf8(in_charset("UNICODE UTF-16", "Müller^Zoë".as_bytes()))
        .expect("made of text")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let utf16_batch: Vec<u8> = String::from_utf8(
        [&*cr(&["BHS|^~\\&"]), &*in_charset("UNICODE UTF-16", b"TEST^JO"), &*cr(&[MSH, PID, "BTS|2"])]
            .concat(),
    )
    .expect("made of text")
    .encode_utf16()
    .flat_map(u16::to_be_bytes)
    .collect();
    const MÜLLER: &[(&str, Value)] = &[("PID-5.1", Is("Müller")), ("PID-5.2", Is("Zoë")), ("PID-8", Is("F"))];
    vec![
        row(
            "UTF-8 as declared",
            in_charset("UNICODE UTF-8", "Müller^Zoë".as_bytes()),
            [Taken(MÜLLER)],
            &[],
            MSH_18,
        ),
        row("Latin 1 as declared", in_charset("8859/1", b"M\xfcller^Zo\xeb"), [Taken(MÜLLER)], &[], MSH_18),
        row(
            "Latin 2 as declared",
            in_charset("8859/2", b"\xa3ukasz^J"),
            [Taken(&[("PID-5.1", Is("Łukasz"))])],
            &[],
            MSH_18,
        ),
        row(
            "Cyrillic as declared",
            in_charset("8859/5", b"\xb8\xd2\xd0\xdd^J"),
            [Taken(&[("PID-5.1", Is("Иван"))])],
            &[],
            MSH_18,
        ),
        row(
            "Chinese as declared",
            in_charset("GB 18030-2000", b"\xd5\xc5^\xce\xb0"),
            [Taken(&[("PID-5.1", Is("张")), ("PID-5.2", Is("伟"))])],
            &[],
            MSH_18,
        ),
        row(
            "a second byte like a separator",
            in_charset("BIG-5", b"\xb3\x5c\xb3\x7c^J"),
            [Taken(&[("PID-5.1", Is("許逖")), ("PID-8", Is("F"))])],
            &[],
            MSH_18,
        ),
        row(
            "Japanese by escape sequences",
            in_charset("ISO IR87", b"\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
            [Taken(&[("PID-5.1", Is("山田")), ("PID-5.2", Is("太郎"))])],
            &[],
            "2.5.1 table 0211, ISO 2022",
        ),
        row(
            "Japanese by HL7's escapes",
            in_charset("~ISO IR87", b"\\M2442\\;3ED\\C2842\\^J"),
            [Taken(&[("PID-5.1", Is("山田")), ("PID-5.2", Is("J"))])],
            &[],
            "2.5.1 section 2.7.2",
        ),
        row(
            "HL7's escapes between sets that are not declared",
            in_charset("", b"\\M2442\\;3ED\\C2842\\^J"),
            [Taken(&[("PID-5.1", Is("\\M2442\\;3ED"))])],
            &["escape-unknown"],
            "2.5.1 section 2.7.2: of the sets of the message",
        ),
        row(
            "a switch that is not switched back",
            in_charset("~ISO IR87", b"\x1b$B;3ED"),
            [Taken(&[("PID-5", Is("山田")), ("PID-8", Is("F"))])],
            &["charset-switch"],
            "a switch ends with its segment; what it swallows is said",
        ),
        row("UTF-16", utf16, [Taken(MÜLLER)], &[], MSH_18),
        row(
            "a batch in UTF-16",
            utf16_batch,
            [Taken(&[("PID-5.1", Is("TEST"))]), Taken(PLAIN)],
            &["charset-untrue"],
            MSH_18,
        ),
        row(
            "UTF-8, declared as Latin 1",
            in_charset("8859/1", "Müller^Zoë".as_bytes()),
            [Taken(MÜLLER)],
            &["charset-untrue"],
            LIES,
        ),
        row(
            "Latin 1, declared as UTF-8",
            in_charset("UNICODE UTF-8", b"M\xfcller^Zo\xeb"),
            [Taken(MÜLLER)],
            &["charset-untrue"],
            LIES,
        ),
        row(
            "Latin 1, declared as ASCII",
            in_charset("ASCII", b"M\xfcller^Zo\xeb"),
            [Taken(MÜLLER)],
            &["charset-untrue"],
            LIES,
        ),
        row(
            "UTF-8 and Latin 1 mixed",
            in_charset("UNICODE UTF-8", b"M\xc3\xbcller^Zo\xeb"),
            [Taken(MÜLLER)],
            &["charset-untrue"],
            LIES,
        ),
        row(
            "UTF-8, nothing declared",
            in_charset("", "Müller^Zoë".as_bytes()),
            [Taken(MÜLLER)],
            &["charset-undeclared"],
            MSH_18,
        ),
        row(
            "Latin 1, nothing declared",
            in_charset("", b"M\xfcller^Zo\xeb"),
            [Taken(MÜLLER)],
            &["charset-undeclared"],
            MSH_18,
        ),
        row(
            "another name for UTF-8",
            in_charset("UTF-8", "Müller^Zoë".as_bytes()),
            [Taken(MÜLLER)],
            &["charset-name"],
            MSH_18,
        ),
        row(
            "a set that nobody knows",
            in_charset("KLINGON", b"TEST^JANE"),
            [Taken(&[("PID-5.2", Is("JANE"))])],
            &["charset-unknown"],
            MSH_18,
        ),
        row(
            "a byte that the set has not",
            in_charset("8859/6", b"TEST\xa1^JANE"),
            [Taken(&[("PID-5.1", Is("TEST\u{fffd}")), ("PID-5.2", Is("JANE"))])],
            &["charset-undecodable"],
            LIES,
        ),
    ]
}

fn frames_and_batches() -> Vec<Row> {
    const FRAMES: &str = "MLLP release 1";
    const BATCHES: &str = "2.5.1 section 2.10.3";
    let message = || cr(&[MSH, PID]);
    let frame = |content: Vec<u8>, end: &[u8]| [b"\x0b", &*content, end].concat();
    let two = |end: &[u8], between: &[u8]| {
        [frame(message(), end), between.to_vec(), frame(message(), b"\x1c\r")].concat()
    };
    let both = || [Taken(PLAIN), Taken(PLAIN)];
    let batch = |middle: &[&str], trailers: &[&str]| {
        [cr(&["FHS|^~\\&|S", "BHS|^~\\&|S"]), message(), cr(middle), message(), cr(trailers)].concat()
    };
    vec![
        row("one frame", frame(message(), b"\x1c\r"), [Taken(PLAIN)], &[], FRAMES),
        row("two frames", two(b"\x1c\r", b""), both(), &[], FRAMES),
        row("blanks between frames", two(b"\x1c\r", b"\r\n \r\n"), both(), &[], FRAMES),
        row("bytes between frames", two(b"\x1c\r", b"xx"), both(), &["outside-frame"], FRAMES),
        row("a frame without 0x0D", two(b"\x1c", b""), both(), &["frame-end"], FRAMES),
        row("a frame without an end", two(b"", b""), both(), &["frame-end"], FRAMES),
        row(
            "the last frame cut off",
            frame(cr(&[MSH, "PID|1||TE"]), b""),
            [Taken(&[("PID-3", Is("TE"))])],
            &["frame-end"],
            FRAMES,
        ),
        row(
            "0x1C inside of a frame",
            frame(cr(&[MSH, &PID.replace("JANE", "JA\u{1c}NE")]), b"\x1c\r"),
            [Taken(&[("PID-5.2", Is("JA\u{1c}NE"))])],
            &["control-character"],
            "MLLP release 1: a frame ends with 0x1C 0x0D",
        ),
        row("several messages in a row", [message(), message()].concat(), both(), &[], BATCHES),
        row("a batch", batch(&[], &["BTS|2", "FTS|1"]), both(), &[], BATCHES),
        row(
            "a batch that counts wrongly",
            batch(&[], &["BTS|3", "FTS|1"]),
            both(),
            &["batch-count"],
            BATCHES,
        ),
        row("a batch that is cut off", batch(&[], &[]), both(), &["batch", "batch"], BATCHES),
        row(
            "a bad message in the middle of a batch",
            batch(&["MSH|garbage", "XXX"], &["BTS|3", "FTS|1"]),
            [Taken(PLAIN), Refused(Answer::Close, 100, "MSH-2"), Taken(PLAIN)],
            &[],
            "design section 10: the others are still written",
        ),
    ]
}

#[test]
fn every_odd_case_has_its_outcome() {
    let rows = [line_ends(), separators(), segments(), values(), charsets(), frames_and_batches()];
    let mut wrong = Vec::new();
    for row in rows.into_iter().flatten() {
        if let Err(what) = check(&row) {
            wrong.push(format!("{}: {what}\n    decided by {}", row.name, row.clause));
        }
    }
    assert!(wrong.is_empty(), "{} odd cases went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn check(row: &Row) -> Result<(), String> {
    let split = split::split(&row.bytes);
    if split.pieces.len() != row.pieces.len() {
        return Err(format!("{} pieces, not {}", split.pieces.len(), row.pieces.len()));
    }
    let mut codes: Vec<String> = split.issues.into_iter().map(|issue| issue.code).collect();
    for (piece, expected) in split.pieces.iter().zip(&row.pieces) {
        let decoded = charset::decode(&row.bytes[piece.range.clone()], None);
        codes.extend(decoded.issues.iter().map(|issue| issue.code.clone()));
        match (Message::parse(&decoded.text, &Limits::default()), expected) {
            (Ok(message), Taken(values)) => {
                codes.extend(message.issues().iter().map(|issue| issue.code.clone()));
                for (path, expected) in *values {
                    value(&message, path, expected)?;
                }
            }
            (Err(error), Refused(answer, code, location)) => {
                let found = (error.answer(), error.code(), error.location());
                if found != (*answer, *code, (*location).to_owned()) {
                    return Err(format!("refused with {found:?}: {error}"));
                }
            }
            (Ok(_), Refused(..)) => return Err("taken, not refused".to_owned()),
            (Err(error), Taken(_)) => return Err(format!("refused: {error}")),
        }
    }
    if codes == row.issues { Ok(()) } else { Err(format!("reported {codes:?}")) }
}

fn value(message: &Message<'_>, path: &str, expected: &Value) -> Result<(), String> {
    let element = message.at(&path.parse().map_err(|error| format!("{path}: {error}"))?);
    let text = element.text(message);
    let right = match expected {
        Is(value) => text.as_deref() == Some(value),
        Null => element.is_null(message) && text.is_none(),
        Absent => text.is_none() && !element.is_null(message),
    };
    if right { Ok(()) } else { Err(format!("{path} is {text:?}, not {expected:?}")) }
}
