//! Numbers, amounts and dates: the signs between them, and the functions of one of them.

use super::Fault;
use super::collections::Call;
use super::evaluate::{Frame, Run, one, single};
use super::functions::Function;
use super::item::{Item, Items, Value};
use super::moment::Moment;
use super::quantity::Quantity;
use super::syntax::Operator;
use rust_decimal::prelude::{FromPrimitive, ToPrimitive};
use rust_decimal::{Decimal, RoundingStrategy};

/// The largest exponent that is multiplied out.
const EXPONENT_MAX: i64 = 256;

/// `a + b` and its like; nothing where the result does not fit or a divisor is 0.
pub(super) fn binary<'a>(
    operator: Operator,
    a: &Item<'a>,
    b: &Item<'a>,
    at: usize,
) -> Result<Option<Item<'a>>, Fault> {
    let cannot = || Fault::new(at, "values of types that do not go together here".to_owned());
    let (Some(a_value), Some(b_value)) = (a.value(), b.value()) else { return Err(cannot()) };
    let found = match (operator, &*a_value, &*b_value) {
        (Operator::Add, Value::String(a), Value::String(b)) => return Ok(Some(format!("{a}{b}").into())),
        (Operator::Add, Value::Moment(moment), Value::Quantity(amount)) => {
            return later(moment, amount, amount.value, at).map(|found| found.map(Item::from));
        }
        (Operator::Subtract, Value::Moment(moment), Value::Quantity(amount)) => {
            return later(moment, amount, -amount.value, at).map(|found| found.map(Item::from));
        }
        (_, Value::Integer(a), Value::Integer(b)) => whole(operator, *a, *b),
        (_, Value::Quantity(a), Value::Quantity(b)) => of_quantities(operator, a, b).ok_or_else(cannot)?,
        (_, Value::Quantity(a), b) => {
            let b = Quantity::of_number(b.number().ok_or_else(cannot)?);
            of_quantities(operator, a, &b).ok_or_else(cannot)?
        }
        (_, a, Value::Quantity(b)) => {
            let a = Quantity::of_number(a.number().ok_or_else(cannot)?);
            of_quantities(operator, &a, b).ok_or_else(cannot)?
        }
        (_, a, b) => {
            let (a, b) = a.number().zip(b.number()).ok_or_else(cannot)?;
            of_decimals(operator, a, b)
        }
    };
    Ok(found.map(Item::Value))
}

fn whole<'a>(operator: Operator, a: i64, b: i64) -> Option<Value<'a>> {
    match operator {
        Operator::Add => a.checked_add(b).map(Value::Integer),
        Operator::Subtract => a.checked_sub(b).map(Value::Integer),
        Operator::Multiply => a.checked_mul(b).map(Value::Integer),
        Operator::Div => a.checked_div(b).map(Value::Integer),
        Operator::Mod => a.checked_rem(b).map(Value::Integer),
        _ => of_decimals(operator, Decimal::from(a), Decimal::from(b)),
    }
}

fn of_decimals<'a>(operator: Operator, a: Decimal, b: Decimal) -> Option<Value<'a>> {
    match operator {
        Operator::Add => a.checked_add(b).map(Value::Decimal),
        Operator::Subtract => a.checked_sub(b).map(Value::Decimal),
        Operator::Multiply => a.checked_mul(b).map(Value::Decimal),
        // How many zeros a quotient ends in is chance.
        Operator::Divide => a.checked_div(b).map(|found| Value::Decimal(found.normalize())),
        Operator::Div => a.checked_div(b)?.trunc().to_i64().map(Value::Integer),
        Operator::Mod => a.checked_rem(b).map(Value::Decimal),
        _ => None,
    }
}

/// `None` if the sign is not one between amounts, `Some(None)` if their units do not go together.
fn of_quantities<'a>(operator: Operator, a: &Quantity, b: &Quantity) -> Option<Option<Value<'a>>> {
    let found = match operator {
        Operator::Add => a.add(b),
        Operator::Subtract => a.add(&b.with(-b.value)),
        Operator::Multiply => a.multiply(b),
        Operator::Divide => a.divide(b),
        _ => return None,
    };
    Some(found.map(|found| Value::Quantity(Box::new(found))))
}

