//! A resource as the store keeps it: its slots, how a message's contribution is merged into them, and its rendering.
//!
//! A slot is the stable name of a mapping rule with what the rule last said. Invariants, each a property test: a thin
//! message never wipes what a rich one said; what one sender said later (by its own clock) wins, in whatever order its messages
//! arrive; HL7's `""` empties a slot and the emptiness is remembered; applying a message twice changes nothing.

use crate::bundle::Rendered;
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use uuid::Uuid;

/// How a contribution meets what is known already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Existing {
    /// The message is an authority on the resource: a valued slot replaces what was there, unless that is newer.
    Merge,
    /// The message carries a thin copy: it says what no authority has said.
    Fill,
    /// The message names the resource in passing: it says what nobody has said, and changes nothing, not even a stamp, so
    /// that a ward or a doctor whom every message names is not written with every message.
    Add,
    /// Nothing is changed if the resource exists.
    Keep,
}

/// What one message says about one resource.
#[derive(Clone, PartialEq, Eq)]
pub struct Contribution {
    /// `Patient`, ...
    pub resource_type: Cow<'static, str>,
    /// The id that follows from the first identifier; a known alias wins over it.
    pub id: Uuid,
    /// The identifiers by which it is known, as (system, value), in order of preference.
    pub aliases: Vec<(String, String)>,
    /// How it meets what is known, where a slot does not say otherwise.
    pub on_existing: Existing,
    /// What it says, rule by rule.
    pub slots: Vec<SlotWrite>,
}

/// What one rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotWrite {
    /// The rule's stable name, such as `pid_patient/telecom/home`.
    pub name: &'static str,
    /// Its place in the rendering: rules of lower order come first.
    pub order: u32,
    /// Goes before [`Contribution::on_existing`].
    pub on_existing: Option<Existing>,
    /// What it says.
    pub write: Write,
}

/// A value or its removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// These fragments, in place of whatever the slot held. Shared with the resource that takes them.
    Valued(Arc<[Fragment]>),
    /// Nothing any more: HL7 `""`, or a rule whose condition no longer holds.
    Cleared,
}

/// A piece of a resource in JSON, and where it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Elements from the resource's root, parted by dots: `birthDate`, `period.end`, `_birthDate`. The type of a choice
    /// stands after a slash: `value/Quantity` is `valueQuantity`, and no other type of `value[x]` is written beside it.
    pub path: Cow<'static, str>,
    /// Whether `json` is the items of an array, parted by commas, to be appended to those of other slots.
    pub list: bool,
    /// The JSON text.
    pub json: String,
}

impl Fragment {
    /// Whether it stands beside the items of a list of primitives: `_category`.
    pub(crate) fn is_beside_items(&self) -> bool {
        self.list && self.path.rsplit('.').next().is_some_and(|name| name.starts_with('_'))
    }

    /// How many items of an array it is.
    pub(crate) fn items(&self) -> u32 {
        let items = serde_json::from_str::<Vec<serde::de::IgnoredAny>>(&format!("[{}]", self.json));
        items.map_or(0, |items| u32::try_from(items.len()).unwrap_or(u32::MAX))
    }
}

/// A contribution of this message alone, or one that was remembered from an earlier message and is shared.
#[derive(Clone, Debug)]
pub enum Contributed {
    /// Of this message.
    Own(Contribution),
    /// The same as before: a doctor, a ward.
    Shared(Arc<Contribution>),
}

impl Deref for Contributed {
    type Target = Contribution;

    fn deref(&self) -> &Contribution {
        match self {
            Contributed::Own(contribution) => contribution,
            Contributed::Shared(contribution) => contribution,
        }
    }
}

impl Contributed {
    /// To change it; a shared one is copied before.
    pub(crate) fn own(&mut self) -> &mut Contribution {
        if let Contributed::Shared(shared) = self {
            *self = Contributed::Own(Contribution::clone(shared));
        }
        match self {
            Contributed::Own(contribution) => contribution,
            Contributed::Shared(shared) => Arc::make_mut(shared),
        }
    }
}

impl Contribution {
    /// Whether it names a person or an organization otherwise than another contribution to the same one does.
    pub(crate) fn names_another(&self, other: &Contribution) -> bool {
        let names = |of: &Contribution| -> Vec<String> {
            let valued = of.slots.iter().filter_map(|slot| match &slot.write {
                Write::Valued(fragments) => Some(fragments),
                Write::Cleared => None,
            });
            let names = valued.flat_map(|fragments| &**fragments).filter(|fragment| fragment.path == "name");
            match &*of.resource_type {
                "Practitioner" => families(names.map(|fragment| fragment.json.as_str())),
                "Organization" => names.map(|fragment| fragment.json.to_lowercase()).collect(),
                _ => Vec::new(),
            }
        };
        are_others(&names(self), &names(other))
    }

