//! Times of HL7 v2 (`DT`, `TM`, `TS`, `DTM`): read with their precision and offset, written as FHIR writes them.
//!
//! Invariant: nothing is made up silently. What a value does not say and FHIR asks for (an offset, minutes) is a
//! [`Doubt`] of the result. The zone and the clock of the host are never used.

use crate::issue::{Issue, Severity};
use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone, TimeZoneDatabase};
use std::fmt;
use std::str::FromStr;

/// How much of a time is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// `YYYY`
    Year,
    /// `YYYYMM`
    Month,
    /// `YYYYMMDD`
    Day,
    /// `YYYYMMDDHH`
    Hour,
    /// `YYYYMMDDHHMM`
    Minute,
    /// `YYYYMMDDHHMMSS`
    Second,
    /// `YYYYMMDDHHMMSS.S`, with any number of digits up to nine.
    Fraction,
}

/// Why a text is no time. It never holds the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TsError {
    /// Nothing there.
    #[error("empty, YYYY[MM[DD[HH[MM[SS[.S]]]]]][+HHMM] was expected")]
    Empty,
    /// Dashes, colons or a `T`, as ISO 8601 writes them.
    #[error("written as ISO 8601, YYYYMMDDHHMMSS without dashes and colons was expected")]
    Iso,
    /// Something that is no digit.
    #[error("not a time, YYYY[MM[DD[HH[MM[SS[.S]]]]]][+HHMM] was expected")]
    Form,
    /// A number of digits that ends within a part.
    #[error("an odd number of digits, YYYY[MM[DD[HH[MM[SS[.S]]]]]] was expected")]
    Length,
    /// All zeros.
    #[error("all zeros, which is no date")]
    Zero,
    /// No such year, month or day of the month.
    #[error("no such day in the calendar")]
    Date,
    /// An hour above 23 (24:00 aside), a minute above 59 or a second above 60.
    #[error("no such time of day")]
    TimeOfDay,
    /// A fraction that does not follow seconds, is empty, or has more than nine digits.
    #[error("a fraction of a second has one to nine digits and follows seconds")]
    Fraction,
    /// An offset that is not `+HHMM` or `-HHMM`, or over 14 hours.
    #[error("the offset from UTC is not +HHMM or -HHMM, at most 14 hours")]
    Offset,
    /// Less precise than what was asked for.
    #[error("not precise enough: a time of day was expected")]
    TooCoarse,
}

/// What a written time holds that the value did not say, or said in a way that no clock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doubt {
    /// Neither the value nor the message nor the configuration gives an offset: UTC was assumed.
    AssumedUtc,
    /// The hour comes twice on that day in that zone; the first was taken.
    AmbiguousHour,
    /// The hour is left out on that day in that zone; the offset before the change was taken.
    NoSuchHour,
    /// Minutes were not given and are written as zero.
    ZeroMinutes,
    /// Second 60. It is kept: FHIR allows it for leap seconds.
    LeapSecond,
    /// 24:00 was written as 00:00 of the next day.
    EndOfDay,
    /// The value has an offset but no time of day; FHIR has no place for it.
    OffsetLeftOut,
}

impl Doubt {
    /// The doubt as an issue at a place.
    pub fn issue(self, path: impl Into<String>) -> Issue {
        let (severity, code, text) = match self {
            Doubt::AssumedUtc => (
                Severity::Warning,
                "time-zone-assumed",
                "no offset in the value or in MSH-7 and no zone configured: UTC is assumed",
            ),
            Doubt::AmbiguousHour => (
                Severity::Warning,
                "time-ambiguous",
                "the hour comes twice on that day in the zone of the source: the first is taken",
            ),
            Doubt::NoSuchHour => (
                Severity::Warning,
                "time-nonexistent",
                "the hour does not exist on that day in the zone of the source: the offset before the change is taken",
            ),
            Doubt::ZeroMinutes => {
                (Severity::Information, "time-filled", "the minutes are not given and are written as zero")
            }
            Doubt::LeapSecond => (Severity::Information, "time-leap-second", "second 60 is kept"),
            Doubt::EndOfDay => {
                (Severity::Information, "time-end-of-day", "24:00 is written as 00:00 of the next day")
            }
            Doubt::OffsetLeftOut => (
                Severity::Information,
                "time-offset-left-out",
                "an offset without a time of day has no place in FHIR and is left out",
            ),
        };
        Issue::new(severity, code, path, text)
    }
}

