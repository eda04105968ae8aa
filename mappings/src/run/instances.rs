//! The instances of the resources of a mapping: first who they are, then what is said of them.

use super::made::Keys;
use super::slots::{Again, Place, To};
use super::{Frame, Halt, Instance, Item, Run};
use crate::language::ast::Otherwise;
use crate::program::{MappingCode, PartCode, Parts, ResourceCode, Slot};
use crate::resource::Contribution;
use schemas::hl7v2::definitions::{NodeId, Structure};
use schemas::hl7v2::grammar::InstanceId;
use schemas::hl7v2::{Element, Level};
use schemas::issue::{Issue, Severity};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::Arc;

/// The group in which each resource of a mapping stands.
pub(super) fn places(mapping: &MappingCode, structure: &Structure) -> Arc<[Option<NodeId>]> {
    mapping.resources.iter().map(|resource| group_of(structure, &resource.groups)).collect()
}

/// The group of a path, where the version at hand has it; else the only one whose path ends so: `ORDER` is
/// `ORDER_GENERAL.ORDER` in the OML_O21 of v2.4.
fn group_of(structure: &Structure, path: &str) -> Option<NodeId> {
    structure.group(path).or_else(|| {
        let mut found = structure
            .groups()
            .filter(|(known, _)| known.strip_suffix(path).is_some_and(|before| before.ends_with('.')));
        found.next().map(|(_, id)| id).filter(|_| found.next().is_none())
    })
}

/// Instances of one resource.
pub(super) type Related = SmallVec<[usize; 1]>;

