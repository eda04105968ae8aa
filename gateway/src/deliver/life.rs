//! The life of a requested subscription, as its deliverer leads it: the handshake before anything is sent, heartbeats while there is
//! nothing to say, and the word to its owner when its endpoint does not take what it is sent.
//!
//! The rule: a subscription is in `error` when its endpoint does not take the handshake, when it has taken nothing for five minutes
//! although it was tried, or after three dead letters in a row. Its events are kept and go on being numbered; what is not dead
//! is tried again and again, and the first thing that is taken makes it active again. When its owner asks for it anew, its dead letters go again
//! too.

use super::{Services, Subscription};
use crate::lifecycle::Outcome;
use crate::route::notification::{About, Notifies};
use crate::route::publish;
use crate::route::roster::Roster;
use crate::store::{self, Requested, Standing, Store, StoreError};
use adapters::{DeliverError, Destination, Outgoing};
use bytes::Bytes;
use schemas::message::DeliveryId;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// How often a handshake is tried, and the rests between.
const HANDSHAKES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5)];
/// After how long without anything taken it is in error.
const FAILING_MAX: Duration = Duration::from_secs(300);
/// After how many dead letters in a row.
const DEAD_MAX: u32 = 3;

/// Leads the life of one requested subscription.
#[derive(Clone, Debug)]
pub struct Life {
    /// Where it stands.
    pub roster: Arc<Roster>,
    /// Which.
    pub id: Uuid,
    /// The version in which its owner spoke last: another one is not this deliverer's.
    pub written: i64,
    /// After how long without a notification there is a heartbeat.
    pub heartbeat: Option<Duration>,
}

impl Life {
    /// How it stands, if it is still this one's.
    fn standing(&self) -> Option<Standing> {
        let now = self.roster.now();
        let one = now.find(self.id)?;
        (one.stored.written == self.written).then_some(one.stored.standing)
    }

    /// Whether its owner is told that it is failing.
    pub(super) fn is_failing(&self) -> bool {
        self.standing() == Some(Standing::Failing)
    }

    async fn change(&self, change: impl Fn(&mut Requested) -> bool) -> Result<bool, StoreError> {
        let written = self.written;
        self.roster.change(self.id, |one| one.written == written && change(one)).await
    }

    /// Shakes hands where that is still to be done. Answers whether notifications may be sent.
    pub(super) async fn greet(&self, subscription: &Subscription, services: &Services) -> bool {
        let store = &*services.store;
        // Another replica may have tried it just before, and let the lease go.
        if let Err(error) = self.roster.refresh().await {
            tracing::warn!(error = %crate::chain(&error), "the subscriptions could not be read");
            return false;
        }
        match self.standing() {
            Some(Standing::Active | Standing::Failing) => return true,
            Some(Standing::Requested) => {}
            Some(Standing::Refused | Standing::Off | Standing::Removed) | None => return false,
        }
        let voice = Voice::of(subscription, services);
        // What lies there was written as it was asked for before; it is written anew, for whom it is now.
        if let Err(error) = services.bus.remove(&subscription.name).await {
            tracing::warn!(subscription = %self.id, error = %crate::chain(&error), "a handshake waits for the bus");
            return false;
        }
        let mut said = String::new();
        for rest in HANDSHAKES {
            sleep(rest).await;
            // Whoever binds it to a WebSocket is the one who shakes hands, and does so each time.
            let said_so = match subscription.is_bound {
                true => Ok(()),
                false => self.say("handshake", &voice, store).await,
            };
            match said_so {
                Ok(()) => {
                    // First what was given up, or lay on the bus: it is to be delivered before anything newer.
                    let begun = async {
                        let again = store.take_up_again(&subscription.name).await?;
                        let begun = self.change(|one| {
                            let is_waiting = one.standing == Standing::Requested;
                            (one.standing, one.is_live, one.error) = (Standing::Active, true, String::new());
                            is_waiting
                        });
                        Ok::<_, StoreError>((begun.await?, again))
                    };
                    return match begun.await {
                        Ok((begun, again)) => {
                            tracing::info!(subscription = %self.id, again, "a handshake was taken; the subscription is active");
                            begun
                        }
                        Err(error) => {
                            tracing::warn!(subscription = %self.id, error = %crate::chain(&error), "a handshake could not be written down");
                            false
                        }
                    };
                }
                Err(why) => said = why,
            }
        }
        tracing::warn!(subscription = %self.id, answer = said, "a handshake was not taken; the subscription is in error");
        let refused = self.change(|one| {
            let is_waiting = one.standing == Standing::Requested;
            (one.standing, one.error) =
                (Standing::Refused, format!("the endpoint did not take the handshake: {said}"));
            is_waiting
        });
        if let Err(error) = refused.await {
            tracing::warn!(subscription = %self.id, error = %crate::chain(&error), "a handshake could not be written down");
        }
        false
    }

