//! Evaluates expressions. Total: every operation answers on every input.

use super::coverage::{Mark, State};
use super::{Frame, Item, Run, Val};
use crate::language::expression::Comparison;
use crate::program::{Base, ExprId, Op, Parts, Party, Pick, Scope};
use crate::terminology;
use schemas::hl7v2::grammar::InstanceId;
use schemas::hl7v2::time::{TsError, Written, Zone};
use schemas::hl7v2::{Element, Leaf, Level, SegmentName};
use schemas::issue::{Issue, Severity};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::ops::Range;

/// The items of a path.
pub(crate) type Items = SmallVec<[Item; 4]>;

type Segments = SmallVec<[u32; 4]>;

impl<'r> Run<'r> {
    /// Evaluates an expression.
    pub(crate) fn eval(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> Val<'r> {
        let code = self.code;
        match code.op(id) {
            Op::Segment { field: 0, scope, name, .. } => match self.first_segment(frame, scope, *name) {
                Some(_) => Val::Segment,
                None => Val::Absent,
            },
            Op::Segment { .. } | Op::Part { .. } => {
                let element = self.element(frame, id);
                self.value_of(element)
            }
            Op::Record { field: 0, .. } => match self.records_of(frame, id).first() {
                Some(_) => Val::Segment,
                None => Val::Absent,
            },
            Op::Record { boolean, .. } => {
                let element = self.element(frame, id);
                match self.value_of(element) {
                    Val::Element(element) if *boolean => match self.text(Val::Element(element)).as_deref() {
                        Some("true") => Val::Bool(true),
                        Some("false") => Val::Bool(false),
                        Some(_) => Val::Unreadable("expected true or false".into()),
                        None => Val::Absent,
                    },
                    value => value,
                }
            }
            Op::With(param) => match frame.call.and_then(|call| call.given(*param)) {
                Some(Val::Element(element)) => self.value_of(*element),
                given => given.map_or(Val::Absent, Val::clone),
            },
            Op::Option { name, default } => {
                let set = self.context.options.iter().find(|(option, _)| **option == **name);
                Val::Text(Cow::Borrowed(set.map_or(default, |(_, choice)| choice)))
            }
            Op::SenderName => Val::Text(Cow::Borrowed(&self.context.sender)),
            Op::SenderSystem => Val::Text(crate::identity::sender_system(&self.context.authority).into()),
            Op::ReceivedAt => Val::Text(self.context.received_at.to_string().into()),
            Op::MappingName => Val::Text(format!("{} {}", self.mapping.name, self.mapping.version).into()),
            Op::Wire(name) => {
                let said = self.context.wire.iter().find(|(known, _)| **known == **name);
                said.map_or(Val::Absent, |(_, value)| Val::Text(Cow::Borrowed(value)))
            }
            Op::MessageText => {
                Val::Text(Cow::Borrowed(self.document.map_or(self.message.text(), |document| document.text)))
            }
            Op::Party(party) => {
                let parties = &self.context.parties;
                let party = match party {
                    Party::SendingApplication => {
                        return Val::Text(parties.sending_application.as_deref().unwrap_or("PONS").into());
                    }
                    Party::SendingFacility => &parties.sending_facility,
                    Party::ReceivingApplication => &parties.receiving_application,
                    Party::ReceivingFacility => &parties.receiving_facility,
                };
                party.as_deref().map_or(Val::Absent, |party| Val::Text(Cow::Borrowed(party)))
            }
            Op::ControlId => Val::Text(crate::identity::control_id(self.context.message_id).into()),
            Op::MessageId => Val::Text(self.context.message_id.to_string().into()),
            Op::LevelKind => frame.level.map_or(Val::Absent, |level| Val::Text(level.kind.into())),
            Op::LevelId => frame.level.map_or(Val::Absent, |level| Val::Text(level.id.into())),
            Op::Text(text) => Val::Text(Cow::Borrowed(text)),
            Op::Number(number) => Val::Integer(*number),
            Op::Call { function, args } => (crate::functions::FUNCTIONS[*function].call)(self, frame, args),
            Op::Not(inner) => Val::Bool(!self.is_true(frame, *inner)),
            Op::And(a, b) => Val::Bool(self.is_true(frame, *a) && self.is_true(frame, *b)),
            Op::Or(a, b) => Val::Bool(self.is_true(frame, *a) || self.is_true(frame, *b)),
            Op::Compare(comparison, a, b) => Val::Bool(self.compare(frame, *comparison, *a, *b)),
            Op::In { negated, item, list } => {
                let item = self.text_of(frame, *item);
                let found = item.is_some_and(|item| {
                    list.iter().any(|other| {
                        self.text_of(frame, *other).is_some_and(|other| other.trim() == item.trim())
                    })
                });
                Val::Bool(found != *negated)
            }
            Op::OneOf { negated, item, words } => {
                let value = self.eval(frame, *item);
                let text = self.text(value);
                let text = text.as_deref().map(str::trim);
                Val::Bool(words.iter().any(|word| text == Some(word)) != *negated)
            }
            Op::Coalesce(a, b) => {
                let marks = self.marks.len();
                match self.eval(frame, *a) {
                    Val::Absent | Val::Null => {
                        self.marks.truncate(marks);
                        self.eval(frame, *b)
                    }
                    value => value,
                }
            }
        }
    }

