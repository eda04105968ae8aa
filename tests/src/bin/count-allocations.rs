//! How often reading and mapping ask for memory, and for how much: a process of its own, because counting takes time.
//!
//! `cargo run --release -p tests --bin count-allocations`. Counted over messages of different patients, after as many that are
//! not counted.

#![expect(clippy::print_stdout, reason = "a command for people")]

use anyhow::Result;
use std::hint::black_box;
use tests::subjects::{KINDS, Mapper, PATIENTS, parse, texts};

fn main() -> Result<()> {
    let mapper = Mapper::default();
    for (kind, name) in KINDS {
        let texts = texts(kind, PATIENTS);
        let (before, counted) = texts.split_at(texts.len() / 2);
        before.iter().try_for_each(|text| mapper.map(text).map(drop))?;
        show("parse", name, counted, |text| {
            black_box(parse(text));
            Ok(())
        })?;
        show("map", name, counted, |text| mapper.map(text).map(drop))?;
    }
    Ok(())
}

fn show(what: &str, name: &str, texts: &[String], call: impl Fn(&str) -> Result<()>) -> Result<()> {
    let mut result = Ok(());
    let counted = allocation_counter::measure(|| result = texts.iter().try_for_each(|text| call(text)));
    result?;
    let messages = texts.len() as u64;
    println!(
        "{what} {name}: {} allocations of {} bytes a message",
        counted.count_total / messages,
        counted.bytes_total / messages
    );
    Ok(())
}
