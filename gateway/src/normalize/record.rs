//! Recording: what a batch of mapped messages says is merged with what is known, routed and written in one transaction.
//!
//! Invariants: a batch is written whole or not at all; within it messages are taken in sequence, so each sees what the
//! ones before it did; a message that goes into quarantine leaves nothing behind but its result. A message that moves something to
//! another patient is a batch of its own ([`batches`]), because it is about all that is known of the patient by then.

mod along;
mod moving;

use super::waiters::{Changed, Done, UNMET};
use super::{Called, Facts, Judged, Prepared, What, Whole};
use crate::route::topics::{Happening, Touched};
use crate::route::{Routable, Router, policy};
use crate::store::{
    Alias, Made, MessageResult, NewDelivery, OpenMessage, RecordTx, Recording, ResourceWrite, StoreError,
    StoredResource, WaitingCode,
};
use crate::telemetry::trace::{self, Verb};
use bytes::Bytes;
use futures_util::FutureExt;
use mappings::Effect;
use mappings::bundle::{self, About, Rendered};
use mappings::resource::{Applied, Contribution, Existing, State};
use moving::Moving;
use schemas::issue::{Issue, Severity};
use schemas::message::MessageId;
use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use uuid::Uuid;

/// How many merges in a row a reader follows before it calls the chain broken.
const MERGES_MAX: usize = 16;

/// What is longer than this is no code that somebody could translate; the message's own issue tells of it. In bytes.
const LONGEST_CODE: usize = 200;

/// What recording one message came to; what its sender and its subscribers are told.
#[derive(Debug)]
pub struct Recorded {
    /// The message.
    pub message: OpenMessage,
    /// For those who wait.
    pub done: Done,
    /// Its deliveries with their event numbers.
    pub deliveries: Vec<(NewDelivery, i64)>,
    /// What they carry.
    pub bundle: Bytes,
    /// What notifications bring along beside it.
    pub beside: Bytes,
    /// What there was to say about it.
    pub issues: Vec<Issue>,
    /// The trace that its deliveries continue, if there is one.
    pub traceparent: Option<String>,
}

/// A resource during the batch.
#[derive(Debug, Default)]
struct Current {
    resource_type: String,
    version: i64,
    state: State,
    replaced_by: Option<Uuid>,
    /// The version in the store, to write against.
    stored: i64,
    /// The message that changed it last, and whether that is one of this batch.
    changed_by: Option<MessageId>,
    is_changed: bool,
}

/// What recording reads of what is known before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// Not what is most probably new: most of a result is. Where that was wrong, the recording comes into conflict and is done
    /// again with all of it.
    Probable,
    /// Whatever the batch may touch.
    All,
}

/// Parts messages into the batches in which they may be recorded, in sequence.
pub(super) fn batches(messages: Vec<Prepared>) -> Vec<Vec<Prepared>> {
    let mut batches: Vec<Vec<Prepared>> = Vec::new();
    let mut alone = true;
    for prepared in messages {
        let moves = prepared.moves();
        match batches.last_mut().filter(|_| !alone && !moves) {
            Some(batch) => batch.push(prepared),
            None => batches.push(vec![prepared]),
        }
        alone = moves;
    }
    batches
}

/// Merges, routes and commits. `batch` is in sequence, and is emptied only once it is written. A panic in here is a mistake of ours,
/// and counts as one of the store's: whoever calls finds out which message it is about.
///
/// # Errors
/// As [`RecordTx`]; nothing was written then, and the batch may be tried again.
pub(super) async fn record(
    tx: Box<dyn RecordTx>,
    batch: &mut Vec<Prepared>,
    router: &Router,
    reads: Reads,
) -> Result<Vec<Recorded>, StoreError> {
    let recording = AssertUnwindSafe(try_record(tx, batch, router, reads)).catch_unwind();
    recording.await.unwrap_or_else(|_| Err(StoreError::Bug("recording broke off".into())))
}

