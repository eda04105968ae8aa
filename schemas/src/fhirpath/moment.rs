//! Dates, times and both together, each as exact as it was written.
//!
//! `2014-01` is not the first of January: what is compared is compared as far as both were written, and beyond that
//! the answer is unknown.

use jiff::civil::{self, DateTime};
use jiff::{SignedDuration, Span, Timestamp, ToSpan};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

/// What a moment is a value of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Date,
    DateTime,
    Time,
}

/// The last part that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    Year,
    Month,
    Day,
    Hour,
    Minute,
    /// Fractions of a second are the second written further, not a part of their own.
    Second,
}

/// A date, a time, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    kind: Kind,
    /// What was not written is the first of its kind; of a [`Kind::Time`] the date means nothing.
    civil: DateTime,
    precision: Precision,
    /// How many digits the fraction of its second has, 0 to 9.
    digits: u8,
    /// Minutes east of UTC, if it says.
    offset: Option<i16>,
}

/// See [`Moment::key`].
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(DateTime, Precision);

/// A unit of time by the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Calendar {
    Year,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
    Millisecond,
}

/// The words for units of time, in the singular, and UCUM's code for those that are as long in UCUM.
const CALENDAR: [(&str, Calendar, Option<&str>); 8] = [
    ("year", Calendar::Year, None),
    ("month", Calendar::Month, None),
    ("week", Calendar::Week, Some("wk")),
    ("day", Calendar::Day, Some("d")),
    ("hour", Calendar::Hour, Some("h")),
    ("minute", Calendar::Minute, Some("min")),
    ("second", Calendar::Second, Some("s")),
    ("millisecond", Calendar::Millisecond, Some("ms")),
];

impl Calendar {
    /// The unit that a word means: `day`, `days`.
    pub(super) fn of_word(word: &str) -> Option<Calendar> {
        let word = word.strip_suffix('s').unwrap_or(word);
        CALENDAR.iter().find(|(name, ..)| *name == word).map(|(_, unit, _)| *unit)
    }

    /// The unit that UCUM's code means; a year and a month of UCUM are not the calendar's.
    pub(super) fn of_ucum(code: &str) -> Option<Calendar> {
        CALENDAR.iter().find(|(.., ucum)| *ucum == Some(code)).map(|(_, unit, _)| *unit)
    }

    /// UCUM's code for it.
    pub(super) fn ucum(self) -> Option<&'static str> {
        CALENDAR.iter().find(|(_, unit, _)| *unit == self).and_then(|(.., ucum)| *ucum)
    }
}

/// Reads digits from the front: exactly so many.
fn digits(text: &mut &str, count: usize) -> Option<i16> {
    let (head, rest) = text.split_at_checked(count)?;
    if !head.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    *text = rest;
    head.parse().ok()
}

/// Reads a separator and digits; `Some(None)` if the separator is not there.
fn part(text: &mut &str, separator: char, count: usize) -> Option<Option<i16>> {
    match text.strip_prefix(separator) {
        None => Some(None),
        Some(rest) => {
            *text = rest;
            Some(Some(digits(text, count)?))
        }
    }
}

impl Moment {
    /// `2014`, `2014-01`, `2014-01-25`.
    pub(super) fn date(text: &str) -> Option<Moment> {
        let mut rest = text;
        let found = read_date(&mut rest)?;
        rest.is_empty().then_some(found)
    }

    /// A date, or a date with a time and an offset: `2014-01-25T14:30:14.559+02:00`. `2014T` is a year.
    pub(super) fn date_time(text: &str) -> Option<Moment> {
        let mut rest = text;
        let mut found = read_date(&mut rest)?;
        found.kind = Kind::DateTime;
        if let Some(time) = rest.strip_prefix('T') {
            rest = time;
            if found.precision == Precision::Day && rest.starts_with(|c: char| c.is_ascii_digit()) {
                let time = read_time(&mut rest)?;
                found = Moment {
                    kind: Kind::DateTime,
                    civil: found.civil.date().to_datetime(time.civil.time()),
                    ..time
                };
                found.offset = read_offset(&mut rest)?;
            }
        }
        rest.is_empty().then_some(found)
    }

    /// `14`, `14:30`, `14:30:14.559`.
    pub(super) fn time(text: &str) -> Option<Moment> {
        let mut rest = text;
        let found = read_time(&mut rest)?;
        rest.is_empty().then_some(found)
    }

