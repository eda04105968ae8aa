//! Resources created over `/fhir`, each recorded before it is answered, against a bare HTTP server that makes the same bodies durable.

use crate::ack::rest;
use crate::cost::Meters;
use crate::floor::Floor;
use anyhow::{Result, ensure};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tests::gateway::{Gateway, Setup};
use tests::lab::percentiles;
use tests::services::OwnServices;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How many patients the observations are about.
const PATIENTS: u64 = 2_000;
const TOKEN: &str = "t0ken-of-the-device-hub";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Connections, each waiting for its answer
    #[arg(long, default_value_t = 64)]
    connections: u64,
    /// Seconds for each measurement
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How often floor and gateway are measured in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

/// Prints both rates and their ratio.
///
/// # Errors
/// When a server does not start, or does not create what it is sent.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let services = OwnServices::start(folder.path()).await?;
    let floor = floor(&services.urls.new_database("floor").await?).await?;
    let database = services.urls.new_database("creates").await?;
    let token = folder.path().join("hub.token");
    std::fs::write(&token, TOKEN)?;
    let setup = Setup {
        store: Some(database.clone()),
        bus: Some(services.urls.amqp.clone()),
        senders: vec![format!("{{name: hub, token: {{file: '{}'}}}}", token.display())],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await?;
    let mut ratios = Vec::new();
    for round in 0..arguments.rounds {
        let (floor_rate, floor_took) = measure(floor, arguments, round).await?;
        let before = Meters::read(Some(&gateway), &services, &database).await?;
        let (rate, took) = measure(gateway.http, arguments, round).await?;
        println!(
            "creates, {} connections, Observation: {rate:.0}/s, p50 {:.1?}, p99 {:.1?}, longest {:.1?}; floor {floor_rate:.0}/s, p50 {:.1?}, \
             p99 {:.1?}; ratio {:.2}",
            arguments.connections,
            took[0],
            took[1],
            took[2],
            floor_took[0],
            floor_took[1],
            rate / floor_rate,
        );
        rest(&database).await?;
        let count = (rate * arguments.seconds as f64) as u64;
        Meters::read(Some(&gateway), &services, &database).await?.print_since(&before, count);
        ratios.push(rate / floor_rate);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "creates: median ratio {:.2} of the floor (of {} rounds)",
        ratios[ratios.len() / 2],
        ratios.len()
    );
    Ok(())
}

/// How many were created a second, and how long each waited.
async fn measure(to: SocketAddr, arguments: &Arguments, round: u64) -> Result<(f64, [Duration; 3])> {
    let began = Instant::now();
    let until = began + Duration::from_secs(arguments.seconds);
    let mut clients = JoinSet::new();
    for client in 0..arguments.connections {
        let first = (round * arguments.connections + client) << 32;
        clients.spawn(create(to, first, until));
    }
    let mut took = Vec::new();
    while let Some(one) = clients.join_next().await {
        took.extend(one??);
    }
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    Ok((rate, percentiles(took)))
}

/// Creates one after another over one connection; their numbers count up from `first`.
async fn create(to: SocketAddr, first: u64, until: Instant) -> Result<Vec<Duration>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut took = Vec::new();
    for number in first.. {
        if Instant::now() > until {
            break;
        }
        let request = Request::post("/fhir/Observation")
            .header("host", "pons.test")
            .header("content-type", "application/fhir+json")
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(Full::new(Bytes::from(observation(number))))?;
        let began = Instant::now();
        let answer = send.send_request(request).await?;
        ensure!(answer.status() == StatusCode::CREATED, "{}", answer.status());
        answer.into_body().collect().await?;
        took.push(began.elapsed());
    }
    Ok(took)
}

/// A pulse, as a monitor sends it.
fn observation(number: u64) -> String {
    let patient = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % PATIENTS;
    json!({
        "resourceType": "Observation",
        "identifier": [{"system": "urn:oid:2.999.5", "value": format!("{number:016x}")}],
        "status": "final",
        "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "vital-signs"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}]},
        "subject": {"reference": format!("Patient/bench-{patient}")},
        "effectiveDateTime": "2026-03-01T10:00:00+01:00",
        "device": {"display": "Monitor 7"},
        "valueQuantity": {"value": 60 + number % 60, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"},
    })
    .to_string()
}

/// An HTTP server that keeps each body as one row and answers 201; nothing else.
async fn floor(database: &str) -> Result<SocketAddr> {
    let floor = Floor::open(database).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let floor = floor.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let floor = floor.clone();
                    async move {
                        let body = request.into_body().collect().await?.to_bytes();
                        let kept = floor.keep(body.into()).await;
                        let status = if kept { StatusCode::CREATED } else { StatusCode::SERVICE_UNAVAILABLE };
                        let mut answer = Response::new(Empty::<Bytes>::new());
                        *answer.status_mut() = status;
                        Ok::<_, hyper::Error>(answer)
                    }
                });
                // A client that goes away is no fault of the floor.
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(at)
}