async fn try_record(
    mut tx: Box<dyn RecordTx>,
    batch: &mut Vec<Prepared>,
    router: &Router,
    reads: Reads,
) -> Result<Vec<Recorded>, StoreError> {
    let mut merge = Merge::open(&mut *tx, batch, router, reads).await?;
    let mut recording = Recording::default();
    let mut recorded = Vec::with_capacity(batch.len());
    for prepared in batch.iter() {
        let outcome = merge.take(prepared);
        // Judged by what was not read: nothing of it is written that would find that out.
        let unread = |facts: &Facts| facts.contributions().any(|one| merge.is_unread(one.id));
        let is_judged = outcome.is_err() && prepared.facts.as_ref().is_ok_and(unread);
        merge.is_in_doubt |= is_judged;
        let mut result = MessageResult {
            seq: prepared.open.seq,
            id: prepared.open.id,
            revision: prepared.open.revision,
            quarantined: None,
            mapping: prepared.mapping.clone(),
            issues: prepared.issues.clone(),
            bundle: Bytes::new(),
            beside: Bytes::new(),
            made: Vec::new(),
        };
        let mut done = Done::taken(Vec::new());
        let mut deliveries = 0;
        let mut merging = Vec::new();
        let mut routing = None;
        match outcome {
            Ok(taken) => {
                merging = taken.issues.clone();
                result.issues.extend(taken.issues);
                result.bundle = taken.bundle.into();
                let now = jiff::Timestamp::now();
                routing = prepared.verb.as_ref().and_then(|verb| verb.follow("route"));
                let mut routed = router.deliveries(&Routable {
                    id: prepared.open.id,
                    seq: prepared.open.seq,
                    revision: prepared.open.revision,
                    sender: &prepared.open.sender,
                    key: prepared.open.keys.first().copied().unwrap_or(schemas::message::OrderKey(0)),
                    happening: Happening { event: prepared.event.as_deref(), resources: &taken.touched, now },
                    bundle: &result.bundle,
                });
                result.beside = merge.bring_along(&mut *tx, &mut routed, &taken.bundled, now).await?;
                done.resources = taken.changed;
                deliveries = routed.len();
                recording.deliveries.extend(routed);
            }
            Err(NotTaken::Quarantined(why)) => {
                tracing::warn!(message_id = %prepared.open.id, reason = %why, "message put into quarantine");
                result.quarantined = Some(why.clone());
                done = Done::quarantined(why);
            }
            Err(NotTaken::Unmet(issue)) => {
                tracing::info!(message_id = %prepared.open.id, reason = %issue.text, "nothing of a message was taken");
                result.bundle = merge.bundle(prepared, &[], &mut result.issues).0.into();
                result.issues.push(issue.clone());
                done = Done::unmet(issue);
            }
        }
        result.made = std::mem::take(&mut merge.changes.made);
        wait_for_codes(&mut recording, prepared);
        recorded.push((done, deliveries, result.bundle.clone(), result.beside.clone(), merging, routing));
        recording.results.push(result);
    }
    if merge.is_in_doubt {
        return Err(StoreError::Conflict);
    }
    recording.aliases = std::mem::take(&mut merge.new_aliases);
    recording.resources = merge.writes();
    let routed = recording.deliveries.clone();
    let numbers = tx.commit(recording).await?;
    let mut numbered = routed.into_iter().zip(numbers);
    let told = batch.drain(..).zip(recorded);
    let recorded = told.map(|(mut prepared, (done, deliveries, bundle, beside, merging, routing))| {
        let traceparent = traced(&mut prepared, &done, deliveries, routing);
        Recorded {
            message: prepared.open,
            done,
            deliveries: numbered.by_ref().take(deliveries).collect(),
            bundle,
            beside,
            issues: prepared.issues.into_iter().chain(merging).collect(),
            traceparent,
        }
    });
    Ok(recorded.collect())
}

