//! Overlays: what a sender's site changes in the shared mappings, rule by rule, before they are compiled for that sender.
//!
//! A patch names a rule by its map and the ids on the way to it (`pid_patient/telecom/home`), which are the names of slots too; so
//! a patched rule keeps its slot.

use super::ast::{Body, Document, Does, Ignore, OptionDef, Rule, TableRef, Word};
use super::expression::{Expr, PathExpr, Root};
use crate::catalog::FileMistake;
use schemas::yaml::{Mistake, Place, nearest};
use std::sync::Arc;

/// One `overlay:` document.
#[derive(Debug)]
pub(crate) struct Overlay {
    pub(crate) name: Word,
    /// Overlays of one sender are applied from the lowest to the highest.
    pub(crate) priority: i64,
    /// `map.option` and the choice.
    pub(crate) options: Vec<(Word, String)>,
    pub(crate) patches: Vec<(Word, Patch)>,
}

/// What is done to one rule.
#[derive(Debug)]
pub(crate) enum Patch {
    /// Another rule in its place.
    Replace(Box<Rule>),
    /// It is taken out, for this reason.
    Remove(String),
    /// A further item of it, or a further element, behind the item with this id if one is named.
    Add { rule: Box<Rule>, after: Option<Word> },
    /// Another table.
    Table(TableRef),
}

/// An overlay and the file in which it stands.
pub(crate) struct Placed<'o> {
    pub(crate) file: &'o str,
    pub(crate) overlay: Overlay,
}

/// The sender whose folder a file stands in: `site/<sender>/..`.
pub(crate) fn sender_of(file: &str) -> Option<&str> {
    let rest = file.strip_prefix("site/")?;
    rest.split_once('/').map(|(sender, _)| sender)
}

/// Applies the overlays of one sender to the documents of every file.
pub(crate) fn apply(overlays: Vec<Placed<'_>>, documents: &mut [Document]) -> Vec<FileMistake> {
    let mut mistakes = Vec::new();
    let mut overlays = overlays;
    overlays.sort_by(|a, b| (a.overlay.priority, a.file).cmp(&(b.overlay.priority, b.file)));
    let mut seen: Vec<(String, i64)> = Vec::new();
    for Placed { file, overlay } in overlays {
        let mut wrong = |place: Place, key: &str, text: String| {
            let mistake = Mistake { place, key: key.to_owned(), text };
            mistakes.push(FileMistake { file: file.to_owned(), mistake });
        };
        for (name, choice) in overlay.options {
            if let Err(text) = set_option(documents, &name.text, &choice) {
                wrong(name.place, &name.text, text);
            }
        }
        for (path, patch) in overlay.patches {
            let key = (path.text.clone(), overlay.priority);
            let adds = matches!(patch, Patch::Add { .. });
            if !adds && seen.contains(&key) {
                let text = "another overlay of this sender patches this rule with the same priority";
                wrong(path.place, &path.text, text.to_owned());
                continue;
            }
            seen.push(key);
            if let Err(text) = apply_one(documents, &path.text, patch, file) {
                wrong(path.place, &path.text, text);
            }
        }
    }
    mistakes
}

fn set_option(documents: &mut [Document], name: &str, choice: &str) -> Result<(), String> {
    let (owner, option) = name.split_once('.').ok_or("expected map.option")?;
    let options: &mut Vec<OptionDef> = documents
        .iter_mut()
        .find_map(|document| match document {
            Document::Map(map) if map.name.text == owner => Some(&mut map.options),
            Document::Mapping(mapping) if mapping.name.text == owner => Some(&mut mapping.options),
            Document::Fragment(fragment) if fragment.name.text == owner => Some(&mut fragment.options),
            _ => None,
        })
        .ok_or_else(|| format!("there is no map, fragment or mapping {owner}"))?;
    let names: Vec<String> = options.iter().map(|option| option.name.text.clone()).collect();
    let Some(found) = options.iter_mut().find(|known| known.name.text == option) else {
        return Err(format!("{owner} has no option {option}{}", hint(option, &names)));
    };
    if !found.choices.iter().any(|known| known == choice) {
        return Err(format!("expected one of {}", found.choices.join(", ")));
    }
    choice.clone_into(&mut found.default);
    Ok(())
}

