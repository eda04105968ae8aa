//! What became of each leaf of the message: mapped, narrowed, ignored, failed or unmapped. No field disappears.

use super::{Frame, Run};
use crate::program::IgnoreRule;
use schemas::hl7v2::Element;
use schemas::hl7v2::path::Path;
use schemas::issue::{Issue, Severity};

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

impl<'r> Run<'r> {
    /// Notes what became of a leaf, unless a condition reads it.
    pub(super) fn mark(&mut self, leaf: usize, state: State) {
        self.last_leaf = Some(leaf);
        if self.quiet == 0 {
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

    /// Marks what a map ignores: relative to the element or the segment on which it stands.
    pub(super) fn ignore(&mut self, rules: &[IgnoreRule], frame: &Frame<'r, '_>) {
        for rule in rules {
            match rule.segment {
                None => {
                    for number in rule.first..=rule.last.min(rule.first.saturating_add(99)) {
                        let part = frame.base.part(self.message, number);
                        self.ignore_steps(part, rule.steps);
                    }
                }
                Some(name) => {
                    let anchor = frame
                        .anchor
                        .filter(|anchor| self.message.segments()[*anchor as usize].name() == name);
                    if let Some(segment) = anchor {
                        self.ignore_fields(segment as usize, rule);
                    }
                }
            }
        }
    }

    fn ignore_fields(&mut self, segment: usize, rule: &IgnoreRule) {
        let message = self.message;
        let count = self.fields_of[segment + 1] - self.fields_of[segment];
        let last = rule.last.min(u16::try_from(count).unwrap_or(u16::MAX));
        for number in rule.first..=last {
            let field = self.field(segment as u32, number);
            if rule.steps == [0, 0] {
                self.ignore_steps(field, rule.steps);
                continue;
            }
            for repetition in field.repetitions(message) {
                self.ignore_steps(repetition, rule.steps);
            }
        }
    }

    fn ignore_steps(&mut self, element: Element, steps: [u16; 2]) {
        let mut element = element;
        for step in steps.into_iter().take_while(|step| *step > 0) {
            element = element.part(self.message, step);
        }
        if !element.is_absent() {
            self.marks.push(Mark { first: element.first, end: element.end, state: State::Ignored });
        }
    }

    /// Reports the fields that nothing of the mapping took: one issue a field, for the leaves that are left.
    pub(super) fn report_unmapped(&mut self) {
        let message = self.message;
        let mapping = self.mapping;
        for rule in &mapping.ignore {
            let Some(name) = rule.segment else { continue };
            for segment in message.find_all(name) {
                self.ignore_fields(segment, rule);
            }
        }
        let mut states = vec![State::Unmapped; message.leaves().len()];
        let kept = self.entries.iter().filter(|entry| !entry.left_out).flat_map(|entry| &entry.marks);
        for mark in self.marks.iter().chain(kept) {
            for state in &mut states[mark.first as usize..mark.end as usize] {
                *state = mark.state.max(*state);
            }
        }
        let mut reported = 0;
        let mut last = None;
        for (leaf, state) in states.iter().enumerate() {
            // MSH-1 and MSH-2 are the separators themselves.
            if *state != State::Unmapped || leaf < 2 {
                continue;
            }
            let mut path = message.path_of(leaf);
            // HL7's null in a part of a value that was taken leaves that part out, which is what was done.
            let beside = |other: usize| {
                let found = message.path_of(other);
                let place = |path: &Path| (path.segment, path.occurrence, path.field, path.repetition);
                place(&found) == place(&path)
            };
            if message.is_null(leaf) {
                let before = (0..leaf).rev().take_while(|other| beside(*other));
                let after = (leaf + 1..states.len()).take_while(|other| beside(*other));
                if before.chain(after).any(|other| states[other] > State::Failed) {
                    continue;
                }
            }
            path.subcomponent = 0;
            if path.component == 1 {
                path.component = 0;
            }
            if last == Some(path) {
                continue;
            }
            last = Some(path);
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
            self.issues.push(Issue::new(Severity::Warning, "unmapped-field", path.to_string(), text));
        }
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