/// Writes down which codes of a message no table translates, each once.
fn wait_for_codes(recording: &mut Recording, prepared: &Prepared) {
    let all = prepared.unmapped.codes.iter().filter(|code| code.code.len() <= LONGEST_CODE);
    let mut codes: Vec<(&str, &str)> = all.map(|code| (code.table.as_str(), code.code.as_str())).collect();
    codes.sort_unstable();
    codes.dedup();
    if codes.is_empty() {
        return;
    }
    let version = prepared.unmapped.version;
    recording.codes_version = match recording.codes.is_empty() {
        true => version,
        false => recording.codes_version.min(version),
    };
    recording.codes.extend(codes.into_iter().map(|(table, code)| WaitingCode {
        sender: prepared.open.sender.clone(),
        table: table.to_owned(),
        code: code.to_owned(),
        message: prepared.open.id,
    }));
}

/// Ends the spans of a message that is recorded; answers the trace that its deliveries continue.
fn traced(prepared: &mut Prepared, done: &Done, deliveries: usize, routing: Option<Verb>) -> Option<String> {
    let Some(mut verb) = prepared.verb.take() else {
        return trace::in_context(&prepared.open.context).map(str::to_owned);
    };
    verb.note("message_id", prepared.open.id.to_string());
    verb.note("revision", i64::from(prepared.open.revision));
    if done.quarantined.is_some() {
        verb.fail("quarantined");
    }
    let mut routing = routing?;
    routing.note("message_id", prepared.open.id.to_string());
    routing.note("deliveries", i64::try_from(deliveries).unwrap_or(i64::MAX));
    Some(routing.traceparent())
}

/// What a batch says of resources that nobody has heard of, as far as their identifiers tell: none of them is known, or they have none
/// and are counted within a resource of which that is so.
fn probably_new(batch: &[Prepared], aliases: &HashMap<Alias, Uuid>) -> HashSet<Uuid> {
    let mut within: HashMap<Uuid, Option<Uuid>> = HashMap::new();
    let mut to_read: HashSet<Uuid> = HashSet::new();
    for prepared in batch {
        let Ok(facts) = &prepared.facts else { continue };
        let is_first_time = prepared.open.revision == 0 && !prepared.moves();
        for what in &facts.what {
            let contribution = what.contribution();
            let is_named = !contribution.aliases.is_empty() || contribution.within.is_some();
            let is_known = aliases_of(contribution).any(|alias| aliases.contains_key(&alias));
            if is_first_time && matches!(what, What::Slots(_)) && is_named && !is_known {
                within.insert(contribution.id, contribution.within);
            } else {
                to_read.insert(contribution.id);
            }
        }
    }
    let is_new = |id: &Uuid| {
        let mut at = *id;
        loop {
            match within.get(&at).filter(|_| !to_read.contains(&at)) {
                Some(Some(outer)) => at = *outer,
                Some(None) => return true,
                None => return false,
            }
        }
    };
    within.keys().copied().filter(is_new).collect()
}

/// What is known, as the batch changes it.
struct Merge<'r> {
    router: &'r Router,
    aliases: HashMap<Alias, Uuid>,
    new_aliases: Vec<(Alias, Uuid)>,
    resources: HashMap<Uuid, Current>,
    /// What was not read, because it is most probably new.
    new: HashSet<Uuid>,
    /// Something of it is not written either, so that the commit does not find out whether it is new.
    is_in_doubt: bool,
    changes: Changes,
    moves: Vec<Moving>,
}

/// What was changed.
#[derive(Default)]
struct Changes {
    /// The order in which resources were first changed, so that writes do not depend on hashing.
    order: Vec<Uuid>,
    /// By the message that is taken.
    made: Vec<Made>,
}

/// Why nothing of a message was taken.
enum NotTaken {
    /// A person has to look at it.
    Quarantined(String),
    /// Its writer made it depend on something that is not so, and is told.
    Unmet(Issue),
}

impl From<String> for NotTaken {
    fn from(why: String) -> Self {
        NotTaken::Quarantined(why)
    }
}

