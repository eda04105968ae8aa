//! What a rest-hook destination can be told.

use crate::connect::Connector;
use crate::settings::{Fallback, HostPort, Kind, Secret, Setting, SettingsReader};
use crate::tls::{CLIENT_SETTINGS, ClientFiles, ClientTls};
use hyper::{HeaderMap, Uri};
use std::time::Duration;

const fn s(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The keys of a rest-hook destination.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "url",
        kind: Kind::Url,
        default: Fallback::Required,
        help: "Where Bundles are posted; `https:` off loopback.",
    },
    Setting {
        key: "bearer",
        kind: Kind::Secret,
        default: Fallback::Absent,
        help: "The token sent as `Authorization: Bearer`; a file is read anew every few seconds.",
    },
    Setting {
        key: "tls",
        kind: Kind::Map(CLIENT_SETTINGS),
        default: Fallback::Absent,
        help: "For `https:`, which authorities are trusted and which certificate is shown (mTLS).",
    },
    Setting {
        key: "plain_text_waiver",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "Why Bundles may travel by `http:` off loopback.",
    },
    Setting {
        key: "connections",
        kind: Kind::Count(1, 1024),
        default: Fallback::Value("32"),
        help: "How many requests are under way at once; each has a connection, which is kept for the next.",
    },
    Setting {
        key: "connect_timeout",
        kind: Kind::Span(Duration::from_millis(10), s(300)),
        default: Fallback::Value("10s"),
        help: "How long a connection may take, TLS included.",
    },
    Setting {
        key: "answer_timeout",
        kind: Kind::Span(Duration::from_millis(10), s(600)),
        default: Fallback::Value("30s"),
        help: "How long the receiver may take to answer a request.",
    },
    Setting {
        key: "retry_after_max",
        kind: Kind::Span(s(1), s(86_400)),
        default: Fallback::Value("1h"),
        help: "The longest `Retry-After` that is obeyed.",
    },
];

/// A rest-hook destination as configured.
#[derive(Clone, Debug)]
pub(super) struct RestHookConfig {
    pub(super) url: Uri,
    pub(super) connector: Connector,
    pub(super) bearer: Option<Secret>,
    /// Beside our own; they may hold secrets.
    pub(super) headers: HeaderMap,
    pub(super) connections: usize,
    pub(super) answer_timeout: Duration,
    pub(super) retry_after_max: Duration,
    /// Where messages say that they come from and go to; `None` posts Bundles as they are.
    pub(super) message: Option<Parties>,
}

/// The two ends of a FHIR message.
#[derive(Clone, Debug)]
pub(super) struct Parties {
    pub(super) source: String,
    pub(super) destination: String,
}

/// A rest-hook as a FHIR Subscription asks for it, beside what its operator allows.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Where Bundles are posted.
    pub url: Uri,
    /// Headers that go along; they may hold secrets.
    pub headers: HeaderMap,
    /// How long the receiver may take to answer.
    pub answer_timeout: Duration,
    /// Which authorities are trusted for `https:`; those of the system if left out.
    pub tls: Option<ClientTls>,
    /// Whether it must lie on the public internet.
    pub is_public: bool,
    /// Where messages say that they come from, for a server that takes FHIR messages; `None` posts Bundles as they are.
    pub message_from: Option<String>,
}

impl Hook {
    /// With the defaults of [`SETTINGS`] for the rest.
    pub(super) fn config(self) -> Result<RestHookConfig, String> {
        let is_https = self.url.scheme_str() == Some("https");
        let tls = match self.tls {
            tls @ Some(_) if is_https => tls,
            None if is_https => Some(ClientTls::of_system()?),
            _ => None,
        };
        let target = target(&self.url).ok_or("a URL with a host is wanted")?;
        let (url, message) = match self.message_from {
            None => (self.url, None),
            Some(source) => {
                let destination = self.url.to_string();
                (processing(&self.url)?, Some(Parties { source, destination }))
            }
        };
        let connector = Connector { target, tls, is_public: self.is_public, timeout: s(10) };
        Ok(RestHookConfig {
            url,
            message,
            connector,
            bearer: None,
            headers: self.headers,
            connections: 32,
            answer_timeout: self.answer_timeout,
            retry_after_max: s(3_600),
        })
    }
}

impl RestHookConfig {
    /// Reads the keys of [`SETTINGS`]; every mistake goes to the reader, `None` if there was one.
    pub(super) fn read(settings: &mut SettingsReader) -> Option<Self> {
        let url = settings.url("url");
        let target = url.as_ref().and_then(target);
        let is_https = url.as_ref().is_some_and(|url| url.scheme_str() == Some("https"));
        let has_tls = settings.is_given("tls");
        let mut tls = settings.map("tls", ClientTls::read);
        let waiver = settings.text("plain_text_waiver");
        if url.is_some() && !is_https {
            if has_tls {
                settings.wrong("url", "`tls` needs an https: URL");
            }
            if target.as_ref().is_some_and(|target| !target.is_loopback()) && waiver.is_none() {
                settings.wrong(
                    "url",
                    "off loopback needs https:, or a `plain_text_waiver` that says why plain text is safe there",
                );
            }
        }
        if is_https && !has_tls {
            match ClientTls::load(ClientFiles::default()) {
                Ok(defaults) => tls = Some(defaults),
                Err(error) => settings.wrong("url", error.to_string()),
            }
        }
        let bearer = settings.secret("bearer");
        let connections = settings.count("connections");
        let timeout = settings.span("connect_timeout");
        let answer_timeout = settings.span("answer_timeout");
        let retry_after_max = settings.span("retry_after_max");
        if settings.failed() {
            return None;
        }
        let connector = Connector { target: target?, tls, is_public: false, timeout };
        let headers = HeaderMap::new();
        Some(RestHookConfig {
            url: url?,
            connector,
            bearer,
            headers,
            connections,
            answer_timeout,
            retry_after_max,
            message: None,
        })
    }
}

/// Where a FHIR server takes messages, by its base URL: its operation `$process-message`.
fn processing(base: &Uri) -> Result<Uri, String> {
    let text = base.to_string();
    if base.query().is_some() {
        return Err("the base URL of a FHIR server is wanted, without a query".to_owned());
    }
    let begin = text.trim_end_matches('/');
    let at = if begin.ends_with(PROCESS) { begin.to_owned() } else { format!("{begin}{PROCESS}") };
    at.parse().map_err(|_| "a URL with a host is wanted".to_owned())
}

/// The operation of a FHIR server that takes messages.
const PROCESS: &str = "/$process-message";

/// Host and port of a URL.
fn target(url: &Uri) -> Option<HostPort> {
    HostPort::of(url, if url.scheme_str() == Some("https") { 443 } else { 80 })
}
