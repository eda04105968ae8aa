//! FHIR in: what a client writes enters the same path as every other message and is answered with its result.

use super::{Answer, Api, outcome, websocket};
use crate::ingest::keys::Keys;
use crate::ingest::senders::Known;
use crate::normalize::fhir::{self as writes, IF_MATCH, IF_NONE_EXIST, IF_NONE_MATCH, URL};
use crate::normalize::waiters::{Changed, Done, UNMET};
use crate::route::notification::{PROFILES, TOPIC};
use crate::route::topics;
use crate::store::{self, Format, NewMessage, Refused};
use crate::telemetry::trace;
use adapters::Verdict;
use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, header};
use schemas::fhir;
use schemas::fhir::search::{self, Kind};
use schemas::issue::{Issue, Severity};
use schemas::message::MessageId;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use uuid::Uuid;

/// How deep a body may be nested.
const DEPTH_MAX: usize = 64;
/// The most entries of one Bundle.
const ENTRIES_MAX: usize = 5_000;
/// How much of a refused body is kept, in bytes.
const KEPT_MAX: usize = 64 << 10;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interaction {
    /// `POST /fhir`: a transaction, batch or message Bundle.
    Bundle,
    /// `POST /fhir/[type]`
    Create(String),
    /// `PUT /fhir/[type]/[id]`
    Update(String, String),
    /// `PUT /fhir/[type]?[search]`
    Conditional(String),
}

impl std::fmt::Display for Interaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Interaction::Bundle => f.write_str("POST Bundle"),
            Interaction::Create(kind) => write!(f, "POST {kind}"),
            Interaction::Update(kind, _) | Interaction::Conditional(kind) => write!(f, "PUT {kind}"),
        }
    }
}

/// Reads the interaction from a method and a path below `/fhir`.
pub fn interaction(method: &Method, path: &str) -> Option<Interaction> {
    let mut parts = path.trim_end_matches('/').split('/').skip(2);
    let interaction = match (method, parts.next(), parts.next()) {
        (&Method::POST, None, None) => Interaction::Bundle,
        (&Method::POST, Some(kind), None) => Interaction::Create(kind.to_owned()),
        (&Method::PUT, Some(kind), Some(id)) => Interaction::Update(kind.to_owned(), id.to_owned()),
        (&Method::PUT, Some(kind), None) => Interaction::Conditional(kind.to_owned()),
        _ => return None,
    };
    parts.next().is_none().then_some(interaction)
}

/// Whether the head of a write can be taken at all.
///
/// # Errors
/// The answer to give: 415 for a body that is not JSON.
pub fn acceptable(head: &Parts) -> Result<(), Answer> {
    let kind =
        head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !["application/fhir+json", "application/json"].iter().any(|known| kind.eq_ignore_ascii_case(known)) {
        return Err(outcome::answer(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not-supported",
            "expected Content-Type: application/fhir+json",
        ));
    }
    Ok(())
}

/// What a write asks for besides its resource, as an entry of a Bundle would say it: by the headers and the address of its request.
pub fn request(head: &Parts) -> Map<String, Value> {
    let mut request = Map::new();
    for (name, member) in
        [("if-match", IF_MATCH), ("if-none-match", IF_NONE_MATCH), ("if-none-exist", IF_NONE_EXIST)]
    {
        if let Some(value) = head.headers.get(name) {
            // What is no text is no version and no search either: it is refused as such.
            request.insert(member.to_owned(), value.to_str().unwrap_or_default().into());
        }
    }
    if let Some(conditions) = head.uri.query().and_then(conditions) {
        request.insert(URL.to_owned(), conditions.into());
    }
    request
}

/// What an address asks for behind its `?`, but for how the answer is written.
fn conditions(query: &str) -> Option<String> {
    let about_the_answer =
        |pair: &&str| ["_format", "_pretty"].contains(&pair.split('=').next().unwrap_or_default());
    let asked: Vec<&str> =
        query.split('&').filter(|pair| !pair.is_empty() && !about_the_answer(pair)).collect();
    (!asked.is_empty()).then(|| format!("?{}", asked.join("&")))
}

