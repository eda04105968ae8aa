//! Written back: what a message says is in the FHIR that is made of it, and in the message that is written of that.

use mappings::{Catalog, Context, Given, map_alone};
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message, grammar};
use serde_json::Value;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Which mapping writes the message of an event.
const WRITTEN: [(&str, &str); 8] = [
    ("ADT_A01", "write_adt_a01"),
    ("ADT_A03", "write_adt_a03"),
    ("ADT_A04", "write_adt_a04"),
    ("ADT_A08", "write_adt_a08"),
    ("ADT_A40", "write_adt_a40"),
    ("ORU_R01", "write_oru_r01"),
    ("OML_O21", "write_oml_o21"),
    ("ORM_O01", "write_orm_o01"),
];

/// What does not come back, and why.
const LOST: [(&str, &str); 13] = [
    ("identifier: \"FGRP1\"", "the filler's number of a group, for which ORC-4 has no place before v2.8.2"),
    ("identifier: \"ALT", "an alternate number of an order, which ORC has since v2.8"),
    ("\"TEST5000\"", "a mother, whose prior results are another message"),
    ("[\"MOTHER\"]", "the same"),
    ("[\"2345-7\",\"final\",[88]]", "a prior result"),
    ("OML_O21 Encounter", "a prior visit"),
    ("[\"48767-8\"", "a comment on the patient, for which an order has no place"),
    ("O21 Observation result: [\"75320-2\"", "what is known of the patient, for which an order has no place"),
    ("ORM_O01 Observation result: [\"75320-2\"", "the same"),
    ("[\"VOL\"", "a result about a specimen, which an order does not hold"),
    (
        "[\"E\",\"unknown\",[5]]",
        "of one result nobody knows the state, and the report says that all are final",
    ),
    ("[null,\"final\",[true]]", "HL7 v2 has no truth values: it comes back as the code Y"),
    ("no identifier says which one it is", "a patient known by the driving licence alone, which is no PID-3"),
];

/// Values whose form is another one afterwards, though they say the same: waveforms, and ranges and ratios with their units.
const RESHAPED: [&str; 4] = ["[\"NRA\"", "[\"C\",\"final\",[{", "[\"Q\",\"final\",[{", "[\"R\",\"final\",[{"];

fn context() -> Context<'static> {
    Context {
        message_id: Uuid::from_u128(7),
        received_at: jiff::Timestamp::UNIX_EPOCH,
        seq: 1,
        sender: "test".into(),
        authority: "test".into(),
        zone: Zone::UTC,
        namespace: Uuid::from_u128(1),
        systems: &[],
        options: &[],
        wire: &[],
        codes: None,
        parties: mappings::Parties::default(),
    }
}

/// What is the same before and after, as words: who the patient is, how the visit stands, what the results are.
fn said(bundle: &Value) -> BTreeSet<String> {
    let mut said = BTreeSet::new();
    let entries = bundle["entry"].as_array().into_iter().flatten();
    for resource in entries.map(|entry| &entry["resource"]) {
        let kind = resource["resourceType"].as_str().unwrap_or_default();
        let mut say = |what: &str, value: &Value| {
            if !value.is_null() {
                said.insert(format!("{kind} {what}: {value}"));
            }
        };
        let items = |name: &str| resource[name].as_array().cloned().unwrap_or_default();
        match kind {
            "Patient" => {
                say("gender", &resource["gender"]);
                say("birthDate", &resource["birthDate"]);
                for identifier in items("identifier") {
                    say("identifier", &identifier["value"]);
                }
                for name in items("name") {
                    say("family", &name["family"]);
                    say("given", &name["given"]);
                }
                for address in items("address") {
                    for part in ["city", "postalCode", "country"] {
                        say(part, &address[part]);
                    }
                }
                for telecom in items("telecom") {
                    say("telecom", &telecom["value"]);
                }
            }
            "Encounter" => {
                say("class", &resource["class"]["code"]);
                say("period", &Value::from(resource["period"].to_string().replace("+00:00", "Z")));
                for identifier in items("identifier") {
                    say("identifier", &identifier["value"]);
                }
            }
            "Observation" => {
                let code = resource["code"]["coding"][0]["code"].clone();
                let values = resource.as_object().into_iter().flatten();
                let value =
                    values.filter(|(name, _)| name.starts_with("value")).map(|(_, value)| match value {
                        Value::Object(_) if value.get("coding").is_some() => {
                            value["coding"][0]["code"].clone()
                        }
                        Value::Object(_) => value.get("value").unwrap_or(value).clone(),
                        plain => plain.clone(),
                    });
                say("result", &serde_json::json!([code, resource["status"], value.collect::<Vec<_>>()]));
            }
            "ServiceRequest" => {
                for identifier in items("identifier") {
                    say("identifier", &identifier["value"]);
                }
                say("code", &resource["code"]["coding"][0]["code"]);
            }
            _ => {}
        }
    }
    said
}

#[test]
fn what_is_written_back_says_what_the_message_said() {
    let catalog = Catalog::builtin();
    let mut compared = 0;
    let mut lost: Vec<String> = Vec::new();
    for text in catalog.test_messages() {
        let Ok(message) = Message::parse(text, &Limits::default()) else { continue };
        let header = message.header();
        let event = [header.message_code(), header.trigger()].map(Option::unwrap_or_default).join("_");
        let Some((_, mapping)) = WRITTEN.iter().find(|(known, _)| *known == event) else { continue };
        let Ok(before) = map_alone(&catalog, &message, &context()) else { continue };
        let program = catalog.program("test", mapping).expect("it is shipped");
        let records =
            program.read(&before.bundle, &Default::default()).expect("it takes FHIR").expect("a Bundle");
        let written = program.write(Given::Records(&records, &before.bundle), &context()).expect("it writes");
        let Ok(written) = written else { continue };
        let again = Message::parse(&written.text, &Limits::default()).expect("what was written can be read");
        let structure = grammar::structure_of(&again).expect("it has a structure");
        let groups = grammar::group(&again, structure);
        assert_eq!(groups.issues(), [], "{event}: {}", written.text.replace('\r', "\n"));
        let said_before = said(&serde_json::from_str(&before.bundle).expect("JSON"));
        let after = match map_alone(&catalog, &again, &context()) {
            Ok(after) => after,
            Err(why) => {
                lost.push(format!("{event} {why:?}"));
                continue;
            }
        };
        let (before, after) = (said_before, said(&serde_json::from_str(&after.bundle).expect("JSON")));
        compared += before.len();
        let missing = before.difference(&after).map(|what| format!("{event} {what}"));
        let missing = missing.filter(|what| !RESHAPED.iter().any(|known| what.contains(known)));
        lost.extend(missing);
    }
    assert!(compared > 1000, "only {compared} were compared");
    let told = |what: &str| LOST.iter().any(|(known, _)| what.contains(known));
    let untold: Vec<&String> = lost.iter().filter(|what| !told(what)).collect();
    assert!(untold.is_empty(), "of {compared}, these are lost:\n{untold:#?}");
    for (known, why) in LOST {
        assert!(lost.iter().any(|what| what.contains(known)), "{known} is not lost any more: {why}");
    }
}
