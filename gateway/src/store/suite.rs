//! One suite over both stores: a function a behaviour, run on SQLite always and on PostgreSQL by `tests/run`.

use super::*;
use jiff::ToSpan;

/// Declares each behaviour as a test of both stores.
macro_rules! behaviours {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Place::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            #[ignore = "needs PostgreSQL: tests/run starts it"]
            async fn $name() {
                let place = super::Place::postgres().await;
                super::$name(place.clone()).await;
                place.drop_database().await;
            })*
        }
    };
}

behaviours! {
    a_new_store_is_durable_and_has_one_namespace,
    messages_come_back_in_order_and_within_bounds,
    an_equal_message_is_a_repeat,
    other_bytes_under_the_same_control_id_are_new_and_flagged,
    a_rejected_message_is_kept_and_its_repeat_gets_the_same_answer,
    a_batch_appended_again_is_recognised_even_without_control_ids,
    a_message_sent_to_two_replicas_at_once_is_taken_once,
    two_replicas_append_in_commit_order,
    a_lane_sees_its_messages_and_a_merge_waits_for_both,
    recording_closes_messages_and_numbers_deliveries,
    a_message_is_recorded_once,
    an_old_fence_writes_nothing,
    a_lease_has_one_holder_and_its_fence_grows,
    replicas_that_live_are_counted,
    a_resource_that_changed_meanwhile_is_a_conflict,
    an_alias_is_made_once_and_moves_by_a_merge,
    event_numbers_are_dense_over_replicas,
    open_deliveries_are_what_is_left_to_do,
    a_final_delivery_never_changes,
    published_deliveries_go_back_when_the_broker_is_wiped,
    dead_letters_and_what_was_delivered_lately_are_found_in_order,
    contents_come_back_as_they_were,
    search_finds_by_everything,
    a_timeline_tells_everything,
    a_replay_opens_the_message_at_its_place,
    a_dead_letter_is_delivered_again_or_skipped_by_a_person,
    quarantine_flags_the_keys_until_it_is_resolved,
    text_with_nul_is_kept,
    an_append_given_up_half_way_is_there_once_after_it_came_again,
    old_days_go_once_they_are_final_and_the_books_stay_true,
    what_waits_for_a_person_outlives_its_day,
}

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
        topics: vec!["encounter-start".to_owned(), "patient-merged".to_owned()],
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

async fn a_new_store_is_durable_and_has_one_namespace(place: Place) {
    let store = place.open().await;
    store.check_schema().await.unwrap();
    store.check_durable().await.unwrap();
    let namespace = store.namespace().await.unwrap();
    assert!(!namespace.is_nil());
    assert_eq!(store.bus_epoch().await.unwrap(), None);
    store.set_bus_epoch("e1").await.unwrap();
    drop(store);
    let again = place.open().await;
    assert_eq!(again.namespace().await.unwrap(), namespace);
    assert_eq!(again.bus_epoch().await.unwrap().as_deref(), Some("e1"));
    assert!(again.room().await.unwrap().is_some_and(|bytes| bytes > 0));
}

async fn messages_come_back_in_order_and_within_bounds(place: Place) {
    let store = place.open().await;
    let given = many(150);
    let seqs = append(&store, given.clone()).await;
    assert!(seqs.is_sorted_by(|a, b| a < b));
    let more = append(&store, vec![message("LATER", "P1")]).await;
    assert!(more[0] > seqs[149]);
    assert!(store.append(Vec::new()).await.unwrap().is_empty());

    let open = all_open(&store).await;
    assert_eq!(open.len(), 151);
    as_given(&open, &given);
    let after: Vec<Seq> = store
        .open_messages(LaneSet::ALL, seqs[9], 3, usize::MAX)
        .await
        .unwrap()
        .iter()
        .map(|message| message.seq)
        .collect();
    assert_eq!(after, seqs[10..13]);
    let size = given[0].bytes.len();
    assert_eq!(store.open_messages(LaneSet::ALL, Seq(0), 100, 2 * size).await.unwrap().len(), 2);
    assert_eq!(store.open_messages(LaneSet::ALL, Seq(0), 100, 1).await.unwrap().len(), 1, "the first always");
    drop(store);
    let open = all_open(&place.open().await).await;
    assert_eq!(open.len(), 151, "kept over a restart");
    as_given(&open, &given);
}

/// Every open message is as it was given.
fn as_given(open: &[OpenMessage], given: &[NewMessage]) {
    for (open, given) in open.iter().zip(given) {
        assert_eq!((open.id, &open.bytes, &open.keys), (given.id, &given.bytes, &given.keys));
        assert_eq!((open.received_at, &open.sender), (given.received_at, &given.sender));
        assert_eq!((&open.context, &open.message_type), (&given.context, &given.message_type));
        assert_eq!((open.revision, open.format), (0, Format::Hl7v2));
    }
}

async fn an_equal_message_is_a_repeat(place: Place) {
    let store = place.open().await;
    let first = message("C1", "P1");
    let within = NewMessage { id: message("", "").id, ..first.clone() };
    let answers = store.append(vec![first.clone(), message("C2", "P1"), within]).await.unwrap();
    let repeat = Appended::Repeat { id: first.id, received_at: first.received_at, rejected: None };
    assert_eq!(answers[2], repeat, "within one batch");
    let later = NewMessage { id: message("", "").id, ..first.clone() };
    assert_eq!(store.append(vec![later.clone()]).await.unwrap(), std::slice::from_ref(&repeat));
    drop(store);
    let store = place.open().await;
    let both = store.append(vec![later.clone(), later]).await.unwrap();
    assert_eq!(both, [repeat.clone(), repeat], "over a restart, and twice");
    assert_eq!(all_open(&store).await.len(), 2);
    let other_sender = NewMessage { id: message("", "").id, sender: "LAB_TEST".into(), ..first.clone() };
    append(&store, vec![other_sender]).await;
    let week_later = at(first.received_at + 192.hours(), "C1", "P1");
    let week_later = NewMessage { bytes: first.bytes.clone(), ..week_later };
    append(&store, vec![week_later]).await;
    assert_eq!(all_open(&store).await.len(), 4, "another sender's, and a week's, are new");
}

async fn other_bytes_under_the_same_control_id_are_new_and_flagged(place: Place) {
    let store = place.open().await;
    append(&store, vec![message("C1", "P1")]).await;
    let batch = vec![message("C0", "P1"), message("C1", "P2"), message("C1", "P3"), message("C9", "P1")];
    let answers = store.append(batch).await.unwrap();
    let reused: Vec<bool> = answers
        .iter()
        .map(|answer| matches!(answer, Appended::New { control_id_reused: true, .. }))
        .collect();
    assert_eq!(reused, [false, true, true, false]);
    let seqs: Vec<Seq> = answers.iter().map(seq_of).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b), "the order of the batch is kept: {seqs:?}");
    assert_eq!(all_open(&store).await.iter().map(|open| open.seq).collect::<Vec<_>>()[1..], seqs);
    let flagged = all_open(&store).await[2].id;
    assert!(store.timeline(flagged).await.unwrap().unwrap().control_id_reused);
}

