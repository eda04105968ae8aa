//! Writing JSON text straight into a buffer. Every value of a message goes through here, so none can break the JSON.

/// The primitives of FHIR and of HL7 v2, by the way their values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Primitive {
    /// `string`, `markdown`, and the texts of HL7 v2: trimmed, never empty, no control characters but tab and line ends.
    Text,
    /// `code`: no leading, trailing or double blanks.
    Code,
    /// `uri`, `url`, `canonical`, `oid`, `uuid`: no blanks at all.
    Uri,
    /// `id`: letters, digits, `-` and `.`, 64 at most.
    Id,
    Boolean,
    Integer,
    PositiveInteger,
    UnsignedInteger,
    Decimal,
    Date,
    DateTime,
    Instant,
    Time,
    Base64,
    /// `xhtml`, as [`xhtml`] writes it.
    Xhtml,
    /// `DTM` and its kin: digits, a fraction and an offset.
    Hl7Time,
}

impl Primitive {
    /// The primitive of a type of FHIR or of HL7 v2, if it is one.
    pub(crate) fn of(name: &str) -> Option<Primitive> {
        Some(match name {
            "string" | "markdown" => Primitive::Text,
            "code" => Primitive::Code,
            "uri" | "url" | "canonical" | "oid" | "uuid" => Primitive::Uri,
            "id" => Primitive::Id,
            "boolean" => Primitive::Boolean,
            "integer" => Primitive::Integer,
            "positiveInt" => Primitive::PositiveInteger,
            "unsignedInt" => Primitive::UnsignedInteger,
            "decimal" => Primitive::Decimal,
            "date" => Primitive::Date,
            "dateTime" => Primitive::DateTime,
            "instant" => Primitive::Instant,
            "time" => Primitive::Time,
            "base64Binary" => Primitive::Base64,
            "xhtml" => Primitive::Xhtml,
            "ST" | "TX" | "FT" | "ID" | "IS" | "GTS" | "TN" | "varies" => Primitive::Text,
            "NM" => Primitive::Decimal,
            "SI" => Primitive::UnsignedInteger,
            "DT" | "TM" | "TS" | "DTM" => Primitive::Hl7Time,
            _ => return None,
        })
    }

    /// Whether its JSON stands without quotes.
    pub(crate) fn bare(self) -> bool {
        matches!(
            self,
            Primitive::Boolean
                | Primitive::Integer
                | Primitive::PositiveInteger
                | Primitive::UnsignedInteger
                | Primitive::Decimal
        )
    }
}

/// Writes the text of a primitive as its JSON. `false` if the text is not a value of that type: nothing is written then.
pub(crate) fn primitive(out: &mut String, kind: Primitive, text: &str) -> bool {
    if matches!(kind, Primitive::Text | Primitive::Uri) && is_plain(text, kind == Primitive::Text) {
        out.reserve(text.len() + 2);
        out.push('"');
        out.push_str(text);
        out.push('"');
        return true;
    }
    let text = text.trim();
    if text.is_empty() {
        return false;
    }
    let fits = match kind {
        Primitive::Text => text.chars().any(|c| !c.is_control() && !c.is_whitespace()),
        Primitive::Code => {
            let mut words = text.split_whitespace();
            let tidy = text.split(' ').all(|word| !word.is_empty()) && !text.chars().any(char::is_control);
            if tidy {
                true
            } else {
                let mut code = String::with_capacity(text.len());
                if let Some(word) = words.next() {
                    code.push_str(word);
                }
                for word in words {
                    code.push(' ');
                    code.push_str(word);
                }
                code.retain(|c| !c.is_control());
                if !code.is_empty() {
                    string(out, &code);
                }
                return !code.is_empty();
            }
        }
        Primitive::Uri => !text.contains(|c: char| c.is_whitespace() || c.is_control()),
        Primitive::Id => {
            text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        }
        Primitive::Boolean => matches!(text, "true" | "false"),
        Primitive::Integer => text.parse::<i32>().is_ok(),
        Primitive::PositiveInteger => text.parse::<i32>().is_ok_and(|n| n > 0),
        Primitive::UnsignedInteger => text.parse::<i32>().is_ok_and(|n| n >= 0),
        Primitive::Decimal => number(text).is_some(),
        Primitive::Date | Primitive::DateTime | Primitive::Instant | Primitive::Time => {
            text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b':' | b'.' | b'+' | b'T' | b'Z'))
        }
        Primitive::Base64 => {
            text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
        }
        Primitive::Xhtml => text.starts_with(DIV),
        Primitive::Hl7Time => text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.')),
    };
    if fits {
        if kind == Primitive::Boolean {
            out.push_str(text);
        } else if kind.bare() {
            out.push_str(&number(text).expect("it was read as a number above"));
        } else if kind == Primitive::Text && text.chars().any(|c| c.is_whitespace() && !c.is_ascii()) {
            // FHIR's strings know blank, tab and line ends; a no-break space becomes a blank.
            let plain: String =
                text.chars().map(|c| if c.is_whitespace() && !c.is_ascii() { ' ' } else { c }).collect();
            string(out, plain.trim());
        } else {
            string(out, text);
        }
    }
    fits
}

