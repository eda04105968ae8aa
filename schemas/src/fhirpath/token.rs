//! The text of an expression as words and signs.

use super::Fault;
use super::item::{Value, decimal};
use super::moment::Moment;

/// A word or a sign, with where it begins.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) at: usize,
    pub(super) what: Lexeme,
}

/// What a word or a sign is.
#[derive(Clone, Debug)]
pub(super) enum Lexeme {
    /// A name or a keyword.
    Word(String),
    /// A name in backquotes, which is never a keyword.
    Quoted(String),
    /// `'text'`
    Text(String),
    /// A number, a date or a time.
    Value(Value<'static>),
    /// `$this`, `$index`, `$total`
    Dollar(&'static str),
    /// `%name`
    Variable(String),
    /// `<=`, `(`, ...
    Sign(&'static str),
}

/// Signs, longer ones first.
const SIGNS: [&str; 23] = [
    "<=", ">=", "!=", "!~", "(", ")", "[", "]", "{", "}", ".", ",", "+", "-", "*", "/", "&", "|", "<", ">",
    "=", "~", ";",
];

const DOLLARS: [&str; 3] = ["this", "index", "total"];

/// Reads the words and signs of an expression.
pub(super) fn read(text: &str) -> Result<Vec<Token>, Fault> {
    let mut tokens = Vec::with_capacity(text.len() / 4);
    let mut at = 0;
    loop {
        at = skip_blank(text, at)?;
        let rest = &text[at..];
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        let (what, length) = match first {
            '\'' => quoted(text, at, '\'').map(|(text, length)| (Lexeme::Text(text), length))?,
            '`' => quoted(text, at, '`').map(|(text, length)| (Lexeme::Quoted(text), length))?,
            '"' => quoted(text, at, '"').map(|(text, length)| (Lexeme::Quoted(text), length))?,
            '@' => moment(text, at)?,
            '$' => dollar(text, at)?,
            '%' => variable(text, at)?,
            '0'..='9' => number(text, at)?,
            c if c.is_ascii_alphabetic() || c == '_' => {
                let length = word_length(rest);
                (Lexeme::Word(rest[..length].to_owned()), length)
            }
            _ => {
                let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
                let sign =
                    sign.ok_or_else(|| Fault::new(at, "a sign that FHIRPath does not have".to_owned()))?;
                (Lexeme::Sign(sign), sign.len())
            }
        };
        tokens.push(Token { at, what });
        at += length;
    }
}

fn skip_blank(text: &str, mut at: usize) -> Result<usize, Fault> {
    loop {
        let rest = &text[at..];
        let blank = rest.len() - rest.trim_start().len();
        at += blank;
        let rest = &rest[blank..];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let end = comment.find("*/");
            at += 4 + end.ok_or_else(|| Fault::new(at, "a comment that does not end".to_owned()))?;
        } else {
            return Ok(at);
        }
    }
}

fn word_length(text: &str) -> usize {
    text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count()
}

/// A text between quotes, and its length with them.
fn quoted(text: &str, at: usize, quote: char) -> Result<(String, usize), Fault> {
    let mut found = String::new();
    let mut rest = text[at + 1..].char_indices();
    while let Some((index, c)) = rest.next() {
        if c == quote {
            return Ok((found, index + 2));
        }
        if c != '\\' {
            found.push(c);
            continue;
        }
        let here = at + 1 + index;
        match rest.next().map(|(_, c)| c) {
            Some(c @ ('\'' | '"' | '`' | '\\' | '/')) => found.push(c),
            Some('r') => found.push('\r'),
            Some('n') => found.push('\n'),
            Some('t') => found.push('\t'),
            Some('f') => found.push('\u{c}'),
            Some('u') => {
                let code = text.get(here + 2..here + 6).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let c = code.and_then(char::from_u32);
                found
                    .push(c.ok_or_else(|| Fault::new(here, "\\u wants four hexadecimal digits".to_owned()))?);
                rest.nth(3);
            }
            _ => return Err(Fault::new(here, "an escape that FHIRPath does not have".to_owned())),
        }
    }
    Err(Fault::new(at, "a text that does not end".to_owned()))
}

fn number(text: &str, at: usize) -> Result<(Lexeme, usize), Fault> {
    let rest = &text[at..];
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(rest);
    let fraction = rest[whole..].strip_prefix('.').map_or(0, digits);
    let length = if fraction == 0 { whole } else { whole + 1 + fraction };
    let written = &rest[..length];
    let value = if fraction == 0 {
        written.parse().ok().map(Value::Integer)
    } else {
        decimal(written).map(Value::Decimal)
    };
    let value = value.ok_or_else(|| Fault::new(at, "a number of too many digits".to_owned()))?;
    Ok((Lexeme::Value(value), length))
}

fn moment(text: &str, at: usize) -> Result<(Lexeme, usize), Fault> {
    let rest = &text[at + 1..];
    let time = rest.starts_with('T');
    // Digits, and what stands between digits: a point or a minus may also be what comes next.
    let mut length = usize::from(time);
    let bytes = rest.as_bytes();
    let digit = |index: usize| bytes.get(index).is_some_and(u8::is_ascii_digit);
    let mut timed = time;
    loop {
        match bytes.get(length) {
            Some(byte) if byte.is_ascii_digit() => length += 1,
            Some(b'-' | b':' | b'.') if digit(length + 1) => length += 1,
            Some(b'+') if timed && !time && digit(length + 1) => length += 1,
            Some(b'T') if !timed => {
                timed = true;
                length += 1;
            }
            Some(b'Z') if timed && !time => {
                length += 1;
                break;
            }
            _ => break,
        }
    }
    let written = &rest[..length];
    let value = match (time, timed) {
        (true, _) => Moment::time(&written[1..]),
        (_, true) => Moment::date_time(written),
        (_, false) => Moment::date(written),
    };
    let value = value.ok_or_else(|| Fault::new(at, "not a date or a time".to_owned()))?;
    Ok((Lexeme::Value(Value::Moment(value)), length + 1))
}

fn dollar(text: &str, at: usize) -> Result<(Lexeme, usize), Fault> {
    let word = &text[at + 1..][..word_length(&text[at + 1..])];
    let name = DOLLARS.iter().find(|name| **name == word);
    let name = name.ok_or_else(|| Fault::new(at, "expected $this, $index or $total".to_owned()))?;
    Ok((Lexeme::Dollar(name), word.len() + 1))
}

fn variable(text: &str, at: usize) -> Result<(Lexeme, usize), Fault> {
    let rest = &text[at + 1..];
    let (name, length) = match rest.chars().next() {
        Some(quote @ ('`' | '\'' | '"')) => quoted(text, at + 1, quote)?,
        _ => {
            // R4 writes `%vs-observation-status` without quotes; elsewhere a minus is one.
            let mut length = word_length(rest);
            if matches!(&rest[..length], "vs" | "ext") {
                length = rest
                    .bytes()
                    .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
                    .count();
            }
            (rest[..length].to_owned(), length)
        }
    };
    if name.is_empty() {
        return Err(Fault::new(at, "a name belongs after %".to_owned()));
    }
    Ok((Lexeme::Variable(name), length + 1))
}
