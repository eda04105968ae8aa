//! Events written as HL7 v2, for subscribers that take nothing else, whatever the source was.
//!
//! Invariants: by the same mappings, the message of a delivery is the same over every attempt, so that its control id means it; a
//! message is never sent with less than its mapping wants of it.

use crate::config::Writes;
use crate::normalize::Mapper;
use adapters::{DeliverError, Destination, Outgoing, Receipt};
use async_trait::async_trait;
use jiff::Timestamp;
use mappings::{Context, Given};
use schemas::hl7v2::time::Zone;
use schemas::records;
use serde::Deserialize;
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// A destination to which events go as messages of HL7 v2.
pub struct Written {
    to: Arc<dyn Destination>,
    mapper: Arc<Mapper>,
    writes: Writes,
}

impl Written {
    /// In front of a destination that takes messages.
    pub fn new(to: Arc<dyn Destination>, mapper: Arc<Mapper>, writes: Writes) -> Self {
        Written { to, mapper, writes }
    }

    /// The message of an event, and how many values of it have no place there.
    fn message(&self, outgoing: &Outgoing) -> Result<(String, usize), DeliverError> {
        let never = |why: &str| DeliverError::Never { answer: format!("not written as HL7 v2: {why}") };
        let head: Head =
            serde_json::from_slice(&outgoing.event).map_err(|_| never("the event cannot be read"))?;
        let time: Timestamp = head.time.parse().map_err(|_| never("the event does not say when it was"))?;
        let topic = head.kind.strip_prefix("pons.").unwrap_or(&head.kind);
        let catalog = self.mapper.catalog();
        let program = self
            .writes
            .mapping_for(topic)
            .and_then(|name| catalog.program(&outgoing.subscription, name))
            .filter(|program| program.writes_messages());
        // Mappings may be exchanged while deliveries wait: that is put right by whoever exchanged them, and nothing is given up for it.
        let Some(program) = program else {
            let answer = "not written as HL7 v2: the mapping for it is not there any more".to_owned();
            return Err(DeliverError::Again { answer, after: None, away: true });
        };
        let bundle = std::str::from_utf8(&outgoing.bundle).map_err(|_| never("the Bundle is no UTF-8"))?;
        let records = program.read(bundle, &records::Limits::default());
        let records = records.ok_or_else(|| never("its mapping reads no FHIR"))?;
        let records = records.map_err(|error| never(&error.to_string()))?;
        let context = Context {
            message_id: outgoing.delivery.0,
            received_at: time,
            seq: 0,
            sender: Arc::clone(&outgoing.subscription),
            authority: Arc::clone(&outgoing.subscription),
            zone: Zone::UTC,
            namespace: Uuid::nil(),
            systems: &self.writes.systems,
            options: &[],
            wire: &[],
            codes: None,
            parties: self.writes.parties.clone(),
        };
        let written = program.write(Given::Records(&records, bundle), &context);
        let written = written.ok_or_else(|| never("its mapping writes no messages"))?;
        let message = written.map_err(|quarantined| never(&quarantined.reason))?;
        let left = message.issues.iter().filter(|issue| issue.code == "unmapped-field").count();
        Ok((message.text, left))
    }
}

/// What is read of an event beside its Bundle.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "type")]
    kind: String,
    time: String,
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").field("to", &self.to).field("writes", &self.writes).finish_non_exhaustive()
    }
}

#[async_trait]
impl Destination for Written {
    async fn greet(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        self.to.greet(outgoing).await
    }