/// What taking one message made.
struct Taken {
    bundle: String,
    /// Which resources are in it.
    bundled: HashSet<Uuid>,
    /// Each resource that somebody's topic looks at, once.
    touched: Vec<Touched<'static>>,
    touched_at: HashMap<Uuid, usize>,
    changed: Vec<Changed>,
    issues: Vec<Issue>,
}

impl<'r> Merge<'r> {
    /// Reads what the batch may touch.
    async fn open(
        tx: &mut dyn RecordTx,
        batch: &[Prepared],
        router: &'r Router,
        reads: Reads,
    ) -> Result<Self, StoreError> {
        let facts = || batch.iter().filter_map(|prepared| prepared.facts.as_ref().ok());
        let mut wanted: Vec<Alias> =
            facts().flat_map(|facts| facts.contributions().flat_map(aliases_of)).collect();
        wanted.sort();
        wanted.dedup();
        let aliases = tx.resolve(&wanted).await?;
        let new = match reads {
            Reads::Probable => probably_new(batch, &aliases),
            Reads::All => HashSet::new(),
        };
        let computed = facts().flat_map(|facts| facts.contributions().map(|contribution| contribution.id));
        let computed = computed.filter(|id| !new.contains(id));
        let mut missing: Vec<Uuid> = computed.chain(aliases.values().copied()).collect();
        let mut resources = HashMap::new();
        for _ in 0..MERGES_MAX {
            missing.sort();
            missing.dedup();
            missing.retain(|id| !resources.contains_key(id));
            if missing.is_empty() {
                break;
            }
            let mut next = Vec::new();
            for resource in tx.load(&missing).await? {
                let id = resource.id;
                let current = Current::try_from(resource)?;
                // Whose it is may have been merged into somebody else since.
                next.extend(current.replaced_by.into_iter().chain(current.state.patient()));
                resources.insert(id, current);
            }
            missing = next;
        }
        let mut merge = Merge {
            router,
            aliases,
            new_aliases: Vec::new(),
            resources,
            new,
            is_in_doubt: false,
            changes: Changes::default(),
            moves: Vec::new(),
        };
        for prepared in batch.iter().filter(|prepared| prepared.moves()) {
            merge.find_moves(tx, prepared).await?;
        }
        Ok(merge)
    }

    /// Whether it was held to be new and nothing has been made of it yet.
    fn is_unread(&self, id: Uuid) -> bool {
        self.new.contains(&id) && !self.resources.contains_key(&id)
    }

