//! Anything may arrive on a port. Each gets the answer that is due, leaves a trace that `pons search` finds, and harms neither
//! the process nor another sender's connection.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::time::Duration;
use tests::gateway::{Gateway, Setup};
use tests::generate::{Kind, Population, Run};
use tests::sender::Connection;
use tokio::net::TcpStream;

const WAIT: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// MSA-1, MSA-2 and the codes of ERR-3.
    Ack(String, String, Vec<String>),
    /// The connection was closed without an answer.
    Closed,
}

fn ack(code: &str, control_id: &str, errors: &[&str]) -> Answer {
    Answer::Ack(
        code.to_owned(),
        control_id.to_owned(),
        errors.iter().map(|error| (*error).to_owned()).collect(),
    )
}

fn read(answer: &[u8]) -> Answer {
    let text = String::from_utf8(answer.to_vec()).unwrap();
    let field = |line: &str, number: usize| line.split('|').nth(number).unwrap_or_default().to_owned();
    let msa = text.split('\r').find(|line| line.starts_with("MSA|")).unwrap();
    let errors = text
        .split('\r')
        .filter(|line| line.starts_with("ERR|"))
        .map(|line| field(line, 3).split('^').next().unwrap_or_default().to_owned())
        .collect();
    Answer::Ack(field(msa, 1), field(msa, 2), errors)
}

async fn receive(connection: &mut Connection<TcpStream>) -> Answer {
    match connection.receive(WAIT).await {
        Ok(answer) => read(&answer),
        Err(error) => {
            assert!(!format!("{error:#}").contains("no answer in time"), "neither an answer nor an end");
            Answer::Closed
        }
    }
}

/// Sends one frame on a connection of its own.
async fn answer(gateway: &Gateway, message: &[u8]) -> Answer {
    let mut connection = Connection::open(gateway.mllp).await.unwrap();
    // The other side may close before all of it is written.
    let _ = connection.send(message).await;
    receive(&mut connection).await
}

fn message(header: &str) -> Vec<u8> {
    format!("{header}\rEVN|A01|20260101\rPID|1||TEST1^^^GENHOSP^MR||TEST^JANE\rPV1|1|I|WEST||||||||||||||||V1^^^GENHOSP\r").into_bytes()
}

const GOOD: &str = "MSH|^~\\&|ADT1|GENHOSP|PONS|HIE|20260101||ADT^A01^ADT_A01|C1|P|2.5.1";

fn changed(from: &str, to: &str) -> Vec<u8> {
    assert!(GOOD.contains(from));
    message(&GOOD.replace(from, to))
}

/// Whether the gateway still takes a good message.
async fn assert_alive(gateway: &Gateway) {
    let mut population = Population::new(Run::fresh(), 1, 1);
    let sent = population.message(Kind::Admit, 0);
    assert_eq!(answer(gateway, &sent.bytes).await, ack("CA", &sent.control_id, &[]));
}

#[tokio::test]
async fn each_kind_of_message_gets_the_answer_that_is_due() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let cases: Vec<(&str, Vec<u8>, Answer)> = vec![
        ("a good one", message(GOOD), ack("AA", "C1", &[])),
        (
            "a Z-segment",
            changed("|C1|", "|C2|").into_iter().chain(*b"ZXY|1|x\r").collect(),
            ack("AA", "C2", &[]),
        ),
        ("no MSH", b"hello".to_vec(), Answer::Closed),
        ("nothing", Vec::new(), Answer::Closed),
        ("MSH-10 missing", changed("|C1|", "||"), ack("AE", "", &["101"])),
        ("an unknown type", changed("ADT^A01^ADT_A01|C1", "XYZ^Q99|C3"), ack("AR", "C3", &["200"])),
        ("an unknown trigger", changed("ADT^A01^ADT_A01|C1", "ADT^Q99|C4"), ack("AR", "C4", &["201"])),
        ("a version that nobody knows", changed("C1|P|2.5.1", "C5|P|9.9"), ack("AR", "C5", &["203"])),
        ("a version after ours", changed("C1|P|2.5.1", "C9|P|2.9"), ack("AA", "C9", &[])),
        ("a test message", changed("C1|P|", "C6|T|"), ack("AR", "C6", &["202"])),
        ("enhanced mode", message(&format!("{}|||AL|NE", GOOD.replace("C1", "C7"))), ack("CA", "C7", &[])),
        (
            "enhanced, refused",
            message(&format!("{}|||AL|NE", GOOD.replace("C1|P", "C8|T"))),
            ack("CR", "C8", &["202"]),
        ),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(answer(&gateway, &bytes).await, expected, "{name}");
    }
    // Which code of table 0357 is due is not fixed; that it is refused is.
    let unknown = answer(&gateway, &changed("GENHOSP|PONS", "ELSEWHERE|PONS")).await;
    assert!(matches!(&unknown, Answer::Ack(code, id, _) if code == "AR" && id == "C1"), "{unknown:?}");
    assert_alive(&gateway).await;
    let (code, rejected) =
        gateway.pons(&["search", "--state", "rejected", "--format", "json"]).await.unwrap();
    assert_eq!(code, Some(0));
    // All that was answered AE, AR or CR, and the one that was not HL7.
    assert!(rejected.lines().count() >= 8, "{} rejected ones are found", rejected.lines().count());
}

