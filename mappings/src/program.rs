//! A compiled catalog: flat lists of expressions, nodes and slots that refer to each other by number.
//!
//! Invariant: nothing here is looked up by name while a message is mapped, and what is referred to exists.

use crate::json::Primitive;
use crate::language::ast::{Form, OnExisting, Otherwise, Policy};
use crate::resource::Existing;
use crate::run::Memo;
use crate::table::Table;
use schemas::hl7v2::definitions::Version;
use schemas::hl7v2::path::SegmentName;
use schemas::issue::Severity;
use schemas::records::{ShapeId, Shapes};
use schemas::yaml::Place;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};

/// An expression, by its place in [`Code::exprs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ExprId(pub(crate) u32);

/// A node, by its place in [`Code::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(pub(crate) u32);

/// Everything that the programs of a catalog share.
#[derive(Debug, Default)]
pub(crate) struct Code {
    pub(crate) exprs: Vec<Op>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) maps: Vec<TypeMap>,
    pub(crate) makes: Vec<Make>,
    pub(crate) tables: Vec<Table>,
    /// The tables of senders: `sender/name`.
    pub(crate) sender_tables: std::collections::HashMap<String, u32>,
    /// The codes that every element takes into which a table is written as a bare code, by table.
    pub(crate) bound: std::collections::HashMap<u32, Vec<&'static str>>,
    /// The names of the files in which the rules stand.
    pub(crate) files: Vec<Box<str>>,
    /// How many slots and made resources are remembered: the next [`Remember::id`].
    pub(crate) remembered: u32,
    /// What was written before, for as many threads as ever mapped at a time.
    pub(crate) memos: Mutex<Vec<Memo>>,
}

/// What an expression does.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// A field of a segment in scope, or the segment itself (`field` 0).
    Segment {
        scope: Scope,
        name: SegmentName,
        field: u16,
        pick: Pick,
        steps: [u16; 2],
    },
    /// A record, or a value of one (`field` above 0).
    Record {
        /// Whether it begins at the current item, else at the nearest record of that name.
        item: bool,
        name: SegmentName,
        down: Box<[Down]>,
        field: u16,
        pick: Pick,
        /// Whether the value is `true` or `false`.
        boolean: bool,
    },
    /// A part of the element on which the map was called, of the current item or of a chain's level.
    Part {
        base: Base,
        steps: [u16; 2],
    },
    With(u16),
    Option {
        name: Box<str>,
        default: Box<str>,
    },
    SenderName,
    SenderSystem,
    ReceivedAt,
    MessageId,
    /// The same, as short as the number of a message may be.
    ControlId,
    Party(Party),
    /// The whole message.
    MessageText,
    /// The mapping and its version.
    MappingName,
    /// What the wire said beside the message, by its name.
    Wire(Box<str>),
    LevelKind,
    LevelId,
    Text(Box<str>),
    Number(i64),
    Call {
        function: usize,
        args: Box<[ExprId]>,
    },
    Not(ExprId),
    And(ExprId, ExprId),
    Or(ExprId, ExprId),
    Compare(crate::language::expression::Comparison, ExprId, ExprId),
    In {
        negated: bool,
        item: ExprId,
        list: Box<[ExprId]>,
    },
    /// Whether a text is one of these words, which are trimmed and not empty; the usual case of a comparison and of `in`.
    OneOf {
        negated: bool,
        item: ExprId,
        words: Box<[Box<str>]>,
    },
    Coalesce(ExprId, ExprId),
}

/// One of those between whom a message goes that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Party {
    SendingApplication,
    SendingFacility,
    ReceivingApplication,
    ReceivingFacility,
}

/// Where a segment is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// The anchor if it has the name, else the group instance and outwards.
    Near,
    /// The nearest group of that name around.
    Group(Box<str>),
    /// The current item: an instance of a resource, or a segment.
    Item,
}

