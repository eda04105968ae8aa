//! The types of FHIR R4: resources, data types, their elements, and the codes of required bindings.
//!
//! Generated data under `schemas/fhir/r4/` (see SOURCE.md there), read once and kept for the life of the process.

use std::collections::HashMap;
use std::sync::OnceLock;

/// The definitions of FHIR R4.
#[derive(Debug)]
pub struct R4 {
    types: Vec<TypeDef>,
    by_name: HashMap<&'static str, TypeId>,
    value_sets: HashMap<&'static str, ValueSet>,
}

/// A type among the definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(u16);

/// What a type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A resource such as `Patient`.
    Resource,
    /// A data type with elements such as `HumanName`.
    DataType,
    /// A primitive such as `dateTime`.
    Primitive,
    /// A part of another type such as `Patient.contact`; its name is its path.
    Part,
    /// `Element`, `BackboneElement`, `Resource`, `DomainResource`.
    Abstract,
}

/// A type.
#[derive(Debug)]
pub struct TypeDef {
    /// Which it is.
    pub id: TypeId,
    /// `Patient`, `HumanName`, `dateTime`, `Patient.contact`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The type whose elements come before its own.
    pub base: Option<TypeId>,
    /// Its own elements, in order.
    pub elements: Vec<ElementDef>,
}

/// An element of a type.
#[derive(Debug)]
pub struct ElementDef {
    /// Its name, without `[x]`.
    pub name: &'static str,
    /// Whether it is a choice: `value[x]` here is `valueQuantity`, `valueString`, ... in JSON.
    pub choice: bool,
    /// Whether it must be there (min 1).
    pub required: bool,
    /// Whether it is a list (max *).
    pub repeats: bool,
    /// Its types: one, unless it is a choice.
    pub types: Vec<TypeRef>,
    /// The value set whose codes it must have; `None` unless the binding is `required`.
    pub binding: Option<&'static str>,
}

/// A type of an element.
#[derive(Debug)]
pub struct TypeRef {
    /// The type.
    pub id: TypeId,
    /// Its name.
    pub name: &'static str,
    /// For a `Reference`: the resources it may point at; empty for any.
    pub targets: Vec<&'static str>,
}

/// The codes of a value set.
#[derive(Debug)]
pub struct ValueSet {
    /// The last part of its URL, such as `administrative-gender`.
    pub name: &'static str,
    /// Code systems with the codes taken from each.
    pub systems: Vec<(&'static str, Vec<&'static str>)>,
}

impl ValueSet {
    /// Every code, in the order of the definition.
    pub fn codes(&self) -> impl Iterator<Item = &'static str> {
        self.systems.iter().flat_map(|(_, codes)| codes.iter().copied())
    }

    /// Whether it has a code, in whatever system.
    pub fn has(&self, code: &str) -> bool {
        self.codes().any(|known| known == code)
    }

    /// Whether it has a code of a system.
    pub fn has_coding(&self, system: &str, code: &str) -> bool {
        self.systems.iter().any(|(known, codes)| *known == system && codes.contains(&code))
    }
}

/// An element found by its path.
#[derive(Clone, Copy, Debug)]
pub struct Element {
    /// Its definition.
    pub def: &'static ElementDef,
    /// The types that the path leaves open: one for `Observation.valueQuantity`, all for `Observation.value[x]`.
    pub types: &'static [TypeRef],
    /// The type that defines it: `HumanName` for `Patient.name.family`.
    pub owner: &'static TypeDef,
}

impl Element {
    /// The one type that it has; `None` for a choice that the path left open.
    pub fn only_type(&self) -> Option<&'static TypeRef> {
        match self.types {
            [only] => Some(only),
            _ => None,
        }
    }
}

impl TypeDef {
    /// Whether it is another type or is based on it: a `code` is a `string`, a `Patient` is a `Resource`.
    pub fn is_a(&self, other: &TypeDef) -> bool {
        std::iter::successors(Some(self), |of| of.base.map(|id| r4().get(id))).any(|of| of.id == other.id)
    }
}

impl ElementDef {
    /// Its name in the definitions: `value[x]` for a choice.
    pub fn path_name(&self) -> String {
        format!("{}{}", self.name, if self.choice { "[x]" } else { "" })
    }

    /// Whether [`ElementDef::path_name`] is this.
    pub fn is_path_name(&self, name: &str) -> bool {
        let (bare, choice) = name.strip_suffix("[x]").map_or((name, false), |bare| (bare, true));
        self.name == bare && self.choice == choice
    }

