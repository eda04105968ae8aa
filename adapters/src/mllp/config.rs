//! What an MLLP source and an MLLP destination can be told, as tables, and their reading.

use super::ack::Identity;
use super::codec::Framing;
use crate::connect::Connector;
use crate::settings::{Fallback, HostPort, Kind, Setting, SettingsReader};
use crate::tls::{CLIENT_SETTINGS, ClientTls, SERVER_SETTINGS, ServerTls};
use hyper::Uri;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::time::Duration;

/// The port that IANA has registered for HL7.
const MLLP_PORT: u16 = 2575;

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn s(count: u64) -> Duration {
    Duration::from_secs(count)
}

const START_BYTE: Setting = Setting {
    key: "start_byte",
    kind: Kind::Byte,
    default: Fallback::Value("0x0B"),
    help: "The byte before a message, for systems that do not keep to MLLP.",
};

const END_BYTE: Setting = Setting {
    key: "end_byte",
    kind: Kind::Byte,
    default: Fallback::Value("0x1C"),
    help: "The byte after a message.",
};

const TRAILER_BYTE: Setting = Setting {
    key: "trailer_byte",
    kind: Kind::Byte,
    default: Fallback::Value("0x0D"),
    help: "The byte after the end byte.",
};

/// The keys of an MLLP source.
pub(super) const SOURCE_SETTINGS: &[Setting] = &[
    Setting {
        key: "listen",
        kind: Kind::Listen,
        default: Fallback::Value("127.0.0.1:2575"),
        help: "Where to listen.",
    },
    Setting {
        key: "tls",
        kind: Kind::Map(SERVER_SETTINGS),
        default: Fallback::Absent,
        help: "TLS, and with `client_ca` mTLS; needed off loopback.",
    },
    Setting {
        key: "plain_text_waiver",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "Why messages may travel without TLS off loopback, such as `inside the IPsec tunnel to the lab`; logged at start.",
    },
    Setting {
        key: "allow",
        kind: Kind::Networks,
        default: Fallback::Absent,
        help: "The networks from which connections are taken; every network without it.",
    },
    Setting {
        key: "ack_point",
        kind: Kind::Choice(&["stored", "mapped"]),
        default: Fallback::Value("stored"),
        help: "What an answer in original mode waits for: that the message is durable, or also that it is mapped (then AE if it went to quarantine).",
    },
    Setting {
        key: "outcome_timeout",
        kind: Kind::Span(ms(100), s(600)),
        default: Fallback::Value("30s"),
        help: "How long an answer waits for the mapping; afterwards `ack_point: mapped` answers AA, since the message is durable, and an application acknowledgement is left out.",
    },
    Setting {
        key: "on_unavailable",
        kind: Kind::Choice(&["close", "refuse"]),
        default: Fallback::Value("close"),
        help: "When a message cannot be stored within `hold`: close without an answer, which makes senders try again, or answer AR (CR).",
    },
    Setting {
        key: "hold",
        kind: Kind::Span(ms(10), s(60)),
        default: Fallback::Value("8s"),
        help: "How long a sender is held while its message cannot be stored.",
    },
    Setting {
        key: "frame_max",
        kind: Kind::Bytes(1 << 10, 1 << 30),
        default: Fallback::Value("8MiB"),
        help: "The largest message; a larger one is answered AR (CR) and the connection closed.",
    },
    Setting {
        key: "buffered_max",
        kind: Kind::Bytes(1 << 20, 1 << 34),
        default: Fallback::Value("64MiB"),
        help: "The memory for large messages that are being received, over all connections; at the bound, reading waits.",
    },
    Setting {
        key: "in_flight_max",
        kind: Kind::Count(1, 1024),
        default: Fallback::Value("64"),
        help: "How many messages of one connection may wait for their answers; at the bound, reading waits.",
    },
    Setting {
        key: "connections_max",
        kind: Kind::Count(1, 65_536),
        default: Fallback::Value("512"),
        help: "How many connections are open at most.",
    },
    Setting {
        key: "connections_per_peer_max",
        kind: Kind::Count(1, 65_536),
        default: Fallback::Value("32"),
        help: "How many connections one address may have open.",
    },
    Setting {
        key: "idle_timeout",
        kind: Kind::Span(ms(10), s(7 * 86_400)),
        default: Fallback::Value("1h"),
        help: "After how long without a message a connection is closed.",
    },
    Setting {
        key: "frame_timeout",
        kind: Kind::Span(ms(10), s(3_600)),
        default: Fallback::Value("60s"),
        help: "How long a message may take from its first byte to its last.",
    },
    Setting {
        key: "end_pause",
        kind: Kind::Span(ms(10), s(60)),
        default: Fallback::Value("300ms"),
        help: "A sender that pauses this long after the end byte has left out the trailer byte.",
    },
    Setting {
        key: "application",
        kind: Kind::Text,
        default: Fallback::Value("PONS"),
        help: "MSH-3 of an answer to a message that names no receiving application.",
    },
    Setting {
        key: "facility",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "MSH-4 of an answer to a message that names no receiving facility.",
    },
    START_BYTE,
    END_BYTE,
    TRAILER_BYTE,
];