/// One step from a record to those in one of its members.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Down {
    pub(crate) member: &'static str,
    /// Of a reference: the resource to which it leads, if that is of this type.
    pub(crate) target: Option<SegmentName>,
    pub(crate) pick: Pick,
}

/// Which repetitions of a field are meant.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pick {
    /// All; where one value is wanted, the first.
    All,
    Number(u16),
    /// The one whose number an expression says.
    Nth(ExprId),
    Where(ExprId),
}

/// What a relative path begins at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Base {
    Map,
    Item,
    Level,
}

/// One rule, compiled.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) when: Option<ExprId>,
    /// Whether the condition is about the current item; otherwise it is asked once, before the items are looked for.
    pub(crate) when_item: bool,
    /// Repeats over the repetitions of a path, or over segments.
    pub(crate) each: Option<ExprId>,
    pub(crate) does: Action,
    pub(crate) on_error: Recovery,
    pub(crate) report: Option<Severity>,
    /// The rule's name for issues, such as `pid_patient/birthDate`.
    pub(crate) rule: Arc<str>,
    /// Where the rule stands.
    pub(crate) at: At,
    /// Extensions beside a primitive, or in a reference.
    pub(crate) extension: Vec<NodeId>,
    /// The type's suffix in the name of a choice element, such as `Quantity`; empty elsewhere.
    pub(crate) suffix: &'static str,
    /// The parts of the element on which its map was called, a bit each, of which at least one must be there for anything to
    /// be written; 0 where that cannot be said.
    pub(crate) needs: Parts,
}

impl Node {
    /// Whether its extensions stand in the reference that it writes.
    pub(crate) fn extends_reference(&self) -> bool {
        !self.extension.is_empty() && matches!(self.does, Action::Make { .. } | Action::Ref { .. })
    }
}

/// A place in a file of the mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct At {
    /// Its place in [`Code::files`].
    pub(crate) file: u16,
    pub(crate) place: Place,
}

/// Parts of an element: bit 1 is the first, and the highest one stands for all that follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Parts(pub(crate) u64);

impl Parts {
    /// The part with a number.
    pub(crate) fn one(number: u32) -> Parts {
        Parts(1 << number.min(63))
    }

    /// The parts from one number to another, both included.
    pub(crate) fn range(first: u16, last: u16) -> Parts {
        let (first, last) = (u32::from(first).min(63), u32::from(last).min(63));
        Parts(u64::MAX >> (63 - last) & u64::MAX << first)
    }

    /// Both.
    pub(crate) fn and(self, other: Parts) -> Parts {
        Parts(self.0 | other.0)
    }

    /// Whether some are named, and none of them is among others.
    pub(crate) fn lack(self, others: Parts) -> bool {
        self.0 != 0 && self.0 & others.0 == 0
    }
}

/// What becomes of a value that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Recovery {
    /// What the rule around it says; nobody says anything: the element is left out.
    Outer,
    Policy(Policy),
    Node(NodeId),
}

/// What a node writes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Value {
        expr: ExprId,
        kind: Primitive,
    },
    Coded {
        expr: ExprId,
        table: Box<TableUse>,
        form: CodeForm,
    },
    /// JSON text, ready.
    Const(Box<str>),
    /// The extension that says why there is no value.
    Absent(Box<str>),
    Concept {
        system: Box<str>,
        code: Vec<Piece>,
        display: Option<ExprId>,
        form: CodeForm,
    },
    Object {
        fields: Vec<Field>,
        constant: bool,
    },
    Call {
        map: u32,
        from: Option<ExprId>,
        with: Vec<(u16, Argument)>,
        table: Option<Box<TableUse>>,
        set: Vec<Field>,
        /// Whether the elements that the map writes, but for those of `set`, may be taken again for the same values.
        remember: Option<Box<Remember>>,
    },
    Make {
        make: u32,
        from: Option<ExprId>,
    },
    First(Vec<NodeId>),
    All(Vec<NodeId>),
    Switch {
        on: ExprId,
        cases: Vec<(Vec<Box<str>>, NodeId)>,
        otherwise: Option<NodeId>,
    },
    Ref {
        to: Target,
        filter: Option<ExprId>,
    },
    Refs {
        to: Target,
        filter: Option<ExprId>,
        max: u32,
    },
    /// `{"url": .., "valueX": ..}`, or with nested extensions.
    Extension {
        url: Box<str>,
        value: Option<NodeId>,
        nested: Vec<NodeId>,
    },
}

