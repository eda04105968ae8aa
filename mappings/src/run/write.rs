//! Writes nodes as JSON text. Every value goes through [`crate::json`]; nothing is built in between.

use super::codes::write_code;
use super::coverage::{Mark, State};
use super::memo::{Outcome, Recall};
use super::{Call, Frame, Halt, Item, Run, Val};
use crate::json;
use crate::language::ast::Policy;
use crate::program::{
    Action, Argument, Field, MapBody, Node, NodeId, PartCode, Parts, Piece, Recovery, TableUse,
};
use crate::render::DATA_ABSENT;
use crate::table::Target as Code;
use schemas::hl7v2::{Element, Level, SegmentName};
use schemas::issue::Severity;
use std::borrow::Cow;

/// Where items are written, parted by commas.
pub(super) struct Sink<'o> {
    pub(super) out: &'o mut String,
    pub(super) count: u32,
    pub(super) max: u32,
}

/// An object that is being written.
struct Object<'r> {
    /// Where its elements begin.
    body: usize,
    /// How many values were carried over before it.
    carried: u64,
    /// The extensions of what is around it.
    beside: String,
    /// The first required element that has no value.
    lacking: Option<&'r str>,
}

impl<'r> Object<'r> {
    fn begin(run: &mut Run<'r>, out: &mut String) -> Object<'r> {
        out.push('{');
        let beside = std::mem::take(&mut run.beside);
        Object { body: out.len(), carried: run.carried, beside, lacking: None }
    }
}

impl<'r> Run<'r> {
    /// Writes the items of a node.
    pub(super) fn emit(
        &mut self,
        frame: &Frame<'r, '_>,
        id: NodeId,
        sink: &mut Sink<'_>,
    ) -> Result<(), Halt> {
        let causes = self.causes();
        let result = self.emit_items(frame, id, sink);
        self.uncause(causes);
        result
    }

    fn emit_items(&mut self, frame: &Frame<'r, '_>, id: NodeId, sink: &mut Sink<'_>) -> Result<(), Halt> {
        self.step()?;
        let code = self.code;
        let node = code.node(id);
        if node.needs.lack(frame.parts) || sink.count >= sink.max {
            return Ok(());
        }
        let Some(each) = node.each else {
            if node.when.is_none_or(|when| self.holds(frame, when)) {
                self.emit_guarded(frame, node, sink)?;
            }
            return Ok(());
        };
        if !node.when_item && node.when.is_some_and(|when| !self.holds(frame, when)) {
            return Ok(());
        }
        let causes = self.causes();
        let outer = frame.as_outer();
        for (nth, item) in (1..).zip(self.items(frame, each)) {
            self.step()?;
            self.uncause(causes);
            self.cause_of_item(item);
            let frame = Frame { outer: outer.as_ref().or(frame.outer), nth, ..self.at_item(frame, item) };
            if !node.when_item || node.when.is_none_or(|when| self.holds(&frame, when)) {
                self.emit_guarded(&frame, node, sink)?;
            }
        }
        Ok(())
    }

    /// Writes what a node says by itself; nothing, if it says nothing.
    pub(super) fn write_alone(&mut self, frame: &Frame<'r, '_>, node: NodeId) -> Result<String, Halt> {
        let mut out = String::new();
        let mut sink = Sink { out: &mut out, count: 0, max: 1 };
        self.emit(frame, node, &mut sink)?;
        Ok(out)
    }

