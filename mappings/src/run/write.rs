//! Writes nodes as JSON text. Every value goes through [`crate::json`]; nothing is built in between.

use super::coverage::{Mark, State};
use super::{Call, ChainState, Entry, Frame, Halt, Item, Made, Run, UnmappedCode, Val};
use crate::json::{self, Primitive};
use crate::language::ast::{OnExisting, Otherwise, Policy};
use crate::program::{
    Action, Argument, CodeForm, CodeRule, Field, IdentityRule, Lookup, Make, MapBody, Node, NodeId, Op,
    PartCode, Piece, Recovery, Slot, TableUse, Target,
};
use crate::resource::{Contribution, Existing, Fragment, SlotWrite, Write};
use crate::table::{Answer, Target as Code};
use schemas::hl7v2::{Element, Level};
use schemas::issue::Severity;
use std::borrow::Cow;
use std::sync::Arc;
use uuid::Uuid;

/// Where items are written, parted by commas.
struct Sink<'o> {
    out: &'o mut String,
    count: u32,
    max: u32,
}

/// The extension that says why a value is not there.
const DATA_ABSENT: &str =
    r#"{"url":"http://hl7.org/fhir/StructureDefinition/data-absent-reason","valueCode":"unknown"}"#;

/// The extensions of a part of a map lie this far behind those of the part before.
const ORDER_STEP: u32 = 1000;

impl<'r> Run<'r> {
    /// Writes one slot of a resource. `frame` is that of the map, `outer` that of where the resource is made.
    pub(super) fn write_slot(
        &mut self,
        frame: &Frame<'r, '_>,
        slot: &'r Slot,
        entry: usize,
        part: u32,
        again: Again,
    ) -> Result<(), Halt> {
        self.step()?;
        let marks = self.marks.len();
        self.failed = false;
        self.last_leaf = None;
        if slot.idle && !self.any_present(frame, &slot.sources) {
            return Ok(());
        }
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
        let written = json.as_str();
        let beside = std::mem::replace(&mut self.beside, beside);
        let mut fragments = Vec::new();
        if count > 0 {
            let path = if slot.path.choice {
                let known = slot.path.types.iter().find(|(of, _)| *of == self.suffix);
                known.map_or_else(|| slot.path.text.clone(), |(_, path)| path.clone())
            } else {
                slot.path.text.clone()
            };
            fragments.push(Fragment { path, list: slot.path.many, json: written.to_owned() });
        }
        if !beside.is_empty() && !slot.path.many {
            let path = if slot.path.choice {
                // `value[x]` without a value has no type to stand beside.
                if count == 0 { None } else { Some(Arc::from(beside_choice(&slot.path.text, self.suffix))) }
            } else {
                Some(slot.path.beside.clone())
            };
            fragments.extend(path.map(|path| Fragment { path, list: true, json: beside }));
        }
        self.scratch.push(json);
        let write = if fragments.is_empty() {
            self.forget_since(marks);
            if self.failed {
                return Ok(());
            }
            match self.presence(frame, &slot.sources) {
                (false, false) if !clear => return Ok(()),
                (null, valued) => {
                    if null && !valued {
                        self.mark_nulls(frame, slot);
                    }
                    Write::Cleared
                }
            }
        } else {
            Write::Valued(fragments)
        };
        let on_existing = slot.existing.as_ref().map(|existing| self.existing(existing));
        let order = part * ORDER_STEP + slot.order;
        let write = SlotWrite { name: slot.name.clone(), order, on_existing, write };
        self.keep(entry, write, again);
        Ok(())
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

    /// Adds a slot to a resource that may have one of the same name already.
    fn keep(&mut self, entry: usize, write: SlotWrite, again: Again) {
        let slots = &mut self.entries[entry].contribution.slots;
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
                for fragment in more {
                    match known.iter_mut().find(|known| known.path == fragment.path) {
                        Some(known) if known.list => {
                            known.json.push(',');
                            known.json.push_str(&fragment.json);
                        }
                        Some(_) => {}
                        None => known.push(fragment),
                    }
                }
            }
            _ => {}
        }
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