#[tokio::test]
async fn a_repeat_gets_the_same_bytes_and_other_bytes_are_another_message() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let mut connection = Connection::open(gateway.mllp).await.unwrap();
    let mut answers = Vec::new();
    for bytes in [message(GOOD), message(GOOD), changed("20260101", "20260102")] {
        connection.send(&bytes).await.unwrap();
        answers.push(connection.receive(WAIT).await.unwrap());
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(read(&answers[2]), ack("AA", "C1", &[]));
    let (_, found) = gateway.pons(&["search", "--control-id", "C1", "--format", "json"]).await.unwrap();
    assert_eq!(found.lines().count(), 2);
}

#[tokio::test]
async fn frames_arrive_however_the_bytes_are_cut() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let frame = |id: &str| [b"\x0B".as_slice(), &changed("|C1|", &format!("|{id}|")), b"\x1C\r"].concat();
    // Several in one write, garbage between them, and one without the last carriage return.
    let mut connection = Connection::open(gateway.mllp).await.unwrap();
    let mut all = [frame("F1"), b"garbage".to_vec(), frame("F2")].concat();
    all.extend(&frame("F3")[..frame("F3").len() - 1]);
    all.extend(frame("F4"));
    connection.raw(&all).await.unwrap();
    for id in ["F1", "F2", "F3", "F4"] {
        assert_eq!(receive(&mut connection).await, ack("AA", id, &[]));
    }
    // Byte by byte.
    for byte in frame("F5") {
        connection.raw(&[byte]).await.unwrap();
    }
    assert_eq!(receive(&mut connection).await, ack("AA", "F5", &[]));
    // Half a frame, and gone.
    let mut half = Connection::open(gateway.mllp).await.unwrap();
    half.raw(&frame("F6")[..40]).await.unwrap();
    drop(half);
    assert_alive(&gateway).await;
    let (_, found) = gateway
        .pons(&["search", "--control-id", "F6", "--state", "routed", "--format", "json"])
        .await
        .unwrap();
    assert_eq!(found, "", "half a message is none");
    // What stood between the frames and the half one are kept for the operator.
    until_rejected(&gateway, 2).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_within_bounded_memory() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let before = gateway.usage().unwrap().memory;
    let oversize = |id: &str, filler: u8, mebibytes: usize| {
        let mut bytes = changed("|C1|", &format!("|{id}|"));
        bytes.extend(b"ZZZ|");
        bytes.resize(bytes.len() + (mebibytes << 20), filler);
        bytes.push(b'\r');
        bytes
    };
    assert_eq!(answer(&gateway, &oversize("L1", b'x', 9)).await, ack("AR", "L1", &["207"]), "over 8 MiB");
    assert_eq!(
        answer(&gateway, &oversize("L2", b'^', 7)).await,
        ack("AR", "L2", &["207"]),
        "over 4,000,000 delimiters"
    );
    assert_eq!(answer(&gateway, &oversize("L3", b'^', 10)).await, ack("AR", "L3", &["207"]), "both");
    let many = [changed("|C1|", "|L4|"), b"NTE|1\r".repeat(20_001)].concat();
    assert_eq!(answer(&gateway, &many).await, ack("AR", "L4", &["207"]), "over 20,000 segments");
    let mut endless = Connection::open(gateway.mllp).await.unwrap();
    let _ = endless.raw(b"\x0B").await;
    let mut taken = 0;
    while taken < 100 && endless.raw(&vec![b'x'; 1 << 20]).await.is_ok() {
        taken += 1;
    }
    assert!(taken < 100, "100 MiB without an end are not taken");
    until_rejected(&gateway, 5).await;
    assert_alive(&gateway).await;
    let used = gateway.usage().unwrap();
    assert!(
        used.memory_peak < 400 << 20,
        "{} MiB before, {} MiB at most",
        before >> 20,
        used.memory_peak >> 20
    );
    assert!(used.memory_peak > before);
}

