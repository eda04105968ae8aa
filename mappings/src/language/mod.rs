//! The language of mappings: from YAML text to a tree with places, before anything is looked up.
//!
//! Invariant: what stands in a file is either understood or reported; no key is skipped.

pub(crate) mod ast;
pub(crate) mod expression;
pub(crate) mod load;
pub(crate) mod overlay;
pub(crate) mod shape;
