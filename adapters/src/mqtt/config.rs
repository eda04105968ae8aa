//! What a client of a broker can be told.

use super::topic::Template;
use crate::connect::Connector;
use crate::settings::{Fallback, Kind, Secret, Setting, SettingsReader};
use crate::tls::{CLIENT_SETTINGS, ClientTls};
use std::sync::Arc;
use std::time::Duration;

/// What a mapping reads as `wire.topic`: the whole topic.
pub(super) const TOPIC: &str = "topic";

/// The keys of an MQTT source.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "broker",
        kind: Kind::HostPort,
        default: Fallback::Required,
        help: "Where the broker listens.",
    },
    Setting {
        key: "topics",
        kind: Kind::Texts,
        default: Fallback::Required,
        help: "The topics, one or a list, with `+` and `#`; `{name}` is a level that the mapping reads as `wire.name`, and `wire.topic` is the whole.",
    },
    Setting {
        key: "tls",
        kind: Kind::Map(CLIENT_SETTINGS),
        default: Fallback::Absent,
        help: "TLS (`{}` for the defaults), and with `certificate` mTLS; needed off loopback.",
    },
    Setting {
        key: "plain_text_waiver",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "Why readings may travel without TLS off loopback; logged at start.",
    },
    Setting {
        key: "version",
        kind: Kind::Choice(&["5", "3.1.1"]),
        default: Fallback::Value("5"),
        help: "The version of MQTT.",
    },
    Setting {
        key: "client_id",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "The name under which the broker keeps the session: `pons-` and the name of the source if left out. Nobody else may use it.",
    },
    Setting {
        key: "username",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "The user, if the broker asks for one.",
    },
    Setting { key: "password", kind: Kind::Secret, default: Fallback::Absent, help: "The user's password." },
    Setting {
        key: "session",
        kind: Kind::Span(Duration::from_secs(60), Duration::from_secs(0xFFFF_FFFE)),
        default: Fallback::Value("168h"),
        help: "How long the broker keeps what is published while the gateway is away (version 5; in 3.1.1 the broker alone decides).",
    },
    Setting {
        key: "patient",
        kind: Kind::Map(PATIENT),
        default: Fallback::Absent,
        help: "Where a document names its patient, so that what is about one stays in order and is found.",
    },
    Setting {
        key: "device",
        kind: Kind::Map(PLACE),
        default: Fallback::Absent,
        help: "Where a document names its device, so that what is from one stays in order. Without patient and device all of the source stays in order, which is slower.",
    },
    Setting {
        key: "documents_max",
        kind: Kind::Count(1, 100_000),
        default: Fallback::Value("10000"),
        help: "The most documents in one payload; what holds more is kept as refused.",
    },
    Setting {
        key: "payload_max",
        kind: Kind::Bytes(1 << 10, 64 << 20),
        default: Fallback::Value("8MiB"),
        help: "The largest payload; of what is larger the head is kept as refused.",
    },
    Setting {
        key: "in_flight_max",
        kind: Kind::Count(1, 65_535),
        default: Fallback::Value("2000"),
        help: "How many packets are taken at most before the first of them is durable.",
    },
    Setting {
        key: "buffered_max",
        kind: Kind::Bytes(1 << 20, 1 << 30),
        default: Fallback::Value("16MiB"),
        help: "How many bytes of them; one packet may be larger.",
    },
    Setting {
        key: "connect_timeout",
        kind: Kind::Span(Duration::from_millis(10), Duration::from_secs(300)),
        default: Fallback::Value("10s"),
        help: "How long a connection may take, TLS and the broker's answer included.",
    },
    Setting {
        key: "keep_alive",
        kind: Kind::Span(Duration::from_secs(1), Duration::from_secs(65_535)),
        default: Fallback::Value("60s"),
        help: "After how long without a word each side asks whether the other is there.",
    },
    Setting {
        key: "retry_max",
        kind: Kind::Span(Duration::from_secs(1), Duration::from_secs(3600)),
        default: Fallback::Value("30s"),
        help: "The longest pause between two attempts to reach a broker that is away.",
    },
];

const PLACE: &[Setting] = &[AT, LEVEL];

