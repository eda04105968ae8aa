//! Slots: what a rule of a resource says of it, kept apart so that each can be replaced and emptied by itself.

use super::coverage::{Mark, State};
use super::memo::{Outcome, Recall, Together};
use super::write::Sink;
use super::{Frame, Halt, Run};
use crate::language::ast::OnExisting;
use crate::program::{Members, Op, PartCode, Refusal, ResourceCode, Slot};
use crate::render::DATA_ABSENT;
use crate::resource::{Contributed, Existing, Fragment, SlotWrite, Write};
use schemas::issue::Severity;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::Arc;

/// The slots of a part of a resource lie this far behind those of the part before.
pub(super) const ORDER_STEP: u32 = 1000;
/// To read so many bytes again counts as one step.
const BYTES_A_STEP: usize = 32;
/// To look for an identifier among so many counts as one.
pub(super) const ALIASES_A_STEP: usize = 8;

impl<'r> Run<'r> {
    /// Writes the slots of a part of a resource that stands on a segment.
    pub(super) fn write_part(
        &mut self,
        frame: &Frame<'r, '_>,
        part: &'r PartCode,
        segment: u32,
        to: To,
    ) -> Result<(), Halt> {
        let present = self.present[segment as usize];
        let steady = self.memo.steady(part);
        let recall = self.recall_together(frame, part, steady);
        let spoken = |slot: &Slot| slot.fields == 0 || slot.fields & present != 0;
        self.write_slots(frame, &part.slots, (steady, recall), spoken, to)
    }

    /// Writes what a resource says of itself, beside its parts.
    pub(super) fn write_whole(
        &mut self,
        frame: &Frame<'r, '_>,
        resource: &'r ResourceCode,
        to: To,
    ) -> Result<(), Halt> {
        let (members, recall) = match &resource.together {
            Some((members, remember)) => (*members, self.recall(frame, Some(remember))),
            None => (Members::default(), Recall::Never),
        };
        self.write_slots(frame, &resource.set, (members, recall), |_| true, to)
    }

    /// Writes slots, of which some are recalled together. Of the others `spoken` says which may have something to say.
    fn write_slots(
        &mut self,
        frame: &Frame<'r, '_>,
        slots: &'r [Slot],
        (members, recall): (Members, Recall),
        spoken: impl Fn(&Slot) -> bool,
        to: To,
    ) -> Result<(), Halt> {
        let (known, mut new) = match recall {
            Recall::Known(Outcome::Slots(writes)) => (Some(writes), None),
            Recall::New(new) => (None, Some((new, Together::default()))),
            Recall::Known(_) | Recall::Never => (None, None),
        };
        let mut known = known.as_deref().map(|writes| writes.iter().peekable());
        for (index, slot) in (0..).zip(slots) {
            if !members.has(index) {
                if spoken(slot) {
                    self.write_slot(frame, slot, to)?;
                }
                continue;
            }
            if let Some(writes) = &mut known {
                match writes.next_if(|(of, _)| *of == index) {
                    Some((_, Some(write))) => self.put(slot, write.clone(), to)?,
                    Some((_, None)) => {
                        let write = self.said_openly(frame, slot)?;
                        self.write_said(slot, write, to)?;
                    }
                    None => {}
                }
                continue;
            }
            let (marks, told) = (self.marks.len(), self.told());
            let open = new.is_some()
                && members.refuses(index)
                && slot.refusal.as_ref().is_some_and(|refusal| !self.refuses(frame, refusal));
            let write = if open { self.said_openly(frame, slot)? } else { self.said(frame, slot)? };
            match &mut new {
                Some((_, together)) if open => together.add_open(index),
                Some((_, together)) if told == self.told() => {
                    together.add(index, &write, &self.marks[marks..])
                }
                // What has to be told each time is not remembered.
                _ => {
                    if let Some((new, _)) = new.take() {
                        self.remember(new, None);
                    }
                }
            }
            self.write_said(slot, write, to)?;
        }
        if let Some((new, together)) = new {
            self.remember_together(new, together);
        }
        Ok(())
    }

