//! Identities: the keys of a resource, and the resources that are made from a field.

use super::{Compiler, Env, reads, target};
use crate::language::ast::{self, Answer, Body, Identity, KeyRule, Map, Rule, Word};
use crate::language::expression::Expr;
use crate::program::{Action, ChainLevel, IdentityRule, Key, Make};
use crate::resource::Existing;
use schemas::hl7v2::path::SegmentName;

impl<'a> Compiler<'a> {
    pub(super) fn identity(&mut self, env: &Env<'a>, identity: &'a Identity) -> IdentityRule {
        let mut env = env.clone();
        env.identity = true;
        let keys =
            identity.keys.iter().filter_map(|key| self.key(&env, key, identity.uses.as_ref())).collect();
        IdentityRule { keys, otherwise: identity.otherwise }
    }

    fn key(&mut self, env: &Env<'a>, key: &'a KeyRule, default: Option<&'a Word>) -> Option<Key> {
        let of = key.of.as_ref().map(|word| self.reference(word));
        let each = key.each.as_ref().map(|formula| self.path_formula(env, formula));
        let env = match &each {
            Some(typed) => &env.with_items_of(typed),
            None => env,
        };
        let when = key.when.as_ref().map(|formula| self.condition(env, formula));
        let uses = if key.value.is_empty() { key.uses.as_ref().or(default) } else { key.uses.as_ref() };
        let each = each.map(|typed| typed.id);
        if let Some(word) = uses {
            let (map, _) = self.find_map(word)?;
            if !matches!(map.answer, Answer::Key(_)) {
                self.wrong(word.place, &word.text, "is no map with `key:`");
                return None;
            }
            if map.on == ast::On::Record {
                self.expect_record(env.records.last().copied(), map, word);
            } else {
                let types = env.bases.last().map(|(types, _)| types.clone()).unwrap_or_default();
                self.expect_source(&types, map, word);
            }
            let inner = Env::of_map(self, map);
            let (system, value) = self.key_map(&inner, map)?;
            return Some(Key {
                each,
                system,
                value: vec![value],
                of,
                when,
                fallback: key.fallback,
                ordinal: false,
                by_map: true,
            });
        }
        if key.value.is_empty() {
            self.wrong(key.place, "value", "expected `value:`, or `use:` of a map with `key:`");
            return None;
        }
        let system = key.system.as_ref().map(|formula| self.formula(env, formula).id);
        let ordinal =
            key.value.iter().any(|f| matches!(&f.expr, Expr::Call { name, .. } if name == "ordinal"));
        let value = key
            .value
            .iter()
            .filter(|f| !matches!(&f.expr, Expr::Call { name, .. } if name == "ordinal"))
            .map(|formula| self.formula(env, formula).id)
            .collect();
        Some(Key { each, system, value, of, when, fallback: key.fallback, ordinal, by_map: false })
    }

    /// The system and the value of a map with `key:`.
    pub(super) fn key_map(
        &mut self,
        env: &Env<'a>,
        map: &'a Map,
    ) -> Option<(Option<crate::program::ExprId>, crate::program::ExprId)> {
        let Answer::Key(key) = &map.answer else { return None };
        let file = std::mem::replace(
            &mut self.file,
            self.maps.get(map.name.text.as_str()).map_or("", |(_, file)| file),
        );
        let system = key.system.as_ref().map(|formula| self.formula(env, formula).id);
        let value = self.formula(env, &key.value).id;
        self.file = file;
        Some((system, value))
    }

    /// Checks a map with `makes:` that nobody may use yet.
    pub(super) fn check_makes(&mut self, map: &'a Map, kind: &Word) {
        if self.made(kind).is_none() {
            return;
        }
        if map.identity.is_none() {
            self.wrong(map.name.place, "identity", "is missing: a made resource has an identity");
        }
        let env = Env::of_map(self, map);
        self.make_of_map(&env, map, kind);
    }

