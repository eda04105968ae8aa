//! What a slot or a made resource reads: if that is a closed list of places, what was once written for the same values may be
//! written again.

use crate::functions::FUNCTIONS;
use crate::program::{
    Action, Argument, Base, Code, ExprId, Field, Lookup, Make, MapBody, Members, Node, NodeId, Op, Pick,
    Piece, Read, Reads, Recovery, Refusal, Remember, Scope, Slot, TableUse, Target,
};
use schemas::hl7v2::path::SegmentName;

/// Where an element lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lies {
    /// Where the slot is written: it is read from outside.
    Outside,
    /// In something that counts as read already.
    Inside,
}

/// What an expression or a node sees around it, as far as that matters here.
#[derive(Clone, Copy)]
struct Around {
    base: Lies,
    item: Lies,
    level: Lies,
    params: Lies,
    /// The table that a caller hands on.
    table: Lies,
}

impl Around {
    /// Of a segment map or a made resource, to which no table is handed.
    const OUTSIDE: Around = Around {
        base: Lies::Outside,
        item: Lies::Outside,
        level: Lies::Outside,
        params: Lies::Outside,
        table: Lies::Inside,
    };
    /// Of a value map.
    const OF_VALUE: Around = Around { table: Lies::Outside, ..Around::OUTSIDE };

    /// Inside a call to which a table is given.
    fn with_table(self, table: Option<&TableUse>) -> Around {
        match table.map(|table| &table.table) {
            Some(Lookup::Given) => self,
            Some(Lookup::Table(_) | Lookup::Sender(_)) | None => Around { table: Lies::Inside, ..self },
        }
    }
}

/// The walk through the code of one of them. Every method answers `None` where something is read that no list can hold: another
/// resource, the time of receipt, a segment that may stand there several times.
struct Walk<'c> {
    code: &'c Code,
    anchor: Option<SegmentName>,
    reads: Vec<Read>,
    makes: bool,
    /// How much work it is, in plain values.
    work: u32,
}

/// What a slot reads, and the number under which its results are kept; `None` if they are not to be. `anchor` is the segment on
/// which its map stands.
pub(super) fn of_slot(code: &mut Code, slot: &Slot, anchor: Option<SegmentName>) -> Option<Box<Remember>> {
    remember(code, anchor, 0, |walk| walk.slot(slot, Around::OUTSIDE))
}

/// What a slot reads before it looks at what it carries over; `None` if that says nothing, or nothing less than
/// [`of_slot`] would. `carries` says whether the sources of the slot are what it carries over, or what its conditions read.
pub(super) fn of_refusal(
    code: &mut Code,
    slot: &Slot,
    carries: bool,
    anchor: Option<SegmentName>,
) -> Option<Box<Refusal>> {
    let node = code.node(slot.node);
    let mut conditions = Vec::new();
    // With `each:`, a condition may be about the item.
    let when = node.when.as_ref().filter(|_| node.each.is_none() || !node.when_item);
    for guard in slot.guards.iter().chain(when) {
        conjuncts(code, *guard, &mut conditions);
    }
    let reads = |condition: ExprId| {
        let mut walk = Walk { code, anchor, reads: Vec::new(), makes: false, work: 0 };
        walk.expr(condition, Around::OUTSIDE).map(|()| walk.reads)
    };
    let carried = |read: &Read| match read {
        Read::Field { scope, name, field } => {
            let same = |source: &ExprId| {
                matches!(code.op(*source), Op::Segment { scope: of, name: segment, field: number, .. }
                    if (of, segment, number) == (scope, name, field))
            };
            carries && slot.sources.iter().any(same)
        }
        Read::Presence { .. } | Read::Count { .. } | Read::Trigger | Read::MessageCode | Read::Version => {
            false
        }
        _ => true,
    };
    conditions.retain(|condition| reads(*condition).is_some_and(|reads| !reads.iter().any(carried)));
    if conditions.is_empty() {
        return None;
    }
    let read = |walk: &mut Walk<'_>| {
        conditions
            .iter()
            .chain(&slot.clear)
            .try_for_each(|condition| walk.expr(*condition, Around::OUTSIDE))?;
        slot.sources.iter().try_for_each(|source| walk.presence(*source, Around::OUTSIDE))
    };
    let remember = remember(code, anchor, 0, read)?;
    let whole = slot.remember.as_ref().filter(|remember| !remember.makes);
    if whole.is_some_and(|whole| whole.reads == remember.reads) {
        return None;
    }
    Some(Box::new(Refusal { unless: conditions, remember: *remember }))
}

/// The conditions that must all hold for one to hold.
fn conjuncts(code: &Code, condition: ExprId, found: &mut Vec<ExprId>) {
    match code.op(condition) {
        Op::And(a, b) => {
            conjuncts(code, *a, found);
            conjuncts(code, *b, found);
        }
        _ => found.push(condition),
    }
}