    /// Writes a node, and what its rule says instead if a value in it cannot be read.
    fn emit_guarded(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        sink: &mut Sink<'_>,
    ) -> Result<(), Halt> {
        let (length, count, marks, traced) = (sink.out.len(), sink.count, self.marks.len(), self.traced());
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
        self.untrace(traced);
        match recovery {
            Recovery::Node(other) => self.emit(frame, other, sink),
            Recovery::Outer | Recovery::Policy(Policy::Omit) => {
                self.unreadable_issue(node, Severity::Warning, "cannot be read and is left out");
                Ok(())
            }
            Recovery::Policy(Policy::DataAbsent) => {
                self.unreadable_issue(node, Severity::Warning, "cannot be read and is said to be absent");
                self.write_absent(node, marks, "unknown");
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
        let (length, marks, traced) = (sink.out.len(), self.marks.len(), self.traced());
        if sink.count > 0 {
            sink.out.push(',');
        }
        let start = sink.out.len();
        let up = self.trace_place(sink.max, sink.count);
        let written = self.write(frame, node, sink.out);
        if let Ok(true) = written {
            self.trace(node, marks, &sink.out[start..]);
        }
        let written = match written {
            Ok(true) if node.extends_reference() => {
                self.write_inside(frame, node, start, sink.out).map(|()| true)
            }
            Ok(true) => self.write_beside(frame, node).map(|()| true),
            other => other,
        };
        self.trace_up(up);
        match written {
            Ok(true) => {
                sink.count += 1;
                self.written(node);
                Ok(())
            }
            Ok(false) => {
                sink.out.truncate(length);
                self.forget_since(marks);
                self.untrace(traced);
                Ok(())
            }
            Err(halt) => {
                sink.out.truncate(length);
                self.untrace(traced);
                Err(halt)
            }
        }
    }

    /// Says beside a primitive why it has no value.
    fn write_absent(&mut self, node: &Node, marks: usize, code: &str) {
        push_part(&mut self.beside, &[DATA_ABSENT, code, "\"}"].concat());
        let path = self.trace_beside();
        for below in ["[0].url", "[0].valueCode"] {
            self.trace_path(node, marks, below);
        }
        self.untrace_beside(path);
    }

    /// Writes the extensions of a reference into its object, which begins at `start`.
    fn write_inside(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        start: usize,
        out: &mut String,
    ) -> Result<(), Halt> {
        let mut text = String::from("\"extension\":[");
        let mut sink = Sink { out: &mut text, count: 0, max: u32::MAX };
        let up = self.trace_down(".extension");
        let mut emitted = Ok(());
        for extension in &node.extension {
            // The items of the list are parted from what begins it by nothing.
            emitted = emitted.and_then(|()| self.emit(frame, *extension, &mut sink));
        }
        self.trace_up(up);
        if sink.count > 0 {
            text.push_str("],");
            out.insert_str(start + 1, &text);
        }
        emitted
    }

    /// Writes the extensions beside a primitive.
    fn write_beside(&mut self, frame: &Frame<'r, '_>, node: &'r Node) -> Result<(), Halt> {
        if node.extension.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        let mut sink = Sink { out: &mut text, count: 0, max: u32::MAX };
        let path = self.trace_beside();
        let mut emitted = Ok(());
        for extension in &node.extension {
            emitted = emitted.and_then(|()| self.emit(frame, *extension, &mut sink));
        }
        self.untrace_beside(path);
        if sink.count > 0 {
            push_part(&mut self.beside, &text);
        }
        emitted
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
                self.quiet += 1;
                let text = self.text_of(frame, *on);
                self.quiet -= 1;
                let text = text.as_deref().map(str::trim);
                let is =
                    |words: &[Box<str>]| text.is_some_and(|text| words.iter().any(|word| **word == *text));
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
            Action::Absent(code) => {
                let marks = self.marks.len();
                self.write_absent(node, marks, code);
            }
            Action::Refs { to, filter, max } => {
                let before = sink.count;
                self.write_refs(frame, to, *filter, *max, sink)?;
                for index in before..sink.count {
                    let up = self.trace_place(sink.max, index);
                    self.trace_path(node, usize::MAX, ".reference");
                    self.trace_up(up);
                }
            }
            Action::Call { map, from, with, table, set, .. } if set.is_empty() => {
                let map = &self.code.maps[*map as usize];
                let MapBody::Node(body) = map.body else { return Ok(false) };
                let inner = match map.record {
                    Some(record) => self.on_record(frame, *from, record),
                    None => self.base_of(frame, *from).map(|base| self.on_element(frame, base)),
                };
                let Some(inner) = inner else { return Ok(true) };
                self.cause_of(inner.base);
                let call = self.call(frame, with, table.as_deref());
                let inner = Frame { call: Some(&call), ..inner };
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
            Action::Object { fields, .. } => {
                let object = Object::begin(self, out);
                self.write_set(frame, node, fields, object, out)
            }
            Action::Call { .. } => self.write_call(frame, node, out),
            Action::Make { make, from } => self.write_made(frame, node, *make, *from, out),
            Action::Ref { to, filter } => {
                let mut sink = Sink { out, count: 0, max: 1 };
                self.write_refs(frame, to, *filter, 1, &mut sink)?;
                Ok(sink.count > 0)
            }
            Action::Extension { url, value, nested } => self.write_extension(frame, url, *value, nested, out),
            Action::First(_)
            | Action::All(_)
            | Action::Switch { .. }
            | Action::Absent(_)
            | Action::Refs { .. } => Ok(false),
        }
    }

    /// On what a map is called; `None` if nothing stands there.
    pub(super) fn base_of(
        &mut self,
        frame: &Frame<'r, '_>,
        from: Option<crate::program::ExprId>,
    ) -> Option<Element> {
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

    /// Inside a map that is called on an element.
    pub(super) fn on_element<'c>(&self, frame: &Frame<'r, 'c>, base: Element) -> Frame<'r, 'c> {
        Frame { base, parts: self.parts(base), item: Item::Element(base), ..*frame }
    }

    /// Inside a map that is called on a record; `None` if none stands there.
    pub(super) fn on_record<'c>(
        &mut self,
        frame: &Frame<'r, 'c>,
        from: Option<crate::program::ExprId>,
        name: SegmentName,
    ) -> Option<Frame<'r, 'c>> {
        let named = |segment: &u32| self.message.segments()[*segment as usize].name() == name;
        let record = match (from, frame.item) {
            (Some(from), _) => self.items(frame, from).into_iter().find_map(|item| match item {
                Item::Segment(record) => Some(record),
                _ => None,
            }),
            (None, Item::Segment(record)) if named(&record) => Some(record),
            (None, _) => frame.anchor.filter(named),
        }?;
        let absent = Element::absent(Level::Repetition);
        let frame = Frame { anchor: Some(record), base: absent, parts: Parts::default(), ..*frame };
        Some(self.at_item(&frame, Item::Segment(record)))
    }

    /// At an item of an `each:`. A record stands in a group of its own, in which what is inside it is looked for.
    pub(super) fn at_item<'c>(&self, frame: &Frame<'r, 'c>, item: Item) -> Frame<'r, 'c> {
        match (item, self.document) {
            (Item::Segment(record), Some(document)) => {
                Frame { item, group: document.records.groups().place(record as usize).0, ..*frame }
            }
            _ => Frame { item, ..*frame },
        }
    }

