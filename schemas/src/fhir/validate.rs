//! Checks a FHIR R4 resource against the definitions: structure, formats, codes, references.
//!
//! [`validate`] walks the JSON once beside the definitions. Every finding is an error with a FHIRPath place
//! (`Bundle.entry[2].resource.name[0].family`) and never holds a value.
//!
//! | code | what is wrong |
//! |---|---|
//! | `unknown-type`, `unknown-element` | no such resource or element in 4.0.1 |
//! | `required-element` | an element with min 1 is missing |
//! | `list-expected`, `list-unexpected` | an array is missing, or there is one where there is no list |
//! | `wrong-type` | an object where a primitive belongs, or the other way round |
//! | `bad-format` | a primitive's format |
//! | `choice-repeated` | two types of one `value[x]` |
//! | `unknown-code` | a code outside its required value set |
//! | `reference-target`, `reference-dangling` | a reference to a type that is not allowed; to nothing in the Bundle or resource |
//! | `empty` | an empty object, array or string |
//! | `invariant` | a rule of the standard, named in the text (`obs-6`) |
//! | `too-deep` | nested deeper than 64 levels |

use super::definitions::{ElementDef, Kind, R4, TypeDef, TypeRef, ValueSet, r4};
use super::invariants::{self, Around};
use super::primitive;
use crate::issue::{Issue, Severity};
use serde_json::{Map, Value};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::fmt;

/// The deepest nesting of objects that is looked into.
const DEPTH_MAX: u8 = 64;

/// The most findings about one resource: whoever has so many needs no more.
const ISSUES_MAX: usize = 1000;

/// What is wrong with a resource by FHIR R4; nothing if it is right. A Bundle is checked with its entries and with what
/// they refer to in it.
///
/// References that cannot be looked up here are taken as good if they have a known form: relative (`Patient/1`), absolute,
/// conditional (`Patient?identifier=...`), a logical identifier. Codes are checked where the binding is required.
pub fn validate(resource: &Value) -> Vec<Issue> {
    let mut walk = Walk {
        r4: r4(),
        issues: Vec::new(),
        urls: urls_of(resource),
        in_bundle: is_bundle(resource),
        resource,
    };
    let name = resource.get("resourceType").and_then(Value::as_str).unwrap_or("Resource");
    // The place must not name what the input calls itself: only a known type is shown.
    let name = walk.r4.type_def(name).map_or("Resource", |of| of.name);
    let place = Place { parent: None, name, index: None, depth: 0 };
    walk.resource(resource, &place, None);
    walk.issues
}

fn is_bundle(resource: &Value) -> bool {
    resource.get("resourceType").and_then(Value::as_str) == Some("Bundle")
}

/// The `fullUrl`s of a Bundle's entries with the types of their resources; empty if an entry does not say.
fn urls_of(resource: &Value) -> HashMap<&str, &str> {
    let entries = resource.get("entry").and_then(Value::as_array).into_iter().flatten();
    let urls = entries.filter_map(|entry| {
        let kind = entry.get("resource").and_then(|resource| resource.get("resourceType")?.as_str());
        Some((entry.get("fullUrl")?.as_str()?, kind.unwrap_or_default()))
    });
    if is_bundle(resource) { urls.collect() } else { HashMap::new() }
}

/// A place in the resource: a list from the innermost name outwards, written out only when there is something to say.
pub(super) struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    name: &'a str,
    index: Option<usize>,
    depth: u8,
}

impl<'a> Place<'a> {
    fn child(&'a self, name: &'a str, index: Option<usize>) -> Place<'a> {
        Place { parent: Some(self), name, index, depth: self.depth.saturating_add(1) }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name)?;
        self.index.map_or(Ok(()), |index| write!(f, "[{index}]"))
    }
}

struct Walk<'v> {
    r4: &'static R4,
    issues: Vec<Issue>,
    urls: HashMap<&'v str, &'v str>,
    in_bundle: bool,
    /// The resource that is being walked.
    resource: &'v Value,
}

/// The resource around an element: what `#id` references mean.
type Container<'v> = Option<&'v Value>;

impl<'v> Walk<'v> {
    fn say(&mut self, place: &Place<'_>, code: &str, text: impl Into<String>) {
        if self.issues.len() < ISSUES_MAX {
            self.issues.push(Issue::new(Severity::Error, code, place.to_string(), text));
        }
    }

