//! Whole mappings: their resources with their parts, effects and checks; and the segment maps that the parts use.

use super::identities::top;
use super::{Compiler, Env, Part, hint, reads, source, target};
use crate::language::ast::{self, Answer, Body, Formula, Mapping, OnExisting, Resource, Word};
use crate::language::expression::{is_record_name, is_segment_name};
use crate::program::{
    CheckCode, EffectCode, IdentityRule, IgnoreRule, MappingCode, PartCode, ResourceCode, Slot, VersionRange,
};
use crate::resource::Existing;
use schemas::hl7v2::definitions::{NodeId, Structure, Version, definitions};
use schemas::hl7v2::path::SegmentName;
use schemas::yaml::Place;
use std::sync::Arc;

impl<'a> Compiler<'a> {
    /// Compiles a segment map once.
    pub(super) fn segment_map(&mut self, map: &'a ast::Map) -> Part {
        let name = map.name.text.as_str();
        if let Some(part) = self.parts.get(name) {
            return part.clone();
        }
        let file = std::mem::replace(&mut self.file, self.maps.get(name).map_or("", |(_, file)| file));
        let env = Env::of_map(self, map);
        let mut slots = Vec::new();
        if let Answer::To(to) = &map.answer {
            match (target::resource(&to.text), &map.rules) {
                (Some(resource), Body::Elements(rules)) => {
                    slots = self.slots(&env, rules, resource, name, false)
                }
                (Some(_), Body::One(rule)) => self.wrong(rule.place, name, "expected `rules:`"),
                (None, _) => {
                    let hint = hint(&to.text, target::resource_names());
                    self.wrong(to.place, "to", format!("there is no FHIR resource of this name{hint}"));
                }
            }
        }
        let ignore = self.ignores(&map.ignore, Some(&map.from.text));
        self.file = file;
        let part = Part { slots: self.list(slots), ignore: Arc::new(ignore) };
        self.parts.insert(name, part.clone());
        part
    }

