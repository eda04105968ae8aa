//! How exactly a value was written: `lowBoundary()`, `highBoundary()`, `precision()`, `comparable()`.

use super::Fault;
use super::collections::Call;
use super::evaluate::{Frame, Run, integer, one, single};
use super::functions::Function;
use super::item::{Item, Items, Value};
use rust_decimal::{Decimal, RoundingStrategy};

/// The digits after the point that a boundary of a number has unless told otherwise.
const DIGITS: i64 = 8;

/// The most digits that a number can have here.
const DIGITS_MAX: i64 = 28;

/// Runs one of the functions.
pub(super) fn call<'a>(
    run: &mut Run<'_, 'a>,
    call: &Call<'a>,
    input: &Items<'a>,
    frame: &Frame<'a>,
) -> Result<Items<'a>, Fault> {
    let argument = run.argument(call, 0, frame)?;
    let Some(item) = single(input, call.at)? else { return Ok(Items::new()) };
    let wrong = || call.fault("wants a number, an amount, a date or a time");
    let value = item.value().ok_or_else(wrong)?;
    if call.function == Function::Comparable {
        let other = single(&argument, call.at)?.and_then(Item::value);
        let (Value::Quantity(a), Some(Value::Quantity(b))) = (&*value, other.as_deref()) else {
            return Err(call.fault("wants amounts"));
        };
        return Ok(one(a.comparable(b)));
    }
    if call.function == Function::Precision {
        let found = match &*value {
            Value::Moment(moment) => moment.precision(),
            Value::Integer(_) => 0,
            Value::Decimal(value) => i64::from(value.scale()),
            _ => return Err(wrong()),
        };
        return Ok(one(found));
    }
    let high = call.function == Function::HighBoundary;
    let precision = integer(&argument, call.at)?;
    let found = match &*value {
        Value::Moment(moment) if high => moment.high_boundary(precision).map(Value::Moment),
        Value::Moment(moment) => moment.low_boundary(precision).map(Value::Moment),
        Value::Quantity(amount) => {
            boundary(amount.value, precision, high).map(|value| Value::Quantity(Box::new(amount.with(value))))
        }
        other => boundary(other.number().ok_or_else(wrong)?, precision, high).map(Value::Decimal),
    };
    Ok(found.map(Item::Value).into_iter().collect())
}

/// The least, or the largest, number that is written like this one once it is rounded to its digits.
fn boundary(value: Decimal, precision: Option<i64>, high: bool) -> Option<Decimal> {
    let precision = precision.unwrap_or(DIGITS);
    if !(0..=DIGITS_MAX).contains(&precision) {
        return None;
    }
    let precision = u32::try_from(precision).ok()?;
    let half = Decimal::try_new(5, value.scale() + 1).ok()?;
    let (exact, rounding) = if high {
        (value.checked_add(half)?, RoundingStrategy::ToPositiveInfinity)
    } else {
        (value.checked_sub(half)?, RoundingStrategy::ToNegativeInfinity)
    };
    let mut found = exact.round_dp_with_strategy(precision, rounding);
    found.rescale(precision);
    // A number of too many digits keeps fewer of them: then there is no such boundary.
    (found.scale() == precision).then_some(found)
}
