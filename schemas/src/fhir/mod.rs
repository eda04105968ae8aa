//! FHIR R4 (4.0.1): its definitions as compact data, and what is checked against them.

mod definitions;

pub use definitions::{Element, ElementDef, Kind, R4, TypeDef, TypeId, TypeRef, ValueSet, r4};
