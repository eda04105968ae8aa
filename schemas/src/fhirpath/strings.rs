//! The functions of texts. Places in a text count characters, from 0.

use super::Fault;
use super::collections::Call;
use super::evaluate::{Frame, Run, integer, one, text};
use super::functions::Function;
use super::item::{Item, Items, Value};
use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXLOWER_PERMISSIVE};
use regex::{Regex, RegexBuilder};
use std::borrow::Cow;

/// The largest compiled pattern, in bytes.
const PATTERN_MAX: usize = 1 << 20;

/// Reads a pattern: `.` takes line ends too; `matchesFull` must take the whole text.
pub(super) fn pattern(pattern: &str, function: Function) -> Result<Regex, String> {
    let whole = format!(r"\A(?:{pattern})\z");
    let pattern = if function == Function::MatchesFull { &whole } else { pattern };
    let built = RegexBuilder::new(pattern).dot_matches_new_line(true).size_limit(PATTERN_MAX).build();
    built.map_err(|_| "a pattern that does not read, or is too large".to_owned())
}

/// Runs one of the functions.
pub(super) fn call<'a>(
    run: &mut Run<'_, 'a>,
    call: &Call<'a>,
    input: &Items<'a>,
    frame: &Frame<'a>,
) -> Result<Items<'a>, Fault> {
    if call.function == Function::Join {
        return join(run, call, input, frame);
    }
    let Some(of) = text(input, call.at)? else { return Ok(Items::new()) };
    run.step(call.at, of.len() / 64)?;
    match call.function {
        Function::Length => return Ok(one(count(&of))),
        Function::Upper => return run.made(call.at, of.to_uppercase()),
        Function::Lower => return run.made(call.at, of.to_lowercase()),
        Function::Trim => return run.made(call.at, of.trim().to_owned()),
        Function::ToChars => {
            run.step(call.at, of.len())?;
            return Ok(of.chars().map(|c| Item::from(c.to_string())).collect());
        }
        Function::Substring => return substring(run, call, &of, frame),
        _ => {}
    }
    let argument = run.argument(call, 0, frame)?;
    let Some(argument) = text(&argument, call.at)? else { return Ok(Items::new()) };
    match call.function {
        Function::Contains => Ok(one(of.contains(&*argument))),
        Function::StartsWith => Ok(one(of.starts_with(&*argument))),
        Function::EndsWith => Ok(one(of.ends_with(&*argument))),
        Function::IndexOf => Ok(one(of.find(&*argument).map_or(-1, |at| count(&of[..at])))),
        Function::LastIndexOf => Ok(one(of.rfind(&*argument).map_or(-1, |at| count(&of[..at])))),
        Function::Split => {
            run.step(call.at, of.len())?;
            if argument.is_empty() {
                return Ok(of.chars().map(|c| Item::from(c.to_string())).collect());
            }
            Ok(of.split(&*argument).map(|part| Item::from(part.to_owned())).collect())
        }
        Function::Encode => run.made(call.at, encode(&of, &argument).ok_or_else(|| encoding(call))?),
        Function::Decode => match decode(&of, &argument).ok_or_else(|| encoding(call))? {
            Some(found) => run.made(call.at, found),
            None => Ok(Items::new()),
        },
        Function::Escape => run.made(call.at, escape(&of, &argument).ok_or_else(|| escaping(call))?),
        Function::Unescape => run.made(call.at, unescape(&of, &argument).ok_or_else(|| escaping(call))?),
        Function::Replace => {
            let with = run.argument(call, 1, frame)?;
            let Some(with) = text(&with, call.at)? else { return Ok(Items::new()) };
            bound(run, call, &of, with.len())?;
            run.made(call.at, of.replace(&*argument, &with))
        }
        Function::ReplaceMatches => {
            let with = run.argument(call, 1, frame)?;
            let Some(with) = text(&with, call.at)? else { return Ok(Items::new()) };
            if argument.is_empty() {
                return Ok(one(Value::String(of)));
            }
            bound(run, call, &of, with.len())?;
            let pattern = compiled(run, call, &argument)?;
            run.made(call.at, pattern.replace_all(&of, groups(&with)).into_owned())
        }
        _ => Ok(one(compiled(run, call, &argument)?.is_match(&of))),
    }
}

/// What a replacement may come to counts before it is made.
fn bound(run: &mut Run<'_, '_>, call: &Call<'_>, of: &str, with: usize) -> Result<(), Fault> {
    run.step(call.at, of.len().saturating_add(1).saturating_mul(with) / 64)
}

/// A pattern that stands in the expression was read with it; another is read now, which is much work.
fn compiled<'c>(run: &mut Run<'_, '_>, call: &Call<'c>, argument: &str) -> Result<Cow<'c, Regex>, Fault> {
    if call.pattern.is_none() {
        run.step(call.at, 1_000 + 10 * argument.len())?;
    }
    match call.pattern {
        Some(pattern) => Ok(Cow::Borrowed(pattern)),
        None => pattern(argument, call.function).map(Cow::Owned).map_err(|why| call.fault(&why)),
    }
}

