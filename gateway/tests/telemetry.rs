//! What is seen from outside of one message's way through a whole gateway: its trace at the collector and in the request to
//! the destination, its counts at `/metrics`, and no value of it anywhere.
//!
//! One test alone in its process: logging and tracing begin once.

#![expect(clippy::unwrap_used, reason = "in a test a mistake ends it where it is")]

use bytes::Bytes;
use gateway::config::Config;
use gateway::{pipeline, telemetry};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const ADMISSION: &str = "MSH|^~\\&|EHR|TESTHOSPITAL|PONS|PONS|20260301081500||ADT^A01^ADT_A01|TEST-7|P|2.5.1\r\
    EVN|A01|20260301081500\r\
    PID|1||TEST-1001^^^TESTHOSPITAL^MR||TESTNAME^JANE||19700131|F\r\
    PV1|1|I|TEST-3A^12^1^TESTHOSPITAL||||||||||||||||TEST-V1^^^TESTHOSPITAL^VN\r";
/// What of the message is a patient's and must not be told.
const VALUES: [&str; 4] = ["TESTNAME", "JANE", "TEST-1001", "19700131"];
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server of ours was sent.
struct Got {
    path: String,
    traceparent: Option<String>,
    body: Bytes,
}

/// A server that takes whatever it is sent.
async fn server() -> (SocketAddr, mpsc::UnboundedReceiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let tell = tell.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let traceparent = request.headers().get("traceparent");
                    let traceparent = traceparent.map(|value| value.to_str().unwrap().to_owned());
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let _ = tell.send(Got { path, traceparent, body });
                    Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (address, told)
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", "test")
        .header("authorization", "Bearer t0ken")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

async fn send(door: SocketAddr, message: &str) {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(format!("\x0b{message}\x1c\r").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\x1c\r") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "an answer before the end");
    }
    assert!(String::from_utf8(answer).unwrap().contains("MSA|AA|TEST-7"));
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let found = span.attributes.iter().find(|one| one.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_is_one_trace_from_intake_to_delivery_and_is_counted() {
    let (collector, mut pushed) = server().await;
    let (insurer, mut delivered) = server().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "t0ken\n").unwrap();
    let config = format!(
        "data_dir: '{}'\n\
         otlp: 'http://{collector}'\n\
         http: {{listen: '127.0.0.1:0'}}\n\
         sources:\n\
         - {{name: main, adapter: mllp, listen: '127.0.0.1:0', zone: Europe/Berlin}}\n\
         senders:\n\
         - {{name: hospital, facility: TESTHOSPITAL}}\n\
         - {{name: watcher, token: {{file: token}}}}\n\
         subscriptions:\n\
         - {{name: insurer, topics: [encounter-start], senders: [hospital],\n   \
              destination: {{adapter: rest-hook, url: 'http://{insurer}/events'}}}}\n",
        folder.path().display()
    );
    let config = Config::parse(&config, folder.path()).expect("a configuration");
    let telemetry = telemetry::start(true, config.otlp.as_deref()).expect("telemetry");
    let running = pipeline::start(config).await.expect("a gateway");
    let http = running.http.expect("HTTP");
    let door = running.sources[0].1.expect("a door");
    assert_eq!(get(http, "/readyz").await, (200, "ready\nbus: connected\n".to_owned()));
    assert_eq!(get(http, "/livez").await.0, 200);

    send(door, ADMISSION).await;
    let event = tokio::time::timeout(PATIENCE, delivered.recv()).await.expect("in time").expect("an event");
    let (_, metrics) = get(http, "/metrics").await;
    for line in [
        r#"pons_ingest_messages_total{outcome="stored",source="main"} 1"#,
        r#"pons_ingest_messages_total{outcome="rejected",source="main"} 0"#,
        r#"pons_ingest_batch_messages_sum 1"#,
        r#"pons_ingest_commit_seconds_count 1"#,
        r#"pons_normalize_messages_total{outcome="normalized"} 1"#,
        r#"pons_normalize_map_seconds_count 1"#,
        r#"pons_deliver_attempts_total{subscription="insurer"} 1"#,
        r#"pons_bus_connected 1"#,
        r#"pons_telemetry_dropped_spans_total 0"#,
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line} is not in\n{metrics}");
    }
    let broken = std::thread::spawn(|| panic!("it stumbled over {}", VALUES[0]));
    assert!(broken.join().is_err());
    running.stop().await;
    telemetry.stop().await;
    // From here on a mistake is told in its own words again.
    let _ = std::panic::take_hook();

    let (mut spans, mut records, mut sums, mut broke_off) = (Vec::new(), 0, Vec::new(), false);
    while let Ok(got) = pushed.try_recv() {
        for value in VALUES {
            assert!(memchr::memmem::find(&got.body, value.as_bytes()).is_none(), "{value} at {}", got.path);
        }
        match got.path.as_str() {
            "/v1/traces" => {
                let request = ExportTraceServiceRequest::decode(got.body).expect("spans");
                let scopes = request.resource_spans.into_iter().flat_map(|one| one.scope_spans);
                spans.extend(scopes.flat_map(|one| one.spans));
            }
            "/v1/logs" => {
                let tells = |text: &str| memchr::memmem::find(&got.body, text.as_bytes()).is_some();
                broke_off |= tells("broke off") && tells("gateway/tests/telemetry.rs:");
                let request = ExportLogsServiceRequest::decode(got.body).expect("log records");
                let scopes = request.resource_logs.into_iter().flat_map(|one| one.scope_logs);
                records += scopes.map(|one| one.log_records.len()).sum::<usize>();
            }
            "/v1/metrics" => {
                let request = ExportMetricsServiceRequest::decode(got.body).expect("metrics");
                let scopes = request.resource_metrics.into_iter().flat_map(|one| one.scope_metrics);
                sums.extend(scopes.flat_map(|one| one.metrics).map(|metric| metric.name));
            }
            other => panic!("nothing goes to {other}"),
        }
    }
    let mut after: &[u8] = &[];
    for verb in ["ingest", "normalize", "route", "deliver"] {
        let named: Vec<&Span> = spans.iter().filter(|span| span.name == verb).collect();
        let [span] = named[..] else { panic!("{} spans {verb}", named.len()) };
        assert_eq!(span.trace_id, spans[0].trace_id, "{verb}");
        assert_eq!(span.parent_span_id, after, "{verb} follows");
        assert!(attribute(span, "message_id").is_some(), "{verb}");
        after = &span.span_id;
    }
    let deliver = spans.iter().find(|span| span.name == "deliver").expect("a delivery");
    let traceparent = format!("00-{}-{}-01", hex(&deliver.trace_id), hex(&deliver.span_id));
    assert_eq!(event.traceparent.as_deref(), Some(&*traceparent), "the destination continues the delivery");
    let envelope: serde_json::Value = serde_json::from_slice(&event.body).unwrap_or_default();
    assert!(envelope.is_object());
    assert!(records > 0, "log records are pushed");
    assert!(broke_off, "a panic is told by its place");
    assert!(sums.iter().any(|name| name == "pons_ingest_messages_total"), "metrics are pushed");
}
