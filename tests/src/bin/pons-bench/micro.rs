//! Parse and map: functions of their input, measured in this process.

use anyhow::{Context as _, Result};
use std::hint::black_box;
use std::time::Instant;
use tests::subjects::{KINDS, Mapper, PATIENTS, parse as read, texts};

/// How often the subject and its floor are measured in turn; the best round of each counts, since a neighbour's load only adds.
const ROUNDS: usize = 41;

/// Measures two functions in turn, so that a neighbour's load hits both alike. Answers what each takes in its best round, in
/// nanoseconds.
fn against(mut subject: impl FnMut(), mut floor: impl FnMut()) -> (f64, f64) {
    let calls = calls_for_two_milliseconds(&mut subject);
    let floor_calls = calls_for_two_milliseconds(&mut floor);
    let mut best = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        let one = time(&mut subject, calls);
        let other = time(&mut floor, floor_calls);
        best = (best.0.min(one), best.1.min(other));
    }
    best
}

fn time(call: &mut impl FnMut(), calls: u32) -> f64 {
    let began = Instant::now();
    for _ in 0..calls {
        call();
    }
    began.elapsed().as_nanos() as f64 / f64::from(calls)
}

fn calls_for_two_milliseconds(call: &mut impl FnMut()) -> u32 {
    let mut calls = 1;
    while time(call, calls) * f64::from(calls) < 2e6 && calls < 1 << 20 {
        calls *= 2;
    }
    calls
}

fn show(what: &str, (subject, floor): (f64, f64)) {
    println!("{what}: {:.2} us; floor {:.2} us; ratio {:.2}", subject / 1e3, floor / 1e3, subject / floor);
}

/// Visits every separator of a message: the least that reading it can take.
fn visit_separators(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut sum = 0;
    for at in memchr::memchr3_iter(b'|', b'^', b'\r', bytes) {
        sum += at;
    }
    for at in memchr::memchr2_iter(b'~', b'&', bytes) {
        sum += at;
    }
    sum
}

/// Prints what reading costs.
pub(crate) fn parse() {
    for (kind, name) in KINDS {
        let text = texts(kind, 1).remove(0);
        let figures = against(
            || {
                black_box(read(black_box(&text)));
            },
            || {
                black_box(visit_separators(black_box(&text)));
            },
        );
        show(&format!("parse {name} ({} bytes)", text.len()), figures);
    }
}

/// Prints what mapping costs, from the text of a message to the text of its Bundle. The floor reads the same message and
/// serializes the same Bundle each time, so that both lie in the processor's cache.
///
/// # Errors
/// When a message is not mapped.
pub(crate) fn map() -> Result<()> {
    let mapper = Mapper::default();
    for (kind, name) in KINDS {
        let texts = texts(kind, PATIENTS);
        let bundle = mapper.map(&texts[0])?;
        let value: serde_json::Value = serde_json::from_str(&bundle).context("a Bundle is JSON")?;
        let entries = value["entry"].as_array().map_or(0, Vec::len);
        // Every patient once before it counts.
        texts.iter().try_for_each(|text| mapper.map(text).map(drop))?;
        let mut turn = (0..texts.len()).cycle();
        let figures = against(
            || {
                black_box(mapper.map(black_box(&texts[turn.next().unwrap_or(0)])).is_ok());
            },
            || {
                black_box(read(black_box(&texts[0])));
                let mut out = Vec::with_capacity(bundle.len());
                black_box(serde_json::to_writer(&mut out, black_box(&value)).is_ok());
                black_box(out);
            },
        );
        show(&format!("map {name} to {entries} entries of {} bytes", bundle.len()), figures);
    }
    Ok(())
}