/// What stands for a group is its number: `$1x` is the first group and an x.
fn groups(with: &str) -> String {
    let mut found = String::with_capacity(with.len() + 8);
    let mut rest = with;
    while let Some(at) = rest.find('$') {
        found.push_str(&rest[..at]);
        let digits = rest[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        match digits {
            0 => found.push('$'),
            _ => {
                found.push_str("${");
                found.push_str(&rest[at + 1..at + 1 + digits]);
                found.push('}');
            }
        }
        rest = &rest[at + 1 + digits..];
    }
    found.push_str(rest);
    found
}

fn count(text: &str) -> i64 {
    i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
}

fn join<'a>(
    run: &mut Run<'_, 'a>,
    call: &Call<'a>,
    input: &Items<'a>,
    frame: &Frame<'a>,
) -> Result<Items<'a>, Fault> {
    let between = run.argument(call, 0, frame)?;
    let between = text(&between, call.at)?.unwrap_or_default();
    // A primitive with extensions alone has no text to join.
    let valued = input.iter().filter(|item| item.value().is_some());
    let parts: Option<Vec<_>> = valued.map(Item::text).collect();
    let parts = parts.ok_or_else(|| call.fault("wants texts"))?;
    let length: usize = parts.iter().map(|part| part.len() + between.len()).sum();
    run.step(call.at, length / 64)?;
    run.made(call.at, parts.join(&between))
}

fn substring<'a>(
    run: &mut Run<'_, 'a>,
    call: &Call<'a>,
    of: &str,
    frame: &Frame<'a>,
) -> Result<Items<'a>, Fault> {
    let start = run.argument(call, 0, frame)?;
    let Some(start) = integer(&start, call.at)?.and_then(|start| usize::try_from(start).ok()) else {
        return Ok(Items::new());
    };
    let length = run.argument(call, 1, frame)?;
    let length = integer(&length, call.at)?.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(0));
    let mut rest = of.chars().skip(start).peekable();
    if rest.peek().is_none() {
        return Ok(Items::new());
    }
    let found = rest.take(length).collect();
    run.made(call.at, found)
}

fn encoding(call: &Call<'_>) -> Fault {
    call.fault("wants 'hex', 'base64' or 'urlbase64'")
}

fn encode(of: &str, how: &str) -> Option<String> {
    match how {
        "hex" => Some(HEXLOWER.encode(of.as_bytes())),
        "base64" => Some(BASE64.encode(of.as_bytes())),
        "urlbase64" => Some(BASE64URL.encode(of.as_bytes())),
        _ => None,
    }
}

/// `Some(None)` if the text is not of that encoding.
fn decode(of: &str, how: &str) -> Option<Option<String>> {
    let bytes = match how {
        "hex" => HEXLOWER_PERMISSIVE.decode(of.as_bytes()),
        "base64" => BASE64.decode(of.as_bytes()),
        "urlbase64" => BASE64URL.decode(of.as_bytes()),
        _ => return None,
    };
    Some(bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()))
}

fn escaping(call: &Call<'_>) -> Fault {
    call.fault("wants 'html' or 'json'")
}

/// Characters of HTML with what stands for them; `&` is first, as the others are written with it.
const HTML: [(&str, &str); 5] =
    [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&quot;"), ("'", "&#39;")];

fn escape(of: &str, how: &str) -> Option<String> {
    match how {
        "html" => {
            Some(HTML.iter().fold(of.to_owned(), |text, (plain, escaped)| text.replace(plain, escaped)))
        }
        "json" => {
            let quoted = serde_json::to_string(of).ok()?;
            Some(quoted[1..quoted.len() - 1].to_owned())
        }
        _ => None,
    }
}

fn unescape(of: &str, how: &str) -> Option<String> {
    match how {
        "html" => {
            Some(HTML.iter().rev().fold(of.to_owned(), |text, (plain, escaped)| text.replace(escaped, plain)))
        }
        "json" => Some(unescape_json(of)),
        _ => None,
    }
}

/// Takes the escapes of JSON out; what is none stays as it is.
fn unescape_json(of: &str) -> String {
    let mut found = String::with_capacity(of.len());
    let mut rest = of;
    while let Some(at) = rest.find('\\') {
        found.push_str(&rest[..at]);
        // A pair of surrogates is one character.
        let length = match rest.as_bytes().get(at + 1) {
            Some(b'u') if rest.get(at + 6..at + 8) == Some("\\u") => 12,
            Some(b'u') => 6,
            _ => 2,
        };
        let read = |length: usize| {
            let escape = rest.get(at..at + length)?;
            Some((serde_json::from_str::<String>(&format!("\"{escape}\"")).ok()?, length))
        };
        let (text, length) = read(length).or_else(|| read(6)).unwrap_or_else(|| ("\\".to_owned(), 1));
        found.push_str(&text);
        rest = &rest[at + length..];
    }
    found.push_str(rest);
    found
}
