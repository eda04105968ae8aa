//! Runs a program over one message, or over one document of records: to all that is in here, a record is a segment.
//!
//! Invariant: the result is a function of the message, the program and the context; work is bounded by [`FUEL`]; a value of the
//! message appears in the result's values only, never in an issue.

mod codes;
mod coverage;
mod evaluate;
mod instances;
mod made;
mod memo;
mod segments;
mod slots;
mod trace;
mod write;

pub(crate) use coverage::State;
pub(crate) use memo::Memo;
#[cfg(test)]
pub(crate) use trace::leaf_paths;
pub(crate) use trace::{Trace, shift};

use crate::given::Given;
use crate::program::{Code, ExprId, IgnoreRule, MappingCode, Parts, TableUse};
use crate::resource::{Contributed, Contribution, Fragment, SlotWrite, Stamp, Write};
use foldhash::fast::RandomState;
use schemas::hl7v2::definitions::NodeId;
use schemas::hl7v2::grammar::{Groups, InstanceId};
use schemas::hl7v2::time::{Ts, Zone};
use schemas::hl7v2::{Element, Header, Leaf, Level, Message, SegmentName};
use schemas::issue::{Issue, Severity};
use schemas::records::Records;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// What a mapping may know beside the message. Kept with the message, so that mapping it again gives the same bytes.
#[derive(Clone, Debug)]
pub struct Context<'c> {
    /// The message.
    pub message_id: Uuid,
    /// When it was received.
    pub received_at: jiff::Timestamp,
    /// Its place in the order of the store.
    pub seq: i64,
    /// Who sent it, as the configuration names the source.
    pub sender: Arc<str>,
    /// To whom identifiers without a registered assigner belong: senders with the same one share their patients. Mostly the
    /// sender itself.
    pub authority: Arc<str>,
    /// The zone of times without an offset, where MSH-7 has none.
    pub zone: Zone,
    /// The installation's secret namespace of ids.
    pub namespace: Uuid,
    /// The sender's registry of assigning authorities and coding systems: name and URI.
    pub systems: &'c [(String, String)],
    /// The sender's options: `map.option` and its choice.
    pub options: &'c [(String, String)],
    /// What the wire said beside the message, by name, such as a level of its topic.
    pub wire: &'c [(String, String)],
    /// What people have said of single codes.
    pub codes: Option<&'c crate::SiteCodes>,
    /// Between whom a message goes that is written.
    pub parties: Parties,
}

/// Who sends a message to whom: MSH-3 to MSH-6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parties {
    /// MSH-3; `PONS` if it is not said.
    pub sending_application: Option<String>,
    /// MSH-4
    pub sending_facility: Option<String>,
    /// MSH-5
    pub receiving_application: Option<String>,
    /// MSH-6
    pub receiving_facility: Option<String>,
}

/// What a message says, once it is mapped.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// What it says about each resource, in the order of the mapping and of the message.
    pub contributions: Vec<Contributed>,
    /// What it says about the Bundle: its members as JSON text, without a comma at either end.
    pub bundle: String,
    /// Of a mapping that writes HL7 v2, the segments in their order.
    pub segments: Vec<WrittenSegment>,
    /// What is to be done beside writing resources.
    pub effects: Vec<Effect>,
    /// What could not be taken as it stood. Unmapped fields are among them (`unmapped-field`).
    pub issues: Vec<Issue>,
    /// When the message says it was said.
    pub stamp: Stamp,
    /// The codes that no table translates, for the queue of unmapped codes.
    pub unmapped_codes: Vec<UnmappedCode>,
}

/// A segment that a mapping writes: its name, and its fields as JSON text, `{"PID-3":[{"CX.1":"..."}]}`.
#[derive(Clone)]
pub struct WrittenSegment {
    pub(crate) name: SegmentName,
    pub(crate) fields: String,
}

/// Shows the name; the fields are a patient's.
impl fmt::Debug for WrittenSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrittenSegment").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An act of the store that a mapping asks for. The ids are those of the contributions; a known alias wins over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Everything that is known of `from` is of `into` from now on.
    Merge {
        /// Who is no longer used.
        from: Uuid,
        /// Who remains.
        into: Uuid,
    },
    /// What was recorded for one patient is another's, and so is all that was recorded with it.
    Move {
        /// The visit or the account.
        what: Uuid,
        /// Whose it was.
        from: Uuid,
        /// Whose it is.
        into: Uuid,
    },
}

