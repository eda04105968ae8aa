use super::*;
use crate::store::Format;
use uuid::Uuid;

#[test]
fn a_confirm_that_comes_late_does_not_take_away_what_was_read_for_the_attempt() {
    // So short of memory that what comes off the bus is not kept.
    let settings = Settings { window_bytes: 0, ..Settings::default() };
    let names = Names { installation: "test".into(), subscription: "lab".into(), notifies: None };
    let mut window = Window::new(settings, Arc::default(), names, false, 1);
    let (id, message, now) = (DeliveryId(Uuid::from_u128(1)), MessageId(Uuid::from_u128(2)), Instant::now());
    let row = OpenDelivery {
        id,
        message,
        revision: 0,
        number: 1,
        key: OrderKey(7),
        matched: vec!["result-final".to_owned()].into(),
        state: DeliveryState::Pending,
        attempts: 0,
        rest: Duration::ZERO,
    };
    let content = Content {
        original: Bytes::new(),
        format: Format::Hl7v2,
        sender: "LAB".into(),
        message_type: String::new(),
        received_at: Timestamp::UNIX_EPOCH,
        bundle: Bytes::from_static(br#"{"resourceType":"Bundle"}"#),
        beside: Bytes::new(),
    };
    let contents = HashMap::from([((message, 0), content)]);
    let read = |window: &mut Window| {
        let wanted: Vec<i64> = window.wanted(9).into_iter().map(|(number, ..)| number).collect();
        assert_eq!(wanted, [1]);
        window.fetched(&wanted, &contents, now);
    };
    window.loaded(vec![row], now, true);
    assert!(window.publishable(9).is_empty(), "its content is asked for first");
    read(&mut window);
    let published = window.publishable(9);
    let body = published[0].1.body.clone();
    // It comes before the confirm, as a copy of before does.
    let ticket = Ticket { session: 1, tag: 1 };
    window.taken(Taken { delivery: id, traceparent: None, redelivered: true, body, ticket }, now);
    assert!(window.startable_now(now).is_empty(), "it was not kept");
    read(&mut window);
    assert!(window.startable_now(now).is_empty(), "that it begins is written first");
    window.published(vec![(1, Ok(()))], now);
    let batch = window.take_changes(9, now);
    window.written(batch, false);
    assert_eq!(window.startable_now(now).len(), 1, "and then it begins");
}