    /// Sends a notification without events.
    ///
    /// # Errors
    /// What was answered instead of yes.
    pub(super) async fn say(
        &self,
        kind: &'static str,
        voice: &Voice,
        store: &dyn Store,
    ) -> Result<(), String> {
        let last = store.last_event(&voice.name).await.map_err(|error| crate::chain(&error).to_string())?;
        let standing = self.standing().unwrap_or(Standing::Requested);
        let outgoing = voice.outgoing(kind, standing, last);
        match timeout(voice.wait_max, voice.destination.greet(&outgoing)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(DeliverError::Again { answer, .. } | DeliverError::Never { answer })) => Err(answer),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    /// Writes down that its endpoint takes nothing, or that it takes something again.
    pub(super) async fn tell(&self, word: &Word) -> Result<bool, StoreError> {
        let told = self.change(|one| match (word, one.standing) {
            (Word::Failing(why), Standing::Active) => {
                (one.standing, one.error) = (Standing::Failing, why.clone());
                true
            }
            (Word::Well, Standing::Failing) => {
                (one.standing, one.error) = (Standing::Active, String::new());
                true
            }
            _ => false,
        });
        let told = told.await?;
        match word {
            Word::Failing(why) if told => {
                tracing::warn!(subscription = %self.id, why, "the subscription is in error; its events are kept");
            }
            Word::Well if told => tracing::info!(subscription = %self.id, "the subscription is active again"),
            _ => {}
        }
        Ok(told)
    }
}

/// What is needed to say something without events.
#[derive(Clone, Debug)]
pub(super) struct Voice {
    name: Arc<str>,
    installation: Arc<str>,
    topic: Option<String>,
    /// `None` where nothing but events can be said.
    notifies: Option<Notifies>,
    destination: Arc<dyn Destination>,
    wait_max: Duration,
}

impl Voice {
    /// That of a subscription.
    pub(super) fn of(subscription: &Subscription, services: &Services) -> Voice {
        Voice {
            name: Arc::clone(&subscription.name),
            installation: Arc::clone(&services.installation),
            topic: subscription.topic.clone(),
            notifies: subscription.notifies.clone(),
            destination: Arc::clone(&subscription.destination),
            wait_max: subscription.settings.attempt_wait_max,
        }
    }

    fn outgoing(&self, kind: &'static str, standing: Standing, last: i64) -> Outgoing {
        let about = About {
            id: Uuid::now_v7(),
            at: store::now(),
            kind,
            status: standing.code(),
            subscription: &self.name,
            topic: self.topic.as_deref(),
            last,
        };
        let bundle = self.notifies.as_ref().map(|notifies| notifies.bundle(&about, &[]).to_string());
        let bundle = Bytes::from(bundle.unwrap_or_default());
        Outgoing {
            delivery: DeliveryId(about.id),
            subscription: Arc::clone(&self.name),
            attempt: 1,
            event: publish::greeting(&self.installation, &about, &bundle),
            bundle,
            passes: None,
            original: Bytes::new(),
            traceparent: None,
        }
    }
}

/// What its owner is to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It takes nothing, and why.
    Failing(String),
    /// It does.
    Well,
}

/// How an endpoint takes what it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pulse {
    known: Known,
    failing_since: Option<Instant>,
    dead: u32,
    /// When it was sent something last.
    sent_at: Instant,
}

