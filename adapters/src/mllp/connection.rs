//! One connection of the MLLP listener: frames in, acknowledgements out.
//!
//! ```text
//!  bytes ─► Decoder ─► line of messages handed to the intake, in order ─► answers, in order ─► bytes
//!                            └─► stalled: not stored, tried again before anything later
//!                                          └─► outcomes: application acknowledgements, as they come
//! ```
//! Invariants: answers leave in the order of their messages; nothing is read that the bounds leave no room for; while a
//! message cannot be stored, no later one of the connection is handed over.

use super::ack::{self, Level, Mode, Msh, Said, When};
use super::batch::{self, Batch, MESSAGES_MAX};
use super::codec::{Decoder, Edge, HEAD_MAX, Piece, Why};
use super::source::{MEMORY_UNIT, Shared, refusal};
use crate::{Outcome, Received, Stored, Verdict};
use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesOrdered, FuturesUnordered, StreamExt};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// The room that a read gets at least.
const READ_MIN: usize = 8 * 1024;

/// How long a peer may leave our answers unread.
const WRITE_MAX: Duration = Duration::from_secs(30);

/// Answers that may wait for the peer to read them before its messages wait too.
const OUT_MAX: usize = 64 * 1024;

/// Application acknowledgements that may be owed before messages wait.
const OWED_MAX: usize = 256;

/// Between two attempts to store a message.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// How long, and over how many bytes, we listen after our last answer, so that the peer gets to read it: a socket that
/// is closed with bytes unread resets the connection and takes the answer along.
const LINGER_MAX: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 64 << 20;

/// What became of one message.
struct Taken {
    received: Received,
    verdict: Verdict,
    /// What the mapping made of it, where the answer waits for that.
    outcome: Option<Outcome>,
    /// Until when it may be tried again.
    deadline: Instant,
    in_batch: InBatch,
}

/// Whether a message came in a batch.
enum InBatch {
    No,
    Within,
    /// The last one; with the header of the batch.
    Last(Bytes),
}

/// An application acknowledgement that is owed.
struct Owed {
    header: Bytes,
    when: When,
    stored: Stored,
    outcome: Outcome,
}

/// A connection at work.
pub(super) struct Connection<'s, S> {
    shared: &'s Arc<Shared>,
    peer: SocketAddr,
    names: Arc<[String]>,
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    decoder: Decoder,
    edge: Edge,
    /// Whether further messages are taken.
    open: bool,
    /// The messages of a batch that are not handed over yet.
    queue: VecDeque<(Bytes, InBatch)>,
    line: FuturesOrdered<BoxFuture<'static, Taken>>,
    line_bytes: usize,
    stalled: VecDeque<Taken>,
    owed: FuturesUnordered<BoxFuture<'static, Owed>>,
    /// Whether an application acknowledgement was ever owed here; the peer may acknowledge it.
    answers_expected: bool,
    /// Whether the message that is being answered came in a batch.
    answers_batch: bool,
    /// The answers to a batch until its last message is answered, and how many they are.
    batch_answers: (Vec<u8>, usize),
    out: BytesMut,
    /// Since when bytes wait in `out` or in the stream's own buffer.
    unflushed: Option<Instant>,
    memory: Option<OwnedSemaphorePermit>,
    last_read: Instant,
    within_since: Option<Instant>,
}

