//! Documents of records: JSON and CSV by the same language.

use super::context;
use mappings::{Catalog, Given, map_by};
use schemas::records::Limits;
use serde_json::{Value, json};

/// A feed of a glucose sensor that nobody makes.
const FEED: &str = r#"
record: SensorFeed
members:
  kind: text
  readings: [SensorReading]
---
record: SensorReading
members:
  id: text
  at: text
  value: number
  unit: text
  calibrated: boolean
  flags: [text]
  wearer: {type: SensorWearer, name: "worn-by"}
  sensor: Sensor
  curve: [CurvePoint]
---
record: SensorWearer
members: {mrn: text, site: text}
---
record: Sensor
members: {serial: text, model: text, firmware: text}
---
record: CurvePoint
members: {offset: number, level: number}
---
record_map: sensor_device
from: Sensor
makes: Device
identity: {keys: [{value: Sensor.serial}], else: omit}
rules:
  serialNumber: {value: Sensor.serial}
  deviceName: {all: [{id: model, set: {name: {value: Sensor.model}, type: {const: model-name}}}]}
ignore: [{path: Sensor.firmware, reason: changes without a word}]
---
record_map: curve_component
from: CurvePoint
to: Quantity
params: [unit]
rules:
  value: {value: CurvePoint.level}
  unit: {value: with.unit}
---
record_map: wearer_patient
from: SensorWearer
to: Patient
rules:
  identifier: {all: [{id: mrn, set: {value: {value: SensorWearer.mrn}}}]}
---
record_map: reading_observation
from: SensorReading
to: Observation
rules:
  identifier: {all: [{id: own, set: {value: {value: SensorReading.id}}}]}
  status: {switch: SensorReading.calibrated, cases: {false: {const: preliminary}, true: {const: final}, else: {const: unknown}}}
  code: {concept: "loinc#2339-0"}
  effective[x]: {as: dateTime, value: "datetime(SensorReading.at)"}
  value[x]: {as: Quantity, when: "SensorReading.value > 20", set: {value: {value: SensorReading.value}, unit: {value: SensorReading.unit}}}
  note: {each: SensorReading.flags, set: {text: {value: it}}}
  device: {make: device, use: sensor_device, from: SensorReading.sensor}
  component:
    each: SensorReading.curve[CurvePoint.level > 0]
    set:
      code: {set: {text: {value: "join('', 'after ', CurvePoint.offset, ' of ', SensorReading.id)"}}}
      value[x]: {use: curve_component, with: {unit: "=SensorReading.unit"}}
---
mapping: sensor_feed
version: 1.0.0
source: {format: json, record: SensorFeed}
resources:
- {id: patient, type: Patient, each: SensorFeed.readings, identity: {keys: [{value: SensorReading.wearer.mrn}], else: omit}, parts: [{use: wearer_patient, from: SensorReading.wearer}]}
- {id: reading, type: Observation, each: SensorFeed.readings, identity: {keys: [{value: SensorReading.id}], else: message}, parts: [{use: reading_observation, from: SensorReading}], set: {subject: {ref: patient}}}
checks: [{id: kind, when: "SensorFeed.kind != 'glucose'", policy: quarantine, text: "another kind of feed"}]
ignore: [{path: "SensorWearer.site, SensorFeed.kind", reason: nobody reads it}]
tests:
- name: one reading
  given: '{"kind": "glucose", "readings": [{"id": "r1", "value": 101.50, "unit": "mg/dL"}]}'
  expect: {"Observation.valueQuantity.value": "101.50", "Observation.valueQuantity.unit": mg/dL}
  absent: [Patient.id, Observation.device]
  unmapped: []
"#;

fn catalog(text: &str) -> Catalog {
    let told = |mistakes: Vec<mappings::FileMistake>| -> Catalog {
        panic!("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    };
    Catalog::from_files(vec![("feed.yaml".to_owned(), text.to_owned())]).unwrap_or_else(told)
}

fn mistakes(text: &str) -> Vec<String> {
    let files = vec![("feed.yaml".to_owned(), text.to_owned())];
    Catalog::from_files(files).expect_err("it has mistakes").iter().map(ToString::to_string).collect()
}

/// The Bundle of a document, and what is told of it.
fn map(catalog: &Catalog, mapping: &str, text: &str) -> (Value, Vec<String>) {
    let program = catalog.program("test", mapping).expect("it is there");
    let records = program.read(text, &Limits::default()).expect("it takes records").expect("it can be read");
    let alone = map_by(program, Given::Records(&records, text), &context()).expect("it is mapped");
    let again = map_by(program, Given::Records(&records, text), &context()).expect("it is mapped");
    assert_eq!(alone.bundle, again.bundle, "the same bytes every time");
    let bundle: Value = serde_json::from_str(&alone.bundle).expect("JSON");
    assert_eq!(schemas::fhir::validate(&bundle), []);
    (bundle, alone.issues.iter().map(|issue| format!("{} {}", issue.code, issue.path)).collect())
}

fn all<'b>(bundle: &'b Value, kind: &str) -> Vec<&'b Value> {
    let resources = bundle["entry"].as_array().expect("entries").iter().map(|entry| &entry["resource"]);
    resources.filter(|resource| resource["resourceType"] == kind).collect()
}