    /// Writes one slot of a resource. `frame` is that of the map, `outer` that of where the resource is made.
    pub(super) fn write_slot(&mut self, frame: &Frame<'r, '_>, slot: &'r Slot, to: To) -> Result<(), Halt> {
        let write = self.said(frame, slot)?;
        self.write_said(slot, write, to)
    }

    /// Writes what a slot says, with the resources that were made for it.
    fn write_said(&mut self, slot: &'r Slot, write: Option<Write>, to: To) -> Result<(), Halt> {
        if let Place::Entry(_) = to.place {
            self.settle()?;
        }
        match write {
            Some(write) => self.put(slot, write, to),
            None => Ok(()),
        }
    }

    /// Writes one slot of the Bundle itself.
    pub(super) fn write_of_bundle(&mut self, frame: &Frame<'r, '_>, slot: &'r Slot) -> Result<(), Halt> {
        let write = self.said(frame, slot)?;
        self.settle()?;
        if let Some(write) = write {
            let (name, order) = (slot.name, slot.order);
            keep(&mut self.bundle, SlotWrite { name, order, on_existing: None, write }, Again::Never);
        }
        Ok(())
    }

    /// What a slot says, remembered or not; `None`: nothing.
    fn said(&mut self, frame: &Frame<'r, '_>, slot: &'r Slot) -> Result<Option<Write>, Halt> {
        self.step()?;
        // In other segments that is looked for once, with what else is refused.
        let here = slot.fields != 0 || slot.refusal.is_none();
        if slot.idle && here && !self.any_present(frame, &slot.sources) {
            return Ok(None);
        }
        let Some(refusal) = &slot.refusal else { return self.said_openly(frame, slot) };
        self.last_leaf = None;
        match self.recall(frame, Some(&refusal.remember)) {
            Recall::Known(Outcome::Slot(write)) => return Ok(write),
            Recall::Known(_) | Recall::Never => {}
            Recall::New(new) if self.refuses(frame, refusal) => {
                let write = self.said_openly(frame, slot)?;
                self.remember(new, Some(Outcome::Slot(write.clone())));
                return Ok(write);
            }
            Recall::New(new) => {
                self.last_leaf = None;
                self.remember(new, Some(Outcome::Open));
            }
        }
        self.said_openly(frame, slot)
    }

    /// Whether a slot writes no value, whatever it would carry over.
    fn refuses(&mut self, frame: &Frame<'r, '_>, refusal: &'r Refusal) -> bool {
        refusal.unless.iter().any(|condition| !self.holds(frame, *condition))
    }

    /// What a slot says of which it is not known whether it refuses.
    fn said_openly(&mut self, frame: &Frame<'r, '_>, slot: &'r Slot) -> Result<Option<Write>, Halt> {
        self.failed = false;
        self.last_leaf = None;
        match self.recall(frame, slot.remember.as_deref()) {
            Recall::Known(Outcome::Slot(write)) => Ok(write),
            Recall::Known(_) | Recall::Never => self.say(frame, slot),
            Recall::New(new) => {
                let write = self.say(frame, slot)?;
                self.remember(new, Some(Outcome::Slot(write.clone())));
                Ok(write)
            }
        }
    }

