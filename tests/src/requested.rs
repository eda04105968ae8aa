//! Subscribers that ask for their subscriptions over `/fhir`, by every channel that there is, and come back whenever they were cut off.

use crate::amqp;
use crate::checker::{Arrival, Seen};
use crate::gateway::Gateway;
use crate::generate::Run;
use crate::receiver::Receiver;
use crate::rest;
use crate::webhook::Webhook;
use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// The client that asks.
const CLIENT: &str = "requester";
const TOKEN: &str = "t0ken-of-the-requester";
const BACKPORT: &str = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/";
/// How long a server may take to answer before another one is asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long until a subscriber that was cut off comes back.
const PAUSE: Duration = Duration::from_millis(200);

/// What a subscriber wants, and by which channel.
#[derive(Clone, Copy, Debug)]
struct Wish {
    channel: &'static str,
    topic: &'static str,
}

/// Every channel over and over. HL7 v2 tells of results, whose order number is that of the message.
fn wishes(count: u32) -> Vec<Wish> {
    let topics = ["encounter-start", "encounter-end"];
    let channels = ["rest-hook", "websocket", "message", "amqp", "mllp"];
    (0..count as usize)
        .map(|n| {
            let channel = channels[n % channels.len()];
            let topic =
                if channel == "mllp" { "result-final" } else { topics[n / channels.len() % topics.len()] };
            Wish { channel, topic }
        })
        .collect()
}

/// Where a subscriber takes what it is sent.
enum Ear {
    Hook(Webhook),
    Receiver(Receiver),
    Held(Arc<Mutex<Vec<Arrival>>>, tokio::task::JoinHandle<()>),
}

/// A subscriber with its subscription.
pub struct Requested {
    wish: Wish,
    id: String,
    ear: Ear,
}

impl Drop for Requested {
    fn drop(&mut self) {
        if let Ear::Held(_, task) = &self.ear {
            task.abort();
        }
    }
}

/// Subscribers that listen, and have not asked yet.
pub struct Listening {
    run: Run,
    waiting: Vec<(Wish, Option<Ear>)>,
}

impl Listening {
    /// Opens what each needs to be reached.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(run: Run, count: u32) -> Result<Listening> {
        let mut waiting = Vec::new();
        for wish in wishes(count) {
            let ear = match wish.channel {
                "rest-hook" | "message" => Some(Ear::Hook(Webhook::start(run).await?)),
                "mllp" => Some(Ear::Receiver(Receiver::start(run).await?)),
                _ => None,
            };
            waiting.push((wish, ear));
        }
        Ok(Listening { run, waiting })
    }

    /// The client in a gateway's configuration, its token in that folder.
    ///
    /// # Errors
    /// When the token cannot be written.
    pub fn sender(&self, folder: &Path) -> Result<String> {
        let token = folder.join("requester.token");
        std::fs::write(&token, TOKEN)?;
        let endpoints: Vec<String> =
            self.waiting.iter().filter_map(|(wish, ear)| ear.as_ref()?.url(wish)).collect();
        Ok(format!(
            "{{name: {CLIENT}, token: {{file: '{}'}}, subscribes: {{topics: '*', senders: [genhosp], subscriptions_max: 1000, \
             channels: [rest-hook, message, websocket, amqp, mllp], mllp: {{write: write_oru_r01}}, endpoints: [{}]}}}}",
            token.display(),
            endpoints.join(", ")
        ))
    }

    /// Asks for every subscription, and waits until each is active.
    ///
    /// # Errors
    /// When one is refused, or does not become active.
    pub async fn ask(self, gateways: &[Gateway]) -> Result<Vec<Requested>> {
        let https: Vec<SocketAddr> = gateways.iter().map(|gateway| gateway.http).collect();
        let mut all = Vec::new();
        for (n, (wish, ear)) in self.waiting.into_iter().enumerate() {
            let endpoint = ear.as_ref().and_then(|ear| ear.url(&wish));
            let http = https[n % https.len()];
            let made = ask(http, "POST /fhir/Subscription", Some(&resource(&wish, endpoint))).await?;
            ensure!(made.status == 201, "{}: {}", wish.channel, made.body);
            let id = made.json()["id"].as_str().context("an id")?.to_owned();
            let path = format!("GET /fhir/Subscription/{id}");
            let began = Instant::now();
            while ask(http, &path, None).await?.json()["status"] != "active" {
                ensure!(began.elapsed() < Duration::from_secs(60), "{} does not become active", wish.channel);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let ear = ear.unwrap_or_else(|| {
                let held = Arc::new(Mutex::new(Vec::new()));
                let (arrivals, id, https, run) = (held.clone(), id.clone(), https.clone(), self.run);
                let task = tokio::spawn(async move {
                    // Whatever ends it is part of the game; each time another gateway is asked.
                    for http in https.iter().cycle() {
                        let _ = match wish.channel {
                            "websocket" => over_websocket(*http, &id, run, &arrivals).await,
                            _ => over_amqp(*http, &id, run, &arrivals).await,
                        };
                        tokio::time::sleep(PAUSE).await;
                    }
                });
                Ear::Held(held, task)
            });
            all.push(Requested { wish, id, ear });
        }
        Ok(all)
    }
}

