//! Random histories, played on a store and on a model of it in memory: after every step the books, the open messages and
//! the open deliveries must be those of the model.

use super::suite::{self, Place};
use super::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One step of a history. Numbers choose among what there is, modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    /// New messages: each its sender, its day, its patient, and whether it is rejected.
    Append(Vec<(u8, i8, u8, bool)>),
    /// The same message once more, under another id.
    Repeat(usize),
    /// Results for the first open messages: quarantined, or routed to so many subscriptions.
    Record(Vec<Option<u8>>),
    /// A change of one open delivery.
    Change(usize, DeliveryState),
    /// What a person asks for.
    Replay(usize),
    Deliver(usize),
    Skip(usize),
    CarryOut,
    BrokerWiped,
    House,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let new = (0u8..3, 1i8..4, 0u8..4, proptest::bool::weighted(0.15));
    let changed = proptest::sample::select(vec![
        DeliveryState::Published,
        DeliveryState::RetryWait,
        DeliveryState::Delivered,
        DeliveryState::Delivered,
        DeliveryState::Delivered,
        DeliveryState::Suppressed,
        DeliveryState::Parked,
    ]);
    let result = proptest::option::weighted(0.7, 0u8..3);
    let step = prop_oneof![
        4 => proptest::collection::vec(new, 1..6).prop_map(Step::Append),
        1 => any::<usize>().prop_map(Step::Repeat),
        4 => proptest::collection::vec(result, 1..5).prop_map(Step::Record),
        8 => (any::<usize>(), changed).prop_map(|(which, state)| Step::Change(which, state)),
        1 => any::<usize>().prop_map(Step::Replay),
        2 => any::<usize>().prop_map(Step::Deliver),
        1 => any::<usize>().prop_map(Step::Skip),
        2 => Just(Step::CarryOut),
        1 => Just(Step::BrokerWiped),
        1 => Just(Step::House),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Waiting,
    Routed,
    Quarantined,
    Rejected,
}

struct ModelMessage {
    given: NewMessage,
    seq: Seq,
    state: State,
    revision: u32,
    /// Let go by retention.
    gone: bool,
}

struct ModelDelivery {
    id: DeliveryId,
    message: usize,
    subscription: u8,
    number: i64,
    state: DeliveryState,
    attempts: u32,
}

#[derive(Default)]
struct Model {
    messages: Vec<ModelMessage>,
    deliveries: Vec<ModelDelivery>,
    numbers: [i64; 2],
    asked: Vec<Request>,
}

impl Model {
    fn to_do(state: DeliveryState) -> bool {
        matches!(state, DeliveryState::Pending | DeliveryState::Published | DeliveryState::RetryWait)
    }

    fn waiting(&self) -> Vec<(Seq, u32)> {
        let waiting = self.messages.iter().filter(|each| each.state == State::Waiting);
        let mut waiting: Vec<_> = waiting.map(|each| (each.seq, each.revision)).collect();
        waiting.sort();
        waiting
    }

    fn open(&self, subscription: u8) -> Vec<(i64, DeliveryId, DeliveryState, u32)> {
        let open = self
            .deliveries
            .iter()
            .filter(|each| each.subscription == subscription && Self::to_do(each.state));
        let mut open: Vec<_> = open.map(|each| (each.number, each.id, each.state, each.attempts)).collect();
        open.sort_by_key(|each| each.0);
        open
    }

    fn books(&self) -> Vec<Books> {
        let mut books: std::collections::BTreeMap<String, Books> = Default::default();
        for (place, message) in self.messages.iter().enumerate() {
            let sender = message.given.sender.to_string();
            let empty = Books {
                sender: sender.clone(),
                received: 0,
                routed_final: 0,
                routed_open: 0,
                quarantined: 0,
                rejected: 0,
                waiting: 0,
            };
            let book = books.entry(sender).or_insert(empty);
            book.received += 1;
            let open = self.deliveries.iter().any(|each| {
                each.message == place && (Self::to_do(each.state) || each.state == DeliveryState::Parked)
            });
            match message.state {
                State::Waiting => book.waiting += 1,
                State::Quarantined => book.quarantined += 1,
                State::Rejected => book.rejected += 1,
                State::Routed if open => book.routed_open += 1,
                State::Routed => book.routed_final += 1,
            }
        }
        books.into_values().collect()
    }