/// Takes one write: checks it, makes it durable, waits for its result.
pub async fn write(
    api: &Api,
    client: &Known,
    head: &Parts,
    interaction: Interaction,
    request: &Map<String, Value>,
    body: Bytes,
    peer: SocketAddr,
) -> Answer {
    let (resource, label) = match read(&interaction, request, &body) {
        Ok(read) => read,
        Err(refusal) => return refuse(api, client, &interaction, body, refusal).await,
    };
    if interaction == Interaction::Bundle && resource["type"] == "batch" {
        return batch(api, client, head, &resource, peer).await;
    }
    match one(api, client, head, &resource, request, body, label).await {
        Err(answer) => answer,
        Ok(None) => outcome::resource(
            StatusCode::ACCEPTED,
            &json!({
                "resourceType": "OperationOutcome",
                "issue": [{"severity": "information", "code": "informational", "diagnostics": "durable; the result is not awaited"}],
            }),
        ),
        Ok(Some(done)) => match interaction {
            Interaction::Bundle => {
                let entries: Vec<Value> = done.resources.iter().map(entry).collect();
                let kind = if resource["type"] == "message" { "message" } else { "transaction-response" };
                if kind == "message" {
                    return outcome::resource(
                        StatusCode::OK,
                        &json!({
                            "resourceType": "OperationOutcome",
                            "issue": [{"severity": "information", "code": "informational", "diagnostics": "the message was processed"}],
                        }),
                    );
                }
                outcome::resource(
                    StatusCode::OK,
                    &json!({"resourceType": "Bundle", "type": kind, "entry": entries}),
                )
            }
            Interaction::Create(_) | Interaction::Update(..) | Interaction::Conditional(_) => {
                single(&interaction, resource, &done)
            }
        },
    }
}

/// The answer to a create or update: the resource as it was sent, under the id that Pons knows it by. A create whose
/// identifiers name a resource already has changed nothing, and says so.
fn single(interaction: &Interaction, mut resource: Value, done: &Done) -> Answer {
    let Some(changed) = done.resources.first() else {
        return outcome::answer(StatusCode::INTERNAL_SERVER_ERROR, "exception", "the write made no resource");
    };
    let mut answer = if matches!(interaction, Interaction::Create(_)) && !changed.created {
        let text = "a resource with one of these identifiers is there already and was left as it is; an update (PUT) changes it";
        outcome::resource(
            StatusCode::OK,
            &json!({
                "resourceType": "OperationOutcome",
                "issue": [{"severity": "information", "code": "informational", "diagnostics": text}],
            }),
        )
    } else {
        resource["id"] = json!(changed.id.to_string());
        if let Some(version) = changed.version {
            resource["meta"]["versionId"] = json!(version.to_string());
        }
        outcome::resource(if changed.created { StatusCode::CREATED } else { StatusCode::OK }, &resource)
    };
    let headers = answer.headers_mut();
    if let Ok(value) = format!("/fhir/{}", location(changed)).parse() {
        headers.insert(header::LOCATION, value);
    }
    if let Some(Ok(value)) = changed.version.map(|version| format!("W/\"{version}\"").parse()) {
        headers.insert(header::ETAG, value);
    }
    answer
}

/// Where a resource is; with its version, unless this is the repeat of a write and the version has moved on.
fn location(changed: &Changed) -> String {
    match changed.version {
        Some(version) => format!("{}/{}/_history/{version}", changed.resource_type, changed.id),
        None => format!("{}/{}", changed.resource_type, changed.id),
    }
}

fn entry(changed: &Changed) -> Value {
    let mut response = json!({
        "status": if changed.created { "201 Created" } else { "200 OK" },
        "location": location(changed),
    });
    if let Some(version) = changed.version {
        response["etag"] = json!(format!("W/\"{version}\""));
    }
    json!({ "response": response })
}

/// A batch without the resources of its entries, each of which is judged by itself.
fn envelope(batch: &Value) -> Value {
    let mut envelope = batch.clone();
    for entry in envelope["entry"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        entry.remove("resource");
    }
    envelope
}

