//! OperationOutcomes: what a FHIR client is told when something is refused. Places and sentences, never a value.

use super::Answer;
use crate::store::StoreError;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, header};
use schemas::issue::{Issue, Severity};
use serde::Serialize;
use serde_json::{Value, json};

/// The media type of FHIR in JSON.
pub const FHIR_JSON: &str = "application/fhir+json; charset=utf-8";

/// An answer with a single issue. `code` is of the value set issue-type.
pub fn answer(status: StatusCode, code: &str, text: &str) -> Answer {
    resource(
        status,
        &json!({
            "resourceType": "OperationOutcome",
            "issue": [{"severity": "error", "code": code, "diagnostics": text}],
        }),
    )
}

/// The answer when the store did not do something: try again.
pub fn away(error: StoreError) -> Answer {
    tracing::warn!(error = %crate::chain(&error), "the store did not answer a request");
    answer(StatusCode::SERVICE_UNAVAILABLE, "transient", "the store is away; try again")
}

/// An answer with each issue and its place.
pub fn of_issues(status: StatusCode, code: &str, issues: &[Issue]) -> Answer {
    let issues: Vec<Value> = issues
        .iter()
        .map(|issue| {
            let severity = match issue.severity {
                Severity::Information => "information",
                Severity::Warning => "warning",
                Severity::Error => "error",
            };
            let mut one = json!({"severity": severity, "code": code, "diagnostics": issue.text});
            if !issue.path.is_empty() {
                one["expression"] = json!([issue.path]);
            }
            one
        })
        .collect();
    resource(status, &json!({"resourceType": "OperationOutcome", "issue": issues}))
}

/// An answer that carries a resource.
pub fn resource(status: StatusCode, resource: &impl Serialize) -> Answer {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, FHIR_JSON)
        .header(header::CACHE_CONTROL, "no-store")
        .body(Full::new(Bytes::from(serde_json::to_vec(resource).expect("memory takes all"))))
        .expect("these headers are valid")
}