/// A code that a table does not translate.
#[derive(Clone, PartialEq, Eq)]
pub struct UnmappedCode {
    /// The table.
    pub table: String,
    /// The code as it was sent.
    pub code: String,
    /// Where it stands.
    pub path: String,
}

/// Shows the table and the place; the code is a patient's.
impl fmt::Debug for UnmappedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnmappedCode")
            .field("table", &self.table)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// A message that cannot be mapped and waits for a person.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// Why; without a value of the message.
    pub reason: String,
    /// What was found until then.
    pub issues: Vec<Issue>,
    /// The codes that no table translates, as far as they were met.
    pub unmapped_codes: Vec<UnmappedCode>,
}

/// The steps that one message may take. A node or an item of a list is one step; 10,000 OBX take some two million.
const FUEL: u64 = 50_000_000;

/// Why a part of the work ends early.
pub(crate) enum Halt {
    /// The message goes to quarantine.
    Quarantine(String),
    /// The resource is left out.
    LeaveOut,
    /// A value cannot be read, and a rule around this one says what to do.
    Unreadable,
}

/// A value while an expression is evaluated.
#[derive(Clone, Debug)]
pub(crate) enum Val<'r> {
    Absent,
    /// HL7's `""`.
    Null,
    /// Something stands there that is not of the kind that was expected.
    Unreadable(Cow<'static, str>),
    Element(Element),
    Segment,
    Text(Cow<'r, str>),
    Integer(i64),
    Bool(bool),
}

/// The current item of an `each`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Item {
    None,
    Element(Element),
    Segment(u32),
    /// An instance of `resources:`, in the `where` of a reference.
    Instance(usize),
}

/// What a rule sees.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'r, 'c> {
    /// The group instance around it.
    pub(crate) group: InstanceId,
    /// The segment on which its map stands.
    pub(crate) anchor: Option<u32>,
    /// The element on which its type map was called.
    pub(crate) base: Element,
    /// Which of its parts are there.
    pub(crate) parts: Parts,
    pub(crate) item: Item,
    pub(crate) call: Option<&'c Call<'r, 'c>>,
    pub(crate) level: Option<&'c ChainState<'r>>,
    /// The resource that is being written, an index of [`Run::entries`].
    pub(crate) owner: Option<usize>,
    /// Which of the items it is, from 1.
    pub(crate) nth: u32,
    /// The records around the item, where it was reached through others.
    pub(crate) outer: Option<&'c Outer<'c>>,
}

/// A record around another.
#[derive(Clone, Copy)]
pub(crate) struct Outer<'c> {
    record: u32,
    outer: Option<&'c Outer<'c>>,
}

impl<'c> Frame<'_, 'c> {
    /// The current item as a record around further ones.
    fn as_outer(&self) -> Option<Outer<'c>> {
        match self.item {
            Item::Segment(record) => Some(Outer { record, outer: self.outer }),
            _ => None,
        }
    }
}

/// What the caller of a map gave.
pub(crate) struct Call<'r, 'c> {
    pub(crate) with: Vec<(u16, Val<'r>)>,
    pub(crate) table: Option<&'r TableUse>,
    /// The call around this one, for a table that is handed on.
    pub(crate) outer: Option<&'c Call<'r, 'c>>,
}

impl<'r> Call<'r, '_> {
    /// What it gives for a parameter.
    pub(crate) fn given(&self, param: u16) -> Option<&Val<'r>> {
        self.with.iter().find(|(known, _)| *known == param).map(|(_, value)| value)
    }
}

/// One level of a chain.
pub(crate) struct ChainState<'r> {
    pub(crate) id: &'r str,
    pub(crate) kind: &'r str,
    pub(crate) element: Element,
    /// The values of this level and of the coarser ones.
    pub(crate) key: String,
    pub(crate) finest: bool,
}

/// One instance of an entry of `resources:`.
struct Instance {
    def: usize,
    group: InstanceId,
    anchor: Option<u32>,
    id: Uuid,
    aliases: Vec<(String, String)>,
    within: Option<Uuid>,
    /// Its resource was left out; references to it are, too.
    left_out: bool,
}

