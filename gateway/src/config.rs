//! The configuration file: read once at start, every mistake told at once with file, line, key and the nearest spelling.
//!
//! Invariant: nothing here opens a socket or a database. The tables below are what is read, what the defaults are and what
//! the documentation says; the adapters bring tables of their own.

pub mod subscribes;
mod writes;

pub use subscribes::Subscribes;
pub use writes::Writes;

use crate::route::notification::{Notifies, Payload};
use crate::route::topics::Filter;
use adapters::settings::{Fallback, Kind, Secret, Setting, SettingsReader};
use adapters::{Destination, Source, SourceContext};
use schemas::hl7v2::time;
use schemas::yaml::{self, Fields, Mistake, Node, Place, Value};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const fn row(key: &'static str, kind: Kind, default: Fallback, help: &'static str) -> Setting {
    Setting { key, kind, default, help }
}

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The keys at the top of the file.
pub const TOP: &[Setting] = &[
    row("data_dir", Kind::File, Fallback::Value("pons-data"), "the folder of the embedded store"),
    row(
        "store",
        Kind::Text,
        Fallback::Value("embedded"),
        "embedded (SQLite in data_dir) or postgres://...; a secret may stand as {file: NAME}",
    ),
    row(
        "bus",
        Kind::Text,
        Fallback::Value("embedded"),
        "embedded (in process) or amqp://..., amqps://...; a secret may stand as {file: NAME}",
    ),
    row(
        "bus_management",
        Kind::Text,
        Fallback::Absent,
        "RabbitMQ's management API, by which subscribers get users of their own: http://user:password@host:15672; a secret may stand \
         as {file: NAME}",
    ),
    row(
        "bus_public",
        Kind::Text,
        Fallback::Absent,
        "how subscribers reach the broker, if not as the gateway does: amqps://broker.genhosp.example:5671",
    ),
    row(
        "namespace",
        Kind::Text,
        Fallback::Absent,
        "the UUID namespace of resource ids; made and kept in the store if left out",
    ),
    row("log", Kind::Choice(&["text", "json"]), Fallback::Value("text"), "how log lines look"),
    row("otlp", Kind::Url, Fallback::Absent, "where traces, metrics and logs go by OTLP over HTTP"),
    row(
        "mappings_dir",
        Kind::File,
        Fallback::Absent,
        "a folder of mappings, overlays and tables beside the built-in ones; what changes in it is tested and taken while running",
    ),
    row(
        "shutdown_wait",
        Kind::Span(MILLISECOND, HOUR),
        Fallback::Value("20s"),
        "how long a stop waits for what is in flight",
    ),
    row(
        "store_hold",
        Kind::Span(MILLISECOND, HOUR),
        Fallback::Value("8s"),
        "how long a message waits for a store that is away",
    ),
    row("http", Kind::Map(HTTP), Fallback::Absent, "the HTTP listener: FHIR, metrics, health"),
    row(
        "storage",
        Kind::Map(STORAGE),
        Fallback::Absent,
        "how long things are kept and how much room is left alone",
    ),
];

/// The keys under `http`.
pub const HTTP: &[Setting] = &[
    row(
        "listen",
        Kind::Listen,
        Fallback::Value("127.0.0.1:8080"),
        "where FHIR, metrics and health are served",
    ),
    row("enabled", Kind::Flag, Fallback::Value("true"), "false serves no HTTP at all"),
    row("tls", Kind::Map(adapters::tls::SERVER_SETTINGS), Fallback::Absent, "TLS; needed off loopback"),
    row(
        "plain_text_waiver",
        Kind::Flag,
        Fallback::Value("false"),
        "serves plain text off loopback, knowingly",
    ),
    row(
        "base_url",
        Kind::Url,
        Fallback::Absent,
        "under what address others reach `/fhir`, such as https://pons.example/fhir: notifications name resources by it",
    ),
    row("body_max", Kind::Bytes(1 << 10, 1 << 30), Fallback::Value("16MiB"), "the largest request body"),
    row(
        "timeout",
        Kind::Span(MILLISECOND, HOUR),
        Fallback::Value("30s"),
        "how long a FHIR write waits for its result",
    ),
];

/// The keys under `storage`.
pub const STORAGE: &[Setting] = &[
    row(
        "retention_days",
        Kind::Count(0, 36_500),
        Fallback::Value("0"),
        "a day whose every row is final is dropped after so many days; 0 keeps everything",
    ),
    row(
        "reserve",
        Kind::Bytes(0, 1 << 50),
        Fallback::Value("512MiB"),
        "intake stops when less than this is free on the disk of the embedded store",
    ),
];

/// The keys of every source, beside those of its adapter.
pub const SOURCE: &[Setting] = &[
    row("name", Kind::Text, Fallback::Required, "its name, as shown everywhere"),
    row("adapter", Kind::Text, Fallback::Required, "which adapter"),
    row(
        "zone",
        Kind::Text,
        Fallback::Absent,
        "the IANA zone of times without an offset; UTC and flagged if left out",
    ),
    row("production", Kind::Flag, Fallback::Value("true"), "true takes MSH-11 `P`, false takes `T` and `D`"),
    row(
        "mapping",
        Kind::Text,
        Fallback::Absent,
        "of what is no HL7 v2: the mapping that reads its documents, such as dexcom_egvs; HL7 v2 says itself what it is",
    ),
    row(
        "sender",
        Kind::Text,
        Fallback::Absent,
        "of what is fetched and not sent to the gateway: whose it is, the name of a sender",
    ),
];

