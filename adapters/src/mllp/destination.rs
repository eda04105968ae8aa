//! The MLLP client: passes a message on as it came and waits for the answer that belongs to it.
//!
//! Invariant: an answer counts only if its MSA-2 is the MSH-10 of the message that was sent. A connection on which an answer
//! may still be on its way is never used again.

use super::ack::Msh;
use super::codec::{Decoder, Edge, Piece};
use super::config::{DestinationConfig, WaitFor};
use crate::connect::Wire;
use crate::{DeliverError, Destination, Outgoing, Receipt};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::future::FutureExt;
use memchr::memchr2_iter;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

/// The largest answer that is read.
const ANSWER_MAX: usize = 1 << 20;

/// A receiver that pauses this long after the end byte has left out the trailer byte.
const END_PAUSE: Duration = Duration::from_millis(300);

/// How many frames are read in search of the answer before the other side is taken to be confused.
const FRAMES_MAX: usize = 100;

/// A destination that speaks MLLP.
#[derive(Debug)]
pub(super) struct MllpDestination {
    config: DestinationConfig,
    /// One permit a connection.
    permits: Semaphore,
    idle: Mutex<Vec<Line>>,
}

/// A connection, with what was read from it.
struct Line {
    wire: Box<dyn Wire>,
    decoder: Decoder,
}

impl Line {
    /// Whether a new question can be asked: the other side has not closed, and whatever it said since the last answer (an
    /// application acknowledgement that nobody waits for, say) was whole and is thrown away.
    fn is_usable(&mut self) -> bool {
        loop {
            while let Some(piece) = self.decoder.next(Edge::More) {
                if !matches!(piece, Piece::Frame(_)) {
                    return false;
                }
            }
            self.decoder.buffer().reserve(1024);
            match self.wire.read_buf(self.decoder.buffer()).now_or_never() {
                None => return !self.decoder.is_within(),
                Some(Ok(count)) if count > 0 => {}
                Some(_) => return false,
            }
        }
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Line")
    }
}

impl MllpDestination {
    /// A destination as configured. Connects with its first delivery.
    pub(super) fn new(config: DestinationConfig) -> Self {
        let permits = Semaphore::new(config.connections);
        MllpDestination { config, permits, idle: Mutex::new(Vec::new()) }
    }

    /// A kept connection, or a new one.
    async fn line(&self) -> Result<Line, DeliverError> {
        // Lets the runtime look at its sockets, so that what has arrived is seen.
        tokio::task::yield_now().await;
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                None => break,
                Some(mut line) => {
                    if line.is_usable() {
                        return Ok(line);
                    }
                }
            }
        }
        let wire = self.config.connector.connect().await?;
        Ok(Line { wire, decoder: Decoder::new(self.config.framing, ANSWER_MAX) })
    }

    /// Sends a message and waits for its answer. `Err` when the exchange did not come to its end, so that an answer may
    /// still be on its way.
    async fn exchange(
        &self,
        line: &mut Line,
        original: &[u8],
        control_id: &[u8],
    ) -> Result<Settled, DeliverError> {
        let mut frame = BytesMut::new();
        self.config.framing.frame(original, &mut frame);
        let sent = async {
            line.wire.write_all(&frame).await?;
            line.wire.flush().await
        };
        sent.await.map_err(|error: io::Error| again(format!("sending failed: {error}")))?;
        if self.config.wait_for == WaitFor::Nothing {
            return Ok(Ok(Receipt { answer: "sent, no answer awaited".to_owned() }));
        }
        for _ in 0..FRAMES_MAX {
            let frame = next_frame(line).await.map_err(|error| again(format!("no answer: {error}")))?;
            let answer = Answer::read(&frame).ok_or_else(|| again("an answer without MSA-1".to_owned()))?;
            if answer.control_id != control_id {
                // The answer to an earlier message, or to nothing of ours.
                tracing::warn!(target = %self.config.connector.target, "an answer with another MSA-2 is left aside");
                continue;
            }
            let said = format!("MSA-1 {}", String::from_utf8_lossy(answer.code));
            match answer.code {
                b"CA" if self.config.wait_for == WaitFor::Application => {}
                b"AA" | b"CA" => return Ok(Ok(Receipt { answer: said })),
                b"AE" | b"CE" => return Ok(Err(DeliverError::Never { answer: said })),
                b"AR" | b"CR" => return Ok(Err(again(said))),
                _ => return Err(again("an answer whose MSA-1 is not in table 0008".to_owned())),
            }
        }
        Err(again(format!("{FRAMES_MAX} answers, and none to this message")))
    }
}

