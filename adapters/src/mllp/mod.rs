//! HL7 v2 over MLLP, in and out.
//!
//! A source answers once a message is durable; a destination passes a message on as it came. Both speak the minimal
//! lower layer protocol, forgive what senders are seen to do, and take TLS and client certificates.

pub mod ack;
mod batch;
pub mod codec;
mod config;
mod connection;
mod destination;
mod source;
#[cfg(test)]
mod tests;

use crate::settings::SettingsReader;
use crate::{AdapterSpec, Destination, DestinationSpec, SourceSpec};
pub use config::Receiver;
use config::{DestinationConfig, SourceConfig};
use std::sync::Arc;

/// The row of this adapter.
pub const SPEC: AdapterSpec = AdapterSpec {
    name: "mllp",
    summary: "HL7 v2 over MLLP (TCP), with TLS and mTLS",
    source: Some(SourceSpec {
        settings: config::SOURCE_SETTINGS,
        read: |fields, context| {
            let mut settings = SettingsReader::new(fields, config::SOURCE_SETTINGS, &context.folder);
            let config = SourceConfig::read(&mut settings)?;
            Some(Arc::new(source::MllpSource { context: context.clone(), config }))
        },
        reads_documents: false,
        fetches: false,
        example: "listen: 127.0.0.1:2575",
    }),
    destination: Some(DestinationSpec {
        settings: config::DESTINATION_SETTINGS,
        read: |fields, folder| {
            let mut settings = SettingsReader::new(fields, config::DESTINATION_SETTINGS, folder);
            Some(Arc::new(destination::MllpDestination::new(DestinationConfig::read(&mut settings)?)))
        },
        example: "connect: 127.0.0.1:2576",
    }),
};

/// The destination of a FHIR Subscription.
///
/// # Errors
/// Why there can be none: no host in the URL, or no certificates of the system.
pub fn receiver(receiver: Receiver) -> Result<Arc<dyn Destination>, String> {
    Ok(Arc::new(destination::MllpDestination::new(receiver.config()?)))
}