    fn made(&mut self, kind: &Word) -> Option<&'static str> {
        let camel: String = kind
            .text
            .split('_')
            .map(|piece| {
                let mut chars = piece.chars();
                chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
            })
            .collect();
        let found = target::resource(&camel);
        if found.is_none() {
            let hint = super::hint(&camel, target::resource_names());
            self.wrong(kind.place, &kind.text, format!("there is no FHIR resource of this name{hint}"));
        }
        found
    }

    fn make_of_map(&mut self, env: &Env<'a>, map: &'a Map, kind: &Word) -> Option<Make> {
        let resource = self.made(kind)?;
        let slots = match &map.rules {
            Body::Elements(rules) => self.slots(env, rules, resource, &map.name.text, false),
            Body::One(rule) => {
                self.wrong(rule.place, &map.name.text, "expected `rules:`");
                Vec::new()
            }
        };
        let identity = match &map.identity {
            Some(identity) => self.identity(env, identity),
            None => IdentityRule { keys: Vec::new(), otherwise: ast::Otherwise::Message },
        };
        let display = map.display.as_ref().map(|formula| self.formula(env, formula).id);
        let chain = map
            .chain
            .iter()
            .map(|level| ChainLevel {
                id: level.id.text.as_str().into(),
                kind: level.kind.as_ref().map_or("", |kind| kind.text.as_str()).into(),
                from: self.path_formula(env, &level.from).id,
            })
            .collect();
        let ignore = self.ignores(&map.ignore, Some(&map.from.text));
        Some(Make {
            kind: resource,
            record: self.record_of(map),
            slots,
            identity,
            display,
            chain,
            with: Vec::new(),
            ignore,
            // A map makes what the message names in passing; an identity of its own says more.
            existing: Existing::Add,
            outer_identity: false,
            remember: None,
        })
    }

    /// Compiles one `make:`. Its `set:` takes the place of what the map writes into the same elements.
    pub(super) fn make(
        &mut self,
        env: &Env<'a>,
        rule: &'a Rule,
        kind: &Word,
        uses: Option<&Word>,
        identity: Option<&'a Identity>,
        name: &str,
    ) -> Option<Action> {
        let resource = self.made(kind)?;
        let mut from = None;
        let mut make = match uses {
            Some(word) => {
                let (map, file) = self.find_map(word)?;
                match &map.answer {
                    Answer::Makes(made) if self.made(made) == Some(resource) => {}
                    _ => {
                        self.wrong(word.place, name, format!("{} does not make a {resource}", word.text));
                        return None;
                    }
                }
                from = self.source_of(env, rule, map, word);
                if self.open.contains(&map.name.text.as_str()) {
                    self.wrong(word.place, name, format!("{} makes itself in a circle", word.text));
                    return None;
                }
                self.open.push(&map.name.text);
                let outer = std::mem::replace(&mut self.file, file);
                let inner = Env::of_map(self, map);
                let make = self.make_of_map(&inner, map, kind);
                self.file = outer;
                self.open.pop();
                let mut make = make?;
                make.with = self.arguments(env, map, &rule.with, name);
                make
            }
            None => Make {
                kind: resource,
                record: None,
                slots: Vec::new(),
                identity: IdentityRule { keys: Vec::new(), otherwise: ast::Otherwise::Omit },
                display: None,
                chain: Vec::new(),
                with: Vec::new(),
                ignore: Vec::new(),
                existing: Existing::Merge,
                outer_identity: false,
                remember: None,
            },
        };
        match identity {
            Some(identity) => make.identity = self.identity(env, identity),
            None if uses.is_none() => {
                self.wrong(
                    rule.place,
                    name,
                    "a made resource has an `identity:`, here or in the map that it uses",
                );
            }
            None => {}
        }
        make.outer_identity = identity.is_some();
        if let Some(on_existing) = &rule.on_existing {
            match on_existing {
                ast::OnExisting::Always(existing) => make.existing = *existing,
                ast::OnExisting::ByTrigger { .. } => {
                    self.wrong(rule.place, name, "expected one of merge, fill, add, keep");
                }
            }
        }
        let owner = uses.map_or_else(|| "set".to_owned(), |word| format!("{}/set", word.text));
        let mut set = self.slots(env, &rule.set, resource, &owner, true);
        let replaced =
            |path: &str| rule.set.iter().any(|(word, _)| top(path) == word.text.trim_end_matches("[x]"));
        make.slots.retain(|slot| !replaced(slot.path.text));
        let after = make.slots.last().map_or(0, |slot| slot.order + 1);
        for slot in &mut set {
            slot.order += after;
        }
        make.slots.extend(set);
        for missing in target::required(resource) {
            let bare = missing.trim_end_matches("[x]");
            if !make.slots.iter().any(|slot| top(slot.path.text) == bare) {
                self.wrong(
                    rule.place,
                    name,
                    format!("{resource}.{missing} is required, and no rule writes it"),
                );
            }
        }
        let anchor = env.anchor.and_then(SegmentName::new);
        make.remember = reads::of_make(&mut self.code, &make, from, anchor);
        let make = self.makes.once(&mut self.code.makes, make);
        Some(Action::Make { make, from })
    }
}

/// The element of the resource that a slot's path begins with.
pub(super) fn top(path: &str) -> &str {
    let end = path.find(['.', '[']).unwrap_or(path.len());
    &path[..end]
}
