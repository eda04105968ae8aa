//! A message mapped by itself, into an empty store: what `pons map` and the tests of mappings print.

use crate::bundle::{self, About, Entry};
use crate::catalog::Catalog;
use crate::compile::target;
use crate::resource::State;
use crate::run::{Context, Mapped, Quarantined};
use schemas::hl7v2::Message;
use schemas::issue::{Issue, Severity};
use uuid::Uuid;

/// A message mapped by itself.
#[derive(Clone, Debug)]
pub struct Alone {
    /// The transaction Bundle.
    pub bundle: String,
    /// What could not be taken as it stood.
    pub issues: Vec<Issue>,
}

/// Why a message was not mapped.
#[derive(Clone, Debug)]
pub enum NotMapped {
    /// No mapping takes messages of this type.
    NotTaken,
    /// A mapping takes it, and it cannot be mapped.
    Quarantined(Quarantined),
}

/// Maps one message into an empty store: its contributions are rendered as they are, and a resource that lacks a required
/// element is left out with an issue.
///
/// # Errors
/// [`NotMapped`] says why.
pub fn map_alone(
    catalog: &Catalog,
    message: &Message<'_>,
    context: &Context<'_>,
) -> Result<Alone, NotMapped> {
    let program = catalog.program_of(message).ok_or(NotMapped::NotTaken)?;
    let mapped = program.run(message, context).map_err(NotMapped::Quarantined)?;
    let mapping = format!("{} {}", program.name(), program.version());
    Ok(render(mapped, context, &mapping))
}

struct Rendered {
    resource_type: String,
    id: Uuid,
    json: String,
}

fn render(mapped: Mapped, context: &Context<'_>, mapping: &str) -> Alone {
    let mut issues = mapped.issues;
    let mut rendered: Vec<Rendered> = Vec::with_capacity(mapped.contributions.len());
    for contribution in &mapped.contributions {
        let mut state = State::default();
        state.apply(contribution, &mapped.stamp, context.message_id);
        let mut json = String::new();
        state.render(&contribution.resource_type, contribution.id, &mut json);
        rendered.push(Rendered {
            resource_type: contribution.resource_type.to_string(),
            id: contribution.id,
            json,
        });
    }
    // What refers to a resource that is left out keeps a reference to nowhere, so it is taken out of the text, which may
    // leave its own element without a required part; each turn leaves at least one more out.
    loop {
        let incomplete: Vec<(Uuid, String, &'static str)> = rendered
            .iter()
            .filter_map(|one| {
                Some((one.id, one.resource_type.clone(), missing(&one.resource_type, &one.json)?))
            })
            .collect();
        if incomplete.is_empty() {
            break;
        }
        for (id, kind, element) in incomplete {
            let text = format!("this {kind} is left out: its element {element} is required and has no value");
            issues.push(Issue::new(Severity::Error, "resource-left-out", "", text));
            rendered.retain(|one| one.id != id);
            for one in &mut rendered {
                bundle::forget(&mut one.json, &kind, id);
            }
        }
    }
    let entries: Vec<Entry<'_>> = rendered
        .iter()
        .map(|one| Entry { resource_type: &one.resource_type, id: one.id, json: &one.json })
        .collect();
    let about = About {
        message: context.message_id,
        sender: &context.sender,
        received_at: context.received_at,
        mapping,
    };
    Alone { bundle: bundle::assemble(&entries, &about), issues }
}

/// The first required element that a resource lacks.
pub(crate) fn missing(resource_type: &str, json: &str) -> Option<&'static str> {
    let members = bundle::members(json);
    target::required_elements(resource_type)
        .find(|(name, choice)| {
            let found = |member: &&str| if *choice { member.starts_with(name) } else { member == name };
            !members.iter().any(found)
        })
        .map(|(name, _)| name)
}
