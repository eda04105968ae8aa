//! The FHIR transaction Bundle in which the resources of one message travel.

use crate::compile::target;
use crate::json;
use crate::resource::Fragment;
use foldhash::fast::RandomState;
use memchr::memmem;
use schemas::issue::{Issue, Severity};
use std::collections::HashSet;
use std::fmt::{self, Write as _};
use uuid::Uuid;

/// One resource of a Bundle, rendered.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'e> {
    /// `Patient`, ...
    pub resource_type: &'e str,
    /// Its id.
    pub id: Uuid,
    /// Its JSON; references are written `Type/<uuid>`.
    pub json: &'e str,
}

/// What a Bundle says about its message.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// The message.
    pub message: Uuid,
    /// Who sent it, as the configuration names the source.
    pub sender: &'a str,
    /// When it was received.
    pub received_at: jiff::Timestamp,
    /// The mapping and its version, such as `oru_r01 1.0.0`.
    pub mapping: &'a str,
    /// Further members of the Bundle as JSON text, or nothing. Its tags and security labels are those of every resource in it.
    pub elements: &'a str,
}

/// One resource that may have to be left out of its Bundle.
#[derive(Clone)]
pub struct Rendered<'r> {
    /// `Patient`, ...
    pub resource_type: &'r str,
    /// Its id.
    pub id: Uuid,
    /// Its JSON; references are written `Type/<uuid>`.
    pub json: String,
    /// The first required element that it lacks.
    lacking: Option<&'static str>,
    redacted: bool,
}

impl Rendered<'_> {
    /// Whether something that is known of it was left out.
    pub fn is_redacted(&self) -> bool {
        self.redacted
    }

    /// The first required element that it lacks.
    pub fn lacks(&self) -> Option<&'static str> {
        self.lacking
    }

    /// Labels it as one of which something was left out.
    ///
    /// # Source
    /// HL7 v3 code system ObservationValue, security alteration integrity.
    pub(crate) fn redact(&mut self) {
        self.label(r#"{"security":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"REDACTED"}]}"#);
        self.redacted = true;
    }

    /// Gives it labels beside its own: the members of a `meta` in JSON.
    pub(crate) fn label(&mut self, labels: &str) {
        if let Ok(labels) = serde_json::from_str(labels) {
            self.json = label(&self.json, &labels);
        }
    }
}

/// Shows who and how long; what stands there is a patient's.
impl fmt::Debug for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Rendered");
        shown.field("resource_type", &self.resource_type).field("id", &self.id);
        shown.field("length", &self.json.len()).field("lacking", &self.lacking).finish()
    }
}

impl<'r> Rendered<'r> {
    /// Renders the fragments of a resource, which are in the order of their rules.
    pub(crate) fn of<'f>(
        resource_type: &'r str,
        id: Uuid,
        fragments: impl Iterator<Item = &'f Fragment> + Clone,
    ) -> Rendered<'r> {
        let length: usize =
            fragments.clone().map(|fragment| fragment.json.len() + fragment.path.len() + 8).sum();
        let mut json = String::with_capacity(length + 100);
        let lacking = crate::render::resource(resource_type, id, fragments, &mut json);
        Rendered { resource_type, id, json, lacking, redacted: false }
    }
}

