//! A subscriber's AMQP client: declares its queue, consumes from it, acknowledges, and logs what came.
//!
//! Just enough of AMQP 0-9-1 to stand apart from the gateway's own client, so that what the gateway puts on the wire is
//! judged by other code than what put it there.

use crate::checker::{Arrival, Seen};
use crate::generate::Run;
use anyhow::{Context, Result, bail, ensure};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;

/// A message as it came from a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The tag to acknowledge it with.
    pub tag: u64,
    /// Whether the broker had handed it out before.
    pub redelivered: bool,
    /// The property `message-id`, empty if there is none.
    pub message_id: String,
    /// The property `content-type`, empty if there is none.
    pub content_type: String,
    /// The body.
    pub body: Vec<u8>,
}

/// One connection with one channel.
#[derive(Debug)]
pub struct Client {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

/// Writes AMQP's basic types.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn method(class: u16, method: u16) -> Out {
        Out::default().u16(class).u16(method)
    }
    fn u8(mut self, value: u8) -> Out {
        self.0.push(value);
        self
    }
    fn u16(mut self, value: u16) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn u32(mut self, value: u32) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn short(mut self, text: &str) -> Out {
        self.0.push(u8::try_from(text.len()).expect("short strings are short"));
        self.0.extend(text.as_bytes());
        self
    }
    fn long(mut self, bytes: &[u8]) -> Out {
        self.0.extend(u32::try_from(bytes.len()).expect("long strings are below 4 GiB").to_be_bytes());
        self.0.extend(bytes);
        self
    }
    /// A table of long strings.
    fn table(self, entries: &[(&str, &str)]) -> Out {
        let inner = entries
            .iter()
            .fold(Out::default(), |out, (name, value)| out.short(name).u8(b'S').long(value.as_bytes()));
        self.long(&inner.0)
    }
}

/// Reads AMQP's basic types.
struct In<'a>(&'a [u8]);

impl In<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("a frame that ends early")?;
        self.0 = rest;
        Ok(taken)
    }
    fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }
    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().expect("two bytes")))
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("four bytes")))
    }
    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }
    fn short(&mut self) -> Result<String> {
        let length = usize::from(self.u8()?);
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }
    fn skip_long(&mut self) -> Result<()> {
        let length = self.u32()? as usize;
        self.take(length)?;
        Ok(())
    }
}

impl Client {
    /// Connects by a URL as `amqp://user:password@host:port/%2f` and opens a channel.
    ///
    /// # Errors
    /// When the broker is away or refuses.
    pub async fn open(url: &str) -> Result<Client> {
        let rest = url.strip_prefix("amqp://").context("a URL amqp://")?;
        let (login, rest) = rest.split_once('@').context("a URL with user and password")?;
        let (user, password) = login.split_once(':').context("a URL with a password")?;
        let (address, vhost) = rest.split_once('/').unwrap_or((rest, "%2f"));
        let stream = TcpStream::connect(address).await.context("RabbitMQ")?;
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        write.write_all(b"AMQP\0\0\x09\x01").await?;
        let mut client = Client { read: BufReader::with_capacity(64 * 1024, read), write };
        client.expect(10, 10).await.context("connection.start")?;
        let start_ok = Out::method(10, 11)
            .table(&[("product", "pons tests")])
            .short("PLAIN")
            .long(format!("\0{user}\0{password}").as_bytes())
            .short("en_US");
        client.send(0, start_ok).await?;
        let tune = client.expect(10, 30).await.context("login")?;
        let mut tune = In(&tune);
        let (channels, frame) = (tune.u16()?, tune.u32()?);
        // Heartbeats off: a dead broker breaks the connection, on loopback.
        client.send(0, Out::method(10, 31).u16(channels).u32(frame).u16(0)).await?;
        let vhost = vhost.replace("%2f", "/").replace("%2F", "/");
        client.send(0, Out::method(10, 40).short(&vhost).short("").u8(0)).await?;
        client.expect(10, 41).await.context("connection.open")?;
        client.send(1, Out::method(20, 10).short("")).await?;
        client.expect(20, 11).await.context("channel.open")?;
        Ok(client)
    }

