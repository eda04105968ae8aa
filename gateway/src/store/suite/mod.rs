//! One suite over both stores: a function a behaviour, run on SQLite always and on PostgreSQL by `tests/run`.

use super::*;
use jiff::ToSpan;

/// Declares each behaviour as a test of both stores.
macro_rules! behaviours {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::store::suite::Place::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            #[ignore = "needs PostgreSQL: tests/run starts it"]
            async fn $name() {
                let place = crate::store::suite::Place::postgres().await;
                super::$name(place.clone()).await;
                place.drop_database().await;
            })*
        }
    };
}

mod deliveries;
mod desk;
mod intake;
mod opening;
mod recording;
mod requested;

/// Where a test's store lies; every opening is as of another process.
#[derive(Clone)]
pub(super) enum Place {
    Sqlite(Arc<tempfile::TempDir>),
    Postgres { server: String, url: String, name: String },
}

impl Place {
    pub(super) fn sqlite() -> Place {
        Place::Sqlite(Arc::new(tempfile::tempdir().unwrap()))
    }

    pub(super) async fn postgres() -> Place {
        let server = std::env::var("PONS_TEST_POSTGRES").expect("PONS_TEST_POSTGRES names a server");
        let name = format!("pons_store_{}", Uuid::new_v4().simple());
        run(&server, &format!("CREATE DATABASE {name}")).await;
        let (base, _) = server.rsplit_once('/').unwrap();
        Place::Postgres { url: format!("{base}/{name}"), server, name }
    }

    pub(super) async fn drop_database(&self) {
        if let Place::Postgres { server, name, .. } = self {
            run(server, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
        }
    }

    pub(super) async fn open(&self) -> Arc<dyn Store> {
        let url = match self {
            Place::Sqlite(folder) => format!("sqlite:{}", folder.path().join("pons.db").display()),
            Place::Postgres { url, .. } => url.clone(),
        };
        let store = open(&url, Role::Gateway).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    /// Runs a statement on it beside the store.
    async fn run(&self, sql: &str) {
        use sqlx::Connection;
        match self {
            Place::Postgres { url, .. } => run(url, sql).await,
            Place::Sqlite(folder) => {
                let url = format!("sqlite:{}", folder.path().join("pons.db").display());
                let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut conn).await.unwrap();
            }
        }
    }

    /// Two replicas; of SQLite there is only one.
    async fn replicas(&self) -> [Arc<dyn Store>; 2] {
        let first = self.open().await;
        match self {
            Place::Sqlite(_) => [Arc::clone(&first), first],
            Place::Postgres { .. } => [first, self.open().await],
        }
    }
}

async fn run(url: &str, sql: &str) {
    use sqlx::Connection;
    let mut conn = sqlx::PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut conn).await.unwrap();
}

/// A message of `HOSPITAL_TEST` about one invented patient, received now.
fn message(control_id: &str, patient: &str) -> NewMessage {
    at(Timestamp::now(), control_id, patient)
}

pub(super) fn at(time: Timestamp, control_id: &str, patient: &str) -> NewMessage {
    let seconds = u64::try_from(time.as_second()).unwrap();
    let nanos = u32::try_from(time.subsec_nanosecond()).unwrap();
    NewMessage {
        id: MessageId(Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos))),
        received_at: Timestamp::from_microsecond(time.as_microsecond()).unwrap(),
        sender: "HOSPITAL_TEST".into(),
        source: "mllp".into(),
        format: Format::Hl7v2,
        control_id: control_id.to_owned(),
        handed_again: None,
        message_type: "ADT^A01".to_owned(),
        version: "2.5.1".to_owned(),
        bytes: Bytes::from(format!(
            "MSH|^~\\&|ADT|HOSPITAL_TEST|||20260101||ADT^A01|{control_id}|P|2.5.1\rPID|||{patient}||TEST^JANE\r"
        )),
        keys: vec![OrderKey::of(&["HOSPITAL_TEST", patient])],
        patient_hashes: vec![OrderKey::of(&[patient])],
        rejected: None,
        context: r#"{"zone":"UTC"}"#.to_owned(),
    }
}

fn many(count: usize) -> Vec<NewMessage> {
    (0..count).map(|n| message(&format!("C{n}"), &format!("P{}", n % 7))).collect()
}

fn seq_of(appended: &Appended) -> Seq {
    match appended {
        Appended::New { seq, .. } => *seq,
        Appended::Repeat { .. } => panic!("a repeat has no place of its own"),
    }
}

pub(super) async fn append(store: &Arc<dyn Store>, batch: Vec<NewMessage>) -> Vec<Seq> {
    store.append(batch).await.unwrap().iter().map(seq_of).collect()
}

