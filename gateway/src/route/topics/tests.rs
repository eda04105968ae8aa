//! Each shipped topic: what it tells of, and what it must not tell of.

use super::*;

const NOW: &str = "2026-03-01T10:00:00Z";

/// What a message did: its event, and a resource before (empty if it was not there) and after.
fn fires(topic: &str, event: Option<&str>, before: &str, now: &str) -> bool {
    let resource: Value = serde_json::from_str(now).expect("JSON");
    let of = resource["resourceType"].as_str().expect("a type").to_owned();
    let touched = [Touched::new(of, (!before.is_empty()).then_some(before), now)];
    let happening = Happening { event, resources: &touched, now: NOW.parse().expect("a time") };
    !find(topic).expect(topic).focus(&happening).is_empty()
}

/// A topic, an event (`-` for a FHIR message), the resource before and after, and whether the topic tells of it.
#[rustfmt::skip]
const CASES: [(&str, &str, &str, &str, bool); 108] = [
    ("encounter-start", "A01", "", IN_PROGRESS, true),
    ("encounter-start", "A01", IN_PROGRESS, IN_PROGRESS, true),
    ("encounter-start", "A08", "", IN_PROGRESS, false),
    ("encounter-start", "-", "", IN_PROGRESS, true),
    ("encounter-start", "-", PLANNED, IN_PROGRESS, true),
    ("encounter-start", "-", IN_PROGRESS, IN_PROGRESS, false),
    ("encounter-start", "A01", "", PATIENT, false),
    ("encounter-end", "A03", IN_PROGRESS, FINISHED, true),
    ("encounter-end", "A08", IN_PROGRESS, FINISHED, false),
    ("encounter-end", "-", IN_PROGRESS, FINISHED, true),
    ("encounter-end", "-", FINISHED, FINISHED, false),
    ("encounter-transfer", "A02", IN_PROGRESS, IN_PROGRESS, true),
    ("encounter-transfer", "A06", IN_PROGRESS, IN_PROGRESS, true),
    ("encounter-transfer", "A08", IN_PROGRESS, OTHER_BED, false),
    ("encounter-transfer", "-", IN_PROGRESS, OTHER_BED, true),
    ("encounter-transfer", "-", IN_PROGRESS, IN_PROGRESS, false),
    ("encounter-transfer", "-", "", OTHER_BED, false),
    ("patient-updated", "A08", PATIENT, RENAMED, true),
    ("patient-updated", "R01", PATIENT, RENAMED, true),
    ("patient-updated", "A08", PATIENT, PATIENT, false),
    ("patient-updated", "A04", "", PATIENT, false),
    ("patient-merged", "A40", PATIENT, MERGED, true),
    ("patient-merged", "A34", "", MERGED, true),
    ("patient-merged", "-", PATIENT, MERGED, true),
    ("patient-merged", "A40", MERGED, MERGED, false),
    ("patient-merged", "A40", PATIENT, RENAMED, false),
    ("appointment-booked", "S12", "", BOOKED, true),
    ("appointment-booked", "S13", BOOKED, BOOKED, false),
    ("appointment-booked", "S15", BOOKED, CALLED_OFF, false),
    ("appointment-changed", "S15", BOOKED, CALLED_OFF, true),
    ("appointment-changed", "S12", "", BOOKED, false),
    ("appointment-changed", "S13", BOOKED, BOOKED, false),
    ("order-placed", "O21", "", ORDER, true),
    ("order-placed", "O01", "", WITHDRAWN, false),
    ("order-placed", "O01", ORDER, ORDER, false),
    ("order-placed", "R01", "", ORDER, false),
    ("order-placed", "-", "", ORDER, true),
    ("order-placed", "-", "", r#"{"resourceType":"ServiceRequest","status":"active","intent":"proposal"}"#, false),
    ("order-placed", "O03", "", r#"{"resourceType":"NutritionOrder","status":"active"}"#, true),
    ("order-placed", "O05", "", r#"{"resourceType":"SupplyRequest","status":"active"}"#, true),
    ("order-changed", "O01", ORDER, WITHDRAWN, true),
    ("order-changed", "O01", "", WITHDRAWN, false),
    ("order-changed", "O01", ORDER, ORDER, false),
    ("order-changed", "R01", ORDER, WITHDRAWN, false),
    ("document-available", "T02", "", DOCUMENT, true),
    ("document-available", "T08", DOCUMENT, DOCUMENT, false),
    ("document-available", "T08", DOCUMENT, r#"{"resourceType":"DocumentReference","status":"current","docStatus":"final"}"#, true),
    ("document-available", "T10", DOCUMENT, r#"{"resourceType":"DocumentReference","status":"superseded"}"#, false),
    ("referral", "I12", "", ORDER, true),
    ("referral", "O01", "", ORDER, false),
    ("referral", "-", "", REFERRAL, true),
    ("referral", "-", REFERRAL, REFERRAL, false),
    ("specimen-collected", "O21", "", TAKEN, true),
    ("specimen-collected", "R01", r#"{"resourceType":"Specimen"}"#, TAKEN, true),
    ("specimen-collected", "R01", TAKEN, TAKEN, false),
    ("specimen-collected", "O21", "", r#"{"resourceType":"Specimen"}"#, false),
    ("result-preliminary", "R01", "", r#"{"resourceType":"DiagnosticReport","status":"preliminary"}"#, true),
    ("result-preliminary", "R01", "", FINAL, false),
    ("result-final", "R01", "", FINAL, true),
    ("result-final", "R01", FINAL, CORRECTED, true),
    ("result-final", "R01", "", r#"{"resourceType":"DiagnosticReport","status":"preliminary","code":{"text":"final"}}"#, false),
    ("result-corrected", "R01", FINAL, CORRECTED, true),
    ("result-corrected", "R01", "", FINAL, false),
    ("result-corrected", "R01", FINAL, r#"{"resourceType":"DiagnosticReport","status":"cancelled"}"#, true),
    ("charge-posted", "P03", "", CHARGE, true),
    ("charge-posted", "P03", CHARGE, CHARGE, false),
    ("coverage-changed", "A08", r#"{"resourceType":"Coverage","status":"active"}"#, r#"{"resourceType":"Coverage","status":"cancelled"}"#, true),
    ("coverage-changed", "A08", r#"{"resourceType":"Coverage","status":"active"}"#, r#"{"resourceType":"Coverage","status":"active"}"#, false),
    ("procedure-performed", "A03", "", r#"{"resourceType":"Procedure","status":"completed"}"#, true),
    ("procedure-performed", "A03", "", r#"{"resourceType":"Procedure","status":"preparation"}"#, false),
    ("authorization-requested", "I12", "", ORDER, false),
    ("authorization-requested", "-", "", r#"{"resourceType":"Claim","use":"preauthorization"}"#, true),
    ("authorization-requested", "-", "", r#"{"resourceType":"Claim","use":"claim"}"#, false),
    ("medication-prescribed", "O09", "", r#"{"resourceType":"MedicationRequest","status":"active"}"#, true),
    ("medication-prescribed", "O09", "", r#"{"resourceType":"MedicationRequest","status":"stopped"}"#, false),
    ("medication-dispensed", "O13", "", r#"{"resourceType":"MedicationDispense","status":"completed"}"#, true),
    ("medication-dispensed", "O13", r#"{"resourceType":"MedicationDispense","status":"completed"}"#, r#"{"resourceType":"MedicationDispense","status":"completed"}"#, false),
    ("immunization-given", "V04", "", r#"{"resourceType":"Immunization","status":"completed"}"#, true),
    ("immunization-given", "V04", "", r#"{"resourceType":"Immunization","status":"not-done"}"#, false),
    ("reportable-result", "R01", "", POSITIVE, true),
    ("reportable-result", "R01", "", READING, false),
    ("device-observation", "R01", "", READING, true),
    ("device-observation", "R01", "", POSITIVE, false),
    ("device-alert", "R40", "", READING, true),
    ("device-alert", "R01", "", READING, false),
    ("device-alert", "-", "", ALARM, true),
    ("device-alert", "-", ALARM, ALARM, false),
    ("encounter-start", "-", ON_LEAVE, IN_PROGRESS, false),
    ("encounter-transfer", "A12", IN_PROGRESS, IN_PROGRESS, true),
    ("encounter-transfer", "A17", IN_PROGRESS, IN_PROGRESS, true),
    ("encounter-transfer", "-", ON_LEAVE, IN_PROGRESS, true),
    ("order-placed", "O21", UNKNOWN_ORDER, ORDER, true),
    ("order-placed", "O21", UNKNOWN_ORDER, UNKNOWN_ORDER, false),
    ("order-placed", "O21", "", UNKNOWN_ORDER, true),
    ("order-placed", "O21", WITHDRAWN, ORDER, true),
    ("order-placed", "O01", ORDER, WITHDRAWN, false),
    ("order-placed", "O21", "", r#"{"resourceType":"ServiceRequest","status":"active","intent":"reflex-order"}"#, true),
    ("authorization-requested", "I12", "", AUTHORIZED, true),
    ("authorization-requested", "I12", AUTHORIZED, AUTHORIZED, false),
    ("procedure-performed", "A03", "", r#"{"resourceType":"Procedure","status":"unknown","performedDateTime":"2026-03-01"}"#, true),
    ("procedure-performed", "A03", "", r#"{"resourceType":"Procedure","status":"unknown"}"#, false),
    ("result-corrected", "R01", r#"{"resourceType":"DiagnosticReport","status":"registered"}"#, r#"{"resourceType":"DiagnosticReport","status":"cancelled"}"#, false),
    ("immunization-given", "K11", "", r#"{"resourceType":"Immunization","status":"completed"}"#, false),
    ("immunization-given", "V04", "", r#"{"resourceType":"Immunization","status":"completed","primarySource":false}"#, false),
    ("immunization-given", "V04", "", r#"{"resourceType":"Immunization","status":"completed","primarySource":true}"#, true),
    ("immunization-given", "V04", r#"{"resourceType":"Immunization","status":"completed"}"#, r#"{"resourceType":"Immunization","status":"entered-in-error"}"#, true),
    ("medication-prescribed", "-", "", r#"{"resourceType":"MedicationRequest","status":"active","intent":"plan"}"#, false),
    ("document-available", "T08", r#"{"resourceType":"DocumentReference","status":"current","content":[{"attachment":{"data":"VEVTVA=="}}]}"#, r#"{"resourceType":"DocumentReference","status":"current","content":[{"attachment":{"data":"VEvTVA=="}}]}"#, true),
];

const PLANNED: &str = r#"{"resourceType":"Encounter","status":"planned"}"#;
const IN_PROGRESS: &str = r#"{"resourceType":"Encounter","status":"in-progress","class":{"code":"IMP"},"location":[{"location":{"reference":"Location/1"},"status":"active"}]}"#;
const OTHER_BED: &str = r#"{"resourceType":"Encounter","status":"in-progress","class":{"code":"IMP"},"location":[{"location":{"reference":"Location/1"},"status":"completed"},{"location":{"reference":"Location/2"},"status":"active"}]}"#;
const ON_LEAVE: &str = r#"{"resourceType":"Encounter","status":"onleave"}"#;
const ALARM: &str = r#"{"resourceType":"DetectedIssue","status":"final","author":{"reference":"Device/1"}}"#;
const UNKNOWN_ORDER: &str = r#"{"resourceType":"ServiceRequest","status":"unknown","intent":"order"}"#;
const AUTHORIZED: &str = r#"{"resourceType":"ServiceRequest","status":"active","intent":"order","identifier":[{"type":{"text":"Authorization number"},"value":"1"}]}"#;
const FINISHED: &str = r#"{"resourceType":"Encounter","status":"finished"}"#;
const PATIENT: &str = r#"{"resourceType":"Patient","name":[{"family":"TEST"}]}"#;
const RENAMED: &str = r#"{"resourceType":"Patient","name":[{"family":"TESTER"}]}"#;
const MERGED: &str = r#"{"resourceType":"Patient","active":false,"link":[{"other":{"reference":"Patient/2"},"type":"replaced-by"}]}"#;
const BOOKED: &str = r#"{"resourceType":"Appointment","status":"booked"}"#;
const CALLED_OFF: &str = r#"{"resourceType":"Appointment","status":"cancelled"}"#;
const ORDER: &str = r#"{"resourceType":"ServiceRequest","status":"active","intent":"order"}"#;
const WITHDRAWN: &str = r#"{"resourceType":"ServiceRequest","status":"revoked","intent":"order"}"#;
const REFERRAL: &str = r#"{"resourceType":"ServiceRequest","status":"active","intent":"order","category":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/v2-0281","code":"MED"}]}]}"#;
const DOCUMENT: &str = r#"{"resourceType":"DocumentReference","status":"current","docStatus":"preliminary"}"#;
const TAKEN: &str = r#"{"resourceType":"Specimen","collection":{"collectedDateTime":"2026-03-01"}}"#;
const FINAL: &str = r#"{"resourceType":"DiagnosticReport","status":"final"}"#;
const CORRECTED: &str = r#"{"resourceType":"DiagnosticReport","status":"corrected"}"#;
const CHARGE: &str = r#"{"resourceType":"ChargeItem","status":"billable"}"#;
const READING: &str = r#"{"resourceType":"Observation","status":"final","device":{"reference":"Device/1"}}"#;
const POSITIVE: &str = r#"{"resourceType":"Observation","status":"final","interpretation":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation","code":"POS"}]}]}"#;

#[test]
fn every_topic_tells_of_what_it_is_about_and_of_nothing_else() {
    let mut wrong = Vec::new();
    for (index, (topic, event, before, now, expected)) in CASES.into_iter().enumerate() {
        if fires(topic, (event != "-").then_some(event), before, now) != expected {
            wrong.push(format!("case {index}: {topic} {event}: not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for name in names() {
        let told = |expected| CASES.iter().any(|(topic, .., fires)| *topic == name && *fires == expected);
        assert!(told(true), "{name} has no case that it tells of");
        assert!(told(false), "{name} has no case that it must not tell of");
    }
}

/// The page that tells of the topics is written from them; `UPDATE_GOLDEN=1` writes it.
#[test]
fn the_page_of_topics_is_what_the_topics_are() {
    let mut page = "# Topics

What a subscription may list. The column \"filters\" names the search parameters that it may be narrowed by (`filters:` in the
configuration); a v2 event decides for messages of HL7 v2 where one is named. Written from the files beside it.

| topic | what it tells of | looks at | v2 events | filters |
|---|---|---|---|---|
"
    .to_owned();
    for topic in TOPICS.iter() {
        let mut types: Vec<&str> = topic.types().collect();
        types.dedup();
        let events: Vec<&str> = topic.events.iter().map(|event| event.code.as_str()).collect();
        let (name, title, types, events) = (topic.name(), topic.title(), types.join(", "), events.join(" "));
        page.push_str(&format!("| `{name}` | {title} | {types} | {events} | {} |\n", topic.filterable()));
    }
    page.push_str(
        "
## What goes along

A notification (`content:` other than `message`) is about one resource. What it refers to by the search parameters after `to` goes along, and
what refers to it by those after `from`; then the same of what goes along, by the line of its type.

",
    );
    for topic in TOPICS.iter() {
        for shape in &topic.shapes {
            let out: Vec<&str> = shape.include.iter().map(|parameter| parameter.code).collect();
            let back: Vec<String> =
                shape.rev_include.iter().map(|(of, parameter)| format!("{of}:{}", parameter.code)).collect();
            page.push_str(&format!("- `{}`, {}:", topic.name(), shape.resource));
            for (word, codes) in [("to", out.join(", ")), ("from", back.join(", "))] {
                if !codes.is_empty() {
                    page.push_str(&format!(" {word} {codes}"));
                }
            }
            page.push('\n');
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/topics/README.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &page).expect("the page can be written");
    }
    assert!(
        std::fs::read_to_string(path).is_ok_and(|found| found == page),
        "run this test with UPDATE_GOLDEN=1"
    );
}

#[test]
fn every_shipped_topic_is_valid() {
    for (name, text) in FILES {
        let topic = Topic::read(name, text).expect(name);
        assert!(!topic.title().is_empty(), "{name}");
    }
}

#[test]
fn what_a_topic_file_says_beyond_this_is_refused_at_load() {
    let text = |name: &str| FILES.iter().find(|(known, _)| *known == name).expect("shipped").1;
    let refused = |name: &str, from: &str, to: &str| {
        let changed = text(name).replace(from, to);
        assert_ne!(changed, text(name), "{from} stands in {name}");
        Topic::read(name, &changed).expect_err(to)
    };
    for (name, from, to, expected) in [
        ("encounter-start", "\"title\"", "\"notitle\"", "unknown field `notitle`"),
        ("encounter-start", "previous", "precedent", "unknown field `precedent`"),
        ("encounter-start", "status:not=", "status:above=", "status: modifier :above is not taken"),
        (
            "encounter-start",
            "status=in",
            "statu=in",
            "Encounter has no search parameter statu (did you mean status?)",
        ),
        ("encounter-start", "test-passes", "test-maybe", "resultForCreate is test-passes or test-fails"),
        ("encounter-start", "\"class\"", "\"clas\"", "canFilterBy: Encounter has no search parameter clas"),
        ("encounter-start", "[\"create\", ", "[\"read\", ", "interaction read is none of: create, update"),
        (
            "encounter-transfer",
            "%current.class",
            "clas",
            "fhirPathCriteria: at 0: Encounter has no such element (did you mean class?)",
        ),
        ("patient-merged", "\"resource\": \"Patient\"", "\"resource\": \"Patent\"", "no such type"),
    ] {
        let found = refused(name, from, to);
        assert!(found.contains(expected), "{to}: {found}");
    }
    assert!(Topic::read("another-name", text("encounter-start")).is_err());
}

#[test]
fn a_filter_narrows_a_topic() {
    let topic = find("encounter-start").expect("shipped");
    let passes = |filter: &str, encounter: &str| {
        let filter = Filter::read(filter, &[topic]).expect(filter);
        let touched = [
            Touched::new("Encounter", None::<&str>, encounter),
            Touched::new("Patient", None::<&str>, PATIENT),
        ];
        let happening =
            Happening { event: Some("A01"), resources: &touched, now: NOW.parse().expect("a time") };
        let filters = [filter];
        topic.focus(&happening).iter().any(|touched| Filter::pass(&filters, touched, happening.now))
    };
    assert!(passes("Encounter?class=IMP", IN_PROGRESS));
    assert!(passes("Encounter?class=AMB,IMP", IN_PROGRESS));
    assert!(!passes("Encounter?class=AMB", IN_PROGRESS));
    assert!(!passes("Encounter?class=IMP&patient=Patient/1", IN_PROGRESS));
    assert!(!passes("Encounter?class=IMP", FINISHED));
    for (filter, expected) in [
        ("class=IMP", "expected Type?parameter=value"),
        (
            "Encounter?status=finished",
            "topic encounter-start takes filters by: Encounter?class, Encounter?type",
        ),
        ("Patient?name=x", "topic encounter-start takes filters by: Encounter?class"),
        ("Encounter?class:above=IMP", "class: modifier :above is not taken"),
        ("Encounter?class", "a condition is a parameter, = and values"),
    ] {
        let refused = Filter::read(filter, &[topic]).expect_err(filter);
        assert!(refused.starts_with(expected), "{filter}: {refused}");
    }
}