/// `; did you mean ...?`
fn hint(word: &str, known: &[String]) -> String {
    nearest(word, known.iter().map(String::as_str))
        .map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

fn apply_one(documents: &mut [Document], path: &str, patch: Patch, file: &str) -> Result<(), String> {
    let mut names: Vec<&str> = path.split('/').collect();
    let owner = names.remove(0);
    let mut known = Vec::new();
    for document in documents.iter_mut() {
        let (name, ignore, rules) = match document {
            Document::Map(map) => (&map.name, &mut map.ignore, Rules::Body(&mut map.rules)),
            Document::Mapping(mapping) => {
                (&mapping.name, &mut mapping.ignore, Rules::Resources(&mut mapping.resources))
            }
            Document::Fragment(fragment) => {
                (&fragment.name, &mut fragment.ignore, Rules::Resources(&mut fragment.resources))
            }
            Document::Tests { .. } | Document::Overlay(_) | Document::Segment(_) | Document::Record(_) => {
                continue;
            }
        };
        if name.text != owner {
            known.push(name.text.clone());
            continue;
        }
        return match rules {
            Rules::Body(Body::Elements(elements)) => in_elements(elements, &names, patch, file, ignore),
            Rules::Body(Body::One(rule)) => in_rule(rule, &names, patch, file, ignore),
            Rules::Resources(resources) => {
                let Some((id, names)) = names.split_first() else {
                    return Err("name a resource of it, and an element that it sets".to_owned());
                };
                let ids: Vec<String> = resources.iter().map(|one| one.id.text.clone()).collect();
                let Some(resource) = resources.iter_mut().find(|one| one.id.text == *id) else {
                    return Err(format!("{owner} has no resource {id}{}", hint(id, &ids)));
                };
                in_elements(&mut resource.set, names, patch, file, ignore)
            }
        };
    }
    Err(format!("there is no map, fragment or mapping {owner}{}", hint(owner, &known)))
}

enum Rules<'d> {
    Body(&'d mut Body),
    Resources(&'d mut Vec<super::ast::Resource>),
}

fn in_elements(
    elements: &mut Vec<(Word, Rule)>,
    names: &[&str],
    patch: Patch,
    file: &str,
    ignore: &mut Vec<Ignore>,
) -> Result<(), String> {
    let Some((name, rest)) = names.split_first() else {
        return Err("name a rule of it: map/element, or map/element/id".to_owned());
    };
    let found = elements.iter().position(|(word, _)| word.text == *name);
    match (found, rest.is_empty(), patch) {
        (Some(at), true, Patch::Remove(reason)) => {
            let (_, rule) = elements.remove(at);
            ignored(&rule, &reason, ignore);
            Ok(())
        }
        (Some(at), _, patch) => in_rule(&mut elements[at].1, rest, patch, file, ignore),
        (None, true, Patch::Add { mut rule, after: None }) => {
            rule.file = Some(Arc::from(file));
            elements.push((Word { place: rule.place, text: (*name).to_owned() }, *rule));
            Ok(())
        }
        (None, ..) => {
            let known: Vec<String> = elements.iter().map(|(word, _)| word.text.clone()).collect();
            Err(format!("there is no rule {name} here{}", hint(name, &known)))
        }
    }
}

fn in_rule(
    rule: &mut Rule,
    names: &[&str],
    patch: Patch,
    file: &str,
    ignore: &mut Vec<Ignore>,
) -> Result<(), String> {
    let Some((name, rest)) = names.split_first() else { return change(rule, patch, file) };
    let of_case = |words: &[String]| words.iter().any(|word| word == name);
    let mut known = Vec::new();
    // The elements that it sets, then the items, the cases and the extensions that it has.
    if rule.set.iter().any(|(word, _)| word.text == *name) {
        return in_elements(&mut rule.set, names, patch, file, ignore);
    }
    known.extend(rule.set.iter().map(|(word, _)| word.text.clone()));
    let extension = std::iter::once(&mut rule.extension);
    let items = match &mut rule.does {
        Does::First(items) | Does::All(items) => Some(items),
        Does::Switch { cases, otherwise, .. } => {
            let case = cases.iter_mut().find(|(words, _)| of_case(words)).map(|(_, rule)| rule);
            let case = case.or(otherwise.as_deref_mut().filter(|_| *name == "else"));
            if let Some(case) = case {
                return in_rule(case, rest, patch, file, ignore);
            }
            None
        }
        _ => None,
    };
    for list in items.into_iter().chain(extension) {
        let is = |item: &Rule| item.id.as_ref().is_some_and(|id| id.text == *name);
        if let Some(at) = list.iter().position(is) {
            if let (true, Patch::Remove(reason)) = (rest.is_empty(), &patch) {
                let rule = list.remove(at);
                ignored(&rule, reason, ignore);
                return Ok(());
            }
            return in_rule(&mut list[at], rest, patch, file, ignore);
        }
        known.extend(list.iter().filter_map(|item| Some(item.id.as_ref()?.text.clone())));
    }
    Err(format!("there is no rule {name} here{}", hint(name, &known)))
}

/// Does to a rule what a patch says.
fn change(rule: &mut Rule, patch: Patch, file: &str) -> Result<(), String> {
    match patch {
        Patch::Replace(new) => {
            // Its name is its slot's name.
            let id = rule.id.take();
            *rule = *new;
            rule.id = rule.id.take().or(id);
            rule.file = Some(Arc::from(file));
        }
        Patch::Table(table) => rule.map = Some(table),
        Patch::Remove(_) => {
            return Err("a map that is one rule cannot lose it: replace it".to_owned());
        }
        Patch::Add { rule: mut new, after } => {
            let list = match &mut rule.does {
                Does::First(items) | Does::All(items) => items,
                _ => {
                    return Err(
                        "has no items to which one could be added: it is no `first:` or `all:`".to_owned()
                    );
                }
            };
            let id = new.id.as_ref().ok_or("an item needs an `id:`")?;
            let is = |item: &Rule, id: &Word| item.id.as_ref().is_some_and(|known| known.text == id.text);
            if list.iter().any(|item| is(item, id)) {
                return Err(format!("there is an item {} already: replace it", id.text));
            }
            let at = match &after {
                None => list.len(),
                Some(after) => match list.iter().position(|item| is(item, after)) {
                    Some(at) => at + 1,
                    None => {
                        return Err(format!("there is no item {} behind which it could stand", after.text));
                    }
                },
            };
            new.file = Some(Arc::from(file));
            list.insert(at, *new);
        }
    }
    Ok(())
}

/// The fields that a rule carried over are ignored from now on, for the reason that the overlay gives.
fn ignored(rule: &Rule, reason: &str, ignore: &mut Vec<Ignore>) {
    let mut found = Vec::new();
    sources(rule, &mut found);
    for path in found {
        let text = match &path.root {
            Root::Segment { alias: None, name, field: Some(field) } => format!("{name}-{field}"),
            Root::Type(name) => name.clone(),
            _ => continue,
        };
        let steps: String = path.steps.iter().map(|step| format!(".{step}")).collect();
        let path = Word { place: rule.place, text: text + &steps };
        ignore.push(Ignore { path, reason: reason.to_owned() });
    }
}

fn sources<'r>(rule: &'r Rule, found: &mut Vec<&'r PathExpr>) {
    for formula in [&rule.each, &rule.from].into_iter().flatten() {
        paths(&formula.expr, found);
    }
    match &rule.does {
        Does::Value(formula) => paths(&formula.expr, found),
        Does::First(rules) | Does::All(rules) => rules.iter().for_each(|rule| sources(rule, found)),
        Does::Switch { cases, otherwise, .. } => {
            cases.iter().for_each(|(_, rule)| sources(rule, found));
            otherwise.iter().for_each(|rule| sources(rule, found));
        }
        _ => {}
    }
    rule.set.iter().for_each(|(_, rule)| sources(rule, found));
    rule.extension.iter().for_each(|rule| sources(rule, found));
}

fn paths<'r>(expr: &'r Expr, found: &mut Vec<&'r PathExpr>) {
    match expr {
        Expr::Path(path) => found.push(path),
        Expr::Call { args, .. } => args.iter().for_each(|arg| paths(arg, found)),
        Expr::Coalesce(a, b) => {
            paths(a, found);
            paths(b, found);
        }
        _ => {}
    }
}
