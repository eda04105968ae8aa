//! The path, from an outside system in to the outside systems out.
//!
//! ```text
//! sources ─► ingest ══ store ══► ACK          (the sender waits for this and for nothing else)
//!                        │
//!                    normalize ─► mappings ─► resources, Bundle        ✗─► quarantine
//!                        │
//!                      route ─► topics, policy ─► deliveries
//!                        │
//!                       bus ─► deliver ─► destinations                 ✗─► retry ─► dead letter
//! ```
//! Every station finds its work in the store, so starting, taking over from another replica and recovering from a
//! crash are the same thing. What is handed on in memory only saves a reading.

use crate::api::{self, Api};
use crate::bus::{Bus, Embedded, Keys, RabbitMq, RabbitMqSettings};
use crate::config::{Config, ConfiguredSource, SourceConfig};
use crate::deliver::{self, Deliverers, Routed, Sockets};
use crate::ingest::commit::Committer;
use crate::ingest::pressure::Pressure;
use crate::ingest::senders::Senders;
use crate::ingest::turns::Turn;
use crate::ingest::{Ingest, Takes};
use crate::normalize::{Mapper, Normalizer, Recorded, lanes, reload, waiters::Waiters};
use crate::route::{publish::EpochWatch, roster::Roster};
use crate::store::{self, Content, Role, Store, StoreError};
use crate::telemetry::{TelemetryError, health::Health, metrics::Metrics};
use crate::upkeep;
use adapters::Intake;
use mappings::{Catalog, FileMistake, Program};
use schemas::hl7v2::Limits;
use schemas::message::Seq;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// How many bytes a queue of the embedded bus holds at most.
const EMBEDDED_QUEUE_BYTES: usize = 32 << 20;

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store is away, not durable, or of another version.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A mapping is wrong.
    #[error("{}", lines(.0))]
    Mappings(Vec<FileMistake>),
    /// The configuration names a mapping that there is not, or that is for something else.
    #[error("{0}")]
    NoMapping(String),
    /// What is configured for telemetry cannot work.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The broker's settings cannot work.
    #[error("bus: {0}")]
    Bus(String),
    /// The folder of mappings cannot be read, or the data folder cannot be made.
    #[error("{0}")]
    Folder(String),
    /// An address could not be had.
    #[error("{what}: {error}")]
    Io {
        /// What it was for.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
}

