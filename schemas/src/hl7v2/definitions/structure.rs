//! Message structures: which segments stand in which groups, in which order.

use super::{Version, spans};
use crate::hl7v2::SegmentName;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The structure of a message: a tree of groups and segment positions, flattened in the order of the standard.
///
/// Node 0 is the message itself, a group; the nodes inside a group follow it up to its `end`.
#[derive(Clone, Debug)]
pub struct Structure {
    /// The name as in MSH-9.3, such as `ORU_R01`.
    pub name: &'static str,
    /// The version that defines it so.
    pub version: Version,
    /// The nodes, a parent before its children.
    pub nodes: Vec<Node>,
    /// What it takes to come to each node and to leave it, by the node's index.
    needs: Vec<Needs>,
}

/// How many segments a message would leave out that the structure needs: for entering a node from the head of a group
/// around it, and for leaving it to the end of that group. Kept as sums from the root, so that a difference is a cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    /// Among its siblings before it.
    pub before: u16,
    /// The same for coming to it from further before: without an ORC that may be left out.
    pub ahead: u16,
    /// Itself: 1 or 0.
    pub own: u16,
    /// The sum of `ahead` from the root to here.
    pub enter: u16,
    /// The sum, from the root to here, of what stands after.
    pub leave: u16,
}

/// A node of a [`Structure`], counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

impl NodeId {
    /// The message itself.
    pub const ROOT: NodeId = NodeId(0);
}

/// A group, or a position where a segment stands.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// The group's name (`ORDER_OBSERVATION`), or the position's: the segment's name, or a name of its own where the
    /// segment stands more than once at one level (`ROL_PID`, `PID_2`).
    pub name: &'static str,
    /// The segment (`ROL`); `ANY` where any segment may stand; empty for a group.
    pub segment: &'static str,
    /// The segment as messages name it; `None` for a group and for `ANY`.
    pub code: Option<SegmentName>,
    /// Whether it must be there.
    pub required: bool,
    /// Whether it may repeat.
    pub repeats: bool,
    /// Positions of one group with the same number other than 0 are alternatives to each other.
    pub choice: u8,
    /// The group around it; the root is its own.
    pub parent: NodeId,
    /// The node after the last one inside: `id + 1` for a position.
    pub end: NodeId,
    /// Its place among the children of its group, from 0.
    pub place: u8,
}

impl Node {
    /// Whether this is a group.
    pub fn is_group(&self) -> bool {
        self.segment.is_empty()
    }
}

