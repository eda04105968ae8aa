//! One suite over both buses, then what only RabbitMQ can do wrong.

mod broker;

use super::*;
use schemas::message::MessageId;
use std::time::Duration;
use tokio::time::timeout;
use uuid::Uuid;

/// Long enough for a busy machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it should not take that long")
}

fn envelope(subscription: &str, number: u64, body: &str) -> Envelope {
    let message = MessageId(Uuid::from_u128(u128::from(number)));
    Envelope {
        delivery: DeliveryId::of(Uuid::NAMESPACE_OID, message, subscription, 0),
        subscription: subscription.into(),
        routing_key: routing_key(subscription, "result-final", "TESTLAB"),
        traceparent: Some(format!("00-{number:032x}-00f067aa0ba902b7-01")),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn batch(subscription: &str, numbers: std::ops::Range<u64>) -> Vec<Envelope> {
    numbers.map(|n| envelope(subscription, n, &format!("body {n}"))).collect()
}

fn all_ok(results: &[Result<(), BusError>]) -> bool {
    results.iter().all(Result::is_ok)
}

async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Taken> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(soon(consumer.next()).await.expect("the bus is there"));
    }
    taken
}

fn bodies(taken: &[Taken]) -> Vec<String> {
    taken.iter().map(|t| String::from_utf8(t.body.to_vec()).expect("text was put in")).collect()
}

/// Whether nothing more comes. Proven by order instead of by waiting: what is published now must be the next to come.
async fn is_drained(bus: &dyn Bus, consumer: &mut dyn Consumer, subscription: &str) -> bool {
    let last = envelope(subscription, 999_999, "the last one");
    assert!(all_ok(&bus.publish(vec![last]).await));
    let taken = take(consumer, 1).await;
    consumer.settle(&[taken[0].ticket]).await.expect("the bus is there");
    bodies(&taken) == ["the last one"]
}

/// The promises of the trait; `name` is a subscription nobody else uses.
mod suite {
    use super::*;

    pub(super) async fn what_is_published_comes_in_order_with_its_ids(bus: &dyn Bus, name: &str) {
        bus.declare(name).await.expect("the bus is there");
        let sent = batch(name, 0..1200);
        assert!(all_ok(&bus.publish(sent.clone()).await));
        let mut consumer = bus.consume(name, 2000).await.expect("it was declared");
        let taken = take(&mut *consumer, 1200).await;
        for (sent, taken) in sent.iter().zip(&taken) {
            assert_eq!((sent.delivery, &sent.body), (taken.delivery, &taken.body));
            assert_eq!(sent.traceparent, taken.traceparent);
            assert!(!taken.redelivered);
        }
    }

    pub(super) async fn what_is_removed_is_gone_with_what_lay_in_it(bus: &dyn Bus, name: &str) {
        bus.remove(name).await.expect("what is not there is gone");
        bus.declare(name).await.expect("the bus is there");
        assert!(all_ok(&bus.publish(batch(name, 0..10)).await));
        bus.remove(name).await.expect("the bus is there");
        bus.declare(name).await.expect("it can be made again");
        let mut consumer = bus.consume(name, 100).await.expect("it was declared");
        assert!(is_drained(bus, &mut *consumer, name).await);
    }

