//! Reads a mapping file into its tree and collects every mistake on the way.

mod rules;
mod words;

use super::ast::*;
use super::expression::{self, Expr};
use super::overlay::{Overlay, Patch};
use crate::resource::Existing;
use rules::*;
use schemas::issue::Severity;
use schemas::records::Csv;
use schemas::yaml::{Fields, Key, Mistake, Node, Place, Value, nearest};
use words::*;
pub(crate) use words::{is_path, within};

/// Reads every document of one file. What could be read is returned beside the mistakes, so that the next check can
/// find more of them.
pub(crate) fn read_file(text: &str) -> (Vec<Document>, Vec<Mistake>) {
    let nodes = match schemas::yaml::read(text) {
        Ok(nodes) => nodes,
        Err(mistake) => return (Vec::new(), vec![mistake]),
    };
    let mut mistakes = Vec::new();
    let documents = nodes.iter().filter_map(|node| document(node, &mut mistakes)).collect();
    (documents, mistakes)
}

type Mistakes<'m> = &'m mut Vec<Mistake>;

fn wrong(mistakes: Mistakes<'_>, place: Place, key: &str, text: impl Into<String>) {
    mistakes.push(Mistake { place, key: key.to_owned(), text: text.into() });
}

fn document(node: &Node, mistakes: Mistakes<'_>) -> Option<Document> {
    if MAPS.iter().any(|(key, _)| node.get(key).is_some()) {
        return map(node, mistakes).map(|map| Document::Map(Box::new(map)));
    }
    if node.get("mapping").is_some() {
        return mapping(node, mistakes).map(|mapping| Document::Mapping(Box::new(mapping)));
    }
    if node.get("fragment").is_some() {
        return fragment(node, mistakes).map(|fragment| Document::Fragment(Box::new(fragment)));
    }
    if node.get("tests_for").is_some() {
        let mut fields = Fields::new(node, "", mistakes);
        let of = required_word(&mut fields, "tests_for");
        let tests = tests(&mut fields);
        fields.finish();
        return Some(Document::Tests { of: of?, tests });
    }
    if node.get("overlay").is_some() {
        return overlay(node, mistakes).map(|overlay| Document::Overlay(Box::new(overlay)));
    }
    if node.get("z_segment").is_some() {
        return declared(node, mistakes).map(Document::Segment);
    }
    if node.get("record").is_some() {
        return record(node, mistakes).map(Document::Record);
    }
    if matches!(node.value, Value::Empty) {
        return None;
    }
    wrong(
        mistakes,
        node.place,
        "",
        "expected a document that begins with type_map:, segment_map:, record_map:, fragment:, mapping:, tests_for:, overlay:, z_segment: or record:",
    );
    None
}

/// The keys with which a map begins, and on what it stands.
const MAPS: [(&str, On); 3] =
    [("type_map", On::Element), ("segment_map", On::Segment), ("record_map", On::Record)];

