//! Recording: results, resources and identifiers under leases, deliveries with their numbers.

use super::*;

behaviours! {
    recording_closes_messages_and_numbers_deliveries,
    a_message_is_recorded_once,
    an_old_fence_writes_nothing,
    a_lease_has_one_holder_and_its_fence_grows,
    replicas_that_live_are_counted,
    a_resource_that_changed_meanwhile_is_a_conflict,
    what_is_about_a_patient_is_found_after_merges_too,
    what_was_in_an_encounter_is_found_and_what_nobody_asked_that_of,
    what_a_result_made_is_read_with_the_message_before,
    what_is_held_is_read_by_id_by_identifier_and_of_a_patient,
    an_alias_is_made_once_and_moves_by_a_merge,
    event_numbers_are_dense_over_replicas,
    quarantine_flags_the_keys_until_it_is_resolved,
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
    assert_eq!(lab[3].matched.topics, ["encounter-start", "patient-merged"]);
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
        version: follows + 1,
        state: state.repeat(100).into_bytes(),
        replaced_by: None,
        patient: None,
        encounter: None,
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

async fn what_is_about_a_patient_is_found_after_merges_too(place: Place) {
    let [store, _] = place.replicas().await;
    let of = |patient: Option<u128>| patient.map(Uuid::from_u128);
    let about = async |patient: u128| -> Vec<u128> {
        let leases = lanes(&store).await;
        let mut tx = store.begin_record(&leases).await.unwrap();
        tx.about(Uuid::from_u128(patient)).await.unwrap().iter().map(Uuid::as_u128).collect()
    };
    let write =
        async |resources| record(&store, Recording { resources, ..Recording::default() }).await.unwrap();
    let one = |id: u128, follows: i64, patient: Option<u128>| ResourceWrite {
        patient: of(patient),
        ..resource(id, follows, "a")
    };
    let merged = |id: u128, into: u128| ResourceWrite { replaced_by: of(Some(into)), ..one(id, 0, None) };
    // 1 was merged into 2, and 2 into 3; 4 is somebody else.
    write(vec![merged(1, 2), merged(2, 3), one(3, 0, None), one(4, 0, None)]).await;
    write(vec![one(14, 0, Some(4)), one(13, 0, Some(3)), one(12, 0, Some(2)), one(11, 0, Some(1))]).await;
    assert_eq!(about(3).await, [11, 12, 13]);
    let about_of = async |kind: &str, limit: usize| -> Vec<u128> {
        let leases = lanes(&store).await;
        let mut tx = store.begin_record(&leases).await.unwrap();
        let found = tx.about_of(Uuid::from_u128(3), kind, limit).await.unwrap();
        found.iter().map(Uuid::as_u128).collect()
    };
    assert_eq!(about_of("Observation", 9).await, []);
    assert_eq!(about_of("Patient", 9).await, [11, 12, 13]);
    assert_eq!(about_of("Patient", 2).await, [11, 12]);
    assert_eq!(about(2).await, [11, 12]);
    write(vec![one(11, 1, Some(4))]).await;
    assert_eq!((about(3).await, about(4).await), (vec![12, 13], vec![11, 14]));
    assert!(about(77_777).await.is_empty());
}

async fn what_was_in_an_encounter_is_found_and_what_nobody_asked_that_of(place: Place) {
    let store = place.open().await;
    let of = |id: u128| Some(Uuid::from_u128(id));
    let one = |id: u128, patient: u128, encounter: Option<u128>| ResourceWrite {
        patient: of(patient),
        encounter: encounter.map(Uuid::from_u128),
        ..resource(id, 0, "a")
    };
    let merged = ResourceWrite { replaced_by: of(22), ..one(21, 1, None) };
    let resources = vec![
        merged,
        one(31, 1, Some(22)),
        one(32, 1, Some(21)),
        one(33, 1, Some(29)),
        one(34, 1, None),
        one(35, 2, None),
        one(36, 2, Some(22)),
    ];
    record(&store, Recording { resources, ..Recording::default() }).await.unwrap();
    let within_of = async |encounter: u128, patient: u128, kind: &str, limit: usize| -> Vec<u128> {
        let leases = lanes(&store).await;
        let mut tx = store.begin_record(&leases).await.unwrap();
        let (encounter, patient) = (Uuid::from_u128(encounter), Uuid::from_u128(patient));
        let found = tx.within(encounter, patient, kind, limit).await.unwrap();
        found.iter().map(Uuid::as_u128).collect()
    };
    let within = async |encounter: u128, kind: &str, limit: usize| within_of(encounter, 1, kind, limit).await;
    assert_eq!(within(22, "Patient", 9).await, [31, 32]);
    assert_eq!(within_of(22, 2, "Patient", 9).await, [36], "another patient's");
    assert_eq!(within(22, "Patient", 1).await, [31]);
    assert_eq!(within(22, "Condition", 9).await, []);
    // As a version of before has left it: 34 is of the patient, 35 of somebody else.
    place.run("UPDATE resource SET encounter = NULL").await;
    assert_eq!(within(22, "Patient", 9).await, [21, 31, 32, 33, 34]);
    let changed = ResourceWrite { follows: 1, version: 2, ..one(31, 1, Some(29)) };
    record(&store, Recording { resources: vec![changed], ..Recording::default() }).await.unwrap();
    assert_eq!(within(22, "Patient", 9).await, [21, 32, 33, 34], "31 says that it was elsewhere");
    // Those under whose numbers they came, too.
    let patients = vec![
        ResourceWrite { replaced_by: of(3), ..resource(1, 0, "a") },
        one(37, 3, Some(22)),
        resource(3, 0, "a"),
    ];
    record(&store, Recording { resources: patients, ..Recording::default() }).await.unwrap();
    assert_eq!(within_of(22, 3, "Patient", 9).await, [21, 32, 33, 34, 37]);
}

async fn what_a_result_made_is_read_with_the_message_before(place: Place) {
    let store = place.open().await;
    append(&store, many(2)).await;
    let open = all_open(&store).await;
    let of = |id: u128, version: i64, before: Option<MessageId>| Made {
        resource: Uuid::from_u128(id),
        version,
        before,
    };
    let (first, second) = (vec![of(1, 1, None), of(2, 1, None)], vec![of(1, 2, Some(open[0].id))]);
    let results = vec![
        MessageResult { made: first.clone(), ..routed(&open[0]) },
        MessageResult { made: second.clone(), ..routed(&open[1]) },
    ];
    let twice = ResourceWrite { version: 2, message: open[1].id, ..resource(1, 0, "a") };
    let resources = vec![twice, resource(2, 0, "b")];
    record(&store, Recording { results, resources, ..Recording::default() }).await.unwrap();
    assert_eq!(load(&store, &[1]).await, [(1, 2, "a".to_owned())]);
    assert_eq!(store.held(&[Uuid::from_u128(1)]).await.unwrap()[0].changed_by, open[1].id);
    let made = store.made(open[0].id).await.unwrap();
    assert_eq!((made.len(), made[0].revision, &made[0].made), (1, 0, &first));
    let held = store.held(&[Uuid::from_u128(2)]).await.unwrap();
    assert_eq!(held[0].recorded_at, Some(made[0].recorded_at), "one time for all of a recording");
    let ago = Timestamp::now().duration_since(made[0].recorded_at);
    assert!(ago.abs() < jiff::SignedDuration::from_secs(60), "the database's clock: {ago:?}");
    assert_eq!(store.made(open[1].id).await.unwrap()[0].made, second);
    assert_eq!(store.timeline(open[1].id).await.unwrap().unwrap().results[0].1.made, second);
    assert!(store.made(MessageId(Uuid::from_u128(7))).await.unwrap().is_empty());
    // As a version of before has left it.
    place.run("UPDATE result SET made = NULL").await;
    assert!(store.made(open[0].id).await.unwrap().is_empty());
    assert_eq!(store.timeline(open[1].id).await.unwrap().unwrap().results[0].1.made, []);
}

async fn what_is_held_is_read_by_id_by_identifier_and_of_a_patient(place: Place) {
    let store = place.open().await;
    let one = |id: u128, patient: Option<u128>| ResourceWrite {
        patient: patient.map(Uuid::from_u128),
        message: MessageId(Uuid::from_u128(id + 900)),
        ..resource(id, 0, "state")
    };
    let merged = ResourceWrite { replaced_by: Some(Uuid::from_u128(2)), ..one(1, None) };
    let resources =
        vec![merged, one(2, None), one(11, Some(1)), one(12, Some(2)), one(13, Some(2)), one(14, Some(3))];
    let aliases = vec![(alias("MRN1"), Uuid::from_u128(2))];
    record(&store, Recording { resources, aliases, ..Recording::default() }).await.unwrap();
    let ids = |held: Vec<StoredResource>| held.iter().map(|held| held.id.as_u128()).collect::<Vec<_>>();
    let held = store.held(&[Uuid::from_u128(12), Uuid::from_u128(1), Uuid::from_u128(77)]).await.unwrap();
    assert_eq!((&held[1].state, held[1].version), (&resource(12, 0, "state").state, 1));
    assert_eq!((held[1].changed_by.0.as_u128(), held[0].replaced_by), (912, Some(Uuid::from_u128(2))));
    assert_eq!(ids(held), [1, 12]);
    assert!(store.held(&[]).await.unwrap().is_empty());
    assert_eq!(store.named(&[alias("MRN1"), alias("MRN9")]).await.unwrap(), [Uuid::from_u128(2)]);
    let of = async |patient: u128, kind: &str, after: Option<u128>, limit: usize| {
        let (after, kind) = (after.map(Uuid::from_u128), Some(kind).filter(|kind| *kind != "*"));
        ids(store.held_of_patient(Uuid::from_u128(patient), kind, after, limit).await.unwrap())
    };
    let kind = resource(1, 0, "").resource_type;
    assert_eq!(of(2, &kind, None, 10).await, [11, 12, 13], "what came under the merged number too");
    assert_eq!(of(2, &kind, None, 2).await, [11, 12]);
    assert_eq!(of(2, &kind, Some(12), 10).await, [13]);
    assert_eq!(of(2, "Nothing", None, 10).await, [] as [u128; 0]);
    assert_eq!(of(2, "*", Some(11), 10).await, [12, 13], "of any type");
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
