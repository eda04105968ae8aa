//! A client against a broker that does what a test wants.

use super::SPEC;
use super::wire::{Codec, Incoming};
use crate::{Document, Intake, Outcome, Reads, Received, Rejection, SourceContext, Stored, Verdict};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::{QoS, v5};
use schemas::message::MessageId;
use schemas::yaml::{self, Fields, Mistake};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::codec::{Decoder, Framed};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long is waited for what must not come.
const QUIET: Duration = Duration::from_millis(200);

/// An intake that keeps documents once it may.
#[derive(Debug)]
struct Kept {
    documents: Mutex<Vec<Document>>,
    may: Semaphore,
    is_away: AtomicBool,
    reached: AtomicUsize,
}

impl Kept {
    fn new(may: usize) -> Arc<Kept> {
        let documents = Mutex::default();
        let (is_away, reached) = (AtomicBool::new(false), AtomicUsize::new(0));
        Arc::new(Kept { documents, may: Semaphore::new(may), is_away, reached })
    }

    fn documents(&self) -> Vec<Document> {
        self.documents.lock().expect("no panic").clone()
    }
}

#[async_trait]
impl Intake for Kept {
    async fn accept(&self, _: Received) -> Verdict {
        unreachable!("nothing of HL7 v2 is handed in")
    }

    async fn outcome(&self, _: MessageId) -> Outcome {
        Outcome::Unknown
    }

    fn reads(&self, _: &str) -> Option<Reads> {
        Some(Reads::Json)
    }

    async fn accept_documents(&self, source: &str, documents: Vec<Document>) -> Vec<Verdict> {
        assert_eq!(source, "test");
        self.may.acquire().await.expect("open").forget();
        let verdict = match self.is_away.load(Ordering::SeqCst) {
            true => Verdict::Unavailable { reason: "the store is away".to_owned() },
            false => Verdict::Stored(Stored {
                message: MessageId(Uuid::nil()),
                received_at: jiff::Timestamp::UNIX_EPOCH,
                repeat: false,
            }),
        };
        let verdicts = vec![verdict; documents.len()];
        self.documents.lock().expect("no panic").extend(documents);
        verdicts
    }

    fn reaches(&self, _: &str, is_reached: bool) {
        self.reached.fetch_add(usize::from(is_reached), Ordering::SeqCst);
    }

    async fn keep_refused(&self, _: Received, _: Rejection) {}
}

fn configured(config: &str) -> Result<Arc<dyn crate::Source>, Vec<Mistake>> {
    let node = yaml::read(config).expect("YAML").remove(0);
    let mut mistakes = Vec::new();
    let mut fields = Fields::new(&node, "", &mut mistakes);
    let context = SourceContext { name: "test".into(), folder: Path::new(".").into() };
    let source = (SPEC.source.as_ref().expect("a source").read)(&mut fields, &context);
    fields.finish();
    if mistakes.is_empty() { Ok(source.expect("no mistake, so a source")) } else { Err(mistakes) }
}

/// A broker and the client that connects to it.
struct Place {
    listener: TcpListener,
    intake: Arc<Kept>,
    stop: CancellationToken,
    client: tokio::task::JoinHandle<()>,
}

impl Place {
    /// The client may hand in so many times.
    async fn new(config: &str, may: usize) -> Place {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let topics = if config.contains("topics:") { "" } else { "topics: 'd/{device}'\n" };
        let source = configured(&format!("broker: {address}\n{topics}{config}")).expect("configured");
        let (intake, stop) = (Kept::new(may), CancellationToken::new());
        let running = source.start(intake.clone(), stop.clone()).await.expect("started");
        Place { listener, intake, stop, client: running.task }
    }

    /// The next connection, taken.
    async fn accept(&self, session_present: bool) -> (Broker, v5::Connect) {
        let (stream, _) = within(self.listener.accept()).await.expect("a connection");
        let codec = v5::Codec { max_incoming_size: None, max_outgoing_size: None };
        let mut broker = Broker { wire: Framed::new(stream, codec) };
        let v5::Packet::Connect(connect, _, login) = broker.hear().await else { panic!("it connects first") };
        assert_eq!(login, None);
        let code = v5::ConnectReturnCode::Success;
        broker.say(v5::Packet::ConnAck(v5::ConnAck { session_present, code, properties: None })).await;
        (broker, connect)
    }