/// Which of several slots that stand in one place are remembered together, and what they read; `None` if there are fewer than two.
pub(super) fn of_slots(code: &mut Code, slots: &[Slot]) -> Option<(Members, Remember)> {
    let mut members = Members::default();
    for (index, slot) in slots.iter().take(Members::MAX).enumerate() {
        let whole = slot.remember.as_ref().filter(|remember| !remember.makes);
        match (whole, &slot.refusal) {
            // What a slot carries over changes, and would take the others with it.
            (Some(whole), Some(refusal)) if !refusal.remember.reads.carry(&whole.reads) => {
                members.refusing |= 1 << index;
            }
            (Some(_), _) => members.whole |= 1 << index,
            (None, Some(_)) => members.refusing |= 1 << index,
            (None, None) => {}
        }
    }
    if members.count() < 2 {
        return None;
    }
    let mut reads = Reads::default();
    for (index, slot) in (0..).zip(slots).filter(|(index, _)| members.has(*index)) {
        members.reads(index, slot).into_iter().for_each(|more| reads.add(more));
    }
    Some((members, Remember { id: number(code), makes: false, reads }))
}

/// What is read where a resource is made from an element.
pub(super) fn of_make(
    code: &mut Code,
    make: &Make,
    from: Option<ExprId>,
    anchor: Option<SegmentName>,
) -> Option<Box<Remember>> {
    remember(code, anchor, 0, |walk| walk.make(make, from, Around::OUTSIDE))
}

/// What is read where a map writes an object, but for the elements that its caller sets.
pub(super) fn of_call(
    code: &mut Code,
    (map, table): (u32, Option<&TableUse>),
    with: &[(u16, Argument)],
    from: Option<ExprId>,
    set: &[Field],
    anchor: Option<SegmentName>,
) -> Option<Box<Remember>> {
    if !matches!(code.maps[map as usize].body, MapBody::Object(_)) {
        return None;
    }
    remember(code, anchor, 0, |walk| {
        walk.source(from, Around::OF_VALUE)?;
        walk.arguments(with, Around::OF_VALUE)?;
        walk.map(map, set, Around::OF_VALUE.with_table(table))
    })
}

/// What one element of an object reads; `None` also if it is written as quickly as it is looked up.
pub(super) fn of_field(code: &mut Code, field: NodeId, anchor: Option<SegmentName>) -> Option<Box<Remember>> {
    // An object that a map writes is remembered as a whole.
    if matches!(code.node(field).does, Action::Call { remember: Some(_), .. }) {
        return None;
    }
    remember(code, anchor, DEAR, |walk| walk.node(field, Around::OF_VALUE))
}

/// The work from which on an element of an object is remembered by itself.
const DEAR: u32 = 4;

