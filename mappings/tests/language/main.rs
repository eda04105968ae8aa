//! The mapping language, feature by feature: small mappings over invented messages, and mappings with mistakes.

mod fragments;
mod mistakes;
mod records;

use mappings::resource::{SlotWrite, Write};
use mappings::{Catalog, Context, Mapped, NotMapped, map_alone};
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message};
use serde_json::Value;
use uuid::Uuid;

const TABLE: &str = r#"{"resourceType": "ConceptMap", "status": "active", "group": [{
    "source": "http://terminology.hl7.org/CodeSystem/v2-0001", "target": "http://hl7.org/fhir/administrative-gender",
    "element": [
        {"code": "F", "target": [{"code": "female", "equivalence": "equivalent"}]},
        {"code": "N", "target": [{"equivalence": "unmatched"}]}]}]}"#;

/// What every mapping here has: a key, a name, a practitioner, and the frame of a message.
const COMMON: &str = r#"
type_map: cx_key
from: CX
key: {system: "system(CX.4)", value: CX.1}
---
type_map: cx_identifier
from: CX
to: Identifier
rules:
  system: {value: "system(CX.4)"}
  value: {value: CX.1}
---
type_map: xpn_name
from: XPN
to: HumanName
params: [use]
rules:
  use: {first: [{id: given, when: "with.use == 'old'", const: old}, {id: none, const: usual}]}
  family: {value: XPN.1.1}
  given: {all: [{id: first, value: XPN.2}, {id: more, value: XPN.3}]}
---
type_map: xcn_practitioner
from: XCN
makes: Practitioner
identity: {keys: [{system: "system(XCN.9)", value: XCN.1}], else: display}
display: "join(' ', XCN.3, XCN.2.1)"
rules:
  identifier: {set: {system: {value: "system(XCN.9)"}, value: {value: XCN.1}}}
  name: {set: {family: {value: XCN.2.1}, given: {value: XCN.3}}}
"#;

const PATIENT: &str = "
- {id: patient, type: Patient, from: PID, identity: {keys: [{each: \"PID-3[CX.5 == 'MR']\"}, {each: PID-3}], use: cx_key, else: quarantine}, parts: [{use: pid, from: PID}]}";

fn catalog(documents: &[&str]) -> Catalog {
    let files = vec![
        ("test.yaml".to_owned(), [&[COMMON], documents].concat().join("\n---\n")),
        ("table/sex.json".to_owned(), TABLE.to_owned()),
    ];
    Catalog::from_files(files).unwrap_or_else(|mistakes| {
        panic!("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })
}

/// A catalog for ADT^A01 with a map of PID and the given resources.
fn adt(pid: &str, resources: &str) -> Catalog {
    let pid = format!("segment_map: pid\nfrom: PID\nto: Patient\nrules:\n{pid}");
    let mapping = format!(
        "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01, A08]}}\nresources:{PATIENT}{resources}"
    );
    catalog(&[&pid, &mapping])
}

const SYSTEMS: &[(String, String)] = &[];

fn context() -> Context<'static> {
    Context {
        message_id: Uuid::from_u128(7),
        received_at: jiff::Timestamp::UNIX_EPOCH,
        seq: 1,
        sender: "test".into(),
        authority: "test".into(),
        zone: Zone::UTC,
        namespace: Uuid::from_u128(1),
        systems: SYSTEMS,
        options: &[],
        wire: &[],
        codes: None,
        parties: mappings::Parties::default(),
    }
}

fn message_text(event: &str, segments: &str) -> String {
    let segments = segments.replace('\n', "\r");
    format!("MSH|^~\\&|TEST|TESTHOSP|||20240131083000+0100||ADT^{event}|TEST1|P|2.5.1\r{segments}\r")
}

fn run(catalog: &Catalog, segments: &str) -> Mapped {
    let text = message_text("A01", segments);
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    catalog.programs()[0].run(&message, &context()).expect("it is mapped")
}

/// Maps and answers the Bundle with the codes and places of the issues.
fn map(catalog: &Catalog, segments: &str) -> (Value, Vec<String>) {
    let text = message_text("A01", segments);
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    let alone = map_alone(catalog, &message, &context()).expect("it is mapped");
    let again = map_alone(catalog, &message, &context()).expect("it is mapped");
    assert_eq!(alone.bundle, again.bundle, "the same bytes every time");
    let bundle = serde_json::from_str(&alone.bundle).expect("JSON");
    let ignored = ["MSH-3", "MSH-4", "MSH-7", "MSH-9", "MSH-9.2", "MSH-10", "MSH-11", "MSH-12"];
    // The messages here leave out segments that the structure asks for.
    let told = alone.issues.iter().filter(|issue| issue.code != "segment-missing");
    let issues = told.filter(|issue| !ignored.contains(&issue.path.as_str()));
    (bundle, issues.map(|issue| format!("{} {}", issue.code, issue.path).trim().to_owned()).collect())
}

/// The issues but those about the identifier, which most maps here do not carry over.
fn without_unmapped(issues: &[String]) -> String {
    let other = issues.iter().filter(|issue| *issue != "unmapped-field PID-3");
    other.map(String::as_str).collect::<Vec<_>>().join("; ")
}

fn resource<'b>(bundle: &'b Value, kind: &str) -> &'b Value {
    nth(bundle, kind, 0)
}

fn nth<'b>(bundle: &'b Value, kind: &str, n: usize) -> &'b Value {
    let entries = bundle["entry"].as_array().into_iter().flatten();
    let mut resources = entries.map(|entry| &entry["resource"]).filter(|r| r["resourceType"] == kind);
    resources.nth(n).unwrap_or(&Value::Null)
}

fn slot<'m>(mapped: &'m Mapped, name: &str) -> Option<&'m SlotWrite> {
    mapped.contributions.iter().flat_map(|c| &c.slots).find(|slot| slot.name == name)
}