    /// Writes the items of a node.
    fn emit(&mut self, frame: &Frame<'r, '_>, id: NodeId, sink: &mut Sink<'_>) -> Result<(), Halt> {
        self.step()?;
        let code = self.code;
        let node = code.node(id);
        if sink.count >= sink.max {
            return Ok(());
        }
        let Some(each) = node.each else {
            if node.when.is_none_or(|when| self.holds(frame, when)) {
                self.emit_guarded(frame, node, sink)?;
            }
            return Ok(());
        };
        for item in self.items(frame, each) {
            self.step()?;
            let frame = Frame { item, ..*frame };
            if node.when.is_none_or(|when| self.holds(&frame, when)) {
                self.emit_guarded(&frame, node, sink)?;
            }
        }
        Ok(())
    }

    /// Writes a node, and what its rule says instead if a value in it cannot be read.
    fn emit_guarded(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        sink: &mut Sink<'_>,
    ) -> Result<(), Halt> {
        let (length, count, marks) = (sink.out.len(), sink.count, self.marks.len());
        let recovery = node.on_error;
        if matches!(recovery, Recovery::Outer) {
            return self.emit_one(frame, node, sink);
        }
        self.guarded += 1;
        let result = self.emit_one(frame, node, sink);
        self.guarded -= 1;
        if !matches!(result, Err(Halt::Unreadable)) {
            return result;
        }
        sink.out.truncate(length);
        sink.count = count;
        self.forget_since(marks);
        match recovery {
            Recovery::Node(other) => self.emit(frame, other, sink),
            Recovery::Outer | Recovery::Policy(Policy::Omit) => {
                self.unreadable_issue(node, Severity::Warning, "cannot be read and is left out");
                Ok(())
            }
            Recovery::Policy(Policy::DataAbsent) => {
                self.unreadable_issue(node, Severity::Warning, "cannot be read and is said to be absent");
                push_part(&mut self.beside, DATA_ABSENT);
                Ok(())
            }
            Recovery::Policy(Policy::Fail) => {
                self.unreadable_issue(node, Severity::Error, "cannot be read: the resource is left out");
                Err(Halt::LeaveOut)
            }
            Recovery::Policy(Policy::Quarantine) => {
                self.unreadable_issue(
                    node,
                    Severity::Error,
                    "cannot be read: the message waits for a person",
                );
                Err(Halt::Quarantine(format!("{}: a value cannot be read", node.rule)))
            }
        }
    }

    fn unreadable_issue(&mut self, node: &Node, severity: Severity, what: &str) {
        self.failed = true;
        if let Some(leaf) = self.last_leaf {
            self.marks.push(Mark { first: leaf as u32, end: leaf as u32 + 1, state: State::Failed });
        }
        let path = self.last_path();
        self.issue(severity, "unreadable-value", path, &node.rule, what);
    }

    /// A value cannot be read: the rule around decides, else it is left out.
    fn unreadable(&mut self, node: &Node, why: &str) -> Result<bool, Halt> {
        if self.guarded > 0 {
            return Err(Halt::Unreadable);
        }
        self.unreadable_issue(node, Severity::Warning, &format!("left out: {why}"));
        Ok(false)
    }

    fn emit_one(&mut self, frame: &Frame<'r, '_>, node: &'r Node, sink: &mut Sink<'_>) -> Result<(), Halt> {
        let before = sink.count;
        if self.delegate(frame, node, sink)? {
            if sink.count > before {
                self.written(node);
            }
            return Ok(());
        }
        let (length, marks) = (sink.out.len(), self.marks.len());
        if sink.count > 0 {
            sink.out.push(',');
        }
        match self.write(frame, node, sink.out) {
            Ok(true) => {
                sink.count += 1;
                for extension in &node.extension {
                    let mut text = String::new();
                    let mut inner = Sink { out: &mut text, count: 0, max: u32::MAX };
                    self.emit(frame, *extension, &mut inner)?;
                    if inner.count > 0 {
                        push_part(&mut self.beside, &text);
                    }
                }
                self.written(node);
                Ok(())
            }
            Ok(false) => {
                sink.out.truncate(length);
                self.forget_since(marks);
                Ok(())
            }
            Err(halt) => {
                sink.out.truncate(length);
                Err(halt)
            }
        }
    }