/// The keys of every sender.
pub const SENDER: &[Setting] = &[
    row("name", Kind::Text, Fallback::Required, "its name, as shown everywhere and as subscriptions list it"),
    row("application", Kind::Text, Fallback::Absent, "MSH-3.1, one or a list"),
    row("facility", Kind::Text, Fallback::Absent, "MSH-4.1, one or a list"),
    row("certificate", Kind::Text, Fallback::Absent, "names in its client certificate, one or a list"),
    row("token", Kind::Secret, Fallback::Absent, "its bearer token on HTTP"),
    row("sources", Kind::Text, Fallback::Absent, "the sources it may use; any if left out"),
    row(
        "types",
        Kind::Text,
        Fallback::Absent,
        "the message types it may send, such as ADT or ADT^A01, and to feeds the mappings that read them; any that has a mapping if left out",
    ),
    row(
        "zone",
        Kind::Text,
        Fallback::Absent,
        "the IANA zone of its times without an offset; goes before the source's",
    ),
    row("systems", Kind::Text, Fallback::Absent, "a map from its assigning authorities to URIs"),
    row(
        "reads",
        Kind::Text,
        Fallback::Absent,
        "the resource types that it may read over `/fhir`, one or a list; `*` for any; none if left out",
    ),
    row(
        "subscribes",
        Kind::Text,
        Fallback::Absent,
        "what it may subscribe to over `/fhir` by itself; nothing if left out",
    ),
];

/// The keys of every subscription, beside `destination` with those of its adapter.
pub const SUBSCRIPTION: &[Setting] = &[
    row("name", Kind::Text, Fallback::Required, "its name: part of routing keys and delivery ids"),
    row("topics", Kind::Text, Fallback::Required, "a list of topics"),
    row(
        "filters",
        Kind::Text,
        Fallback::Absent,
        "a list of search conditions, such as `Encounter?class=IMP`: a topic counts if a resource that it is about meets those of its type",
    ),
    row("senders", Kind::Text, Fallback::Required, "a list of senders; `*` for any"),
    row(
        "content",
        Kind::Choice(&["message", "full-resource", "id-only", "empty"]),
        Fallback::Value("message"),
        "`message`: the Bundle of the whole message; the others: for each event a notification of the FHIR Subscriptions backport, with \
         the resources, references to them, or nothing but its number",
    ),
    row(
        "owner",
        Kind::Text,
        Fallback::Absent,
        "of `content`: the sender that may look at the subscription over `/fhir`, its state and its events; nobody if left out",
    ),
    row("destination", Kind::Text, Fallback::Required, "a map: `adapter` and the keys of that adapter"),
    row(
        "on_parked",
        Kind::Choice(&["pass", "block"]),
        Fallback::Value("pass"),
        "what a dead letter does to the same patient's later events",
    ),
    row(
        "block_max",
        Kind::Span(MILLISECOND, Duration::from_secs(86_400 * 366)),
        Fallback::Value("24h"),
        "how long `block` blocks at most",
    ),
    row(
        "attempts_max",
        Kind::Count(1, 1_000_000),
        Fallback::Value("50"),
        "attempts before a delivery is parked",
    ),
    row(
        "retry_base",
        Kind::Span(MILLISECOND, HOUR),
        Fallback::Value("500ms"),
        "the first wait between attempts; it doubles",
    ),
    row(
        "retry_cap",
        Kind::Span(MILLISECOND, DAY),
        Fallback::Value("5min"),
        "the longest wait between attempts",
    ),
    row("in_flight_max", Kind::Count(1, 4_096), Fallback::Value("64"), "deliveries in flight at once"),
    row(
        "attempt_timeout",
        Kind::Span(MILLISECOND, HOUR),
        Fallback::Value("60s"),
        "how long one attempt may take as a whole",
    ),
    row(
        "write",
        Kind::Text,
        Fallback::Absent,
        "the mapping that writes its events as HL7 v2 for `mllp`, such as write_oru_r01, or a map from topics to mappings; without it \
         the message goes as it came",
    ),
    row(
        "systems",
        Kind::Text,
        Fallback::Absent,
        "of `write`: a map from what it calls assigning authorities to URIs",
    ),
    row("sending_application", Kind::Text, Fallback::Absent, "of `write`: MSH-3; `PONS` if left out"),
    row("sending_facility", Kind::Text, Fallback::Absent, "of `write`: MSH-4"),
    row("receiving_application", Kind::Text, Fallback::Absent, "of `write`: MSH-5"),
    row("receiving_facility", Kind::Text, Fallback::Absent, "of `write`: MSH-6"),
];

