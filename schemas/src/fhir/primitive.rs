//! The formats of FHIR's primitive types, checked by hand: no regular expression on the path.

use serde_json::Value;

/// What is wrong with the JSON of a primitive; `None` if it is right. The answer never holds the value.
///
/// # Source
/// FHIR R4, data types, the table of primitive types with its regular expressions; a date must exist in the calendar.
pub(super) fn fault(type_name: &str, value: &Value) -> Option<&'static str> {
    match type_name {
        "boolean" => wrong(value.is_boolean(), "must be true or false, without quotes"),
        "integer" => integer(value, i64::from(i32::MIN), "must be a whole number of 32 bits, without quotes"),
        "unsignedInt" => integer(value, 0, "must be a whole number from 0 on, without quotes"),
        "positiveInt" => integer(value, 1, "must be a whole number from 1 on, without quotes"),
        "decimal" => wrong(value.is_number(), "must be a number, without quotes"),
        _ => match value.as_str() {
            None => Some("must be a string"),
            Some("") => Some("must not be empty"),
            Some(text) => text_fault(type_name, text),
        },
    }
}

/// Whether the JSON of a narrative is a `div` of XHTML with nothing but formatting in it.
pub fn is_xhtml(value: &Value) -> bool {
    fault("xhtml", value).is_none()
}

fn wrong(right: bool, fault: &'static str) -> Option<&'static str> {
    (!right).then_some(fault)
}

fn integer(value: &Value, least: i64, fault: &'static str) -> Option<&'static str> {
    wrong(value.as_i64().is_some_and(|n| (least..=i64::from(i32::MAX)).contains(&n)), fault)
}

fn text_fault(type_name: &str, text: &str) -> Option<&'static str> {
    match type_name {
        "code" => wrong(is_code(text), "must be a code: no blanks at its ends, single ones inside"),
        "id" => wrong(is_id(text), "must be an id: up to 64 letters, digits, - and ."),
        "date" => wrong(is_date(text), "must be a date: YYYY, YYYY-MM or YYYY-MM-DD"),
        "dateTime" => wrong(is_date_time(text), "must be a date or a date and time with its offset"),
        "instant" => {
            wrong(is_instant(text), "must be a date and time to the second or finer, with its offset")
        }
        "time" => wrong(is_time(text), "must be a time: hh:mm:ss"),
        "uri" | "url" | "canonical" => wrong(
            is_uri(text),
            "must be a URI: no blanks, a right UUID after urn:uuid:, a right OID after urn:oid:",
        ),
        "oid" => wrong(text.strip_prefix("urn:oid:").is_some_and(is_oid), "must be urn:oid: and an OID"),
        "uuid" => wrong(
            text.strip_prefix("urn:uuid:").is_some_and(is_uuid),
            "must be urn:uuid: and a UUID in lower case",
        ),
        "base64Binary" => wrong(is_base64(text), "must be base64"),
        "xhtml" => wrong(
            is_narrative(text),
            "must be a div of XHTML with some text, and nothing but formatting in it",
        ),
        _ => None,
    }
}

fn is_code(text: &str) -> bool {
    text.split(char::is_whitespace).all(|word| !word.is_empty())
}

/// Whether a text is a logical id of a resource.
pub(super) fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

fn is_uri(text: &str) -> bool {
    if let Some(uuid) = text.strip_prefix("urn:uuid:") {
        return is_uuid(&uuid.to_ascii_lowercase());
    }
    if let Some(oid) = text.strip_prefix("urn:oid:") {
        return is_oid(oid);
    }
    !text.contains(char::is_whitespace)
}

/// Whether a text is an OID, such as `2.16.840.1.113883`: the first arc 0, 1 or 2, and no leading zeros.
pub fn is_oid(text: &str) -> bool {
    let mut arcs = text.split('.');
    let first = arcs.next().unwrap_or_default();
    let mut rest = arcs.peekable();
    matches!(first, "0" | "1" | "2")
        && rest.peek().is_some()
        && rest.all(|arc| is_digits(arc) && (arc == "0" || !arc.starts_with('0')))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        })
}