    /// Takes one message, or nothing of it.
    fn take(&mut self, prepared: &Prepared) -> Result<Taken, NotTaken> {
        let facts = prepared.facts.as_ref().map_err(Clone::clone)?;
        let mut issues = Vec::new();
        let merged_away: HashSet<Uuid> = merges(&facts.effects).map(|(from, _)| from).collect();
        let mut ids: Vec<Uuid> = facts
            .contributions()
            .map(|contribution| self.id_of(contribution, merged_away.contains(&contribution.id), &mut issues))
            .collect();
        let writes = || {
            facts.what.iter().zip(&ids).filter_map(|(what, id)| match what {
                What::Whole(whole) => Some((whole, *id)),
                What::Slots(_) => None,
            })
        };
        for (whole, id) in writes() {
            let is_alone = || ids.iter().filter(|other| **other == id).count() == 1;
            if let Some(unmet) = self.unmet(whole, id, is_alone) {
                return Err(NotTaken::Unmet(unmet));
            }
        }
        // Only what would be taken needs a person to look at it.
        for (whole, id) in writes() {
            self.is_named_once(whole, id)?;
        }
        for (contribution, id) in facts.contributions().zip(&ids) {
            // Asked before anything is taken: a message in quarantine leaves no alias behind.
            let known = self.resources.get(id);
            if known.is_some_and(|known| known.state.identity_conflict(contribution)) {
                return Err(NotTaken::Quarantined(format!(
                    "{} {id}: the same identifier comes with another name and another birth date",
                    contribution.resource_type
                )));
            }
        }
        let moved: Vec<(Uuid, Uuid)> = facts
            .contributions()
            .zip(&ids)
            .filter(|(contribution, id)| contribution.id != **id)
            .map(|(contribution, id)| (contribution.id, *id))
            .collect();
        for (what, id) in facts.what.iter().zip(&ids) {
            let What::Slots(contribution) = what else { continue };
            let named = self.resources.get(id).and_then(|known| known.state.patients(contribution));
            let is_moved = || self.moves.iter().any(|moving| moving.is_of(*id));
            if let Some((known, said)) = named
                && self.patient(known, &moved, &facts.effects) != self.patient(said, &moved, &facts.effects)
                && !is_moved()
            {
                return Err(NotTaken::Quarantined(format!(
                    "{} {id}: the same number comes with another patient",
                    contribution.resource_type
                )));
            }
        }
        let whose = self.whose_moves()?;
        for (contribution, id) in facts.contributions().zip(&ids) {
            self.name(contribution, *id);
        }
        let mut taken = Taken {
            bundle: String::new(),
            bundled: HashSet::new(),
            touched: Vec::new(),
            touched_at: HashMap::new(),
            changed: Vec::new(),
            issues,
        };
        for (what, id) in facts.what.iter().zip(&ids) {
            self.apply(prepared, facts, what, *id, &moved, &mut taken);
            let is_written = self.resources.get(id).is_some_and(|current| current.is_changed);
            self.is_in_doubt |= !is_written && self.new.contains(id);
        }
        for (from, into) in merges(&facts.effects) {
            self.merge(final_id(&moved, from), final_id(&moved, into), &mut taken.issues);
        }
        for (moving, was_from) in std::mem::take(&mut self.moves).into_iter().zip(whose) {
            if was_from {
                self.move_along(prepared, moving, &mut ids, &mut taken);
            }
        }
        (taken.bundle, taken.bundled) = self.bundle(prepared, &ids, &mut taken.issues);
        Ok(taken)
    }

    /// Which resource a contribution is about: the first of its identifiers that is known, else the id that follows from
    /// the first. Where that one was merged away, its survivor; but not when this very message merges it away.
    fn id_of(&self, contribution: &Contribution, merged_away: bool, issues: &mut Vec<Issue>) -> Uuid {
        let own: Vec<Alias> = aliases_of(contribution).collect();
        let found: Vec<Uuid> = own.iter().filter_map(|alias| self.aliases.get(alias).copied()).collect();
        let first = found.first().copied().unwrap_or(contribution.id);
        let id = if merged_away { first } else { self.survivor(first) };
        if found.iter().any(|other| self.survivor(*other) != self.survivor(first)) {
            let text =
                "two of its identifiers name two resources; the first identifier decides, nothing is merged";
            issues.push(Issue::new(
                Severity::Warning,
                "possible-duplicate",
                &*contribution.resource_type,
                text,
            ));
        }
        id
    }

    /// Which resource has an identifier.
    fn named(&self, contribution: &Contribution, (system, value): &(String, String)) -> Option<Uuid> {
        let resource_type = contribution.resource_type.to_string();
        self.aliases.get(&Alias { resource_type, system: system.clone(), value: value.clone() }).copied()
    }

    /// The resource that an update calls by its id, if it is there: else it is made under that id, or is what its identifiers name.
    fn called(&self, whole: &Whole) -> Option<Uuid> {
        match whole.expects.called.as_ref()? {
            Called::Ours(id) => self.resources.get(id).filter(|known| known.version > 0).map(|_| *id),
            Called::Theirs(system, value) => {
                self.named(&whole.contribution, &(system.clone(), value.clone()))
            }
        }
    }