    /// Adds what a slot says to its resource.
    fn put(&mut self, slot: &'r Slot, write: Write, to: To) -> Result<(), Halt> {
        let on_existing = slot.existing.as_ref().map(|existing| self.existing(existing));
        let order = to.part * ORDER_STEP + slot.order;
        let write = SlotWrite { name: slot.name, order, on_existing, write };
        let contribution = match to.place {
            Place::Entry(entry) => self.entries[entry].own(),
            Place::Made(made) => Arc::make_mut(&mut self.made[made]), // nobody else has it yet
        };
        let before = self.tracer.is_some().then(|| items(&contribution.slots, slot.name));
        // What is joined is read again with each place that adds to it.
        let read = if to.again == Again::Mention { held(&contribution.slots, slot.name) } else { 0 };
        let kept = keep(&mut contribution.slots, write, to.again);
        self.burn(read / BYTES_A_STEP)?;
        if let Some(before) = before
            && matches!(to.again, Again::Part | Again::Mention)
        {
            self.trace_shift(self.turn, before);
        }
        if kept == Kept::Otherwise {
            let segment = to.segment.map(|segment| self.path_of_segment(segment));
            let text = "the message says two things of one resource here: the first is kept";
            self.issue(Severity::Warning, "said-otherwise", segment.unwrap_or_default(), slot.name, text);
        }
        Ok(())
    }

    /// What the rule of a slot says; `None` if it says nothing.
    fn say(&mut self, frame: &Frame<'r, '_>, slot: &'r Slot) -> Result<Option<Write>, Halt> {
        let (around, causes) = (self.trace_slot(slot.name, frame.anchor), self.causes());
        let said = self.say_anew(frame, slot);
        self.uncause(causes);
        self.turn = self.untrace_slot(around);
        said
    }

    fn say_anew(&mut self, frame: &Frame<'r, '_>, slot: &'r Slot) -> Result<Option<Write>, Halt> {
        let marks = self.marks.len();
        let mut json = self.scratch.pop().unwrap_or_default();
        json.clear();
        let clear = slot.clear.is_some_and(|clear| self.holds(frame, clear));
        let guarded = !clear && slot.guards.iter().all(|guard| self.holds(frame, *guard));
        let beside = std::mem::take(&mut self.beside);
        let mut count = 0;
        if guarded {
            let mut sink = Sink { out: &mut json, count: 0, max: if slot.path.many { u32::MAX } else { 1 } };
            let wrote = self.emit(frame, slot.node, &mut sink);
            count = sink.count;
            wrote?;
        }
        let beside = std::mem::replace(&mut self.beside, beside);
        let mut value = None;
        if count > 0 {
            let path = if slot.path.choice {
                let known = slot.path.types.iter().find(|(of, _)| *of == self.suffix);
                known.map_or(slot.path.text, |(_, path)| path)
            } else {
                slot.path.text
            };
            value = Some(Fragment {
                path: Cow::Borrowed(path),
                list: slot.path.many,
                json: json.as_str().to_owned(),
            });
        }
        let mut extension = None;
        if slot.path.many {
            // Why there is no item is not said beside an item.
            if count > 0 && !beside.is_empty() && !beside.starts_with(DATA_ABSENT) {
                let path = slot.path.beside.strip_suffix(".extension").unwrap_or(slot.path.beside);
                let json = format!("{{\"extension\":[{beside}]}}");
                extension = Some(Fragment { path: Cow::Borrowed(path), list: true, json });
            }
        } else if !beside.is_empty() {
            let path = if slot.path.choice {
                // `value[x]` without a value has no type to stand beside.
                if count == 0 { None } else { Some(Cow::Owned(beside_choice(slot.path.text, self.suffix))) }
            } else {
                Some(Cow::Borrowed(slot.path.beside))
            };
            extension = path.map(|path| Fragment { path, list: true, json: beside });
        }
        let fragments: Option<Arc<[Fragment]>> = match (value, extension) {
            (None, None) => None,
            (Some(only), None) | (None, Some(only)) => Some(Arc::new([only])),
            (Some(value), Some(extension)) => Some(Arc::new([value, extension])),
        };
        self.scratch.push(json);
        Ok(match fragments {
            Some(fragments) => Some(Write::Valued(fragments)),
            None => {
                self.forget_since(marks);
                if self.failed {
                    return Ok(None);
                }
                match self.presence(frame, &slot.sources) {
                    (false, false) if !clear => None,
                    // What a caller hands on is for another resource, if the rule does not take it.
                    (false, true) if !clear && self.is_handed(slot) => None,
                    (null, valued) => {
                        if null && !valued {
                            self.mark_nulls(frame, slot);
                        }
                        Some(Write::Cleared)
                    }
                }
            }
        })
    }

