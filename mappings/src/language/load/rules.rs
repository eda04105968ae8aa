//! Rules: what stands under `rules:`, `set:`, `first:`, `all:` and `extension:`.

use super::*;

/// The rules under `rules:` or `set:`.
pub(super) fn elements(node: &Node, path: &str, mistakes: Mistakes<'_>) -> Vec<(Word, Rule)> {
    let within = path.to_owned();
    pairs(node, path, mistakes, |name, node, mistakes| {
        let path = format!("{within}.{}", name.text);
        rule(node, &path, mistakes).map(|rule| (name, rule))
    })
}

const PRODUCERS: [&str; 11] =
    ["value", "const", "absent", "concept", "use", "make", "first", "all", "switch", "ref", "refs"];

/// What may stand beside them.
const MODIFIERS: [&str; 21] = [
    "without",
    "id",
    "when",
    "each",
    "from",
    "as",
    "display",
    "url",
    "set",
    "with",
    "map",
    "on_error",
    "on_unmapped",
    "on_unmatched",
    "on_existing",
    "issue",
    "guide",
    "extension",
    "where",
    "clear",
    "max",
];

pub(super) fn rule(node: &Node, path: &str, mistakes: Mistakes<'_>) -> Option<Rule> {
    if let Value::List(_) = node.value {
        wrong(
            mistakes,
            node.place,
            path,
            "a list says neither `first:` nor `all:`; write one of them before it",
        );
        return None;
    }
    let mut fields = Fields::new(node, path, mistakes);
    // `use` beside `make` says how the made resource is filled; it is no second producer.
    let made = node.get("make").is_some();
    let producers: Vec<&str> =
        PRODUCERS.into_iter().filter(|name| node.get(name).is_some() && !(made && *name == "use")).collect();
    if let [_, second, ..] = producers.as_slice() {
        fields.wrong(
            node.place,
            second,
            format!("a rule does one thing; here are {}", producers.join(" and ")),
        );
    }
    let id = word(&mut fields, "id");
    let when = formula_at(&mut fields, "when");
    let each = formula_at(&mut fields, "each");
    let from = formula_at(&mut fields, "from");
    let as_type = word(&mut fields, "as");
    let display = formula_at(&mut fields, "display");
    let url = word(&mut fields, "url");
    let set = fields.take("set").map(|node| elements(node, path, fields.mistakes())).unwrap_or_default();
    let with = with(&mut fields);
    let map = fields.take("map").and_then(|node| table(node, path, fields.mistakes()));
    let on_error = fields
        .take("on_error")
        .map_or(Some(OnError::Default), |node| on_error(node, path, fields.mistakes()));
    let on_unmapped =
        fields.take("on_unmapped").and_then(|node| on_code(node, path, "on_unmapped", fields.mistakes()));
    let on_unmatched =
        fields.take("on_unmatched").and_then(|node| on_code(node, path, "on_unmatched", fields.mistakes()));
    let on_existing = on_existing(&mut fields);
    let clear = formula_at(&mut fields, "clear");
    let issue = severity(&mut fields);
    fields.take("guide");
    let extension = match fields.take("extension") {
        Some(node) => extensions(node, path, fields.mistakes()),
        None => Vec::new(),
    };
    let does = match producers.first() {
        Some(&"value") => formula_at(&mut fields, "value").map(Does::Value),
        Some(&"const") => word(&mut fields, "const").map(Does::Const),
        Some(&"absent") => word(&mut fields, "absent").map(Does::Absent),
        Some(&"concept") => word(&mut fields, "concept").map(Does::Concept),
        Some(&"use") => word(&mut fields, "use").map(Does::Use),
        Some(&"make") => {
            let kind = word(&mut fields, "make");
            let uses = word(&mut fields, "use");
            let identity = fields.take("identity").and_then(|node| identity(node, path, fields.mistakes()));
            kind.map(|kind| Does::Make { kind, uses, identity: identity.map(Box::new) })
        }
        Some(&"first") => Some(Does::First(items(&mut fields, "first", path))),
        Some(&"all") => Some(Does::All(items(&mut fields, "all", path))),
        Some(&"switch") => switch(&mut fields, path),
        Some(&"ref") => {
            let to = word(&mut fields, "ref");
            let filter = formula_at(&mut fields, "where");
            to.map(|to| Does::Ref { to, filter })
        }
        Some(&"refs") => {
            let to = word(&mut fields, "refs");
            let filter = formula_at(&mut fields, "where");
            let max = fields.take_parsed("max", "a number");
            let without = words(&mut fields, "without");
            to.map(|to| Does::Refs { to, filter, without, max })
        }
        Some(_) => None,
        None if !set.is_empty() => Some(Does::Object),
        None if url.is_some() && !extension.is_empty() => Some(Does::Extension),
        None => {
            // Claim the names, so that a misspelt one is met with its nearest.
            for name in PRODUCERS {
                fields.take(name);
            }
            let known =
                |key: &Key| PRODUCERS.contains(&key.name.as_str()) || MODIFIERS.contains(&key.name.as_str());
            let all_known =
                matches!(&node.value, Value::Map(entries) if entries.iter().all(|(key, _)| known(key)));
            // An unknown key is told below, with the nearest one.
            if all_known {
                fields.wrong(node.place, "", format!("expected one of {}, set", PRODUCERS.join(", ")));
            }
            None
        }
    };
    if let [_, others @ ..] = producers.as_slice() {
        for name in PRODUCERS.into_iter().filter(|name| others.contains(name)) {
            fields.take(name);
        }
    }
    fields.finish();
    Some(Rule {
        place: node.place,
        file: None,
        id,
        when,
        each,
        from,
        does: does?,
        set,
        with,
        map,
        as_type,
        display,
        url,
        extension,
        on_error: on_error?,
        on_unmapped,
        on_unmatched,
        on_existing,
        clear,
        issue,
    })
}