    /// Adds the identifiers that are not among its own yet.
    pub(crate) fn add_aliases(&mut self, more: &[(String, String)]) {
        for alias in more {
            if !self.aliases.contains(alias) {
                self.aliases.push(alias.clone());
            }
        }
    }
}

/// Shows who and how much; the identifiers are a patient's.
impl fmt::Debug for Contribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Contribution");
        shown.field("resource_type", &self.resource_type).field("id", &self.id);
        shown.field("aliases", &self.aliases.len()).field("slots", &self.slots).finish()
    }
}

/// Shows the path and the length; what stands there is a patient's.
impl fmt::Debug for Fragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fragment").field("path", &self.path).field("length", &self.json.len()).finish()
    }
}

/// When a message said something, by its sender's clock and by the order of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The sender's name: times are compared within one sender only.
    pub sender: Arc<str>,
    /// EVN-2, else MSH-7, in microseconds since 1970 UTC.
    pub at: Option<i64>,
    /// MSH-13.
    pub number: Option<i64>,
    /// The message's place in the order of the store.
    pub seq: i64,
}

impl Stamp {
    /// Whether what carries this stamp goes before what carries `other`. The sender's own clock decides within a sender,
    /// the order of the store between senders.
    fn is_newer_than(&self, other: &Stamp) -> bool {
        if self.sender == other.sender
            && let (Some(own), Some(others)) = (self.at, other.at)
        {
            return (own, self.number, self.seq) > (others, other.number, other.seq);
        }
        self.seq > other.seq
    }
}

/// What [`State::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether the rendering is another one now.
    pub changed: bool,
    /// Whether only stamps moved: worth writing down, but no new version.
    pub touched: bool,
    /// The elements that were emptied; they travel with the event.
    pub cleared: Vec<Cow<'static, str>>,
    /// How many slots were left alone because what is known is newer or from an authority.
    pub skipped: usize,
}

/// A resource as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    slots: Vec<Slot>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    name: Cow<'static, str>,
    order: u32,
    /// Said by a thin copy: any authority's word replaces it.
    weak: bool,
    stamp: Stamp,
    message: Uuid,
    /// Empty: a tombstone.
    fragments: Arc<[Fragment]>,
}

/// The prefix of the slots of a resource that was written whole: one slot for each of its elements.
const WHOLE: &str = "*/";

impl State {
    /// Whether nothing was ever said.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Merges what a message says into what is known.
    pub fn apply(&mut self, contribution: &Contribution, stamp: &Stamp, message: Uuid) -> Applied {
        let existed = self.slots.iter().any(|slot| slot.message != message);
        let mut applied = Applied::default();
        for write in &contribution.slots {
            let mode = write.on_existing.unwrap_or(contribution.on_existing);
            if mode == Existing::Keep && existed {
                applied.skipped += 1;
                continue;
            }
            self.write(write, mode, stamp, message, &mut applied);
        }
        if applied.changed || applied.touched {
            self.slots.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
        }
        applied
    }

