//! The second station of the path: open messages are mapped and recorded, in order per key, at our own pace.
//!
//! ```text
//! store: open messages ─► plan ─► map (pure, on all cores) ─► record (one transaction a batch, routing included)
//! ```
//! Invariant: a message is recorded when it is the lowest in sequence on all its keys. Whatever is not recorded stays
//! open in the store, so recovery is the normal poll.

mod courtesy;
pub mod fhir;
pub mod lanes;
pub mod plan;
mod record;
pub mod reload;
#[cfg(test)]
mod tests;
pub mod waiters;
mod worker;

pub use record::Recorded;
pub use worker::Normalizer;

use crate::ingest::Takes;
use crate::ingest::senders::{SOURCE, wire_of};
use crate::store::{Format, OpenMessage, Store, StoreError};
use crate::telemetry::trace::{self, Verb};
use adapters::Reads;
use mappings::resource::{Contributed, Contribution, Stamp};
use mappings::{Catalog, Context, Effect, Given, Program, SiteCodes, UnmappedCode};
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message, charset};
use schemas::issue::{Issue, Severity};
use schemas::records;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;
use uuid::Uuid;

/// One message, mapped and not yet recorded.
#[derive(Debug)]
pub struct Prepared {
    /// The message.
    pub open: OpenMessage,
    /// Its HL7 v2 trigger event.
    pub event: Option<String>,
    /// The mapping and its version.
    pub mapping: String,
    /// What reading and mapping had to say.
    pub issues: Vec<Issue>,
    /// Its codes that no table translates.
    pub unmapped: Unmapped,
    /// What it says, or why it goes into quarantine.
    pub facts: Result<Facts, String>,
    /// While somebody traces: normalizing, under way.
    pub verb: Option<Verb>,
}

impl Prepared {
    /// Whether it moves something to another patient.
    fn moves(&self) -> bool {
        let effects = self.facts.as_ref().map_or(&[][..], |facts| &facts.effects);
        effects.iter().any(|effect| matches!(effect, Effect::Move { .. }))
    }
}

/// What one message says.
#[derive(Debug)]
pub struct Facts {
    /// What it says about the Bundle, as JSON members.
    pub bundle: String,
    /// In the order of the message.
    pub what: Vec<What>,
    /// What it does beyond that.
    pub effects: Vec<Effect>,
    /// When it says so.
    pub stamp: Stamp,
}

/// What a message says about one resource.
#[derive(Debug)]
pub enum What {
    /// Slots, by a mapping.
    Slots(Contributed),
    /// The whole resource, by a FHIR update.
    Whole(Box<Whole>),
}

/// A whole resource, and under which condition it is taken.
#[derive(Debug)]
pub struct Whole {
    /// Its identity.
    pub contribution: Contribution,
    /// Its elements as (name, JSON text).
    pub elements: Vec<(String, String)>,
    /// What has to be so before the message; else nothing of it is taken.
    pub expects: Expects,
}

/// What a FHIR write expects of the resource that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expects {
    /// Whether there is one (`If-Match: *`), or none (`If-None-Match: *`).
    pub exists: Option<bool>,
    /// Its version (`If-Match: W/"3"`).
    pub version: Option<i64>,
    /// What an update calls it.
    pub called: Option<Called>,
    /// The identifier by which an update searches for it, as system and value: another one does not find it.
    pub criterion: Option<(String, String)>,
    /// What was found when this was judged for an earlier revision: it is not judged anew.
    pub judged: Option<Judged>,
}

impl Expects {
    /// Whether anything is expected but that it is called so.
    fn is_conditional(&self) -> bool {
        self.exists.is_some() || self.version.is_some() || self.criterion.is_some()
    }
}

/// How the conditions of a message were found when it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// All as expected.
    Met,
    /// Not so.
    Unmet(Issue),
}

/// The id that a client gives a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Called {
    /// One of ours.
    Ours(Uuid),
    /// One of its own: system and value.
    Theirs(String, String),
}

impl What {
    fn contribution(&self) -> &Contribution {
        match self {
            What::Slots(contribution) => contribution,
            What::Whole(whole) => &whole.contribution,
        }
    }
}