    /// The same, with its subscription granted.
    async fn accept_new(&self) -> Broker {
        let (mut broker, _) = self.accept(false).await;
        broker.grant(v5::SubscribeReasonCode::Success(QoS::AtLeastOnce)).await;
        broker
    }

    async fn end(self) -> Arc<Kept> {
        self.stop.cancel();
        within(self.client).await.expect("it ends by itself");
        self.intake
    }
}

/// The broker's end of a connection.
struct Broker {
    wire: Framed<TcpStream, v5::Codec>,
}

impl Broker {
    async fn hear(&mut self) -> v5::Packet {
        within(self.wire.next()).await.expect("it is connected").expect("a packet")
    }

    async fn say(&mut self, packet: v5::Packet) {
        self.wire.send(packet).await.expect("it is connected");
    }

    /// Answers the subscription; says to what.
    async fn grant(&mut self, code: v5::SubscribeReasonCode) -> Vec<String> {
        let v5::Packet::Subscribe(subscribe) = self.hear().await else { panic!("it subscribes") };
        let return_codes = vec![code; subscribe.filters.len()];
        self.say(v5::Packet::SubAck(v5::SubAck { pkid: subscribe.pkid, return_codes, properties: None }))
            .await;
        assert!(subscribe.filters.iter().all(|filter| filter.qos == QoS::AtLeastOnce));
        subscribe.filters.into_iter().map(|filter| filter.path).collect()
    }

    async fn publish(&mut self, number: u16, again: bool, topic: &str, payload: &str) {
        self.say(publish(number, again, topic, payload)).await;
    }

    async fn acknowledged(&mut self, number: u16) {
        assert_eq!(self.hear().await, v5::Packet::PubAck(v5::PubAck::new(number, None)));
    }

