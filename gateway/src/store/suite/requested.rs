//! Subscriptions that their owners asked for.

use super::*;

behaviours! {
    what_was_requested_is_kept_version_by_version,
    what_a_recording_sees_is_no_older_than_its_messages,
    dead_letters_go_again_and_what_is_forgotten_is_given_up,
    tokens_are_found_by_their_hash_until_they_are_over_or_too_many,
    what_may_have_something_to_deliver_is_known_until_it_rests,
    a_lease_is_taken_away_from_another_and_its_fence_holds_off_what_it_still_writes,
}

fn requested(id: u128) -> Requested {
    Requested {
        id: Uuid::from_u128(id),
        owner: "payer".into(),
        version: 1,
        written: 1,
        standing: Standing::Requested,
        is_live: false,
        error: String::new(),
        resource: r#"{"resourceType":"Subscription"}"#.to_owned(),
        changed_at: Timestamp::UNIX_EPOCH,
    }
}

/// Without the time, which is the database's.
fn timeless(all: Option<Changes>) -> Vec<Requested> {
    let all = all.expect("it has changed").rows;
    all.into_iter().map(|one| Requested { changed_at: Timestamp::UNIX_EPOCH, ..one }).collect()
}

async fn what_was_requested_is_kept_version_by_version(place: Place) {
    let [store, other] = place.replicas().await;
    let none = store.requested(-1).await.unwrap().expect("nothing is known yet");
    let version = none.version;
    assert_eq!((none.rows.len(), store.requested(version).await.unwrap()), (0, None));
    let first = requested(1);
    store.write_requested(&first).await.unwrap();
    assert!(store.write_requested(&first).await.is_err(), "there is one already");
    let next = Requested {
        version: 2,
        standing: Standing::Failing,
        is_live: true,
        error: "HTTP 500 \u{fc}".to_owned(),
        ..first.clone()
    };
    other.write_requested(&next).await.unwrap();
    let late = store.write_requested(&Requested { standing: Standing::Off, ..next.clone() }).await;
    assert!(matches!(late, Err(StoreError::Conflict)), "another came first: {late:?}");
    store.write_requested(&requested(2)).await.unwrap();
    let all = store.requested(version).await.unwrap().expect("it has changed");
    let now = all.version;
    let age = Timestamp::now().duration_since(all.rows[0].changed_at);
    assert!(age.abs() < jiff::SignedDuration::from_secs(60));
    let all = Some(all);
    assert_eq!(timeless(all), [next.clone(), requested(2)]);
    for standing in [Standing::Active, Standing::Refused, Standing::Off, Standing::Removed] {
        let known = timeless(store.requested(version).await.unwrap()).remove(0);
        let one = Requested { standing, version: known.version + 1, ..known };
        store.write_requested(&one).await.unwrap();
        assert_eq!(timeless(other.requested(now).await.unwrap())[0].standing, standing);
    }
    let changed = store.requested(now).await.unwrap().expect("it has changed");
    assert_eq!((changed.is_whole, changed.rows.len()), (false, 1), "the other one has not");
    store.forget(Uuid::from_u128(1)).await.unwrap();
    let left = other.requested(changed.version).await.unwrap();
    assert!(left.as_ref().is_some_and(|left| left.is_whole), "what is gone is missing from all of them");
    assert_eq!(timeless(left), [requested(2)]);
}

async fn what_a_recording_sees_is_no_older_than_its_messages(place: Place) {
    let store = place.open().await;
    let leases = lanes(&store).await;
    let before = store.begin_record(&leases).await.unwrap().requested_version();
    store.write_requested(&requested(1)).await.unwrap();
    let known = store.requested(before).await.unwrap().expect("it has changed").version;
    let after = store.begin_record(&leases).await.unwrap().requested_version();
    assert!(after > before);
    assert_eq!(after, known);
}

async fn dead_letters_go_again_and_what_is_forgotten_is_given_up(place: Place) {
    let store = place.open().await;
    store.write_requested(&requested(1)).await.unwrap();
    let name = Uuid::from_u128(1).to_string();
    append(&store, many(5)).await;
    let messages = route_all(&store, &[&name, "lab"]).await;
    let own = deliveries(&store, &name).await;
    let lease = lease(&store, 1, "subscription:own").await;
    let ended =
        [DeliveryState::Parked, DeliveryState::Delivered, DeliveryState::RetryWait, DeliveryState::Published];
    let changes = own.iter().zip(ended).map(|(one, state)| change(one, state)).collect();
    store.change_deliveries(&lease, changes).await.unwrap();
    let numbers =
        async || -> Vec<i64> { deliveries(&store, &name).await.iter().map(|each| each.number).collect() };
    assert_eq!(numbers().await, [3, 4, 5]);
    assert_eq!(store.take_up_again(&name).await.unwrap(), 2, "the dead letter and what was on the bus");
    assert_eq!(numbers().await, [1, 3, 4, 5]);
    let again = deliveries(&store, &name).await;
    assert_eq!(again[0].attempts, 0, "a dead letter begins anew");
    assert!(again.iter().all(|each| each.number == 3 || each.state == DeliveryState::Pending));
    let dead = change(&deliveries(&store, &name).await[0], DeliveryState::Parked);
    store.change_deliveries(&lease, vec![dead]).await.unwrap();
    assert_eq!(store.give_up("nobody", "deleted", 9).await.unwrap(), 0);
    let mut given_up = 0;
    for _ in 0..4 {
        given_up += store.give_up(&name, "deleted", 1).await.unwrap();
    }
    assert_eq!(given_up, 4, "dead letters too");
    assert_eq!(numbers().await, [] as [i64; 0]);
    assert_eq!(store.parked_deliveries(&name, 9).await.unwrap(), []);
    assert_eq!(deliveries(&store, "lab").await.len(), 5, "others keep theirs");
    let timeline = store.timeline(messages[2].id).await.unwrap().expect("it is there");
    let own = timeline.deliveries.iter().find(|each| each.subscription == name).expect("its own");
    assert_eq!((own.delivery.state, own.reason.as_deref()), (DeliveryState::Skipped, Some("deleted")));
    balanced(&store).await;
}