async fn a_rejected_message_is_kept_and_its_repeat_gets_the_same_answer(place: Place) {
    let store = place.open().await;
    let refused = Refused {
        answer: "AR".to_owned(),
        code: 200,
        location: "MSH-9".to_owned(),
        text: "this type is not taken here".to_owned(),
    };
    let rejected = |id| NewMessage {
        rejected: Some(refused.clone()),
        keys: Vec::new(),
        patient_hashes: Vec::new(),
        ..message(id, "P1")
    };
    let first = rejected("C1");
    append(&store, vec![first.clone(), message("C2", "P1"), rejected("")]).await;
    let again = NewMessage { id: rejected("").id, ..first.clone() };
    let answers = store.append(vec![again]).await.unwrap();
    let expected =
        Appended::Repeat { id: first.id, received_at: first.received_at, rejected: Some(refused.clone()) };
    assert_eq!(answers, [expected]);
    assert_eq!(all_open(&store).await.len(), 1, "a rejected message waits for nobody");
    let books = balanced(&store).await;
    assert_eq!((books[0].received, books[0].rejected, books[0].waiting), (3, 2, 1));
    assert_eq!(store.timeline(first.id).await.unwrap().unwrap().rejected, Some(refused));
}

async fn a_batch_appended_again_is_recognised_even_without_control_ids(place: Place) {
    let store = place.open().await;
    let batch = vec![message("", "P1"), message("C1", "P1"), message("", "P1")];
    append(&store, batch.clone()).await;
    let mut again = batch.clone();
    again.insert(1, message("", "P2"));
    let answers = store.append(again).await.unwrap();
    let ids: Vec<Option<MessageId>> = answers
        .iter()
        .map(|answer| match answer {
            Appended::Repeat { id, .. } => Some(*id),
            Appended::New { .. } => None,
        })
        .collect();
    assert_eq!(ids, [Some(batch[0].id), None, Some(batch[1].id), Some(batch[2].id)]);
    assert_eq!(all_open(&store).await.len(), 4);
    balanced(&store).await;
}

async fn a_message_sent_to_two_replicas_at_once_is_taken_once(place: Place) {
    let replicas = place.replicas().await;
    for n in 0..25 {
        let first = message(&format!("C{n}"), "P1");
        let batch = |other: &str| {
            vec![
                message(other, "P1"),
                NewMessage { id: message("", "").id, ..first.clone() },
                message("", "P2"),
            ]
        };
        let (ours, theirs) =
            tokio::join!(replicas[0].append(batch("")), replicas[1].append(batch(&format!("O{n}"))));
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        let repeats: Vec<bool> = [&ours, &theirs]
            .into_iter()
            .flatten()
            .map(|answer| matches!(answer, Appended::Repeat { .. }))
            .collect();
        assert!(
            repeats == [false, true, false, false, false, false]
                || repeats == [false, false, false, false, true, false],
            "{repeats:?}"
        );
    }
    assert_eq!(all_open(&replicas[0]).await.len(), 25 * 5);
}

async fn two_replicas_append_in_commit_order(place: Place) {
    let replicas = place.replicas().await;
    let work = |replica: usize| {
        let store = Arc::clone(&replicas[replica]);
        async move {
            let mut last = Seq(0);
            for n in 0..25 {
                let batch = (0..3).map(|m| message(&format!("R{replica}-{n}-{m}"), "P1")).collect();
                let seqs = append(&store, batch).await;
                assert!(seqs[0] > last, "one's own come after one another");
                last = seqs[2];
            }
        }
    };
    // A reader that follows the order must never find that something came in below what it has seen.
    let follow = async {
        let (mut seen, mut after) = (Vec::new(), Seq(0));
        while seen.len() < 150 {
            for open in replicas[0].open_messages(LaneSet::ALL, after, 1000, usize::MAX).await.unwrap() {
                after = open.seq;
                seen.push(open.seq);
            }
            tokio::task::yield_now().await;
        }
        seen
    };
    let bound = tokio::time::timeout(MINUTE, async { tokio::join!(work(0), work(1), follow) });
    let ((), (), seen) = bound.await.expect("nothing appears below what was read");
    let open: Vec<Seq> = all_open(&replicas[1]).await.iter().map(|open| open.seq).collect();
    assert_eq!(seen, open);
}

async fn a_lane_sees_its_messages_and_a_merge_waits_for_both(place: Place) {
    let store = place.open().await;
    let (a, b) = (OrderKey(64), OrderKey(65));
    let keyed = |keys: &[OrderKey]| NewMessage { keys: keys.to_vec(), ..message("", "P1") };
    let seqs = append(&store, vec![keyed(&[a]), keyed(&[b]), keyed(&[a, b]), keyed(&[b])]).await;
    let of = async |keys: &[OrderKey]| -> Vec<Seq> {
        let open = store.open_messages(LaneSet::of(keys), Seq(0), 10, usize::MAX).await.unwrap();
        open.iter().map(|open| open.seq).collect()
    };
    assert_eq!(of(&[a]).await, [seqs[0], seqs[2]]);
    assert_eq!(of(&[b]).await, [seqs[1], seqs[2], seqs[3]]);
    assert!(of(&[OrderKey(66)]).await.is_empty());
    assert!(!store.open_before(seqs[0], &[a]).await.unwrap());
    assert!(store.open_before(seqs[2], &[a, b]).await.unwrap());
    assert!(store.open_before(seqs[3], &[b]).await.unwrap());
    assert!(!store.open_before(seqs[3], &[OrderKey(96)]).await.unwrap(), "same lane, another patient");
    assert_eq!(store.still_open(&[seqs[1], Seq(999), seqs[0]]).await.unwrap(), [seqs[0], seqs[1]]);
}

async fn recording_closes_messages_and_numbers_deliveries(place: Place) {
    let store = place.open().await;
    append(&store, many(80)).await;
    let open = all_open(&store).await;
    let mut recording = Recording { results: open.iter().map(routed).collect(), ..Recording::default() };
    for message in &open {
        recording.deliveries.push(delivery(message, "lab"));
        if message.seq.0 % 2 == 0 {
            recording.deliveries.push(NewDelivery {
                suppressed: Some("no agreement".to_owned()),
                ..delivery(message, "insurer")
            });
        }
    }
    let given = recording.deliveries.clone();
    let numbers = record(&store, recording).await.unwrap();
    for name in ["lab", "insurer"] {
        let of_name: Vec<i64> = given
            .iter()
            .zip(&numbers)
            .filter(|(delivery, _)| *delivery.subscription == *name)
            .map(|(_, number)| *number)
            .collect();
        assert_eq!(of_name, (1..=of_name.len() as i64).collect::<Vec<_>>(), "{name}");
    }
    assert!(all_open(&store).await.is_empty());
    let lab = deliveries(&store, "lab").await;
    assert_eq!(lab.len(), 80);
    assert_eq!((lab[3].number, lab[3].message, lab[3].key), (4, open[3].id, open[3].keys[0]));
    assert_eq!(lab[3].topics, ["encounter-start", "patient-merged"]);
    assert_eq!((lab[3].state, lab[3].attempts, lab[3].rest), (DeliveryState::Pending, 0, Duration::ZERO));
    assert!(deliveries(&store, "insurer").await.is_empty(), "suppressed is final");
    assert!(deliveries(&store, "nobody").await.is_empty());
    let after = store.open_deliveries("lab", 10, 5).await.unwrap();
    assert_eq!(after.iter().map(|each| each.number).collect::<Vec<_>>(), [11, 12, 13, 14, 15]);
    let books = balanced(&store).await;
    assert_eq!((books[0].routed_open, books[0].routed_final), (80, 0));
}

