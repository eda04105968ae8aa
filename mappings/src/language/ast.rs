//! What a mapping file says, as a tree with places.

use super::expression::Expr;
use super::overlay::Overlay;
use schemas::issue::Severity;
use schemas::yaml::Place;
use std::sync::Arc;

/// A word with its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Word {
    pub(crate) place: Place,
    pub(crate) text: String,
}

/// An expression with its place and its text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Formula {
    pub(crate) place: Place,
    pub(crate) expr: Expr,
}

/// One document of a file.
#[derive(Debug)]
pub(crate) enum Document {
    /// `type_map:` or `segment_map:`
    Map(Box<Map>),
    /// `mapping:`
    Mapping(Box<Mapping>),
    /// `fragment:`
    Fragment(Box<Fragment>),
    /// `tests_for:` a map, a mapping or a fragment that stands elsewhere.
    Tests { of: Word, tests: Vec<Test> },
    /// `overlay:` what a sender's site changes.
    Overlay(Box<Overlay>),
    /// `z_segment:` a segment that HL7 does not know.
    Segment(Declared),
    /// `record:` what the objects of a JSON document or the lines of a CSV file hold.
    Record(RecordDef),
}

/// The shape of a record.
#[derive(Debug)]
pub(crate) struct RecordDef {
    pub(crate) name: Word,
    pub(crate) members: Vec<MemberDef>,
}

/// One member of a record.
#[derive(Debug)]
pub(crate) struct MemberDef {
    pub(crate) name: Word,
    /// What the document calls it, where that is no name of the language.
    pub(crate) written: Option<String>,
    /// `text`, `number`, `boolean`, or the name of another record.
    pub(crate) holds: Word,
    pub(crate) many: bool,
}

/// A segment of a site's own.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) name: Word,
    /// The data type of each field, from the first.
    pub(crate) types: Vec<Word>,
}

/// On what a map stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// `type_map:` a field or a part of one.
    Element,
    /// `segment_map:` a segment.
    Segment,
    /// `record_map:` a record.
    Record,
}

/// A map of a data type, of a segment or of a record.
#[derive(Debug)]
pub(crate) struct Map {
    pub(crate) name: Word,
    pub(crate) on: On,
    pub(crate) from: Word,
    pub(crate) answer: Answer,
    /// Outer groups that the map may name: alias and group.
    pub(crate) scope: Vec<(Word, Word)>,
    pub(crate) options: Vec<OptionDef>,
    pub(crate) params: Vec<Word>,
    pub(crate) rules: Body,
    pub(crate) identity: Option<Identity>,
    pub(crate) display: Option<Formula>,
    pub(crate) chain: Vec<Level>,
    pub(crate) ignore: Vec<Ignore>,
    pub(crate) tests: Vec<Test>,
}

/// What a map answers.
#[derive(Debug)]
pub(crate) enum Answer {
    /// `to:` a FHIR type, for a segment map a resource type to which it adds.
    To(Word),
    /// `makes:` a resource of its own.
    Makes(Word),
    /// `key:` an identity's key.
    Key(Box<KeyAnswer>),
}

/// What stands under `key:`.
#[derive(Debug)]
pub(crate) struct KeyAnswer {
    pub(crate) system: Option<Formula>,
    pub(crate) value: Formula,
}

/// `rules:` by element, or one rule at the top of a type map.
#[derive(Debug)]
pub(crate) enum Body {
    Elements(Vec<(Word, Rule)>),
    One(Box<Rule>),
}

/// One level of a `chain:`.
#[derive(Debug)]
pub(crate) struct Level {
    pub(crate) id: Word,
    pub(crate) from: Formula,
    pub(crate) kind: Option<Word>,
}

/// One named option with its choices.
#[derive(Debug)]
pub(crate) struct OptionDef {
    pub(crate) name: Word,
    pub(crate) choices: Vec<String>,
    pub(crate) default: String,
}

/// One rule: what is written into an element.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) place: Place,
    /// The overlay's file, if it comes from one.
    pub(crate) file: Option<Arc<str>>,
    pub(crate) id: Option<Word>,
    pub(crate) when: Option<Formula>,
    pub(crate) each: Option<Formula>,
    pub(crate) from: Option<Formula>,
    pub(crate) does: Does,
    pub(crate) set: Vec<(Word, Rule)>,
    pub(crate) with: Vec<(Word, Argument)>,
    pub(crate) map: Option<TableRef>,
    pub(crate) as_type: Option<Word>,
    pub(crate) display: Option<Formula>,
    pub(crate) url: Option<Word>,
    pub(crate) extension: Vec<Rule>,
    pub(crate) on_error: OnError,
    pub(crate) on_unmapped: Option<OnCode>,
    pub(crate) on_unmatched: Option<OnCode>,
    pub(crate) on_existing: Option<OnExisting>,
    /// When the slot is emptied, whatever the message says of it.
    pub(crate) clear: Option<Formula>,
    pub(crate) issue: Option<Severity>,
}

