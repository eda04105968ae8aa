//! Topics: which event on which resource, read from the SubscriptionTopic files under `schemas/topics/`.
//!
//! For an HL7 v2 message a topic with `eventTrigger`s goes by the trigger event alone (an A01 is an encounter's start even if
//! an earlier result had made the encounter known); every other message and topic goes by `resourceTrigger`: search
//! criteria on what the resource was and is, and a FHIRPath expression, to which `%previous`, `%current` and `%event`, the
//! trigger event of an HL7 v2 message, are known.
//! What a topic file says beyond what is understood here is refused at load.

mod file;
mod filter;
#[cfg(test)]
mod tests;

pub use filter::Filter;

use jiff::Timestamp;
use schemas::fhir::search::{Parameter, Query};
use schemas::fhirpath::{Fault, Item, Node, Path, Scope};
use serde_json::Value;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;
use std::sync::LazyLock;

include!(concat!(env!("OUT_DIR"), "/topics.rs"));

static TOPICS: LazyLock<Vec<Topic>> = LazyLock::new(|| {
    FILES
        .iter()
        .map(|(name, text)| Topic::read(name, text).expect("the shipped topics are valid: a test reads each"))
        .collect()
});

/// The names of all topics.
pub fn names() -> Vec<&'static str> {
    FILES.iter().map(|(name, _)| *name).collect()
}

/// A topic by its name.
pub fn find(name: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.name == name)
}

/// What one message did to the store.
#[derive(Debug)]
pub struct Happening<'h> {
    /// The HL7 v2 trigger event (MSH-9.2), if there was one.
    pub event: Option<&'h str>,
    /// Each resource that it made or touched.
    pub resources: &'h [Touched<'h>],
    /// When it was recorded.
    pub now: Timestamp,
}

/// One resource before and after a message.
#[derive(Clone, Debug)]
pub struct Touched<'h> {
    resource_type: Cow<'h, str>,
    before: Option<Read<'h>>,
    now: Read<'h>,
}

/// A resource in JSON, read when somebody first looks into it.
#[derive(Clone)]
struct Read<'h> {
    text: Cow<'h, str>,
    json: OnceCell<Value>,
}

/// How long it is; what stands there is a patient's.
impl fmt::Debug for Read<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.text.len())
    }
}

impl Read<'_> {
    /// It as a value; `null` if it cannot be read, which holds nothing.
    fn json(&self) -> &Value {
        self.json.get_or_init(|| serde_json::from_str(&self.text).unwrap_or_default())
    }
}

impl<'h> Touched<'h> {
    /// The same resource after the message did more to it.
    pub fn is_now(&mut self, now: impl Into<Cow<'h, str>>) {
        self.now = Read { text: now.into(), json: OnceCell::new() };
    }

    /// `Type/id`
    pub fn reference(&self) -> Option<String> {
        Some(format!("{}/{}", self.resource_type, self.now.json()["id"].as_str()?))
    }

    /// A resource in JSON before the message, if it was there, and now.
    pub fn new(
        resource_type: impl Into<Cow<'h, str>>,
        before: Option<impl Into<Cow<'h, str>>>,
        now: impl Into<Cow<'h, str>>,
    ) -> Touched<'h> {
        let read = |text| Read { text, json: OnceCell::new() };
        Touched {
            resource_type: resource_type.into(),
            before: before.map(|text| read(text.into())),
            now: read(now.into()),
        }
    }
}

/// A topic: what has to happen.
#[derive(Debug)]
pub struct Topic {
    name: String,
    title: String,
    events: Vec<EventTrigger>,
    resources: Vec<ResourceTrigger>,
    filters: Vec<Filterable>,
    shapes: Vec<Shape>,
}

/// What goes along with a resource that an event brings: the one that it is about, and those that go along by another shape.
#[derive(Debug)]
pub struct Shape {
    resource: String,
    /// What it refers to.
    pub include: Vec<&'static Parameter>,
    /// What refers to it: each type, and by what.
    pub rev_include: Vec<(String, &'static Parameter)>,
}

/// A trigger event of HL7 v2 that touches a resource of a type.
#[derive(Debug)]
struct EventTrigger {
    code: String,
    resource: String,
}

#[derive(Debug)]
struct ResourceTrigger {
    resource: String,
    on_create: bool,
    on_update: bool,
    previous: Option<Query>,
    current: Option<Query>,
    passes_for_create: bool,
    require_both: bool,
    path: Option<Path>,
}

/// A search parameter that a subscription may narrow the topic by.
#[derive(Debug)]
struct Filterable {
    resource: String,
    parameter: String,
}

impl Topic {
    /// What a subscription calls it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is about, for people.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The resource types that its triggers look at.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        let events = self.events.iter().map(|trigger| trigger.resource.as_str());
        events.chain(self.resources.iter().map(|trigger| trigger.resource.as_str()))
    }

    /// What goes along with resources of a type.
    pub fn shapes<'t>(&'t self, resource_type: &str) -> impl Iterator<Item = &'t Shape> {
        self.shapes.iter().filter(move |shape| shape.resource == resource_type)
    }

    /// The resources that the topic is about in what happened; none if it did not happen.
    pub fn focus<'a, 'h>(&self, happening: &'a Happening<'h>) -> Vec<&'a Touched<'h>> {
        let by_event = happening.event.filter(|_| !self.events.is_empty());
        let is_focus = |touched: &&'a Touched<'h>| match by_event {
            Some(event) => self
                .events
                .iter()
                .any(|trigger| trigger.code == event && trigger.resource == touched.resource_type),
            None => self.resources.iter().any(|trigger| trigger.holds(touched, happening)),
        };
        happening.resources.iter().filter(is_focus).collect()
    }
}

impl ResourceTrigger {
    /// Whether it fires. What cannot be asked of a resource does: a delivery too many is less than one too few.
    fn holds(&self, touched: &Touched<'_>, happening: &Happening<'_>) -> bool {
        if touched.resource_type != self.resource {
            return false;
        }
        if if touched.before.is_none() { !self.on_create } else { !self.on_update } {
            return false;
        }
        self.criteria(touched, happening).unwrap_or_else(|fault| {
            tracing::warn!(resource = self.resource, error = %fault, "a topic's criteria could not be asked");
            true
        })
    }

    fn criteria(&self, touched: &Touched<'_>, happening: &Happening<'_>) -> Result<bool, Fault> {
        let now = happening.now;
        let current = self.current.as_ref().map(|query| query.holds(touched.now.json(), now)).transpose()?;
        let previous = match (&self.previous, &touched.before) {
            (None, _) => None,
            (Some(query), Some(before)) => Some(query.holds(before.json(), now)?),
            (Some(_), None) => Some(self.passes_for_create),
        };
        let by_search = match (previous, current) {
            (None, None) => true,
            (Some(one), None) | (None, Some(one)) => one,
            (Some(previous), Some(current)) if self.require_both => previous && current,
            (Some(previous), Some(current)) => previous || current,
        };
        match &self.path {
            Some(path) if by_search => {
                let current = touched.now.json();
                let variables = [
                    ("previous", touched.before.as_ref().map(|before| Node::resource(before.json()).into())),
                    ("current", Some(Node::resource(current).into())),
                    ("event", happening.event.map(Item::from)),
                ];
                path.holds(&Scope { variables: &variables, ..Scope::of(current, now) })
            }
            _ => Ok(by_search),
        }
    }
}