    /// Writes by another node, if that is what the node does.
    fn delegate(&mut self, frame: &Frame<'r, '_>, node: &'r Node, sink: &mut Sink<'_>) -> Result<bool, Halt> {
        match &node.does {
            Action::First(items) => {
                let before = sink.count;
                for item in items {
                    self.emit(frame, *item, sink)?;
                    if sink.count > before || (!self.beside.is_empty() && sink.max == 1) {
                        break;
                    }
                }
            }
            Action::All(items) => {
                for item in items {
                    self.emit(frame, *item, sink)?;
                }
            }
            Action::Switch { on, cases, otherwise } => {
                let selector = self.element(frame, *on);
                let text = self.text_of_switch(frame, *on);
                let is = |words: &[Box<str>]| {
                    text.as_deref().is_some_and(|text| words.iter().any(|word| **word == *text))
                };
                let found = cases.iter().find(|(words, _)| is(words));
                if found.is_some() && !selector.is_absent() {
                    self.marks.push(Mark {
                        first: selector.first,
                        end: selector.end,
                        state: State::Selector,
                    });
                }
                if let Some(node) = found.map(|(_, node)| *node).or(*otherwise) {
                    self.emit(frame, node, sink)?;
                }
            }
            Action::Refs { to, filter, max } => self.write_refs(frame, to, *filter, *max, sink)?,
            Action::Call { map, from, with, table, set } if set.is_empty() => {
                let map = &self.code.maps[*map as usize];
                let MapBody::Node(body) = map.body else { return Ok(false) };
                let Some(base) = self.base_of(frame, *from) else { return Ok(true) };
                let call = self.call(frame, with, table.as_ref());
                let inner = Frame { base, item: Item::Element(base), call: Some(&call), ..*frame };
                self.ignore(&map.ignore, &inner);
                self.emit(&inner, body, sink)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What follows when a node has written something.
    fn written(&mut self, node: &'r Node) {
        if !node.suffix.is_empty() {
            self.suffix = node.suffix;
        }
        if let Some(severity) = node.report {
            let path = self.last_path();
            self.issue(
                severity,
                "rule-used",
                path,
                &node.rule,
                "the value was taken by a rule that reports its use",
            );
        }
    }

    fn text_of_switch(&mut self, frame: &Frame<'r, '_>, on: crate::program::ExprId) -> Option<String> {
        self.quiet += 1;
        let text = self.text_of(frame, on).map(|text| text.trim().to_owned());
        self.quiet -= 1;
        text
    }

    /// Writes one item; `false` if there is nothing to write, and then nothing of use is in `out`.
    fn write(&mut self, frame: &Frame<'r, '_>, node: &'r Node, out: &mut String) -> Result<bool, Halt> {
        match &node.does {
            Action::Value { expr, kind } => match self.rule_value(frame, *expr) {
                Ok(None) => Ok(false),
                Ok(Some(text)) => {
                    if json::primitive(out, *kind, &text) {
                        self.carried += 1;
                        Ok(true)
                    } else {
                        self.unreadable(node, "no value of the type of the element")
                    }
                }
                Err(why) => self.unreadable(node, &why),
            },
            Action::Coded { expr, table, form } => {
                // A concept keeps what the sender called it; that is no loss.
                let element = self.element(frame, *expr);
                match self.rule_value(frame, *expr) {
                    Ok(None) => Ok(false),
                    Ok(Some(code)) => self.write_coded(frame, node, element, code.trim(), table, *form, out),
                    Err(why) => self.unreadable(node, &why),
                }
            }
            Action::Const(text) => {
                out.push_str(text);
                Ok(true)
            }
            Action::Concept { system, code, display, form } => {
                let mut text = String::new();
                for piece in code {
                    match piece {
                        Piece::Text(piece) => text.push_str(piece),
                        Piece::Expr(expr) => match self.text_of(frame, *expr) {
                            Some(piece) => text.push_str(&piece),
                            None => return Ok(false),
                        },
                    }
                }
                let display = display.and_then(|display| self.text_of(frame, display)).map(Cow::into_owned);
                let target = Code { system: system.to_string(), code: text, display };
                Ok(write_code(out, &target, *form, None))
            }
            Action::Object { fields, constant } => {
                self.write_object(frame, node, fields, &[], *constant, frame, out)
            }
            Action::Call { map, from, with, table, set } => {
                let map = &self.code.maps[*map as usize];
                let base = match self.base_of(frame, *from) {
                    Some(base) => base,
                    None if set.is_empty() => return Ok(false),
                    None => Element::absent(Level::Repetition),
                };
                let call = self.call(frame, with, table.as_ref());
                let inner = Frame { base, item: Item::Element(base), call: Some(&call), ..*frame };
                self.ignore(&map.ignore, &inner);
                match &map.body {
                    MapBody::Empty | MapBody::Node(_) => Ok(false),
                    MapBody::Object(fields) => {
                        self.write_object(&inner, node, fields, set, false, frame, out)
                    }
                }
            }
            Action::Make { make, from } => self.write_made(frame, node, *make, *from, out),
            Action::Ref { to, filter } => {
                let mut sink = Sink { out, count: 0, max: 1 };
                self.write_refs(frame, to, *filter, 1, &mut sink)?;
                Ok(sink.count > 0)
            }
            Action::Extension { url, value, nested } => self.write_extension(frame, url, *value, nested, out),
            Action::First(_) | Action::All(_) | Action::Switch { .. } | Action::Refs { .. } => Ok(false),
        }
    }

    /// On what a map is called; `None` if nothing stands there.
    fn base_of(&mut self, frame: &Frame<'r, '_>, from: Option<crate::program::ExprId>) -> Option<Element> {
        let element = match (from, frame.item) {
            (Some(from), _) => {
                let element = self.element(frame, from);
                // A field stands for its first repetition.
                if element.level == Level::Field { element.repetition(self.message, 1) } else { element }
            }
            (None, Item::Element(element)) => element,
            (None, _) => frame.base,
        };
        (!element.is_absent() && !self.is_null(element)).then_some(element)
    }

    pub(super) fn call_of_part<'c>(&mut self, frame: &Frame<'r, 'c>, part: &'r PartCode) -> Call<'r, 'c> {
        self.call(frame, &part.with, None)
    }

    fn call<'c>(
        &mut self,
        frame: &Frame<'r, 'c>,
        with: &'r [(u16, Argument)],
        table: Option<&'r TableUse>,
    ) -> Call<'r, 'c> {
        let mut values = Vec::with_capacity(with.len());
        for (param, argument) in with {
            let value = match argument {
                Argument::Text(text) => Val::Text(Cow::Borrowed(text)),
                Argument::Expr(expr) => self.eval(frame, *expr),
            };
            values.push((*param, value));
        }
        Call { with: values, table, outer: frame.call }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "an object is written from a map and from what its caller changes"
    )]
    fn write_object(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        fields: &'r [Field],
        set: &'r [Field],
        constant: bool,
        caller: &Frame<'r, '_>,
        out: &mut String,
    ) -> Result<bool, Halt> {
        let carried = self.carried;
        out.push('{');
        let body = out.len();
        let beside = std::mem::take(&mut self.beside);
        let mut lacking: Option<&str> = None;
        for field in fields {
            if set.iter().any(|other| other.name == field.name) {
                continue;
            }
            if !self.write_field(frame, field, body, out)? && field.required {
                lacking = lacking.or(Some(&field.name));
            }
        }
        for field in set {
            if !self.write_field(caller, field, body, out)? && field.required {
                lacking = lacking.or(Some(&field.name));
            }
        }
        self.beside = beside;
        out.push('}');
        if out.len() == body + 1 || (self.carried == carried && !constant) {
            return Ok(false);
        }
        if let Some(name) = lacking {
            let path = self.last_path();
            let text = format!("left out: its element {name} is required and has no value");
            self.issue(Severity::Warning, "required-element", path, &node.rule, text);
            return Ok(false);
        }
        Ok(true)
    }