/// The producer of a rule.
#[derive(Debug)]
pub(crate) enum Does {
    Value(Formula),
    Const(Word),
    /// `absent:` why there is no value, by FHIR's data-absent-reason.
    Absent(Word),
    Concept(Word),
    Use(Word),
    Make {
        kind: Word,
        uses: Option<Word>,
        identity: Option<Box<Identity>>,
    },
    /// Only `set:`.
    Object,
    /// Only `url:` with nested `extension:`.
    Extension,
    First(Vec<Rule>),
    All(Vec<Rule>),
    Switch {
        on: Formula,
        cases: Vec<(Vec<String>, Rule)>,
        otherwise: Option<Box<Rule>>,
    },
    Ref {
        to: Word,
        filter: Option<Formula>,
    },
    Refs {
        to: Word,
        filter: Option<Formula>,
        /// Of all resources, those that are not meant.
        without: Vec<Word>,
        max: Option<u32>,
    },
}

/// What is handed to a map by `with:`.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    Text(Word),
    Formula(Formula),
}

/// Which table translates a code.
#[derive(Clone, Debug)]
pub(crate) enum TableRef {
    /// A table of `mappings/table/`.
    Named(Word),
    /// The table that the caller gave: `with.map`.
    Given,
    /// A table of the sender's own, if it has one.
    Sender(Word),
}

/// What to do when a value cannot be read.
#[derive(Debug)]
pub(crate) enum OnError {
    Default,
    Policy(Policy),
    /// Another rule in its place.
    Rule(Box<Rule>),
}

/// The error policy of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Policy {
    /// The resource is left out.
    Fail,
    /// The element is left out, with an issue.
    Omit,
    /// The element says that there is no value, by the data-absent-reason extension.
    DataAbsent,
    /// The message waits for a person.
    Quarantine,
}

/// What to do with a code that a table does not translate.
#[derive(Clone, Debug, Default)]
pub(crate) struct OnCode {
    pub(crate) set: Option<Word>,
    pub(crate) keep: bool,
    pub(crate) policy: Option<Policy>,
    pub(crate) issue: Option<Severity>,
}

/// How a contribution meets what is known already.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OnExisting {
    Always(crate::resource::Existing),
    ByTrigger { cases: Vec<(String, crate::resource::Existing)>, otherwise: crate::resource::Existing },
}

/// How an instance is recognised.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) keys: Vec<KeyRule>,
    pub(crate) uses: Option<Word>,
    pub(crate) otherwise: Otherwise,
}

/// What to do with an instance that yields no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Otherwise {
    Quarantine,
    Omit,
    Display,
    Message,
}

/// One entry of `identity.keys`.
#[derive(Debug)]
pub(crate) struct KeyRule {
    pub(crate) place: Place,
    pub(crate) each: Option<Formula>,
    pub(crate) uses: Option<Word>,
    pub(crate) value: Vec<Formula>,
    pub(crate) system: Option<Formula>,
    pub(crate) of: Option<Word>,
    /// Only if this holds.
    pub(crate) when: Option<Formula>,
    /// Counts only where no earlier key was found: what is good enough to tell two apart in need is no alias.
    pub(crate) fallback: bool,
}

/// Fields that are left out on purpose.
#[derive(Clone, Debug)]
pub(crate) struct Ignore {
    pub(crate) path: Word,
    pub(crate) reason: String,
}

/// A whole mapping of a message.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) name: Word,
    pub(crate) version: String,
    pub(crate) source: Source,
    /// The message of HL7 v2 that it writes, if it writes one.
    pub(crate) writes: Option<Writes>,
    pub(crate) options: Vec<OptionDef>,
    pub(crate) include: Vec<Include>,
    pub(crate) resources: Vec<Resource>,
    /// Elements of the Bundle itself.
    pub(crate) bundle: Vec<(Word, Rule)>,
    pub(crate) effects: Vec<EffectRule>,
    pub(crate) checks: Vec<Check>,
    pub(crate) ignore: Vec<Ignore>,
    pub(crate) tests: Vec<Test>,
}

