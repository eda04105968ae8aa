//! What became of each leaf of the message: mapped, narrowed, ignored, failed or unmapped. No field disappears.

use super::{Frame, Run};
use crate::program::{IgnoreRule, Parts};
use schemas::hl7v2::grammar::InstanceId;
use schemas::hl7v2::{Leaf, Level};
use schemas::issue::{Issue, Severity};
use std::ops::Range;

/// What became of a leaf; the later goes before the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// No rule read it.
    Unmapped,
    /// It could not be read, and an issue says so.
    Failed,
    /// A table was asked for it and has no target.
    LookedUp,
    /// The mapping leaves it out and says why.
    Ignored,
    /// It chose what to do with another value.
    Selector,
    /// Only a part of it was carried over.
    Narrowed,
    /// It was carried over.
    Mapped,
}

/// Leaves and what became of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) first: u32,
    pub(crate) end: u32,
    pub(crate) state: State,
}

/// The most unmapped fields that one message reports one by one.
const UNMAPPED_MAX: usize = 1000;

impl IgnoreRule {
    /// Whether it means a leaf of a segment.
    fn takes_field(&self, leaf: &Leaf) -> bool {
        let [component, subcomponent] = self.steps;
        (self.first..=self.last).contains(&leaf.field)
            && (component == 0 || leaf.component == u32::from(component))
            && (subcomponent == 0 || leaf.subcomponent == subcomponent)
    }

    /// Whether it means a leaf of an element, by its place in it.
    fn takes(&self, [part, inner]: [u32; 2]) -> bool {
        (u32::from(self.first)..=self.last.into()).contains(&part)
            && (self.steps[0] == 0 || inner == u32::from(self.steps[0]))
            && self.steps[1] <= 1
    }
}

impl<'r> Run<'r> {
    /// Notes what became of a leaf, unless a condition reads it.
    pub(super) fn mark(&mut self, leaf: usize, state: State) {
        self.last_leaf = Some(leaf);
        if self.quiet > 0 {
            self.cause(leaf);
        } else {
            // The leaves of a message are counted in u32.
            let first = leaf as u32;
            self.marks.push(Mark { first, end: first + 1, state });
        }
    }

    /// Forgets what was carried over since a moment, because it was not written after all. What could not be read and what
    /// a table was asked for stays: an issue or the table says what became of it.
    pub(super) fn forget_since(&mut self, marks: usize) {
        let mut kept = marks;
        for at in marks..self.marks.len() {
            if matches!(self.marks[at].state, State::Failed | State::LookedUp) {
                self.marks.swap(kept, at);
                kept += 1;
            }
        }
        self.marks.truncate(kept);
    }

    /// Turns what was mapped since a moment into narrowed.
    pub(super) fn narrow_since(&mut self, marks: usize) {
        for mark in self.marks.iter_mut().skip(marks).filter(|mark| mark.state == State::Mapped) {
            mark.state = State::Narrowed;
        }
    }

    /// Marks what a value map ignores: parts of the element on which it was called, or fields of the segment around.
    pub(super) fn ignore(&mut self, rules: &[IgnoreRule], frame: &Frame<'r, '_>) {
        let before = self.marks.len();
        for rule in rules {
            if rule.segment.is_none() && Parts::range(rule.first, rule.last).lack(frame.parts) {
                continue;
            }
            let range = match (rule.segment, frame.anchor) {
                (None, _) => frame.base.range(),
                (Some(name), Some(anchor)) => {
                    let segment = &self.message.segments()[anchor as usize];
                    if segment.name() == name { segment.leaves() } else { 0..0 }
                }
                (Some(_), None) => 0..0,
            };
            for at in range {
                let leaf = &self.message.leaves()[at];
                let meant = match (rule.segment, frame.base.level) {
                    (Some(_), _) => rule.takes_field(leaf),
                    (None, Level::Field) => {
                        leaf.repetition == 1 && rule.takes([leaf.component, leaf.subcomponent.into()])
                    }
                    (None, Level::Repetition) => rule.takes([leaf.component, leaf.subcomponent.into()]),
                    (None, Level::Component) => rule.takes([leaf.subcomponent.into(), 1]),
                    (None, Level::Subcomponent) => rule.takes([1, 1]),
                };
                let at = at as u32;
                if meant {
                    self.trace_ignored(at, rule);
                }
                // What was marked before may be remembered without what is marked here.
                match self.marks[before..].last_mut() {
                    _ if !meant => {}
                    Some(last) if last.end == at => last.end += 1,
                    _ => self.marks.push(Mark { first: at, end: at + 1, state: State::Ignored }),
                }
            }
        }
    }