/// The state of one run.
pub(crate) struct Run<'r> {
    code: &'r Code,
    mapping: &'r MappingCode,
    message: &'r Message<'r>,
    groups: &'r Groups,
    /// The document, if it is no HL7 v2.
    document: Option<Document<'r>>,
    header: Option<Header<'r>>,
    /// Where each field of each segment begins among the leaves, and one more.
    fields: Vec<u32>,
    /// Where the fields of a segment begin in `fields`.
    fields_of: Vec<u32>,
    /// The fields of each segment that are there, a bit each; the highest one stands for all that follow.
    present: Vec<u128>,
    /// The bits of the names of all segments: what most rules ask for is not there.
    names: u64,
    context: &'r Context<'r>,
    zone: Zone,
    trigger: Cow<'r, str>,
    /// The resources that are being written.
    entries: Vec<Contributed>,
    /// By id, from which the type follows: it is part of what the id is computed from.
    entry_of: HashMap<Uuid, usize, RandomState>,
    instances: Vec<Instance>,
    /// For each entry of `resources:`, its instances by the groups in which they lie.
    around: Vec<Vec<SmallVec<[usize; 1]>>>,
    /// For each entry of `resources:`, the group in which it stands.
    places: Arc<[Option<NodeId>]>,
    ordinals: HashMap<(InstanceId, String), u32, RandomState>,
    /// The records to which paths from the document lead.
    led_to: HashMap<ExprId, HashSet<u32>>,
    issues: Vec<Issue>,
    unmapped_codes: Vec<UnmappedCode>,
    effects: Vec<Effect>,
    /// What is said about the Bundle.
    bundle: Vec<SlotWrite>,
    /// The segments on which maps stood, and what those maps ignore of them.
    ignored: Vec<(u32, &'r [IgnoreRule])>,
    /// What became of which leaves.
    marks: Vec<coverage::Mark>,
    /// Above 0 while conditions and keys are read, which carries nothing over.
    quiet: u32,
    /// The leaf that was read last, for the places of issues.
    last_leaf: Option<usize>,
    /// How many values were written, to tell an object that carries something from one of constants.
    carried: u64,
    /// Above 0 inside a rule that says what to do with unreadable values.
    guarded: u32,
    /// Whether a value of the current slot could not be read.
    failed: bool,
    /// The type that was written last into a choice element.
    suffix: &'static str,
    /// Extensions for the primitive that is being written, parted by commas.
    beside: String,
    /// The resources that were made for the slot that is being written, until they are put beside the others.
    made: Vec<Arc<Contribution>>,
    /// The buffers in which slots are written, used again and again.
    scratch: Vec<String>,
    fuel: u64,
    doubted: Vec<&'static str>,
    /// What was found to have two names, so that each is told once.
    two_names: HashSet<Uuid>,
    /// How many doubts there were, told or not.
    doubts: usize,
    memo: &'r mut Memo,
    /// Notes where everything comes from, if somebody asked.
    tracer: Option<Box<trace::Tracer>>,
    /// Which writing of a slot was the last one, by its notes.
    turn: u32,
}

/// Where everything of a message came from and went to.
#[derive(Debug, Default)]
pub(crate) struct Traced {
    /// What was said about the Bundle.
    pub(crate) bundle: Vec<SlotWrite>,
    pub(crate) traces: Vec<Trace>,
    /// What became of each leaf, and why where it is left out on purpose.
    pub(crate) states: Vec<(State, Option<Arc<str>>)>,
    /// The grammar's place of each segment: `ORU_R01.PATIENT_RESULT.PATIENT.PID`.
    pub(crate) places: Vec<String>,
}

/// A document of records, and its text.
#[derive(Clone, Copy)]
struct Document<'r> {
    records: &'r Records,
    text: &'r str,
}