async fn a_message_is_recorded_once(place: Place) {
    let store = place.open().await;
    append(&store, many(2)).await;
    let open = all_open(&store).await;
    let recording = Recording { results: vec![routed(&open[0])], ..Recording::default() };
    record(&store, recording.clone()).await.unwrap();
    let both = Recording { results: open.iter().map(routed).collect(), ..Recording::default() };
    assert!(matches!(record(&store, both).await, Err(StoreError::Fenced)));
    assert_eq!(store.still_open(&[open[1].seq]).await.unwrap(), [open[1].seq], "nothing of it was written");
    balanced(&store).await;
}

async fn an_old_fence_writes_nothing(place: Place) {
    let [ours, theirs] = place.replicas().await;
    append(&ours, many(1)).await;
    let open = all_open(&ours).await;
    let old = lease(&ours, 1, "lane:3").await;
    let held_back = ours.begin_record(std::slice::from_ref(&old)).await.unwrap();
    ours.release(Uuid::from_u128(1), &["lane:3".to_owned()]).await.unwrap();
    let new = lease(&theirs, 2, "lane:3").await;
    assert!(new.fence > old.fence);
    let recording = Recording { results: vec![routed(&open[0])], ..Recording::default() };
    assert!(matches!(held_back.commit(recording.clone()).await, Err(StoreError::Fenced)));
    assert!(matches!(ours.begin_record(&[old]).await.err(), Some(StoreError::Fenced)));
    assert_eq!(all_open(&ours).await.len(), 1);
    theirs.begin_record(&[new]).await.unwrap().commit(recording).await.unwrap();

    append(&ours, vec![message("X", "P1")]).await;
    route_all(&ours, &["lab"]).await;
    let lab = deliveries(&ours, "lab").await;
    let old = lease(&ours, 1, "subscription:lab").await;
    ours.release(Uuid::from_u128(1), &["subscription:lab".to_owned()]).await.unwrap();
    let new = lease(&theirs, 2, "subscription:lab").await;
    let parked = vec![change(&lab[0], DeliveryState::Parked)];
    assert!(matches!(ours.change_deliveries(&old, parked).await, Err(StoreError::Fenced)));
    assert_eq!(states(&ours, lab[0].message).await, [(DeliveryState::Pending, 0)]);
    assert!(ours.timeline(lab[0].message).await.unwrap().unwrap().deliveries[0].attempts.is_empty());
    theirs.change_deliveries(&new, vec![change(&lab[0], DeliveryState::Delivered)]).await.unwrap();
    assert_eq!(states(&ours, lab[0].message).await, [(DeliveryState::Delivered, 1)]);
}

async fn a_lease_has_one_holder_and_its_fence_grows(place: Place) {
    let [ours, theirs] = place.replicas().await;
    let (we, they) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let names = ["lane:1".to_owned(), "lane:2".to_owned()];
    let first = ours.lease(we, &names, MINUTE).await.unwrap();
    assert_eq!(first.len(), 2);
    assert_eq!(ours.lease(we, &names, MINUTE).await.unwrap(), first, "renewing keeps the fence");
    assert!(theirs.lease(they, &names, MINUTE).await.unwrap().is_empty());
    ours.lease(we, &names[..1], Duration::ZERO).await.unwrap();
    let taken = until_some(async || theirs.lease(they, &names, MINUTE).await.unwrap()).await;
    assert_eq!(taken.len(), 1, "only the one that is over");
    assert_eq!((taken[0].name.as_str(), taken[0].fence), ("lane:1", first[0].fence + 1));
    ours.release(we, &names).await.unwrap();
    let both = theirs.lease(they, &names, MINUTE).await.unwrap();
    assert_eq!(both.len(), 2, "given back, and never another's");
    ours.release(we, &names).await.unwrap();
    assert_eq!(theirs.lease(they, &names, MINUTE).await.unwrap(), both);
}

