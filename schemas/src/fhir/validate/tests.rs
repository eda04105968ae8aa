//! One right Bundle, and what is found when one thing in it goes wrong.

use super::*;
use serde_json::json;

const PATIENT: &str = "urn:uuid:00000001-1111-4111-8111-111111111111";
const ORGANIZATION: &str = "urn:uuid:00000002-1111-4111-8111-111111111111";

fn bundle() -> Value {
    json!({"resourceType": "Bundle", "type": "transaction", "entry": [
        {"fullUrl": PATIENT, "request": {"method": "PUT", "url": "Patient/p1"}, "resource": {
            "resourceType": "Patient", "id": "p1", "meta": {"lastUpdated": "2020-01-01T00:00:00Z"},
            "text": {"status": "generated", "div": "<div xmlns=\"http://www.w3.org/1999/xhtml\">TEST</div>"},
            "contained": [{"resourceType": "Practitioner", "id": "gp", "name": [{"family": "TEST"}]}],
            "extension": [{"url": "http://example.org/x", "valueString": "TEST"}],
            "identifier": [{"system": "urn:oid:1.2.3", "value": "TEST1"}], "active": true,
            "name": [{"family": "TEST", "given": ["JANE", null], "_given": [null, {"id": "g"}], "use": "official"}],
            "gender": "female", "birthDate": "1980-02-28",
            "_birthDate": {"extension": [{"url": "http://example.org/y", "valueDateTime": "1980-02-28T10:00:00Z"}]},
            "telecom": [{"system": "phone", "value": "555-0100"}], "contact": [{"name": {"family": "TEST"}}],
            "managingOrganization": {"reference": ORGANIZATION}, "generalPractitioner": [{"reference": "#gp"}]}},
        {"fullUrl": ORGANIZATION, "request": {"method": "POST", "url": "Organization"},
            "resource": {"resourceType": "Organization", "name": "TEST"}},
        {"fullUrl": "http://example.org/fhir/Observation/o1", "request": {"method": "PUT", "url": "Observation/o1"}, "resource": {
            "resourceType": "Observation", "id": "o1", "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": "718-7"}]},
            "subject": {"reference": PATIENT}, "effectiveDateTime": "2020-01-01T10:00:00+01:00",
            "encounter": {"reference": "Encounter?identifier=urn:oid:1.2|3"},
            "performer": [{"reference": "Practitioner/7/_history/2"}, {"display": "TEST"}, {"reference": "http://example.org/fhir/Organization/1"}],
            "valueQuantity": {"value": 13.20, "unit": "g/dL", "system": "http://unitsofmeasure.org", "code": "g/dL"}}},
        {"fullUrl": "urn:uuid:00000004-1111-4111-8111-111111111111", "request": {"method": "POST", "url": "AllergyIntolerance"}, "resource": {
            "resourceType": "AllergyIntolerance", "patient": {"reference": PATIENT}, "clinicalStatus":
                {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical", "code": "active"}]}}}
    ]})
}

/// Sets what a JSON pointer names (`null` in `value` takes it away), and expects one finding.
fn check(pointer: &str, value: Value, code: &str, path: &str) {
    let mut changed = bundle();
    let (around, name) = pointer.rsplit_once('/').expect("a pointer");
    match changed.pointer_mut(around).expect("a place of the Bundle") {
        Value::Object(object) if value.is_null() => {
            drop(object.remove(name).expect("an element of the Bundle"))
        }
        Value::Object(object) => drop(object.insert(name.to_owned(), value)),
        Value::Array(list) => list[name.parse::<usize>().expect("an index")] = value,
        _ => panic!("{pointer} has no parts"),
    }
    let found = validate(&changed).into_iter();
    // A change of a reference may leave something contained that nothing refers to any more.
    let found = found.filter(|issue| !issue.text.starts_with("dom-3: ") || code == "invariant");
    let found: Vec<_> = found.map(|issue| (issue.code, issue.path)).collect();
    assert_eq!(found, [(code.to_owned(), path.to_owned())], "{pointer}");
}

#[test]
fn a_right_bundle_has_no_issue() {
    assert_eq!(validate(&bundle()), []);
}

