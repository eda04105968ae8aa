//! The groups of a message: which segments belong together, as its structure says.
//!
//! [`group`] walks the segments once, with a cursor on the structure. A segment that the structure allows next moves the
//! cursor; one that it does not is recovered: never dropped, never guessed silently.
//! Invariant: every segment of the message is in exactly one instance of one group, whatever the segments are, and in
//! each instance they stand in the order of the message.

use super::definitions::{NodeId, Structure, Version, definitions};
use super::{Message, SegmentName};
use crate::issue::{Issue, Severity};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt;

/// One instance of a group in a message, counted from 0; 0 is the message itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u32);

impl InstanceId {
    /// The message itself.
    pub const ROOT: InstanceId = InstanceId(0);
    const NONE: InstanceId = InstanceId(u32::MAX);

    fn index(self) -> usize {
        self.0 as usize
    }
}

/// The groups of one message. Segments are named by their index in [`Message::segments`].
#[derive(Debug)]
pub struct Groups {
    structure: Cow<'static, Structure>,
    instances: Vec<Instance>,
    members: Vec<Member>,
    issues: Vec<Issue>,
}

#[derive(Clone, Copy, Debug)]
struct Instance {
    group: NodeId,
    parent: InstanceId,
    ordinal: u32,
    /// The places of the group that have something, one bit a place.
    filled: u64,
    first_child: InstanceId,
    last_child: InstanceId,
    next_sibling: InstanceId,
    first_segment: u32,
    last_segment: u32,
}

