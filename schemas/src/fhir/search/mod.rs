//! FHIR search: R4's parameters, and whether a resource is what a query asks for.
//!
//! A query is compiled against the type that it is asked of: parameters, modifiers and values that do not exist are
//! refused, each with what there is. It then looks at one resource at a time, so that a topic, a subscription's filter and a
//! search in the store mean the same by the same words.

mod parameters;
mod value;

pub use parameters::{Kind, Parameter, parameter, parameters};

use crate::fhirpath::{Fault, Scope};
use jiff::Timestamp;
use serde_json::Value as Json;
use value::Wanted;

/// What is asked of resources of one type: every condition must hold.
#[derive(Debug)]
pub struct Query {
    conditions: Vec<Condition>,
}

/// A parameter with the values of which one must be there.
#[derive(Debug)]
struct Condition {
    parameter: &'static Parameter,
    test: Test,
}

#[derive(Debug)]
enum Test {
    /// `:missing`
    Missing(bool),
    /// One of the values, or with `:not` none of them.
    OneOf { values: Vec<Wanted>, negated: bool },
}

/// Why a condition cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The type has no such parameter.
    #[error("{of} has no search parameter {name}{hint}")]
    Unknown {
        /// The resource type.
        of: String,
        /// What was asked for.
        name: String,
        /// ` (did you mean x?)`, or nothing.
        hint: String,
    },
    /// The parameter exists and is of a kind that Pons does not search by.
    #[error("{name}: {kind} parameters are not searched by")]
    Kind {
        /// The parameter.
        name: String,
        /// `composite`, `special`
        kind: &'static str,
    },
    /// The modifier does not exist for this kind of parameter.
    #[error("{name}: modifier :{modifier} is not taken; {known}")]
    Modifier {
        /// The parameter.
        name: String,
        /// What was asked for.
        modifier: String,
        /// Those that are.
        known: String,
    },
    /// A value that does not read. It is not repeated here: it may be a patient's.
    #[error("{name}: {wanted} is wanted")]
    Value {
        /// The parameter.
        name: String,
        /// What was expected.
        wanted: &'static str,
    },
    /// A condition without `=`.
    #[error("a condition is a parameter, = and values")]
    Shape,
}

/// The system and the value of an identifier as a search names it, `system|value`, without the escapes; `None` if it is not one of both.
pub fn identifier(text: &str) -> Option<(String, String)> {
    let (mut system, mut value) = (None, String::new());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => value.push(rest.next()?),
            ',' => return None,
            '|' if system.is_none() => system = Some(std::mem::take(&mut value)),
            c => value.push(c),
        }
    }
    Some((system.filter(|system| !system.is_empty())?, value)).filter(|(_, value)| !value.is_empty())
}

impl Query {
    /// Reads conditions joined by `&`, as in `status=finished&class:not=AMB,VR`, for resources of a type.
    ///
    /// # Errors
    /// The first condition that cannot be asked.
    pub fn compile(of: &str, text: &str) -> Result<Query, Refused> {
        let conditions = text.split('&').map(|condition| {
            let (name, values) = condition.split_once('=').ok_or(Refused::Shape)?;
            Condition::compile(of, name, values)
        });
        Ok(Query { conditions: conditions.collect::<Result<_, _>>()? })
    }

    /// Reads conditions that were taken apart already: names with their modifiers, and values.
    ///
    /// # Errors
    /// The first condition that cannot be asked.
    pub fn of_pairs<'p>(of: &str, pairs: impl Iterator<Item = (&'p str, &'p str)>) -> Result<Query, Refused> {
        let conditions = pairs.map(|(name, values)| Condition::compile(of, name, values));
        Ok(Query { conditions: conditions.collect::<Result<_, _>>()? })
    }

    /// Everything that several queries ask for.
    pub fn all(queries: Vec<Query>) -> Query {
        Query { conditions: queries.into_iter().flat_map(|query| query.conditions).collect() }
    }

    /// Whether a resource is what is asked for; `now` is what the time is.
    ///
    /// # Errors
    /// An expression could not be run on the resource.
    pub fn holds(&self, resource: &Json, now: Timestamp) -> Result<bool, Fault> {
        let scope = Scope::of(resource, now);
        for condition in &self.conditions {
            if !condition.holds(&scope)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Condition {
    fn compile(of: &str, name: &str, values: &str) -> Result<Condition, Refused> {
        // A name of another shape may be anything, a patient's value too: it is not repeated.
        let shaped = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
        let name = if name.len() <= 80 && name.chars().all(shaped) { name } else { "of that name" };
        let (name, modifier) =
            name.split_once(':').map_or((name, None), |(name, modifier)| (name, Some(modifier)));
        let parameter = parameter(of, name).ok_or_else(|| Refused::Unknown {
            of: of.to_owned(),
            name: name.to_owned(),
            hint: crate::fhirpath::nearest(name, parameters(of).map(|parameter| parameter.code)),
        })?;
        if let Kind::Composite | Kind::Special = parameter.kind {
            return Err(Refused::Kind { name: name.to_owned(), kind: parameter.kind.name() });
        }
        let test = match modifier {
            Some("missing") => Test::Missing(match values {
                "true" => true,
                "false" => false,
                _ => return Err(Refused::Value { name: name.to_owned(), wanted: "true or false" }),
            }),
            _ => {
                let (modifier, negated) = if parameter.kind == Kind::Token && modifier == Some("not") {
                    (None, true)
                } else {
                    (modifier, false)
                };
                let values =
                    unescaped(values, ',').into_iter().map(|value| Wanted::read(parameter, modifier, &value));
                Test::OneOf { values: values.collect::<Result<_, _>>()?, negated }
            }
        };
        Ok(Condition { parameter, test })
    }

    fn holds(&self, scope: &Scope<'_>) -> Result<bool, Fault> {
        let found = self.parameter.path().run(scope)?;
        Ok(match &self.test {
            Test::Missing(missing) => found.is_empty() == *missing,
            Test::OneOf { values, negated } => {
                found.iter().any(|item| values.iter().any(|wanted| wanted.is(item))) != *negated
            }
        })
    }
}

/// The parts of a value between separators; one after a backslash is none. The escapes stay for the parts to be taken apart
/// further, but for those of the separator itself.
fn unescaped(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        let part = parts.last_mut().expect("there is always one");
        if escaped {
            if c != separator {
                part.push('\\');
            }
            part.push(c);
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == separator {
            parts.push(String::new());
        } else {
            part.push(c);
        }
    }
    if escaped {
        parts.last_mut().expect("there is always one").push('\\');
    }
    parts
}

/// A value without its remaining escapes.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        plain.push(if c == '\\' { rest.next().unwrap_or('\\') } else { c });
    }
    plain
}

#[cfg(test)]
mod tests;