impl<'s, S: AsyncRead + AsyncWrite + Unpin + Send> Connection<'s, S> {
    /// A connection that has been taken; `names` are those of the peer's certificate.
    pub(super) fn new(shared: &'s Arc<Shared>, peer: SocketAddr, names: Arc<[String]>, stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Connection {
            shared,
            peer,
            names,
            reader,
            writer,
            decoder: Decoder::new(shared.config.framing, shared.config.frame_max),
            edge: Edge::More,
            open: true,
            queue: VecDeque::new(),
            line: FuturesOrdered::new(),
            line_bytes: 0,
            stalled: VecDeque::new(),
            owed: FuturesUnordered::new(),
            answers_expected: false,
            answers_batch: false,
            batch_answers: (Vec::new(), 0),
            out: BytesMut::new(),
            unflushed: None,
            memory: None,
            last_read: Instant::now(),
            within_since: None,
        }
    }

    /// Serves the peer until it leaves, errs, or we stop.
    ///
    /// # Errors
    /// When the peer breaks the connection or does not read its answers.
    pub(super) async fn run(mut self) -> io::Result<()> {
        loop {
            self.take_frames();
            if self.is_done() {
                break;
            }
            self.settle_memory();
            if !self.stalled.is_empty() && self.line.is_empty() {
                self.retry().await?;
                continue;
            }
            let wants_bytes = self.wants_bytes();
            if !wants_bytes {
                // The sender waits for us, not we for the sender.
                self.within_since = self.within_since.map(|_| Instant::now());
            }
            let wants_memory = wants_bytes.then(|| self.memory_wanted()).filter(|units| *units > 0);
            if wants_bytes {
                self.reserve();
            }
            let deadline = self.deadline(wants_bytes);
            tokio::select! {
                biased;
                flushed = flush(&mut self.writer, &mut self.out), if self.unflushed.is_some() => {
                    flushed?;
                    self.unflushed = None;
                }
                Some(taken) = self.line.next() => {
                    self.settle(taken);
                    while let Some(Some(taken)) = self.line.next().now_or_never() {
                        self.settle(taken);
                    }
                }
                Some(owed) = self.owed.next() => self.acknowledge_application(&owed),
                () = self.shared.stop.cancelled(), if self.open => self.open = false,
                permit = Arc::clone(&self.shared.memory).acquire_many_owned(wants_memory.unwrap_or(0)),
                    if wants_memory.is_some() =>
                {
                    let permit = permit.expect("the semaphore is never closed");
                    match &mut self.memory {
                        Some(memory) => memory.merge(permit),
                        None => self.memory = Some(permit),
                    }
                }
                read = self.reader.read_buf(self.decoder.buffer()), if wants_bytes && wants_memory.is_none() => {
                    self.last_read = Instant::now();
                    match read {
                        Ok(0) => self.edge = Edge::End,
                        Ok(_) => {}
                        Err(error) => {
                            tracing::debug!(source = %self.shared.name, peer = %self.peer, %error, "reading failed");
                            self.edge = Edge::End;
                        }
                    }
                }
                () = tokio::time::sleep_until(deadline) => self.on_deadline(deadline)?,
            }
        }
        self.close().await
    }

    fn is_done(&self) -> bool {
        let nothing_to_come =
            !self.open || (self.edge == Edge::End && !self.decoder.is_within() && self.queue.is_empty());
        nothing_to_come
            && self.line.is_empty()
            && self.stalled.is_empty()
            && self.owed.is_empty()
            && self.unflushed.is_none()
    }

    /// Hands the whole messages at hand to the intake, as far as the window allows.
    fn take_frames(&mut self) {
        while self.open && self.stalled.is_empty() && self.line.len() < self.shared.config.in_flight_max {
            if let Some((message, in_batch)) = self.queue.pop_front() {
                self.line_bytes -= message.len();
                self.take_message(message, in_batch);
                continue;
            }
            let piece = self.decoder.next(self.edge);
            if piece.is_some() {
                self.within_since = None;
            }
            match piece {
                Some(Piece::Frame(bytes)) => match Batch::read(&bytes) {
                    None if self.is_acknowledgement(&bytes) => {}
                    None => self.take_message(bytes, InBatch::No),
                    Some(batch) => self.take_batch(bytes, batch),
                },
                Some(Piece::Refused { head, total, why }) => {
                    let text = match why {
                        Why::OutsideFrame => format!("{total} bytes outside of any MLLP frame"),
                        Why::Unfinished => format!("a message of {total} bytes or more that did not end"),
                    };
                    self.shared.keep_refused(self.received(head), text);
                }
                Some(Piece::TooLarge { head }) => {
                    self.edge = Edge::End;
                    let text = format!("the message is larger than {} bytes", self.shared.config.frame_max);
                    self.refuse_here(head, text);
                }
                None => {
                    if self.edge == Edge::Pause {
                        self.edge = Edge::More;
                    }
                    break;
                }
            }
        }
        self.within_since = match (self.decoder.is_within(), self.within_since) {
            (false, _) => None,
            (true, None) => Some(Instant::now()),
            (true, since) => since,
        };
    }

    fn received(&self, bytes: Bytes) -> Received {
        Received {
            source: Arc::clone(&self.shared.name),
            bytes,
            peer: Some(self.peer),
            certificate_names: Arc::clone(&self.names),
        }
    }

    /// Takes the messages of a batch one by one; they are answered together.
    fn take_batch(&mut self, frame: Bytes, batch: Batch) {
        let count = batch.messages.len();
        if count == 0 || count > MESSAGES_MAX {
            self.refuse_here(frame, format!("a batch of {count} messages"));
            return;
        }
        if !batch.oddities.is_empty() {
            tracing::warn!(source = %self.shared.name, peer = %self.peer, oddities = ?batch.oddities, "a batch is not as it says");
        }
        for stray in batch.strays {
            self.keep(&stray, "lines of a batch outside of any message");
        }
        for message in batch.messages {
            if !self.is_acknowledgement(&message) {
                self.line_bytes += message.len();
                self.queue.push_back((message, InBatch::Within));
            }
        }
        if let Some((_, in_batch)) = self.queue.back_mut() {
            *in_batch = InBatch::Last(batch.header);
        }
    }

    /// Whether this is an acknowledgement, which is never answered, or two systems would acknowledge each other's
    /// acknowledgements for ever. One that nothing here asked for is kept.
    fn is_acknowledgement(&self, message: &Bytes) -> bool {
        let is_acknowledgement = Msh::read(message).is_some_and(|header| header.is_acknowledgement());
        if is_acknowledgement && !self.answers_expected {
            self.keep(message, "an acknowledgement of nothing that was sent here");
        }
        is_acknowledgement
    }

    fn keep(&self, bytes: &Bytes, why: &str) {
        let head = bytes.slice(..bytes.len().min(HEAD_MAX));
        self.shared.keep_refused(self.received(head), why.to_owned());
    }

    fn take_message(&mut self, bytes: Bytes, in_batch: InBatch) {
        let header = Msh::read(&bytes);
        if header.is_none() && bytes.iter().take(4).any(|byte| *byte == 0) {
            self.refuse_here(bytes, "UTF-16 and UTF-32 do not travel over MLLP".to_owned());
            return;
        }
        let waits_for_mapping = self.shared.config.ack_after_mapping
            && header.is_some_and(|header| header.mode() == Mode::Original);
        self.line_bytes += bytes.len();
        let (shared, received) = (Arc::clone(self.shared), self.received(bytes));
        let deadline = Instant::now() + shared.config.hold;
        self.line.push_back(Box::pin(async move {
            take(&shared, received, waits_for_mapping, deadline, in_batch).await
        }));
    }

    /// Refuses, in its turn, what the intake need not see; its head is kept. The connection ends with it.
    fn refuse_here(&mut self, bytes: Bytes, text: String) {
        let received = self.received(bytes.slice(..bytes.len().min(HEAD_MAX)));
        self.shared.keep_refused(received.clone(), text.clone());
        self.line_bytes += received.bytes.len();
        let verdict = Verdict::Rejected(refusal(text));
        let deadline = Instant::now();
        let taken = Taken { received, verdict, outcome: None, deadline, in_batch: InBatch::No };
        self.line.push_back(std::future::ready(taken).boxed());
    }

    /// Acts on what became of the next message in line.
    fn settle(&mut self, taken: Taken) {
        self.line_bytes -= taken.received.bytes.len();
        let unavailable = matches!(taken.verdict, Verdict::Unavailable { .. });
        if unavailable || !self.stalled.is_empty() {
            self.stalled.push_back(taken);
        } else {
            self.answer(taken);
        }
    }

    /// Tries again to store what could not be stored, in order, while the time for it lasts.
    async fn retry(&mut self) -> io::Result<()> {
        if self.unflushed.take().is_some() {
            let flushed = tokio::time::timeout(WRITE_MAX, flush(&mut self.writer, &mut self.out)).await;
            flushed.map_err(|_| io::ErrorKind::TimedOut)??;
        }
        while let Some(mut taken) = self.stalled.pop_front() {
            while let Verdict::Unavailable { reason } = &taken.verdict {
                let next = Instant::now() + RETRY_PAUSE;
                let given_up = next >= taken.deadline
                    || tokio::time::timeout_at(next, self.shared.stop.cancelled()).await.is_ok();
                if given_up {
                    tracing::warn!(source = %self.shared.name, peer = %self.peer, reason, "a message could not be stored");
                    break;
                }
                let waits = taken.outcome.is_some();
                taken = take(self.shared, taken.received, waits, taken.deadline, taken.in_batch).await;
            }
            self.answer(taken);
            if !self.open {
                self.stalled.clear();
            }
        }
        Ok(())
    }

    /// Answers a message whose turn it is.
    fn answer(&mut self, taken: Taken) {
        self.answers_batch = !matches!(taken.in_batch, InBatch::No);
        self.answer_message(&taken);
        self.answers_batch = false;
        if let InBatch::Last(header) = &taken.in_batch
            && self.batch_answers.1 > 0
        {
            let (answers, count) = std::mem::take(&mut self.batch_answers);
            let answer = batch::answer(header, &self.shared.config.identity, &answers, count);
            self.frame(&answer);
        }
    }

    fn answer_message(&mut self, taken: &Taken) {
        let Some(msh) = Msh::read(&taken.received.bytes) else {
            // Nobody to answer to. The intake has kept it.
            tracing::warn!(source = %self.shared.name, peer = %self.peer, "no MSH to answer to: connection closed");
            self.cut();
            return;
        };
        match &taken.verdict {
            Verdict::Stored(stored) => {
                self.acknowledge(&msh, stored, taken.outcome.as_ref(), &taken.received.bytes);
            }
            Verdict::Rejected(rejection) => {
                self.refuse(&msh, rejection);
                if rejection.close {
                    self.cut();
                }
            }
            Verdict::Unreadable { reason } => {
                tracing::warn!(source = %self.shared.name, peer = %self.peer, reason, "unreadable: connection closed");
                self.cut();
            }
            Verdict::Unavailable { .. } if self.shared.config.refuse_when_unavailable => {
                self.refuse(
                    &msh,
                    &refusal("the message cannot be stored now: send it again later".to_owned()),
                );
            }
            Verdict::Unavailable { .. } => self.cut(),
        }
    }

    fn acknowledge(&mut self, msh: &Msh, stored: &Stored, outcome: Option<&Outcome>, bytes: &Bytes) {
        match msh.mode() {
            Mode::Original => match outcome {
                Some(Outcome::Quarantined(rejection)) => {
                    self.send(msh, Level::Original, Said::Quarantined(stored, rejection));
                }
                Some(Outcome::Normalized | Outcome::Unknown) | None => {
                    self.send(msh, Level::Original, Said::Taken(stored));
                }
            },
            Mode::Enhanced { accept, application } => {
                if accept.is_due(true) {
                    self.send(msh, Level::Accept, Said::Taken(stored));
                }
                if application != When::Never {
                    self.answers_expected = true;
                    let header = Bytes::copy_from_slice(&bytes[..msh.end()]);
                    let (shared, stored) = (Arc::clone(self.shared), stored.clone());
                    self.owed.push(Box::pin(async move {
                        let outcome = wait_for_outcome(&shared, &stored).await;
                        Owed { header, when: application, stored, outcome }
                    }));
                }
            }
        }
    }

    fn acknowledge_application(&mut self, owed: &Owed) {
        let msh = Msh::read(&owed.header).expect("it was read when the message was stored");
        match &owed.outcome {
            Outcome::Normalized if owed.when.is_due(true) => {
                self.send(&msh, Level::Application, Said::Taken(&owed.stored));
            }
            Outcome::Quarantined(rejection) if owed.when.is_due(false) => {
                self.send(&msh, Level::Application, Said::Quarantined(&owed.stored, rejection));
            }
            Outcome::Normalized | Outcome::Quarantined(_) => {}
            Outcome::Unknown => tracing::warn!(
                source = %self.shared.name, peer = %self.peer, message_id = %owed.stored.message,
                "an application acknowledgement is left out: the message is stored, and its mapping not known yet"
            ),
        }
    }

    /// Refuses a message, by the level at which its sender listens.
    fn refuse(&mut self, msh: &Msh, rejection: &crate::Rejection) {
        let said = Said::Refused(rejection, Timestamp::now());
        match msh.mode() {
            Mode::Original => self.send(msh, Level::Original, said),
            Mode::Enhanced { accept, .. } if accept.is_due(false) => self.send(msh, Level::Accept, said),
            Mode::Enhanced { application, .. } if application.is_due(false) => {
                self.send(msh, Level::Application, said);
            }
            Mode::Enhanced { .. } => {}
        }
    }

    fn send(&mut self, msh: &Msh, level: Level, said: Said) {
        let answer = ack::write(msh, &self.shared.config.identity, level, said);
        if self.answers_batch {
            self.batch_answers.0.extend_from_slice(&answer);
            self.batch_answers.1 += 1;
        } else {
            self.frame(&answer);
        }
    }

    fn frame(&mut self, answer: &[u8]) {
        self.shared.config.framing.frame(answer, &mut self.out);
        self.unflushed.get_or_insert_with(Instant::now);
    }

    /// Takes nothing more and forgets what is not answered; the sender will send it again.
    fn cut(&mut self) {
        self.open = false;
        self.queue.clear();
        self.batch_answers = (Vec::new(), 0);
        self.line = FuturesOrdered::new();
        self.line_bytes = 0;
        self.owed = FuturesUnordered::new();
        self.stalled.clear();
    }

    fn wants_bytes(&self) -> bool {
        self.open
            && self.edge != Edge::End
            && self.stalled.is_empty()
            && self.line.len() < self.shared.config.in_flight_max
            && self.owed.len() < OWED_MAX
            && self.out.len() < OUT_MAX
    }

    fn reserve(&mut self) {
        let buffer = self.decoder.buffer();
        if buffer.capacity() - buffer.len() < READ_MIN {
            // Doubling, so that a large message is moved a few times and not once a read.
            let more = READ_MIN.max(buffer.len().min(1 << 20));
            buffer.reserve(more);
        }
    }

    /// How many units this connection holds bytes for, beyond the first, which is free.
    fn memory_needed(&mut self) -> usize {
        (self.decoder.buffer().len() + self.line_bytes) / MEMORY_UNIT
    }

    /// How many units are wanted before the next read.
    fn memory_wanted(&mut self) -> u32 {
        let held = self.memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        u32::try_from(self.memory_needed().saturating_sub(held)).unwrap_or(u32::MAX)
    }

    /// Gives back units that are not needed any more.
    fn settle_memory(&mut self) {
        let needed = self.memory_needed();
        if needed == 0 {
            self.memory = None;
        } else if let Some(memory) = &mut self.memory
            && memory.num_permits() > needed
        {
            drop(memory.split(memory.num_permits() - needed));
        }
    }

    /// When something is due if nothing happens. The sender's time runs only while it is listened to.
    fn deadline(&self, wants_bytes: bool) -> Instant {
        let config = &self.shared.config;
        let mut deadline = match self.unflushed {
            Some(since) => since + WRITE_MAX,
            None => Instant::now() + config.idle_timeout,
        };
        if wants_bytes {
            if let Some(since) = self.within_since {
                deadline = deadline.min(since + config.frame_timeout);
                if self.decoder.may_end_here() {
                    deadline = deadline.min(self.last_read + config.end_pause);
                }
            } else if self.line.is_empty() && self.owed.is_empty() {
                deadline = deadline.min(self.last_read + config.idle_timeout);
            }
        }
        deadline
    }

    fn on_deadline(&mut self, deadline: Instant) -> io::Result<()> {
        let config = &self.shared.config;
        if self.unflushed.is_some_and(|since| since + WRITE_MAX <= deadline) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "answers were not read"));
        }
        if self.within_since.is_some_and(|since| since + config.frame_timeout <= deadline) {
            tracing::info!(source = %self.shared.name, peer = %self.peer, "a message took too long: connection closed");
            self.edge = Edge::End;
        } else if self.decoder.may_end_here() && self.last_read + config.end_pause <= deadline {
            self.edge = Edge::Pause;
        } else if self.line.is_empty()
            && self.owed.is_empty()
            && self.last_read + config.idle_timeout <= deadline
        {
            tracing::debug!(source = %self.shared.name, peer = %self.peer, "idle: connection closed");
            self.edge = Edge::End;
        }
        Ok(())
    }

    /// Says that nothing more comes, and gives the peer time to read what did.
    async fn close(mut self) -> io::Result<()> {
        let closing = async {
            self.writer.shutdown().await?;
            let mut unread = 0;
            let buffer = self.decoder.buffer();
            while unread < LINGER_BYTES_MAX {
                buffer.clear();
                buffer.reserve(READ_MIN);
                match self.reader.read_buf(buffer).await? {
                    0 => break,
                    count => unread += count,
                }
            }
            Ok(())
        };
        // A peer that does not close in its turn has had its time.
        tokio::time::timeout(LINGER_MAX, closing).await.unwrap_or(Ok(()))
    }
}

