//! A resource as the store keeps it: its slots, how a message's contribution is merged into them, and its rendering.
//!
//! A slot is the stable name of a mapping rule with what the rule last said. Invariants, each a property test: a thin
//! message never wipes what a rich one said; what one sender said later (by its own clock) wins, in whatever order its messages
//! arrive; HL7's `""` empties a slot and the emptiness is remembered; applying a message twice changes nothing; what was said
//! under a message's labels stays under them unless somebody says the same without.

#[cfg(test)]
mod tests;

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
    /// The id of the resource that it is counted within, where its place in there is all that it can be known by: it has no
    /// aliases then, and is new where the other one is.
    pub within: Option<Uuid>,
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
        fn names(of: &Contribution) -> impl Iterator<Item = &str> {
            let valued = of.slots.iter().filter_map(|slot| match &slot.write {
                Write::Valued(fragments) => Some(fragments),
                Write::Cleared => None,
            });
            let names = valued.flat_map(|fragments| &**fragments).filter(|fragment| fragment.path == "name");
            names.map(|fragment| fragment.json.as_str())
        }
        // Most mentions of one person name him alike, and need not be read for it.
        if names(self).eq(names(other)) {
            return false;
        }
        let folded = |of| match &*self.resource_type {
            "Practitioner" => families(names(of)),
            "Organization" => names(of).map(str::to_lowercase).collect(),
            _ => Vec::new(),
        };
        are_others(&folded(self), &folded(other))
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
    /// The tags and security labels of the whole message, as the members of a `meta` in JSON; `None` without any.
    pub labels: Option<Arc<str>>,
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
    /// Whether stamps moved: worth writing down, though nobody sees another rendering.
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

    /// What is said without labels too is no longer under those of an earlier message.
    fn unlabel(&mut self, write: &SlotWrite, stamp: &Stamp, applied: &mut Applied) {
        if stamp.labels.is_some() {
            return;
        }
        let Write::Valued(fragments) = &write.write else { return };
        let known = self.slots.iter_mut().find(|slot| slot.name == write.name);
        if let Some(slot) = known.filter(|slot| slot.stamp.labels.is_some() && slot.fragments == *fragments) {
            slot.stamp.labels = None;
            applied.changed = true;
        }
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
        self.unlabel(write, stamp, applied);
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
        let mut stamp = stamp.clone();
        // What was said without labels before is no secret for being said with them.
        if known.as_ref().is_some_and(|known| known.stamp.labels.is_none() && known.fragments == fragments) {
            stamp.labels = None;
        }
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
    /// It carries the labels of every message of which it still holds something.
    pub fn render<'r>(&self, resource_type: &'r str, id: Uuid) -> Rendered<'r> {
        self.rendered_from(resource_type, id, |_| true)
    }

    /// The resource without what was said under labels that are not `open`, and labelled as redacted; `None` if nothing else is
    /// known of it. The same as [`State::render`] if there is nothing of the kind.
    pub fn render_open<'r>(
        &self,
        resource_type: &'r str,
        id: Uuid,
        open: impl Fn(&str) -> bool,
    ) -> Option<Rendered<'r>> {
        let is_open = |slot: &Slot| slot.stamp.labels.as_deref().is_none_or(&open);
        let mut said = self.slots.iter().filter(|slot| !slot.fragments.is_empty());
        if said.clone().all(is_open) {
            return Some(self.render(resource_type, id));
        }
        said.any(is_open).then(|| {
            let mut rendered = self.rendered_from(resource_type, id, is_open);
            rendered.redact();
            rendered
        })
    }

    fn rendered_from<'r>(
        &self,
        resource_type: &'r str,
        id: Uuid,
        shown: impl Fn(&Slot) -> bool,
    ) -> Rendered<'r> {
        let slots = self.slots.iter().filter(|slot| shown(slot));
        let mut rendered = Rendered::of(resource_type, id, slots.clone().flat_map(|slot| &*slot.fragments));
        let mut labels: Vec<&str> = Vec::new();
        for slot in slots.filter(|slot| !slot.fragments.is_empty()) {
            if let Some(said) = slot.stamp.labels.as_deref()
                && !labels.contains(&said)
            {
                labels.push(said);
                rendered.label(said);
            }
        }
        rendered
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

    /// The encounter in which it was, if it says so; references are `Encounter/<id>`, as mapped.
    pub fn encounter(&self) -> Option<Uuid> {
        self.at("encounter").find_map(|json| id_of_type(json, "\"Encounter/"))
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

    /// Who said something that stands.
    pub fn senders(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().filter(|slot| !slot.fragments.is_empty()).map(|slot| &*slot.stamp.sender)
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
        // Without labels it is as it was before there were any, so that a replica of before reads it.
        let is_labelled = said.iter().any(|(stamp, _)| stamp.labels.is_some());
        out.out.push(if is_labelled { FORMAT } else { UNLABELLED });
        out.number(said.len());
        for (stamp, message) in said {
            out.text(&stamp.sender);
            out.signed(stamp.at);
            out.signed(stamp.number);
            out.signed(Some(stamp.seq));
            if is_labelled {
                out.text(stamp.labels.as_deref().unwrap_or_default());
            }
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
        let format = read.byte()?;
        if format != FORMAT && format != UNLABELLED {
            return Err(NotAState);
        }
        let mut said = Vec::new();
        for _ in 0..read.number()? {
            let sender = read.text()?.into();
            let (at, number) = (read.signed()?, read.signed()?);
            let seq = read.signed()?.ok_or(NotAState)?;
            let labels = if format == UNLABELLED { "" } else { read.text()? };
            let labels = (!labels.is_empty()).then(|| labels.into());
            let message = Uuid::from_slice(read.take(16)?).map_err(|_| NotAState)?;
            said.push((Stamp { sender, at, number, seq, labels }, message));
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
    id_of_type(json, "\"Patient/")
}

/// The id in a reference that begins so.
fn id_of_type(json: &str, beginning: &str) -> Option<Uuid> {
    let (_, rest) = json.split_once(beginning)?;
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
const FORMAT: u8 = 3;
/// The version before, whose stamps had no labels.
const UNLABELLED: u8 = 2;

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