/// Maps what is given. With `traced`, notes where everything comes from there.
pub(crate) fn run(
    code: &Code,
    mapping: &MappingCode,
    given: Given<'_>,
    context: &Context<'_>,
    memo: &mut Memo,
    traced: Option<&mut Traced>,
) -> Result<Mapped, Quarantined> {
    let index;
    let (message, document) = match given {
        Given::Message(message) => (message, None),
        Given::Records(records, text) => {
            index = records.index();
            (&index, Some(Document { records, text }))
        }
    };
    let own;
    let groups = match document {
        Some(document) => document.records.groups(),
        None => {
            let Some(structure) = schemas::hl7v2::grammar::structure_of(message) else {
                let reason = "the message structure is not known".to_owned();
                let issues = message.issues().to_vec();
                return Err(Quarantined { reason, issues, unmapped_codes: Vec::new() });
            };
            own = schemas::hl7v2::grammar::group(message, structure);
            &own
        }
    };
    let mut run = Run::new(code, mapping, (message, document), groups, context, memo);
    run.issues.extend(groups.issues().iter().cloned());
    run.issues.extend(document.iter().flat_map(|document| document.records.issues()).cloned());
    run.tracer = traced.is_some().then(Box::default);
    let mut segments = Vec::new();
    let done = match &mapping.writes {
        Some(entries) => run.write_message(entries, &mut segments),
        None => run.whole(),
    };
    match done.and_then(|()| run.step()) {
        Ok(()) => Ok(Mapped { segments, ..run.finish(traced) }),
        Err(Halt::Quarantine(reason)) => {
            Err(Quarantined { reason, issues: run.issues, unmapped_codes: run.unmapped_codes })
        }
        Err(Halt::LeaveOut | Halt::Unreadable) => Err(Quarantined {
            reason: "a part outside every resource cannot be read".to_owned(),
            issues: run.issues,
            unmapped_codes: run.unmapped_codes,
        }),
    }
}

impl<'r> Run<'r> {
    fn new(
        code: &'r Code,
        mapping: &'r MappingCode,
        (message, document): (&'r Message<'r>, Option<Document<'r>>),
        groups: &'r Groups,
        context: &'r Context<'r>,
        memo: &'r mut Memo,
    ) -> Run<'r> {
        let header = document.is_none().then(|| message.header());
        let trigger = header.as_ref().and_then(Header::trigger).filter(|trigger| !trigger.is_empty());
        let trigger = trigger.or_else(|| {
            let evn = message.find(SegmentName::of("EVN"))?;
            message.field(evn, 1).text(message)
        });
        let (fields, fields_of, present) = index_fields(message);
        let made_at = header.as_ref().and_then(Header::made_at);
        let zone = Zone::of_message(made_at.as_deref(), &context.zone);
        memo.begin(code, context, &zone, message.separators());
        let places = match document {
            None => memo.places(mapping, groups.structure()),
            // Each document has a structure of its own.
            Some(_) => instances::places(mapping, groups.structure()),
        };
        Run {
            code,
            mapping,
            message,
            groups,
            document,
            header,
            fields,
            fields_of,
            present,
            names: message.segments().iter().fold(0, |all, segment| all | segment.name().bit()),
            context,
            zone,
            trigger: trigger.unwrap_or_default(),
            entries: Vec::new(),
            entry_of: HashMap::default(),
            instances: Vec::new(),
            around: Vec::new(),
            places,
            ordinals: HashMap::default(),
            led_to: HashMap::new(),
            issues: Vec::new(),
            unmapped_codes: Vec::new(),
            effects: Vec::new(),
            bundle: Vec::new(),
            ignored: Vec::new(),
            marks: Vec::with_capacity(2 * message.leaves().len() + 64),
            quiet: 0,
            last_leaf: None,
            carried: 0,
            guarded: 0,
            failed: false,
            suffix: "",
            beside: String::new(),
            made: Vec::new(),
            scratch: Vec::new(),
            fuel: FUEL,
            doubted: Vec::new(),
            two_names: HashSet::new(),
            doubts: 0,
            memo,
            tracer: None,
            turn: 0,
        }
    }