impl Instance {
    /// An instance with nothing in it.
    const fn empty(group: NodeId, parent: InstanceId, ordinal: u32) -> Instance {
        Instance {
            group,
            parent,
            ordinal,
            filled: 0,
            first_child: InstanceId::NONE,
            last_child: InstanceId::NONE,
            next_sibling: InstanceId::NONE,
            first_segment: NO_SEGMENT,
            last_segment: NO_SEGMENT,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Member {
    instance: InstanceId,
    position: Option<NodeId>,
    next: u32,
}

const NO_SEGMENT: u32 = u32::MAX;

impl Groups {
    /// The structure by which the message was grouped.
    pub fn structure(&self) -> &Structure {
        &self.structure
    }

    /// The groups of a document of records, each of which is the one segment of a group: for each its group, the number of the record
    /// around it, and which of its group it is there, from 1. The first is the document itself.
    pub(crate) fn of_records(
        structure: Structure,
        records: impl Iterator<Item = (NodeId, u32, u32)>,
    ) -> Groups {
        let mut groups = Groups {
            structure: Cow::Owned(structure),
            instances: Vec::new(),
            members: Vec::new(),
            issues: Vec::new(),
        };
        for ((group, around, ordinal), number) in records.zip(0..) {
            let (id, parent) = (InstanceId(number), InstanceId(around));
            groups.instances.push(Instance {
                first_segment: number,
                last_segment: number,
                ..Instance::empty(group, parent, ordinal)
            });
            groups.members.push(Member { instance: id, position: None, next: NO_SEGMENT });
            if id != InstanceId::ROOT {
                groups.hang(id, parent);
            }
        }
        groups
    }

    /// Makes an instance the last one inside another.
    fn hang(&mut self, id: InstanceId, parent: InstanceId) {
        let around = &mut self.instances[parent.index()];
        let sibling = std::mem::replace(&mut around.last_child, id);
        if sibling == InstanceId::NONE {
            around.first_child = id;
        } else {
            self.instances[sibling.index()].next_sibling = id;
        }
    }

    /// What did not stand where the structure wants it, in message order.
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// Every instance, the message first, then in the order in which they begin.
    pub fn instances(&self) -> impl Iterator<Item = InstanceId> + use<> {
        let count = u32::try_from(self.instances.len()).expect("bounded by the segments of a message");
        (0..count).map(InstanceId)
    }

    /// Every instance of a group, in the order in which they begin.
    pub fn instances_of(&self, group: NodeId) -> impl Iterator<Item = InstanceId> {
        self.instances().filter(move |id| self.group(*id) == group)
    }

    /// The group that this is an instance of.
    pub fn group(&self, id: InstanceId) -> NodeId {
        self.instances[id.index()].group
    }

    /// The instance around this one; `None` for the message.
    pub fn parent(&self, id: InstanceId) -> Option<InstanceId> {
        (id != InstanceId::ROOT).then(|| self.instances[id.index()].parent)
    }

    /// Which of the instances of its group within its parent it is, from 1.
    pub fn ordinal(&self, id: InstanceId) -> u32 {
        self.instances[id.index()].ordinal
    }

    /// The instance of `group` that this one is or lies in.
    pub fn ancestor(&self, id: InstanceId, group: NodeId) -> Option<InstanceId> {
        std::iter::successors(Some(id), |id| self.parent(*id)).find(|id| self.group(*id) == group)
    }

    /// The instances directly inside, in the order in which they begin.
    pub fn children(&self, id: InstanceId) -> impl Iterator<Item = InstanceId> {
        let some = |id: InstanceId| (id != InstanceId::NONE).then_some(id);
        std::iter::successors(some(self.instances[id.index()].first_child), move |id| {
            some(self.instances[id.index()].next_sibling)
        })
    }

    /// The segments of this instance itself (not of those inside it), in message order, each with its position;
    /// without one if the structure has none for it here.
    pub fn segments(&self, id: InstanceId) -> impl Iterator<Item = (usize, Option<NodeId>)> {
        let some = |segment: u32| (segment != NO_SEGMENT).then_some(segment);
        std::iter::successors(some(self.instances[id.index()].first_segment), move |segment| {
            some(self.members[*segment as usize].next)
        })
        .map(|segment| (segment as usize, self.members[segment as usize].position))
    }

    /// The segments at one position of this instance, in message order.
    pub fn at(&self, id: InstanceId, position: NodeId) -> impl Iterator<Item = usize> {
        self.segments(id).filter(move |(_, at)| *at == Some(position)).map(|(segment, _)| segment)
    }

    /// Where a segment of the message belongs.
    pub fn place(&self, segment: usize) -> (InstanceId, Option<NodeId>) {
        let member = &self.members[segment];
        (member.instance, member.position)
    }

    /// The path of an instance, such as `PATIENT_RESULT.ORDER_OBSERVATION[2]`; empty for the message.
    pub fn path(&self, id: InstanceId) -> String {
        let chain: Vec<_> = std::iter::successors(Some(id), |id| self.parent(*id)).collect();
        let mut path = String::new();
        for id in chain.into_iter().rev().skip(1) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(self.structure.node(self.group(id)).name);
            if self.ordinal(id) > 1 {
                path.push_str(&format!("[{}]", self.ordinal(id)));
            }
        }
        path
    }
}

/// The shape on one line: `MSH EVN PID PV1 INSURANCE(IN1 IN2)`. Positions with a name of their own show it, and `?PID` is a
/// segment that the structure has no place for.
impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open: Vec<InstanceId> = vec![InstanceId::ROOT];
        let mut glue = "";
        for (segment, member) in self.members.iter().enumerate() {
            let chain: Vec<_> = std::iter::successors(Some(member.instance), |id| self.parent(*id)).collect();
            while open.last().is_some_and(|last| !chain.contains(last)) {
                open.pop();
                f.write_str(")")?;
                glue = " ";
            }
            for id in chain.iter().rev().skip(open.len()) {
                let again = if self.instances[id.index()].first_segment < segment as u32 { "&" } else { "" };
                write!(f, "{glue}{again}{}(", self.structure.node(self.group(*id)).name)?;
                open.push(*id);
                glue = "";
            }
            match member.position {
                Some(position) => write!(f, "{glue}{}", self.structure.node(position).name)?,
                None => write!(f, "{glue}?")?,
            }
            glue = " ";
        }
        open.iter().skip(1).try_for_each(|_| f.write_str(")"))
    }
}