/// A time as FHIR writes it, and what is doubtful about it.
#[derive(Clone, PartialEq, Eq)]
pub struct Written {
    /// A FHIR `date`, `dateTime`, `instant` or `time`.
    pub text: String,
    /// What the value did not say; mostly empty.
    pub doubts: Vec<Doubt>,
}

/// Shows the doubts only: the time is a patient's.
impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").field("doubts", &self.doubts).finish_non_exhaustive()
    }
}

/// Which offset a time has that states none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    zone: TimeZone,
    assumed: bool,
}

/// There is no IANA zone of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no IANA time zone of that name, one such as Europe/Berlin was expected")]
pub struct UnknownZone;

impl Zone {
    /// UTC because nobody said anything else; every use is a [`Doubt::AssumedUtc`].
    pub const UNSTATED: Zone = Zone { zone: TimeZone::UTC, assumed: true };

    /// UTC because the configuration says so.
    pub const UTC: Zone = Zone { zone: TimeZone::UTC, assumed: false };

    /// A zone of the IANA database that is built into the program, such as `Europe/Berlin`.
    ///
    /// # Errors
    /// When it has no such zone.
    pub fn named(name: &str) -> Result<Zone, UnknownZone> {
        let zone = TimeZoneDatabase::bundled().get(name).map_err(|_| UnknownZone)?;
        Ok(Zone { zone, assumed: false })
    }

    /// A fixed offset in minutes east of UTC. `None` beyond 14 hours.
    pub fn offset(minutes: i16) -> Option<Zone> {
        if minutes.abs() > OFFSET_MINUTES_MAX {
            return None;
        }
        let offset = Offset::from_seconds(i32::from(minutes) * 60).ok()?;
        Some(Zone { zone: TimeZone::fixed(offset), assumed: false })
    }

    /// The zone of a message: the offset of its MSH-7 if it has one, else the zone of its source.
    ///
    /// # Source
    /// HL7 v2.5.1 section 2.15.9.7: the offset of MSH-7 is the default of the message.
    #[must_use]
    pub fn of_message(made_at: Option<&str>, source: &Zone) -> Zone {
        let offset = made_at.and_then(|text| Ts::parse(text).ok()).and_then(|ts| ts.offset_minutes());
        offset.and_then(Zone::offset).unwrap_or_else(|| source.clone())
    }
}

/// FHIR's largest offset.
const OFFSET_MINUTES_MAX: i16 = 14 * 60;

/// A time that is written as ISO 8601 or RFC 3339 has it, as HL7 v2 writes it; `None` if it is not written so. What its digits say is not
/// looked at: `2026-02-30T25:00Z` has the form.
///
/// # Source
/// RFC 3339 section 5.6 with its appendix A; a blank in place of the `T` and a comma in place of the point are taken, too.
pub fn from_iso(text: &str) -> Option<String> {
    let mut rest = text.trim().bytes().peekable();
    let mut written = String::with_capacity(24);
    let mut digits = |rest: &mut std::iter::Peekable<std::str::Bytes<'_>>, count: usize| {
        (0..count).try_for_each(|_| {
            let digit = rest.next_if(u8::is_ascii_digit)?;
            written.push(char::from(digit));
            Some(())
        })
    };
    // A time of day alone begins with two digits and a colon, a date with four digits.
    digits(&mut rest, 2)?;
    let mut clock = rest.peek() == Some(&b':');
    if !clock {
        digits(&mut rest, 2)?;
        let mut given = 0;
        for _ in ["month", "day"] {
            if rest.next_if_eq(&b'-').is_some() {
                digits(&mut rest, 2)?;
                given += 1;
            }
        }
        // An hour is one of a day.
        if given == 2 && rest.next_if(|sign| matches!(sign, b'T' | b't' | b' ')).is_some() {
            digits(&mut rest, 2)?;
            clock = true;
        }
    }
    if clock {
        for _ in ["minute", "second"] {
            if rest.next_if_eq(&b':').is_some() {
                digits(&mut rest, 2)?;
            }
        }
    }
    if clock && rest.next_if(|sign| matches!(sign, b'.' | b',')).is_some() {
        written.push('.');
        written.extend(std::iter::from_fn(|| rest.next_if(u8::is_ascii_digit)).map(char::from));
    }
    match rest.next() {
        None => {}
        Some(b'Z' | b'z') if clock => written.push_str("+0000"),
        Some(sign @ (b'+' | b'-')) if clock => {
            written.push(char::from(sign));
            let offset: String = rest.by_ref().map(char::from).filter(|c| *c != ':').collect();
            if !matches!(offset.len(), 2 | 4) || !offset.bytes().all(|digit| digit.is_ascii_digit()) {
                return None;
            }
            written.push_str(&offset);
            if offset.len() == 2 {
                written.push_str("00");
            }
        }
        Some(_) => return None,
    }
    rest.next().is_none().then_some(written)
}

