//! `pons send`: an MLLP client that waits for each ACK; made of the same destination that the gateway delivers with.

use super::{Exit, Failure, Outcome, block_on, complain, print};
use adapters::{DeliverError, Destination, Outgoing};
use bytes::Bytes;
use clap::Args;
use schemas::hl7v2::split::split;
use schemas::message::DeliveryId;
use schemas::yaml::{self, Fields};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Where to send
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// Files with one or many messages; `-` reads standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    let destination = destination(&arguments.to)?;
    block_on(async {
        let mut exit = Exit::Ok;
        for file in &arguments.files {
            let bytes = read(file)?;
            let pieces = split(&bytes).pieces;
            if pieces.is_empty() {
                return Err(Failure::new(Exit::Data, format!("there is no message in {}", file.display())));
            }
            for (index, piece) in pieces.iter().enumerate() {
                let original = Bytes::copy_from_slice(&bytes[piece.range.clone()]);
                let outgoing = Outgoing {
                    delivery: DeliveryId(Uuid::now_v7()),
                    subscription: "pons-send".into(),
                    attempt: 1,
                    bundle: Bytes::new(),
                    event: Bytes::new(),
                    passes: None,
                    original,
                    traceparent: None,
                };
                let place = format!("{}#{}", file.display(), index + 1);
                match destination.deliver(&outgoing).await {
                    Ok(receipt) => print(&format!("{place}  {}", receipt.answer))?,
                    Err(DeliverError::Again { answer, away: true, .. }) => {
                        return Err(Failure::new(Exit::Unavailable, format!("{place}: {answer}")));
                    }
                    Err(DeliverError::Again { answer, .. } | DeliverError::Never { answer }) => {
                        print(&format!("{place}  {answer}"))?;
                        exit = Exit::Failed;
                    }
                }
            }
        }
        if exit == Exit::Failed {
            complain("some messages were not taken");
        }
        Ok(exit)
    })
}

fn destination(to: &str) -> Result<Arc<dyn Destination>, Failure> {
    let usage = |text: String| Failure::new(Exit::Usage, format!("--to: {text}"));
    let spec =
        adapters::adapter("mllp").and_then(|spec| spec.destination.as_ref()).expect("MLLP goes both ways");
    let quoted = to.replace('\'', "");
    let node =
        yaml::read(&format!("connect: '{quoted}'\nplain_text_waiver: asked for on the command line\n"))
            .map_err(|mistake| usage(mistake.text))?
            .remove(0);
    let mut mistakes = Vec::new();
    let mut fields = Fields::new(&node, "", &mut mistakes);
    let destination = (spec.read)(&mut fields, Path::new(""));
    match (destination, mistakes.into_iter().next()) {
        (Some(destination), None) => Ok(destination),
        (_, mistake) => Err(usage(mistake.map_or("expected HOST:PORT".to_owned(), |mistake| mistake.text))),
    }
}

/// Reads a file, or standard input for `-`.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let read = if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).map(|_| bytes)
    } else {
        std::fs::read(file)
    };
    read.map_err(|error| Failure::new(Exit::Data, format!("cannot read {}: {error}", file.display())))
}
