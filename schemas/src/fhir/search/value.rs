//! What a condition asks for, by the kind of its parameter, and whether an element is that.

use super::super::definitions::r4;
use super::{Kind, Parameter, Refused, plain, unescaped};
use crate::fhirpath::{Item, Moment, Node, Value};
use jiff::Timestamp;
use rust_decimal::Decimal;
use serde_json::Value as Json;
use std::ops::Range;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// One value of a condition.
#[derive(Debug)]
pub(super) enum Wanted {
    Token {
        system: System,
        code: Option<String>,
    },
    Text {
        text: String,
        how: Match,
    },
    Uri {
        text: String,
        how: UriMatch,
    },
    Date {
        prefix: Prefix,
        span: Range<Timestamp>,
    },
    Number {
        prefix: Prefix,
        span: Range<Decimal>,
        exact: Decimal,
    },
    Quantity {
        prefix: Prefix,
        span: Range<Decimal>,
        exact: Decimal,
        unit: Option<(Option<String>, String)>,
    },
    Reference {
        of: Option<String>,
        id: String,
        targets: &'static [&'static str],
    },
    /// `:identifier`: the identifier in the reference, as a token.
    Identified {
        system: System,
        code: Option<String>,
    },
}

/// What is asked of the system of a token.
#[derive(Debug)]
pub(super) enum System {
    Any,
    /// `|code`
    None,
    Of(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// Case and accents do not count.
    Begins,
    Contains,
    Exact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UriMatch {
    Exact,
    Below,
    Above,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    Eq,
    Ne,
    Gt,
    Lt,
    Ge,
    Le,
    StartsAfter,
    EndsBefore,
    Approximately,
}

const PREFIXES: [(&str, Prefix); 9] = [
    ("eq", Prefix::Eq),
    ("ne", Prefix::Ne),
    ("gt", Prefix::Gt),
    ("lt", Prefix::Lt),
    ("ge", Prefix::Ge),
    ("le", Prefix::Le),
    ("sa", Prefix::StartsAfter),
    ("eb", Prefix::EndsBefore),
    ("ap", Prefix::Approximately),
];

fn prefixed(text: &str) -> (Prefix, &str) {
    let found = PREFIXES.iter().find_map(|(name, prefix)| Some((*prefix, text.strip_prefix(name)?)));
    found.unwrap_or((Prefix::Eq, text))
}

impl Prefix {
    /// Whether a span of values is what is asked for by one.
    fn holds<T: PartialOrd>(self, found: &Range<T>, wanted: &Range<T>) -> bool {
        let within = wanted.start <= found.start && found.end <= wanted.end;
        match self {
            Prefix::Eq => within,
            Prefix::Ne => !within,
            Prefix::Gt => found.end > wanted.end,
            Prefix::Lt => found.start < wanted.start,
            Prefix::Ge => found.end > wanted.end || within,
            Prefix::Le => found.start < wanted.start || within,
            Prefix::StartsAfter => found.start >= wanted.end,
            Prefix::EndsBefore => found.end <= wanted.start,
            Prefix::Approximately => found.start < wanted.end && wanted.start < found.end,
        }
    }
}

impl Wanted {
    pub(super) fn read(
        parameter: &'static Parameter,
        modifier: Option<&str>,
        text: &str,
    ) -> Result<Wanted, Refused> {
        let name = || parameter.code.to_owned();
        let wrong = |wanted| Refused::Value { name: name(), wanted };
        let refuse = |known: &str| {
            let modifier = modifier.unwrap_or_default().to_owned();
            Err(Refused::Modifier { name: name(), modifier, known: known.to_owned() })
        };
        if text.is_empty() {
            return Err(wrong("a value"));
        }
        match (parameter.kind, modifier) {
            (Kind::Token, None) => {
                let (system, code) = token(text);
                Ok(Wanted::Token { system, code })
            }
            (Kind::Token, Some(_)) => refuse("those taken are :not and :missing"),
            (Kind::String, how) => {
                let how = match how {
                    None => Match::Begins,
                    Some("contains") => Match::Contains,
                    Some("exact") => Match::Exact,
                    Some(_) => return refuse("those taken are :exact, :contains and :missing"),
                };
                let text = plain(text);
                let text = if how == Match::Exact { text } else { folded(&text) };
                if text.is_empty() {
                    return Err(wrong("a letter or a digit"));
                }
                Ok(Wanted::Text { text, how })
            }
            (Kind::Uri, how) => {
                let how = match how {
                    None => UriMatch::Exact,
                    Some("below") => UriMatch::Below,
                    Some("above") => UriMatch::Above,
                    Some(_) => return refuse("those taken are :below, :above and :missing"),
                };
                Ok(Wanted::Uri { text: plain(text), how })
            }
            (Kind::Date, None) => {
                let (prefix, text) = prefixed(text);
                let moment = Moment::of_text(text).and_then(|moment| moment.span());
                let span = moment.ok_or_else(|| wrong("a date or a time, such as 2026-03-01"))?;
                Ok(Wanted::Date { prefix, span })
            }
            (Kind::Number, None) => {
                let (prefix, text) = prefixed(text);
                let (exact, span) = number(text).ok_or_else(|| wrong("a number"))?;
                let span = about(prefix, exact, span).ok_or_else(|| wrong("a smaller number"))?;
                Ok(Wanted::Number { prefix, span, exact })
            }
            (Kind::Quantity, None) => {
                let parts = unescaped(text, '|');
                let (prefix, value) = prefixed(parts.first().map_or("", String::as_str));
                let (exact, span) = number(value).ok_or_else(|| wrong("a number, or number|system|code"))?;
                let unit = match parts.get(1..).unwrap_or_default() {
                    [] => None,
                    [system, code] if !code.is_empty() => {
                        Some((Some(plain(system)).filter(|system| !system.is_empty()), plain(code)))
                    }
                    _ => return Err(wrong("a number, or number|system|code")),
                };
                let span = about(prefix, exact, span).ok_or_else(|| wrong("a smaller number"))?;
                Ok(Wanted::Quantity { prefix, span, exact, unit })
            }
            (Kind::Reference, None) => {
                let text = plain(text);
                let (of, id) = target(&text);
                if id.is_empty() {
                    return Err(wrong("an id, Type/id or a URL"));
                }
                let (of, id) = (of.map(str::to_owned), id.to_owned());
                Ok(Wanted::Reference { of, id, targets: &parameter.targets })
            }
            (Kind::Reference, Some("identifier")) => {
                let (system, code) = token(text);
                Ok(Wanted::Identified { system, code })
            }
            (Kind::Reference, Some(of)) if r4().is_resource(of) => {
                let text = plain(text);
                let id = text.strip_prefix(of).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&text);
                Ok(Wanted::Reference {
                    of: Some(of.to_owned()),
                    id: id.to_owned(),
                    targets: &parameter.targets,
                })
            }
            (Kind::Reference, Some(_)) => refuse("those taken are a resource type, :identifier and :missing"),
            (Kind::Date | Kind::Number | Kind::Quantity, Some(_)) => refuse("only :missing is taken"),
            (Kind::Composite | Kind::Special, _) => {
                Err(Refused::Kind { name: name(), kind: parameter.kind.name() })
            }
        }
    }

    /// Whether an element is what is asked for.
    pub(super) fn is(&self, item: &Item<'_>) -> bool {
        match self {
            Wanted::Token { system, code } => {
                tokens(item).iter().any(|found| is_token(system, code.as_deref(), found))
            }
            Wanted::Text { text, how } => texts(item).iter().any(|found| match how {
                Match::Exact => found == text,
                Match::Begins => folded(found).starts_with(text),
                Match::Contains => folded(found).contains(text),
            }),
            Wanted::Uri { text, how } => item.text().is_some_and(|found| match how {
                UriMatch::Exact => *found == **text,
                UriMatch::Below => is_below(&found, text),
                UriMatch::Above => is_below(text, &found),
            }),
            Wanted::Date { prefix, span } => spans(item).iter().any(|found| prefix.holds(found, span)),
            Wanted::Number { prefix, span, exact } => match item.value().as_deref() {
                Some(value) => value.number().is_some_and(|found| is_number(*prefix, found, span, *exact)),
                None => false,
            },
            Wanted::Quantity { prefix, span, exact, unit } => {
                let Some(json) = item.node().and_then(Node::json) else { return false };
                let value =
                    json.get("value").and_then(Json::as_number).and_then(|value| value.as_str().parse().ok());
                let text = |name| json.get(name).and_then(Json::as_str);
                let fits = unit.as_ref().is_none_or(|(system, code)| match system {
                    Some(system) => text("system") == Some(system) && text("code") == Some(code),
                    None => text("code") == Some(code) || text("unit") == Some(code),
                });
                fits && value.is_some_and(|found| is_number(*prefix, found, span, *exact))
            }
            Wanted::Reference { of, id, targets } => reference(item).is_some_and(|found| {
                let (found_of, found_id) = target(&found);
                let kind = |of: &str| of.rsplit('/').next().unwrap_or_default().to_owned();
                found_id == id
                    && match (of, found_of) {
                        // A relative reference is one to any server's resource of that type and id.
                        (Some(of), Some(found)) if of.contains('/') => *of == found,
                        (Some(of), Some(found)) => *of == kind(found),
                        (Some(_), None) => false,
                        (None, Some(found)) => targets.is_empty() || targets.contains(&kind(found).as_str()),
                        (None, None) => true,
                    }
            }),
            Wanted::Identified { system, code } => {
                let identifier = item.node().and_then(Node::json).and_then(|json| json.get("identifier"));
                identifier.is_some_and(|found| is_token(system, code.as_deref(), &pair(found, "value")))
            }
        }
    }
}

/// `code`, `system|code`, `|code`, `system|`
fn token(text: &str) -> (System, Option<String>) {
    let parts = unescaped(text, '|');
    let some = |text: &str| Some(plain(text)).filter(|text| !text.is_empty());
    match parts.as_slice() {
        [code] => (System::Any, some(code)),
        [system, code @ ..] => {
            let system = some(system).map_or(System::None, System::Of);
            (system, some(&code.join("|")))
        }
        [] => (System::Any, None),
    }
}

/// A system and a code of an element.
struct Found {
    system: Option<String>,
    code: Option<String>,
    /// Whether the element is a bare code, whose system its definition says.
    bare: bool,
}

fn pair(json: &Json, code: &str) -> Found {
    let text = |name| json.get(name).and_then(Json::as_str).map(str::to_owned);
    Found { system: text("system"), code: text(code), bare: false }
}

fn tokens(item: &Item<'_>) -> Vec<Found> {
    let node = item.node();
    match node.and_then(Node::type_def).map(|of| of.name) {
        Some("CodeableConcept") => {
            let codings =
                node.and_then(Node::json).and_then(|json| json.get("coding")).and_then(Json::as_array);
            codings.into_iter().flatten().map(|coding| pair(coding, "code")).collect()
        }
        Some("Coding") => node.and_then(Node::json).map(|json| pair(json, "code")).into_iter().collect(),
        Some("Identifier") => node.and_then(Node::json).map(|json| pair(json, "value")).into_iter().collect(),
        // A telephone has no system in the sense of a code.
        Some("ContactPoint") => node
            .and_then(Node::json)
            .map(|json| Found { system: None, ..pair(json, "value") })
            .into_iter()
            .collect(),
        _ => item
            .value()
            .map(|value| Found { system: None, code: Some(value.to_string()), bare: true })
            .into_iter()
            .collect(),
    }
}

fn is_token(system: &System, code: Option<&str>, found: &Found) -> bool {
    let code_fits = code.is_none_or(|code| found.code.as_deref() == Some(code));
    let system_fits = match system {
        System::Any => true,
        // A bare code has the system that its definition says.
        System::None => found.system.is_none() && !found.bare,
        System::Of(system) if found.bare => {
            found.code.as_deref().is_some_and(|code| r4().is_coded(system, code))
        }
        System::Of(system) => found.system.as_ref() == Some(system),
    };
    code_fits && system_fits
}

/// Parts of a name and of an address that are searched, and the text of anything else.
fn texts(item: &Item<'_>) -> Vec<String> {
    const NAME: [&str; 5] = ["text", "family", "given", "prefix", "suffix"];
    const ADDRESS: [&str; 7] = ["text", "line", "city", "district", "state", "country", "postalCode"];
    let node = item.node();
    let parts: &[&str] = match node.and_then(Node::type_def).map(|of| of.name) {
        Some("HumanName") => &NAME,
        Some("Address") => &ADDRESS,
        _ => return item.text().map(|text| text.into_owned()).into_iter().collect(),
    };
    let json = node.and_then(Node::json);
    let found = parts.iter().filter_map(|part| json?.get(*part)).flat_map(|found| match found {
        Json::Array(list) => list.iter().filter_map(Json::as_str).collect(),
        one => one.as_str().into_iter().collect::<Vec<_>>(),
    });
    found.map(str::to_owned).collect()
}

/// A text as it is searched: without case and accents.
fn folded(text: &str) -> String {
    text.nfd().filter(|c| !is_combining_mark(*c)).flat_map(char::to_lowercase).collect()
}

fn is_below(found: &str, of: &str) -> bool {
    found.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || of.ends_with('/'))
}