/// The keys of an MLLP destination.
pub(super) const DESTINATION_SETTINGS: &[Setting] = &[
    Setting {
        key: "connect",
        kind: Kind::HostPort,
        default: Fallback::Required,
        help: "Where the receiver listens.",
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
        help: "Why messages may travel without TLS off loopback.",
    },
    Setting {
        key: "wait_for",
        kind: Kind::Choice(&["any", "application", "nothing"]),
        default: Fallback::Value("any"),
        help: "Which answer settles a delivery: the first one, only an application acknowledgement (a CA alone does not), or none (written is delivered).",
    },
    Setting {
        key: "connections",
        kind: Kind::Count(1, 64),
        default: Fallback::Value("1"),
        help: "How many connections are kept; each waits for the answer to one message before the next.",
    },
    Setting {
        key: "connect_timeout",
        kind: Kind::Span(ms(10), s(300)),
        default: Fallback::Value("10s"),
        help: "How long a connection may take, TLS included.",
    },
    Setting {
        key: "answer_timeout",
        kind: Kind::Span(ms(10), s(600)),
        default: Fallback::Value("30s"),
        help: "How long the receiver may take to answer a message.",
    },
    START_BYTE,
    END_BYTE,
    TRAILER_BYTE,
];

/// An MLLP source as configured.
#[derive(Clone, Debug)]
pub(super) struct SourceConfig {
    pub(super) listen: SocketAddr,
    pub(super) tls: Option<ServerTls>,
    pub(super) plain_text_waiver: Option<String>,
    pub(super) allow: Vec<IpNet>,
    pub(super) ack_after_mapping: bool,
    pub(super) outcome_timeout: Duration,
    pub(super) refuse_when_unavailable: bool,
    pub(super) hold: Duration,
    pub(super) frame_max: usize,
    pub(super) buffered_max: usize,
    pub(super) in_flight_max: usize,
    pub(super) connections_max: usize,
    pub(super) connections_per_peer_max: usize,
    pub(super) idle_timeout: Duration,
    pub(super) frame_timeout: Duration,
    pub(super) end_pause: Duration,
    pub(super) identity: Identity,
    pub(super) framing: Framing,
}

impl SourceConfig {
    /// Reads the keys of [`SOURCE_SETTINGS`]; every mistake goes to the reader, `None` if there was one.
    pub(super) fn read(settings: &mut SettingsReader) -> Option<Self> {
        let listen = settings.listen("listen");
        let has_tls = settings.is_given("tls");
        let tls = settings.map("tls", |settings| ServerTls::read(settings, &[]));
        let plain_text_waiver = settings.text("plain_text_waiver");
        if let Some(listen) = listen
            && !listen.ip().is_loopback()
            && !has_tls
            && plain_text_waiver.is_none()
        {
            settings.wrong("listen", NEEDS_TLS);
        }
        let config = SourceConfig {
            listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            tls,
            plain_text_waiver,
            allow: settings.networks("allow"),
            ack_after_mapping: settings.choice("ack_point") == "mapped",
            outcome_timeout: settings.span("outcome_timeout"),
            refuse_when_unavailable: settings.choice("on_unavailable") == "refuse",
            hold: settings.span("hold"),
            frame_max: settings.bytes("frame_max"),
            buffered_max: settings.bytes("buffered_max"),
            in_flight_max: settings.count("in_flight_max"),
            connections_max: settings.count("connections_max"),
            connections_per_peer_max: settings.count("connections_per_peer_max"),
            idle_timeout: settings.span("idle_timeout"),
            frame_timeout: settings.span("frame_timeout"),
            end_pause: settings.span("end_pause"),
            identity: Identity {
                application: plain_name(settings, "application"),
                facility: plain_name(settings, "facility"),
            },
            framing: framing(settings),
        };
        if config.buffered_max < 2 * config.frame_max {
            settings.wrong("buffered_max", "must be at least twice `frame_max`");
        }
        (!settings.failed()).then_some(config)
    }
}