    /// A resource at the root, in a Bundle's entry, in `contained` or in Parameters.
    fn resource(&mut self, value: &'v Value, place: &Place<'_>, container: Container<'v>) {
        let Some(object) = value.as_object() else {
            return self.say(place, "wrong-type", "must be an object");
        };
        let kind = object.get("resourceType").and_then(Value::as_str);
        let Some(of) = kind.and_then(|name| self.r4.type_def(name)).filter(|of| of.kind == Kind::Resource)
        else {
            return self.say(place, "unknown-type", "resourceType must name a resource of FHIR R4");
        };
        if container.is_some() && object.contains_key("contained") {
            self.say(place, "invariant", "dom-2: a contained resource must not contain others");
        }
        let meta = object.get("meta");
        if container.is_some() && meta.is_some_and(|m| m.get("versionId").or(m.get("lastUpdated")).is_some())
        {
            self.say(place, "invariant", "dom-4: a contained resource has no version and no time of change");
        }
        if container.is_none() && object.contains_key("contained") {
            self.unreferred(value, object, place);
        }
        let around = std::mem::replace(&mut self.resource, value);
        self.object(of, value, object, place, container.or(Some(value)));
        self.resource = around;
    }

    /// dom-3: what is contained is referred to from the resource, or refers to it.
    fn unreferred(&mut self, value: &'v Value, object: &'v Map<String, Value>, place: &Place<'_>) {
        let contained = object.get("contained").and_then(Value::as_array);
        let mut referred = HashSet::new();
        texts(value, &mut referred);
        for (index, one) in contained.into_iter().flatten().enumerate() {
            let mut own = HashSet::new();
            texts(one, &mut own);
            let is_referred = one.get("id").and_then(Value::as_str).is_some_and(|id| referred.contains(id));
            if !is_referred && !own.contains("") {
                let place = place.child("contained", Some(index));
                self.say(
                    &place,
                    "invariant",
                    "dom-3: a contained resource must be referred to, or refer to its container",
                );
            }
        }
    }

    /// The elements of an object.
    fn object(
        &mut self,
        of: &'static TypeDef,
        value: &'v Value,
        object: &'v Map<String, Value>,
        place: &Place<'_>,
        container: Container<'v>,
    ) {
        if place.depth > DEPTH_MAX {
            return self.say(place, "too-deep", "is nested too deep to be checked");
        }
        let is_resource = of.kind == Kind::Resource;
        if !is_resource && !object.keys().any(|key| key != "id") {
            self.say(place, "empty", "ele-1: must have a value or elements besides an id");
        }
        let mut choices: SmallVec<[(&ElementDef, &str); 4]> = SmallVec::new();
        for (key, inner) in object {
            if key == "resourceType" && is_resource {
                continue;
            }
            let bare = key.strip_prefix('_').unwrap_or(key);
            let known = self.r4.field(of, bare);
            let Some((def, chosen)) =
                known.filter(|(_, chosen)| bare.len() == key.len() || self.is_primitive(chosen))
            else {
                let text = match nearest(self.r4, of, bare) {
                    Some(near) => format!("an element that {} does not have; is {near} meant?", of.name),
                    None => format!("an element that {} does not have", of.name),
                };
                self.say(place, "unknown-element", text);
                continue;
            };
            if def.choice && choices.iter().any(|(other, with)| std::ptr::eq(*other, def) && *with != bare) {
                self.say(
                    place,
                    "choice-repeated",
                    format!("{}: only one type of it may be given", def.path_name()),
                );
            } else if def.choice {
                choices.push((def, bare));
            }
            self.element(def, chosen, (bare, bare.len() < key.len()), object, inner, place, container);
        }
        for def in self.r4.elements(of).filter(|def| def.required) {
            let given = |of: &TypeRef| {
                let name = def.json_name(of);
                object.contains_key(&name)
                    || (self.is_primitive(of) && object.contains_key(&format!("_{name}")))
            };
            let there = if def.choice {
                def.types.iter().any(given)
            } else {
                object.contains_key(def.name) || given(&def.types[0])
            };
            if !there {
                self.say(&place.child(&def.path_name(), None), "required-element", "is required");
            }
        }
        let around = Around { resource: self.resource, root: container.unwrap_or(self.resource) };
        for broken in invariants::broken(of, value, around) {
            self.say(place, "invariant", broken);
        }
        if of.name == "Reference" {
            self.literal(object, place, container);
        }
    }