    /// The name in JSON for one of its types: `valueQuantity`, or just its name if it is no choice.
    pub fn json_name(&self, of: &TypeRef) -> String {
        let mut name = self.name.to_owned();
        if self.choice {
            let (head, tail) = of.name.split_at(1);
            name.push_str(&head.to_ascii_uppercase());
            name.push_str(tail);
        }
        name
    }

    /// The type that a name in JSON means, if the name is this element's.
    pub(crate) fn type_of_json_name(&self, name: &str) -> Option<&TypeRef> {
        if !self.choice {
            return if name == self.name { self.types.first() } else { None };
        }
        let rest = name.strip_prefix(self.name)?.as_bytes();
        self.types.iter().find(|of| {
            let of = of.name.as_bytes();
            of.len() == rest.len() && of[0].to_ascii_uppercase() == rest[0] && of[1..] == rest[1..]
        })
    }
}

/// The definitions. The first call reads them (some milliseconds).
pub fn r4() -> &'static R4 {
    static READ: OnceLock<R4> = OnceLock::new();
    READ.get_or_init(|| {
        R4::read(include_str!("../../fhir/r4/elements.txt"), include_str!("../../fhir/r4/codes.txt"))
    })
}

impl R4 {
    /// A type by its name: `Patient`, `HumanName`, `dateTime`, `Patient.contact`.
    pub fn type_def(&self, name: &str) -> Option<&TypeDef> {
        self.by_name.get(name).map(|id| self.get(*id))
    }

    /// A type.
    pub fn get(&self, id: TypeId) -> &TypeDef {
        &self.types[usize::from(id.0)]
    }

    /// Every type: primitives, data types, resources, a part after the type that it is a part of.
    pub fn types(&self) -> impl Iterator<Item = &TypeDef> {
        self.types.iter()
    }

    /// Whether this is a resource that can be instantiated.
    pub fn is_resource(&self, name: &str) -> bool {
        self.type_def(name).is_some_and(|found| found.kind == Kind::Resource)
    }

    /// All elements of a type in the order of the standard, inherited ones first; nothing for an unknown type.
    pub fn children(&self, type_name: &str) -> impl Iterator<Item = &ElementDef> {
        self.type_def(type_name).into_iter().flat_map(|of| self.elements(of))
    }

    /// All elements of a type in the order of the standard, inherited ones first.
    pub fn elements<'a>(&'a self, of: &'a TypeDef) -> impl Iterator<Item = &'a ElementDef> {
        let mut chain = [None; 4];
        let mut at = Some(of);
        for link in &mut chain {
            *link = at;
            at = at.and_then(|of| of.base).map(|id| self.get(id));
        }
        chain.into_iter().rev().flatten().flat_map(|of| of.elements.iter())
    }