    /// Declares a durable quorum queue, unless it is there already.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn declare(&mut self, queue: &str) -> Result<()> {
        // Bits: passive, durable, exclusive, auto-delete, no-wait.
        let declare =
            Out::method(50, 10).u16(0).short(queue).u8(0b00010).table(&[("x-queue-type", "quorum")]);
        self.send(1, declare).await?;
        self.expect(50, 11).await.context("queue.declare")?;
        Ok(())
    }

    /// How many messages are ready in a queue; `None` if there is no such queue. The channel is gone after `None`.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn depth(&mut self, queue: &str) -> Result<Option<u32>> {
        self.send(1, Out::method(50, 10).u16(0).short(queue).u8(0b00001).table(&[])).await?;
        match self.expect(50, 11).await {
            Ok(declared) => {
                let mut declared = In(&declared);
                declared.short()?;
                Ok(Some(declared.u32()?))
            }
            Err(error) if error.to_string().contains("404") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Publishes one message by the default exchange to a queue, without waiting for a confirm.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn publish(&mut self, exchange: &str, key: &str, message_id: &str, body: &[u8]) -> Result<()> {
        self.send(1, Out::method(60, 40).u16(0).short(exchange).short(key).u8(0)).await?;
        // Flags: delivery mode (bit 12), message id (bit 7).
        let header = Out::method(60, 0).u64(body.len() as u64).u16(1 << 12 | 1 << 7).u8(2).short(message_id);
        self.frame(HEADER, 1, &header.0).await?;
        self.frame(BODY, 1, body).await
    }

    /// Begins to consume from a queue, at most `window` unacknowledged at a time.
    ///
    /// # Errors
    /// When the broker refuses, most likely because the queue is not there.
    pub async fn consume(&mut self, queue: &str, window: u16) -> Result<()> {
        self.send(1, Out::method(60, 10).u32(0).u16(window).u8(0)).await?;
        self.expect(60, 11).await.context("basic.qos")?;
        self.send(1, Out::method(60, 20).u16(0).short(queue).short("pons-tests").u8(0).table(&[])).await?;
        self.expect(60, 21).await.context("basic.consume")?;
        Ok(())
    }

    /// The next message.
    ///
    /// # Errors
    /// When the connection breaks, or the broker cancels the consumer since its queue is gone.
    pub async fn next(&mut self) -> Result<Message> {
        let method = self.expect(60, 60).await?;
        let mut method = In(&method);
        method.short()?;
        let tag = method.u64()?;
        let redelivered = method.u8()? & 1 == 1;
        let (kind, header) = self.receive().await?;
        ensure!(kind == HEADER, "a content header");
        let mut header = In(&header);
        header.take(4)?;
        let size = header.u64()? as usize;
        let properties = properties(&mut header)?;
        let mut body = Vec::with_capacity(size);
        while body.len() < size {
            let (kind, part) = self.receive().await?;
            ensure!(kind == BODY, "a content body");
            body.extend(part);
        }
        Ok(Message {
            tag,
            redelivered,
            message_id: properties.message_id,
            content_type: properties.content_type,
            body,
        })
    }

    /// Acknowledges one message.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn acknowledge(&mut self, tag: u64) -> Result<()> {
        self.send(1, Out::method(60, 80).u64(tag).u8(0)).await
    }

    async fn send(&mut self, channel: u16, out: Out) -> Result<()> {
        self.frame(METHOD, channel, &out.0).await
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<()> {
        let mut frame = Out::default().u8(kind).u16(channel).long(payload).0;
        frame.push(FRAME_END);
        self.write.write_all(&frame).await.context("write to RabbitMQ")
    }

    /// The next frame that is no heartbeat, its kind and payload.
    async fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            let mut head = [0; 7];
            self.read.read_exact(&mut head).await.context("the broker closed the connection")?;
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            ensure!(size <= 16 << 20, "a frame of {size} bytes");
            let mut payload = vec![0; size + 1];
            self.read.read_exact(&mut payload).await.context("the broker closed the connection")?;
            ensure!(payload.pop() == Some(FRAME_END), "a frame without its end");
            if head[0] != HEARTBEAT {
                return Ok((head[0], payload));
            }
        }
    }

    /// The arguments of the next method, which must be this one.
    async fn expect(&mut self, class: u16, method: u16) -> Result<Vec<u8>> {
        let (kind, payload) = self.receive().await?;
        ensure!(kind == METHOD, "a method");
        let mut read = In(&payload);
        let came = (read.u16()?, read.u16()?);
        if came == (class, method) {
            return Ok(read.0.to_vec());
        }
        match came {
            (10, 50) | (20, 40) => {
                let code = read.u16()?;
                bail!("the broker says {code} {}", read.short()?)
            }
            (60, 30) => bail!("the consumer was cancelled"),
            _ => bail!("method {came:?} where ({class}, {method}) was due"),
        }
    }
}

