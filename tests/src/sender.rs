//! A hospital's sender: an MLLP client that keeps each message until it is acknowledged, and a log of what it was told.
//!
//! It stops and waits on each connection, as HL7's lower layer protocol asks, and sends the same bytes again after a
//! broken connection, silence or a refusal. Each connection has its own patients, so a patient's messages leave in order.

use crate::checker::Sent;
use crate::generate::{Generated, Kind, Population};
use anyhow::{Context, Result, bail};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// The start of an MLLP frame.
const BEGIN: u8 = 0x0B;
/// The end of an MLLP frame: this and a carriage return.
const END: u8 = 0x1C;

/// One MLLP connection.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl Connection<TcpStream> {
    /// Connects.
    ///
    /// # Errors
    /// When the other side does not accept within five seconds.
    pub async fn open(to: SocketAddr) -> Result<Connection<TcpStream>> {
        let stream = tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(to))
            .await
            .context("no connection within 5 s")?
            .context("connect")?;
        stream.set_nodelay(true)?;
        Ok(Connection::over(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Speaks MLLP over an open stream, such as a TLS one.
    pub fn over(stream: S) -> Connection<S> {
        Connection { stream, buffer: Vec::with_capacity(16 * 1024) }
    }

    /// Sends one message in its frame.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        let mut frame = Vec::with_capacity(message.len() + 3);
        frame.push(BEGIN);
        frame.extend_from_slice(message);
        frame.extend_from_slice(&[END, b'\r']);
        self.stream.write_all(&frame).await.context("write")
    }

    /// Writes bytes as they are, for senders that misbehave.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.context("write")
    }

    /// Waits for the next frame and answers what is in it.
    ///
    /// # Errors
    /// When the connection ends first, or nothing comes in time.
    pub async fn receive(&mut self, within: Duration) -> Result<Vec<u8>> {
        tokio::time::timeout(within, self.frame()).await.context("no answer in time")?
    }

    async fn frame(&mut self) -> Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer[searched..], &[END, b'\r']) {
                let end = searched + at;
                let begin =
                    memchr::memchr(BEGIN, &self.buffer[..end]).context("an answer without a frame")?;
                let content = self.buffer[begin + 1..end].to_vec();
                self.buffer.drain(..end + 2);
                return Ok(content);
            }
            searched = self.buffer.len().saturating_sub(1);
            if self.stream.read_buf(&mut self.buffer).await.context("read")? == 0 {
                bail!("the connection was closed");
            }
        }
    }
}

/// What an acknowledgement says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// MSA-1, such as `AA`.
    pub code: String,
    /// MSA-2, the control id that it answers to.
    pub control_id: String,
}

/// Reads MSA-1 and MSA-2 of an answer.
///
/// # Errors
/// When there is no MSA segment.
pub fn acknowledgement(answer: &[u8]) -> Result<Acknowledgement> {
    let text = std::str::from_utf8(answer).context("an answer in UTF-8")?;
    let separator = text.get(3..4).context("an answer with a header")?;
    let msa = text.split('\r').find(|line| line.starts_with("MSA")).context("an answer without MSA")?;
    let mut fields = msa.split(separator).skip(1);
    let mut next = || fields.next().unwrap_or_default().to_owned();
    Ok(Acknowledgement { code: next(), control_id: next() })
}

/// How a load is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// The listeners of the gateway's replicas; a connection that breaks goes to the next.
    pub to: Vec<SocketAddr>,
    /// How many connections at once.
    pub connections: u32,
    /// How many patients; at least one for each connection.
    pub patients: u32,
    /// Messages a second over all connections; `None` sends as fast as it is answered.
    pub rate: Option<f64>,
    /// One kind for all messages; `None` lets each patient be admitted, examined and discharged.
    pub kind: Option<Kind>,
    /// How long to wait for an answer before sending again.
    pub patience: Duration,
}

/// When a load ends: asked to, or after so many messages.
#[derive(Debug)]
pub struct Stop {
    asked: AtomicBool,
    left: AtomicU64,
    /// Messages acknowledged so far.
    pub acknowledged: AtomicU64,
}

impl Stop {
    /// After so many messages, or earlier when asked to.
    pub fn after(messages: u64) -> Arc<Stop> {
        Arc::new(Stop {
            asked: AtomicBool::new(false),
            left: AtomicU64::new(messages),
            acknowledged: AtomicU64::new(0),
        })
    }

