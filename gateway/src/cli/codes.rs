//! `pons codes`: the codes that no table translates; a person translates one, and the messages that wait for it go again.

use super::{
    ConfigArgument, Exit, Failure, ListFormat, Outcome, beside, block_on, columns, complain, configuration,
    print,
};
use crate::pipeline;
use crate::store::UnmappedSeen;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use mappings::{Catalog, SiteCode};
use schemas::message::MessageId;
use serde_json::json;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    list: List,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Translate one code of one sender; a dry run unless --yes
    Map(Map),
}

#[derive(Args, Debug)]
struct List {
    /// Only this sender's
    #[arg(long, value_name = "X")]
    sender: Option<String>,
    /// Only this table's
    #[arg(long, value_name = "T")]
    table: Option<String>,
    /// At most so many, the most frequent first
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// How to print them
    #[arg(long, value_enum, default_value = "table")]
    format: ListFormat,
}

#[derive(Args, Debug)]
struct Map {
    /// The code as it is sent
    code: String,
    /// Whose code it is
    #[arg(long, value_name = "X")]
    sender: String,
    /// The table that does not know it
    #[arg(long, value_name = "T")]
    table: String,
    /// The code that FHIR is to have for it
    #[arg(long, value_name = "CODE")]
    to: String,
    /// The code system of that code; not needed where the element has a fixed list of codes
    #[arg(long, value_name = "URI")]
    system: Option<String>,
    /// What that code is called
    #[arg(long, value_name = "TEXT")]
    display: Option<String>,
    /// Do it; without this, only say what would be done
    #[arg(long)]
    yes: bool,
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    match &arguments.verb {
        None => list(&arguments.config, &arguments.list),
        Some(Verb::Map(map)) => translate(&arguments.config, map),
    }
}

fn list(config: &ConfigArgument, arguments: &List) -> Outcome {
    let (sender, table) = (arguments.sender.as_deref(), arguments.table.as_deref());
    let found =
        block_on(async { Ok(beside(config).await?.unmapped_codes(sender, table, arguments.limit).await?) })?;
    match arguments.format {
        ListFormat::Json => {
            for one in &found {
                print(&as_json(one).to_string())?;
            }
        }
        ListFormat::Table => columns(
            ["SENDER", "TABLE", "CODE", "MESSAGES", "FIRST", "LAST", "LAST MESSAGE"],
            found.iter().map(|one| {
                [
                    one.sender.clone(),
                    one.table.clone(),
                    // A sender may put anything into a code, also what a terminal obeys.
                    one.code.escape_debug().to_string(),
                    one.messages.to_string(),
                    day(one.first),
                    day(one.last),
                    one.last.to_string(),
                ]
            }),
        )?,
    }
    if found.len() == arguments.limit {
        complain(&format!("only the most frequent {} are shown; --limit shows more", arguments.limit));
    }
    Ok(Exit::Ok)
}

fn as_json(one: &UnmappedSeen) -> serde_json::Value {
    json!({
        "sender": one.sender,
        "table": one.table,
        "code": one.code,
        "messages": one.messages,
        "first": received(one.first).map(|time| time.to_string()),
        "last": received(one.last).map(|time| time.to_string()),
        "last_message": one.last.to_string(),
    })
}

/// When a message came: its id says it.
fn received(id: MessageId) -> Option<Timestamp> {
    let (seconds, nanoseconds) = id.0.get_timestamp()?.to_unix();
    Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?).ok()
}

fn day(id: MessageId) -> String {
    received(id).map(|time| format!("{time:.0}")).unwrap_or_default()
}

fn translate(config: &ConfigArgument, arguments: &Map) -> Outcome {
    let code = site_code(arguments, &pipeline::catalog(&configuration(config)?)?)?;
    block_on(async {
        let store = beside(config).await?;
        let waiting = store.unmapped_codes(Some(&code.sender), Some(&code.table), usize::MAX).await?;
        let waiting = waiting.iter().find(|one| one.code == code.code).map_or(0, |one| one.messages);
        if !arguments.yes {
            complain(&format!(
                "dry run: {waiting} messages wait for it and would be mapped again; --yes does it"
            ));
            return Ok(Exit::Ok);
        }
        let asked = store.translate_code("pons codes", &code).await?;
        complain(&format!(
            "translated; {asked} messages are to be mapped again; the running gateway carries it out, in their order"
        ));
        Ok(Exit::Ok)
    })
}

/// What is said of the code, if the mappings can use it.
fn site_code(arguments: &Map, catalog: &Catalog) -> Result<SiteCode, Failure> {
    let Map { code, sender, table, to, system, display, .. } = arguments;
    let usage = |text: String| Err(Failure::new(Exit::Usage, text));
    if !catalog.tables().any(|known| known == table) {
        let near = schemas::yaml::nearest(table, catalog.tables());
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        return usage(format!("--table: no mapping has a table of this name{hint}"));
    }
    match (catalog.fixed_targets(table), system) {
        (Some(targets), _) if !targets.contains(&to.as_str()) => {
            return usage(format!("--to: FHIR takes only these codes here: {}", targets.join(", ")));
        }
        (None, None) => {
            return usage("--system: expected the URI of the code system that --to is of".to_owned());
        }
        (_, Some(system)) if !system.contains(':') => {
            return usage("--system: expected a URI such as http://loinc.org".to_owned());
        }
        _ => {}
    }
    Ok(SiteCode {
        sender: sender.clone(),
        table: table.clone(),
        code: code.trim().to_owned(),
        system: system.clone().unwrap_or_default(),
        target: to.clone(),
        display: display.clone(),
    })
}