    fn is_primitive(&self, of: &TypeRef) -> bool {
        self.r4.get(of.id).kind == Kind::Primitive
    }

    /// One element: `extended` when it is the `_name` beside a primitive.
    #[expect(clippy::too_many_arguments, reason = "each is another half of the pair of definition and JSON")]
    fn element(
        &mut self,
        def: &'static ElementDef,
        chosen: &'static TypeRef,
        (name, extended): (&'v str, bool),
        owner: &'v Map<String, Value>,
        value: &'v Value,
        place: &Place<'_>,
        container: Container<'v>,
    ) {
        let items = match (def.repeats, value) {
            (true, Value::Array(items)) if items.is_empty() => {
                return self.say(&place.child(name, None), "empty", "an array must not be empty");
            }
            (true, Value::Array(items)) => items.as_slice(),
            (true, _) => return self.say(&place.child(name, None), "list-expected", "must be an array"),
            (false, Value::Array(_)) => {
                return self.say(&place.child(name, None), "list-unexpected", "must not be an array");
            }
            (false, _) => std::slice::from_ref(value),
        };
        let of = self.r4.get(chosen.id);
        for (index, item) in items.iter().enumerate() {
            let place = place.child(name, def.repeats.then_some(index));
            if extended {
                self.extended(item, &place, container, def.repeats);
            } else if item.is_null() && def.repeats && of.kind == Kind::Primitive {
                let beside = owner.get(&format!("_{name}")).and_then(|beside| beside.get(index));
                if beside.is_none_or(Value::is_null) {
                    self.say(
                        &place,
                        "empty",
                        "null stands for a value only where there is an extension in its place",
                    );
                }
            } else {
                self.item(def, chosen, of, item, &place, container);
            }
        }
    }

    fn item(
        &mut self,
        def: &'static ElementDef,
        chosen: &'static TypeRef,
        of: &'static TypeDef,
        item: &'v Value,
        place: &Place<'_>,
        container: Container<'v>,
    ) {
        if of.kind == Kind::Primitive {
            if item.is_object() || item.is_array() {
                return self.say(
                    place,
                    "wrong-type",
                    format!("must be a {}, not an object or array", of.name),
                );
            }
            if let Some(fault) = primitive::fault(of.name, item) {
                let code = if item.as_str() == Some("") { "empty" } else { "bad-format" };
                return self.say(place, code, format!("{}: {fault}", of.name));
            }
        } else if of.name == "Resource" {
            // A resource in an entry stands alone; one that is contained belongs to the resource around it.
            let container = if place.name == "contained" { container } else { None };
            return self.resource(item, place, container);
        } else {
            let Some(object) = item.as_object() else {
                return self.say(place, "wrong-type", format!("must be an object: {}", of.name));
            };
            self.object(of, item, object, place, container);
        }
        if let Some(set) = self.r4.codes(def) {
            self.code(set, of, item, place);
        }
        if !chosen.targets.is_empty() {
            self.target(&chosen.targets, item, place, container);
        }
    }

    /// The `_name` beside a primitive: an object with an id or extensions.
    fn extended(&mut self, item: &'v Value, place: &Place<'_>, container: Container<'v>, in_list: bool) {
        match item {
            Value::Null if in_list => {}
            Value::Object(object) => {
                let element = self.r4.type_def("Element").expect("the definitions have it");
                if object.is_empty() {
                    return self.say(place, "empty", "must have an id or extensions");
                }
                for (key, value) in object {
                    match self.r4.field(element, key) {
                        Some((def, chosen)) => {
                            self.element(def, chosen, (key, false), object, value, place, container)
                        }
                        None => self.say(
                            place,
                            "unknown-element",
                            "beside a primitive only id and extension may stand",
                        ),
                    }
                }
            }
            _ => self.say(place, "wrong-type", "must be an object with an id or extensions"),
        }
    }

    /// A required binding.
    fn code(&mut self, set: &ValueSet, of: &TypeDef, item: &Value, place: &Place<'_>) {
        let coding_fits = |coding: &Value| {
            let (system, code) = (coding.get("system"), coding.get("code").and_then(Value::as_str));
            match (system.and_then(Value::as_str), code) {
                (Some(system), Some(code)) => set.has_coding(system, code),
                _ => false,
            }
        };
        let fits = match of.name {
            "Coding" => coding_fits(item),
            "CodeableConcept" => {
                item.get("coding").and_then(Value::as_array).is_some_and(|list| list.iter().any(coding_fits))
            }
            _ => item.as_str().is_none_or(|code| set.has(code)),
        };
        if !fits {
            self.say(place, "unknown-code", format!("must be a code of the value set {}", set.name));
        }
    }

    /// The type that a reference points at must be one that the element allows.
    fn target(&mut self, targets: &[&str], item: &Value, place: &Place<'_>, container: Container<'_>) {
        let named = item.get("type").and_then(Value::as_str);
        let literal =
            item.get("reference").and_then(Value::as_str).and_then(|text| self.points_at(text, container));
        for kind in [literal, named].into_iter().flatten() {
            if self.r4.is_resource(kind) && !targets.contains(&kind) {
                return self.say(place, "reference-target", format!("must refer to {}", targets.join(", ")));
            }
        }
    }

    /// The type of what a literal reference points at, if it can be told.
    fn points_at<'a>(&self, text: &'a str, container: Container<'a>) -> Option<&'a str>
    where
        'v: 'a,
    {
        if let Some(id) = text.strip_prefix('#') {
            return contained(container?, id)?.get("resourceType")?.as_str();
        }
        if let Some(kind) = self.urls.get(text) {
            return Some(kind);
        }
        let path = text.split(['?', '#']).next()?;
        let mut parts = path.rsplit('/');
        let last = parts.next()?;
        if text.contains('?') {
            return Some(last);
        }
        let (last, parts) = match parts.clone().next() {
            Some("_history") => (parts.nth(1)?, parts),
            _ => (last, parts),
        };
        let kind = parts.clone().next()?;
        (primitive::is_id(last) && self.r4.is_resource(kind)).then_some(kind)
    }

    /// `Reference.reference` must resolve where it says that it is inside: in the resource or in the Bundle.
    fn literal(&mut self, object: &Map<String, Value>, place: &Place<'_>, container: Container<'_>) {
        let Some(text) = object.get("reference").and_then(Value::as_str) else { return };
        let dangling = if let Some(id) = text.strip_prefix('#') {
            !id.is_empty() && container.is_none_or(|container| contained(container, id).is_none())
        } else if text.starts_with("urn:") {
            self.in_bundle && !self.urls.contains_key(text)
        } else {
            false
        };
        if dangling {
            self.say(&place.child("reference", None), "reference-dangling", "refers to nothing here");
        } else if !text.starts_with("urn:")
            && !text.starts_with('#')
            && self.points_at(text, container).is_none()
        {
            // A full URL may be any system's; a relative one must be Type/id.
            if !text.contains("://") {
                let text = "must be Type/id, a full URL, urn:uuid:, # and an id, or Type?search";
                self.say(&place.child("reference", None), "bad-format", text);
            }
        }
    }
}

/// What follows the `#` of each text that begins with one.
fn texts<'a>(value: &'a Value, into: &mut HashSet<&'a str>) {
    match value {
        Value::String(text) => into.extend(text.strip_prefix('#')),
        Value::Array(items) => items.iter().for_each(|item| texts(item, into)),
        Value::Object(members) => members.values().for_each(|member| texts(member, into)),
        _ => {}
    }
}

fn contained<'a>(container: &'a Value, id: &str) -> Option<&'a Value> {
    let list = container.get("contained")?.as_array()?;
    list.iter().find(|resource| resource.get("id").and_then(Value::as_str) == Some(id))
}

/// The element whose name is nearest to an unknown one, if one is near: for the operator, and never the name given, which
/// may be anything.
fn nearest(r4: &R4, of: &TypeDef, name: &str) -> Option<String> {
    let names = r4.elements(of).flat_map(|def| def.types.iter().map(|of| def.json_name(of)));
    let near = names.map(|known| (strsim::damerau_levenshtein(&known, name), known)).min()?;
    (name.len() < 64 && near.0 <= 2).then_some(near.1)
}

#[cfg(test)]
mod tests;
