//! What a person asks: search, timelines, replays; and what retention lets go.

use super::*;

behaviours! {
    search_finds_by_everything,
    a_timeline_tells_everything,
    a_replay_opens_the_message_at_its_place,
    a_wish_to_normalize_what_is_being_recorded_is_granted_after_that,
    a_dead_letter_is_delivered_again_or_skipped_by_a_person,
    old_days_go_once_they_are_final_and_the_books_stay_true,
    what_waits_for_a_person_outlives_its_day,
    codes_that_no_table_translates_wait_for_a_person,
    a_code_translated_while_its_message_is_mapped_is_not_missed,
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

async fn a_wish_to_normalize_what_is_being_recorded_is_granted_after_that(place: Place) {
    let store = place.open().await;
    append(&store, many(1)).await;
    let open = all_open(&store).await.remove(0);
    record(&store, Recording { results: vec![routed(&open)], ..Recording::default() }).await.unwrap();
    let again = [Request::Normalize(open.id)];
    store.request("admin", &again).await.unwrap();
    assert_eq!(store.carry_out_requests(9).await.unwrap(), 1);
    store.request("admin", &again).await.unwrap();
    assert_eq!(
        store.carry_out_requests(9).await.unwrap(),
        0,
        "it may have been mapped without what was said since"
    );
    for revision in 1..40 {
        let open = all_open(&store).await;
        assert_eq!(open.iter().map(|open| open.revision).collect::<Vec<_>>(), [revision]);
        let recording = Recording { results: vec![routed(&open[0])], ..Recording::default() };
        let (recorded, carried_out) = tokio::join!(record(&store, recording), store.carry_out_requests(9));
        recorded.unwrap();
        if carried_out.unwrap() == 0 {
            assert_eq!(store.carry_out_requests(9).await.unwrap(), 1);
        }
        store.request("admin", &again).await.unwrap();
    }
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

fn waiting(message: &OpenMessage, code: &str) -> WaitingCode {
    WaitingCode {
        sender: message.sender.clone(),
        table: "sex".to_owned(),
        code: code.to_owned(),
        message: message.id,
    }
}

fn said(sender: &str, code: &str, target: &str) -> mappings::SiteCode {
    mappings::SiteCode {
        sender: sender.to_owned(),
        table: "sex".to_owned(),
        code: code.to_owned(),
        system: String::new(),
        target: target.to_owned(),
        display: None,
    }
}

async fn codes_that_no_table_translates_wait_for_a_person(place: Place) {
    let store = place.open().await;
    let other = NewMessage { sender: "LAB_TEST".into(), ..message("C4", "P4") };
    append(&store, vec![message("C1", "P1"), message("C2", "P2"), message("C3", "P3"), other]).await;
    let open = all_open(&store).await;
    let codes = vec![
        waiting(&open[2], "W"),
        waiting(&open[0], "W"),
        waiting(&open[0], "K\0"),
        waiting(&open[1], "W"),
        waiting(&open[3], "W"),
    ];
    let results = vec![routed(&open[0]), quarantined(&open[1]), routed(&open[2]), routed(&open[3])];
    record(&store, Recording { results, codes, ..Recording::default() }).await.unwrap();

    let sender = open[0].sender.to_string();
    let list = async |sender: Option<&str>, table: Option<&str>| -> Vec<(String, String, i64)> {
        let found = store.unmapped_codes(sender, table, 10).await.unwrap();
        found.into_iter().map(|one| (one.sender, one.code, one.messages)).collect()
    };
    let all = list(None, None).await;
    assert_eq!(all.len(), 3);
    assert_eq!(all[0], (sender.clone(), "W".to_owned(), 3), "the most frequent first");
    assert_eq!(list(Some("LAB_TEST"), Some("sex")).await, [("LAB_TEST".to_owned(), "W".to_owned(), 1)]);
    assert!(list(None, Some("race")).await.is_empty());
    let found = store.unmapped_codes(Some(&sender), None, 1).await.unwrap();
    let of_all = open[..3].iter().map(|one| one.id);
    assert_eq!((found[0].first, found[0].last), (of_all.clone().min().unwrap(), of_all.max().unwrap()));

    let nothing = store.site_codes(-1).await.unwrap().expect("another version than none");
    assert!(store.site_codes(nothing.version()).await.unwrap().is_none());
    assert_eq!(store.translate_code("admin", &said(&sender, "W", "female")).await.unwrap(), 3);
    assert!(store.site_codes(nothing.version()).await.unwrap().is_some());
    assert_eq!(store.carry_out_requests(10).await.unwrap(), 3);
    let again = all_open(&store).await;
    let ids = |some: &[OpenMessage]| some.iter().map(|one| one.id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&open[..3]), "in their order; another sender's is left alone");

    // One still has a code that nobody knows: it waits on.
    let version = store.site_codes(-1).await.unwrap().unwrap().version();
    let results = again.iter().map(routed).collect();
    let codes = vec![waiting(&again[0], "K")];
    record(&store, Recording { results, codes, codes_version: version, ..Recording::default() })
        .await
        .unwrap();
    let mut left = list(None, None).await;
    left.sort();
    let expected =
        [("LAB_TEST", "W", 1), (&*sender, "K", 1)].map(|(a, b, n)| (a.to_owned(), b.to_owned(), n));
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(left, expected);
    assert_eq!(store.carry_out_requests(10).await.unwrap(), 0);
    balanced(&store).await;
}

async fn a_code_translated_while_its_message_is_mapped_is_not_missed(place: Place) {
    let store = place.open().await;
    append(&store, vec![message("C1", "P1"), message("C2", "P2")]).await;
    let open = all_open(&store).await;
    let version = store.site_codes(-1).await.unwrap().unwrap().version();
    assert_eq!(store.translate_code("admin", &said(&open[0].sender, "W", "female")).await.unwrap(), 0);
    // Both were mapped before that; one has the code.
    let results = open.iter().map(routed).collect();
    let codes = vec![waiting(&open[0], "W"), waiting(&open[1], "K")];
    record(&store, Recording { results, codes, codes_version: version, ..Recording::default() })
        .await
        .unwrap();
    assert_eq!(store.carry_out_requests(10).await.unwrap(), 1);
    let again = all_open(&store).await;
    assert_eq!(again.iter().map(|one| one.id).collect::<Vec<_>>(), [open[0].id]);
    // Mapped with what was said, and yet without a translation: it does not go round for ever.
    let codes = vec![waiting(&again[0], "W")];
    let results = vec![routed(&again[0])];
    record(&store, Recording { results, codes, codes_version: version + 1, ..Recording::default() })
        .await
        .unwrap();
    assert_eq!(store.carry_out_requests(10).await.unwrap(), 0);
}