    /// Whether an update names one resource: what it says of one patient must not be written into another, whose number it has.
    ///
    /// # Errors
    /// It goes into quarantine.
    fn is_named_once(&self, whole: &Whole, id: Uuid) -> Result<(), NotTaken> {
        if whole.contribution.on_existing == Existing::Keep {
            return Ok(());
        }
        let named = aliases_of(&whole.contribution).filter_map(|alias| self.aliases.get(&alias).copied());
        match self
            .called(whole)
            .into_iter()
            .chain(named)
            .find(|other| self.survivor(*other) != self.survivor(id))
        {
            Some(other) => Err(NotTaken::Quarantined(format!(
                "{} {id}: its id and its identifiers name two resources, this one and {other}",
                whole.contribution.resource_type
            ))),
            None => Ok(()),
        }
    }

    /// What a write expects of a resource that is not so.
    fn unmet(&self, whole: &Whole, id: Uuid, is_alone: impl Fn() -> bool) -> Option<Issue> {
        let Whole { contribution, expects, .. } = whole;
        let [precondition, other_id] = UNMET;
        let no =
            |code, text: String| Some(Issue::new(Severity::Error, code, &*contribution.resource_type, text));
        match &expects.judged {
            Some(Judged::Met) => return None,
            Some(Judged::Unmet(issue)) => return Some(issue.clone()),
            None => {}
        }
        let known = self.resources.get(&id).map(|known| known.version).filter(|version| *version > 0);
        if expects.is_conditional() && !is_alone() {
            return no(
                precondition,
                "another write of the same transaction is about the same resource".to_owned(),
            );
        }
        if let (Some(_), Some(criterion)) = (known, &expects.criterion)
            && self.named(contribution, criterion).is_none()
        {
            let text = "the identifier that was searched for names nobody, and another one of the resource names somebody";
            return no(precondition, text.to_owned());
        }
        let called = self.called(whole);
        let is_other = called.is_none_or(|called| self.survivor(called) != id);
        if known.is_some() && expects.called.is_some() && expects.criterion.is_some() && is_other {
            return no(
                other_id,
                "what the search finds has another id than the resource that was sent".to_owned(),
            );
        }
        let is_itself = expects.called.is_none() || expects.criterion.is_some() || called == Some(id);
        match (known, expects.version) {
            (_, None) => {}
            (None, Some(_)) => return no(precondition, "there is none yet, of any version".to_owned()),
            (Some(_), Some(_)) if !is_itself => {
                return no(
                    precondition,
                    "it was merged into another one, or is known by another id".to_owned(),
                );
            }
            (Some(known), Some(version)) if known != version => {
                return no(precondition, format!("it is of version {known} by now, not {version}"));
            }
            (Some(_), Some(_)) => {}
        }
        match (known, expects.exists) {
            (None, Some(true)) => no(precondition, "there is none yet".to_owned()),
            (Some(_), Some(true)) if !is_itself => {
                no(precondition, "it was merged into another one, or is known by another id".to_owned())
            }
            (Some(known), Some(false)) => {
                no(precondition, format!("there is one already, of version {known}"))
            }
            (_, Some(_) | None) => None,
        }
    }

    /// Who a patient is, after the merges that are known and those of this message.
    fn patient(&self, id: Uuid, moved: &[(Uuid, Uuid)], effects: &[Effect]) -> Uuid {
        let id = self.survivor(final_id(moved, id));
        let merged = merges(effects)
            .find_map(|(from, into)| (self.survivor(final_id(moved, from)) == id).then_some(into));
        merged.map_or(id, |into| self.survivor(final_id(moved, into)))
    }

    /// From now on the identifiers of a contribution name this resource, unless they name one already.
    fn name(&mut self, contribution: &Contribution, id: Uuid) {
        for alias in aliases_of(contribution) {
            if !self.aliases.contains_key(&alias) {
                self.aliases.insert(alias.clone(), id);
                self.new_aliases.push((alias, id));
            }
        }
    }

    fn survivor(&self, mut id: Uuid) -> Uuid {
        for _ in 0..MERGES_MAX {
            match self.resources.get(&id).and_then(|resource| resource.replaced_by) {
                Some(next) => id = next,
                None => break,
            }
        }
        id
    }