fn map(node: &Node, mistakes: Mistakes<'_>) -> Option<Map> {
    let mut fields = Fields::new(node, "", mistakes);
    let (key, on) = MAPS.into_iter().find(|(key, _)| node.get(key).is_some())?;
    let name = word(&mut fields, key)?;
    let of_segment = on == On::Segment;
    let from = required_word(&mut fields, "from");
    let to = word(&mut fields, "to");
    let makes = if of_segment { None } else { word(&mut fields, "makes") };
    let key = if of_segment { None } else { fields.take("key") };
    let answer = match (to, makes, key) {
        (Some(to), None, None) => Some(Answer::To(to)),
        (None, Some(makes), None) => Some(Answer::Makes(makes)),
        (None, None, Some(key)) => key_answer(key, fields.mistakes()),
        _ => {
            let expected =
                if of_segment { "expected `to:`" } else { "expected one of `to:`, `makes:` and `key:`" };
            fields.wrong(name.place, "to", expected);
            None
        }
    };
    // What is about versions, groups and the guide is about HL7 v2.
    let of_record = on == On::Record;
    if !of_record {
        fields.take_text("versions");
        fields.take_text("guide");
    }
    let scope = match if of_record { None } else { fields.take("scope") } {
        Some(node) => pairs(node, "scope", fields.mistakes(), |name, node, mistakes| {
            let text =
                node.text().map(|text| text.strip_prefix("optional ").unwrap_or(text).trim().to_owned());
            match text {
                Some(text) => Some((name, Word { place: node.place, text })),
                None => {
                    wrong(mistakes, node.place, "scope", "expected the name of a group");
                    None
                }
            }
        }),
        None => Vec::new(),
    };
    let options = options(&mut fields);
    let params = words(&mut fields, "params");
    // What one segment says belongs to the resource of a mapping, which says who it is.
    let (mut own_identity, mut display, mut levels) = (None, None, Vec::new());
    if !of_segment {
        own_identity = fields.take("identity").and_then(|node| identity(node, "identity", fields.mistakes()));
        display = formula_at(&mut fields, "display");
        levels = chain(&mut fields);
    }
    let ignore = ignores(&mut fields);
    let tests = tests(&mut fields);
    let is_key = matches!(answer, Some(Answer::Key(_)));
    let rules = match fields.take("rules") {
        Some(node) => {
            let rules = Body::Elements(elements(node, "rules", fields.mistakes()));
            fields.finish();
            rules
        }
        None if is_key => {
            fields.finish();
            Body::Elements(Vec::new())
        }
        None => {
            // The keys of a rule may stand at the top of a type map; the rest of the keys are known already.
            drop(fields);
            let rest = without(
                node,
                &[
                    "type_map",
                    "segment_map",
                    "record_map",
                    "from",
                    "to",
                    "makes",
                    "versions",
                    "scope",
                    "options",
                    "params",
                    "identity",
                    "display",
                    "chain",
                    "ignore",
                    "tests",
                    "guide",
                ],
            );
            Body::One(Box::new(rule(&rest, "", mistakes)?))
        }
    };
    Some(Map {
        name,
        on,
        from: from?,
        answer: answer?,
        scope,
        options,
        params,
        rules,
        identity: own_identity,
        display,
        chain: levels,
        ignore,
        tests,
    })
}

/// The map without some of its keys.
fn without(node: &Node, names: &[&str]) -> Node {
    let value = match &node.value {
        Value::Map(entries) => Value::Map(
            entries.iter().filter(|(key, _)| !names.contains(&key.name.as_str())).cloned().collect(),
        ),
        other => other.clone(),
    };
    Node { place: node.place, value }
}

fn key_answer(node: &Node, mistakes: Mistakes<'_>) -> Option<Answer> {
    let mut fields = Fields::new(node, "key", mistakes);
    let system = formula_at(&mut fields, "system");
    let value = required_formula(&mut fields, "value");
    fields.finish();
    Some(Answer::Key(Box::new(KeyAnswer { system, value: value? })))
}

fn chain(fields: &mut Fields<'_, '_>) -> Vec<Level> {
    let mut levels = Vec::new();
    for node in fields.take_list("chain") {
        let mut level = Fields::new(node, "chain", fields.mistakes());
        let id = required_word(&mut level, "id");
        let from = required_formula(&mut level, "from");
        let kind = word(&mut level, "type");
        level.finish();
        if let (Some(id), Some(from)) = (id, from) {
            levels.push(Level { id, from, kind });
        }
    }
    levels
}

fn mapping(node: &Node, mistakes: Mistakes<'_>) -> Option<Mapping> {
    let mut fields = Fields::new(node, "", mistakes);
    let name = word(&mut fields, "mapping");
    let version = fields.take_required("version").and_then(Node::text).unwrap_or("0").to_owned();
    let source = fields.take_required("source").and_then(|node| source(node, fields.mistakes()));
    let options = options(&mut fields);
    let mut include = Vec::new();
    for node in fields.take_list("include") {
        include.extend(one_include(node, fields.mistakes()));
    }
    let mut resources = Vec::new();
    for node in fields.take_list("resources") {
        resources.extend(resource(node, fields.mistakes()));
    }
    let writes = writes(&mut fields);
    let bundle =
        fields.take("bundle").map(|node| elements(node, "bundle", fields.mistakes())).unwrap_or_default();
    let mut effects = Vec::new();
    for node in fields.take_list("effects") {
        effects.extend(effect(node, fields.mistakes()));
    }
    let mut checks = Vec::new();
    for node in fields.take_list("checks") {
        checks.extend(check(node, fields.mistakes()));
    }
    let ignore = ignores(&mut fields);
    let tests = tests(&mut fields);
    fields.take_text("guide");
    fields.finish();
    Some(Mapping {
        name: name?,
        version,
        source: source?,
        writes,
        options,
        include,
        resources,
        bundle,
        effects,
        checks,
        ignore,
        tests,
    })
}

