//! The segments of a message of HL7 v2 that a mapping writes.

use super::rules::Want;
use super::{Compiler, Env, hint, target};
use crate::language::ast::{Entry, Mapping, Writes};
use crate::program::EntryCode;
use schemas::hl7v2::path::SegmentName;

impl<'a> Compiler<'a> {
    /// What a mapping writes, if that is a message of HL7 v2.
    pub(super) fn writes(&mut self, env: &Env<'a>, mapping: &'a Mapping) -> Option<Vec<EntryCode>> {
        let Writes { structure, segments } = mapping.writes.as_ref()?;
        if mapping.source.records.is_none() {
            let text = "a mapping of HL7 v2 writes resources: only documents of records become messages";
            self.wrong(structure.place, "target", text);
        }
        let Some(known) = target::segments_of(&structure.text) else {
            let hint = hint(&structure.text, target::structure_names());
            let text = format!("there is no message structure of this name{hint}");
            self.wrong(structure.place, "target.structure", text);
            return None;
        };
        match segments.first() {
            Some(Entry { segment: Some(word), .. }) if word.text == "MSH" => {}
            first => {
                let place = first.map_or(structure.place, |entry| entry.place);
                self.wrong(place, "segments", "a message begins with MSH");
            }
        }
        if let Some(resource) = mapping.resources.first() {
            self.wrong(resource.place, "resources", "a mapping writes a message or resources, not both");
        }
        Some(segments.iter().map(|entry| self.entry(env, entry, &known, mapping)).collect())
    }

    fn entry(
        &mut self,
        env: &Env<'a>,
        entry: &'a Entry,
        known: &[&'static str],
        mapping: &'a Mapping,
    ) -> EntryCode {
        let from = entry.from.as_ref().map(|formula| self.path_formula(env, formula));
        let env = match &from {
            Some(typed) => env.with_items_of(typed),
            None => env.clone(),
        };
        if let (Some(typed), Some(formula)) = (&from, &entry.from)
            && typed.record.is_none()
        {
            self.wrong(formula.place, &entry.id.text, "a segment is about a record, and this is none");
        }
        let when = entry.when.as_ref().map(|formula| self.condition(&env, formula));
        let segment = match (&entry.segment, &entry.rule) {
            (Some(word), Some(rule)) => {
                let name = target::segment(&word.text);
                if name.is_none() {
                    let hint = hint(&word.text, target::segment_names());
                    let text = format!("there is no segment of this name{hint}");
                    self.wrong(word.place, "segment", text);
                } else if !known.contains(&word.text.as_str()) {
                    let hint = hint(&word.text, known.iter().copied());
                    let text = format!("does not stand in the structure{hint}");
                    self.wrong(word.place, &word.text, text);
                }
                name.and_then(|name| {
                    let rule_name = format!("{}/{}", mapping.name.text, entry.id.text);
                    let node = self.rule(&env, rule, &Want::one(name), &rule_name);
                    Some((SegmentName::new(name)?, node))
                })
            }
            (None, None) => {
                if entry.inner.is_empty() {
                    let text = "expected `segment:` and how it is filled, or `segments:`";
                    self.wrong(entry.place, &entry.id.text, text);
                }
                None
            }
            (Some(word), None) => {
                let text = "expected how it is filled: `use:` a map, or `set:` its fields";
                self.wrong(word.place, &entry.id.text, text);
                None
            }
            (None, Some(rule)) => {
                self.wrong(rule.place, &entry.id.text, "expected `segment:`, which this fills");
                None
            }
        };
        let inner = entry.inner.iter().map(|inner| self.entry(&env, inner, known, mapping)).collect();
        EntryCode { segment, from: from.map(|typed| typed.id), many: entry.many, when, inner }
    }
}