    fn apply(
        &mut self,
        prepared: &Prepared,
        facts: &Facts,
        what: &What,
        id: Uuid,
        moved: &[(Uuid, Uuid)],
        taken: &mut Taken,
    ) {
        let contribution = what.contribution();
        let message = prepared.open.id;
        let current = self.resources.entry(id).or_default();
        let existed = current.version > 0;
        let watched = self.router.watches(&contribution.resource_type);
        let before = if watched && existed { current.open(id, facts) } else { None };
        if !existed {
            current.resource_type = contribution.resource_type.to_string();
        }
        let applied = match what {
            What::Slots(contribution) if moved.is_empty() => {
                current.state.apply(contribution, &facts.stamp, message.0)
            }
            What::Slots(contribution) => {
                current.state.apply(&relinked(contribution, moved), &facts.stamp, message.0)
            }
            // A create never changes what is there already.
            What::Whole(_) if existed && contribution.on_existing == Existing::Keep => Applied::default(),
            What::Whole(whole) => {
                let mut elements = whole.elements.clone();
                for (_, json) in &mut elements {
                    mappings::resource::relink(json, moved);
                }
                current.state.replace(&elements, &facts.stamp, message.0)
            }
        };
        if applied.skipped > 0 {
            let text = format!(
                "{} of its statements are older than what is known, or thinner; they are left out",
                applied.skipped
            );
            taken.issues.push(Issue::new(
                Severity::Information,
                "not-newer",
                &*contribution.resource_type,
                text,
            ));
        }
        for path in &applied.cleared {
            let place = format!("{}.{path}", contribution.resource_type);
            taken.issues.push(Issue::new(Severity::Information, "cleared", place, "emptied by the message"));
        }
        if applied.changed || applied.touched || !existed {
            self.changes.note(id, current, &prepared.open);
        }
        taken.changed.push(Changed {
            resource_type: contribution.resource_type.to_string(),
            id,
            version: Some(current.version),
            created: !existed,
        });
        if watched && let Some(now) = current.open(id, facts) {
            taken.touch(id, &contribution.resource_type, before, now);
        }
    }

    /// Sends the readers of one resource to another, for good. A circle is refused.
    fn merge(&mut self, from: Uuid, into: Uuid, issues: &mut Vec<Issue>) {
        let into = self.survivor(into);
        if from == into {
            let text = "the surviving record was itself merged into the prior one before; nothing is merged";
            issues.push(Issue::new(Severity::Error, "merge-circle", "MRG", text));
            return;
        }
        if let Some(prior) = self.resources.get_mut(&from) {
            prior.replaced_by = Some(into);
        }
    }

    /// The Bundle of a message: everything that it touched, as it stands now, but what lacks a required element; and what others
    /// said under a label that withholds, unless its own withholds it too.
    fn bundle(&self, prepared: &Prepared, ids: &[Uuid], issues: &mut Vec<Issue>) -> (String, HashSet<Uuid>) {
        let mut seen = HashSet::new();
        let facts = prepared.facts.as_ref().ok();
        let mut rendered: Vec<Rendered<'_>> = ids
            .iter()
            .filter(|id| seen.insert(**id))
            .filter_map(|id| self.resources.get_key_value(id))
            .filter_map(|(id, current)| {
                let rendered = current.rendered(*id, facts?);
                if rendered.as_ref().is_none_or(Rendered::is_redacted) {
                    let text = "what is known of it from restricted messages is left out";
                    issues.push(Issue::new(Severity::Information, "withheld", &*current.resource_type, text));
                }
                rendered
            })
            .collect();
        issues.extend(bundle::leave_out_incomplete(&mut rendered));
        let entries: Vec<bundle::Entry<'_>> = rendered
            .iter()
            .map(|one| bundle::Entry { resource_type: one.resource_type, id: one.id, json: &one.json })
            .collect();
        let open = &prepared.open;
        let bundle = bundle::assemble(
            &entries,
            &About {
                message: open.id.0,
                sender: &open.sender,
                received_at: open.received_at,
                mapping: &prepared.mapping,
                elements: prepared.facts.as_ref().map_or("", |facts| &facts.bundle),
            },
        );
        (bundle, entries.iter().map(|entry| entry.id).collect())
    }