/// The structure of a message, by its header: MSH-9.3 if known, else the trigger event in MSH-9.2, else the one in EVN-1
/// (2.1 and 2.2 wrote `ADT` alone), in the version of MSH-12 or the nearest to it.
pub fn structure_of(message: &Message<'_>) -> Option<&'static Structure> {
    let header = message.header();
    let version = Version::nearest(header.version().as_deref().unwrap_or_default());
    let code = header.message_code().unwrap_or_default();
    let structure = header.structure().unwrap_or_default();
    let event = || {
        let evn = message.find(SegmentName::of("EVN"))?;
        message.field(evn, 1).text(message)
    };
    let trigger = header.trigger().filter(|trigger| !trigger.is_empty()).or_else(event).unwrap_or_default();
    definitions(version).structure_of(&code, &trigger, &structure)
}

/// Groups the segments of a message. Total and deterministic; some 50 nanoseconds a segment.
///
/// What is not where the structure wants it goes, in this order: to its position in a group that is still open; into a
/// group that can begin with it, going back where it must; into the last instance of its group nearby; beside another
/// of its kind where only one is allowed; into a group whose first segments are missing; else to the group of the
/// segment before it, without a position. A comment (NTE) only ever belongs to what stands before it. ORC may always be
/// left out: an OBR after an OBR is the next order. In an ORU, OBX after SPM are results as long as their order has no
/// result: senders of 2.3 habits put the specimen first.
/// Each such recovery is an [`Issue`] with the code `segment-out-of-place`, but for Z-segments, which may stand anywhere;
/// a second patient where the structure has room for one is an error with the code `second-patient`.
pub fn group(message: &Message<'_>, structure: &'static Structure) -> Groups {
    let segments = message.segments();
    let mut grouper = Grouper::new(structure, segments.len());
    grouper.documents = message.find(TXA).is_some();
    for (index, segment) in segments.iter().enumerate() {
        if let Some((severity, code, text)) = grouper.take(index, segment.name()) {
            let group = grouper.groups.path(grouper.groups.members[index].instance);
            let group = if group.is_empty() { structure.name.to_owned() } else { group };
            let issue = Issue::new(severity, code, segment.path().to_string(), format!("{text} {group}"));
            grouper.groups.issues.push(issue);
        }
    }
    grouper.groups
}

/// A way to go: keep the first `keep` open instances, open the groups from there to the target, put the segment there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    keep: u8,
    target: NodeId,
}

/// What to do with a segment that the structure does not allow next. Better ones compare less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Recovery {
    /// Put it at its position in an open group; the cursor stays.
    Straggler { level: Reverse<u8>, target: NodeId },
    /// A group begins with it; `skipped` segments that the structure needs are missing before.
    Begin { keep: Reverse<u8>, skipped: u16, backward: bool, target: NodeId },
    /// Put it into the newest instance of its group, closed already; the cursor stays.
    Resume { level: Reverse<u8>, target: NodeId },
    /// One more than allowed, at a position of an open group; the cursor stays.
    OneMore { level: Reverse<u8>, target: NodeId },
    /// One more instance of a group than allowed.
    GroupMore { keep: Reverse<u8>, target: NodeId },
    /// A group begins without its first segments, with one that heads a group inside it or that the group needs.
    Headless { missing: u16, keep: Reverse<u8>, skipped: u16, backward: bool, target: NodeId },
}

type Finding = (Severity, &'static str, &'static str);

struct Grouper {
    structure: &'static Structure,
    groups: Groups,
    /// The open instances, the message first.
    open: SmallVec<[InstanceId; 8]>,
    /// The position of the segment that last moved the cursor.
    at: NodeId,
    /// The newest instance of each group.
    newest: Vec<InstanceId>,
    /// Where the last segment went.
    last: InstanceId,
    /// Whether the message has documents at all (TXA): without one, no OBX is the text of an ORDER_DOCUMENT (since 2.8).
    documents: bool,
    /// Allowed moves found before: they depend on the cursor and the segment alone.
    known: [Option<(NodeId, SegmentName, Option<Move>)>; 16],
}

