//! Notes where every element comes from, for whoever asks; nothing of it runs otherwise.
//!
//! Invariant: a note stands for something that was written. What is taken back takes its notes with it.

use super::coverage::{Mark, State};
use super::{Item, Run};
use crate::program::{Action, At, IgnoreRule, Node};
use schemas::hl7v2::Element;
use serde_json::Value;
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;

/// Where one element comes from.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    /// The resource, and the slot that wrote it.
    pub(crate) resource: Uuid,
    pub(crate) slot: &'static str,
    /// How many-th writing of a slot this was: a slot may be written by several segments.
    pub(crate) turn: u32,
    /// From the slot's element: `[0].family`, `.value`, nothing for the element itself; `_` begins what stands beside it.
    pub(crate) path: String,
    pub(crate) rule: Arc<str>,
    pub(crate) at: At,
    /// The segment on which its map stands.
    pub(crate) anchor: Option<u32>,
    /// The leaves whose text was carried over.
    pub(crate) leaves: Vec<u32>,
    /// Those that decided that something constant is written.
    pub(crate) because: Vec<u32>,
}

/// What is noted during one run.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    resource: Uuid,
    slot: &'static str,
    turns: u32,
    turn: u32,
    anchor: Option<u32>,
    path: String,
    /// Leaves that conditions read, and those of the items around.
    causes: Vec<u32>,
    pub(crate) traces: Vec<Trace>,
    /// Leaves that are left out on purpose, and why.
    pub(crate) ignored: Vec<(Range<u32>, Arc<str>)>,
}

/// What has to be put back after a slot, a resource or an item.
pub(super) struct Around {
    resource: Uuid,
    slot: &'static str,
    turn: u32,
    anchor: Option<u32>,
    path: String,
}

impl<'r> Run<'r> {
    /// How many notes there are.
    pub(super) fn traced(&self) -> usize {
        self.tracer.as_ref().map_or(0, |tracer| tracer.traces.len())
    }

    /// Takes back the notes since a moment about the resource at hand: what they are about was not written after all. What was
    /// made on the way stays.
    pub(super) fn untrace(&mut self, traced: usize) {
        if let Some(tracer) = &mut self.tracer {
            let of = tracer.resource;
            let made = tracer.traces.split_off(traced.min(tracer.traces.len()));
            tracer.traces.extend(made.into_iter().filter(|trace| trace.resource != of));
        }
    }

    /// Takes back every note.
    pub(super) fn untrace_all(&mut self) {
        if let Some(tracer) = &mut self.tracer {
            tracer.traces.clear();
        }
    }

    /// Begins a resource: what follows is written into it.
    pub(super) fn trace_resource(&mut self, id: Uuid) -> Option<Uuid> {
        let tracer = self.tracer.as_mut()?;
        Some(std::mem::replace(&mut tracer.resource, id))
    }

    /// Ends a resource.
    pub(super) fn untrace_resource(&mut self, before: Option<Uuid>) {
        if let (Some(tracer), Some(before)) = (&mut self.tracer, before) {
            tracer.resource = before;
        }
    }

    /// Begins a slot.
    pub(super) fn trace_slot(&mut self, slot: &'static str, anchor: Option<u32>) -> Option<Around> {
        let tracer = self.tracer.as_mut()?;
        tracer.turns += 1;
        let around = Around {
            resource: tracer.resource,
            slot: tracer.slot,
            turn: tracer.turn,
            anchor: tracer.anchor,
            path: std::mem::take(&mut tracer.path),
        };
        (tracer.slot, tracer.turn, tracer.anchor) = (slot, tracer.turns, anchor);
        Some(around)
    }

    /// Ends a slot; answers which writing it was.
    pub(super) fn untrace_slot(&mut self, around: Option<Around>) -> u32 {
        let (Some(tracer), Some(around)) = (&mut self.tracer, around) else { return 0 };
        let turn = tracer.turn;
        (tracer.resource, tracer.slot, tracer.turn) = (around.resource, around.slot, around.turn);
        (tracer.anchor, tracer.path) = (around.anchor, around.path);
        turn
    }

    /// Goes down the path; answers where it was.
    pub(super) fn trace_down(&mut self, name: &str) -> usize {
        let Some(tracer) = &mut self.tracer else { return 0 };
        let before = tracer.path.len();
        tracer.path.push_str(name);
        before
    }

    /// Goes down to what is written next: an item of a list, if there is room for more than one, or the element itself.
    pub(super) fn trace_place(&mut self, max: u32, index: u32) -> usize {
        if self.tracer.is_none() {
            return 0;
        }
        if max > 1 { self.trace_down(&format!("[{index}]")) } else { self.trace_down("") }
    }

    /// Goes up again.
    pub(super) fn trace_up(&mut self, before: usize) {
        if let Some(tracer) = &mut self.tracer {
            tracer.path.truncate(before);
        }
    }