    /// Writes one element; answers whether it has a value.
    fn write_field(
        &mut self,
        frame: &Frame<'r, '_>,
        field: &'r Field,
        body: usize,
        out: &mut String,
    ) -> Result<bool, Halt> {
        // Most elements are one value that stands in the message or does not.
        let code = self.code;
        let simple = code.node(field.node);
        if let (None, None, Action::Value { expr, .. } | Action::Coded { expr, .. }) =
            (simple.when, simple.each, &simple.does)
            && matches!(code.op(*expr), Op::Part { .. })
            && self.element(frame, *expr).is_absent()
        {
            return Ok(false);
        }
        let start = out.len();
        if start > body {
            out.push(',');
        }
        let at_key = out.len();
        out.push_str(&field.key);
        if field.many {
            out.push('[');
        }
        let value = out.len();
        self.beside.clear();
        let mut sink = Sink { out, count: 0, max: if field.many { u32::MAX } else { 1 } };
        let result = self.emit(frame, field.node, &mut sink);
        let count = sink.count;
        result?;
        if count == 0 {
            out.truncate(at_key);
        } else if field.many {
            out.push(']');
        } else if field.choice {
            out.insert_str(value, &format!("{}\":", self.suffix));
        }
        if !self.beside.is_empty() && !field.many {
            if count > 0 {
                out.push(',');
            }
            let suffix = if field.choice { self.suffix } else { "" };
            out.push_str(&format!("\"_{}{suffix}\":{{\"extension\":[{}]}}", field.name, self.beside));
            self.beside.clear();
        } else if count == 0 {
            out.truncate(start);
        }
        Ok(count > 0)
    }