fn lines(mistakes: &[FileMistake]) -> String {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// A gateway at work.
pub struct Running {
    /// Where HTTP is served.
    pub http: Option<SocketAddr>,
    /// Where each source listens, by name.
    pub sources: Vec<(Arc<str>, Option<SocketAddr>)>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// What delivers to each subscription.
    pub deliverers: Arc<Deliverers>,
    /// What is counted and timed.
    pub metrics: Arc<Metrics>,
    health: Arc<Health>,
    intake: CancellationToken,
    work: CancellationToken,
    sources_at_work: TaskTracker,
    at_work: TaskTracker,
    shutdown_wait: Duration,
}

/// Starts everything; returns once messages are taken.
///
/// # Errors
/// What is wrong with the store, the mappings, the bus or an address. Nothing is left running then.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let catalog = Arc::new(catalog(&config)?);
    let store = open_store(&config).await?;
    let namespace = match config.namespace {
        Some(namespace) => namespace,
        None => once_there(async || store.namespace().await).await?,
    };
    let replica = Uuid::new_v4();
    let (bus, keys) = (open_bus(&config)?, open_keys(&config)?.map(Arc::new));
    let metrics = Arc::new(Metrics::new(
        config.sources.iter().map(|source| source.common.name.clone()),
        config.senders.iter().map(|sender| sender.name.clone()),
        config.otlp.as_deref(),
    )?);
    metrics.watch_bus(&bus);
    let (intake, work) = (CancellationToken::new(), CancellationToken::new());
    let (sources_at_work, at_work) = (TaskTracker::new(), TaskTracker::new());
    let senders =
        Senders::new(config.senders, config.sources.iter().map(|source| source.common.clone()).collect());
    let mapper = Arc::new(Mapper::new(catalog, namespace, senders.clone(), Limits::default()));
    let waiters = Arc::new(Waiters::default());
    let health = Arc::new(Health::new(intake.clone()));

    // ingest: made durable, then answered
    let (wake, woken) = watch::channel(Seq(0));
    let pressure = Arc::new(Pressure::default());
    let committer = Committer::start(
        store.clone(),
        health.room.clone(),
        config.store_hold,
        wake.clone(),
        pressure.clone(),
        metrics.clone(),
    );
    let takes: Arc<dyn Takes> = mapper.clone();
    let ingest = Arc::new(Ingest::new(
        senders,
        committer,
        store.clone(),
        waiters.clone(),
        takes,
        Limits::default(),
        metrics.clone(),
    ));

    // deliver: one deliverer a subscription
    let sockets = Arc::new(Sockets::new(intake.clone()));
    let services = deliver::Services {
        store: store.clone(),
        bus: bus.clone(),
        watch: Arc::new(EpochWatch::new(store.clone(), bus.clone())),
        sockets: sockets.clone(),
        keys: keys.clone(),
        replica,
        installation: namespace.to_string().into(),
    };
    let deliverers =
        Arc::new(Deliverers::new(services, mapper.clone(), metrics.clone(), at_work.clone(), work.clone()));
    for subscription in &config.subscriptions {
        deliverers.start(subscription, None);
    }
    metrics.watch_deliverers(&deliverers);

    // normalize and route: mapped, merged and routed in one transaction a batch
    let base = config.http.base_url.clone();
    let roster =
        Arc::new(Roster::new(store.clone(), config.subscriptions, ingest.senders().clone(), base, namespace));
    once_there(async || roster.refresh().await).await?;
    at_work.spawn(deliver::keep(deliverers.clone(), roster.clone(), work.clone()));
    if let Some(keys) = &keys {
        at_work.spawn(deliver::revoke(deliverers.clone(), roster.clone(), keys.clone(), work.clone()));
    }
    let (holding, held) = lanes::hold(store.clone(), replica, work.clone());
    at_work.spawn(holding);
    if let Some(folder) = config.mappings_dir {
        at_work.spawn(reload::watch(folder, mapper.clone(), metrics.clone(), work.clone()));
    }
    let normalizer = Normalizer {
        store: store.clone(),
        mapper,
        roster: roster.clone(),
        waiters: waiters.clone(),
        pressure,
        metrics: metrics.clone(),
        hand_on: {
            let deliverers = deliverers.clone();
            Arc::new(move |recorded| hand_on(&deliverers, recorded))
        },
    };
    at_work.spawn(normalizer.run(woken, held, work.clone()));
    let keep =
        upkeep::Settings { retention_days: config.retention_days, reserve_bytes: config.reserve_bytes };
    upkeep::watch_room(&*store, keep.reserve_bytes, &health, &metrics).await;
    at_work.spawn(upkeep::run(store.clone(), keep, health.clone(), metrics.clone(), wake, work.clone()));

    // the doors open last
    let feeds =
        config.sources.iter().filter_map(|of| Some((of.common.name.clone(), of.source.feed()?))).collect();
    let mut running = Running {
        http: None,
        sources: Vec::new(),
        store: store.clone(),
        deliverers,
        metrics,
        health,
        intake,
        work,
        sources_at_work,
        at_work,
        shutdown_wait: config.shutdown_wait,
    };
    let opened =
        match listen((config.http, feeds), &ingest, waiters, (roster, sockets, keys), &bus, &mut running)
            .await
        {
            Ok(()) => sources(config.sources, &ingest, replica, &mut running).await,
            Err(error) => Err(error),
        };
    if let Err(error) = opened {
        running.stop().await;
        return Err(error);
    }
    running.health.started();
    Ok(running)
}

impl Running {
    /// Stops in the order of the path: nothing new is taken, what was taken is answered, what is under way is finished
    /// as far as the wait allows. The rest is in the store.
    pub async fn stop(self) {
        self.intake.cancel();
        self.sources_at_work.close();
        if tokio::time::timeout(self.shutdown_wait, self.sources_at_work.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time; their senders will send again");
        }
        self.work.cancel();
        self.at_work.close();
        if tokio::time::timeout(self.shutdown_wait, self.at_work.wait()).await.is_err() {
            tracing::warn!("some work did not end in time; it goes on at the next start");
        }
        // It waits for the collector, so not on a thread that others need.
        let metrics = self.metrics;
        let _ = tokio::task::spawn_blocking(move || metrics.stop()).await;
    }
}