fn is_base64(text: &str) -> bool {
    let mut count = 0_usize;
    let right = text.bytes().filter(|b| !b.is_ascii_whitespace()).all(|b| {
        count += 1;
        b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=')
    });
    right && count > 0 && count.is_multiple_of(4)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// A number of a fixed count of digits.
fn number(text: &str, digits: usize) -> Option<u32> {
    (text.len() == digits && is_digits(text)).then(|| text.parse().ok()).flatten()
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let year = parts.next().and_then(|part| number(part, 4)).filter(|year| *year > 0);
    let month = parts.next().map(|part| number(part, 2).filter(|month| (1..=12).contains(month)));
    let day = parts.next().map(|part| number(part, 2));
    match (year, month, day, parts.next()) {
        (Some(_), None | Some(Some(_)), None, None) => true,
        (Some(year), Some(Some(month)), Some(Some(day)), None) => (1..=days_in(year, month)).contains(&day),
        _ => false,
    }
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

fn is_date_time(text: &str) -> bool {
    if text.contains('T') { is_instant(text) } else { is_date(text) }
}

fn is_instant(text: &str) -> bool {
    let Some((date, time)) = text.split_once('T') else { return false };
    let Some(at) = time.find(['Z', '+', '-']) else { return false };
    let (time, offset) = time.split_at(at);
    date.len() == 10 && is_date(date) && is_time(time) && is_offset(offset)
}

fn is_offset(text: &str) -> bool {
    if text == "Z" {
        return true;
    }
    let Some((hours, minutes)) = text.get(1..).and_then(|text| text.split_once(':')) else { return false };
    match (number(hours, 2), number(minutes, 2)) {
        (Some(hours), Some(minutes)) => minutes < 60 && (hours < 14 || (hours == 14 && minutes == 0)),
        _ => false,
    }
}

fn is_time(text: &str) -> bool {
    let (whole, fraction) =
        text.split_once('.').map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
    let mut parts = whole.split(':').map(|part| number(part, 2));
    let (hour, minute, second, more) = (parts.next(), parts.next(), parts.next(), parts.next());
    let below = |part: Option<Option<u32>>, limit| part.flatten().is_some_and(|n| n < limit);
    below(hour, 24)
        && below(minute, 60)
        && below(second, 61)
        && more.is_none()
        && fraction.is_none_or(is_digits)
}

/// Elements that a narrative may have: the basic formatting of XHTML 1.0 without forms, scripts and frames (txt-1).
const TAGS: [&str; 52] = [
    "a",
    "abbr",
    "acronym",
    "address",
    "b",
    "big",
    "blockquote",
    "br",
    "caption",
    "cite",
    "code",
    "col",
    "colgroup",
    "dd",
    "dfn",
    "div",
    "dl",
    "dt",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "i",
    "img",
    "kbd",
    "li",
    "ol",
    "p",
    "pre",
    "q",
    "samp",
    "small",
    "span",
    "strong",
    "style",
    "sub",
    "sup",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "tr",
    "tt",
    "u",
    "ul",
    "var",
];

/// Whether a narrative is one `div` with text or an image, balanced, of allowed elements, without scripts or handlers.
fn is_narrative(text: &str) -> bool {
    let text = text.trim();
    let (mut open, mut rest, mut content, mut first) = (Vec::new(), text, false, true);
    while let Some(at) = rest.find('<') {
        if !rest[..at].trim().is_empty() {
            if open.is_empty() {
                return false;
            }
            content = true;
        }
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            let Some(end) = comment.find("-->") else { return false };
            rest = &comment[end + 3..];
            continue;
        }
        let Some(end) = rest.find('>') else { return false };
        let (tag, after) = (&rest[1..end], &rest[end + 1..]);
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name.trim_end()) {
                return false;
            }
            continue;
        }
        let empty = tag.ends_with('/');
        let tag = tag.trim_end_matches('/');
        let (name, attributes) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
        if !TAGS.contains(&name) || !are_harmless(attributes) || (open.is_empty() && !first) {
            return false;
        }
        if first && (name != "div" || !attributes.contains("http://www.w3.org/1999/xhtml")) {
            return false;
        }
        first = false;
        content |= name == "img";
        if !empty {
            open.push(name);
        }
    }
    open.is_empty() && !first && content && rest.trim().is_empty()
}