const PATIENT: &[Setting] = &[
    AT,
    LEVEL,
    Setting {
        key: "assigner",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "Who assigned it, as the messages of others name that authority (PID-3.4); the sender itself if left out.",
    },
];

const AT: Setting = Setting {
    key: "at",
    kind: Kind::Text,
    default: Fallback::Absent,
    help: "Its place in the document: a JSON pointer such as `/device/id`, the name of a member or of a column.",
};

const LEVEL: Setting = Setting {
    key: "level",
    kind: Kind::Text,
    default: Fallback::Absent,
    help: "Or the name of the level of its topic.",
};

/// A client as configured.
#[derive(Clone, Debug)]
pub(super) struct MqttConfig {
    pub(super) connector: Connector,
    pub(super) plain_text_waiver: Option<String>,
    pub(super) topics: Vec<Template>,
    pub(super) is_v5: bool,
    pub(super) client_id: String,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) session: Duration,
    pub(super) patient: Option<(Place, Option<Arc<str>>)>,
    pub(super) device: Option<Place>,
    pub(super) documents_max: usize,
    pub(super) payload_max: usize,
    pub(super) in_flight_max: usize,
    pub(super) buffered_max: usize,
    pub(super) keep_alive: Duration,
    pub(super) retry_max: Duration,
}

/// Where a document names something.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In itself.
    At(String),
    /// In a level of its topic.
    Level(String),
}

impl MqttConfig {
    /// Reads the keys of [`SETTINGS`] for a source of this name; every mistake goes to the reader, `None` if there was one.
    pub(super) fn read(settings: &mut SettingsReader, source: &str) -> Option<Self> {
        let broker = settings.host_port("broker");
        let has_tls = settings.is_given("tls");
        let tls = settings.map("tls", ClientTls::read);
        let plain_text_waiver = settings.text("plain_text_waiver");
        let is_loopback = broker.as_ref().is_none_or(crate::settings::HostPort::is_loopback);
        if !is_loopback && !has_tls && plain_text_waiver.is_none() {
            settings.wrong(
                "broker",
                "off loopback needs `tls`, or a `plain_text_waiver` that says why plain text is safe there",
            );
        }
        let mut topics = Vec::new();
        for text in settings.texts("topics") {
            match Template::read(&text) {
                Ok(template) => topics.push(template),
                Err(why) => settings.wrong("topics", why),
            }
        }
        if topics.is_empty() && settings.is_given("topics") && !settings.failed() {
            settings.wrong("topics", "expected at least one");
        }
        let mut patient = None;
        settings.map("patient", |settings| {
            patient =
                place(settings, &topics).map(|place| (place, settings.text("assigner").map(Into::into)));
            Some(())
        });
        let mut device = None;
        settings.map("device", |settings| {
            device = place(settings, &topics);
            Some(())
        });
        let client_id = settings.text("client_id").unwrap_or_else(|| format!("pons-{source}"));
        let (username, password) = (settings.text("username"), settings.secret("password"));
        if username.is_none() && password.is_some() {
            settings.wrong("password", "needs `username` beside it");
        }
        let timeout = settings.span("connect_timeout");
        let config = MqttConfig {
            connector: Connector { target: broker?, tls, is_public: false, timeout },
            plain_text_waiver,
            topics,
            is_v5: settings.choice("version") == "5",
            client_id,
            username,
            password,
            session: settings.span("session"),
            patient,
            device,
            documents_max: settings.count("documents_max"),
            payload_max: settings.bytes("payload_max"),
            in_flight_max: settings.count("in_flight_max"),
            buffered_max: settings.bytes("buffered_max"),
            keep_alive: settings.span("keep_alive"),
            retry_max: settings.span("retry_max"),
        };
        (!settings.failed()).then_some(config)
    }
}

fn place(settings: &mut SettingsReader, topics: &[Template]) -> Option<Place> {
    match (settings.text("at"), settings.text("level")) {
        (Some(at), None) => Some(Place::At(at)),
        (None, Some(level)) => {
            if !topics.iter().all(|topic| topic.names().any(|name| name == level)) {
                settings
                    .wrong("level", format!("is no level of every topic: name it there as `{{{level}}}`"));
            }
            Some(Place::Level(level))
        }
        _ => {
            settings.wrong("at", "expected either `at` or `level`");
            None
        }
    }
}