#[tokio::test]
async fn a_sender_that_misbehaves_does_not_hold_up_another() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut connection = Connection::open(gateway.mllp).await.unwrap();
        connection.raw(b"\x0BMSH|^~\\&|ADT1|GENHOSP|").await.unwrap();
        stalled.push(connection);
    }
    for _ in 0..5 {
        assert_alive(&gateway).await;
    }
    drop(stalled);
}

#[tokio::test]
async fn nothing_of_a_patient_is_logged_whatever_comes() {
    let gateway =
        Gateway::start(&Setup { settings: vec!["log: json".to_owned()], ..Setup::default() }).await.unwrap();
    let mut population = Population::new(Run::fresh(), 9, 3);
    let canaries = population.canaries();
    for patient in 0..3 {
        for kind in [Kind::Admit, Kind::Result, Kind::Update, Kind::Discharge] {
            let sent = population.message(kind, patient);
            let text = String::from_utf8(sent.bytes).unwrap();
            for spoiled in [
                text.clone(),
                text.replace("|P|2.5.1|", "|T|2.5.1|"),
                text.replace("ADT^A01", "ADT^Q99"),
                text.replace("PID|", "PI|"),
                text.replace("MSH|", "MSX|"),
                text.replace("202601", "2026XX"),
                text[..text.len() / 2].to_owned(),
            ] {
                answer(&gateway, spoiled.as_bytes()).await;
            }
        }
    }
    assert_alive(&gateway).await;
    gateway.no_canary_logged(&canaries).unwrap();
}

/// What `pons search` finds in this state, newest first.
async fn found(gateway: &Gateway, state: &str) -> Vec<serde_json::Value> {
    let (code, found) = gateway.pons(&["search", "--state", state, "--format", "json"]).await.unwrap();
    assert_eq!(code, Some(0));
    found.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Asks until so many are found in this state: what is kept of refused bytes is written beside the answer.
async fn until_rejected(gateway: &Gateway, count: usize) {
    let began = std::time::Instant::now();
    while found(gateway, "rejected").await.len() < count {
        assert!(began.elapsed() < WAIT, "{count} rejected ones are found");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_header_that_lacks_what_it_must_say_is_refused_by_name() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let mut other = Connection::open(gateway.mllp).await.unwrap();
    for (name, bytes, expected) in [
        ("no MSH-9", changed("|ADT^A01^ADT_A01|C1|", "||C2|"), ack("AR", "C2", &["200"])),
        ("no trigger", changed("|ADT^A01^ADT_A01|C1|", "|ADT|C3|"), ack("AR", "C3", &["201"])),
        // Who names no version gets the ERR segment of old, which has no ERR-3.
        ("MSH alone", b"MSH|^~\\&".to_vec(), ack("AE", "", &[""])),
        ("MSH-10 null", changed("|C1|", "|\"\"|"), ack("AE", "", &["101"])),
    ] {
        assert_eq!(answer(&gateway, &bytes).await, expected, "{name}");
    }
    assert_eq!(found(&gateway, "rejected").await.len(), 4);
    // Another sender's connection was open all the while.
    other.send(&message(GOOD)).await.unwrap();
    assert_eq!(receive(&mut other).await, ack("AA", "C1", &[]));
}

#[tokio::test]
async fn a_wrong_character_set_is_taken_and_told() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let declared = |id: &str, charset: &str| {
        let header = format!("{}||||||{charset}", GOOD.replace("C1", id));
        String::from_utf8(message(&header)).unwrap()
    };
    let cases: [(&str, Vec<u8>, &str); 3] = [
        // U+00FC in ISO 8859-1, where UTF-8 is promised.
        ("W1", spoil(&declared("W1", "UNICODE UTF-8"), 0xFC), "charset"),
        ("W2", declared("W2", "KLINGON").into_bytes(), "charset-unknown"),
        ("W3", declared("W3", "8859/1").replace("JANE", "J\u{e4}NE").into_bytes(), "charset-untrue"),
    ];
    for (id, bytes, _) in &cases {
        assert_eq!(answer(&gateway, bytes).await, ack("AA", id, &[]), "{id}");
    }
    for (id, _, code) in &cases {
        let timeline = routed(&gateway, id).await;
        assert!(timeline.contains(code), "{id}: {timeline}");
    }
    assert!(!gateway.log().contains("TEST^J"), "nothing of a name is logged");
}

/// Puts one byte that is no UTF-8 into the patient's name.
fn spoil(text: &str, byte: u8) -> Vec<u8> {
    let at = text.find("JANE").unwrap();
    let mut bytes = text.as_bytes().to_vec();
    bytes[at + 1] = byte;
    bytes
}

/// The timeline of the message with this control id, once it is routed.
async fn routed(gateway: &Gateway, control_id: &str) -> String {
    let began = std::time::Instant::now();
    loop {
        let (_, found) = gateway
            .pons(&["search", "--control-id", control_id, "--state", "routed", "--format", "json"])
            .await
            .unwrap();
        if let Some(line) = found.lines().next() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let (code, shown) = gateway.pons(&["show", row["id"].as_str().unwrap()]).await.unwrap();
            assert_eq!(code, Some(0));
            return shown;
        }
        assert!(began.elapsed() < WAIT, "{control_id} is not routed in time");
    }
}