    pub(super) async fn what_is_not_settled_comes_back(bus: &dyn Bus, name: &str) {
        bus.declare(name).await.expect("the bus is there");
        assert!(all_ok(&bus.publish(batch(name, 0..10)).await));
        let mut consumer = bus.consume(name, 100).await.expect("it was declared");
        let taken = take(&mut *consumer, 10).await;
        // Out of order, with holes: 0 to 2, 5 and 9 are settled.
        let tickets: Vec<Ticket> = [5, 1, 0, 9, 2].iter().map(|&n: &usize| taken[n].ticket).collect();
        consumer.settle(&tickets).await.expect("the bus is there");
        consumer.settle(&[]).await.expect("the bus is there");
        drop(consumer);
        let mut consumer = bus.consume(name, 100).await.expect("it was declared");
        let again = take(&mut *consumer, 5).await;
        assert_eq!(bodies(&again), ["body 3", "body 4", "body 6", "body 7", "body 8"]);
        assert!(again.iter().all(|taken| taken.redelivered));
        // A ticket of the consumer before is void: it must not settle another message that has the same tag.
        consumer.settle(&[taken[0].ticket]).await.expect("the bus is there");
        let tickets: Vec<Ticket> = again.iter().skip(1).map(|taken| taken.ticket).collect();
        consumer.settle(&tickets).await.expect("the bus is there");
        consumer.settle(&[]).await.expect("the bus is there");
        drop(consumer);
        let mut consumer = bus.consume(name, 100).await.expect("it was declared");
        assert_eq!(bodies(&take(&mut *consumer, 1).await), ["body 3"]);
        assert!(is_drained(bus, &mut *consumer, name).await);
    }

    pub(super) async fn no_more_than_the_window_is_out(bus: &dyn Bus, name: &str) {
        bus.declare(name).await.expect("the bus is there");
        assert!(all_ok(&bus.publish(batch(name, 0..5)).await));
        let mut consumer = bus.consume(name, 2).await.expect("it was declared");
        let taken = take(&mut *consumer, 2).await;
        // The third one is not out, or another consumer could not have it.
        let mut other = bus.consume(name, 2).await.expect("it was declared");
        assert_eq!(bodies(&take(&mut *other, 2).await), ["body 2", "body 3"]);
        consumer.settle(&[taken[0].ticket]).await.expect("the bus is there");
        consumer.settle(&[]).await.expect("the bus is there");
        assert_eq!(bodies(&take(&mut *consumer, 1).await), ["body 4"]);
    }

    pub(super) async fn without_a_queue_it_is_returned(bus: &dyn Bus, name: &str) {
        let nowhere = format!("{name}-nowhere");
        bus.declare(name).await.expect("the bus is there");
        let mixed = vec![
            envelope(name, 0, "goes"),
            envelope(&nowhere, 1, "comes back"),
            envelope(name, 2, "goes"),
            envelope(&nowhere, 3, "comes back"),
            envelope(name, 4, "goes"),
        ];
        let results = bus.publish(mixed).await;
        let returned: Vec<bool> = results.iter().map(|r| matches!(r, Err(BusError::Returned))).collect();
        assert_eq!(returned, [false, true, false, true, false]);
        assert!(results[0].is_ok() && results[2].is_ok() && results[4].is_ok());
        bus.declare(&nowhere).await.expect("the bus is there");
        assert!(all_ok(&bus.publish(vec![envelope(&nowhere, 1, "goes now")]).await));
    }

    pub(super) async fn subscriptions_do_not_mix(bus: &dyn Bus, name: &str) {
        // Names that would be patterns or reach into another queue if they were taken as they are.
        let names = [format!("{name}.a"), name.to_owned(), format!("{name}.#"), format!("{name}%2Ea")];
        for name in &names {
            bus.declare(name).await.expect("the bus is there");
        }
        for (n, name) in names.iter().enumerate() {
            assert!(all_ok(&bus.publish(vec![envelope(name, n as u64, name)]).await));
        }
        for name in &names {
            let mut consumer = bus.consume(name, 10).await.expect("it was declared");
            assert_eq!(bodies(&take(&mut *consumer, 1).await), [name.as_str()]);
            assert!(is_drained(bus, &mut *consumer, name).await);
        }
    }

    pub(super) async fn a_mark_stays(bus: &dyn Bus, name: &str) {
        assert!(!bus.marked(name).await.expect("the bus is there"));
        bus.mark(name).await.expect("the bus is there");
        bus.mark(name).await.expect("a second time changes nothing");
        assert!(bus.marked(name).await.expect("the bus is there"));
        assert_eq!(bus.health(), Health::Connected);
    }
}