fn fragment(node: &Node, mistakes: Mistakes<'_>) -> Option<Fragment> {
    let mut fields = Fields::new(node, "", mistakes);
    let name = required_word(&mut fields, "fragment");
    let options = options(&mut fields);
    let mut resources = Vec::new();
    for node in fields.take_list("resources") {
        resources.extend(resource(node, fields.mistakes()));
    }
    let mut checks = Vec::new();
    for node in fields.take_list("checks") {
        checks.extend(check(node, fields.mistakes()));
    }
    let bundle =
        fields.take("bundle").map(|node| elements(node, "bundle", fields.mistakes())).unwrap_or_default();
    let ignore = ignores(&mut fields);
    fields.finish();
    Some(Fragment { name: name?, options, resources, checks, bundle, ignore })
}

fn overlay(node: &Node, mistakes: Mistakes<'_>) -> Option<Overlay> {
    let mut fields = Fields::new(node, "", mistakes);
    let name = required_word(&mut fields, "overlay");
    let priority = fields.take_parsed("priority", "a number").unwrap_or(0);
    let options = match fields.take("options") {
        Some(node) => pairs(node, "options", fields.mistakes(), |key, node, mistakes| {
            let text = node.text().map(str::to_owned);
            if text.is_none() {
                wrong(mistakes, node.place, &key.text, "expected a choice");
            }
            Some((key, text?))
        }),
        None => Vec::new(),
    };
    let patches = match fields.take("patch") {
        Some(node) => pairs(node, "patch", fields.mistakes(), |path, node, mistakes| {
            let patch = patch(node, &path.text, mistakes);
            patch.map(|patch| (path, patch))
        }),
        None => Vec::new(),
    };
    fields.finish();
    Some(Overlay { name: name?, priority, options, patches })
}

fn patch(node: &Node, path: &str, mistakes: Mistakes<'_>) -> Option<Patch> {
    const VERBS: [&str; 4] = ["replace", "remove", "add", "table"];
    let mut fields = Fields::new(node, path, mistakes);
    if VERBS.iter().filter(|verb| node.get(verb).is_some()).count() != 1 {
        fields.wrong(node.place, "", format!("expected one of {}", VERBS.join(", ")));
    }
    let after = word(&mut fields, "after");
    let replace = fields.take("replace").map(|node| rule(node, path, fields.mistakes()));
    let add = fields.take("add").map(|node| rule(node, path, fields.mistakes()));
    let remove = fields.take_text("remove").map(str::to_owned);
    let table = fields.take("table").map(|node| table(node, path, fields.mistakes()));
    fields.finish();
    match (replace, add, remove, table) {
        (Some(rule), None, None, None) => Some(Patch::Replace(Box::new(rule?))),
        (None, Some(rule), None, None) => Some(Patch::Add { rule: Box::new(rule?), after }),
        (None, None, Some(reason), None) => Some(Patch::Remove(reason)),
        (None, None, None, Some(table)) => Some(Patch::Table(table?)),
        _ => None,
    }
}

fn declared(node: &Node, mistakes: Mistakes<'_>) -> Option<Declared> {
    let mut fields = Fields::new(node, "", mistakes);
    let name = required_word(&mut fields, "z_segment");
    fields.take_text("title");
    let mut types = Vec::new();
    for node in fields.take_list("fields") {
        let mut field = Fields::new(node, "fields", fields.mistakes());
        field.take_required("name");
        types.extend(required_word(&mut field, "type"));
        field.finish();
    }
    fields.finish();
    let name = name?;
    if !(name.text.len() == 3 && name.text.starts_with('Z')) {
        wrong(
            mistakes,
            name.place,
            "z_segment",
            "expected the name of a segment of a site's own, such as ZPD",
        );
        return None;
    }
    Some(Declared { name, types })
}

/// The kinds of values that a member of a record may hold.
pub(crate) const VALUES: [&str; 3] = ["text", "number", "boolean"];

