//! What a mapping is given: a message of HL7 v2, or a document of records.

use schemas::hl7v2::Message;
use schemas::records::Records;

/// What a mapping is given.
#[derive(Clone, Copy, Debug)]
pub enum Given<'g> {
    /// A message of HL7 v2.
    Message(&'g Message<'g>),
    /// A document of records, as [`crate::Program::read`] has read it, and its text.
    Records(&'g Records, &'g str),
}

impl<'g> From<&'g Message<'g>> for Given<'g> {
    fn from(message: &'g Message<'g>) -> Self {
        Given::Message(message)
    }
}