/// What a reference means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// A name that [`MappingCode::refs`] turns into an entry of `resources:`.
    Resource(u16),
    /// Every resource of the message.
    All,
    /// Every resource of the message but these.
    Others(Box<[u16]>),
    /// The resource for which this one is made.
    Owner,
}

/// A piece of a code with `{..}` in it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Piece {
    Text(Box<str>),
    Expr(ExprId),
}

/// How a code is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CodeForm {
    /// The code alone, of a table's target only.
    Code,
    Coding,
    Concept,
    /// Text of a string or uri element.
    Plain(Primitive),
}

/// Which table translates, and what to do where it does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TableUse {
    pub(crate) table: Lookup,
    /// For codes that the table does not know.
    pub(crate) unmapped: CodeRule,
    /// For codes of which the table says that they have no target.
    pub(crate) unmatched: CodeRule,
}

/// Which table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lookup {
    Table(u32),
    /// The caller's.
    Given,
    /// The sender's own, by name.
    Sender(Box<str>),
}

/// What to do with a code that is not translated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CodeRule {
    pub(crate) set: Option<Box<str>>,
    pub(crate) keep: bool,
    pub(crate) policy: Policy,
    pub(crate) issue: Option<Severity>,
}

/// What is handed to a map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Argument {
    Text(Box<str>),
    Expr(ExprId),
}

/// One element of an object.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Field {
    /// `"system":`, for a choice element `"value`.
    pub(crate) key: Box<str>,
    /// The name alone.
    pub(crate) name: Box<str>,
    pub(crate) many: bool,
    pub(crate) choice: bool,
    /// Without it the object is not valid.
    pub(crate) required: bool,
    pub(crate) node: NodeId,
    /// Whether what was written of the same values may be written again.
    pub(crate) remember: Option<Box<Remember>>,
}

/// A value map.
#[derive(Debug, Default)]
pub(crate) struct TypeMap {
    /// The record on which it stands; `None` for an element.
    pub(crate) record: Option<SegmentName>,
    pub(crate) body: MapBody,
    /// Whether it writes the same whatever it is called on.
    pub(crate) constant: bool,
    pub(crate) ignore: Vec<IgnoreRule>,
}

/// What a value map writes.
#[derive(Debug, Default)]
pub(crate) enum MapBody {
    #[default]
    Empty,
    Object(Vec<Field>),
    Node(NodeId),
}

/// Leaves that are left out on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IgnoreRule {
    /// `None` means relative to the element of the map.
    pub(crate) segment: Option<SegmentName>,
    /// Field for a segment path; component for a relative one. Both ends are included.
    pub(crate) first: u16,
    pub(crate) last: u16,
    /// What follows, component and subcomponent; 0 stands for all.
    pub(crate) steps: [u16; 2],
    /// Why.
    pub(crate) reason: Arc<str>,
}

/// A made resource.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Make {
    pub(crate) kind: &'static str,
    /// The record on which its map stands; `None` for an element.
    pub(crate) record: Option<SegmentName>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) identity: IdentityRule,
    pub(crate) display: Option<ExprId>,
    pub(crate) chain: Vec<ChainLevel>,
    pub(crate) with: Vec<(u16, Argument)>,
    pub(crate) ignore: Vec<IgnoreRule>,
    pub(crate) existing: Existing,
    /// Whether the identity is written where the resource is made, not in the map.
    pub(crate) outer_identity: bool,
    /// Whether what it made from the same values may be taken again.
    pub(crate) remember: Option<Box<Remember>>,
}