    fn whole(&mut self) -> Result<(), Halt> {
        self.checks()?;
        self.find_instances()?;
        // A resource that is left out takes the references to it with it, so what refers to it is written again; each turn
        // leaves at least one more out.
        loop {
            let before = (self.issues.len(), self.unmapped_codes.len());
            let newly = self.write_instances()?;
            if newly.is_empty() {
                break;
            }
            self.issues.truncate(before.0);
            self.unmapped_codes.truncate(before.1);
            for (index, issue) in newly {
                self.instances[index].left_out = true;
                self.issues.push(issue);
            }
            for instance in &mut self.instances {
                if let Some(entry) = self.entry_of.get(&instance.id) {
                    instance.aliases.clone_from(&self.entries[*entry].aliases);
                }
            }
            self.entries.clear();
            self.entry_of.clear();
            self.made.clear();
            self.ignored.clear();
            self.marks.clear();
            self.doubted.clear();
            self.two_names.clear();
            self.untrace_all();
        }
        self.write_bundle()?;
        self.find_effects()
    }

    /// What the message says about its Bundle.
    fn write_bundle(&mut self) -> Result<(), Halt> {
        let mapping = self.mapping;
        if mapping.bundle.is_empty() {
            return Ok(());
        }
        self.trace_resource(Uuid::nil());
        self.uncause(0);
        let frame = Frame { anchor: Some(0), ..self.root_frame() };
        for slot in &mapping.bundle {
            self.write_of_bundle(&frame, slot)?;
        }
        Ok(())
    }

    fn checks(&mut self) -> Result<(), Halt> {
        let mapping = self.mapping;
        for check in &mapping.checks {
            let frame = self.root_frame();
            if self.holds(&frame, check.when) {
                let issue = Issue::new(check.issue, "check", "", &*check.text).by(&*check.rule);
                self.issues.push(issue);
                if check.quarantine {
                    return Err(Halt::Quarantine(check.text.to_string()));
                }
            }
        }
        Ok(())
    }

    fn root_frame(&self) -> Frame<'r, 'r> {
        Frame {
            group: InstanceId::ROOT,
            anchor: None,
            base: Element::absent(Level::Field),
            parts: Parts::default(),
            item: Item::None,
            call: None,
            level: None,
            owner: None,
            nth: 0,
            outer: None,
        }
    }

    fn step(&mut self) -> Result<(), Halt> {
        self.burn(1)
    }

    /// Takes as many steps at once.
    fn burn(&mut self, steps: usize) -> Result<(), Halt> {
        match self.fuel.checked_sub(steps as u64) {
            Some(fuel) => {
                self.fuel = fuel;
                Ok(())
            }
            None => Err(Halt::Quarantine("the message takes more steps to map than are allowed".to_owned())),
        }
    }

    fn finish(mut self, traced: Option<&mut Traced>) -> Mapped {
        let states = self.report_unmapped();
        if let (Some(traced), Some(tracer)) = (traced, self.tracer.take()) {
            *traced = self.traced_whole(*tracer, &states);
        }
        let mut bundle = String::new();
        crate::render::elements(fragments_of(&self.bundle), &mut bundle);
        let labels = crate::bundle::labels(&bundle);
        let labels = labels.map(|labels| serde_json::Value::Object(labels).to_string().into());
        let stamp = Stamp { labels, ..self.stamp() };
        Mapped {
            bundle,
            segments: Vec::new(),
            contributions: self.entries,
            effects: self.effects,
            issues: self.issues,
            stamp,
            unmapped_codes: self.unmapped_codes,
        }
    }

    /// The notes of the tracer with what they are about.
    fn traced_whole(&self, tracer: trace::Tracer, states: &[State]) -> Traced {
        let reason = |leaf: usize| {
            let about = |(leaves, _): &&(std::ops::Range<u32>, _)| leaves.contains(&(leaf as u32));
            tracer.ignored.iter().find(about).map(|(_, reason)| reason.clone())
        };
        let states = states
            .iter()
            .enumerate()
            .map(|(leaf, state)| (*state, if *state == State::Ignored { reason(leaf) } else { None }));
        let structure = self.groups.structure();
        let places = (0..self.message.segments().len()).map(|segment| {
            if let Some(document) = self.document {
                return document.records.place_of_record(segment);
            }
            let (instance, position) = self.groups.place(segment);
            let own = self.message.segments()[segment].name();
            let name = position.map_or(own.as_str(), |position| structure.node(position).name);
            let groups = structure.path(self.groups.group(instance));
            let parts = [structure.name, &groups, name];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
        });
        Traced {
            bundle: self.bundle.clone(),
            states: states.collect(),
            places: places.collect(),
            traces: tracer.traces,
        }
    }