const NTE: SegmentName = SegmentName::of("NTE");
const OBX: SegmentName = SegmentName::of("OBX");
const PID: SegmentName = SegmentName::of("PID");
const TXA: SegmentName = SegmentName::of("TXA");

impl Grouper {
    fn new(structure: &'static Structure, segments: usize) -> Self {
        let mut instances = Vec::with_capacity(segments / 2 + 4);
        instances.push(Instance::empty(NodeId::ROOT, InstanceId::ROOT, 1));
        let mut newest = vec![InstanceId::NONE; structure.nodes.len()];
        newest[0] = InstanceId::ROOT;
        let members = Vec::with_capacity(segments);
        Grouper {
            structure,
            groups: Groups { structure: Cow::Borrowed(structure), instances, members, issues: Vec::new() },
            open: SmallVec::from_slice(&[InstanceId::ROOT]),
            at: NodeId::ROOT,
            newest,
            last: InstanceId::ROOT,
            documents: true,
            known: [None; 16],
        }
    }

    /// Places the next segment.
    fn take(&mut self, index: usize, name: SegmentName) -> Option<Finding> {
        let code = Some(name);
        if self.at == NodeId::ROOT {
            // The first segment is MSH whatever follows; `find` needs a position to go on from.
            self.at = NodeId(1);
            let position = (self.structure.node(self.at).code == code).then_some(self.at);
            self.attach(index, InstanceId::ROOT, position);
            return None;
        }
        let at = self.structure.node(self.at);
        if at.code == code && at.repeats {
            self.attach(index, self.innermost(), Some(self.at));
            return None;
        }
        if let Some(found) = self.alternative(name).or_else(|| self.allowed(name)) {
            if let Some(result) = self.result_after_specimen(name, found) {
                self.go(index, result);
                return Some((Severity::Warning, MISPLACED, "an order without results: taken as one of"));
            }
            self.go(index, found);
            return None;
        }
        let known = self.structure.nodes.iter().any(|node| node.code == code);
        if known
            && name != NTE
            && let Some(recovery) = self.positions(name).flat_map(|target| self.recoveries(target)).min()
        {
            return Some(self.recover(index, name, recovery));
        }
        let any = self.structure.nodes.iter().any(|node| node.segment == "ANY");
        if !known
            && any
            && let Some(found) = self.find_any()
        {
            self.go(index, found);
            return None;
        }
        self.attach(index, self.last, None);
        let expected = any || name.as_str().starts_with('Z');
        (!expected).then_some((
            Severity::Warning,
            MISPLACED,
            "has no place in this structure here: kept with the segment before it, in",
        ))
    }

    fn innermost(&self) -> InstanceId {
        *self.open.last().expect("the message stays open")
    }

    fn positions(&self, name: SegmentName) -> impl Iterator<Item = NodeId> + use<> {
        let (nodes, documents) = (&self.structure.nodes, self.documents);
        let ids = (1..nodes.len())
            .map(|index| NodeId(u16::try_from(index).expect("a structure has bounded nodes")));
        let excluded =
            move |group: NodeId| !documents && nodes[usize::from(group.0)].name == "ORDER_DOCUMENT";
        ids.filter(move |id| {
            let node = &nodes[usize::from(id.0)];
            node.code == Some(name) && !excluded(node.parent)
        })
    }

    /// Another alternative of the position at the cursor (RQ1 after RQD): it stands beside it, once.
    fn alternative(&self, name: SegmentName) -> Option<Move> {
        let at = self.structure.node(self.at);
        if at.choice == 0 {
            return None;
        }
        let target = self.structure.children(at.parent).find(|id| {
            let node = self.structure.node(*id);
            node.choice == at.choice && node.code == Some(name)
        })?;
        (!self.is_filled(self.innermost(), target)).then_some(Move { keep: self.depth(), target })
    }

