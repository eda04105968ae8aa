//! What a mapping is given: a message of HL7 v2, or a document of records.

use schemas::hl7v2::Message;
use schemas::records::Records;
use std::fmt;

/// What a mapping is given.
#[derive(Clone, Copy)]
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

/// Shows sizes only: everything else is a patient's.
impl fmt::Debug for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Given::Message(message) => f.debug_tuple("Message").field(message).finish(),
            Given::Records(records, text) => {
                f.debug_tuple("Records").field(records).field(&text.len()).finish()
            }
        }
    }
}