/// No event handlers, no script links.
fn are_harmless(attributes: &str) -> bool {
    let lower = attributes.to_ascii_lowercase();
    let handler = |word: &str| word.trim_start().starts_with("on") && word.contains('=');
    !lower.contains("javascript:") && !lower.split([' ', '\t', '\n', '"', '\'']).any(handler)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn formats_are_those_of_the_standard() {
        let check = |of: &str, right: &[Value], wrong: &[Value]| {
            right.iter().for_each(|v| assert_eq!(fault(of, v), None, "{of} {v}"));
            wrong.iter().for_each(|v| assert!(fault(of, v).is_some(), "{of} {v}"));
        };
        check("boolean", &[json!(true)], &[json!("true"), json!(1), json!(null)]);
        check(
            "integer",
            &[json!(0), json!(-5), json!(2_147_483_647)],
            &[json!(2_147_483_648_i64), json!(1.5), json!("1")],
        );
        check("positiveInt", &[json!(1)], &[json!(0), json!(-1)]);
        check("unsignedInt", &[json!(0)], &[json!(-1)]);
        check("decimal", &[json!(1.50), json!(-3), json!(1e3)], &[json!("1.5"), json!([1])]);
        check("string", &[json!("a"), json!(" a\n")], &[json!(""), json!(1), json!({})]);
        check("code", &[json!("a"), json!("a b")], &[json!(" a"), json!("a "), json!("a  b"), json!("")]);
        check(
            "id",
            &[json!("a-1.B"), json!("x".repeat(64))],
            &[json!("p_1"), json!("x".repeat(65)), json!("a b")],
        );
        check(
            "date",
            &[json!("1980"), json!("1980-02"), json!("1980-02-29"), json!("2000-02-29")],
            &[
                json!("1980-02-30"),
                json!("1900-02-29"),
                json!("1980-13"),
                json!("0000"),
                json!("80"),
                json!("1980-2-1"),
                json!("1980-01-01T00:00:00Z"),
                json!("1980-00-01"),
                json!("1980-01-00"),
                json!("19800101"),
            ],
        );
        check(
            "dateTime",
            &[
                json!("1980"),
                json!("2020-01-31T23:59:59Z"),
                json!("2020-01-31T23:59:60.123+14:00"),
                json!("2020-01-31T00:00:00-05:30"),
            ],
            &[
                json!("2020-01-31T23:59:59"),
                json!("2020-01-31T23:59Z"),
                json!("2020-01T00:00:00Z"),
                json!("2020-01-31T24:00:00Z"),
                json!("2020-01-31T00:00:00+15:00"),
                json!("2020-01-31T00:00:00+0500"),
                json!("2020-01-31 00:00:00Z"),
                json!("2020-01-31T00:00:00.Z"),
            ],
        );
        check("instant", &[json!("2020-01-31T23:59:59.001Z")], &[json!("2020-01-31"), json!("2020")]);
        check(
            "time",
            &[json!("23:59:59"), json!("00:00:00.5")],
            &[json!("23:59"), json!("24:00:00"), json!("1:00:00"), json!("23:59:59Z")],
        );
        check(
            "uri",
            &[
                json!("http://example.org/a"),
                json!("urn:oid:1.2.3"),
                json!("urn:uuid:0b4a7f0e-1111-4abc-8def-0123456789ab"),
                json!("x"),
            ],
            &[
                json!("a b"),
                json!("urn:oid:abc"),
                json!("urn:oid:1.02"),
                json!("urn:oid:3.1"),
                json!("urn:uuid:1"),
                json!("urn:oid:1"),
            ],
        );
        check("oid", &[json!("urn:oid:2.16.840.1")], &[json!("2.16.840.1")]);
        check(
            "uuid",
            &[json!("urn:uuid:0b4a7f0e-1111-4abc-8def-0123456789ab")],
            &[json!("urn:uuid:0B4A7F0E-1111-4abc-8def-0123456789ab")],
        );
        check(
            "base64Binary",
            &[json!("VEVTVA=="), json!("VEVT\nVEVT")],
            &[json!("VEV"), json!("VE*T"), json!(" ")],
        );
    }

    #[test]
    fn an_oid_begins_with_0_1_or_2() {
        assert!(["1.2.3", "2.16.840.1.113883", "0.0"].into_iter().all(is_oid));
        assert!(!["23.2", "1", "1.02", "1..2", "1.2.", "", ".1", "1.a"].into_iter().any(is_oid));
    }

    #[test]
    fn a_narrative_is_formatted_text_and_no_more() {
        let div = |inner: &str| json!(format!("<div xmlns=\"http://www.w3.org/1999/xhtml\">{inner}</div>"));
        for right in [
            "TEST",
            "<p>a</p><br/>",
            "<table class=\"on\"><tr><td>1</td></tr></table>",
            "a <!-- b --> c",
            "a &lt; b",
        ] {
            assert_eq!(fault("xhtml", &div(right)), None, "{right}");
        }
        for wrong in [
            "<script>alert(1)</script>",
            " ",
            "<p>a",
            "<p>a</b>",
            "<a href=\"javascript:x()\">a</a>",
            "<p onclick=\"x()\">a</p>",
            "<iframe/>a",
        ] {
            assert!(fault("xhtml", &div(wrong)).is_some(), "{wrong}");
        }
        for wrong in ["TEST", "<div>TEST</div>", "<p xmlns=\"http://www.w3.org/1999/xhtml\">a</p>"] {
            assert!(fault("xhtml", &json!(wrong)).is_some(), "{wrong}");
        }
    }
}