/// Whether a text is ASCII without control characters, quotes and backslashes, and without blanks at its ends, as nearly
/// every value is. It looks at every byte without a branch, so that it takes many at a time.
fn is_plain(text: &str, blanks: bool) -> bool {
    let bytes = text.as_bytes();
    let least = if blanks { b' ' } else { b'!' };
    let plain = |byte: u8| (byte >= least) & (byte < 0x7f) & (byte != b'"') & (byte != b'\\');
    match bytes {
        [] => false,
        [first, .., last] if *first == b' ' || *last == b' ' => false,
        [b' '] => false,
        _ => bytes.iter().fold(true, |all, byte| all & plain(*byte)),
    }
}

/// Whether a text holds nothing but blanks.
pub(crate) fn is_blank(text: &str) -> bool {
    // Nearly every value begins with something to see.
    !text.as_bytes().first().is_some_and(|byte| byte.is_ascii_graphic()) && text.trim().is_empty()
}

/// A decimal as JSON writes it, with every digit kept: `+5`, `.5`, `5.` and `007` are brought into JSON's form.
/// `None` if the text is no number.
pub(crate) fn number(text: &str) -> Option<std::borrow::Cow<'_, str>> {
    let text = text.trim();
    if let Some((number, exponent)) = text.split_once(['e', 'E']) {
        return shifted(number, exponent.parse().ok()?).map(std::borrow::Cow::Owned);
    }
    let (minus, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let (whole, fraction) =
        digits.split_once('.').map_or((digits, None), |(whole, fraction)| (whole, Some(fraction)));
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let empty = whole.is_empty() && fraction.is_none_or(str::is_empty);
    if empty || !all_digits(whole) || !fraction.is_none_or(all_digits) {
        return None;
    }
    let stripped = whole.trim_start_matches('0');
    let whole_json = if stripped.is_empty() { "0" } else { stripped };
    let fraction = fraction.filter(|fraction| !fraction.is_empty());
    if !text.starts_with('+') && whole_json == whole && fraction.is_some() == text.contains('.') {
        return Some(text.into());
    }
    let mut json = String::with_capacity(text.len() + 1);
    if minus {
        json.push('-');
    }
    json.push_str(whole_json);
    if let Some(fraction) = fraction {
        json.push('.');
        json.push_str(fraction);
    }
    Some(json.into())
}