fn record(node: &Node, mistakes: Mistakes<'_>) -> Option<RecordDef> {
    let mut fields = Fields::new(node, "", mistakes);
    let name = required_word(&mut fields, "record");
    fields.take_text("title");
    let members = match fields.take_required("members") {
        Some(node) => pairs(node, "members", fields.mistakes(), member),
        None => Vec::new(),
    };
    fields.finish();
    let name = name?;
    if !expression::is_record_name(&name.text) {
        let text = "expected a name that begins with a capital letter and has small ones, such as CgmReading";
        wrong(mistakes, name.place, "record", text);
        return None;
    }
    Some(RecordDef { name, members })
}

/// `value: number`, `device: Device`, `samples: [Sample]`, or with what the document calls it.
fn member(name: Word, node: &Node, mistakes: Mistakes<'_>) -> Option<MemberDef> {
    let mut chars = name.text.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let text =
            "expected a name of letters, digits and `_`; what the document calls it goes under `name:`";
        wrong(mistakes, name.place, &name.text, text);
        return None;
    }
    let (written, node) = match node.get("type") {
        None => (None, node),
        Some(of) => {
            let mut fields = Fields::new(node, &format!("members.{}", name.text), mistakes);
            fields.take_required("type");
            let written = fields.take_text("name").map(str::to_owned);
            fields.finish();
            (written, of)
        }
    };
    let (many, node) = match &node.value {
        Value::List(items) => match items.as_slice() {
            [one] => (true, one),
            _ => {
                wrong(mistakes, node.place, &name.text, "a list is of one type, such as [Sample]");
                return None;
            }
        },
        _ => (false, node),
    };
    let Some(text) = node.text() else {
        let text = format!("expected {} or the name of a record, found {}", VALUES.join(", "), node.kind());
        wrong(mistakes, node.place, &name.text, text);
        return None;
    };
    let holds = Word { place: node.place, text: text.to_owned() };
    Some(MemberDef { name, written, holds, many })
}

fn one_include(node: &Node, mistakes: Mistakes<'_>) -> Option<Include> {
    let mut fields = Fields::new(node, "include", mistakes);
    let fragment = required_word(&mut fields, "fragment");
    let at = fields.take_text("at").unwrap_or_default().to_owned();
    let without = words(&mut fields, "without");
    let change = match fields.take("change") {
        Some(node) => pairs(node, "include.change", fields.mistakes(), |id, node, mistakes| {
            let path = format!("include.change.{}", id.text);
            let mut fields = Fields::new(node, &path, mistakes);
            let otherwise = otherwise(&mut fields);
            let when = formula_at(&mut fields, "when");
            let on_existing = on_existing(&mut fields);
            let set =
                fields.take("set").map(|node| elements(node, &path, fields.mistakes())).unwrap_or_default();
            let mut parts = Vec::new();
            for node in fields.take_list("parts") {
                parts.extend(part(node, &path, fields.mistakes()));
            }
            fields.finish();
            Some((id, Change { on_existing, otherwise, when, set, parts }))
        }),
        None => Vec::new(),
    };
    fields.finish();
    Some(Include { fragment: fragment?, at, without, change })
}

fn source(node: &Node, mistakes: Mistakes<'_>) -> Option<Source> {
    let mut fields = Fields::new(node, "source", mistakes);
    let format = fields.take_choice("format", &["hl7v2", "json", "csv", "fhir"]).unwrap_or("hl7v2");
    if format != "hl7v2" {
        let (form, record) = match format {
            "csv" => (Form::Csv(csv(&mut fields, node.place)), required_word(&mut fields, "record")),
            "json" => (Form::Json, required_word(&mut fields, "record")),
            _ => (Form::Fhir, Some(Word { place: node.place, text: schemas::records::RESOURCES.to_owned() })),
        };
        fields.finish();
        let records = Some(RecordSource { form, record: record? });
        return Some(Source {
            records,
            structures: Vec::new(),
            code: None,
            events: Vec::new(),
            versions: None,
        });
    }
    let structures = words(&mut fields, "structure");
    if structures.is_empty() {
        fields.wrong(node.place, "structure", "is missing: name the message structure, such as ADT_A01");
    }
    let code = fields.take_text("code").map(str::to_owned);
    let events = words(&mut fields, "events");
    let versions = word(&mut fields, "versions");
    fields.finish();
    Some(Source { records: None, structures, code, events, versions })
}