    /// Where the structure allows this segment next, skipping nothing that it needs.
    fn allowed(&mut self, name: SegmentName) -> Option<Move> {
        let bytes = name.as_str().as_bytes();
        let slot = bytes.iter().fold(usize::from(self.at.0), |sum, byte| sum * 5 + usize::from(*byte))
            % self.known.len();
        if let Some((at, known, found)) = self.known[slot]
            && at == self.at
            && known == name
        {
            return found;
        }
        let mut best: Option<Move> = None;
        for target in self.positions(name) {
            best = self.better(best, target);
        }
        self.known[slot] = Some((self.at, name, best));
        best
    }

    fn find_any(&self) -> Option<Move> {
        let nodes = self.structure.nodes.iter().enumerate();
        let any = nodes.filter(|(_, node)| node.segment == "ANY");
        any.fold(None, |best, (index, _)| {
            self.better(best, NodeId(u16::try_from(index).expect("a structure has bounded nodes")))
        })
    }

    /// The deeper of two allowed moves, the first at a tie: it closes fewer groups.
    fn better(&self, best: Option<Move>, target: NodeId) -> Option<Move> {
        let keep = match self.level_of(target) {
            Some((level, here, there)) if target > self.at && self.skipped(here, there, target) == (0, 0) => {
                level + 1
            }
            Some((level, ..)) => match self.loops(level, target).find(|(_, cost)| *cost == (0, 0)) {
                Some((keep, _)) => keep,
                None => return best,
            },
            None => return best,
        };
        match best {
            Some(other) if other.keep >= keep => best,
            _ => Some(Move { keep, target }),
        }
    }

    fn depth(&self) -> u8 {
        u8::try_from(self.open.len()).expect("structures are some ten levels deep")
    }

    /// The innermost open group that a position lies in, with its child on the way to the cursor and the one to the position.
    fn level_of(&self, target: NodeId) -> Option<(u8, NodeId, NodeId)> {
        let groups = &self.groups;
        let level = self.open.iter().rposition(|id| self.structure.within(target, groups.group(*id)))?;
        let here = self.open.get(level + 1).map_or(self.at, |id| groups.group(*id));
        let around = groups.group(self.open[level]);
        let mut there = target;
        while self.structure.node(there).parent != around {
            there = self.structure.node(there).parent;
        }
        Some((u8::try_from(level).expect("below depth()"), here, there))
    }

    /// What going from the cursor to a position skips within one group: (between them, before it in the groups it opens).
    fn skipped(&self, here: NodeId, there: NodeId, target: NodeId) -> (u16, u16) {
        let (from, to) = (self.structure.needs(here), self.structure.needs(there));
        let closed = self.structure.needs(self.at).leave - from.leave;
        let between = if there > here { to.ahead.saturating_sub(from.before + from.own) } else { 0 };
        (closed + between, self.structure.needs(target).enter - to.enter)
    }

    /// Beginning an open group anew so that the position is in it: how many instances stay open, and what is skipped.
    fn loops(&self, level: u8, target: NodeId) -> impl Iterator<Item = (u8, (u16, u16))> {
        let repeats = |group| self.structure.node(group).repeats;
        self.reopenings(level, target)
            .filter(move |(_, group, _)| repeats(*group))
            .map(|(keep, _, cost)| (keep, cost))
    }

    fn reopenings(&self, level: u8, target: NodeId) -> impl Iterator<Item = (u8, NodeId, (u16, u16))> {
        (1..=level).rev().map(move |level| {
            let group = self.groups.group(self.open[usize::from(level)]);
            let needs = self.structure.needs(group);
            let skipped = self.structure.needs(self.at).leave - needs.leave;
            let missing = self.structure.needs(target).enter - needs.enter;
            (level, group, (skipped, missing))
        })
    }

    fn is_filled(&self, instance: InstanceId, node: NodeId) -> bool {
        self.groups.instances[instance.index()].filled >> self.structure.node(node).place & 1 == 1
    }

    /// Whether an instance has room at one of its group's places.
    fn has_room(&self, instance: InstanceId, node: NodeId) -> bool {
        self.structure.node(node).repeats || !self.is_filled(instance, node)
    }

