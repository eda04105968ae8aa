//! Makes a dictionary for what the gateway compresses, out of the resources that the messages in the mappings' tests give: all of
//! them invented.
//!
//! `cargo run --release -p tests --bin train-dictionary -- FILE`

#![expect(clippy::print_stdout, reason = "a command for people")]

use anyhow::{Context as _, Result};
use clap::Parser;
use mappings::resource::State;
use mappings::{Catalog, Context};
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message};
use std::path::PathBuf;
use uuid::Uuid;

/// The size of the dictionary: with half of it the states take an eighth to a quarter more.
const BYTES: usize = 64 << 10;

/// Makes a dictionary for what the gateway compresses.
#[derive(Parser)]
struct Arguments {
    /// Where to write it
    file: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let catalog = Catalog::builtin();
    let mut samples = Vec::new();
    for (number, text) in catalog.test_messages().enumerate() {
        states(&catalog, number, text, &mut samples);
    }
    let dictionary = zstd::dict::from_samples(&samples, BYTES).context("training")?;
    std::fs::write(&arguments.file, &dictionary).context("the file cannot be written")?;
    println!("{} bytes from {} resources", dictionary.len(), samples.len());
    Ok(())
}

/// The states of the resources of one message, as the store keeps them.
fn states(catalog: &Catalog, number: usize, text: &str, samples: &mut Vec<Vec<u8>>) {
    let Ok(message) = Message::parse(text, &Limits::default()) else { return };
    let sender = "test";
    let Some(program) = catalog.program_of(sender, &message) else { return };
    let context = Context {
        // Ids and places differ from message to message, as they do in a hospital.
        message_id: Uuid::new_v5(&Uuid::NAMESPACE_OID, &number.to_le_bytes()),
        received_at: jiff::Timestamp::UNIX_EPOCH,
        seq: i64::try_from(number).unwrap_or(i64::MAX),
        sender: sender.into(),
        authority: sender.into(),
        zone: Zone::UTC,
        namespace: Uuid::new_v5(&Uuid::NAMESPACE_URL, &number.to_le_bytes()),
        systems: &[],
        options: &[],
        wire: &[],
        codes: None,
        parties: mappings::Parties::default(),
    };
    let Ok(mapped) = program.run(&message, &context) else { return };
    for contribution in &mapped.contributions {
        let mut state = State::default();
        state.apply(contribution, &mapped.stamp, context.message_id);
        samples.push(state.encode());
    }
}