/// Every promise as a test over a bus; each gets a subscription of its own.
macro_rules! every_promise {
    ($make:path, $clean:path $(, $ignore:meta)?) => {
        promise!($make, $clean, what_is_published_comes_in_order_with_its_ids $(, $ignore)?);
        promise!($make, $clean, what_is_removed_is_gone_with_what_lay_in_it $(, $ignore)?);
        promise!($make, $clean, what_is_not_settled_comes_back $(, $ignore)?);
        promise!($make, $clean, no_more_than_the_window_is_out $(, $ignore)?);
        promise!($make, $clean, without_a_queue_it_is_returned $(, $ignore)?);
        promise!($make, $clean, subscriptions_do_not_mix $(, $ignore)?);
        promise!($make, $clean, a_mark_stays $(, $ignore)?);
    };
}

macro_rules! promise {
    ($make:path, $clean:path, $name:ident $(, $ignore:meta)?) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $(#[$ignore])?
        async fn $name() {
            let bus = $make();
            let name = format!("{}-{}", stringify!($name), Uuid::now_v7().simple());
            suite::$name(&bus, &name).await;
            $clean(&bus, &name).await;
        }
    };
}

mod embedded {
    use super::*;

    fn bus() -> Embedded {
        Embedded::new(1 << 20)
    }

    /// It is gone with the bus.
    async fn clean(_: &Embedded, _: &str) {}

    every_promise!(bus, clean);

    #[tokio::test]
    async fn a_full_queue_refuses_until_there_is_room() {
        let bus = Embedded::new(20);
        bus.declare("lab").await.expect("it is there");
        let results = bus.publish(batch("lab", 0..4)).await;
        let refused: Vec<bool> = results.iter().map(|r| matches!(r, Err(BusError::Refused))).collect();
        assert_eq!(refused, [false, false, false, true], "three bodies of six bytes fit into twenty");
        let mut consumer = bus.consume("lab", 10).await.expect("it was declared");
        take(&mut *consumer, 1).await;
        assert!(all_ok(&bus.publish(batch("lab", 3..4)).await));
    }

    #[tokio::test]
    async fn what_is_handed_over_is_received_in_order() {
        let bus = bus();
        let receiving = tokio::spawn({
            let bus = bus.clone();
            async move { [bus.receive("own").await.body, bus.receive("own").await.body] }
        });
        for envelope in batch("lab", 0..2) {
            bus.hand_over("own", envelope).await.expect("there is room");
        }
        assert_eq!(soon(receiving).await.expect("it does not panic"), ["body 0", "body 1"]);
    }

    #[tokio::test]
    async fn a_bus_that_was_away_comes_back_with_what_it_had() {
        let bus = bus();
        bus.declare("lab").await.expect("it is there");
        bus.publish(batch("lab", 0..2)).await;
        let mut consumer = bus.consume("lab", 1).await.expect("it was declared");
        take(&mut *consumer, 1).await;
        bus.set_away(true);
        assert_eq!(bus.health(), Health::Away);
        assert!(matches!(consumer.next().await, Err(BusError::Away(_))));
        assert!(matches!(bus.publish(batch("lab", 2..3)).await[0], Err(BusError::Away(_))));
        bus.set_away(false);
        assert!(matches!(consumer.next().await, Err(BusError::Away(_))), "a consumer from before is over");
        drop(consumer);
        let mut consumer = bus.consume("lab", 10).await.expect("it was declared");
        assert_eq!(bodies(&take(&mut *consumer, 2).await), ["body 0", "body 1"]);
    }