/// An MLLP destination as configured.
#[derive(Clone, Debug)]
pub(super) struct DestinationConfig {
    pub(super) connector: Connector,
    pub(super) wait_for: WaitFor,
    pub(super) connections: usize,
    pub(super) answer_timeout: Duration,
    pub(super) framing: Framing,
}

/// A receiver as a FHIR Subscription asks for it, beside what its operator allows.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// `mllp://host:port`, or `mllps://host:port` with TLS.
    pub url: Uri,
    /// How long it may take to answer a message.
    pub answer_timeout: Duration,
    /// Which authorities are trusted for `mllps:`; those of the system if left out.
    pub tls: Option<ClientTls>,
}

impl Receiver {
    /// With the defaults of [`DESTINATION_SETTINGS`] for the rest.
    pub(super) fn config(self) -> Result<DestinationConfig, String> {
        let tls = match self.url.scheme_str() {
            Some("mllps") => Some(self.tls.map_or_else(ClientTls::of_system, Ok)?),
            _ => None,
        };
        let target = HostPort::of(&self.url, MLLP_PORT).ok_or("a URL with a host is wanted")?;
        // Whoever lists a receiver names it, so there is none that only has to be public.
        let connector = Connector { target, tls, is_public: false, timeout: s(10) };
        Ok(DestinationConfig {
            connector,
            wait_for: WaitFor::Any,
            connections: 1,
            answer_timeout: self.answer_timeout,
            framing: Framing::default(),
        })
    }
}

/// Which answer settles a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitFor {
    /// The first, of whatever level.
    Any,
    /// AA, AE or AR; of the accept level only a refusal.
    Application,
    /// None.
    Nothing,
}

impl DestinationConfig {
    /// Reads the keys of [`DESTINATION_SETTINGS`]; every mistake goes to the reader, `None` if there was one.
    pub(super) fn read(settings: &mut SettingsReader) -> Option<Self> {
        let target = settings.host_port("connect");
        let has_tls = settings.is_given("tls");
        let tls = settings.map("tls", ClientTls::read);
        let waiver = settings.text("plain_text_waiver");
        if let Some(target) = &target
            && !target.is_loopback()
            && !has_tls
            && waiver.is_none()
        {
            settings.wrong("connect", NEEDS_TLS);
        }
        let wait_for = match settings.choice("wait_for") {
            "application" => WaitFor::Application,
            "nothing" => WaitFor::Nothing,
            _ => WaitFor::Any,
        };
        let timeout = settings.span("connect_timeout");
        let (connections, answer_timeout) = (settings.count("connections"), settings.span("answer_timeout"));
        let framing = framing(settings);
        if settings.failed() {
            return None;
        }
        let connector = Connector { target: target?, tls, is_public: false, timeout };
        Some(DestinationConfig { connector, wait_for, connections, answer_timeout, framing })
    }
}

const NEEDS_TLS: &str =
    "off loopback needs `tls`, or a `plain_text_waiver` that says why plain text is safe there";

fn framing(settings: &mut SettingsReader) -> Framing {
    let framing = Framing {
        start: settings.byte("start_byte"),
        end: settings.byte("end_byte"),
        trailer: settings.byte("trailer_byte"),
    };
    if framing.start == framing.end || framing.end == framing.trailer || framing.start == framing.trailer {
        settings.wrong("end_byte", "start, end and trailer bytes must differ");
    }
    framing
}

/// A name that needs no escaping, whatever the sender's delimiters are.
fn plain_name(settings: &mut SettingsReader, key: &'static str) -> String {
    let name = settings.text(key).unwrap_or_default();
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-' | '_' | '.')) {
        settings.wrong(key, "expected letters, digits, blanks, `-`, `_` and `.`");
    }
    name
}
