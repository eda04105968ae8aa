//! Every example of every function holds.

use super::*;
use crate::Catalog;
use crate::run::Context;
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message};
use uuid::Uuid;

/// What an expression answers for a message whose `ZZZ-1` is `field`; empty for absent.
fn answer(expression: &str, kind: Kind, field: &str) -> String {
    let ty = match kind {
        Kind::Bool => "boolean",
        Kind::Integer => "integer",
        Kind::Decimal => "decimal",
        Kind::Date => "date",
        Kind::DateTime => "dateTime",
        Kind::Instant => "instant",
        Kind::Time => "time",
        Kind::Base64 => "base64Binary",
        Kind::Element | Kind::Text | Kind::Xhtml | Kind::Hl7Time => "string",
    };
    // No extension has a narrative; a resource has one.
    let rule = match kind {
        Kind::Xhtml => {
            format!("text: {{set: {{status: {{const: additional}}, div: {{value: \"{expression}\"}}}}}}")
        }
        _ => format!("extension: {{all: [{{id: x, url: test, as: {ty}, value: \"{expression}\"}}]}}"),
    };
    let mapping = format!(
        "segment_map: zzz\nfrom: ZZZ\nto: Basic\nrules:\n  code: {{concept: test#x}}\n  {rule}\n\
         ---\nmapping: test\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\n\
         resources: [{{id: basic, type: Basic, from: ZZZ, identity: {{keys: [], else: message}}, parts: [{{use: zzz, from: ZZZ}}]}}]\n"
    );
    let catalog = Catalog::from_files(vec![("test.yaml".to_owned(), mapping)]).unwrap_or_else(|mistakes| {
        panic!("{expression}: {}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    });
    let text = format!("MSH|^~\\&|TEST|TEST|||20240101000000||ADT^A01|TEST1|P|2.5.1\rZZZ|{field}|x\r");
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    let context = Context {
        message_id: Uuid::nil(),
        received_at: jiff::Timestamp::UNIX_EPOCH,
        seq: 1,
        sender: "test".into(),
        authority: "test".into(),
        zone: Zone::UTC,
        namespace: Uuid::nil(),
        systems: &[("REGISTERED".to_owned(), "urn:oid:1.9".to_owned())],
        options: &[],
        wire: &[],
        codes: None,
        parties: crate::Parties::default(),
    };
    let mapped = catalog.programs()[0].run(&message, &context).expect("it is mapped");
    let json = mapped.contributions[0].slots.iter().find_map(|slot| match &slot.write {
        crate::resource::Write::Valued(fragments) => fragments
            .iter()
            .find(|fragment| matches!(&*fragment.path, "extension" | "text.div"))
            .map(|fragment| fragment.json.clone()),
        crate::resource::Write::Cleared => None,
    });
    let Some(json) = json else { return String::new() };
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let value = match value {
        serde_json::Value::Object(members) => members.values().nth(1).cloned().unwrap_or_default(),
        value => value,
    };
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[test]
fn the_examples_of_every_function_hold() {
    for function in FUNCTIONS {
        for (expression, field, expected) in function.examples {
            assert_eq!(answer(expression, function.answers, field), *expected, "{expression} of {field:?}");
        }
    }
}

#[test]
fn functions_have_names_of_their_own_and_say_how_they_are_called() {
    for (index, function) in FUNCTIONS.iter().enumerate() {
        assert!(FUNCTIONS[..index].iter().all(|other| other.name != function.name), "{}", function.name);
        assert!(function.spec.starts_with(&format!("{}(", function.name)), "{}", function.name);
        let without_examples = ["ordinal", "index", "chain_key", "is_finest"].contains(&function.name);
        assert_eq!(function.examples.is_empty(), without_examples, "{}", function.name);
    }
}