/// Everything that one start of Pons goes by.
#[derive(Debug)]
pub struct Config {
    /// The folder of the embedded store.
    pub data_dir: PathBuf,
    /// `sqlite:PATH` or `postgres://...`; may hold a password.
    pub store: Hidden,
    /// `embedded` or `amqp://...`; may hold a password.
    pub bus: Hidden,
    /// The broker's management API, if subscribers may have queues of their own.
    pub bus_management: Option<Hidden>,
    /// How subscribers reach the broker, if not as the gateway does.
    pub bus_public: Option<String>,
    /// The namespace of resource ids; the store's own secret one if absent.
    pub namespace: Option<Uuid>,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// Where traces, metrics and logs go by OTLP over HTTP, such as `http://127.0.0.1:4318`.
    pub otlp: Option<String>,
    /// The HTTP listener: FHIR, metrics and health.
    pub http: Http,
    /// Days after which a day whose every row is final is dropped; `None` keeps everything.
    pub retention_days: Option<u32>,
    /// Bytes that intake leaves free on the disk of the embedded store.
    pub reserve_bytes: u64,
    /// Where messages come in, ready to start.
    pub sources: Vec<ConfiguredSource>,
    /// Who may send. Empty: any sender on loopback, under its own name.
    pub senders: Vec<Sender>,
    /// Who is told of what.
    pub subscriptions: Vec<Subscription>,
    /// Further mappings, overlays and tables, beside the built-in ones.
    pub mappings_dir: Option<PathBuf>,
    /// How long a stop waits for what is in flight.
    pub shutdown_wait: Duration,
    /// How long a message waits for a store that is away.
    pub store_hold: Duration,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Hidden(text.into())
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[hidden]")
    }
}

/// The HTTP listener.
#[derive(Clone, Debug)]
pub struct Http {
    /// Where it listens; `None` switches it off.
    pub listen: Option<SocketAddr>,
    /// Its certificate and whom it asks for one.
    pub tls: Option<Arc<adapters::tls::ServerTls>>,
    /// Under what address others reach `/fhir`, without a slash at its end.
    pub base_url: Option<String>,
    /// The largest body, in bytes.
    pub body_max: usize,
    /// How long a FHIR write waits for its result.
    pub timeout: Duration,
}

/// One way in: what the gateway knows of it, and the adapter's side.
#[derive(Debug)]
pub struct ConfiguredSource {
    /// What the gateway knows.
    pub common: SourceConfig,
    /// The adapter's side, not listening yet.
    pub source: Arc<dyn Source>,
}

/// What the gateway knows of a source.
#[derive(Clone, Debug, Default)]
pub struct SourceConfig {
    /// Its name, as shown everywhere.
    pub name: Arc<str>,
    /// The zone of times without an offset, if this source is known to mean one.
    pub zone: Option<Zone>,
    /// Whether MSH-11 should be `P` (else `T` or `D`).
    pub production: bool,
    /// The mapping that reads its documents, if it hands over such.
    pub mapping: Option<String>,
    /// Whose they are, if it fetches them.
    pub sender: Option<Arc<str>>,
    /// Whether it fetches what it hands over: one replica at a time does so.
    pub fetches: bool,
}

/// An IANA time zone by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    /// `Europe/Berlin`
    pub name: String,
    /// The rules.
    pub rules: time::Zone,
}

/// Who may send, and how it is known.
#[derive(Clone, Debug, Default)]
pub struct Sender {
    /// Its name, as shown everywhere and as subscriptions list it.
    pub name: Arc<str>,
    /// MSH-3.1, any of these; empty takes any.
    pub applications: Vec<String>,
    /// MSH-4.1, any of these; empty takes any.
    pub facilities: Vec<String>,
    /// Names of its client certificate, any of these; empty asks for none.
    pub certificates: Vec<String>,
    /// The sources it may use; empty allows any.
    pub sources: Vec<String>,
    /// Its bearer token on HTTP, read anew at each use.
    pub token: Option<Secret>,
    /// The zone of its times without an offset; goes before that of the source.
    pub zone: Option<Zone>,
    /// Its assigning authorities: HD text to system URI.
    pub systems: Vec<(String, String)>,
    /// Message types it may send, such as `ADT` or `ADT^A01`; empty allows every one that has a mapping.
    pub types: Vec<String>,
    /// Resource types that it may read over `/fhir`; `*` for any, empty for none.
    pub reads: Vec<String>,
    /// What it may subscribe to over `/fhir` by itself.
    pub subscribes: Option<Arc<Subscribes>>,
}

/// Who is told of what.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Its name: part of the routing key and of every delivery id.
    pub name: Arc<str>,
    /// Which topics, by name.
    pub topics: Vec<String>,
    /// What the resources of a topic must be like, each of these.
    pub filters: Vec<Filter>,
    /// From which senders; `*` for any.
    pub senders: Vec<String>,
    /// How it is notified of events; `None` sends it the whole messages.
    pub notifies: Option<Notifies>,
    /// Who may look at it over `/fhir`.
    pub owner: Option<Arc<str>>,
    /// Where its events go.
    pub to: To,
    /// The adapter by which they go, and what it is told to reach.
    pub channel: (String, String),
    /// How they are written as HL7 v2, if they are not to go as they came.
    pub writes: Option<Writes>,
    /// What a dead letter does to the same patient's later events: pass on, or block them for at most so long.
    pub block_for: Option<Duration>,
    /// How many attempts before a delivery is parked.
    pub attempts_max: u32,
    /// The first wait between attempts; it doubles.
    pub retry_base: Duration,
    /// The longest wait between attempts.
    pub retry_cap: Duration,
    /// How many deliveries are in flight at once.
    pub in_flight_max: usize,
    /// How long one attempt may take as a whole.
    pub attempt_timeout: Duration,
}