/// `target:` and `segments:`.
fn writes(fields: &mut Fields<'_, '_>) -> Option<Writes> {
    let target = fields.take("target");
    let mut segments = Vec::new();
    for node in fields.take_list("segments") {
        segments.extend(entry(node, fields.mistakes()));
    }
    let node = target?;
    let mut target = Fields::new(node, "target", fields.mistakes());
    target.take_choice("format", &["hl7v2"]);
    let structure = required_word(&mut target, "structure");
    target.finish();
    Some(Writes { structure: structure?, segments })
}

/// The keys of an entry of `segments:` that are not those of a rule.
const ENTRY: [&str; 6] = ["id", "segment", "from", "each", "when", "segments"];

fn entry(node: &Node, mistakes: Mistakes<'_>) -> Option<Entry> {
    let id = node.get("id").and_then(Node::text).unwrap_or_default().to_owned();
    let path = format!("segments.{id}");
    // What is left is a rule; without any of it, the entry only holds others.
    let rest = without(node, &ENTRY);
    let own = match &node.value {
        Value::Map(entries) => {
            let own = entries.iter().filter(|(key, _)| ENTRY.contains(&key.name.as_str())).cloned();
            Node { place: node.place, value: Value::Map(own.collect()) }
        }
        _ => node.clone(),
    };
    let mut fields = Fields::new(&own, &path, mistakes);
    let id = required_word(&mut fields, "id");
    let segment = word(&mut fields, "segment");
    let (from, many) = match (formula_at(&mut fields, "from"), formula_at(&mut fields, "each")) {
        (Some(_), Some(_)) => {
            fields.wrong(node.place, "from", "expected one of `from:` and `each:`");
            (None, false)
        }
        (from, each) => (from.or(each), own.get("each").is_some()),
    };
    let when = formula_at(&mut fields, "when");
    let mut inner = Vec::new();
    for node in fields.take_list("segments") {
        inner.extend(entry(node, fields.mistakes()));
    }
    fields.finish();
    let is_rule = matches!(&rest.value, Value::Map(entries) if !entries.is_empty());
    let rule = if is_rule { Some(rule(&rest, &path, mistakes)?) } else { None };
    Some(Entry { place: node.place, id: id?, segment, from, many, when, rule, inner })
}

/// How CSV is written.
fn csv(fields: &mut Fields<'_, '_>, place: Place) -> Csv {
    let mut csv = Csv::default();
    match fields.take_text("separator").map(str::as_bytes) {
        None => {}
        Some([one]) if one.is_ascii_graphic() || *one == b'\t' => csv.separator = *one,
        Some(_) => fields.wrong(place, "separator", "expected one character, such as \";\" or \"\\t\""),
    }
    csv.header = fields.take_bool("header").unwrap_or(true);
    csv
}

fn resource(node: &Node, mistakes: Mistakes<'_>) -> Option<Resource> {
    let path = match node.get("id").and_then(Node::text) {
        Some(id) => format!("resources.{id}"),
        None => "resources".to_owned(),
    };
    let mut fields = Fields::new(node, &path, mistakes);
    let id = required_word(&mut fields, "id");
    let kind = required_word(&mut fields, "type");
    let from = match (word(&mut fields, "from"), word(&mut fields, "each")) {
        (Some(from), None) | (None, Some(from)) => Some(from),
        _ => {
            fields.wrong(node.place, "from", "expected one of `from:` and `each:`, a group or a segment");
            None
        }
    };
    let (from, alias) = match from {
        Some(Word { place, text }) => match text.split_once(" as ") {
            Some((from, alias)) => (
                Some(Word { place, text: from.trim().to_owned() }),
                Some(Word { place, text: alias.trim().to_owned() }),
            ),
            None => (Some(Word { place, text }), None),
        },
        None => (None, None),
    };
    let when = formula_at(&mut fields, "when");
    let stray = fields.take_bool("stray").unwrap_or(false);
    let on_existing = on_existing(&mut fields);
    let identity = fields.take("identity").and_then(|node| identity(node, &path, fields.mistakes()));
    let mut parts = Vec::new();
    for node in fields.take_list("parts") {
        parts.extend(part(node, &path, fields.mistakes()));
    }
    let set = fields.take("set").map(|node| elements(node, &path, fields.mistakes())).unwrap_or_default();
    fields.take("guide");
    fields.finish();
    Some(Resource {
        place: node.place,
        id: id?,
        kind: kind?,
        from: from?,
        alias,
        when,
        stray,
        on_existing,
        identity,
        parts,
        set,
    })
}