#[tokio::test]
async fn a_batch_is_answered_with_a_batch_and_each_of_its_messages_by_itself() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let batch = [
        b"BHS|^~\\&|ADT1|GENHOSP|PONS|HIE|20260101||||B1\r".to_vec(),
        changed("|C1|", "|B2|"),
        changed("ADT^A01^ADT_A01|C1", "XYZ^Q99|B3"),
        changed("|C1|", "|B4|"),
        b"BTS|3\r".to_vec(),
    ]
    .concat();
    let mut connection = Connection::open(gateway.mllp).await.unwrap();
    connection.send(&batch).await.unwrap();
    let answer = String::from_utf8(connection.receive(WAIT).await.unwrap()).unwrap();
    let acks: Vec<String> = answer
        .split('\r')
        .filter(|line| line.starts_with("MSA|"))
        .map(|line| line.split('|').skip(1).take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(acks, ["AA B2", "AR B3", "AA B4"]);
    assert!(answer.starts_with("BHS|") && answer.contains("\rBTS|3"), "a batch of answers");
    let rejected = found(&gateway, "rejected").await;
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0]["control_id"], "B3");
    assert!(!gateway.log().contains("JANE"));
}

#[tokio::test]
async fn another_protocol_and_noise_are_kept_and_harm_nobody() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let mut other = Connection::open(gateway.mllp).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: pons.test\r\nUser-Agent: curl\r\n\r\n";
    let client_hello =
        [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xFC, 0x03, 0x03][..], &[7; 506]].concat();
    for wrong in [&request[..], &client_hello] {
        let mut wire = TcpStream::connect(gateway.mllp).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut wire, wrong).await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut wire).await.unwrap();
        let mut back = Vec::new();
        let ended =
            tokio::time::timeout(WAIT, tokio::io::AsyncReadExt::read_to_end(&mut wire, &mut back)).await;
        assert!(ended.is_ok(), "the connection is closed");
        assert_eq!(back, b"", "nothing is answered to what is no MLLP");
    }
    until_rejected(&gateway, 2).await;
    // Noise, in a frame and bare, the same on every run.
    let mut rng = tests::generate::Rng::new(2026);
    for turn in 0..24 {
        let length = 1 + rng.below(4096) as usize;
        let mut noise: Vec<u8> = (0..length).map(|_| rng.number() as u8).collect();
        if turn % 3 == 0 {
            noise.splice(0..0, *b"MSH|^~\\&|");
        }
        let mut wire = Connection::open(gateway.mllp).await.unwrap();
        // The other side may close before all of it is written.
        let _ = if turn % 2 == 0 { wire.send(&noise).await } else { wire.raw(&noise).await };
        drop(wire);
        other.send(&changed("|C1|", &format!("|N{turn}|"))).await.unwrap();
        assert_eq!(receive(&mut other).await, ack("AA", &format!("N{turn}"), &[]), "after noise {turn}");
    }
    until_rejected(&gateway, 10).await;
    assert!(gateway.usage().unwrap().memory_peak < 300 << 20);
}