/// A batch: each entry is a message of its own and has its own outcome.
async fn batch(api: &Api, client: &Known, head: &Parts, bundle: &Value, peer: SocketAddr) -> Answer {
    let mut answers = Vec::new();
    for one in bundle["entry"].as_array().into_iter().flatten() {
        let url = one["request"]["url"].as_str().unwrap_or_default();
        let method = one["request"]["method"].as_str().unwrap_or_default();
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let conditions = conditions(query);
        let path = format!("/fhir/{path}");
        let asked = method.parse().ok().and_then(|method| interaction(&method, &path));
        let answer = match asked {
            Some(
                asked @ (Interaction::Create(_) | Interaction::Update(..) | Interaction::Conditional(_)),
            ) => {
                let mut request = one["request"].as_object().cloned().unwrap_or_default();
                request
                    .retain(|member, _| [IF_MATCH, IF_NONE_MATCH, IF_NONE_EXIST].contains(&member.as_str()));
                request.extend(conditions.map(|conditions| (URL.to_owned(), conditions.into())));
                let body = Bytes::from(one["resource"].to_string());
                let mut head = head.clone();
                head.headers.remove("idempotency-key");
                Box::pin(write(api, client, &head, asked, &request, body, peer)).await
            }
            _ => outcome::answer(
                StatusCode::METHOD_NOT_ALLOWED,
                "not-supported",
                "an entry of a batch is POST [type], PUT [type]/[id] or PUT [type]?identifier=system|value",
            ),
        };
        let status = answer.status();
        let text =
            |name| answer.headers().get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        let mut response = json!({"status": status.to_string()});
        if let Some(location) = text(header::LOCATION) {
            response["location"] = json!(location.trim_start_matches("/fhir/"));
        }
        if let Some(etag) = text(header::ETAG) {
            response["etag"] = json!(etag);
        }
        if !status.is_success() {
            let body = http_body_util::BodyExt::collect(answer.into_body()).await;
            response["outcome"] =
                body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok()).unwrap_or_default();
        }
        answers.push(json!({"response": response}));
    }
    outcome::resource(
        StatusCode::OK,
        &json!({"resourceType": "Bundle", "type": "batch-response", "entry": answers}),
    )
}

/// Makes one write durable and waits for its result; `None` if the client does not want to wait.
async fn one(
    api: &Api,
    client: &Known,
    head: &Parts,
    resource: &Value,
    request: &Map<String, Value>,
    body: Bytes,
    label: String,
) -> Result<Option<Done>, Answer> {
    let asynchronous = head
        .headers
        .get_all("prefer")
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains("respond-async")));
    let told = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = told("idempotency-key");
    // The trace of the client goes on; it is stored with the message and no part of what is mapped.
    let traceparent = told("traceparent");
    let context = match trace::read(traceparent) {
        Some(_) => trace::into_context(&client.context(), traceparent),
        None => client.context(),
    };
    let context = writes::into_context(&context, request);
    let keys = keys(resource, &client.name);
    let message = NewMessage {
        keys: keys.order,
        patient_hashes: keys.patients,
        context,
        ..new_message(client, key, label, body)
    };
    let waiting = api.waiters.register(message.id);
    let stored = match api.ingest.keep(message).await {
        Verdict::Stored(stored) => stored,
        Verdict::Rejected(rejection) => {
            return Err(outcome::answer(StatusCode::UNPROCESSABLE_ENTITY, "processing", &rejection.text));
        }
        Verdict::Unavailable { .. } | Verdict::Unreadable { .. } => {
            return Err(later("the store cannot take it now; try again"));
        }
    };
    if asynchronous {
        return Ok(None);
    }
    if stored.repeat && !api.ingest.asked_alike(stored.message, request).await {
        let text = "this Idempotency-Key came before with the same body and other conditions: a new request has a new key";
        return Err(outcome::answer(StatusCode::UNPROCESSABLE_ENTITY, "conflict", text));
    }
    let done = if stored.repeat {
        tokio::time::timeout(api.http.timeout, api.ingest.result(stored.message)).await.ok().flatten()
    } else {
        tokio::time::timeout(api.http.timeout, api.ingest.told(stored.message, waiting)).await.ok().flatten()
    };
    match done {
        Some(Done { quarantined: Some(why), .. }) => Err(outcome::answer(
            StatusCode::UNPROCESSABLE_ENTITY,
            "processing",
            &format!("kept in quarantine: {why}"),
        )),
        Some(Done { unmet: Some(unmet), .. }) => {
            let [_, other_id] = UNMET;
            let is_other = unmet.code == other_id;
            let status = if is_other { StatusCode::BAD_REQUEST } else { StatusCode::PRECONDITION_FAILED };
            Err(outcome::of_issues(status, if is_other { "invalid" } else { "conflict" }, &[unmet]))
        }
        Some(done) => Ok(Some(done)),
        None => Err(later("durable, but its result did not come in time; it will be applied in its order")),
    }
}

/// 503: the same may be asked again soon.
pub(super) fn later(text: &str) -> Answer {
    let mut answer = outcome::answer(StatusCode::SERVICE_UNAVAILABLE, "transient", text);
    answer.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
    answer
}