    fn write_extension(
        &mut self,
        frame: &Frame<'r, '_>,
        url: &str,
        value: Option<NodeId>,
        nested: &'r [NodeId],
        out: &mut String,
    ) -> Result<bool, Halt> {
        out.push_str("{\"url\":");
        out.push_str(url);
        if let Some(value) = value {
            out.push_str(",\"value");
            let at = out.len();
            let mut sink = Sink { out, count: 0, max: 1 };
            self.emit(frame, value, &mut sink)?;
            if sink.count == 0 {
                return Ok(false);
            }
            out.insert_str(at, &format!("{}\":", self.suffix));
        } else {
            out.push_str(",\"extension\":[");
            let mut sink = Sink { out, count: 0, max: u32::MAX };
            for extension in nested {
                self.emit(frame, *extension, &mut sink)?;
            }
            if sink.count == 0 {
                return Ok(false);
            }
            out.push(']');
        }
        out.push('}');
        Ok(true)
    }

    #[expect(clippy::too_many_arguments, reason = "a code, where it stands, its table and its form")]
    fn write_coded(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        element: Element,
        code: &str,
        table: &'r TableUse,
        form: CodeForm,
        out: &mut String,
    ) -> Result<bool, Halt> {
        // A table that is handed on comes with its caller's rules for codes that it does not translate.
        let (mut at, mut usage) = (frame.call, table);
        let given = matches!(table.table, Lookup::Given);
        while let Lookup::Given = usage.table {
            let Some(call) = at else { return Ok(false) };
            let Some(next) = call.table else { return Ok(false) };
            usage = next;
            at = call.outer;
        }
        let id = match &usage.table {
            Lookup::Table(id) => *id,
            Lookup::Sender(name) => {
                let Some(id) = self.code.sender_tables.get(&format!("{}/{name}", self.context.sender)) else {
                    return Ok(false);
                };
                *id
            }
            Lookup::Given => return Ok(false),
        };
        let table = &self.code.tables[id as usize];
        let (rule, known): (&CodeRule, bool) = match table.look_up(code) {
            Answer::Mapped(target) => {
                self.carried += 1;
                return Ok(write_code(out, &target, form, self.local_text(element, form)));
            }
            Answer::Unmatched => (&usage.unmatched, true),
            Answer::Unmapped => (&usage.unmapped, false),
        };
        let path = self.last_path();
        if let Some(leaf) = self.last_leaf {
            self.mark(leaf, State::LookedUp);
        }
        if !known {
            let unmapped =
                UnmappedCode { table: table.name.clone(), code: code.to_owned(), path: path.clone() };
            self.unmapped_codes.push(unmapped);
        }
        if let Some(severity) = rule.issue {
            let (word, what) = if known {
                ("unmatched-code", "has no target for")
            } else {
                ("unmapped-code", "does not know")
            };
            let text = format!("table {} {what} this code", table.name);
            self.issue(severity, word, path, &node.rule, text);
        }
        if let Some(set) = &rule.set {
            let system = table.target_codes().next().map_or(String::new(), |target| target.system.clone());
            let target = Code { system, code: set.to_string(), display: None };
            self.carried += 1;
            return Ok(write_code(out, &target, form, self.local_text(element, form)));
        }
        if rule.keep && !given {
            let display = self.local_part(element, 2);
            let system = self.local_part(element, 3);
            let system = match self.coding_system(system.as_deref(), None) {
                Val::Text(system) => system.into_owned(),
                _ => String::new(),
            };
            let target = Code { system, code: code.to_owned(), display };
            self.carried += 1;
            return Ok(write_code(out, &target, form, None));
        }
        match rule.policy {
            Policy::Omit | Policy::DataAbsent => Ok(false),
            Policy::Fail => Err(Halt::LeaveOut),
            Policy::Quarantine => Err(Halt::Quarantine(format!(
                "{}: table {} does not translate a code",
                node.rule, table.name
            ))),
        }
    }