const NAME: &str = "  name: {all: [{id: legal, each: PID-5, use: xpn_name}, {id: old, each: PID-9, use: xpn_name, with: {use: old}}]}\n";

#[test]
fn a_valued_field_says_a_slot_an_absent_one_nothing_and_null_empties_it() {
    let catalog = adt(NAME, "");
    let said = |segments: &str| {
        let mapped = run(&catalog, segments);
        ["pid/name/legal", "pid/name/old"].map(|name| match slot(&mapped, name).map(|slot| &slot.write) {
            None => "nothing",
            Some(Write::Cleared) => "cleared",
            Some(Write::Valued(_)) => "valued",
        })
    };
    assert_eq!(said("PID|||T1||TEST^JANE||||TEST^OLD"), ["valued", "valued"]);
    assert_eq!(said("PID|||T1||TEST^JANE"), ["valued", "nothing"]);
    assert_eq!(said("PID|||T1||\"\"||||TEST^OLD"), ["cleared", "valued"]);
}

#[test]
fn a_rule_whose_condition_does_not_hold_empties_its_slot() {
    let catalog = adt("  birthDate: {when: \"PID-8 == 'F'\", value: date(PID-7)}\n", "");
    let write =
        |segments: &str| slot(&run(&catalog, segments), "pid/birthDate").map(|slot| slot.write.clone());
    assert!(matches!(write("PID|||T1||||19700131|F"), Some(Write::Valued(_))));
    assert_eq!(write("PID|||T1||||19700131|M"), Some(Write::Cleared));
    assert_eq!(write("PID|||T1|||||M"), None);
}

#[test]
fn parts_of_an_element_are_slots_of_their_own_and_null_components_are_left_out() {
    let catalog = adt(
        &format!(
            "{NAME}  maritalStatus: {{set: {{text: {{value: PID-16.2}}, coding: {{set: {{code: {{value: PID-16.1}}}}}}}}}}\n"
        ),
        "",
    );
    let (bundle, _) = map(&catalog, "PID|||T1||TEST^\"\"^Q|||||||||||M^Married");
    let patient = resource(&bundle, "Patient");
    assert_eq!(patient["name"][0]["given"], serde_json::json!(["Q"]));
    assert_eq!(patient["maritalStatus"], serde_json::json!({"text": "Married", "coding": [{"code": "M"}]}));
    let mapped = run(&catalog, "PID|||T1|||||||||||||M^Married");
    assert!(
        slot(&mapped, "pid/maritalStatus/text").is_some()
            && slot(&mapped, "pid/maritalStatus/coding").is_some()
    );
}

#[test]
fn the_first_key_names_the_resource_and_the_others_are_aliases() {
    let catalog = adt(NAME, "");
    let aliases = |pid3: &str| {
        let mapped = run(&catalog, &format!("PID|||{pid3}||TEST"));
        let patient = &mapped.contributions[0];
        (patient.id, patient.aliases.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>())
    };
    let (first, values) = aliases("P1^^^A^PI~M1^^^A^MR");
    assert_eq!(values, ["M1", "P1"]);
    assert_eq!(aliases("M1^^^A^MR").0, first, "whatever else is sent with it");
    assert_eq!(aliases("M1^^^A^MR~P1^^^A^PI").0, first, "in whatever order");
    assert_ne!(aliases("M1^^^B^MR").0, first, "of another authority");
    assert_eq!(first, mappings::id_of(Uuid::from_u128(1), "Patient", "urn:pons:sender:test:A", "M1"));
}

#[test]
fn what_is_printed_for_debugging_shows_no_value() {
    let mapped = run(
        &adt(&format!("{NAME}  gender: {{value: PID-8, map: sex}}\n"), ""),
        "PID|||SECRET1||SECRET2^JANE|||SECRET3",
    );
    let shown = format!("{mapped:?}");
    assert!(
        shown.contains("pid/name/legal") && !shown.contains("SECRET") && !shown.contains("JANE"),
        "{shown}"
    );
}

#[test]
fn other_separators_make_the_same_resource() {
    let catalog = adt(NAME, "");
    let id = |text: &str| {
        let message = Message::parse(text, &Limits::default()).expect("a message");
        catalog.programs()[0].run(&message, &context()).expect("it is mapped").contributions[0].id
    };
    assert_eq!(
        id("MSH|^~\\&|TEST||||20240131||ADT^A01|T|P|2.5.1\rPID|||M1^^^A&1.2.3&ISO^MR\r"),
        id("MSH#*!@$#TEST####20240131##ADT*A01#T#P#2.3\rPID###M1***A$1.2.3$ISO*MR\r"),
    );
}

#[test]
fn a_patient_without_a_key_waits_for_a_person() {
    let catalog = adt(NAME, "");
    let text = message_text("A01", "PID|||||TEST^JANE");
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    match map_alone(&catalog, &message, &context()) {
        Err(NotMapped::Quarantined(quarantined)) => assert!(!quarantined.reason.contains("JANE")),
        other => panic!("{other:?}"),
    }
    let text = text.replace("ADT^A01", "ADT^A99");
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    assert!(matches!(map_alone(&catalog, &message, &context()), Err(NotMapped::NotTaken)));
}