/// A time of HL7 v2, `YYYY[MM[DD[HH[MM[SS[.S[S[S[S]]]]]]]]][+/-ZZZZ]`: types `DT`, `DTM`, and the first component of `TS`.
///
/// # Source
/// HL7 v2.5.1 sections 2.A.21 (DT), 2.A.22 (DTM), 2.A.77 (TS).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ts {
    date: Date,
    clock: Clock,
    precision: Precision,
    offset: Option<i16>,
}

/// A time of day, `HH[MM[SS[.S[S[S[S]]]]]][+/-ZZZZ]`: type `TM`.
///
/// # Source
/// HL7 v2.5.1 section 2.A.75 (TM).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tm {
    clock: Clock,
    precision: Precision,
    offset: Option<i16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Clock {
    /// 24 only as 24:00:00.
    hour: u8,
    minute: u8,
    /// Up to 60.
    second: u8,
    nanoseconds: u32,
    /// How many digits of the fraction were given.
    digits: u8,
}

/// Shows the precision only: the time is a patient's.
impl fmt::Debug for Ts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ts").field("precision", &self.precision).finish_non_exhaustive()
    }
}

/// Shows the precision only: the time is a patient's.
impl fmt::Debug for Tm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tm").field("precision", &self.precision).finish_non_exhaustive()
    }
}

impl FromStr for Ts {
    type Err = TsError;

    fn from_str(text: &str) -> Result<Self, TsError> {
        Ts::parse(text)
    }
}

impl Ts {
    /// Reads a time; blanks around it are left out.
    ///
    /// # Errors
    /// When it is not in the form of HL7 v2, or names a day or hour that does not exist.
    pub fn parse(text: &str) -> Result<Ts, TsError> {
        let parts = Parts::of(text)?;
        let digits = parts.digits;
        let precision = match digits.len() {
            4 => Precision::Year,
            6 => Precision::Month,
            8 => Precision::Day,
            10 => Precision::Hour,
            12 => Precision::Minute,
            14 if parts.fraction.is_some() => Precision::Fraction,
            14 => Precision::Second,
            _ => return Err(TsError::Length),
        };
        if parts.fraction.is_some() && precision != Precision::Fraction {
            return Err(TsError::Fraction);
        }
        if digits.iter().all(|b| *b == b'0') {
            return Err(TsError::Zero);
        }
        let year = i16::from(two(digits, 0)) * 100 + i16::from(two(digits, 2));
        let month = if precision >= Precision::Month { two(digits, 4) } else { 1 };
        let day = if precision >= Precision::Day { two(digits, 6) } else { 1 };
        if year == 0 {
            return Err(TsError::Date);
        }
        let small = |n: u8| i8::try_from(n).map_err(|_| TsError::Date);
        let date = Date::new(year, small(month)?, small(day)?).map_err(|_| TsError::Date)?;
        let clock = Clock::read(digits.get(8..).unwrap_or_default(), parts.fraction)?;
        Ok(Ts { date, clock, precision, offset: parts.offset })
    }

    /// How much of it is given.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Its own offset in minutes east of UTC.
    pub fn offset_minutes(&self) -> Option<i16> {
        self.offset
    }