/// The built-in mappings and those of the configuration.
pub fn catalog(config: &Config) -> Result<Catalog, StartError> {
    catalog_for(config, config.mappings_dir.as_deref())
}

/// The built-in mappings and those of a folder, as far as the configuration asks for any by name.
pub fn catalog_for(config: &Config, folder: Option<&Path>) -> Result<Catalog, StartError> {
    let catalog = catalog_with(folder)?;
    let configured =
        config.subscriptions.iter().filter_map(|one| Some(("subscription", &one.name, one.writes.as_ref()?)));
    let requested = config
        .senders
        .iter()
        .filter_map(|one| Some(("sender", &one.name, one.subscribes.as_ref()?.mllp.as_ref()?)));
    for (what, of, writes) in configured.chain(requested) {
        if let Some(name) = writes.missing(&catalog).first() {
            let hint = hint(&catalog, name, Program::writes_messages);
            let text = format!("{what} {of}: write: no mapping `{name}` writes messages; {hint}");
            return Err(StartError::NoMapping(text));
        }
    }
    for SourceConfig { name: of, mapping, .. } in config.sources.iter().map(|source| &source.common) {
        let Some(name) = mapping else { continue };
        if !catalog.program("", name).is_some_and(reads_documents) {
            let hint = hint(&catalog, name, reads_documents);
            let text = format!("source {of}: mapping: no mapping `{name}` reads documents; {hint}");
            return Err(StartError::NoMapping(text));
        }
    }
    Ok(catalog)
}

/// Whether a mapping is for the documents of feeds.
fn reads_documents(program: &Program) -> bool {
    !program.writes_messages() && (program.takes_json() || program.takes_csv().is_some())
}

/// The mapping that was meant, among those that would do.
fn hint(catalog: &Catalog, name: &str, would_do: fn(&Program) -> bool) -> String {
    let known = catalog.programs().iter().filter(|program| would_do(program));
    let known: Vec<&str> = known.map(Program::name).collect();
    schemas::yaml::nearest(name, known.iter().copied())
        .map_or_else(|| format!("known: {}", known.join(", ")), |near| format!("did you mean `{near}`?"))
}

/// The built-in mappings and those of a folder.
pub fn catalog_with(folder: Option<&Path>) -> Result<Catalog, StartError> {
    Catalog::from_files(mapping_files(folder)?).map_err(StartError::Mappings)
}

/// The built-in files of mappings, and those of a folder beside them.
pub fn mapping_files(folder: Option<&Path>) -> Result<Vec<(String, String)>, StartError> {
    let mut files = Catalog::builtin_files();
    if let Some(folder) = folder {
        let own = crate::files::mappings(folder)
            .map_err(|error| StartError::Folder(format!("cannot read {}: {error}", folder.display())))?;
        // A file of the same name stands in place of the built-in one.
        files.retain(|(name, _)| !own.iter().any(|(other, _)| other == name));
        files.extend(own);
    }
    Ok(files)
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    if config.store.reveal().starts_with("sqlite:") {
        std::fs::create_dir_all(&config.data_dir).map_err(|error| {
            StartError::Folder(format!("data_dir: cannot make {}: {error}", config.data_dir.display()))
        })?;
    }
    Ok(once_there(async || try_store(config.store.reveal()).await).await?)
}

