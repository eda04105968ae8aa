//! What a subscriber is notified of, and what goes along.

use super::{Bench, NAMESPACE, adt};
use crate::config::Config;
use crate::normalize::Recorded;
use crate::route::Router;
use crate::store::{Format, NewMessage, now};
use schemas::message::MessageId;
use std::path::Path;
use uuid::Uuid;

const JANE: &str = "PID|1||1001^^^GENHOSP^MR||TEST^JANE||19700101|F\n";

/// A subscription of everything that the senders listed say on a topic.
async fn bench(topic: &str, senders: &str, filters: &str) -> Bench {
    let text = format!(
        "http: {{base_url: 'https://pons.test/fhir'}}\n\
         senders: [{{name: adt, application: A}}, {{name: lab, application: B}}, {{name: portal, application: C}}]\n\
         subscriptions: [{{name: reader, topics: [{topic}], senders: [{senders}], {filters}content: full-resource,\n\
         \x20 destination: {{adapter: rest-hook, url: 'http://127.0.0.1:1/'}}}}]\n"
    );
    let config = Config::parse(&text, Path::new("")).expect("valid");
    Bench {
        router: Router::new(config.subscriptions.into_iter().map(std::sync::Arc::new).collect(), NAMESPACE),
        ..Bench::new().await
    }
}

impl Bench {
    async fn say(&self, sender: &str, text: &str) -> Recorded {
        self.store_one(sender, text).await;
        self.work().await.remove(0)
    }

    async fn say_fhir(&self, sender: &str, label: &str, body: &str) -> Recorded {
        let new = NewMessage {
            id: MessageId(Uuid::now_v7()),
            received_at: now(),
            sender: sender.into(),
            source: "http".into(),
            format: Format::FhirJson,
            control_id: String::new(),
            handed_again: None,
            message_type: label.to_owned(),
            version: String::new(),
            bytes: body.to_owned().into(),
            keys: vec![schemas::message::OrderKey(1)],
            patient_hashes: Vec::new(),
            rejected: None,
            context: "{}".to_owned(),
        };
        self.store.append(vec![new]).await.expect("stored");
        self.work().await.remove(0)
    }
}

/// What each notification names, without the ids.
fn named(recorded: &Recorded) -> Vec<Vec<&str>> {
    let references = recorded.deliveries.iter().filter_map(|(one, _)| one.matched.references.as_ref());
    references.map(|all| all.iter().map(|one| one.split('/').next().unwrap_or_default()).collect()).collect()
}

fn visit(class: &str, number: &str) -> String {
    format!("PV1|1|{class}|3A^12^1^GENHOSP||||||||||||||||{number}^^^GENHOSP^VN\n")
}

#[tokio::test]
async fn two_parts_of_a_message_about_one_resource_are_one_event() {
    let bench = bench("patient-updated", "'*'", "").await;
    let both = "PID|1||1001^^^GENHOSP^MR~1002^^^GENHOSP^PI||TEST^JANE||19700101|F\n";
    bench.say("adt", &adt("A28", "20260301100000", "C1", both)).await;
    let linked = "PID|1||1001^^^GENHOSP^MR||TEST^JANE||19700101|M\nPV1|1|N\nPID|2||1002^^^GENHOSP^PI||TEST^JANE||19700101|F\n";
    let recorded = bench.say("adt", &adt("A24^ADT_A24", "20260301110000", "C2", linked)).await;
    assert!(recorded.done.quarantined.is_none());
    assert_eq!(named(&recorded).len(), 1, "{:?}", named(&recorded));
    let patient = |url: &str, gender: &str| {
        format!(
            r#"{{"request":{{"method":"PUT","url":"Patient/{url}"}},"resource":{{"resourceType":"Patient","id":"{url}",
            "identifier":[{{"system":"urn:oid:2.999","value":"7"}}],"gender":"{gender}"}}}}"#
        )
    };
    for (a, b) in [("male", "female"), ("other", "unknown")] {
        let body = format!(
            r#"{{"resourceType":"Bundle","type":"transaction","entry":[{},{}]}}"#,
            patient("a", a),
            patient("b", b)
        );
        let recorded = bench.say_fhir("portal", "Bundle transaction", &body).await;
        let mut ids: Vec<_> = recorded.deliveries.iter().map(|(one, _)| one.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), recorded.deliveries.len(), "no event is there twice");
    }
}