    fn writes(self) -> Vec<ResourceWrite> {
        let Merge { mut resources, changes, .. } = self;
        changes
            .order
            .into_iter()
            .filter_map(|id| {
                let current = resources.remove(&id)?;
                Some(ResourceWrite {
                    patient: current.state.patient(),
                    encounter: current.state.encounter(),
                    id,
                    follows: current.stored,
                    version: current.version,
                    state: current.state.encode(),
                    replaced_by: current.replaced_by,
                    message: current.changed_by?,
                    resource_type: current.resource_type,
                })
            })
            .collect()
    }
}

impl Changes {
    /// Counts what a message does to a resource as one version, however many parts of the message are about it.
    fn note(&mut self, id: Uuid, current: &mut Current, by: &OpenMessage) {
        if current.is_changed && current.changed_by == Some(by.id) {
            return;
        }
        if !std::mem::replace(&mut current.is_changed, true) {
            self.order.push(id);
        }
        current.version += 1;
        let before = current.changed_by.replace(by.id);
        self.made.push(Made { resource: id, version: current.version, before });
    }
}

impl Taken {
    /// Notes what became of a resource; several parts of a message may be about the same one.
    fn touch(&mut self, id: Uuid, resource_type: &str, before: Option<String>, now: String) {
        match self.touched_at.get(&id) {
            Some(at) => self.touched[*at].is_now(now),
            None => {
                self.touched_at.insert(id, self.touched.len());
                self.touched.push(Touched::new(resource_type.to_owned(), before, now));
            }
        }
    }
}

impl Current {
    /// It as far as it may go along with a message: without what others said under a label that withholds, unless the message's own
    /// withholds it too.
    fn rendered(&self, id: Uuid, facts: &Facts) -> Option<Rendered<'_>> {
        let is_closed = facts.stamp.labels.as_deref().is_some_and(|labels| !policy::is_open(labels));
        self.state.render_open(&self.resource_type, id, |labels| is_closed || policy::is_open(labels))
    }

    /// The same as JSON.
    fn open(&self, id: Uuid, facts: &Facts) -> Option<String> {
        Some(self.rendered(id, facts)?.json)
    }
}

impl TryFrom<StoredResource> for Current {
    type Error = StoreError;

    fn try_from(stored: StoredResource) -> Result<Self, StoreError> {
        let state = State::decode(&stored.state).map_err(|error| StoreError::Bug(error.into()))?;
        Ok(Current {
            resource_type: stored.resource_type,
            version: stored.version,
            state,
            replaced_by: stored.replaced_by,
            stored: stored.version,
            changed_by: Some(stored.changed_by),
            is_changed: false,
        })
    }
}

fn aliases_of(contribution: &Contribution) -> impl Iterator<Item = Alias> {
    contribution.aliases.iter().map(|(system, value)| Alias {
        resource_type: contribution.resource_type.to_string(),
        system: system.clone(),
        value: value.clone(),
    })
}

/// The merges among the effects of a message: who is no longer used, and who remains.
fn merges(effects: &[Effect]) -> impl Iterator<Item = (Uuid, Uuid)> {
    effects.iter().filter_map(|effect| match effect {
        Effect::Merge { from, into } => Some((*from, *into)),
        Effect::Move { .. } => None,
    })
}

fn final_id(moved: &[(Uuid, Uuid)], id: Uuid) -> Uuid {
    moved.iter().find(|(from, _)| *from == id).map_or(id, |(_, to)| *to)
}

fn relinked(contribution: &Contribution, moved: &[(Uuid, Uuid)]) -> Contribution {
    let mut contribution = contribution.clone();
    for slot in &mut contribution.slots {
        if let mappings::resource::Write::Valued(fragments) = &mut slot.write {
            for fragment in Arc::make_mut(fragments) {
                mappings::resource::relink(&mut fragment.json, moved);
            }
        }
    }
    contribution
}