/// Resources that several messages have in common.
#[derive(Debug)]
pub(crate) struct Fragment {
    pub(crate) name: Word,
    pub(crate) options: Vec<OptionDef>,
    pub(crate) resources: Vec<Resource>,
    pub(crate) checks: Vec<Check>,
    /// Elements of the Bundle itself.
    pub(crate) bundle: Vec<(Word, Rule)>,
    pub(crate) ignore: Vec<Ignore>,
}

/// One entry of `include:`. What its message has no place for is left out.
#[derive(Debug)]
pub(crate) struct Include {
    pub(crate) fragment: Word,
    /// The group in which the fragment stands; empty for the message itself.
    pub(crate) at: String,
    /// The resources that are left out.
    pub(crate) without: Vec<Word>,
    pub(crate) change: Vec<(Word, Change)>,
}

/// What an include changes in one resource.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) on_existing: Option<OnExisting>,
    pub(crate) otherwise: Option<Otherwise>,
    pub(crate) when: Option<Formula>,
    /// Written beside what the fragment says, or in place of it.
    pub(crate) set: Vec<(Word, Rule)>,
    /// Parts beside those of the fragment.
    pub(crate) parts: Vec<Part>,
}

/// Which messages a mapping takes.
#[derive(Debug)]
pub(crate) struct Source {
    /// `None` for HL7 v2.
    pub(crate) records: Option<RecordSource>,
    pub(crate) structures: Vec<Word>,
    pub(crate) code: Option<String>,
    pub(crate) events: Vec<Word>,
    pub(crate) versions: Option<Word>,
}

/// Documents of records.
#[derive(Debug)]
pub(crate) struct RecordSource {
    pub(crate) form: Form,
    /// What the document is.
    pub(crate) record: Word,
}

/// A message of HL7 v2 that a mapping writes.
#[derive(Debug)]
pub(crate) struct Writes {
    pub(crate) structure: Word,
    pub(crate) segments: Vec<Entry>,
}

/// One entry of `segments:`.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) id: Word,
    /// What is written; `None` for entries that only hold others.
    pub(crate) segment: Option<Word>,
    pub(crate) from: Option<Formula>,
    /// Whether it is written for each of them.
    pub(crate) many: bool,
    pub(crate) when: Option<Formula>,
    pub(crate) rule: Option<Rule>,
    pub(crate) inner: Vec<Entry>,
}

/// How a document of records is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Csv(schemas::records::Csv),
    Fhir,
}

/// One entry of `resources:`.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) place: Place,
    pub(crate) id: Word,
    pub(crate) kind: Word,
    pub(crate) from: Word,
    pub(crate) alias: Option<Word>,
    pub(crate) when: Option<Formula>,
    /// Whether its segment may have no place in the structure: senders put it there all the same.
    pub(crate) stray: bool,
    pub(crate) on_existing: Option<OnExisting>,
    pub(crate) identity: Option<Identity>,
    pub(crate) parts: Vec<Part>,
    pub(crate) set: Vec<(Word, Rule)>,
}

/// One entry of `parts:`.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) uses: Word,
    pub(crate) from: Word,
    /// Whether its segment may have no place in the structure.
    pub(crate) stray: bool,
    pub(crate) when: Option<Formula>,
    pub(crate) with: Vec<(Word, Argument)>,
}

/// One entry of `effects:`. The words are each an `id:` of `resources:`.
#[derive(Debug)]
pub(crate) struct EffectRule {
    /// Of a `move:`, what moves; a `merge:` has none.
    pub(crate) what: Option<Word>,
    /// Who becomes somebody else, or whose it was.
    pub(crate) from: Word,
    /// Who remains, or whose it is.
    pub(crate) into: Word,
    pub(crate) when: Option<Formula>,
}

/// One entry of `checks:`.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) id: Word,
    pub(crate) when: Formula,
    pub(crate) issue: Severity,
    pub(crate) text: String,
    pub(crate) quarantine: bool,
}

/// One entry of `tests:`.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) given: String,
    /// The mapping that takes it, where the message does not say.
    pub(crate) mapping: Option<String>,
    pub(crate) expect: Vec<(Word, String)>,
    pub(crate) absent: Vec<Word>,
    pub(crate) unmapped: Option<Vec<String>>,
    pub(crate) issues: Vec<String>,
    /// What the sender is configured with.
    pub(crate) sender: Option<String>,
    pub(crate) options: Vec<(String, String)>,
    pub(crate) systems: Vec<(String, String)>,
    /// What the wire says beside it.
    pub(crate) wire: Vec<(String, String)>,
}