async fn tokens_are_found_by_their_hash_until_they_are_over_or_too_many(place: Place) {
    let [store, other] = place.replicas().await;
    let start: Timestamp = "2026-03-01T08:00:00Z".parse().unwrap();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let token = |number: u8, owner: &str, until: u64| SocketToken {
        hash: [number; 32],
        owner: owner.into(),
        subscriptions: vec![Uuid::from_u128(1), Uuid::from_u128(u128::from(number))],
        until: at(until),
    };
    for one in [token(1, "payer", 60), token(2, "payer", 120), token(3, "lab", 120)] {
        store.keep_token(&one, start).await.unwrap();
        assert_eq!(other.token(&one.hash).await.unwrap(), Some(one));
    }
    assert!(store.keep_token(&token(3, "payer", 120), start).await.is_err(), "it is the lab's");
    assert_eq!(store.token(&[9; 32]).await.unwrap(), None);
    store.keep_token(&token(4, "lab", 180), at(61)).await.unwrap();
    assert_eq!(store.token(&[1; 32]).await.unwrap(), None, "it is over");
    assert!(store.token(&[2; 32]).await.unwrap().is_some());
    for number in 100..205 {
        store.keep_token(&token(number, "payer", 200 + u64::from(number)), at(61)).await.unwrap();
    }
    assert_eq!(store.token(&[104; 32]).await.unwrap(), None, "a hundred are kept, the newest");
    assert!(store.token(&[105; 32]).await.unwrap().is_some());
    assert!(store.token(&[3; 32]).await.unwrap().is_some(), "another's are its own");
}

async fn a_lease_is_taken_away_from_another_and_its_fence_holds_off_what_it_still_writes(place: Place) {
    let store = place.open().await;
    append(&store, many(1)).await;
    route_all(&store, &["lab"]).await;
    let (name, ttl) = ("subscription:lab".to_owned(), Duration::from_secs(60));
    let own = lease(&store, 1, &name).await;
    let names = [name.clone()];
    assert_eq!(store.lease(Uuid::from_u128(2), &names, ttl).await.unwrap(), []);
    assert_eq!(
        store.seize(Uuid::from_u128(1), &name, ttl).await.unwrap(),
        own,
        "nobody takes it from himself"
    );
    let taken = store.seize(Uuid::from_u128(2), &name, ttl).await.unwrap();
    assert_eq!(taken, Lease { fence: own.fence + 1, ..own.clone() });
    assert_eq!(store.lease(Uuid::from_u128(1), &names, ttl).await.unwrap(), [], "it is the other's");
    let fresh = store.seize(Uuid::from_u128(2), "subscription:new", ttl).await.unwrap();
    assert_eq!(fresh.fence, 1, "nobody had it");
    let changes = vec![change(&deliveries(&store, "lab").await[0], DeliveryState::Delivered)];
    assert!(matches!(store.change_deliveries(&own, changes).await, Err(StoreError::Fenced)));
}

async fn what_may_have_something_to_deliver_is_known_until_it_rests(place: Place) {
    let store = place.open().await;
    let unfinished = async || {
        let mut all = store.unfinished().await.unwrap();
        all.sort();
        all
    };
    assert_eq!(unfinished().await, [] as [&str; 0]);
    append(&store, many(3)).await;
    route_all(&store, &["lab", "ward"]).await;
    assert_eq!(unfinished().await, ["lab", "ward"]);
    let lease = lease(&store, 1, "subscription:lab").await;
    let own = deliveries(&store, "lab").await;
    let ended = [DeliveryState::Delivered, DeliveryState::Delivered, DeliveryState::RetryWait];
    let changes = own.iter().zip(ended).map(|(one, state)| change(one, state)).collect();
    store.change_deliveries(&lease, changes).await.unwrap();
    store.rest("lab").await.unwrap();
    store.rest("nobody").await.unwrap();
    assert_eq!(unfinished().await, ["lab", "ward"], "one is to be tried again");
    store.change_deliveries(&lease, vec![change(&own[2], DeliveryState::Parked)]).await.unwrap();
    store.rest("lab").await.unwrap();
    assert_eq!(unfinished().await, ["ward"], "a dead letter waits for a person");
    store.take_up_again("lab").await.unwrap();
    assert_eq!(unfinished().await, ["lab", "ward"]);
}