/// One level of a chain.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct ChainLevel {
    pub(crate) id: Box<str>,
    pub(crate) kind: Box<str>,
    pub(crate) from: ExprId,
}

/// One slot: a part of a resource that is written and emptied as a whole.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    /// Stable: `pid_patient/telecom/home`.
    pub(crate) name: &'static str,
    pub(crate) path: SlotPath,
    pub(crate) order: u32,
    pub(crate) guards: Vec<ExprId>,
    pub(crate) node: NodeId,
    /// When it is emptied, whatever the message says of it.
    pub(crate) clear: Option<ExprId>,
    /// The fields whose `""` empties the slot, and whose value replaces it.
    pub(crate) sources: Vec<ExprId>,
    /// Whether nothing is written where nothing stands in the sources.
    pub(crate) idle: bool,
    /// If so, the sources as fields of the segment on which the map stands, a bit each; 0 if they are not all that.
    pub(crate) fields: u128,
    pub(crate) existing: Option<OnExisting>,
    /// Whether it is written where the resource is made, not in the map.
    pub(crate) outer: bool,
    /// Whether, in a chain, it is about the finest level alone: what the others say there stays as it is.
    pub(crate) finest: bool,
    /// Whether what it wrote for the same values may be written again.
    pub(crate) remember: Option<Box<Remember>>,
    /// When it writes no value, whatever stands in what it carries over, if that can be told from less.
    pub(crate) refusal: Option<Box<Refusal>>,
}

/// When a slot writes no value: what it says then follows from its conditions, and from whether something stands in its sources.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Refusal {
    /// Each of them must hold for a value to be written. None of them reads what the slot carries over.
    pub(crate) unless: Vec<ExprId>,
    /// What the slot says if one of them does not.
    pub(crate) remember: Remember,
}

/// Some of the first slots of a list, a bit each, that are remembered together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    /// With what they write.
    pub(crate) whole: u128,
    /// With their refusal alone: one that does not refuse is written by itself.
    pub(crate) refusing: u128,
}

impl Members {
    /// How many slots can be members.
    pub(crate) const MAX: usize = u128::BITS as usize;

    /// Whether the slot of this number is among them.
    pub(crate) fn has(self, index: u32) -> bool {
        index < u128::BITS && (self.whole | self.refusing) >> index & 1 == 1
    }

    /// Whether it is with its refusal alone.
    pub(crate) fn refuses(self, index: u32) -> bool {
        index < u128::BITS && self.refusing >> index & 1 == 1
    }

    /// How many they are.
    pub(crate) fn count(self) -> u32 {
        (self.whole | self.refusing).count_ones()
    }

    /// What the slot of this number reads as a member.
    pub(crate) fn reads(self, index: u32, slot: &Slot) -> Option<&Reads> {
        match self.refuses(index) {
            true => slot.refusal.as_ref().map(|refusal| &refusal.remember.reads),
            false => slot.remember.as_ref().map(|remember| &remember.reads),
        }
    }
}

/// What a slot or a made resource reads of the message, where that is a closed list: the same values there give the same result.
#[derive(Debug)]
pub(crate) struct Remember {
    /// Which it is, among all of the catalog that are remembered.
    pub(crate) id: u32,
    /// Whether resources are made for it, which is much more work than to write a value.
    pub(crate) makes: bool,
    pub(crate) reads: Reads,
}

/// Two that read the same are equal, under whichever number results are kept.
impl PartialEq for Remember {
    fn eq(&self, other: &Remember) -> bool {
        (self.makes, &self.reads) == (other.makes, &other.reads)
    }
}

impl Eq for Remember {}

impl Hash for Remember {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.makes, &self.reads).hash(state);
    }
}

/// Places that are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Reads {
    /// The segment on which the map stands; `None` if nothing of it is read.
    pub(crate) anchor: Option<SegmentName>,
    /// Its fields that are read with all their repetitions, a bit each.
    pub(crate) fields: u128,
    /// Those of which it is read whether they are absent, null or valued.
    pub(crate) presences: u128,
    /// What else is read.
    pub(crate) others: Vec<Read>,
}

