//! What slots wrote and what elements made before: the same tests, wards and doctors come with every message.
//!
//! Invariant: what is remembered is what would be written now. The key holds everything that is read, and what caused an issue,
//! asked for an unmapped code or could not be read is not remembered.

use super::coverage::{Mark, State};
use super::{Context, Frame, Item, Run, Val};
use crate::program::{Code, MappingCode, Members, PartCode, Read, Reads, Remember, Target};
use crate::resource::{Contribution, Write};
use foldhash::fast::{FixedState, RandomState};
use schemas::hl7v2::definitions::{NodeId, Structure};
use schemas::hl7v2::separators::Separators;
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Element, Level};
use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;

/// Results from message to message: of one catalog, for one thread at a time; bounded.
#[derive(Default)]
pub(crate) struct Memo {
    /// For whom, as far as results depend on it. What was kept for one of them is not given to another.
    senders: Vec<Sender>,
    sender: u32,
    /// Found by hash, in one of two places; see [`Memo::keep`].
    kept: Vec<Option<Kept>>,
    /// The beginning of the hash of each, so that what is not kept is not looked for among it.
    tags: Vec<u32>,
    tries: Vec<Tries>,
    /// For each part of a resource the slots that are remembered together.
    parts: HashMap<u32, Part, RandomState>,
    /// For each mapping and structure, by their addresses, the group in which each resource stands.
    places: HashMap<(usize, usize), Arc<[Option<NodeId>]>, RandomState>,
    /// How many messages there were.
    messages: u32,
    /// Buffers for keys, and for the elements that they hold.
    keys: Vec<(Vec<u8>, Elements)>,
}

/// Shows how much is kept; what is kept is patients'.
impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo").field("kept", &self.kept.iter().flatten().count()).finish_non_exhaustive()
    }
}

/// What is read beside the message's values.
#[derive(PartialEq, Eq)]
struct Sender {
    name: Arc<str>,
    authority: Arc<str>,
    namespace: Uuid,
    zone: Zone,
    systems: Vec<(String, String)>,
    options: Vec<(String, String)>,
    /// The version of the codes that people have translated.
    codes: i64,
    separators: Separators,
}

struct Kept {
    hash: u64,
    key: Box<[u8]>,
    outcome: Outcome,
    /// The resources that were made beside it.
    made: Box<[Arc<Contribution>]>,
    marks: Box<[Relative]>,
    last: Option<(u8, u32)>,
    /// In which message it was new.
    message: u32,
    /// Whether it was known of late: what never was gives way first.
    known: bool,
}

/// A mark, counted from the first leaf of what was read.
#[derive(Clone, Copy)]
struct Relative {
    /// Which of the places that are read.
    read: u8,
    state: State,
    first: u32,
    end: u32,
}

/// How often a result was known of late. What is new every time is not looked up for a while.
#[derive(Clone, Copy, Default)]
struct Tries {
    tried: u16,
    known: u16,
    rest: u16,
    /// How often of late a result was known from an earlier message: a moving average, [`u16::MAX`] stands for always.
    again: u16,
}

impl Tries {
    fn tell(&mut self, again: bool) {
        let now = if again { i32::from(u16::MAX) } else { 0 };
        let next = i32::from(self.again) + (now - i32::from(self.again)) / 64;
        self.again = next.try_into().unwrap_or_default();
    }
}

/// The slots of a part that are the same message after message: they are looked up all at once.
#[derive(Default)]
struct Part {
    /// How often the part was written since it was last seen which slots these are.
    written: u16,
    steady: Members,
    /// What they read together.
    reads: Reads,
}