    /// As a FHIR `date`: year, month or day; a time of day is left out.
    pub fn to_date(&self) -> Written {
        let mut doubts = Vec::new();
        let date = self.calendar_date(&mut doubts);
        if self.precision <= Precision::Day && self.offset.is_some() {
            doubts.push(Doubt::OffsetLeftOut);
        }
        let mut text = String::with_capacity(10);
        write_date(&mut text, date, self.precision);
        Written { text, doubts }
    }

    /// As a FHIR `dateTime`: a date as far as it is given; with a time of day also seconds (zero if they are not given)
    /// and an offset, its own or that of `zone`.
    pub fn to_date_time(&self, zone: &Zone) -> Written {
        if self.precision <= Precision::Day { self.to_date() } else { self.with_offset(zone) }
    }

    /// As a FHIR `instant`.
    ///
    /// # Errors
    /// [`TsError::TooCoarse`] without a time of day.
    pub fn to_instant(&self, zone: &Zone) -> Result<Written, TsError> {
        if self.precision <= Precision::Day { Err(TsError::TooCoarse) } else { Ok(self.with_offset(zone)) }
    }

    /// The moment it names, or the first one of the year, month, day, hour or minute that it names; for comparing, not
    /// for showing.
    pub fn to_timestamp(&self, zone: &Zone) -> Option<jiff::Timestamp> {
        let mut doubts = Vec::new();
        let date = self.calendar_date(&mut doubts);
        let minutes = self.offset.unwrap_or_else(|| offset_in(zone, self.wall(date), &mut doubts));
        let offset = Offset::from_seconds(i32::from(minutes) * 60).ok()?;
        let leap = jiff::SignedDuration::from_secs(i64::from(self.clock.second == 60));
        offset.to_timestamp(self.wall(date)).ok()?.checked_add(leap).ok()
    }

    /// The date, moved on by a day for 24:00.
    fn calendar_date(&self, doubts: &mut Vec<Doubt>) -> Date {
        if self.clock.hour < 24 {
            return self.date;
        }
        doubts.push(Doubt::EndOfDay);
        self.date.tomorrow().unwrap_or(self.date)
    }

    fn wall(&self, date: Date) -> DateTime {
        // Hours below 25, minutes below 60, seconds below 61, nanoseconds below a billion: checked when it was read.
        let Clock { hour, minute, second, nanoseconds, .. } = self.clock;
        date.at((hour % 24) as i8, minute as i8, second.min(59) as i8, nanoseconds as i32)
    }

    fn with_offset(&self, zone: &Zone) -> Written {
        let mut doubts = Vec::new();
        let date = self.calendar_date(&mut doubts);
        let mut text = String::with_capacity(32);
        write_date(&mut text, date, Precision::Day);
        text.push('T');
        self.clock.write(&mut text);
        self.clock.doubts(self.precision, &mut doubts);
        match self.offset {
            Some(minutes) => write_offset(&mut text, minutes),
            None => {
                let minutes = offset_in(zone, self.wall(date), &mut doubts);
                if zone.zone == TimeZone::UTC { text.push('Z') } else { write_offset(&mut text, minutes) }
            }
        }
        Written { text, doubts }
    }
}

impl Tm {
    /// Reads a time of day; blanks around it are left out.
    ///
    /// # Errors
    /// When it is not in the form of HL7 v2, or names an hour that does not exist.
    pub fn parse(text: &str) -> Result<Tm, TsError> {
        let parts = Parts::of(text)?;
        let precision = match parts.digits.len() {
            2 => Precision::Hour,
            4 => Precision::Minute,
            6 if parts.fraction.is_some() => Precision::Fraction,
            6 => Precision::Second,
            _ => return Err(TsError::Length),
        };
        if parts.fraction.is_some() && precision != Precision::Fraction {
            return Err(TsError::Fraction);
        }
        Ok(Tm { clock: Clock::read(parts.digits, parts.fraction)?, precision, offset: parts.offset })
    }

