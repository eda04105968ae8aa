//! One connection to a broker: what it hands over is made durable, then acknowledged, in its order.

use super::config::{Place, TOPIC};
use super::source::Client;
use super::wire::{Codec, Hello, Incoming, Outgoing, Published};
use crate::connect::Wire;
use crate::documents::{Fault, Form};
use crate::{Document, Handed, Intake, Reads, Verdict};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::{SinkExt, StreamExt};
use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

/// Why a connection is at its end.
pub(super) enum End {
    /// As it was told to.
    Stopped,
    /// By itself; why, is told.
    Lost(String),
}

/// A connection that the broker has taken.
pub(super) struct Session<'c> {
    client: &'c Client,
    intake: &'c Arc<dyn Intake>,
    wire: Framed<Box<dyn Wire>, Codec>,
    keep_alive: Duration,
    /// When the broker was heard, and when it heard something, last.
    heard: Instant,
    said: Instant,
    /// Whether it was told that something comes of another topic than those of the source.
    is_told: bool,
    /// How the mapping reads what waits.
    reads: Option<Reads>,
    /// Packets that are not handed in yet, and their documents.
    waiting: VecDeque<(Taken, Vec<Document>)>,
    /// Those that are, until their documents are durable.
    handed_in: Vec<Taken>,
    /// The bytes of both.
    buffered: usize,
}

/// A packet whose documents are handed in.
struct Taken {
    number: Option<NonZeroU16>,
    documents: usize,
    bytes: usize,
}

/// What becomes of documents that are handed in.
type Handing = BoxFuture<'static, Vec<Verdict>>;

impl<'c> Session<'c> {
    /// Connects. Answers as well whether the broker has kept the session.
    pub(super) async fn open(
        client: &'c Client,
        intake: &'c Arc<dyn Intake>,
    ) -> Result<(Session<'c>, bool), String> {
        let config = &client.config;
        let password = match config.password.as_ref().map(crate::settings::Secret::value) {
            Some(Err(error)) => return Err(format!("the password cannot be read: {error}")),
            Some(Ok(password)) => password.to_string(),
            None => String::new(),
        };
        let stream = config.connector.connect().await.map_err(|error| error.to_string())?;
        let mut wire = Framed::new(stream, Codec::new(config.is_v5, config.payload_max));
        let hello = Hello {
            client_id: &config.client_id,
            username: config.username.as_deref().unwrap_or_default(),
            password: &password,
            keep_alive: config.keep_alive,
            session: config.session,
            in_flight_max: u16::try_from(config.in_flight_max).unwrap_or(u16::MAX),
        };
        let answer = async {
            wire.send(Outgoing::Connect(hello)).await.map_err(|error| error.to_string())?;
            wire.next().await.ok_or("the broker ended the connection")?.map_err(|error| error.to_string())
        };
        let answer = timeout(config.connector.timeout, answer).await;
        match answer.map_err(|_| "the broker did not answer in time")?? {
            Incoming::Accepted { session, keep_alive } => {
                let now = Instant::now();
                let session_of = Session {
                    client,
                    intake,
                    wire,
                    keep_alive: keep_alive.filter(|span| !span.is_zero()).unwrap_or(config.keep_alive),
                    heard: now,
                    said: now,
                    is_told: false,
                    reads: None,
                    waiting: VecDeque::new(),
                    handed_in: Vec::new(),
                    buffered: 0,
                };
                Ok((session_of, session))
            }
            Incoming::Refused(why) => Err(format!("the broker refuses the connection: {why}")),
            _ => Err("the broker did not answer as one does".to_owned()),
        }
    }

    /// Takes what is published until it is told to stop or the connection is lost. `is_subscribed` is whether the filters are those of
    /// the session, `pause` the one before another attempt, short again once something was acknowledged.
    pub(super) async fn work(
        mut self,
        is_subscribed: &mut bool,
        pause: &mut Duration,
        stop: &CancellationToken,
    ) -> End {
        match self.try_work(is_subscribed, pause, stop).await {
            Ok(()) => End::Stopped,
            Err(why) => End::Lost(why),
        }
    }

