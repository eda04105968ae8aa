//! The outside systems of the demo: small, but behind real sockets.

use crate::cli::{Exit, Failure, print};
use adapters::{Destination, Intake, Outcome, Outgoing, Received, Rejection, SourceContext, Stored, Verdict};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use schemas::hl7v2::{Limits, Message, charset};
use schemas::message::{DeliveryId, MessageId};
use schemas::yaml::{self, Fields};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Something that somebody received.
pub(super) struct Letter {
    /// What it is about: a topic, or a message type.
    pub(super) about: String,
    /// What is in it, in a few words.
    pub(super) summary: String,
}

/// Where somebody receives letters.
pub(super) struct Inbox {
    /// Their address.
    pub(super) address: SocketAddr,
    /// What has come.
    pub(super) letters: mpsc::UnboundedReceiver<Letter>,
}

/// A system that takes HL7 v2 over MLLP.
pub(super) async fn mllp(name: &str) -> Result<Inbox, Failure> {
    let (tell, letters) = mpsc::unbounded_channel();
    let spec = adapters::adapter("mllp").and_then(|spec| spec.source.as_ref()).expect("MLLP goes both ways");
    let node = yaml::read("listen: '127.0.0.1:0'\n").expect("this is YAML").remove(0);
    let mut mistakes = Vec::new();
    let context = SourceContext { name: name.into(), folder: Path::new("").into() };
    let source =
        (spec.read)(&mut Fields::new(&node, "", &mut mistakes), &context).expect("loopback needs no more");
    let running = source.start(Arc::new(Desk { tell }), CancellationToken::new()).await?;
    let address =
        running.address.ok_or_else(|| Failure::new(Exit::Failed, "a listener without an address"))?;
    Ok(Inbox { address, letters })
}

/// Takes every message and tells of it.
struct Desk {
    tell: mpsc::UnboundedSender<Letter>,
}

#[async_trait]
impl Intake for Desk {
    async fn accept(&self, received: Received) -> Verdict {
        let text = charset::decode(&received.bytes, None).text;
        if let Ok(message) = Message::parse(&text, &Limits::default()) {
            let header = message.header();
            let part = |value: Option<std::borrow::Cow<'_, str>>| value.unwrap_or_default().into_owned();
            let about = format!("{}^{}", part(header.message_code()), part(header.trigger()));
            let summary = format!("the HL7 v2 message as it was sent, {} segments", message.segments().len());
            let _ = self.tell.send(Letter { about, summary });
        }
        Verdict::Stored(Stored {
            message: MessageId(Uuid::now_v7()),
            received_at: jiff::Timestamp::now(),
            repeat: false,
        })
    }

    async fn outcome(&self, _message: MessageId) -> Outcome {
        Outcome::Normalized
    }

    async fn keep_refused(&self, _received: Received, _rejection: Rejection) {}
}

/// A system that takes FHIR by HTTP POST.
pub(super) async fn webhook() -> Result<Inbox, Failure> {
    let (tell, letters) = mpsc::unbounded_channel();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            let service = service_fn(move |request| hook(request, tell.clone()));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Ok(Inbox { address, letters })
}

async fn hook(
    request: Request<hyper::body::Incoming>,
    tell: mpsc::UnboundedSender<Letter>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let bundle: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let _ = tell.send(letter(&bundle));
    Ok(Response::new(Full::new(Bytes::new())))
}

/// What a Bundle tells an insurer.
fn letter(bundle: &serde_json::Value) -> Letter {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut status = "";
    for entry in bundle["entry"].as_array().into_iter().flatten() {
        let resource = &entry["resource"];
        *counts.entry(resource["resourceType"].as_str().unwrap_or("?")).or_default() += 1;
        if resource["resourceType"] == "Encounter" {
            status = resource["status"].as_str().unwrap_or_default();
        }
    }
    let about = match status {
        "in-progress" => "encounter-start",
        "finished" => "encounter-end",
        other => other,
    };
    let parts: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    Letter { about: about.to_owned(), summary: format!("a FHIR Bundle with {}", parts.join(", ")) }
}

/// Sends one message and tells of its acknowledgement.
pub(super) async fn send(to: SocketAddr, message: &'static str) -> Result<(), Failure> {
    let spec =
        adapters::adapter("mllp").and_then(|spec| spec.destination.as_ref()).expect("MLLP goes both ways");
    let node = yaml::read(&format!("connect: '{to}'\n")).expect("this is YAML").remove(0);
    let mut mistakes = Vec::new();
    let destination: Arc<dyn Destination> =
        (spec.read)(&mut Fields::new(&node, "", &mut mistakes), Path::new(""))
            .expect("loopback needs no more");
    let outgoing = Outgoing {
        delivery: DeliveryId(Uuid::now_v7()),
        subscription: "demo".into(),
        attempt: 1,
        bundle: Bytes::new(),
        event: Bytes::new(),
        passes: None,
        original: Bytes::from_static(message.as_bytes()),
        traceparent: None,
    };
    let receipt = destination
        .deliver(&outgoing)
        .await
        .map_err(|error| Failure::new(Exit::Failed, format!("the gateway did not take it: {error}")))?;
    print(&format!("   the gateway answers {} once the message is on its disk", receipt.answer))
}