/// Where the events of a subscription go.
#[derive(Clone, Debug)]
pub enum To {
    /// Out by an adapter.
    Adapter(Arc<dyn Destination>),
    /// Into the subscriber's own queue on our broker, by this name.
    Queue(String),
    /// To whoever has bound the subscription to a WebSocket.
    Socket,
}

/// The destination that is no adapter: the subscriber's own queue on our broker.
const QUEUE: &str = "amqp";

/// The keys of the destination `amqp`.
pub const QUEUE_SETTINGS: &[Setting] = &[row(
    "queue",
    Kind::Text,
    Fallback::Required,
    "the subscriber's own queue on our broker; made as a quorum queue if missing",
)];

impl Config {
    /// The embedded default: SQLite and the in-process bus, MLLP and HTTP on loopback, nobody subscribed.
    pub fn embedded() -> Self {
        let text = "sources: [{name: mllp, adapter: mllp, listen: '127.0.0.1:2575'}]\n";
        Config::parse(text, Path::new("")).expect("the embedded default is valid: a test reads it")
    }

    /// Reads a configuration. Relative file names count from `folder`.
    ///
    /// # Errors
    /// Every mistake in the file, in the order in which they stand.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Mistake>> {
        let mut documents = yaml::read(text).map_err(|mistake| vec![mistake])?;
        let root = match documents.len() {
            0 => Node { place: Place { line: 1, column: 1 }, value: Value::Empty },
            1 => documents.remove(0),
            _ => {
                let text = "expected one document, found several".to_owned();
                return Err(vec![Mistake { place: documents[1].place, key: String::new(), text }]);
            }
        };
        let mut mistakes = Vec::new();
        let config = read(&root, folder, &mut mistakes);
        if mistakes.is_empty() {
            return Ok(config);
        }
        mistakes.sort_by_key(|mistake| mistake.place);
        mistakes.dedup();
        Err(mistakes)
    }
}

fn read(root: &Node, folder: &Path, mistakes: &mut Vec<Mistake>) -> Config {
    let mut fields = Fields::new(root, "", mistakes);
    let base = root.get("http").and_then(|http| http.get("base_url")).and_then(Node::text);
    let sources: Vec<ConfiguredSource> =
        each(&mut fields, "sources", |node, path, out| source(node, path, folder, out));
    let signed = |source: &Node| {
        let signature = source.get("signature").and_then(|signature| signature.get("sender"));
        signature.or(source.get("sender")).cloned()
    };
    let signers: Vec<Node> = root.get("sources").map_or(&[][..], items).iter().filter_map(signed).collect();
    let senders: Vec<Sender> =
        each(&mut fields, "senders", |node, path, out| sender(node, path, folder, &signers, out));
    let subscriptions: Vec<Subscription> =
        each(&mut fields, "subscriptions", |node, path, out| subscription(node, path, folder, base, out));
    let source_names: Vec<&str> = sources.iter().map(|s| &*s.common.name).collect();
    let sender_names: Vec<&str> = senders.iter().map(|s| &*s.name).collect();
    known_names(&mut fields, root, ("senders", "sources"), "source", &source_names);
    known_names(&mut fields, root, ("subscriptions", "senders"), "sender", &sender_names);
    known_names(&mut fields, root, ("subscriptions", "owner"), "sender", &sender_names);
    for signer in &signers {
        listed_names(&mut fields, Some(signer), ("sources", "sender"), &sender_names);
    }
    fetched(&mut fields, root, &sources, &senders);
    for sender in root.get("senders").map_or(&[][..], items) {
        let Some(node) = sender.get("subscribes") else { continue };
        listed_names(&mut fields, node.get("senders"), ("senders", "sender"), &sender_names);
        if base.is_none() {
            let text = "notifications name resources by their address: say under which `/fhir` is reached, as `http: {base_url: ...}`";
            fields.wrong(node.place, "senders", text);
        }
    }
    let store = url(&mut fields, "store", folder, &["sqlite:", "postgres://", "postgresql://"]);
    let bus = url(&mut fields, "bus", folder, &["amqp://", "amqps://"]);
    let has_management = root.get("bus_management").is_some();
    let bus_management =
        has_management.then(|| url(&mut fields, "bus_management", folder, &["http://", "https://"]));
    if let Some(given) = root.get("bus_management").filter(|_| bus.reveal() == "embedded") {
        fields.wrong(given.place, "bus_management", "is of no use without a RabbitMQ as `bus`");
    }
    let bus_public = fields.take_text("bus_public").map(str::to_owned);
    let is_public = |url: &str| {
        let rest = url.strip_prefix("amqps://").or_else(|| url.strip_prefix("amqp://"));
        rest.is_some_and(|host| {
            !host.is_empty() && !host.contains('@') && !host.trim_end_matches('/').contains('/')
        })
    };
    if let Some(given) = root.get("bus_public").filter(|_| !bus_public.as_deref().is_some_and(is_public)) {
        let text =
            "expected amqp://host:port or amqps://host:port, without a user: every subscriber is told it";
        fields.wrong(given.place, "bus_public", text);
    }
    for sender in root.get("senders").map_or(&[][..], items) {
        let channels = sender.get("subscribes").and_then(|node| node.get("channels"));
        let Some(place) = place_of(channels, "amqp").filter(|_| !has_management) else { continue };
        let text = "amqp: a queue of its own needs RabbitMQ, and its management API as `bus_management`";
        fields.wrong(place, "channels", text);
    }
    let mut reader = SettingsReader::new(&mut fields, TOP, folder);
    let data_dir = reader.file("data_dir").unwrap_or_default();
    let namespace = reader.text("namespace").and_then(|text| {
        let namespace = text.parse().ok();
        if namespace.is_none() {
            reader.wrong("namespace", "expected a UUID");
        }
        namespace
    });
    let http = reader.map("http", |reader| Some(http(reader)));
    if let Some(at) = sources.iter().position(|source| source.source.feed().is_some())
        && http.as_ref().is_some_and(|http| http.listen.is_none())
    {
        let text = format!("source {} is posted to, and HTTP is switched off", sources[at].common.name);
        reader.wrong("http", text);
    }
    let (retention_days, reserve_bytes) = reader
        .map("storage", |reader| {
            let days = reader.count("retention_days") as u32;
            Some(((days > 0).then_some(days), reader.bytes("reserve") as u64))
        })
        .unwrap_or((None, 512 << 20));
    let config = Config {
        store: match store.reveal() {
            "embedded" => Hidden::new(format!("sqlite:{}", data_dir.join("pons.db").display())),
            _ => store,
        },
        bus,
        bus_management,
        bus_public,
        namespace,
        log_json: reader.choice("log") == "json",
        otlp: reader.url("otlp").map(|url| url.to_string()),
        http: http.unwrap_or_default(),
        retention_days,
        reserve_bytes,
        sources,
        senders,
        subscriptions,
        mappings_dir: reader.file("mappings_dir"),
        shutdown_wait: reader.span("shutdown_wait"),
        store_hold: reader.span("store_hold"),
        data_dir,
    };
    fields.finish();
    config
}

