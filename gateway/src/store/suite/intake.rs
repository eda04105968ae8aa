//! Taking in: what is kept, what is a repeat, what waits and in which order.

use super::*;

behaviours! {
    messages_come_back_in_order_and_within_bounds,
    an_equal_message_is_a_repeat,
    other_bytes_under_the_same_control_id_are_new_and_flagged,
    a_sender_with_one_control_id_for_everything_is_kept_apart,
    a_number_that_a_wire_uses_anew_makes_no_repeat_unless_it_comes_again,
    a_rejected_message_is_kept_and_its_repeat_gets_the_same_answer,
    a_batch_appended_again_is_recognised_even_without_control_ids,
    a_message_sent_to_two_replicas_at_once_is_taken_once,
    two_replicas_append_in_commit_order,
    a_lane_sees_its_messages_and_a_merge_waits_for_both,
    text_with_nul_is_kept,
    an_append_given_up_half_way_is_there_once_after_it_came_again,
}

async fn messages_come_back_in_order_and_within_bounds(place: Place) {
    let store = place.open().await;
    let given = many(150);
    let seqs = append(&store, given.clone()).await;
    assert!(seqs.is_sorted_by(|a, b| a < b));
    let more = append(&store, vec![message("LATER", "P1")]).await;
    assert!(more[0] > seqs[149]);
    assert!(store.append(Vec::new()).await.unwrap().is_empty());

    let open = all_open(&store).await;
    assert_eq!(open.len(), 151);
    as_given(&open, &given);
    let after: Vec<Seq> = store
        .open_messages(LaneSet::ALL, seqs[9], 3, usize::MAX)
        .await
        .unwrap()
        .iter()
        .map(|message| message.seq)
        .collect();
    assert_eq!(after, seqs[10..13]);
    let size = given[0].bytes.len();
    assert_eq!(store.open_messages(LaneSet::ALL, Seq(0), 100, 2 * size).await.unwrap().len(), 2);
    assert_eq!(store.open_messages(LaneSet::ALL, Seq(0), 100, 1).await.unwrap().len(), 1, "the first always");
    drop(store);
    let open = all_open(&place.open().await).await;
    assert_eq!(open.len(), 151, "kept over a restart");
    as_given(&open, &given);
}

/// Every open message is as it was given.
fn as_given(open: &[OpenMessage], given: &[NewMessage]) {
    for (open, given) in open.iter().zip(given) {
        assert_eq!((open.id, &open.bytes, &open.keys), (given.id, &given.bytes, &given.keys));
        assert_eq!((open.received_at, &open.sender), (given.received_at, &given.sender));
        assert_eq!((&open.context, &open.message_type), (&given.context, &given.message_type));
        assert_eq!((open.revision, open.format), (0, Format::Hl7v2));
    }
}

async fn an_equal_message_is_a_repeat(place: Place) {
    let store = place.open().await;
    let first = message("C1", "P1");
    let within = NewMessage { id: message("", "").id, ..first.clone() };
    let answers = store.append(vec![first.clone(), message("C2", "P1"), within]).await.unwrap();
    let repeat = Appended::Repeat { id: first.id, received_at: first.received_at, rejected: None };
    assert_eq!(answers[2], repeat, "within one batch");
    let later = NewMessage { id: message("", "").id, ..first.clone() };
    assert_eq!(store.append(vec![later.clone()]).await.unwrap(), std::slice::from_ref(&repeat));
    drop(store);
    let store = place.open().await;
    let both = store.append(vec![later.clone(), later]).await.unwrap();
    assert_eq!(both, [repeat.clone(), repeat], "over a restart, and twice");
    assert_eq!(all_open(&store).await.len(), 2);
    let other_sender = NewMessage { id: message("", "").id, sender: "LAB_TEST".into(), ..first.clone() };
    append(&store, vec![other_sender]).await;
    let week_later = at(first.received_at + 192.hours(), "C1", "P1");
    let week_later = NewMessage { bytes: first.bytes.clone(), ..week_later };
    append(&store, vec![week_later]).await;
    assert_eq!(all_open(&store).await.len(), 4, "another sender's, and a week's, are new");
}

async fn other_bytes_under_the_same_control_id_are_new_and_flagged(place: Place) {
    let store = place.open().await;
    append(&store, vec![message("C1", "P1")]).await;
    let batch = vec![message("C0", "P1"), message("C1", "P2"), message("C1", "P3"), message("C9", "P1")];
    let answers = store.append(batch).await.unwrap();
    let reused: Vec<bool> = answers
        .iter()
        .map(|answer| matches!(answer, Appended::New { control_id_reused: true, .. }))
        .collect();
    assert_eq!(reused, [false, true, true, false]);
    let seqs: Vec<Seq> = answers.iter().map(seq_of).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b), "the order of the batch is kept: {seqs:?}");
    assert_eq!(all_open(&store).await.iter().map(|open| open.seq).collect::<Vec<_>>()[1..], seqs);
    let flagged = all_open(&store).await[2].id;
    assert!(store.timeline(flagged).await.unwrap().unwrap().control_id_reused);
}

