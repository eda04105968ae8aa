//! Deliveries: what is left to do, what became of it, what they carry.

use super::*;

behaviours! {
    open_deliveries_are_what_is_left_to_do,
    a_final_delivery_never_changes,
    published_deliveries_go_back_when_the_broker_is_wiped,
    dead_letters_and_what_was_delivered_lately_are_found_in_order,
    contents_come_back_as_they_were,
    a_notification_keeps_what_it_names_and_what_goes_along,
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

async fn a_notification_keeps_what_it_names_and_what_goes_along(place: Place) {
    let store = place.open().await;
    append(&store, many(2)).await;
    let open = all_open(&store).await;
    let beside = Bytes::from(r#"[{"resourceType":"Patient","id":"1"}]"#);
    let named = |references: &[&str]| Matched {
        topics: vec!["encounter-end".to_owned()],
        references: Some(references.iter().map(|reference| (*reference).to_owned()).collect()),
    };
    let notification = |number: usize, subscription: &str, references: &[&str]| NewDelivery {
        matched: named(references),
        ..delivery(&open[number], subscription)
    };
    let suppressed = Some("Patient is labelled R".to_owned());
    let recording = Recording {
        results: vec![MessageResult { beside: beside.clone(), ..routed(&open[0]) }, routed(&open[1])],
        deliveries: vec![
            notification(0, "lab", &["Encounter/2", "Patient/1"]),
            NewDelivery { suppressed: suppressed.clone(), ..notification(1, "lab", &[]) },
            NewDelivery { suppressed, ..delivery(&open[1], "insurer") },
        ],
        ..Recording::default()
    };
    record(&store, recording).await.unwrap();
    drop(store);
    let store = place.open().await;
    let lab = deliveries(&store, "lab").await;
    let matched: Vec<&Matched> = lab.iter().map(|delivery| &delivery.matched).collect();
    assert_eq!(matched, [&named(&["Encounter/2", "Patient/1"]), &named(&[])], "a withheld one is still sent");
    assert!(deliveries(&store, "insurer").await.is_empty(), "a whole message that is withheld is not");
    let lease = lease(&store, 1, "subscription:lab").await;
    store.change_deliveries(&lease, vec![change(&lab[0], DeliveryState::Delivered)]).await.unwrap();
    let numbers = async |name: &str, after: i64, until: i64, limit: usize| -> Vec<i64> {
        let events = store.events(name, after, until, limit).await.unwrap();
        events.iter().map(|event| event.number).collect()
    };
    assert_eq!(numbers("lab", 0, 99, 99).await, [1, 2], "whatever became of them");
    assert_eq!((numbers("lab", 1, 99, 99).await, numbers("lab", 0, 1, 99).await), (vec![2], vec![1]));
    assert_eq!((numbers("lab", 0, 99, 1).await, numbers("nobody", 0, 99, 1).await), (vec![1], vec![]));
    assert_eq!(numbers("insurer", 0, 99, 99).await, [] as [i64; 0], "whole messages are no events");
    assert_eq!(store.last_event("lab").await.unwrap(), 2);
    assert_eq!(store.last_event("nobody").await.unwrap(), 0);
    let contents = store.contents(&[(open[0].id, 0), (open[1].id, 0)]).await.unwrap();
    assert_eq!(contents[&(open[0].id, 0)].beside, beside);
    assert!(contents[&(open[1].id, 0)].beside.is_empty());
    let timeline = store.timeline(open[1].id).await.unwrap().unwrap();
    let reasons: Vec<_> = timeline.deliveries.iter().map(|delivery| delivery.reason.as_deref()).collect();
    assert_eq!(reasons, [Some("Patient is labelled R"); 2]);
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