    /// Replaces the whole resource by another: every slot goes, and each element becomes one of its own, so that later
    /// partial messages change elements and not the whole.
    ///
    /// `elements` are the top-level elements as (name, JSON text), without `resourceType`, `id` and `meta.versionId`.
    pub fn replace(&mut self, elements: &[(String, String)], stamp: &Stamp, message: Uuid) -> Applied {
        let before = self.rendered();
        let cleared: Vec<Cow<'static, str>> = self
            .slots
            .iter()
            .flat_map(|slot| &*slot.fragments)
            .map(|fragment| Cow::Owned(root(&fragment.path).into_owned()))
            .filter(|path: &Cow<'static, str>| !elements.iter().any(|(name, _)| **name == **path))
            .collect();
        self.slots = elements
            .iter()
            .enumerate()
            .map(|(index, (name, json))| Slot {
                name: format!("{WHOLE}{name}").into(),
                order: u32::try_from(index).unwrap_or(u32::MAX),
                weak: false,
                stamp: stamp.clone(),
                message,
                fragments: Arc::new([Fragment {
                    path: Cow::Owned(name.clone()),
                    list: false,
                    json: json.clone(),
                }]),
            })
            .collect();
        let mut applied = Applied { changed: self.rendered() != before, touched: true, cleared, skipped: 0 };
        applied.cleared.dedup();
        applied
    }

    fn write(
        &mut self,
        write: &SlotWrite,
        mode: Existing,
        stamp: &Stamp,
        message: Uuid,
        applied: &mut Applied,
    ) {
        let weak = mode != Existing::Merge;
        if mode == Existing::Add
            && self.slots.iter().any(|slot| slot.name == write.name && slot.message != message)
        {
            return;
        }
        let fragments: Arc<[Fragment]> = match &write.write {
            Write::Valued(fragments) => Arc::clone(fragments),
            Write::Cleared => Arc::default(),
        };
        // What a whole write said of the same elements counts as this slot's past.
        let whole = |slot: &Slot| {
            let element = slot.name.strip_prefix(WHOLE);
            element.is_some_and(|element| fragments.iter().any(|fragment| says(&fragment.path, element)))
        };
        if self.slots.iter().any(|slot| whole(slot) && (weak || !newer(stamp, message, slot))) {
            applied.skipped += 1;
            return;
        }
        let known = self.slots.iter_mut().find(|slot| slot.name == write.name);
        let slot = Slot {
            name: Cow::Borrowed(write.name),
            order: write.order,
            weak,
            stamp: stamp.clone(),
            message,
            fragments: Arc::clone(&fragments),
        };
        match known {
            None if fragments.is_empty() && weak => return,
            None => {
                applied.changed |= !fragments.is_empty();
                applied.touched = true;
                self.slots.retain(|slot| !whole(slot));
                self.slots.push(slot);
                return;
            }
            Some(known) => {
                let wins = known.message == message
                    || match (weak, known.weak) {
                        (false, true) => true,
                        (true, false) => false,
                        (true, true) => !fragments.is_empty() && stamp.is_newer_than(&known.stamp),
                        (false, false) => stamp.is_newer_than(&known.stamp),
                    };
                if !wins {
                    applied.skipped += usize::from(known.fragments != fragments);
                    return;
                }
                if *known == slot {
                    return;
                }
                applied.touched = true;
                if known.fragments != slot.fragments {
                    applied.changed = true;
                    if slot.fragments.is_empty() {
                        applied.cleared.extend(known.fragments.iter().map(|fragment| {
                            match fragment.path.contains('/') {
                                true => Cow::Owned(fragment.path.replace('/', "")),
                                false => fragment.path.clone(),
                            }
                        }));
                    }
                }
                *known = slot;
            }
        }
        self.slots.retain(|slot| !whole(slot));
    }

    /// The resource in JSON: `resourceType`, `id`, then the slots in the order of their rules.
    pub fn render<'r>(&self, resource_type: &'r str, id: Uuid) -> Rendered<'r> {
        Rendered::of(resource_type, id, self.slots.iter().flat_map(|slot| &*slot.fragments))
    }

    /// The JSON texts that the slots hold at a path, in rendering order.
    pub fn at<'s>(&'s self, path: &'s str) -> impl Iterator<Item = &'s str> {
        let fragments = self.slots.iter().flat_map(|slot| &*slot.fragments);
        fragments.filter(move |fragment| &*fragment.path == path).map(|fragment| fragment.json.as_str())
    }

    /// Points every reference from one resource to another.
    pub fn relink(&mut self, moved: &[(Uuid, Uuid)]) -> bool {
        let mut changed = false;
        for fragment in self.slots.iter_mut().flat_map(|slot| Arc::make_mut(&mut slot.fragments)) {
            changed |= relink(&mut fragment.json, moved);
        }
        changed
    }

    /// Whether a contribution is about somebody else: another family name and another birth date than what is known
    /// under the same identifier. Either alone is a correction.
    pub fn identity_conflict(&self, contribution: &Contribution) -> bool {
        if &*contribution.resource_type != "Patient" {
            return false;
        }
        let said = |path: &'static str| {
            let fragments = contribution.slots.iter().filter_map(|slot| match &slot.write {
                Write::Valued(fragments) => Some(fragments),
                Write::Cleared => None,
            });
            fragments
                .flat_map(|fragments| &**fragments)
                .filter(move |fragment| &*fragment.path == path)
                .map(|fragment| fragment.json.as_str())
        };
        let (known, now) = (families(self.at("name")), families(said("name")));
        let other_name = are_others(&known, &now);
        let (known, now) = (self.at("birthDate").next(), said("birthDate").next());
        let other_birth = match (known, now) {
            (Some(known), Some(now)) => {
                let (known, now) = (known.trim_matches('"'), now.trim_matches('"'));
                !known.starts_with(now) && !now.starts_with(known)
            }
            _ => false,
        };
        other_name && other_birth
    }

    /// The patient whom this resource is about, if it says so; references are `Patient/<id>`, as mapped.
    pub fn patient(&self) -> Option<Uuid> {
        ["subject", "patient", "beneficiary", "for"]
            .into_iter()
            .find_map(|path| self.at(path).find_map(patient_of))
    }

    /// The ids of the resources that it refers to as `<type>/<id>`.
    pub fn references(&self) -> impl Iterator<Item = Uuid> {
        let fragments = self.slots.iter().flat_map(|slot| &*slot.fragments);
        fragments.flat_map(|fragment| fragment.json.split('"')).filter_map(|text| {
            let (kind, id) = text.split_once('/')?;
            let is_type = !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphabetic());
            if is_type && id.len() == 36 { Uuid::try_parse(id).ok() } else { None }
        })
    }

    /// The patient whom this resource is about, and the one whom a contribution says it is about, where both are said: a
    /// laboratory that gives a number anew must not write into the result of somebody else.
    ///
    /// Only for what belongs to one patient for good.
    pub fn patients(&self, contribution: &Contribution) -> Option<(Uuid, Uuid)> {
        let path = match &*contribution.resource_type {
            "AllergyIntolerance" | "Immunization" | "NutritionOrder" => "patient",
            "Encounter"
            | "Observation"
            | "DiagnosticReport"
            | "ServiceRequest"
            | "Specimen"
            | "Condition"
            | "Procedure"
            | "MedicationRequest"
            | "MedicationDispense"
            | "MedicationAdministration"
            | "DocumentReference" => "subject",
            _ => return None,
        };
        let said = contribution.slots.iter().find_map(|slot| match &slot.write {
            Write::Valued(fragments) => fragments.iter().find(|fragment| &*fragment.path == path),
            Write::Cleared => None,
        });
        let known = self.at(path).next().and_then(patient_of)?;
        Some((known, patient_of(&said?.json)?))
    }

    fn rendered(&self) -> String {
        self.render("", Uuid::nil()).json
    }

    /// The bytes under which the store keeps it: who said something and when, each once, then the slots.
    pub fn encode(&self) -> Vec<u8> {
        let mut said: Vec<(&Stamp, Uuid)> = Vec::new();
        let mut slots = Encoder { out: Vec::with_capacity(1024) };
        slots.number(self.slots.len());
        for slot in &self.slots {
            let by = (&slot.stamp, slot.message);
            let by = said.iter().rposition(|known| *known == by).unwrap_or_else(|| {
                said.push(by);
                said.len() - 1
            });
            slots.text(&slot.name);
            slots.number(slot.order as usize);
            slots.number(by << 1 | usize::from(slot.weak));
            slots.number(slot.fragments.len());
            for fragment in &*slot.fragments {
                slots.text(&fragment.path);
                slots.out.push(u8::from(fragment.list));
                slots.text(&fragment.json);
            }
        }
        let mut out = Encoder { out: Vec::with_capacity(slots.out.len() + 64 * said.len() + 2) };
        out.out.push(FORMAT);
        out.number(said.len());
        for (stamp, message) in said {
            out.text(&stamp.sender);
            out.signed(stamp.at);
            out.signed(stamp.number);
            out.signed(Some(stamp.seq));
            out.out.extend_from_slice(message.as_bytes());
        }
        out.out.extend_from_slice(&slots.out);
        out.out
    }

    /// Reads what [`State::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are not that: a damaged row, or one of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotAState> {
        let mut read = Decoder { rest: bytes };
        if read.byte()? != FORMAT {
            return Err(NotAState);
        }
        let mut said = Vec::new();
        for _ in 0..read.number()? {
            let sender = read.text()?.into();
            let (at, number) = (read.signed()?, read.signed()?);
            let seq = read.signed()?.ok_or(NotAState)?;
            let message = Uuid::from_slice(read.take(16)?).map_err(|_| NotAState)?;
            said.push((Stamp { sender, at, number, seq }, message));
        }
        let mut slots = Vec::new();
        for _ in 0..read.number()? {
            let name = Cow::Owned(read.text()?.to_owned());
            let order = u32::try_from(read.number()?).map_err(|_| NotAState)?;
            let by = read.number()?;
            let (stamp, message) = said.get(by >> 1).cloned().ok_or(NotAState)?;
            let mut fragments = Vec::new();
            for _ in 0..read.number()? {
                let path = Cow::Owned(read.text()?.to_owned());
                let list = read.byte()? != 0;
                fragments.push(Fragment { path, list, json: read.text()?.to_owned() });
            }
            slots.push(Slot { name, order, weak: by & 1 != 0, stamp, message, fragments: fragments.into() });
        }
        if read.rest.is_empty() { Ok(State { slots }) } else { Err(NotAState) }
    }
}