    /// How much of it is given.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// As a FHIR `time`, which has no offset.
    pub fn to_time(&self) -> Written {
        let mut doubts = Vec::new();
        let mut text = String::with_capacity(16);
        let mut clock = self.clock;
        if clock.hour == 24 {
            clock.hour = 0;
            doubts.push(Doubt::EndOfDay);
        }
        clock.write(&mut text);
        clock.doubts(self.precision, &mut doubts);
        if self.offset.is_some() {
            doubts.push(Doubt::OffsetLeftOut);
        }
        Written { text, doubts }
    }
}

impl Clock {
    fn read(digits: &[u8], fraction: Option<&[u8]>) -> Result<Clock, TsError> {
        let at = |n: usize| if digits.len() > n { two(digits, n) } else { 0 };
        let mut clock = Clock { hour: at(0), minute: at(2), second: at(4), nanoseconds: 0, digits: 0 };
        if let Some(fraction) = fraction {
            if fraction.is_empty() || fraction.len() > 9 {
                return Err(TsError::Fraction);
            }
            let padded = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
            clock.nanoseconds = padded.fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
            // One to nine.
            clock.digits = fraction.len() as u8;
        }
        let midnight = clock.minute == 0 && clock.second == 0 && clock.nanoseconds == 0;
        let hour = clock.hour < 24 || (clock.hour == 24 && midnight);
        if hour && clock.minute < 60 && clock.second <= 60 { Ok(clock) } else { Err(TsError::TimeOfDay) }
    }

    fn write(&self, text: &mut String) {
        write_two(text, self.hour % 24);
        text.push(':');
        write_two(text, self.minute);
        text.push(':');
        write_two(text, self.second);
        if self.digits > 0 {
            text.push('.');
            let mut unit = 100_000_000;
            for _ in 0..self.digits {
                text.push(char::from(b'0' + (self.nanoseconds / unit % 10) as u8));
                unit /= 10;
            }
        }
    }

    fn doubts(&self, precision: Precision, doubts: &mut Vec<Doubt>) {
        if precision == Precision::Hour {
            doubts.push(Doubt::ZeroMinutes);
        }
        if self.second == 60 {
            doubts.push(Doubt::LeapSecond);
        }
    }
}

/// The parts of a time: digits, fraction and offset.
struct Parts<'t> {
    digits: &'t [u8],
    fraction: Option<&'t [u8]>,
    offset: Option<i16>,
}

impl<'t> Parts<'t> {
    fn of(text: &'t str) -> Result<Parts<'t>, TsError> {
        let bytes = text.trim_ascii().as_bytes();
        if bytes.is_empty() {
            return Err(TsError::Empty);
        }
        let main = bytes.iter().position(|b| matches!(b, b'+' | b'-' | b'Z' | b'z')).unwrap_or(bytes.len());
        let (main, zone) = bytes.split_at(main);
        let iso = bytes.iter().any(|b| matches!(b, b':' | b'T')) || (main.len() == 4 && zone.len() == 6);
        let point = main.iter().position(|b| *b == b'.');
        let (digits, fraction) = match point {
            Some(point) => (&main[..point], Some(&main[point + 1..])),
            None => (main, None),
        };
        let all_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
        if !all_digits(digits) || !fraction.is_none_or(all_digits) || digits.is_empty() {
            return Err(if iso { TsError::Iso } else { TsError::Form });
        }
        let offset = match zone {
            [] => None,
            _ if iso => return Err(TsError::Iso),
            [sign @ (b'+' | b'-'), hhmm @ ..] if hhmm.len() == 4 && all_digits(hhmm) => {
                let (hours, minutes) = (i16::from(two(hhmm, 0)), i16::from(two(hhmm, 2)));
                let total = hours * 60 + minutes;
                if minutes > 59 || total > OFFSET_MINUTES_MAX {
                    return Err(TsError::Offset);
                }
                Some(if *sign == b'-' { -total } else { total })
            }
            _ => return Err(TsError::Offset),
        };
        Ok(Parts { digits, fraction, offset })
    }
}

/// Two digits as a number; the caller has seen that they are digits and there.
fn two(digits: &[u8], at: usize) -> u8 {
    (digits[at] - b'0') * 10 + (digits[at + 1] - b'0')
}

/// The offset of a zone at a wall clock time, in minutes east of UTC.
fn offset_in(zone: &Zone, wall: DateTime, doubts: &mut Vec<Doubt>) -> i16 {
    if zone.assumed {
        doubts.push(Doubt::AssumedUtc);
    }
    let offset = match zone.zone.to_ambiguous_timestamp(wall).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Gap { before, .. } => {
            doubts.push(Doubt::NoSuchHour);
            before
        }
        AmbiguousOffset::Fold { before, .. } => {
            doubts.push(Doubt::AmbiguousHour);
            before
        }
    };
    // Offsets are within a day and a bit, which fits in minutes.
    (offset.seconds() / 60) as i16
}