/// Asks until there is an answer, which is due at once.
async fn until_some<T>(ask: impl AsyncFn() -> Vec<T>) -> Vec<T> {
    let asking = async {
        loop {
            let answer = ask().await;
            if !answer.is_empty() {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(MINUTE, asking).await.expect("there is an answer within a minute")
}

async fn replicas_that_live_are_counted(place: Place) {
    let [ours, theirs] = place.replicas().await;
    assert_eq!(ours.heartbeat(Uuid::from_u128(1), MINUTE).await.unwrap(), 1);
    assert_eq!(theirs.heartbeat(Uuid::from_u128(2), MINUTE).await.unwrap(), 2);
    assert_eq!(ours.heartbeat(Uuid::from_u128(1), MINUTE).await.unwrap(), 2);
}

fn resource(id: u128, follows: i64, state: &str) -> ResourceWrite {
    ResourceWrite {
        id: Uuid::from_u128(id),
        resource_type: "Patient".to_owned(),
        follows,
        state: state.repeat(100).into_bytes(),
        replaced_by: None,
        message: MessageId(Uuid::from_u128(9)),
    }
}

async fn load(store: &Arc<dyn Store>, ids: &[u128]) -> Vec<(u128, i64, String)> {
    let leases = lanes(store).await;
    let ids: Vec<Uuid> = ids.iter().map(|id| Uuid::from_u128(*id)).collect();
    let loaded = store.begin_record(&leases).await.unwrap().load(&ids).await.unwrap();
    let state = |state: Vec<u8>| String::from_utf8(state).unwrap().chars().next().unwrap().to_string();
    loaded.into_iter().map(|each| (each.id.as_u128(), each.version, state(each.state))).collect()
}

async fn a_resource_that_changed_meanwhile_is_a_conflict(place: Place) {
    let [ours, theirs] = place.replicas().await;
    let write = async |store: &Arc<dyn Store>, resources: Vec<ResourceWrite>| {
        record(store, Recording { resources, ..Recording::default() }).await
    };
    let many = (10..90).map(|id| resource(id, 0, "m")).collect();
    write(&ours, many).await.unwrap();
    write(&ours, vec![resource(2, 0, "a"), resource(1, 0, "a"), resource(1, 1, "b")]).await.unwrap();
    let expected = vec![(1, 2, "b".to_owned()), (2, 1, "a".to_owned())];
    assert_eq!(load(&ours, &[2, 1, 77_777]).await, expected);
    assert!(matches!(write(&theirs, vec![resource(1, 0, "x")]).await, Err(StoreError::Conflict)));
    assert!(matches!(write(&theirs, vec![resource(1, 1, "x")]).await, Err(StoreError::Conflict)));
    assert!(matches!(write(&theirs, vec![resource(3, 1, "x")]).await, Err(StoreError::Conflict)));
    let mixed = vec![resource(4, 0, "x"), resource(2, 7, "x")];
    assert!(matches!(write(&theirs, mixed).await, Err(StoreError::Conflict)));
    assert_eq!(load(&ours, &[1, 2, 3, 4]).await, expected, "nothing of it was written");
    let merged = ResourceWrite { replaced_by: Some(Uuid::from_u128(2)), ..resource(1, 2, "c") };
    write(&theirs, vec![merged]).await.unwrap();
    let leases = lanes(&ours).await;
    let loaded = ours.begin_record(&leases).await.unwrap().load(&[Uuid::from_u128(1)]).await.unwrap();
    assert_eq!((loaded[0].version, loaded[0].replaced_by), (3, Some(Uuid::from_u128(2))));
    assert_eq!(loaded[0].resource_type, "Patient");
}

fn alias(value: &str) -> Alias {
    Alias {
        resource_type: "Patient".to_owned(),
        system: "urn:oid:2.999.1".to_owned(),
        value: value.to_owned(),
    }
}

async fn an_alias_is_made_once_and_moves_by_a_merge(place: Place) {
    let [ours, theirs] = place.replicas().await;
    let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let naming = |aliases: Vec<(Alias, Uuid)>| Recording { aliases, ..Recording::default() };
    // Both find that nothing has the name; the second to say otherwise has to look again.
    let (our_leases, their_leases) = (lanes(&ours).await, lanes(&theirs).await);
    let mut our = ours.begin_record(&our_leases).await.unwrap();
    let mut their = theirs.begin_record(&their_leases).await.unwrap();
    assert!(our.resolve(&[alias("MRN1")]).await.unwrap().is_empty());
    assert!(their.resolve(&[alias("MRN1")]).await.unwrap().is_empty());
    our.commit(naming(vec![(alias("MRN1"), a), (alias("SSN1"), a)])).await.unwrap();
    assert!(matches!(their.commit(naming(vec![(alias("MRN1"), b)])).await, Err(StoreError::Conflict)));
    // Naming the same again is nothing new, asked for or not.
    record(&ours, naming(vec![(alias("MRN1"), a), (alias("MRN2"), b)])).await.unwrap();

    // A merge moves what it has seen; a second one that saw the same comes too late.
    let mut our = ours.begin_record(&our_leases).await.unwrap();
    let mut their = theirs.begin_record(&their_leases).await.unwrap();
    let seen = our.resolve(&[alias("MRN1"), alias("MRN2"), alias("MRN3")]).await.unwrap();
    assert_eq!((seen.len(), seen[&alias("MRN1")], seen[&alias("MRN2")]), (2, a, b));
    their.resolve(&[alias("MRN1")]).await.unwrap();
    our.commit(naming(vec![(alias("MRN1"), b), (alias("SSN1"), b)])).await.unwrap();
    let late = Uuid::from_u128(3);
    assert!(matches!(their.commit(naming(vec![(alias("MRN1"), late)])).await, Err(StoreError::Conflict)));
    let mut read = theirs.begin_record(&their_leases).await.unwrap();
    let seen = read.resolve(&[alias("MRN1"), alias("SSN1")]).await.unwrap();
    assert_eq!((seen[&alias("MRN1")], seen[&alias("SSN1")]), (b, b));
}

async fn event_numbers_are_dense_over_replicas(place: Place) {
    let replicas = place.replicas().await;
    append(&replicas[0], many(60)).await;
    let open = all_open(&replicas[0]).await;
    let work = |replica: usize| {
        let (store, open) = (Arc::clone(&replicas[replica]), open.clone());
        async move {
            let mut numbers = Vec::new();
            for message in open.iter().skip(replica).step_by(2) {
                let deliveries = vec![delivery(message, "lab"), delivery(message, "insurer")];
                let recording =
                    Recording { results: vec![routed(message)], deliveries, ..Recording::default() };
                loop {
                    match record(&store, recording.clone()).await {
                        Ok(given) => break numbers.push(given[0]),
                        Err(StoreError::Conflict) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
            numbers
        }
    };
    let (ours, theirs) = tokio::join!(work(0), work(1));
    assert!(ours.is_sorted() && theirs.is_sorted());
    let mut all = [ours, theirs].concat();
    all.sort();
    assert_eq!(all, (1..=60).collect::<Vec<_>>());
    assert_eq!(deliveries(&replicas[1], "insurer").await.len(), 60);
}

async fn open_deliveries_are_what_is_left_to_do(place: Place) {
    let store = place.open().await;
    append(&store, many(6000)).await;
    route_all(&store, &["lab"]).await;
    let lab = deliveries(&store, "lab").await;
    let lease = lease(&store, 1, "subscription:lab").await;
    // 1 waits to be retried, 2 is parked, 3 is published, the others but the last ten are delivered: enough for the floor to move.
    let waiting = DeliveryChange { rest: MINUTE, ..change(&lab[0], DeliveryState::RetryWait) };
    let mut changes = vec![waiting, change(&lab[1], DeliveryState::Parked)];
    changes.push(change(&lab[2], DeliveryState::Published));
    changes.extend(lab[3..5990].iter().map(|each| change(each, DeliveryState::Delivered)));
    store.change_deliveries(&lease, changes).await.unwrap();
    let left = deliveries(&store, "lab").await;
    let seen: Vec<(i64, DeliveryState)> = left.iter().map(|each| (each.number, each.state)).collect();
    let mut expected = vec![(1, DeliveryState::RetryWait), (3, DeliveryState::Published)];
    expected.extend((5991..=6000).map(|number| (number, DeliveryState::Pending)));
    assert_eq!(seen, expected);
    assert!(left[0].rest > Duration::from_secs(50) && left[0].rest <= MINUTE);
    assert_eq!(left[0].attempts, 1);

    store.change_deliveries(&lease, vec![change(&left[1], DeliveryState::Delivered)]).await.unwrap();
    store.housekeeping(&Retention { days: None }, Timestamp::now()).await.unwrap();
    append(&store, vec![message("LAST", "P1")]).await;
    route_all(&store, &["lab"]).await;
    let numbers: Vec<i64> = deliveries(&store, "lab").await.iter().map(|each| each.number).collect();
    assert_eq!(numbers, [&[1][..], &(5991..=6001).collect::<Vec<_>>()].concat());
    drop(store);
    let store = place.open().await;
    let again: Vec<i64> = deliveries(&store, "lab").await.iter().map(|each| each.number).collect();
    assert_eq!(again, numbers, "the same after a restart");
    let due = DeliveryChange { rest: Duration::ZERO, ..change(&left[0], DeliveryState::RetryWait) };
    store.change_deliveries(&lease, vec![due]).await.unwrap();
    assert_eq!(deliveries(&store, "lab").await[0].rest, Duration::ZERO);
}

async fn a_final_delivery_never_changes(place: Place) {
    let store = place.open().await;
    append(&store, many(3)).await;
    route_all(&store, &["lab"]).await;
    let lab = deliveries(&store, "lab").await;
    let lease = lease(&store, 1, "subscription:lab").await;
    let withheld = DeliveryChange {
        reason: Some("consent revoked".to_owned()),
        attempt: None,
        ..change(&lab[1], DeliveryState::Suppressed)
    };
    let first =
        vec![change(&lab[0], DeliveryState::Delivered), withheld, change(&lab[2], DeliveryState::Parked)];
    store.change_deliveries(&lease, first).await.unwrap();
    for state in [DeliveryState::Published, DeliveryState::RetryWait, DeliveryState::Delivered] {
        let changes = lab.iter().map(|each| change(each, state)).collect();
        store.change_deliveries(&lease, changes).await.unwrap();
    }
    let expected = [DeliveryState::Delivered, DeliveryState::Suppressed, DeliveryState::Parked];
    for (delivery, expected) in lab.iter().zip(expected) {
        assert_eq!(states(&store, delivery.message).await[0].0, expected);
    }
    let timeline = store.timeline(lab[1].message).await.unwrap().unwrap();
    assert_eq!(timeline.deliveries[0].reason.as_deref(), Some("consent revoked"));
    assert!(deliveries(&store, "lab").await.is_empty());
    let books = balanced(&store).await;
    assert_eq!((books[0].routed_final, books[0].routed_open), (2, 1));
}

async fn published_deliveries_go_back_when_the_broker_is_wiped(place: Place) {
    let store = place.open().await;
    append(&store, many(4)).await;
    route_all(&store, &["lab"]).await;
    let lab = deliveries(&store, "lab").await;
    let lease = lease(&store, 1, "subscription:lab").await;
    let mut changes: Vec<_> = lab[..3].iter().map(|each| change(each, DeliveryState::Published)).collect();
    changes.push(change(&lab[2], DeliveryState::RetryWait));
    changes.push(change(&lab[1], DeliveryState::Delivered));
    store.change_deliveries(&lease, changes).await.unwrap();
    // A retried one that was published again is found as well.
    store.change_deliveries(&lease, vec![change(&lab[2], DeliveryState::Published)]).await.unwrap();
    assert_eq!(store.unpublish_all().await.unwrap(), 2);
    let left = deliveries(&store, "lab").await;
    let seen: Vec<_> = left.iter().map(|each| (each.number, each.state)).collect();
    assert_eq!(seen, [1, 3, 4].map(|number| (number, DeliveryState::Pending)));
    assert_eq!(store.unpublish_all().await.unwrap(), 0);
}

async fn dead_letters_and_what_was_delivered_lately_are_found_in_order(place: Place) {
    let store = place.open().await;
    let long_ago = Timestamp::now().checked_sub(49.hours()).unwrap();
    append(&store, vec![at(long_ago, "OLD", "P1")]).await;
    append(&store, many(9)).await;
    route_all(&store, &["lab", "insurer"]).await;
    let lab = deliveries(&store, "lab").await;
    let lease = lease(&store, 1, "subscription:lab").await;
    let ends = [
        DeliveryState::Delivered,
        DeliveryState::Parked,
        DeliveryState::Delivered,
        DeliveryState::RetryWait,
        DeliveryState::Parked,
        DeliveryState::Delivered,
        DeliveryState::Suppressed,
        DeliveryState::Delivered,
    ];
    let changes = lab.iter().zip(ends).map(|(each, end)| change(each, end)).collect();
    store.change_deliveries(&lease, changes).await.unwrap();
    let parked = store.parked_deliveries("lab", 10).await.unwrap();
    let seen: Vec<_> = parked.iter().map(|letter| (letter.number, letter.key)).collect();
    assert_eq!(seen, [(2, lab[1].key), (5, lab[4].key)]);
    assert!(parked.iter().all(|letter| letter.age < MINUTE));
    assert_eq!(store.parked_deliveries("lab", 1).await.unwrap().len(), 1);
    assert!(store.parked_deliveries("insurer", 10).await.unwrap().is_empty());

    let hour = 60 * MINUTE;
    let delivered = async |within, after, limit| {
        let found = store.delivered_lately("lab", within, after, limit).await.unwrap();
        found.iter().map(|each| each.number).collect::<Vec<_>>()
    };
    assert_eq!(delivered(hour, 0, 10).await, [3, 6, 8], "the message of the first is too old");
    assert_eq!(delivered(48 * hour, 0, 10).await, [1, 3, 6, 8]);
    assert_eq!(delivered(hour, 3, 1).await, [6]);
    assert!(delivered(Duration::ZERO, 0, 10).await.is_empty());
    assert!(store.delivered_lately("nobody", hour, 0, 10).await.unwrap().is_empty());
}

async fn contents_come_back_as_they_were(place: Place) {
    let store = place.open().await;
    let mut large = message("LARGE", "P1");
    // Larger than a page, hard to compress, with bytes that are no text.
    let noise: Vec<u8> = (0..40_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    large.bytes = Bytes::from(noise);
    let empty = NewMessage { bytes: Bytes::new(), ..message("EMPTY", "P1") };
    let mut given = many(70);
    given.extend([large, empty]);
    append(&store, given.clone()).await;
    let open = route_all(&store, &["lab"]).await;
    let of: Vec<(MessageId, u32)> = open.iter().map(|open| (open.id, 0)).collect();
    carries(&store.contents(&of).await.unwrap(), &given, &open);
    assert!(store.contents(&[(given[0].id, 7)]).await.unwrap().is_empty());
    drop(store);
    let store = place.open().await;
    carries(&store.contents(&of).await.unwrap(), &given, &open);
    append(&store, vec![message("C9", "P9")]).await;
    let mixed = [of[0], (route_all(&store, &[]).await[0].id, 0)];
    assert_eq!(store.contents(&mixed).await.unwrap().len(), 2, "one lately, one long ago");
}

/// Every content is the message that was given and the Bundle that was recorded.
fn carries(contents: &HashMap<(MessageId, u32), Content>, given: &[NewMessage], open: &[OpenMessage]) {
    assert_eq!(contents.len(), given.len());
    for message in given {
        let content = &contents[&(message.id, 0)];
        assert_eq!(content.original, message.bytes);
        let open = open.iter().find(|open| open.id == message.id).unwrap();
        assert_eq!(content.bundle, routed(open).bundle);
        assert_eq!((&content.sender, content.format), (&message.sender, Format::Hl7v2));
        assert_eq!(
            (&content.message_type, content.received_at),
            (&message.message_type, message.received_at)
        );
    }
}

async fn search_finds_by_everything(place: Place) {
    let store = place.open().await;
    let ago = |minutes: i64| Timestamp::now() - minutes.minutes();
    let old = NewMessage { sender: "LAB_TEST".into(), ..at(ago(60), "C1", "OLDMRN") };
    let oru = NewMessage { message_type: "ORU^R01".to_owned(), ..at(ago(9), "C1", "P2") };
    let adt = NewMessage {
        patient_hashes: vec![OrderKey::of(&["P3"]), OrderKey::of(&["SECOND"])],
        ..at(ago(8), "C3", "P3")
    };
    let refused =
        Refused { answer: "AR".to_owned(), code: 200, location: String::new(), text: "no".to_owned() };
    let rejected = NewMessage { rejected: Some(refused), keys: Vec::new(), ..at(ago(7), "C4", "P4") };
    let adtx = NewMessage { message_type: "ADTX^A01".to_owned(), ..at(ago(6), "C5", "P5") };
    let given = [&old, &oru, &adt, &rejected, &adtx].map(Clone::clone);
    append(&store, given.to_vec()).await;
    let open = all_open(&store).await;
    let results = vec![routed(&open[0]), quarantined(&open[1]), routed(&open[2])];
    let deliveries = vec![delivery(&open[0], "lab"), delivery(&open[2], "lab")];
    let names = ["OLDMRN", "NEWMRN"].map(|value| (alias(value), Uuid::from_u128(5))).to_vec();
    record(&store, Recording { results, deliveries, aliases: names, ..Recording::default() }).await.unwrap();
    let lease = lease(&store, 1, "subscription:lab").await;
    let lab = super::suite::deliveries(&store, "lab").await;
    store.change_deliveries(&lease, vec![change(&lab[0], DeliveryState::Parked)]).await.unwrap();

    let find = async |query: Query| -> Vec<usize> {
        let found = store.search(&Query { limit: 10, ..query }).await.unwrap();
        found.iter().map(|line| given.iter().position(|each| each.id == line.id).unwrap()).collect()
    };
    let any = Query::default;
    let hash = |value: &str| vec![OrderKey::of(&[value])];
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(find(any()).await, [4, 3, 2, 1, 0], "newest first");
    assert_eq!(find(Query { patient_hashes: hash("P2"), ..any() }).await, [1]);
    assert_eq!(find(Query { patient_hashes: hash("SECOND"), ..any() }).await, [2], "any identifier");
    assert_eq!(find(Query { patient: text("NEWMRN"), ..any() }).await, [0], "by another name");
    assert_eq!(find(Query { patient: text("P3"), ..any() }).await, [2], "without any alias");
    assert!(find(Query { patient: text("NOBODY"), ..any() }).await.is_empty());
    assert_eq!(find(Query { control_id: text("C1"), ..any() }).await, [1, 0]);
    assert_eq!(find(Query { control_id: text("C1"), sender: text("LAB_TEST"), ..any() }).await, [0]);
    assert!(find(Query { control_id: text("C"), ..any() }).await.is_empty());
    assert_eq!(find(Query { message_type: text("ADT"), ..any() }).await, [3, 2, 0], "not ADTX");
    assert_eq!(find(Query { message_type: text("ORU^R01"), ..any() }).await, [1]);
    assert_eq!(find(Query { sender: text("LAB_TEST"), ..any() }).await, [0]);
    assert_eq!(find(Query { since: Some(ago(30)), ..any() }).await, [4, 3, 2, 1]);
    for (state, expected) in [
        ("received", vec![4]),
        ("quarantined", vec![1]),
        ("rejected", vec![3]),
        ("routed", vec![2, 0]),
        ("parked", vec![0]),
        ("pending", vec![2]),
        ("delivered", vec![]),
        ("nonsense", vec![]),
    ] {
        assert_eq!(find(Query { state: text(state), ..any() }).await, expected, "{state}");
    }
    let first = &store.search(&Query { limit: 1, ..any() }).await.unwrap()[0];
    assert_eq!((first.id, first.state.as_str(), first.control_id.as_str()), (adtx.id, "received", "C5"));
    let parked = &store.search(&Query { state: text("parked"), limit: 9, ..any() }).await.unwrap()[0];
    assert_eq!(parked.deliveries, [(DeliveryState::Parked, 1)]);
    assert_eq!(parked.received_at, old.received_at);
}

async fn a_timeline_tells_everything(place: Place) {
    let store = place.open().await;
    assert!(store.timeline(MessageId(Uuid::from_u128(1))).await.unwrap().is_none());
    let given = message("C1", "P1");
    append(&store, vec![given.clone()]).await;
    let open = route_all(&store, &["lab", "insurer"]).await;
    let lab = deliveries(&store, "lab").await.remove(0);
    let lease = lease(&store, 1, "subscription:lab").await;
    store.change_deliveries(&lease, vec![change(&lab, DeliveryState::RetryWait)]).await.unwrap();
    let lab = deliveries(&store, "lab").await.remove(0);
    store.change_deliveries(&lease, vec![change(&lab, DeliveryState::Delivered)]).await.unwrap();

    let timeline = store.timeline(given.id).await.unwrap().unwrap();
    assert_eq!((timeline.summary.state.as_str(), timeline.summary.seq), ("routed", open[0].seq));
    assert_eq!((timeline.source.as_str(), timeline.version.as_str()), ("mllp", "2.5.1"));
    assert_eq!(timeline.bytes, given.bytes);
    assert!(!timeline.control_id_reused && timeline.rejected.is_none());
    let (_, result) = &timeline.results[0];
    assert_eq!(result.issues, routed(&open[0]).issues);
    assert_eq!((result.mapping.as_str(), &result.bundle), ("adt_a01 1.0.0", &routed(&open[0]).bundle));
    let [insurer, lab] = &timeline.deliveries[..] else { panic!("two deliveries") };
    assert_eq!((insurer.subscription.as_str(), insurer.attempts.len()), ("insurer", 0));
    let tried: Vec<(u32, &str)> =
        lab.attempts.iter().map(|attempt| (attempt.number, attempt.answer.as_str())).collect();
    assert_eq!(tried, [(1, "HTTP 503"), (2, "HTTP 200")]);
    assert_eq!(lab.attempts[0].took, Duration::from_millis(12));
    assert_eq!((lab.delivery.state, lab.delivery.number), (DeliveryState::Delivered, 1));
    let both = [(DeliveryState::Pending, 1), (DeliveryState::Delivered, 1)];
    assert_eq!(timeline.summary.deliveries, both);
}

async fn a_replay_opens_the_message_at_its_place(place: Place) {
    let store = place.open().await;
    append(&store, many(3)).await;
    let open = all_open(&store).await;
    let results = vec![quarantined(&open[0]), routed(&open[1])];
    record(&store, Recording { results, ..Recording::default() }).await.unwrap();
    let all: Vec<Request> = open.iter().map(|open| Request::Normalize(open.id)).collect();
    let unknown = Request::Normalize(MessageId(Uuid::from_u128(7)));
    store.request("admin", &[&all[..], &all[..1], &[unknown]].concat()).await.unwrap();
    assert_eq!(store.carry_out_requests(100).await.unwrap(), 2, "not the open one, not twice");
    assert_eq!(store.carry_out_requests(100).await.unwrap(), 0);
    let again = all_open(&store).await;
    let seen: Vec<(Seq, u32)> = again.iter().map(|open| (open.seq, open.revision)).collect();
    assert_eq!(seen, [(open[0].seq, 1), (open[1].seq, 1), (open[2].seq, 0)]);
    assert_eq!(again[0].bytes, open[0].bytes);
    let books = balanced(&store).await;
    assert_eq!((books[0].waiting, books[0].quarantined), (3, 0));
    // What was made for the revision before is void.
    let stale = Recording { results: vec![routed(&open[0])], ..Recording::default() };
    assert!(matches!(record(&store, stale).await, Err(StoreError::Fenced)));
    route_all(&store, &["lab"]).await;
    let timeline = store.timeline(open[0].id).await.unwrap().unwrap();
    let results: Vec<_> =
        timeline.results.iter().map(|(_, result)| (result.revision, result.quarantined.is_some())).collect();
    assert_eq!(results, [(0, true), (1, false)]);
    assert_eq!(timeline.summary.state, "routed");
    balanced(&store).await;
}

async fn a_dead_letter_is_delivered_again_or_skipped_by_a_person(place: Place) {
    let store = place.open().await;
    append(&store, many(3)).await;
    route_all(&store, &["lab"]).await;
    let lab = deliveries(&store, "lab").await;
    let lease = lease(&store, 1, "subscription:lab").await;
    let parked = lab[..2]
        .iter()
        .map(|each| DeliveryChange {
            reason: Some("refused".to_owned()),
            ..change(each, DeliveryState::Parked)
        })
        .collect();
    store.change_deliveries(&lease, parked).await.unwrap();
    store.housekeeping(&Retention { days: None }, Timestamp::now()).await.unwrap();
    let requests = [
        Request::Deliver(lab[0].id, lab[0].message),
        Request::Skip(lab[1].id, lab[1].message, "told by telephone".to_owned()),
        Request::Deliver(lab[2].id, lab[2].message),
    ];
    store.request("admin", &requests).await.unwrap();
    assert_eq!(store.carry_out_requests(1).await.unwrap(), 1, "as many as asked for");
    assert_eq!(store.carry_out_requests(9).await.unwrap(), 1, "a pending one is not a dead letter");
    let left: Vec<_> =
        deliveries(&store, "lab").await.iter().map(|each| (each.number, each.state, each.attempts)).collect();
    assert_eq!(left, [(1, DeliveryState::Pending, 0), (3, DeliveryState::Pending, 0)]);
    let skipped = store.timeline(lab[1].message).await.unwrap().unwrap();
    assert_eq!(skipped.deliveries[0].delivery.state, DeliveryState::Skipped);
    assert_eq!(skipped.deliveries[0].reason.as_deref(), Some("admin: told by telephone"));
    let again = deliveries(&store, "lab").await.remove(0);
    store.change_deliveries(&lease, vec![change(&again, DeliveryState::Delivered)]).await.unwrap();
    let books = balanced(&store).await;
    assert_eq!((books[0].routed_final, books[0].routed_open), (2, 1));
}

async fn quarantine_flags_the_keys_until_it_is_resolved(place: Place) {
    let store = place.open().await;
    let (a, b, c) = (OrderKey(1), OrderKey(2), OrderKey(3));
    let merge = NewMessage { keys: vec![a, b], ..message("C1", "P1") };
    append(&store, vec![merge, message("C2", "P2")]).await;
    let open = all_open(&store).await;
    assert!(store.quarantined(&[a, b, c]).await.unwrap().is_empty());
    let results = vec![quarantined(&open[0])];
    record(&store, Recording { results, ..Recording::default() }).await.unwrap();
    assert_eq!(store.quarantined(&[c, b, a]).await.unwrap(), [a, b]);
    store.request("admin", &[Request::Normalize(open[0].id)]).await.unwrap();
    store.carry_out_requests(1).await.unwrap();
    assert_eq!(store.quarantined(&[a]).await.unwrap(), [a], "until it is recorded");
    let again = all_open(&store).await;
    let results = vec![quarantined(&again[0])];
    record(&store, Recording { results, ..Recording::default() }).await.unwrap();
    assert_eq!(store.quarantined(&[a]).await.unwrap(), [a], "in vain");
    store.request("admin", &[Request::Normalize(open[0].id)]).await.unwrap();
    store.carry_out_requests(1).await.unwrap();
    route_all(&store, &[]).await;
    assert!(store.quarantined(&[a, b, c]).await.unwrap().is_empty());
    balanced(&store).await;
}

async fn text_with_nul_is_kept(place: Place) {
    let store = place.open().await;
    let odd = NewMessage {
        message_type: "ADT\0^A01".to_owned(),
        context: "\0".to_owned(),
        bytes: Bytes::from_static(b"MSH|^~\\&|\0\0\xff"),
        ..message("C\0X", "P1")
    };
    append(&store, vec![odd.clone(), message("C2", "P1")]).await;
    assert_eq!(all_open(&store).await[0].bytes, odd.bytes);
    let again = NewMessage { id: message("", "").id, ..odd.clone() };
    assert!(
        matches!(store.append(vec![again]).await.unwrap()[0], Appended::Repeat { id, .. } if id == odd.id)
    );
    let query = Query { control_id: Some("C\0X".to_owned()), limit: 9, ..Query::default() };
    assert_eq!(store.search(&query).await.unwrap()[0].id, odd.id);
}

async fn an_append_given_up_half_way_is_there_once_after_it_came_again(place: Place) {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Poll;

    let store = place.open().await;
    let mut appended = 0;
    for polls in 0..12 {
        let batch: Vec<NewMessage> = (0..3).map(|n| message(&format!("B{polls}-{n}"), "P1")).collect();
        {
            let mut given_up = pin!(store.append(batch.clone()));
            let mut left = polls;
            std::future::poll_fn(|context| {
                left -= 1;
                let over = left < 0 || given_up.as_mut().poll(context).is_ready();
                if over { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        // Whether it was committed or not, the sender sends again and each message is there once.
        let again = batch.into_iter().map(|each| NewMessage { id: message("", "").id, ..each }).collect();
        assert_eq!(store.append(again).await.unwrap().len(), 3);
        appended += 3;
        assert_eq!(all_open(&store).await.len(), appended, "given up after {polls} polls");
    }
    balanced(&store).await;
}

/// Noon of a day long ago, so that the clock of no database matters.
pub(super) fn noon(day: i8) -> Timestamp {
    jiff::civil::date(2025, 3, day).at(12, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp()
}

async fn old_days_go_once_they_are_final_and_the_books_stay_true(place: Place) {
    let store = place.open().await;
    let keep_two = Retention { days: Some(2) };
    assert_eq!(store.housekeeping(&keep_two, noon(1)).await.unwrap(), 0);
    let refused =
        Refused { answer: "AR".to_owned(), code: 200, location: String::new(), text: "no".to_owned() };
    let given: Vec<NewMessage> = (1..=4).map(|day| at(noon(day), &format!("D{day}"), "P1")).collect();
    append(&store, given.clone()).await;
    let open = all_open(&store).await;
    let results = open[..3].iter().map(routed).collect();
    let deliveries = open[..3].iter().map(|message| delivery(message, "lab")).collect();
    record(&store, Recording { results, deliveries, ..Recording::default() }).await.unwrap();
    assert_eq!(store.housekeeping(&keep_two, noon(5)).await.unwrap(), 0, "a day with open deliveries stays");
    let lab = super::suite::deliveries(&store, "lab").await;
    let lease = lease(&store, 1, "subscription:lab").await;
    let done = lab.iter().map(|each| change(each, DeliveryState::Delivered)).collect();
    store.change_deliveries(&lease, done).await.unwrap();
    append(&store, vec![NewMessage { rejected: Some(refused), ..at(noon(1), "D1R", "P1") }]).await;
    let before = balanced(&store).await;
    assert_eq!(store.housekeeping(&keep_two, noon(4)).await.unwrap(), 2, "the first day");
    assert_eq!(store.housekeeping(&keep_two, noon(5)).await.unwrap(), 1, "the second day");
    assert_eq!(balanced(&store).await, before);
    assert_eq!((before[0].received, before[0].routed_final, before[0].waiting), (5, 3, 1));
    assert!(store.timeline(given[0].id).await.unwrap().is_none());
    assert!(store.timeline(given[2].id).await.unwrap().is_some());
    assert_eq!(store.housekeeping(&keep_two, noon(30)).await.unwrap(), 1, "not what still waits");
    assert_eq!(all_open(&store).await.len(), 1);
    assert_eq!(balanced(&store).await, before);
    assert_eq!(store.housekeeping(&Retention { days: None }, noon(30)).await.unwrap(), 0);
}

async fn what_waits_for_a_person_outlives_its_day(place: Place) {
    let store = place.open().await;
    let keep_two = Retention { days: Some(2) };
    store.housekeeping(&keep_two, noon(1)).await.unwrap();
    let given: Vec<NewMessage> = (0..3).map(|n| at(noon(1), &format!("K{n}"), "P1")).collect();
    append(&store, given.clone()).await;
    let open = all_open(&store).await;
    let results = vec![routed(&open[0]), quarantined(&open[1]), routed(&open[2])];
    let both = vec![delivery(&open[0], "lab"), delivery(&open[2], "lab")];
    record(&store, Recording { results, deliveries: both, ..Recording::default() }).await.unwrap();
    let lab = deliveries(&store, "lab").await;
    let lease = lease(&store, 1, "subscription:lab").await;
    let changes = vec![change(&lab[0], DeliveryState::Delivered), change(&lab[1], DeliveryState::Parked)];
    store.change_deliveries(&lease, changes).await.unwrap();
    let before = balanced(&store).await;
    assert_eq!(store.housekeeping(&keep_two, noon(9)).await.unwrap(), 1);
    assert_eq!(balanced(&store).await, before);
    assert!(store.timeline(given[0].id).await.unwrap().is_none());
    let state = |word: &str| Query { state: Some(word.to_owned()), limit: 9, ..Query::default() };
    assert_eq!(store.search(&state("quarantined")).await.unwrap()[0].id, given[1].id);
    assert_eq!(store.search(&state("parked")).await.unwrap()[0].id, given[2].id);
    let parked = store.timeline(given[2].id).await.unwrap().unwrap();
    assert_eq!((parked.deliveries[0].attempts.len(), parked.results.len()), (1, 1));
    // They come back as ever, and go once they are final.
    let requests = [Request::Normalize(given[1].id), Request::Deliver(lab[1].id, given[2].id)];
    store.request("admin", &requests).await.unwrap();
    assert_eq!(store.carry_out_requests(9).await.unwrap(), 2);
    assert_eq!(store.housekeeping(&keep_two, noon(9)).await.unwrap(), 0);
    assert_eq!(all_open(&store).await[0].bytes, given[1].bytes);
    route_all(&store, &[]).await;
    let again = deliveries(&store, "lab").await;
    store.change_deliveries(&lease, vec![change(&again[0], DeliveryState::Delivered)]).await.unwrap();
    assert_eq!(store.housekeeping(&keep_two, noon(9)).await.unwrap(), 2);
    let books = balanced(&store).await;
    assert_eq!((books[0].received, books[0].routed_final), (3, 3));
}

#[tokio::test]
async fn a_second_gateway_on_one_sqlite_file_is_refused_and_a_tool_is_not() {
    let Place::Sqlite(folder) = Place::sqlite() else { panic!("an SQLite file") };
    let url = format!("sqlite:{}", folder.path().join("deep/pons.db").display());
    let refused = open(&url, Role::Tool).await.err().expect("there is no store yet").to_string();
    assert!(refused.contains("start `pons run` first"), "{refused}");
    let gateway = open(&url, Role::Gateway).await.unwrap();
    let refused = open(&url, Role::Tool).await.unwrap().check_schema().await.unwrap_err().to_string();
    assert!(refused.contains("run `pons migrate`"), "{refused}");
    gateway.migrate().await.unwrap();
    append(&gateway, vec![message("C1", "P1")]).await;
    let refused = open(&url, Role::Gateway).await.err().expect("the file is taken").to_string();
    assert!(refused.contains("another `pons run`"), "{refused}");
    let tool = open(&url, Role::Tool).await.unwrap();
    tool.check_schema().await.unwrap();
    let found = tool.search(&Query { limit: 9, ..Query::default() }).await.unwrap();
    assert_eq!(found.len(), 1);
    route_all(&gateway, &[]).await;
    tool.request("admin", &[Request::Normalize(found[0].id)]).await.unwrap();
    assert_eq!(gateway.carry_out_requests(9).await.unwrap(), 1);
    drop(gateway);
    open(&url, Role::Gateway).await.unwrap();
}

#[tokio::test]
async fn a_store_is_named_by_its_url() {
    for url in ["mysql://localhost/x", "/var/lib/pons", "", "postgres://[broken"] {
        assert!(matches!(open(url, Role::Gateway).await.err(), Some(StoreError::Setup(_))), "{url}");
    }
}

#[tokio::test]
async fn a_database_that_is_away_is_no_mistake_of_ours() {
    // A port on which nobody listens: bound, and given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let store = open(&format!("postgres://nobody@127.0.0.1:{port}/none"), Role::Gateway).await.unwrap();
    assert!(matches!(store.append(many(1)).await, Err(StoreError::Away(_))));
    assert!(matches!(store.migrate().await, Err(StoreError::Away(_))));
    assert!(matches!(store.check_durable().await, Err(StoreError::Away(_))));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_database_that_loses_what_it_confirmed_is_refused() {
    let place = Place::postgres().await;
    let store = place.open().await;
    store.check_durable().await.unwrap();
    let Place::Postgres { server, name, .. } = &place else { panic!("a PostgreSQL database") };
    run(server, &format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    let refused = store.check_durable().await.unwrap_err().to_string();
    assert!(refused.contains("synchronous_commit = off"), "{refused}");
    place.drop_database().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_connection_that_is_cut_is_away_and_the_next_one_works() {
    let place = Place::postgres().await;
    let store = place.open().await;
    append(&store, many(3)).await;
    let Place::Postgres { server, name, .. } = &place else { panic!("a PostgreSQL database") };
    let cut = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    run(server, &cut).await;
    assert!(matches!(store.append(vec![message("X", "P1")]).await, Err(StoreError::Away(_))));
    append(&store, vec![message("X", "P1")]).await;
    run(server, &cut).await;
    let reading = async || store.open_messages(LaneSet::ALL, Seq(0), 99, usize::MAX).await;
    // Every cut connection of the pool may answer once that it is gone.
    for _ in 0..10 {
        match reading().await {
            Ok(open) => assert_eq!(open.len(), 4),
            Err(error) => assert!(matches!(error, StoreError::Away(_)), "{error:?}"),
        }
    }
    assert_eq!(reading().await.unwrap().len(), 4);
    place.drop_database().await;
}
