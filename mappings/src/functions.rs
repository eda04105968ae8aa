//! The functions of the mapping language. One row of [`FUNCTIONS`] makes a function exist: the checker, the reference and
//! the tests of its examples derive from it.

mod moments;
mod systems;
#[cfg(test)]
mod tests;
mod values;

use crate::program::ExprId;
use crate::run::{Frame, Run, Val};
use crate::terminology;
use moments::{hl7_time, later, minutes, since_1970};
use schemas::hl7v2::time::{Tm, Ts};
use std::borrow::Cow;
pub(crate) use systems::{known_coding_system, universal};
use systems::{universal_id, v2_system};
use values::{compared, in_base64};

/// What is known of a value before any message is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stands in the message.
    Element,
    Text,
    Bool,
    Integer,
    Decimal,
    Date,
    DateTime,
    Instant,
    Time,
    Base64,
    Xhtml,
    Hl7Time,
}

/// The functions of the mapping language, one line each: how it is called and what it does, then its examples. Written from the
/// table that the checker uses.
pub fn reference() -> String {
    let mut text = String::new();
    for function in FUNCTIONS {
        text.push_str(function.spec);
        text.push('\n');
        for (expression, field, answer) in function.examples {
            text.push_str(&format!("    {expression}  with {field:?} is {answer:?}\n"));
        }
    }
    text
}

type Call = for<'r, 'c> fn(&mut Run<'r>, &Frame<'r, 'c>, &'r [ExprId]) -> Val<'r>;

/// One function.
pub(crate) struct Function {
    pub(crate) name: &'static str,
    /// The fewest and the most arguments.
    pub(crate) args: (usize, usize),
    pub(crate) answers: Kind,
    /// Whether it reads nothing but its arguments and what the configuration says of the sender.
    pub(crate) closed: bool,
    /// Whether it answers absent when its first argument is absent.
    pub(crate) strict: bool,
    /// What it does, in a sentence. Every function answers absent for absent where nothing else is said.
    pub(crate) spec: &'static str,
    /// Expression, text of `ZZZ-1`, expected text (empty: absent). Each is a test.
    pub(crate) examples: &'static [(&'static str, &'static str, &'static str)],
    pub(crate) call: Call,
}

/// Whether a function answers absent when its first argument is absent.
pub(crate) fn is_strict(name: &str) -> bool {
    FUNCTIONS.iter().any(|function| function.name == name && function.strict)
}

const MANY: usize = usize::MAX;