/// Why a body is not taken.
pub(super) struct Refusal {
    status: StatusCode,
    /// Of the value set issue-type.
    code: &'static str,
    /// Each with its place; a single one without a place if the body as a whole is at fault.
    issues: Vec<Issue>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, text: impl Into<String>) -> Self {
        Refusal { status, code, issues: vec![Issue::new(Severity::Error, code, "", text)] }
    }

    /// What the client is told.
    pub(super) fn answer(&self) -> Answer {
        outcome::of_issues(self.status, self.code, &self.issues)
    }
}

/// Keeps a refused body as a final row, for the operator, then says why. The client is told even if the row could not be
/// written: it keeps what it sent.
async fn refuse(
    api: &Api,
    client: &Known,
    interaction: &Interaction,
    body: Bytes,
    refusal: Refusal,
) -> Answer {
    let first = refusal.issues.first();
    let refused = Refused {
        answer: format!("HTTP {}", refusal.status.as_u16()),
        code: 0,
        location: first.map_or(String::new(), |issue| issue.path.clone()),
        text: first.map_or(String::new(), |issue| issue.text.clone()),
    };
    let kept = body.slice(..body.len().min(KEPT_MAX));
    let message =
        NewMessage { rejected: Some(refused), ..new_message(client, "", interaction.to_string(), kept) };
    tracing::warn!(message_id = %message.id, status = refusal.status.as_u16(), "request refused");
    if let Verdict::Unavailable { reason } = api.ingest.keep(message).await {
        tracing::error!(error = %reason, "a refused request could not be kept");
    }
    refusal.answer()
}

/// A message for the store, without keys.
fn new_message(client: &Known, key: &str, label: String, bytes: Bytes) -> NewMessage {
    NewMessage {
        id: MessageId(Uuid::now_v7()),
        received_at: store::now(),
        sender: client.name.clone(),
        source: "http".into(),
        format: Format::FhirJson,
        control_id: key.chars().take(199).collect(),
        handed_again: None,
        message_type: label,
        version: "4.0.1".to_owned(),
        bytes,
        keys: Vec::new(),
        patient_hashes: Vec::new(),
        rejected: None,
        context: client.context(),
    }
}

/// Reads and checks a body; answers the resource and what the write is called.
fn read(
    interaction: &Interaction,
    request: &Map<String, Value>,
    body: &[u8],
) -> Result<(Value, String), Refusal> {
    let resource = parse(body)?;
    let kind = resource["resourceType"].as_str().unwrap_or_default();
    let wrong = |text: &str| Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid", text));
    let label = match interaction {
        Interaction::Bundle => match resource["type"].as_str() {
            Some(bundle_type @ ("transaction" | "batch" | "message")) if kind == "Bundle" => {
                format!("Bundle {bundle_type}")
            }
            _ => return wrong("expected a Bundle of type transaction, batch or message"),
        },
        Interaction::Create(expected)
        | Interaction::Update(expected, _)
        | Interaction::Conditional(expected)
            if *expected != kind =>
        {
            return wrong("the resource is of another type than the address says");
        }
        Interaction::Update(_, id) if resource["id"].as_str() != Some(id) => {
            return wrong("the id of the resource is not that of the address");
        }
        Interaction::Update(..) if request.contains_key(URL) => {
            return wrong("an update of one id has no conditions in its address");
        }
        Interaction::Conditional(_) if !request.contains_key(URL) => {
            return wrong(
                "an update names an id, or one identifier: PUT [type]/[id] or PUT [type]?identifier=system|value",
            );
        }
        Interaction::Create(_) | Interaction::Update(..) | Interaction::Conditional(_) => {
            interaction.to_string()
        }
    };
    let is_batch = kind == "Bundle" && resource["type"] == "batch";
    let envelope = is_batch.then(|| envelope(&resource));
    let judged = envelope.as_ref().unwrap_or(&resource);
    let refuse = |code: &'static str, place: String, text: &str| Refusal {
        status: StatusCode::UNPROCESSABLE_ENTITY,
        code,
        issues: vec![Issue::new(Severity::Error, code, place, text)],
    };
    if let Some(place) = subscription_in(judged) {
        let text = "a Subscription is created by itself, with POST /fhir/Subscription: not in a Bundle";
        return Err(refuse("not-supported", place, text));
    }
    if let Some(place) = redacted_in(judged) {
        let text = "something was left out of this resource when it was read (REDACTED): written back it would be lost";
        return Err(refuse("business-rule", place, text));
    }
    let is_update = matches!(interaction, Interaction::Update(..) | Interaction::Conditional(_));
    if !is_batch && let Err(fault) = writes::check(&resource, is_update, request) {
        return Err(Refusal {
            status: StatusCode::BAD_REQUEST,
            code: "invalid",
            issues: vec![Issue::new(Severity::Error, "invalid", fault.place, fault.text)],
        });
    }
    let found = fhir::validate(judged);
    let issues: Vec<_> = found.into_iter().filter(|issue| issue.severity == Severity::Error).collect();
    if !issues.is_empty() {
        return Err(Refusal { status: StatusCode::UNPROCESSABLE_ENTITY, code: "invalid", issues });
    }
    Ok((resource, label))
}