    /// The element of a type that a name in JSON means (`valueQuantity`, `status`), with the type that the name chose.
    pub fn field<'a>(&'a self, of: &'a TypeDef, json_name: &str) -> Option<(&'a ElementDef, &'a TypeRef)> {
        let mut at = Some(of);
        while let Some(of) = at {
            let found =
                of.elements.iter().find_map(|e| e.type_of_json_name(json_name).map(|chosen| (e, chosen)));
            if found.is_some() {
                return found;
            }
            at = of.base.map(|id| self.get(id));
        }
        None
    }

    /// An element by its path from a type, through data types: `Patient.name.family`, `Observation.value[x]`,
    /// `Observation.valueQuantity.unit`, `Observation.referenceRange.low`. An index (`Patient.name[0]`) is allowed and ignored.
    /// Past a choice left open the path goes on only with elements that every type of it has (`Extension.value[x].id`).
    pub fn element(&'static self, path: &str) -> Option<Element> {
        let mut names = path.split('.');
        let start = self.type_def(names.next()?)?;
        let mut owners = vec![start];
        let mut found: Option<Element> = None;
        for name in names {
            let name = match name.split_once('[') {
                Some((plain, "x]")) => plain,
                Some((plain, index)) if index.strip_suffix(']').is_some_and(is_number) => plain,
                Some(_) => return None,
                None => name,
            };
            let mut next = owners.iter().map(|owner| self.child(owner, name));
            let first = next.next()??;
            if !next.all(|other| other.is_some_and(|other| std::ptr::eq(other.def, first.def))) {
                return None;
            }
            owners = first.types.iter().map(|of| self.get(of.id)).collect();
            found = Some(first);
        }
        found
    }

    /// The element that a name in a path means: `value` and `value[x]` leave a choice open, `valueQuantity` does not.
    fn child(&'static self, of: &'static TypeDef, name: &str) -> Option<Element> {
        if let Some((def, chosen)) = self.field(of, name) {
            let owner = self.owner(of, def);
            return Some(Element { def, types: std::slice::from_ref(chosen), owner });
        }
        let def = self.elements(of).find(|def| def.choice && def.name == name)?;
        Some(Element { def, types: &def.types, owner: self.owner(of, def) })
    }

    fn owner(&'static self, of: &'static TypeDef, def: &ElementDef) -> &'static TypeDef {
        let chain = std::iter::successors(Some(of), |of| of.base.map(|id| self.get(id)));
        chain.into_iter().find(|of| of.elements.iter().any(|own| std::ptr::eq(own, def))).unwrap_or(of)
    }

    /// The codes of a value set of a required binding; `None` where the standard gives no list (media types, units).
    pub fn value_set(&self, name: &str) -> Option<&ValueSet> {
        self.value_sets.get(name)
    }

    /// Whether a code is one of a system, as far as required bindings list it.
    pub fn is_coded(&self, system: &str, code: &str) -> bool {
        self.value_sets.values().any(|set| set.has_coding(system, code))
    }

    /// The codes that an element must have, if it is bound to a list of them.
    pub fn codes(&self, element: &ElementDef) -> Option<&ValueSet> {
        self.value_set(element.binding?)
    }

    /// Reads the two files, whose heads describe their formats.
    fn read(elements: &'static str, codes: &'static str) -> R4 {
        let heads = elements.lines().filter_map(|line| line.strip_prefix("= "));
        let mut types = Vec::with_capacity(1024);
        let mut by_name = HashMap::with_capacity(1024);
        for head in heads {
            let id = TypeId(u16::try_from(types.len()).expect("some 800 types"));
            let mut parts = head.split(' ');
            let name = parts.next().unwrap_or_default();
            let kind = match parts.next() {
                Some("R") => Kind::Resource,
                Some("T") => Kind::DataType,
                Some("P") => Kind::Primitive,
                Some("B") => Kind::Part,
                _ => Kind::Abstract,
            };
            by_name.insert(name, id);
            types.push(TypeDef { id, name, kind, base: None, elements: Vec::new() });
        }
        let find = |name: &str| *by_name.get(name).expect("generate.py defines every type that it names");
        let mut current = None;
        for line in elements.lines().filter(|line| !line.starts_with('#')) {
            if let Some(head) = line.strip_prefix("= ") {
                let mut parts = head.split(' ');
                let name = parts.next().unwrap_or_default();
                let id = find(name);
                types[usize::from(id.0)].base = parts.nth(1).map(find);
                current = Some(id);
            } else if let Some(id) = current {
                types[usize::from(id.0)].elements.push(read_element(line, find));
            }
        }
        R4 { types, by_name, value_sets: read_codes(codes) }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `value[x] ? Quantity Reference(Patient|Group) string !some-codes`
fn read_element(line: &'static str, find: impl Fn(&str) -> TypeId) -> ElementDef {
    let mut parts = line.split(' ');
    let name = parts.next().unwrap_or_default();
    let card = parts.next().unwrap_or_default();
    let (mut types, mut binding) = (Vec::with_capacity(1), None);
    for part in parts {
        if let Some(value_set) = part.strip_prefix('!') {
            binding = Some(value_set);
            continue;
        }
        let (name, targets) = part.split_once('(').unwrap_or((part, ""));
        let targets = targets.trim_end_matches(')').split('|').filter(|target| !target.is_empty()).collect();
        types.push(TypeRef { id: find(name), name, targets });
    }
    let plain = name.strip_suffix("[x]");
    ElementDef {
        name: plain.unwrap_or(name),
        choice: plain.is_some(),
        required: matches!(card, "1" | "+"),
        repeats: matches!(card, "*" | "+"),
        types,
        binding,
    }
}

fn read_codes(text: &'static str) -> HashMap<&'static str, ValueSet> {
    let mut sets: HashMap<&'static str, ValueSet> = HashMap::with_capacity(256);
    let mut current = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("= ") {
            current = name;
            sets.insert(name, ValueSet { name, systems: Vec::new() });
        } else if let Some(set) = sets.get_mut(current) {
            let mut parts = line.split(' ');
            set.systems.push((parts.next().unwrap_or_default(), parts.collect()));
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a path reads: cardinality, types, binding; empty if there is no such element.
    fn describe(path: &str) -> String {
        let Some(found) = r4().element(path) else { return String::new() };
        let card = match (found.def.required, found.def.repeats) {
            (false, false) => "0..1",
            (true, false) => "1..1",
            (false, true) => "0..*",
            (true, true) => "1..*",
        };
        let types: Vec<_> = found.types.iter().map(|of| of.name).collect();
        format!(
            "{card} {}{}",
            types.join("|"),
            found.def.binding.map(|b| format!(" !{b}")).unwrap_or_default()
        )
    }

    #[test]
    fn elements_are_found_through_data_types() {
        for (path, expected) in [
            ("Patient.name", "0..* HumanName"),
            ("Patient.name.family", "0..1 string"),
            ("Patient.name[0].given", "0..* string"),
            ("Patient.gender", "0..1 code !administrative-gender"),
            ("Patient.contact.name.given", "0..* string"),
            ("Patient.deceased[x]", "0..1 boolean|dateTime"),
            ("Patient.deceasedBoolean", "0..1 boolean"),
            ("Patient.deceased", "0..1 boolean|dateTime"),
            ("Observation.status", "1..1 code !observation-status"),
            ("Observation.valueQuantity.value", "0..1 decimal"),
            ("Observation.component.valueString", "0..1 string"),
            ("Observation.component.referenceRange.low", "0..1 Quantity"),
            ("Bundle.entry.resource", "0..1 Resource"),
            ("Bundle.entry.response.outcome", "0..1 Resource"),
            ("Bundle.entry.link.url", "1..1 uri"),
            ("Patient.id", "0..1 id"),
            ("Patient.meta.lastUpdated", "0..1 instant"),
            ("Patient.extension.url", "1..1 uri"),
            ("Patient.extension.value[x].id", "0..1 string"),
            ("Patient.contact.modifierExtension", "0..* Extension"),
            ("Age.value", "0..1 decimal"),
            ("MessageHeader.destination.endpoint", "1..1 url"),
            ("Patient.nam", ""),
            ("Patient.name.valueString", ""),
            ("Observation.value[x].unit", ""),
            ("Observation.valueCode", ""),
            ("Patient.name[a]", ""),
            ("Nobody.name", ""),
            ("Patient", ""),
            ("", ""),
        ] {
            assert_eq!(describe(path), expected, "{path}");
        }
    }

    #[test]
    fn targets_and_codes_are_known() {
        let subject = r4().element("Observation.subject").and_then(|e| e.only_type()).expect("a reference");
        assert_eq!(subject.targets, ["Device", "Group", "Location", "Patient"]);
        assert!(
            r4().element("Observation.focus")
                .and_then(|e| e.only_type())
                .is_some_and(|of| of.targets.is_empty())
        );
        let gender = r4().value_set("administrative-gender").expect("a value set");
        assert_eq!(gender.codes().collect::<Vec<_>>(), ["male", "female", "other", "unknown"]);
        assert!(gender.has_coding("http://hl7.org/fhir/administrative-gender", "male"));
        assert!(!gender.has_coding("http://example.org", "male") && !gender.has("M"));
        let status = r4().element("AllergyIntolerance.clinicalStatus").expect("an element");
        assert!(r4().codes(status.def).is_some_and(|set| set.has("active")));
    }

    #[test]
    fn children_stand_in_the_order_of_the_standard() {
        let names: Vec<_> = r4().children("Patient").map(ElementDef::path_name).collect();
        assert_eq!(
            names[..10],
            [
                "id",
                "meta",
                "implicitRules",
                "language",
                "text",
                "contained",
                "extension",
                "modifierExtension",
                "identifier",
                "active",
            ]
        );
        assert_eq!(names[14], "deceased[x]");
        assert_eq!(r4().children("Nobody").count(), 0);
        let value = r4().element("Observation.value[x]").expect("an element");
        let names: Vec<_> = value.types.iter().map(|of| value.def.json_name(of)).collect();
        assert_eq!(names[..3], ["valueQuantity", "valueCodeableConcept", "valueString"]);
    }

    /// The standard counts 148 resources, `Resource` and `DomainResource` among them.
    #[test]
    fn the_resources_are_those_of_4_0_1() {
        let resources: Vec<_> =
            r4().types().filter(|of| of.kind == Kind::Resource).map(|of| of.name).collect();
        assert_eq!(resources.len(), 146);
        assert!(
            r4().is_resource("Patient") && !r4().is_resource("HumanName") && !r4().is_resource("Resource")
        );
        for later in ["SubscriptionStatus", "SubscriptionTopic", "NutritionProduct", "Citation"] {
            assert!(!r4().is_resource(later), "{later}");
        }
    }

    #[test]
    fn every_type_has_elements_of_known_types() {
        for of in r4().types() {
            assert_eq!(
                r4().elements(of).count() == 0,
                of.kind == Kind::Primitive && of.base.is_none(),
                "{}",
                of.name
            );
            for element in &of.elements {
                assert!(!element.types.is_empty(), "{}.{}", of.name, element.name);
                assert!(element.choice || element.types.len() == 1, "{}.{}", of.name, element.name);
                assert!(
                    element
                        .types
                        .iter()
                        .all(|t| t.targets.iter().all(|target| r4().type_def(target).is_some()))
                );
            }
        }
    }
}