async fn a_sender_with_one_control_id_for_everything_is_kept_apart(place: Place) {
    let store = place.open().await;
    let all: Vec<NewMessage> = (0..120).map(|n| message("1", &format!("P{n}"))).collect();
    for batch in all.chunks(7) {
        append(&store, batch.to_vec()).await;
    }
    let again = |n: usize| NewMessage { id: message("", "").id, ..all[n].clone() };
    let answers = store.append(vec![again(5), message("1", "P999"), again(100)]).await.unwrap();
    let repeat =
        |n: usize| Appended::Repeat { id: all[n].id, received_at: all[n].received_at, rejected: None };
    assert_eq!((&answers[0], &answers[2]), (&repeat(5), &repeat(100)));
    assert!(matches!(answers[1], Appended::New { control_id_reused: true, .. }));
    let open = all_open(&store).await;
    assert_eq!(open.len(), 121);
    as_given(&open, &all);
    for (n, open) in open.iter().enumerate() {
        assert_eq!(store.timeline(open.id).await.unwrap().unwrap().control_id_reused, n > 0, "{n}");
    }
}

async fn a_number_that_a_wire_uses_anew_makes_no_repeat_unless_it_comes_again(place: Place) {
    let store = place.open().await;
    let handed = |number: &str, bytes: &'static [u8], again| NewMessage {
        bytes: Bytes::from_static(bytes),
        handed_again: Some(again),
        ..message(number, "P1")
    };
    let new = |answer: &Appended| matches!(answer, Appended::New { control_id_reused: false, .. });
    let first = handed("vitals/1#0", b"72", false);
    let batch = vec![first.clone(), handed("vitals/1#0", b"72", false), handed("vitals/2#0", b"72", true)];
    let answers = store.append(batch).await.unwrap();
    assert!(answers.iter().all(new), "two readings of the same value, and one nobody has seen: {answers:?}");
    let other = handed("vitals/1#0", b"73", false);
    let answers = store
        .append(vec![
            handed("vitals/1#0", b"72", false),
            handed("vitals/2#0", b"72", true),
            other.clone(),
            handed("vitals/3#0", b"72", true),
            handed("vitals/1#0", b"74", true),
        ])
        .await
        .unwrap();
    let are_new: Vec<bool> = answers.iter().map(new).collect();
    assert_eq!(are_new, [true, false, true, true, true], "{answers:?}");
    // A batch whose answer was lost.
    let again = store.append(vec![other.clone()]).await.unwrap();
    assert!(matches!(again[0], Appended::Repeat { id, .. } if id == other.id), "{again:?}");
    assert_eq!(all_open(&store).await.len(), 7);
}

async fn a_rejected_message_is_kept_and_its_repeat_gets_the_same_answer(place: Place) {
    let store = place.open().await;
    let refused = Refused {
        answer: "AR".to_owned(),
        code: 200,
        location: "MSH-9".to_owned(),
        text: "this type is not taken here".to_owned(),
    };
    let rejected = |id| NewMessage {
        rejected: Some(refused.clone()),
        keys: Vec::new(),
        patient_hashes: Vec::new(),
        ..message(id, "P1")
    };
    let first = rejected("C1");
    append(&store, vec![first.clone(), message("C2", "P1"), rejected("")]).await;
    let again = NewMessage { id: rejected("").id, ..first.clone() };
    let answers = store.append(vec![again]).await.unwrap();
    let expected =
        Appended::Repeat { id: first.id, received_at: first.received_at, rejected: Some(refused.clone()) };
    assert_eq!(answers, [expected]);
    assert_eq!(all_open(&store).await.len(), 1, "a rejected message waits for nobody");
    let books = balanced(&store).await;
    assert_eq!((books[0].received, books[0].rejected, books[0].waiting), (3, 2, 1));
    assert_eq!(store.timeline(first.id).await.unwrap().unwrap().rejected, Some(refused));
}

async fn a_batch_appended_again_is_recognised_even_without_control_ids(place: Place) {
    let store = place.open().await;
    let batch = vec![message("", "P1"), message("C1", "P1"), message("", "P1")];
    append(&store, batch.clone()).await;
    let mut again = batch.clone();
    again.insert(1, message("", "P2"));
    let answers = store.append(again).await.unwrap();
    let ids: Vec<Option<MessageId>> = answers
        .iter()
        .map(|answer| match answer {
            Appended::Repeat { id, .. } => Some(*id),
            Appended::New { .. } => None,
        })
        .collect();
    assert_eq!(ids, [Some(batch[0].id), None, Some(batch[1].id), Some(batch[2].id)]);
    assert_eq!(all_open(&store).await.len(), 4);
    balanced(&store).await;
}