impl<'r> Run<'r> {
    /// Finds every instance of every resource, with its id.
    pub(super) fn find_instances(&mut self) -> Result<(), Halt> {
        let mapping = self.mapping;
        let mut groups: SmallVec<[(NodeId, InstanceId); 32]> =
            self.groups.instances().map(|id| (self.groups.group(id), id)).collect();
        groups.sort_unstable_by_key(|(group, id)| (*group, id.0));
        for (def, resource) in mapping.resources.iter().enumerate() {
            self.around.push(Vec::new());
            let Some(group) = self.places[def] else { continue };
            if resource.segment.is_some_and(|name| !self.may_hold(name)) {
                continue;
            }
            let first = groups.partition_point(|(other, _)| *other < group);
            for (_, place) in groups[first..].iter().take_while(|(other, _)| *other == group) {
                match resource.segment {
                    None => self.find_instance(def, resource, *place, None)?,
                    Some(name) => {
                        for segment in self.inside(*place, name, 2) {
                            self.find_instance(def, resource, *place, Some(segment))?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn find_instance(
        &mut self,
        def: usize,
        resource: &'r ResourceCode,
        group: InstanceId,
        anchor: Option<u32>,
    ) -> Result<(), Halt> {
        self.step()?;
        let frame = self.frame(group, anchor, None);
        let present = anchor.is_some()
            || resource.parts.is_empty()
            || resource.parts.iter().any(|part| !self.part_segments(&frame, part).is_empty());
        if !present || resource.when.is_some_and(|when| !self.holds(&frame, when)) {
            return Ok(());
        }
        let Keys { list: keys, within } = self.keys(&frame, &resource.identity, resource.kind)?;
        let place = || {
            let segment = anchor.map_or(String::new(), |anchor| self.path_of_segment(anchor));
            format!("{}|{segment}", self.groups.path(group))
        };
        let id = match keys.first() {
            Some((system, value)) => {
                crate::identity::id_of(self.context.namespace, resource.kind, system, value)
            }
            None => match resource.identity.otherwise {
                Otherwise::Message => {
                    self.id_of_message(resource.kind, &format!("{}|{}", resource.id, place()))
                }
                Otherwise::Omit | Otherwise::Display => {
                    let path = anchor.map_or(String::new(), |anchor| self.path_of_segment(anchor));
                    let text = "left out: nothing says which one it is";
                    self.issue(Severity::Warning, "no-identity", path, &resource.id, text);
                    return Ok(());
                }
                Otherwise::Quarantine => {
                    let text =
                        format!("{} {}: no identifier says which one it is", resource.kind, resource.id);
                    return Err(Halt::Quarantine(text));
                }
            },
        };
        let index = self.instances.len();
        let aliases = if within.is_some() { Vec::new() } else { keys };
        self.instances.push(Instance { def, group, anchor, id, aliases, within, left_out: false });
        let around = &mut self.around[def];
        if around.is_empty() {
            around.resize(self.groups.instances().count(), SmallVec::new());
        }
        let mut at = Some(group);
        while let Some(id) = at {
            around[id.0 as usize].push(index);
            at = self.groups.parent(id);
        }
        Ok(())
    }

    fn frame(&self, group: InstanceId, anchor: Option<u32>, owner: Option<usize>) -> Frame<'r, 'r> {
        Frame {
            group,
            anchor,
            base: Element::absent(Level::Field),
            parts: Parts::default(),
            item: Item::None,
            call: None,
            level: None,
            owner,
            nth: 0,
            outer: None,
        }
    }

    /// The instances of a resource that belong to this place: those in the innermost group around it that, by the structure,
    /// has a place for them. Where that group holds none there are none: what stands in the next order, or with the next
    /// patient, is another's.
    pub(super) fn related(&self, group: InstanceId, def: usize) -> Related {
        let Some(around) = self.around.get(def).filter(|around| !around.is_empty()) else {
            return Related::new();
        };
        let structure = self.groups.structure();
        let Some(target) = self.places.get(def).copied().flatten() else { return Related::new() };
        let mut at = Some(group);
        while let Some(id) = at {
            if structure.within(target, self.groups.group(id)) {
                return around[id.0 as usize].clone();
            }
            at = self.groups.parent(id);
        }
        Related::new()
    }

    /// The segments on which a part of a resource stands.
    fn part_segments(&self, frame: &Frame<'r, '_>, part: &PartCode) -> SmallVec<[u32; 4]> {
        if let Some(anchor) = frame.anchor
            && part.groups.is_empty()
            && self.message.segments()[anchor as usize].name() == part.segment
        {
            return smallvec::smallvec![anchor];
        }
        if part.groups.is_empty() {
            // A part stands in the group of its resource: the NTE of an order is none of its results'.
            return self.inside(frame.group, part.segment, 2);
        }
        if !self.may_hold(part.segment) {
            return SmallVec::new();
        }
        let structure = self.groups.structure();
        let Some(inner) = structure.group_in(self.groups.group(frame.group), &part.groups) else {
            return SmallVec::new();
        };
        let mut found = SmallVec::new();
        for id in self.groups.instances_of(inner) {
            if self.lies_in(id, frame.group) {
                found.extend(self.inside(id, part.segment, 2));
            }
        }
        found
    }

    fn lies_in(&self, inner: InstanceId, outer: InstanceId) -> bool {
        std::iter::successors(Some(inner), |id| self.groups.parent(*id)).any(|id| id == outer)
    }

    /// Writes every instance. Answers those that had to be left out.
    pub(super) fn write_instances(&mut self) -> Result<Vec<(usize, Issue)>, Halt> {
        let mut left_out = Vec::new();
        for index in 0..self.instances.len() {
            if self.instances[index].left_out {
                continue;
            }
            let (marks, issues, ignored) = (self.marks.len(), self.issues.len(), self.ignored.len());
            let traced = self.traced();
            match self.write_instance(index) {
                Ok(()) => {}
                Err(Halt::LeaveOut | Halt::Unreadable) => {
                    self.marks.truncate(marks);
                    self.untrace(traced);
                    self.made.clear();
                    self.ignored.truncate(ignored);
                    let why = self.issues.get(issues..).and_then(<[Issue]>::last).cloned();
                    let def = &self.mapping.resources[self.instances[index].def];
                    let text = format!("this {} is left out", def.kind);
                    let path = why.map_or(String::new(), |issue| issue.path);
                    left_out.push((
                        index,
                        Issue::new(Severity::Error, "resource-left-out", path, text).by(&*def.id),
                    ));
                }
                Err(quarantine @ Halt::Quarantine(_)) => return Err(quarantine),
            }
        }
        Ok(left_out)
    }

    fn write_instance(&mut self, index: usize) -> Result<(), Halt> {
        let mapping = self.mapping;
        let instance = &mut self.instances[index];
        let (group, anchor) = (instance.group, instance.anchor);
        let resource = &mapping.resources[instance.def];
        let (id, within, aliases) = (instance.id, instance.within, std::mem::take(&mut instance.aliases));
        let on_existing = self.existing(&resource.existing);
        let (entry, fresh) = self.entry(Contribution {
            resource_type: Cow::Borrowed(resource.kind),
            id,
            aliases,
            within,
            on_existing,
            slots: Vec::with_capacity(32),
        })?;
        self.trace_resource(id);
        self.uncause(0);
        let frame = self.frame(group, anchor, Some(entry));
        let mut place = 0;
        let mut written: SmallVec<[&[Slot]; 16]> = SmallVec::new();
        for part in &resource.parts {
            place += 1;
            let segments = self.part_segments(&frame, part);
            for segment in segments {
                let frame = Frame { anchor: Some(segment), ..frame };
                self.uncause(0);
                if part.when.is_some_and(|when| !self.holds(&frame, when)) {
                    continue;
                }
                // Several parts may stand on one map: what it says of their segments is one.
                let known = written.iter().any(|slots| std::ptr::eq(*slots, &*part.slots));
                let again = match (fresh, known) {
                    (true, false) => Again::Never,
                    (true, true) => Again::Part,
                    (false, _) => Again::Mention,
                };
                if !known {
                    written.push(&part.slots);
                }
                let call = self.call_of_part(&frame, part);
                let frame = Frame { call: Some(&call), ..frame };
                self.ignored.push((segment, &part.ignore));
                let to = To { place: Place::Entry(entry), part: place, again, segment: Some(segment) };
                self.write_part(&frame, part, segment, to)?;
            }
        }
        self.uncause(0);
        let again = if fresh { Again::Never } else { Again::Mention };
        let to = To { place: Place::Entry(entry), part: place + 1, again, segment: anchor };
        self.write_whole(&frame, resource, to)
    }

    /// What the mapping asks of the store.
    pub(super) fn find_effects(&mut self) -> Result<(), Halt> {
        let mapping = self.mapping;
        for effect in &mapping.effects {
            for index in 0..self.instances.len() {
                let instance = &self.instances[index];
                if instance.def != effect.what.unwrap_or(effect.from) || instance.left_out {
                    continue;
                }
                let (group, own) = (instance.group, instance.id);
                let frame = self.frame(group, instance.anchor, None);
                if effect.when.is_some_and(|when| !self.holds(&frame, when)) {
                    continue;
                }
                let nearest = |def| self.related(group, def).first().map(|index| self.instances[*index].id);
                let from = if effect.what.is_some() { nearest(effect.from) } else { Some(own) };
                let Some((from, into)) = from.zip(nearest(effect.into)).filter(|(from, into)| from != into)
                else {
                    continue;
                };
                self.effects.push(match effect.what {
                    Some(_) => super::Effect::Move { what: own, from, into },
                    None => super::Effect::Merge { from, into },
                });
            }
        }
        Ok(())
    }
}
