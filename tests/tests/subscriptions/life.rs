//! From the handshake to the end, and what happens when an endpoint does not play along.

use super::*;
use tests::services::Services;

#[tokio::test]
async fn a_subscription_lives_from_its_handshake_to_its_deletion() {
    let endpoint = Endpoint::start().await;
    let mut gateway = start(&Setup::default(), &endpoint).await;
    let mut wanted = sample(&endpoint, "/events/a");
    wanted["channel"]["extension"] =
        json!([{"url": format!("{BACKPORT}backport-heartbeat-period"), "valueUnsignedInt": 1}]);
    let made = ask(&gateway, "POST /fhir/Subscription", Some(&wanted)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let resource = made.json();
    let id = resource["id"].as_str().unwrap();
    assert_eq!(resource["status"], "requested");
    assert_eq!(schemas::fhir::validate(&resource), []);
    let place = format!("http://{}/fhir/Subscription/{id}/_history/1", gateway.http);
    assert_eq!((made.header("location"), made.header("etag")), (Some(&*place), Some("W/\"1\"")));

    let handshake = endpoint.until("/events/a", "handshake", 1).await.remove(0);
    assert_eq!(handshake.headers["content-type"], "application/fhir+json");
    assert_eq!(handshake.headers["x-key"], SECRET);
    assert_eq!(
        (handshake.says("status"), handshake.says("events-since-subscription-start")),
        ("requested", "0")
    );
    assert_eq!(
        (&handshake.body["type"], handshake.body["entry"].as_array().unwrap().len()),
        (&json!("history"), 1)
    );
    assert_eq!(schemas::fhir::validate(&handshake.body), []);
    becomes(&gateway, id, "active").await;
    discharge(&gateway, 0..3).await;
    let came = endpoint.until("/events/a", "event-notification", 3).await;
    assert_eq!(numbers(&came).len(), 3);
    assert!(came.iter().all(|came| came.headers["x-key"] == SECRET));
    let beat = endpoint.until("/events/a", "heartbeat", 2).await.pop().unwrap();
    assert_eq!(
        (beat.says("status"), beat.says("events-since-subscription-start"), beat.number()),
        ("active", "3", None)
    );

    // A restart changes nothing, and nobody has to shake hands again.
    gateway.kill().await.unwrap();
    gateway.spawn().await.unwrap();
    gateway.ready(Duration::from_secs(60)).await.unwrap();
    discharge(&gateway, 3..4).await;
    let came = endpoint.until("/events/a", "event-notification", 4).await;
    assert_eq!(came.iter().filter_map(Came::number).max(), Some(4));
    assert_eq!(endpoint.of("/events/a", "handshake").len(), 1);

    // What its owner changes is shaken hands on again; events go on being counted.
    let moved = change(&gateway, id, |resource| {
        resource["channel"]["endpoint"] = endpoint.url("/events/b").into();
    });
    let moved = moved.await;
    assert_eq!((moved.status, &moved.json()["status"]), (200, &json!("requested")), "{}", moved.body);
    discharge(&gateway, 4..5).await;
    let came = endpoint.until("/events/b", "event-notification", 1).await;
    assert_eq!(numbers(&came), [5]);
    assert_eq!(endpoint.of("/events/b", "handshake").len(), 1);
    let stale = [("if-match", "W/\"1\"")];
    let put = format!("PUT /fhir/Subscription/{id}");
    ask_as(&gateway, "payer", &put, &stale, Some(&moved.json())).await.outcome(412);

    let off = change(&gateway, id, |resource| resource["status"] = "off".into()).await;
    assert_eq!((off.status, &off.json()["status"]), (200, &json!("off")));
    discharge(&gateway, 5..6).await;
    let again = change(&gateway, id, |resource| resource["status"] = "requested".into()).await;
    assert_eq!(again.status, 200);
    becomes(&gateway, id, "active").await;
    discharge(&gateway, 6..7).await;
    let came = endpoint.until("/events/b", "event-notification", 2).await;
    assert_eq!(numbers(&came), [5, 6], "what happened while it was off is no event of it");

    let delete = format!("DELETE /fhir/Subscription/{id}");
    ask_as(&gateway, "other", &delete, &[], None).await.outcome(404);
    assert_eq!(ask(&gateway, &delete, None).await.status, 204);
    for gone in
        [delete, format!("GET /fhir/Subscription/{id}"), format!("GET /fhir/Subscription/{id}/$events")]
    {
        ask(&gateway, &gone, None).await.outcome(404);
    }
    discharge(&gateway, 7..8).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(endpoint.of("/events/b", "event-notification").len(), 2);
    let log = gateway.log();
    assert!(!log.contains(SECRET) && log.contains("the subscription is active"), "{log}");
}

#[tokio::test]
async fn what_conformance_suites_assert_holds_for_each_content() {
    let endpoint = Endpoint::start().await;
    let gateway = start(&Setup::default(), &endpoint).await;
    let mut ids = Vec::new();
    for content in CONTENTS {
        let mut wanted = sample(&endpoint, &format!("/events/{content}"));
        wanted["channel"]["_payload"]["extension"][0]["valueCode"] = content.into();
        ids.push(create(&gateway, &wanted).await);
    }
    for id in &ids {
        becomes(&gateway, id, "active").await;
    }
    discharge(&gateway, 0..1).await;
    for (id, content) in ids.iter().zip(CONTENTS) {
        let path = format!("/events/{content}");
        let handshake = endpoint.until(&path, "handshake", 1).await.remove(0);
        let event = endpoint.until(&path, "event-notification", 1).await.remove(0);
        for came in [&handshake, &event] {
            assert_eq!(came.headers["content-type"].to_str().unwrap(), "application/fhir+json");
        }
        conforms(id, content, &handshake, &event);
    }
    let status =
        ask(&gateway, &format!("GET /fhir/Subscription/$status?id={},{}", ids[0], ids[1]), None).await.json();
    assert_eq!((&status["type"], &status["total"]), (&json!("searchset"), &json!(2)));
    let none = ask(&gateway, "GET /fhir/Subscription/$status?status=error", None).await.json();
    assert_eq!(none["total"], 0);
    let active = ask(&gateway, "GET /fhir/Subscription/$status?status=error,active", None).await.json();
    assert_eq!(active["total"], 3, "any of these");
}

#[tokio::test]
async fn what_is_not_supported_is_refused_and_nothing_is_made() {
    let endpoint = Endpoint::start().await;
    let gateway = start(&Setup::default(), &endpoint).await;
    let right = sample(&endpoint, "/events/a");
    let with = |change: fn(&mut Value)| {
        let mut resource = right.clone();
        change(&mut resource);
        resource
    };
    for (wrong, place) in [
        (with(|s| s["criteria"] = "urn:pons:topic:result-final".into()), "Subscription.criteria"),
        (with(|s| s["channel"]["type"] = "email".into()), "Subscription.channel.type"),
        (
            with(|s| s["channel"]["endpoint"] = "http://169.254.169.254/latest".into()),
            "Subscription.channel.endpoint",
        ),
        (with(|s| s["channel"]["payload"] = "text/plain".into()), "Subscription.channel.payload"),
        (with(|s| s["channel"]["type"] = "pigeon".into()), "Subscription.channel.type"),
        (with(|s| s["reason"] = Value::Null), "Subscription.reason"),
        (with(|s| s["end"] = "2020-01-01T00:00:00Z".into()), "Subscription.end"),
    ] {
        let refused = ask(&gateway, "POST /fhir/Subscription", Some(&wrong)).await.outcome(422);
        assert!(refused.contains(place), "{refused}");
    }
    let wide = with(|s| s["text"] = json!({"status": "generated", "div": "x".repeat(70_000)}));
    ask(&gateway, "POST /fhir/Subscription", Some(&wide)).await.outcome(413);
    let other = json!({"resourceType": "Patient"});
    ask(&gateway, "POST /fhir/Subscription", Some(&other)).await.outcome(400);
    ask_as(&gateway, "other", "POST /fhir/Subscription", &[], Some(&right)).await.outcome(403);
    let bundle = json!({"resourceType": "Bundle", "type": "transaction", "entry": [
        {"resource": right, "request": {"method": "POST", "url": "Subscription"}},
    ]});
    ask(&gateway, "POST /fhir", Some(&bundle)).await.outcome(422);
    let search = ask(&gateway, "GET /fhir/Subscription", None).await;
    assert_eq!(search.json()["total"], 0, "{}", search.body);
    assert!(endpoint.lock().came.is_empty());

    for n in 0..3 {
        create(&gateway, &sample(&endpoint, &format!("/events/{n}"))).await;
    }
    let refused = ask(&gateway, "POST /fhir/Subscription", Some(&right)).await.outcome(422);
    assert!(refused.contains("subscriptions_max"), "{refused}");
    let search = ask(&gateway, "GET /fhir/Subscription", None).await;
    assert_eq!(search.json()["total"], 3);
    let of_other = ask_as(&gateway, "other", "GET /fhir/Subscription", &[], None).await;
    assert_eq!(of_other.json()["total"], 0, "nobody sees another's");
}

#[tokio::test]
async fn an_endpoint_that_does_not_play_along_puts_it_in_error_and_loses_nothing() {
    let endpoint = Endpoint::start().await;
    let gateway = start(&Setup::default(), &endpoint).await;
    endpoint.lock().always = Some(500);
    let id = create(&gateway, &sample(&endpoint, "/events/a")).await;
    becomes(&gateway, &id, "error").await;
    assert_eq!(endpoint.of("/events/a", "handshake").len(), 3, "it is tried three times");
    let read = ask(&gateway, &format!("GET /fhir/Subscription/{id}"), None).await.json();
    assert!(read["error"].as_str().unwrap().contains("HTTP 500"), "{read}");
    discharge(&gateway, 0..1).await;
    endpoint.lock().always = None;
    assert_eq!(change(&gateway, &id, |resource| resource["status"] = "requested".into()).await.status, 200);
    becomes(&gateway, &id, "active").await;
    assert!(endpoint.of("/events/a", "event-notification").is_empty(), "it was never active before");

    // Every notification is refused for good: dead letters, and an error that its owner sees.
    endpoint.lock().always = Some(404);
    discharge(&gateway, 1..6).await;
    becomes(&gateway, &id, "error").await;
    let status = ask(&gateway, &format!("GET /fhir/Subscription/{id}/$status"), None).await.body;
    assert!(status.contains(r#"{"name":"status","valueCode":"error"}"#), "{status}");
    let read = ask(&gateway, &format!("GET /fhir/Subscription/{id}"), None).await.json();
    assert!(read["error"].as_str().unwrap().contains("in a row"), "{read}");
    discharge(&gateway, 6..8).await;
    let (exit, listed) = gateway.pons(&["subscriptions", "--format", "json"]).await.unwrap();
    let listed: Value = serde_json::from_str(listed.trim()).unwrap();
    assert_eq!((exit, &listed["name"], &listed["owner"]), (Some(0), &json!(id), &json!("payer")));
    assert_eq!((&listed["status"], &listed["topics"]), (&json!("error"), &json!("encounter-end")));
    assert!(listed["parked"].as_u64().unwrap() >= 3, "{listed}");
    let kept = ask(&gateway, &format!("GET /fhir/Subscription/{id}/$events"), None).await.json();
    assert!(kept["entry"].as_array().unwrap().len() > 7, "its events can be read meanwhile");
    endpoint.until("/events/a", "event-notification", 7).await;
    endpoint.lock().came.clear();
    endpoint.lock().always = None;
    assert_eq!(change(&gateway, &id, |resource| resource["status"] = "requested".into()).await.status, 200);
    becomes(&gateway, &id, "active").await;
    let mut came = numbers(&endpoint.until("/events/a", "event-notification", 7).await);
    came.sort_unstable();
    assert_eq!(came, (1..=7).collect::<Vec<u64>>(), "all of them, the dead letters too");
    discharge(&gateway, 8..9).await;
    let came = endpoint.until("/events/a", "event-notification", 8).await;
    assert_eq!(numbers(&came).len(), 8);

    // The operator ends it: first a dry run.
    assert_eq!(gateway.pons(&["subscriptions", "off", &id]).await.unwrap().0, Some(0));
    assert_eq!(status_of(&gateway, &id).await, "active");
    assert_eq!(gateway.pons(&["subscriptions", "off", &id, "--yes"]).await.unwrap().0, Some(0));
    becomes(&gateway, &id, "off").await;
    assert_eq!(gateway.pons(&["subscriptions", "remove", &id, "--yes"]).await.unwrap().0, Some(0));
    ask(&gateway, &format!("GET /fhir/Subscription/{id}"), None).await.outcome(404);
    assert_eq!(gateway.pons(&["subscriptions", "remove", &id, "--yes"]).await.unwrap().0, Some(2));
}

#[tokio::test]
async fn what_was_written_for_an_endpoint_never_goes_to_another() {
    let endpoint = Endpoint::start().await;
    let gateway = start(&Setup::default(), &endpoint).await;
    let id = create(&gateway, &sample(&endpoint, "/events/a")).await;
    becomes(&gateway, &id, "active").await;
    endpoint.lock().always = Some(503);
    discharge(&gateway, 0..6).await;
    endpoint.until("/events/a", "event-notification", 3).await;
    endpoint.lock().always = None;
    let changed = change(&gateway, &id, |resource| {
        resource["channel"]["endpoint"] = endpoint.url("/events/b").into();
        resource["channel"]["_payload"]["extension"][0]["valueCode"] = "empty".into();
    });
    assert_eq!(changed.await.status, 200);
    let came = endpoint.until("/events/b", "event-notification", 6).await;
    let mut found = numbers(&came);
    found.sort_unstable();
    assert_eq!(found, (1..=6).collect::<Vec<u64>>());
    for came in came {
        assert_eq!(came.body["entry"].as_array().unwrap().len(), 1, "nothing but its number: {}", came.body);
    }
}

#[tokio::test]
async fn a_heartbeat_that_is_taken_does_not_hide_that_events_are_refused() {
    let endpoint = Endpoint::start().await;
    let gateway = start(&Setup::default(), &endpoint).await;
    let mut wanted = sample(&endpoint, "/events/a");
    wanted["channel"]["extension"] =
        json!([{"url": format!("{BACKPORT}backport-heartbeat-period"), "valueUnsignedInt": 1}]);
    let id = create(&gateway, &wanted).await;
    becomes(&gateway, &id, "active").await;
    endpoint.lock().refused = Some("event-notification");
    for n in 0..3 {
        discharge(&gateway, n..n + 1).await;
        endpoint.until("/events/a", "event-notification", n as usize + 1).await;
        let beats = endpoint.of("/events/a", "heartbeat").len();
        endpoint.until("/events/a", "heartbeat", beats + 1).await;
    }
    becomes(&gateway, &id, "error").await;
    let beats = endpoint.of("/events/a", "heartbeat").len();
    endpoint.until("/events/a", "heartbeat", beats + 2).await;
    assert_eq!(status_of(&gateway, &id).await, "error");
    endpoint.lock().refused = None;
    discharge(&gateway, 3..4).await;
    becomes(&gateway, &id, "active").await;
}

#[tokio::test]
async fn it_ends_at_its_end_and_with_what_the_configuration_allows() {
    let endpoint = Endpoint::start().await;
    let mut gateway = start(&Setup::default(), &endpoint).await;
    let mut ending = sample(&endpoint, "/events/ending");
    ending["end"] = (jiff::Timestamp::now() + Duration::from_secs(4)).to_string().into();
    let ending = create(&gateway, &ending).await;
    let staying = create(&gateway, &sample(&endpoint, "/events/staying")).await;
    becomes(&gateway, &ending, "active").await;
    becomes(&gateway, &staying, "active").await;
    becomes(&gateway, &ending, "off").await;
    discharge(&gateway, 0..1).await;
    endpoint.until("/events/staying", "event-notification", 1).await;
    assert!(endpoint.of("/events/ending", "event-notification").is_empty());

    // The operator takes the endpoint off the list: nothing goes there any more, and its owner sees why.
    gateway.kill().await.unwrap();
    let yaml = std::fs::read_to_string(gateway.config()).unwrap();
    let listed = format!("http://{}/events", endpoint.at);
    assert!(yaml.contains(&listed));
    std::fs::write(gateway.config(), yaml.replace(&listed, "https://payer.example/")).unwrap();
    gateway.spawn().await.unwrap();
    gateway.ready(Duration::from_secs(60)).await.unwrap();
    becomes(&gateway, &staying, "error").await;
    let read = ask(&gateway, &format!("GET /fhir/Subscription/{staying}"), None).await.json();
    assert!(read["error"].as_str().unwrap().contains("endpoints"), "{read}");
    discharge(&gateway, 1..2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(endpoint.of("/events/staying", "event-notification").len(), 1);
}

#[tokio::test]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run starts them"]
async fn whichever_replica_records_it_no_event_is_missed_once_it_is_active() {
    let services = Services::from_environment().unwrap();
    let setup = Setup {
        store: Some(services.new_database("subscribing").await.unwrap()),
        bus: Some(services.amqp.clone()),
        ..Setup::default()
    };
    let endpoint = Endpoint::start().await;
    let replicas = [start(&setup, &endpoint).await, start(&setup, &endpoint).await];
    // Until each has given half of the lanes to the other, one of them records everything.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut sent = 0;
    for round in 0..3_u32 {
        let path = format!("/events/{round}");
        let maker = &replicas[(round % 2) as usize];
        let id = create(maker, &sample(&endpoint, &path)).await;
        endpoint.until(&path, "handshake", 1).await;
        becomes(&replicas[1 - (round % 2) as usize], &id, "active").await;
        // The very next messages, to both.
        for gateway in &replicas {
            discharge(gateway, sent..sent + 6).await;
            sent += 6;
        }
        let came = endpoint.until(&path, "event-notification", 12).await;
        let mut found = numbers(&came);
        found.sort_unstable();
        assert_eq!(found, (1..=12).collect::<Vec<u64>>(), "round {round}");
        assert_eq!(endpoint.of(&path, "handshake").len(), 1);
        let gone = ask(&replicas[1], &format!("DELETE /fhir/Subscription/{id}"), None).await;
        assert_eq!(gone.status, 204);
    }
}