    /// Every way to take a segment at a position where the structure does not allow it.
    fn recoveries(&self, target: NodeId) -> SmallVec<[Recovery; 8]> {
        let mut found = SmallVec::new();
        let Some((level, here, there)) = self.level_of(target) else { return found };
        let instance = self.open[usize::from(level)];
        let node = self.structure.node(target);
        let direct = there == target;
        let keep = Reverse(level + 1);
        // A DG1 before its order is no order: what is optional in a group and not its first does not begin it.
        let begins = node.required || target.0 == node.parent.0 + 1;
        if direct && there <= here && self.has_room(instance, target) {
            found.push(Recovery::Straggler { level: Reverse(level), target });
        }
        if direct && there <= here && (node.place > 0 || level == 0) {
            found.push(Recovery::OneMore { level: Reverse(level), target });
        }
        if there > here || (there < here && !direct) {
            let backward = there < here;
            let (skipped, missing) = self.skipped(here, there, target);
            let room = !backward || self.has_room(instance, there);
            match missing {
                0 if room => found.push(Recovery::Begin { keep, skipped, backward, target }),
                0 => found.push(Recovery::GroupMore { keep, target }),
                _ if room && begins => {
                    found.push(Recovery::Headless { missing, keep, skipped, backward, target })
                }
                _ => {}
            }
        }
        for (keep, group, (skipped, missing)) in self.reopenings(level, target) {
            let (keep, backward) = (Reverse(keep), false);
            found.push(match (self.structure.node(group).repeats, missing) {
                (true, 0) => Recovery::Begin { keep, skipped, backward, target },
                (true, _) if begins => Recovery::Headless { missing, keep, skipped, backward, target },
                (false, 0) => Recovery::GroupMore { keep, target },
                _ => continue,
            });
        }
        if !direct && self.resume(instance, target).is_some() {
            found.push(Recovery::Resume { level: Reverse(level), target });
        }
        found
    }

    /// The groups between an open instance and a position, and the newest closed instance on that way to go on in: `None`
    /// if there is none, or it has no room and no group on the way begins with the segment.
    fn resume(&self, from: InstanceId, target: NodeId) -> Option<(InstanceId, usize)> {
        let way = self.way(self.groups.group(from), target);
        let mut instance = from;
        for (index, group) in way.iter().enumerate() {
            let newest = self.newest[usize::from(group.0)];
            let exists =
                newest != InstanceId::NONE && self.groups.instances[newest.index()].parent == instance;
            let last = index + 1 == way.len();
            if exists && (!last || self.has_room(newest, target)) {
                instance = newest;
                continue;
            }
            let missing = self.structure.needs(target).enter - self.structure.needs(*group).enter;
            return (index > 0 && missing == 0 && self.has_room(instance, *group))
                .then_some((instance, index));
        }
        Some((instance, way.len()))
    }

    /// The groups inside `group` around a position, outermost first.
    fn way(&self, group: NodeId, target: NodeId) -> SmallVec<[NodeId; 8]> {
        let mut way = SmallVec::new();
        let mut around = self.structure.node(target).parent;
        while around != group {
            way.push(around);
            around = self.structure.node(around).parent;
        }
        way.reverse();
        way
    }