/// How many results are kept.
const KEPT_MAX: usize = 8192;
/// Results with longer keys or values than this are not kept, ...
const BYTES_MAX: usize = 2048;
/// ... nor longer ones than this where resources are made: a bed lies in a room, on a ward, on a floor, in a building, on a site.
const BYTES_MAX_MAKING: usize = 4096;
/// For how many senders, with their separators and zones, results are kept at a time. All begin anew with one more.
const SENDERS_MAX: usize = 256;
/// After so many tries it is decided whether a result is worth looking up, ...
const TRIED: u16 = 400;
/// ... which it is if so many of them were known, ...
const WORTH: u16 = 200;
/// ... or so many where resources are made ...
const WORTH_MAKING: u16 = 10;
/// ... and if not, it is left alone for so many times.
const REST: u16 = 10_000;
/// Slots are looked up together if their results are known from earlier messages as often as this, ...
const STEADY: u16 = u16::MAX / 100 * 95;
/// ... and if there are so many of them.
const TOGETHER: u32 = 3;

/// The elements that are read; absent ones where something else is read.
type Elements = Vec<Element>;

/// What was written.
#[derive(Clone)]
pub(super) enum Outcome {
    /// By a slot; `None`: nothing.
    Slot(Option<Write>),
    /// By a slot that does not refuse: that depends on what it carries over.
    Open,
    /// By several slots, each by its index; `None` by one that does not refuse.
    Slots(Arc<[(u32, Option<Write>)]>),
    /// The reference to a made resource; empty: none was made.
    Reference(Arc<str>),
    /// The elements that a map writes, parted by commas; empty: none. And how many values they carry.
    Elements(Arc<str>, u64),
}

/// What is known of a result.
pub(super) enum Recall {
    /// This is it.
    Known(Outcome),
    /// It is to be kept, once it is there.
    New(New),
    /// It is not remembered.
    Never,
}

/// What several slots wrote, each as it remembered it.
#[derive(Default)]
pub(super) struct Together {
    writes: Vec<(u32, Option<Write>)>,
    marks: Vec<Mark>,
}

impl Together {
    /// Adds what the slot of a number wrote.
    pub(super) fn add(&mut self, index: u32, write: &Option<Write>, marks: &[Mark]) {
        self.writes.extend(write.iter().map(|write| (index, Some(write.clone()))));
        self.marks.extend_from_slice(marks);
    }

    /// Adds that the slot of a number does not refuse.
    pub(super) fn add_open(&mut self, index: u32) {
        self.writes.push((index, None));
    }
}

/// What must be known to keep a result.
pub(super) struct New {
    key: Vec<u8>,
    hash: u64,
    elements: Elements,
    /// What was there before.
    marks: usize,
    made: usize,
    told: usize,
}

impl Memo {
    /// Makes it ready for a message.
    pub(super) fn begin(&mut self, code: &Code, context: &Context<'_>, zone: &Zone, separators: &Separators) {
        if self.kept.is_empty() {
            self.kept.resize_with(KEPT_MAX, || None);
            self.tags.resize(KEPT_MAX, 0);
            self.tries.resize(code.remembered as usize, Tries::default());
        }
        let codes = context.codes.map_or(0, crate::SiteCodes::version);
        let same = |sender: &Sender| {
            sender.name == context.sender
                && sender.authority == context.authority
                && sender.namespace == context.namespace
                && sender.separators == *separators
                && sender.zone == *zone
                && sender.systems == context.systems
                && sender.options == context.options
                && sender.codes == codes
        };
        let known = self.senders.iter().position(same);
        let place = known.unwrap_or_else(|| {
            if self.senders.len() == SENDERS_MAX {
                self.senders.clear();
                self.kept.fill_with(|| None);
            }
            self.senders.push(Sender {
                name: context.sender.clone(),
                authority: context.authority.clone(),
                namespace: context.namespace,
                zone: zone.clone(),
                systems: context.systems.to_vec(),
                options: context.options.to_vec(),
                codes,
                separators: *separators,
            });
            self.senders.len() - 1
        });
        self.sender = place as u32;
        self.messages = self.messages.wrapping_add(1);
    }