/// Hands a message to the intake, and waits for the mapping if the answer does.
async fn take(
    shared: &Shared,
    received: Received,
    waits_for_mapping: bool,
    deadline: Instant,
    in_batch: InBatch,
) -> Taken {
    let verdict = tokio::time::timeout_at(deadline, shared.intake.accept(received.clone())).await;
    let verdict =
        verdict.unwrap_or_else(|_| Verdict::Unavailable { reason: "the store takes too long".to_owned() });
    let outcome = match &verdict {
        Verdict::Stored(stored) if waits_for_mapping => Some(wait_for_outcome(shared, stored).await),
        // Kept, so that another attempt waits too.
        _ if waits_for_mapping => Some(Outcome::Unknown),
        _ => None,
    };
    Taken { received, verdict, outcome, deadline, in_batch }
}

async fn wait_for_outcome(shared: &Shared, stored: &Stored) -> Outcome {
    let waited = tokio::select! {
        waited = tokio::time::timeout(shared.config.outcome_timeout, shared.intake.outcome(stored.message)) => waited,
        () = shared.stop.cancelled() => return Outcome::Unknown,
    };
    waited.unwrap_or(Outcome::Unknown)
}

async fn flush<W: AsyncWrite + Unpin>(writer: &mut W, out: &mut BytesMut) -> io::Result<()> {
    writer.write_all_buf(out).await?;
    writer.flush().await
}