pub(super) async fn all_open(store: &Arc<dyn Store>) -> Vec<OpenMessage> {
    store.open_messages(LaneSet::ALL, Seq(0), 10_000, usize::MAX).await.unwrap()
}

const MINUTE: Duration = Duration::from_secs(60);

async fn lanes(store: &Arc<dyn Store>) -> Vec<Lease> {
    store.lease(Uuid::from_u128(1), &["lane:0".to_owned()], MINUTE).await.unwrap()
}

pub(super) async fn lease(store: &Arc<dyn Store>, replica: u128, name: &str) -> Lease {
    store.lease(Uuid::from_u128(replica), &[name.to_owned()], MINUTE).await.unwrap().remove(0)
}

pub(super) fn routed(message: &OpenMessage) -> MessageResult {
    MessageResult {
        seq: message.seq,
        id: message.id,
        revision: message.revision,
        quarantined: None,
        mapping: "adt_a01 1.0.0".to_owned(),
        issues: vec![Issue::new(schemas::issue::Severity::Warning, "unmapped-field", "PID-18", "not mapped")],
        bundle: Bytes::from(format!(
            r#"{{"resourceType":"Bundle","type":"transaction","id":"{}"}}"#,
            message.id
        )),
        beside: Bytes::new(),
        made: Vec::new(),
    }
}

pub(super) fn quarantined(message: &OpenMessage) -> MessageResult {
    MessageResult { quarantined: Some("no mapping".to_owned()), bundle: Bytes::new(), ..routed(message) }
}

pub(super) fn delivery(message: &OpenMessage, subscription: &str) -> NewDelivery {
    NewDelivery {
        id: DeliveryId::of(Uuid::nil(), message.id, subscription, message.revision),
        message: message.id,
        seq: message.seq,
        revision: message.revision,
        subscription: subscription.into(),
        key: message.keys[0],
        matched: vec!["encounter-start".to_owned(), "patient-merged".to_owned()].into(),
        suppressed: None,
    }
}

pub(super) async fn record(store: &Arc<dyn Store>, recording: Recording) -> Result<Vec<i64>, StoreError> {
    let leases = lanes(store).await;
    store.begin_record(&leases).await?.commit(recording).await
}

/// Routes everything that is open to these subscriptions.
async fn route_all(store: &Arc<dyn Store>, subscriptions: &[&str]) -> Vec<OpenMessage> {
    let open = all_open(store).await;
    let recording = Recording {
        results: open.iter().map(routed).collect(),
        deliveries: open
            .iter()
            .flat_map(|message| subscriptions.iter().map(|name| delivery(message, name)))
            .collect(),
        ..Recording::default()
    };
    record(store, recording).await.unwrap();
    open
}

pub(super) fn change(delivery: &OpenDelivery, state: DeliveryState) -> DeliveryChange {
    let tried = !matches!(state, DeliveryState::Published | DeliveryState::Pending);
    DeliveryChange {
        id: delivery.id,
        message: delivery.message,
        state,
        attempts: delivery.attempts + u32::from(tried),
        rest: Duration::ZERO,
        attempt: tried.then(|| Attempt {
            number: delivery.attempts + 1,
            began_at: Timestamp::from_microsecond(1_700_000_000_000_000 + i64::from(delivery.attempts))
                .unwrap(),
            took: Duration::from_millis(12),
            answer: if state == DeliveryState::Delivered { "HTTP 200" } else { "HTTP 503" }.to_owned(),
        }),
        reason: None,
    }
}

pub(super) async fn deliveries(store: &Arc<dyn Store>, subscription: &str) -> Vec<OpenDelivery> {
    store.open_deliveries(subscription, 0, 10_000).await.unwrap()
}

async fn states(store: &Arc<dyn Store>, id: MessageId) -> Vec<(DeliveryState, u32)> {
    let timeline = store.timeline(id).await.unwrap().unwrap();
    timeline.deliveries.iter().map(|each| (each.delivery.state, each.delivery.attempts)).collect()
}

async fn balanced(store: &Arc<dyn Store>) -> Vec<Books> {
    let books = store.books().await.unwrap();
    for sender in &books {
        assert_eq!(sender.unaccounted(), 0, "{sender:?}");
    }
    books
}

/// Noon of a day long ago, so that the clock of no database matters.
pub(super) fn noon(day: i8) -> Timestamp {
    jiff::civil::date(2025, 3, day).at(12, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp()
}

fn alias(value: &str) -> Alias {
    Alias {
        resource_type: "Patient".to_owned(),
        system: "urn:oid:2.999.1".to_owned(),
        value: value.to_owned(),
    }
}