/// What the answer to a message means.
type Settled = Result<Receipt, DeliverError>;

#[async_trait]
impl Destination for MllpDestination {
    fn needs_original(&self) -> bool {
        true
    }

    /// HL7 v2 has no message that says nothing: connecting, TLS included, has to do.
    async fn greet(&self, _outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let line = self.line().await?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        Ok(Receipt { answer: "connected".to_owned() })
    }

    async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        let never = |answer: &str| Err(DeliverError::Never { answer: answer.to_owned() });
        let Some(msh) = Msh::read(&outgoing.original) else {
            return never("not sent: the original is no HL7 v2 message");
        };
        if !self.config.framing.can_carry(&outgoing.original) {
            return never("not sent: the message holds the bytes that end an MLLP frame");
        }
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let mut line = self.line().await?;
        let timeout = self.config.answer_timeout;
        let exchange = self.exchange(&mut line, &outgoing.original, msh.control_id());
        match tokio::time::timeout(timeout, exchange).await {
            Ok(Ok(settled)) => {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                settled
            }
            // An answer may still come: the connection is dropped, as it is when this call is cancelled.
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DeliverError::Again {
                answer: format!("no answer within {timeout:?}"),
                after: None,
                away: true,
            }),
        }
    }
}

fn again(answer: String) -> DeliverError {
    DeliverError::Again { answer, after: None, away: false }
}

/// Reads the next frame, past whatever is none.
async fn next_frame(line: &mut Line) -> io::Result<Bytes> {
    let mut edge = Edge::More;
    loop {
        match line.decoder.next(edge) {
            Some(Piece::Frame(frame)) => return Ok(frame),
            Some(Piece::Refused { .. }) => continue,
            Some(Piece::TooLarge { .. }) => return Err(io::Error::other("it is larger than 1 MiB")),
            None if edge == Edge::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => {}
        }
        line.decoder.buffer().reserve(1024);
        let may_end_here = line.decoder.may_end_here();
        let read = line.wire.read_buf(line.decoder.buffer());
        edge = if !may_end_here {
            if read.await? == 0 { Edge::End } else { Edge::More }
        } else {
            match tokio::time::timeout(END_PAUSE, read).await {
                Ok(read) => {
                    if read? == 0 {
                        Edge::End
                    } else {
                        Edge::More
                    }
                }
                Err(_) => Edge::Pause,
            }
        };
    }
}

/// MSA of an answer.
struct Answer<'a> {
    /// MSA-1
    code: &'a [u8],
    /// MSA-2
    control_id: &'a [u8],
}

impl<'a> Answer<'a> {
    fn read(frame: &'a [u8]) -> Option<Self> {
        let separator = Msh::read(frame)?.separator();
        let starts = memchr2_iter(b'\r', b'\n', frame).map(|at| at + 1);
        let mut segments = starts.map(|start| &frame[start..]);
        let msa = segments.find_map(|rest| rest.strip_prefix(b"MSA")?.strip_prefix(&[separator]))?;
        let end = memchr::memchr2(b'\r', b'\n', msa).unwrap_or(msa.len());
        let mut fields = msa[..end].split(|byte| *byte == separator).map(<[u8]>::trim_ascii);
        Some(Answer { code: fields.next()?, control_id: fields.next().unwrap_or_default() })
    }
}