impl Default for Http {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
        Http {
            listen: Some(listen),
            tls: None,
            base_url: None,
            body_max: 16 << 20,
            timeout: Duration::from_secs(30),
        }
    }
}

fn http(reader: &mut SettingsReader<'_, '_, '_>) -> Http {
    let enabled = reader.flag("enabled");
    let listen = reader.listen("listen").filter(|_| enabled);
    let tls = reader.map("tls", |reader| adapters::tls::ServerTls::read(reader, &["http/1.1"]));
    let waiver = reader.flag("plain_text_waiver");
    let base_url = reader.url("base_url");
    let exposed = listen.is_some_and(|address| !address.ip().is_loopback());
    if exposed && tls.is_none() && !waiver {
        reader.wrong(
            "listen",
            "is off loopback in plain text: give `tls`, or set `plain_text_waiver: true` knowingly",
        );
    }
    Http {
        listen,
        tls: tls.map(Arc::new),
        base_url: base_url.map(|url| url.to_string().trim_end_matches('/').to_owned()),
        body_max: reader.bytes("body_max"),
        timeout: reader.span("timeout"),
    }
}

fn source(node: &Node, path: &str, folder: &Path, mistakes: &mut Vec<Mistake>) -> Option<ConfiguredSource> {
    let mut fields = Fields::new(node, path, mistakes);
    let mut reader = SettingsReader::new(&mut fields, SOURCE, folder);
    let name: Arc<str> = reader.text("name").unwrap_or_default().into();
    let adapter = reader.text("adapter");
    let production = reader.flag("production");
    let mapping = reader.text("mapping");
    let sender: Option<Arc<str>> = reader.text("sender").map(Into::into);
    plain_name(&mut fields, &name);
    let zone = zone(&mut fields);
    let spec = adapter.and_then(|adapter| {
        let known = adapters::ADAPTERS.iter().filter(|spec| spec.source.is_some()).map(|spec| spec.name);
        known_adapter(&mut fields, node, &adapter, known.collect());
        adapters::adapter(&adapter)?.source.as_ref()
    });
    let context = SourceContext { name: name.clone(), folder: folder.into() };
    // Without a known adapter nobody can say which of the other keys are right.
    let spec = spec?;
    let source = (spec.read)(&mut fields, &context);
    match node.get("mapping") {
        None if spec.reads_documents => {
            fields.wrong(node.place, "mapping", "is missing: which mapping reads its documents");
        }
        Some(given) if !spec.reads_documents => {
            fields.wrong(given.place, "mapping", "this adapter takes HL7 v2, which says itself what it is");
        }
        _ => {}
    }
    match node.get("sender") {
        None if spec.fetches => fields.wrong(node.place, "sender", "is missing: whose its documents are"),
        Some(given) if !spec.fetches => {
            fields.wrong(given.place, "sender", "here each request or message says itself whose it is");
        }
        _ => {}
    }
    if let Some(given) = node.get("production").filter(|_| spec.reads_documents) {
        fields.wrong(given.place, "production", "is about MSH-11, and documents have none");
    }
    fields.finish();
    let common = SourceConfig { name, zone, production, mapping, sender, fetches: spec.fetches };
    Some(ConfiguredSource { common, source: source? })
}