fn remember(
    code: &mut Code,
    anchor: Option<SegmentName>,
    work: u32,
    read: impl FnOnce(&mut Walk<'_>) -> Option<()>,
) -> Option<Box<Remember>> {
    let mut walk = Walk { code, anchor, reads: Vec::new(), makes: false, work: 0 };
    read(&mut walk)?;
    if walk.work < work {
        return None;
    }
    let (reads, makes) = (Reads::new(anchor, walk.reads), walk.makes);
    Some(Box::new(Remember { id: number(code), makes, reads }))
}

/// The next [`Remember::id`].
pub(super) fn number(code: &mut Code) -> u32 {
    code.remembered += 1;
    code.remembered - 1
}

impl<'c> Walk<'c> {
    fn slot(&mut self, slot: &Slot, around: Around) -> Option<()> {
        for guard in slot.guards.iter().chain(&slot.clear) {
            self.expr(*guard, around)?;
        }
        self.node(slot.node, around)?;
        for source in &slot.sources {
            self.presence(*source, around)?;
        }
        Some(())
    }

    fn make(&mut self, make: &Make, from: Option<ExprId>, around: Around) -> Option<()> {
        if make.record.is_some() {
            return None;
        }
        self.makes = true;
        self.work += 8;
        self.source(from, around)?;
        self.arguments(&make.with, around)?;
        let inner = Around {
            base: Lies::Inside,
            item: Lies::Inside,
            level: Lies::Inside,
            params: Lies::Inside,
            table: Lies::Inside,
        };
        let identity = if make.outer_identity { around } else { inner };
        for key in &make.identity.keys {
            // Counted within another resource, or among earlier siblings.
            if key.of.is_some() || key.ordinal {
                return None;
            }
            let mut around = identity;
            if let Some(each) = key.each {
                self.expr(each, around)?;
                around.item = Lies::Inside;
                if key.by_map {
                    around.base = Lies::Inside;
                }
            }
            let exprs = key.system.iter().chain(&key.value).chain(&key.when);
            exprs.into_iter().try_for_each(|expr| self.expr(*expr, around))?;
        }
        make.display.iter().try_for_each(|display| self.expr(*display, inner))?;
        make.chain.iter().try_for_each(|level| self.expr(level.from, inner))?;
        make.slots.iter().try_for_each(|slot| self.slot(slot, if slot.outer { around } else { inner }))
    }

    /// Reads that on which a map is called.
    fn source(&mut self, from: Option<ExprId>, around: Around) -> Option<()> {
        match from {
            Some(from) => self.expr(from, around)?,
            None if around.item == Lies::Inside => {}
            None => {
                self.add(Read::Item);
                if around.base == Lies::Outside {
                    self.part(0);
                }
            }
        }
        Some(())
    }

    /// Reads what a value map reads, but for the elements that its caller sets.
    fn map(&mut self, map: u32, set: &[Field], around: Around) -> Option<()> {
        if self.code.maps[map as usize].record.is_some() {
            return None;
        }
        let inner = Around { base: Lies::Inside, item: Lies::Inside, params: Lies::Inside, ..around };
        match &self.code.maps[map as usize].body {
            MapBody::Empty => Some(()),
            MapBody::Object(fields) => {
                let mut own = fields.iter().filter(|field| !set.iter().any(|other| other.name == field.name));
                own.try_for_each(|field| self.node(field.node, inner))
            }
            MapBody::Node(node) => self.node(*node, inner),
        }
    }

    fn arguments(&mut self, with: &[(u16, Argument)], around: Around) -> Option<()> {
        with.iter().try_for_each(|(_, argument)| match argument {
            Argument::Text(_) => Some(()),
            Argument::Expr(expr) => self.expr(*expr, around),
        })
    }

    fn add(&mut self, read: Read) {
        if !self.reads.contains(&read) {
            self.reads.push(read);
        }
    }

    /// Reads a part of the element on which the map was called; 0 stands for all of it.
    fn part(&mut self, number: u16) {
        if number == 0 {
            self.reads.retain(|read| !matches!(read, Read::Part(_)));
        } else if self.reads.contains(&Read::Part(0)) {
            return;
        }
        self.add(Read::Part(number));
    }

    /// Reads whether something stands there, and whether that is HL7's null.
    fn presence(&mut self, id: ExprId, around: Around) -> Option<()> {
        match self.code.op(id) {
            Op::Segment { scope, name, field, pick: Pick::All, steps }
                if *field > 0 && !matches!(scope, Scope::Item) =>
            {
                let (scope, name, field, steps) = (scope.clone(), *name, *field, *steps);
                if !self.reads.contains(&Read::Field { scope: scope.clone(), name, field }) {
                    self.add(Read::Presence { scope, name, field, steps });
                }
                Some(())
            }
            Op::Part { base: Base::Map, steps: [part, 0] } if *part > 0 && around.base == Lies::Outside => {
                self.add(Read::PartPresence(*part));
                Some(())
            }
            _ => self.expr(id, around),
        }
    }

    fn expr(&mut self, id: ExprId, around: Around) -> Option<()> {
        match self.code.op(id) {
            Op::Segment { scope, name, field, pick, .. } => {
                if *field == 0 || matches!(scope, Scope::Item) {
                    return None;
                }
                let (scope, name, field) = (scope.clone(), *name, *field);
                self.reads.retain(|read| {
                    let Read::Presence { scope: s, name: n, field: f, .. } = read else { return true };
                    (s, n, f) != (&scope, &name, &field)
                });
                self.add(Read::Field { scope, name, field });
                match pick {
                    Pick::All | Pick::Number(_) => Some(()),
                    Pick::Nth(_) => None,
                    Pick::Where(condition) => self.expr(*condition, Around { item: Lies::Inside, ..around }),
                }
            }
            // What lies where in a document is not told by a list of fields.
            Op::Record { .. } => None,
            Op::Part { base: Base::Map, steps } => {
                if around.base == Lies::Outside {
                    self.part(steps[0]);
                }
                Some(())
            }
            Op::Part { base: Base::Item, .. } => {
                if around.item == Lies::Outside {
                    self.add(Read::Item);
                }
                Some(())
            }
            Op::Part { base: Base::Level, .. } | Op::LevelKind | Op::LevelId => {
                self.level(around);
                Some(())
            }
            Op::With(param) => {
                if around.params == Lies::Outside {
                    self.add(Read::With(*param));
                }
                Some(())
            }
            Op::SenderSystem => {
                self.work += 2;
                Some(())
            }
            Op::Option { .. } | Op::SenderName | Op::Text(_) | Op::Number(_) => Some(()),
            Op::ReceivedAt | Op::MessageId | Op::ControlId | Op::Party(_) | Op::MessageText => None,
            Op::MappingName | Op::Wire(_) => None,
            Op::Call { function, args } => self.call(*function, args, around),
            Op::Not(inner) | Op::OneOf { item: inner, .. } => self.expr(*inner, around),
            Op::And(a, b) | Op::Or(a, b) | Op::Compare(_, a, b) | Op::Coalesce(a, b) => {
                self.expr(*a, around)?;
                self.expr(*b, around)
            }
            Op::In { item, list, .. } => {
                self.expr(*item, around)?;
                list.iter().try_for_each(|expr| self.expr(*expr, around))
            }
        }
    }

    fn level(&mut self, around: Around) {
        if around.level == Lies::Outside {
            self.add(Read::Level);
        }
    }

    fn call(&mut self, function: usize, args: &[ExprId], around: Around) -> Option<()> {
        let function = &FUNCTIONS[function];
        if matches!(function.name, "chain_key" | "is_finest") {
            self.level(around);
            return Some(());
        }
        if !function.closed {
            return None;
        }
        if function.name == "valued" {
            return args.iter().try_for_each(|arg| self.presence(*arg, around));
        }
        self.work += 2;
        let header = match function.name {
            "trigger" => Some(Read::Trigger),
            "message_code" => Some(Read::MessageCode),
            "version" => Some(Read::Version),
            _ => None,
        };
        if let Some(header) = header {
            self.add(header);
            return Some(());
        }
        if function.name == "count"
            && let [arg] = args
            && let Op::Segment { scope, name, field, pick: Pick::All, steps: [0, 0] } = self.code.op(*arg)
            && *field > 0
            && !matches!(scope, Scope::Item)
        {
            self.add(Read::Count { scope: scope.clone(), name: *name, field: *field });
            return Some(());
        }
        if matches!(function.name, "join" | "lines") {
            // They read the field of every segment of the name, unless it is the one on which the map stands.
            let many = |arg: &ExprId| match self.code.op(*arg) {
                Op::Segment { scope, name, .. } => *scope != Scope::Near || Some(*name) != self.anchor,
                _ => false,
            };
            if args.iter().any(many) {
                return None;
            }
        }
        args.iter().try_for_each(|arg| self.expr(*arg, around))
    }

    fn node(&mut self, id: NodeId, around: Around) -> Option<()> {
        let node: &Node = self.code.node(id);
        let mut around = around;
        if let Some(each) = node.each {
            self.expr(each, around)?;
            around.item = Lies::Inside;
        }
        if let Some(when) = node.when {
            self.expr(when, around)?;
        }
        if let Recovery::Node(other) = node.on_error {
            self.node(other, around)?;
        }
        node.extension.iter().try_for_each(|extension| self.node(*extension, around))?;
        match &node.does {
            Action::Value { expr, .. } => {
                self.work += 1;
                self.expr(*expr, around)
            }
            Action::Coded { expr, table, .. } => {
                if matches!(table.table, Lookup::Given) && around.table == Lies::Outside {
                    return None;
                }
                self.work += 4;
                self.expr(*expr, around)
            }
            Action::Const(_) | Action::Absent(_) => Some(()),
            Action::Concept { code, display, .. } => {
                for piece in code {
                    if let Piece::Expr(expr) = piece {
                        self.expr(*expr, around)?;
                    }
                }
                display.map_or(Some(()), |display| self.expr(display, around))
            }
            Action::Object { fields, .. } => {
                fields.iter().try_for_each(|field| self.node(field.node, around))
            }
            Action::Call { map, from, with, table, set, .. } => {
                self.arguments(with, around)?;
                set.iter().try_for_each(|field| self.node(field.node, around))?;
                self.source(*from, around)?;
                self.map(*map, set, around.with_table(table.as_deref()))
            }
            Action::Ref { to: to @ (Target::Resource(_) | Target::Owner), filter: None } => {
                self.add(Read::Ref(to.clone()));
                Some(())
            }
            // Longer lists are new each time.
            Action::Refs { to: to @ Target::Resource(_), filter: None, max: 1 } => {
                self.add(Read::Ref(to.clone()));
                Some(())
            }
            Action::Make { make, from } => self.make(&self.code.makes[*make as usize], *from, around),
            Action::Ref { .. } | Action::Refs { .. } => None,
            Action::First(nodes) | Action::All(nodes) => {
                nodes.iter().try_for_each(|node| self.node(*node, around))
            }
            Action::Switch { on, cases, otherwise } => {
                self.expr(*on, around)?;
                let nodes = cases.iter().map(|(_, node)| node).chain(otherwise);
                nodes.into_iter().try_for_each(|node| self.node(*node, around))
            }
            Action::Extension { value, nested, .. } => {
                value.iter().chain(nested).try_for_each(|node| self.node(*node, around))
            }
        }
    }
}
