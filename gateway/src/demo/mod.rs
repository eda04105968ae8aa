//! `pons demo`: the gateway on its embedded default, with a hospital, a lab and an insurer on real loopback sockets, told
//! as it happens. Every patient here is invented.

mod messages;
mod parties;

use crate::cli::{Exit, Failure, Outcome, print};
use crate::config::Config;
use crate::pipeline::{self, Running};
use crate::store::Query;
use clap::Args;
use parties::{Inbox, Letter};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The arguments of `pons demo`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// End after the story instead of staying up
    #[arg(long)]
    exit: bool,
}

/// How long the demo waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tells the story. Ends with 0 only if everybody received what the story says.
pub fn main(arguments: &Arguments) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let folder = Folder::new()?;
        let told = Box::pin(story(arguments, &folder)).await;
        drop(folder);
        told
    })
}

async fn story(arguments: &Arguments, folder: &Folder) -> Outcome {
    say("Pons demo: a hospital, a lab and an insurer, all on this machine. The patient is invented.")?;
    let mut ward = parties::mllp("ward").await?;
    let mut lab = parties::mllp("lab").await?;
    let mut insurer = parties::webhook().await?;
    let config = configuration(folder, &[ward.address, lab.address, insurer.address]);
    let config = Config::parse(&config, &folder.0).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Configuration, lines.join("\n"))
    })?;
    let started = Instant::now();
    let running = pipeline::start(config).await?;
    let door = running.sources.first().and_then(|(_, address)| *address);
    let door = door.ok_or_else(|| Failure::new(Exit::Failed, "the gateway does not listen"))?;
    say(&format!(
        "\nThe gateway is up after {} ms: HL7 v2 over MLLP at {door}.",
        started.elapsed().as_millis()
    ))?;
    say("  The insurer subscribes to encounter-start and encounter-end, by FHIR over HTTP.")?;
    say("  The lab subscribes to order-placed, the ward to result-final, both by HL7 v2 over MLLP.")?;

    let told = chapters(door, &mut ward, &mut lab, &mut insurer).await;
    if told.is_ok() {
        ledger(&running).await?;
    }
    if told.is_ok() && !arguments.exit {
        say(&format!(
            "\nThe gateway stays up. Send it a message of your own: pons send --to {door} FILE. Ctrl-C ends it."
        ))?;
        tokio::signal::ctrl_c().await?;
    }
    running.stop().await;
    told.map(|()| Exit::Ok)
}

async fn chapters(
    door: SocketAddr,
    ward: &mut Inbox,
    lab: &mut Inbox,
    insurer: &mut Inbox,
) -> Result<(), Failure> {
    say("\n1. The hospital admits TEST^JANE: ADT^A01")?;
    parties::send(door, messages::ADMISSION).await?;
    heard("insurer", insurer, "encounter-start").await?;

    say("\n2. The ward orders a potassium: ORM^O01")?;
    parties::send(door, messages::ORDER).await?;
    heard("lab", lab, "ORM^O01").await?;

    say("\n3. The lab answers with the result: ORU^R01")?;
    parties::send(door, messages::RESULT).await?;
    heard("ward", ward, "ORU^R01").await?;

    say("\n4. The hospital discharges her: ADT^A03")?;
    parties::send(door, messages::DISCHARGE).await?;
    heard("insurer", insurer, "encounter-end").await
}

/// Waits for the next letter of somebody and tells of it; another one than expected is a failure.
async fn heard(who: &str, inbox: &mut Inbox, expected: &str) -> Result<(), Failure> {
    let letter = tokio::time::timeout(PATIENCE, inbox.letters.recv()).await.ok().flatten();
    let Some(Letter { about, summary }) = letter else {
        return Err(Failure::new(
            Exit::Failed,
            format!("the {who} was not told of {expected} in {PATIENCE:?}"),
        ));
    };
    if about != expected {
        return Err(Failure::new(Exit::Failed, format!("the {who} was told of {about}, not of {expected}")));
    }
    say(&format!("   the {who} receives {about}: {summary}"))
}

/// What the store says of it all.
async fn ledger(running: &Running) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    // Outcomes are written a moment after the last letter has arrived.
    loop {
        let open =
            running.store.books().await?.iter().map(|book| book.routed_open + book.waiting).sum::<i64>();
        if open == 0 || Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    say("\nWhat the store says (pons search, pons show ID):")?;
    let mut found = running.store.search(&Query { limit: 10, ..Query::default() }).await?;
    found.reverse();
    crate::cli::table(&found)
}

fn say(line: &str) -> Result<(), Failure> {
    print(line)
}

fn configuration(folder: &Folder, addresses: &[SocketAddr; 3]) -> String {
    let [ward, lab, insurer] = addresses;
    format!(
        "data_dir: '{}'\n\
         http: {{listen: '127.0.0.1:0'}}\n\
         sources:\n\
         - {{name: main, adapter: mllp, listen: '127.0.0.1:0', zone: Europe/Berlin}}\n\
         senders:\n\
         - {{name: hospital, facility: TESTHOSPITAL}}\n\
         - {{name: lab, facility: TESTLAB}}\n\
         subscriptions:\n\
         - {{name: insurer, topics: [encounter-start, encounter-end], senders: [hospital],\n   \
              destination: {{adapter: rest-hook, url: 'http://{insurer}/events'}}}}\n\
         - {{name: lab-orders, topics: [order-placed], senders: [hospital],\n   \
              destination: {{adapter: mllp, connect: '{lab}'}}}}\n\
         - {{name: ward-results, topics: [result-final], senders: [lab],\n   \
              destination: {{adapter: mllp, connect: '{ward}'}}}}\n",
        folder.0.display()
    )
}

/// A folder of its own under the system's temporary one, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("pons-demo-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "the demo's folder could not be removed");
        }
    }
}