/// What its attempts have shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Well,
    Failing(String),
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Pulse {
        Pulse { known: Known::Nothing, failing_since: None, dead: 0, sent_at: now }
    }

    /// Takes the end of an attempt.
    pub(super) fn tried(&mut self, outcome: &Outcome, now: Instant) {
        self.sent_at = now;
        match outcome {
            Outcome::Withheld => return,
            Outcome::Accepted => {
                (self.known, self.failing_since, self.dead) = (Known::Well, None, 0);
                return;
            }
            Outcome::Never => self.dead += 1,
            Outcome::Again { .. } | Outcome::Away { .. } => {}
        }
        self.failed(now);
    }

    /// Takes the answer to a heartbeat. One that is taken says nothing of dead letters: it carries no events.
    pub(super) fn beaten(&mut self, is_taken: bool, now: Instant) {
        if !is_taken {
            self.failed(now);
        } else if self.dead == 0 {
            self.failing_since = None;
            if matches!(self.known, Known::Failing(_)) {
                self.known = Known::Well;
            }
        }
    }

    fn failed(&mut self, now: Instant) {
        let since = *self.failing_since.get_or_insert(now);
        if self.dead >= DEAD_MAX {
            let why = format!("the endpoint refused {} notifications in a row for good", self.dead);
            self.known = Known::Failing(why);
        } else if now.duration_since(since) >= FAILING_MAX {
            let minutes = FAILING_MAX.as_secs() / 60;
            self.known = Known::Failing(format!("the endpoint has taken nothing for {minutes} minutes"));
        }
    }

    /// What its owner is still to be told, who knows that it is failing, or not.
    pub(super) fn word(&self, is_failing: bool) -> Option<Word> {
        match &self.known {
            Known::Well if is_failing => Some(Word::Well),
            Known::Failing(why) if !is_failing => Some(Word::Failing(why.clone())),
            Known::Nothing | Known::Well | Known::Failing(_) => None,
        }
    }

    /// Whether a heartbeat is due; it counts as sent then.
    pub(super) fn beats(&mut self, every: Option<Duration>, now: Instant) -> bool {
        let due = every.is_some_and(|every| now.duration_since(self.sent_at) >= every);
        if due {
            self.sent_at = now;
        }
        due
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bus::{Bus, Embedded, Envelope, routing_key};
    use crate::config::Config;
    use crate::deliver::{Counters, Settings};
    use crate::ingest::senders::Senders;
    use crate::route::notification::Payload;
    use crate::route::publish::EpochWatch;
    use adapters::Receipt;
    use async_trait::async_trait;
    use jiff::Timestamp;
    use std::path::Path;
    use std::sync::Mutex;

    /// Says what it was sent, and takes it.
    #[derive(Debug, Default)]
    struct Ear(Mutex<Vec<Bytes>>);

    #[async_trait]
    impl Destination for Ear {
        async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
            self.0.lock().expect("nobody panics").push(outgoing.bundle.clone());
            Ok(Receipt { answer: "HTTP 200".to_owned() })
        }
    }

    /// A store of its own, and a roster over it that allows the sender `payer` everything.
    pub(in crate::deliver) async fn roster(folder: &Path) -> (Arc<dyn Store>, Arc<Roster>) {
        let url = format!("sqlite:{}", folder.join("pons.db").display());
        let store = store::open(&url, store::Role::Gateway).await.expect("opened");
        store.migrate().await.expect("migrated");
        let text = "sources: []\nhttp: {base_url: 'https://pons.test/fhir'}\nsenders: [{name: payer, application: X, subscribes: \
                    {topics: '*', senders: '*', endpoints: 'http://127.0.0.1:9'}}]\n";
        let config = Config::parse(text, Path::new("")).expect("valid");
        let senders = Senders::new(config.senders, Vec::new());
        let base = config.http.base_url;
        (store.clone(), Arc::new(Roster::new(store, Vec::new(), senders, base, Uuid::nil())))
    }

    /// A first version of one; `end` is its end, if it has one.
    pub(in crate::deliver) fn requested(id: u128, standing: Standing, end: Option<Timestamp>) -> Requested {
        let mut resource = serde_json::json!({
            "resourceType": "Subscription", "status": "requested", "reason": "x", "criteria": "urn:pons:topic:encounter-end",
            "channel": {
                "type": "rest-hook", "endpoint": "http://127.0.0.1:9/a", "payload": "application/fhir+json",
                "_payload": {"extension": [{
                    "url": "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-payload-content",
                    "valueCode": "empty",
                }]},
            },
        });
        if let Some(end) = end {
            resource["end"] = end.to_string().into();
        }
        Requested {
            id: Uuid::from_u128(id),
            owner: "payer".into(),
            version: 1,
            written: 1,
            standing,
            is_live: true,
            error: String::new(),
            resource: resource.to_string(),
            changed_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn what_lay_on_the_bus_is_gone_before_a_new_endpoint_is_sent_anything() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, roster) = roster(folder.path()).await;
        let requested = requested(1, Standing::Requested, None);
        let id = requested.id;
        roster.write(&requested).await.expect("written");
        assert!(roster.now().find(id).is_some_and(|one| one.wanted.is_ok()));
        let bus: Arc<dyn Bus> = Arc::new(Embedded::new(1 << 20));
        let name: Arc<str> = id.to_string().into();
        bus.declare(&name).await.expect("declared");
        let old = Envelope {
            delivery: DeliveryId(Uuid::from_u128(7)),
            subscription: name.clone(),
            routing_key: routing_key(&name, "encounter-end", "TEST"),
            traceparent: None,
            body: Bytes::from_static(b"written for another"),
        };
        assert!(bus.publish(vec![old]).await.iter().all(Result::is_ok));
        let services = Services {
            store: store.clone(),
            bus: bus.clone(),
            watch: Arc::new(EpochWatch::new(store, bus.clone())),
            keys: None,
            sockets: Arc::new(crate::deliver::Sockets::new(tokio_util::sync::CancellationToken::new())),
            replica: Uuid::from_u128(2),
            installation: "test".into(),
        };
        let ear = Arc::new(Ear::default());
        let subscription = Subscription {
            name: name.clone(),
            settings: Settings::default(),
            notifies: Some(Notifies::new("https://pons.test/fhir", Payload::Empty)),
            topic: Some("encounter-end".to_owned()),
            life: None,
            destination: ear.clone(),
            is_bound: false,
            counters: Arc::new(Counters::default()),
            timings: crate::telemetry::metrics::DeliverTimings::default(),
        };
        let life = Life { roster, id, written: 1, heartbeat: None };
        assert!(life.greet(&subscription, &services).await);
        assert_eq!(life.standing(), Some(Standing::Active));
        let heard = ear.0.lock().expect("nobody panics").clone();
        assert!(matches!(&heard[..], [one] if one.windows(9).any(|part| part == b"handshake")));
        let mut consumer = bus.consume(&name, 9).await.expect("it can be made again");
        let next = timeout(Duration::from_millis(100), consumer.next()).await;
        assert!(next.is_err(), "nothing lies there any more: {next:?}");
        assert!(life.greet(&subscription, &services).await, "hands are shaken once");
        assert_eq!(ear.0.lock().expect("nobody panics").len(), 1);
        let other = Life { written: 2, ..life };
        assert!(!other.greet(&subscription, &services).await, "another version is not its own");
    }

    #[test]
    fn it_fails_after_a_time_or_after_dead_letters_and_one_taken_makes_it_well() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start);
        assert_eq!((pulse.word(true), pulse.word(false)), (None, None), "nothing is known yet");
        let again = Outcome::Again { after: None };
        for seconds in [0, 299] {
            pulse.tried(&again, at(seconds));
            assert_eq!(pulse.word(false), None);
        }
        pulse.tried(&again, at(300));
        assert!(matches!(pulse.word(false), Some(Word::Failing(why)) if why.contains("5 minutes")));
        assert_eq!(pulse.word(true), None, "its owner knows");
        pulse.tried(&Outcome::Accepted, at(401));
        assert_eq!((pulse.word(true), pulse.word(false)), (Some(Word::Well), None));
        pulse.tried(&again, at(800));
        assert_eq!(pulse.word(false), None, "the time counts from the first that failed");
        for n in 0..2 {
            pulse.tried(&Outcome::Never, at(801 + n));
            assert_eq!(pulse.word(false), None);
        }
        pulse.tried(&Outcome::Never, at(803));
        let word = pulse.word(false);
        assert!(matches!(&word, Some(Word::Failing(why)) if why.contains("3 notifications")), "{word:?}");
    }

    #[test]
    fn heartbeats_tell_that_it_is_there_and_nothing_of_dead_letters() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start);
        pulse.beaten(true, at(0));
        assert_eq!(pulse.word(true), None, "why it fails is not known here");
        for n in 0..3 {
            pulse.tried(&Outcome::Never, at(n));
            pulse.beaten(true, at(n));
        }
        assert!(matches!(pulse.word(false), Some(Word::Failing(_))));
        pulse.beaten(true, at(9));
        assert_eq!(pulse.word(true), None, "it is still failing");
        let mut pulse = Pulse::new(start);
        pulse.beaten(false, at(0));
        pulse.beaten(false, at(300));
        assert!(matches!(pulse.word(false), Some(Word::Failing(_))));
        pulse.beaten(true, at(301));
        assert_eq!(pulse.word(true), Some(Word::Well));
    }

    #[test]
    fn a_heartbeat_is_due_when_nothing_was_sent_for_so_long() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start);
        let every = Some(Duration::from_secs(10));
        assert!(!pulse.beats(every, at(9)) && !pulse.beats(None, at(99)));
        pulse.tried(&Outcome::Accepted, at(9));
        assert!(!pulse.beats(every, at(18)));
        assert!(pulse.beats(every, at(19)) && !pulse.beats(every, at(20)));
    }
}