fn later<'a>(
    moment: &Moment,
    amount: &Quantity,
    value: Decimal,
    at: usize,
) -> Result<Option<Value<'a>>, Fault> {
    let unit = amount.unit.calendar();
    let unit = unit.ok_or_else(|| {
        Fault::new(
            at,
            "a date takes years, months, weeks, days, hours, minutes, seconds of the calendar".to_owned(),
        )
    })?;
    Ok(moment.add(value, unit).map(Value::Moment))
}

/// `-a`
pub(super) fn negative<'a>(of: &[Item<'a>], at: usize) -> Result<Items<'a>, Fault> {
    let Some(item) = single(of, at)? else { return Ok(Items::new()) };
    let found = match item.value().as_deref() {
        Some(Value::Integer(value)) => value.checked_neg().map(Value::Integer),
        Some(Value::Decimal(value)) => Some(Value::Decimal(-*value)),
        Some(Value::Quantity(value)) => Some(Value::Quantity(Box::new(value.with(-value.value)))),
        _ => return Err(Fault::new(at, "only a number or an amount has a sign".to_owned())),
    };
    Ok(found.map(Item::Value).into_iter().collect())
}

/// `abs()` and its like.
pub(super) fn call<'a>(
    run: &mut Run<'_, 'a>,
    call: &Call<'a>,
    input: &Items<'a>,
    frame: &Frame<'a>,
) -> Result<Items<'a>, Fault> {
    let argument = run.argument(call, 0, frame)?;
    let Some(item) = single(input, call.at)? else { return Ok(Items::new()) };
    let wrong = || call.fault("wants a number");
    let value = item.value().ok_or_else(wrong)?;
    if let Value::Quantity(amount) = &*value {
        if call.function == Function::Abs {
            return Ok(one(Value::Quantity(Box::new(amount.with(amount.value.abs())))));
        }
        return Err(wrong());
    }
    let number = value.number().ok_or_else(wrong)?;
    let other = match single(&argument, call.at)? {
        None => None,
        Some(item) => Some(item.value().and_then(|value| value.number()).ok_or_else(wrong)?),
    };
    let is_whole = matches!(&*value, Value::Integer(_));
    let found = match call.function {
        Function::Abs if is_whole => number.abs().to_i64().map(Value::Integer),
        Function::Abs => Some(Value::Decimal(number.abs())),
        Function::Ceiling => number.ceil().to_i64().map(Value::Integer),
        Function::Floor => number.floor().to_i64().map(Value::Integer),
        Function::Truncate => number.trunc().to_i64().map(Value::Integer),
        Function::Round => round(number, other).map_err(|what| call.fault(what))?.map(Value::Decimal),
        Function::Exp => irrational(number, f64::exp).map(Value::Decimal),
        Function::Ln => irrational(number, f64::ln).map(Value::Decimal),
        Function::Sqrt => irrational(number, f64::sqrt).map(Value::Decimal),
        Function::Log => other
            .and_then(|base| base.to_f64())
            .and_then(|base| irrational(number, |number| number.log(base)))
            .map(Value::Decimal),
        _ => other.and_then(|exponent| power(number, exponent, is_whole)),
    };
    Ok(found.map(Item::Value).into_iter().collect())
}

fn round(number: Decimal, digits: Option<Decimal>) -> Result<Option<Decimal>, &'static str> {
    let digits = match digits {
        None => 0,
        Some(digits) => digits.to_u32().ok_or("wants digits from 0 on")?,
    };
    Ok(Some(number.round_dp_with_strategy(digits, RoundingStrategy::MidpointAwayFromZero)))
}

/// What no decimal is exactly: to 15 digits.
fn irrational(number: Decimal, of: impl Fn(f64) -> f64) -> Option<Decimal> {
    let found = of(number.to_f64()?);
    if found.is_finite() { Decimal::from_f64(found) } else { None }
}

fn power<'a>(number: Decimal, exponent: Decimal, is_whole: bool) -> Option<Value<'a>> {
    let times = if exponent.fract().is_zero() { exponent.to_i64() } else { None };
    match times {
        Some(times) if times.abs() <= EXPONENT_MAX => {
            let mut found = Decimal::ONE;
            for _ in 0..times.abs() {
                found = found.checked_mul(number)?;
            }
            if times < 0 {
                found = Decimal::ONE.checked_div(found)?.normalize();
            }
            match found.to_i64() {
                Some(found) if is_whole && times >= 0 => Some(Value::Integer(found)),
                _ => Some(Value::Decimal(found)),
            }
        }
        _ => {
            let exponent = exponent.to_f64()?;
            irrational(number, |number| number.powf(exponent)).map(Value::Decimal)
        }
    }
}
