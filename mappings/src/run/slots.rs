//! Slots: what a rule of a resource says of it, kept apart so that each can be replaced and emptied by itself.

use super::coverage::{Mark, State};
use super::memo::{Outcome, Recall, Together};
use super::write::Sink;
use super::{Frame, Halt, Run};
use crate::language::ast::OnExisting;
use crate::program::{PartCode, Remember, Slot};
use crate::resource::{Contributed, Existing, Fragment, SlotWrite, Write};
use std::borrow::Cow;
use std::sync::Arc;

/// The slots of a part of a resource lie this far behind those of the part before.
pub(super) const ORDER_STEP: u32 = 1000;

impl<'r> Run<'r> {
    /// Writes the slots of a part of a resource that stands on a segment.
    pub(super) fn write_part(
        &mut self,
        frame: &Frame<'r, '_>,
        part: &'r PartCode,
        segment: u32,
        place: Place,
        number: u32,
        again: Again,
    ) -> Result<(), Halt> {
        let leaves = &self.message.leaves()[self.message.segments()[segment as usize].leaves()];
        let present = leaves.iter().fold(0u128, |all, leaf| all | 1 << leaf.field.min(127));
        let spoken = |slot: &Slot| slot.fields == 0 || slot.fields & present != 0;
        let steady = self.memo.steady(part);
        let (known, mut new) = match self.recall_together(frame, part, steady) {
            Recall::Known(Outcome::Slots(writes)) => (Some(writes), None),
            Recall::New(new) => (None, Some((new, Together::default()))),
            Recall::Known(_) | Recall::Never => (None, None),
        };
        let mut known = known.as_deref().map(|writes| writes.iter().peekable());
        for (index, slot) in (0..).zip(&*part.slots) {
            if !steady.has(index) {
                if spoken(slot) {
                    self.write_slot(frame, slot, place, number, again)?;
                }
            } else if let Some(writes) = &mut known {
                if let Some((_, write)) = writes.next_if(|(of, _)| *of == index) {
                    self.put(slot, write.clone(), place, number, again);
                }
            } else {
                let marks = self.marks.len();
                let said = self.said(frame, slot)?;
                match &mut new {
                    // Together only what each remembered by itself.
                    Some((_, together)) if said.known => {
                        together.add(index, &said.write, &self.marks[marks..])
                    }
                    _ => {
                        if let Some((new, _)) = new.take() {
                            self.remember(new, None);
                        }
                    }
                }
                if let Some(write) = said.write {
                    self.put(slot, write, place, number, again);
                }
            }
        }
        if let Some((new, together)) = new {
            self.remember_together(new, together);
        }
        Ok(())
    }

    /// Writes one slot of a resource. `frame` is that of the map, `outer` that of where the resource is made.
    pub(super) fn write_slot(
        &mut self,
        frame: &Frame<'r, '_>,
        slot: &'r Slot,
        place: Place,
        part: u32,
        again: Again,
    ) -> Result<(), Halt> {
        let write = self.said(frame, slot)?.write;
        if let Place::Entry(_) = place {
            self.settle();
        }
        if let Some(write) = write {
            self.put(slot, write, place, part, again);
        }
        Ok(())
    }

    /// Writes one slot of the Bundle itself.
    pub(super) fn write_of_bundle(&mut self, frame: &Frame<'r, '_>, slot: &'r Slot) -> Result<(), Halt> {
        let write = self.said(frame, slot)?.write;
        self.settle();
        if let Some(write) = write {
            let (name, order) = (slot.name, slot.order);
            keep(&mut self.bundle, SlotWrite { name, order, on_existing: None, write }, Again::Never);
        }
        Ok(())
    }

    /// Writes several slots of a resource that may be remembered together.
    pub(super) fn write_slots(
        &mut self,
        frame: &Frame<'r, '_>,
        slots: &'r [Slot],
        remember: Option<&'r Remember>,
        place: Place,
        part: u32,
        again: Again,
    ) -> Result<(), Halt> {
        let writes = match self.recall(frame, remember) {
            Recall::Known(Outcome::Slots(writes)) => writes,
            Recall::New(new) => {
                let mut writes = Vec::with_capacity(slots.len());
                for (slot, index) in slots.iter().zip(0..) {
                    writes.extend(self.said(frame, slot)?.write.map(|write| (index, write)));
                }
                let writes: Arc<[(u32, Write)]> = writes.into();
                self.remember(new, Some(Outcome::Slots(writes.clone())));
                writes
            }
            Recall::Known(_) | Recall::Never => {
                return slots.iter().try_for_each(|slot| self.write_slot(frame, slot, place, part, again));
            }
        };
        self.settle();
        for (index, write) in writes.iter() {
            self.put(&slots[*index as usize], write.clone(), place, part, again);
        }
        Ok(())
    }