#[test]
fn records_become_resources_wherever_they_lie() {
    let catalog = catalog(FEED);
    assert_eq!(catalog.run_tests(), []);
    let text = r#"{"kind": "glucose", "readings": [
        {"id": "r1", "at": "2026-01-02T03:04:05+01:00", "value": 5, "worn-by": {"mrn": "M1", "site": "arm"}, "calibrated": true},
        {"id": "r2", "at": "20260102030500", "value": 99.0, "unit": "mg/dL", "calibrated": false, "flags": ["a", "", "b"],
         "sensor": {"serial": "S1", "model": "TESTSENSOR", "firmware": "1"}, "worn-by": {"mrn": "M2"},
         "curve": [{"offset": -5, "level": 98}, {"offset": 0, "level": 0}, [5, 97.5]]}]}"#;
    let (bundle, issues) = map(&catalog, "sensor_feed", text);
    let readings = all(&bundle, "Observation");
    assert_eq!(readings.len(), 2);
    assert_eq!(readings[0]["effectiveDateTime"], "2026-01-02T03:04:05+01:00");
    assert_eq!(readings[0].get("valueQuantity"), None, "5 is not above 20");
    assert_eq!(readings[1]["status"], "preliminary");
    assert_eq!(readings[1]["valueQuantity"]["value"].to_string(), "99.0");
    assert_eq!(readings[1]["note"], json!([{"text": "a"}, {"text": "b"}]));
    let texts: Vec<&Value> = readings[1]["component"]
        .as_array()
        .expect("components")
        .iter()
        .map(|one| &one["code"]["text"])
        .collect();
    assert_eq!(texts, ["after -5 of r2", "after 5 of r2"]);
    assert_eq!(readings[1]["component"][1]["valueQuantity"].to_string(), r#"{"value":97.5,"unit":"mg/dL"}"#);
    let patients = all(&bundle, "Patient");
    let subject = |reading: &Value| reading["subject"]["reference"].as_str().map(|text| text[9..].to_owned());
    let of = |index: usize| patients[index]["id"].as_str().map(str::to_owned);
    assert_eq!(
        [subject(readings[0]), subject(readings[1])],
        [of(0), of(1)],
        "each has the wearer of its own record"
    );
    assert_eq!(all(&bundle, "Device")[0]["serialNumber"], "S1");
    let untaken = ["readings[0].value", "readings[1].curve[1].offset", "readings[1].curve[1].level"];
    assert_eq!(issues, untaken.map(|place| format!("unmapped-field {place}")));
}

#[test]
fn what_no_rule_takes_is_told_by_its_place() {
    let catalog = catalog(FEED);
    let text = r#"{"kind": "glucose", "trace": "x", "readings": [
        {"id": "r1", "value": "high", "more": {"a": [1, 2]}, "curve": [{"offset": 1, "level": 2, "battery": 3}]}]}"#;
    let (_, issues) = map(&catalog, "sensor_feed", text);
    let expected = [
        "unexpected-shape readings[0].value",
        "no-identity readings[0]",
        "unmapped-field *1",
        "unreadable-value readings[0].value",
        "unmapped-field readings[0].*1.*1",
        "unmapped-field readings[0].*1.*1[1]",
        "unmapped-field readings[0].curve[0].*1",
    ];
    let mut issues = issues;
    issues.sort();
    let mut expected = expected.map(str::to_owned);
    expected.sort();
    assert_eq!(issues, expected);
}

#[test]
fn a_check_keeps_a_document_back() {
    let catalog = catalog(FEED);
    let program = catalog.program("test", "sensor_feed").expect("it is there");
    let text = r#"{"kind": "heart", "readings": []}"#;
    let records = program.read(text, &Limits::default()).expect("records").expect("readable");
    let quarantined = program.run(Given::Records(&records, text), &context()).expect_err("it is kept back");
    assert_eq!(quarantined.reason, "another kind of feed");
}

