use super::*;

#[tokio::test]
async fn a_stored_message_is_acknowledged_and_a_repeat_gets_the_same_bytes() {
    let running = Running::start("").await;
    let mut peer = running.connect().await;
    peer.send(&framed("OK1")).await;
    let first = peer.next().await.expect("an answer");
    assert_eq!(
        first,
        "MSH|^~\\&|PONSAPP|PONSFAC|TESTAPP|TESTFAC|20231114221320+0000||ACK^A01^ACK|A0000000000000000001|P|2.5.1\r\
         MSA|AA|OK1\r"
    );
    peer.send(&framed("OK1")).await;
    assert_eq!(peer.next().await.as_ref(), Some(&first));
    let mut other = running.connect().await;
    other.send(&framed("OK1")).await;
    assert_eq!(other.next().await.as_ref(), Some(&first), "over another connection too");
}

#[tokio::test]
async fn bytes_may_come_one_by_one() {
    let running = Running::start("").await;
    let mut peer = running.connect().await;
    for byte in framed("OK1").chunks(1).chain(framed("OK2").chunks(1)) {
        peer.send(byte).await;
    }
    assert_eq!(peer.answer().await, "AA OK1");
    assert_eq!(peer.answer().await, "AA OK2");
}

#[tokio::test]
async fn each_verdict_has_its_answer_and_the_connection_goes_on() {
    let running = Running::start("").await;
    let mut peer = running.connect().await;
    for (id, answer) in [("AE1", "AE AE1"), ("AR1", "AR AR1"), ("OK1", "AA OK1")] {
        peer.send(&framed(id)).await;
        assert_eq!(peer.answer().await, answer);
    }
    peer.send(&framed("AE2")).await;
    let ack = peer.next().await.expect("an answer");
    assert!(ack.ends_with("\rERR||PID^1^3|101^Required field missing^HL70357|E||||not taken\r"), "{ack}");
    assert!(!ack.contains("JANE") && !ack.contains("TEST-7"), "no patient in an answer: {ack}");
}

#[tokio::test]
async fn a_refusal_may_close_and_the_unreadable_is_not_answered() {
    let running = Running::start("").await;
    let mut peer = running.connect().await;
    peer.send(&framed("SHUT1")).await;
    assert_eq!(peer.answer().await, "AR SHUT1");
    assert_eq!(peer.answer().await, "closed");
    for unreadable in [framed("JUNK1"), frame(b"no header"), frame(b"")] {
        let mut peer = running.connect().await;
        peer.send(&framed("OK1")).await;
        peer.send(&unreadable).await;
        assert_eq!(peer.answer().await, "AA OK1", "what came before is answered");
        assert_eq!(peer.answer().await, "closed");
    }
}

#[tokio::test]
async fn pipelined_messages_are_handed_over_in_order_and_answered_in_order() {
    let running = Running::start("").await;
    let mut peer = running.connect().await;
    let ids: Vec<String> =
        (0..300).map(|n| format!("{}{n}", if n % 3 == 0 { "GATE" } else { "OK" })).collect();
    let all: Vec<u8> = ids.iter().flat_map(|id| framed(id)).collect();
    peer.send(&all).await;
    running.intake.gate.0.add_permits(100);
    for id in &ids {
        assert_eq!(peer.answer().await, format!("AA {id}"));
    }
    assert_eq!(running.intake.accepted(), ids);
}