    /// What a slot says, remembered or not.
    fn said(&mut self, frame: &Frame<'r, '_>, slot: &'r Slot) -> Result<Said, Halt> {
        self.step()?;
        self.failed = false;
        self.last_leaf = None;
        if slot.idle && !self.any_present(frame, &slot.sources) {
            return Ok(Said { write: None, known: true });
        }
        match self.recall(frame, slot.remember.as_ref()) {
            Recall::Known(Outcome::Slot(write)) => Ok(Said { write, known: true }),
            Recall::Known(_) | Recall::Never => Ok(Said { write: self.say(frame, slot)?, known: false }),
            Recall::New(new) => {
                let write = self.say(frame, slot)?;
                self.remember(new, Some(Outcome::Slot(write.clone())));
                Ok(Said { write, known: false })
            }
        }
    }

    /// Adds what a slot says to its resource.
    fn put(&mut self, slot: &'r Slot, write: Write, place: Place, part: u32, again: Again) {
        let on_existing = slot.existing.as_ref().map(|existing| self.existing(existing));
        let order = part * ORDER_STEP + slot.order;
        let write = SlotWrite { name: slot.name, order, on_existing, write };
        let contribution = match place {
            Place::Entry(entry) => self.entries[entry].own(),
            Place::Made(made) => Arc::make_mut(&mut self.made[made]), // nobody else has it yet
        };
        let before = self.tracer.is_some().then(|| items(&contribution.slots, slot.name));
        keep(&mut contribution.slots, write, again);
        if let Some(before) = before
            && again == Again::Part
        {
            self.trace_shift(self.turn, before);
        }
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
        if !beside.is_empty() && !slot.path.many {
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
    fn settle(&mut self) {
        let mut all = std::mem::take(&mut self.made);
        for made in all.drain(..) {
            if self.settled.iter().any(|settled| Arc::ptr_eq(settled, &made)) {
                continue;
            }
            match self.entry_of.get(&made.id) {
                None => {
                    self.entry_of.insert(made.id, self.entries.len());
                    self.entries.push(Contributed::Shared(made.clone()));
                }
                Some(known) => {
                    let known = self.entries[*known].own();
                    known.add_aliases(&made.aliases);
                    made.slots.iter().for_each(|slot| keep(&mut known.slots, slot.clone(), Again::Made));
                }
            }
            self.settled.push(made);
        }
        self.made = all;
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

/// What a slot says.
struct Said {
    /// `None`: nothing.
    write: Option<Write>,
    /// Whether it says so for the same values whenever they come.
    known: bool,
}

/// Where a resource is being put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Among those of the message, an index of [`Run::entries`].
    Entry(usize),
    /// Among those that are made for a slot, an index of [`Run::made`].
    Made(usize),
}

/// Adds a slot to a resource that may have one of the same name already.
fn keep(slots: &mut Vec<SlotWrite>, write: SlotWrite, again: Again) {
    let known = match again {
        Again::Never => None,
        Again::Part | Again::Made => slots.iter_mut().find(|known| known.name == write.name),
    };
    let Some(known) = known else {
        slots.push(write);
        return;
    };
    match (&mut known.write, write.write) {
        (Write::Cleared, valued @ Write::Valued(_)) => known.write = valued,
        (Write::Valued(known), Write::Valued(more)) if again == Again::Part => {
            for fragment in more.iter() {
                // Nobody else has them yet, so nothing is copied.
                match Arc::make_mut(known).iter_mut().find(|known| known.path == fragment.path) {
                    Some(known) if known.list => {
                        known.json.push(',');
                        known.json.push_str(&fragment.json);
                    }
                    Some(_) => {}
                    None => *known = known.iter().chain([fragment]).cloned().collect(),
                }
            }
        }
        // Two mentions of one person in one message: the fuller one says more.
        (Write::Valued(known), Write::Valued(more)) if length(&more) > length(known) => *known = more,
        _ => {}
    }
}

/// How much text fragments hold.
fn length(fragments: &[Fragment]) -> usize {
    fragments.iter().map(|fragment| fragment.json.len()).sum()
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