    fn recover(&mut self, index: usize, name: SegmentName, recovery: Recovery) -> Finding {
        match recovery {
            Recovery::Straggler { level: Reverse(level), target } => {
                self.attach(index, self.open[usize::from(level)], Some(target));
                (Severity::Warning, MISPLACED, "stands after what should follow it: taken into")
            }
            Recovery::Begin { keep: Reverse(keep), backward, target, skipped } => {
                self.go(index, Move { keep, target });
                if backward || skipped == 0 {
                    (Severity::Warning, MISPLACED, "stands after what should follow it: begins")
                } else {
                    (
                        Severity::Information,
                        MISSING,
                        "comes where another segment is required before it: taken into",
                    )
                }
            }
            Recovery::Resume { level: Reverse(level), target } => {
                let from = self.open[usize::from(level)];
                let (mut instance, begun) = self.resume(from, target).expect("it was found a moment ago");
                for group in self.way(self.groups.group(from), target).into_iter().skip(begun) {
                    instance = self.begin(instance, group);
                }
                self.attach(index, instance, Some(target));
                (Severity::Warning, MISPLACED, "stands after its group: taken into")
            }
            Recovery::OneMore { level: Reverse(level), target } => {
                self.attach(index, self.open[usize::from(level)], Some(target));
                one_more(name)
            }
            Recovery::GroupMore { keep: Reverse(keep), target } => {
                self.go(index, Move { keep, target });
                one_more(name)
            }
            Recovery::Headless { keep: Reverse(keep), target, .. } => {
                self.go(index, Move { keep, target });
                (
                    Severity::Warning,
                    MISPLACED,
                    "comes without the segments that should begin its group: taken into",
                )
            }
        }
    }

    /// OBX behind SPM in an order that has no result yet: where the result should be.
    fn result_after_specimen(&self, name: SegmentName, found: Move) -> Option<Move> {
        if name != OBX || !self.structure.name.starts_with("ORU_") {
            return None;
        }
        let way = self.way(NodeId::ROOT, found.target);
        let specimen = way.iter().position(|group| self.structure.node(*group).name == "SPECIMEN")?;
        let order = *way.get(specimen.checked_sub(1)?)?;
        let results = self.structure.group_in(order, "OBSERVATION")?;
        let level = self.open.iter().rposition(|id| self.groups.group(*id) == order)?;
        if self.is_filled(self.open[level], results) {
            return None;
        }
        let target =
            self.structure.children(results).find(|id| self.structure.node(*id).code == Some(OBX))?;
        Some(Move { keep: u8::try_from(level + 1).expect("below depth()"), target })
    }

    fn go(&mut self, index: usize, to: Move) {
        self.open.truncate(usize::from(to.keep));
        for group in self.way(self.groups.group(self.innermost()), to.target) {
            let begun = self.begin(self.innermost(), group);
            self.open.push(begun);
        }
        self.at = to.target;
        self.attach(index, self.innermost(), Some(to.target));
    }

    fn begin(&mut self, parent: InstanceId, group: NodeId) -> InstanceId {
        let id = InstanceId(
            u32::try_from(self.groups.instances.len()).expect("bounded by the segments of a message"),
        );
        let newest = std::mem::replace(&mut self.newest[usize::from(group.0)], id);
        let before = self.groups.instances.get(newest.index()).filter(|newest| newest.parent == parent);
        let ordinal = before.map_or(1, |before| before.ordinal + 1);
        self.groups.instances.push(Instance::empty(group, parent, ordinal));
        self.groups.instances[parent.index()].filled |= 1 << self.structure.node(group).place;
        self.groups.hang(id, parent);
        id
    }

    fn attach(&mut self, index: usize, id: InstanceId, position: Option<NodeId>) {
        debug_assert_eq!(index, self.groups.members.len(), "segments come in order");
        let segment = u32::try_from(index).expect("Limits bounds the segments of a message");
        let instance = &mut self.groups.instances[id.index()];
        if let Some(position) = position {
            instance.filled |= 1 << self.structure.node(position).place;
        }
        let before = std::mem::replace(&mut instance.last_segment, segment);
        if before == NO_SEGMENT {
            instance.first_segment = segment;
        } else {
            self.groups.members[before as usize].next = segment;
        }
        self.groups.members.push(Member { instance: id, position, next: NO_SEGMENT });
        self.last = id;
    }
}

const MISPLACED: &str = "segment-out-of-place";
const MISSING: &str = "segment-missing";

fn one_more(name: SegmentName) -> Finding {
    if name == PID {
        (
            Severity::Error,
            "second-patient",
            "a second patient where the structure has room for one: taken into",
        )
    } else {
        (Severity::Warning, MISPLACED, "one more than the structure allows: taken into")
    }
}

#[cfg(test)]
mod tests;