#[test]
fn structure_is_checked() {
    let p = |name: &str| format!("/entry/0/resource/{name}");
    let o = |name: &str| format!("/entry/2/resource/{name}");
    const P: &str = "Bundle.entry[0].resource";
    const O: &str = "Bundle.entry[2].resource";
    check(&p("nam"), json!("TEST"), "unknown-element", P);
    check(&p("name/0/familyName"), json!("TEST"), "unknown-element", &format!("{P}.name[0]"));
    check(&p("meta/project"), json!("TEST"), "unknown-element", &format!("{P}.meta"));
    check(&p("_name"), json!({"id": "a"}), "unknown-element", P);
    check(&p("_birthDate"), json!({"value": "a"}), "unknown-element", &format!("{P}.birthDate"));
    check(&p("_birthDate"), json!({}), "empty", &format!("{P}.birthDate"));
    check(&p("_birthDate"), json!("a"), "wrong-type", &format!("{P}.birthDate"));
    check(&o("valueCode"), json!("a"), "unknown-element", O);
    check(&o("status"), Value::Null, "required-element", &format!("{O}.status"));
    check(&o("code"), Value::Null, "required-element", &format!("{O}.code"));
    check(&p("extension/0/url"), Value::Null, "required-element", &format!("{P}.extension[0].url"));
    check(&p("text/div"), Value::Null, "required-element", &format!("{P}.text.div"));
    check(&p("name"), json!({"family": "TEST"}), "list-expected", &format!("{P}.name"));
    check(&p("gender"), json!(["female"]), "list-unexpected", &format!("{P}.gender"));
    check(&o("code"), json!("718-7"), "wrong-type", &format!("{O}.code"));
    check(&p("birthDate"), json!({"value": "1980"}), "wrong-type", &format!("{P}.birthDate"));
    check(&p("maritalStatus"), json!({}), "empty", &format!("{P}.maritalStatus"));
    check(&p("maritalStatus"), json!({"id": "a"}), "empty", &format!("{P}.maritalStatus"));
    check(&p("address"), json!([]), "empty", &format!("{P}.address"));
    check(&p("name/0/family"), json!(""), "empty", &format!("{P}.name[0].family"));
    check(&p("name/0/_given"), json!([{"id": "a"}, null]), "empty", &format!("{P}.name[0].given[1]"));
    check(&o("valueString"), json!("a"), "choice-repeated", O);
    check(&p("resourceType"), json!("Citizen"), "unknown-type", P);
    check("/entry/1/resource", json!("TEST"), "wrong-type", "Bundle.entry[1].resource");
}

#[test]
fn formats_and_codes_are_checked() {
    const P: &str = "Bundle.entry[0].resource";
    for (name, value) in [
        ("active", json!("true")),
        ("id", json!("p_1")),
        ("birthDate", json!("1980-02-31")),
        ("multipleBirthInteger", json!(1.5)),
        ("deceasedDateTime", json!("2020-01-01T10:00:00")),
        ("language", json!(" en")),
    ] {
        check(&format!("/entry/0/resource/{name}"), value, "bad-format", &format!("{P}.{name}"));
    }
    check(
        "/entry/2/resource/valueQuantity/value",
        json!("13.2"),
        "bad-format",
        "Bundle.entry[2].resource.valueQuantity.value",
    );
    check(
        "/entry/0/resource/identifier/0/system",
        json!("urn:oid:abc"),
        "bad-format",
        &format!("{P}.identifier[0].system"),
    );
    check("/entry/0/resource/gender", json!("M"), "unknown-code", &format!("{P}.gender"));
    check("/entry/2/resource/status", json!("Final"), "unknown-code", "Bundle.entry[2].resource.status");
    check("/entry/0/request/method", json!("put"), "unknown-code", "Bundle.entry[0].request.method");
    let coding = "/entry/3/resource/clinicalStatus/coding/0";
    for (name, value) in
        [("code", json!("Active")), ("system", json!("http://example.org")), ("system", Value::Null)]
    {
        check(&format!("{coding}/{name}"), value, "unknown-code", "Bundle.entry[3].resource.clinicalStatus");
    }
    check(
        "/entry/3/resource/clinicalStatus",
        json!({"text": "a"}),
        "unknown-code",
        "Bundle.entry[3].resource.clinicalStatus",
    );
}

#[test]
fn a_period_is_compared_as_far_as_it_is_known() {
    for (start, end, right) in [
        ("2026-03-01", "2026-03-01T10:00:00Z", true),
        ("2026-03-01T10:00:00Z", "2026-03-01", true),
        ("2026", "2026-05", true),
        ("2026-05-01", "2026", true),
        ("2026-05-01", "2026-04", false),
        ("2026-03-01T10:00:00Z", "2026-03-01T11:30:00+02:00", false),
    ] {
        let resource = json!({"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"},
            "period": {"start": start, "end": end}});
        assert_eq!(validate(&resource).is_empty(), right, "{start} to {end}");
    }
}

#[test]
fn a_resource_with_much_in_it_is_checked() {
    let contained: Vec<Value> = (0..300)
        .map(|index| json!({"resourceType": "Observation", "id": format!("o{index}"), "status": "final", "code": {"text": "a"}}))
        .collect();
    let references: Vec<Value> = (0..300).map(|index| json!({"reference": format!("#o{index}")})).collect();
    let mut report = json!({"resourceType": "DiagnosticReport", "status": "final", "code": {"text": "a"},
        "contained": contained, "result": references});
    assert_eq!(validate(&report), []);
    report["result"][7] = json!({"reference": "#o8"});
    let found = validate(&report);
    assert_eq!(
        found.iter().map(|issue| issue.path.as_str()).collect::<Vec<_>>(),
        ["DiagnosticReport.contained[7]"]
    );
}