/// Points every reference in a JSON text from one resource to another; answers whether there was one. Ids are
/// UUIDs, so their text can stand for nothing else.
pub fn relink(json: &mut String, moved: &[(Uuid, Uuid)]) -> bool {
    let mut changed = false;
    for (from, to) in moved {
        let from = from.to_string();
        if json.contains(&from) {
            *json = json.replace(&from, &to.to_string());
            changed = true;
        }
    }
    changed
}

/// The bytes are no encoded state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored state of a resource cannot be read")]
pub struct NotAState;

fn newer(stamp: &Stamp, message: Uuid, slot: &Slot) -> bool {
    slot.message == message || stamp.is_newer_than(&slot.stamp)
}

/// The element of the resource in which a fragment stands, as JSON names it.
fn root(path: &str) -> Cow<'_, str> {
    let first = path.split('.').next().unwrap_or(path);
    match first.split_once('/') {
        Some((name, of)) => Cow::Owned(format!("{name}{of}")),
        None => Cow::Borrowed(first),
    }
}

/// Whether a fragment says something of an element, as JSON names it: the same one, or another type of a choice.
fn says(path: &str, element: &str) -> bool {
    match path.split('.').next().unwrap_or(path).split_once('/') {
        Some((name, _)) => {
            element.strip_prefix(name).is_some_and(|of| of.starts_with(|c: char| c.is_ascii_uppercase()))
        }
        None => root(path) == element,
    }
}