    /// The group in which each resource of a mapping stands, by the structure of a message.
    pub(super) fn places(&mut self, mapping: &MappingCode, structure: &Structure) -> Arc<[Option<NodeId>]> {
        // Both stay where they are as long as the catalog, whose memo this is: a message's structure is one of the definitions.
        let key = (std::ptr::from_ref(mapping).addr(), std::ptr::from_ref(structure).addr());
        self.places.entry(key).or_insert_with(|| super::instances::places(mapping, structure)).clone()
    }

    /// The slots of a part that are looked up together. Which they are is seen from time to time, while each is looked up by
    /// itself.
    pub(super) fn steady(&mut self, code: &PartCode) -> Members {
        let part = self.parts.entry(code.id).or_default();
        part.written += 1;
        match part.written {
            TRIED => {
                let often =
                    |remember: &Remember| !remember.makes && self.tries[remember.id as usize].again >= STEADY;
                for (index, slot) in (0..).zip(&*code.slots).take(Members::MAX) {
                    if slot.remember.as_deref().is_some_and(often) {
                        part.steady.whole |= 1 << index;
                    } else if slot.refusal.as_ref().is_some_and(|refusal| often(&refusal.remember)) {
                        part.steady.refusing |= 1 << index;
                    } else {
                        continue;
                    }
                    part.steady.reads(index, slot).into_iter().for_each(|reads| part.reads.add(reads));
                }
                if part.steady.count() < TOGETHER {
                    part.steady = Members::default();
                }
            }
            REST => *part = Part::default(),
            _ => {}
        }
        part.steady
    }

    /// Keeps a result where nothing is kept, else in place of one that was not known of late. So the many that come once do not
    /// drive out those that come again and again.
    fn keep(&mut self, new: Kept) {
        let range = places(new.hash);
        let places = &mut self.kept[range.clone()];
        let free = places.iter().position(|kept| kept.as_ref().is_none_or(|kept| !kept.known));
        for kept in places.iter_mut().flatten() {
            kept.known &= free.is_some();
        }
        let place = free.unwrap_or(0);
        self.tags[range.start + place] = tag(new.hash);
        places[place] = Some(new);
    }

    fn is_worth(&mut self, id: u32, makes: bool) -> bool {
        let tries = &mut self.tries[id as usize];
        if tries.rest > 0 {
            tries.rest -= 1;
            return false;
        }
        if tries.tried == TRIED {
            let worth = if makes { WORTH_MAKING } else { WORTH };
            *tries = match tries.known < worth {
                true => Tries { rest: REST, ..Tries::default() },
                false => Tries { again: tries.again, ..Tries::default() },
            };
        }
        tries.tried += 1;
        true
    }
}

/// Where a result may be kept: two places side by side.
fn places(hash: u64) -> Range<usize> {
    let first = hash as usize % (KEPT_MAX / 2) * 2;
    first..first + 2
}

fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

