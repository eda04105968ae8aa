//! Messages through mapping and recording into a real SQLite store.

mod along;
mod moving;

use super::lanes::Held;
use super::record::Reads;
use super::{Mapper, Normalizer, Prepared, Recorded, record};
use crate::ingest::keys::of_hl7v2;
use crate::ingest::senders::Senders;
use crate::route::Router;
use crate::route::roster::Roster;
use crate::store::{
    self, Alias, Format, Lease, NewMessage, RecordTx, Recording, ResourceWrite, Role, Store, StoreError,
    StoredResource,
};
use crate::telemetry::metrics::Metrics;
use async_trait::async_trait;
use mappings::Catalog;
use mappings::resource::State;
use schemas::hl7v2::{Limits, Message};
use schemas::message::{LANES, LaneSet, MessageId, Seq};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

static CATALOG: LazyLock<Arc<Catalog>> = LazyLock::new(|| Arc::new(Catalog::builtin()));

const NAMESPACE: Uuid = Uuid::from_u128(42);

struct Bench {
    store: Arc<dyn Store>,
    mapper: Mapper,
    router: Router,
    held: Held,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite:{}", folder.path().join("pons.db").display());
        let store = store::open(&url, Role::Gateway).await.expect("opened");
        store.migrate().await.expect("migrated");
        let names: Vec<String> = (0..LANES).map(|lane| format!("lane:{lane}")).collect();
        let leases = store.lease(Uuid::from_u128(1), &names, Duration::from_secs(60)).await.expect("leased");
        let senders = Senders::new(Vec::new(), Vec::new());
        Bench {
            store,
            mapper: Mapper::new(CATALOG.clone(), NAMESPACE, senders, Limits::default()),
            router: Router::new(Vec::new(), NAMESPACE),
            held: Held { lanes: LaneSet::ALL, leases },
            _folder: folder,
        }
    }

    async fn store_one(&self, sender: &str, text: &str) -> MessageId {
        let message = Message::parse(text, &Limits::default()).expect("readable");
        let keys = of_hl7v2(&message, sender);
        let header = message.header();
        let new = NewMessage {
            id: MessageId(Uuid::now_v7()),
            received_at: jiff::Timestamp::now(),
            sender: sender.into(),
            source: "test".into(),
            format: Format::Hl7v2,
            control_id: header.control_id().unwrap_or_default().into_owned(),
            handed_again: None,
            message_type: header.message_code().unwrap_or_default().into_owned(),
            version: "2.5.1".to_owned(),
            bytes: text.to_owned().into(),
            keys: keys.order,
            patient_hashes: keys.patients,
            rejected: None,
            context: r#"{"zone":"Europe/Berlin"}"#.to_owned(),
        };
        let id = new.id;
        self.store.append(vec![new]).await.expect("stored");
        id
    }

    /// Maps everything that is open.
    async fn prepared(&self) -> Vec<Prepared> {
        let open = self.store.open_messages(LaneSet::ALL, Seq(i64::MIN), 1000, 1 << 30).await.expect("read");
        open.into_iter().map(|open| self.mapper.prepare(open)).collect()
    }

    /// Maps and records everything that is open, in as few batches as may be.
    async fn work(&self) -> Vec<Recorded> {
        let mut recorded = Vec::new();
        for mut batch in record::batches(self.prepared().await) {
            let begin = async || self.store.begin_record(&self.held.leases).await.expect("begun");
            let hasty = record::record(begin().await, &mut batch, &self.router, Reads::Probable).await;
            recorded.extend(match hasty {
                Err(StoreError::Conflict) => {
                    record::record(begin().await, &mut batch, &self.router, Reads::All)
                        .await
                        .expect("recorded")
                }
                hasty => hasty.expect("recorded"),
            });
        }
        recorded
    }

    /// A worker over the store, and who was recorded, in the order in which the worker tells it.
    fn normalizer(&self) -> (Normalizer, UnboundedReceiver<MessageId>) {
        let (tell, told) = unbounded_channel();
        let hand_on = move |recorded: Vec<Recorded>| {
            recorded.into_iter().for_each(|one| tell.send(one.message.id).expect("somebody listens"));
        };
        let senders = Senders::new(Vec::new(), Vec::new());
        let normalizer = Normalizer {
            store: self.store.clone(),
            mapper: Arc::new(Mapper::new(CATALOG.clone(), NAMESPACE, senders.clone(), Limits::default())),
            roster: Arc::new(Roster::new(self.store.clone(), Vec::new(), senders.clone(), None, NAMESPACE)),
            waiters: Arc::default(),
            pressure: Arc::default(),
            metrics: Arc::new(Metrics::new(Vec::new(), Vec::new(), None).expect("no address, none wrong")),
            hand_on: Arc::new(hand_on),
        };
        (normalizer, told)
    }

    /// Sends messages one at a time; answers why each went into quarantine, if it did.
    async fn send(&self, sender: &str, messages: &[&str]) -> Vec<Option<String>> {
        let mut outcomes = Vec::new();
        for text in messages {
            self.store_one(sender, text).await;
            outcomes.extend(self.work().await.into_iter().map(|recorded| recorded.done.quarantined));
        }
        outcomes
    }

    /// The resource as it stands.
    async fn read(&self, id: Uuid) -> Option<Value> {
        let mut tx = self.store.begin_record(&self.held.leases).await.expect("begun");
        let found = tx.load(&[id]).await.expect("loaded").pop()?;
        let rendered = State::decode(&found.state).expect("decodes").render(&found.resource_type, id);
        Some(serde_json::from_str(&rendered.json).expect("JSON"))
    }

    /// The resource that an identifier names.
    async fn named(&self, resource_type: &str, system_part: &str, value: &str) -> Option<Value> {
        let systems = [
            system_part.to_owned(),
            format!("urn:pons:sender:adt:{system_part}"),
            format!("urn:pons:sender:lab:{system_part}"),
        ];
        let aliases: Vec<store::Alias> = systems
            .into_iter()
            .map(|system| store::Alias {
                resource_type: resource_type.to_owned(),
                system,
                value: value.to_owned(),
            })
            .collect();
        let mut tx = self.store.begin_record(&self.held.leases).await.expect("begun");
        let found = tx.resolve(&aliases).await.expect("resolved").into_values().next()?;
        drop(tx);
        self.read(found).await
    }
}