    async fn try_work(
        &mut self,
        is_subscribed: &mut bool,
        pause: &mut Duration,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        if !*is_subscribed {
            let filters: Vec<String> =
                self.client.config.topics.iter().map(super::topic::Template::filter).collect();
            self.say(&[Outgoing::Subscribe(&filters)]).await?;
        }
        let mut handing: Option<Handing> = None;
        let mut look = tokio::time::interval(self.keep_alive / 4);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if handing.is_none() && stop.is_cancelled() {
                return self.say(&[Outgoing::Disconnect]).await;
            }
            if handing.is_none() && !self.waiting.is_empty() {
                handing = Some(self.hand_in());
            }
            let reads = self.has_room() && !stop.is_cancelled();
            let now = Instant::now();
            if !reads {
                // It may have said what nobody has read.
                self.heard = now;
            }
            tokio::select! {
                verdicts = async { handing.as_mut().expect("there is one").await }, if handing.is_some() => {
                    handing = None;
                    self.settle(&verdicts).await?;
                    *pause = self.client.first_pause();
                }
                packet = self.wire.next(), if reads => {
                    let packet = packet.ok_or("the broker ended the connection")?;
                    self.heard = Instant::now();
                    match packet.map_err(|error| error.to_string())? {
                        Incoming::Published(published) => {
                            self.take(published)?;
                        }
                        Incoming::Subscribed(granted) => {
                            self.subscribed(&granted)?;
                            *is_subscribed = true;
                        }
                        Incoming::Closed(why) => return Err(format!("the broker ended the connection: {why}")),
                        Incoming::Alive => {}
                        Incoming::Accepted { .. } | Incoming::Refused(_) => {
                            return Err("the broker answered twice".to_owned());
                        }
                    }
                }
                _ = look.tick() => {
                    let now = Instant::now();
                    if now - self.heard > self.keep_alive * 3 / 2 {
                        return Err("the broker is silent".to_owned());
                    }
                    if now - self.heard.min(self.said) >= self.keep_alive / 2 {
                        self.say(&[Outgoing::Ping]).await?;
                    }
                }
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
        }
    }

    /// Whether another packet may be taken.
    fn has_room(&self) -> bool {
        let config = &self.client.config;
        self.waiting.len() + self.handed_in.len() < config.in_flight_max
            && self.buffered < config.buffered_max
    }

    async fn say(&mut self, packets: &[Outgoing<'_>]) -> Result<(), String> {
        let wire = &mut self.wire;
        let write = async {
            for packet in packets {
                wire.feed(packet.clone()).await?;
            }
            SinkExt::<Outgoing<'_>>::flush(wire).await
        };
        let written = timeout(self.client.config.connector.timeout, write).await;
        written.map_err(|_| "the broker does not read")?.map_err(|error| error.to_string())?;
        self.said = Instant::now();
        Ok(())
    }

    fn subscribed(&self, granted: &[Result<u8, String>]) -> Result<(), String> {
        for (index, granted) in granted.iter().enumerate() {
            let at = index + 1;
            match granted {
                Ok(0) => {
                    tracing::warn!(source = %self.client.name, topic = at, "the broker grants no acknowledgement of what is published there: it may be lost");
                }
                Ok(_) => {}
                Err(why) => return Err(format!("the broker refuses to subscribe to topic {at}: {why}")),
            }
        }
        Ok(())
    }

    /// Takes a packet apart, while what came before it is made durable.
    fn take(&mut self, published: Published) -> Result<(), String> {
        if self.waiting.is_empty() {
            self.reads = self.intake.reads(&self.client.name);
        }
        let reads = self.reads.ok_or("the mapping of this source is not there now")?;
        let (number, bytes) = (published.number, size(&published));
        let is_known = |topic: &str| self.client.named(topic).is_some();
        if !self.is_told && !is_known(&published.topic) {
            self.is_told = true;
            tracing::warn!(source = %self.client.name, "the broker hands over what is none of `topics`: its session has a filter of an earlier configuration; delete the session there, or give the source another `client_id`");
        }
        let documents = self.client.documents(published, reads);
        self.buffered += bytes;
        self.waiting.push_back((Taken { number, documents: documents.len(), bytes }, documents));
        Ok(())
    }

    /// Hands in what waits, and leaves room to take more meanwhile.
    fn hand_in(&mut self) -> Handing {
        let (intake, source) = (Arc::clone(self.intake), Arc::clone(&self.client.name));
        let most = self.client.config.in_flight_max.div_ceil(2).min(self.waiting.len());
        let mut documents = Vec::with_capacity(most);
        for (taken, own) in self.waiting.drain(..most) {
            self.handed_in.push(taken);
            documents.extend(own);
        }
        async move { intake.accept_documents(&source, documents).await }.boxed()
    }

    /// Acknowledges what is durable. Everything behind what is not is left to the broker.
    async fn settle(&mut self, verdicts: &[Verdict]) -> Result<(), String> {
        let mut verdicts = verdicts.iter();
        let mut acknowledge = Vec::with_capacity(self.handed_in.len());
        let mut away = None;
        for taken in self.handed_in.drain(..) {
            self.buffered -= taken.bytes;
            for _ in 0..taken.documents {
                match verdicts.next() {
                    Some(Verdict::Unavailable { reason }) => away = away.or(Some(reason.as_str())),
                    Some(_) => {}
                    None => away = away.or(Some("nobody said what became of it")),
                }
            }
            match taken.number {
                Some(number) if away.is_none() => acknowledge.push(Outgoing::Acknowledge(number)),
                None if away.is_some() => {
                    tracing::error!(source = %self.client.name, "a packet without acknowledgement (QoS 0) could not be kept and is lost");
                }
                _ => {}
            }
        }
        if !acknowledge.is_empty() {
            self.say(&acknowledge).await?;
        }
        match away {
            Some(why) => Err(format!("what is published cannot be kept now: {why}")),
            None => Ok(()),
        }
    }
}

/// What a packet takes of the memory, in bytes.
fn size(published: &Published) -> usize {
    published.payload.len() + published.topic.len()
}

impl Client {
    /// The named levels of a topic, if it is one of the source's.
    fn named<'t>(&'t self, topic: &'t str) -> Option<Vec<(&'t str, &'t str)>> {
        self.config.topics.iter().find_map(|template| template.read_topic(topic))
    }