impl Facts {
    /// What its writes expect, of those that depend on something.
    fn conditions(&mut self) -> impl Iterator<Item = &mut Expects> {
        let whole = self.what.iter_mut().filter_map(|what| match what {
            What::Whole(whole) => Some(&mut whole.expects),
            What::Slots(_) => None,
        });
        whole.filter(|expects| expects.is_conditional())
    }

    fn contributions(&self) -> impl Iterator<Item = &Contribution> {
        self.what.iter().map(What::contribution)
    }
}

/// Turns stored bytes into facts. Pure but for the catalog, which may be exchanged while running.
#[derive(Debug)]
pub struct Mapper {
    catalog: RwLock<Arc<Catalog>>,
    codes: RwLock<Arc<SiteCodes>>,
    namespace: Uuid,
    systems: crate::ingest::senders::Senders,
    limits: Limits,
}

impl Takes for Mapper {
    fn takes(&self, code: &str, trigger: &str, structure: &str, version: &str) -> Result<(), u16> {
        let catalog = self.catalog();
        if catalog.program_for(code, trigger, structure, version).is_some() {
            // A version between or after the published ones of HL7 v2 is read by the nearest; anything else is not HL7 v2.
            let version = version.trim();
            let known = version.is_empty() || version.split('.').next() == Some("2");
            return if known { Ok(()) } else { Err(203) };
        }
        let of_messages = || catalog.programs().iter().filter(|program| !program.takes_records());
        let of_type = || of_messages().filter(|program| program.takes().0 == code);
        Err(match () {
            () if of_type().next().is_none() => 200,
            () if of_type().any(|program| program.takes().1.iter().any(|event| event == trigger)) => 203,
            () => 201,
        })
    }

    fn reads(&self, sender: &str, mapping: &str) -> Option<Reads> {
        let catalog = self.catalog();
        let program = catalog.program(sender, mapping)?;
        match program.takes_csv() {
            Some(csv) => Some(Reads::Csv(csv)),
            None => program.takes_json().then_some(Reads::Json),
        }
    }
}

impl Mapper {
    /// A mapper over a catalog; `namespace` is the installation's, `senders` know their assigning authorities.
    pub fn new(
        catalog: Arc<Catalog>,
        namespace: Uuid,
        senders: crate::ingest::senders::Senders,
        limits: Limits,
    ) -> Self {
        Mapper {
            catalog: RwLock::new(catalog),
            codes: RwLock::default(),
            namespace,
            systems: senders,
            limits,
        }
    }