fn part(node: &Node, path: &str, mistakes: Mistakes<'_>) -> Option<Part> {
    let mut fields = Fields::new(node, &format!("{path}.parts"), mistakes);
    let uses = required_word(&mut fields, "use");
    let from = match (word(&mut fields, "from"), word(&mut fields, "each")) {
        (Some(from), None) | (None, Some(from)) => Some(from),
        _ => {
            fields.wrong(node.place, "from", "expected one of `from:` and `each:`, a segment");
            None
        }
    };
    let when = formula_at(&mut fields, "when");
    let stray = fields.take_bool("stray").unwrap_or(false);
    let with = with(&mut fields);
    fields.finish();
    Some(Part { uses: uses?, from: from?, stray, when, with })
}

const VERBS: [&str; 2] = ["merge", "move"];

fn effect(node: &Node, mistakes: Mistakes<'_>) -> Option<EffectRule> {
    let mut fields = Fields::new(node, "effects", mistakes);
    let id = required_word(&mut fields, "id");
    let when = formula_at(&mut fields, "when");
    let mut found = None;
    for verb in VERBS {
        let Some(body) = fields.take(verb) else { continue };
        if found.is_some() {
            fields.wrong(body.place, verb, "an effect does one thing: write two effects");
            continue;
        }
        let mut parts = Fields::new(body, &format!("effects.{verb}"), fields.mistakes());
        let what = (verb == "move").then(|| required_word(&mut parts, "what"));
        let (from, into) = (required_word(&mut parts, "from"), required_word(&mut parts, "into"));
        parts.finish();
        found = Some((what, from, into));
    }
    if found.is_none() {
        fields.wrong(node.place, "", format!("expected one of {}", VERBS.join(", ")));
    }
    fields.finish();
    let (what, from, into) = found?;
    id?;
    let what = match what {
        Some(what) => Some(what?),
        None => None,
    };
    Some(EffectRule { what, from: from?, into: into?, when })
}

fn check(node: &Node, mistakes: Mistakes<'_>) -> Option<Check> {
    let mut fields = Fields::new(node, "checks", mistakes);
    let id = required_word(&mut fields, "id");
    let when = required_formula(&mut fields, "when");
    let issue = severity(&mut fields).unwrap_or(Severity::Warning);
    let text = fields.take_text("text").map(str::to_owned);
    let quarantine = fields.take_choice("policy", &["quarantine", "report"]) == Some("quarantine");
    fields.finish();
    let id = id?;
    let text = text.unwrap_or_else(|| format!("the check `{}` of the mapping does not hold", id.text));
    Some(Check { when: when?, id, issue, text, quarantine })
}

fn options(fields: &mut Fields<'_, '_>) -> Vec<OptionDef> {
    let Some(node) = fields.take("options") else { return Vec::new() };
    pairs(node, "options", fields.mistakes(), |name, node, mistakes| {
        let mut option = Fields::new(node, &format!("options.{}", name.text), mistakes);
        let choices: Vec<String> = option.take_texts("enum").into_iter().map(str::to_owned).collect();
        let default = option.take_required("default").and_then(Node::text).unwrap_or_default().to_owned();
        if !choices.contains(&default) {
            option.wrong(node.place, "default", format!("expected one of {}", choices.join(", ")));
        }
        option.finish();
        Some(OptionDef { name, choices, default })
    })
}

fn ignores(fields: &mut Fields<'_, '_>) -> Vec<Ignore> {
    let mut ignores = Vec::new();
    for node in fields.take_list("ignore") {
        let mut entry = Fields::new(node, "ignore", fields.mistakes());
        let path = required_word(&mut entry, "path");
        let reason = entry.take_required("reason").and_then(Node::text).map(str::to_owned);
        entry.finish();
        if let (Some(path), Some(reason)) = (path, reason) {
            for piece in path.text.split(',') {
                let path = Word { place: path.place, text: piece.trim().to_owned() };
                ignores.push(Ignore { path, reason: reason.clone() });
            }
        }
    }
    ignores
}

