use super::*;
use crate::authority::Authority;
use crate::mllp::{Receiver, receiver};
use crate::tests::{destination, outgoing};
use crate::{DeliverError, Destination, Receipt};
use tokio::net::TcpListener;

/// A receiver whose answers the test writes, and a destination that sends to it.
struct Pair {
    listener: TcpListener,
    destination: Arc<dyn Destination>,
}

impl Pair {
    async fn new(config: &str) -> Pair {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let config = format!("connect: {address}\n{config}");
        let destination = destination("mllp", &config, Path::new(".")).expect("a right configuration");
        Pair { listener, destination }
    }

    async fn accept(&self) -> Peer<TcpStream> {
        Peer::new(within(self.listener.accept()).await.expect("a connection").0)
    }

    /// Delivers, while the receiver takes the message and answers with `answers`.
    async fn deliver(
        &self,
        peer: &mut Peer<TcpStream>,
        id: &str,
        answers: &[u8],
    ) -> Result<Receipt, DeliverError> {
        let outgoing = outgoing(id);
        let other_side = async {
            let received = peer.next().await.expect("a message");
            assert_eq!(received.as_bytes(), &outgoing.original[..], "unchanged");
            peer.send(answers).await;
        };
        within(async { tokio::join!(self.destination.deliver(&outgoing), other_side) }).await.0
    }
}

fn ack(code: &str, id: &str) -> Vec<u8> {
    frame(format!("MSH|^~\\&|C|D|A|B|2026||ACK|9|P|2.5.1\rMSA|{code}|{id}\r").as_bytes())
}

fn again(answer: &str) -> Result<Receipt, DeliverError> {
    Err(DeliverError::Again { answer: answer.to_owned(), after: None, away: false })
}

fn never(answer: &str) -> Result<Receipt, DeliverError> {
    Err(DeliverError::Never { answer: answer.to_owned() })
}

fn receipt(answer: &str) -> Result<Receipt, DeliverError> {
    Ok(Receipt { answer: answer.to_owned() })
}

#[tokio::test]
async fn each_code_means_what_table_0008_says_over_one_kept_connection() {
    let pair = Pair::new("").await;
    let (first, mut peer) = within(async {
        let outgoing = outgoing("TEST0");
        tokio::join!(pair.destination.deliver(&outgoing), async {
            let mut peer = pair.accept().await;
            peer.next().await.expect("a message");
            peer.send(&ack("AA", "TEST0")).await;
            peer
        })
    })
    .await;
    assert_eq!(first, receipt("MSA-1 AA"));
    for (n, (code, expected)) in [
        ("AA", receipt("MSA-1 AA")),
        ("CA", receipt("MSA-1 CA")),
        ("AE", never("MSA-1 AE")),
        ("CE", never("MSA-1 CE")),
        ("AR", again("MSA-1 AR")),
        ("CR", again("MSA-1 CR")),
        ("AA", receipt("MSA-1 AA")),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("TEST{n}");
        assert_eq!(pair.deliver(&mut peer, &id, &ack(code, &id)).await, expected, "{code}");
    }
}

#[tokio::test]
async fn an_answer_to_another_message_is_never_taken_for_this_one() {
    let pair = Pair::new("").await;
    let outgoing = outgoing("TEST2");
    for (answers, expected) in [
        (vec![ack("AE", "TEST1"), ack("AA", "TEST2")], receipt("MSA-1 AA")),
        (
            vec![ack("AA", "TEST1"), ack("AA", "")],
            Err(DeliverError::Again { answer: "no answer within 100ms".to_owned(), after: None, away: true }),
        ),
        (vec![b"noise\r\n".to_vec(), ack("AA", "TEST2")], receipt("MSA-1 AA")),
        (vec![frame(b"hello")], again("an answer without MSA-1")),
        (vec![ack("XX", "TEST2")], again("an answer whose MSA-1 is not in table 0008")),
    ] {
        let timeout =
            if matches!(expected, Err(DeliverError::Again { away: true, .. })) { "100ms" } else { "30s" };
        let address = pair.listener.local_addr().expect("bound");
        let config = format!("connect: {address}\nanswer_timeout: {timeout}");
        let destination = destination("mllp", &config, Path::new(".")).expect("a right configuration");
        let other_side = async {
            let mut peer = pair.accept().await;
            peer.next().await.expect("a message");
            peer.send(&answers.concat()).await;
            peer
        };
        let (delivered, _peer) =
            within(async { tokio::join!(destination.deliver(&outgoing), other_side) }).await;
        assert_eq!(delivered, expected);
    }
}

