//! What several mappings share: fragments, and what a site lays over them.

use super::*;

const FRAGMENT: &str = "fragment: person
options: {note: {enum: [\"no\", \"yes\"], default: \"no\"}}
resources:
  - {id: patient, type: Patient, from: PID,
     identity: {keys: [{each: PID-3}], use: cx_key, else: quarantine},
     parts: [{use: pid, from: PID}, {use: nk1, each: NK1}],
     set: {active: {const: \"true\", when: \"option.note == 'yes'\"}}}
  - {id: procedure, type: Procedure, each: PROCEDURE,
     identity: {keys: [], else: message},
     parts: [{use: pr1, from: PR1}],
     set: {subject: {ref: patient}, status: {const: unknown}}}
ignore: [{path: PID-4, reason: so}]
---
segment_map: pid
from: PID
to: Patient
rules: {name: {each: PID-5, use: xpn_name}}
---
segment_map: nk1
from: NK1
to: Patient
rules: {contact: {set: {name: {use: xpn_name, from: NK1-2}}}}
---
segment_map: pr1
from: PR1
to: Procedure
rules: {code: {set: {text: {value: PR1-3.1}}}}";

#[test]
fn a_fragment_stands_in_every_message_that_includes_it_as_far_as_there_is_a_place_for_it() {
    let admit = "mapping: adt\nversion: 1\nsource: {format: hl7v2, structure: ADT_A01, events: [A01]}\n\
                 include: [{fragment: person, change: {patient: {set: {gender: {const: other}}}}}]";
    let result = "mapping: oru\nversion: 1\nsource: {format: hl7v2, structure: ORU_R01, events: [R01]}\n\
                  include: [{fragment: person, at: PATIENT_RESULT.PATIENT, without: [procedure], change: {patient: {else: message}}}]";
    let catalog = catalog(&[FRAGMENT, admit, result]);
    let (bundle, issues) = map(&catalog, "PID|||P1|P2|TEST^JANE\nNK1|1|TEST^JOHN\nPV1|1\nPR1|1||CODE1");
    assert_eq!(resource(&bundle, "Patient")["gender"], "other");
    assert_eq!(resource(&bundle, "Patient")["contact"][0]["name"]["given"][0], "JOHN");
    assert_eq!(resource(&bundle, "Procedure")["code"]["text"], "CODE1");
    assert!(!issues.iter().any(|issue| issue == "unmapped-field PID-4"), "{issues:?}");
    let text = message_text("R01", "PID|||||TEST^OTTO\nOBR|1|||T").replace("ADT^R01", "ORU^R01");
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    let alone = map_alone(&catalog, &message, &context()).expect("without a key, it belongs to the message");
    let bundle: Value = serde_json::from_str(&alone.bundle).expect("JSON");
    assert_eq!(resource(&bundle, "Patient")["name"][0]["given"][0], "OTTO");
    assert_eq!(resource(&bundle, "Patient")["gender"], Value::Null);
}

#[test]
fn mistakes_about_fragments_are_told_where_they_stand() {
    let told = |include: &str| {
        let mapping = format!(
            "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\ninclude: [{include}]"
        );
        let files = vec![("test.yaml".to_owned(), [COMMON, FRAGMENT, &mapping].join("\n---\n"))];
        let mistakes = Catalog::from_files(files).expect_err("it is wrong");
        mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert!(
        told("{fragment: persons}").contains("did you mean `person`?"),
        "{}",
        told("{fragment: persons}")
    );
    let text = told("{fragment: person, without: [proceduer]}");
    assert!(text.contains("no resource with this id; did you mean `procedure`?"), "{text}");
    let text = told("{fragment: person, at: PROCEDURES}");
    assert!(text.contains("no mapping that includes this fragment has a place for it"), "{text}");
    let text = told("{fragment: person}, {fragment: person}");
    assert!(text.contains("this id stands here twice"), "{text}");
    let text = told("{fragment: person, change: {patient: {else: perhaps}}}");
    assert!(text.contains("else"), "{text}");
}

/// A map of PID, a mapping, and what a site has.
fn with_site(site: &[(&str, &str)]) -> Result<Catalog, String> {
    let pid = "segment_map: pid
from: PID
to: Patient
options: {realm: {enum: [us, de], default: us}}
rules:
  identifier: {all: [{id: list, each: PID-3, use: cx_identifier}, {id: other, each: PID-4, use: cx_identifier}]}
  gender: {value: PID-8.1, map: sex}
  telecom: {all: [{id: home, each: PID-13, set: {system: {const: phone}, value: {value: it.1}, use: {const: home}}}]}
  birthDate: {value: \"date(PID-7)\"}
  language: {value: PID-15.1, when: \"option.realm == 'de'\"}";
    let mapping = format!(
        "mapping: adt\nversion: 1\nsource: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\nresources:{PATIENT}"
    );
    let mut files = vec![
        ("test.yaml".to_owned(), [COMMON, pid, &mapping].join("\n---\n")),
        ("table/sex.json".to_owned(), TABLE.to_owned()),
    ];
    files.extend(site.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())));
    Catalog::from_files(files)
        .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn map_for(catalog: &Catalog, sender: &str, segments: &str) -> (Value, Vec<String>) {
    let text = message_text("A01", segments);
    let message = Message::parse(&text, &Limits::default()).expect("a message");
    let context = Context { sender: sender.into(), authority: sender.into(), ..context() };
    let alone = map_alone(catalog, &message, &context).expect("it is mapped");
    let issues = alone.issues.iter().map(|issue| format!("{} {}", issue.code, issue.path)).collect();
    (serde_json::from_str(&alone.bundle).expect("JSON"), issues)
}

#[test]
fn an_overlay_changes_rules_for_its_sender_alone() {
    let overlay = "overlay: clinic
options: {pid.realm: de}
patch:
  pid/telecom/home: {replace: {each: PID-13, set: {system: {const: phone}, value: {value: it.1}, use: {const: mobile}}}}
  pid/telecom: {add: {id: work, each: PID-14, set: {system: {const: phone}, value: {value: it.1}}}, after: home}
  pid/identifier/other: {remove: \"not used here\"}
  pid/gender: {table: {sender: sex}}
  pid/active: {add: {const: \"true\", when: \"valued(PID-3)\"}}
  adt/patient/multipleBirth[x]: {add: {as: boolean, value: \"yes_no(PID-24)\"}}";
    let sex = TABLE.replace("\"code\": \"F\"", "\"code\": \"W\"");
    let catalog =
        with_site(&[("site/clinic/a.yaml", overlay), ("site/clinic/sex.json", &sex)]).expect("it is right");
    let segments = "PID|||P1|P2|||19800304|W|||||111|222|de|||||||||Y\nPV1|1";
    let (bundle, issues) = map_for(&catalog, "clinic", segments);
    let patient = resource(&bundle, "Patient");
    assert_eq!(patient["telecom"][0]["use"], "mobile");
    assert_eq!(patient["telecom"][1]["value"], "222");
    assert_eq!(patient["identifier"].as_array().map(Vec::len), Some(1));
    assert_eq!((&patient["gender"], &patient["active"]), (&"female".into(), &true.into()));
    assert_eq!((&patient["language"], &patient["multipleBirthBoolean"]), (&"de".into(), &true.into()));
    assert!(!issues.iter().any(|issue| issue.ends_with("PID-4")), "it is ignored for a reason: {issues:?}");
    let (bundle, issues) = map_for(&catalog, "other", segments);
    let patient = resource(&bundle, "Patient");
    assert_eq!(patient["telecom"][0]["use"], "home");
    assert_eq!(patient["identifier"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        (&patient["gender"], &patient["active"], &patient["language"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert!(issues.iter().any(|issue| issue == "unmapped-field PID-14"));
}

#[test]
fn the_mistakes_of_an_overlay_are_told_in_its_own_file() {
    let told = |patch: &str| {
        let overlay = format!("overlay: clinic\npatch:\n  {patch}");
        let text = with_site(&[("site/clinic/a.yaml", &overlay)]).expect_err("it is wrong");
        assert!(text.lines().all(|line| line.starts_with("site/clinic/a.yaml:")), "{text}");
        text
    };
    assert!(told("pid/telecom/hoem: {remove: so}").contains("did you mean `home`?"));
    assert!(told("pit/telecom: {remove: so}").contains("did you mean `pid`?"));
    assert!(told("pid/gendre: {remove: so}").contains("did you mean `gender`?"));
    assert!(told("adt/patiant/active: {add: {const: \"true\"}}").contains("did you mean `patient`?"));
    assert!(told("pid/birthDate: {replace: {value: PID-7}}").contains("expected date(..)"));
    assert!(
        told("pid/telecom/home: {replace: {each: PID-99, set: {value: {value: it}}}}").contains("PID has")
    );
    assert!(
        told("pid/telecom: {add: {id: home, each: PID-14, set: {value: {value: it.1}}}}").contains("already")
    );
    assert!(told("pid/gender: {remove: so, table: sex}").contains("expected one of"));
    let twice = "overlay: b\npatch: {pid/gender: {remove: so}}";
    let text = with_site(&[("site/clinic/a.yaml", twice), ("site/clinic/b.yaml", twice)]).expect_err("twice");
    assert!(text.contains("with the same priority"), "{text}");
    let text = with_site(&[("a.yaml", twice)]).expect_err("it stands nowhere");
    assert!(text.contains("site/SENDER/"), "{text}");
    let ordered = "overlay: b\npriority: 1\npatch: {pid/gender: {remove: so}}";
    let text =
        with_site(&[("site/clinic/a.yaml", twice), ("site/clinic/b.yaml", ordered)]).expect_err("gone");
    assert!(text.contains("site/clinic/b.yaml") && text.contains("there is no rule gender"), "{text}");
}