fn adt(event: &str, at: &str, control: &str, rest: &str) -> String {
    format!(
        "MSH|^~\\&|ADT1|GENHOSP|||{at}||ADT^{event}|{control}|P|2.5.1\rEVN|{event}|{at}\r{}",
        rest.replace('\n', "\r")
    )
}

const RICH: &str = "PID|1||1001^^^GENHOSP^MR||TEST^JANE^Q||19700101|F|||1 Street^^Town^^12345||555-0100\n\
                    PV1|1|I|3A^12^1^GENHOSP||||77^HOUSE^GREG||||||||||||V1^^^GENHOSP^VN\n";
const THIN_ORU: &str = "MSH|^~\\&|ADT1|GENHOSP|||20260301120000||ORU^R01|C2|P|2.5.1\r\
                        PID|1||1001^^^GENHOSP^MR||TEST^J\rPV1|1|I||||||||||||||||||V1^^^GENHOSP^VN\r\
                        OBR|1||F1^LAB|2823-3^Potassium^LN|||20260301110000||||||||||||||||||F\r\
                        OBX|1|NM|2823-3^Potassium^LN||4.10|mmol/L|||||F\r";

/// An A01, a thin ORU, then an A08 without PV1 that deletes the phone and changes the address.
fn story() -> [String; 3] {
    [
        adt("A01", "20260301100000", "C1", RICH),
        THIN_ORU.to_owned(),
        adt(
            "A08",
            "20260301130000",
            "C3",
            "PID|1||1001^^^GENHOSP^MR||TEST^JANE^Q||19700101|F|||2 Street^^Town^^12345||\"\"\n",
        ),
    ]
}

async fn told(order: &[usize]) -> (Value, Value) {
    let bench = Bench::new().await;
    let story = story();
    let messages: Vec<&str> = order.iter().map(|index| story[*index].as_str()).collect();
    assert_eq!(bench.send("adt", &messages).await, [None, None, None]);
    let patient = bench.named("Patient", "GENHOSP", "1001").await.expect("known");
    let encounter = bench.named("Encounter", "GENHOSP", "V1").await.expect("known");
    (patient, encounter)
}

#[tokio::test]
async fn a_thin_result_and_a_partial_update_lose_nothing_and_null_deletes() {
    let (patient, encounter) = told(&[0, 1, 2]).await;
    assert_eq!(
        patient["name"][0]["given"],
        serde_json::json!(["JANE", "Q"]),
        "the thin name did not replace it"
    );
    assert_eq!(patient["birthDate"], "1970-01-01");
    assert_eq!(patient["address"][0]["line"][0], "2 Street");
    assert!(patient.get("telecom").is_none(), "the phone was deleted by \"\": {patient}");
    assert_eq!(encounter["status"], "in-progress");
    assert!(encounter["participant"].is_array(), "the A08 without PV1 left the attending alone");
}

