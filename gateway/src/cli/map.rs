//! `pons map`: messages or documents in, FHIR Bundles out, one JSON document a line; diagnostics as JSON lines on standard error.

use super::send::read;
use super::{Exit, Outcome, complain, print};
use crate::ingest::senders::own_name;
use clap::Args;
use mappings::lineage::Lineage;
use mappings::{Catalog, Context, Given, NotMapped, Program, explain_by, map_by};
use schemas::hl7v2::file::{self, File, FileMessage};
use schemas::hl7v2::{Limits, Message, time};
use schemas::issue::{Issue, Severity};
use schemas::records;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use uuid::Uuid;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Files with one or many messages (CR, LF or CRLF; MLLP frames; FHS/BHS batches), or with `--mapping` of a mapping for JSON, CSV or
    /// FHIR a document each; `-` reads standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Use this mapping whatever the message says it is; JSON, CSV and FHIR need it, as they do not say; one that writes HL7 v2 prints a message
    #[arg(long, value_name = "M")]
    mapping: Option<String>,
    /// A folder of mappings, overlays and tables beside the built-in ones
    #[arg(long, value_name = "DIR")]
    mappings: Option<PathBuf>,
    /// Map as for this sender, with its overlays and tables; otherwise the sender is named after MSH-3 and MSH-4, or after the mapping
    #[arg(long, value_name = "NAME")]
    sender: Option<String>,
    /// What the wire says beside a document, such as a level of its topic, as the mapping's `wire.NAME`
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    wire: Vec<(String, String)>,
    /// The IANA zone of times without an offset; UTC and flagged without it
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Tell on standard error where every element comes from and what became of every field
    #[arg(long)]
    explain: bool,
    /// How many messages are mapped at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
}

/// The largest message that is mapped: 64 MiB.
const LIMITS: Limits = Limits { bytes: 64 << 20, ..Limits::DEFAULT };

/// The namespace of ids where there is no installation: ids of `pons map` are the same everywhere, and so guessable.
const NAMESPACE: Uuid = Uuid::from_u128(0x0f5d_5fd3_2d0c_5b46_9c3b_6f1a_7e0c_2a11);

/// A message, mapped: the Bundle, or the message of HL7 v2 that was written.
struct Mapped {
    text: String,
    lineage: Option<Lineage>,
}

/// What one message gave.
struct One {
    text: Option<String>,
    diagnostics: Vec<serde_json::Value>,
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    let catalog = crate::pipeline::catalog_with(arguments.mappings.as_deref())?;
    let zone = match &arguments.zone {
        None => time::Zone::UNSTATED,
        Some(name) => time::Zone::named(name).map_err(|_| {
            super::Failure::new(
                Exit::Usage,
                format!("--zone: expected an IANA time zone such as Europe/Berlin, found {name}"),
            )
        })?,
    };
    if let Some(name) = &arguments.mapping
        && catalog.program("", name).is_none()
    {
        let names: Vec<&str> = catalog.programs().iter().map(|program| program.name()).collect();
        let hint = schemas::yaml::nearest(name, names.iter().copied())
            .map_or_else(|| names.join(", "), |near| format!("did you mean {near}?"));
        return Err(super::Failure::new(Exit::Usage, format!("--mapping: there is no such mapping; {hint}")));
    }
    let mapper = Mapper { catalog: &catalog, arguments, zone };
    let mut exit = Exit::Ok;
    for file in &arguments.files {
        let name = file.display().to_string();
        let bytes = match read(file) {
            Ok(bytes) => bytes,
            Err(failure) => {
                // The others are still mapped.
                let issue = Issue::new(Severity::Error, "not-read", "", failure.text);
                complain(&diagnostic(&name, 0, &issue).to_string());
                exit = Exit::Data;
                continue;
            }
        };
        if let Some(program) = mapper.named("").filter(|program| program.takes_records()) {
            exit = mapper.document(&name, program.name(), &bytes).tell(exit)?;
            continue;
        }
        let File { messages, issues } = file::read(&bytes, None, &LIMITS);
        for issue in &issues {
            complain(&diagnostic(&name, 0, issue).to_string());
        }
        if messages.is_empty() {
            let issue =
                Issue::new(Severity::Error, "no-message", "", "there is no HL7 v2 message in this input");
            complain(&diagnostic(&name, 0, &issue).to_string());
            exit = failed(exit);
        }
        let each = in_order(messages.len(), arguments.jobs, |index| {
            let message = &messages[index];
            mapper.one(&name, index, message, &bytes[message.range.clone()])
        });
        for one in each {
            exit = one.tell(exit)?;
        }
    }
    Ok(exit)
}

impl One {
    /// Prints what came of it, and answers how the run ends by now.
    fn tell(self, exit: Exit) -> Outcome {
        for line in self.diagnostics {
            complain(&line.to_string());
        }
        let Some(text) = self.text else { return Ok(failed(exit)) };
        print(&text)?;
        Ok(exit)
    }
}

/// How a run ends in which a message failed: a file that could not be read at all is told first.
fn failed(before: Exit) -> Exit {
    if before == Exit::Data { before } else { Exit::Failed }
}

/// Runs a function over indexes on several threads and answers the results in order.
fn in_order<T: Send>(count: usize, jobs: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return done;
            }
            done.push((index, work(index)));
        }
    };
    let mut done: Vec<(usize, T)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.clamp(1, 64)).map(|_| scope.spawn(worker)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, one)| one).collect()
}

struct Mapper<'m> {
    catalog: &'m Catalog,
    arguments: &'m Arguments,
    zone: time::Zone,
}