/// Takes out every resource that lacks a required element, and the references to it, and says so.
///
/// What refers to a resource that is left out would refer to nowhere, so the reference is taken out of its text; that may
/// leave its own element without a required part, so each turn may leave out more.
pub fn leave_out_incomplete(rendered: &mut Vec<Rendered<'_>>) -> Vec<Issue> {
    let mut issues = Vec::new();
    loop {
        let lacking =
            |one: &Rendered<'_>| one.lacking.map(|lacking| (one.id, one.resource_type.to_owned(), lacking));
        let incomplete: Vec<(Uuid, String, &'static str)> = rendered.iter().filter_map(lacking).collect();
        if incomplete.is_empty() {
            return issues;
        }
        for (id, kind, element) in incomplete {
            let text = format!("this {kind} is left out: its element {element} is required and has no value");
            issues.push(Issue::new(Severity::Error, "resource-left-out", "", text));
            rendered.retain(|one| one.id != id);
            for one in rendered.iter_mut() {
                if forget(&mut one.json, &kind, id) {
                    one.lacking = missing(one.resource_type, &one.json);
                }
            }
        }
    }
}

/// The first required element that a resource lacks.
fn missing(resource_type: &str, json: &str) -> Option<&'static str> {
    let mut lacking: Vec<(&'static str, bool)> = target::required_elements(resource_type).into();
    for member in Members::of(json) {
        lacking.retain(|(name, choice)| if *choice { !member.starts_with(*name) } else { member != *name });
    }
    lacking.first().map(|(name, _)| *name)
}

/// How long an id is in references: lower case, with hyphens.
const ID_LENGTH: usize = uuid::fmt::Hyphenated::LENGTH;

/// Writes a transaction Bundle: a PUT for each entry, and a Provenance that says from which message they come.
///
/// `fullUrl` is `urn:uuid:<id>`. A reference to a resource of the Bundle is written so, too, and resolves in it; one to a
/// resource that is not in the Bundle stays `Type/<uuid>`.
pub fn assemble(entries: &[Entry<'_>], about: &About<'_>) -> String {
    let length: usize = entries.iter().map(|entry| entry.json.len() + 200).sum();
    let mut out = String::with_capacity(length + 1500);
    let mut ids = String::with_capacity(entries.len() * ID_LENGTH);
    for entry in entries {
        ids.push_str(entry.id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
    }
    let ids: Vec<&str> = (0..entries.len()).map(|entry| &ids[entry * ID_LENGTH..][..ID_LENGTH]).collect();
    let here: HashSet<&str, RandomState> = ids.iter().copied().collect();
    let reference = memmem::Finder::new(REFERENCE);
    let _ =
        write!(out, "{{\"resourceType\":\"Bundle\",\"id\":\"{}\",\"type\":\"transaction\"", about.message);
    if !about.elements.is_empty() {
        out.push(',');
        out.push_str(about.elements);
    }
    if !Members::of(&format!("{{{}}}", about.elements)).any(|member| member == "timestamp") {
        let _ = write!(out, ",\"timestamp\":\"{}\"", about.received_at);
    }
    let labels = labels(about.elements);
    if entries.is_empty() {
        out.push('}'); // FHIR has no empty arrays
        return out;
    }
    out.push_str(",\"entry\":[");
    for (entry, id) in entries.iter().zip(&ids) {
        let labelled = labels.as_ref().map(|labels| label(entry.json, labels));
        let json = labelled.as_deref().unwrap_or(entry.json);
        put(&mut out, entry.resource_type, id, |out| find_references(json, &reference, &here, out));
    }
    let id = Uuid::new_v5(&about.message, b"provenance").to_string();
    put(&mut out, "Provenance", &id, |out| provenance(out, &id, &ids, about));
    out.pop();
    out.push_str("]}");
    out
}

/// The tags and security labels among the members of a Bundle, as the members of a `meta`.
pub(crate) fn labels(elements: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
    if !elements.contains("\"meta\"") {
        return None;
    }
    let members: serde_json::Value = serde_json::from_str(&format!("{{{elements}}}")).ok()?;
    let mut meta = members.get("meta")?.as_object()?.clone();
    meta.retain(|name, _| name == "tag" || name == "security");
    (!meta.is_empty()).then_some(meta)
}

/// A resource with the labels of its Bundle beside its own.
fn label(json: &str, labels: &serde_json::Map<String, serde_json::Value>) -> String {
    let Ok(mut resource) = serde_json::from_str::<serde_json::Value>(json) else { return json.to_owned() };
    for (name, codings) in labels {
        let own = &mut resource["meta"][name];
        let mut all = own.as_array().cloned().unwrap_or_default();
        for coding in codings.as_array().into_iter().flatten() {
            let is_same = |known: &&mut serde_json::Value| {
                let coded = coding["code"].is_string() && known["code"] == coding["code"];
                **known == *coding || (coded && known["system"] == coding["system"])
            };
            match all.iter_mut().find(is_same) {
                // The same with and without its display is one.
                Some(known) if known.get("display").is_none() => *known = coding.clone(),
                Some(_) => {}
                None => all.push(coding.clone()),
            }
        }
        *own = all.into();
    }
    resource.to_string()
}

/// One entry with a comma after it.
fn put(out: &mut String, kind: &str, id: &str, resource: impl FnOnce(&mut String)) {
    out.push_str("{\"fullUrl\":\"urn:uuid:");
    out.push_str(id);
    out.push_str("\",\"resource\":");
    resource(out);
    out.push_str(",\"request\":{\"method\":\"PUT\",\"url\":\"");
    out.push_str(kind);
    out.push('/');
    out.push_str(id);
    out.push_str("\"}},");
}

/// The Provenance of everything in the Bundle.
///
/// # Source
/// FHIR R4 Provenance; v2-to-FHIR guide, MSH[Provenance-Source] and MSH[Provenance-Transformation].
fn provenance(out: &mut String, id: &str, targets: &[&str], about: &About<'_>) {
    let _ = write!(out, "{{\"resourceType\":\"Provenance\",\"id\":\"{id}\",\"target\":[");
    for (index, target) in targets.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str("{\"reference\":\"urn:uuid:");
        out.push_str(target);
        out.push_str("\"}");
    }
    let _ = write!(out, "],\"recorded\":\"{}\",\"agent\":[{{\"type\":{{\"coding\":[{{", about.received_at);
    out.push_str("\"system\":\"http://terminology.hl7.org/CodeSystem/provenance-participant-type\",\"code\":\"author\"}]},");
    out.push_str("\"who\":{\"display\":");
    json::string(out, if about.sender.is_empty() { "unknown sender" } else { about.sender });
    out.push_str("}},{\"type\":{\"coding\":[{");
    out.push_str("\"system\":\"http://terminology.hl7.org/CodeSystem/provenance-participant-type\",\"code\":\"assembler\"}]},");
    out.push_str("\"who\":{\"display\":");
    json::string(out, &format!("Pons, mapping {}", about.mapping));
    let _ = write!(
        out,
        "}}}}],\"entity\":[{{\"role\":\"source\",\"what\":{{\"identifier\":{{\"system\":\"urn:ietf:rfc:3986\",\"value\":\"urn:uuid:{}\"}}}}}}]}}",
        about.message
    );
}

/// Where a reference begins in JSON text. Values of a message cannot look like it: their quotes are escaped.
const REFERENCE: &str = "\"reference\":\"";

/// Copies a resource and turns `"reference":"Type/<uuid>"` into `"reference":"urn:uuid:<uuid>"` where the resource is in
/// the Bundle.
fn find_references(
    json: &str,
    reference: &memmem::Finder<'_>,
    here: &HashSet<&str, RandomState>,
    out: &mut String,
) {
    let mut rest = json;
    while let Some(at) = reference.find(rest.as_bytes()) {
        let (before, after) = rest.split_at(at + REFERENCE.len());
        out.push_str(before);
        let end = memchr::memchr(b'"', after.as_bytes()).unwrap_or(after.len());
        let (reference, after) = after.split_at(end);
        let id =
            reference.len().checked_sub(ID_LENGTH).and_then(|start| reference.get(start..)).unwrap_or("");
        if here.contains(id) {
            out.push_str("urn:uuid:");
            out.push_str(id);
        } else {
            out.push_str(reference);
        }
        rest = after;
    }
    out.push_str(rest);
}

/// Takes every reference to a resource out of another: the reference with its element, and the list that it leaves empty.
///
/// Answers whether there was any.
pub(crate) fn forget(json: &mut String, kind: &str, id: Uuid) -> bool {
    let reference = format!("{kind}/{id}");
    if !json.contains(&reference) {
        return false;
    }
    let Ok(mut resource) = serde_json::from_str::<serde_json::Value>(json) else { return false };
    forget_in(&mut resource, &reference);
    *json = resource.to_string();
    true
}

/// Whether anything is left.
fn forget_in(value: &mut serde_json::Value, reference: &str) -> bool {
    match value {
        serde_json::Value::Object(members) => {
            if members.get("reference").and_then(|text| text.as_str()) == Some(reference) {
                members.remove("reference");
                return !members.is_empty();
            }
            members.retain(|_, member| forget_in(member, reference));
            !members.is_empty()
        }
        serde_json::Value::Array(items) => {
            items.retain_mut(|item| forget_in(item, reference));
            !items.is_empty()
        }
        _ => true,
    }
}

/// The names of the top-level members of a JSON object.
struct Members<'j> {
    json: &'j str,
    at: usize,
    depth: usize,
}

impl<'j> Members<'j> {
    fn of(json: &'j str) -> Self {
        Members { json, at: 0, depth: 0 }
    }
}

impl<'j> Iterator for Members<'j> {
    type Item = &'j str;

    fn next(&mut self) -> Option<&'j str> {
        let bytes = self.json.as_bytes();
        loop {
            match bytes.get(self.at)? {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b'"' => {
                    let start = self.at + 1;
                    let mut end = start;
                    loop {
                        end += memchr::memchr2(b'"', b'\\', bytes.get(end..)?)?;
                        if bytes[end] == b'"' {
                            break;
                        }
                        end += 2;
                    }
                    self.at = end;
                    if self.depth == 1 && bytes.get(end + 1) == Some(&b':') {
                        self.at += 1;
                        return Some(&self.json[start..end]);
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_inside_the_bundle_resolve_in_it() {
        let (patient, encounter, absent) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let person = format!(r#"{{"resourceType":"Patient","id":"{patient}"}}"#);
        let visit = format!(
            r#"{{"resourceType":"Encounter","id":"{encounter}","subject":{{"reference":"Patient/{patient}"}},"partOf":{{"reference":"Encounter/{absent}"}},"text":"a \"reference\":\"Patient/{patient}\""}}"#
        );
        let entries = [
            Entry { resource_type: "Patient", id: patient, json: &person },
            Entry { resource_type: "Encounter", id: encounter, json: &visit },
        ];
        let about = About {
            message: Uuid::from_u128(9),
            sender: "test \"lab\"",
            received_at: "2026-01-02T03:04:05Z".parse().expect("a time"),
            mapping: "adt_a01 1.0.0",
            elements: "",
        };
        let text = assemble(&entries, &about);
        let bundle: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let entry = |n: usize| &bundle["entry"][n];
        assert_eq!(bundle["entry"].as_array().map(Vec::len), Some(3));
        assert_eq!(entry(1)["resource"]["subject"]["reference"], format!("urn:uuid:{patient}"));
        assert_eq!(entry(1)["resource"]["partOf"]["reference"], format!("Encounter/{absent}"));
        assert_eq!(entry(1)["resource"]["text"], format!("a \"reference\":\"Patient/{patient}\""));
        assert_eq!(entry(0)["request"]["url"], format!("Patient/{patient}"));
        assert_eq!(entry(2)["resource"]["target"].as_array().map(Vec::len), Some(2));
        assert_eq!(text, assemble(&entries, &about), "the same bytes every time");
        assert_eq!(schemas::fhir::validate(&serde_json::from_str(&assemble(&[], &about)).expect("JSON")), []);
    }
}
