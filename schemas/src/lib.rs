//! The vocabulary of Pons: HL7 v2, FHIR and records as data and as readers, and the values that travel between the parts.
//!
//! Invariant: no I/O, no async, no clock, no randomness. What is read here is a function of its bytes. This crate is
//! the only one that names hl7-parser and fhir-sdk.

pub mod fhir;
pub mod fhirpath;
pub mod hl7v2;
pub mod issue;
pub mod message;
pub mod phi;
pub mod records;
pub mod yaml;