impl Structure {
    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[usize::from(id.0)]
    }

    /// The children of a group, in order.
    pub fn children(&self, group: NodeId) -> impl Iterator<Item = NodeId> {
        let end = self.node(group).end;
        let first = NodeId(group.0 + 1);
        std::iter::successors((first < end).then_some(first), move |id| {
            let next = self.node(*id).end;
            (next < end).then_some(next)
        })
    }

    /// Every group with its path from the message (`PATIENT_RESULT.ORDER_OBSERVATION`), the message itself (`""`) first.
    pub fn groups(&self) -> impl Iterator<Item = (String, NodeId)> {
        let ids =
            (0..self.nodes.len()).map(|index| NodeId(u16::try_from(index).expect("read() bounds the nodes")));
        ids.filter(|id| self.node(*id).is_group()).map(|id| (self.path(id), id))
    }

    /// The path of a node from the message: group names joined by dots; empty for the message itself.
    pub fn path(&self, id: NodeId) -> String {
        let mut names = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            names.push(self.node(at).name);
            at = self.node(at).parent;
        }
        names.reverse();
        names.join(".")
    }

    /// A group by its path, such as `PATIENT_RESULT.ORDER_OBSERVATION`; the empty path is the message.
    pub fn group(&self, path: &str) -> Option<NodeId> {
        self.group_in(NodeId::ROOT, path)
    }

    /// A group by its path from another group.
    pub fn group_in(&self, group: NodeId, path: &str) -> Option<NodeId> {
        let names = path.split('.').filter(|name| !name.is_empty());
        names.into_iter().try_fold(group, |at, name| {
            self.children(at).find(|id| self.node(*id).is_group() && self.node(*id).name == name)
        })
    }

    /// The positions in a group that a name means: the one of that name (`ROL_PID`), else every one of that segment
    /// (`ROL`). Where the group itself has none, the groups inside it that stand at most once are looked into, nearest
    /// first, because newer versions wrap what older ones did not (ORC in `ORDER_OBSERVATION.COMMON_ORDER` since 2.8).
    pub fn positions(&self, group: NodeId, name: &str) -> Vec<NodeId> {
        let mut level = vec![group];
        while !level.is_empty() {
            let children = || level.iter().flat_map(|group| self.children(*group));
            let segments = || children().filter(|id| !self.node(*id).is_group());
            let mut found: Vec<_> = segments().filter(|id| self.node(*id).name == name).collect();
            if found.is_empty() {
                found.extend(segments().filter(|id| self.node(*id).segment == name));
            }
            if !found.is_empty() {
                return found;
            }
            level = children().filter(|id| self.node(*id).is_group() && !self.node(*id).repeats).collect();
        }
        Vec::new()
    }

    /// Whether a group is, or lies within, another.
    pub fn within(&self, inner: NodeId, outer: NodeId) -> bool {
        outer <= inner && inner < self.node(outer).end
    }

    /// A structure of groups alone, such as a document of records has: each with its name and the one around it, which stands before it in
    /// the list; the first is the message itself. Answers beside it which node each of them became.
    pub(crate) fn of_kinds(kinds: &[(&'static str, u16)]) -> (Structure, Vec<NodeId>) {
        let mut inside: Vec<Vec<usize>> = vec![Vec::new(); kinds.len()];
        for (index, (_, around)) in kinds.iter().enumerate().skip(1) {
            inside[usize::from(*around)].push(index);
        }
        let mut made = Structure {
            name: kinds[0].0,
            version: Version::V2_8_2,
            nodes: Vec::with_capacity(kinds.len()),
            needs: Vec::new(),
        };
        let mut ids = vec![NodeId::ROOT; kinds.len()];
        // A group that is entered, or one that is left.
        let mut open = vec![(0, true)];
        while let Some((index, entered)) = open.pop() {
            if !entered {
                made.nodes[usize::from(ids[index].0)].end = made.next_id();
                continue;
            }
            let (name, around) = kinds[index];
            let id = made.next_id();
            ids[index] = id;
            let parent = ids[usize::from(around)];
            made.nodes.push(Node {
                name,
                segment: "",
                code: None,
                required: false,
                repeats: true,
                choice: 0,
                parent,
                end: NodeId(id.0 + 1),
                place: 0,
            });
            open.push((index, false));
            open.extend(inside[index].iter().rev().map(|inner| (*inner, true)));
        }
        (made, ids)
    }

    /// Reads one line of `structures.txt`, whose head describes the format.
    fn read(name: &'static str, version: Version, text: &'static str) -> Structure {
        let root = Node {
            name,
            segment: "",
            code: None,
            required: true,
            repeats: false,
            choice: 0,
            parent: NodeId::ROOT,
            end: NodeId(0),
            place: 0,
        };
        let mut made = Structure { name, version, nodes: vec![root], needs: Vec::new() };
        let mut open = vec![(NodeId::ROOT, 0u8)];
        for word in text.split(' ') {
            made.read_word(word, &mut open);
        }
        made.nodes[0].end = made.next_id();
        made.nodes.shrink_to_fit();
        made.count_needs();
        made
    }

    /// What entering and leaving a node skips.
    pub(crate) fn needs(&self, id: NodeId) -> Needs {
        self.needs[usize::from(id.0)]
    }

    /// What is ordered or given: where one of these follows, senders leave out the ORC before it.
    fn is_ordered(segment: &str) -> bool {
        matches!(segment, "OBR" | "ODS" | "ODT") || segment.starts_with("RX")
    }

    /// The first segment of a node.
    fn head(&self, id: NodeId) -> &'static str {
        let node = self.node(id);
        if node.is_group() { self.head(NodeId(id.0 + 1)) } else { node.segment }
    }

    /// Counts what the structure needs. Two things it wants are not counted, because senders leave them out: comments, and
    /// ORC before what is ordered (so an OBR after an OBR is the next order, while a PRT does not begin one).
    fn count_needs(&mut self) {
        let mut needs = vec![Needs::default(); self.nodes.len()];
        // From the leaves up: a group is needed when it is required and something in it is.
        for index in (1..self.nodes.len()).rev() {
            let node = &self.nodes[index];
            let filled =
                if node.is_group() { needs[index].own > 0 } else { !matches!(node.segment, "NTE" | "ANY") };
            needs[index].own = u16::from(node.required && filled);
            let parent = usize::from(node.parent.0);
            needs[parent].own |= needs[index].own;
        }
        for group in (0..self.nodes.len()).filter(|index| self.nodes[*index].is_group()) {
            let group = NodeId(u16::try_from(group).expect("read() bounds the nodes"));
            let children: Vec<_> = self.children(group).map(|id| (id, usize::from(id.0))).collect();
            let (mut count, mut optional, mut choice) = (0, 0, 0);
            for (id, child) in &children {
                let node = &self.nodes[*child];
                // Alternatives are one need: each has the others neither before nor after it.
                let again = node.choice != 0 && node.choice == choice;
                let before = if again { count - needs[*child].own } else { count };
                needs[*child].before = before;
                needs[*child].ahead =
                    before - if Structure::is_ordered(self.head(*id)) { optional } else { 0 };
                count += if again { 0 } else { needs[*child].own };
                optional += if node.segment == "ORC" { needs[*child].own } else { 0 };
                choice = node.choice;
            }
            let outer = needs[usize::from(group.0)];
            for (_, child) in children {
                let inner = &mut needs[child];
                // ORC and OBR after a result are the next order. That they are a prior result of this one, which the
                // standard allows as well, is told by a PID, PV1 or AL1 before them.
                let prior = u16::from(self.nodes[child].name == "ORDER_PRIOR");
                inner.enter = outer.enter + inner.ahead + prior;
                inner.leave = outer.leave + count - inner.before - inner.own;
            }
        }
        self.needs = needs;
    }

    fn next_id(&self) -> NodeId {
        NodeId(u16::try_from(self.nodes.len()).expect("a structure has bounded nodes"))
    }

    /// One word: `GROUP(PID`, `ROL_PID:ROL*`, `<OBR|RXO>`, `PV2?)?)*`.
    fn read_word(&mut self, mut word: &'static str, open: &mut Vec<(NodeId, u8)>) {
        while let Some((name, rest)) = word.split_once('(') {
            let id = self.push(name, "", 0, open);
            open.push((id, 0));
            word = rest;
        }
        let inner = word.find([')', '?', '*', '+']).unwrap_or(word.len());
        let (what, mut marks) = word.split_at(inner);
        let first = self.nodes.len();
        let choice = u8::try_from(first % 255).expect("below 255") + 1;
        if let Some(list) = what.strip_prefix('<') {
            for segment in list.trim_end_matches('>').split('|') {
                self.push(segment, segment, choice, open);
            }
        } else {
            let (name, segment) = what.split_once(':').unwrap_or((what, what));
            self.push(name, segment, 0, open);
        }
        // The marks after a name are its own; those after a bracket are the group's.
        let mut nodes = first..self.nodes.len();
        loop {
            let mark = marks.chars().next().filter(|c| *c != ')');
            for node in &mut self.nodes[nodes.clone()] {
                node.required = !matches!(mark, Some('?' | '*'));
                node.repeats = matches!(mark, Some('*' | '+'));
            }
            marks = &marks[mark.map_or(0, char::len_utf8)..];
            let Some(rest) = marks.strip_prefix(')') else { break };
            marks = rest;
            let (group, _) = open.pop().expect("generate.py balances its brackets");
            let group = usize::from(group.0);
            self.nodes[group].end = self.next_id();
            nodes = group..group + 1;
        }
    }

    fn push(
        &mut self,
        name: &'static str,
        segment: &'static str,
        choice: u8,
        open: &mut [(NodeId, u8)],
    ) -> NodeId {
        let id = self.next_id();
        let (parent, count) = open.last_mut().expect("the root stays open");
        let (parent, place) = (*parent, *count);
        *count += 1;
        let end = NodeId(id.0 + 1);
        let code = if segment == "ANY" { None } else { SegmentName::new(segment) };
        self.nodes.push(Node {
            name,
            segment,
            code,
            required: true,
            repeats: false,
            choice,
            parent,
            end,
            place,
        });
        id
    }
}

