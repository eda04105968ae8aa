//! The mapping engine and the declarative mappings, which are data.
//!
//! ```text
//! YAML ─ language ─► tree ─ compile ─► flat program ─ run(given, context) ─► contributions, effects, issues
//!                                                          resource: merge by slots ─► bundle: transaction
//! ```
//! Invariant: a mapping is a pure function of (what it is given, mapping, tables, options, context).

mod alone;
pub mod bundle;
mod catalog;
mod codes;
mod compile;
mod functions;
mod given;
pub mod guide;
mod identity;
mod json;
mod language;
pub mod lineage;
mod message;
mod names;
mod program;
mod render;
pub mod resource;
mod run;
pub mod table;
mod terminology;
mod testing;

pub use alone::{Alone, NotMapped, explain_by, map_alone, map_by};
pub use catalog::{Catalog, FileMistake, Program};
pub use codes::{SiteCode, SiteCodes};
pub use functions::reference;
pub use given::Given;
pub use identity::id_of;
pub use language::shape::{json_schema, keys_reference};
pub use message::Message;
pub use run::{Context, Effect, Mapped, Parties, Quarantined, UnmappedCode, WrittenSegment};
pub use testing::TestFailure;