    /// When the message says it was said: EVN-2, else MSH-7; and MSH-13. Its labels are the Bundle's.
    fn stamp(&self) -> Stamp {
        let moment = |element: Element| {
            let text = element.text(self.message)?;
            Some(Ts::parse(&text).ok()?.to_timestamp(&self.zone)?.as_microsecond())
        };
        if self.document.is_some() {
            return Stamp {
                sender: self.context.sender.clone(),
                at: None,
                number: None,
                seq: self.context.seq,
                labels: None,
            };
        }
        let evn = self.message.find(SegmentName::of("EVN"));
        let at = evn
            .and_then(|evn| moment(self.message.field(evn, 2)))
            .or_else(|| moment(self.message.field(0, 7)));
        let number = self.message.field(0, 13).text(self.message).and_then(|text| text.trim().parse().ok());
        Stamp { sender: self.context.sender.clone(), at, number, seq: self.context.seq, labels: None }
    }

    /// Whether a segment of a name may be in the message.
    fn may_hold(&self, name: SegmentName) -> bool {
        self.names & name.bit() != 0
    }

    /// A field of a segment with all its repetitions; what [`Message::field`] answers, without a search.
    fn field(&self, segment: u32, field: u16) -> Element {
        let (from, to) = (self.fields_of[segment as usize], self.fields_of[segment as usize + 1]);
        let at = from + u32::from(field);
        if field == 0 || at >= to {
            return Element::absent(Level::Field);
        }
        Element { first: self.fields[at as usize - 1], end: self.fields[at as usize], level: Level::Field }
    }

    /// Which parts of an element are there: what [`Element::part`] finds.
    fn parts(&self, element: Element) -> Parts {
        let leaves = element.leaves(self.message).iter();
        let part = |leaf: &Leaf| match element.level {
            Level::Field if leaf.repetition > 1 => Parts::default(),
            Level::Field | Level::Repetition => Parts::one(leaf.component),
            Level::Component => Parts::one(leaf.subcomponent.into()),
            Level::Subcomponent => Parts::one(1),
        };
        leaves.map(part).fold(Parts::default(), Parts::and)
    }

    fn issue(&mut self, severity: Severity, code: &str, path: String, rule: &str, text: impl Into<String>) {
        self.issues.push(Issue::new(severity, code, path, text).by(rule));
    }

    /// The path of the leaf that was read last.
    fn last_path(&self) -> String {
        self.last_leaf.map_or(String::new(), |leaf| self.path_of(leaf))
    }

    /// Where a leaf stands.
    fn path_of(&self, leaf: usize) -> String {
        match self.document {
            Some(document) => document.records.place_of(leaf),
            None => self.message.path_of(leaf).to_string(),
        }
    }

    /// Where a segment or a record stands.
    fn path_of_segment(&self, segment: u32) -> String {
        match self.document {
            Some(document) => document.records.place_of_record(segment as usize),
            None => self.message.segments()[segment as usize].path().to_string(),
        }
    }
}

/// What slots hold.
fn fragments_of(slots: &[SlotWrite]) -> impl Iterator<Item = &Fragment> {
    slots.iter().flat_map(|slot| match &slot.write {
        Write::Valued(fragments) => &**fragments,
        Write::Cleared => &[],
    })
}

/// Where each field begins: for each segment, the first leaf of field 1, of field 2, ..., and the end of the last. And which are there.
fn index_fields(message: &Message<'_>) -> (Vec<u32>, Vec<u32>, Vec<u128>) {
    let leaves = message.leaves();
    let mut fields = Vec::with_capacity(message.segments().len() * 24);
    let mut fields_of = Vec::with_capacity(message.segments().len() + 1);
    let mut all_present = Vec::with_capacity(message.segments().len());
    for segment in message.segments() {
        fields_of.push(fields.len() as u32);
        let range = segment.leaves();
        let mut field = 0;
        let mut present = 0;
        for (leaf, place) in leaves[range.clone()].iter().zip(range.start as u32..) {
            while field < leaf.field {
                fields.push(place);
                field += 1;
            }
            present |= 1 << leaf.field.min(127);
        }
        fields.push(range.end as u32);
        all_present.push(present);
    }
    fields_of.push(fields.len() as u32);
    (fields, fields_of, all_present)
}