    /// The type of a choice element is known once it is written: `.value` becomes `.valueQuantity` in the notes since then.
    pub(super) fn trace_choice(&mut self, traced: usize, path: usize, name: &str, suffix: &str) {
        let Some(tracer) = &mut self.tracer else { return };
        // Not those of what was made on the way.
        let turn = tracer.turn;
        for trace in tracer.traces.iter_mut().skip(traced).filter(|trace| trace.turn == turn) {
            for prefix in [".", "._"] {
                if trace
                    .path
                    .get(path..)
                    .is_some_and(|rest| rest.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(name)))
                {
                    trace.path.insert_str(path + prefix.len() + name.len(), suffix);
                }
            }
        }
    }

    /// How many causes are known.
    pub(super) fn causes(&self) -> usize {
        self.tracer.as_ref().map_or(0, |tracer| tracer.causes.len())
    }

    /// Forgets the causes since a moment.
    pub(super) fn uncause(&mut self, causes: usize) {
        if let Some(tracer) = &mut self.tracer {
            tracer.causes.truncate(causes);
        }
    }

    /// A condition read a leaf.
    pub(super) fn cause(&mut self, leaf: usize) {
        if let Some(tracer) = &mut self.tracer {
            tracer.causes.push(leaf as u32);
        }
    }

    /// What follows is written because of an element.
    pub(super) fn cause_of(&mut self, element: Element) {
        if let Some(tracer) = &mut self.tracer {
            tracer.causes.extend(element.first..element.end);
        }
    }

    /// A condition looked at an element.
    pub(super) fn cause_if_asked(&mut self, element: Element) {
        if self.quiet > 0 && self.tracer.is_some() {
            self.cause_of(element);
        }
    }

    /// What follows is written because of an item.
    pub(super) fn cause_of_item(&mut self, item: Item) {
        if let Item::Element(element) = item {
            self.cause_of(element);
        }
    }

    /// Notes what a node wrote, if it is one that writes a value.
    pub(super) fn trace(&mut self, node: &Node, marks: usize, json: &str) {
        if self.tracer.is_none() {
            return;
        }
        match &node.does {
            Action::Value { .. }
            | Action::Coded { .. }
            | Action::Const(_)
            | Action::Concept { .. }
            | Action::Make { .. }
            | Action::Ref { .. } => {
                let mut paths = Vec::new();
                match serde_json::from_str(json) {
                    Ok(value) => leaf_paths(&value, &mut String::new(), &mut paths),
                    Err(_) => paths.push(String::new()),
                }
                for path in paths {
                    self.trace_path(node, marks, &path);
                }
            }
            Action::Extension { .. } => self.trace_path(node, marks, ".url"),
            Action::Object { .. }
            | Action::Call { .. }
            | Action::First(_)
            | Action::All(_)
            | Action::Switch { .. }
            | Action::Absent(_)
            | Action::Refs { .. } => {}
        }
    }

    /// Notes that something was written below the path at hand.
    pub(super) fn trace_path(&mut self, node: &Node, marks: usize, below: &str) {
        let Some(tracer) = &mut self.tracer else { return };
        let carries = |mark: &&Mark| matches!(mark.state, State::Mapped | State::Narrowed | State::LookedUp);
        let marks = self.marks[marks.min(self.marks.len())..].iter().filter(carries);
        let mut leaves: Vec<u32> = marks.flat_map(|mark| mark.first..mark.end).collect();
        leaves.sort_unstable();
        leaves.dedup();
        let mut because = tracer.causes.clone();
        because.sort_unstable();
        because.dedup();
        tracer.traces.push(Trace {
            resource: tracer.resource,
            slot: tracer.slot,
            turn: tracer.turn,
            path: [&tracer.path, below].concat(),
            rule: node.rule.clone(),
            at: node.at,
            anchor: tracer.anchor,
            leaves,
            because,
        });
    }

    /// Goes to the extensions beside the primitive at hand; answers the path to go back to.
    pub(super) fn trace_beside(&mut self) -> Option<String> {
        let tracer = self.tracer.as_mut()?;
        let (parent, name) = tracer.path.rsplit_once('.').map_or(("", ""), |(parent, name)| (parent, name));
        let dot = if name.is_empty() { "" } else { "." };
        let beside = format!("{parent}{dot}_{name}.extension");
        Some(std::mem::replace(&mut tracer.path, beside))
    }

    /// Goes back from there.
    pub(super) fn untrace_beside(&mut self, path: Option<String>) {
        if let (Some(tracer), Some(path)) = (&mut self.tracer, path) {
            tracer.path = path;
        }
    }

    /// A leaf is left out on purpose.
    pub(super) fn trace_ignored(&mut self, leaf: u32, rule: &IgnoreRule) {
        if let Some(tracer) = &mut self.tracer {
            tracer.ignored.push((leaf..leaf + 1, rule.reason.clone()));
        }
    }

    /// Leaves were read and told nothing that others had not told.
    pub(super) fn trace_unused(&mut self, leaves: Range<u32>) {
        if let Some(tracer) = &mut self.tracer {
            tracer.ignored.push((leaves, "the authority is told by its other name".into()));
        }
    }

    /// A slot's items stand behind others that were there: their notes follow.
    pub(super) fn trace_shift(&mut self, turn: u32, by: u32) {
        let Some(tracer) = &mut self.tracer else { return };
        for trace in tracer.traces.iter_mut().rev().filter(|trace| trace.turn == turn) {
            shift(&mut trace.path, by);
        }
    }
}

/// `[0].family` becomes `[2].family`.
pub(crate) fn shift(path: &mut String, by: u32) {
    let Some((index, rest)) = path.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { return };
    let Ok(index) = index.parse::<u32>() else { return };
    *path = format!("[{}]{rest}", index + by);
}

/// The paths of everything in a value that is not made of parts.
pub(crate) fn leaf_paths(value: &Value, path: &mut String, paths: &mut Vec<String>) {
    let before = path.len();
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                path.push('.');
                path.push_str(name);
                leaf_paths(value, path, paths);
                path.truncate(before);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                leaf_paths(value, path, paths);
                path.truncate(before);
            }
        }
        _ => paths.push(path.clone()),
    }
}