fn write_two(text: &mut String, n: u8) {
    text.push(char::from(b'0' + n / 10));
    text.push(char::from(b'0' + n % 10));
}

fn write_date(text: &mut String, date: Date, precision: Precision) {
    let year = date.year().unsigned_abs();
    // A year has four digits, a month and a day two: jiff's `Date` holds no others here.
    write_two(text, (year / 100) as u8);
    write_two(text, (year % 100) as u8);
    if precision >= Precision::Month {
        text.push('-');
        write_two(text, date.month().unsigned_abs());
    }
    if precision >= Precision::Day {
        text.push('-');
        write_two(text, date.day().unsigned_abs());
    }
}

fn write_offset(text: &mut String, minutes: i16) {
    text.push(if minutes < 0 { '-' } else { '+' });
    // At most 14 hours, or what a zone says: below 26.
    write_two(text, (minutes.unsigned_abs() / 60) as u8);
    text.push(':');
    write_two(text, (minutes.unsigned_abs() % 60) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn berlin() -> Zone {
        Zone::named("Europe/Berlin").unwrap()
    }

    #[track_caller]
    fn check(text: &str, expected: &str, doubts: &[Doubt]) {
        let written = Ts::parse(text).unwrap().to_date_time(&berlin());
        assert_eq!((written.text.as_str(), &*written.doubts), (expected, doubts), "{text}");
    }

    #[test]
    fn iso_8601_is_written_as_hl7_does() {
        for (iso, hl7) in [
            ("2026", Some("2026")),
            ("2026-01", Some("202601")),
            ("2026-01-02", Some("20260102")),
            ("2026-01-02T03:04", Some("202601020304")),
            ("2026-01-02 03:04:05", Some("20260102030405")),
            ("2026-01-02T03:04:05Z", Some("20260102030405+0000")),
            ("2026-01-02t03:04:05.250-05:00", Some("20260102030405.250-0500")),
            ("2026-01-02T03:04:05,1+0130", Some("20260102030405.1+0130")),
            ("2026-01-02T03:04:05+01", Some("20260102030405+0100")),
            ("03:04:05", Some("030405")),
            (" 2026-01-02 ", Some("20260102")),
            ("20260102", None),
            ("2026T10:15", None),
            ("2026-01T10:15", None),
            ("2026-1-2", None),
            ("2026-01-02Z", None),
            ("2026-01-02T03:04:05+1:00", None),
            ("2026-01-02T03:04:05 UTC", None),
            ("01/02/2026", None),
            ("", None),
            ("\u{0662}\u{0660}", None),
        ] {
            assert_eq!(from_iso(iso).as_deref(), hl7, "{iso}");
        }
    }

    #[test]
    fn every_precision_is_kept() {
        check("2024", "2024", &[]);
        check("202402", "2024-02", &[]);
        check("20240229", "2024-02-29", &[]);
        check("2024022923", "2024-02-29T23:00:00+01:00", &[Doubt::ZeroMinutes]);
        check("202402292359", "2024-02-29T23:59:00+01:00", &[]);
        check("20240229235958", "2024-02-29T23:59:58+01:00", &[]);
        check("20240229235958.1", "2024-02-29T23:59:58.1+01:00", &[]);
        check("20240229235958.1230", "2024-02-29T23:59:58.1230+01:00", &[]);
        check("20240229235958.000000001", "2024-02-29T23:59:58.000000001+01:00", &[]);
        check(" 20240229 ", "2024-02-29", &[]);
    }

    #[test]
    fn its_own_offset_wins() {
        check("20240701120000+0000", "2024-07-01T12:00:00+00:00", &[]);
        check("20240701120000-0330", "2024-07-01T12:00:00-03:30", &[]);
        check("20240701120000-0030", "2024-07-01T12:00:00-00:30", &[]);
        check("202407011200+1400", "2024-07-01T12:00:00+14:00", &[]);
        check("20240701+0200", "2024-07-01", &[Doubt::OffsetLeftOut]);
        check("2024+0200", "2024", &[Doubt::OffsetLeftOut]);
    }

    #[test]
    fn the_zone_of_the_source_knows_summer_and_its_borders() {
        check("202407011200", "2024-07-01T12:00:00+02:00", &[]);
        check("202401011200", "2024-01-01T12:00:00+01:00", &[]);
        check("202410270230", "2024-10-27T02:30:00+02:00", &[Doubt::AmbiguousHour]);
        check("202403310230", "2024-03-31T02:30:00+01:00", &[Doubt::NoSuchHour]);
    }

    #[test]
    fn without_any_zone_utc_is_assumed_and_said() {
        let ts = Ts::parse("202407011200").unwrap();
        let written = ts.to_date_time(&Zone::UNSTATED);
        assert_eq!(
            (written.text.as_str(), &*written.doubts),
            ("2024-07-01T12:00:00Z", &[Doubt::AssumedUtc][..])
        );
        assert_eq!(ts.to_date_time(&Zone::UTC).doubts, []);
        assert_eq!(Ts::parse("20240701").unwrap().to_date_time(&Zone::UNSTATED).doubts, []);
    }

    #[test]
    fn the_offset_of_msh_7_comes_before_the_zone_of_the_source() {
        let noon = Ts::parse("202407011200").unwrap();
        let written = |made_at| noon.to_date_time(&Zone::of_message(made_at, &berlin())).text;
        assert_eq!(written(Some("20240701120000-0500")), "2024-07-01T12:00:00-05:00");
        for without in [None, Some("20240701120000"), Some("rubbish-0500")] {
            assert_eq!(written(without), "2024-07-01T12:00:00+02:00");
        }
    }

    #[test]
    fn odd_hours_are_flagged() {
        check("20240229235960", "2024-02-29T23:59:60+01:00", &[Doubt::LeapSecond]);
        check("202402282400", "2024-02-29T00:00:00+01:00", &[Doubt::EndOfDay]);
        check("2024022824", "2024-02-29T00:00:00+01:00", &[Doubt::EndOfDay, Doubt::ZeroMinutes]);
        check("20241231240000.00", "2025-01-01T00:00:00.00+01:00", &[Doubt::EndOfDay]);
        assert_eq!(Ts::parse("202402282400").unwrap().to_date().text, "2024-02-29");
    }

    #[test]
    fn what_is_no_time_says_why() {
        for (text, expected) in [
            ("", TsError::Empty),
            ("   ", TsError::Empty),
            ("2024-03-01", TsError::Iso),
            ("2024-03-01T12:00:00Z", TsError::Iso),
            ("2024-03-01 12:00", TsError::Iso),
            ("20240301T1200", TsError::Iso),
            ("20240301120000+01:00", TsError::Iso),
            ("03/01/2024", TsError::Form),
            ("UNKNOWN", TsError::Form),
            ("+0100", TsError::Form),
            (".5", TsError::Form),
            ("202", TsError::Length),
            ("20240", TsError::Length),
            ("2024030", TsError::Length),
            ("20240301120", TsError::Length),
            ("2024030112000000", TsError::Length),
            ("0000", TsError::Zero),
            ("00000000", TsError::Zero),
            ("00000000000000", TsError::Zero),
            ("00000101", TsError::Date),
            ("19701341", TsError::Date),
            ("20230229", TsError::Date),
            ("20240001", TsError::Date),
            ("20240100", TsError::Date),
            ("202401999", TsError::Length),
            ("20230229250000", TsError::Date),
            ("20240229250000", TsError::TimeOfDay),
            ("202402292401", TsError::TimeOfDay),
            ("202402292360", TsError::TimeOfDay),
            ("20240229235961", TsError::TimeOfDay),
            ("20240229235959.", TsError::Fraction),
            ("20240229235959.1234567890", TsError::Fraction),
            ("202402292359.5", TsError::Fraction),
            ("20240229.5", TsError::Fraction),
            ("20240229235959-05", TsError::Offset),
            ("20240229235959+0160", TsError::Offset),
            ("20240229235959+1401", TsError::Offset),
            ("20240229235959+", TsError::Offset),
            ("20240229235959Z", TsError::Offset),
            ("２０２４", TsError::Form),
        ] {
            assert_eq!(Ts::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn an_instant_needs_a_time_of_day() {
        let instant = |text: &str| Ts::parse(text).unwrap().to_instant(&berlin()).map(|w| w.text);
        assert_eq!(instant("20240229"), Err(TsError::TooCoarse));
        assert_eq!(instant("202402291200").as_deref(), Ok("2024-02-29T12:00:00+01:00"));
    }

    #[test]
    fn moments_are_compared_across_offsets() {
        let moment = |text: &str| Ts::parse(text).unwrap().to_timestamp(&berlin()).unwrap();
        assert_eq!(moment("202407011200"), moment("202407011000+0000"));
        assert!(moment("2024") < moment("20240101000001"));
        assert_eq!(moment("20240229235960"), moment("20240301"));
        assert_eq!(moment("202402292400"), moment("20240301"));
    }

    #[test]
    fn times_of_day() {
        let time = |text: &str| Tm::parse(text).map(|tm| tm.to_time()).map(|w| (w.text, w.doubts));
        assert_eq!(time("1201"), Ok(("12:01:00".to_owned(), vec![])));
        assert_eq!(time("12"), Ok(("12:00:00".to_owned(), vec![Doubt::ZeroMinutes])));
        assert_eq!(time("120159.50"), Ok(("12:01:59.50".to_owned(), vec![])));
        assert_eq!(time("1201-0500"), Ok(("12:01:00".to_owned(), vec![Doubt::OffsetLeftOut])));
        assert_eq!(time("2400"), Ok(("00:00:00".to_owned(), vec![Doubt::EndOfDay])));
        assert_eq!(time("120"), Err(TsError::Length));
        assert_eq!(time("12:01"), Err(TsError::Iso));
        assert_eq!(time("2501"), Err(TsError::TimeOfDay));
    }

    #[test]
    fn zones_are_built_in() {
        assert!(Zone::named("America/Argentina/Buenos_Aires").is_ok());
        assert_eq!(Zone::named("Europe/Berlim"), Err(UnknownZone));
        assert_eq!(Zone::named(""), Err(UnknownZone));
        assert_eq!(Zone::offset(841), None);
    }

    #[test]
    fn debug_shows_no_time() {
        let ts = Ts::parse("19700101").unwrap();
        assert!(!format!("{ts:?}{:?}", ts.to_date()).contains("1970"));
    }

    proptest! {
        #[test]
        fn a_time_that_exists_is_written_as_it_reads(
            (year, month, day) in (1i16..=9999, 1u8..=12, 1u8..=28),
            (hour, minute, second) in (0u8..24, 0u8..60, 0u8..60),
            fraction in "(\\.[0-9]{1,9})?",
            offset in -840i16..=840,
        ) {
            let sign = if offset < 0 { '-' } else { '+' };
            let (oh, om) = (offset.abs() / 60, offset.abs() % 60);
            let text = format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}{fraction}{sign}{oh:02}{om:02}");
            let expected =
                format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{sign}{oh:02}:{om:02}");
            let written = Ts::parse(&text).unwrap().to_date_time(&Zone::UNSTATED);
            prop_assert_eq!(written.text, expected);
            prop_assert!(written.doubts.is_empty());
        }

        #[test]
        fn no_text_breaks_the_reader(text in "(.*|[0-9]{0,16}[.+Z-]?[0-9]{0,10}[+-]?[0-9]{0,5})") {
            for zone in [Zone::UNSTATED, berlin()] {
                if let Ok(ts) = Ts::parse(&text) {
                    let _ = (ts.to_date(), ts.to_date_time(&zone), ts.to_instant(&zone), ts.to_timestamp(&zone));
                }
                let _ = Tm::parse(&text).map(|tm| tm.to_time());
            }
        }
    }
}