    #[tokio::test]
    async fn a_wipe_takes_the_marks_and_ends_the_consumers() {
        let bus = bus();
        bus.declare("lab").await.expect("it is there");
        bus.mark("epoch").await.expect("it is there");
        bus.publish(batch("lab", 0..2)).await;
        let mut consumer = bus.consume("lab", 10).await.expect("it was declared");
        take(&mut *consumer, 1).await;
        bus.wipe();
        assert!(matches!(consumer.next().await, Err(BusError::Away(_))));
        assert!(!bus.marked("epoch").await.expect("it is there"));
        bus.declare("lab").await.expect("it is there");
        drop(consumer);
        let mut consumer = bus.consume("lab", 10).await.expect("it was declared");
        assert!(is_drained(&bus, &mut *consumer, "lab").await, "what was held before the wipe is lost too");
    }
}

mod rabbitmq {
    use super::*;
    use crate::bus::SettingsError;

    fn url() -> String {
        std::env::var("PONS_TEST_AMQP").expect("tests/run sets PONS_TEST_AMQP")
    }

    fn bus() -> RabbitMq {
        RabbitMq::new(RabbitMqSettings::new(url())).expect("the settings are right")
    }

    /// Deletes the queues of the suite.
    async fn clean(bus: &RabbitMq, name: &str) {
        for queue in ["", ".a", ".#", "%2Ea", "-nowhere"] {
            bus.forget(&format!("{name}{queue}")).await;
        }
    }

    every_promise!(bus, clean, ignore = "needs RabbitMQ: tests/run starts it");

    #[test]
    fn settings_that_cannot_work_are_refused_without_repeating_the_password() {
        for url in ["http://guest:secret@127.0.0.1", "amqp//", ""] {
            let error = RabbitMq::new(RabbitMqSettings::new(url)).err().expect("it is no AMQP address");
            assert_eq!(error, SettingsError::Url);
            assert!(!error.to_string().contains("secret"));
        }
        let tls = Some(TlsSettings { ca: None, identity: None });
        let plain = RabbitMqSettings { tls, ..RabbitMqSettings::new("amqp://127.0.0.1") };
        assert_eq!(RabbitMq::new(plain).err(), Some(SettingsError::TlsUnused));
        let narrow = RabbitMqSettings { window: 0, ..RabbitMqSettings::new("amqp://127.0.0.1") };
        assert_eq!(RabbitMq::new(narrow).err(), Some(SettingsError::Window));
    }

    #[tokio::test]
    async fn a_broker_that_is_not_there_is_away_and_asked_again_after_a_pause() {
        // Port 1 of loopback: nobody listens.
        let bus =
            RabbitMq::new(RabbitMqSettings::new("amqp://127.0.0.1:1/%2f")).expect("the settings are right");
        assert!(matches!(soon(bus.declare("lab")).await, Err(BusError::Away(_))));
        let results = soon(bus.publish(batch("lab", 0..3))).await;
        assert!(results.iter().all(|result| matches!(result, Err(BusError::Away(_)))));
        assert_eq!(bus.health(), Health::Away);
    }

    /// Everything in a subscriber's own queue, as (message id, content type, body).
    async fn contents(queue: &str) -> Vec<(String, String, String)> {
        contents_at(&url(), queue).await
    }

