//! Values turned into values of another type: `toInteger()` and its like.

use super::functions::Target;
use super::item::{Item, Value, decimal};
use super::moment::{Kind, Moment};
use super::quantity::{Quantity, Unit};
use rust_decimal::Decimal;

/// Words that mean true, and words that mean false, in whatever case.
const BOOLEANS: [(&str, bool); 12] = [
    ("true", true),
    ("t", true),
    ("yes", true),
    ("y", true),
    ("1", true),
    ("1.0", true),
    ("false", false),
    ("f", false),
    ("no", false),
    ("n", false),
    ("0", false),
    ("0.0", false),
];

/// A value as one of another type; `None` if it has none. Only `toQuantity` takes a unit.
pub(super) fn to<'a>(target: Target, item: &Item<'a>, unit: Option<&str>) -> Option<Item<'a>> {
    let value = item.value()?;
    let found = match target {
        Target::Boolean => boolean(&value).map(Value::Boolean),
        Target::Integer => integer(&value).map(Value::Integer),
        Target::Decimal => match &*value {
            Value::Boolean(value) => Some(Decimal::from(u8::from(*value))),
            Value::String(text) if is_number(text) => decimal(text.strip_prefix('+').unwrap_or(text)),
            other => other.number(),
        }
        .map(Value::Decimal),
        Target::String => match &*value {
            Value::String(text) => Some(Value::String(text.clone())),
            Value::Type(_) => None,
            other => Some(Value::String(other.to_string().into())),
        },
        Target::Date => match &*value {
            Value::Moment(moment) if moment.kind() != Kind::Time => Some(moment.to_date()),
            Value::String(text) => {
                Moment::date(text).or_else(|| Moment::date_time(text).map(Moment::to_date))
            }
            _ => None,
        }
        .map(Value::Moment),
        Target::DateTime => match &*value {
            Value::Moment(moment) if moment.kind() != Kind::Time => Some(moment.to_date_time()),
            Value::String(text) => Moment::date_time(text),
            _ => None,
        }
        .map(Value::Moment),
        Target::Time => match &*value {
            Value::Moment(moment) if moment.kind() == Kind::Time => Some(*moment),
            Value::String(text) => Moment::time(text.strip_prefix('T').unwrap_or(text)),
            _ => None,
        }
        .map(Value::Moment),
        Target::Quantity => quantity(&value, unit).map(|found| Value::Quantity(Box::new(found))),
    };
    found.map(Item::Value)
}

fn boolean(value: &Value<'_>) -> Option<bool> {
    match value {
        Value::Boolean(value) => Some(*value),
        Value::String(text) => {
            BOOLEANS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, value)| *value)
        }
        other => {
            let number = other.number()?;
            (number == Decimal::ONE || number == Decimal::ZERO).then_some(number == Decimal::ONE)
        }
    }
}

fn integer(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Integer(value) => Some(*value),
        Value::Boolean(value) => Some(i64::from(*value)),
        Value::String(text) if is_number(text) => text.strip_prefix('+').unwrap_or(text).parse().ok(),
        _ => None,
    }
}

/// A sign, digits, and digits after a point: no exponent.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    [whole, fraction].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

fn quantity(value: &Value<'_>, unit: Option<&str>) -> Option<Quantity> {
    let found = match value {
        Value::Quantity(value) => (**value).clone(),
        Value::Boolean(value) => Quantity::of_number(Decimal::from(u8::from(*value))),
        Value::String(text) => Quantity::parse(text)?,
        other => Quantity::of_number(other.number()?),
    };
    match unit {
        None => Some(found),
        Some(unit) => found.converted(Unit::quoted(unit)),
    }
}