/// The id in a reference to a Patient.
fn patient_of(json: &str) -> Option<Uuid> {
    let (_, rest) = json.split_once("\"Patient/")?;
    Uuid::try_parse(rest.get(..36)?).ok()
}

/// Whether names are those of somebody else: some are said of both, and none of both.
fn are_others(known: &[String], said: &[String]) -> bool {
    !known.is_empty() && !said.is_empty() && !known.iter().any(|name| said.contains(name))
}

/// The family names in the items of a `name` array, folded.
fn families<'j>(items: impl Iterator<Item = &'j str>) -> Vec<String> {
    let mut families = Vec::new();
    for item in items {
        let text = if item.starts_with('[') { item.to_owned() } else { format!("[{item}]") };
        let names: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let found = names.as_array().into_iter().flatten().filter_map(|name| name["family"].as_str());
        families.extend(found.map(|family| family.trim().to_lowercase()));
    }
    families
}

/// The version of the encoding; the first byte of every state.
const FORMAT: u8 = 2;

struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    /// Seven bits a byte, lowest first.
    fn number(&mut self, mut number: usize) {
        while number >= 0x80 {
            self.out.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.out.push(number as u8);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.out.extend_from_slice(text.as_bytes());
    }

    fn signed(&mut self, number: Option<i64>) {
        match number {
            None => self.out.push(0),
            Some(number) => {
                self.out.push(1);
                self.out.extend_from_slice(&number.to_le_bytes());
            }
        }
    }
}

struct Decoder<'b> {
    rest: &'b [u8],
}

