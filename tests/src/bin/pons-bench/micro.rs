//! Parse and map: functions of their input, measured in this process.

use crate::Sort;
use anyhow::{Context as _, Result};
use mappings::{Catalog, Context, map_by};
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message};
use std::hint::black_box;
use std::time::Instant;
use tests::generate::{Population, Run};

/// How often the subject and its floor are measured in turn; the best round of each counts, since a neighbour's load only adds.
const ROUNDS: usize = 41;

/// What one call costs.
struct Cost {
    nanoseconds: f64,
    allocations: u64,
    bytes: u64,
}

/// Measures two functions in turn, so that a neighbour's load hits both alike. Answers what each costs in its best round, and
/// the ratio of the first to the second.
fn against(mut subject: impl FnMut(), mut floor: impl FnMut()) -> (Cost, Cost, f64) {
    let calls = calls_for_two_milliseconds(&mut subject);
    let floor_calls = calls_for_two_milliseconds(&mut floor);
    let mut best = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        let one = time(&mut subject, calls);
        let other = time(&mut floor, floor_calls);
        best = (best.0.min(one), best.1.min(other));
    }
    (cost(subject, best.0), cost(floor, best.1), best.0 / best.1)
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

fn cost(call: impl FnMut(), nanoseconds: f64) -> Cost {
    let counted = allocation_counter::measure(call);
    Cost { nanoseconds, allocations: counted.count_total, bytes: counted.bytes_total }
}

fn show(name: &str, subject: &Cost, floor: &Cost, ratio: f64) {
    println!(
        "{name}: {:.2} us, {} allocations of {} bytes; floor {:.2} us, {} allocations; ratio {ratio:.2}",
        subject.nanoseconds / 1e3,
        subject.allocations,
        subject.bytes,
        floor.nanoseconds / 1e3,
        floor.allocations
    );
}

fn text(sort: Sort) -> String {
    texts(sort, 1).remove(0)
}

/// Messages of as many patients, no two alike.
fn texts(sort: Sort, patients: u32) -> Vec<String> {
    let mut population = Population::new(Run::new(1), 1, patients);
    let messages = (0..patients).map(|patient| population.message(sort.kind(), patient).bytes);
    messages.map(|bytes| String::from_utf8(bytes).expect("our messages are UTF-8")).collect()
}

fn name(sort: Sort) -> &'static str {
    match sort {
        Sort::Admit => "ADT^A01",
        Sort::Result => "ORU^R01 with 20 OBX",
    }
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
    let limits = Limits::default();
    for sort in [Sort::Admit, Sort::Result] {
        let text = text(sort);
        let (subject, floor, ratio) = against(
            || {
                black_box(Message::parse(black_box(&text), &limits).is_ok());
            },
            || {
                black_box(visit_separators(black_box(&text)));
            },
        );
        show(&format!("parse {} ({} bytes)", name(sort), text.len()), &subject, &floor, ratio);
    }
}

/// How many patients' messages are mapped in turn, so that what is remembered from message to message helps no more than it
/// does in a hospital: every name, number, time and result is new, the tests, wards and doctors are not.
const PATIENTS: u32 = 500;

/// Prints what mapping costs, from the text of a message to the text of its Bundle. The floor serializes the same Bundle each
/// time, so that it lies in the processor's cache.
///
/// # Errors
/// When a message is not mapped.
pub(crate) fn map() -> Result<()> {
    let limits = Limits::default();
    let catalog = Catalog::builtin();
    for sort in [Sort::Admit, Sort::Result] {
        let texts = texts(sort, PATIENTS);
        let message = Message::parse(&texts[0], &limits).ok().context("our messages can be read")?;
        let program =
            catalog.program_of(&message).with_context(|| format!("no mapping takes {}", name(sort)))?;
        let map = |text: &str| {
            let message = Message::parse(black_box(text), &limits).ok()?;
            map_by(program, &message, &context()).ok()
        };
        let bundle = map(&texts[0]).with_context(|| format!("{} is not mapped", name(sort)))?.bundle;
        let value: serde_json::Value = serde_json::from_str(&bundle).context("a Bundle is JSON")?;
        let entries = value["entry"].as_array().map_or(0, Vec::len);
        let mut turn = (0..texts.len()).cycle();
        let (subject, floor, ratio) = against(
            || {
                black_box(map(&texts[turn.next().unwrap_or(0)]));
            },
            || {
                black_box(Message::parse(black_box(&texts[0]), &limits).is_ok());
                black_box(serde_json::to_vec(black_box(&value)).is_ok());
            },
        );
        let what = format!("map {} to {entries} entries of {} bytes", name(sort), bundle.len());
        show(&what, &subject, &floor, ratio);
    }
    Ok(())
}

fn context() -> Context<'static> {
    Context {
        message_id: uuid::Uuid::from_u128(1),
        received_at: jiff::Timestamp::UNIX_EPOCH,
        seq: 1,
        sender: "genhosp".into(),
        authority: "genhosp".into(),
        zone: Zone::UTC,
        namespace: uuid::Uuid::from_u128(2),
        systems: &[],
        options: &[],
    }
}
