//! Amounts with their units: UCUM's, and the calendar's words.

use super::moment::Calendar;
use octofhir_ucum::Number;
use rust_decimal::Decimal;
use std::cmp::Ordering;
use std::fmt;

/// A number with a unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantity {
    /// The number, with the zeros that it was written with.
    pub value: Decimal,
    pub(super) unit: Unit,
}

/// What is counted.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Unit {
    /// UCUM's code; `1` for a bare number.
    Ucum(String),
    /// A word of the calendar.
    Calendar(Calendar, String),
    /// A unit of nobody's list: it is itself and nothing else.
    Other(String),
}

impl Unit {
    /// What a unit in quotes means: UCUM's code, or a word of the calendar.
    pub(super) fn quoted(text: &str) -> Unit {
        match Calendar::of_word(text) {
            Some(unit) => Unit::Calendar(unit, text.to_owned()),
            None => Unit::Ucum(text.to_owned()),
        }
    }

    /// UCUM's code, if there is one that is as long.
    fn ucum(&self) -> Option<&str> {
        match self {
            Unit::Ucum(code) => Some(code),
            Unit::Calendar(unit, _) => unit.ucum(),
            Unit::Other(_) => None,
        }
    }

    /// The unit of time by the calendar that may be added to a date: UCUM's years and months are not the calendar's.
    pub(super) fn calendar(&self) -> Option<Calendar> {
        match self {
            Unit::Ucum(code) => Calendar::of_ucum(code),
            Unit::Calendar(unit, _) => Some(*unit),
            Unit::Other(_) => None,
        }
    }
}

impl Quantity {
    /// A bare number.
    pub(super) fn of_number(value: Decimal) -> Quantity {
        Quantity { value, unit: Unit::Ucum("1".to_owned()) }
    }