    /// The documents of a packet. A payload that cannot be taken apart is one, for whoever reads the quarantine.
    fn documents(&self, published: Published, reads: Reads) -> Vec<Document> {
        let config = &self.config;
        let form = match reads {
            Reads::Json => Form::Json,
            Reads::Csv(csv) => Form::Csv(csv),
        };
        let whole = |fault: Option<String>| vec![(published.payload.clone(), fault)];
        let parts = if published.is_cut || published.payload.len() > config.payload_max {
            whole(Some(format!("larger than {} bytes", config.payload_max)))
        } else if published.payload.is_empty() {
            whole(Some("an empty payload".to_owned()))
        } else {
            match form.parts(&published.payload, config.documents_max) {
                Ok(parts) => parts.into_iter().map(|part| (part.bytes, part.fault)).collect(),
                Err(Fault::Syntax { .. } | Fault::Utf16) => whole(None),
                Err(fault @ (Fault::TooMany(_) | Fault::TooLarge)) => whole(Some(fault.to_string())),
            }
        };
        let named = self.named(&published.topic).unwrap_or_default();
        let mut wire: Vec<(Arc<str>, String)> = vec![(TOPIC.into(), published.topic.clone())];
        wire.extend(named.iter().map(|(name, value)| ((*name).into(), (*value).to_owned())));
        let value_at = |part: &Bytes, place: &Place| match place {
            Place::At(at) => form.value_at(part, at),
            Place::Level(level) => {
                let value = named.iter().find(|(name, _)| name == level).map(|(_, value)| value.trim());
                value.filter(|value| !value.is_empty()).map(str::to_owned)
            }
        };
        let documents = parts.into_iter().enumerate().map(|(index, (bytes, fault))| {
            let patient = config.patient.as_ref().filter(|_| fault.is_none());
            let patient =
                patient.and_then(|(place, assigner)| Some((assigner.clone(), value_at(&bytes, place)?)));
            let device = config.device.as_ref().and_then(|place| value_at(&bytes, place));
            let handed = published
                .number
                .map(|number| Handed { number: format!("{number}#{index}"), again: published.again });
            let is_csv = matches!(form, Form::Csv(_));
            Document { bytes, is_csv, patient, device, wire: wire.clone(), handed, fault }
        });
        documents.collect()
    }
}