    /// Whether all that a slot carries over is what a caller hands to its map.
    fn is_handed(&self, slot: &Slot) -> bool {
        slot.sources.iter().all(|source| matches!(self.code.op(*source), Op::With(_)))
    }

    /// The `""` that empties a slot has done its work.
    fn mark_nulls(&mut self, frame: &Frame<'r, '_>, slot: &'r Slot) {
        for source in &slot.sources {
            let element = self.element(frame, *source);
            if element.is_null(self.message) {
                self.marks.push(Mark { first: element.first, end: element.end, state: State::Mapped });
            }
        }
    }

    /// Puts what was made for a slot beside the other resources: what is made of the same thing twice is one.
    fn settle(&mut self) -> Result<(), Halt> {
        if self.made.is_empty() {
            return Ok(());
        }
        let mut compared = 0;
        let mut two_names = Vec::new();
        let mut all = std::mem::take(&mut self.made);
        for made in all.drain(..) {
            match self.entry_of.get(&made.id) {
                None => {
                    self.entry_of.insert(made.id, self.entries.len());
                    self.entries.push(Contributed::Shared(made));
                }
                Some(known) => {
                    let known = &mut self.entries[*known];
                    if matches!(known, Contributed::Shared(known) if Arc::ptr_eq(known, &made)) {
                        continue;
                    }
                    compared += known.aliases.len() * made.aliases.len();
                    if known.names_another(&made) && self.two_names.insert(made.id) {
                        two_names.push(made.resource_type.clone());
                    }
                    // What says nothing new changes nothing: what is shared stays so.
                    if made.aliases.iter().any(|alias| !known.aliases.contains(alias)) {
                        known.own().add_aliases(&made.aliases);
                    }
                    for slot in &made.slots {
                        if says_more(slot, &known.slots) {
                            keep(&mut known.own().slots, slot.clone(), Again::Made);
                        }
                    }
                }
            }
        }
        self.made = all;
        for resource_type in two_names {
            let text = "two names come with one number: who refers to it keeps the name that stands there";
            self.issue(Severity::Warning, "two-names", resource_type.into_owned(), "", text);
        }
        self.burn(compared / ALIASES_A_STEP)
    }

    /// How a rule meets what is known, for this trigger event.
    pub(super) fn existing(&self, rule: &OnExisting) -> Existing {
        match rule {
            OnExisting::Always(existing) => *existing,
            OnExisting::ByTrigger { cases, otherwise } => cases
                .iter()
                .find(|(event, _)| *event == self.trigger)
                .map_or(*otherwise, |(_, existing)| *existing),
        }
    }
}

/// To what a slot is added.
#[derive(Clone, Copy)]
pub(super) struct To {
    pub(super) place: Place,
    /// Which part of the resource it is of, for the order of what is said.
    pub(super) part: u32,
    pub(super) again: Again,
    /// The segment on which the rules stand, for the places of issues.
    pub(super) segment: Option<u32>,
}

/// Where a resource is being put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Among those of the message, an index of [`Run::entries`].
    Entry(usize),
    /// Among those that are made for a slot, an index of [`Run::made`].
    Made(usize),
}

/// What became of a slot that was added to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// It is there, or what was there says as much.
    Well,
    /// What was there before says something else, and stays.
    Otherwise,
}

