//! Each channel beside the rest-hook, from the Subscription to what arrives.

use super::*;
use futures_util::{SinkExt, StreamExt};
use std::collections::BTreeSet;
use tests::amqp::Client;
use tests::services::Services;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// One over a WebSocket.
fn over_websocket() -> Value {
    json!({
        "resourceType": "Subscription", "status": "requested", "reason": "to pay",
        "criteria": "urn:pons:topic:encounter-end",
        "channel": {
            "type": "websocket", "payload": "application/fhir+json",
            "_payload": {"extension": [{"url": format!("{BACKPORT}backport-payload-content"), "valueCode": "id-only"}]},
        },
    })
}

/// One of a channel that R4 does not have.
fn of_channel(code: &str) -> Value {
    let mut resource = over_websocket();
    resource["channel"]["type"] = "message".into();
    resource["channel"]["_type"] = json!({"extension": [{
        "url": format!("{BACKPORT}backport-channel-type"),
        "valueCoding": {"system": "urn:pons:channel", "code": code},
    }]});
    resource
}

/// A subscriber's end of a WebSocket.
struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn open(gateway: &Gateway) -> Socket {
        let stream = TcpStream::connect(gateway.http).await.unwrap();
        let url = format!("ws://{}/fhir/websocket", gateway.http);
        let (socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        Socket(socket)
    }

    async fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    async fn bound(gateway: &Gateway, token: &str) -> Socket {
        let mut socket = Socket::open(gateway).await;
        socket.say(&format!("bind-with-token: {token}")).await;
        socket
    }

    /// The next thing that is said, pings aside; `Err` with the code when it is closed.
    async fn next(&mut self) -> Result<Came, u16> {
        loop {
            match timeout(WAIT, self.0.next()).await.expect("it comes in time") {
                Some(Ok(Message::Text(text))) => {
                    let body = serde_json::from_str(&text).unwrap();
                    return Ok(Came { path: String::new(), headers: HeaderMap::new(), body });
                }
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(1005, |frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    /// The numbers of the next so many events.
    async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            let came = self.next().await.unwrap();
            numbers.extend(came.number().filter(|number| !numbers.contains(number)));
        }
        numbers.sort_unstable();
        numbers
    }
}

/// A token for one subscription.
async fn token(gateway: &Gateway, id: &str) -> String {
    let given = ask(gateway, &format!("GET /fhir/Subscription/{id}/$get-ws-binding-token"), None).await;
    assert_eq!(given.status, 200, "{}", given.body);
    let given = given.json();
    assert_eq!(schemas::fhir::validate(&given), []);
    let value = |name: &str| {
        let parameters = given["parameter"].as_array().unwrap();
        let one = parameters.iter().find(|one| one["name"] == name).unwrap().as_object().unwrap();
        one.iter().find(|(key, _)| key.starts_with("value")).unwrap().1.as_str().unwrap().to_owned()
    };
    assert_eq!(value("subscription"), id);
    assert_eq!(value("websocket-url"), format!("ws://{}/fhir/websocket", gateway.http));
    assert!(value("expiration").as_str() > "2026");
    value("token")
}

/// The address with user and password, the queue and the password of one subscription.
async fn credentials(gateway: &Gateway, id: &str) -> (String, String, String) {
    let path = format!("POST /fhir/Subscription/{id}/$get-amqp-credentials");
    let given = ask(gateway, &path, None).await;
    assert_eq!((given.status, given.header("cache-control")), (200, Some("no-store")), "{}", given.body);
    let given = given.json();
    assert_eq!(schemas::fhir::validate(&given), []);
    let value = |name: &str| {
        let one = given["parameter"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
        one["valueString"].as_str().or(one["valueUrl"].as_str()).unwrap().to_owned()
    };
    let url = value("url").replace("://", &format!("://{}:{}@", value("user"), value("password")));
    (url, value("queue"), value("password"))
}

/// Waits until so many of its events are recorded.
async fn counts(gateway: &Gateway, id: &str, events: &str) {
    let began = Instant::now();
    loop {
        let status = ask(gateway, &format!("GET /fhir/Subscription/{id}/$status"), None).await.json();
        let came = Came { path: String::new(), headers: HeaderMap::new(), body: status };
        if came.says("events-since-subscription-start") == events {
            return;
        }
        assert!(began.elapsed() < WAIT, "{events} events: {}", came.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn over_a_websocket_whoever_bound_last_is_told_everything_from_the_beginning() {
    let mut gateway = start_with(&Setup::default(), "channels: [websocket]").await;
    let mut wanted = over_websocket();
    wanted["channel"]["extension"] =
        json!([{"url": format!("{BACKPORT}backport-heartbeat-period"), "valueUnsignedInt": 1}]);
    let id = create(&gateway, &wanted).await;
    becomes(&gateway, &id, "active").await;
    discharge(&gateway, 0..2).await;
    counts(&gateway, &id, "2").await;

    let first = token(&gateway, &id).await;
    let mut socket = Socket::bound(&gateway, &first).await;
    let handshake = socket.next().await.unwrap();
    assert_eq!((handshake.says("type"), handshake.says("status")), ("handshake", "active"));
    assert_eq!(handshake.says("events-since-subscription-start"), "2");
    assert_eq!(schemas::fhir::validate(&handshake.body), []);
    assert_eq!(socket.numbers(2).await, [1, 2], "what happened before anybody was there");
    discharge(&gateway, 2..3).await;
    assert_eq!(socket.numbers(1).await, [3]);
    while socket.next().await.unwrap().says("type") != "heartbeat" {}

    // One that is open and reads nothing has been told nothing: whoever comes next is.
    let again = token(&gateway, &id).await;
    let mut deaf = Socket::bound(&gateway, &again).await;
    assert_eq!(deaf.next().await.unwrap().says("type"), "handshake");
    while let Ok(came) = socket.next().await {
        assert_eq!(came.number(), None, "the first one is told nothing any more");
    }
    discharge(&gateway, 3..5).await;
    let mut socket = Socket::open(&gateway).await;
    socket.say(&json!({"type": "bind-with-token", "payload": {"token": again}}).to_string()).await;
    assert_eq!(socket.numbers(2).await, [4, 5]);
    let closed = loop {
        match deaf.next().await {
            Ok(_) => {}
            Err(code) => break code,
        }
    };
    assert_eq!(closed, 1008, "it was bound elsewhere");

    // What its owner changes may have to be bound anew, and nothing of it is missed.
    let changed = change(&gateway, &id, |resource| resource["reason"] = "to pay in time".into()).await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    discharge(&gateway, 5..6).await;
    loop {
        match socket.next().await {
            Ok(came) if came.number() == Some(6) => break,
            Ok(_) => {}
            Err(code) => {
                assert_eq!(code, 1013, "it is to be bound anew");
                socket = Socket::bound(&gateway, &again).await;
            }
        }
    }
    // A client that closes is answered.
    socket.0.close(None).await.unwrap();
    let answered = loop {
        match timeout(WAIT, socket.0.next()).await.unwrap() {
            Some(Ok(Message::Close(_))) | None => break true,
            Some(Ok(_)) => {}
            Some(Err(_)) => break false,
        }
    };
    assert!(answered, "in good order");
    let mut socket = Socket::bound(&gateway, &again).await;

    // The token outlives a crash, and so does what nobody was there to read.
    gateway.kill().await.unwrap();
    while socket.next().await.is_ok() {}
    gateway.spawn().await.unwrap();
    gateway.ready(Duration::from_secs(60)).await.unwrap();
    discharge(&gateway, 6..7).await;
    let mut socket = Socket::bound(&gateway, &again).await;
    // What was read just before the crash may come again.
    while socket.next().await.unwrap().number() != Some(7) {}
    let gone = ask(&gateway, &format!("DELETE /fhir/Subscription/{id}"), None).await;
    assert_eq!(gone.status, 204);
    // Whoever says something while it is told that it is over still reads why.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        socket.0.send(Message::Pong(Bytes::new())).await.expect("it is heard until it agrees");
    }
    let closed = loop {
        match socket.next().await {
            Ok(_) => {}
            Err(code) => break code,
        }
    };
    assert_eq!(closed, 1000, "its subscription is over");
    let log = gateway.log();
    assert!(!log.contains(&first) && !log.contains(&again), "tokens stand in no log");
}

#[tokio::test]
async fn a_websocket_without_a_right_to_it_is_told_why_and_closed() {
    let endpoint = Endpoint::start().await;
    let subscribes = format!("endpoints: ['http://{}/events']", endpoint.at);
    let gateway = start_with(&Setup::default(), &subscribes).await;
    let id = create(&gateway, &over_websocket()).await;
    let hook = create(&gateway, &sample(&endpoint, "/events")).await;
    becomes(&gateway, &id, "active").await;

    let path = |id: &str| format!("GET /fhir/Subscription/{id}/$get-ws-binding-token");
    ask(&gateway, &path(&hook), None).await.outcome(422);
    ask_as(&gateway, "other", &path(&id), &[], None).await.outcome(404);
    let both = json!({"resourceType": "Parameters", "parameter": [{"name": "id", "valueId": id}, {"name": "id", "valueId": "x"}]});
    ask(&gateway, "POST /fhir/Subscription/$get-ws-binding-token", Some(&both)).await.outcome(404);
    let any = ask(&gateway, "GET /fhir/Subscription/$get-ws-binding-token", None).await;
    assert_eq!(
        (any.status, any.json()["parameter"].as_array().unwrap().len()),
        (200, 4),
        "of all that are told so"
    );
    ask(&gateway, "GET /fhir/websocket", None).await.outcome(426);

    let mut socket = Socket::bound(&gateway, "guessed").await;
    assert_eq!(socket.next().await.unwrap().body["resourceType"], "OperationOutcome");
    assert_eq!(socket.next().await.unwrap_err(), 1008);
    let mut socket = Socket::open(&gateway).await;
    socket.say("subscribe: me").await;
    assert_eq!(socket.next().await.unwrap().body["issue"][0]["code"], "structure");
    assert_eq!(socket.next().await.unwrap_err(), 1008, "nothing was bound in time");

    let token = token(&gateway, &id).await;
    let off = change(&gateway, &id, |resource| resource["status"] = "off".into()).await;
    assert_eq!(off.status, 200);
    let mut socket = Socket::bound(&gateway, &token).await;
    assert_eq!(socket.next().await.unwrap().body["issue"][0]["code"], "not-found");
    assert_eq!(socket.next().await.unwrap_err(), 1008);
}

#[tokio::test]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run starts them"]
async fn a_websocket_may_be_opened_at_any_replica() {
    let services = Services::from_environment().unwrap();
    let database = services.new_database("websocket").await.unwrap();
    let setup = Setup { store: Some(database), bus: Some(services.amqp), ..Setup::default() };
    let (one, two) = tokio::join!(
        start_with(&setup, "channels: [websocket]"),
        start_with(&setup, "channels: [websocket]")
    );
    let id = create(&one, &over_websocket()).await;
    becomes(&two, &id, "active").await;
    let mut all = BTreeSet::new();
    for (round, (at, other)) in [(&one, &two), (&two, &one), (&one, &two)].into_iter().enumerate() {
        let token = token(other, &id).await;
        let mut socket = Socket::bound(at, &token).await;
        let from = u32::try_from(round).unwrap() * 4;
        discharge(at, from..from + 2).await;
        discharge(other, from + 2..from + 4).await;
        // What the last socket had just read may come again over this one.
        while all.len() < (round + 1) * 4 {
            match socket.next().await {
                Ok(came) => all.extend(came.number()),
                // A replica that lost the lease may ask for it once more.
                Err(code) => {
                    assert_eq!(code, 1013);
                    socket = Socket::bound(at, &token).await;
                }
            }
        }
    }
    assert_eq!(all, (1..=12).collect());
}

#[tokio::test]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run starts them"]
async fn a_queue_of_its_own_is_its_subscribers_alone_and_goes_with_the_subscription() {
    let services = Services::from_environment().unwrap();
    let setup = Setup {
        bus: Some(services.amqp.clone()),
        settings: vec![format!("bus_management: '{}'", services.management)],
        ..Setup::default()
    };
    let gateway = start_with(&setup, "channels: [amqp, websocket]").await;
    let wanted = of_channel("amqp");
    let id = create(&gateway, &wanted).await;
    let other = create(&gateway, &wanted).await;
    for id in [&id, &other] {
        becomes(&gateway, id, "active").await;
    }
    discharge(&gateway, 0..2).await;

    let path = format!("Subscription/{id}/$get-amqp-credentials");
    ask(&gateway, &format!("GET /fhir/{path}"), None).await.outcome(405);
    ask_as(&gateway, "other", &format!("POST /fhir/{path}"), &[], None).await.outcome(404);
    let (url, queue, password) = credentials(&gateway, &id).await;
    let (_, others, _) = credentials(&gateway, &other).await;
    let mut subscriber = Client::open(&url).await.unwrap();
    subscriber.consume(&queue, 10).await.unwrap();
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let message = timeout(WAIT, subscriber.next()).await.unwrap().unwrap();
        assert_eq!(message.content_type, "application/cloudevents+json");
        let event: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(event["id"], message.message_id.as_str());
        assert_eq!(schemas::fhir::validate(&event["data"]), []);
        kinds
            .push((event["type"].as_str().unwrap().to_owned(), event["number"].as_str().unwrap().to_owned()));
        subscriber.acknowledge(message.tag).await.unwrap();
    }
    // The two are about two patients: either may come first.
    kinds[1..].sort();
    let expected = [("pons.handshake", "0"), ("pons.encounter-end", "1"), ("pons.encounter-end", "2")];
    assert_eq!(kinds, expected.map(|(kind, number)| (kind.to_owned(), number.to_owned())));

    // Nothing but its own, and only to read.
    for refused in [others, format!("pons.sub.{id}"), format!("pons.sub.{other}")] {
        let mut prying = Client::open(&url).await.unwrap();
        assert!(prying.consume(&refused, 1).await.is_err(), "{refused}");
    }
    assert!(Client::open(&url).await.unwrap().declare("mine").await.is_err());
    // New ones end the old ones.
    let (url, ..) = credentials(&gateway, &id).await;
    assert!(timeout(WAIT, subscriber.next()).await.unwrap().is_err(), "its connection is closed");
    let mut subscriber = Client::open(&url).await.unwrap();
    subscriber.consume(&queue, 10).await.unwrap();

    let moved =
        change(&gateway, &id, |resource| resource["channel"] = over_websocket()["channel"].clone()).await;
    assert!(moved.outcome(422).contains("amqp is not changed"));
    let gone = ask(&gateway, &format!("DELETE /fhir/Subscription/{id}"), None).await;
    assert_eq!(gone.status, 204);
    assert!(timeout(WAIT, subscriber.next()).await.unwrap().is_err(), "nobody reads it any more");
    assert!(Client::open(&url).await.is_err());
    assert!(!gateway.log().contains(&password), "no password is logged");
}

#[tokio::test]
async fn a_fhir_server_is_sent_messages_and_an_old_system_hl7_v2() {
    let endpoint = Endpoint::start().await;
    let ward = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ward_at = ward.local_addr().unwrap();
    let subscribes = format!(
        "channels: [message, mllp], endpoints: ['http://{}/events', 'mllp://{ward_at}'], mllp: {{write: write_adt_a03, \
         receiving_application: WARD, systems: {{GENHOSP: 'urn:oid:1.2.3'}}}}",
        endpoint.at
    );
    let gateway = start_with(&Setup::default(), &subscribes).await;
    let mut message = sample(&endpoint, "/events/base");
    message["channel"]["type"] = "message".into();
    let messages = create(&gateway, &message).await;
    let mut mllp = of_channel("mllp");
    mllp["channel"]["endpoint"] = format!("mllp://{ward_at}").into();
    mllp["channel"]["payload"] = "x-application/hl7-v2+er7".into();
    mllp["channel"]["_payload"] = sample(&endpoint, "")["channel"]["_payload"].clone();
    let written = create(&gateway, &mllp).await;
    let (stream, _) = timeout(WAIT, ward.accept()).await.unwrap().unwrap();
    for id in [&messages, &written] {
        becomes(&gateway, id, "active").await;
    }
    discharge(&gateway, 0..1).await;

    let mut receiver: Connection<TcpStream> = Connection::over(stream);
    let received = String::from_utf8(receiver.receive(WAIT).await.unwrap().to_vec()).unwrap();
    assert!(
        received.starts_with("MSH|^~\\&|PONS||WARD||") && received.contains("|ADT^A03^ADT_A03|"),
        "{received}"
    );
    assert!(received.contains("\rPID|1||P0^^^GENHOSP"), "{received}");
    let id = received.split('|').nth(9).unwrap();
    receiver.send(format!("MSH|^~\\&|WARD||||2026||ACK|1|P|2.5.1\rMSA|AA|{id}\r").as_bytes()).await.unwrap();

    let came = endpoint.all("/events/base/$process-message", 2).await;
    for (came, kind) in came.iter().zip(["handshake", "event-notification"]) {
        assert_eq!(came.headers["x-key"], SECRET);
        assert_eq!(schemas::fhir::validate(&came.body), []);
        assert_eq!(came.body["entry"][0]["resource"]["resourceType"], "MessageHeader");
        let notification = came.body["entry"][1]["resource"].clone();
        assert_eq!(Came { body: notification, ..came.clone() }.says("type"), kind);
    }
    // How they stand over /fhir.
    let read = ask(&gateway, &format!("GET /fhir/Subscription/{written}"), None).await.json();
    assert_eq!(read["channel"], mllp["channel"]);
    let events = ask(&gateway, &format!("GET /fhir/Subscription/{written}/$status"), None).await;
    assert_eq!(events.status, 200, "{}", events.body);
}

#[tokio::test]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run starts them"]
async fn what_conformance_suites_assert_holds_over_every_other_channel() {
    let services = Services::from_environment().unwrap();
    let setup = Setup {
        bus: Some(services.amqp.clone()),
        settings: vec![format!("bus_management: '{}'", services.management)],
        ..Setup::default()
    };
    let endpoint = Endpoint::start().await;
    let subscribes =
        format!("channels: [message, websocket, amqp], endpoints: ['http://{}/events']", endpoint.at);
    let gateway = start_with(&setup, &subscribes).await;
    let mut made = Vec::new();
    for content in CONTENTS {
        let mut message = sample(&endpoint, &format!("/events/{content}"));
        message["channel"]["type"] = "message".into();
        let mut ids = Vec::new();
        for mut wanted in [message, over_websocket(), of_channel("amqp")] {
            wanted["channel"]["_payload"]["extension"][0]["valueCode"] = content.into();
            ids.push(create(&gateway, &wanted).await);
        }
        made.push((content, ids));
    }
    let mut sockets = Vec::new();
    for (_, ids) in &made {
        for id in ids {
            becomes(&gateway, id, "active").await;
        }
        let token = token(&gateway, &ids[1]).await;
        sockets.push(Socket::bound(&gateway, &token).await);
    }
    let mut greetings = Vec::new();
    for socket in &mut sockets {
        greetings.push(socket.next().await.unwrap());
    }
    discharge(&gateway, 0..1).await;
    for (((content, ids), socket), greeting) in made.iter().zip(&mut sockets).zip(greetings) {
        // A FHIR message: its second entry is the notification.
        let path = format!("/events/{content}/$process-message");
        let came = endpoint.all(&path, 2).await;
        let notification =
            |came: &Came| Came { body: came.body["entry"][1]["resource"].clone(), ..came.clone() };
        conforms(&ids[0], content, &notification(&came[0]), &notification(&came[1]));

        let event = loop {
            let came = socket.next().await.unwrap();
            if came.says("type") == "event-notification" {
                break came;
            }
        };
        conforms(&ids[1], content, &greeting, &event);

        let (url, queue, _) = credentials(&gateway, &ids[2]).await;
        let mut subscriber = Client::open(&url).await.unwrap();
        subscriber.consume(&queue, 10).await.unwrap();
        let mut read = Vec::new();
        for _ in 0..2 {
            let message = timeout(WAIT, subscriber.next()).await.unwrap().unwrap();
            let event: Value = serde_json::from_slice(&message.body).unwrap();
            assert_eq!(event["datacontenttype"], "application/fhir+json");
            subscriber.acknowledge(message.tag).await.unwrap();
            read.push(Came { path: String::new(), headers: HeaderMap::new(), body: event["data"].clone() });
        }
        conforms(&ids[2], content, &read[0], &read[1]);
    }
}