#[derive(Default)]
struct Properties {
    content_type: String,
    message_id: String,
}

/// Reads the property list of a content header of class basic as far as the message id.
fn properties(header: &mut In<'_>) -> Result<Properties> {
    let flags = header.u16()?;
    let has = |bit: u16| flags & 1 << bit != 0;
    let mut properties = Properties::default();
    if has(15) {
        properties.content_type = header.short()?;
    }
    if has(14) {
        header.short()?;
    }
    if has(13) {
        header.skip_long()?;
    }
    for bit in [12, 11] {
        if has(bit) {
            header.u8()?;
        }
    }
    for bit in [10, 9, 8] {
        if has(bit) {
            header.short()?;
        }
    }
    if has(7) {
        properties.message_id = header.short()?;
    }
    Ok(properties)
}

/// A subscriber with a queue of its own, which connects again whenever the broker was away. It ends when dropped.
#[derive(Debug)]
pub struct Subscriber {
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Subscriber {
    /// Reads from the queue, which the gateway declares, for as long as this lives.
    pub fn start(url: String, queue: String, run: Run) -> Subscriber {
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn({
            let arrivals = arrivals.clone();
            async move {
                loop {
                    // Ends with an error whenever the broker goes; that is what it is here for.
                    let _ = read(&url, &queue, run, &arrivals).await;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        });
        Subscriber { arrivals, task }
    }

    /// How many messages it acknowledged.
    pub fn accepted(&self) -> usize {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What it saw, as the checker reads it.
    pub fn seen(&self, subscription: &str, topics: &[&str]) -> Seen {
        Seen {
            subscription: subscription.to_owned(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            arrivals: self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Takes everything from a queue and logs it, until the connection ends.
pub(crate) async fn read(url: &str, queue: &str, run: Run, arrivals: &Mutex<Vec<Arrival>>) -> Result<()> {
    let mut client = Client::open(url).await?;
    client.consume(queue, 100).await?;
    loop {
        let message = client.next().await?;
        if let Some(arrival) = Arrival::of_event(&run, &message.body, message.message_id) {
            arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        }
        client.acknowledge(message.tag).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Marker;
    use crate::services::Services;

    #[test]
    fn properties_before_the_message_id_are_passed_over() {
        // content type, headers (a table), delivery mode, correlation id, message id
        let header = Out::default()
            .u16(1 << 15 | 1 << 13 | 1 << 12 | 1 << 10 | 1 << 7)
            .short("application/json")
            .table(&[("a", "b")])
            .u8(2)
            .short("correlation")
            .short("the id");
        let read = properties(&mut In(&header.0)).unwrap();
        assert_eq!((read.content_type.as_str(), read.message_id.as_str()), ("application/json", "the id"));
        assert!(properties(&mut In(&header.0[..9])).is_err(), "cut short");
    }

    #[tokio::test]
    #[ignore = "needs RabbitMQ: tests/run starts it"]
    async fn what_is_published_is_consumed_and_acknowledged() {
        let url = Services::from_environment().unwrap().amqp;
        let queue = format!("lab-{}", uuid::Uuid::now_v7());
        let run = Run::fresh();
        let mut publisher = Client::open(&url).await.unwrap();
        publisher.declare(&queue).await.unwrap();
        let marker = Marker { patient: 1, sequence: 2 };
        for id in ["one", "two"] {
            publisher.publish("", &queue, id, run.mark(marker).as_bytes()).await.unwrap();
        }
        let mut consumer = Client::open(&url).await.unwrap();
        consumer.consume(&queue, 10).await.unwrap();
        let first = consumer.next().await.unwrap();
        let second = consumer.next().await.unwrap();
        assert_eq!((first.message_id.as_str(), second.message_id.as_str()), ("one", "two"));
        assert_eq!(run.newest(&second.body), Some(marker));
        assert!(!first.redelivered);
        consumer.acknowledge(first.tag).await.unwrap();
        drop(consumer);
        let mut again = Client::open(&url).await.unwrap();
        again.consume(&queue, 10).await.unwrap();
        let redelivered = again.next().await.unwrap();
        assert_eq!((redelivered.message_id.as_str(), redelivered.redelivered), ("two", true));
        assert_eq!(again.depth("lab-no-such-queue").await.unwrap(), None);
    }
}