    /// What a sender calls a code: the text of a concept.
    fn local_text(&mut self, element: Element, form: CodeForm) -> Option<String> {
        if form == CodeForm::Concept { self.local_part(element, 2) } else { None }
    }

    fn local_part(&mut self, element: Element, part: u16) -> Option<String> {
        let repetition = match element.level {
            Level::Field => element.repetition(self.message, 1),
            _ => element,
        };
        if repetition.level != Level::Repetition {
            return None;
        }
        let part = repetition.part(self.message, part);
        let value = if part.is_absent() || self.is_null(part) { Val::Absent } else { Val::Element(part) };
        self.text(value).map(Cow::into_owned)
    }

    fn write_refs(
        &mut self,
        frame: &Frame<'r, '_>,
        to: &Target,
        filter: Option<crate::program::ExprId>,
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
    fn write_made(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        id: u32,
        from: Option<crate::program::ExprId>,
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
        let mut keys = self.keys(identity_frame, &make.identity, make.kind)?;
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
            let write = Write::Valued(vec![fragment]);
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
    ) -> Result<Vec<(String, String)>, Halt> {
        self.quiet += 1;
        let mut keys: Vec<(String, String)> = Vec::new();
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
                }
            }
        }
        self.quiet -= 1;
        Ok(keys)
    }
}

/// Whether a slot of the same name may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// No.
    Never,
    /// From another segment of the same resource: lists are appended.
    Part,
    /// From another element that names the same resource: the first says it.
    Made,
}

fn push_part(list: &mut String, part: &str) {
    if !list.is_empty() {
        list.push(',');
    }
    list.push_str(part);
}

/// `_valueString.extension` beside `value[x]`.
fn beside_choice(path: &str, suffix: &str) -> String {
    match path.rsplit_once('.') {
        Some((parent, name)) => format!("{parent}._{name}{suffix}.extension"),
        None => format!("_{path}{suffix}.extension"),
    }
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

/// Writes a code in the form that the element has.
fn write_code(out: &mut String, target: &Code, form: CodeForm, text: Option<String>) -> bool {
    let start = out.len();
    match form {
        CodeForm::Code => json::primitive(out, Primitive::Code, &target.code),
        CodeForm::Plain(kind) => json::primitive(out, kind, &target.code),
        CodeForm::Coding | CodeForm::Concept => {
            let concept = form == CodeForm::Concept;
            out.push_str(if concept { "{\"coding\":[{" } else { "{" });
            if !target.system.is_empty() {
                out.push_str("\"system\":");
                json::string(out, &target.system);
                out.push(',');
            }
            out.push_str("\"code\":");
            if !json::primitive(out, Primitive::Code, &target.code) {
                out.truncate(start);
                return false;
            }
            if let Some(display) = &target.display {
                let before = out.len();
                out.push_str(",\"display\":");
                if !json::primitive(out, Primitive::Text, display) {
                    out.truncate(before);
                }
            }
            out.push('}');
            if concept {
                out.push(']');
                if let Some(text) = text {
                    let before = out.len();
                    out.push_str(",\"text\":");
                    if !json::primitive(out, Primitive::Text, &text) {
                        out.truncate(before);
                    }
                }
                out.push('}');
            }
            true
        }
    }
}