    /// Evaluates a condition. What it reads is not carried over.
    pub(super) fn holds(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> bool {
        self.quiet += 1;
        let holds = self.is_true(frame, id);
        self.quiet -= 1;
        holds
    }

    fn is_true(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> bool {
        matches!(self.eval(frame, id), Val::Bool(true))
    }

    /// Absent compares false, and `!=` with absent is true.
    fn compare(&mut self, frame: &Frame<'r, '_>, comparison: Comparison, a: ExprId, b: ExprId) -> bool {
        let (a, b) = (self.eval(frame, a), self.eval(frame, b));
        if let (Val::Integer(a), Val::Integer(b)) = (&a, &b) {
            return match comparison {
                Comparison::Equal => a == b,
                Comparison::Unequal => a != b,
                Comparison::Less => a < b,
                Comparison::LessOrEqual => a <= b,
                Comparison::Greater => a > b,
                Comparison::GreaterOrEqual => a >= b,
            };
        }
        let (Some(a), Some(b)) = (self.text(a), self.text(b)) else {
            return comparison == Comparison::Unequal;
        };
        let (a, b) = (a.trim(), b.trim());
        let order = || match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => a.partial_cmp(&b),
            _ => Some(a.cmp(b)),
        };
        match comparison {
            Comparison::Equal => a == b,
            Comparison::Unequal => a != b,
            Comparison::Less => order().is_some_and(std::cmp::Ordering::is_lt),
            Comparison::LessOrEqual => order().is_some_and(std::cmp::Ordering::is_le),
            Comparison::Greater => order().is_some_and(std::cmp::Ordering::is_gt),
            Comparison::GreaterOrEqual => order().is_some_and(std::cmp::Ordering::is_ge),
        }
    }

    /// Whether something other than HL7's null stands there. For a field that is for any repetition.
    pub(crate) fn is_valued(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> bool {
        let code = self.code;
        if let Op::Segment { field, pick: Pick::All, steps: [0, 0], scope, name, .. } = code.op(id)
            && *field > 0
        {
            let Some(segment) = self.first_segment(frame, scope, *name) else { return false };
            let element = self.field(segment, *field);
            self.cause_if_asked(element);
            return !element.is_absent() && !self.is_null(element);
        }
        !matches!(self.eval(frame, id), Val::Absent | Val::Null)
    }

    /// Whether HL7's null stands there; what [`Element::is_null`] answers, with a glance at the first leaf before.
    pub(super) fn is_null(&self, element: Element) -> bool {
        let first = self.message.leaves()[element.first as usize];
        first.end - first.start == 2 && element.is_null(self.message)
    }

    fn value_of(&self, element: Element) -> Val<'r> {
        if element.is_absent() {
            Val::Absent
        } else if self.is_null(element) {
            Val::Null
        } else {
            Val::Element(element)
        }
    }

    /// What a path names; absent for anything else. For a field with repetitions, the field, or the one that is picked.
    pub(super) fn element(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> Element {
        let element = self.find_element(frame, id);
        self.cause_if_asked(element);
        element
    }

    fn find_element(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> Element {
        let code = self.code;
        match code.op(id) {
            Op::Segment { scope, name, field, pick, steps } if *field > 0 => {
                let Some(segment) = self.first_segment(frame, scope, *name) else {
                    return Element::absent(Level::Field);
                };
                let whole = self.field(segment, *field);
                let picked = match pick {
                    Pick::All => whole,
                    Pick::Number(number) => whole.repetition(self.message, u32::from(*number)),
                    Pick::Nth(number) => {
                        let number = self.number(frame, *number);
                        whole.repetition(self.message, number)
                    }
                    Pick::Where(condition) => {
                        let found = whole.repetitions(self.message).find(|repetition| {
                            let frame = Frame { item: Item::Element(*repetition), ..*frame };
                            self.holds(&frame, *condition)
                        });
                        found.unwrap_or(Element::absent(Level::Repetition))
                    }
                };
                self.down(picked, *steps)
            }
            Op::Record { field, pick, .. } if *field > 0 => {
                let Some(record) = self.records_of(frame, id).first().copied() else {
                    return Element::absent(Level::Field);
                };
                let whole = self.field(record, *field);
                match pick {
                    Pick::All => whole,
                    _ => {
                        let mut meant = whole.repetitions(self.message);
                        let found = meant.find(|value| self.is_picked(frame, pick, Item::Element(*value), 0));
                        found.unwrap_or(Element::absent(Level::Repetition))
                    }
                }
            }
            Op::Part { base: Base::Map, steps } => self.part_of_base(frame, *steps),
            Op::Part { base, steps } => {
                let element = self.base(frame, *base);
                self.down(element, *steps)
            }
            Op::Coalesce(a, b) => {
                let first = self.element(frame, *a);
                if first.is_absent() { self.element(frame, *b) } else { first }
            }
            Op::With(param) => match frame.call.and_then(|call| call.given(*param)) {
                Some(Val::Element(element)) => *element,
                _ => Element::absent(Level::Field),
            },
            _ => Element::absent(Level::Field),
        }
    }

    fn base(&self, frame: &Frame<'r, '_>, base: Base) -> Element {
        match base {
            Base::Map => frame.base,
            Base::Item => match frame.item {
                Item::Element(element) => element,
                Item::None | Item::Segment(_) | Item::Instance(_) => Element::absent(Level::Field),
            },
            Base::Level => frame.level.map_or(Element::absent(Level::Field), |level| level.element),
        }
    }

    /// A part of the element on which the map was called; most are not there.
    pub(super) fn part_of_base(&self, frame: &Frame<'_, '_>, steps: [u16; 2]) -> Element {
        if steps[0] > 0 && Parts::one(steps[0].into()).lack(frame.parts) {
            return Element::absent(Level::Component);
        }
        self.down(frame.base, steps)
    }

    pub(super) fn down(&self, element: Element, steps: [u16; 2]) -> Element {
        let mut element = element;
        for step in steps {
            if step == 0 || element.is_absent() {
                break;
            }
            element = self.part(element, step);
        }
        element
    }

    /// What [`Element::part`] answers. The parts of a field are few, so they are walked, not searched.
    fn part(&self, element: Element, number: u16) -> Element {
        let leaves = &self.message.leaves()[element.range()];
        let mut first = element.first;
        let (level, wanted) = match element.level {
            Level::Field | Level::Repetition => {
                let component = u32::from(number);
                let own = |leaf: &&Leaf| element.level == Level::Repetition || leaf.repetition == 1;
                let before =
                    leaves.iter().take_while(own).take_while(|leaf| leaf.component < component).count();
                let length =
                    leaves[before..].iter().take_while(own).take_while(|leaf| leaf.component == component);
                first += before as u32;
                (Level::Component, length.count())
            }
            Level::Component => {
                let before = leaves.iter().take_while(|leaf| leaf.subcomponent < number).count();
                let length = leaves[before..].iter().take_while(|leaf| leaf.subcomponent == number);
                first += before as u32;
                (Level::Subcomponent, length.count())
            }
            Level::Subcomponent if number == 1 => return element,
            Level::Subcomponent => return Element::absent(Level::Subcomponent),
        };
        Element { first, end: first + wanted as u32, level }
    }

    /// The items that an `each` repeats over: segments, or repetitions that are neither empty nor null.
    pub(crate) fn items(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> Items {
        let code = self.code;
        let message = self.message;
        let mut items = Items::new();
        match code.op(id) {
            Op::Segment { scope, name, field: 0, .. } => {
                items.extend(self.segments(frame, scope, *name).into_iter().map(Item::Segment));
            }
            Op::Segment { scope, name, field, pick, steps } => {
                let Some(segment) = self.first_segment(frame, scope, *name) else { return items };
                let whole = self.field(segment, *field);
                let nth = if let Pick::Nth(number) = pick { self.number(frame, *number) } else { 0 };
                for repetition in whole.repetitions(message) {
                    let meant = match pick {
                        Pick::Nth(_) => repetition.repetition_number(message) == nth,
                        Pick::All => true,
                        Pick::Number(number) => repetition.repetition_number(message) == u32::from(*number),
                        Pick::Where(condition) => {
                            let frame = Frame { item: Item::Element(repetition), ..*frame };
                            self.holds(&frame, *condition)
                        }
                    };
                    if meant {
                        self.push_item(&mut items, self.down(repetition, *steps));
                    }
                }
            }
            Op::Record { field: 0, .. } => {
                items.extend(self.records_of(frame, id).into_iter().map(Item::Segment));
            }
            Op::Record { field, pick, .. } => {
                for record in self.records_of(frame, id) {
                    for value in self.field(record, *field).repetitions(message) {
                        if self.is_picked(frame, pick, Item::Element(value), 0) {
                            self.push_item(&mut items, value);
                        }
                    }
                }
            }
            Op::Part { base, steps } => {
                let base = self.base(frame, *base);
                for repetition in base.repetitions(message) {
                    self.push_item(&mut items, self.down(repetition, *steps));
                }
            }
            Op::Coalesce(a, b) => {
                items = self.items(frame, *a);
                if items.is_empty() {
                    items = self.items(frame, *b);
                }
            }
            _ => {}
        }
        items
    }

    /// The records that a path leads to or through, or whose value it names.
    fn records_of(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> Segments {
        let code = self.code;
        let Op::Record { item, name, down, .. } = code.op(id) else { return Segments::new() };
        let scope = if *item { Scope::Item } else { Scope::Near };
        let mut found: Segments = self.first_segment(frame, &scope, *name).into_iter().collect();
        for step in down {
            let mut inner = Segments::new();
            if self.fuel == 0 {
                return inner;
            }
            for outer in found {
                if let Some(target) = step.target {
                    let document = self.document.map(|document| document.records);
                    let record = document.and_then(|records| records.target_of(outer));
                    let of_type = |record: &u32| self.message.segments()[*record as usize].name() == target;
                    if let Some(record) = record.filter(of_type)
                        && self.is_picked(frame, &step.pick, Item::Segment(record), 1)
                    {
                        inner.push(record);
                    }
                    continue;
                }
                let group = self.groups.place(outer as usize).0;
                let structure = self.groups.structure();
                let named = |id: &InstanceId| structure.node(self.groups.group(*id)).name == step.member;
                let mut looked_at = 0;
                let children = self.groups.children(group).inspect(|_| looked_at += 1);
                let groups: SmallVec<[InstanceId; 4]> = children.filter(named).collect();
                // Whoever goes on after the last step finds out.
                self.fuel = self.fuel.saturating_sub(looked_at);
                for (nth, group) in (1..).zip(groups) {
                    let Some((record, _)) = self.groups.segments(group).next() else { continue };
                    let record = record as u32;
                    if self.is_picked(frame, &step.pick, Item::Segment(record), nth) {
                        inner.push(record);
                    }
                }
            }
            found = inner;
        }
        found
    }

    /// The first record to which a path leads.
    pub(crate) fn record_at(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> Option<u32> {
        match self.code.op(id) {
            Op::Record { field: 0, .. } => self.records_of(frame, id).first().copied(),
            _ => None,
        }
    }

    /// See the function `among`. What a path from the document leads to is looked for once.
    pub(crate) fn is_among(&mut self, frame: &Frame<'r, '_>, one: ExprId, all: ExprId) -> bool {
        let Some(one) = self.record_at(frame, one) else { return false };
        let root = self.message.segments()[0].name();
        match self.code.op(all) {
            // A filter may mean others for another record.
            Op::Record { field: 0, name, down, .. }
                if *name == root && down.iter().all(|step| step.pick == Pick::All) =>
            {
                if !self.led_to.contains_key(&all) {
                    let found = self.records_of(frame, all).into_iter().collect();
                    self.led_to.insert(all, found);
                }
                self.led_to.get(&all).is_some_and(|found| found.contains(&one))
            }
            Op::Record { field: 0, .. } => self.records_of(frame, all).contains(&one),
            _ => false,
        }
    }

    /// Whether a record, or a value of a list, is one of those that are meant. `nth` says which of them a record is, from 1.
    fn is_picked(&mut self, frame: &Frame<'r, '_>, pick: &'r Pick, item: Item, nth: u32) -> bool {
        let nth = match item {
            Item::Element(value) => value.repetition_number(self.message),
            _ => nth,
        };
        match pick {
            Pick::All => true,
            Pick::Number(number) => nth == u32::from(*number),
            Pick::Nth(_) => false,
            Pick::Where(condition) => {
                let outer = frame.as_outer();
                let outer = outer.as_ref().or(frame.outer);
                let frame = Frame { outer, nth, ..self.at_item(frame, item) };
                self.holds(&frame, *condition)
            }
        }
    }

    /// How many repetitions are valued; what `count` answers for a whole field.
    pub(super) fn count_valued(&self, element: Element) -> usize {
        let valued = |repetition: &Element| !repetition.is_absent() && !self.is_null(*repetition);
        element.repetitions(self.message).filter(valued).count()
    }

    fn push_item(&self, items: &mut Items, element: Element) {
        if !element.is_absent() && !self.is_null(element) {
            items.push(Item::Element(element));
        }
    }

    /// The segment that a name means: the item, the anchor, else the nearest in the groups around.
    pub(super) fn first_segment(
        &self,
        frame: &Frame<'r, '_>,
        scope: &Scope,
        name: SegmentName,
    ) -> Option<u32> {
        let named = |segment: &u32| self.message.segments()[*segment as usize].name() == name;
        match scope {
            Scope::Near => {
                if let Item::Segment(segment) = frame.item
                    && named(&segment)
                {
                    return Some(segment);
                }
                frame.anchor.filter(named).or_else(|| {
                    if !self.may_hold(name) {
                        return None;
                    }
                    let mut outer = std::iter::successors(frame.outer, |outer| outer.outer);
                    if let Some(outer) = outer.find(|outer| named(&outer.record)) {
                        return Some(outer.record);
                    }
                    let mut around = std::iter::successors(Some(frame.group), |id| self.groups.parent(*id));
                    around.find_map(|id| self.first_inside(id, name, 2))
                })
            }
            Scope::Group(_) | Scope::Item => self.segments(frame, scope, name).first().copied(),
        }
    }

    fn segments(&self, frame: &Frame<'r, '_>, scope: &Scope, name: SegmentName) -> Segments {
        match scope {
            Scope::Near => self.near(frame.group, name),
            Scope::Group(group) => {
                let structure = self.groups.structure();
                let around = std::iter::successors(Some(frame.group), |id| self.groups.parent(*id))
                    .find(|id| structure.node(self.groups.group(*id)).name == &**group);
                around.map_or_else(Segments::new, |id| self.inside(id, name, 2))
            }
            Scope::Item => match frame.item {
                Item::Segment(segment) if self.message.segments()[segment as usize].name() == name => {
                    smallvec::smallvec![segment]
                }
                Item::Instance(index) => {
                    let instance = &self.instances[index];
                    match instance.anchor {
                        Some(anchor) if self.message.segments()[anchor as usize].name() == name => {
                            smallvec::smallvec![anchor]
                        }
                        _ => self.inside(instance.group, name, 2),
                    }
                }
                _ => Segments::new(),
            },
        }
    }

    /// The segments of a name in a group instance, else in the one around it, and so on.
    pub(super) fn near(&self, group: InstanceId, name: SegmentName) -> Segments {
        if !self.may_hold(name) {
            return Segments::new();
        }
        let mut at = Some(group);
        while let Some(id) = at {
            let found = self.inside(id, name, 2);
            if !found.is_empty() {
                return found;
            }
            at = self.groups.parent(id);
        }
        Segments::new()
    }

    /// See the function `holds`.
    pub(crate) fn group_holds(&self, frame: &Frame<'r, '_>, id: ExprId) -> bool {
        let Op::Segment { name, .. } = self.code.op(id) else { return false };
        let mut open = vec![frame.group];
        while let Some(group) = open.pop() {
            let segments = self.message.segments();
            if self.groups.segments(group).any(|(segment, _)| segments[segment].name() == *name) {
                return true;
            }
            open.extend(self.groups.children(group));
        }
        false
    }

    /// The segments of a name in a group instance itself, else in the groups inside it that stand at most once.
    pub(super) fn inside(&self, group: InstanceId, name: SegmentName, depth: u32) -> Segments {
        if !self.may_hold(name) {
            return Segments::new();
        }
        let own = self.groups.segments(group).map(|(segment, _)| segment);
        let mut found: Segments = own
            .filter(|segment| self.message.segments()[*segment].name() == name)
            .map(|segment| segment as u32)
            .collect();
        if found.is_empty() && depth > 0 {
            let structure = self.groups.structure();
            for child in self.groups.children(group) {
                if !structure.node(self.groups.group(child)).repeats {
                    found.extend(self.inside(child, name, depth - 1));
                }
            }
        }
        found
    }

    /// The first of the segments that [`Run::inside`] finds.
    fn first_inside(&self, group: InstanceId, name: SegmentName, depth: u32) -> Option<u32> {
        let segments = self.message.segments();
        let own = self.groups.segments(group).find(|(segment, _)| segments[*segment].name() == name);
        if let Some((segment, _)) = own {
            return Some(segment as u32);
        }
        if depth == 0 {
            return None;
        }
        let structure = self.groups.structure();
        let once = |child: &InstanceId| !structure.node(self.groups.group(*child)).repeats;
        self.groups.children(group).filter(once).find_map(|child| self.first_inside(child, name, depth - 1))
    }

    /// The text of a value; of an element its first leaf, which counts as carried over.
    pub(crate) fn text(&mut self, value: Val<'r>) -> Option<Cow<'r, str>> {
        match value {
            Val::Absent | Val::Null | Val::Unreadable(_) | Val::Segment => None,
            Val::Element(element) => {
                let leaf = element.first_leaf(self.message)?;
                let raw = self.message.raw(leaf);
                if raw == "\"\"" {
                    return None;
                }
                self.mark(leaf, State::Mapped);
                let escape = self.message.separators().escape.unwrap_or(0);
                let plain = leaf < 2 || memchr::memchr(escape, raw.as_bytes()).is_none();
                Some(if plain { Cow::Borrowed(raw) } else { self.message.value(leaf) })
            }
            Val::Text(text) => Some(text),
            Val::Integer(number) => Some(number.to_string().into()),
            Val::Bool(truth) => Some(Cow::Borrowed(if truth { "true" } else { "false" })),
        }
    }

    /// The text of an expression.
    pub(crate) fn text_of(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> Option<Cow<'r, str>> {
        let value = self.eval(frame, id);
        self.text(value).filter(|text| !text.is_empty())
    }

    /// The text of a part of what a path names, or of the whole if it has no parts.
    pub(crate) fn part_text(&mut self, frame: &Frame<'r, '_>, id: ExprId, part: u16) -> Option<Cow<'r, str>> {
        let element = self.element(frame, id);
        let value = self.value_of(self.down(element, [part, 0]));
        self.text(value).filter(|text| !crate::json::is_blank(text))
    }

    /// Every repetition of every argument, parted by a separator.
    pub(crate) fn join(&mut self, frame: &Frame<'r, '_>, separator: &str, args: &'r [ExprId]) -> Val<'r> {
        let code = self.code;
        let mut joined = String::new();
        let mut found = false;
        let mut null = false;
        let mut add = |text: Cow<'_, str>| {
            if crate::json::is_blank(&text) && !text.contains('\n') {
                return;
            }
            if found {
                joined.push_str(separator);
            }
            joined.push_str(&text);
            found = true;
        };
        for arg in args {
            match code.op(*arg) {
                Op::Segment { scope, name, field, pick: Pick::All, steps } if *field > 0 => {
                    let one = self.first_segment(frame, scope, *name);
                    let anchored = one.is_some() && one == frame.anchor;
                    let segments =
                        if anchored { one.into_iter().collect() } else { self.segments(frame, scope, *name) };
                    for segment in segments {
                        let whole = self.field(segment, *field);
                        null |= whole.is_null(self.message);
                        for repetition in whole.repetitions(self.message) {
                            let value = self.value_of(self.down(repetition, *steps));
                            if let Some(text) = self.text(value) {
                                add(text);
                            }
                        }
                    }
                }
                Op::Segment { .. } | Op::Part { .. } | Op::Record { .. } => {
                    for item in self.items(frame, *arg) {
                        if let Item::Element(element) = item
                            && let Some(text) = self.text(Val::Element(element))
                        {
                            add(text);
                        }
                    }
                }
                _ => {
                    if let Some(text) = self.text_of(frame, *arg) {
                        add(text);
                    }
                }
            }
        }
        match (found, null) {
            (true, _) => Val::Text(joined.into()),
            (false, true) => Val::Null,
            (false, false) => Val::Absent,
        }
    }

    /// Changes a text.
    pub(crate) fn change(
        &mut self,
        frame: &Frame<'r, '_>,
        id: ExprId,
        how: impl FnOnce(&str) -> String,
    ) -> Val<'r> {
        match self.eval(frame, id) {
            Val::Null => Val::Null,
            value => match self.text(value) {
                Some(text) => {
                    let changed = how(&text);
                    if changed.is_empty() { Val::Absent } else { Val::Text(changed.into()) }
                }
                None => Val::Absent,
            },
        }
    }

    /// Reads a text as something that it may not be.
    pub(crate) fn reading(
        &mut self,
        frame: &Frame<'r, '_>,
        id: ExprId,
        expected: &'static str,
        how: impl FnOnce(&str) -> Option<Cow<'_, str>>,
    ) -> Val<'r> {
        match self.eval(frame, id) {
            Val::Null => Val::Null,
            value => match self.text(value) {
                Some(text) if crate::json::is_blank(&text) => Val::Absent,
                Some(text) => match how(&text) {
                    Some(Cow::Borrowed(same)) if same.len() == text.len() => Val::Text(text),
                    Some(read) => Val::Text(read.into_owned().into()),
                    None => Val::Unreadable(expected.into()),
                },
                None => Val::Absent,
            },
        }
    }

    /// Reads a time. `how` answers it written, and whether something of it was left out.
    pub(crate) fn time(
        &mut self,
        frame: &Frame<'r, '_>,
        id: ExprId,
        how: impl FnOnce(&str, &Zone) -> Result<(Written, bool), TsError>,
    ) -> Val<'r> {
        let marks = self.marks.len();
        let text = match self.eval(frame, id) {
            Val::Null => return Val::Null,
            value => {
                // TS.2, the degree of precision of older versions: the digits of TS.1 say it.
                if let Val::Element(element) = &value
                    && self.quiet == 0
                {
                    let (first, end) = (element.first, element.repetition(self.message, 1).end);
                    self.marks.push(Mark { first, end, state: State::Ignored });
                }
                self.text(value)
            }
        };
        let Some(text) = text.filter(|text| !crate::json::is_blank(text)) else { return Val::Absent };
        // Documents have times as ISO 8601 has them.
        let text = match self.document.and_then(|_| schemas::hl7v2::time::from_iso(&text)) {
            Some(written) => Cow::Owned(written),
            None => text,
        };
        match how(&text, &self.zone) {
            Ok((written, narrowed)) => {
                if narrowed {
                    self.narrow_since(marks);
                }
                if self.quiet == 0 {
                    for doubt in written.doubts {
                        let issue = doubt.issue(self.last_path());
                        self.doubt(issue);
                    }
                }
                Val::Text(written.text.into())
            }
            Err(error) => Val::Unreadable(error.to_string().into()),
        }
    }

    /// The sender's registry.
    pub(crate) fn registered(&self, name: &str) -> Option<&'r str> {
        let systems = self.context.systems;
        systems.iter().find(|(known, _)| known == name.trim()).map(|(_, uri)| uri.as_str())
    }

    /// What the sender's registry calls a URI.
    pub(crate) fn registered_as(&self, uri: &str) -> Option<&'r str> {
        let systems = self.context.systems;
        systems.iter().find(|(_, known)| known == uri.trim()).map(|(name, _)| name.as_str())
    }

    /// See the function `system`.
    pub(crate) fn system(&mut self, frame: &Frame<'r, '_>, args: &'r [ExprId]) -> Val<'r> {
        /// The name, the universal id and its type, each with the marks of its leaves.
        type Candidate<'r> = [(Option<Cow<'r, str>>, Range<usize>); 3];
        let candidates: SmallVec<[Candidate<'r>; 2]> = if args.len() == 3 {
            smallvec::smallvec![[0, 1, 2].map(|n| self.marked(|run| run.text_of(frame, args[n])))]
        } else {
            let parts = |arg| [1, 2, 3].map(|part| self.marked(|run| run.part_text(frame, arg, part)));
            args.iter().copied().map(parts).collect()
        };
        let mut found = None;
        for [(name, by_name), (id, by_id), (kind, by_kind)] in candidates {
            if found.is_some() {
                self.unused([by_name, by_id, by_kind]);
                continue;
            }
            let registered = |text: &Option<Cow<'r, str>>| {
                text.as_deref().and_then(|text| self.registered(text)).map(Cow::Borrowed)
            };
            let kind = kind.unwrap_or_default();
            let universal = || id.as_deref().and_then(|id| crate::functions::universal(id.trim(), &kind));
            if let Some(uri) = registered(&name) {
                found = Some(uri);
                self.unused([by_id, by_kind]);
            } else if let Some(uri) = registered(&id).or_else(|| universal().map(Cow::Owned)) {
                found = Some(uri);
                self.unused([by_name]);
            } else if let Some(known) = name.as_ref().or(id.as_ref()) {
                // A bare OID in the place of the name is one all the same.
                let uri = crate::functions::universal(known.trim(), "");
                let scoped = || crate::identity::scoped_system(&self.context.authority, known);
                found = Some(uri.unwrap_or_else(scoped).into());
                self.unused(if name.is_some() { [by_id, by_kind] } else { [by_name, by_kind] });
            }
        }
        found.map_or(Val::Absent, Val::Text)
    }

    /// What is read, and the marks of its leaves.
    fn marked<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> (T, Range<usize>) {
        let before = self.marks.len();
        let read = read(self);
        (read, before..self.marks.len())
    }

    /// What was read was of no use after all: another part told it.
    fn unused(&mut self, of: impl IntoIterator<Item = Range<usize>>) {
        for mark in of.into_iter().flatten() {
            self.marks[mark].state = State::Ignored;
            let Mark { first, end, .. } = self.marks[mark];
            self.trace_unused(first..end);
        }
    }

    /// See the function `coding_system`.
    pub(crate) fn coding_system(&self, name: Option<&str>, oid: Option<&str>) -> Val<'r> {
        let name = name.map(str::trim).filter(|name| !name.is_empty());
        let oid = oid.map(str::trim).and_then(|oid| crate::functions::universal(oid, ""));
        if let Some(uri) = name.and_then(|name| self.registered(name)) {
            return Val::Text(uri.into());
        }
        let known = name.and_then(crate::functions::known_coding_system).or(oid.map(Cow::Owned));
        let known =
            known.or_else(|| name.and_then(|name| crate::functions::universal(name, "")).map(Cow::Owned));
        match (known, name) {
            (Some(uri), _) => Val::Text(uri),
            (None, Some(name)) => {
                Val::Text(crate::identity::scoped_system(&self.context.authority, name).into())
            }
            (None, None) => Val::Absent,
        }
    }

    /// See the function `table_system`. `open`: whether a table of which nobody has a list may have the code.
    pub(crate) fn table_system(&self, table: Option<&str>, code: Option<&str>, open: bool) -> Val<'r> {
        let Some(table) = table else { return Val::Absent };
        let digits = table.trim().strip_prefix("HL7").unwrap_or_default().trim_start_matches(['-', ' ']);
        let listed = |code: &str| schemas::hl7v2::tables::lists(digits, code.trim()).unwrap_or(open);
        match code {
            Some(code) if !listed(code) && self.registered(table).is_none() => {
                Val::Text(crate::identity::scoped_system(&self.context.authority, table).into())
            }
            _ => self.coding_system(Some(table), None),
        }
    }

    /// See the function `verified`.
    pub(crate) fn verified(&mut self, frame: &Frame<'r, '_>, args: &'r [ExprId]) -> Val<'r> {
        self.quiet += 1;
        let name = args.get(1).and_then(|arg| self.text_of(frame, *arg));
        let oid = args.get(2).and_then(|arg| self.text_of(frame, *arg));
        self.quiet -= 1;
        let system = self.coding_system(name.as_deref(), oid.as_deref());
        let code = self.eval(frame, args[0]);
        if matches!(&system, Val::Text(system) if system == terminology::LOINC)
            && let Some(text) = self.text(code.clone())
            && !terminology::is_loinc(text.trim())
        {
            let text =
                "is not formed like a code of LOINC, or its check digit is wrong; it stands as it was sent";
            self.doubt(Issue::new(Severity::Warning, "check-digit", self.last_path(), text));
        }
        code
    }

    /// See the function `index`.
    pub(crate) fn index(&self, frame: &Frame<'r, '_>) -> Val<'r> {
        match frame.item {
            Item::Element(element) if !element.is_absent() => {
                Val::Integer(element.repetition_number(self.message).into())
            }
            Item::Segment(_) if self.document.is_some() && frame.nth > 0 => Val::Integer(frame.nth.into()),
            _ => Val::Absent,
        }
    }

    /// A number from 1; 0 for anything else.
    fn number(&mut self, frame: &Frame<'r, '_>, id: ExprId) -> u32 {
        match self.eval(frame, id) {
            Val::Integer(number) => u32::try_from(number).unwrap_or(0),
            _ => 0,
        }
    }

    /// The trigger event.
    pub(crate) fn trigger(&mut self) -> Cow<'r, str> {
        if self.tracer.is_some() {
            let field = self.message.field(0, 9);
            self.cause_of(field.repetition(self.message, 1).part(self.message, 2));
        }
        self.trigger.clone()
    }

    /// MSH-9.1.
    pub(crate) fn message_code(&self) -> Option<Cow<'r, str>> {
        self.header.as_ref()?.message_code()
    }

    /// MSH-12.1.
    pub(crate) fn version(&self) -> Option<Cow<'r, str>> {
        self.header.as_ref()?.version()
    }

    /// See the function `chain_key`.
    pub(crate) fn chain_key(&self, frame: &Frame<'r, '_>) -> Val<'r> {
        frame.level.map_or(Val::Absent, |level| Val::Text(level.key.clone().into()))
    }

    /// Whether any of these is HL7's null, and whether any is valued.
    pub(super) fn presence(&mut self, frame: &Frame<'r, '_>, sources: &'r [ExprId]) -> (bool, bool) {
        let (mut null, mut valued) = (false, false);
        for source in sources {
            let element = self.element(frame, *source);
            if !element.is_absent() {
                let is_null = self.is_null(element);
                null |= is_null;
                valued |= !is_null;
            }
        }
        (null, valued)
    }

    /// Whether anything stands at any of these.
    pub(super) fn any_present(&mut self, frame: &Frame<'r, '_>, sources: &'r [ExprId]) -> bool {
        sources.iter().any(|source| !self.element(frame, *source).is_absent())
    }

    /// The value of an expression as the value of a rule: `None` for absent and null.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(super) fn rule_value(
        &mut self,
        frame: &Frame<'r, '_>,
        id: ExprId,
    ) -> Result<Option<Cow<'r, str>>, Cow<'static, str>> {
        match self.eval(frame, id) {
            Val::Unreadable(why) => Err(why),
            value => Ok(self.text(value).filter(|text| !crate::json::is_blank(text))),
        }
    }
}