    pub(super) fn mapping(&mut self, mapping: &'a Mapping) -> MappingCode {
        let versions = match &mapping.source.versions {
            Some(word) => version_range(&word.text).unwrap_or_else(|| {
                self.wrong(word.place, "source.versions", "expected one such as >=2.3, 2.5.1 or 2.3-2.5.1");
                VersionRange::ALL
            }),
            None => VersionRange::ALL,
        };
        let structures = self.structures(mapping, versions);
        let records = self.records(mapping);
        let uses = self.uses(mapping);
        let alias = |used: &Used<'a>| {
            let alias = used.resource.alias.as_ref()?;
            let from = used.from();
            let group = from.rsplit('.').find(|name| !is_segment_name(name)).unwrap_or("");
            Some((alias.text.clone(), group.to_owned()))
        };
        let aliases: Vec<(String, String)> = uses.iter().filter_map(alias).collect();
        let file = self.file;
        let mut resources: Vec<ResourceCode> = Vec::new();
        for used in &uses {
            self.file = used.file;
            let mut env = Env::of_mapping(self, used.owner, used.options);
            env.aliases.clone_from(&aliases);
            env.records.extend(records.as_ref().map(|records| records.root));
            if resources.iter().any(|other| *other.id == *used.resource.id.text) {
                self.file = file;
                let place = used.place.unwrap_or(used.resource.id.place);
                self.wrong(place, &used.resource.id.text, "this id stands here twice");
            }
            resources.extend(self.resource(&env, used, &structures));
        }
        self.file = file;
        let mut env = Env::of_mapping(self, &mapping.name.text, &mapping.options);
        env.records.extend(records.as_ref().map(|records| records.root));
        env.aliases = aliases;
        let effects = mapping.effects.iter().map(|effect| self.effect(&env, &resources, effect)).collect();
        let mut bundle = Vec::new();
        let mut checks = Vec::new();
        let mut included: Vec<&str> = mapping.include.iter().map(|one| one.fragment.text.as_str()).collect();
        included.sort_unstable();
        included.dedup();
        for name in included {
            if let Some((fragment, file)) = self.fragments.get(name).copied() {
                let env = Env::of_mapping(self, &fragment.name.text, &fragment.options);
                let around = std::mem::replace(&mut self.file, file);
                checks.extend(self.checks(&env, &fragment.checks));
                bundle.extend(self.bundle(&env, &fragment.bundle));
                self.file = around;
            }
        }
        checks.extend(self.checks(&env, &mapping.checks));
        bundle.extend(self.bundle(&env, &mapping.bundle));
        let writes = self.writes(&env, mapping);
        let code = mapping.source.code.clone().unwrap_or_else(|| {
            let first = mapping.source.structures.first().map_or("", |word| word.text.as_str());
            first.split('_').next().unwrap_or("").to_owned()
        });
        MappingCode {
            name: mapping.name.text.clone(),
            version: mapping.version.clone(),
            records,
            writes,
            structures: mapping.source.structures.iter().map(|word| word.text.clone()).collect(),
            code,
            events: mapping.source.events.iter().map(|word| word.text.clone()).collect(),
            versions,
            resources,
            bundle,
            effects,
            checks,
            ignore: self.ignored_by(mapping),
            refs: Vec::new(),
        }
    }

    /// What is said of the Bundle; what it is made of is not a mapping's to say.
    fn bundle(&mut self, env: &Env<'a>, rules: &'a [(Word, ast::Rule)]) -> Vec<Slot> {
        let mut env = env.clone();
        env.anchor = env.records.is_empty().then_some("MSH");
        for (word, _) in rules {
            if matches!(word.text.as_str(), "id" | "type" | "entry" | "total" | "link" | "signature") {
                self.wrong(
                    word.place,
                    &word.text,
                    "is not a mapping's to say: expected identifier, timestamp or meta",
                );
            }
        }
        self.slots(&env, rules, "Bundle", "bundle", false)
    }

    fn checks(&mut self, env: &Env<'a>, checks: &'a [ast::Check]) -> Vec<CheckCode> {
        let check = |check: &'a ast::Check| CheckCode {
            rule: format!("{}/checks/{}", env.owner, check.id.text).into(),
            when: self.condition(env, &check.when),
            issue: check.issue,
            text: check.text.as_str().into(),
            quarantine: check.quarantine,
        };
        checks.iter().map(check).collect()
    }

    /// The resources of a mapping: those that it includes, then its own.
    fn uses(&mut self, mapping: &'a Mapping) -> Vec<Used<'a>> {
        let mut uses = Vec::new();
        for include in &mapping.include {
            let Some((fragment, file)) = self.fragments.get(include.fragment.text.as_str()).copied() else {
                let hint = hint(&include.fragment.text, self.fragments.keys().copied().collect::<Vec<_>>());
                let text = format!("there is no fragment of this name{hint}");
                self.wrong(include.fragment.place, &include.fragment.text, text);
                continue;
            };
            let ids = || fragment.resources.iter().map(|resource| resource.id.text.as_str());
            let named = include.without.iter().chain(include.change.iter().map(|(id, _)| id));
            for word in named.filter(|word| ids().all(|id| id != word.text)) {
                let hint = hint(&word.text, ids());
                let text = format!("the fragment has no resource with this id{hint}");
                self.wrong(word.place, &word.text, text);
            }
            let left_out = |id: &str| include.without.iter().any(|word| word.text == id);
            for resource in fragment.resources.iter().filter(|resource| !left_out(&resource.id.text)) {
                let change = include.change.iter().find(|(id, _)| id.text == resource.id.text);
                uses.push(Used {
                    resource,
                    file,
                    owner: &fragment.name.text,
                    options: &fragment.options,
                    at: &include.at,
                    change: change.map(|(_, change)| change),
                    place: Some(include.fragment.place),
                });
            }
        }
        let own = mapping.resources.iter().map(|resource| Used {
            resource,
            file: self.file,
            owner: &mapping.name.text,
            options: &mapping.options,
            at: "",
            change: None,
            place: None,
        });
        uses.extend(own);
        uses
    }

    fn ignored_by(&mut self, mapping: &'a Mapping) -> Vec<IgnoreRule> {
        let mut rules = Vec::new();
        let mut named: Vec<&str> = mapping.include.iter().map(|one| one.fragment.text.as_str()).collect();
        named.sort_unstable();
        named.dedup();
        for name in named {
            if let Some((fragment, file)) = self.fragments.get(name).copied() {
                let file = std::mem::replace(&mut self.file, file);
                rules.extend(self.ignores(&fragment.ignore, None));
                self.file = file;
            }
        }
        rules.extend(self.ignores(&mapping.ignore, None));
        rules
    }

    /// A resource of a fragment that no mapping takes is a mistake in its path, most likely.
    pub(super) fn nobody_takes(&mut self) {
        let mut fragments: Vec<_> = self.fragments.values().copied().collect();
        fragments.sort_by_key(|(fragment, _)| &fragment.name.text);
        for (fragment, file) in fragments {
            self.file = file;
            for resource in &fragment.resources {
                if !self.taken.contains(&(fragment.name.text.as_str(), resource.id.text.as_str())) {
                    let text = "no mapping that includes this fragment has a place for it";
                    self.wrong(resource.from.place, &resource.id.text, text);
                }
            }
        }
    }

    fn structures(&mut self, mapping: &Mapping, versions: VersionRange) -> Vec<&'static Structure> {
        let mut found = Vec::new();
        for word in &mapping.source.structures {
            let before = found.len();
            let range = Version::ALL.into_iter().filter(|version| versions.contains(*version));
            found.extend(range.filter_map(|version| definitions(version).structure(&word.text)));
            if found.len() == before {
                let mut names: Vec<_> =
                    Version::ALL.iter().flat_map(|version| definitions(*version).structure_names()).collect();
                names.sort_unstable();
                names.dedup();
                let hint = hint(&word.text, names);
                self.wrong(
                    word.place,
                    "source.structure",
                    format!("there is no message structure of this name{hint}"),
                );
            }
        }
        found
    }

    fn resource(
        &mut self,
        env: &Env<'a>,
        used: &Used<'a>,
        structures: &[&'static Structure],
    ) -> Option<ResourceCode> {
        let resource = used.resource;
        if used.place.is_some() && !used.stands(structures) {
            return None;
        }
        if used.place.is_some() {
            self.taken.insert((used.owner, &resource.id.text));
        }
        let Some(kind) = target::resource(&resource.kind.text) else {
            let hint = hint(&resource.kind.text, target::resource_names());
            self.wrong(resource.kind.place, "type", format!("there is no FHIR resource of this name{hint}"));
            return None;
        };
        let from = Word { place: resource.from.place, text: used.from() };
        let mut env = env.clone();
        let (groups, segment) = if env.records.is_empty() {
            let (groups, segment) = self.position(&from, structures, NodeId::ROOT, resource.stray);
            env.anchor = segment.map(|_| resource.from.text.rsplit('.').next().unwrap_or(""));
            (groups, segment)
        } else {
            let (groups, way) = self.record_position(&env, &from)?;
            env.records.extend(way.down.iter().map(|step| step.shape));
            (groups.into(), Some(way.last().segment()))
        };
        let changed = used.change;
        let when = changed.and_then(|change| change.when.as_ref()).or(resource.when.as_ref());
        let when = when.map(|formula| self.condition(&env, formula));
        let mut identity = match &resource.identity {
            Some(identity) => self.identity(&env, identity),
            None => {
                self.wrong(
                    resource.place,
                    &resource.id.text,
                    "`identity:` is missing: say by what it is recognised",
                );
                IdentityRule { keys: Vec::new(), otherwise: ast::Otherwise::Message }
            }
        };
        if let Some(otherwise) = changed.and_then(|change| change.otherwise) {
            identity.otherwise = otherwise;
        }
        let existing = changed.and_then(|change| change.on_existing.clone());
        let existing = existing.or_else(|| resource.on_existing.clone());
        let existing = existing.unwrap_or(OnExisting::Always(Existing::Merge));
        let mut parts = Vec::new();
        let more = changed.map_or(&[][..], |change| &change.parts);
        for (part, own) in
            resource.parts.iter().map(|part| (part, false)).chain(more.iter().map(|part| (part, true)))
        {
            let lenient = used.place.is_some() && !own;
            parts.extend(self.part(&env, part, kind, &groups, structures, resource.stray, lenient));
        }
        let replaced = changed.map_or(&[][..], |change| &change.set);
        let mut set = self.slots(&env, &resource.set, kind, "set", false);
        if !replaced.is_empty() {
            set.retain(|slot| {
                !replaced.iter().any(|(word, _)| top(slot.path.text) == word.text.trim_end_matches("[x]"))
            });
            set.extend(self.slots(&env, replaced, kind, "set", false));
            set.iter_mut().zip(0..).for_each(|(slot, order)| slot.order = order);
        }
        let written: Vec<&str> = parts
            .iter()
            .flat_map(|part: &PartCode| part.slots.iter())
            .chain(&set)
            .map(|slot| top(slot.path.text))
            .collect();
        let missing: Vec<_> = target::required(kind)
            .into_iter()
            .filter(|name| !written.contains(&name.trim_end_matches("[x]")))
            .collect();
        for name in missing {
            self.wrong(
                resource.place,
                &resource.id.text,
                format!("{kind}.{name} is required, and no rule writes it"),
            );
        }
        let together = reads::of_slots(&mut self.code, &set);
        Some(ResourceCode {
            id: resource.id.text.as_str().into(),
            kind,
            groups,
            segment,
            when,
            existing,
            identity,
            parts,
            set: self.list(set),
            together,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "a part, the resource around it and where it may stand")]
    fn part(
        &mut self,
        env: &Env<'a>,
        part: &'a ast::Part,
        kind: &str,
        groups: &str,
        structures: &[&'static Structure],
        stray: bool,
        lenient: bool,
    ) -> Option<PartCode> {
        let (map, _) = self.find_map(&part.uses)?;
        if !super::adds_to_a_resource(map) {
            self.wrong(part.uses.place, &part.uses.text, "is no map that adds to a resource");
            return None;
        }
        if let Answer::To(to) = &map.answer
            && to.text != kind
        {
            let text = format!("{} adds to a {}, and this is a {kind}", part.uses.text, to.text);
            self.wrong(part.uses.place, &part.uses.text, text);
        }
        if map.on == ast::On::Record || !env.records.is_empty() {
            return self.record_part(env, part, map);
        }
        let mut path: Vec<&str> = part.from.text.split('.').collect();
        let segment = path.pop().unwrap_or("");
        if segment != map.from.text {
            let text = format!("{} stands on {}, not on {segment}", part.uses.text, map.from.text);
            self.wrong(part.from.place, "from", text);
        }
        let path = path.join(".");
        let inner = if groups.is_empty() || path.is_empty() {
            format!("{groups}{path}")
        } else {
            format!("{groups}.{path}")
        };
        let stands = |structure: &&&Structure| {
            structure.group(&inner).is_some_and(|group| !structure.positions(group, segment).is_empty())
        };
        if !segment.starts_with('Z')
            && !part.stray
            && !stray
            && !structures.is_empty()
            && !structures.iter().any(|s| stands(&s))
        {
            if lenient {
                return None;
            }
            let names: Vec<&str> =
                structures.iter().flat_map(|s| s.nodes.iter().map(|node| node.segment)).collect();
            let hint = hint(segment, names);
            self.wrong(part.from.place, "from", format!("{segment} does not stand in {inner}{hint}"));
        }
        let with = self.arguments(env, map, &part.with, &part.uses.text);
        let when = part.when.as_ref().map(|formula| {
            let mut env = env.clone();
            env.anchor = Some(&map.from.text);
            self.condition(&env, formula)
        });
        let Part { slots, ignore } = self.segment_map(map);
        let segment = SegmentName::new(segment)?;
        let id = reads::number(&mut self.code);
        Some(PartCode { id, groups: path.into(), segment, when, with, slots, ignore })
    }

    /// A part that stands on the record of its resource, or on one inside it.
    fn record_part(&mut self, env: &Env<'a>, part: &'a ast::Part, map: &'a ast::Map) -> Option<PartCode> {
        let (groups, way) = self.record_position(env, &part.from)?;
        if env.records.last() != Some(&way.from) {
            let own = env.records.last().map_or("", |shape| self.shapes.get(*shape).name);
            let text = format!("a part stands on the record of its resource, {own}, or on one inside it");
            self.wrong(part.from.place, "from", text);
        }
        let last = way.last();
        self.expect_record(Some(last), map, &part.uses);
        let mut inner = env.clone();
        inner.records.extend(way.down.iter().map(|step| step.shape));
        let with = self.arguments(env, map, &part.with, &part.uses.text);
        let when = part.when.as_ref().map(|formula| self.condition(&inner, formula));
        let Part { slots, ignore } = self.segment_map(map);
        let id = reads::number(&mut self.code);
        Some(PartCode { id, groups: groups.into(), segment: last.segment(), when, with, slots, ignore })
    }

    /// Parts `GROUP.GROUP.SEG` into its groups and its segment, and checks that it stands so in the structure.
    fn position(
        &mut self,
        from: &Word,
        structures: &[&'static Structure],
        root: NodeId,
        stray: bool,
    ) -> (Box<str>, Option<SegmentName>) {
        let mut groups: Vec<&str> = from.text.split('.').collect();
        let segment = match groups.last() {
            Some(last) if is_segment_name(last) => {
                let name = SegmentName::new(last);
                groups.pop();
                name
            }
            _ => None,
        };
        if from.text == "MESSAGE" {
            return ("".into(), None);
        }
        let path = groups.join(".");
        let stands = structures.iter().any(|structure| {
            structure.group_in(root, &path).is_some_and(|group| {
                segment.is_none_or(|name| {
                    stray
                        || name.as_str().starts_with('Z')
                        || !structure.positions(group, name.as_str()).is_empty()
                })
            })
        });
        if !stands && !structures.is_empty() {
            let mut names: Vec<String> = Vec::new();
            for structure in structures {
                for (path, id) in structure.groups() {
                    let segments =
                        structure.children(id).map(|id| structure.node(id)).filter(|node| !node.is_group());
                    let within =
                        |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                    names.extend(segments.map(|node| within(node.segment)));
                    names.push(path);
                }
            }
            let hint = hint(&from.text, names.iter().map(String::as_str));
            self.wrong(from.place, "from", format!("{} does not stand in the structure{hint}", from.text));
        }
        (path.into(), segment)
    }

    fn effect(
        &mut self,
        env: &Env<'a>,
        resources: &[ResourceCode],
        effect: &'a ast::EffectRule,
    ) -> EffectCode {
        let when = effect.when.as_ref().map(|formula: &Formula| self.condition(env, formula));
        let mut named = |word: &Word| {
            let found = resources.iter().position(|resource| *resource.id == *word.text);
            if found.is_none() {
                let hint = hint(&word.text, resources.iter().map(|resource| &*resource.id));
                self.wrong(
                    word.place,
                    &word.text,
                    format!("this mapping has no resource with this id{hint}"),
                );
            }
            found.unwrap_or(0)
        };
        let (what, from, into) =
            (effect.what.as_ref().map(&mut named), named(&effect.from), named(&effect.into));
        let type_of = |place: usize| resources.get(place).map(|resource| resource.kind);
        match (what, type_of(from), type_of(into)) {
            (None, Some(from), Some(into)) if from != into => {
                let text =
                    format!("a merge is of two of a kind, and {} is one of type {from}", effect.from.text);
                self.wrong(effect.into.place, &effect.into.text, text);
            }
            (Some(_), Some(from), Some(into)) => {
                for (word, ty) in [(&effect.from, from), (&effect.into, into)] {
                    if ty != "Patient" {
                        let text =
                            format!("something moves from patient to patient, and this one is of type {ty}");
                        self.wrong(word.place, &word.text, text);
                    }
                }
            }
            _ => {}
        }
        EffectCode { what, from, into, when }
    }

    /// Reads `ignore:`. `from` is the segment or the data type of the map around it.
    pub(super) fn ignores(&mut self, ignore: &[ast::Ignore], from: Option<&str>) -> Vec<IgnoreRule> {
        let mut rules = Vec::new();
        for entry in ignore {
            let root = entry.path.text.split('.').next().unwrap_or("");
            if is_record_name(root) {
                rules.extend(self.ignored_members(entry, root));
                continue;
            }
            match ignore_rule(&entry.path.text, &entry.reason, from) {
                Some(rule) => rules.push(rule),
                None => {
                    self.wrong(
                        entry.path.place,
                        "ignore",
                        "expected a path such as PID-1, PID-24-25, PID-3.2, CX.9 or CX.9-10",
                    );
                }
            }
        }
        for rule in &rules {
            if let Some(segment) = rule.segment
                && segment.as_str().len() == 3
                && !source::is_segment(segment.as_str())
                && let Some(entry) = ignore.first()
            {
                self.wrong(entry.path.place, "ignore", format!("there is no segment {segment}"));
            }
        }
        rules
    }
}

/// A resource in a mapping: its own, or one of a fragment.
struct Used<'a> {
    resource: &'a Resource,
    file: &'a str,
    /// The mapping or the fragment, for the names of options.
    owner: &'a str,
    options: &'a [ast::OptionDef],
    /// The group in which the fragment stands.
    at: &'a str,
    change: Option<&'a ast::Change>,
    /// Where it is included.
    place: Option<Place>,
}

impl Used<'_> {
    /// The group or segment in the message's structure.
    fn from(&self) -> String {
        match (self.at, self.resource.from.text.as_str()) {
            ("", from) => from.to_owned(),
            (at, "MESSAGE") => at.to_owned(),
            (at, from) => format!("{at}.{from}"),
        }
    }

    /// Whether any of the structures has the place.
    fn stands(&self, structures: &[&'static Structure]) -> bool {
        let from = self.from();
        if from == "MESSAGE" {
            return true;
        }
        let (path, segment) = match from.rsplit_once('.') {
            Some((path, last)) if is_segment_name(last) => (path, Some(last)),
            None if is_segment_name(&from) => ("", Some(&*from)),
            _ => (&*from, None),
        };
        structures.iter().any(|structure| {
            structure.group(path).is_some_and(|group| {
                segment.is_none_or(|name| self.resource.stray || !structure.positions(group, name).is_empty())
            })
        })
    }
}

/// `PID-1`, `PID-24-25`, `PID-3.2`, `SFT`, `CX.9`, `CX.9-10`, `CX.4.2`.
fn ignore_rule(path: &str, reason: &str, from: Option<&str>) -> Option<IgnoreRule> {
    let reason = Arc::from(reason);
    let end = path.find(['-', '.']).unwrap_or(path.len());
    let (name, rest) = path.split_at(end);
    let relative = from == Some(name) && !rest.starts_with('-') && !rest.is_empty();
    let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0);
    let segment =
        if relative { None } else { Some(SegmentName::new(name).filter(|_| is_segment_name(name))?) };
    if rest.is_empty() {
        return Some(IgnoreRule { segment, first: 1, last: u16::MAX, steps: [0, 0], reason });
    }
    let rest = &rest[1..];
    if let Some((first, last)) = rest.split_once('-') {
        let (first, last) = (number(first)?, number(last)?);
        return (first <= last).then_some(IgnoreRule { segment, first, last, steps: [0, 0], reason });
    }
    let mut parts = rest.split('.').map(number);
    let first = parts.next()??;
    let mut steps = [0, 0];
    for step in &mut steps {
        if let Some(number) = parts.next() {
            *step = number?;
        }
    }
    parts.next().is_none().then_some(IgnoreRule { segment, first, last: first, steps, reason })
}

/// `>=2.3`, `<=2.5.1`, `2.4`, `2.3-2.5.1`.
fn version_range(text: &str) -> Option<VersionRange> {
    let text = text.trim();
    if let Some(from) = text.strip_prefix(">=") {
        return Some(VersionRange { from: Version::parse(from.trim())?, ..VersionRange::ALL });
    }
    if let Some(to) = text.strip_prefix("<=") {
        return Some(VersionRange { to: Version::parse(to.trim())?, ..VersionRange::ALL });
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Some(VersionRange { from: Version::parse(from.trim())?, to: Version::parse(to.trim())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_paths_are_read() {
        let check = |path: &str, from: Option<&str>, expected: Option<(Option<&str>, u16, u16, [u16; 2])>| {
            let found = ignore_rule(path, "a reason", from);
            let found = found
                .as_ref()
                .map(|r| (r.segment.as_ref().map(SegmentName::as_str), r.first, r.last, r.steps));
            assert_eq!(found, expected, "{path}");
        };
        check("PID-1", None, Some((Some("PID"), 1, 1, [0, 0])));
        check("PID-24-25", Some("PID"), Some((Some("PID"), 24, 25, [0, 0])));
        check("PID-3.2", None, Some((Some("PID"), 3, 3, [2, 0])));
        check("SFT", None, Some((Some("SFT"), 1, u16::MAX, [0, 0])));
        check("CX.9-10", Some("CX"), Some((None, 9, 10, [0, 0])));
        check("CX.4.2", Some("CX"), Some((None, 4, 4, [2, 0])));
        check("XPN.1", Some("XPN"), Some((None, 1, 1, [0, 0])));
        for wrong in ["", "PID-", "PID-0", "PID-5-3", "pid-1", "CX.9"] {
            check(wrong, None, None);
        }
    }

    #[test]
    fn versions_are_ranges() {
        let range = version_range(">=2.3").expect("a range");
        assert!(
            range.contains(Version::V2_3)
                && !range.contains(Version::V2_2)
                && range.contains(Version::V2_8_2)
        );
        let range = version_range("2.3-2.5.1").expect("a range");
        assert!(range.contains(Version::V2_5_1) && !range.contains(Version::V2_6));
        assert!(version_range("latest").is_none());
    }
}