/// Adds a slot to a resource that may have one of the same name already.
fn keep(slots: &mut Vec<SlotWrite>, write: SlotWrite, again: Again) -> Kept {
    let known = match again {
        Again::Never => None,
        Again::Part | Again::Mention | Again::Made => slots.iter_mut().find(|known| known.name == write.name),
    };
    let Some(known) = known else {
        slots.push(write);
        return Kept::Well;
    };
    match (&mut known.write, write.write) {
        (Write::Cleared, valued @ Write::Valued(_)) => known.write = valued,
        // What stands beside the items of a list stands beside the same items.
        (Write::Valued(known), Write::Valued(more))
            if again != Again::Made && known.iter().chain(&*more).any(Fragment::is_beside_items) =>
        {
            return if *known == more { Kept::Well } else { Kept::Otherwise };
        }
        (Write::Valued(known), Write::Valued(more)) if again != Again::Made => {
            let mut kept = Kept::Well;
            for fragment in more.iter() {
                match Arc::make_mut(known).iter_mut().find(|known| known.path == fragment.path) {
                    Some(known) if known.list && again == Again::Mention => add_items(known, &fragment.json),
                    Some(known) if known.list => {
                        known.json.push(',');
                        known.json.push_str(&fragment.json);
                    }
                    Some(known) if known.json == fragment.json => {}
                    None if fragment.list || again == Again::Part => {
                        *known = known.iter().chain([fragment]).cloned().collect();
                    }
                    Some(_) | None => kept = Kept::Otherwise,
                }
            }
            // Of the segments of one resource the first says what can be said once.
            return kept;
        }
        // Two mentions of one person in one message: the fuller one says more.
        (Write::Valued(known), Write::Valued(more)) if length(&more) > length(known) => *known = more,
        _ => {}
    }
    Kept::Well
}

/// Adds the items of a list that are not in it yet.
fn add_items(known: &mut Fragment, more: &str) {
    let items = |json: &str| -> Vec<String> {
        let list = format!("[{json}]");
        let items: Vec<&RawValue> = serde_json::from_str(&list).expect("the items of a list are JSON");
        items.iter().map(|item| item.get().to_owned()).collect()
    };
    for item in items(more) {
        // Only what stands there as text may be one of the items.
        if known.json.contains(&item) && items(&known.json).contains(&item) {
            continue;
        }
        known.json.push(',');
        known.json.push_str(&item);
    }
}

/// Whether a slot of a resource that is mentioned again adds to those that it has.
fn says_more(more: &SlotWrite, known: &[SlotWrite]) -> bool {
    let Some(known) = known.iter().find(|known| known.name == more.name) else { return true };
    match (&known.write, &more.write) {
        (_, Write::Cleared) => false,
        (Write::Cleared, Write::Valued(_)) => true,
        (Write::Valued(known), Write::Valued(more)) => length(more) > length(known),
    }
}

/// How much text fragments hold.
fn length(fragments: &[Fragment]) -> usize {
    fragments.iter().map(|fragment| fragment.json.len()).sum()
}

/// How much text a slot holds.
fn held(slots: &[SlotWrite], name: &str) -> usize {
    match slots.iter().find(|known| known.name == name).map(|known| &known.write) {
        Some(Write::Valued(fragments)) => length(fragments),
        Some(Write::Cleared) | None => 0,
    }
}

/// How many items a slot holds, if it is a list.
fn items(slots: &[SlotWrite], name: &str) -> u32 {
    let known = slots.iter().find(|known| known.name == name);
    let Some(Write::Valued(fragments)) = known.map(|known| &known.write) else { return 0 };
    fragments.iter().find(|fragment| fragment.list).map_or(0, Fragment::items)
}

/// Whether a slot of the same name may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// No.
    Never,
    /// From another segment of the same resource: lists are appended.
    Part,
    /// From another place of the message that is about the same resource: lists are joined, and what can be said once the
    /// first place says.
    Mention,
    /// From another element that names the same resource: the fuller one says it, of two alike the first.
    Made,
}

/// `_valueString.extension` beside `value[x]`.
fn beside_choice(path: &str, suffix: &str) -> String {
    match path.rsplit_once('.') {
        Some((parent, name)) => format!("{parent}._{name}{suffix}.extension"),
        None => format!("_{path}{suffix}.extension"),
    }
}