/// Where a Subscription stands: it would be kept and do nothing.
fn subscription_in(resource: &Value) -> Option<String> {
    place_in(resource, |resource| resource["resourceType"] == "Subscription")
}

/// Where a resource stands that was read without what its reader may not know.
fn redacted_in(resource: &Value) -> Option<String> {
    place_in(resource, |resource| {
        let mut labels = resource["meta"]["security"].as_array().into_iter().flatten();
        labels.any(|label| label["code"] == "REDACTED")
    })
}

/// The place of a resource, or of the first of a Bundle, that is such.
fn place_in(resource: &Value, is_such: impl Fn(&Value) -> bool) -> Option<String> {
    if is_such(resource) {
        return Some(resource["resourceType"].as_str().unwrap_or_default().to_owned());
    }
    let mut entries = resource["entry"].as_array().into_iter().flatten();
    entries.position(|entry| is_such(&entry["resource"])).map(|at| format!("Bundle.entry[{at}].resource"))
}

/// Reads a resource, of whatever type.
pub(super) fn parse(body: &[u8]) -> Result<Value, Refusal> {
    if depth(body) > DEPTH_MAX {
        let text = format!("nested more than {DEPTH_MAX} levels deep");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "too-costly", text));
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        let text = format!("not JSON: line {}, column {}", error.line(), error.column());
        Refusal::new(StatusCode::BAD_REQUEST, "structure", text)
    })?;
    if value["resourceType"].as_str().is_none() {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "structure", "resourceType is missing"));
    }
    if value["entry"].as_array().is_some_and(|entries| entries.len() > ENTRIES_MAX) {
        let text = format!("a Bundle has at most {ENTRIES_MAX} entries");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", text));
    }
    Ok(value)
}