#[tokio::test]
async fn the_order_of_arrival_does_not_matter() {
    let expected = told(&[0, 1, 2]).await;
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        assert_eq!(told(&order).await, expected, "arrived as {order:?}");
    }
}

#[tokio::test]
async fn an_identifier_learned_from_one_message_finds_the_patient_of_another() {
    let bench = Bench::new().await;
    let both = adt(
        "A01",
        "20260301100000",
        "C1",
        "PID|1||1001^^^GENHOSP^MR~77^^^REGION^PI||TEST^JANE||19700101|F\n",
    );
    let only_pi =
        adt("A08", "20260301110000", "C2", "PID|1||77^^^REGION^PI||TEST^JANE||19700101|F|||9 Street\n");
    assert_eq!(bench.send("adt", &[&both, &only_pi]).await, [None, None]);
    let by_mr = bench.named("Patient", "GENHOSP", "1001").await.expect("known");
    let by_pi = bench.named("Patient", "REGION", "77").await.expect("known");
    assert_eq!(by_mr["id"], by_pi["id"]);
    assert_eq!(by_mr["address"][0]["line"][0], "9 Street");
}

#[tokio::test]
async fn what_a_restricted_message_said_does_not_go_along_with_an_ordinary_one() {
    let gateway = Bench::new().await;
    let restricted =
        adt("A01", "20260301100000", "C1", RICH).replacen("|P|2.5.1", "|P|2.8.2||||||||||||||R", 1);
    let ordinary = adt("A08", "20260301110000", "C2", "PID|1||1001^^^GENHOSP^MR||TEST^JANE^Q");
    gateway.store_one("adt", &restricted).await;
    let first = gateway.work().await.remove(0);
    let bundle = String::from_utf8_lossy(&first.bundle).into_owned();
    assert!(
        bundle.contains("1 Street") && bundle.contains(r#""code":"R""#),
        "it goes whole, under its label"
    );
    gateway.store_one("adt", &ordinary).await;
    let second = gateway.work().await.remove(0);
    let bundle = String::from_utf8_lossy(&second.bundle).into_owned();
    assert!(bundle.contains("JANE") && bundle.contains("REDACTED"), "{bundle}");
    for secret in ["1 Street", "555-0100", "1970", r#""code":"R""#] {
        assert!(!bundle.contains(secret), "{secret} was said under a label that withholds");
    }
    assert!(second.issues.iter().any(|issue| issue.code == "withheld"));
    let known = gateway.named("Patient", "GENHOSP", "1001").await.expect("known");
    assert_eq!(known["birthDate"], "1970-01-01", "nothing is lost");
}

#[tokio::test]
async fn another_person_under_the_same_number_goes_into_quarantine_and_leaves_nothing_behind() {
    let bench = Bench::new().await;
    let jane = adt("A01", "20260301100000", "C1", RICH);
    let other = adt(
        "A01",
        "20260302100000",
        "C2",
        "PID|1||1001^^^GENHOSP^MR~88^^^REGION^PI||OTHER^PAUL||19990909|M\n",
    );
    let outcomes = bench.send("adt", &[&jane, &other]).await;
    assert!(outcomes[1].as_deref().is_some_and(|why| why.contains("another birth date")), "{outcomes:?}");
    let patient = bench.named("Patient", "GENHOSP", "1001").await.expect("known");
    assert_eq!(patient["name"][0]["family"], "TEST");
    assert!(
        bench.named("Patient", "REGION", "88").await.is_none(),
        "no alias of a quarantined message is kept"
    );
}

#[tokio::test]
async fn a_visit_number_that_is_given_to_another_patient_goes_into_quarantine() {
    let bench = Bench::new().await;
    let visit = "PV1|1|I|WARD||||||||||||||||V9^^^GENHOSP\n";
    let jane = adt(
        "A01",
        "20260301100000",
        "C1",
        &format!("PID|1||1001^^^GENHOSP^MR||TEST^JANE||19700101|F\n{visit}"),
    );
    let otto = adt(
        "A01",
        "20260302100000",
        "C2",
        &format!("PID|1||1002^^^GENHOSP^MR||TEST^OTTO||19800101|M\n{visit}"),
    );
    let outcomes = bench.send("adt", &[&jane, &otto, &jane.replace("A01", "A08").replace("C1", "C3")]).await;
    assert!(outcomes[1].as_deref().is_some_and(|why| why.contains("another patient")), "{outcomes:?}");
    assert_eq!(outcomes[2], None, "the visit goes on");
}

#[tokio::test]
async fn after_a_merge_the_prior_number_finds_the_survivor_and_a_replay_changes_nothing() {
    let bench = Bench::new().await;
    let one = adt("A01", "20260301100000", "C1", RICH);
    let two = adt("A01", "20260301100500", "C2", "PID|1||1002^^^GENHOSP^MR||TEST^JANE||19700101|F\n");
    let merge = adt(
        "A40",
        "20260301110000",
        "C3",
        "PID|1||1001^^^GENHOSP^MR||TEST^JANE^Q||19700101|F\nMRG|1002^^^GENHOSP^MR\n",
    );
    let later =
        adt("A08", "20260301120000", "C4", "PID|1||1002^^^GENHOSP^MR||TEST^JANE^Q||19700101|F|||7 Street\n");
    assert_eq!(bench.send("adt", &[&one, &two, &merge]).await, [None, None, None]);
    let prior = bench.named("Patient", "GENHOSP", "1002").await.expect("known");
    assert_eq!(prior["active"], false, "{prior}");
    assert_eq!(bench.send("adt", &[&later]).await, [None]);
    let survivor = bench.named("Patient", "GENHOSP", "1001").await.expect("known");
    assert_eq!(survivor["address"][0]["line"][0], "7 Street", "the prior number reached the survivor");
    assert_ne!(survivor["active"], false);
    let again = merge.replace("|C3|", "|C5|");
    assert_eq!(bench.send("adt", &[&again]).await, [None]);
    assert_eq!(bench.named("Patient", "GENHOSP", "1001").await, Some(survivor));
}

#[tokio::test]
async fn after_a_merge_the_visits_of_the_prior_number_go_on_under_the_surviving_one() {
    let bench = Bench::new().await;
    let merge = "PID|1||1002^^^GENHOSP^MR||TEST^JANE^Q||19700101|F\nMRG|1001^^^GENHOSP^MR\n";
    let story = [
        adt("A01", "20260301100000", "C1", RICH),
        THIN_ORU.to_owned(),
        adt("A40", "20260301130000", "C3", merge),
        THIN_ORU
            .replace("1001^", "1002^")
            .replace("|C2|", "|C4|")
            .replace("20260301120000", "20260301140000"),
    ];
    assert_eq!(bench.send("adt", &story.each_ref().map(String::as_str)).await, vec![None; 4]);
}

#[tokio::test]
async fn a_batch_ends_as_the_same_messages_one_by_one() {
    let bench = Bench::new().await;
    for text in &story() {
        bench.store_one("adt", text).await;
    }
    let recorded = bench.work().await;
    assert!(recorded.iter().all(|one| one.done.quarantined.is_none()));
    let patient = bench.named("Patient", "GENHOSP", "1001").await.expect("known");
    assert_eq!(patient, told(&[0, 1, 2]).await.0);
}

#[tokio::test]
async fn the_same_message_gives_the_same_bytes() {
    let bundles = async || {
        let bench = Bench::new().await;
        bench.store_one("adt", &story()[0]).await;
        let recorded = bench.work().await.remove(0);
        let text = String::from_utf8(recorded.bundle.to_vec()).expect("text");
        // The id of the message and the time of receipt are all that differs between two installations' receipts.
        let mut bundle: Value = serde_json::from_str(&text).expect("JSON");
        bundle["entry"]
            .as_array_mut()
            .expect("entries")
            .retain(|e| e["resource"]["resourceType"] != "Provenance");
        bundle["entry"].to_string()
    };
    assert_eq!(bundles().await, bundles().await);
}

#[tokio::test]
async fn an_idle_replica_that_gains_a_lane_takes_what_waits_there_in_order() {
    let bench = Bench::new().await;
    let admitted = |patient: usize, control: &str| {
        let rest = format!("PID|1||{patient}^^^GENHOSP^MR||TEST^JANE\nPV1|1|I\n");
        adt("A01", "20260301100000", control, &rest)
    };
    let lane = |patient: usize| {
        let text = admitted(patient, "C");
        let keys = of_hl7v2(&Message::parse(&text, &Limits::default()).expect("readable"), "adt");
        LaneSet::of(&keys.order[..1])
    };
    let first = lane(1);
    let (normalizer, mut told) = bench.normalizer();
    let held = |lanes: LaneSet| Held { lanes, leases: bench.held.of(lanes) };
    let (wake, woken) = watch::channel(Seq(i64::MIN));
    let (lanes, ours) = watch::channel(held(first));
    let stop = CancellationToken::new();
    let work = tokio::spawn(normalizer.run(woken, ours, stop.clone()));
    let store = async |patient: usize, control: String| {
        let id = bench.store_one("adt", &admitted(patient, &control)).await;
        wake.send_replace(Seq(i64::MAX));
        id
    };
    let others: Vec<usize> = (2..).filter(|patient| !first.contains(lane(*patient))).take(8).collect();
    for (round, other) in others.into_iter().enumerate() {
        // Two, so that the second was taken after the lanes were.
        for which in ["A", "B"] {
            let mine = store(1, format!("{which}{round}")).await;
            assert_eq!(told.recv().await, Some(mine));
        }
        let earlier = store(other, format!("E{round}")).await;
        let mine = store(1, format!("M{round}")).await;
        assert_eq!(told.recv().await, Some(mine));
        let later = store(other, format!("L{round}")).await;
        // Idle by now, mostly.
        tokio::time::sleep(Duration::from_millis(30)).await;
        lanes.send_replace(held(LaneSet::ALL));
        assert_eq!((told.recv().await, told.recv().await), (Some(earlier), Some(later)));
        lanes.send_replace(held(first));
    }
    stop.cancel();
    work.await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_side_by_side_record_each_message_once_and_each_patient_in_order() {
    const PATIENTS: usize = 7;
    let bench = Bench::new().await;
    let (normalizer, mut told) = bench.normalizer();
    let (wake, woken) = watch::channel(Seq(i64::MIN));
    let (_lanes, ours) = watch::channel(bench.held.clone());
    let stop = CancellationToken::new();
    let work = tokio::spawn(normalizer.run(woken, ours, stop.clone()));
    let mut sent: Vec<(Vec<usize>, MessageId)> = Vec::new();
    for number in 0..300 {
        // Several in a row of one patient, and now and then a merge that ties two together.
        let (patient, prior) = ((number / 5) % PATIENTS, (number / 3) % PATIENTS);
        let merges = number % 11 == 10 && prior != patient;
        let (event, patients) = if merges { ("A40", vec![patient, prior]) } else { ("A08", vec![patient]) };
        let mrg = if merges { format!("MRG|P{prior}^^^GENHOSP^MR\n") } else { String::new() };
        let rest = format!("PID|1||P{patient}^^^GENHOSP^MR||TEST^JANE\n{mrg}");
        let text = adt(event, "20260301100000", &format!("C{number}"), &rest);
        sent.push((patients, bench.store_one("adt", &text).await));
        wake.send_replace(Seq(i64::MAX));
        if number % 40 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let mut recorded = Vec::new();
    while recorded.len() < sent.len() {
        recorded.push(told.recv().await.expect("all are recorded"));
    }
    stop.cancel();
    work.await.expect("it ends");
    assert_eq!(told.recv().await, None, "nothing is recorded twice");
    for patient in 0..PATIENTS {
        let of_patient: Vec<MessageId> =
            sent.iter().filter(|(whose, _)| whose.contains(&patient)).map(|(_, id)| *id).collect();
        let in_order: Vec<MessageId> =
            recorded.iter().filter(|id| of_patient.contains(id)).copied().collect();
        assert_eq!(in_order, of_patient, "patient {patient}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_does_not_take_stays_open_and_goes_later() {
    let bench = Bench::new().await;
    let (normalizer, mut told) = bench.normalizer();
    let (_wake, woken) = watch::channel(Seq(i64::MIN));
    // Leases of somebody else: the store refuses what comes with them.
    let stale =
        bench.held.leases.iter().map(|lease| Lease { fence: lease.fence - 1, ..lease.clone() }).collect();
    let (lanes, ours) = watch::channel(Held { lanes: LaneSet::ALL, leases: stale });
    let stop = CancellationToken::new();
    let work = tokio::spawn(normalizer.run(woken, ours, stop.clone()));
    let text = adt("A08", "20260301100000", "C1", "PID|1||1^^^GENHOSP^MR||TEST^JANE\n");
    let id = bench.store_one("adt", &text).await;
    assert!(tokio::time::timeout(Duration::from_millis(700), told.recv()).await.is_err());
    lanes.send_replace(bench.held.clone());
    assert_eq!(told.recv().await, Some(id));
    stop.cancel();
    work.await.expect("it ends");
}

/// A store that breaks off.
struct Broken;

#[async_trait]
impl RecordTx for Broken {
    fn requested_version(&self) -> i64 {
        0
    }

    async fn resolve(&mut self, _: &[Alias]) -> Result<HashMap<Alias, Uuid>, StoreError> {
        panic!("TEST^JANE")
    }
    async fn load(&mut self, _: &[Uuid]) -> Result<Vec<StoredResource>, StoreError> {
        Ok(Vec::new())
    }
    async fn about(&mut self, _: Uuid) -> Result<Vec<Uuid>, StoreError> {
        Ok(Vec::new())
    }
    async fn about_of(&mut self, _: Uuid, _: &str, _: usize) -> Result<Vec<Uuid>, StoreError> {
        Ok(Vec::new())
    }
    async fn within(&mut self, _: Uuid, _: Uuid, _: &str, _: usize) -> Result<Vec<Uuid>, StoreError> {
        Ok(Vec::new())
    }
    async fn commit(self: Box<Self>, _: Recording) -> Result<Vec<i64>, StoreError> {
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn recording_that_breaks_off_leaves_the_batch_whole_and_does_not_say_what_it_stumbled_over() {
    let bench = Bench::new().await;
    bench.store_one("adt", &adt("A01", "20260301100000", "C1", RICH)).await;
    let mut batch = bench.prepared().await;
    let refused = record::record(Box::new(Broken), &mut batch, &bench.router, Reads::All).await;
    let Err(error @ StoreError::Bug(_)) = refused else { panic!("it broke off: {refused:?}") };
    assert_eq!(crate::chain(&error).to_string(), "the store refused a statement: recording broke off");
    assert_eq!(batch.len(), 1);
    let tx = bench.store.begin_record(&bench.held.leases).await.expect("begun");
    let recorded = record::record(tx, &mut batch, &bench.router, Reads::All).await.expect("recorded");
    assert_eq!((recorded.len(), batch.len()), (1, 0));
}

#[tokio::test]
async fn what_seemed_new_and_is_known_is_read_after_all() {
    let bench = Bench::new().await;
    let told = |control: &str| {
        let rest = format!("PID|1||{control}^^^GENHOSP^MR||TEST^JANE\n");
        adt("A08", "20260301100000", control, &rest)
    };
    // Somebody is known under the id that follows from the identifier, which names nobody.
    bench.store_one("adt", &told("P1")).await;
    let mut batch = bench.prepared().await;
    let Ok(facts) = &batch[0].facts else { panic!("mapped") };
    let patient = facts.contributions().find(|one| one.resource_type == "Patient").expect("a patient").id;
    let known = ResourceWrite {
        id: patient,
        resource_type: "Patient".to_owned(),
        follows: 0,
        version: 1,
        state: State::default().encode(),
        replaced_by: None,
        patient: None,
        encounter: None,
        message: MessageId(Uuid::nil()),
    };
    let tx = bench.store.begin_record(&bench.held.leases).await.expect("begun");
    tx.commit(Recording { resources: vec![known], ..Recording::default() }).await.expect("written");
    let begin = async || bench.store.begin_record(&bench.held.leases).await.expect("begun");
    let hasty = record::record(begin().await, &mut batch, &bench.router, Reads::Probable).await;
    assert!(matches!(hasty, Err(StoreError::Conflict)), "{hasty:?}");
    assert_eq!(batch.len(), 1, "nothing of it is lost");
    let (normalizer, mut recorded) = bench.normalizer();
    let (wake, woken) = watch::channel(Seq(i64::MIN));
    let (_lanes, ours) = watch::channel(bench.held.clone());
    let stop = CancellationToken::new();
    let work = tokio::spawn(normalizer.run(woken, ours, stop.clone()));
    wake.send_replace(Seq(i64::MAX));
    assert_eq!(recorded.recv().await, Some(batch[0].open.id));
    stop.cancel();
    work.await.expect("it ends");
    let named = bench.named("Patient", "GENHOSP", "P1").await.expect("named by now");
    assert_eq!(named["id"], patient.to_string());
    let mut tx = begin().await;
    assert_eq!(tx.load(&[patient]).await.expect("loaded")[0].version, 2);
}
