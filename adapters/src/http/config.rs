//! What a posted feed can be told.

use crate::settings::{Fallback, Kind, Secret, Setting, SettingsReader};
use hyper::header::HeaderName;
use std::sync::Arc;

/// The keys of an HTTP source.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "documents_max",
        kind: Kind::Count(1, 100_000),
        default: Fallback::Value("10000"),
        help: "The most documents in one request.",
    },
    Setting {
        key: "patient",
        kind: Kind::Map(PATIENT),
        default: Fallback::Absent,
        help: "Where a document names its patient, so that what is about one stays in order and is found; else the sender's all stay in order.",
    },
    Setting {
        key: "signature",
        kind: Kind::Map(SIGNATURE),
        default: Fallback::Absent,
        help: "How a request proves its sender by a signature; without it, by a bearer token or client certificate.",
    },
];

const PATIENT: &[Setting] = &[
    Setting {
        key: "at",
        kind: Kind::Text,
        default: Fallback::Required,
        help: "The place of the identifier: a JSON pointer such as `/user/id`, the name of a member or of a column (without a header its number).",
    },
    Setting {
        key: "assigner",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "Who assigned it, as the messages of others name that authority (PID-3.4); the sender itself if left out.",
    },
];

const SIGNATURE: &[Setting] = &[
    Setting {
        key: "sender",
        kind: Kind::Text,
        default: Fallback::Required,
        help: "Whose requests they are: the name of a sender.",
    },
    Setting {
        key: "secret",
        kind: Kind::Secret,
        default: Fallback::Required,
        help: "The secret that the sender signs with.",
    },
    Setting {
        key: "header",
        kind: Kind::Text,
        default: Fallback::Value("X-Signature-256"),
        help: "The header with the signature: HMAC with SHA-256 over the body.",
    },
    Setting {
        key: "prefix",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "What stands before it, such as `sha256=`.",
    },
    Setting {
        key: "encoding",
        kind: Kind::Choice(&["hex", "base64"]),
        default: Fallback::Value("hex"),
        help: "How it is written.",
    },
];

/// A posted feed as configured.
#[derive(Clone, Debug)]
pub(super) struct HttpConfig {
    pub(super) documents_max: usize,
    pub(super) patient: Option<PatientAt>,
    pub(super) signature: Option<Signature>,
}

/// Where a document names its patient.
#[derive(Clone, Debug)]
pub(super) struct PatientAt {
    pub(super) at: String,
    pub(super) assigner: Option<Arc<str>>,
}

/// How a request proves its sender.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) sender: Arc<str>,
    pub(super) secret: Secret,
    pub(super) header: HeaderName,
    pub(super) prefix: String,
    pub(super) is_base64: bool,
}

impl HttpConfig {
    /// Reads the keys of [`SETTINGS`]; every mistake goes to the reader, `None` if there was one.
    pub(super) fn read(settings: &mut SettingsReader) -> Option<Self> {
        let documents_max = settings.count("documents_max");
        let patient = settings.map("patient", |settings| {
            let assigner = settings.text("assigner").map(Into::into);
            Some(PatientAt { at: settings.text("at")?, assigner })
        });
        let signature = settings.map("signature", signature);
        if settings.failed() {
            return None;
        }
        Some(HttpConfig { documents_max, patient, signature })
    }
}

fn signature(settings: &mut SettingsReader) -> Option<Signature> {
    let sender = settings.text("sender");
    let secret = settings.secret("secret");
    if !settings.is_given("secret") {
        settings.wrong("secret", "is missing");
    }
    let header: Option<HeaderName> = settings.text("header").and_then(|name| name.parse().ok());
    if header.is_none() {
        settings.wrong("header", "expected the name of a header");
    }
    let prefix = settings.text("prefix").unwrap_or_default();
    let is_base64 = settings.choice("encoding") == "base64";
    Some(Signature { sender: sender?.into(), secret: secret?, header: header?, prefix, is_base64 })
}