impl Requested {
    /// How many events it took.
    pub fn accepted(&self) -> usize {
        self.seen().arrivals.len()
    }

    /// What it saw, as the checker reads it.
    pub fn seen(&self) -> Seen {
        let (name, topics) = (format!("{} {}", self.wish.channel, self.id), [self.wish.topic]);
        match &self.ear {
            Ear::Hook(hook) => hook.seen(&name, &topics),
            Ear::Receiver(receiver) => receiver.seen(&name, &topics),
            Ear::Held(arrivals, _) => Seen {
                subscription: name,
                topics: topics.map(str::to_owned).to_vec(),
                arrivals: arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            },
        }
    }
}

impl Ear {
    /// Where it is reached.
    fn url(&self, wish: &Wish) -> Option<String> {
        match self {
            Ear::Hook(hook) if wish.channel == "message" => Some(format!("http://{}/base", hook.address())),
            Ear::Hook(hook) => Some(hook.url()),
            Ear::Receiver(receiver) => Some(format!("mllp://{}", receiver.address())),
            Ear::Held(..) => None,
        }
    }
}

fn resource(wish: &Wish, endpoint: Option<String>) -> Value {
    let extension =
        |name: &str, kind: &str, value: Value| json!([{"url": format!("{BACKPORT}{name}"), kind: value}]);
    let mut channel = json!({
        "type": wish.channel,
        "payload": if wish.channel == "mllp" { "x-application/hl7-v2+er7" } else { "application/fhir+json" },
        "_payload": {"extension": extension("backport-payload-content", "valueCode", "full-resource".into())},
    });
    if matches!(wish.channel, "amqp" | "mllp") {
        let coding = json!({"system": "urn:pons:channel", "code": wish.channel});
        channel["type"] = "message".into();
        channel["_type"] = json!({"extension": extension("backport-channel-type", "valueCoding", coding)});
    }
    if let Some(endpoint) = endpoint {
        channel["endpoint"] = endpoint.into();
    }
    json!({
        "resourceType": "Subscription", "status": "requested", "reason": "to be told of everything",
        "criteria": format!("urn:pons:topic:{}", wish.topic), "channel": channel,
    })
}

async fn ask(http: SocketAddr, request: &str, body: Option<&Value>) -> Result<rest::Answer> {
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("authorization", authorization.as_str()), ("content-type", "application/fhir+json")];
    let body = body.map(Value::to_string).unwrap_or_default();
    rest::exchange_at(http, request, &headers, body.as_bytes(), body.len()).await
}

/// The values of Parameters by their names.
fn parameter(parameters: &Value, name: &str) -> Result<String> {
    let all = parameters["parameter"].as_array().context("Parameters")?;
    let one = all.iter().find(|one| one["name"] == name).context("a parameter")?;
    let value = one["valueString"].as_str().or(one["valueUrl"].as_str());
    Ok(value.context("a value")?.to_owned())
}

/// Binds a WebSocket and logs what comes, until it ends.
async fn over_websocket(http: SocketAddr, id: &str, run: Run, arrivals: &Mutex<Vec<Arrival>>) -> Result<()> {
    let given =
        timeout(PATIENCE, ask(http, &format!("GET /fhir/Subscription/{id}/$get-ws-binding-token"), None))
            .await??;
    ensure!(given.status == 200, "no token");
    let token = parameter(&given.json(), "token")?;
    let opening = async {
        let stream = TcpStream::connect(http).await?;
        let (mut socket, _) =
            tokio_tungstenite::client_async(format!("ws://{http}/fhir/websocket"), stream).await?;
        socket.send(Message::text(format!("bind-with-token: {token}"))).await?;
        anyhow::Ok(socket)
    };
    let mut socket = timeout(PATIENCE, opening).await??;
    loop {
        // A gateway that was killed closes its connections; one that hangs would be left by its pings.
        let frame = timeout(Duration::from_secs(60), socket.next()).await?.context("closed")??;
        let Message::Text(text) = frame else { continue };
        let said: Value = serde_json::from_str(&text)?;
        let delivery = said["id"].as_str().unwrap_or_default().to_owned();
        if let Some(arrival) = Arrival::of_event(&run, text.as_bytes(), delivery) {
            arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        }
    }
}

/// Reads its own queue with new credentials, until it ends.
async fn over_amqp(http: SocketAddr, id: &str, run: Run, arrivals: &Mutex<Vec<Arrival>>) -> Result<()> {
    let path = format!("POST /fhir/Subscription/{id}/$get-amqp-credentials");
    let given = timeout(PATIENCE, ask(http, &path, None)).await??;
    ensure!(given.status == 200, "no credentials");
    let given = given.json();
    let user = format!("://{}:{}@", parameter(&given, "user")?, parameter(&given, "password")?);
    let url = parameter(&given, "url")?.replace("://", &user);
    amqp::read(&url, &parameter(&given, "queue")?, run, arrivals).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_go_over_every_channel_and_topic() {
        let wishes = wishes(20);
        let count = |channel: &str| wishes.iter().filter(|wish| wish.channel == channel).count();
        assert_eq!(["rest-hook", "websocket", "message", "amqp", "mllp"].map(count), [4; 5]);
        let starts = wishes.iter().filter(|wish| wish.topic == "encounter-start").count();
        assert_eq!(starts, 8);
    }
}