    /// Begins no further message.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// How many are acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    fn take(&self) -> bool {
        !self.asked.load(Ordering::SeqCst)
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

/// Sends a load until `stop` says so and every message begun is acknowledged, or `deadline` is past. Answers the log of
/// all connections, in no order between them.
pub async fn run(load: Load, population: &Population, stop: Arc<Stop>, deadline: Instant) -> Vec<Sent> {
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..load.connections {
        tasks.spawn(one_connection(load.clone(), population.clone(), connection, stop.clone(), deadline));
    }
    let mut log = Vec::new();
    while let Some(sent) = tasks.join_next().await {
        log.extend(sent.expect("a connection's task does not panic"));
    }
    log
}

async fn one_connection(
    load: Load,
    mut population: Population,
    connection: u32,
    stop: Arc<Stop>,
    deadline: Instant,
) -> Vec<Sent> {
    let patients: Vec<u32> =
        (0..population.patients()).filter(|patient| patient % load.connections == connection).collect();
    let mut log = Vec::new();
    let mut wire: Option<Connection<TcpStream>> = None;
    let mut replica = connection as usize;
    let began = Instant::now();
    let pause = load.rate.map(|rate| Duration::from_secs_f64(f64::from(load.connections) / rate));
    for turn in 0u32.. {
        if let Some(pause) = pause {
            // Each connection starts at its own part of the first pause, so that the load is even.
            let due =
                began + pause.mul_f64(f64::from(connection) / f64::from(load.connections)) + pause * turn;
            tokio::time::sleep_until(due.into()).await;
        }
        if Instant::now() >= deadline || !stop.take() {
            break;
        }
        let patient = patients[turn as usize % patients.len()];
        let kind = load.kind.unwrap_or_else(|| population.next_kind(patient));
        let message = population.message(kind, patient);
        let mut sent =
            Sent { marker: message.marker, kind, began: Instant::now(), attempts: 0, acknowledged: None };
        while sent.acknowledged.is_none() && Instant::now() < deadline {
            sent.attempts += 1;
            match attempt(&mut wire, load.to[replica % load.to.len()], &message, load.patience).await {
                Ok(took) => sent.acknowledged = Some(took),
                Err(_) => {
                    wire = None;
                    replica += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        if sent.acknowledged.is_some() {
            stop.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        log.push(sent);
    }
    log
}

async fn attempt(
    wire: &mut Option<Connection<TcpStream>>,
    to: SocketAddr,
    message: &Generated,
    patience: Duration,
) -> Result<Duration> {
    let connection = match wire {
        Some(connection) => connection,
        None => wire.insert(Connection::open(to).await?),
    };
    let began = Instant::now();
    connection.send(&message.bytes).await?;
    let answer = acknowledgement(&connection.receive(patience).await?)?;
    if answer.control_id != message.control_id {
        bail!("answered to another message");
    }
    match answer.code.as_str() {
        "AA" | "CA" => Ok(began.elapsed()),
        code => bail!("answered {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Run;
    use tokio::net::TcpListener;

    /// A gateway that answers with what `answer` makes of each message; `None` closes the connection.
    async fn fake(mut answer: impl FnMut(u64, &str) -> Option<String> + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut count = 0;
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut connection = Connection::over(stream);
                while let Ok(message) = connection.receive(Duration::from_secs(5)).await {
                    let text = String::from_utf8(message).unwrap();
                    let control_id = text.split('|').nth(9).unwrap();
                    count += 1;
                    let Some(answer) = answer(count, control_id) else { break };
                    connection.send(answer.as_bytes()).await.unwrap();
                }
            }
        });
        at
    }

    fn load(to: SocketAddr) -> Load {
        let patience = Duration::from_secs(5);
        Load { to: vec![to], connections: 1, patients: 2, rate: None, kind: None, patience }
    }

    async fn send(to: SocketAddr, messages: u64, within: Duration) -> Vec<Sent> {
        let population = Population::new(Run::new(1), 1, 2);
        run(load(to), &population, Stop::after(messages), Instant::now() + within).await
    }

    #[tokio::test]
    async fn a_message_is_sent_again_until_it_is_acknowledged() {
        let to = fake(|count, control_id| match count {
            1 => None,
            2 => Some("MSH|^~\\&|\rMSA|AA|ANOTHER\r".into()),
            3 => Some(format!("MSH|^~\\&|\rMSA|AR|{control_id}\r")),
            _ => Some(format!("MSH|^~\\&|\rMSA|AA|{control_id}\r")),
        })
        .await;
        let log = send(to, 3, Duration::from_secs(30)).await;
        assert_eq!(log.iter().map(|sent| sent.attempts).collect::<Vec<_>>(), [4, 1, 1]);
        assert!(log.iter().all(|sent| sent.acknowledged.is_some()));
    }

    #[tokio::test]
    async fn what_is_never_acknowledged_stands_in_the_log_as_such() {
        let to = fake(|_, control_id| Some(format!("MSH|^~\\&|\rMSA|AE|{control_id}\r"))).await;
        let log = send(to, 5, Duration::from_millis(200)).await;
        assert_eq!(log.len(), 1, "the next message waits for this one");
        assert!(log[0].acknowledged.is_none() && log[0].attempts > 1);
    }

    #[test]
    fn an_acknowledgement_is_read_with_the_senders_separator() {
        let read = acknowledgement(b"MSH#^~\\&#A\rMSA#CA#X1\r").unwrap();
        assert_eq!(read, Acknowledgement { code: "CA".into(), control_id: "X1".into() });
        assert!(acknowledgement(b"MSH|^~\\&|A\r").is_err());
        assert!(acknowledgement(b"").is_err());
    }
}