/// The structures of a version, each read when it is first asked for.
#[derive(Debug)]
pub(super) struct Index {
    structures: HashMap<&'static str, Entry>,
    events: HashMap<(&'static str, &'static str), &'static str>,
    /// Where all events of a type have one structure, or one is usual: what an empty trigger means.
    without_trigger: HashMap<&'static str, &'static str>,
    version: Version,
}

#[derive(Debug)]
struct Entry {
    text: &'static str,
    read: OnceLock<Structure>,
}

/// What a message type without a trigger event means, where its events have several structures (2.1 and 2.2 allowed it).
const USUAL: [(&str, &str); 4] =
    [("ORU", "ORU_R01"), ("DSR", "DSR_Q01"), ("QRY", "QRY_Q01"), ("MDM", "MDM_T02")];

impl Index {
    pub(super) fn read(text: &'static str, version: Version) -> Index {
        let mut structures = HashMap::with_capacity(256);
        let mut events = HashMap::with_capacity(512);
        let mut name = "";
        for line in text.lines() {
            if let Some(found) = line.strip_prefix("= ") {
                name = found;
            } else if let Some(event) = line.strip_prefix("@ ") {
                let mut parts = event.split(' ');
                let mut next = || parts.next().unwrap_or_default();
                let (code, trigger, span, target) = (next(), next(), next(), next());
                if spans(span, version) {
                    events.insert((code, trigger), target);
                }
            } else if !line.starts_with('#') {
                let (span, text) = line.split_once(' ').unwrap_or_default();
                if spans(span, version) {
                    structures.insert(name, Entry { text, read: OnceLock::new() });
                    if let Some((code, trigger)) = name.split_once('_') {
                        events.insert((code, trigger), name);
                    }
                }
            }
        }
        let mut without_trigger: HashMap<_, _> = HashMap::new();
        let mut doubtful = Vec::new();
        for ((code, _), target) in &events {
            if *without_trigger.entry(*code).or_insert(*target) != *target {
                doubtful.push(*code);
            }
        }
        without_trigger.retain(|code, _| !doubtful.contains(code));
        without_trigger.extend(USUAL.into_iter().filter(|(_, target)| structures.contains_key(target)));
        Index { structures, events, without_trigger, version }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Structure> {
        let (name, entry) = self.structures.get_key_value(name)?;
        Some(entry.read.get_or_init(|| Structure::read(name, self.version, entry.text)))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        let mut names: Vec<_> = self.structures.keys().copied().collect();
        names.sort_unstable();
        names.into_iter()
    }

    pub(super) fn of_event(&self, code: &str, trigger: &str) -> Option<&Structure> {
        if code == "ACK" {
            return self.get("ACK"); // MSH-9.2 of an ACK repeats the trigger of what it answers
        }
        let name = match trigger {
            "" => self.without_trigger.get(code),
            _ => self.events.get(&(code, trigger)),
        };
        self.get(name?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::definitions;
    use super::*;

    /// Writes a structure back as the data has it, so that reading is shown to lose nothing.
    fn render(structure: &Structure, group: NodeId) -> String {
        let mut words = Vec::new();
        let mut last_choice = 0;
        for id in structure.children(group) {
            let node = structure.node(id);
            let mark = match (node.required, node.repeats) {
                (true, false) => "",
                (false, false) => "?",
                (false, true) => "*",
                (true, true) => "+",
            };
            if node.is_group() {
                words.push(format!("{}({}){mark}", node.name, render(structure, id)));
            } else if node.choice != 0 && node.choice == last_choice {
                let word = words.pop().expect("an alternative before it");
                words.push(format!(
                    "{}|{}>{mark}",
                    word.trim_end_matches(mark).trim_end_matches('>'),
                    node.segment
                ));
            } else if node.choice != 0 {
                words.push(format!("<{}>{mark}", node.segment));
            } else if node.name == node.segment {
                words.push(format!("{}{mark}", node.name));
            } else {
                words.push(format!("{}:{}{mark}", node.name, node.segment));
            }
            last_choice = node.choice;
        }
        words.join(" ")
    }

    #[test]
    fn every_structure_reads_back_as_it_was_written() {
        let mut count = 0;
        for version in Version::ALL {
            let known = definitions(version);
            for name in known.structure_names() {
                let structure = known.structure(name).expect("a listed structure");
                assert_eq!(
                    render(structure, NodeId::ROOT),
                    known.structures.structures[name].text,
                    "{name} in {version}"
                );
                assert_eq!(structure.node(NodeId(1)).segment, "MSH", "{name} in {version}");
                assert!(structure.children(NodeId::ROOT).count() < 64, "{name}: a set of places is 64 bits");
                count += 1;
            }
        }
        assert!(count > 2000, "{count}");
    }

    /// A group's path must be unique, and a name at one level must mean one position.
    #[test]
    fn names_are_unique_at_each_level() {
        for version in Version::ALL {
            let known = definitions(version);
            for name in known.structure_names() {
                let structure = known.structure(name).expect("a listed structure");
                for (path, group) in structure.groups() {
                    assert_eq!(structure.group(&path), Some(group), "{name} {path} in {version}");
                    let mut names: Vec<_> =
                        structure.children(group).map(|id| structure.node(id).name).collect();
                    names.sort_unstable();
                    names.dedup();
                    assert_eq!(names.len(), structure.children(group).count(), "{name} {path} in {version}");
                    assert!(names.len() <= 64, "{name} {path}: a set of places is 64 bits");
                }
            }
        }
    }

    #[test]
    fn groups_and_positions_are_found_by_name() {
        let oru = definitions(Version::V2_5_1).structure("ORU_R01").expect("ORU_R01");
        let order = oru.group("PATIENT_RESULT.ORDER_OBSERVATION").expect("a group");
        assert_eq!(oru.path(order), "PATIENT_RESULT.ORDER_OBSERVATION");
        assert!(oru.node(order).repeats && oru.node(order).required);
        let obx = oru.positions(oru.group_in(order, "OBSERVATION").expect("a group"), "OBX");
        assert_eq!(obx.len(), 1);
        assert_eq!(
            oru.positions(order, "OBX"),
            [],
            "OBSERVATION repeats, so OBX of the order is not one thing"
        );
        assert_eq!(oru.group("PATIENT_RESULT.ORDER"), None);

        let newer = definitions(Version::V2_8).structure("ORU_R01").expect("ORU_R01");
        let order = newer.group("PATIENT_RESULT.ORDER_OBSERVATION").expect("a group");
        assert_eq!(newer.positions(order, "ORC").len(), 1, "in COMMON_ORDER");

        let adt = definitions(Version::V2_5_1).structure("ADT_A01").expect("ADT_A01");
        assert_eq!(adt.positions(NodeId::ROOT, "ROL").len(), 2);
        assert_eq!(adt.positions(NodeId::ROOT, "ROL_PID").len(), 1);
        let swap = definitions(Version::V2_5_1).structure("ADT_A24").expect("ADT_A24");
        assert_eq!(swap.positions(NodeId::ROOT, "PID_2").len(), 1);
    }
}