/// Sees that who is said to be the sender of what is fetched may send it.
fn fetched(fields: &mut Fields<'_, '_>, root: &Node, sources: &[ConfiguredSource], senders: &[Sender]) {
    for of in sources.iter().map(|source| &source.common) {
        let sender = senders.iter().find(|sender| Some(&sender.name) == of.sender.as_ref());
        let (Some(sender), Some(mapping)) = (sender, &of.mapping) else { continue };
        let bars = |list: &[String], name: &str| !list.is_empty() && !list.iter().any(|own| own == name);
        let node = root.get("senders").and_then(|all| {
            items(all).iter().find(|node| node.get("name").and_then(Node::text) == Some(&*sender.name))
        });
        let own = fields.place();
        let at = |key| node.and_then(|node| node.get(key)).map_or(own, |node| node.place);
        if bars(&sender.sources, &of.name) {
            let (place, text) = (at("sources"), format!("source {} fetches in its name: list it", of.name));
            fields.wrong(place, "senders.sources", text);
        }
        if bars(&sender.types, mapping) {
            let place = at("types");
            let text = format!("source {} fetches in its name, read by `{mapping}`: list that", of.name);
            fields.wrong(place, "senders.types", text);
        }
    }
}

/// A map from assigning authorities to URIs.
fn systems(fields: &mut Fields<'_, '_>) -> Vec<(String, String)> {
    let mut systems = Vec::new();
    let Some(node) = fields.take("systems") else { return systems };
    match &node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                match value.text() {
                    Some(uri) if uri.contains(':') => systems.push((key.name.clone(), uri.to_owned())),
                    _ => fields.wrong(value.place, "systems", "expected a URI such as urn:oid:1.2.3"),
                }
            }
        }
        _ => fields.wrong(node.place, "systems", "expected a map from assigning authority to URI"),
    }
    systems
}

fn sender(
    node: &Node,
    path: &str,
    folder: &Path,
    signers: &[Node],
    mistakes: &mut Vec<Mistake>,
) -> Option<Sender> {
    let mut fields = Fields::new(node, path, mistakes);
    let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let mut reader = SettingsReader::new(&mut fields, SENDER, folder);
    let name: Arc<str> = reader.text("name").unwrap_or_default().into();
    let token = reader.secret("token");
    plain_name(&mut fields, &name);
    let systems = systems(&mut fields);
    let subscribes = fields.take("subscribes");
    let path_of = fields.path_of("subscribes");
    let subscribes =
        subscribes.and_then(|node| subscribes::read(node, &path_of, folder, fields.mistakes())).map(Arc::new);
    let sender = Sender {
        name,
        applications: owned(fields.take_texts("application")),
        facilities: owned(fields.take_texts("facility")),
        certificates: owned(fields.take_texts("certificate")),
        sources: owned(fields.take_texts("sources")),
        types: owned(fields.take_texts("types")),
        reads: owned(reads(&mut fields, node)),
        subscribes,
        zone: zone(&mut fields),
        token,
        systems,
    };
    let known_by = [&sender.applications, &sender.facilities, &sender.certificates];
    let signs = signers.iter().any(|signer| signer.text() == Some(&*sender.name));
    if known_by.iter().all(|list| list.is_empty()) && fields.take("token").is_none() && !signs {
        let place = fields.place();
        fields.wrong(
            place,
            "application",
            "say how this sender is known: application, facility, certificate or token, or as the `sender` of a source or of its `signature`",
        );
    }
    fields.finish();
    Some(sender)
}

/// The resource types that a sender may read.
fn reads<'n>(fields: &mut Fields<'n, '_>, node: &Node) -> Vec<&'n str> {
    let types = fields.take_texts("reads");
    let known: Vec<&str> = schemas::fhir::r4()
        .types()
        .filter(|of| of.kind == schemas::fhir::Kind::Resource)
        .map(|of| of.name)
        .collect();
    for of in types.iter().filter(|of| **of != "*" && !known.contains(of)) {
        let place = place_of(node.get("reads"), of).unwrap_or(fields.place());
        fields.wrong(place, "reads", format!("no resource type of R4; {}", hint(of, &known)));
    }
    types
}