#[tokio::test]
async fn the_label_of_a_fhir_bundle_is_that_of_everything_in_it() {
    let bench = bench("encounter-start", "'*'", "").await;
    let body = |label: &str| {
        format!(
            r#"{{"resourceType":"Bundle","type":"transaction","meta":{{"security":[{{"system":"http://terminology.hl7.org/CodeSystem/v3-Confidentiality","code":"{label}"}}]}},
            "entry":[{{"request":{{"method":"POST","url":"Encounter"}},"resource":{{"resourceType":"Encounter","status":"in-progress","class":{{"code":"IMP"}}}}}}]}}"#
        )
    };
    let open = bench.say_fhir("portal", "Bundle transaction", &body("N")).await;
    assert_eq!(named(&open), [["Encounter"]]);
    let closed = bench.say_fhir("portal", "Bundle transaction", &body("R")).await;
    assert_eq!(named(&closed), [[""; 0]], "that it happened is told, and nothing else");
    let id = closed.done.resources[0].id;
    let state = bench.read(id).await.expect("it is kept");
    assert_eq!(state["meta"]["security"][0]["code"], "R");
}

#[tokio::test]
async fn what_an_unlisted_sender_said_does_not_go_along_though_it_names_no_patient() {
    let bench = bench("encounter-end", "adt", "").await;
    let with_account = format!(
        "PID|1||1001^^^GENHOSP^MR||TEST^JANE||19700101|F||||||||||ACC1^^^GENHOSP\n{}",
        visit("I", "V1")
    );
    bench.say("adt", &adt("A01", "20260301100000", "C1", &with_account)).await;
    let end = || format!("{JANE}{}", visit("I", "V1"));
    let before = bench.say("adt", &adt("A03", "20260301110000", "C2", &end())).await;
    assert!(named(&before)[0].contains(&"Account"), "{:?}", named(&before));
    let references = before.deliveries[0].0.matched.references.clone().expect("a notification");
    let account = references.iter().find(|one| one.starts_with("Account/")).expect("it goes along");
    let id = account.trim_start_matches("Account/");
    let body =
        format!(r#"{{"resourceType":"Account","id":"{id}","status":"active","description":"PORTALSECRET"}}"#);
    bench.say_fhir("portal", "PUT Account", &body).await;
    let after = bench.say("adt", &adt("A03", "20260301120000", "C3", &end())).await;
    assert!(!named(&after)[0].contains(&"Account"), "{:?}", named(&after));
    assert!(!String::from_utf8_lossy(&after.beside).contains("PORTALSECRET"));
}

#[tokio::test]
async fn a_filter_does_not_look_at_what_is_withheld() {
    let bench = bench("encounter-end", "'*'", "filters: ['Encounter?class=EMER'], ").await;
    bench.say("adt", &adt("A01", "20260301100000", "C1", &format!("{JANE}{}", visit("I", "V1")))).await;
    let restricted = adt("A08", "20260301110000", "C2", &format!("{JANE}{}", visit("E", "V1")));
    bench.say("adt", &restricted.replacen("|P|2.5.1", "|P|2.8.2||||||||||||||R", 1)).await;
    let end =
        bench.say("adt", &adt("A03", "20260301120000", "C3", &format!("{JANE}{}", visit("", "V1")))).await;
    assert_eq!(end.deliveries.len(), 0, "it would tell the class");
    let other =
        bench.say("adt", &adt("A03", "20260301130000", "C4", &format!("{JANE}{}", visit("E", "V2")))).await;
    assert_eq!(other.deliveries.len(), 1);
}

#[tokio::test]
async fn every_result_of_a_report_goes_along_and_coverage_under_a_merged_number_too() {
    let reports = bench("result-final", "'*'", "").await;
    let results: String =
        (1..=250).map(|set| format!("OBX|{set}|NM|{set}^Test^L||4.1|mmol/L^^UCUM|||||F\n")).collect();
    let report = format!(
        "MSH|^~\\&|ADT1|GENHOSP|||20260301100000||ORU^R01^ORU_R01|R1|P|2.5.1\n{JANE}OBR|1||F1^LAB|2823-3^Potassium^LN|||20260301|||||||||||||||20260301|||F\n{results}"
    );
    let recorded = reports.say("lab", &report.replace('\n', "\r")).await;
    let results = named(&recorded)[0].iter().filter(|of| **of == "Observation").count();
    assert_eq!((results, recorded.beside.len()), (250, 0), "all of it is in the Bundle of the message");

    let bench = bench("encounter-end", "'*'", "").await;
    let insured = "PID|1||1002^^^GENHOSP^MR||TEST^JANE||19700101|F\nPV1|1|N\nIN1|1|PLAN1|PAYER1^^^GENHOSP|TEST INSURANCE\n";
    bench.say("adt", &adt("A28", "20260301100000", "C1", JANE)).await;
    bench.say("adt", &adt("A31", "20260301100000", "C2", insured)).await;
    let merge = format!("{JANE}MRG|1002^^^GENHOSP^MR\n");
    bench.say("adt", &adt("A40^ADT_A39", "20260301110000", "C3", &merge)).await;
    let end =
        bench.say("adt", &adt("A03", "20260301120000", "C4", &format!("{JANE}{}", visit("I", "V1")))).await;
    assert!(named(&end)[0].contains(&"Coverage"), "{:?}", named(&end));
    assert!(String::from_utf8_lossy(&end.beside).contains("Coverage"));
}

#[tokio::test]
async fn the_diagnoses_of_a_visit_go_along_with_its_end_and_those_of_other_visits_do_not() {
    let bench = bench("encounter-end", "'*'", "").await;
    let diagnosed = |number: &str, code: &str| {
        format!("{JANE}{}DG1|1||{code}^Test^I10||20260301|A\n", visit("I", number))
    };
    for (control_id, number, code) in [("C1", "V1", "J18.9"), ("C2", "V2", "I10")] {
        bench.say("adt", &adt("A01", "20260301100000", control_id, &diagnosed(number, code))).await;
    }
    let end = |number: &str| adt("A03", "20260301120000", "C3", &format!("{JANE}{}", visit("I", number)));
    let first = bench.say("adt", &end("V1")).await;
    let diagnoses = named(&first)[0].iter().filter(|of| **of == "Condition").count();
    let beside = String::from_utf8_lossy(&first.beside).into_owned();
    assert_eq!(diagnoses, 1, "{:?}", named(&first));
    assert!(beside.contains("J18.9") && !beside.contains("I10\",\"code"), "{beside}");
    assert_eq!(beside.matches("\"resourceType\":\"Condition\"").count(), 1, "{beside}");
    // A visit that was given two numbers is one, and so are its diagnoses.
    let same = format!("{JANE}{}", visit("I", "V2"));
    let merge = same.replace("PV1|", "MRG|1001^^^GENHOSP^MR||||V1^^^GENHOSP^VN\nPV1|");
    let merged = bench.say("adt", &adt("A42^ADT_A39", "20260301130000", "C4", &merge)).await;
    assert!(merged.done.quarantined.is_none(), "{:?}", merged.done);
    let both = bench.say("adt", &adt("A03", "20260301140000", "C5", &same)).await;
    let beside = String::from_utf8_lossy(&both.beside);
    assert!(beside.contains("J18.9") && beside.contains("I10"), "{beside}");
    // The patient gets another number, and the visit ends, before the store knows of either.
    let renamed = JANE.replace("1001", "1002");
    assert_ne!(renamed, JANE);
    let merge = format!("{renamed}MRG|1001^^^GENHOSP^MR\n");
    bench.store_one("adt", &adt("A40^ADT_A39", "20260301150000", "C6", &merge)).await;
    bench.store_one("adt", &adt("A03", "20260301160000", "C7", &same.replace("1001", "1002"))).await;
    let last = bench.work().await.pop().expect("recorded");
    let beside = String::from_utf8_lossy(&last.beside);
    assert!(beside.contains("J18.9") && beside.contains("I10"), "{beside}");
}