impl<'b> Decoder<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], NotAState> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(NotAState)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, NotAState> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<usize, NotAState> {
        let mut number = 0usize;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(NotAState)
    }

    fn text(&mut self) -> Result<&'b str, NotAState> {
        let count = self.number()?;
        std::str::from_utf8(self.take(count)?).map_err(|_| NotAState)
    }

    fn signed(&mut self) -> Result<Option<i64>, NotAState> {
        match self.byte()? {
            0 => Ok(None),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| NotAState)?;
                Ok(Some(i64::from_le_bytes(bytes)))
            }
            _ => Err(NotAState),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;
    use proptest::prelude::*;

    fn stamp(sender: &str, at: i64, seq: i64) -> Stamp {
        Stamp { sender: sender.into(), at: Some(at), number: None, seq }
    }

    fn valued(name: &str, order: u32, path: &str, list: bool, json: &str) -> SlotWrite {
        let fragment = Fragment { path: path.to_owned().into(), list, json: json.to_owned() };
        SlotWrite {
            name: names::name(name),
            order,
            on_existing: None,
            write: Write::Valued(Arc::new([fragment])),
        }
    }

    fn cleared(name: &str, order: u32) -> SlotWrite {
        SlotWrite { name: names::name(name), order, on_existing: None, write: Write::Cleared }
    }

    fn patient(on_existing: Existing, slots: Vec<SlotWrite>) -> Contribution {
        Contribution {
            resource_type: "Patient".into(),
            id: Uuid::nil(),
            aliases: Vec::new(),
            on_existing,
            slots,
        }
    }

    fn message(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn body(state: &State) -> String {
        let text = state.rendered();
        let start = text.find(",\"").map_or(text.len() - 1, |at| at + 1);
        let rest = &text[start..];
        rest.split_once(',').map_or("{}".to_owned(), |(_, rest)| format!("{{{rest}"))
    }

    #[test]
    fn slots_are_rendered_in_rule_order_and_lists_are_joined() {
        let mut state = State::default();
        let slots = vec![
            valued("pid/birth", 5, "birthDate", false, "\"1970-01-01\""),
            valued("pid/end", 9, "period.end", false, "\"2\""),
            valued("pid/home", 3, "telecom", true, "{\"value\":\"1\"}"),
            valued("pid/work", 4, "telecom", true, "{\"value\":\"2\"},{\"value\":\"3\"}"),
            valued("pid/start", 8, "period.start", false, "\"1\""),
        ];
        let applied = state.apply(&patient(Existing::Merge, slots), &stamp("a", 1, 1), message(1));
        assert!(applied.changed);
        assert_eq!(
            state.render("Patient", Uuid::from_u128(7)).json,
            concat!(
                r#"{"resourceType":"Patient","id":"00000000-0000-0000-0000-000000000007","#,
                r#""telecom":[{"value":"1"},{"value":"2"},{"value":"3"}],"birthDate":"1970-01-01","#,
                r#""period":{"start":"1","end":"2"}}"#
            )
        );
    }

    #[test]
    fn what_stands_beside_the_items_of_a_list_stands_beside_its_own() {
        let beside = |name: &str, order, json: &str, beside: &str| {
            let mut slot = valued(name, order, "category", true, json);
            let Write::Valued(fragments) = &slot.write else { unreachable!("it was given a value") };
            let own = Fragment { path: "_category".into(), list: true, json: beside.to_owned() };
            slot.write = Write::Valued(fragments.iter().cloned().chain([own]).collect());
            slot
        };
        let mut state = State::default();
        let slots = vec![
            valued("zzz/two", 1, "category", true, "\"food\",\"biologic\""),
            beside("zzz/one", 2, "\"medication\"", "{\"extension\":[1]}"),
            valued("zzz/last", 3, "category", true, "\"environment\""),
        ];
        state.apply(&patient(Existing::Merge, slots), &stamp("a", 1, 1), message(1));
        assert_eq!(
            body(&state),
            concat!(
                r#"{"category":["food","biologic","medication","environment"],"#,
                r#""_category":[null,null,{"extension":[1]},null]}"#
            )
        );
    }

    #[test]
    fn a_thin_message_fills_and_never_wipes() {
        let mut state = State::default();
        let rich = patient(
            Existing::Merge,
            vec![
                valued("pid/name", 1, "name", true, "{\"family\":\"TEST\"}"),
                valued("pid/sex", 2, "gender", false, "\"male\""),
            ],
        );
        let thin = patient(
            Existing::Fill,
            vec![
                valued("pid/name", 1, "name", true, "{\"family\":\"T\"}"),
                valued("pid/birth", 3, "birthDate", false, "\"1970\""),
                cleared("pid/sex", 2),
            ],
        );
        state.apply(&rich, &stamp("a", 1, 1), message(1));
        let applied = state.apply(&thin, &stamp("a", 2, 2), message(2));
        assert_eq!((applied.changed, applied.skipped), (true, 2));
        assert_eq!(body(&state), r#"{"name":[{"family":"TEST"}],"gender":"male","birthDate":"1970"}"#);
    }

    #[test]
    fn an_authority_replaces_what_a_thin_copy_said_even_if_it_comes_late() {
        let mut state = State::default();
        let name = |mode, family: &str| {
            patient(mode, vec![valued("pid/name", 1, "name", true, &format!("{{\"family\":\"{family}\"}}"))])
        };
        state.apply(&name(Existing::Fill, "THIN"), &stamp("a", 5, 1), message(1));
        state.apply(&name(Existing::Merge, "TEST"), &stamp("a", 3, 2), message(2));
        assert_eq!(body(&state), r#"{"name":[{"family":"TEST"}]}"#);
    }

    #[test]
    fn null_empties_a_slot_and_is_remembered() {
        let mut state = State::default();
        let sex = |seq, at| {
            (
                patient(Existing::Merge, vec![valued("pid/sex", 2, "gender", false, "\"male\"")]),
                stamp("a", at, seq),
            )
        };
        let (set, first) = sex(1, 1);
        state.apply(&set, &first, message(1));
        let applied = state.apply(
            &patient(Existing::Merge, vec![cleared("pid/sex", 2)]),
            &stamp("a", 9, 2),
            message(2),
        );
        assert_eq!(applied.cleared, ["gender"]);
        assert_eq!(body(&state), "{}");
        let (late, between) = sex(3, 5);
        let applied = state.apply(&late, &between, message(3));
        assert_eq!((applied.changed, applied.skipped), (false, 1), "older than the emptying");
        let fill = patient(Existing::Fill, vec![valued("pid/sex", 2, "gender", false, "\"male\"")]);
        assert!(
            !state.apply(&fill, &stamp("b", 99, 4), message(4)).changed,
            "no thin copy fills a tombstone"
        );
    }

    #[test]
    fn a_replay_of_a_message_rewrites_its_own_slots_and_no_others() {
        let mut state = State::default();
        let sex = |code: &str| patient(Existing::Merge, vec![valued("pid/sex", 2, "gender", false, code)]);
        state.apply(&sex("\"unknown\""), &stamp("a", 1, 1), message(1));
        state.apply(&sex("\"male\""), &stamp("a", 1, 1), message(1));
        assert_eq!(body(&state), r#"{"gender":"male"}"#);
        state.apply(&sex("\"female\""), &stamp("a", 2, 2), message(2));
        assert!(!state.apply(&sex("\"other\""), &stamp("a", 1, 1), message(1)).changed);
    }

    #[test]
    fn a_choice_has_one_type_and_a_value_needs_no_reason_for_its_absence() {
        let mut state = State::default();
        let slots = vec![
            valued("obx/absent", 1, "dataAbsentReason", false, "{}"),
            valued("obx/value", 2, "value/Quantity", false, "{\"value\":1}"),
            valued("nte/value", 3, "value/String", false, "\"1\""),
        ];
        state.apply(&patient(Existing::Merge, slots), &stamp("a", 1, 1), message(1));
        assert_eq!(body(&state), r#"{"valueQuantity":{"value":1}}"#);
        let other = vec![cleared("obx/value", 2)];
        let applied = state.apply(&patient(Existing::Merge, other), &stamp("a", 2, 2), message(2));
        assert_eq!(applied.cleared, ["valueQuantity"]);
        assert_eq!(body(&state), r#"{"valueString":"1"}"#);
    }

    #[test]
    fn a_resource_named_in_passing_grows_and_is_not_touched_otherwise() {
        let name = |value: &str| valued("xcn/name", 1, "name", true, value);
        let add = |slots| patient(Existing::Add, slots);
        let mut state = State::default();
        state.apply(&add(vec![name("{\"family\":\"TEST\"}")]), &stamp("a", 1, 1), message(1));
        let before = state.clone();
        let again = state.apply(&add(vec![name("{\"family\":\"OTHER\"}")]), &stamp("a", 9, 2), message(2));
        assert!(!again.changed && !again.touched);
        assert_eq!(state, before);
        let more = valued("xcn/gender", 2, "gender", false, "\"female\"");
        assert!(state.apply(&add(vec![more]), &stamp("b", 1, 3), message(3)).changed);
        assert_eq!(body(&state), r#"{"name":[{"family":"TEST"}],"gender":"female"}"#);
    }

    #[test]
    fn keep_changes_nothing_that_exists() {
        let mut state = State::default();
        let sex = |code: &str| patient(Existing::Keep, vec![valued("pid/sex", 2, "gender", false, code)]);
        assert!(state.apply(&sex("\"male\""), &stamp("a", 1, 1), message(1)).changed);
        assert!(!state.apply(&sex("\"female\""), &stamp("a", 2, 2), message(2)).changed);
    }

    #[test]
    fn a_whole_write_clears_the_rest_and_later_parts_change_elements() {
        let mut state = State::default();
        let part = |n, at, path: &str, json: &str| {
            (
                patient(Existing::Merge, vec![valued(&format!("pid/{path}"), 3, path, false, json)]),
                stamp("a", at, n),
            )
        };
        let (birth, first) = part(1, 1, "birthDate", "\"1970\"");
        state.apply(&birth, &first, message(1));
        let elements =
            [("gender".to_owned(), "\"male\"".to_owned()), ("active".to_owned(), "true".to_owned())];
        let applied = state.replace(&elements, &stamp("b", 1, 2), message(2));
        assert_eq!(applied.cleared, ["birthDate"]);
        assert_eq!(body(&state), r#"{"gender":"male","active":true}"#);
        let (gender, later) = part(3, 9, "gender", "\"female\"");
        state.apply(&gender, &later, message(3));
        assert_eq!(body(&state), r#"{"active":true,"gender":"female"}"#);
        let fill = patient(Existing::Fill, vec![valued("pid/active", 1, "active", false, "false")]);
        assert!(!state.apply(&fill, &stamp("c", 99, 4), message(4)).changed);
    }

    #[test]
    fn another_name_and_another_birth_date_is_another_person() {
        let mut state = State::default();
        let person = |family: &str, birth: &str| {
            let name = valued("pid/name", 1, "name", true, &format!("{{\"family\":\"{family}\"}}"));
            patient(
                Existing::Merge,
                vec![name, valued("pid/birth", 2, "birthDate", false, &format!("\"{birth}\""))],
            )
        };
        state.apply(&person("TEST", "1970-01-31"), &stamp("a", 1, 1), message(1));
        assert!(state.identity_conflict(&person("OTHER", "1980-02-01")));
        assert!(!state.identity_conflict(&person("OTHER", "1970-01-31")), "a married name");
        assert!(!state.identity_conflict(&person("Test", "1980-02-01")), "a corrected birth date");
        assert!(!state.identity_conflict(&person("OTHER", "1970")), "a coarser birth date is no other");
    }

    #[test]
    fn a_number_given_anew_names_two_patients() {
        let about = |kind: &str, who: u128| {
            let reference = format!("{{\"reference\":\"Patient/{}\"}}", Uuid::from_u128(who));
            let slots = vec![valued("set/subject", 1, "subject", false, &reference)];
            Contribution { resource_type: kind.to_owned().into(), ..patient(Existing::Merge, slots) }
        };
        let mut state = State::default();
        assert_eq!(state.patients(&about("Observation", 1)), None, "nothing is known yet");
        state.apply(&about("Observation", 1), &stamp("a", 1, 1), message(1));
        assert_eq!(state.patients(&about("Observation", 2)), Some((Uuid::from_u128(1), Uuid::from_u128(2))));
        assert_eq!(state.patients(&about("Account", 2)), None, "an account may have several");
    }

    #[test]
    fn references_follow_a_moved_resource() {
        let (from, to) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut json = format!("{{\"reference\":\"Patient/{from}\"}}");
        assert!(relink(&mut json, &[(from, to)]));
        assert_eq!(json, format!("{{\"reference\":\"Patient/{to}\"}}"));
        assert!(!relink(&mut json, &[(from, to)]));
    }

    fn any_message() -> impl Strategy<Value = (bool, Vec<(usize, Option<u8>)>)> {
        (any::<bool>(), proptest::collection::vec((0usize..4, proptest::option::of(0u8..4)), 1..4))
    }

    fn contribution(merge: bool, writes: &[(usize, Option<u8>)]) -> Contribution {
        let mut seen = std::collections::HashSet::new();
        let slots = writes
            .iter()
            .filter(|(slot, _)| seen.insert(*slot))
            .map(|(slot, value)| {
                let name = format!("m/{slot}");
                match value {
                    Some(value) => {
                        valued(&name, *slot as u32, &format!("e{slot}"), false, &value.to_string())
                    }
                    None => cleared(&name, *slot as u32),
                }
            })
            .collect();
        patient(if merge { Existing::Merge } else { Existing::Fill }, slots)
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_within_a_sender_does_not_matter(
            messages in proptest::collection::vec(any_message(), 1..8),
            order in any::<u64>(),
        ) {
            let apply = |indexes: &[usize]| {
                let mut state = State::default();
                for (seq, index) in indexes.iter().enumerate() {
                    let (merge, writes) = &messages[*index];
                    let stamp = stamp("a", *index as i64, seq as i64);
                    state.apply(&contribution(*merge, writes), &stamp, message(*index as u128 + 1));
                }
                body(&state)
            };
            let in_order: Vec<usize> = (0..messages.len()).collect();
            let mut shuffled = in_order.clone();
            let mut seed = order;
            for i in (1..shuffled.len()).rev() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                shuffled.swap(i, (seed >> 33) as usize % (i + 1));
            }
            prop_assert_eq!(apply(&in_order), apply(&shuffled));
        }

        #[test]
        fn a_message_applied_twice_changes_nothing(messages in proptest::collection::vec(any_message(), 1..8)) {
            let mut state = State::default();
            for (n, (merge, writes)) in messages.iter().enumerate() {
                let one = contribution(*merge, writes);
                let stamp = stamp("a", n as i64, n as i64);
                state.apply(&one, &stamp, message(n as u128));
                let before = state.clone();
                let again = state.apply(&one, &stamp, message(n as u128));
                prop_assert!(!again.changed);
                prop_assert_eq!(&state, &before);
            }
            prop_assert_eq!(State::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn damaged_bytes_are_refused_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = State::decode(&[&[FORMAT], &bytes[..]].concat());
            let mut state = State::default();
            state.apply(&contribution(true, &[(1, Some(2))]), &stamp("a", 1, 1), message(1));
            let whole = state.encode();
            for cut in 0..whole.len() {
                prop_assert_eq!(State::decode(&whole[..cut]), Err(NotAState));
            }
        }
    }
}