    /// The catalog in use.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What people have said of single codes, as far as it was read.
    pub fn codes(&self) -> Arc<SiteCodes> {
        self.codes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads what people have said of codes since.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn refresh_codes(&self, store: &dyn Store) -> Result<(), StoreError> {
        if let Some(codes) = store.site_codes(self.codes().version()).await? {
            tracing::info!(version = codes.version(), "translated codes read");
            *self.codes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(codes);
        }
        Ok(())
    }

    /// Uses another catalog from the next message on.
    pub fn exchange(&self, catalog: Arc<Catalog>) {
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
    }

    /// Maps one message. A panic in here is a mistake of ours: the message goes into quarantine, the others go on.
    pub fn prepare(&self, open: OpenMessage) -> Prepared {
        let verb = Verb::begin("normalize", trace::in_context(&open.context), SystemTime::now());
        let mapped = catch_unwind(AssertUnwindSafe(|| match open.format {
            Format::Hl7v2 => self.map_hl7v2(&open),
            Format::FhirJson => fhir::facts(&open, self.namespace),
            Format::Json | Format::Csv => self.map_document(&open),
        }));
        mapped
            .unwrap_or_else(|_| {
                Mapped::quarantined("the mapping broke off: a defect of Pons".to_owned(), Vec::new())
            })
            .of(open, verb)
    }

    fn map_hl7v2(&self, open: &OpenMessage) -> Mapped {
        let decoded = charset::decode(&open.bytes, None);
        let mut issues = decoded.issues;
        let message = match Message::parse(&decoded.text, &self.limits) {
            Ok(message) => message,
            Err(error) => return Mapped::quarantined(error.to_string(), issues),
        };
        issues.extend_from_slice(message.issues());
        // A part of a message must not pass for the whole.
        if let Some(issue) = message.issues().iter().find(|issue| issue.severity == Severity::Error) {
            return Mapped::quarantined(issue.text.clone(), issues);
        }
        let trigger = message.header().trigger().unwrap_or_default().into_owned();
        let catalog = self.catalog();
        let Some(program) = catalog.program_of(&open.sender, &message) else {
            return Mapped::quarantined("there is no mapping for its type (MSH-9)".to_owned(), issues);
        };
        Mapped { event: Some(trigger), ..self.run(open, program, (&message).into(), issues) }
    }

    /// A document of a feed, by the mapping that its source names now: a replay after the configuration was put right is read by the
    /// right one.
    fn map_document(&self, open: &OpenMessage) -> Mapped {
        let (text, doubt) = records::decode(&open.bytes);
        let issues: Vec<Issue> = doubt.into_iter().collect();
        let context: serde_json::Value = serde_json::from_str(&open.context).unwrap_or_default();
        let source = context[SOURCE].as_str().unwrap_or_default();
        let Some(name) = self.systems.mapping_of(source) else {
            let why = format!("no source `{source}` with a mapping is configured");
            return Mapped::quarantined(why, issues);
        };
        let catalog = self.catalog();
        let program = catalog.program(&open.sender, name);
        let read =
            program.and_then(|program| Some((program, program.read(&text, &records::Limits::default())?)));
        match read {
            None => Mapped::quarantined(format!("there is no mapping `{name}` for documents"), issues),
            Some((_, Err(unreadable))) => Mapped::quarantined(unreadable.to_string(), issues),
            Some((program, Ok(records))) => self.run(open, program, Given::Records(&records, &text), issues),
        }
    }

    /// Maps what was read.
    fn run(&self, open: &OpenMessage, program: &Program, given: Given<'_>, mut issues: Vec<Issue>) -> Mapped {
        let codes = self.codes();
        let stored: serde_json::Value = serde_json::from_str(&open.context).unwrap_or_default();
        let wire = wire_of(&stored);
        let context = Context {
            message_id: open.id.0,
            received_at: open.received_at,
            seq: open.seq.0,
            sender: open.sender.clone(),
            authority: open.sender.clone(),
            zone: zone_of(&stored),
            namespace: self.namespace,
            systems: self.systems.systems(&open.sender),
            options: &[],
            wire: &wire,
            codes: Some(&codes),
            parties: mappings::Parties::default(),
        };
        let mapping = program.stamp().to_owned();
        let event = None;
        let unmapped = |all| Unmapped { version: codes.version(), codes: all };
        match program.run(given, &context) {
            Ok(mapped) => {
                issues.extend(mapped.issues);
                let what = mapped.contributions.into_iter().map(What::Slots).collect();
                let facts =
                    Ok(Facts { bundle: mapped.bundle, what, effects: mapped.effects, stamp: mapped.stamp });
                Mapped { event, mapping, issues, unmapped: unmapped(mapped.unmapped_codes), facts }
            }
            Err(quarantined) => {
                issues.extend(quarantined.issues);
                let unmapped = unmapped(quarantined.unmapped_codes);
                Mapped { event, mapping, issues, unmapped, facts: Err(quarantined.reason) }
            }
        }
    }
}

/// What mapping makes, before it is put beside its message.
struct Mapped {
    event: Option<String>,
    mapping: String,
    issues: Vec<Issue>,
    unmapped: Unmapped,
    facts: Result<Facts, String>,
}

/// Codes that no table translates.
#[derive(Debug, Default)]
pub struct Unmapped {
    /// Which version of [`SiteCodes`] does not know them either.
    pub version: i64,
    /// One for each place of the message.
    pub codes: Vec<UnmappedCode>,
}

impl Mapped {
    fn quarantined(why: String, issues: Vec<Issue>) -> Mapped {
        let unmapped = Unmapped::default();
        Mapped { event: None, mapping: String::new(), issues, unmapped, facts: Err(why) }
    }

    fn of(self, open: OpenMessage, verb: Option<Verb>) -> Prepared {
        let Mapped { event, mapping, issues, unmapped, facts } = self;
        Prepared { open, event, mapping, issues, unmapped, facts, verb }
    }
}

/// The zone that was stored with a message; UTC, and flagged, without one.
fn zone_of(context: &serde_json::Value) -> Zone {
    context["zone"].as_str().and_then(|name| Zone::named(name).ok()).unwrap_or(Zone::UNSTATED)
}