#[test]
fn references_are_followed() {
    const SUBJECT: &str = "/entry/2/resource/subject/reference";
    const AT: &str = "Bundle.entry[2].resource.subject";
    let gone = "urn:uuid:00000009-1111-4111-8111-111111111111";
    check(SUBJECT, json!(gone), "reference-dangling", &format!("{AT}.reference"));
    check(SUBJECT, json!("#p1"), "reference-dangling", &format!("{AT}.reference"));
    let mut dangling = bundle();
    dangling["entry"][0]["resource"]["contained"][0]["id"] = json!("other");
    let found: Vec<_> = validate(&dangling).into_iter().map(|issue| (issue.path, issue.text)).collect();
    assert_eq!(found[1].0, "Bundle.entry[0].resource.generalPractitioner[0].reference");
    assert!(found[0].1.starts_with("dom-3: "), "what is contained and not referred to: {found:?}");
    for wrong in [
        ORGANIZATION,
        "Organization/1",
        "http://example.org/fhir/Organization/1",
        "Organization?name=a",
        "Organization/1/_history/1",
    ] {
        check(SUBJECT, json!(wrong), "reference-target", AT);
    }
    check("/entry/2/resource/subject/type", json!("Organization"), "reference-target", AT);
    check(
        "/entry/0/resource/generalPractitioner/0",
        json!({"reference": "Patient/1"}),
        "reference-target",
        "Bundle.entry[0].resource.generalPractitioner[0]",
    );
    check(SUBJECT, json!("p1"), "bad-format", &format!("{AT}.reference"));
    // Alone, a resource cannot say what its Bundle would have had.
    let mut alone = bundle()["entry"][2]["resource"].take();
    assert_eq!(validate(&alone), []);
    alone["subject"]["reference"] = json!("#");
    assert_eq!(validate(&alone), []);
}

#[test]
fn rules_of_the_standard_are_checked() {
    check("/entry/0/request", Value::Null, "invariant", "Bundle");
    check(
        "/entry/2/fullUrl",
        json!("http://example.org/fhir/Observation/o2"),
        "invariant",
        "Bundle.entry[2]",
    );
    check(
        "/entry/0/resource/extension/0/extension",
        json!([{"url": "a", "valueCode": "b"}]),
        "invariant",
        "Bundle.entry[0].resource.extension[0]",
    );
    check(
        "/entry/2/resource/dataAbsentReason",
        json!({"text": "a"}),
        "invariant",
        "Bundle.entry[2].resource",
    );
    check(
        "/entry/0/resource/contained/0/contained",
        json!([{"resourceType": "Basic", "code": {"text": "a"}}]),
        "invariant",
        "Bundle.entry[0].resource.contained[0]",
    );
    check(
        "/entry/0/resource/contained/0/meta",
        json!({"versionId": "1"}),
        "invariant",
        "Bundle.entry[0].resource.contained[0]",
    );
}

#[test]
fn anything_at_all_gets_an_answer() {
    for value in [
        json!(null),
        json!([]),
        json!("TEST"),
        json!({}),
        json!({"resourceType": 1}),
        json!({"resourceType": "HumanName"}),
    ] {
        assert_eq!(validate(&value).len(), 1, "{value}");
    }
    let mut deep = json!({"url": "a", "valueString": "b"});
    for _ in 0..100 {
        deep = json!({"url": "a", "extension": [deep]});
    }
    let found = validate(&json!({"resourceType": "Patient", "extension": [deep]}));
    assert_eq!(found.iter().map(|issue| issue.code.as_str()).collect::<Vec<_>>(), ["too-deep"]);
    let many: Map<String, Value> = (0..5000).map(|n| (format!("x{n}"), json!(n))).collect();
    assert_eq!(validate(&json!({"resourceType": "Patient", "contact": [many]})).len(), ISSUES_MAX);
}

/// What a sender wrote must not come back in a text: a name in JSON may be anything too.
#[test]
fn findings_hold_no_values() {
    let found = validate(&json!({"resourceType": "SECRET", "SECRET": "SECRET"}));
    let more = validate(
        &json!({"resourceType": "Patient", "SECRET": 1, "gender": "SECRET", "_SECRET": 1, "birthDate": "SECRET",
        "managingOrganization": {"reference": "SECRET"}, "name": [{"SECRET": 1}]}),
    );
    assert!(found.len() == 1 && more.len() == 6, "{more:?}");
    assert!(!format!("{found:?}{more:?}").contains("SECRET"));
}
