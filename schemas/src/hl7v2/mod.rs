//! HL7 v2: reading, addressing and writing messages of every version from 2.1 to 2.8.2.
//!
//! ```text
//! bytes ─ split ─► the bytes of one message ─ charset ─► text ─ Message::parse ─► segments and leaves ─► Element, Path
//! ```
//! Invariant: nothing of a message is dropped without a word, and no reader here panics, whatever the bytes are.

pub mod charset;
pub mod continuation;
pub mod definitions;
pub mod element;
pub mod emit;
pub mod escape;
pub mod file;
mod findings;
pub mod grammar;
pub mod header;
mod iso2022;
pub mod message;
pub mod path;
mod scan;
pub mod separators;
pub mod split;
pub mod tables;
pub mod time;

pub use element::{Element, Level};
pub use header::Header;
pub use message::{Answer, Leaf, Limits, Message, Segment, Unreadable};
pub use path::{Path, PathError, SegmentName};
pub use separators::Separators;