    fn carry_out(&mut self) -> usize {
        let mut done = 0;
        let mut opened = Vec::new();
        for request in std::mem::take(&mut self.asked) {
            match request {
                Request::Normalize(id) => {
                    let message =
                        self.messages.iter_mut().find(|each| each.given.id == id).expect("asked for");
                    if !message.gone && matches!(message.state, State::Routed | State::Quarantined) {
                        (message.state, message.revision) = (State::Waiting, message.revision + 1);
                        opened.push(id);
                        done += 1;
                    } else if message.state == State::Waiting && message.revision > 0 && !opened.contains(&id)
                    {
                        self.asked.push(request);
                    }
                }
                Request::Deliver(id, _) | Request::Skip(id, _, _) => {
                    let delivery = self.deliveries.iter_mut().find(|each| each.id == id).expect("asked for");
                    if delivery.state == DeliveryState::Parked {
                        if matches!(request, Request::Deliver(..)) {
                            (delivery.state, delivery.attempts) = (DeliveryState::Pending, 0);
                        } else {
                            delivery.state = DeliveryState::Skipped;
                        }
                        done += 1;
                    }
                }
            }
        }
        done
    }
}

const SUBSCRIPTIONS: [&str; 2] = ["lab", "insurer"];

async fn play(place: &Place, steps: Vec<Step>) {
    let mut store = place.open().await;
    store.housekeeping(&Retention { days: None }, suite::noon(2)).await.unwrap();
    let mut model = Model::default();
    for step in steps {
        if matches!(step, Step::Restart) {
            drop(store);
            store = place.open().await;
        }
        take(&store, &mut model, &step).await;
        assert_eq!(store.books().await.unwrap(), model.books(), "after {step:?}");
        let open = suite::all_open(&store).await;
        let open: Vec<_> = open.iter().map(|each| (each.seq, each.revision)).collect();
        assert_eq!(open, model.waiting(), "after {step:?}");
        for (subscription, name) in (0..).zip(SUBSCRIPTIONS) {
            let open = suite::deliveries(&store, name).await;
            let open: Vec<_> =
                open.iter().map(|each| (each.number, each.id, each.state, each.attempts)).collect();
            assert_eq!(open, model.open(subscription), "after {step:?}");
        }
    }
}

