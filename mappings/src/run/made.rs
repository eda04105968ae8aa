//! References, the resources that are made from a field, and the keys by which a resource is recognised.

use super::coverage::Mark;
use super::slots::{Again, ORDER_STEP};
use super::write::Sink;
use super::{ChainState, Entry, Frame, Halt, Item, Made, Run, Val};
use crate::json::{self, Primitive};
use crate::language::ast::Otherwise;
use crate::program::{ExprId, IdentityRule, Make, Node, Target};
use crate::resource::{Contribution, Existing, Fragment, SlotWrite, Write};
use schemas::hl7v2::{Element, Level};
use std::borrow::Cow;
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
        match to {
            Target::Owner => {
                if let Some(owner) = frame.owner {
                    let contribution = &self.entries[owner].contribution;
                    let (kind, id) = (contribution.resource_type.clone(), contribution.id);
                    put(self, &kind, id, sink);
                }
            }
            Target::All => {
                for index in 0..self.instances.len() {
                    self.step()?;
                    let instance = &self.instances[index];
                    // A resource is not among those that it is about.
                    let own =
                        frame.owner.is_some_and(|owner| self.entries[owner].contribution.id == instance.id);
                    if own || instance.left_out || written >= max || sink.count >= sink.max {
                        continue;
                    }
                    let (kind, id) = (self.mapping.resources[instance.def].kind, instance.id);
                    put(self, kind, id, sink);
                    written += 1;
                }
            }
            Target::Resource(name) => {
                let Some(def) = self.mapping.refs.get(usize::from(*name)).copied().flatten() else {
                    return Ok(());
                };
                let mut related = self.related(frame.group, def);
                // A map on a segment means the resource of that segment, where there is one.
                if let Some(anchor) = frame.anchor
                    && let Some(own) =
                        related.iter().copied().find(|index| self.instances[*index].anchor == Some(anchor))
                    && max == 1
                {
                    related = smallvec::smallvec![own];
                }
                for index in related {
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
                    let (kind, id) = (self.mapping.resources[def].kind, self.instances[index].id);
                    put(self, kind, id, sink);
                    written += 1;
                }
            }
        }
        Ok(())
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
        let base = self.base_of(frame, from).unwrap_or(Element::absent(Level::Repetition));
        let key = (id, base.raw(self.message));
        if make.pure
            && let Some(made) = self.made.get(&key)
        {
            out.push_str(&made.reference);
            let move_mark =
                |mark: &Mark| Mark { first: mark.first + base.first, end: mark.end + base.first, ..*mark };
            self.marks.extend(made.marks.iter().map(move_mark));
            self.carried += 1;
            return Ok(!made.reference.is_empty());
        }
        let (start, marks, issues) =
            (out.len(), self.marks.len(), self.issues.len() + self.unmapped_codes.len());
        let call = self.call(frame, &make.with, None);
        let inner = Frame { base, item: Item::Element(base), call: Some(&call), level: None, ..*frame };
        self.ignore(&make.ignore, &inner);
        if make.chain.is_empty() {
            let wrote = self.make_one(frame, &inner, node, make, None, out)?.is_some();
            let inside = |mark: &Mark| base.first <= mark.first && mark.end <= base.end;
            let silent = issues == self.issues.len() + self.unmapped_codes.len();
            if wrote && make.pure && silent && self.marks[marks..].iter().all(inside) {
                let own = |mark: &Mark| Mark {
                    first: mark.first - base.first,
                    end: mark.end - base.first,
                    ..*mark
                };
                let marks = self.marks[marks..].iter().map(own).collect();
                self.made.insert(key, Made { reference: out[start..].to_owned(), marks });
            }
            return Ok(wrote);
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
        let Keys { list: mut keys, dependent } = self.keys(identity_frame, &make.identity, make.kind)?;
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
                    if inner.base.is_absent() && inner.level.is_none() && make.identity.keys.is_empty() {
                        return Ok(None);
                    }
                    let place = self.message.leaves().get(inner.base.first as usize);
                    let place = place.map_or(String::new(), |_| {
                        self.message.path_of(inner.base.first as usize).to_string()
                    });
                    self.id_of_message(make.kind, &format!("{}|{place}", node.rule))
                }
                Otherwise::Quarantine => {
                    return Err(Halt::Quarantine(format!("{}: a {} has no key", node.rule, make.kind)));
                }
            },
        };
        keys.dedup();
        let keys = if dependent { Vec::new() } else { keys };
        let (entry, fresh) = self.entry(make.kind, id, keys, make.existing);
        let again = if fresh { Again::Never } else { Again::Made };
        let marks = self.marks.len();
        let callee = Frame { owner: inner.owner, ..*inner };
        for slot in &make.slots {
            if slot.outer {
                let caller = Frame { item: outer.item, ..*outer };
                self.write_slot(&caller, slot, entry, 0, again)?;
            } else {
                self.write_slot(&callee, slot, entry, 0, again)?;
            }
        }
        if let Some(parent) = parent {
            let mut json = String::new();
            write_reference(&mut json, make.kind, parent, None);
            let fragment = Fragment { path: Arc::from("partOf"), list: false, json };
            let order = ORDER_STEP - 1;
            let write = Write::Valued(Arc::new([fragment]));
            self.keep(
                entry,
                SlotWrite { name: Arc::from("chain/partOf"), order, on_existing: None, write },
                again,
            );
        }
        // What a made resource carries stays with the resource that refers to it.
        debug_assert!(self.marks.len() >= marks, "marks of slots are only added");
        self.failed = false;
        write_reference(out, make.kind, id, display.as_deref());
        self.carried += 1;
        Ok(Some(Some(id)))
    }

    /// The entry of a resource, made if it is not there yet.
    pub(super) fn entry(
        &mut self,
        kind: &'static str,
        id: Uuid,
        aliases: Vec<(String, String)>,
        on_existing: Existing,
    ) -> (usize, bool) {
        if let Some(index) = self.entry_of.get(&(kind, id)).copied() {
            let known = &mut self.entries[index].contribution.aliases;
            for alias in aliases {
                if !known.contains(&alias) {
                    known.push(alias);
                }
            }
            return (index, false);
        }
        let index = self.entries.len();
        let resource_type = Arc::from(kind);
        let contribution =
            Contribution { resource_type, id, aliases, on_existing, slots: Vec::with_capacity(16) };
        self.entries.push(Entry { contribution, left_out: false, marks: Vec::new() });
        self.entry_of.insert((kind, id), index);
        (index, true)
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
        let mut keys: Vec<(String, String)> = Vec::new();
        let mut dependent = false;
        for key in &identity.keys {
            self.step()?;
            if key.fallback && !keys.is_empty() {
                continue;
            }
            let frames: smallvec::SmallVec<[Frame<'r, '_>; 4]> = match key.each {
                None => smallvec::smallvec![*frame],
                Some(each) => {
                    let items = self.items(frame, each);
                    items
                        .into_iter()
                        .map(|item| match item {
                            Item::Element(base) if key.by_map => Frame { base, item, ..*frame },
                            _ => Frame { item, ..*frame },
                        })
                        .collect()
                }
            };
            for frame in frames {
                let of = match key.of {
                    None => None,
                    Some(name) => {
                        let def = self.mapping.refs.get(usize::from(name)).copied().flatten();
                        let found = def.and_then(|def| self.related(frame.group, def).into_iter().next());
                        let Some(index) = found else { continue };
                        let instance = &self.instances[index];
                        let mut of = String::with_capacity(64);
                        of.push_str(self.mapping.resources[instance.def].kind);
                        of.push('/');
                        of.push_str(instance.id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
                        Some(of)
                    }
                };
                let mut value = String::new();
                let mut first = true;
                // The first part says who; without it the others would name whoever has them, too.
                let mut named = false;
                for expr in &key.value {
                    let text = self.text_of(&frame, *expr).unwrap_or_default();
                    if first {
                        named = !text.trim().is_empty();
                    }
                    if key.value.len() == 1 && !key.ordinal {
                        value.push_str(text.trim());
                    } else {
                        crate::identity::composite(&mut value, &text, first);
                    }
                    first = false;
                }
                if !named {
                    continue;
                }
                let system = match (of, key.system) {
                    (Some(of), _) => of,
                    (None, Some(system)) => match self.text_of(&frame, system) {
                        Some(system) => system.trim().to_owned(),
                        None => crate::identity::sender_system(&self.context.authority),
                    },
                    (None, None) => crate::identity::sender_system(&self.context.authority),
                };
                if key.ordinal {
                    let sibling = [kind, "|", &system, "|", &value].concat();
                    let parent = self.groups.parent(frame.group).unwrap_or(frame.group);
                    let count = self.ordinals.entry((parent, sibling)).or_insert(0);
                    *count += 1;
                    crate::identity::composite(&mut value, &count.to_string(), false);
                }
                if !keys.iter().any(|(s, v)| *s == system && *v == value) {
                    keys.push((system, value));
                    dependent =
                        key.of.is_some() && key.each.is_none() && (key.fallback || identity.keys.len() == 1);
                }
            }
        }
        self.quiet -= 1;
        Ok(Keys { dependent: dependent && keys.len() == 1, list: keys })
    }
}

/// The keys of a resource, as (system, value), the preferred one first.
pub(super) struct Keys {
    pub(super) list: Vec<(String, String)>,
    /// Whether there is one, it is counted within another resource, and it never stands beside others: the id that follows
    /// from it is all that anybody can know the resource by, so it need not be kept as an alias.
    pub(super) dependent: bool,
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