    /// A point in time, with the milliseconds written, in UTC.
    pub(super) fn at(time: Timestamp) -> Moment {
        let civil = time.to_zoned(jiff::tz::TimeZone::UTC).datetime();
        let millis = civil.subsec_nanosecond() / 1_000_000 * 1_000_000;
        let civil = civil.with().subsec_nanosecond(millis).build().unwrap_or(civil);
        Moment { kind: Kind::DateTime, civil, precision: Precision::Second, digits: 3, offset: Some(0) }
    }

    /// A date, or a date with a time, as FHIR writes them.
    pub fn of_text(text: &str) -> Option<Moment> {
        Moment::date_time(text)
    }

    /// From the first instant that it may mean to just after the last; without an offset it is taken as UTC. `None` of a
    /// time without a date.
    pub fn span(&self) -> Option<Range<Timestamp>> {
        if self.kind == Kind::Time {
            return None;
        }
        let offset = SignedDuration::from_mins(i64::from(self.offset.unwrap_or(0)));
        let instant = |civil: DateTime| -> Timestamp {
            let at = jiff::tz::TimeZone::UTC.to_ambiguous_timestamp(civil).compatible();
            at.and_then(|at| at.checked_sub(offset)).unwrap_or(Timestamp::MAX)
        };
        let end = instant(self.last_within()?);
        Some(instant(self.civil)..end.checked_add(SignedDuration::from_nanos(1)).unwrap_or(end))
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Its date alone.
    pub(super) fn to_date(self) -> Moment {
        let civil = self.civil.date().to_datetime(civil::Time::midnight());
        let precision = self.precision.min(Precision::Day);
        Moment { kind: Kind::Date, civil, precision, digits: 0, offset: None }
    }

    /// It as a date with a time that is not known.
    pub(super) fn to_date_time(self) -> Moment {
        Moment { kind: Kind::DateTime, ..self }
    }

    /// Its time alone.
    pub(super) fn to_time(self) -> Moment {
        Moment { kind: Kind::Time, offset: None, ..self }
    }

    /// Where it stands among others when all are put in order: by its first instant, and what is less precise first.
    pub(super) fn key(&self) -> Key {
        Key(self.utc().unwrap_or(self.civil), self.precision)
    }

    /// How one stands to another; `None` where they are not known far enough, or only one has an offset.
    pub(super) fn compare(&self, other: &Moment) -> Option<Ordering> {
        if (self.kind == Kind::Time) != (other.kind == Kind::Time) {
            return None;
        }
        let common = self.precision.min(other.precision);
        if common > Precision::Day
            && self.kind != Kind::Time
            && self.offset.is_some() != other.offset.is_some()
        {
            return None;
        }
        let both = self.offset.is_some() && other.offset.is_some();
        let (a, b) = if both { (self.utc()?, other.utc()?) } else { (self.civil, other.civil) };
        let first = if self.kind == Kind::Time { Precision::Hour } else { Precision::Year };
        for part in [
            Precision::Year,
            Precision::Month,
            Precision::Day,
            Precision::Hour,
            Precision::Minute,
            Precision::Second,
        ] {
            if part < first || part > common {
                continue;
            }
            let found = value_of(part, a).cmp(&value_of(part, b));
            if found != Ordering::Equal {
                return Some(found);
            }
        }
        (self.precision == other.precision).then_some(Ordering::Equal)
    }

    fn utc(&self) -> Option<DateTime> {
        let minutes = i64::from(self.offset?);
        self.civil.checked_sub(SignedDuration::from_mins(minutes)).ok()
    }

    /// So much later, or earlier. What is finer than the moment was written counts in whole units of it. A time wraps at midnight.
    pub(super) fn add(&self, amount: Decimal, unit: Calendar) -> Option<Moment> {
        let finest = match self.precision {
            Precision::Year => Calendar::Year,
            Precision::Month => Calendar::Month,
            Precision::Day => Calendar::Day,
            Precision::Hour => Calendar::Hour,
            Precision::Minute => Calendar::Minute,
            Precision::Second => Calendar::Millisecond,
        };
        let (amount, unit) = if unit > finest {
            (amount.trunc().checked_div(per(finest, unit)?)?.trunc(), finest)
        } else {
            (amount, unit)
        };
        let whole = amount.trunc().to_i64()?;
        let span: Span = match unit {
            Calendar::Year => Span::new().try_years(whole),
            Calendar::Month => Span::new().try_months(whole),
            Calendar::Week => Span::new().try_weeks(whole),
            Calendar::Day => Span::new().try_days(whole),
            Calendar::Hour => Span::new().try_hours(whole),
            Calendar::Minute => Span::new().try_minutes(whole),
            Calendar::Second => {
                Span::new().try_milliseconds(amount.checked_mul(Decimal::ONE_THOUSAND)?.trunc().to_i64()?)
            }
            Calendar::Millisecond => Span::new().try_milliseconds(whole),
        }
        .ok()?;
        if self.kind == Kind::Time {
            if unit < Calendar::Hour {
                return None;
            }
            let time = self.civil.time().wrapping_add(span);
            return Some(Moment { civil: self.civil.date().to_datetime(time), ..*self });
        }
        let civil = self.civil.checked_add(span).ok()?;
        (civil.year() >= 1).then_some(Moment { civil, ..*self })
    }

    /// How many digits of it were written: 4 for a year, 8 for a day, 17 for milliseconds; of a time 2 to 9.
    pub(super) fn precision(&self) -> i64 {
        let whole = match self.precision {
            Precision::Year => 4,
            Precision::Month => 6,
            Precision::Day => 8,
            Precision::Hour => 10,
            Precision::Minute => 12,
            Precision::Second => 14 + i64::from(self.digits),
        };
        if self.kind == Kind::Time { whole - 8 } else { whole }
    }

    /// The first moment that it may mean, written to so many digits; `None` if there is no such number of digits.
    pub(super) fn low_boundary(&self, precision: Option<i64>) -> Option<Moment> {
        self.boundary(precision, false)
    }

    /// The last moment that it may mean, written to so many digits.
    pub(super) fn high_boundary(&self, precision: Option<i64>) -> Option<Moment> {
        self.boundary(precision, true)
    }

    fn boundary(&self, precision: Option<i64>, high: bool) -> Option<Moment> {
        let (longest, before) = match self.kind {
            Kind::Date => (8, 0),
            Kind::DateTime => (17, 0),
            Kind::Time => (9, 8),
        };
        let wanted = precision.unwrap_or(longest);
        if wanted > longest {
            return None;
        }
        let (precision, digits) = match wanted + before {
            4 => (Precision::Year, 0),
            6 => (Precision::Month, 0),
            8 if self.kind != Kind::Time => (Precision::Day, 0),
            10 => (Precision::Hour, 0),
            12 => (Precision::Minute, 0),
            14 => (Precision::Second, 0),
            17 => (Precision::Second, 3),
            _ => return None,
        };
        let mut civil = self.civil;
        if high {
            civil = self.last_within()?;
        }
        // The day begins first where the clocks are ahead the most, and ends last where they are behind.
        let unknown = if high { -12 * 60 } else { 14 * 60 };
        let timed = self.kind == Kind::DateTime && precision > Precision::Day;
        let offset = if timed { self.offset.or(Some(unknown)) } else { None };
        Some(Moment { kind: self.kind, civil, precision, digits, offset })
    }

    /// The last moment within what was written.
    fn last_within(&self) -> Option<DateTime> {
        let next = match self.precision {
            Precision::Year => 1.year(),
            Precision::Month => 1.month(),
            Precision::Day => 1.day(),
            Precision::Hour => 1.hour(),
            Precision::Minute => 1.minute(),
            Precision::Second => {
                1_000_000_000_i64.checked_div(10_i64.pow(u32::from(self.digits)))?.nanoseconds()
            }
        };
        // The last moment of all is the last of its year, and of its day.
        Some(
            self.civil
                .checked_add(next)
                .map_or(DateTime::MAX, |end| end.checked_sub(1.nanosecond()).unwrap_or(end)),
        )
    }
}

/// How many of a finer unit make a coarser one, as FHIRPath counts where a date is too coarse.
fn per(coarse: Calendar, fine: Calendar) -> Option<Decimal> {
    let seconds = |unit| match unit {
        Calendar::Year => 31_536_000_000_i64,
        Calendar::Month => 2_592_000_000,
        Calendar::Week => 604_800_000,
        Calendar::Day => 86_400_000,
        Calendar::Hour => 3_600_000,
        Calendar::Minute => 60_000,
        Calendar::Second => 1_000,
        Calendar::Millisecond => 1,
    };
    if (coarse, fine) == (Calendar::Year, Calendar::Month) {
        return Some(Decimal::from(12));
    }
    Decimal::from(seconds(coarse)).checked_div(Decimal::from(seconds(fine)))
}

fn value_of(part: Precision, of: DateTime) -> i64 {
    match part {
        Precision::Year => i64::from(of.year()),
        Precision::Month => i64::from(of.month()),
        Precision::Day => i64::from(of.day()),
        Precision::Hour => i64::from(of.hour()),
        Precision::Minute => i64::from(of.minute()),
        Precision::Second => i64::from(of.second()) * 1_000_000_000 + i64::from(of.subsec_nanosecond()),
    }
}

fn read_date(rest: &mut &str) -> Option<Moment> {
    let year = digits(rest, 4)?;
    let month = part(rest, '-', 2)?;
    let day = if month.is_some() { part(rest, '-', 2)? } else { None };
    let small = |value: Option<i16>| i8::try_from(value.unwrap_or(1)).ok();
    let date = civil::Date::new(year, small(month)?, small(day)?).ok()?;
    let precision = match (month, day) {
        (_, Some(_)) => Precision::Day,
        (Some(_), None) => Precision::Month,
        (None, None) => Precision::Year,
    };
    let civil = date.to_datetime(civil::Time::midnight());
    Some(Moment { kind: Kind::Date, civil, precision, digits: 0, offset: None })
}

fn read_time(rest: &mut &str) -> Option<Moment> {
    let hour = digits(rest, 2)?;
    let minute = part(rest, ':', 2)?;
    let second = if minute.is_some() { part(rest, ':', 2)? } else { None };
    let (mut nanos, mut count) = (0, 0);
    if second.is_some()
        && let Some(fraction) = rest.strip_prefix('.')
    {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let (written, after) = fraction.split_at(length);
        // Nanoseconds are as far as is counted.
        let kept = written.get(..length.min(9))?;
        count = u8::try_from(kept.len()).ok()?;
        nanos = format!("{kept:0<9}").parse().ok()?;
        if length == 0 {
            return None;
        }
        *rest = after;
    }
    let small = |value: Option<i16>| i8::try_from(value.unwrap_or(0)).ok();
    // A leap second is the last of its minute that a clock shows.
    let second_shown = small(second)?.min(59);
    if second.is_some_and(|second| second > 60) {
        return None;
    }
    let time = civil::Time::new(small(Some(hour))?, small(minute)?, second_shown, nanos).ok()?;
    let precision = match (minute, second) {
        (_, Some(_)) => Precision::Second,
        (Some(_), None) => Precision::Minute,
        (None, None) => Precision::Hour,
    };
    let civil = civil::date(2000, 1, 1).to_datetime(time);
    Some(Moment { kind: Kind::Time, civil, precision, digits: count, offset: None })
}

/// `Z`, `+02:00`, or nothing.
fn read_offset(rest: &mut &str) -> Option<Option<i16>> {
    if let Some(after) = rest.strip_prefix('Z') {
        *rest = after;
        return Some(Some(0));
    }
    let sign = match rest.bytes().next() {
        Some(b'+') => 1,
        Some(b'-') => -1,
        _ => return Some(None),
    };
    *rest = &rest[1..];
    let hours = digits(rest, 2)?;
    let minutes = part(rest, ':', 2)??;
    (hours <= 14 && minutes < 60).then_some(Some(sign * (hours * 60 + minutes)))
}

impl fmt::Display for Moment {
    /// As it is written in FHIR.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.civil;
        if self.kind != Kind::Time {
            write!(f, "{:04}", at.year())?;
            if self.precision >= Precision::Month {
                write!(f, "-{:02}", at.month())?;
            }
            if self.precision >= Precision::Day {
                write!(f, "-{:02}", at.day())?;
            }
            if self.precision >= Precision::Hour {
                f.write_str("T")?;
            }
        }
        if self.precision >= Precision::Hour {
            write!(f, "{:02}", at.hour())?;
        }
        if self.precision >= Precision::Minute {
            write!(f, ":{:02}", at.minute())?;
        }
        if self.precision >= Precision::Second {
            write!(f, ":{:02}", at.second())?;
            if self.digits > 0 {
                let nanos = format!("{:09}", at.subsec_nanosecond());
                write!(f, ".{}", &nanos[..usize::from(self.digits)])?;
            }
        }
        match self.offset {
            None => Ok(()),
            Some(0) => f.write_str("Z"),
            Some(minutes) => {
                let sign = if minutes < 0 { '-' } else { '+' };
                write!(f, "{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
            }
        }
    }
}