    async fn hears_nothing(&mut self) {
        let heard = tokio::time::timeout(QUIET, self.wire.next()).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    /// Reads until the client has closed; the bytes that it says meanwhile.
    async fn closed(self) -> Vec<u8> {
        let parts = self.wire.into_parts();
        let (mut stream, mut heard) = (parts.io, parts.read_buf.to_vec());
        within(stream.read_to_end(&mut heard)).await.expect("it closes");
        heard
    }
}

fn publish(number: u16, again: bool, topic: &str, payload: &str) -> v5::Packet {
    let qos = if number == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let packet = v5::Publish::new(topic, qos, payload.to_owned(), None);
    v5::Packet::Publish(v5::Publish { pkid: number, dup: again, ..packet })
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes in time")
}

#[tokio::test]
async fn a_packet_is_acknowledged_once_it_is_durable_and_in_its_order() {
    let place = Place::new("", 0).await;
    let mut broker = place.accept_new().await;
    broker.publish(1, false, "d/7", "{\"v\":1}").await;
    broker.publish(2, false, "d/8", "{\"v\":2}").await;
    broker.publish(0, false, "d/8", "{\"v\":3}").await;
    broker.hears_nothing().await;
    place.intake.may.add_permits(9);
    broker.acknowledged(1).await;
    broker.acknowledged(2).await;
    place.stop.cancel();
    assert_eq!(broker.closed().await, [0xE0_u8, 0], "it says goodbye");
    let documents = place.end().await.documents();
    let bytes: Vec<&[u8]> = documents.iter().map(|document| &document.bytes[..]).collect();
    assert_eq!(bytes, [b"{\"v\":1}", b"{\"v\":2}", b"{\"v\":3}"]);
    assert_eq!(documents[2].handed, None, "quality of service 0");
    let wire = [("topic".into(), "d/7".to_owned()), ("device".into(), "7".to_owned())];
    assert_eq!(documents[0].wire, wire);
}

#[tokio::test]
async fn what_cannot_be_kept_now_is_left_to_the_broker_and_taken_when_it_comes_again() {
    let place = Place::new("", 9).await;
    let mut broker = place.accept_new().await;
    broker.publish(1, false, "d/7", "{\"v\":1}").await;
    broker.acknowledged(1).await;
    place.intake.is_away.store(true, Ordering::SeqCst);
    broker.publish(2, false, "d/7", "{\"v\":2}").await;
    assert!(broker.closed().await.is_empty());
    place.intake.is_away.store(false, Ordering::SeqCst);
    let (mut broker, connect) = place.accept(true).await;
    assert_eq!((connect.client_id.as_str(), connect.clean_start), ("pons-test", false));
    let properties = connect.properties.expect("some");
    assert_eq!((properties.session_expiry_interval, properties.receive_maximum), (Some(604_800), Some(2000)));
    broker.publish(2, true, "d/7", "{\"v\":2}").await;
    broker.acknowledged(2).await;
    let intake = place.end().await;
    let handed: Vec<_> = intake.documents().into_iter().filter_map(|document| document.handed).collect();
    let handed: Vec<_> = handed.iter().map(|handed| (handed.number.as_str(), handed.again)).collect();
    assert_eq!(handed, [("1#0", false), ("2#0", false), ("2#0", true)]);
    assert_eq!(intake.reached.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_filters_are_subscribed_to_once_a_session() {
    let place = Place::new("topics: ['a/{x}/#', '+/b']", 9).await;
    let (mut broker, _) = place.accept(true).await;
    let filters = broker.grant(v5::SubscribeReasonCode::Success(QoS::AtLeastOnce)).await;
    assert_eq!(
        filters,
        ["a/+/#", "+/b"],
        "what an earlier process subscribed to may have been something else"
    );
    drop(broker);
    let (mut broker, _) = place.accept(true).await;
    broker.publish(5, false, "q/b", "1").await;
    broker.acknowledged(5).await;
    drop(broker);
    let (mut broker, _) = place.accept(false).await;
    assert_eq!(broker.grant(v5::SubscribeReasonCode::Success(QoS::AtLeastOnce)).await.len(), 2);
    place.end().await;
}

#[tokio::test]
async fn a_connection_or_a_subscription_that_is_refused_is_tried_again() {
    let place = Place::new("", 9).await;
    let (stream, _) = within(place.listener.accept()).await.expect("a connection");
    let codec = v5::Codec { max_incoming_size: None, max_outgoing_size: None };
    let mut broker = Broker { wire: Framed::new(stream, codec) };
    broker.hear().await;
    let code = v5::ConnectReturnCode::NotAuthorized;
    broker.say(v5::Packet::ConnAck(v5::ConnAck { session_present: false, code, properties: None })).await;
    assert!(broker.closed().await.is_empty());
    assert_eq!(place.intake.reached.load(Ordering::SeqCst), 0);
    let (mut broker, _) = place.accept(false).await;
    broker.grant(v5::SubscribeReasonCode::NotAuthorized).await;
    assert!(broker.closed().await.is_empty());
    let mut broker = place.accept_new().await;
    broker.publish(1, false, "d/7", "1").await;
    broker.acknowledged(1).await;
    place.end().await;
}

#[tokio::test]
async fn what_is_too_large_is_passed_by_with_its_head_and_holds_up_nobody() {
    let place = Place::new("payload_max: 1KiB", 9).await;
    let mut broker = place.accept_new().await;
    broker.publish(1, false, "d/7", &format!("\"{}\"", "x".repeat(900_000))).await;
    broker.publish(2, false, "d/7", "2").await;
    broker.publish(3, false, "d/7", &format!("\"{}\"", "y".repeat(140_000))).await;
    broker.publish(4, false, "d/7", &format!("\"{}\"", "z".repeat(1024))).await;
    for number in 1..5 {
        broker.acknowledged(number).await;
    }
    let documents = place.end().await.documents();
    assert_eq!(documents[0].fault.as_deref(), Some("larger than 1024 bytes"));
    assert_eq!((documents[0].bytes.len(), &documents[0].bytes[..2]), (64 << 10, &b"\"x"[..]));
    assert_eq!(documents[1].fault, None);
    assert_eq!((documents[2].bytes.len(), &documents[2].bytes[..2]), (64 << 10, &b"\"y"[..]));
    assert_eq!(documents[3].fault.as_deref(), Some("larger than 1024 bytes"));
}

#[tokio::test]
async fn a_payload_is_one_document_or_many_each_with_its_patient_and_device() {
    let config = "topics: 'd/{device}'\npatient: {at: /who, assigner: GENHOSP}\ndevice: {level: device}\ndocuments_max: 2";
    let place = Place::new(config, 9).await;
    let mut broker = place.accept_new().await;
    broker.publish(1, false, "d/7", r#"[{"who":"P1","v":1.0},{"v":2}]"#).await;
    broker.publish(2, false, "d/7", "{\"v\":").await;
    broker.publish(3, false, "d/7", "").await;
    broker.publish(4, false, "d/7", "[1,2,3]").await;
    broker.publish(5, false, "d/7", "[]").await;
    broker.publish(6, false, "elsewhere", "6").await;
    for number in 1..7 {
        broker.acknowledged(number).await;
    }
    let documents = place.end().await.documents();
    let told: Vec<_> = documents
        .iter()
        .map(|one| {
            let number = one.handed.as_ref().map(|handed| handed.number.as_str()).unwrap_or_default();
            let text = std::str::from_utf8(&one.bytes).expect("UTF-8");
            (number, text, one.patient.is_some(), one.device.as_deref(), one.fault.as_deref())
        })
        .collect();
    assert_eq!(
        told,
        [
            ("1#0", r#"{"who":"P1","v":1.0}"#, true, Some("7"), None),
            ("1#1", r#"{"v":2}"#, false, Some("7"), None),
            ("2#0", "{\"v\":", false, Some("7"), None),
            ("3#0", "", false, Some("7"), Some("an empty payload")),
            ("4#0", "[1,2,3]", false, Some("7"), Some("more than 2 documents")),
            ("6#0", "6", false, None, None),
        ]
    );
}

#[tokio::test]
async fn no_more_is_taken_than_may_be_under_way() {
    let place = Place::new("in_flight_max: 2", 0).await;
    let mut broker = place.accept_new().await;
    for number in 1..=5 {
        broker.publish(number, false, "d/7", "1").await;
    }
    tokio::time::sleep(QUIET).await;
    place.intake.may.add_permits(9);
    for number in 1..=5 {
        broker.acknowledged(number).await;
    }
    place.end().await;
}

#[tokio::test]
async fn a_broker_that_is_silent_is_asked_and_then_given_up() {
    let place = Place::new("keep_alive: 1s", 9).await;
    let mut broker = place.accept_new().await;
    assert_eq!(broker.hear().await, v5::Packet::PingReq(v5::PingReq));
    broker.say(v5::Packet::PingResp(v5::PingResp)).await;
    assert_eq!(broker.hear().await, v5::Packet::PingReq(v5::PingReq));
    let (_broker, _) = place.accept(true).await;
    place.end().await;
}

#[tokio::test]
async fn a_stream_that_is_not_acknowledged_does_not_keep_it_from_asking() {
    let place = Place::new("keep_alive: 1s", 1000).await;
    let mut broker = place.accept_new().await;
    for _ in 0..40 {
        broker.publish(0, false, "d/7", "1").await;
        let heard = tokio::time::timeout(Duration::from_millis(50), broker.wire.next()).await;
        if let Ok(Some(Ok(packet))) = heard {
            assert_eq!(packet, v5::Packet::PingReq(v5::PingReq));
            place.end().await;
            return;
        }
    }
    panic!("it says nothing for two seconds");
}

#[tokio::test]
async fn the_older_version_is_spoken_as_well() {
    let place = Place::new("version: 3.1.1\nclient_id: ward7", 9).await;
    let (stream, _) = within(place.listener.accept()).await.expect("a connection");
    let codec = v4::Codec { max_incoming_size: 1 << 20, max_outgoing_size: 1 << 20 };
    let mut wire = Framed::new(stream, codec);
    let v4::Packet::Connect(connect) = within(wire.next()).await.expect("there").expect("a packet") else {
        panic!("it connects first")
    };
    assert_eq!((connect.client_id.as_str(), connect.clean_session), ("ward7", false));
    let accepted = v4::ConnAck { session_present: false, code: v4::ConnectReturnCode::Success };
    wire.send(v4::Packet::ConnAck(accepted)).await.expect("there");
    let heard = within(wire.next()).await.expect("there").expect("a packet");
    let v4::Packet::Subscribe(subscribe) = heard else { panic!("it subscribes") };
    let granted = vec![v4::SubscribeReasonCode::Success(rumqttc::QoS::AtLeastOnce)];
    wire.send(v4::Packet::SubAck(v4::SubAck::new(subscribe.pkid, granted))).await.expect("there");
    let mut publish = v4::Publish::new("d/7", rumqttc::QoS::AtLeastOnce, "{\"v\":1}");
    publish.pkid = 9;
    wire.send(v4::Packet::Publish(publish)).await.expect("there");
    let heard = within(wire.next()).await.expect("there").expect("a packet");
    assert_eq!(heard, v4::Packet::PubAck(v4::PubAck::new(9)));
    assert_eq!(place.end().await.documents().len(), 1);
}

#[test]
fn what_a_configuration_gets_wrong_is_told() {
    let with = |rest: &str| {
        let mistakes = configured(&format!("broker: 127.0.0.1:1883\n{rest}")).err().unwrap_or_default();
        mistakes.iter().map(|mistake| format!("{}: {}", mistake.key, mistake.text)).collect::<Vec<_>>()
    };
    assert_eq!(with("topics: 'a/{b}'"), [""; 0]);
    assert_eq!(with("topics: []"), ["topics: expected at least one"]);
    assert_eq!(with("topics: 'a/#/b'"), ["topics: nothing may follow `#`"]);
    assert_eq!(
        with("topics: ['a/{b}', c]\ndevice: {level: b}"),
        ["device.level: is no level of every topic: name it there as `{b}`"]
    );
    assert_eq!(with("topics: a\npatient: {at: x, level: y}").len(), 1);
    assert_eq!(with("topics: a\npassword: {env: PATH}"), ["password: needs `username` beside it"]);
    let plain = configured("broker: mqtt.example:1883\ntopics: a").expect_err("refused");
    assert!(plain[0].text.starts_with("off loopback needs `tls`"), "{plain:?}");
    assert!(configured("broker: mqtt.example:1883\ntopics: a\nplain_text_waiver: a tunnel").is_ok());
    assert!(configured("broker: mqtt.example:8883\ntopics: a\ntls: {}").is_ok());
}

/// What is read from bytes that come in pieces of this size.
fn read(is_v5: bool, bytes: &[u8], piece: usize) -> (Vec<Incoming>, bool) {
    let mut codec = Codec::new(is_v5, 1024);
    let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
    for part in bytes.chunks(piece.max(1)) {
        buffer.extend_from_slice(part);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(incoming)) => read.push(incoming),
                Ok(None) => break,
                Err(_) => return (read, false),
            }
        }
    }
    (read, true)
}

#[test]
fn packets_are_the_same_however_their_bytes_come() {
    let mut bytes = BytesMut::new();
    let packets = [
        publish(1, false, "d/7", "{}"),
        publish(2, true, "d/7", &"x".repeat(200_000)),
        v5::Packet::PingResp(v5::PingResp),
        publish(0, false, "ä/7", "{\"v\":1}"),
    ];
    for packet in packets {
        packet.write(&mut bytes, None).expect("written");
    }
    let (whole, is_right) = read(true, &bytes, bytes.len());
    assert!(is_right && whole.len() == 4);
    for piece in [1, 2, 3, 7, 4096, 65_536] {
        assert_eq!(read(true, &bytes, piece).0, whole, "{piece}");
    }
}

proptest! {
    #[test]
    fn no_bytes_bring_the_reader_down(
        first in any::<u8>(),
        body in proptest::collection::vec(any::<u8>(), 0..120),
        is_v5 in any::<bool>(),
        piece in 1_usize..9,
    ) {
        let mut bytes = vec![first, u8::try_from(body.len()).unwrap()];
        bytes.extend(&body);
        prop_assert_eq!(read(is_v5, &bytes, piece), read(is_v5, &bytes, bytes.len()));
        read(is_v5, &body, piece);
    }
}

#[test]
fn the_bytes_of_a_document_are_those_of_its_packet() {
    let mut bytes = BytesMut::new();
    publish(1, false, "d", "[1.50, 2]").write(&mut bytes, None).expect("written");
    let (read, _) = read(true, &bytes, bytes.len());
    let Incoming::Published(published) = &read[0] else { panic!("published") };
    assert_eq!(published.payload, Bytes::from_static(b"[1.50, 2]"));
}
