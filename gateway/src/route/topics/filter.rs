//! What a subscription narrows its topics to: `Encounter?class=IMP`.

use super::{Topic, Touched};
use jiff::Timestamp;
use schemas::fhir::search::{Query, Refused};
use std::fmt;
use std::sync::Arc;

/// Conditions on the resources that a topic is about.
#[derive(Clone, Debug)]
pub struct Filter {
    text: Arc<str>,
    resource: Arc<str>,
    query: Arc<Query>,
}

impl Filter {
    /// Reads `Type?parameter=value&...` for the topics of a subscription.
    ///
    /// # Errors
    /// What cannot be asked, and what can. The text of a value is never in it.
    pub fn read(text: &str, topics: &[&Topic]) -> Result<Filter, String> {
        let (resource, conditions) = text.split_once('?').ok_or("expected Type?parameter=value")?;
        for condition in conditions.split('&') {
            let name = condition.split(['=', ':']).next().unwrap_or_default();
            for topic in topics {
                let known = |filter: &&super::Filterable| filter.resource == resource;
                if !topic.filters.iter().filter(known).any(|filter| filter.parameter == name) {
                    return Err(match topic.filters.is_empty() {
                        true => format!("topic {} takes no filter", topic.name),
                        false => format!("topic {} takes filters by: {}", topic.name, topic.filterable()),
                    });
                }
            }
        }
        let query = Query::compile(resource, conditions).map_err(|refused: Refused| refused.to_string())?;
        Ok(Filter { text: text.into(), resource: resource.into(), query: Arc::new(query) })
    }

    /// Whether a resource that a topic is about meets every filter of its type. What cannot be asked lets it pass.
    pub fn pass(filters: &[Filter], touched: &Touched<'_>, now: Timestamp) -> bool {
        let mut own = filters.iter().filter(|filter| *filter.resource == *touched.resource_type);
        own.all(|filter| filter.query.holds(touched.now.json(), now).unwrap_or(true))
    }

    /// The type that it asks of.
    pub fn resource(&self) -> &str {
        &self.resource
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Topic {
    /// `Encounter?class, Encounter?status`
    pub(super) fn filterable(&self) -> String {
        let names = self.filters.iter().map(|filter| format!("{}?{}", filter.resource, filter.parameter));
        names.collect::<Vec<_>>().join(", ")
    }
}
