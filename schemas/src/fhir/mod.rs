//! FHIR R4 (4.0.1): its definitions as compact data, and what is checked against them.

mod definitions;
mod invariants;
mod primitive;
pub mod search;
#[cfg(feature = "typed")]
pub mod typed;
mod validate;

pub use definitions::{Element, ElementDef, Kind, R4, TypeDef, TypeId, TypeRef, ValueSet, r4};
pub use primitive::{is_oid, is_xhtml};
pub use validate::validate;
