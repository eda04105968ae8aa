//! R4's search parameters.

use super::super::definitions::r4;
use crate::fhirpath::{Dialect, Fault, Path, Scope};
use jiff::Timestamp;
use serde_json::Value as Json;
use std::collections::HashMap;
use std::sync::OnceLock;

/// A search parameter of a resource type.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in a query: `birthdate`.
    pub code: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// The types that a reference may point at; empty for any.
    pub targets: Vec<&'static str>,
    of: &'static str,
    expression: &'static str,
    path: OnceLock<Path>,
}

/// What the values of a parameter are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number,
    /// A date, a time, or a span of them.
    Date,
    /// A text, searched by its beginning.
    String,
    /// A code, an identifier, a flag.
    Token,
    /// A reference to a resource.
    Reference,
    /// Several parameters at once.
    Composite,
    /// An amount.
    Quantity,
    /// A URI.
    Uri,
    /// Its own rules.
    Special,
}

const KINDS: [(&str, Kind); 9] = [
    ("number", Kind::Number),
    ("date", Kind::Date),
    ("string", Kind::String),
    ("token", Kind::Token),
    ("reference", Kind::Reference),
    ("composite", Kind::Composite),
    ("quantity", Kind::Quantity),
    ("uri", Kind::Uri),
    ("special", Kind::Special),
];

impl Kind {
    /// Its name in the standard.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl Parameter {
    /// The element of the type that its expression begins with: `subject` of `Encounter.subject.where(...)`.
    pub fn element(&self) -> &'static str {
        let rest = self.expression.strip_prefix(self.of).and_then(|rest| rest.strip_prefix('.'));
        rest.unwrap_or(self.expression).split(['.', ' ']).next().unwrap_or_default()
    }

    /// The references that it finds in a resource, as they are written there; none unless it is a reference.
    ///
    /// # Errors
    /// Its expression could not be run on the resource.
    pub fn references(&self, resource: &Json, now: Timestamp) -> Result<Vec<String>, Fault> {
        if self.kind != Kind::Reference {
            return Ok(Vec::new());
        }
        Ok(self.path().run(&Scope::of(resource, now))?.iter().filter_map(super::value::reference).collect())
    }

    /// What it looks at, compiled at the first call.
    pub(super) fn path(&self) -> &Path {
        self.path.get_or_init(|| {
            Path::compile(self.expression, self.of, Dialect::R4).expect("a test compiles each of R4's")
        })
    }
}

/// A parameter of a resource type, its own or one of every resource (`_id`).
pub fn parameter(of: &str, code: &str) -> Option<&'static Parameter> {
    parameters(of).find(|parameter| parameter.code == code)
}

/// All parameters of a resource type.
pub fn parameters(of: &str) -> impl Iterator<Item = &'static Parameter> + use<> {
    let known = known();
    let chain = std::iter::successors(r4().type_def(of), |of| of.base.map(|id| r4().get(id)));
    let lists: Vec<_> = chain.filter_map(|of| known.of.get(of.name)).collect();
    lists.into_iter().flatten().map(|index| &known.all[*index])
}

struct Known {
    all: Vec<Parameter>,
    of: HashMap<&'static str, Vec<usize>>,
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let mut known = Known { all: Vec::with_capacity(1400), of: HashMap::with_capacity(150) };
        let text = include_str!("../../../fhir/r4/search.txt");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut parts = line.splitn(5, ' ');
            let mut part = || parts.next().expect("generate.py writes five parts");
            let (code, kind, of, targets, expression) = (part(), part(), part(), part(), part());
            let (_, kind) = *KINDS.iter().find(|(name, _)| *name == kind).expect("a kind of R4");
            let targets = targets.split('|').filter(|target| *target != "-").collect();
            known.of.entry(of).or_default().push(known.all.len());
            known.all.push(Parameter { code, kind, targets, of, expression, path: OnceLock::new() });
        }
        known
    })
}