impl Mapper<'_> {
    fn one(&self, file: &str, index: usize, message: &FileMessage<'_>, bytes: &[u8]) -> One {
        let mut issues = message.decoded.issues.clone();
        let bundle = self.map(&message.decoded.text, bytes, &mut issues);
        Mapper::told(file, index, bundle, issues)
    }

    /// The mapping that the user names, as a sender has it.
    fn named(&self, sender: &str) -> Option<&Program> {
        self.arguments.mapping.as_ref().and_then(|name| self.catalog.program(sender, name))
    }

    /// A file that is one document of records.
    fn document(&self, file: &str, mapping: &str, bytes: &[u8]) -> One {
        let (text, issue) = records::decode(bytes);
        let mut issues: Vec<Issue> = issue.into_iter().collect();
        let sender: Arc<str> = self.arguments.sender.as_deref().unwrap_or(mapping).into();
        let mapped = self.map_document(&text, bytes, sender, &mut issues);
        Mapper::told(file, 0, mapped, issues)
    }

    fn map_document(
        &self,
        text: &str,
        bytes: &[u8],
        sender: Arc<str>,
        issues: &mut Vec<Issue>,
    ) -> Result<Mapped, String> {
        let program = self.named(&sender).ok_or("the sender has no such mapping")?;
        let limits = records::Limits { bytes: LIMITS.bytes, ..records::Limits::DEFAULT };
        let document = program.read(text, &limits).ok_or("the sender's mapping takes HL7 v2")?;
        let document = document.map_err(|error| error.to_string())?;
        let context = self.context(bytes, sender, None);
        let given = Given::Records(&document, text);
        match program.write(given, &context) {
            None => self.by(Some(program), given, &context, issues),
            Some(Ok(message)) => {
                issues.extend(message.issues);
                // A line a segment, for whoever reads it here; `pons map` and `pons send` read it so, too.
                Ok(Mapped { text: message.text.replace('\r', "\n"), lineage: None })
            }
            Some(Err(quarantined)) => {
                issues.extend(quarantined.issues);
                Err(quarantined.reason)
            }
        }
    }

    /// What came of a message, with all that is to be told of it.
    fn told(file: &str, index: usize, bundle: Result<Mapped, String>, mut issues: Vec<Issue>) -> One {
        if let Err(why) = &bundle {
            issues.push(Issue::new(Severity::Error, "not-mapped", "", why));
        }
        let mut diagnostics: Vec<_> = issues.iter().map(|issue| diagnostic(file, index + 1, issue)).collect();
        let mapped = bundle.ok();
        if let Some(lineage) = mapped.as_ref().and_then(|mapped| mapped.lineage.as_ref()) {
            diagnostics.push(json!({"file": file, "message": index + 1, "lineage": lineage.to_json()}));
        }
        One { text: mapped.map(|mapped| mapped.text), diagnostics }
    }

    fn map(&self, text: &str, bytes: &[u8], issues: &mut Vec<Issue>) -> Result<Mapped, String> {
        let message = Message::parse(text, &LIMITS).map_err(|error| error.to_string())?;
        issues.extend_from_slice(message.issues());
        if let Some(issue) = message.issues().iter().find(|issue| issue.severity == Severity::Error) {
            return Err(issue.text.clone());
        }
        let header = message.header();
        let text = |value: Option<std::borrow::Cow<'_, str>>| value.unwrap_or_default().into_owned();
        let sender = match &self.arguments.sender {
            Some(name) => name.as_str().into(),
            None => own_name(&text(header.sending_application()), &text(header.sending_facility())),
        };
        let made_at = header.made_at().and_then(|text| time::Ts::parse(&text).ok());
        let context = self.context(bytes, sender, made_at.and_then(|ts| ts.to_timestamp(&self.zone)));
        let named = self.named(&context.sender);
        let program = named.or_else(|| self.catalog.program_of(&context.sender, &message));
        self.by(program, Given::Message(&message), &context, issues)
    }

    /// What a mapping may know beside what it is given.
    fn context(&self, bytes: &[u8], sender: Arc<str>, made_at: Option<jiff::Timestamp>) -> Context<'_> {
        Context {
            message_id: Uuid::new_v5(&NAMESPACE, bytes),
            received_at: made_at.unwrap_or(jiff::Timestamp::UNIX_EPOCH),
            seq: 1,
            authority: sender.clone(),
            sender,
            zone: self.zone.clone(),
            namespace: NAMESPACE,
            systems: &[],
            options: &[],
            wire: &self.arguments.wire,
            codes: None,
            parties: mappings::Parties::default(),
        }
    }

    fn by(
        &self,
        program: Option<&Program>,
        given: Given<'_>,
        context: &Context<'_>,
        issues: &mut Vec<Issue>,
    ) -> Result<Mapped, String> {
        let mapped = program.ok_or(NotMapped::NotTaken).and_then(|program| {
            if self.arguments.explain {
                explain_by(program, given, context).map(|(alone, lineage)| (alone, Some(lineage)))
            } else {
                map_by(program, given, context).map(|alone| (alone, None))
            }
        });
        match mapped {
            Ok((alone, lineage)) => {
                issues.extend(alone.issues);
                Ok(Mapped { text: alone.bundle, lineage })
            }
            Err(NotMapped::NotTaken) => {
                Err("this message type is not taken: there is no mapping for it".to_owned())
            }
            Err(NotMapped::Quarantined(quarantined)) => {
                issues.extend(quarantined.issues);
                Err(quarantined.reason)
            }
        }
    }
}

fn diagnostic(file: &str, message: usize, issue: &Issue) -> serde_json::Value {
    let mut line = json!({"file": file, "message": message});
    if let Ok(serde_json::Value::Object(members)) = serde_json::to_value(issue) {
        line.as_object_mut().expect("made as an object above").extend(members);
    }
    line
}