    async fn contents_at(url: &str, queue: &str) -> Vec<(String, String, String)> {
        let properties = lapin::ConnectionProperties::default();
        let connection = lapin::Connection::connect(url, properties).await.expect("the broker is there");
        let channel = connection.create_channel().await.expect("the broker is there");
        let mut found = Vec::new();
        while let Some(message) = channel
            .basic_get(queue.into(), lapin::options::BasicGetOptions { no_ack: true })
            .await
            .expect("the queue is there")
        {
            let text = |text: &Option<lapin::types::ShortString>| {
                text.as_ref().map(ToString::to_string).unwrap_or_default()
            };
            found.push((
                text(message.properties.message_id()),
                text(message.properties.content_type()),
                String::from_utf8(message.data.clone()).expect("text was put in"),
            ));
        }
        found
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs RabbitMQ: tests/run starts it"]
    async fn what_is_handed_over_lies_in_the_subscribers_queue_with_its_id() {
        let bus = bus();
        let queue = format!("own-{}", Uuid::now_v7().simple());
        let sent = batch("lab", 0..200);
        let handing = sent.iter().map(|envelope| bus.hand_over(&queue, envelope.clone()));
        assert!(all_ok(&soon(futures_util::future::join_all(handing)).await));
        let mut found = contents(&queue).await;
        found.sort();
        let mut expected: Vec<_> = sent
            .iter()
            .map(|sent| {
                let body = String::from_utf8(sent.body.to_vec()).expect("text was put in");
                (sent.delivery.to_string(), "application/cloudevents+json".to_owned(), body)
            })
            .collect();
        expected.sort();
        assert_eq!(found, expected);
        bus.forget(&queue).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs RabbitMQ: tests/run starts it"]
    async fn a_subscribers_queue_that_nobody_reads_refuses_in_the_end() {
        let settings = RabbitMqSettings { own_queue_bytes_max: 10_000, ..RabbitMqSettings::new(url()) };
        let bus = RabbitMq::new(settings).expect("the settings are right");
        let queue = format!("full-{}", Uuid::now_v7().simple());
        let body = "x".repeat(1000);
        let mut put = 0;
        let refused = loop {
            match soon(bus.hand_over(&queue, envelope("lab", put, &body))).await {
                Ok(()) => put += 1,
                Err(error) => break error,
            }
            assert!(put < 1000, "a queue of 10 KB took 1 MB");
        };
        assert!(matches!(refused, BusError::Refused));
        assert_eq!(contents(&queue).await.len() as u64, put, "what was confirmed is there, and nothing else");
        bus.forget(&queue).await;
    }

    /// Asks until the bus is there again: it pauses between its attempts to connect.
    async fn until_there<T>(ask: impl AsyncFn() -> Result<T, BusError>) -> T {
        let asking = async {
            loop {
                match ask().await {
                    Ok(answer) => return answer,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        soon(asking).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs RabbitMQ: tests/run starts it"]
    async fn a_broker_that_is_killed_keeps_what_it_confirmed_and_one_that_is_wiped_says_so() {
        let mut broker = broker::Broker::start().await;
        let bus = RabbitMq::new(RabbitMqSettings::new(broker.url())).expect("the settings are right");
        bus.mark("epoch").await.expect("the broker is there");
        // The last queue that is made: what the broker knows only of it is lost most easily.
        bus.declare("lab").await.expect("the broker is there");
        let confirmed = bus.publish(batch("lab", 0..50)).await;
        assert!(all_ok(&confirmed));
        let mut consumer = bus.consume("lab", 10).await.expect("it was declared");
        let taken = take(&mut *consumer, 10).await;

        broker.kill();
        assert!(matches!(soon(consumer_end(&mut *consumer)).await, BusError::Away(_)));
        assert!(bus.publish(batch("lab", 50..60)).await.iter().all(Result::is_err));
        assert_eq!(bus.health(), Health::Away);
        broker.again().await;
        until_there(async || bus.declare("lab").await).await;
        assert!(bus.marked("epoch").await.expect("the broker is there"));
        let void: Vec<Ticket> = taken.iter().map(|taken| taken.ticket).collect();
        let mut consumer = until_there(async || bus.consume("lab", 100).await).await;
        consumer.settle(&void).await.expect("void tickets are passed over");
        let mut again = bodies(&take(&mut *consumer, 50).await);
        again.sort();
        let mut expected: Vec<String> = (0..50).map(|n| format!("body {n}")).collect();
        expected.sort();
        assert_eq!(again, expected, "everything confirmed, and nothing that was not");

        broker.kill();
        broker.wipe();
        broker.again().await;
        assert!(!until_there(async || bus.marked("epoch").await).await);
        until_there(async || bus.declare("lab").await).await;
        assert!(all_ok(&bus.publish(batch("lab", 0..1)).await));
        let mut consumer = until_there(async || bus.consume("lab", 100).await).await;
        assert_eq!(bodies(&take(&mut *consumer, 1).await), ["body 0"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs RabbitMQ: tests/run starts it"]
    async fn a_queue_that_a_kill_right_after_its_making_left_dead_is_made_anew() {
        let mut broker = broker::Broker::start().await;
        let bus = impatient(broker.url());
        bus.mark("epoch").await.expect("the broker is there");
        bus.declare("well").await.expect("the broker is there");
        assert!(all_ok(&bus.publish(batch("well", 0..5)).await));
        make_last(&broker.url(), "pons.sub.lab").await;
        broker.kill();
        broker.again().await;
        let mut consumer = until_there(async || {
            bus.declare("lab").await?;
            bus.consume("lab", 100).await
        })
        .await;
        assert!(all_ok(&bus.publish(batch("lab", 5..10)).await));
        assert_eq!(bodies(&take(&mut *consumer, 5).await), bodies_of(5..10));
        // One that is well is left as it is.
        let mut consumer = until_there(async || bus.consume("well", 100).await).await;
        assert_eq!(bodies(&take(&mut *consumer, 5).await), bodies_of(0..5));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs RabbitMQ: tests/run starts it"]
    async fn a_subscribers_queue_that_a_kill_right_after_its_making_left_dead_is_made_anew() {
        let mut broker = broker::Broker::start().await;
        let bus = impatient(broker.url());
        bus.mark("epoch").await.expect("the broker is there");
        assert!(bus.hand_over("well", envelope("lab", 0, "kept")).await.is_ok());
        make_last(&broker.url(), "own").await;
        broker.kill();
        broker.again().await;
        // As after a start of the gateway too: nothing is known of what was there. Whoever hands over gives up long before.
        let bus = impatient(broker.url());
        let first = bus.hand_over("own", envelope("lab", 1, "late"));
        assert!(tokio::time::timeout(Duration::from_millis(100), first).await.is_err());
        until_there(async || bus.hand_over("own", envelope("lab", 2, "arrived")).await).await;
        assert!(bus.hand_over("well", envelope("lab", 3, "later")).await.is_ok());
        let bodies = async |queue| -> Vec<String> {
            contents_at(&broker.url(), queue).await.into_iter().map(|(_, _, body)| body).collect()
        };
        assert_eq!(bodies("own").await.last().map(String::as_str), Some("arrived"));
        assert_eq!(bodies("well").await, ["kept", "later"], "one that has worked is left as it is");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs RabbitMQ: tests/run starts it"]
    async fn a_subscribers_queue_is_tried_out_without_taking_anything_from_it() {
        let queue = format!("theirs-{}", Uuid::now_v7().simple());
        make_last(&url(), &queue).await;
        let properties = lapin::ConnectionProperties::default();
        let theirs = lapin::Connection::connect(&url(), properties).await.expect("the broker is there");
        let channel = theirs.create_channel().await.expect("the broker is there");
        for body in ["one", "two", "three"] {
            let options = lapin::options::BasicPublishOptions::default();
            let properties = lapin::BasicProperties::default();
            let put =
                channel.basic_publish("".into(), queue.as_str().into(), options, body.as_bytes(), properties);
            put.await.expect("the queue is there");
        }
        let bus = bus();
        assert!(bus.hand_over(&queue, envelope("lab", 4, "four")).await.is_ok());
        let found: Vec<String> = contents(&queue).await.into_iter().map(|(_, _, body)| body).collect();
        assert_eq!(found, ["one", "two", "three", "four"]);

        // Of another one its subscriber alone is the reader.
        let exclusive = format!("exclusive-{}", Uuid::now_v7().simple());
        make_last(&url(), &exclusive).await;
        let mine = lapin::options::BasicConsumeOptions { exclusive: true, ..Default::default() };
        let name = exclusive.as_str().into();
        let reading = channel.basic_consume(name, "".into(), mine, Default::default()).await;
        assert!(reading.is_ok());
        assert!(bus.hand_over(&exclusive, envelope("lab", 5, "five")).await.is_ok());
        drop((reading, channel, theirs));
        bus.forget(&queue).await;
        bus.forget(&exclusive).await;
    }

    /// A bus that does not wait long for a queue that is dead.
    fn impatient(url: String) -> RabbitMq {
        let settings =
            RabbitMqSettings { consume_wait_max: Duration::from_secs(4), ..RabbitMqSettings::new(url) };
        RabbitMq::new(settings).expect("the settings are right")
    }

    /// Makes a queue as somebody else would. It is the last one: RabbitMQ writes down up to a second later where its log lies.
    async fn make_last(url: &str, queue: &str) {
        let properties = lapin::ConnectionProperties::default();
        let others = lapin::Connection::connect(url, properties).await.expect("the broker is there");
        let channel = others.create_channel().await.expect("the broker is there");
        let mut quorum = lapin::types::FieldTable::default();
        quorum.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("quorum".into()));
        let options = lapin::options::QueueDeclareOptions::durable();
        channel.queue_declare(queue.into(), options, quorum).await.expect("the broker is there");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs RabbitMQ: tests/run starts it"]
    async fn a_subscribers_queue_that_somebody_deleted_is_made_and_marked_anew() {
        let own = format!("own-{}", Uuid::now_v7().simple());
        let mark = format!("made.{own}");
        assert!(bus().hand_over(&own, envelope("lab", 1, "first")).await.is_ok());
        assert!(bus().marked(&mark).await.expect("the broker is there"));
        delete(&own).await;
        let bus = bus();
        assert!(bus.hand_over(&own, envelope("lab", 2, "second")).await.is_ok());
        assert!(bus.marked(&mark).await.expect("the broker is there"));
        let found: Vec<String> = contents(&own).await.into_iter().map(|(_, _, body)| body).collect();
        assert_eq!(found, ["second"]);
        bus.forget(&own).await;
    }

    /// Deletes a queue as another replica or a person would.
    async fn delete(queue: &str) {
        let properties = lapin::ConnectionProperties::default();
        let connection = lapin::Connection::connect(&url(), properties).await.expect("the broker is there");
        let channel = connection.create_channel().await.expect("the broker is there");
        let options = lapin::options::QueueDeleteOptions::default();
        channel.queue_delete(queue.into(), options).await.expect("the broker is there");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs RabbitMQ: tests/run starts it"]
    async fn a_queue_that_somebody_deleted_is_declared_anew_by_whoever_misses_it() {
        let bus = bus();
        let lab = format!("lab-{}", Uuid::now_v7().simple());
        bus.declare(&lab).await.expect("the broker is there");
        delete(&format!("pons.sub.{lab}")).await;
        assert!(bus.consume(&lab, 10).await.is_err(), "nothing to consume from");
        bus.declare(&lab).await.expect("the broker is there");
        let consumer = bus.consume(&lab, 10).await.expect("it was declared anew");
        drop(consumer);

        delete(&format!("pons.sub.{lab}")).await;
        let back = bus.publish(batch(&lab, 0..3)).await;
        assert!(
            back.iter().all(|result| matches!(result, Err(BusError::Returned))),
            "nowhere to go: {back:?}"
        );
        assert!(all_ok(&bus.publish(batch(&lab, 0..3)).await), "it is there again");
        let mut consumer = bus.consume(&lab, 10).await.expect("it was declared anew");
        assert_eq!(bodies(&take(&mut *consumer, 3).await), bodies_of(0..3));
        drop(consumer);
        bus.forget(&lab).await;
    }

    fn bodies_of(numbers: std::ops::Range<u64>) -> Vec<String> {
        numbers.map(|n| format!("body {n}")).collect()
    }

    /// Takes until the consumer is over.
    async fn consumer_end(consumer: &mut dyn Consumer) -> BusError {
        loop {
            if let Err(error) = consumer.next().await {
                return error;
            }
        }
    }
}
