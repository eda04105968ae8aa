//! The command line: a stable contract. Standard output is data; diagnostics go to standard error and never show a
//! patient's value unless `--show-phi` asks for it.

mod check;
mod codes;
mod coverage;
mod map;
mod replay;
mod run;
mod search;
mod send;
mod show;
mod subscriptions;
mod test;

use crate::config::Config;
use crate::store::{self, Role, Store, StoreError};
use clap::{Args, Parser, Subcommand, ValueEnum};
pub(crate) use search::table;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// How a subcommand ends. The numbers are those of sysexits where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: all went well.
    Ok,
    /// 1: the operation failed for some of what it was given; the rest is done.
    Failed,
    /// 2: the arguments are wrong.
    Usage,
    /// 65: the input cannot be read as what it should be.
    Data,
    /// 69: a store, a broker or a peer cannot be reached.
    Unavailable,
    /// 75: it failed for a reason that may pass: try again.
    TryAgain,
    /// 78: the configuration or a mapping is wrong.
    Configuration,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Data => 65,
            Exit::Unavailable => 69,
            Exit::TryAgain => 75,
            Exit::Configuration => 78,
        })
    }
}

/// A failed subcommand: what to tell and how to end.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Failure { exit, text: text.into() }
    }
}

impl Failure {
    fn from_store(error: &StoreError) -> Self {
        let exit = match error {
            StoreError::Away(_) => Exit::Unavailable,
            StoreError::Full | StoreError::Fenced | StoreError::Conflict => Exit::TryAgain,
            StoreError::NotDurable(_) | StoreError::Schema(_) | StoreError::Setup(_) => Exit::Configuration,
            StoreError::Bug(_) => Exit::Failed,
        };
        Failure::new(exit, crate::chain(error))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::from_store(&error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::new(Exit::Failed, error.to_string())
    }
}

/// How a subcommand ends, or why it failed.
pub(crate) type Outcome = Result<Exit, Failure>;

/// Pons, a health information exchange interoperability gateway.
#[derive(Parser, Debug)]
#[command(name = "pons", version, propagate_version = true, after_help = EXITS)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const EXITS: &str = "Exit: 0 done, 1 failed for some of its input, 2 usage, 65 unreadable input, 69 unavailable, \
                     75 try again, 78 configuration.";

#[derive(Subcommand, Debug)]
enum Verb {
    /// Start the gateway; without a file, the embedded default
    Run(ConfigArgument),
    /// Start the gateway with real senders and subscribers on loopback, and tell what happens
    Demo(crate::demo::Arguments),
    /// Messages in, FHIR Bundles out, one JSON document a line
    Map(map::Arguments),
    /// Check a configuration and the mappings, offline
    Check(check::Arguments),
    /// Run the mappings' tests
    Test(test::Arguments),
    /// Count how much of HL7's v2-to-FHIR guide the mappings do
    Coverage(coverage::Arguments),
    /// Send HL7 v2 messages over MLLP and wait for each ACK
    Send(send::Arguments),
    /// Find messages
    Search(search::Arguments),
    /// Show one message's timeline: received, mapped, each delivery and attempt
    Show(show::Arguments),
    /// Process messages or dead letters again; a dry run unless --yes
    Replay(replay::Arguments),
    /// List codes that no table translates, or translate one
    Codes(codes::Arguments),
    /// List subscriptions and how they stand, or end one that a client made
    Subscriptions(subscriptions::Arguments),
    /// Bring the store's schema up to date
    Migrate(ConfigArgument),
    /// Print the version
    Version,
}

/// Which configuration a verb goes by.
#[derive(Args, Debug, Clone)]
pub struct ConfigArgument {
    /// The configuration file; without one, the embedded default with its data in ./pons-data
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// How a list is printed.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum ListFormat {
    /// Aligned columns for people.
    Table,
    /// One JSON object a line.
    Json,
}

/// Runs `pons` with the arguments of this process.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Clap's own exit codes are 0 for help and 2 for usage, as in our table.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let outcome = match arguments.verb {
        Verb::Run(arguments) => run::main(&arguments),
        Verb::Demo(arguments) => crate::demo::main(&arguments),
        Verb::Map(arguments) => map::main(&arguments),
        Verb::Check(arguments) => check::main(&arguments),
        Verb::Test(arguments) => test::main(&arguments),
        Verb::Coverage(arguments) => coverage::main(&arguments),
        Verb::Send(arguments) => send::main(&arguments),
        Verb::Search(arguments) => search::main(&arguments),
        Verb::Show(arguments) => show::main(&arguments),
        Verb::Replay(arguments) => replay::main(&arguments),
        Verb::Codes(arguments) => codes::main(&arguments),
        Verb::Subscriptions(arguments) => subscriptions::main(&arguments),
        Verb::Migrate(arguments) => migrate(&arguments),
        Verb::Version => print(&format!("pons {}", env!("CARGO_PKG_VERSION"))).map(|()| Exit::Ok),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(Failure { exit, text }) => {
            complain(&text);
            exit.into()
        }
    }
}

fn migrate(arguments: &ConfigArgument) -> Outcome {
    let config = configuration(arguments)?;
    block_on(async {
        let store = store::open(config.store.reveal(), Role::Gateway).await?;
        store.migrate().await?;
        complain("the store's schema is up to date");
        Ok(Exit::Ok)
    })
}

/// Prints a line of data. A reader that went away (`| head`) ends the program quietly.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Prints aligned columns.
fn columns<const N: usize>(
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Result<(), Failure> {
    let rows: Vec<[String; N]> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        print(cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Prints a line for the person.
fn complain(line: &str) {
    // Nobody reads standard error: there is nothing left to tell it to.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Reads the configuration that a verb goes by.
fn configuration(arguments: &ConfigArgument) -> Result<Config, Failure> {
    let Some(path) = &arguments.config else { return Ok(Config::embedded()) };
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(Exit::Configuration, format!("cannot read {}: {error}", path.display()))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    Config::parse(&text, folder).map_err(|mistakes| {
        let lines: Vec<String> =
            mistakes.iter().map(|mistake| format!("{}:{mistake}", path.display())).collect();
        Failure::new(Exit::Configuration, lines.join("\n"))
    })
}

/// Opens the store beside a gateway that may be running.
async fn beside(arguments: &ConfigArgument) -> Result<Arc<dyn Store>, Failure> {
    let config = configuration(arguments)?;
    if let Some(path) = config.store.reveal().strip_prefix("sqlite:")
        && !Path::new(path).exists()
    {
        return Err(Failure::new(
            Exit::Unavailable,
            format!("there is no store at {path}: was `pons run` started here?"),
        ));
    }
    Ok(store::open(config.store.reveal(), Role::Tool).await?)
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(future)
}
