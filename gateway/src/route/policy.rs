//! The one place that decides who may see what: asked when routing and again when delivering.
//!
//! Today: a subscription gets what it lists, from the senders that it lists; everything else is denied, and data
//! labelled very restricted or restricted is withheld. Sharing agreements and consent join here.

use crate::config::Subscription;
use serde_json::Value;

/// What policy says about one event for one subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing stands in the way.
    Allow,
    /// Withheld, and why: names the rule, never a value.
    Suppress(String),
}

/// Whether a subscription listens to this sender at all. What is not listed is denied without a trace of its own:
/// the subscription never asked for it.
pub fn listens(subscription: &Subscription, sender: &str) -> bool {
    subscription.senders.iter().any(|listed| listed == "*" || listed == sender)
}

/// Decides when an event is routed. `bundle` is what would be sent.
pub fn at_routing(bundle: &[u8]) -> Decision {
    labels(bundle)
}

/// Decides once more when it is about to be delivered, as consent or labels may have changed since.
pub fn at_delivery(bundle: &[u8]) -> Decision {
    labels(bundle)
}

/// Decides when a client reads a resource.
pub fn at_reading(resource: &[u8]) -> Decision {
    labels(resource)
}

/// Whether what was said under these labels, the members of a `meta` in JSON, may go with what was not.
pub fn is_open(labels: &str) -> bool {
    serde_json::from_str::<Value>(labels).is_ok_and(|meta| closed(&meta).is_none())
}

/// Withholds a resource, or a Bundle that holds one, labelled `R` or `V` (v3-Confidentiality).
fn labels(bundle: &[u8]) -> Decision {
    // Nearly no message carries labels: look for the word before parsing.
    if memchr::memmem::find(bundle, b"\"security\"").is_none() {
        return Decision::Allow;
    }
    let Ok(bundle) = serde_json::from_slice::<Value>(bundle) else {
        return Decision::Suppress("labels cannot be read".to_owned());
    };
    let entries = bundle["entry"].as_array().into_iter().flatten().map(|entry| &entry["resource"]);
    for resource in entries.chain([&bundle]) {
        if let Some(code) = closed(&resource["meta"]) {
            let kind = resource["resourceType"].as_str().unwrap_or("resource");
            return Decision::Suppress(format!("{kind} is labelled {code} (v3-Confidentiality)"));
        }
    }
    Decision::Allow
}

/// The label of a `meta` that withholds.
fn closed(meta: &Value) -> Option<&str> {
    let labels = meta["security"].as_array().into_iter().flatten();
    let mut ours = labels.filter(|label| label["system"] == CONFIDENTIALITY);
    ours.find_map(|label| label["code"].as_str().filter(|code| matches!(*code, "R" | "V")))
}

const CONFIDENTIALITY: &str = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(security: &str, expected: Decision) {
        let bundle = format!(
            r#"{{"resourceType":"Bundle","entry":[{{"resource":{{"resourceType":"Observation","meta":{{"security":[{security}]}}}}}}]}}"#
        );
        assert_eq!(at_routing(bundle.as_bytes()), expected);
        assert_eq!(at_delivery(bundle.as_bytes()), expected);
    }

    #[test]
    fn restricted_data_is_withheld_and_ordinary_data_is_not() {
        let label = |code| format!(r#"{{"system":"{CONFIDENTIALITY}","code":"{code}"}}"#);
        check(&label("N"), Decision::Allow);
        check(&label("R"), Decision::Suppress("Observation is labelled R (v3-Confidentiality)".to_owned()));
        check(&label("V"), Decision::Suppress("Observation is labelled V (v3-Confidentiality)".to_owned()));
        check(r#"{"system":"urn:other","code":"R"}"#, Decision::Allow);
    }

    #[test]
    fn what_was_said_under_a_label_that_withholds_goes_with_nothing_else() {
        let label = |code| format!(r#"{{"security":[{{"system":"{CONFIDENTIALITY}","code":"{code}"}}]}}"#);
        let open = ["N", "R", "V"].map(|code| is_open(&label(code)));
        assert_eq!(open, [true, false, false]);
        assert!(is_open(r#"{"tag":[{"code":"HTEST"}]}"#) && !is_open("{"));
    }

    #[test]
    fn what_cannot_be_read_is_withheld() {
        assert!(matches!(at_routing(br#"{"security""#), Decision::Suppress(_)));
        assert_eq!(at_routing(b"{}"), Decision::Allow);
    }
}