    async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        let (text, left) = self.message(outgoing)?;
        let receipt = self.to.deliver(&Outgoing { original: text.into(), ..outgoing.clone() }).await?;
        Ok(match left {
            0 => receipt,
            _ => {
                Receipt { answer: format!("{}; {left} values have no place in the message", receipt.answer) }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::senders::Senders;
    use bytes::Bytes;
    use mappings::{Catalog, Parties};
    use schemas::hl7v2::Limits;
    use schemas::message::DeliveryId;
    use std::sync::Mutex;

    /// Takes everything.
    #[derive(Debug, Default)]
    struct Taker(Mutex<Vec<Bytes>>);

    #[async_trait]
    impl Destination for Taker {
        async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
            self.0.lock().expect("no test panics with it").push(outgoing.original.clone());
            Ok(Receipt { answer: "MSA-1 AA".to_owned() })
        }
    }

    fn writes(topic: Option<&str>, mapping: &str) -> Writes {
        Writes {
            mappings: vec![(topic.map(str::to_owned), mapping.to_owned())],
            systems: vec![("LAB".to_owned(), "urn:oid:1.2.3".to_owned())],
            parties: Parties { receiving_application: Some("LIS".to_owned()), ..Parties::default() },
        }
    }

    async fn deliver(
        writes: Writes,
        topic: &str,
        bundle: &str,
    ) -> (Result<Receipt, DeliverError>, Vec<Bytes>) {
        let catalog = Arc::new(Catalog::builtin());
        let mapper =
            Mapper::new(catalog, Uuid::nil(), Senders::new(Vec::new(), Vec::new()), Limits::default());
        let taker = Arc::new(Taker::default());
        let written = Written::new(taker.clone(), Arc::new(mapper), writes);
        let event = format!(r#"{{"type":"pons.{topic}","time":"2026-03-01T08:30:00Z","data":{bundle}}}"#);
        let outgoing = Outgoing {
            delivery: DeliveryId(Uuid::from_u128(7 << 100)),
            subscription: "lis".into(),
            attempt: 1,
            bundle: Bytes::copy_from_slice(bundle.as_bytes()),
            event: event.into(),
            passes: None,
            original: Bytes::new(),
            traceparent: None,
        };
        let result = written.deliver(&outgoing).await;
        let again = written.deliver(&outgoing).await;
        assert_eq!(result, again);
        let sent = std::mem::take(&mut *taker.0.lock().expect("no test panics with it"));
        assert!(sent.windows(2).all(|two| two[0] == two[1]), "every attempt sends the same");
        (result, sent)
    }

    const RESULT: &str = r#"{"resourceType":"Bundle","entry":[
        {"resource":{"resourceType":"Patient","identifier":[{"system":"urn:oid:1.2.3","value":"12345"}],"photo":[{"url":"http://test.example"}]}},
        {"resource":{"resourceType":"Observation","status":"final","code":{"text":"x"},"valueInteger":5}}]}"#;

    #[tokio::test]
    async fn an_event_goes_as_the_message_that_its_mapping_writes_and_what_is_left_is_told() {
        let (result, sent) = deliver(writes(None, "write_oru_r01"), "result-final", RESULT).await;
        let receipt = result.expect("it is taken");
        assert_eq!(receipt.answer, "MSA-1 AA; 1 values have no place in the message");
        let text = String::from_utf8(sent[0].to_vec()).expect("text");
        let lines: Vec<&str> = text.split('\r').collect();
        assert!(
            lines[0].starts_with("MSH|^~\\&|PONS||LIS||20260301083000+0000||ORU^R01^ORU_R01|"),
            "{}",
            lines[0]
        );
        assert_eq!(lines[1], "PID|1||12345^^^LAB&1.2.3&ISO");
        assert!(lines[3].starts_with("OBX|1|NM|^x||5|"), "{}", lines[3]);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_given_up_and_what_is_wrongly_configured_is_not() {
        let (result, sent) = deliver(writes(None, "write_oml_o21"), "order-placed", RESULT).await;
        let answer = "not written as HL7 v2: nothing was ordered".to_owned();
        assert_eq!((result, sent.len()), (Err(DeliverError::Never { answer }), 0));
        for writes in [writes(None, "write_nothing"), writes(Some("encounter-start"), "write_adt_a01")] {
            let (result, sent) = deliver(writes, "result-final", RESULT).await;
            assert!(matches!(result, Err(DeliverError::Again { away: true, .. })), "{result:?}");
            assert!(sent.is_empty());
        }
    }
}