/// The spans of time that an element tells.
fn spans(item: &Item<'_>) -> Vec<Range<Timestamp>> {
    if let Some(Value::Moment(moment)) = item.value().as_deref() {
        return moment.span().into_iter().collect();
    }
    let node = item.node();
    let Some(json) = node.and_then(Node::json) else { return Vec::new() };
    let at = |name: &str| json.get(name).and_then(Json::as_str).and_then(Moment::of_text);
    match node.and_then(Node::type_def).map(|of| of.name) {
        Some("Period") => {
            let (start, end) = (at("start").and_then(|m| m.span()), at("end").and_then(|m| m.span()));
            if start.is_none() && end.is_none() {
                return Vec::new();
            }
            let start = start.map_or(Timestamp::MIN, |span| span.start);
            vec![start..end.map_or(Timestamp::MAX, |span| span.end)]
        }
        Some("Timing") => {
            // From the first to the last that it tells.
            let events = json.get("event").and_then(Json::as_array);
            let events = events.into_iter().flatten().filter_map(Json::as_str);
            let bounds = json.get("repeat").and_then(|repeat| repeat.get("boundsPeriod"));
            let bounds = ["start", "end"].into_iter().filter_map(|end| bounds?.get(end)?.as_str());
            let spans = events.chain(bounds).filter_map(Moment::of_text).filter_map(|moment| moment.span());
            let outer = spans.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
            outer.into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// A number, and what is written like it once it is rounded to its digits.
fn number(text: &str) -> Option<(Decimal, Range<Decimal>)> {
    let exact = Decimal::from_str_exact(text).ok().or_else(|| Decimal::from_scientific(text).ok())?;
    // Half of the last digit that was written: 100 is written to the one, 1e2 to the hundred.
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent = exponent.parse::<i32>().ok()?;
    let written =
        mantissa.split_once('.').map_or(0, |(_, fraction)| i32::try_from(fraction.len()).unwrap_or(i32::MAX));
    let half =
        Decimal::from_scientific(&format!("5e{}", exponent.checked_sub(written)?.checked_sub(1)?)).ok()?;
    Some((exact, exact.checked_sub(half)?..exact.checked_add(half)?))
}

/// `ap` asks for what is within a tenth.
fn about(prefix: Prefix, exact: Decimal, span: Range<Decimal>) -> Option<Range<Decimal>> {
    if prefix != Prefix::Approximately {
        return Some(span);
    }
    let tenth = exact.abs().checked_div(Decimal::TEN)?;
    Some(exact.checked_sub(tenth)?..exact.checked_add(tenth)?)
}

/// Equality is by the digits that were written; order is exact.
fn is_number(prefix: Prefix, found: Decimal, span: &Range<Decimal>, exact: Decimal) -> bool {
    match prefix {
        Prefix::Eq => span.contains(&found),
        Prefix::Ne => !span.contains(&found),
        Prefix::Gt | Prefix::StartsAfter => found > exact,
        Prefix::Lt | Prefix::EndsBefore => found < exact,
        Prefix::Ge => found >= exact,
        Prefix::Le => found <= exact,
        Prefix::Approximately => span.start <= found && found <= span.end,
    }
}

/// A reference as what stands before its id, and the id; the version is left out.
fn target(reference: &str) -> (Option<&str>, &str) {
    let text = reference.split_once("/_history/").map_or(reference, |(text, _)| text);
    let text = text.split_once('|').map_or(text, |(text, _)| text);
    match text.rsplit_once('/') {
        Some((of, id)) => (Some(of), id),
        None => (None, text),
    }
}

pub(super) fn reference(item: &Item<'_>) -> Option<String> {
    let node = item.node()?;
    match node.json()? {
        Json::String(text) => Some(text.clone()),
        json => json.get("reference")?.as_str().map(str::to_owned),
    }
}