const PV1: &str = "segment_map: pv1\nfrom: PV1\nto: Encounter\nrules:
  status: {const: unknown}
  class: {concept: v3-ActCode#IMP}
  participant: {all: [{id: attending, each: PV1-7, set: {individual: {make: practitioner, use: xcn_practitioner}}},
                      {id: consulting, each: PV1-9, set: {individual: {make: practitioner, use: xcn_practitioner}}}]}\n";

fn visit() -> Catalog {
    visit_with("")
}

/// With more rules for the patient.
fn visit_with(rules: &str) -> Catalog {
    let pid = format!("segment_map: pid\nfrom: PID\nto: Patient\nrules:\n{NAME}{rules}");
    let mapping = format!(
        "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\nresources:{PATIENT}
- {{id: encounter, type: Encounter, from: PV1, identity: {{keys: [{{each: PV1-19}}], use: cx_key, else: message}}, parts: [{{use: pv1, from: PV1}}], set: {{subject: {{ref: patient}}}}}}"
    );
    catalog(&[&pid, PV1, &mapping])
}

#[test]
fn a_person_is_made_once_and_one_without_an_id_is_only_named() {
    let (bundle, _) = map(&visit(), "PID|||T1||TEST^JANE\nPV1|||||||D1^TEST^DOC~^TEST^ANN||D1^TEST^DOCTOR");
    let encounter = resource(&bundle, "Encounter");
    let persons: Vec<_> = (0..3).map(|n| &encounter["participant"][n]["individual"]).collect();
    assert_eq!(persons[0]["reference"], persons[2]["reference"]);
    assert_eq!(persons[1], &serde_json::json!({"display": "ANN TEST"}));
    assert_eq!(nth(&bundle, "Practitioner", 1), &Value::Null);
    let made = resource(&bundle, "Practitioner");
    assert_eq!(made["name"][0]["given"][0], "DOCTOR", "the fuller one says it");
    let patient = resource(&bundle, "Patient")["id"].as_str().expect("an id");
    assert_eq!(encounter["subject"]["reference"], format!("urn:uuid:{patient}"));
}

#[test]
fn who_was_made_for_one_resource_stays_when_another_is_left_out() {
    let catalog = visit_with("  birthDate: {value: date(PID-7), on_error: fail}\n");
    let (bundle, issues) = map(&catalog, "PID|||T1||TEST||1970-01-31\nPV1|||||||D1^TEST^DOC");
    assert!(issues.iter().any(|issue| issue == "resource-left-out PID-7"), "{issues:?}");
    assert_eq!(resource(&bundle, "Patient"), &Value::Null);
    let attending = &resource(&bundle, "Encounter")["participant"][0]["individual"]["reference"];
    let made = resource(&bundle, "Practitioner")["id"].as_str().expect("an id");
    assert_eq!(attending, &format!("urn:uuid:{made}"));
}

#[test]
fn without_a_patient_there_is_no_reference_to_one() {
    let (bundle, _) = map(&visit(), "PV1|||||||D1^TEST^DOC");
    assert_eq!(resource(&bundle, "Encounter")["subject"], Value::Null);
    assert_eq!(resource(&bundle, "Patient"), &Value::Null);
}

#[test]
fn what_cannot_be_read_follows_the_policy_of_its_rule() {
    let birth = |policy: &str| {
        let catalog = adt(&format!("{NAME}  birthDate: {{value: date(PID-7){policy}}}\n"), "");
        let (bundle, issues) = map(&catalog, "PID|||T1||TEST||1970-01-31");
        (resource(&bundle, "Patient").clone(), without_unmapped(&issues))
    };
    for policy in ["", ", on_error: omit"] {
        let (patient, issues) = birth(policy);
        assert_eq!((&patient["birthDate"], issues.as_str()), (&Value::Null, "unreadable-value PID-7"));
    }
    let (patient, _) = birth(", on_error: data-absent");
    assert_eq!(patient["_birthDate"]["extension"][0]["valueCode"], "unknown");
    let (patient, issues) = birth(", on_error: fail");
    assert!(patient.is_null() && issues.contains("resource-left-out PID-7"), "{issues}");
    let (patient, _) = birth(", on_error: {const: \"1970\"}");
    assert_eq!(patient["birthDate"], "1970");
    let catalog = adt("  birthDate: {value: date(PID-7), on_error: quarantine}\n", "");
    let text = message_text("A01", "PID|||T1||||1970-01-31");
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    assert!(matches!(map_alone(&catalog, &message, &context()), Err(NotMapped::Quarantined(_))));
}

#[test]
fn an_unreadable_value_does_not_touch_what_is_known() {
    let catalog = adt("  birthDate: {value: date(PID-7)}\n", "");
    assert!(slot(&run(&catalog, "PID|||T1||||tomorrow"), "pid/birthDate").is_none());
}

#[test]
fn a_table_has_three_outcomes_and_never_lets_a_code_into_a_fixed_list() {
    let gender = |more: &str, code: &str| {
        let catalog = adt(&format!("{NAME}  gender: {{value: PID-8, map: sex{more}}}\n"), "");
        let (bundle, issues) = map(&catalog, &format!("PID|||T1||TEST|||{code}"));
        (resource(&bundle, "Patient")["gender"].clone(), without_unmapped(&issues))
    };
    assert_eq!(gender("", "F"), ("female".into(), String::new()));
    assert_eq!(gender("", "X"), (Value::Null, "unmapped-code PID-8".to_owned()));
    assert_eq!(gender("", "N").0, Value::Null);
    assert_eq!(gender(", on_unmapped: {set: unknown}", "X").0, "unknown");
    assert_eq!(gender(", on_unmatched: {set: other}", "N").0, "other");
    let mapped = run(&adt("  gender: {value: PID-8, map: sex}\n", ""), "PID|||T1|||||X");
    assert_eq!(
        (mapped.unmapped_codes[0].table.as_str(), mapped.unmapped_codes[0].code.as_str()),
        ("sex", "X")
    );
}

#[test]
fn every_field_is_mapped_ignored_or_reported() {
    let catalog = adt(
        &format!("{NAME}  birthDate: {{value: date(PID-7)}}\nignore: [{{path: PID-1, reason: set id}}]\n"),
        "",
    );
    let (_, issues) =
        map(&catalog, "PID|1||T1^^^A||TEST^JANE^^^DR||197001312359|F||||||^^^a@test.example\nZPI|1^2&3");
    // PID-3 is read for the identity alone, which carries nothing over.
    assert_eq!(
        issues,
        [
            "unmapped-field PID-3",
            "unmapped-field PID-3.4",
            "unmapped-field PID-5.5",
            "unmapped-field PID-8",
            "unmapped-field PID-14.4",
            "unmapped-field ZPI-1",
            "unmapped-field ZPI-1.2",
        ]
    );
}

#[test]
fn extensions_stand_beside_a_primitive_and_nest() {
    let rules = "  birthDate: {value: date(PID-7), extension: [{id: time, when: length(PID-7) > 8, url: patient-birthTime, as: dateTime, value: datetime(PID-7)}]}
  extension: {all: [{id: race, url: \"http://test.example/race\", extension: [{id: text, url: text, as: string, value: PID-10.2}]}]}\n";
    let (bundle, _) = map(&adt(rules, ""), "PID|||T1||||197001312359|||^TEST RACE");
    let patient = resource(&bundle, "Patient");
    assert_eq!(patient["birthDate"], "1970-01-31");
    assert_eq!(
        patient["_birthDate"]["extension"][0],
        serde_json::json!({"url": "http://hl7.org/fhir/StructureDefinition/patient-birthTime", "valueDateTime": "1970-01-31T23:59:00+01:00"})
    );
    assert_eq!(patient["extension"][0]["extension"][0]["valueString"], "TEST RACE");
}

const RESULTS: &str = "segment_map: obx
from: OBX
to: Observation
scope: {order: ORDER_OBSERVATION}
rules:
  status: {const: final}
  code: {set: {text: {value: OBX-3.2}}}
  value[x]: {use: value, from: OBX-5}
  effective[x]: {as: dateTime, value: datetime(order.OBR-7)}
  note: {each: NTE, set: {text: {value: NTE-3}}}
---
type_map: value
from: varies
to: value[x]
switch: OBX-2
cases:
  NM: {as: Quantity, set: {value: {value: decimal(it)}, unit: {value: OBX-6}}, on_error: {as: string, value: text(it)}}
  ST TX: {as: string, value: text(it)}
---
segment_map: obr
from: OBR
to: DiagnosticReport
rules:
  status: {const: final}
  code: {set: {text: {value: OBR-4.2}}}
---
mapping: oru
version: 1
source: {format: hl7v2, structure: ORU_R01, events: [R01]}
resources:
- {id: report, type: DiagnosticReport, each: PATIENT_RESULT.ORDER_OBSERVATION as order, identity: {keys: [{value: OBR-3}], else: message}, parts: [{use: obr, from: OBR}],
   set: {result: {refs: result, where: \"it.OBX-29 != 'QST'\"}}}
- {id: result, type: Observation, each: PATIENT_RESULT.ORDER_OBSERVATION.OBSERVATION, identity: {keys: [{of: report, value: [OBX-3.1, ordinal()]}], else: message},
   parts: [{use: obx, from: OBX}], set: {hasMember: {refs: result, where: \"it.OBX-3.1 == 'none'\"}}}";

fn results(segments: &str) -> (Value, Vec<String>) {
    let catalog = catalog(&[RESULTS]);
    let text = message_text("A01", segments).replace("ADT^A01", "ORU^R01");
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    let alone = map_alone(&catalog, &message, &context()).expect("it is mapped");
    (
        serde_json::from_str(&alone.bundle).expect("JSON"),
        alone.issues.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn references_and_scopes_follow_the_groups_of_the_message() {
    let (bundle, _) = results(
        "PID|||T1\nOBR|1||F1|^ONE|||20240101\nOBX|1|NM|A^Sodium||140|mmol/L\nNTE|1||A note\nOBX|2|ST|B^Look||clear||||||||||||||||||||||||QST\n\
         OBR|2||F2|^TWO|||20240202\nOBX|1|NM|A^Sodium||>150|mmol/L",
    );
    let result = |n| nth(&bundle, "Observation", n);
    let reference = |n: usize| format!("urn:uuid:{}", result(n)["id"].as_str().expect("an id"));
    let report = |n| nth(&bundle, "DiagnosticReport", n);
    assert_eq!(
        report(0)["result"],
        serde_json::json!([{"reference": reference(0)}]),
        "the other is no result"
    );
    assert_eq!(report(1)["result"], serde_json::json!([{"reference": reference(2)}]));
    assert_eq!(result(0)["effectiveDateTime"], "2024-01-01");
    assert_eq!(result(2)["effectiveDateTime"], "2024-02-02");
    assert_eq!(result(0)["valueQuantity"].to_string(), r#"{"value":140,"unit":"mmol/L"}"#);
    assert_eq!((&result(1)["valueString"], &result(2)["valueString"]), (&"clear".into(), &">150".into()));
    assert_eq!(result(0)["note"][0]["text"], "A note");
    assert_eq!(result(0)["hasMember"], Value::Null);
}

#[test]
fn a_result_keeps_its_id_whatever_its_set_id_says() {
    let ids = |segments: &str| {
        let (bundle, _) = results(segments);
        (0..3).map(|n| nth(&bundle, "Observation", n)["id"].clone()).collect::<Vec<_>>()
    };
    let first = ids("OBR|1||F1|^ONE\nOBX|1|ST|A^X||1\nOBX|2|ST|B^Y||2\nOBX|3|ST|A^X||3");
    let second = ids("OBR|1||F1|^ONE\nOBX|7|ST|A^X||1\nOBX|8|ST|A^X||3\nOBX|9|ST|B^Y||2");
    assert_eq!((&first[0], &first[2], &first[1]), (&second[0], &second[1], &second[2]));
    assert_ne!(first[0], first[2]);
}

#[test]
fn what_lacks_a_required_element_is_left_out_with_the_references_to_it() {
    let (bundle, issues) = results("OBR|1||F1|^ONE\nOBX|1|ST|A||1\nOBX|2|ST|B^Named||2");
    assert_eq!(nth(&bundle, "Observation", 1), &Value::Null);
    assert_eq!(resource(&bundle, "DiagnosticReport")["result"].as_array().map(Vec::len), Some(1));
    assert!(issues.iter().any(|issue| issue.contains("resource-left-out")), "{issues:?}");
}

#[test]
fn ten_thousand_results_are_mapped_in_bounded_time() {
    let mut segments = String::from("OBR|1||F1|^ONE\n");
    for n in 0..10_000 {
        segments.push_str(&format!("OBX|{n}|NM|A^X||{n}|mg\n"));
    }
    let (bundle, _) = results(&segments);
    assert_eq!(resource(&bundle, "DiagnosticReport")["result"].as_array().map(Vec::len), Some(10_000));
}

mod properties {
    use super::*;
    use proptest::prelude::*;
    use std::sync::OnceLock;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn no_value_breaks_the_json_or_is_changed(family in "\\PC{1,20}", given in "[ -~]{1,12}") {
            static CATALOG: OnceLock<Catalog> = OnceLock::new();
            let catalog = CATALOG.get_or_init(|| adt(NAME, ""));
            let separators = *Message::parse(&message_text("A01", "PID|1"), &Limits::default()).expect("a message").separators();
            let encode = |value: &str| schemas::hl7v2::escape::encode(value, &separators).into_owned();
            let text = message_text("A01", &format!("PID|||T1||{}^{}", encode(&family), encode(&given)));
            let message = Message::parse(&text, &Limits::default()).expect("a message");
            let alone = map_alone(catalog, &message, &context()).expect("it is mapped");
            let bundle: Value = serde_json::from_str(&alone.bundle).expect("JSON");
            let name = &resource(&bundle, "Patient")["name"][0];
            let same = |found: &Value, sent: &str| {
                let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
                plain(found.as_str().unwrap_or_default()) == plain(sent)
            };
            prop_assert!(sent_nothing(&family) || same(&name["family"], &family), "{} {:?}", name, family);
            prop_assert!(sent_nothing(&given) || same(&name["given"][0], &given), "{} {:?}", name, given);
        }

        #[test]
        fn no_message_panics_the_engine(fields in proptest::collection::vec("[A-Z0-9^~&\\\\\"|]{0,12}", 0..30)) {
            static CATALOG: OnceLock<Catalog> = OnceLock::new();
            let catalog = CATALOG.get_or_init(visit);
            let text = message_text("A01", &format!("PID|||T1|{}\nPV1|{}", fields.join("|"), fields.join("|")));
            let message = Message::parse(&text, &Limits::default());
            if let Some(Ok(alone)) = message.ok().map(|message| map_alone(catalog, &message, &context())) {
                prop_assert!(serde_json::from_str::<Value>(&alone.bundle).is_ok());
            }
        }
    }

    /// HL7's null, or blanks alone.
    fn sent_nothing(text: &str) -> bool {
        text.trim().is_empty() || text == "\"\""
    }
}

#[test]
fn repetitions_of_two_fields_go_in_pairs() {
    let catalog = adt(
        "  identifier: {all: [{id: pair, each: PID-3, set: {value: {value: it.1}, system: {value: \"PID-4[index()].1\"}}}]}",
        "",
    );
    let (bundle, issues) = map(&catalog, "PID|||A~B~C|urn:x:1~urn:x:2~~urn:x:4");
    let identifiers = &resource(&bundle, "Patient")["identifier"];
    let pairs: Vec<(&Value, &Value)> =
        identifiers.as_array().expect("a list").iter().map(|one| (&one["value"], &one["system"])).collect();
    assert_eq!(
        format!("{pairs:?}"),
        "[(String(\"A\"), String(\"urn:x:1\")), (String(\"B\"), String(\"urn:x:2\")), (String(\"C\"), Null)]"
    );
    assert!(
        issues.contains(&"unmapped-field PID-4[4]".to_owned()),
        "what has no partner is told: {issues:?}"
    );
}

#[test]
fn tests_in_a_file_of_their_own_run_and_name_what_they_are_about() {
    let tests = |of: &str, expected: &str| {
        format!(
            "tests_for: {of}\ntests:\n  - name: one\n    given: \"MSH|^~\\\\&|TEST|TESTHOSP|||20240131083000+0100||ADT^A01|TEST1|P|2.5.1\\rPID|||X\\rPV1||I\"\n    expect: {{Patient.active: \"{expected}\"}}\n    options: {{adt.living: \"yes\"}}"
        )
    };
    let mapping = format!(
        "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\noptions: {{living: {{enum: [\"no\", \"yes\"], default: \"no\"}}}}\nresources:{PATIENT}"
    )
    .replace("parts:", "set: {active: {const: \"true\", when: \"option.living == 'yes'\"}}, parts:");
    let pid = "segment_map: pid\nfrom: PID\nto: Patient\nrules: {name: {each: PID-5, use: xpn_name}}";
    assert!(catalog(&[pid, &mapping, &tests("adt", "true")]).run_tests().is_empty());
    assert_eq!(catalog(&[pid, &mapping, &tests("adt", "false")]).run_tests().len(), 1);
    let wrong =
        vec![("test.yaml".to_owned(), [COMMON, pid, &mapping, &tests("adtt", "true")].join("\n---\n"))];
    let mistakes = Catalog::from_files(wrong).expect_err("there is no adtt");
    assert!(mistakes[0].to_string().contains("did you mean `adt`?"), "{}", mistakes[0]);
}

#[test]
fn a_declared_segment_has_types_and_an_end() {
    let declared = "z_segment: ZPD\ntitle: Pet\nfields: [{name: Id, type: CX}, {name: Name, type: XPN}]";
    let resources = "\n- {id: pet, type: Patient, from: ZPD, identity: {keys: [{each: ZPD-1}], use: cx_key, else: omit}, parts: [{use: zpd, from: ZPD}]}";
    let build = |zpd: &str| {
        let pid = "segment_map: pid\nfrom: PID\nto: Patient\nrules: {name: {each: PID-5, use: xpn_name}}";
        let zpd = format!("segment_map: zpd\nfrom: ZPD\nto: Patient\nrules: {{{zpd}}}");
        let mapping = format!(
            "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\nresources:{PATIENT}{resources}"
        );
        let text = [COMMON, pid, declared, &zpd, &mapping].join("\n---\n");
        Catalog::from_files(vec![("test.yaml".to_owned(), text)])
    };
    let catalog = build("identifier: {use: cx_identifier, from: ZPD-1}, name: {use: xpn_name, from: ZPD-2}")
        .expect("right");
    let (bundle, _) = map(&catalog, "PID|||P1||TEST^JANE\nPV1|1\nZPD|PET1|TEST^REX");
    assert_eq!(nth(&bundle, "Patient", 1)["name"][0]["given"][0], "REX");
    let told = |zpd: &str| build(zpd).expect_err("wrong").iter().map(ToString::to_string).collect::<String>();
    assert!(told("active: {const: \"true\", when: \"valued(ZPD-3)\"}").contains("ZPD has 2 fields"));
    assert!(told("birthDate: {value: \"date(ZPD-1.30)\"}").contains("CX has"));
}

#[test]
fn why_there_is_no_value_stands_beside_the_element() {
    let catalog = adt(
        "  birthDate: {first: [{id: known, value: \"date(PID-7)\"}, {id: unknown, absent: asked-unknown}]}
  contact: {each: PID-5, set: {name: {use: xpn_name}, gender: {absent: unknown}}}",
        "",
    );
    let (bundle, _) = map(&catalog, "PID|||P1||TEST^JANE");
    let patient = resource(&bundle, "Patient");
    assert_eq!(patient["_birthDate"]["extension"][0]["valueCode"], "asked-unknown");
    assert_eq!(patient["contact"][0]["_gender"]["extension"][0]["valueCode"], "unknown");
    let (bundle, _) = map(&catalog, "PID|||P1||||19800304");
    assert_eq!(resource(&bundle, "Patient")["birthDate"], "1980-03-04");
    assert_eq!(resource(&bundle, "Patient")["_birthDate"], Value::Null);
    assert_eq!(resource(&bundle, "Patient")["contact"], Value::Null, "nothing but a reason is no contact");
    let told = mistakes::mistakes_of(
        "  birthDate: {absent: unkown}\n  name: {absent: unknown}\n  telecom: {all: [{id: a, each: PID-13, set: {value: {value: it}}, extension: [{id: b, url: x, as: string, value: it}]}]}",
    );
    assert!(told[0].contains("did you mean `unknown`?"), "{told:?}");
    assert!(told[1].contains("says why a single primitive has no value"), "{told:?}");
}

#[test]
fn a_key_may_have_a_condition_and_a_reference_to_all_may_leave_some_out() {
    let resources = "
- {id: other, type: Organization, from: PID, identity: {keys: [{each: PID-4, when: \"it.1 != 'X'\", use: cx_key}, {value: PID-18.1, when: \"valued(PID-19)\"}], else: omit}, parts: [], set: {name: {value: PID-5.1}}}
- {id: list, type: List, from: PID, identity: {keys: [], else: message}, parts: [], set: {status: {const: current}, mode: {const: working}, entry: {set: {item: {refs: \"*\", without: [patient], max: 1}}}}}";
    let catalog = adt("  active: {const: \"true\"}", resources);
    let (bundle, _) = map(&catalog, "PID|||P1|X~Y|TEST|||||||||||||A");
    assert_eq!(resource(&bundle, "Organization")["name"], "TEST");
    let item = resource(&bundle, "List")["entry"][0]["item"]["reference"].clone();
    let id = resource(&bundle, "Organization")["id"].as_str().expect("an id").to_owned();
    assert_eq!(item, format!("urn:uuid:{id}"), "the patient is left out");
    let (bundle, _) = map(&catalog, "PID|||P1|X|TEST|||||||||||||A");
    assert_eq!(resource(&bundle, "Organization"), &Value::Null, "neither key counts");
    let (bundle, _) = map(&catalog, "PID|||P1|X|TEST|||||||||||||A|S");
    assert_eq!(resource(&bundle, "Organization")["name"], "TEST");
}

#[test]
fn a_reference_never_leads_to_what_stands_with_another_order_or_another_patient() {
    let documents = [
        "segment_map: pid\nfrom: PID\nto: Patient\nrules: {name: {each: PID-5, use: xpn_name}}",
        "segment_map: obr\nfrom: OBR\nto: DiagnosticReport\nrules: {code: {set: {text: {value: OBR-4.1}}}}",
        "segment_map: obx\nfrom: OBX\nto: Observation\nrules: {code: {set: {text: {value: OBX-3.1}}}}",
        "mapping: oru
version: 1
source: {format: hl7v2, structure: ORU_R01, events: [A01]}
resources:
  - {id: patient, type: Patient, from: PATIENT_RESULT.PATIENT, identity: {keys: [{each: PID-3}], use: cx_key, else: quarantine}, parts: [{use: pid, from: PID}]}
  - {id: report, type: DiagnosticReport, each: PATIENT_RESULT.ORDER_OBSERVATION, identity: {keys: [], else: message}, parts: [{use: obr, from: OBR}],
     set: {status: {const: final}, subject: {ref: patient}, result: {refs: observation}}}
  - {id: observation, type: Observation, each: PATIENT_RESULT.ORDER_OBSERVATION.OBSERVATION, identity: {keys: [], else: message}, parts: [{use: obx, from: OBX}],
     set: {status: {const: final}, subject: {ref: patient}}}",
    ];
    let catalog = catalog(&documents);
    let map = |segments: &str| {
        let text = message_text("R01", segments).replace("ADT^R01", "ORU^R01");
        let message = Message::parse(&text, &Limits::default()).expect("a message");
        let program = &catalog.programs()[0];
        let alone = mappings::map_by(program, &message, &context()).expect("it is mapped");
        serde_json::from_str::<Value>(&alone.bundle).expect("JSON")
    };
    // The second order has no result yet.
    let bundle = map("PID|||P1||ONE^A\nOBR|1|||FIRST\nOBX|1|ST|GLU||5\nOBR|2|||SECOND");
    assert_eq!(nth(&bundle, "DiagnosticReport", 0)["result"].as_array().map(Vec::len), Some(1));
    assert_eq!(nth(&bundle, "DiagnosticReport", 1)["code"]["text"], "SECOND");
    assert_eq!(nth(&bundle, "DiagnosticReport", 1)["result"], Value::Null);
    // Two patients, each with an order of their own.
    let bundle = map("PID|||P1||ONE^A\nOBR|1|||FIRST\nPID|||P2||TWO^B\nOBR|1|||SECOND\nOBX|1|ST|GLU||5");
    let id = |n: usize| format!("urn:uuid:{}", nth(&bundle, "Patient", n)["id"].as_str().expect("an id"));
    assert_eq!(nth(&bundle, "DiagnosticReport", 0)["subject"]["reference"], id(0));
    assert_eq!(nth(&bundle, "DiagnosticReport", 0)["result"], Value::Null);
    assert_eq!(nth(&bundle, "DiagnosticReport", 1)["subject"]["reference"], id(1));
    assert_eq!(resource(&bundle, "Observation")["subject"]["reference"], id(1));
}

#[test]
fn a_message_may_say_something_of_its_bundle() {
    let pid = "segment_map: pid\nfrom: PID\nto: Patient\nrules: {name: {each: PID-5, use: xpn_name}, meta: {set: {tag: {set: {code: {const: own}}}}}}";
    let mapping = format!(
        "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\nresources:{PATIENT}
bundle:
  identifier: {{set: {{system: {{value: sender.system}}, value: {{value: MSH-10}}}}}}
  timestamp: {{value: \"instant(MSH-7)\"}}
  meta: {{set: {{tag: {{when: \"MSH-11.1 != 'P'\", set: {{system: {{const: \"http://terminology.hl7.org/CodeSystem/v3-ActReason\"}}, code: {{const: HTEST}}}}}}}}}}"
    );
    let catalog = catalog(&[pid, &mapping]);
    let (bundle, _) = map(&catalog, "PID|||P1||TEST^JANE");
    assert_eq!(bundle["identifier"]["value"], "TEST1");
    assert_eq!(bundle["timestamp"], "2024-01-31T08:30:00+01:00");
    assert_eq!((&bundle["type"], &bundle["meta"]), (&"transaction".into(), &Value::Null));
    assert_eq!(resource(&bundle, "Patient")["meta"]["tag"].as_array().map(Vec::len), Some(1));
    // What is no production message says so in every resource.
    let text = message_text("A01", "PID|||P1||TEST^JANE").replace("|P|2.5.1", "|T|2.5.1");
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    let alone = map_alone(&catalog, &message, &context()).expect("it is mapped");
    let bundle: Value = serde_json::from_str(&alone.bundle).expect("JSON");
    assert_eq!(bundle["meta"]["tag"][0]["code"], "HTEST");
    let tags = &resource(&bundle, "Patient")["meta"]["tag"];
    assert_eq!((&tags[0]["code"], &tags[1]["code"]), (&"own".into(), &"HTEST".into()));
    let wrong = mapping.replace("timestamp:", "type:");
    let files = vec![("test.yaml".to_owned(), [COMMON, pid, &wrong].join("\n---\n"))];
    let mistakes = Catalog::from_files(files).expect_err("the type is not its to say");
    assert!(mistakes.iter().any(|m| m.to_string().contains("is not a mapping's to say")), "{mistakes:?}");
}

#[test]
fn a_reference_may_have_extensions_and_a_reason_gives_way_to_a_value() {
    let catalog = adt(
        "  generalPractitioner: {each: PV1-7, make: Practitioner, use: xcn_practitioner, extension: [{id: since, url: \"http://test.example/since\", as: string, value: PID-10.1}]}
  birthDate: {value: \"date(PID-7)\"}",
        "",
    );
    let (bundle, _) = map(&catalog, "PID|||P1|||||||X\nPV1|||||||D1^TEST^DOC");
    let doctor = &resource(&bundle, "Patient")["generalPractitioner"][0];
    assert_eq!(
        doctor["extension"][0],
        serde_json::json!({"url": "http://test.example/since", "valueString": "X"})
    );
    assert!(doctor["reference"].is_string());
    let (bundle, _) = map(&catalog, "PID|||P1\nPV1|||||||D1^TEST^DOC");
    assert_eq!(resource(&bundle, "Patient")["generalPractitioner"][0]["extension"], Value::Null);
    // The mapping's own word for a missing value, and the value of a part.
    let mapping = format!(
        "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\nresources:{PATIENT}"
    )
    .replace("parts:", "set: {birthDate: {absent: unknown}}, parts:");
    let pid = "segment_map: pid\nfrom: PID\nto: Patient\nrules: {birthDate: {value: \"date(PID-7)\"}}";
    let catalog = crate::catalog(&[pid, &mapping]);
    let (bundle, _) = map(&catalog, "PID|||P1||||19800304");
    assert_eq!(resource(&bundle, "Patient")["birthDate"], "1980-03-04");
    assert_eq!(resource(&bundle, "Patient")["_birthDate"], Value::Null);
    let (bundle, _) = map(&catalog, "PID|||P1");
    assert_eq!(resource(&bundle, "Patient")["_birthDate"]["extension"][0]["valueCode"], "unknown");
}

#[test]
fn a_condition_on_the_number_of_a_repetition_is_asked_for_each() {
    let catalog = adt(
        "  identifier: {all: [{id: later, each: PID-3, when: \"index() == 2 and valued(PID-4[index()])\", set: {value: {value: it.1}}}]}",
        "",
    );
    let (bundle, _) = map(&catalog, "PID|||A~B~C|X~Y~Z");
    let identifiers = &resource(&bundle, "Patient")["identifier"];
    assert_eq!(identifiers[0]["value"], "B");
    assert_eq!(identifiers.as_array().map(Vec::len), Some(1));
}

#[test]
fn what_a_map_is_handed_is_null_where_the_field_is() {
    let naming = "type_map: named\nfrom: XPN\nto: HumanName\nparams: [title]\nrules:\n  family: {value: XPN.1.1}\n  \
                  prefix: {when: \"valued(with.title)\", all: [{id: one, value: with.title}]}\n  \
                  text: {value: \"with.title ?? XPN.2\"}";
    let pid = "segment_map: pid\nfrom: PID\nto: Patient\nrules:\n  \
               name: {all: [{id: legal, each: PID-5, use: named, with: {title: \"=PID-8\"}}]}";
    let mapping = format!(
        "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\nresources:{PATIENT}"
    );
    let catalog = catalog(&[naming, pid, &mapping]);
    let name = |title: &str| {
        let (bundle, _) = map(&catalog, &format!("PID|||1||TEST^JANE|||{title}"));
        resource(&bundle, "Patient")["name"][0].clone()
    };
    assert_eq!(name("Dr")["prefix"][0], "Dr");
    assert_eq!(name("Dr")["text"], "Dr");
    for absent in ["\"\"", ""] {
        assert_eq!(name(absent)["prefix"], Value::Null, "{absent:?}");
        assert_eq!(name(absent)["text"], "JANE", "{absent:?}");
    }
}

#[test]
fn a_key_that_counts_under_a_condition_is_not_remembered_without_it() {
    let seen = "type_map: seen\nfrom: XCN\nmakes: Practitioner\n\
                identity: {keys: [{value: XCN.1, when: \"PID-8 == 'F'\"}, {value: XCN.2.1}], else: display}\n\
                display: XCN.2.1\nrules:\n  name: {set: {family: {value: XCN.2.1}}}";
    let pid = "segment_map: pid\nfrom: PID\nto: Patient\nrules:\n  \
               generalPractitioner: {all: [{id: own, each: PV1-7, make: Practitioner, use: seen}]}";
    let mapping = format!(
        "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\nresources:{PATIENT}"
    );
    let catalog = catalog(&[seen, pid, &mapping]);
    let id = |sex: &str| {
        let (bundle, _) = map(&catalog, &format!("PID|||1|||||{sex}\nPV1|||||||D1^TEST"));
        resource(&bundle, "Practitioner")["id"].clone()
    };
    let first = id("F");
    assert_ne!(id("M"), first, "another key, although the doctor is written the same");
    assert_eq!(id("F"), first);
}

/// Each of these took hours when every leaf was held against every other one.
#[test]
fn many_nulls_and_many_people_in_one_field_are_mapped_like_few() {
    let pid =
        "  generalPractitioner: {all: [{id: own, each: PV1-7, make: Practitioner, use: xcn_practitioner}]}";
    let catalog = adt(pid, "");
    let nulls = ["\"\""; 60_000].join("&");
    let mapped = run(&catalog, &format!("PID|||1\nZZZ|{nulls}^{nulls}"));
    assert_eq!(mapped.issues.iter().filter(|issue| issue.path.starts_with("ZZZ")).count(), 2);
    let people: Vec<String> = (0..20_000).map(|number| format!("{number}^TEST")).collect();
    let text = message_text("A01", &format!("PID|||1\nPV1|||||||{}", people.join("~")));
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    let mapped = catalog.programs()[0].run(&message, &context()).expect("it is mapped");
    assert_eq!(mapped.contributions.len(), 20_001);
}

/// A patient of PID and NK1, and another whose name every NK1 may say.
fn of_relatives() -> Catalog {
    catalog(&[
        "segment_map: pid\nfrom: PID\nto: Patient\nrules:\n  gender: {const: male}",
        "segment_map: nk1\nfrom: NK1\nto: Patient\nrules:\n  birthDate: {value: date(NK1-16)}\n  name: {set: {text: {value: NK1-2.1}}}",
        &format!(
            "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\nresources:{}
- {{id: relative, type: Patient, from: NK1, identity: {{keys: [{{value: NK1-33}}], else: omit}}, parts: [{{use: nk1, from: NK1}}]}}",
            PATIENT.replace("{use: pid, from: PID}", "{use: pid, from: PID}, {use: nk1, from: NK1}")
        ),
    ])
}

#[test]
fn what_a_second_segment_says_otherwise_is_told() {
    let relative =
        |number: u8, name: &str, born: &str| format!("\nNK1|{number}|{name}{}{born}", "|".repeat(14));
    let segments = format!(
        "PID|1||TEST4711^^^TESTHOSP^MR{}{}{}",
        relative(1, "JANE", "19700101"),
        relative(2, "JOHN", "19700101"),
        relative(3, "JIM", "19700102")
    );
    let (bundle, issues) = map(&of_relatives(), &segments);
    let patient = &bundle["entry"][0]["resource"];
    assert_eq!(patient["birthDate"], "1970-01-01", "the first says it: {bundle}");
    assert_eq!(patient["name"].as_array().map(Vec::len), Some(3));
    let told: Vec<_> = issues.iter().filter(|issue| issue.starts_with("said-otherwise")).collect();
    assert_eq!(told, ["said-otherwise NK1[3]"]);
}

#[test]
fn ten_thousands_of_mentions_of_one_person_end() {
    let relatives: Vec<String> =
        (0..19_000).map(|number| format!("NK1|1|TEST{number:0100}{}TEST9", "|".repeat(31))).collect();
    let text = message_text("A01", &format!("PID|1||1\n{}", relatives.join("\n")));
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    let quarantined = of_relatives().programs()[0].run(&message, &context()).expect_err("it takes too long");
    assert!(quarantined.reason.contains("more steps"), "{}", quarantined.reason);
}