fn subscription(
    node: &Node,
    path: &str,
    folder: &Path,
    base: Option<&str>,
    mistakes: &mut Vec<Mistake>,
) -> Option<Subscription> {
    let mut fields = Fields::new(node, path, mistakes);
    let mut reader = SettingsReader::new(&mut fields, SUBSCRIPTION, folder);
    let name: Arc<str> = reader.text("name").unwrap_or_default().into();
    let block = reader.choice("on_parked") == "block";
    let block_max = reader.span("block_max");
    let attempts_max = reader.count("attempts_max") as u32;
    let (retry_base, retry_cap) = (reader.span("retry_base"), reader.span("retry_cap"));
    let in_flight_max = reader.count("in_flight_max");
    let attempt_timeout = reader.span("attempt_timeout");
    let content = reader.choice("content");
    plain_name(&mut fields, &name);
    fields.take_required("topics");
    let topics = fields.take_texts("topics");
    let known = crate::route::topics::names();
    for topic in &topics {
        if !known.contains(topic) {
            let place = place_of(node.get("topics"), topic).unwrap_or(fields.place());
            fields.wrong(place, "topics", format!("unknown topic; {}", hint(topic, &known)));
        }
    }
    let filters = filters(&mut fields, node, &topics);
    fields.take_required("senders");
    let senders = fields.take_texts("senders");
    let writes = writes::read(&mut fields, node, &topics, true);
    let notifies = notifies(&mut fields, node, content, (&name, &topics), base);
    let owner = fields.take_text("owner").map(Into::into);
    let destination = fields.take_required("destination");
    let path = fields.path_of("destination");
    let to = destination.and_then(|node| destination_of(node, &path, folder, fields.mistakes()));
    let adapter = destination.and_then(|node| node.get("adapter")).and_then(Node::text);
    if writes.is_some() && adapter != Some("mllp") {
        fields.wrong(
            node.get("write").map_or(node.place, |node| node.place),
            "write",
            "only `mllp` takes messages of HL7 v2",
        );
    }
    if content != "message" && adapter == Some("mllp") {
        fields.wrong(
            node.get("content").map_or(node.place, |node| node.place),
            "content",
            "`mllp` takes no notifications",
        );
    }
    fields.finish();
    let endpoint = ["url", "queue", "connect"].iter().find_map(|key| destination?.get(key));
    let endpoint = endpoint.and_then(Node::text).unwrap_or_default().to_owned();
    Some(Subscription {
        name,
        notifies,
        owner,
        channel: (adapter.unwrap_or_default().to_owned(), endpoint),
        topics: topics.into_iter().map(str::to_owned).collect(),
        filters,
        senders: senders.into_iter().map(str::to_owned).collect(),
        to: to?,
        writes,
        block_for: block.then_some(block_max),
        attempts_max,
        retry_base,
        retry_cap,
        in_flight_max,
        attempt_timeout,
    })
}

/// What narrows the topics of a subscription; each must be one that every topic takes, and every type that a topic is about
/// must have one.
fn filters(fields: &mut Fields<'_, '_>, node: &Node, topics: &[&str]) -> Vec<Filter> {
    let topics: Vec<_> = topics.iter().filter_map(|name| crate::route::topics::find(name)).collect();
    let mut filters = Vec::new();
    for text in fields.take_texts("filters") {
        match Filter::read(text, &topics) {
            Ok(filter) => filters.push(filter),
            Err(why) => {
                let place = place_of(node.get("filters"), text).unwrap_or(fields.place());
                fields.wrong(place, "filters", why);
            }
        }
    }
    // What no filter is about would be sent to everybody, or to nobody: neither is what was meant.
    for topic in topics.iter().filter(|_| !filters.is_empty()) {
        if let Some(of) = topic.types().find(|of| !filters.iter().any(|filter| filter.resource() == *of)) {
            let place = node.get("filters").map_or(fields.place(), |node| node.place);
            let text = format!("topic {} is about {of} too: filter these as well", topic.name());
            fields.wrong(place, "filters", text);
        }
    }
    filters
}

/// How a subscription is notified of events, by its `content:`.
fn notifies(
    fields: &mut Fields<'_, '_>,
    node: &Node,
    content: &str,
    (name, topics): (&str, &[&str]),
    base: Option<&str>,
) -> Option<Notifies> {
    let Some((_, payload)) = Payload::ALL.iter().find(|(code, _)| *code == content) else {
        if let Some(owner) = node.get("owner") {
            let text = "whole messages cannot be asked for over `/fhir`: say `content: full-resource`, or leave it out";
            fields.wrong(owner.place, "owner", text);
        }
        return None;
    };
    let mut wrong = |text: &str| {
        let place = node.get("content").map_or(node.place, |node| node.place);
        fields.wrong(place, "content", text);
    };
    if name.contains('_') {
        wrong("notifications name the subscription as a FHIR id, which has no `_`: rename it");
    }
    if topics.len() > 1 {
        wrong("a subscription that is notified has one topic, as FHIR has it: write one for each");
    }
    if base.is_none() {
        wrong(
            "notifications name resources by their address: say under which `/fhir` is reached, as `http: {base_url: ...}`",
        );
    }
    Some(Notifies::new(base?.trim_end_matches('/'), *payload))
}