/// The rules of a list, each with an id of its own.
pub(super) fn items(fields: &mut Fields<'_, '_>, name: &'static str, path: &str) -> Vec<Rule> {
    let list = fields.take_list(name);
    named_rules(list, &format!("{path}.{name}"), fields.mistakes())
}

fn named_rules(list: &[Node], path: &str, mistakes: Mistakes<'_>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for node in list {
        let id = node.get("id").and_then(Node::text);
        if id.is_none() {
            wrong(mistakes, node.place, path, "each item needs an `id:`: it is the name of its slot");
        }
        let path = id.map_or_else(|| path.to_owned(), |id| format!("{path}.{id}"));
        let Some(rule) = rule(node, &path, mistakes) else { continue };
        let twice =
            rules.iter().any(|other| matches!((&other.id, &rule.id), (Some(a), Some(b)) if a.text == b.text));
        if twice {
            wrong(mistakes, node.place, &path, "this id stands here twice");
        }
        rules.push(rule);
    }
    rules
}

/// `extension: {all: [..]}` or a list.
fn extensions(node: &Node, path: &str, mistakes: Mistakes<'_>) -> Vec<Rule> {
    let path = format!("{path}.extension");
    match (&node.value, node.get("all").map(|all| &all.value)) {
        (Value::List(list), _) | (Value::Map(_), Some(Value::List(list))) => {
            named_rules(list, &path, mistakes)
        }
        _ => {
            wrong(mistakes, node.place, &path, "expected a list of extensions, or `all:` with one");
            Vec::new()
        }
    }
}

fn switch(fields: &mut Fields<'_, '_>, path: &str) -> Option<Does> {
    let on = formula_at(fields, "switch");
    let node = fields.take_required("cases")?;
    let mut otherwise = None;
    let mut cases = Vec::new();
    for (name, rule) in elements(node, &format!("{path}.cases"), fields.mistakes()) {
        if name.text == "else" {
            otherwise = Some(Box::new(rule));
        } else {
            cases.push((name.text.split_whitespace().map(str::to_owned).collect(), rule));
        }
    }
    Some(Does::Switch { on: on?, cases, otherwise })
}

pub(super) fn with(fields: &mut Fields<'_, '_>) -> Vec<(Word, Argument)> {
    let Some(node) = fields.take("with") else { return Vec::new() };
    pairs(node, "with", fields.mistakes(), |name, node, mistakes| {
        let Some(text) = node.text() else {
            wrong(mistakes, node.place, "with", format!("expected a text, found {}", node.kind()));
            return None;
        };
        let argument = match text.strip_prefix('=') {
            Some(rest) => {
                let place = Place { line: node.place.line, column: node.place.column + 1 };
                Argument::Formula(formula_text(rest, place, "with", mistakes)?)
            }
            None => Argument::Text(Word { place: node.place, text: text.to_owned() }),
        };
        Some((name, argument))
    })
}