#[tokio::test]
async fn an_answer_that_came_too_late_does_not_settle_the_next_message() {
    let pair = Pair::new("answer_timeout: 500ms").await;
    let first = outgoing("TEST1");
    let (late, mut peer) = within(async {
        tokio::join!(pair.destination.deliver(&first), async {
            let mut peer = pair.accept().await;
            peer.next().await.expect("a message");
            peer
        })
    })
    .await;
    assert!(matches!(late, Err(DeliverError::Again { away: true, .. })), "{late:?}");
    // The late answer goes into the old connection; the same message is sent anew over another.
    let _ = peer.stream.write_all(&ack("AA", "TEST1")).await;
    let (second, _peer) = within(async {
        tokio::join!(pair.destination.deliver(&first), async {
            let mut peer = pair.accept().await;
            peer.next().await.expect("a message");
            peer.send(&ack("AE", "TEST1")).await;
            peer
        })
    })
    .await;
    assert_eq!(second, never("MSA-1 AE"));
}

#[tokio::test]
async fn what_is_said_between_messages_is_thrown_away_if_it_is_whole() {
    let pair = Pair::new("").await;
    let mut answers = [ack("CA", "TEST0"), ack("AA", "TEST0"), ack("AE", "TEST1")].concat();
    let (first, mut peer) = within(async {
        let outgoing = outgoing("TEST0");
        tokio::join!(pair.destination.deliver(&outgoing), async {
            let mut peer = pair.accept().await;
            peer.next().await.expect("a message");
            peer.send(&answers).await;
            peer
        })
    })
    .await;
    assert_eq!(first, receipt("MSA-1 CA"));
    assert_eq!(pair.deliver(&mut peer, "TEST1", &ack("AA", "TEST1")).await, receipt("MSA-1 AA"));
    // Half an answer, or noise, or the end: the connection is replaced.
    for disturb in [&ack("AA", "TEST2")[..9], b"noise", b""] {
        answers = ack("AA", "TEST2");
        answers.extend_from_slice(disturb);
        assert_eq!(pair.deliver(&mut peer, "TEST2", &answers).await, receipt("MSA-1 AA"));
        if disturb.is_empty() {
            peer.stream.shutdown().await.expect("open");
        }
        let outgoing = outgoing("TEST3");
        let (next, replaced) = within(async {
            tokio::join!(pair.destination.deliver(&outgoing), async {
                let mut peer = pair.accept().await;
                peer.next().await.expect("a message");
                peer.send(&ack("AA", "TEST3")).await;
                peer
            })
        })
        .await;
        assert_eq!(next, receipt("MSA-1 AA"));
        peer = replaced;
    }
}

#[tokio::test]
async fn an_accept_acknowledgement_settles_only_where_the_application_is_not_waited_for() {
    let pair = Pair::new("wait_for: application").await;
    let (first, mut peer) = within(async {
        let outgoing = outgoing("TEST1");
        tokio::join!(pair.destination.deliver(&outgoing), async {
            let mut peer = pair.accept().await;
            peer.next().await.expect("a message");
            peer.send(&[ack("CA", "TEST1"), ack("AA", "TEST1")].concat()).await;
            peer
        })
    })
    .await;
    assert_eq!(first, receipt("MSA-1 AA"));
    let answers = [ack("CA", "TEST2"), ack("AE", "TEST2")].concat();
    assert_eq!(pair.deliver(&mut peer, "TEST2", &answers).await, never("MSA-1 AE"));
    assert_eq!(pair.deliver(&mut peer, "TEST3", &ack("CR", "TEST3")).await, again("MSA-1 CR"));
}

#[tokio::test]
async fn where_no_answer_is_awaited_written_is_delivered_and_answers_do_no_harm() {
    let pair = Pair::new("wait_for: nothing").await;
    let first = outgoing("TEST1");
    let (delivered, mut peer) =
        within(async { tokio::join!(pair.destination.deliver(&first), pair.accept()) }).await;
    assert_eq!(delivered, receipt("sent, no answer awaited"));
    peer.next().await.expect("a message");
    for id in ["TEST2", "TEST3"] {
        let delivered = pair.deliver(&mut peer, id, &ack("AA", id)).await;
        assert_eq!(delivered, receipt("sent, no answer awaited"));
    }
}

#[tokio::test]
async fn an_answer_may_lack_the_trailer_byte_and_come_in_pieces() {
    let pair = Pair::new("").await;
    let outgoing = outgoing("TEST1");
    let answer = ack("AA", "TEST1");
    let (delivered, _peer) = within(async {
        tokio::join!(pair.destination.deliver(&outgoing), async {
            let mut peer = pair.accept().await;
            peer.next().await.expect("a message");
            for byte in answer[..answer.len() - 1].chunks(1) {
                peer.send(byte).await;
            }
            peer
        })
    })
    .await;
    assert_eq!(delivered, receipt("MSA-1 AA"));
}

