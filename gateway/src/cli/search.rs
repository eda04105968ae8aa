//! `pons search`: finds messages by patient, control id, type, state, sender and time.

use super::{ConfigArgument, Exit, ListFormat, Outcome, beside, block_on, columns, complain, print};
use crate::ingest::keys::patient_hash;
use crate::store::{DeliveryState, Query, Summary};
use clap::Args;
use serde_json::json;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(flatten)]
    criteria: Criteria,
    /// How to print what was found
    #[arg(long, value_enum, default_value = "table")]
    format: ListFormat,
}

/// What to look for; shared with `pons replay`.
#[derive(Args, Debug, Clone)]
pub(super) struct Criteria {
    /// An identifier of the patient, as the sender writes it
    #[arg(long, value_name = "P")]
    patient: Option<String>,
    /// MSH-10
    #[arg(long, value_name = "C")]
    control_id: Option<String>,
    /// ADT or ADT^A01
    #[arg(long = "type", value_name = "T")]
    message_type: Option<String>,
    /// received, routed, quarantined, rejected, or the state of a delivery, such as parked
    #[arg(long, value_name = "S")]
    state: Option<String>,
    /// The sender's name
    #[arg(long, value_name = "X")]
    sender: Option<String>,
    /// Not received before: 2026-03-01T00:00:00Z, or 2h, 3d back from now
    #[arg(long, value_name = "T", value_parser = since)]
    since: Option<jiff::Timestamp>,
    /// At most so many, newest first
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

/// The words that `--state` knows.
const STATES: &[&str] = &[
    "received",
    "routed",
    "quarantined",
    "rejected",
    "pending",
    "published",
    "retry_wait",
    "delivered",
    "suppressed",
    "parked",
    "skipped",
];

impl Criteria {
    /// Whether nothing at all was asked for.
    pub(super) fn is_empty(&self) -> bool {
        let texts = [&self.patient, &self.control_id, &self.message_type, &self.state, &self.sender];
        texts.iter().all(|text| text.is_none()) && self.since.is_none()
    }

    pub(super) fn query(&self) -> Result<Query, super::Failure> {
        if let Some(state) = self.state.as_deref().filter(|state| !STATES.contains(state)) {
            let hint = match schemas::yaml::nearest(state, STATES.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known: {}", STATES.join(", ")),
            };
            return Err(super::Failure::new(Exit::Usage, format!("--state: there is no such state; {hint}")));
        }
        Ok(Query {
            patient_hashes: self.patient.iter().map(|value| patient_hash(value)).collect(),
            patient: self.patient.clone(),
            control_id: self.control_id.clone(),
            message_type: self.message_type.clone(),
            state: self.state.clone(),
            sender: self.sender.clone(),
            since: self.since,
            limit: self.limit,
        })
    }
}

fn since(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(timestamp) = text.parse() {
        return Ok(timestamp);
    }
    let (count, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("expected a time such as 2026-03-01T00:00:00Z, or 30m, 2h, 3d".to_owned()),
    };
    let count: i64 = count.parse().map_err(|_| "expected a whole number before the unit".to_owned())?;
    let back = count.checked_mul(seconds).ok_or("too long ago")?;
    jiff::Timestamp::now()
        .checked_sub(jiff::SignedDuration::from_secs(back))
        .map_err(|_| "too long ago".to_owned())
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    let query = arguments.criteria.query()?;
    let found = block_on(async { Ok(beside(&arguments.config).await?.search(&query).await?) })?;
    match arguments.format {
        ListFormat::Json => {
            for one in &found {
                print(&as_json(one).to_string())?;
            }
        }
        ListFormat::Table => table(&found)?,
    }
    if found.len() == query.limit {
        complain(&format!("only the newest {} are shown; --limit shows more", query.limit));
    }
    Ok(Exit::Ok)
}

/// Prints messages in columns.
pub(crate) fn table(found: &[Summary]) -> Result<(), super::Failure> {
    let header = ["ID", "RECEIVED", "SENDER", "TYPE", "CONTROL ID", "STATE", "DELIVERIES"];
    let rows = found.iter().map(|one| {
        [
            one.id.to_string(),
            format!("{:.0}", one.received_at),
            one.sender.clone(),
            one.message_type.clone(),
            one.control_id.clone(),
            one.state.clone(),
            deliveries(one),
        ]
    });
    columns(header, rows)
}

fn deliveries(summary: &Summary) -> String {
    let parts: Vec<String> =
        summary.deliveries.iter().map(|(state, count)| format!("{count} {}", word(*state))).collect();
    parts.join(", ")
}

fn as_json(one: &Summary) -> serde_json::Value {
    let deliveries: serde_json::Map<String, serde_json::Value> =
        one.deliveries.iter().map(|(state, count)| (word(*state).to_owned(), json!(count))).collect();
    json!({
        "id": one.id.to_string(), "sequence": one.seq.0, "received": one.received_at.to_string(), "sender": one.sender,
        "type": one.message_type, "control_id": one.control_id, "state": one.state, "deliveries": deliveries,
    })
}

/// The state of a delivery in a word, as `--state` takes it.
pub(super) fn word(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Pending => "pending",
        DeliveryState::Published => "published",
        DeliveryState::RetryWait => "retry_wait",
        DeliveryState::Delivered => "delivered",
        DeliveryState::Suppressed => "suppressed",
        DeliveryState::Parked => "parked",
        DeliveryState::Skipped => "skipped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_timestamp_or_a_span_back_from_now() {
        assert_eq!(
            since("2026-03-01T00:00:00Z").map(|t| t.to_string()),
            Ok("2026-03-01T00:00:00Z".to_owned())
        );
        let back = jiff::Timestamp::now().duration_since(since("2h").expect("valid")).as_secs();
        assert!((7_199..=7_201).contains(&back));
        for bad in ["", "h", "2w", "yesterday", "99999999999999999999d", "9223372036854775807d"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }
}