impl Reads {
    /// Adds what is read of the segment on which the map stands by its field, all else as it is.
    pub(crate) fn new(anchor: Option<SegmentName>, reads: Vec<Read>) -> Reads {
        let mut all = Reads::default();
        for read in reads {
            let own = |scope: &Scope, name: &SegmentName, field: u16| {
                *scope == Scope::Near && Some(*name) == anchor && u32::from(field) < u128::BITS - 1
            };
            match &read {
                Read::Field { scope, name, field } if own(scope, name, *field) => all.fields |= 1 << field,
                Read::Presence { scope, name, field, steps: [0, 0] } if own(scope, name, *field) => {
                    all.presences |= 1 << field;
                }
                _ => {
                    all.others.push(read);
                    continue;
                }
            }
            all.anchor = anchor;
        }
        all.presences &= !all.fields;
        all
    }

    /// Adds other reads, which stand on the same segment.
    pub(crate) fn add(&mut self, other: &Reads) {
        self.anchor = self.anchor.or(other.anchor);
        self.fields |= other.fields;
        self.presences = (self.presences | other.presences) & !self.fields;
        for read in &other.others {
            if !self.others.contains(read) {
                self.others.push(read.clone());
            }
        }
    }

    /// Whether all that others carry over is read here, too.
    pub(crate) fn carry(&self, other: &Reads) -> bool {
        let carries = |read: &&Read| matches!(read, Read::Field { .. });
        other.fields & !self.fields == 0
            && other.others.iter().filter(carries).all(|read| self.others.contains(read))
    }
}

/// One place that is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Read {
    /// A field with all its repetitions.
    Field { scope: Scope, name: SegmentName, field: u16 },
    /// Whether a field, or a part of it, is absent, null or valued.
    Presence { scope: Scope, name: SegmentName, field: u16, steps: [u16; 2] },
    /// How many repetitions of a field are valued.
    Count { scope: Scope, name: SegmentName, field: u16 },
    /// What the caller of the map gave.
    With(u16),
    /// A part of the element on which the map was called; 0 stands for all of it.
    Part(u16),
    /// Whether such a part is absent, null or valued.
    PartPresence(u16),
    /// The current item.
    Item,
    /// The level of a chain.
    Level,
    /// The resource that a reference leads to.
    Ref(Target),
    /// The trigger event.
    Trigger,
    /// MSH-9.1.
    MessageCode,
    /// MSH-12.1.
    Version,
}

/// Where a slot stands in the resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SlotPath {
    /// `telecom`, `period.start`; of a choice element without its type.
    pub(crate) text: &'static str,
    pub(crate) many: bool,
    pub(crate) choice: bool,
    /// Of a choice: the path of each of its types.
    pub(crate) types: Vec<(&'static str, &'static str)>,
    /// Where extensions beside a primitive go: `_birthDate.extension`.
    pub(crate) beside: &'static str,
}

/// How an instance is recognised.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct IdentityRule {
    pub(crate) keys: Vec<Key>,
    pub(crate) otherwise: Otherwise,
}

/// One source of keys.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) each: Option<ExprId>,
    pub(crate) system: Option<ExprId>,
    pub(crate) value: Vec<ExprId>,
    /// The entry of `resources:` under which the key is counted.
    pub(crate) of: Option<u16>,
    pub(crate) when: Option<ExprId>,
    /// Counts only where no earlier key was found.
    pub(crate) fallback: bool,
    /// Whether the value counts earlier siblings.
    pub(crate) ordinal: bool,
    /// Whether system and value are those of a map that stands on the item.
    pub(crate) by_map: bool,
}