/// Every function of the language.
pub(crate) const FUNCTIONS: &[Function] = &[
    Function {
        name: "valued",
        args: (1, 1),
        answers: Kind::Bool,
        closed: true,
        strict: false,
        spec: "valued(path): whether something other than HL7's null stands there",
        examples: &[
            ("valued(ZZZ-1)", "x", "true"),
            ("valued(ZZZ-1)", "", "false"),
            ("valued(ZZZ-1)", "\"\"", "false"),
        ],
        call: |run, frame, args| Val::Bool(run.is_valued(frame, args[0])),
    },
    Function {
        name: "is_null",
        args: (1, 1),
        answers: Kind::Bool,
        closed: true,
        strict: false,
        spec: "is_null(path): whether HL7's null \"\" stands there",
        examples: &[("is_null(ZZZ-1)", "\"\"", "true"), ("is_null(ZZZ-1)", "", "false")],
        call: |run, frame, args| Val::Bool(matches!(run.eval(frame, args[0]), Val::Null)),
    },
    Function {
        name: "count",
        args: (1, 1),
        answers: Kind::Integer,
        closed: true,
        strict: false,
        spec: "count(path): how many repetitions or segments are not empty",
        examples: &[("count(ZZZ-1)", "a~b", "2"), ("count(ZZZ-1)", "", "0"), ("count(ZZZ)", "x", "1")],
        call: |run, frame, args| {
            Val::Integer(i64::try_from(run.items(frame, args[0]).len()).unwrap_or(i64::MAX))
        },
    },
    Function {
        name: "holds",
        args: (1, 1),
        answers: Kind::Bool,
        closed: false,
        strict: false,
        spec: "holds(segment): whether such a segment stands in the group around, or in any group inside it, however often",
        examples: &[("holds(ZZZ)", "x", "true"), ("holds(NTE)", "x", "false")],
        call: |run, frame, args| Val::Bool(run.group_holds(frame, args[0])),
    },
    Function {
        name: "same",
        args: (2, 2),
        answers: Kind::Bool,
        closed: false,
        strict: false,
        spec: "same(record, record): whether both paths lead to the same record of the document",
        examples: &[("same(ZZZ-1, ZZZ-1)", "x", "false")],
        call: |run, frame, args| {
            let one = run.record_at(frame, args[0]);
            Val::Bool(one.is_some() && one == run.record_at(frame, args[1]))
        },
    },
    Function {
        name: "among",
        args: (2, 2),
        answers: Kind::Bool,
        closed: false,
        strict: false,
        spec: "among(record, records): whether the record is one of those to which a path from the document leads, such as Resources.DiagnosticReport.result.Observation",
        examples: &[("among(ZZZ-1, ZZZ-1)", "x", "false")],
        call: |run, frame, args| Val::Bool(run.is_among(frame, args[0], args[1])),
    },
    Function {
        name: "length",
        args: (1, 1),
        answers: Kind::Integer,
        closed: true,
        strict: false,
        spec: "length(x): how many characters; 0 for absent",
        examples: &[("length(ZZZ-1)", "19700101", "8"), ("length(ZZZ-1)", "", "0")],
        call: |run, frame, args| {
            let text = run.text_of(frame, args[0]);
            Val::Integer(i64::try_from(text.map_or(0, |text| text.chars().count())).unwrap_or(i64::MAX))
        },
    },
    Function {
        name: "text",
        args: (1, 1),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "text(x): the first leaf as text, escape sequences replaced",
        examples: &[("text(ZZZ-1)", "a\\T\\b", "a&b"), ("text(ZZZ-1)", "a^b", "a")],
        call: |run, frame, args| run.text_of(frame, args[0]).map_or(Val::Absent, Val::Text),
    },
    Function {
        name: "join",
        args: (2, MANY),
        answers: Kind::Text,
        closed: true,
        strict: false,
        spec: "join(separator, x..): every repetition of each that is not empty, parted by the separator",
        examples: &[
            ("join(' ', ZZZ-1.2, ZZZ-1.1)", "TEST^JANE", "JANE TEST"),
            ("join(', ', ZZZ-1)", "a~~b", "a, b"),
            ("join(' ', ZZZ-1)", "", ""),
        ],
        call: |run, frame, args| {
            let separator = run.text_of(frame, args[0]).unwrap_or_default();
            run.join(frame, &separator, &args[1..])
        },
    },
    Function {
        name: "lines",
        args: (1, MANY),
        answers: Kind::Text,
        closed: true,
        strict: false,
        spec: "lines(x..): every repetition of each on a line of its own; of segments' fields, of every such segment",
        examples: &[("lines(ZZZ-1)", "a~b", "a\nb")],
        call: |run, frame, args| run.join(frame, "\n", args),
    },
    Function {
        name: "date",
        args: (1, 1),
        answers: Kind::Date,
        closed: true,
        strict: true,
        spec: "date(x): a FHIR date, as precise as the value, the time of day left out",
        examples: &[
            ("date(ZZZ-1)", "19700131", "1970-01-31"),
            ("date(ZZZ-1)", "1970", "1970"),
            ("date(ZZZ-1)", "x", ""),
        ],
        call: |run, frame, args| {
            run.time(frame, args[0], |text, _| {
                Ts::parse(text)
                    .map(|ts| (ts.to_date(), ts.precision() > schemas::hl7v2::time::Precision::Day))
            })
        },
    },
    Function {
        name: "datetime",
        args: (1, 1),
        answers: Kind::DateTime,
        closed: true,
        strict: true,
        spec: "datetime(x): a FHIR dateTime, as precise as the value; its own offset, else MSH-7's, else the sender's zone",
        examples: &[
            ("datetime(ZZZ-1)", "20240131", "2024-01-31"),
            ("datetime(ZZZ-1)", "20240131083000+0100", "2024-01-31T08:30:00+01:00"),
            ("datetime(ZZZ-1)", "202401310830", "2024-01-31T08:30:00Z"),
        ],
        call: |run, frame, args| {
            run.time(frame, args[0], |text, zone| Ts::parse(text).map(|ts| (ts.to_date_time(zone), false)))
        },
    },
    Function {
        name: "instant",
        args: (1, 1),
        answers: Kind::Instant,
        closed: true,
        strict: true,
        spec: "instant(x): a FHIR instant; a value without a time of day cannot be read as one",
        examples: &[
            ("instant(ZZZ-1)", "20240131083000+0100", "2024-01-31T08:30:00+01:00"),
            ("instant(ZZZ-1)", "20240131", ""),
        ],
        call: |run, frame, args| {
            run.time(frame, args[0], |text, zone| {
                Ts::parse(text).and_then(|ts| Ok((ts.to_instant(zone)?, false)))
            })
        },
    },
    Function {
        name: "hl7_time",
        args: (1, 1),
        answers: Kind::Hl7Time,
        closed: true,
        strict: true,
        spec: "hl7_time(x): a FHIR date, dateTime, instant or time as HL7 v2 writes it, as precise as it is",
        examples: &[
            ("hl7_time(ZZZ-1)", "2024-01-31", "20240131"),
            ("hl7_time(ZZZ-1)", "2024-01-31T08:30:00.5+01:00", "20240131083000.5+0100"),
            ("hl7_time(ZZZ-1)", "08:30:00", "083000"),
            ("hl7_time(ZZZ-1)", "2024-01-31T08:30:00.123456Z", "20240131083000.1234+0000"),
            ("hl7_time(ZZZ-1)", "2024-02-31", ""),
            ("hl7_time(ZZZ-1)", "yesterday", ""),
        ],
        call: |run, frame, args| {
            run.reading(frame, args[0], "a FHIR date or time", |text| hl7_time(text).map(Cow::Owned))
        },
    },
    Function {
        name: "y_n",
        args: (1, 1),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "y_n(x): Y for true and N for false, table 0136",
        examples: &[("y_n(ZZZ-1)", "true", "Y"), ("y_n(ZZZ-1)", "false", "N"), ("y_n(ZZZ-1)", "perhaps", "")],
        call: |run, frame, args| {
            run.reading(frame, args[0], "true or false", |text| match text.trim() {
                "true" => Some("Y".into()),
                "false" => Some("N".into()),
                _ => None,
            })
        },
    },
    Function {
        name: "assigner",
        args: (2, 2),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "assigner(uri, n): of the URI of an assigner the parts of an HD: 1 its name by the registry or as its sender wrote it, 2 its universal id, 3 the type of that",
        examples: &[
            ("assigner(ZZZ-1, 1)", "urn:oid:1.9", "REGISTERED"),
            ("assigner(ZZZ-1, 2)", "urn:oid:1.9", "1.9"),
            ("assigner(ZZZ-1, 3)", "urn:oid:1.9", "ISO"),
            ("assigner(ZZZ-1, 1)", "urn:pons:sender:test:LAB%20A", "LAB A"),
            ("assigner(ZZZ-1, 2)", "urn:pons:sender:test:LAB", ""),
            ("assigner(ZZZ-1, 2)", "urn:pons:sender:test", ""),
            ("assigner(ZZZ-1, 2)", "http://test.example/x", "http://test.example/x"),
            ("assigner(ZZZ-1, 3)", "http://test.example/x", "URI"),
            ("assigner(ZZZ-1, 1)", "http://test.example/x", ""),
        ],
        call: |run, frame, args| {
            let part = run.eval(frame, args[1]);
            let registered = run.text_of(frame, args[0]).and_then(|uri| run.registered_as(&uri));
            run.change(frame, args[0], |uri| {
                match part {
                    Val::Integer(1) => {
                        registered.map(str::to_owned).or_else(|| crate::identity::assigner(uri))
                    }
                    Val::Integer(2) => universal_id(uri).map(|(id, _)| id.to_owned()),
                    _ => universal_id(uri).map(|(_, kind)| kind.to_owned()),
                }
                .unwrap_or_default()
            })
        },
    },
    Function {
        name: "v2_system",
        args: (1, 1),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "v2_system(uri): what table 0396 calls a code system, such as LN or HL70001; by the sender's registry, else the name that its sender wrote, else its OID or the URI",
        examples: &[
            ("v2_system(ZZZ-1)", "http://loinc.org", "LN"),
            ("v2_system(ZZZ-1)", "http://terminology.hl7.org/CodeSystem/v2-0203", "HL70203"),
            ("v2_system(ZZZ-1)", "urn:oid:1.9", "REGISTERED"),
            ("v2_system(ZZZ-1)", "urn:oid:1.2.3", "1.2.3"),
            ("v2_system(ZZZ-1)", "urn:pons:sender:test:L", "L"),
            ("v2_system(ZZZ-1)", "http://test.example/codes", "http://test.example/codes"),
        ],
        call: |run, frame, args| {
            let registered = run.text_of(frame, args[0]).and_then(|uri| run.registered_as(&uri));
            run.change(frame, args[0], |uri| match registered {
                Some(name) => name.to_owned(),
                None => v2_system(uri.trim()),
            })
        },
    },
    Function {
        name: "epoch",
        args: (1, 2),
        answers: Kind::Instant,
        closed: true,
        strict: true,
        spec: "epoch(x) or epoch(x, 'ms'): seconds, or milliseconds, since 1970 as a FHIR instant",
        examples: &[
            ("epoch(ZZZ-1)", "1706689800", "2024-01-31T08:30:00Z"),
            ("epoch(ZZZ-1)", "1706689800.25", "2024-01-31T08:30:00.25Z"),
            ("epoch(ZZZ-1, 'ms')", "1706689800250", "2024-01-31T08:30:00.25Z"),
            ("epoch(ZZZ-1)", "1706689800250", ""),
            ("epoch(ZZZ-1)", "now", ""),
        ],
        call: |run, frame, args| {
            let scale = match args.get(1).and_then(|unit| run.text_of(frame, *unit)).as_deref() {
                Some("ms") => 3,
                _ => 0,
            };
            let expected = "seconds or milliseconds since 1970";
            run.reading(frame, args[0], expected, |text| since_1970(text.trim(), scale).map(Cow::Owned))
        },
    },
    Function {
        name: "time",
        args: (1, 1),
        answers: Kind::Time,
        closed: true,
        strict: true,
        spec: "time(x): a FHIR time of day",
        examples: &[("time(ZZZ-1)", "0830", "08:30:00"), ("time(ZZZ-1)", "25", "")],
        call: |run, frame, args| {
            run.time(frame, args[0], |text, _| Tm::parse(text).map(|tm| (tm.to_time(), false)))
        },
    },
    Function {
        name: "decimal",
        args: (1, 1),
        answers: Kind::Decimal,
        closed: true,
        strict: true,
        spec: "decimal(x): a number with every digit kept",
        examples: &[
            ("decimal(ZZZ-1)", "13.20", "13.20"),
            ("decimal(ZZZ-1)", "+5", "5"),
            ("decimal(ZZZ-1)", ">5", ""),
        ],
        call: |run, frame, args| run.reading(frame, args[0], "expected a number", crate::json::number),
    },
    Function {
        name: "integer",
        args: (1, 1),
        answers: Kind::Integer,
        closed: true,
        strict: true,
        spec: "integer(x): a whole number",
        examples: &[
            ("integer(ZZZ-1)", "05", "5"),
            ("integer(ZZZ-1)", "5.5", ""),
            ("integer(ZZZ-1)", "-2", "-2"),
        ],
        call: |run, frame, args| {
            run.reading(frame, args[0], "expected a whole number", |text| {
                text.trim().parse::<i32>().ok().map(|n| n.to_string().into())
            })
        },
    },
    Function {
        name: "yes_no",
        args: (1, 1),
        answers: Kind::Bool,
        closed: true,
        strict: true,
        spec: "yes_no(x): table 0136, Y is true and N is false; anything else cannot be read",
        examples: &[
            ("yes_no(ZZZ-1)", "Y", "true"),
            ("yes_no(ZZZ-1)", "N", "false"),
            ("yes_no(ZZZ-1)", "U", ""),
        ],
        call: |run, frame, args| match run.eval(frame, args[0]) {
            Val::Absent => Val::Absent,
            Val::Null => Val::Null,
            value => match run.text(value).as_deref().map(str::trim) {
                Some("Y" | "y" | "1" | "true") => Val::Bool(true),
                Some("N" | "n" | "0" | "false") => Val::Bool(false),
                Some(_) => Val::Unreadable("expected Y or N".into()),
                None => Val::Absent,
            },
        },
    },
    Function {
        name: "upper",
        args: (1, 1),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "upper(x): in capitals",
        examples: &[("upper(ZZZ-1)", "aé", "AÉ")],
        call: |run, frame, args| run.change(frame, args[0], |text| text.to_uppercase()),
    },
    Function {
        name: "lower",
        args: (1, 1),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "lower(x): in small letters",
        examples: &[("lower(ZZZ-1)", "AÉ", "aé")],
        call: |run, frame, args| run.change(frame, args[0], |text| text.to_lowercase()),
    },
    Function {
        name: "before",
        args: (2, 2),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "before(x, separator): what stands before the separator; all of it if there is none",
        examples: &[("before(ZZZ-1, ':')", "1:2", "1"), ("before(ZZZ-1, ':')", "12", "12")],
        call: |run, frame, args| {
            let separator = run.text_of(frame, args[1]).unwrap_or_default();
            run.change(frame, args[0], |text| {
                text.split_once(&*separator).map_or(text, |(before, _)| before).to_owned()
            })
        },
    },
    Function {
        name: "after",
        args: (2, 2),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "after(x, separator): what stands after the separator; absent if there is none",
        examples: &[("after(ZZZ-1, ':')", "1:2", "2"), ("after(ZZZ-1, ':')", "12", "")],
        call: |run, frame, args| {
            let separator = run.text_of(frame, args[1]).unwrap_or_default();
            run.change(frame, args[0], |text| {
                text.split_once(&*separator).map_or("", |(_, after)| after).to_owned()
            })
        },
    },
    Function {
        name: "starts_with",
        args: (2, 2),
        answers: Kind::Bool,
        closed: true,
        strict: false,
        spec: "starts_with(x, prefix): whether the text begins so",
        examples: &[("starts_with(ZZZ-1, 'ab')", "abc", "true"), ("starts_with(ZZZ-1, 'ab')", "", "false")],
        call: |run, frame, args| {
            let prefix = run.text_of(frame, args[1]).unwrap_or_default();
            Val::Bool(run.text_of(frame, args[0]).is_some_and(|text| text.starts_with(&*prefix)))
        },
    },
    Function {
        name: "contains",
        args: (2, 2),
        answers: Kind::Bool,
        closed: true,
        strict: false,
        spec: "contains(x, part): whether the part stands in the text",
        examples: &[("contains(ZZZ-1, 'b')", "abc", "true"), ("contains(ZZZ-1, 'd')", "abc", "false")],
        call: |run, frame, args| {
            let part = run.text_of(frame, args[1]).unwrap_or_default();
            Val::Bool(run.text_of(frame, args[0]).is_some_and(|text| text.contains(&*part)))
        },
    },
    Function {
        name: "is_number",
        args: (1, 1),
        answers: Kind::Bool,
        closed: true,
        strict: false,
        spec: "is_number(x): whether decimal(x) can read it",
        examples: &[("is_number(ZZZ-1)", "1.5", "true"), ("is_number(ZZZ-1)", "1,5", "false")],
        call: |run, frame, args| {
            Val::Bool(run.text_of(frame, args[0]).is_some_and(|text| crate::json::number(&text).is_some()))
        },
    },
    Function {
        name: "has_comparator",
        args: (1, 1),
        answers: Kind::Bool,
        closed: true,
        strict: false,
        spec: "has_comparator(x): whether it is a number after <, <=, > or >=",
        examples: &[("has_comparator(ZZZ-1)", ">100", "true"), ("has_comparator(ZZZ-1)", "100", "false")],
        call: |run, frame, args| {
            Val::Bool(run.text_of(frame, args[0]).is_some_and(|text| compared(&text).is_some()))
        },
    },
    Function {
        name: "comparator",
        args: (1, 1),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "comparator(x): the <, <=, > or >= before a number",
        examples: &[("comparator(ZZZ-1)", ">= 100", ">="), ("comparator(ZZZ-1)", "100", "")],
        call: |run, frame, args| {
            run.change(frame, args[0], |text| {
                compared(text).map_or("", |(comparator, _)| comparator).to_owned()
            })
        },
    },
    Function {
        name: "number",
        args: (1, 1),
        answers: Kind::Decimal,
        closed: true,
        strict: true,
        spec: "number(x): the number, with or without a comparator before it",
        examples: &[
            ("number(ZZZ-1)", ">= 100.0", "100.0"),
            ("number(ZZZ-1)", "7", "7"),
            ("number(ZZZ-1)", "high", ""),
        ],
        call: |run, frame, args| {
            run.reading(frame, args[0], "expected a number, with or without a comparator", |text| {
                let number = compared(text).map_or(text, |(_, number)| number);
                crate::json::number(number)
            })
        },
    },
    Function {
        name: "system",
        args: (1, 3),
        answers: Kind::Text,
        closed: true,
        strict: false,
        spec: "system(hd), system(hd, other hd) or system(namespace, universal id, its type): the URI of an assigner, by the \
               sender's registry, else by its universal id, else in the sender's scope",
        examples: &[
            ("system(ZZZ-1)", "LAB^1.2.3.4^ISO", "urn:oid:1.2.3.4"),
            ("system(ZZZ-1)", "LAB^23.2^ISO", "urn:pons:sender:test:LAB"),
            ("system(ZZZ-1)", "LAB", "urn:pons:sender:test:LAB"),
            ("system(ZZZ-1)", "REGISTERED", "urn:oid:1.9"),
            ("system(ZZZ-1.1, ZZZ-1.2, ZZZ-1.3)", "LAB^http://test.example/x^URI", "http://test.example/x"),
            ("system(ZZZ-1)", "", ""),
        ],
        call: |run, frame, args| run.system(frame, args),
    },
    Function {
        name: "registered",
        args: (1, 1),
        answers: Kind::Bool,
        closed: true,
        strict: false,
        spec: "registered(hd): whether the sender's registry knows the assigner",
        examples: &[("registered(ZZZ-1)", "REGISTERED", "true"), ("registered(ZZZ-1)", "LAB", "false")],
        call: |run, frame, args| {
            let name = run.part_text(frame, args[0], 1);
            Val::Bool(name.is_some_and(|name| run.registered(&name).is_some()))
        },
    },
    Function {
        name: "coding_system",
        args: (1, 2),
        answers: Kind::Text,
        closed: true,
        strict: false,
        spec: "coding_system(name) or coding_system(name, oid): the URI of a code system that HL7 v2 names in table 0396, such \
               as LN or HL70001; else of the OID, else in the sender's scope",
        examples: &[
            ("coding_system(ZZZ-1)", "LN", "http://loinc.org"),
            ("coding_system(ZZZ-1)", "HL70001", "http://terminology.hl7.org/CodeSystem/v2-0001"),
            ("coding_system(ZZZ-1)", "2.16.840.1.113883.6.1", "urn:oid:2.16.840.1.113883.6.1"),
            ("coding_system(ZZZ-1)", "L", "urn:pons:sender:test:L"),
            ("coding_system(ZZZ-1.1, ZZZ-1.2)", "L^1.2.3.4", "urn:oid:1.2.3.4"),
            ("coding_system(ZZZ-1)", "", ""),
        ],
        call: |run, frame, args| {
            let name = run.text_of(frame, args[0]);
            let oid = args.get(1).and_then(|arg| run.text_of(frame, *arg));
            run.coding_system(name.as_deref(), oid.as_deref())
        },
    },
    Function {
        name: "table_system",
        args: (2, 2),
        answers: Kind::Text,
        closed: true,
        strict: false,
        spec: "table_system(table, code): the URI of a table of HL7 v2, such as HL70002, if HL7 lists the code there in any version \
               (or lists none at all), else the table in the sender's scope: a site's own code is none of HL7's",
        examples: &[
            ("table_system('HL70002', ZZZ-1)", "M", "http://terminology.hl7.org/CodeSystem/v2-0002"),
            ("table_system('HL70002', ZZZ-1)", "Married", "urn:pons:sender:test:HL70002"),
            ("table_system('HL70132', ZZZ-1)", "4711", "http://terminology.hl7.org/CodeSystem/v2-0132"),
            ("table_system(ZZZ-9, ZZZ-1)", "M", ""),
        ],
        call: |run, frame, args| {
            let table = run.text_of(frame, args[0]);
            let code = run.text_of(frame, args[1]);
            run.table_system(table.as_deref(), code.as_deref(), true)
        },
    },
    Function {
        name: "is_uri",
        args: (1, 1),
        answers: Kind::Bool,
        closed: true,
        strict: false,
        spec: "is_uri(x): whether uri(x) can read it",
        examples: &[("is_uri(ZZZ-1)", "1.2.3.4", "true"), ("is_uri(ZZZ-1)", "9.8", "false")],
        call: |run, frame, args| {
            let text = run.text_of(frame, args[0]);
            Val::Bool(text.is_some_and(|text| universal(text.trim(), "").is_some()))
        },
    },
    Function {
        name: "uri",
        args: (1, 1),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "uri(x): an OID or UUID as urn:oid: or urn:uuid:, a URI as it is; anything else cannot be read",
        examples: &[
            ("uri(ZZZ-1)", "1.2.3.4", "urn:oid:1.2.3.4"),
            ("uri(ZZZ-1)", "http://test.example", "http://test.example"),
        ],
        call: |run, frame, args| {
            run.reading(frame, args[0], "expected an OID, a UUID or a URI", |text| {
                universal(text.trim(), "").map(Cow::Owned)
            })
        },
    },
    Function {
        name: "verified",
        args: (2, 3),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "verified(code, name, oid): the code; an issue tells where the system, named as for coding_system, is LOINC and the \
               code is not formed like one of it, or its check digit is wrong",
        examples: &[
            ("verified(ZZZ-1.1, ZZZ-1.3)", "718-7^^LN", "718-7"),
            ("verified(ZZZ-1.1, ZZZ-1.3)", "718-1^^LN", "718-1"),
            ("verified(ZZZ-1.1, ZZZ-1.3)", "HB^^L", "HB"),
        ],
        call: |run, frame, args| run.verified(frame, args),
    },
    Function {
        name: "ucum",
        args: (1, 1),
        answers: Kind::Text,
        closed: true,
        strict: true,
        spec: "ucum(x): a unit of UCUM as it is written; anything else cannot be read",
        examples: &[("ucum(ZZZ-1)", "10*3/uL", "10*3/uL"), ("ucum(ZZZ-1)", "x10E3/uL", "")],
        call: |run, frame, args| {
            run.reading(frame, args[0], "expected a unit of UCUM", |text| {
                terminology::is_unit(text.trim()).then_some(Cow::Borrowed(text))
            })
        },
    },
    Function {
        name: "is_ucum",
        args: (1, 1),
        answers: Kind::Bool,
        closed: true,
        strict: false,
        spec: "is_ucum(x): whether it is a unit of UCUM",
        examples: &[("is_ucum(ZZZ-1)", "mm[Hg]", "true"), ("is_ucum(ZZZ-1)", "mmHg", "false")],
        call: |run, frame, args| {
            let text = run.text_of(frame, args[0]);
            Val::Bool(text.is_some_and(|text| terminology::is_unit(text.trim())))
        },
    },
    Function {
        name: "unit_system",
        args: (1, 1),
        answers: Kind::Text,
        closed: true,
        strict: false,
        spec: "unit_system(cwe): http://unitsofmeasure.org if component 3 says UCUM, else the coding system it names",
        examples: &[
            ("unit_system(ZZZ-1)", "mg/dL^^UCUM", "http://unitsofmeasure.org"),
            ("unit_system(ZZZ-1)", "mg/dL", ""),
        ],
        call: |run, frame, args| {
            let name = run.part_text(frame, args[0], 3);
            run.coding_system(name.as_deref(), None)
        },
    },
    Function {
        name: "trigger",
        args: (0, 0),
        answers: Kind::Text,
        closed: true,
        strict: false,
        spec: "trigger(): the trigger event, MSH-9.2, else EVN-1",
        examples: &[("trigger()", "", "A01")],
        call: |run, _, _| Val::Text(run.trigger()),
    },
    Function {
        name: "message_code",
        args: (0, 0),
        answers: Kind::Text,
        closed: true,
        strict: false,
        spec: "message_code(): the message type, MSH-9.1",
        examples: &[("message_code()", "", "ADT")],
        call: |run, _, _| run.message_code().map_or(Val::Absent, Val::Text),
    },
    Function {
        name: "version",
        args: (0, 0),
        answers: Kind::Text,
        closed: true,
        strict: false,
        spec: "version(): the version of HL7 v2, MSH-12.1",
        examples: &[("version()", "", "2.5.1")],
        call: |run, _, _| run.version().map_or(Val::Absent, Val::Text),
    },
    Function {
        name: "ordinal",
        args: (0, 0),
        answers: Kind::Integer,
        closed: false,
        strict: false,
        spec: "ordinal(): in an identity, how many earlier siblings in the same group have the same key",
        examples: &[],
        call: |_, _, _| Val::Absent,
    },
    Function {
        name: "index",
        args: (0, 0),
        answers: Kind::Integer,
        closed: false,
        strict: false,
        spec: "index(): the number of the current item among the repetitions, from 1; SCH-27[index()] is the one that goes with it",
        examples: &[],
        call: |run, frame, _| run.index(frame),
    },
    Function {
        name: "later",
        args: (3, 3),
        answers: Kind::DateTime,
        closed: true,
        strict: true,
        spec: "later(datetime, amount, unit): so much later; the unit is s, min, h, d, wk, mo or a, or the ISO+ word for it",
        examples: &[
            ("later(datetime(ZZZ-1.1), ZZZ-1.2, ZZZ-1.3)", "202401310830^45^min", "2024-01-31T09:15:00Z"),
            (
                "later(datetime(ZZZ-1.1), ZZZ-1.2, ZZZ-1.3)",
                "20240131083000+0100^2^HR",
                "2024-01-31T10:30:00+01:00",
            ),
            ("later(datetime(ZZZ-1.1), ZZZ-1.2, ZZZ-1.3)", "20240131^1^mo", "2024-02-29"),
            ("later(datetime(ZZZ-1.1), ZZZ-1.2, ZZZ-1.3)", "20240131^5^min", ""),
            ("later(datetime(ZZZ-1.1), ZZZ-1.2, ZZZ-1.3)", "20240131083000^x^min", ""),
        ],
        call: |run, frame, args| {
            let (Some(amount), Some(unit)) = (run.text_of(frame, args[1]), run.text_of(frame, args[2]))
            else {
                return Val::Absent;
            };
            run.reading(
                frame,
                args[0],
                "expected a time, a whole number and a unit of time that fit together",
                |text| later(text, &amount, &unit).map(Cow::Owned),
            )
        },
    },
    Function {
        name: "minutes",
        args: (2, 2),
        answers: Kind::Integer,
        closed: true,
        strict: true,
        spec: "minutes(amount, unit): a length of time in whole minutes; the units are those of later()",
        examples: &[
            ("minutes(ZZZ-1.1, ZZZ-1.2)", "1.5^h", "90"),
            ("minutes(ZZZ-1.1, ZZZ-1.2)", "2^D", "2880"),
            ("minutes(ZZZ-1.1, ZZZ-1.2)", "30", ""),
            ("minutes(ZZZ-1.1, ZZZ-1.2)", "30^furlong", ""),
        ],
        call: |run, frame, args| {
            let Some(unit) = run.text_of(frame, args[1]) else { return Val::Absent };
            run.reading(frame, args[0], "expected a number and a unit of time", |text| {
                minutes(text, &unit).map(Cow::Owned)
            })
        },
    },
    Function {
        name: "chain_key",
        args: (0, 0),
        answers: Kind::Text,
        closed: false,
        strict: false,
        spec: "chain_key(): the values of this level of a chain and of all coarser ones",
        examples: &[],
        call: |run, frame, _| run.chain_key(frame),
    },
    Function {
        name: "is_finest",
        args: (0, 0),
        answers: Kind::Bool,
        closed: false,
        strict: false,
        spec: "is_finest(): whether this is the last level of a chain that has a value",
        examples: &[],
        call: |_, frame, _| Val::Bool(frame.level.is_some_and(|level| level.finest)),
    },
    Function {
        name: "base64",
        args: (2, 2),
        answers: Kind::Base64,
        closed: true,
        strict: true,
        spec: "base64(data, encoding): data in base64; the encoding is that of ED.4: Base64 passes, Hex is converted, A and \
               anything else is text",
        examples: &[
            ("base64(ZZZ-1.1, ZZZ-1.2)", "VEVTVA==^Base64", "VEVTVA=="),
            ("base64(ZZZ-1.1, ZZZ-1.2)", "VEVT VB==^Base64", "VEVTVA=="),
            ("base64(ZZZ-1.1, ZZZ-1.2)", "VEVTVA=^Base64", ""),
            ("base64(ZZZ-1.1, ZZZ-1.2)", "54455354^Hex", "VEVTVA=="),
            ("base64(ZZZ-1.1, ZZZ-1.2)", "5445535^Hex", ""),
            ("base64(ZZZ-1.1, ZZZ-1.2)", "TEST^A", "VEVTVA=="),
        ],
        call: |run, frame, args| {
            let encoding = run.text_of(frame, args[1]).unwrap_or_default().to_ascii_lowercase();
            run.reading(frame, args[0], "expected data in the encoding that ED-4 names", |text| {
                in_base64(text, &encoding)
            })
        },
    },
    Function {
        name: "narrative",
        args: (1, 1),
        answers: Kind::Xhtml,
        closed: true,
        strict: true,
        spec: "narrative(x): a text as XHTML, as FHIR's narratives are written; what looks like markup stays text",
        examples: &[(
            "narrative(ZZZ-1)",
            "TEST <b>",
            "<div xmlns=\"http://www.w3.org/1999/xhtml\">TEST &lt;b&gt;</div>",
        )],
        call: |run, frame, args| {
            run.reading(frame, args[0], "expected text", |text| Some(Cow::Owned(crate::json::xhtml(text))))
        },
    },
];