async fn take(store: &Arc<dyn Store>, model: &mut Model, step: &Step) {
    let of = |count: usize, which: usize| (count > 0).then(|| which % count);
    match step {
        Step::Append(new) => {
            let mut batch = Vec::new();
            for (sender, day, patient, rejected) in new {
                let count = model.messages.len() + batch.len();
                let mut message = suite::at(suite::noon(*day), &format!("C{count}"), &format!("P{patient}"));
                message.sender = format!("SENDER_{sender}").into();
                message.rejected = rejected.then(|| Refused {
                    answer: "AR".to_owned(),
                    code: 200,
                    location: String::new(),
                    text: "not taken".to_owned(),
                });
                batch.push(message);
            }
            let seqs = suite::append(store, batch.clone()).await;
            for (given, seq) in batch.into_iter().zip(seqs) {
                let state = if given.rejected.is_some() { State::Rejected } else { State::Waiting };
                model.messages.push(ModelMessage { given, seq, state, revision: 0, gone: false });
            }
        }
        Step::Repeat(which) => {
            let Some(place) = of(model.messages.len(), *which) else { return };
            let first = &model.messages[place];
            if first.gone {
                return;
            }
            let id = suite::at(suite::noon(3), "", "").id;
            let answers = store.append(vec![NewMessage { id, ..first.given.clone() }]).await.unwrap();
            assert!(matches!(answers[0], Appended::Repeat { id, .. } if id == first.given.id));
        }
        Step::Record(outcomes) => {
            let open = suite::all_open(store).await;
            let mut recording = Recording::default();
            for (message, outcome) in open.iter().zip(outcomes) {
                let place =
                    model.messages.iter().position(|each| each.given.id == message.id).expect("known");
                let Some(subscribers) = outcome else {
                    recording.results.push(suite::quarantined(message));
                    model.messages[place].state = State::Quarantined;
                    continue;
                };
                recording.results.push(suite::routed(message));
                model.messages[place].state = State::Routed;
                for (subscription, name) in (0..*subscribers).zip(SUBSCRIPTIONS) {
                    let delivery = suite::delivery(message, name);
                    let number = &mut model.numbers[usize::from(subscription)];
                    *number += 1;
                    model.deliveries.push(ModelDelivery {
                        id: delivery.id,
                        message: place,
                        subscription,
                        number: *number,
                        state: DeliveryState::Pending,
                        attempts: 0,
                    });
                    recording.deliveries.push(delivery);
                }
            }
            suite::record(store, recording).await.unwrap();
        }
        Step::Change(which, state) => {
            for (subscription, name) in (0..).zip(SUBSCRIPTIONS) {
                let open = suite::deliveries(store, name).await;
                let Some(place) = of(open.len(), *which) else { continue };
                let lease = suite::lease(store, 1, &format!("subscription:{name}")).await;
                let change = suite::change(&open[place], *state);
                let delivery = model
                    .deliveries
                    .iter_mut()
                    .find(|each| each.subscription == subscription && each.id == change.id)
                    .expect("known");
                (delivery.state, delivery.attempts) = (*state, change.attempts);
                store.change_deliveries(&lease, vec![change]).await.unwrap();
            }
        }
        Step::Replay(which) => {
            let Some(place) = of(model.messages.len(), *which) else { return };
            ask(store, model, Request::Normalize(model.messages[place].given.id)).await;
        }
        Step::Deliver(which) | Step::Skip(which) => {
            let Some(place) = of(model.deliveries.len(), *which) else { return };
            let delivery = &model.deliveries[place];
            let message = model.messages[delivery.message].given.id;
            let request = match step {
                Step::Deliver(_) => Request::Deliver(delivery.id, message),
                _ => Request::Skip(delivery.id, message, "told".to_owned()),
            };
            ask(store, model, request).await;
        }
        Step::CarryOut => {
            let done = store.carry_out_requests(1000).await.unwrap();
            assert_eq!(done, model.carry_out());
        }
        Step::BrokerWiped => {
            store.unpublish_all().await.unwrap();
            for delivery in &mut model.deliveries {
                if delivery.state == DeliveryState::Published {
                    delivery.state = DeliveryState::Pending;
                }
            }
        }
        Step::House => {
            let gone = store.housekeeping(&Retention { days: Some(1) }, suite::noon(9)).await.unwrap();
            let mut missing = 0;
            for place in 0..model.messages.len() {
                if model.messages[place].gone
                    || store.timeline(model.messages[place].given.id).await.unwrap().is_some()
                {
                    continue;
                }
                model.messages[place].gone = true;
                missing += 1;
                let open = model.deliveries.iter().any(|each| {
                    each.message == place && (Model::to_do(each.state) || each.state == DeliveryState::Parked)
                });
                let state = model.messages[place].state;
                assert!(!open && matches!(state, State::Routed | State::Rejected), "only what is final goes");
            }
            assert_eq!(gone, missing);
        }
        Step::Restart => {}
    }
}

async fn ask(store: &Arc<dyn Store>, model: &mut Model, request: Request) {
    store.request("admin", std::slice::from_ref(&request)).await.unwrap();
    model.asked.push(request);
}

fn check(cases: u32, play: impl Fn(Vec<Step>)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let played = TestRunner::new(config).run(&steps(), |steps| {
        play(steps);
        Ok(())
    });
    played.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn books_always_balance_in_sqlite() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    check(40, |steps| runtime.block_on(play(&Place::sqlite(), steps)));
}

#[test]
#[ignore = "needs PostgreSQL: tests/run starts it"]
fn books_always_balance_in_postgres() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    check(12, |steps| {
        runtime.block_on(async {
            let place = Place::postgres().await;
            play(&place, steps).await;
            place.drop_database().await;
        });
    });
}