impl Run<'_> {
    /// What was written when what stands here now was last read.
    pub(super) fn recall(&mut self, frame: &Frame<'_, '_>, remember: Option<&Remember>) -> Recall {
        let Some(remember) = remember else { return Recall::Never };
        self.recall_reads(frame, (remember.id, Members::default()), remember.makes, &remember.reads)
    }

    /// What the steady slots of a part wrote, as [`Outcome::Slots`].
    pub(super) fn recall_together(
        &mut self,
        frame: &Frame<'_, '_>,
        part: &PartCode,
        steady: Members,
    ) -> Recall {
        if steady == Members::default() {
            return Recall::Never;
        }
        let Some(known) = self.memo.parts.get_mut(&part.id) else { return Recall::Never };
        let reads = std::mem::take(&mut known.reads);
        let recall = self.recall_reads(frame, (part.id, steady), false, &reads);
        if let Some(known) = self.memo.parts.get_mut(&part.id) {
            known.reads = reads;
        }
        recall
    }

    fn recall_reads(
        &mut self,
        frame: &Frame<'_, '_>,
        (id, steady): (u32, Members),
        makes: bool,
        reads: &Reads,
    ) -> Recall {
        if self.quiet > 0
            || self.tracer.is_some()
            || matches!(frame.item, Item::Segment(_) | Item::Instance(_))
            || !self.memo.is_worth(id, makes)
        {
            return Recall::Never;
        }
        let (mut key, mut elements) = self.memo.keys.pop().unwrap_or_default();
        key.clear();
        elements.clear();
        key.extend_from_slice(&id.to_ne_bytes());
        key.extend_from_slice(&self.memo.sender.to_ne_bytes());
        if steady != Members::default() {
            // Which slots these are may have been seen anew.
            key.extend_from_slice(&steady.whole.to_ne_bytes());
            key.extend_from_slice(&steady.refusing.to_ne_bytes());
        }
        if self.add_fields(frame, reads, &mut key, &mut elements).is_none() {
            self.memo.keys.push((key, elements));
            return Recall::Never;
        }
        let memo = &mut *self.memo;
        let hash = FixedState::default().hash_one(&*key);
        let same = |kept: &Kept| kept.hash == hash && *kept.key == *key;
        let tries = &mut memo.tries[id as usize];
        let found = places(hash)
            .find(|place| memo.tags[*place] == tag(hash) && memo.kept[*place].as_ref().is_some_and(same));
        let Some(kept) = found.and_then(|place| memo.kept[place].as_mut()) else {
            tries.tell(false);
            let (marks, made) = (self.marks.len(), self.made.len());
            return Recall::New(New { key, hash, elements, marks, made, told: self.told() });
        };
        kept.known = true;
        tries.known += 1;
        tries.tell(kept.message != memo.messages);
        self.marks.extend(kept.marks.iter().map(|mark| {
            let first = elements[usize::from(mark.read)].first;
            Mark { first: first + mark.first, end: first + mark.end, state: mark.state }
        }));
        self.made.extend_from_slice(&kept.made);
        self.last_leaf = kept.last.map(|(read, leaf)| (elements[usize::from(read)].first + leaf) as usize);
        let outcome = kept.outcome.clone();
        memo.keys.push((key, elements));
        Recall::Known(outcome)
    }

    /// Keeps what was written, if anything may be, and unless something was told about it that has to be told each time.
    pub(super) fn remember(&mut self, new: New, outcome: Option<Outcome>) {
        let kept = match outcome {
            Some(outcome) if new.told == self.told() => {
                self.result(&new, outcome, &self.marks[new.marks..], &self.made[new.made..], self.last_leaf)
            }
            _ => None,
        };
        self.keep(new, kept);
    }

    /// Keeps what several slots wrote together.
    pub(super) fn remember_together(&mut self, new: New, together: Together) {
        let outcome = Outcome::Slots(together.writes.into());
        let kept = self.result(&new, outcome, &together.marks, &[], None);
        self.keep(new, kept);
    }

    fn keep(&mut self, new: New, kept: Option<Kept>) {
        let memo = &mut *self.memo;
        if let Some(kept) = kept {
            memo.keep(kept);
        }
        memo.keys.push((new.key, new.elements));
    }

    fn result(
        &self,
        new: &New,
        outcome: Outcome,
        marks: &[Mark],
        made: &[Arc<Contribution>],
        last_leaf: Option<usize>,
    ) -> Option<Kept> {
        let of_write = |write: &Write| match write {
            Write::Valued(fragments) => fragments.iter().map(|fragment| fragment.json.len()).sum(),
            Write::Cleared => 0,
        };
        let size: usize = match &outcome {
            Outcome::Slot(write) => write.as_ref().map_or(0, of_write),
            Outcome::Open => 0,
            Outcome::Slots(writes) => {
                writes.iter().map(|(_, write)| write.as_ref().map_or(0, of_write) + 64).sum()
            }
            Outcome::Reference(text) | Outcome::Elements(text, _) => text.len(),
        };
        let slots = made.iter().flat_map(|made| &made.slots);
        let max = if made.is_empty() { BYTES_MAX } else { BYTES_MAX_MAKING };
        if size + new.key.len() + slots.map(|slot| of_write(&slot.write) + 64).sum::<usize>() > max {
            return None;
        }
        let inside = |first: u32, end: u32| {
            let within =
                |element: &Element| !element.is_absent() && element.first <= first && end <= element.end;
            let read = new.elements.iter().position(within)?;
            Some((u8::try_from(read).ok()?, new.elements[read].first))
        };
        let relative = |mark: &Mark| {
            let (read, start) = inside(mark.first, mark.end)?;
            Some(Relative { read, state: mark.state, first: mark.first - start, end: mark.end - start })
        };
        let marks = marks.iter().map(relative).collect::<Option<_>>()?;
        let last = match last_leaf {
            None => None,
            Some(leaf) => {
                let (read, start) = inside(leaf as u32, leaf as u32 + 1)?;
                Some((read, leaf as u32 - start))
            }
        };
        Some(Kept {
            hash: new.hash,
            key: new.key.as_slice().into(),
            outcome,
            made: made.into(),
            marks,
            last,
            message: self.memo.messages,
            known: false,
        })
    }

    /// How much was told about the message until now.
    pub(super) fn told(&self) -> usize {
        self.issues.len() + self.unmapped_codes.len() + self.doubts
    }

    /// Adds places to the key. `None` if what stands there cannot be part of one.
    fn add_fields(
        &self,
        frame: &Frame<'_, '_>,
        reads: &Reads,
        key: &mut Vec<u8>,
        elements: &mut Elements,
    ) -> Option<()> {
        if let Some(name) = reads.anchor {
            let anchor =
                frame.anchor.filter(|anchor| self.message.segments()[*anchor as usize].name() == name)?;
            let mut left = (reads.fields | reads.presences) & self.present[anchor as usize];
            while left != 0 {
                let field = left.trailing_zeros();
                left &= left - 1;
                key.push(field as u8); // of 128
                let element = self.field(anchor, field as u16);
                if reads.fields >> field & 1 == 1 || !self.add_presence(element, key) {
                    self.add_element(element, key);
                    elements.push(element);
                }
            }
            key.push(0);
        }
        for read in &reads.others {
            elements.push(self.add_read(frame, read, key)?);
        }
        Some(())
    }

    /// Adds one place to the key. `None` if what stands there cannot be part of one.
    fn add_read(&self, frame: &Frame<'_, '_>, read: &Read, key: &mut Vec<u8>) -> Option<Element> {
        let absent = Element::absent(Level::Field);
        let element = match read {
            Read::Field { scope, name, field } => {
                self.first_segment(frame, scope, *name).map_or(absent, |segment| self.field(segment, *field))
            }
            Read::Presence { scope, name, field, steps } => {
                let segment = self.first_segment(frame, scope, *name);
                let element =
                    segment.map_or(absent, |segment| self.down(self.field(segment, *field), *steps));
                if self.add_presence(element, key) {
                    return Some(absent);
                }
                element
            }
            Read::Count { scope, name, field } => {
                let segment = self.first_segment(frame, scope, *name);
                let element = segment.map_or(absent, |segment| self.field(segment, *field));
                add_number(key, self.count_valued(element) as i64);
                return Some(absent);
            }
            Read::Part(part) => self.part_of_base(frame, [*part, 0]),
            Read::PartPresence(part) => {
                let element = self.part_of_base(frame, [*part, 0]);
                if self.add_presence(element, key) {
                    return Some(absent);
                }
                element
            }
            Read::Item => match frame.item {
                Item::Element(element) => element,
                Item::None => absent,
                Item::Segment(_) | Item::Instance(_) => return None,
            },
            Read::With(param) => match frame.call.and_then(|call| call.given(*param)) {
                None | Some(Val::Absent) => absent,
                Some(Val::Element(element)) => *element,
                Some(Val::Text(text)) => {
                    add_text(key, TEXT, text);
                    return Some(absent);
                }
                Some(Val::Bool(truth)) => {
                    key.extend_from_slice(&[TRUTH, u8::from(*truth)]);
                    return Some(absent);
                }
                Some(Val::Integer(number)) => {
                    add_number(key, *number);
                    return Some(absent);
                }
                Some(Val::Null | Val::Segment | Val::Unreadable(_)) => return None,
            },
            Read::Ref(to) => {
                let of_instance = |index: &usize| !self.instances[*index].left_out;
                let found = match to {
                    Target::Owner => frame.owner.map(|owner| {
                        let contribution = &self.entries[owner];
                        (&*contribution.resource_type, contribution.id)
                    }),
                    _ => self.referenced(frame, to, true).into_iter().find(of_instance).map(|index| {
                        let instance = &self.instances[index];
                        (self.mapping.resources[instance.def].kind, instance.id)
                    }),
                };
                match found {
                    None => key.push(ABSENT),
                    Some((kind, id)) => {
                        add_text(key, TEXT, kind);
                        key.extend_from_slice(id.as_bytes());
                    }
                }
                return Some(absent);
            }
            Read::Trigger => {
                add_text(key, TEXT, &self.trigger);
                return Some(absent);
            }
            Read::MessageCode => {
                add_text(key, TEXT, &self.message_code().unwrap_or_default());
                return Some(absent);
            }
            Read::Version => {
                add_text(key, TEXT, &self.version().unwrap_or_default());
                return Some(absent);
            }
            Read::Level => {
                let level = frame.level?;
                key.push(u8::from(level.finest));
                add_text(key, TEXT, level.id);
                add_text(key, TEXT, &level.key);
                level.element
            }
        };
        self.add_element(element, key);
        Some(element)
    }

    /// Adds that an element is valued, if it is.
    fn add_presence(&self, element: Element, key: &mut Vec<u8>) -> bool {
        let valued = !element.is_absent() && !self.is_null(element);
        if valued {
            key.push(VALUED);
        }
        valued
    }

    /// Adds an element: its text, and where in it the first leaf stands, as `A` and `^A` begin at the same letter.
    fn add_element(&self, element: Element, key: &mut Vec<u8>) {
        let Some(first) = self.message.leaves().get(element.range()).and_then(<[_]>::first) else {
            key.push(ABSENT);
            return;
        };
        let (repetition, component, subcomponent) = match element.level {
            Level::Field => (first.repetition, first.component, first.subcomponent),
            Level::Repetition => (1, first.component, first.subcomponent),
            Level::Component => (1, 1, first.subcomponent),
            Level::Subcomponent => (1, 1, 1),
        };
        if (repetition, component, subcomponent) != (1, 1, 1) {
            key.push(PLACE);
            key.extend_from_slice(&repetition.to_ne_bytes());
            key.extend_from_slice(&component.to_ne_bytes());
            key.extend_from_slice(&subcomponent.to_ne_bytes());
        }
        add_text(key, element.level as u8, element.raw(self.message));
    }
}

// How the parts of a key begin; below them are the levels of elements.
const ABSENT: u8 = 16;
const VALUED: u8 = 17;
const PLACE: u8 = 18;
const TEXT: u8 = 19;
const TRUTH: u8 = 20;
const NUMBER: u8 = 21;

fn add_number(key: &mut Vec<u8>, number: i64) {
    key.push(NUMBER);
    key.extend_from_slice(&number.to_ne_bytes());
}

fn add_text(key: &mut Vec<u8>, kind: u8, text: &str) {
    key.push(kind);
    key.extend_from_slice(&(text.len() as u32).to_ne_bytes());
    key.extend_from_slice(text.as_bytes());
}
