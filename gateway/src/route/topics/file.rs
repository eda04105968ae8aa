//! Reads a SubscriptionTopic file: everything that it says is understood, or it is refused.

use super::{EventTrigger, Filterable, ResourceTrigger, Shape, Topic};
use schemas::fhir::r4;
use schemas::fhir::search::{Kind, Parameter, Query, parameter};
use schemas::fhirpath::{Dialect, Path};
use serde::Deserialize;

impl Topic {
    /// Reads a topic from its file, whose name it has.
    ///
    /// # Errors
    /// The first thing that is not understood, and what it stands in.
    pub(super) fn read(name: &str, text: &str) -> Result<Topic, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if file.url != format!("urn:pons:topic:{name}") {
            return Err(format!("the url of topic {name} should end in its file's name"));
        }
        let events = file.event_trigger.into_iter().flat_map(|trigger| {
            let FileEventTrigger { resource, event, .. } = trigger;
            event
                .coding
                .into_iter()
                .map(move |coding| EventTrigger { code: coding.code, resource: resource.clone() })
        });
        let resources =
            file.resource_trigger.into_iter().map(resource_trigger).collect::<Result<Vec<_>, _>>()?;
        let filters = file.can_filter_by.into_iter().map(filterable).collect::<Result<Vec<_>, _>>()?;
        let shapes = file.notification_shape.into_iter().map(shape).collect::<Result<Vec<_>, _>>()?;
        let topic = Topic {
            name: name.to_owned(),
            title: file.title,
            events: events.collect(),
            resources,
            filters,
            shapes,
        };
        if topic.types().any(|of| !r4().is_resource(of)) {
            return Err("a trigger names a resource type that R4 does not have".to_owned());
        }
        Ok(topic)
    }
}

fn resource_trigger(trigger: FileResourceTrigger) -> Result<ResourceTrigger, String> {
    let has = |word: &str| trigger.supported_interaction.iter().any(|interaction| interaction == word);
    let known = ["create", "update"];
    if let Some(other) = trigger.supported_interaction.iter().find(|word| !known.contains(&word.as_str())) {
        return Err(format!("interaction {other} is none of: {}", known.join(", ")));
    }
    let of = &trigger.resource;
    let query = |text: Option<&String>| {
        text.map(|text| Query::compile(of, text).map_err(|refused| refused.to_string())).transpose()
    };
    let criteria = trigger.query_criteria.unwrap_or_default();
    let path = trigger.fhir_path_criteria.as_deref().map(|text| Path::compile(text, of, Dialect::Standard));
    Ok(ResourceTrigger {
        on_create: has("create"),
        on_update: has("update"),
        previous: query(criteria.previous.as_ref())?,
        current: query(criteria.current.as_ref())?,
        passes_for_create: outcome(criteria.result_for_create.as_deref())?,
        require_both: criteria.require_both,
        path: path.transpose().map_err(|fault| format!("fhirPathCriteria: {fault}"))?,
        resource: trigger.resource,
    })
}

fn outcome(text: Option<&str>) -> Result<bool, String> {
    match text {
        None | Some("test-passes") => Ok(true),
        Some("test-fails") => Ok(false),
        Some(_) => Err("resultForCreate is test-passes or test-fails".to_owned()),
    }
}

fn filterable(filter: FileFilter) -> Result<Filterable, String> {
    if parameter(&filter.resource, &filter.filter_parameter).is_none() {
        return Err(format!(
            "canFilterBy: {} has no search parameter {}",
            filter.resource, filter.filter_parameter
        ));
    }
    Ok(Filterable { resource: filter.resource, parameter: filter.filter_parameter })
}

fn shape(shape: FileShape) -> Result<Shape, String> {
    let by = |text: &String| -> Result<(String, &'static Parameter), String> {
        let (of, code) = text.split_once(':').ok_or_else(|| format!("{text} is not Type:parameter"))?;
        let found = parameter(of, code).filter(|parameter| parameter.kind == Kind::Reference);
        let found = found.ok_or_else(|| format!("notificationShape: {of} has no reference {code}"))?;
        Ok((of.to_owned(), found))
    };
    let include = shape.include.iter().map(by).collect::<Result<Vec<_>, _>>()?;
    if let Some((other, _)) = include.iter().find(|(of, _)| *of != shape.resource) {
        return Err(format!("notificationShape: {other} is not its resource {}", shape.resource));
    }
    Ok(Shape {
        include: include.into_iter().map(|(_, parameter)| parameter).collect(),
        rev_include: shape.rev_include.iter().map(by).collect::<Result<_, _>>()?,
        resource: shape.resource,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "resourceType")]
    _resource_type: String,
    url: String,
    title: String,
    #[serde(rename = "status")]
    _status: String,
    #[serde(default)]
    resource_trigger: Vec<FileResourceTrigger>,
    #[serde(default)]
    event_trigger: Vec<FileEventTrigger>,
    #[serde(default)]
    can_filter_by: Vec<FileFilter>,
    #[serde(default)]
    notification_shape: Vec<FileShape>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileShape {
    resource: String,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    rev_include: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileResourceTrigger {
    #[serde(rename = "description")]
    _description: String,
    resource: String,
    supported_interaction: Vec<String>,
    query_criteria: Option<FileCriteria>,
    fhir_path_criteria: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileCriteria {
    previous: Option<String>,
    current: Option<String>,
    result_for_create: Option<String>,
    #[serde(default)]
    require_both: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEventTrigger {
    #[serde(rename = "description")]
    _description: String,
    resource: String,
    event: FileConcept,
}

#[derive(Deserialize)]
struct FileConcept {
    coding: Vec<FileCoding>,
}

#[derive(Deserialize)]
struct FileCoding {
    code: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileFilter {
    #[serde(rename = "description")]
    _description: String,
    resource: String,
    filter_parameter: String,
}
