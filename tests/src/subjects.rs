//! What the benchmarks of single functions call: reading a message and mapping it, as the gateway does both.

use crate::generate::{Kind, Population, Run};
use anyhow::{Context as _, Result};
use mappings::{Catalog, Context, map_alone};
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message};

/// How many patients' messages are mapped in turn, so that what is remembered from message to message helps no more than it
/// does in a hospital: every name, number, time and result is new, the tests, wards and doctors are not.
pub const PATIENTS: u32 = 2000;

/// The kinds of message that the figures are about, with their names.
pub const KINDS: [(Kind, &str); 2] = [(Kind::Admit, "ADT^A01"), (Kind::Result, "ORU^R01 with 20 OBX")];

/// Messages of as many patients, no two alike.
pub fn texts(kind: Kind, patients: u32) -> Vec<String> {
    let mut population = Population::new(Run::new(1), 1, patients);
    let messages = (0..patients).map(|patient| population.message(kind, patient).bytes);
    messages.map(|bytes| String::from_utf8(bytes).expect("our messages are UTF-8")).collect()
}

/// Reads a message; answers whether it could be read.
pub fn parse(text: &str) -> bool {
    Message::parse(text, &Limits::default()).is_ok()
}

/// From the text of a message to the text of its Bundle.
pub struct Mapper {
    catalog: Catalog,
    limits: Limits,
    context: Context<'static>,
}

impl Default for Mapper {
    fn default() -> Mapper {
        Mapper {
            catalog: Catalog::builtin(),
            limits: Limits::default(),
            context: Context {
                message_id: uuid::Uuid::from_u128(1),
                received_at: jiff::Timestamp::UNIX_EPOCH,
                seq: 1,
                sender: "genhosp".into(),
                authority: "genhosp".into(),
                zone: Zone::UTC,
                namespace: uuid::Uuid::from_u128(2),
                systems: &[],
                options: &[],
                wire: &[],
                codes: None,
                parties: mappings::Parties::default(),
            },
        }
    }
}

impl Mapper {
    /// Reads and maps a message; answers the Bundle.
    ///
    /// # Errors
    /// When it cannot be read or is not mapped.
    pub fn map(&self, text: &str) -> Result<String> {
        let message = Message::parse(text, &self.limits).ok().context("the message cannot be read")?;
        let alone =
            map_alone(&self.catalog, &message, &self.context).ok().context("the message is not mapped")?;
        Ok(alone.bundle)
    }
}