#[tokio::test]
async fn several_messages_are_under_way_at_once_and_no_more_than_the_window() {
    let running = Running::start("in_flight_max: 4").await;
    let mut peer = running.connect().await;
    let all: Vec<u8> = (0..10).flat_map(|n| framed(&format!("GATE{n}"))).collect();
    peer.send(&all).await;
    let mut other = running.connect().await;
    other.send(&framed("OK1")).await;
    assert_eq!(other.answer().await, "AA OK1");
    while running.intake.accepted().len() < 5 {
        within(tokio::task::yield_now()).await;
    }
    assert_eq!(running.intake.accepted().iter().filter(|id| id.starts_with("GATE")).count(), 4);
    running.intake.gate.0.add_permits(10);
    for n in 0..10 {
        assert_eq!(peer.answer().await, format!("AA GATE{n}"));
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_stored_is_held_and_stored_once_it_can_be() {
    let running = Running::start("hold: 10s").await;
    running.intake.away.store(true, Ordering::SeqCst);
    let mut peer = running.connect().await;
    peer.send(&[framed("OK1"), framed("AWAY2"), framed("AWAY3")].concat()).await;
    assert_eq!(peer.answer().await, "AA OK1");
    running.intake.away.store(false, Ordering::SeqCst);
    assert_eq!(peer.answer().await, "AA AWAY2");
    assert_eq!(peer.answer().await, "AA AWAY3");
}

#[tokio::test]
async fn what_cannot_be_stored_in_time_is_never_answered_positively() {
    for id in ["AWAY2", "HANG2"] {
        let running = Running::start("hold: 50ms").await;
        running.intake.away.store(true, Ordering::SeqCst);
        let mut peer = running.connect().await;
        peer.send(&[framed("OK1"), framed(id), framed("OK3")].concat()).await;
        assert_eq!(peer.answer().await, "AA OK1");
        assert_eq!(peer.answer().await, "closed", "{id}: nor is a later one answered before it");

        let running = Running::start("hold: 50ms\non_unavailable: refuse").await;
        running.intake.away.store(true, Ordering::SeqCst);
        let mut peer = running.connect().await;
        peer.send(&framed(id)).await;
        let ack = peer.next().await.expect("an answer");
        assert_eq!(msa(&ack), format!("AR {id}"));
        assert!(ack.contains("\rERR|||207^Application internal error^HL70357|E|"), "{ack}");
        peer.send(&framed("OK1")).await;
        assert_eq!(peer.answer().await, "AA OK1");
    }
}

/// MSH-15, MSH-16, the message's fate at intake, its fate at the mapping, and the answers that are due.
#[tokio::test]
async fn enhanced_mode_answers_as_msh_15_and_msh_16_ask() {
    let running = Running::start("").await;
    for (accept, application, id, maps, due) in [
        ("AL", "NE", "OK", true, &["CA"] as &[&str]),
        ("AL", "", "OK", true, &["CA"]),
        ("AL", "AL", "OK", true, &["CA", "AA"]),
        ("AL", "AL", "OK", false, &["CA", "AE"]),
        ("AL", "ER", "OK", true, &["CA"]),
        ("AL", "ER", "OK", false, &["CA", "AE"]),
        ("AL", "SU", "OK", true, &["CA", "AA"]),
        ("AL", "SU", "OK", false, &["CA"]),
        ("NE", "AL", "OK", true, &["AA"]),
        ("", "AL", "OK", true, &["AA"]),
        ("ER", "AL", "OK", true, &["AA"]),
        ("SU", "NE", "OK", true, &["CA"]),
        ("ER", "NE", "OK", true, &[]),
        ("NE", "NE", "OK", true, &[]),
        ("AL", "AL", "AE", true, &["CE"]),
        ("AL", "AL", "AR", true, &["CR"]),
        ("ER", "NE", "AR", true, &["CR"]),
        ("SU", "NE", "AR", true, &[]),
        ("SU", "AL", "AR", true, &["AR"]),
        ("NE", "ER", "AE", true, &["AE"]),
        ("NE", "SU", "AE", true, &[]),
        ("NE", "NE", "AR", true, &[]),
    ] {
        let outcome = if maps {
            Outcome::Normalized
        } else {
            Outcome::Quarantined(rejection(RejectionKind::Error, 103, false))
        };
        *running.intake.outcome.lock().unwrap() = Some(outcome);
        let mut peer = running.connect().await;
        peer.send(&frame(&message(&format!("{id}1"), &format!("|||{accept}|{application}")))).await;
        // The answer to this one says that nothing else came before it.
        let mut answers = Vec::new();
        for _ in due {
            answers.push(peer.answer().await);
        }
        peer.send(&framed("OK9")).await;
        let expected: Vec<String> = due.iter().map(|code| format!("{code} {id}1")).collect();
        assert_eq!(answers, expected, "{accept}/{application} {id} {maps}");
        assert_eq!(peer.answer().await, "AA OK9", "{accept}/{application} {id} {maps}");
    }
}

#[tokio::test]
async fn an_application_acknowledgement_has_its_own_control_id_and_is_not_acknowledged() {
    let running = Running::start("").await;
    *running.intake.outcome.lock().unwrap() = Some(Outcome::Normalized);
    let mut peer = running.connect().await;
    peer.send(&frame(&message("OK1", "|||AL|AL"))).await;
    let (commit, application) = (peer.next().await.expect("CA"), peer.next().await.expect("AA"));
    let id = |ack: &str| ack.split('|').nth(9).unwrap().to_owned();
    assert_ne!(id(&commit), id(&application));
    // The sender accepts the application acknowledgement, which is right and wants nothing further.
    peer.send(&frame(b"MSH|^~\\&|TESTAPP||||2026||ACK^A01^ACK|X1|P|2.5.1\rMSA|CA|A1\r")).await;
    peer.send(&framed("OK2")).await;
    assert_eq!(peer.answer().await, "AA OK2");
    assert_eq!(running.intake.accepted(), ["OK1", "OK2"]);
}

#[tokio::test]
async fn an_acknowledgement_of_nothing_is_kept_and_not_answered() {
    let running = Running::start("").await;
    let mut peer = running.connect().await;
    peer.send(&frame(b"MSH|^~\\&|TESTAPP||||2026||ACK|X1|P|2.5.1\rMSA|AA|A1\r")).await;
    peer.send(&framed("OK2")).await;
    assert_eq!(peer.answer().await, "AA OK2");
    assert!(running.intake.refused().await.1.contains("acknowledgement of nothing"));
}

#[tokio::test]
async fn an_answer_can_wait_for_the_mapping() {
    let running = Running::start("ack_point: mapped\noutcome_timeout: 100ms").await;
    let mut peer = running.connect().await;
    for (outcome, answer) in [
        (Some(Outcome::Normalized), "AA OK1"),
        (Some(Outcome::Quarantined(rejection(RejectionKind::Error, 103, false))), "AE OK1"),
        (Some(Outcome::Unknown), "AA OK1"),
        (None, "AA OK1"),
    ] {
        *running.intake.outcome.lock().unwrap() = outcome;
        peer.send(&framed("OK1")).await;
        assert_eq!(peer.answer().await, answer);
    }
}

#[tokio::test]
async fn bytes_outside_of_a_frame_are_kept_and_the_next_message_taken() {
    let running = Running::start("").await;
    let mut peer = running.connect().await;
    peer.send(b"GET / HTTP/1.1\r\n\r\n").await;
    peer.send(&framed("OK1")).await;
    assert_eq!(peer.answer().await, "AA OK1");
    let (head, reason) = running.intake.refused().await;
    assert_eq!(
        (&head[..], &reason[..]),
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "18 bytes outside of any MLLP frame")
    );
}

#[tokio::test]
async fn half_a_message_is_kept_when_the_sender_leaves() {
    let running = Running::start("").await;
    let mut peer = running.connect().await;
    let half = framed("OK1")[..40].to_vec();
    peer.send(&half).await;
    drop(peer);
    assert_eq!(running.intake.refused().await.0, half[1..]);
    assert!(running.intake.accepted().is_empty());
}

#[tokio::test]
async fn a_batch_is_taken_message_by_message_and_answered_as_a_batch() {
    let running = Running::start("in_flight_max: 2").await;
    let mut peer = running.connect().await;
    let ids = ["OK1", "AE2", "OK3", "OK4", "OK5"];
    let header = b"FHS|^~\\&|TESTAPP\rBHS|^~\\&|TESTAPP|TESTFAC|PONSAPP|PONSFAC|2026||||B1\r".to_vec();
    let messages = ids.iter().flat_map(|id| message(id, "")).collect();
    let batch = frame(&[header.clone(), messages, b"BTS|5\rFTS|1\r".to_vec()].concat());
    peer.send(&[framed("OK0"), batch, framed("OK6")].concat()).await;
    assert_eq!(peer.answer().await, "AA OK0");
    let answer = peer.next().await.expect("an answer");
    assert!(answer.starts_with("BHS|^~\\&|PONSAPP|PONSFAC|TESTAPP|TESTFAC||||||B1\rMSH|"), "{answer}");
    assert!(answer.ends_with("\rBTS|5\r"), "{answer}");
    let codes: Vec<&str> = answer.split('\r').filter(|line| line.starts_with("MSA")).collect();
    assert_eq!(codes, ["MSA|AA|OK1", "MSA|AE|AE2|not taken", "MSA|AA|OK3", "MSA|AA|OK4", "MSA|AA|OK5"]);
    assert_eq!(peer.answer().await, "AA OK6");
    assert_eq!(running.intake.accepted(), ["OK0", "OK1", "AE2", "OK3", "OK4", "OK5", "OK6"]);

    // A batch of which something cannot be stored is not answered at all, so that it is sent again.
    let batch = frame(&[header, message("OK1", ""), message("JUNK2", ""), message("OK3", "")].concat());
    peer.send(&batch).await;
    assert_eq!(peer.answer().await, "closed");

    let mut peer = running.connect().await;
    peer.send(&frame(b"BHS|^~\\&|TESTAPP\rBTS|0\r")).await;
    assert_eq!(peer.answer().await, "closed");
    assert_eq!(running.intake.refused().await.1, "a batch of 0 messages");
}

#[tokio::test]
async fn wide_characters_are_refused_and_kept() {
    let running = Running::start("").await;
    let mut peer = running.connect().await;
    let wide: Vec<u8> = message("OK1", "").iter().flat_map(|byte| [*byte, 0]).collect();
    peer.send(&frame(&wide)).await;
    assert_eq!(peer.answer().await, "closed");
    assert_eq!(running.intake.refused().await.1, "UTF-16 and UTF-32 do not travel over MLLP");
    assert!(running.intake.accepted().is_empty());
}

/// Whatever comes in, a positive answer is given to stored messages only, and the next connection is served.
#[tokio::test]
async fn whatever_arrives_the_source_goes_on() {
    let running = Running::start("connections_per_peer_max: 1000\nframe_max: 4KiB").await;
    running.intake.away.store(true, Ordering::SeqCst);
    let parts = [
        framed("OK1"),
        framed("AE2"),
        framed("JUNK3"),
        framed("SHUT4"),
        frame(&message("OK5", "|||AL|NE")),
        frame(&message("OK6", "|||NE|NE")),
        frame(&[message("BIG7", ""), vec![b'^'; 8 << 10]].concat()),
        frame(b""),
        vec![0x0B],
        vec![0x1C],
        vec![0x1C, 0x0D],
        b"MSH|^~\\&|A".to_vec(),
        vec![0xFF, 0xFE, 0x00],
        b"\r\n".to_vec(),
    ];
    let mut seed = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for _ in 0..150 {
        let mut stream: Vec<u8> =
            (0..1 + random(6)).flat_map(|_| parts[random(parts.len())].clone()).collect();
        for _ in 0..random(3) {
            let at = random(stream.len());
            stream[at] = [0x0B, 0x1C, 0x0D, b'|', 0xC3][random(5)];
        }
        let mut peer = running.connect().await;
        // The source may close before it has read everything.
        let _ = peer.stream.write_all(&stream).await;
        let _ = peer.stream.shutdown().await;
        while let Some(answer) = peer.next().await {
            if let [b'A' | b'C', b'A', b' ', id @ ..] = msa(&answer).as_bytes() {
                assert!(id.starts_with(b"OK"), "{answer}");
            }
        }
    }
    let mut peer = running.connect().await;
    peer.send(&framed("OK9")).await;
    assert_eq!(peer.answer().await, "AA OK9");
}

#[tokio::test]
async fn a_sender_without_the_trailer_byte_is_answered_after_a_pause() {
    let running = Running::start("end_pause: 20ms").await;
    let mut peer = running.connect().await;
    for id in ["OK1", "OK2"] {
        let frame = framed(id);
        peer.send(&frame[..frame.len() - 1]).await;
        assert_eq!(peer.answer().await, format!("AA {id}"));
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_its_head_kept() {
    let running = Running::start("frame_max: 100KiB").await;
    let peer = running.connect().await;
    let large = [message("BIG1", ""), vec![b'x'; 20 << 20]].concat();
    let all = [framed("OK1"), frame(&large)].concat();
    // The source stops reading long before the end; what was sent into the void is its answer's hardest case.
    let (mut reader, mut writer) = tokio::io::split(peer.stream);
    let sending = tokio::spawn(async move {
        let _ = writer.write_all(&all).await;
        writer
    });
    let mut answers = Peer::new(tokio::io::join(&mut reader, tokio::io::sink()));
    assert_eq!(answers.answer().await, "AA OK1");
    let ack = answers.next().await.expect("an answer");
    assert_eq!(msa(&ack), "AR BIG1");
    assert!(ack.contains("|207^Application internal error^HL70357|E|"), "{ack}");
    assert_eq!(answers.answer().await, "closed");
    let (head, reason) = running.intake.refused().await;
    assert_eq!((head.len(), &reason[..]), (64 * 1024, "the message is larger than 102400 bytes"));
    drop(within(sending).await);
}

#[tokio::test]
async fn large_messages_share_a_bounded_memory_and_all_arrive() {
    let running = Running::start("frame_max: 512KiB\nbuffered_max: 1MiB").await;
    let mut peers = Vec::new();
    for n in 0..6 {
        let mut peer = running.connect().await;
        let large = [message(&format!("OK{n}"), ""), vec![b'x'; 400 << 10]].concat();
        peers.push(tokio::spawn(async move {
            for _ in 0..3 {
                peer.send(&frame(&large)).await;
                assert_eq!(peer.answer().await, format!("AA OK{n}"));
            }
        }));
    }
    for peer in peers {
        within(peer).await.expect("every one is answered");
    }
}

#[tokio::test]
async fn slow_and_silent_senders_are_let_go() {
    let running = Running::start("idle_timeout: 30ms").await;
    assert_eq!(running.connect().await.answer().await, "closed");

    let running = Running::start("frame_timeout: 30ms").await;
    let mut peer = running.connect().await;
    peer.send(b"\x0BMSH|^~\\&").await;
    assert_eq!(peer.answer().await, "closed");
    assert_eq!(running.intake.refused().await.0, b"MSH|^~\\&");
}

#[tokio::test]
async fn a_steady_stream_is_not_taken_for_a_slow_message() {
    let running = Running::start("frame_timeout: 500ms").await;
    let mut peer = running.connect().await;
    let began = tokio::time::Instant::now();
    let mut n = 0;
    // Each write ends within the next message, so that one is always under way.
    let mut rest = framed("OK0");
    while began.elapsed() < Duration::from_millis(1200) {
        let next = framed(&format!("OK{}", n + 1));
        let (head, tail) = next.split_at(10);
        peer.send(&[&rest[..], head].concat()).await;
        assert_eq!(peer.answer().await, format!("AA OK{n}"));
        rest = tail.to_vec();
        n += 1;
    }
    assert!(n > 3);
}

#[tokio::test]
async fn a_peer_has_so_many_connections_and_no_more() {
    let running = Running::start("connections_per_peer_max: 2").await;
    let (mut first, mut second) = (running.connect().await, running.connect().await);
    for peer in [&mut first, &mut second] {
        peer.send(&framed("OK1")).await;
        assert_eq!(peer.answer().await, "AA OK1");
    }
    assert_eq!(running.connect().await.answer().await, "closed");
    drop(first);
    // The place is free again as soon as the source has seen the end.
    loop {
        let mut third = running.connect().await;
        let _ = third.stream.write_all(&framed("OK2")).await;
        if third.answer().await == "AA OK2" {
            break;
        }
    }
}

#[tokio::test]
async fn only_allowed_networks_get_in() {
    let running = Running::start("allow: [10.0.0.0/8, '::1']").await;
    assert_eq!(running.connect().await.answer().await, "closed");
    let running = Running::start("allow: 127.0.0.0/8").await;
    let mut peer = running.connect().await;
    peer.send(&framed("OK1")).await;
    assert_eq!(peer.answer().await, "AA OK1");
}

#[tokio::test]
async fn a_fault_in_one_connection_leaves_the_others_alone() {
    let running = Running::start("").await;
    let mut healthy = running.connect().await;
    let mut faulty = running.connect().await;
    faulty.send(&framed("PANIC1")).await;
    assert_eq!(faulty.answer().await, "closed");
    healthy.send(&framed("OK1")).await;
    assert_eq!(healthy.answer().await, "AA OK1");
}

#[tokio::test]
async fn when_stopped_it_answers_what_it_took_and_closes() {
    let running = Running::start("").await;
    let (mut busy, mut idle) = (running.connect().await, running.connect().await);
    busy.send(&framed("GATE1")).await;
    idle.send(&framed("OK1")).await;
    assert_eq!(idle.answer().await, "AA OK1");
    while running.intake.accepted().len() < 2 {
        within(tokio::task::yield_now()).await;
    }
    running.stop.cancel();
    assert_eq!(idle.answer().await, "closed");
    running.intake.gate.0.add_permits(1);
    assert_eq!(busy.answer().await, "AA GATE1");
    assert_eq!(busy.answer().await, "closed");
    drop((busy, idle));
    within(running.source.task).await.expect("it ends");
    assert!(TcpStream::connect(running.source.address.expect("an address")).await.is_err());
}

#[tokio::test]
async fn a_flood_of_refused_bytes_is_not_all_kept() {
    let running = Running::start("connections_per_peer_max: 1000").await;
    for _ in 0..100 {
        let mut peer = running.connect().await;
        peer.send(b"junk").await;
        peer.stream.shutdown().await.expect("open");
        assert_eq!(peer.answer().await, "closed");
    }
    running.stop.cancel();
    within(running.source.task).await.expect("it ends");
    let kept = running.intake.refused.lock().unwrap().len();
    assert!((60..100).contains(&kept), "{kept}");
}

#[test]
fn every_mistake_in_a_configuration_is_told_at_once() {
    let config = "listen: 0.0.0.0:2575\nack_pont: mapped\nhold: 8\nframe_max: 9MB\nallow: [10.0.0/8]\nend_byte: 0x0B\n\
                  tls_: {}\non_unavailable: shut\napplication: A^B\n";
    let mistakes = configured(config, Path::new(".")).expect_err("mistakes");
    let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "1:9: listen: off loopback needs `tls`, or a `plain_text_waiver` that says why plain text is safe there",
            "5:8: allow: expected networks such as 10.1.0.0/16",
            "8:17: on_unavailable: expected one of close, refuse",
            "3:7: hold: expected a time from 10ms to 1min, such as 30s",
            "4:12: frame_max: expected a number of bytes from 1KiB to 1024MiB, such as 512KiB",
            "9:14: application: expected letters, digits, blanks, `-`, `_` and `.`",
            "6:11: end_byte: start, end and trailer bytes must differ",
            "2:1: ack_pont: unknown key; did you mean `ack_point`?",
            "7:1: tls_: unknown key; did you mean `tls`?",
        ]
    );
}

#[test]
fn plain_text_off_loopback_takes_a_waiver() {
    assert!(configured("listen: '[::1]:2575'", Path::new(".")).is_ok());
    assert!(configured("listen: 10.0.0.1:2575", Path::new(".")).is_err());
    assert!(configured("listen: 10.0.0.1:2575\nplain_text_waiver: ''", Path::new(".")).is_err());
    assert!(
        configured("listen: 10.0.0.1:2575\nplain_text_waiver: a tunnel to the lab", Path::new(".")).is_ok()
    );
}
