//! FHIR Bundles by HTTP POST: the channels `rest-hook` and `message` of a FHIR Subscription.

mod config;
mod destination;
mod message;
#[cfg(test)]
mod tests;

use crate::settings::SettingsReader;
use crate::{AdapterSpec, Destination, DestinationSpec};
pub use config::Hook;
use config::RestHookConfig;
use std::sync::Arc;

/// The row of this adapter.
pub const SPEC: AdapterSpec = AdapterSpec {
    name: "rest-hook",
    summary: "FHIR Bundles by HTTP POST, with TLS, and a bearer token or mTLS",
    source: None,
    destination: Some(DestinationSpec {
        settings: config::SETTINGS,
        read: |fields, folder| {
            let mut settings = SettingsReader::new(fields, config::SETTINGS, folder);
            Some(Arc::new(destination::RestHook::new(RestHookConfig::read(&mut settings)?)))
        },
        example: "url: http://127.0.0.1:8081/events",
    }),
};

/// The destination of a FHIR Subscription, of channel `rest-hook` or `message`.
///
/// # Errors
/// Why there can be none: no host in the URL, or no certificates of the system.
pub fn hook(hook: Hook) -> Result<Arc<dyn Destination>, String> {
    Ok(Arc::new(destination::RestHook::new(hook.config()?)))
}