/// One compiled mapping.
#[derive(Debug)]
pub(crate) struct MappingCode {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The documents that it takes; `None` for HL7 v2.
    pub(crate) records: Option<RecordsCode>,
    /// The segments that it writes; `None` for one that writes resources.
    pub(crate) writes: Option<Vec<EntryCode>>,
    pub(crate) structures: Vec<String>,
    pub(crate) code: String,
    pub(crate) events: Vec<String>,
    pub(crate) versions: VersionRange,
    pub(crate) resources: Vec<ResourceCode>,
    /// What is said of the Bundle itself.
    pub(crate) bundle: Vec<Slot>,
    pub(crate) effects: Vec<EffectCode>,
    pub(crate) checks: Vec<CheckCode>,
    pub(crate) ignore: Vec<IgnoreRule>,
    /// What each name that references use means here.
    pub(crate) refs: Vec<Option<usize>>,
}

/// One entry of `segments:`.
#[derive(Debug)]
pub(crate) struct EntryCode {
    /// The segment and what is written into it.
    pub(crate) segment: Option<(SegmentName, NodeId)>,
    pub(crate) from: Option<ExprId>,
    /// Whether it is written for each record, else for the first.
    pub(crate) many: bool,
    pub(crate) when: Option<ExprId>,
    pub(crate) inner: Vec<EntryCode>,
}

/// Which documents of records a mapping takes.
#[derive(Clone, Debug)]
pub(crate) struct RecordsCode {
    pub(crate) shapes: Arc<Shapes>,
    /// What the document is.
    pub(crate) root: ShapeId,
    pub(crate) form: Form,
}

/// Versions from and to, both included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VersionRange {
    pub(crate) from: Version,
    pub(crate) to: Version,
}

impl VersionRange {
    pub(crate) const ALL: VersionRange = VersionRange { from: Version::V2_1, to: Version::V2_8_2 };

    pub(crate) fn contains(&self, version: Version) -> bool {
        self.from <= version && version <= self.to
    }
}

/// One entry of `resources:`.
#[derive(Debug)]
pub(crate) struct ResourceCode {
    pub(crate) id: Box<str>,
    pub(crate) kind: &'static str,
    /// The path of the group from the message; empty for the message itself.
    pub(crate) groups: Box<str>,
    /// The segment in the innermost group, if the instances are segments.
    pub(crate) segment: Option<SegmentName>,
    pub(crate) when: Option<ExprId>,
    pub(crate) existing: OnExisting,
    pub(crate) identity: IdentityRule,
    pub(crate) parts: Vec<PartCode>,
    pub(crate) set: Arc<[Slot]>,
    /// Which slots of `set` are remembered together, and what they read.
    pub(crate) together: Option<(Members, Remember)>,
}

/// One entry of `parts:`.
#[derive(Debug)]
pub(crate) struct PartCode {
    /// Under which results of several of its slots together are remembered, as [`Remember::id`].
    pub(crate) id: u32,
    /// The path of the group from the resource's own.
    pub(crate) groups: Box<str>,
    pub(crate) segment: SegmentName,
    pub(crate) when: Option<ExprId>,
    pub(crate) with: Vec<(u16, Argument)>,
    pub(crate) slots: Arc<[Slot]>,
    pub(crate) ignore: Arc<Vec<IgnoreRule>>,
}

/// One entry of `effects:`, by the places of the resources.
#[derive(Debug)]
pub(crate) struct EffectCode {
    /// Of a `move:`, what moves.
    pub(crate) what: Option<usize>,
    pub(crate) from: usize,
    pub(crate) into: usize,
    pub(crate) when: Option<ExprId>,
}

/// One entry of `checks:`.
#[derive(Debug)]
pub(crate) struct CheckCode {
    pub(crate) rule: Box<str>,
    pub(crate) when: ExprId,
    pub(crate) issue: Severity,
    pub(crate) text: Box<str>,
    pub(crate) quarantine: bool,
}

impl Code {
    pub(crate) fn op(&self, id: ExprId) -> &Op {
        &self.exprs[id.0 as usize]
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }
}