    pub(super) fn call_of_part<'c>(&mut self, frame: &Frame<'r, 'c>, part: &'r PartCode) -> Call<'r, 'c> {
        self.call(frame, &part.with, None)
    }

    pub(super) fn call<'c>(
        &mut self,
        frame: &Frame<'r, 'c>,
        with: &'r [(u16, Argument)],
        table: Option<&'r TableUse>,
    ) -> Call<'r, 'c> {
        let mut values = Vec::with_capacity(with.len());
        for (param, argument) in with {
            let value = match argument {
                Argument::Text(text) => Val::Text(Cow::Borrowed(text)),
                Argument::Expr(expr) => match self.eval(frame, *expr) {
                    // HL7's null empties what the map writes of it, as it does where the map reads it itself.
                    Val::Null => match self.element(frame, *expr) {
                        element if element.is_absent() => Val::Null,
                        element => Val::Element(element),
                    },
                    value => value,
                },
            };
            values.push((*param, value));
        }
        Call { with: values, table, outer: frame.call }
    }

    /// Writes the object of a map, with what its caller changes.
    fn write_call(&mut self, frame: &Frame<'r, '_>, node: &'r Node, out: &mut String) -> Result<bool, Halt> {
        let Action::Call { map, from, with, table, set, remember } = &node.does else { return Ok(false) };
        let map = &self.code.maps[*map as usize];
        let MapBody::Object(fields) = &map.body else { return Ok(false) };
        let inner = match map.record {
            Some(record) => self.on_record(frame, *from, record),
            None => self.base_of(frame, *from).map(|base| self.on_element(frame, base)),
        };
        // Elements that the caller sets may stand without it, but where nothing stands there is no record that a map could read.
        if inner.is_none() && (set.is_empty() || map.record.is_some()) {
            return Ok(false);
        }
        self.cause_of(inner.map_or(Element::absent(Level::Repetition), |inner| inner.base));
        let mut object = Object::begin(self, out);
        let new = match self.recall(frame, remember.as_deref()) {
            Recall::Known(Outcome::Elements(text, carried)) => {
                out.push_str(&text);
                self.carried += carried;
                return self.write_set(frame, node, set, object, out);
            }
            Recall::New(new) => Some(new),
            Recall::Known(_) | Recall::Never => None,
        };
        let call = self.call(frame, with, table.as_deref());
        let inner = inner.unwrap_or_else(|| self.on_element(frame, Element::absent(Level::Repetition)));
        let inner = Frame { call: Some(&call), ..inner };
        self.ignore(&map.ignore, &inner);
        for field in fields {
            if set.iter().any(|other| other.name == field.name) {
                continue;
            }
            if !self.write_field(&inner, field, object.body, out)? && field.required {
                object.lacking = object.lacking.or(Some(&field.name));
            }
        }
        if let Some(new) = new {
            let carried = self.carried - object.carried;
            let elements = Outcome::Elements(out[object.body..].into(), carried);
            self.remember(new, if object.lacking.is_none() { Some(elements) } else { None });
        }
        self.write_set(frame, node, set, object, out)
    }

    /// Writes the last elements of an object, and ends it.
    fn write_set(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        set: &'r [Field],
        mut object: Object<'r>,
        out: &mut String,
    ) -> Result<bool, Halt> {
        for field in set {
            if !self.write_field(frame, field, object.body, out)? && field.required {
                object.lacking = object.lacking.or(Some(&field.name));
            }
        }
        self.beside = object.beside;
        out.push('}');
        let constant = match &node.does {
            Action::Object { constant, .. } => *constant,
            // Beside what its caller sets, a constant is not written by itself.
            Action::Call { map, set, .. } => set.is_empty() && self.code.maps[*map as usize].constant,
            _ => false,
        };
        if out.len() == object.body + 1 || (self.carried == object.carried && !constant) {
            return Ok(false);
        }
        if let Some(name) = object.lacking {
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
        if self.code.node(field.node).needs.lack(frame.parts) {
            return Ok(false);
        }
        let start = out.len();
        if start > body {
            out.push(',');
        }
        self.beside.clear();
        match self.recall(frame, field.remember.as_deref()) {
            Recall::Known(Outcome::Elements(text, carried)) => {
                out.push_str(&text);
                self.carried += carried;
                if text.is_empty() {
                    out.truncate(start);
                }
                Ok(!text.is_empty())
            }
            Recall::Known(_) | Recall::Never => self.write_field_anew(frame, field, start, out),
            Recall::New(new) => {
                let (at, carried) = (out.len(), self.carried);
                let wrote = self.write_field_anew(frame, field, start, out)?;
                let text = out.get(at..).unwrap_or_default();
                // What is written beside a list is its caller's to write.
                let alone = self.beside.is_empty() && wrote != text.is_empty();
                let elements = alone.then(|| Outcome::Elements(text.into(), self.carried - carried));
                self.remember(new, elements);
                Ok(wrote)
            }
        }
    }

    /// Writes one element, remembered or not. `start` is where it goes with the comma before it, which is there already.
    fn write_field_anew(
        &mut self,
        frame: &Frame<'r, '_>,
        field: &'r Field,
        start: usize,
        out: &mut String,
    ) -> Result<bool, Halt> {
        let at_key = out.len();
        out.push_str(&field.key);
        if field.many {
            out.push('[');
        }
        let value = out.len();
        let mut sink = Sink { out, count: 0, max: if field.many { u32::MAX } else { 1 } };
        let traced = self.traced();
        let up = self.trace_down(".");
        self.trace_down(&field.name);
        let result = self.emit(frame, field.node, &mut sink);
        self.trace_up(up);
        let count = sink.count;
        result?;
        if field.choice {
            let suffix = self.suffix;
            self.trace_choice(traced, up, &field.name, suffix);
        }
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
            // What is said of a value that is not there stands for it.
            return Ok(true);
        }
        if count == 0 {
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
            let traced = self.traced();
            let up = self.trace_down(".value");
            let emitted = self.emit(frame, value, &mut sink);
            self.trace_up(up);
            emitted?;
            if sink.count == 0 {
                return Ok(false);
            }
            let suffix = self.suffix;
            self.trace_choice(traced, up, "value", suffix);
            out.insert_str(at, &format!("{}\":", self.suffix));
        } else {
            out.push_str(",\"extension\":[");
            let mut sink = Sink { out, count: 0, max: u32::MAX };
            let up = self.trace_down(".extension");
            let mut emitted = Ok(());
            for extension in nested {
                emitted = emitted.and_then(|()| self.emit(frame, *extension, &mut sink));
            }
            self.trace_up(up);
            emitted?;
            if sink.count == 0 {
                return Ok(false);
            }
            out.push(']');
        }
        out.push('}');
        Ok(true)
    }
}

fn push_part(list: &mut String, part: &str) {
    if !list.is_empty() {
        list.push(',');
    }
    list.push_str(part);
}