#[test]
fn the_order_of_records_and_members_does_not_matter_to_who_is_who() {
    let catalog = catalog(FEED);
    let ids = |text: &str| {
        let (bundle, _) = map(&catalog, "sensor_feed", text);
        let mut ids: Vec<String> =
            all(&bundle, "Observation").iter().map(|one| one["id"].to_string()).collect();
        ids.sort();
        ids
    };
    let one = ids(r#"{"kind": "glucose", "readings": [{"id": "a", "value": 30}, {"id": "b", "value": 40}]}"#);
    let other =
        ids(r#"{"readings": [{"value": 40, "id": "b"}, {"value": 30, "id": "a"}], "kind": "glucose"}"#);
    assert_eq!(one, other);
}

#[test]
fn lines_of_csv_are_records_too() {
    let catalog = catalog(
        r#"
record: Lines
members: {rows: [Line]}
---
record: Line
members: {device: text, at: {type: text, name: "Time stamp"}, glucose: {type: number, name: "Glucose (mg/dL)"}}
---
record_map: line_observation
from: Line
to: Observation
rules:
  status: {const: final}
  code: {concept: "loinc#2339-0"}
  identifier: {all: [{id: device, set: {value: {value: Line.device}}}]}
  effective[x]: {as: dateTime, value: "datetime(Line.at)"}
  value[x]: {as: Quantity, set: {value: {value: Line.glucose}}, on_error: {as: string, value: "text(Line.glucose)"}}
---
mapping: lines
version: 1
source: {format: csv, record: Lines, separator: ";"}
resources:
- {id: line, type: Observation, each: Lines.rows, identity: {keys: [{value: [Line.device, Line.at]}], else: message}, parts: [{use: line_observation, from: Line}]}
"#,
    );
    let text = "device;Time stamp;Glucose (mg/dL);Note\nD1;2026-01-02 03:04:05Z;101;\nD1;2026-01-02 03:09:05Z;HIGH;x\n";
    let (bundle, issues) = map(&catalog, "lines", text);
    let lines = all(&bundle, "Observation");
    assert_eq!(lines[0]["valueQuantity"]["value"].to_string(), "101");
    assert_eq!(lines[0]["effectiveDateTime"], "2026-01-02T03:04:05+00:00");
    assert_eq!(lines[1]["valueString"], "HIGH");
    assert_eq!(issues, ["unmapped-field rows[1].*1"]);
}

#[test]
fn mistakes_name_the_member_the_record_and_the_nearest_right_spelling() {
    for (right, wrong, told) in [
        (
            "value: Sensor.serial}",
            "value: Sensor.serail}",
            "Sensor has no member `serail`; did you mean `serial`?",
        ),
        (
            "value: Sensor.model}",
            "value: Sensro.model}",
            "there is no record of this name; did you mean `Sensor`?",
        ),
        ("value: Sensor.model}", "value: CurvePoint.level}", "does not stand here; here stands Sensor"),
        ("value: Sensor.model}", "value: Sensor.model.x}", "`x` stands behind a value"),
        (
            "readings: [SensorReading]",
            "readings: [SensorReadin]",
            "expected text, number, boolean, or a record; did you mean `SensorReading`?",
        ),
        (
            "from: SensorReading.sensor}",
            "from: SensorReading.wearer}",
            "stands on a Sensor, and here stands SensorWearer",
        ),
        (
            "use: reading_observation, from: SensorReading}",
            "use: reading_observation, from: SensorFeed}",
            "a part stands on the record of its resource",
        ),
        (
            "each: SensorFeed.readings, identity: {keys: [{value: SensorReading.id}",
            "each: SensorFeed.kind, identity: {keys: [{value: SensorReading.id}",
            "expected a record, and this is a value",
        ),
        ("path: Sensor.firmware", "path: Sensor.firmwares", "did you mean `firmware`?"),
        ("path: \"SensorWearer.site,", "path: \"SensorReading.wearer,", "write SensorWearer"),
        (
            "record: SensorFeed}",
            "record: SensorFed}",
            "there is no record of this name; did you mean `SensorFeed`?",
        ),
        (
            "format: json, record: SensorFeed",
            "format: csv, record: SensorFeed",
            "one member, a list of records that hold values alone",
        ),
        ("value: \"datetime(SensorReading.at)\"", "value: SensorReading.at", "expected datetime(..)"),
        (
            "record: Sensor\n",
            "record: SENSOR\n",
            "a name that begins with a capital letter and has small ones",
        ),
        (
            "{serial: text, model",
            "{serial-number: text, model",
            "what the document calls it goes under `name:`",
        ),
        ("use: curve_component", "use: wearer_patient", "this map adds to a resource"),
        ("use: wearer_patient", "use: curve_component", "is no map that adds to a resource"),
    ] {
        assert!(FEED.contains(right), "{right}");
        let found = mistakes(&FEED.replacen(right, wrong, 1));
        assert!(found.iter().any(|one| one.contains(told)), "{wrong}: {told} is not in {found:#?}");
    }
}
