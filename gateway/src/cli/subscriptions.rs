//! `pons subscriptions`: who is told of what, how that stands, and what still has to go out; a person may end what a client made.

use super::{
    ConfigArgument, Exit, Failure, ListFormat, Outcome, beside, block_on, columns, complain, configuration,
    print,
};
use crate::ingest::senders::Senders;
use crate::route::notification::TOPIC;
use crate::route::roster::{Enrolment, Roster};
use crate::store::{Requested, Standing, Store};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

/// How many open deliveries are counted; beyond, only that there are more is told.
const COUNTED_MAX: usize = 10_000;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(subcommand)]
    verb: Option<Verb>,
    /// How to print them
    #[arg(long, value_enum, default_value = "table")]
    format: ListFormat,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Switch off one that a client made: its owner may ask for it again; a dry run unless --yes
    Off(Which),
    /// Delete one that a client made, and give up what it still had to be sent; a dry run unless --yes
    Remove(Which),
}

#[derive(Args, Debug)]
struct Which {
    /// Its id
    id: Uuid,
    /// Do it; without this, only say what would be done
    #[arg(long)]
    yes: bool,
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    match &arguments.verb {
        None => list(&arguments.config, arguments.format),
        Some(Verb::Off(which)) => end(&arguments.config, which, Standing::Off),
        Some(Verb::Remove(which)) => end(&arguments.config, which, Standing::Removed),
    }
}

/// One line of the list.
struct Line {
    name: String,
    owner: String,
    topics: String,
    to: String,
    status: &'static str,
    error: String,
    events: i64,
    open: usize,
    parked: usize,
}

impl Line {
    /// With what the store knows of it.
    async fn counted(mut self, store: &dyn Store) -> Result<Line, Failure> {
        self.events = store.last_event(&self.name).await?;
        self.open = store.open_deliveries(&self.name, 0, COUNTED_MAX).await?.len();
        self.parked = store.parked_deliveries(&self.name, COUNTED_MAX).await?.len();
        Ok(self)
    }
}

fn list(config: &ConfigArgument, format: ListFormat) -> Outcome {
    let read = configuration(config)?;
    let lines = block_on(async {
        let store = beside(config).await?;
        // As a gateway with this configuration takes them: one that it does not allow any more is not sent anything.
        let senders = Senders::new(read.senders, Vec::new());
        let roster = Roster::new(store.clone(), Vec::new(), senders, read.http.base_url, Uuid::nil());
        let enrolled = roster.refresh().await?;
        let mut lines = Vec::new();
        for one in read.subscriptions {
            let (adapter, to) = one.channel;
            let line = Line {
                name: one.name.to_string(),
                owner: one.owner.as_deref().unwrap_or_default().to_owned(),
                topics: one.topics.join(","),
                to: format!("{adapter} {}", address(&to)),
                status: Standing::Active.code(),
                error: String::new(),
                events: 0,
                open: 0,
                parked: 0,
            };
            lines.push(line.counted(&*store).await?);
        }
        for Enrolment { stored: one, wanted } in enrolled.requested.iter().map(|one| &**one) {
            if one.standing == Standing::Removed {
                continue;
            }
            let barred = wanted.as_ref().err();
            let resource: Value = serde_json::from_str(&one.resource).unwrap_or_default();
            let criteria = resource["criteria"].as_str().unwrap_or_default();
            let endpoint = resource["channel"]["endpoint"].as_str().unwrap_or_default();
            let line = Line {
                name: one.id.to_string(),
                owner: one.owner.to_string(),
                topics: criteria.strip_prefix(TOPIC).unwrap_or(criteria).to_owned(),
                to: format!("rest-hook {}", address(endpoint)),
                status: barred.map_or(one.standing, |_| Standing::Refused).code(),
                error: barred.map_or_else(|| one.error.clone(), |why| why.to_string()),
                events: 0,
                open: 0,
                parked: 0,
            };
            lines.push(line.counted(&*store).await?);
        }
        Ok(lines)
    })?;
    match format {
        ListFormat::Json => {
            for one in &lines {
                let line = json!({
                    "name": one.name, "owner": one.owner, "topics": one.topics, "to": one.to, "status": one.status,
                    "error": one.error, "events": one.events, "open": one.open, "parked": one.parked,
                });
                print(&line.to_string())?;
            }
        }
        ListFormat::Table => columns(
            ["NAME", "OWNER", "TOPICS", "TO", "STATUS", "EVENTS", "OPEN", "PARKED", "WHY"],
            lines.iter().map(|one| {
                [
                    one.name.clone(),
                    one.owner.clone(),
                    one.topics.clone(),
                    one.to.clone(),
                    one.status.to_owned(),
                    one.events.to_string(),
                    counted(one.open),
                    counted(one.parked),
                    one.error.escape_debug().to_string(),
                ]
            }),
        )?,
    }
    Ok(Exit::Ok)
}

fn counted(count: usize) -> String {
    if count < COUNTED_MAX { count.to_string() } else { format!("{count}+") }
}

/// An address without what may be secret in it.
fn address(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().escape_debug().to_string()
}

fn end(config: &ConfigArgument, which: &Which, standing: Standing) -> Outcome {
    block_on(async {
        let store = beside(config).await?;
        let all = store.requested(-1).await?.map(|all| all.rows).unwrap_or_default();
        let known = all.into_iter().find(|one| one.id == which.id && one.standing != Standing::Removed);
        let Some(known) = known else {
            let text = "no client made a subscription of this id; `pons subscriptions` lists them";
            return Err(Failure::new(Exit::Usage, text));
        };
        let name = known.id.to_string();
        let open = store.open_deliveries(&name, 0, COUNTED_MAX).await?.len();
        let (open, parked) =
            (counted(open), counted(store.parked_deliveries(&name, COUNTED_MAX).await?.len()));
        if !which.yes {
            complain(&format!(
                "dry run: {open} events still to be sent and {parked} dead letters would be given up; --yes does it"
            ));
            return Ok(Exit::Ok);
        }
        let version = known.version + 1;
        let error = match standing {
            Standing::Removed => String::new(),
            _ => "switched off by the operator of the gateway".to_owned(),
        };
        store.write_requested(&Requested { version, standing, is_live: false, error, ..known }).await?;
        complain(
            "done; the running gateway follows within seconds, and gives up what is open within two minutes",
        );
        Ok(Exit::Ok)
    })
}