/// How deep JSON text is nested, by its brackets outside of strings.
fn depth(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Every patient that a resource or Bundle names, by identifier or by reference.
fn keys(resource: &Value, sender: &str) -> Keys {
    let mut keys = Keys { order: Vec::new(), patients: Vec::new() };
    let entries = resource["entry"].as_array().into_iter().flatten().map(|entry| &entry["resource"]);
    for one in entries.chain([resource]) {
        if one["resourceType"] == "Patient" {
            for identifier in one["identifier"].as_array().into_iter().flatten() {
                let value = identifier["value"].as_str().unwrap_or_default();
                keys.add(identifier["system"].as_str().unwrap_or(sender), value);
            }
        }
        for element in ["subject", "patient", "beneficiary"] {
            let reference = one[element]["reference"].as_str().unwrap_or_default();
            if let Some(id) = reference.strip_prefix("Patient/") {
                keys.add("Patient", id);
            }
        }
    }
    keys.or_sender(sender)
}

/// What it can do with subscriptions: they are shown to their owners. The topics are told as the backport has it for R4.
fn subscription(parameters: Vec<Value>) -> Value {
    let topics: Vec<Value> = topics::names()
        .iter()
        .map(|name| {
            json!({
                "url": format!("{PROFILES}capabilitystatement-subscriptiontopic-canonical"),
                "valueCanonical": format!("{TOPIC}{name}"),
            })
        })
        .collect();
    let operation = |name: &str| {
        json!({
            "name": format!("${name}"),
            "definition": format!(
                "http://hl7.org/fhir/uv/subscriptions-backport/OperationDefinition/backport-subscription-{name}"
            ),
        })
    };
    let mut operations: Vec<Value> = ["status", "events", "get-ws-binding-token"].map(operation).to_vec();
    operations.push(
        json!({"name": "$get-amqp-credentials", "definition": "urn:pons:operation:get-amqp-credentials"}),
    );
    let interactions =
        ["create", "update", "delete", "read", "search-type"].map(|code| json!({"code": code}));
    json!({
        "extension": topics,
        "type": "Subscription",
        "supportedProfile": [format!("{PROFILES}backport-subscription")],
        "interaction": interactions,
        "searchParam": parameters,
        "operation": operations,
    })
}

/// What this server can do, and nothing else. `base` is where it is reached, without which nobody can subscribe.
pub fn metadata(base: Option<&str>) -> Answer {
    let parameters = |of: &str| -> Vec<Value> {
        let searched =
            search::parameters(of).filter(|one| !matches!(one.kind, Kind::Composite | Kind::Special));
        searched.map(|one| json!({"name": one.code, "type": one.kind.name()})).collect()
    };
    let interactions = ["create", "update", "read", "vread", "history-instance", "search-type"]
        .map(|code| json!({"code": code}));
    let resources: Vec<Value> = fhir::r4()
        .types()
        .filter(|one| one.kind == fhir::Kind::Resource)
        .filter(|one| !matches!(one.name, "Bundle" | "Parameters" | "OperationOutcome"))
        .map(|one| {
            if one.name == "Subscription" {
                return subscription(parameters(one.name));
            }
            let mut declared = json!({
                "type": one.name, "interaction": interactions, "versioning": "versioned-update", "readHistory": true,
                "updateCreate": true, "conditionalCreate": true, "conditionalUpdate": true, "searchParam": parameters(one.name),
            });
            if one.name == "Patient" {
                let definition = "http://hl7.org/fhir/OperationDefinition/Patient-everything";
                declared["operation"] = json!([{"name": "everything", "definition": definition}]);
            }
            declared
        })
        .collect();
    let mut statement = json!({
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-11-20",
        "kind": "instance",
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json"],
        "software": {"name": "Pons", "version": env!("CARGO_PKG_VERSION")},
        "implementation": {"description": "Pons, a health information exchange gateway: takes writes, sends them on to subscribers, and shows what is known now"},
        "rest": [{
            "mode": "server",
            "documentation": "Who may read which types stands in the configuration. A search names whom it is about: _id; patient or \
                              subject, and patient.identifier as system|value, where the type says whose it is; of a Patient its identifier. \
                              A conditional create or update names one identifier=system|value; a history takes _count and _since.",
            "resource": resources,
            "interaction": [{"code": "transaction"}, {"code": "batch"}],
        }],
    });
    if let Some(base) = base {
        let url = "http://hl7.org/fhir/StructureDefinition/capabilitystatement-websocket";
        statement["rest"][0]["extension"] = json!([{"url": url, "valueUri": websocket::address(base)}]);
    }
    outcome::resource(StatusCode::OK, &statement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interaction_is_read_from_method_and_path() {
        let check = |method, path, expected| assert_eq!(interaction(&method, path), expected, "{path}");
        check(Method::POST, "/fhir", Some(Interaction::Bundle));
        check(Method::POST, "/fhir/", Some(Interaction::Bundle));
        check(Method::POST, "/fhir/Patient", Some(Interaction::Create("Patient".to_owned())));
        check(
            Method::PUT,
            "/fhir/Patient/1",
            Some(Interaction::Update("Patient".to_owned(), "1".to_owned())),
        );
        check(Method::GET, "/fhir/Patient/1", None);
        check(Method::DELETE, "/fhir/Patient/1", None);
        check(Method::PUT, "/fhir/Patient", Some(Interaction::Conditional("Patient".to_owned())));
        check(Method::PUT, "/fhir/Patient/1/_history", None);
    }

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        assert_eq!(depth(br#"{"a":[{"b":"[[[[\"[["}]}"#), 3);
        assert_eq!(depth(&[b'['; 1000]), 1000);
        assert!(parse(&[b'['; 1000]).is_err());
    }

    #[test]
    fn the_patients_of_a_bundle_are_its_keys() {
        let bundle = json!({"resourceType": "Bundle", "entry": [
            {"resource": {"resourceType": "Patient", "identifier": [{"system": "urn:oid:1.2", "value": "77"}, {"value": "88"}]}},
            {"resource": {"resourceType": "Observation", "subject": {"reference": "Patient/abc"}}},
        ]});
        let mut expected = Keys { order: Vec::new(), patients: Vec::new() };
        for (scope, value) in [("urn:oid:1.2", "77"), ("portal", "88"), ("Patient", "abc")] {
            expected.add(scope, value);
        }
        assert_eq!(keys(&bundle, "portal"), expected);
        assert_eq!(keys(&json!({"resourceType": "Organization"}), "portal").order.len(), 1);
    }
}