async fn a_message_sent_to_two_replicas_at_once_is_taken_once(place: Place) {
    let replicas = place.replicas().await;
    for n in 0..25 {
        let first = message(&format!("C{n}"), "P1");
        let batch = |other: &str| {
            vec![
                message(other, "P1"),
                NewMessage { id: message("", "").id, ..first.clone() },
                message("", "P2"),
            ]
        };
        let (ours, theirs) =
            tokio::join!(replicas[0].append(batch("")), replicas[1].append(batch(&format!("O{n}"))));
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        let repeats: Vec<bool> = [&ours, &theirs]
            .into_iter()
            .flatten()
            .map(|answer| matches!(answer, Appended::Repeat { .. }))
            .collect();
        assert!(
            repeats == [false, true, false, false, false, false]
                || repeats == [false, false, false, false, true, false],
            "{repeats:?}"
        );
    }
    assert_eq!(all_open(&replicas[0]).await.len(), 25 * 5);
}

async fn two_replicas_append_in_commit_order(place: Place) {
    let replicas = place.replicas().await;
    let work = |replica: usize| {
        let store = Arc::clone(&replicas[replica]);
        async move {
            let mut last = Seq(0);
            for n in 0..25 {
                let batch = (0..3).map(|m| message(&format!("R{replica}-{n}-{m}"), "P1")).collect();
                let seqs = append(&store, batch).await;
                assert!(seqs[0] > last, "one's own come after one another");
                last = seqs[2];
            }
        }
    };
    // A reader that follows the order must never find that something came in below what it has seen.
    let follow = async {
        let (mut seen, mut after) = (Vec::new(), Seq(0));
        while seen.len() < 150 {
            for open in replicas[0].open_messages(LaneSet::ALL, after, 1000, usize::MAX).await.unwrap() {
                after = open.seq;
                seen.push(open.seq);
            }
            tokio::task::yield_now().await;
        }
        seen
    };
    let bound = tokio::time::timeout(MINUTE, async { tokio::join!(work(0), work(1), follow) });
    let ((), (), seen) = bound.await.expect("nothing appears below what was read");
    let open: Vec<Seq> = all_open(&replicas[1]).await.iter().map(|open| open.seq).collect();
    assert_eq!(seen, open);
}

async fn a_lane_sees_its_messages_and_a_merge_waits_for_both(place: Place) {
    let store = place.open().await;
    let (a, b) = (OrderKey(64), OrderKey(65));
    let keyed = |keys: &[OrderKey]| NewMessage { keys: keys.to_vec(), ..message("", "P1") };
    let seqs = append(&store, vec![keyed(&[a]), keyed(&[b]), keyed(&[a, b]), keyed(&[b])]).await;
    let of = async |keys: &[OrderKey]| -> Vec<Seq> {
        let open = store.open_messages(LaneSet::of(keys), Seq(0), 10, usize::MAX).await.unwrap();
        open.iter().map(|open| open.seq).collect()
    };
    assert_eq!(of(&[a]).await, [seqs[0], seqs[2]]);
    assert_eq!(of(&[b]).await, [seqs[1], seqs[2], seqs[3]]);
    assert!(of(&[OrderKey(66)]).await.is_empty());
    assert!(!store.open_before(seqs[0], &[a]).await.unwrap());
    assert!(store.open_before(seqs[2], &[a, b]).await.unwrap());
    assert!(store.open_before(seqs[3], &[b]).await.unwrap());
    assert!(!store.open_before(seqs[3], &[OrderKey(96)]).await.unwrap(), "same lane, another patient");
    assert_eq!(store.still_open(&[seqs[1], Seq(999), seqs[0]]).await.unwrap(), [seqs[0], seqs[1]]);
}

async fn text_with_nul_is_kept(place: Place) {
    let store = place.open().await;
    let odd = NewMessage {
        message_type: "ADT\0^A01".to_owned(),
        context: "\0".to_owned(),
        bytes: Bytes::from_static(b"MSH|^~\\&|\0\0\xff"),
        ..message("C\0X", "P1")
    };
    append(&store, vec![odd.clone(), message("C2", "P1")]).await;
    assert_eq!(all_open(&store).await[0].bytes, odd.bytes);
    let again = NewMessage { id: message("", "").id, ..odd.clone() };
    assert!(
        matches!(store.append(vec![again]).await.unwrap()[0], Appended::Repeat { id, .. } if id == odd.id)
    );
    let query = Query { control_id: Some("C\0X".to_owned()), limit: 9, ..Query::default() };
    assert_eq!(store.search(&query).await.unwrap()[0].id, odd.id);
}

async fn an_append_given_up_half_way_is_there_once_after_it_came_again(place: Place) {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Poll;

    let store = place.open().await;
    let mut appended = 0;
    for polls in 0..12 {
        let batch: Vec<NewMessage> = (0..3).map(|n| message(&format!("B{polls}-{n}"), "P1")).collect();
        {
            let mut given_up = pin!(store.append(batch.clone()));
            let mut left = polls;
            std::future::poll_fn(|context| {
                left -= 1;
                let over = left < 0 || given_up.as_mut().poll(context).is_ready();
                if over { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        // Whether it was committed or not, the sender sends again and each message is there once.
        let again = batch.into_iter().map(|each| NewMessage { id: message("", "").id, ..each }).collect();
        assert_eq!(store.append(again).await.unwrap().len(), 3);
        appended += 3;
        assert_eq!(all_open(&store).await.len(), appended, "given up after {polls} polls");
    }
    balanced(&store).await;
}
