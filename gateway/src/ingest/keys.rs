//! The order keys of a message: every patient that it names, so that what is about one patient stays in order.

use schemas::hl7v2::Message;
use schemas::message::OrderKey;

/// The most keys of one message; a message that names more patients than this is ordered by these alone.
const KEYS_MAX: usize = 64;

/// What a message is ordered and found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The order keys, the home first.
    pub order: Vec<OrderKey>,
    /// Hashes of the bare identifier values, for `pons search --patient`.
    pub patients: Vec<OrderKey>,
}

/// The fields that name patients: PID-2 to PID-4 and, for merges, MRG-1 and MRG-4 (prior ids).
const PATIENT_FIELDS: &[(&str, &[u16])] = &[("PID", &[3, 2, 4]), ("MRG", &[1, 4])];

/// Reads the keys of an HL7 v2 message. An identifier without an assigner belongs to the sender. A message that
/// names no patient is ordered with the others of its sender.
pub fn of_hl7v2(message: &Message<'_>, sender: &str) -> Keys {
    let mut keys = Keys { order: Vec::new(), patients: Vec::new() };
    for (index, segment) in message.segments().iter().enumerate() {
        let Some((_, fields)) = PATIENT_FIELDS.iter().find(|(name, _)| segment.name().as_str() == *name)
        else {
            continue;
        };
        for field in *fields {
            for repetition in message.field(index, *field).repetitions(message) {
                let Some(value) = repetition.component(message, 1).text(message) else { continue };
                let assigner = repetition.component(message, 4).text(message);
                let scope = match assigner.as_deref() {
                    Some(assigner) if !assigner.trim().is_empty() => assigner.trim(),
                    _ => sender,
                };
                keys.add(scope, value.trim());
            }
        }
    }
    keys.or_sender(sender)
}

impl Keys {
    /// Adds an identifier of a patient.
    pub fn add(&mut self, scope: &str, value: &str) {
        if value.is_empty() || value == "\"\"" || self.order.len() >= KEYS_MAX {
            return;
        }
        let (key, patient) = (OrderKey::of(&["patient", scope, value]), patient_hash(value));
        if !self.order.contains(&key) {
            self.order.push(key);
        }
        if !self.patients.contains(&patient) {
            self.patients.push(patient);
        }
    }

    /// Adds a device: what is from one stays in order.
    pub fn add_device(&mut self, scope: &str, device: &str) {
        let key = OrderKey::of(&["device", scope, device]);
        if self.order.len() < KEYS_MAX && !self.order.contains(&key) {
            self.order.push(key);
        }
    }

    /// The same, ordered by its sender if neither a patient nor a device is named.
    #[must_use]
    pub fn or_sender(mut self, sender: &str) -> Self {
        if self.order.is_empty() {
            self.order.push(OrderKey::of(&["sender", sender]));
        }
        self
    }
}

/// The hash by which `pons search --patient VALUE` finds a message.
pub fn patient_hash(value: &str) -> OrderKey {
    OrderKey::of(&["identifier", value.trim()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::hl7v2::Limits;

    fn keys(text: &str) -> Keys {
        of_hl7v2(&Message::parse(text, &Limits::default()).expect("readable"), "genhosp")
    }

    const MSH: &str = "MSH|^~\\&|ADT1|GENHOSP|||20260301||ADT^A40|1|P|2.5\r";

    #[test]
    fn every_patient_that_a_message_names_is_a_key_the_prior_one_of_a_merge_too() {
        let keys = keys(&format!("{MSH}PID|1||1001^^^GENHOSP^MR~77^^^REGION^PI\rMRG|999^^^GENHOSP^MR\r"));
        let key = |scope, value| OrderKey::of(&["patient", scope, value]);
        assert_eq!(keys.order, [key("GENHOSP", "1001"), key("REGION", "77"), key("GENHOSP", "999")]);
        assert_eq!(keys.patients, [patient_hash("1001"), patient_hash("77"), patient_hash("999")]);
    }

    #[test]
    fn an_identifier_without_assigner_belongs_to_its_sender() {
        assert_eq!(
            keys(&format!("{MSH}PID|1||1001\r")).order,
            [OrderKey::of(&["patient", "genhosp", "1001"])]
        );
    }

    #[test]
    fn other_separators_make_the_same_key() {
        let other = "MSH$*~\\&$ADT1$GENHOSP$$$20260301$$ADT*A08$1$P$2.5\rPID$1$$1001***GENHOSP*MR\r";
        assert_eq!(keys(other), keys(&format!("{MSH}PID|1||1001^^^GENHOSP^MR\r")));
    }

    #[test]
    fn without_a_patient_the_sender_orders() {
        let by_sender = [OrderKey::of(&["sender", "genhosp"])];
        assert_eq!(keys(MSH).order, by_sender);
        assert_eq!(keys(&format!("{MSH}PID|1||\"\"\r")).order, by_sender, "a null identifier names nobody");
        assert!(keys(MSH).patients.is_empty());
    }

    #[test]
    fn a_flood_of_identifiers_is_bounded() {
        let many: Vec<String> = (0..5000).map(|n| format!("{n}^^^GENHOSP")).collect();
        assert_eq!(keys(&format!("{MSH}PID|1||{}\r", many.join("~"))).order.len(), KEYS_MAX);
    }
}
