//! Requests taken apart into their messages.

use super::config::{HttpConfig, Signature};
use crate::documents::{Fault, Form};
use crate::{Document, Feed, Intake, RunningSource, Source, Unopened};
use async_trait::async_trait;
use aws_lc_rs::hmac;
use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

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
        self: Box<Self>,
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

    fn admits(&self, head: &Parts) -> Result<(), Unopened> {
        if self
            .config
            .signature
            .as_ref()
            .is_some_and(|signature| !head.headers.contains_key(&signature.header))
        {
            return Err(Unopened::Unsigned);
        }
        self.form(head).map(drop)
    }

    fn open(&self, head: &Parts, body: &Bytes) -> Result<Vec<Document>, Unopened> {
        if let Some(signature) = &self.config.signature {
            signature.verify(head, body)?;
        }
        let form = self.form(head)?;
        let parts = form.parts(body, self.config.documents_max).map_err(|fault| match fault {
            Fault::TooMany(_) => Unopened::TooMany(fault.to_string()),
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
            }
        });
        Ok(documents.collect())
    }
}

impl Posted {
    fn form(&self, head: &Parts) -> Result<Form, Unopened> {
        let named = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = named.split(';').next().unwrap_or_default().trim();
        Form::of(media_type, self.config.csv).ok_or(Unopened::Media)
    }
}

impl Signature {
    fn verify(&self, head: &Parts, body: &[u8]) -> Result<(), Unopened> {
        let given = head.headers.get(&self.header).and_then(|value| value.to_str().ok());
        let given = given.and_then(|given| given.trim().strip_prefix(&*self.prefix));
        let decoded = given.and_then(|given| match self.is_base64 {
            true => BASE64.decode(given.as_bytes()).ok(),
            false => HEXLOWER_PERMISSIVE.decode(given.as_bytes()).ok(),
        });
        let decoded = decoded.ok_or(Unopened::Unsigned)?;
        let secret = self.secret.value().map_err(|error| {
            tracing::error!(sender = %self.sender, %error, "the secret of a signature cannot be read");
            Unopened::Unsigned
        })?;
        // Compares in constant time.
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body, &decoded)
            .map_err(|_| Unopened::Unsigned)
    }
}
