//! The MLLP source and destination over real sockets, with an intake that does what the control id of a message says.

mod destination;
mod source;
mod tls;

use super::codec::{Decoder, Edge, Framing, Piece};
use crate::{
    Intake, Outcome, Received, Rejection, RejectionKind, RunningSource, Source, SourceContext, Stored,
    Verdict,
};
use async_trait::async_trait;
use schemas::message::MessageId;
use schemas::yaml::{self, Fields, Mistake};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longer than anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A message with a control id, and fields from MSH-13 on.
fn message(control_id: &str, rest: &str) -> Vec<u8> {
    format!("MSH|^~\\&|TESTAPP|TESTFAC|PONSAPP|PONSFAC|20260102030405||ADT^A01^ADT_A01|{control_id}|P|2.5.1{rest}\rPID|1||TEST-7||TEST^JANE\r")
        .into_bytes()
}

fn frame(message: &[u8]) -> Vec<u8> {
    [b"\x0B", message, b"\x1C\r"].concat()
}

fn framed(control_id: &str) -> Vec<u8> {
    frame(&message(control_id, ""))
}

/// Does what MSH-10 says: `OK..` is stored, `AE..` and `AR..` refused, `SHUT..` refused with the connection, `JUNK..`
/// unreadable, `AWAY..` unavailable while `away` is set, `HANG..` never answered, `GATE..` stored once the gate lets it
/// through, `PANIC..` ends its connection by a panic.
#[derive(Default)]
struct FakeIntake {
    accepted: Mutex<Vec<String>>,
    received: Mutex<Vec<Received>>,
    refused: Mutex<Vec<(Received, Rejection)>>,
    refused_one: Notify,
    stored: Mutex<HashMap<Vec<u8>, Stored>>,
    away: AtomicBool,
    gate: Gate,
    outcome: Mutex<Option<Outcome>>,
}

struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Gate(Semaphore::new(0))
    }
}

fn rejection(kind: RejectionKind, code: u16, close: bool) -> Rejection {
    Rejection {
        kind,
        code,
        location: "PID-3".to_owned(),
        text: "not taken".to_owned(),
        close,
        received_at: None,
    }
}

impl FakeIntake {
    fn store(&self, received: &Received) -> Stored {
        let mut stored = self.stored.lock().unwrap();
        let count = stored.len();
        let first = !stored.contains_key(&received.bytes[..]);
        let row = stored.entry(received.bytes.to_vec()).or_insert_with(|| Stored {
            message: MessageId(Uuid::from_u128(count as u128 + 1)),
            received_at: jiff::Timestamp::new(1_700_000_000 + count as i64, 0).unwrap(),
            repeat: false,
        });
        Stored { repeat: !first, ..row.clone() }
    }

    fn accepted(&self) -> Vec<String> {
        self.accepted.lock().unwrap().clone()
    }

    /// The next refused piece and its reason.
    async fn refused(&self) -> (Vec<u8>, String) {
        loop {
            let notified = self.refused_one.notified();
            if let Some((received, rejection)) = self.refused.lock().unwrap().pop() {
                return (received.bytes.to_vec(), rejection.text);
            }
            within(notified).await;
        }
    }
}

#[async_trait]
impl Intake for FakeIntake {
    async fn accept(&self, received: Received) -> Verdict {
        let text = String::from_utf8_lossy(&received.bytes).into_owned();
        let header = text.trim_start().split(['\r', '\n']).next().unwrap_or_default();
        let id = header.split('|').nth(9).unwrap_or_default().to_owned();
        self.accepted.lock().unwrap().push(id.clone());
        self.received.lock().unwrap().push(received.clone());
        match id.trim_end_matches(|c: char| c.is_ascii_digit()) {
            "OK" => Verdict::Stored(self.store(&received)),
            "AE" => Verdict::Rejected(rejection(RejectionKind::Error, 101, false)),
            "AR" => Verdict::Rejected(rejection(RejectionKind::Reject, 200, false)),
            "SHUT" => Verdict::Rejected(rejection(RejectionKind::Reject, 207, true)),
            "AWAY" if self.away.load(Ordering::SeqCst) => Verdict::Unavailable { reason: "test".to_owned() },
            "AWAY" => Verdict::Stored(self.store(&received)),
            "HANG" => std::future::pending().await,
            "GATE" => {
                self.gate.0.acquire().await.unwrap().forget();
                Verdict::Stored(self.store(&received))
            }
            "PANIC" => panic!("as the test wants"),
            _ => Verdict::Unreadable { reason: "test".to_owned() },
        }
    }