#[tokio::test]
async fn a_cancelled_delivery_leaves_no_connection_behind_that_could_mislead() {
    let pair = Pair::new("").await;
    let outgoing = outgoing("TEST1");
    let mut peer = {
        let delivery = pair.destination.deliver(&outgoing);
        tokio::pin!(delivery);
        let taken = async {
            let mut peer = pair.accept().await;
            peer.next().await.expect("a message");
            peer
        };
        within(async {
            tokio::select! {
                settled = &mut delivery => panic!("not answered yet: {settled:?}"),
                peer = taken => peer,
            }
        })
        .await
    };
    assert_eq!(peer.next().await, None, "the connection was closed");
    let (delivered, _peer) = within(async {
        tokio::join!(pair.destination.deliver(&outgoing), async {
            let mut peer = pair.accept().await;
            peer.next().await.expect("a message");
            peer.send(&ack("AA", "TEST1")).await;
            peer
        })
    })
    .await;
    assert_eq!(delivered, receipt("MSA-1 AA"));
}

#[tokio::test]
async fn what_a_frame_cannot_carry_is_not_sent() {
    let pair = Pair::new("").await;
    let mut broken = outgoing("TEST1");
    broken.original = b"MSH|^~\\&|A|B\x1C\rPID|1\r".as_slice().into();
    assert!(matches!(pair.destination.deliver(&broken).await, Err(DeliverError::Never { .. })));
    broken.original = b"{}".as_slice().into();
    assert!(matches!(pair.destination.deliver(&broken).await, Err(DeliverError::Never { .. })));
}

#[tokio::test]
async fn source_and_destination_understand_each_other_over_mutual_tls() {
    let authority = Authority::new();
    authority.sign("server", &["localhost"], &[], "pons");
    authority.sign("lab", &["lab.test"], &[], "Test Lab");
    let folder = authority.folder.path();
    let mutual = "tls: {certificate: server.pem, key: server.key, client_ca: ca.pem}";
    let running = Running::start_in(mutual, folder).await;
    let port = running.address().port();
    for (host, tls, delivered) in [
        ("localhost", "{ca: ca.pem, certificate: lab.pem, key: lab.key}", true),
        ("127.0.0.1", "{ca: ca.pem, certificate: lab.pem, key: lab.key}", false),
        ("127.0.0.1", "{ca: ca.pem, certificate: lab.pem, key: lab.key, server_name: localhost}", true),
        ("localhost", "{ca: lab.pem, certificate: lab.pem, key: lab.key}", false),
        ("localhost", "{ca: ca.pem}", false),
    ] {
        let config = format!("connect: {host}:{port}\ntls: {tls}");
        let destination = destination("mllp", &config, folder).expect("a right configuration");
        let settled = within(destination.deliver(&outgoing("OK1"))).await;
        match delivered {
            true => assert_eq!(settled, receipt("MSA-1 AA"), "{host} {tls}"),
            false => assert!(matches!(settled, Err(DeliverError::Again { .. })), "{host} {tls}: {settled:?}"),
        }
    }
    assert_eq!(running.intake.received.lock().unwrap()[0].certificate_names[..], ["lab.test", "Test Lab"]);
}

#[tokio::test]
async fn a_receiver_is_greeted_by_connecting_and_the_connection_is_kept_for_the_first_message() {
    let mut pair = Pair::new("").await;
    let url = format!("mllp://{}", pair.listener.local_addr().expect("bound"));
    let receiver = |url: &str| {
        let answer_timeout = Duration::from_secs(5);
        receiver(Receiver { url: url.parse().expect("a URL"), answer_timeout, tls: None })
    };
    pair.destination = receiver(&url).expect("right");
    let first = outgoing("A");
    let (greeted, mut peer) =
        within(async { tokio::join!(pair.destination.greet(&first), pair.accept()) }).await;
    assert_eq!(greeted, receipt("connected"));
    assert_eq!(pair.deliver(&mut peer, "A", &ack("AA", "A")).await, receipt("MSA-1 AA"));
    assert!(within(pair.destination.greet(&outgoing("B"))).await.is_ok(), "it is still there");
    drop((peer, pair.listener));
    let gone = within(pair.destination.greet(&outgoing("B"))).await;
    assert!(matches!(gone, Err(DeliverError::Again { away: true, .. })), "{gone:?}");
}
