//! References, the resources that are made from a field, and the keys by which a resource is recognised.

use super::instances::Related;
use super::memo::{Outcome, Recall};
use super::slots::{ALIASES_A_STEP, Again, ORDER_STEP, Place, To};
use super::write::Sink;
use super::{ChainState, Frame, Halt, Item, Run, Val};
use crate::json::{self, Primitive};
use crate::language::ast::Otherwise;
use crate::program::{ExprId, IdentityRule, Key, Make, Node, Target};
use crate::resource::{Contributed, Contribution, Fragment, SlotWrite, Write};
use schemas::hl7v2::{Element, Level};
use std::borrow::Cow;
use std::collections::hash_map;
use std::sync::Arc;
use uuid::Uuid;

impl<'r> Run<'r> {
    pub(super) fn write_refs(
        &mut self,
        frame: &Frame<'r, '_>,
        to: &Target,
        filter: Option<ExprId>,
        max: u32,
        sink: &mut Sink<'_>,
    ) -> Result<(), Halt> {
        let mut written = 0;
        let put = |run: &mut Self, kind: &str, id: Uuid, sink: &mut Sink<'_>| {
            if sink.count > 0 {
                sink.out.push(',');
            }
            write_reference(sink.out, kind, id, None);
            sink.count += 1;
            run.carried += 1;
        };
        if let Target::Owner = to {
            if let Some(owner) = frame.owner {
                let contribution = &self.entries[owner];
                let (kind, id) = (contribution.resource_type.clone(), contribution.id);
                put(self, &kind, id, sink);
            }
            return Ok(());
        }
        for index in self.referenced(frame, to, max == 1 && filter.is_none()) {
            self.step()?;
            if self.instances[index].left_out || written >= max || sink.count >= sink.max {
                continue;
            }
            if let Some(filter) = filter {
                let inner = Frame { item: Item::Instance(index), ..*frame };
                if !self.holds(&inner, filter) {
                    continue;
                }
            }
            let instance = &self.instances[index];
            let (kind, id) = (self.mapping.resources[instance.def].kind, instance.id);
            put(self, kind, id, sink);
            written += 1;
        }
        Ok(())
    }

    /// The instances that a reference may lead to.
    pub(super) fn referenced(&self, frame: &Frame<'_, '_>, to: &Target, one: bool) -> Related {
        match to {
            Target::Owner => Related::new(),
            Target::All | Target::Others(_) => {
                let left_out = |index: &usize| match to {
                    Target::Others(names) => names.iter().any(|name| {
                        let def = self.mapping.refs.get(usize::from(*name)).copied().flatten();
                        def == Some(self.instances[*index].def)
                    }),
                    _ => false,
                };
                // A resource is not among those that it is about.
                let own = frame.owner.map(|owner| self.entries[owner].id);
                (0..self.instances.len())
                    .filter(|index| Some(self.instances[*index].id) != own && !left_out(index))
                    .collect()
            }
            Target::Resource(name) => {
                let Some(def) = self.mapping.refs.get(usize::from(*name)).copied().flatten() else {
                    return Related::new();
                };
                let related = self.related(frame.group, def);
                // A map on a segment means the resource of that segment, where there is one.
                let of_segment = |index: &usize| self.instances[*index].anchor == frame.anchor;
                if one
                    && frame.anchor.is_some()
                    && let Some(own) = related.iter().copied().find(of_segment)
                {
                    return smallvec::smallvec![own];
                }
                related
            }
        }
    }

    /// Makes a resource from an element and writes the reference to it.
    pub(super) fn write_made(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        id: u32,
        from: Option<ExprId>,
        out: &mut String,
    ) -> Result<bool, Halt> {
        let make = &self.code.makes[id as usize];
        match self.recall(frame, make.remember.as_deref()) {
            Recall::Known(Outcome::Reference(reference)) => {
                out.push_str(&reference);
                self.carried += u64::from(!reference.is_empty());
                Ok(!reference.is_empty())
            }
            Recall::Known(_) | Recall::Never => self.make(frame, node, make, from, out),
            Recall::New(new) => {
                let start = out.len();
                let wrote = self.make(frame, node, make, from, out)?;
                let reference = if wrote { &out[start..] } else { "" };
                self.remember(new, Some(Outcome::Reference(reference.into())));
                Ok(wrote)
            }
        }
    }

    fn make(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        make: &'r Make,
        from: Option<ExprId>,
        out: &mut String,
    ) -> Result<bool, Halt> {
        let call = self.call(frame, &make.with, None);
        let inner = match make.record {
            Some(record) => match self.on_record(frame, from, record) {
                Some(inner) => inner,
                None => return Ok(false),
            },
            None => {
                let base = self.base_of(frame, from).unwrap_or(Element::absent(Level::Repetition));
                self.on_element(frame, base)
            }
        };
        let inner = Frame { call: Some(&call), level: None, ..inner };
        self.cause_of(inner.base);
        self.ignore(&make.ignore, &inner);
        if make.chain.is_empty() {
            return Ok(self.make_one(frame, &inner, node, make, None, out)?.is_some());
        }
        let mut states: Vec<ChainState<'r>> = Vec::new();
        let mut key = String::new();
        for level in &make.chain {
            let element = self.element(&inner, level.from);
            self.quiet += 1;
            let text = self.text_of_element(element);
            self.quiet -= 1;
            let Some(text) = text else { continue };
            let first = key.is_empty();
            crate::identity::composite(&mut key, &level.id, first);
            crate::identity::composite(&mut key, &text, false);
            states.push(ChainState {
                id: &level.id,
                kind: &level.kind,
                element,
                key: key.clone(),
                finest: false,
            });
        }
        let Some(last) = states.last_mut() else { return Ok(false) };
        last.finest = true;
        let mut parent: Option<Uuid> = None;
        let mut finest = String::new();
        for state in &states {
            let inner = Frame { level: Some(state), ..inner };
            let mut text = String::with_capacity(128);
            let Some(id) = self.make_one(frame, &inner, node, make, parent, &mut text)? else { break };
            parent = id;
            finest = text;
        }
        out.push_str(&finest);
        Ok(!finest.is_empty())
    }

    fn text_of_element(&mut self, element: Element) -> Option<String> {
        if element.is_absent() || self.is_null(element) {
            return None;
        }
        self.text(Val::Element(element)).map(Cow::into_owned).filter(|text| !text.trim().is_empty())
    }

    /// Makes one resource. `None` if there is none; `Some(None)` if only a name of it is written.
    fn make_one(
        &mut self,
        outer: &Frame<'r, '_>,
        inner: &Frame<'r, '_>,
        node: &'r Node,
        make: &'r Make,
        parent: Option<Uuid>,
        out: &mut String,
    ) -> Result<Option<Option<Uuid>>, Halt> {
        let identity_frame = if make.outer_identity { outer } else { inner };
        let Keys { list: mut keys, within } = self.keys(identity_frame, &make.identity, make.kind)?;
        let display = make.display.and_then(|display| self.text_of(inner, display)).map(Cow::into_owned);
        let id = match keys.first() {
            Some((system, value)) => crate::identity::id_of(self.context.namespace, make.kind, system, value),
            None => match make.identity.otherwise {
                Otherwise::Omit => return Ok(None),
                Otherwise::Display => {
                    let Some(display) = display else { return Ok(None) };
                    out.push_str("{\"display\":");
                    if !json::primitive(out, Primitive::Text, &display) {
                        return Ok(None);
                    }
                    out.push('}');
                    self.carried += 1;
                    return Ok(Some(None));
                }
                Otherwise::Message => {
                    let on_record = make.record.and(inner.anchor);
                    if on_record.is_none()
                        && inner.base.is_absent()
                        && inner.level.is_none()
                        && make.identity.keys.is_empty()
                    {
                        return Ok(None);
                    }
                    let place = match on_record {
                        Some(record) => self.path_of_segment(record),
                        None => {
                            let leaf = Some(inner.base.first as usize);
                            let leaf = leaf.filter(|leaf| *leaf < self.message.leaves().len());
                            leaf.map_or(String::new(), |leaf| self.path_of(leaf))
                        }
                    };
                    self.doubts += 1; // another message makes another one
                    self.id_of_message(make.kind, &format!("{}|{place}", node.rule))
                }
                Otherwise::Quarantine => {
                    return Err(Halt::Quarantine(format!("{}: a {} has no key", node.rule, make.kind)));
                }
            },
        };
        keys.dedup();
        let keys = if within.is_some() { Vec::new() } else { keys };
        let made = self.made.len();
        self.made.push(Arc::new(Contribution {
            resource_type: Cow::Borrowed(make.kind),
            id,
            aliases: keys,
            within,
            on_existing: make.existing,
            slots: Vec::with_capacity(make.slots.len() + 1),
        }));
        let marks = self.marks.len();
        let callee = Frame { owner: inner.owner, ..*inner };
        let before = self.trace_resource(id);
        let mut wrote = Ok(());
        for slot in &make.slots {
            // What the caller adds is said of the finest level alone, as what is meant for it: a closed bed closes no hospital.
            if (slot.outer || slot.finest) && inner.level.is_some_and(|level| !level.finest) {
                continue;
            }
            let frame = if slot.outer { outer } else { &callee };
            let to = To { place: Place::Made(made), part: 0, again: Again::Never, segment: None };
            wrote = wrote.and_then(|()| self.write_slot(frame, slot, to));
        }
        if let Some(parent) = parent {
            let mut json = String::new();
            write_reference(&mut json, make.kind, parent, None);
            let fragment = Fragment { path: Cow::Borrowed("partOf"), list: false, json };
            let order = ORDER_STEP - 1;
            let write = Write::Valued(Arc::new([fragment]));
            let write = SlotWrite { name: "chain/partOf", order, on_existing: None, write };
            Arc::make_mut(&mut self.made[made]).slots.push(write);
            let around = self.trace_slot("chain/partOf", inner.anchor);
            self.trace_path(node, usize::MAX, ".reference");
            self.untrace_slot(around);
        }
        self.untrace_resource(before);
        wrote?;
        // What a made resource carries stays with the resource that refers to it.
        debug_assert!(self.marks.len() >= marks, "marks of slots are only added");
        self.failed = false;
        write_reference(out, make.kind, id, display.as_deref());
        self.carried += 1;
        Ok(Some(Some(id)))
    }

    /// The entry of a resource, made if it is not there yet, and whether it was. One that is there gets the aliases.
    pub(super) fn entry(&mut self, contribution: Contribution) -> Result<(usize, bool), Halt> {
        let index = self.entries.len();
        match self.entry_of.entry(contribution.id) {
            hash_map::Entry::Occupied(known) => {
                let index = *known.get();
                let known = self.entries[index].own();
                let compared = known.aliases.len() * contribution.aliases.len();
                known.add_aliases(&contribution.aliases);
                self.burn(compared / ALIASES_A_STEP)?;
                Ok((index, false))
            }
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(index);
                self.entries.push(Contributed::Own(contribution));
                Ok((index, true))
            }
        }
    }

    /// The id of what has no key of its own: it belongs to this message alone, and a replay finds it again.
    pub(super) fn id_of_message(&self, kind: &str, place: &str) -> Uuid {
        let system = format!("urn:uuid:{}", self.context.message_id);
        crate::identity::id_of(self.context.namespace, kind, &system, place)
    }

    /// The keys of an identity, the preferred one first.
    pub(super) fn keys(
        &mut self,
        frame: &Frame<'r, '_>,
        identity: &'r IdentityRule,
        kind: &str,
    ) -> Result<Keys, Halt> {
        self.quiet += 1;
        let causes = self.causes();
        let mut keys: Vec<(String, String)> = Vec::new();
        let mut within = None;
        for key in &identity.keys {
            self.step()?;
            if key.fallback && !keys.is_empty() {
                continue;
            }
            // With `each:`, a condition is about the item.
            if key.each.is_none() && key.when.is_some_and(|when| !self.holds(frame, when)) {
                continue;
            }
            let mut found = |run: &mut Self, frame: &Frame<'r, '_>| {
                let Some((found, owner)) = run.key(frame, key, kind) else { return };
                if !keys.contains(&found) {
                    keys.push(found);
                    let is_alone = key.each.is_none() && (key.fallback || identity.keys.len() == 1);
                    within = owner.filter(|_| is_alone);
                }
            };
            let Some(each) = key.each else {
                found(self, frame);
                continue;
            };
            for item in self.items(frame, each) {
                let frame = match item {
                    Item::Element(base) if key.by_map => {
                        Frame { base, parts: self.parts(base), item, ..*frame }
                    }
                    _ => Frame { item, ..*frame },
                };
                if key.when.is_none_or(|when| self.holds(&frame, when)) {
                    found(self, &frame);
                }
            }
        }
        self.quiet -= 1;
        self.uncause(causes);
        Ok(Keys { within: within.filter(|_| keys.len() == 1), list: keys })
    }

    /// One key as (system, value), if there is one, and the resource that it is counted within.
    fn key(
        &mut self,
        frame: &Frame<'r, '_>,
        key: &'r Key,
        kind: &str,
    ) -> Option<((String, String), Option<Uuid>)> {
        let mut values = key.value.iter();
        // The first part says who; without it the others would name whoever has them, too.
        let named = self.text_of(frame, *values.next()?).filter(|text| !text.trim().is_empty())?;
        let owner = match key.of {
            None => None,
            Some(name) => {
                let def = self.mapping.refs.get(usize::from(name)).copied().flatten()?;
                Some(*self.related(frame.group, def).first()?)
            }
        };
        let mut value = String::with_capacity(64);
        if key.value.len() == 1 && !key.ordinal {
            value.push_str(named.trim());
        } else {
            crate::identity::composite(&mut value, &named, true);
        }
        for expr in values {
            let text = self.text_of(frame, *expr).unwrap_or_default();
            crate::identity::composite(&mut value, &text, false);
        }
        let own = |system: ExprId| self.text_of(frame, system).map(|system| system.trim().to_owned());
        let system = match (owner, key.system) {
            (Some(index), _) => {
                let instance = &self.instances[index];
                let mut of = String::with_capacity(64);
                of.push_str(self.mapping.resources[instance.def].kind);
                of.push('/');
                of.push_str(instance.id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
                of
            }
            (None, system) => system
                .and_then(own)
                .unwrap_or_else(|| crate::identity::sender_system(&self.context.authority)),
        };
        if key.ordinal {
            let sibling = [kind, "|", &system, "|", &value].concat();
            let parent = self.groups.parent(frame.group).unwrap_or(frame.group);
            let count = self.ordinals.entry((parent, sibling)).or_insert(0);
            *count += 1;
            match *count {
                1 => crate::identity::composite(&mut value, "1", false),
                more => crate::identity::composite(&mut value, &more.to_string(), false),
            }
        }
        Some(((system, value), owner.map(|index| self.instances[index].id)))
    }
}

/// The keys of a resource, as (system, value), the preferred one first.
pub(super) struct Keys {
    pub(super) list: Vec<(String, String)>,
    /// The resource that the only one is counted within, where it never stands beside others: the id that follows from it is all
    /// that anybody can know the resource by, so it need not be kept as an alias.
    pub(super) within: Option<Uuid>,
}

fn write_reference(out: &mut String, kind: &str, id: Uuid, display: Option<&str>) {
    out.push_str("{\"reference\":\"");
    out.push_str(kind);
    out.push('/');
    let mut buffer = Uuid::encode_buffer();
    out.push_str(id.hyphenated().encode_lower(&mut buffer));
    out.push('"');
    if let Some(display) = display {
        let before = out.len();
        out.push_str(",\"display\":");
        if !json::primitive(out, Primitive::Text, display) {
            out.truncate(before);
        }
    }
    out.push('}');
}