/// A number so many places further, written out: `1.5` and 3 are `1500`.
fn shifted(text: &str, places: i32) -> Option<String> {
    let plain = number(text)?;
    let (sign, digits) = plain.strip_prefix('-').map_or(("", &*plain), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if places.unsigned_abs() > 30 {
        return None;
    }
    let all = format!("{:0>31}{whole}{fraction}{:0>31}", "", "");
    let point = usize::try_from(31 + i32::try_from(whole.len()).ok()? + places).ok()?;
    let (before, after) = all.split_at_checked(point)?;
    // What was said behind the point stays; the zeros that were put there for the shift do not.
    let said = i32::try_from(fraction.len()).ok()? - places;
    let after = &after[..usize::try_from(said.max(0)).ok()?];
    let before = before.trim_start_matches('0');
    let before = if before.is_empty() { "0" } else { before };
    Some(if after.is_empty() { format!("{sign}{before}") } else { format!("{sign}{before}.{after}") })
}

/// How a narrative begins.
const DIV: &str = "<div xmlns=\"http://www.w3.org/1999/xhtml\">";

/// A text as a narrative: what looks like markup stays text, and lines stay lines.
pub(crate) fn xhtml(text: &str) -> String {
    let mut out = String::from(DIV);
    for c in text.trim().chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("<br/>"),
            '\t' => out.push(' '),
            // XML knows neither control characters nor the two code points that are none.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out.push_str("</div>");
    out
}

/// Writes a JSON string with its quotes. Control characters that FHIR's strings do not have are left out.
pub(crate) fn string(out: &mut String, text: &str) {
    out.push('"');
    inner(out, text);
    out.push('"');
}

/// Writes the inside of a JSON string.
pub(crate) fn inner(out: &mut String, text: &str) {
    let bytes = text.as_bytes();
    let mut written = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[written..at]);
        written = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            // Control characters, vertical tab and form feed among them.
            _ => {}
        }
    }
    out.push_str(&text[written..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_keep_their_digits_and_take_the_form_of_json() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(number(text).as_deref(), expected, "{text}");
        for same in ["13.20", "0", "-4.50", "100", "0.5", "12345678901234567890.123"] {
            check(same, Some(same));
        }
        for (text, json) in
            [("+5", "5"), (".5", "0.5"), ("5.", "5"), ("007", "7"), ("-.5", "-0.5"), ("00", "0")]
        {
            check(text, Some(json));
        }
        for (text, json) in
            [("1e3", "1000"), ("1.5E+2", "150"), ("-2.50e-1", "-0.250"), ("12e-3", "0.012"), ("0e9", "0")]
        {
            check(text, Some(json));
        }
        for text in ["", ".", "-", "+-1", "1e", "e5", "1e99", "1e5e5", "1,5", "12 mg", ">100", "NaN", "٣"] {
            check(text, None);
        }
    }

    #[test]
    fn a_value_that_is_none_of_its_type_writes_nothing() {
        let check = |kind, text: &str, expected: &str| {
            let mut out = String::new();
            assert_eq!(primitive(&mut out, kind, text), !expected.is_empty(), "{text}");
            assert_eq!(out, expected, "{text}");
        };
        check(Primitive::Text, "  TEST \"x\" ", r#""TEST \"x\"""#);
        check(Primitive::Text, " \u{1} ", "");
        check(Primitive::Text, "a\u{a0}b\u{2028}", "\"a b\"");
        check(Primitive::Code, " a  b ", r#""a b""#);
        check(Primitive::Uri, "urn:oid:1.2", r#""urn:oid:1.2""#);
        check(Primitive::Uri, "not a uri", "");
        check(Primitive::PositiveInteger, "0", "");
        check(Primitive::Integer, "+05", "5");
        check(Primitive::Boolean, "Y", "");
        check(Primitive::Decimal, "13.20", "13.20");
    }

    proptest! {
        #[test]
        fn every_text_is_a_json_string_that_reads_back(text in any::<String>()) {
            let mut out = String::new();
            string(&mut out, &text);
            let kept: String = text.chars().filter(|c| *c >= ' ' || matches!(c, '\n' | '\r' | '\t')).collect();
            prop_assert_eq!(serde_json::from_str::<String>(&out).expect("JSON"), kept);
        }

        #[test]
        fn what_counts_as_a_number_is_one_in_json(text in "[-+]?[0-9]{0,4}\\.?[0-9]{0,4}") {
            if let Some(json) = number(&text) {
                prop_assert!(serde_json::from_str::<serde_json::Number>(&json).is_ok(), "{} -> {}", text, json);
            }
        }
    }
}