    /// Reports the fields that nothing of the mapping took: one issue a field, for the leaves that are left.
    pub(super) fn report_unmapped(&mut self) -> Vec<State> {
        let message = self.message;
        let mapping = self.mapping;
        let mut states = vec![State::Unmapped; message.leaves().len()];
        for mark in &self.marks {
            for state in &mut states[mark.first as usize..mark.end as usize] {
                *state = mark.state.max(*state);
            }
        }
        let parts = self.ignored.clone().into_iter();
        let whole = (0..message.segments().len() as u32).map(|segment| (segment, &*mapping.ignore));
        for (segment, rules) in parts.chain(whole) {
            let segment = &message.segments()[segment as usize];
            for at in segment.leaves() {
                let (state, leaf) = (&mut states[at], &message.leaves()[at]);
                let taken =
                    |rule: &&IgnoreRule| rule.segment == Some(segment.name()) && rule.takes_field(leaf);
                if *state < State::Ignored
                    && let Some(rule) = rules.iter().find(taken)
                {
                    *state = State::Ignored;
                    self.trace_ignored(at as u32, rule);
                }
            }
        }
        self.ignore_inside(&mut states);
        let mut reported = 0;
        let mut last = None;
        // The field that was looked at last, and whether anything of it was taken.
        let mut around: Option<(Range<u32>, bool)> = None;
        for (leaf, state) in states.iter().enumerate() {
            // MSH-1 and MSH-2 are the separators themselves.
            if *state != State::Unmapped || (leaf < 2 && self.document.is_none()) {
                continue;
            }
            // HL7's null in a part or a repetition of a value that was taken leaves that out, which is what was done.
            if message.is_null(leaf) {
                let place = leaf as u32;
                let known = around.take().filter(|(field, _)| field.contains(&place));
                let (field, taken) = known.unwrap_or_else(|| {
                    let field = self.field_around(place);
                    let of_field = &states[field.start as usize..field.end as usize];
                    let taken = of_field.iter().any(|state| *state > State::Failed);
                    (field, taken)
                });
                around = Some((field, taken));
                if taken {
                    continue;
                }
            }
            let path = match self.document {
                Some(document) => document.records.place_of(leaf),
                None => {
                    let mut path = message.path_of(leaf);
                    path.subcomponent = 0;
                    if path.component == 1 {
                        path.component = 0;
                    }
                    path.to_string()
                }
            };
            if last.as_ref() == Some(&path) {
                continue;
            }
            last = Some(path.clone());
            reported += 1;
            if reported > UNMAPPED_MAX {
                self.issues.push(Issue::new(
                    Severity::Warning,
                    "unmapped-field",
                    "",
                    "more fields than are reported one by one have no rule",
                ));
                break;
            }
            let text = "no rule of the mapping takes this value";
            self.issues.push(Issue::new(Severity::Warning, "unmapped-field", path, text));
        }
        states
    }

    /// Ignores what lies in records that are ignored as a whole.
    fn ignore_inside(&mut self, states: &mut [State]) {
        let Some(document) = self.document else { return };
        let (message, mapping) = (self.message, self.mapping);
        let whole: Vec<&IgnoreRule> =
            mapping.ignore.iter().filter(|rule| (rule.first, rule.last) == (1, u16::MAX)).collect();
        let groups = document.records.groups();
        // A record stands behind the one around it, and has the number of its group's instance.
        let mut ignored: Vec<Option<&IgnoreRule>> = Vec::with_capacity(message.segments().len());
        for (number, segment) in (0..).zip(message.segments()) {
            let own = whole.iter().copied().find(|rule| rule.segment == Some(segment.name()));
            let around = groups.parent(InstanceId(number)).and_then(|around| ignored[around.0 as usize]);
            let rule = own.or(around);
            ignored.push(rule);
            for at in segment.leaves() {
                if let Some(rule) = rule.filter(|_| states[at] < State::Ignored) {
                    states[at] = State::Ignored;
                    self.trace_ignored(at as u32, rule);
                }
            }
        }
    }

    /// The leaves of the field in which one stands.
    fn field_around(&self, leaf: u32) -> Range<u32> {
        let at = leaf as usize;
        let segment = self.message.segments().partition_point(|segment| segment.leaves().end <= at);
        let field = self.field(segment as u32, self.message.leaves()[at].field);
        field.first..field.end
    }

    /// A doubt about a time, once for each kind of doubt.
    pub(super) fn doubt(&mut self, issue: Issue) {
        self.doubts += 1;
        let code = match issue.code.as_str() {
            "time-zone-assumed" => "time-zone-assumed",
            "time-filled" => "time-filled",
            _ => {
                self.issues.push(issue);
                return;
            }
        };
        if !self.doubted.contains(&code) {
            self.doubted.push(code);
            self.issues.push(issue);
        }
    }
}