fn tests(fields: &mut Fields<'_, '_>) -> Vec<Test> {
    let mut tests = Vec::new();
    for node in fields.take_list("tests") {
        let mut test = Fields::new(node, "tests", fields.mistakes());
        let name = test.take_text("name").unwrap_or("without a name").to_owned();
        let given = test.take_required("given").and_then(Node::text).map(str::to_owned);
        let expect = match test.take("expect") {
            Some(node) => {
                pairs(node, "tests.expect", test.mistakes(), |path, node, mistakes| match &node.value {
                    Value::Text(text) => Some((path, text.clone())),
                    _ => {
                        wrong(mistakes, node.place, "tests.expect", "expected a text");
                        None
                    }
                })
            }
            None => Vec::new(),
        };
        let absent = words(&mut test, "absent");
        let unmapped = test
            .take("unmapped")
            .is_some()
            .then(|| test.take_texts("unmapped").into_iter().map(str::to_owned).collect::<Vec<_>>());
        let issues = test.take_texts("issues").into_iter().map(str::to_owned).collect();
        let sender = test.take_text("sender").map(str::to_owned);
        let mapping = test.take_text("mapping").map(str::to_owned);
        let options = settings(&mut test, "options");
        let systems = settings(&mut test, "systems");
        let wire = settings(&mut test, "wire");
        test.finish();
        if let Some(given) = given {
            tests.push(Test {
                sender,
                place: node.place,
                name,
                given,
                mapping,
                expect,
                absent,
                unmapped,
                issues,
                options,
                systems,
                wire,
            });
        }
    }
    tests
}

/// Pairs of a name and a text.
fn settings(fields: &mut Fields<'_, '_>, name: &'static str) -> Vec<(String, String)> {
    let Some(node) = fields.take(name) else { return Vec::new() };
    let pairs = pairs(node, name, fields.mistakes(), |key, node, mistakes| {
        let text = node.text().map(str::to_owned);
        if text.is_none() {
            wrong(mistakes, node.place, name, "expected a text");
        }
        Some((key.text, text?))
    });
    pairs.into_iter().collect()
}

fn otherwise(fields: &mut Fields<'_, '_>) -> Option<Otherwise> {
    Some(match fields.take_choice("else", &["quarantine", "omit", "display", "message"])? {
        "quarantine" => Otherwise::Quarantine,
        "omit" => Otherwise::Omit,
        "display" => Otherwise::Display,
        _ => Otherwise::Message,
    })
}

fn identity(node: &Node, path: &str, mistakes: Mistakes<'_>) -> Option<Identity> {
    let mut fields = Fields::new(node, &format!("{path}.identity"), mistakes);
    let uses = word(&mut fields, "use");
    // The sender is the scope of every key without a system; to say so is allowed.
    fields.take_choice("scope", &["sender"]);
    let otherwise = otherwise(&mut fields).unwrap_or_else(|| {
        if node.get("else").is_none() {
            fields.wrong(node.place, "else", "is missing: say what becomes of an instance without a key");
        }
        Otherwise::Message
    });
    let mut keys = Vec::new();
    for node in fields.take_list("keys") {
        let mut key = Fields::new(node, &format!("{path}.identity.keys"), fields.mistakes());
        let each = formula_at(&mut key, "each");
        let uses = word(&mut key, "use");
        let system = formula_at(&mut key, "system");
        let of = word(&mut key, "of");
        let when = formula_at(&mut key, "when");
        let fallback = key.take_bool("fallback").unwrap_or(false);
        let mut value = Vec::new();
        match key.take("value") {
            Some(Node { value: Value::List(items), .. }) => {
                for item in items {
                    value.extend(formula(item, "identity.keys.value", key.mistakes()));
                }
            }
            Some(node) => value.extend(formula(node, "identity.keys.value", key.mistakes())),
            None => {}
        }
        if each.is_none() && value.is_empty() {
            key.wrong(node.place, "value", "expected `each:` or `value:`");
        }
        key.finish();
        keys.push(KeyRule { place: node.place, each, uses, value, system, of, when, fallback });
    }
    fields.finish();
    Some(Identity { keys, uses, otherwise })
}
