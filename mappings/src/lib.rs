//! The mapping engine and the declarative mappings, which are data.
//!
//! Invariant: a mapping is a pure function of (message, mapping, tables, options, context).

pub mod resource;
