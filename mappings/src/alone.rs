//! A message mapped by itself, into an empty store: what `pons map` and the tests of mappings print.

use crate::bundle::{self, About, Entry, Rendered};
use crate::catalog::{Catalog, Program};
use crate::given::Given;
use crate::lineage::Lineage;
use crate::resource::{SlotWrite, Write};
use crate::run::{Context, Mapped, Quarantined};
use schemas::hl7v2::Message;
use schemas::issue::Issue;
use smallvec::SmallVec;
use std::fmt;

/// A message mapped by itself.
#[derive(Clone)]
pub struct Alone {
    /// The transaction Bundle.
    pub bundle: String,
    /// What could not be taken as it stood.
    pub issues: Vec<Issue>,
}

/// Shows the length of the Bundle; what it holds is a patient's.
impl fmt::Debug for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alone").field("length", &self.bundle.len()).field("issues", &self.issues).finish()
    }
}

/// Why a message was not mapped.
#[derive(Clone, Debug)]
pub enum NotMapped {
    /// No mapping takes messages of this type.
    NotTaken,
    /// A mapping takes it, and it cannot be mapped.
    Quarantined(Quarantined),
}

/// Maps one message or document by a mapping of the caller's choice, as [`map_alone`] does by the one that takes it.
///
/// # Errors
/// [`NotMapped::Quarantined`] says why.
pub fn map_by<'g>(
    program: &Program,
    given: impl Into<Given<'g>>,
    context: &Context<'_>,
) -> Result<Alone, NotMapped> {
    let mapped = program.run(given, context).map_err(NotMapped::Quarantined)?;
    Ok(render(mapped, context, program.stamp()))
}

/// Maps one message or document by a mapping, and tells where every element of the Bundle comes from and what became of every field.
/// The Bundle is the same as that of [`map_by`].
///
/// # Errors
/// [`NotMapped::Quarantined`] says why.
pub fn explain_by<'g>(
    program: &Program,
    given: impl Into<Given<'g>>,
    context: &Context<'_>,
) -> Result<(Alone, Lineage), NotMapped> {
    let given = given.into();
    let (mapped, traced) = program.trace(given, context).map_err(NotMapped::Quarantined)?;
    let contributions = mapped.contributions.clone();
    let alone = render(mapped, context, program.stamp());
    let lineage = Lineage::of(program, given, &contributions, &traced, &alone.bundle);
    Ok((alone, lineage))
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
    map_by(catalog.program_of(&context.sender, message).ok_or(NotMapped::NotTaken)?, message, context)
}

fn render(mapped: Mapped, context: &Context<'_>, mapping: &str) -> Alone {
    let mut issues = mapped.issues;
    let mut rendered: Vec<Rendered<'_>> = Vec::with_capacity(mapped.contributions.len());
    for contribution in &mapped.contributions {
        let mut slots: SmallVec<[&SlotWrite; 32]> = contribution.slots.iter().collect();
        slots.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
        let fragments = slots.iter().flat_map(|slot| match &slot.write {
            Write::Valued(fragments) => &**fragments,
            Write::Cleared => &[],
        });
        rendered.push(Rendered::of(&contribution.resource_type, contribution.id, fragments));
    }
    issues.extend(bundle::leave_out_incomplete(&mut rendered));
    let entries: Vec<Entry<'_>> = rendered
        .iter()
        .map(|one| Entry { resource_type: one.resource_type, id: one.id, json: &one.json })
        .collect();
    let about = About {
        message: context.message_id,
        sender: &context.sender,
        received_at: context.received_at,
        mapping,
        elements: &mapped.bundle,
    };
    Alone { bundle: bundle::assemble(&entries, &about), issues }
}