pub(super) fn table(node: &Node, path: &str, mistakes: Mistakes<'_>) -> Option<TableRef> {
    match &node.value {
        Value::Text(text) if text == "with.map" => Some(TableRef::Given),
        Value::Text(text) => Some(TableRef::Named(Word { place: node.place, text: text.clone() })),
        Value::Map(_) => {
            let mut fields = Fields::new(node, &format!("{path}.map"), mistakes);
            let sender = required_word(&mut fields, "sender");
            fields.finish();
            sender.map(TableRef::Sender)
        }
        _ => {
            wrong(mistakes, node.place, path, "expected the name of a table");
            None
        }
    }
}

pub(super) fn policy(text: &str) -> Option<Policy> {
    match text {
        "fail" => Some(Policy::Fail),
        "omit" => Some(Policy::Omit),
        "data-absent" => Some(Policy::DataAbsent),
        "quarantine" => Some(Policy::Quarantine),
        _ => None,
    }
}

const POLICIES: [&str; 4] = ["fail", "omit", "data-absent", "quarantine"];

fn expected_policy(text: &str) -> String {
    let hint = nearest(text, POLICIES).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    format!("expected one of {}{hint}", POLICIES.join(", "))
}

fn on_error(node: &Node, path: &str, mistakes: Mistakes<'_>) -> Option<OnError> {
    if let Some(text) = node.text() {
        let found = policy(text).map(OnError::Policy);
        if found.is_none() {
            wrong(mistakes, node.place, &format!("{path}.on_error"), expected_policy(text));
        }
        return found;
    }
    rule(node, &format!("{path}.on_error"), mistakes).map(|rule| OnError::Rule(Box::new(rule)))
}

fn on_code(node: &Node, path: &str, name: &str, mistakes: Mistakes<'_>) -> Option<OnCode> {
    let path = format!("{path}.{name}");
    if let Some(text) = node.text() {
        let found = policy(text).filter(|p| *p != Policy::DataAbsent);
        if found.is_none() {
            wrong(mistakes, node.place, &path, expected_policy(text));
        }
        return found.map(|policy| OnCode { policy: Some(policy), ..OnCode::default() });
    }
    let mut fields = Fields::new(node, &path, mistakes);
    let set = word(&mut fields, "set");
    let keep = fields.take_choice("keep", &["local"]).is_some();
    // Every code that a table does not know goes to the queue; to say so is allowed.
    fields.take_bool("queue");
    let policy = fields.take_choice("policy", &["omit", "fail", "quarantine"]).and_then(policy);
    let issue = severity(&mut fields);
    fields.finish();
    Some(OnCode { set, keep, policy, issue })
}

fn existing(text: &str) -> Option<Existing> {
    match text {
        "merge" => Some(Existing::Merge),
        "fill" => Some(Existing::Fill),
        "add" => Some(Existing::Add),
        "keep" => Some(Existing::Keep),
        _ => None,
    }
}

pub(super) fn on_existing(fields: &mut Fields<'_, '_>) -> Option<OnExisting> {
    let node = fields.take("on_existing")?;
    if node.text().is_some() {
        return fields
            .take_choice("on_existing", &["merge", "fill", "add", "keep"])
            .and_then(existing)
            .map(OnExisting::Always);
    }
    let mut otherwise = Existing::Merge;
    let cases = pairs(node, "on_existing", fields.mistakes(), |name, node, mistakes| {
        let found = node.text().and_then(existing);
        if found.is_none() {
            wrong(mistakes, node.place, "on_existing", "expected one of merge, fill, add, keep");
        }
        found.map(|found| (name.text, found))
    });
    let cases = cases
        .into_iter()
        .filter(|(name, found)| {
            if name == "else" {
                otherwise = *found;
            }
            name != "else"
        })
        .collect();
    Some(OnExisting::ByTrigger { cases, otherwise })
}

pub(super) fn severity(fields: &mut Fields<'_, '_>) -> Option<Severity> {
    fields.take_choice("issue", &["information", "warning", "error"]).map(|word| match word {
        "information" => Severity::Information,
        "warning" => Severity::Warning,
        _ => Severity::Error,
    })
}