/// What the store answers. One that is away while we start, as after a power cut, is waited for.
async fn once_there<T>(ask: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut pause = Duration::from_millis(250);
    loop {
        match ask().await {
            Err(StoreError::Away(error)) => {
                tracing::warn!(error = %crate::chain(&*error), "the store is away; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            answered => return answered,
        }
    }
}

async fn try_store(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    let store = store::open(url, Role::Gateway).await?;
    store.check_durable().await?;
    store.migrate().await?;
    Ok(store)
}

fn open_bus(config: &Config) -> Result<Arc<dyn Bus>, StartError> {
    if config.bus.reveal() == "embedded" {
        return Ok(Arc::new(Embedded::new(EMBEDDED_QUEUE_BYTES)));
    }
    let settings = RabbitMqSettings::new(config.bus.reveal());
    Ok(Arc::new(RabbitMq::new(settings).map_err(|error| StartError::Bus(error.to_string()))?))
}

fn open_keys(config: &Config) -> Result<Option<Keys>, StartError> {
    let Some(management) = &config.bus_management else { return Ok(None) };
    let keys = Keys::new(management.reveal(), config.bus.reveal(), config.bus_public.as_deref());
    keys.map(Some).map_err(|why| StartError::Bus(format!("bus_management: {why}")))
}

/// Hands what was recorded to the deliverers, as far as they have room.
fn hand_on(deliverers: &Deliverers, recorded: Vec<Recorded>) {
    for one in recorded {
        for (delivery, number) in one.deliveries {
            if delivery.is_final() {
                continue;
            }
            let Some(feed) = deliverers.feed(&delivery.subscription) else {
                deliverers.wake(&delivery.subscription);
                continue;
            };
            let content = Content {
                original: one.message.bytes.clone(),
                format: one.message.format,
                sender: one.message.sender.clone(),
                message_type: one.message.message_type.clone(),
                received_at: one.message.received_at,
                bundle: one.bundle.clone(),
                beside: one.beside.clone(),
            };
            let routed = Routed {
                id: delivery.id,
                message: delivery.message,
                revision: delivery.revision,
                number,
                key: delivery.key,
                matched: delivery.matched,
                content,
                traceparent: one.traceparent.clone(),
            };
            // Full, or led by another replica: the deliverer reads it from the store.
            feed.offer(routed);
        }
    }
}

async fn listen(
    (http, feeds): (crate::config::Http, HashMap<Arc<str>, Arc<dyn adapters::Feed>>),
    ingest: &Arc<Ingest>,
    waiters: Arc<Waiters>,
    (roster, sockets, keys): (Arc<Roster>, Arc<Sockets>, Option<Arc<Keys>>),
    bus: &Arc<dyn Bus>,
    running: &mut Running,
) -> Result<(), StartError> {
    let Some(address) = http.listen else { return Ok(()) };
    let failed = |error| StartError::Io { what: format!("http: cannot listen on {address}"), error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    running.http = Some(listener.local_addr().map_err(failed)?);
    let tls = http.tls.clone();
    let (bus, metrics, health) = (bus.clone(), running.metrics.clone(), running.health.clone());
    let api = Arc::new(Api {
        ingest: ingest.clone(),
        waiters,
        store: running.store.clone(),
        roster,
        sockets,
        keys,
        feeds,
        socket_places: Arc::new(tokio::sync::Semaphore::new(api::websocket::SOCKETS_MAX)),
        http,
        metrics: Box::new(move || metrics.text()),
        ready: Box::new(move || health.readyz(&*bus)),
    });
    running.sources_at_work.spawn(api::serve(api, listener, tls, running.intake.clone()));
    Ok(())
}

async fn sources(
    sources: Vec<ConfiguredSource>,
    ingest: &Arc<Ingest>,
    replica: Uuid,
    running: &mut Running,
) -> Result<(), StartError> {
    for ConfiguredSource { common, source } in sources {
        let intake: Arc<dyn Intake> = ingest.clone();
        if common.fetches {
            let turn =
                Turn { name: common.name.clone(), source, intake, store: running.store.clone(), replica };
            running.sources_at_work.spawn(turn.run(running.intake.clone()));
            running.sources.push((common.name, None));
            continue;
        }
        let started = source
            .start(intake, running.intake.clone())
            .await
            .map_err(|error| StartError::Io { what: format!("source {}", common.name), error })?;
        running.sources_at_work.spawn(async move {
            if let Err(error) = started.task.await {
                tracing::error!(%error, "a source ended by itself: a defect of Pons");
            }
        });
        running.sources.push((common.name, started.address));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn a_store_that_goes_away_while_we_start_is_waited_for_and_one_at_fault_is_not() {
        let asked = Cell::new(0);
        let away = || Err(StoreError::Away("connection refused".into()));
        let answered = once_there(async || {
            asked.set(asked.get() + 1);
            if asked.get() < 8 { away() } else { Ok("there") }
        });
        assert_eq!((answered.await.unwrap(), asked.get()), ("there", 8));
        let refused: Result<(), _> = once_there(async || Err(StoreError::Schema("newer".to_owned()))).await;
        assert!(matches!(refused, Err(StoreError::Schema(_))));
    }
}