    async fn outcome(&self, _: MessageId) -> Outcome {
        let outcome = self.outcome.lock().unwrap().clone();
        match outcome {
            Some(outcome) => outcome,
            None => std::future::pending().await,
        }
    }

    async fn keep_refused(&self, received: Received, rejection: Rejection) {
        self.refused.lock().unwrap().push((received, rejection));
        self.refused_one.notify_one();
    }
}

/// Reads the configuration of a source as the gateway does.
fn configured(config: &str, folder: &Path) -> Result<Arc<dyn Source>, Vec<Mistake>> {
    let node = yaml::read(config).expect("YAML").remove(0);
    let mut mistakes = Vec::new();
    let mut fields = Fields::new(&node, "", &mut mistakes);
    let context = SourceContext { name: "test".into(), folder: folder.into() };
    let spec = crate::adapter("mllp").and_then(|spec| spec.source.as_ref()).expect("a row");
    let source = (spec.read)(&mut fields, &context);
    fields.finish();
    if mistakes.is_empty() { Ok(source.expect("no mistake, so a source")) } else { Err(mistakes) }
}

/// A source at work, and its intake.
struct Running {
    intake: Arc<FakeIntake>,
    stop: CancellationToken,
    source: RunningSource,
}

impl Running {
    async fn start(config: &str) -> Running {
        Running::start_in(config, Path::new(".")).await
    }

    async fn start_in(config: &str, folder: &Path) -> Running {
        let config = format!("listen: 127.0.0.1:0\n{config}");
        let source = configured(&config, folder).expect("a right configuration");
        let (intake, stop) = (Arc::new(FakeIntake::default()), CancellationToken::new());
        let source =
            source.start(Arc::clone(&intake) as Arc<dyn Intake>, stop.clone()).await.expect("a port");
        Running { intake, stop, source }
    }

    fn address(&self) -> SocketAddr {
        self.source.address.expect("it listens")
    }

    async fn connect(&self) -> Peer<TcpStream> {
        Peer::new(TcpStream::connect(self.address()).await.expect("it listens"))
    }
}

/// The other end of a connection, whichever that is.
struct Peer<S> {
    stream: S,
    decoder: Decoder,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    fn new(stream: S) -> Self {
        Peer { stream, decoder: Decoder::new(Framing::default(), 64 << 20) }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the other end listens");
        self.stream.flush().await.expect("the other end listens");
    }

    /// The content of the next frame; `None` when the other end has closed.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(piece) = self.decoder.next(Edge::More) {
                let Piece::Frame(frame) = piece else { panic!("only frames are sent: {piece:?}") };
                return Some(String::from_utf8_lossy(&frame).into_owned());
            }
            self.decoder.buffer().reserve(4096);
            match within(self.stream.read_buf(self.decoder.buffer())).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// `MSA-1 MSA-2` of the next answer, or `closed`.
    async fn answer(&mut self) -> String {
        match self.next().await {
            None => "closed".to_owned(),
            Some(ack) => msa(&ack),
        }
    }
}

fn msa(ack: &str) -> String {
    let msa = ack.split('\r').find_map(|segment| segment.strip_prefix("MSA|")).expect("MSA");
    let mut fields = msa.split('|');
    format!("{} {}", fields.next().unwrap_or_default(), fields.next().unwrap_or_default())
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes in time")
}
