//! Feeds that others post, such as the webhook of a maker's cloud: `POST /feeds/NAME` on the gateway's own HTTP port.
//!
//! A body holds one document or many: JSON, a list of JSON, NDJSON, or CSV, by its media type. Each becomes a message of its own. TLS, the
//! bounds of bodies, bearer tokens and client certificates are those of the port; a request may also prove its sender by a signature
//! over its body (HMAC with SHA-256), as webhooks do.

mod config;
mod feed;
#[cfg(test)]
mod tests;

use crate::settings::SettingsReader;
use crate::{AdapterSpec, Source, SourceSpec};
use config::HttpConfig;
use std::sync::Arc;

/// The row of this adapter.
pub const SPEC: AdapterSpec = AdapterSpec {
    name: "http",
    summary: "JSON, NDJSON and CSV posted to /feeds/NAME, by token, client certificate or signature",
    source: Some(SourceSpec {
        settings: config::SETTINGS,
        read: |fields, context| {
            let mut settings = SettingsReader::new(fields, config::SETTINGS, &context.folder);
            Some(Arc::new(feed::Posted::new(HttpConfig::read(&mut settings)?)) as Arc<dyn Source>)
        },
        reads_documents: true,
        fetches: false,
        example: "documents_max: 1000",
    }),
    destination: None,
};
