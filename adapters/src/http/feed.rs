//! Requests taken apart into their messages.

use super::config::{HttpConfig, Signature};
use crate::documents::{Fault, Form};
use crate::{Document, Feed, Intake, Reads, RunningSource, Source, Unopened};
use async_trait::async_trait;
use aws_lc_rs::hmac;
use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use hyper::http::request::Parts;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// How long an HMAC with SHA-256 is.
const SIGNATURE_BYTES: usize = 32;

/// A configured feed.
#[derive(Clone, Debug)]
pub(super) struct Posted {
    config: Arc<HttpConfig>,
}

impl Posted {
    pub(super) fn new(config: HttpConfig) -> Posted {
        Posted { config: Arc::new(config) }
    }
}

#[async_trait]
impl Source for Posted {
    async fn start(
        self: Arc<Self>,
        _intake: Arc<dyn Intake>,
        stop: CancellationToken,
    ) -> std::io::Result<RunningSource> {
        Ok(RunningSource { address: None, task: tokio::spawn(stop.cancelled_owned()) })
    }

    fn feed(&self) -> Option<Arc<dyn Feed>> {
        Some(Arc::new(self.clone()))
    }
}

impl Feed for Posted {
    fn signer(&self) -> Option<&Arc<str>> {
        self.config.signature.as_ref().map(|signature| &signature.sender)
    }

    fn admits(&self, head: &Parts, reads: Reads) -> Result<(), Unopened> {
        if let Some(signature) = &self.config.signature {
            signature.given(head)?;
        }
        form(head, reads).map(drop)
    }

    fn open(&self, head: &Parts, body: &Bytes, reads: Reads) -> Result<Vec<Document>, Unopened> {
        if let Some(signature) = &self.config.signature {
            signature.verify(head, body)?;
        }
        let form = form(head, reads)?;
        let parts = form.parts(body, self.config.documents_max).map_err(|fault| match fault {
            Fault::TooMany(_) | Fault::TooLarge => Unopened::TooMany(fault.to_string()),
            Fault::Syntax { .. } | Fault::Utf16 => Unopened::Malformed(fault.to_string()),
        })?;
        let documents = parts.into_iter().map(|part| {
            let at = self.config.patient.as_ref().filter(|_| part.fault.is_none());
            let named = at.and_then(|patient| form.value_at(&part.bytes, &patient.at));
            let assigner = self.config.patient.as_ref().and_then(|patient| patient.assigner.clone());
            Document {
                bytes: part.bytes,
                is_csv: matches!(form, Form::Csv(_)),
                patient: named.map(|value| (assigner, value)),
                fault: part.fault,
                ..Document::default()
            }
        });
        Ok(documents.collect())
    }
}

/// How a body is written, if a mapping reads that.
fn form(head: &Parts, reads: Reads) -> Result<Form, Unopened> {
    let told = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !matches!(told(CONTENT_ENCODING).trim(), "" | "identity") {
        return Err(Unopened::Encoded);
    }
    let media_type = told(CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    Form::of(media_type, reads).ok_or(Unopened::Media(match reads {
        Reads::Json => "application/json or application/x-ndjson",
        Reads::Csv(_) => "text/csv",
    }))
}

impl Signature {
    /// What a request shows for a signature, if it could be one.
    fn given(&self, head: &Parts) -> Result<Vec<u8>, Unopened> {
        let given = head.headers.get(&self.header).and_then(|value| value.to_str().ok());
        let given = given.and_then(|given| given.trim().strip_prefix(&*self.prefix));
        let decoded = given.and_then(|given| match self.is_base64 {
            true => BASE64.decode(given.as_bytes()).ok(),
            false => HEXLOWER_PERMISSIVE.decode(given.as_bytes()).ok(),
        });
        decoded.filter(|decoded| decoded.len() == SIGNATURE_BYTES).ok_or(Unopened::Unsigned)
    }

    fn verify(&self, head: &Parts, body: &[u8]) -> Result<(), Unopened> {
        let given = self.given(head)?;
        let secret = self.secret.value().map_err(|error| {
            tracing::error!(sender = %self.sender, %error, "the secret of a signature cannot be read");
            Unopened::Unsigned
        })?;
        // Compares in constant time.
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body, &given)
            .map_err(|_| Unopened::Unsigned)
    }
}