    /// `4`, `4.5 'mg'`, `4 days`.
    pub(super) fn parse(text: &str) -> Option<Quantity> {
        let text = text.trim();
        let end = text
            .char_indices()
            .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && matches!(c, '+' | '-'))))
            .map_or(text.len(), |(at, _)| at);
        let (number, unit) = text.split_at(end);
        let value = number.strip_prefix('+').unwrap_or(number).parse().ok()?;
        let spaced = unit.starts_with(char::is_whitespace);
        let unit = unit.trim_start();
        if unit.is_empty() {
            return Some(Quantity::of_number(value));
        }
        if let Some(quoted) = unit.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
            return Some(Quantity { value, unit: Unit::quoted(quoted) });
        }
        let word = Calendar::of_word(unit).filter(|_| spaced)?;
        Some(Quantity { value, unit: Unit::Calendar(word, unit.to_owned()) })
    }

    /// How one stands to another; `None` where their units cannot be brought together.
    pub(super) fn compare(&self, other: &Quantity) -> Option<Ordering> {
        if self.unit == other.unit {
            return Some(self.value.cmp(&other.value));
        }
        if let (Some(a), Some(b)) = (self.months(), other.months()) {
            return Some(a.cmp(&b));
        }
        let ((a, to), (b, other_to)) = (self.canonical()?, other.canonical()?);
        (to == other_to).then(|| a.cmp(&b))
    }

    /// Whether both are the same as far as the one that was written with fewer digits says.
    pub(super) fn equivalent(&self, other: &Quantity) -> bool {
        if self.unit == other.unit {
            return equivalent(self.value, other.value);
        }
        let Some(converted) = other.number_in(self) else { return false };
        equivalent(self.value, converted)
    }

    /// The number of this in the unit of another.
    fn number_in(&self, other: &Quantity) -> Option<Decimal> {
        let ((value, unit), (one, other_unit)) =
            (self.canonical()?, Quantity { value: Decimal::ONE, ..other.clone() }.canonical()?);
        if unit != other_unit {
            return None;
        }
        decimal(value.checked_div(one)?)
    }

    /// The same amount in another unit; `None` if it cannot be told in it.
    pub(super) fn converted(&self, unit: Unit) -> Option<Quantity> {
        if self.unit == unit {
            return Some(self.clone());
        }
        let one = Quantity { value: Decimal::ONE, unit };
        let value = match (self.months(), one.months()) {
            (Some(months), Some(of_one)) => months.checked_div(of_one)?,
            _ => self.number_in(&one)?,
        };
        Some(Quantity { value, ..one })
    }

    /// Whether one can be told in the other's unit.
    pub(super) fn comparable(&self, other: &Quantity) -> bool {
        let units = (self.unit.ucum(), other.unit.ucum());
        match units {
            (Some(a), Some(b)) => octofhir_ucum::is_comparable(a, b).unwrap_or(false),
            _ => self.months().is_some() && other.months().is_some(),
        }
    }

    fn months(&self) -> Option<Decimal> {
        match self.unit {
            Unit::Calendar(Calendar::Month, _) => Some(self.value),
            Unit::Calendar(Calendar::Year, _) => self.value.checked_mul(Decimal::from(12)),
            _ => None,
        }
    }

    /// The number in the base units of UCUM, and these.
    fn canonical(&self) -> Option<(Number, String)> {
        let canonical = octofhir_ucum::get_canonical_units(self.unit.ucum()?).ok()?;
        let value = Number::parse(&self.value.to_string())?;
        Some((value.checked_mul(canonical.factor)?.checked_add(canonical.offset)?, canonical.unit))
    }

    /// Its number and unit where amounts are put in order: in base units, if it has any.
    pub(super) fn key(&self) -> Option<(Number, String)> {
        self.canonical()
            .or_else(|| Some((Number::parse(&self.value.to_string())?, self.unit_text().to_owned())))
    }

    /// The unit as it is written.
    fn unit_text(&self) -> &str {
        match &self.unit {
            Unit::Ucum(text) | Unit::Other(text) | Unit::Calendar(_, text) => text,
        }
    }

    /// The sum, in this one's unit.
    pub(super) fn add(&self, other: &Quantity) -> Option<Quantity> {
        let other = if self.unit == other.unit { other.value } else { other.number_in(self)? };
        Some(Quantity { value: self.value.checked_add(other)?, unit: self.unit.clone() })
    }

    /// The product, in a unit of both.
    pub(super) fn multiply(&self, other: &Quantity) -> Option<Quantity> {
        let unit = octofhir_ucum::unit_multiply(self.unit.ucum()?, other.unit.ucum()?).ok()?.expression;
        Some(Quantity { value: self.value.checked_mul(other.value)?, unit: Unit::Ucum(unit) })
    }

    /// The quotient, in a unit of both.
    pub(super) fn divide(&self, other: &Quantity) -> Option<Quantity> {
        let unit = octofhir_ucum::unit_divide(self.unit.ucum()?, other.unit.ucum()?).ok()?.expression;
        Some(Quantity { value: self.value.checked_div(other.value)?, unit: Unit::Ucum(unit) })
    }

    /// The same amount with another number.
    pub(super) fn with(&self, value: Decimal) -> Quantity {
        Quantity { value, unit: self.unit.clone() }
    }
}

/// A number of UCUM as a decimal; `None` if it does not fit.
fn decimal(number: Number) -> Option<Decimal> {
    let text = number.to_string();
    text.parse().ok().or_else(|| Decimal::from_scientific(&text).ok())
}

/// Whether two numbers are the same once the longer is rounded to the digits of the shorter; zeros at the end do not count.
pub(super) fn equivalent(a: Decimal, b: Decimal) -> bool {
    let (a, b) = (a.normalize(), b.normalize());
    let scale = a.scale().min(b.scale());
    let rounded = |value: Decimal| {
        value.round_dp_with_strategy(scale, rust_decimal::RoundingStrategy::MidpointAwayFromZero)
    };
    rounded(a) == rounded(b)
}

impl fmt::Display for Quantity {
    /// `4.5 'mg'`, `4 days`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.unit {
            Unit::Ucum(code) | Unit::Other(code) => write!(f, "{} '{code}'", self.value),
            Unit::Calendar(_, word) => write!(f, "{} {word}", self.value),
        }
    }
}
