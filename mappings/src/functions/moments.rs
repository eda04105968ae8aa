//! Times that are counted, times after others, and times as HL7 v2 has them.

use schemas::hl7v2::time::{Tm, Ts, from_iso};

/// A FHIR date or time as HL7 v2 writes it, which has four digits behind the point; `None` if there is no such day or hour.
pub(super) fn hl7_time(text: &str) -> Option<String> {
    let mut written = from_iso(text)?;
    if let Some(point) = written.find('.') {
        let end = written[point + 1..]
            .find(|c: char| !c.is_ascii_digit())
            .map_or(written.len(), |end| point + 1 + end);
        written.replace_range(end.min(point + 5)..end, "");
    }
    let is_clock = text.trim().as_bytes().get(2) == Some(&b':');
    let right = if is_clock { Tm::parse(&written).is_ok() } else { Ts::parse(&written).is_ok() };
    right.then_some(written)
}

/// The instant so many seconds after the beginning of 1970, whose last digits are as many places behind the point as `scale` says. Years
/// beyond 9999, to which milliseconds lead that are taken for seconds, are none.
pub(super) fn since_1970(text: &str, scale: usize) -> Option<String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let amount = whole.strip_prefix('-').unwrap_or(whole);
    if amount.is_empty()
        || amount.len() > 18
        || fraction.len() > 9 - scale
        || !digits(amount)
        || !digits(fraction)
    {
        return None;
    }
    let nanoseconds: i128 = format!("{whole}{fraction:0<width$}", width = 9 - scale).parse().ok()?;
    let instant = jiff::Timestamp::from_nanosecond(nanoseconds).ok()?;
    Some(instant.to_string())
}

/// A unit of time: its UCUM code, by that or by its ISO+ word.
pub(super) fn unit_of_time(text: &str) -> Option<&'static str> {
    Some(match text.trim().to_ascii_lowercase().as_str() {
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "min" | "m" | "mins" | "minute" | "minutes" => "min",
        "h" | "hr" | "hrs" | "hour" | "hours" => "h",
        "d" | "day" | "days" => "d",
        "wk" | "w" | "week" | "weeks" => "wk",
        "mo" | "mon" | "month" | "months" => "mo",
        "a" | "yr" | "y" | "ann" | "year" | "years" => "a",
        _ => return None,
    })
}

/// A FHIR dateTime so much later, as precise as it was and at its own offset.
pub(super) fn later(text: &str, amount: &str, unit: &str) -> Option<String> {
    let amount: i64 = amount.trim().parse().ok()?;
    let span = jiff::Span::new();
    let span = match unit_of_time(unit)? {
        "s" => span.try_seconds(amount),
        "min" => span.try_minutes(amount),
        "h" => span.try_hours(amount),
        "d" => span.try_days(amount),
        "wk" => span.try_weeks(amount),
        "mo" => span.try_months(amount),
        _ => span.try_years(amount),
    }
    .ok()?;
    if text.len() == 10 {
        // A date has no hours to add to.
        if matches!(unit_of_time(unit)?, "s" | "min" | "h") {
            return None;
        }
        let date: jiff::civil::Date = text.parse().ok()?;
        return Some(date.checked_add(span).ok()?.to_string());
    }
    let end = text.rfind(['+', '-', 'Z']).filter(|at| *at > 10)?;
    let (local, offset) = text.split_at(end);
    let local: jiff::civil::DateTime = local.parse().ok()?;
    let moved = local.checked_add(span).ok()?;
    Some(format!("{}{offset}", moved.strftime("%Y-%m-%dT%H:%M:%S%.f")))
}

/// A length of time in whole minutes.
pub(super) fn minutes(amount: &str, unit: &str) -> Option<String> {
    let amount: f64 =
        amount.trim().parse().ok().filter(|amount: &f64| amount.is_finite() && *amount >= 0.0)?;
    let per_unit = match unit_of_time(unit)? {
        "s" => 1.0 / 60.0,
        "min" => 1.0,
        "h" => 60.0,
        "d" => 1440.0,
        "wk" => 10_080.0,
        _ => return None, // months and years have no fixed length
    };
    let minutes = (amount * per_unit).round();
    (minutes <= 1e9).then(|| format!("{minutes:.0}"))
}