fn destination_of(node: &Node, path: &str, folder: &Path, mistakes: &mut Vec<Mistake>) -> Option<To> {
    let mut fields = Fields::new(node, path, mistakes);
    fields.take_required("adapter")?;
    let adapter = fields.take_text("adapter")?;
    let outbound = adapters::ADAPTERS.iter().filter(|spec| spec.destination.is_some()).map(|spec| spec.name);
    known_adapter(&mut fields, node, adapter, outbound.chain([QUEUE]).collect());
    let to = if adapter == QUEUE {
        SettingsReader::new(&mut fields, QUEUE_SETTINGS, folder).text("queue").map(To::Queue)
    } else {
        let spec = adapters::adapter(adapter)?.destination.as_ref()?;
        (spec.read)(&mut fields, folder).map(To::Adapter)
    };
    fields.finish();
    to
}

trait Named {
    fn name(&self) -> &str;
}

impl Named for ConfiguredSource {
    fn name(&self) -> &str {
        &self.common.name
    }
}

impl Named for Sender {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Subscription {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Reads the items of a list and refuses two of one name.
fn each<T: Named>(
    fields: &mut Fields<'_, '_>,
    key: &'static str,
    read: impl Fn(&Node, &str, &mut Vec<Mistake>) -> Option<T>,
) -> Vec<T> {
    let mut items: Vec<T> = Vec::new();
    for (index, node) in fields.take_list(key).iter().enumerate() {
        let path = format!("{key}[{index}]");
        let Some(item) = read(node, &path, fields.mistakes()) else { continue };
        if items.iter().any(|other| other.name() == item.name()) {
            fields.wrong(node.place, key, format!("the name `{}` stands here twice", item.name()));
        }
        items.push(item);
    }
    items
}

/// A name goes into routing keys, queue names and metric labels, so it is plain.
fn plain_name(fields: &mut Fields<'_, '_>, name: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let Some(node) = fields.take("name") else { return };
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        fields.wrong(node.place, "name", "expected 1 to 64 letters, digits, `-` or `_`");
    }
}

fn known_adapter(fields: &mut Fields<'_, '_>, node: &Node, name: &str, known: Vec<&'static str>) {
    if !known.contains(&name) {
        let place = node.get("adapter").map_or(node.place, |adapter| adapter.place);
        fields.wrong(place, "adapter", format!("unknown adapter; {}", hint(name, &known)));
    }
}

fn zone(fields: &mut Fields<'_, '_>) -> Option<Zone> {
    let name = fields.take_text("zone")?;
    let rules = time::Zone::named(name).ok();
    if rules.is_none() {
        let place = fields.take("zone").map_or(fields.place(), |node| node.place);
        fields.wrong(place, "zone", "expected an IANA time zone such as Europe/Berlin");
    }
    Some(Zone { name: name.to_owned(), rules: rules? })
}

/// An address that may hold a password: as text, or kept elsewhere as `{file: NAME}` or `{env: NAME}`.
fn url(fields: &mut Fields<'_, '_>, key: &'static str, folder: &Path, schemes: &[&str]) -> Hidden {
    let embedded = "embedded";
    let Some(node) = fields.take(key) else { return Hidden::new(embedded) };
    let path = fields.path_of(key);
    let text = match &node.value {
        Value::Text(text) => text.clone(),
        _ => match Secret::read(node, &path, folder, fields.mistakes()).map(|secret| secret.value()) {
            Some(Ok(text)) => text,
            _ => return Hidden::new(embedded),
        },
    };
    if text != embedded && !schemes.iter().any(|scheme| text.starts_with(scheme)) {
        let expected =
            format!("expected `{embedded}` or an address that begins with {}", schemes.join(" or "));
        fields.wrong(node.place, key, expected);
    }
    Hidden::new(text)
}

/// Reports each name that one part of the file uses and no other part makes.
fn known_names(
    fields: &mut Fields<'_, '_>,
    root: &Node,
    (section, key): (&'static str, &str),
    what: &str,
    known: &[&str],
) {
    for item in root.get(section).map_or(&[][..], items) {
        listed_names(fields, item.get(key), (section, what), known);
    }
}

/// Reports each name of a list, or the one that stands in its place, that no part of the file makes.
fn listed_names(
    fields: &mut Fields<'_, '_>,
    listed: Option<&Node>,
    (section, what): (&str, &str),
    known: &[&str],
) {
    let Some(listed) = listed else { return };
    let names = match &listed.value {
        Value::List(names) => names.iter().collect(),
        _ => vec![listed],
    };
    for (place, name) in names.into_iter().filter_map(|node| Some((node.place, node.text()?))) {
        if name != "*" && !known.contains(&name) {
            fields.wrong(place, section, format!("there is no {what} `{name}`; {}", hint(name, known)));
        }
    }
}

/// The items of a list; none of anything else.
fn items(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(items) => items,
        _ => &[],
    }
}

fn hint(name: &str, known: &[&str]) -> String {
    match yaml::nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "none is configured".to_owned(),
        None => format!("known: {}", known.join(", ")),
    }
}

fn place_of(node: Option<&Node>, text: &str) -> Option<Place> {
    match &node?.value {
        Value::List(items) => items.iter().find(|item| item.text() == Some(text)).map(|item| item.place),
        _ => node.filter(|node| node.text() == Some(text)).map(|node| node.place),
    }
}

#[cfg(test)]
mod tests;
