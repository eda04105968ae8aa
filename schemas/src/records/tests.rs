use super::*;
use proptest::prelude::*;

fn shapes() -> (Arc<Shapes>, ShapeId) {
    let mut shapes = Shapes::default();
    let root = shapes.add("Readings").expect("a new name");
    let reading = shapes.add("Reading").expect("a new name");
    let device = shapes.add("Device").expect("a new name");
    let pair = shapes.add("Pair").expect("a new name");
    let member = |name, holds, many| Member { name, written: name.to_owned(), holds, many };
    let value = |name, kind| member(name, Holds::Value(kind), false);
    for (id, one) in [
        (root, value("kind", Value::Text)),
        (root, member("records", Holds::Record(reading), true)),
        (reading, value("id", Value::Text)),
        (reading, value("value", Value::Number)),
        (reading, member("device", Holds::Record(device), false)),
        (reading, member("flags", Holds::Value(Value::Text), true)),
        (reading, member("samples", Holds::Record(pair), true)),
        (device, Member { written: "serial-number".to_owned(), ..value("serial", Value::Text) }),
        (pair, value("at", Value::Text)),
        (pair, value("level", Value::Number)),
    ] {
        assert!(shapes.add_member(id, one));
    }
    (Arc::new(shapes), root)
}

fn json(text: &str) -> Result<Records, Unreadable> {
    let (shapes, root) = shapes();
    read_json(text, &shapes, root, &Limits::default())
}

/// Every value with its place.
fn all(records: &Records) -> Vec<(String, String)> {
    let index = records.index();
    (0..index.leaves().len()).map(|leaf| (records.place_of(leaf), index.value(leaf).into_owned())).collect()
}

fn places(text: &str) -> Vec<(String, String)> {
    all(&json(text).expect("it can be read"))
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(place, value)| ((*place).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn every_value_has_its_place_and_every_digit() {
    let text = r#"{"kind": "cgm", "records": [
        {"id": "a\u00e4\n", "value": 5.40, "device": {"serial-number": "S1"}, "flags": ["x", "y"], "samples": [["t1", 1], ["t2", 2e3]]},
        {"value": -0, "id": "b"}]}"#;
    let expected = [
        ("kind", "cgm"),
        ("records[0].id", "aä\n"),
        ("records[0].value", "5.40"),
        ("records[0].flags[0]", "x"),
        ("records[0].flags[1]", "y"),
        ("records[0].device.serial", "S1"),
        ("records[0].samples[0].at", "t1"),
        ("records[0].samples[0].level", "1"),
        ("records[0].samples[1].at", "t2"),
        ("records[0].samples[1].level", "2e3"),
        ("records[1].id", "b"),
        ("records[1].value", "-0"),
    ];
    assert_eq!(places(text), pairs(&expected));
    assert!(json(text).expect("it can be read").issues().is_empty());
}

#[test]
fn records_are_segments_in_groups_of_their_own() {
    let records =
        json(r#"{"records": [{"device": {"serial-number": "S1"}}, {}, {"device": {}}]}"#).expect("read");
    let groups = records.groups();
    let structure = groups.structure();
    let device = structure.group("records.device").expect("it is there");
    assert!(structure.within(device, structure.group("records").expect("it is there")));
    let found: Vec<String> = groups.instances_of(device).map(|id| groups.path(id)).collect();
    assert_eq!(found, ["records.device", "records[3].device"]);
    let index = records.index();
    assert_eq!(index.segments().len(), 6);
    assert_eq!(index.segments()[2].name(), ShapeId(2).segment());
    assert_eq!(groups.place(2).0, InstanceId(2));
}

#[test]
fn null_and_empty_are_not_there() {
    assert_eq!(
        places(r#"{"kind": null, "records": [{"id": "", "flags": [null, "", "z"]}, null]}"#),
        pairs(&[("records[0].flags[2]", "z")])
    );
}

#[test]
fn what_no_shape_declares_is_kept_and_told_by_a_name_that_is_no_patient_s() {
    let text = r#"{"more": 1, "records": [{"extra": {"a": [[1], 2], "John Doe": 3, "deep": {"er": true}}}], "123-45-6789": "x"}"#;
    let expected = [
        ("*1", "1"),
        ("*2", "x"),
        ("records[0].*1.*1", "1"),
        ("records[0].*1.*1[1]", "2"),
        ("records[0].*1.*2", "3"),
        ("records[0].*1.*3.*4", "true"),
    ];
    assert_eq!(places(text), pairs(&expected));
}

#[test]
fn another_form_than_the_declared_one_is_kept_and_told() {
    let records =
        json(r#"{"kind": {"a": 1}, "records": {"id": 7, "value": "5", "device": "S1", "flags": "x"}}"#)
            .expect("read");
    let expected = [
        ("kind.*1", "1"),
        ("records[0].id", "7"),
        ("records[0].value", "5"),
        ("records[0].flags[0]", "x"),
        ("records[0].serial", "S1"),
    ];
    let mut found = all(&records);
    found.sort();
    let mut expected = pairs(&expected);
    expected[4].0 = "records[0].device".to_owned();
    expected.sort();
    assert_eq!(found, expected);
    let told: Vec<&str> = records.issues().iter().map(|issue| issue.path.as_str()).collect();
    assert_eq!(told, ["kind", "records[0].id", "records[0].value", "records[0].device"]);
}

#[test]
fn a_document_that_is_a_list_goes_to_the_one_list_of_its_shape() {
    let (shapes, root) = shapes();
    let mut shapes = Shapes::beside(shapes);
    let list = shapes.add("List").expect("a new name");
    let items = Member { name: "items", written: "items".to_owned(), holds: Holds::Record(root), many: true };
    assert!(shapes.add_member(list, items));
    let shapes = Arc::new(shapes);
    let read = |text| read_json(text, &shapes, list, &Limits::default()).expect("read");
    assert_eq!(
        all(&read(r#"[{"kind": "a"}, {"kind": "b"}]"#)),
        pairs(&[("items[0].kind", "a"), ("items[1].kind", "b")])
    );
    assert_eq!(all(&read(r#"{"kind": "a"}"#)), pairs(&[("*1", "a")]), "an undeclared member");
}

#[test]
fn what_cannot_be_read_says_where_and_nothing_else() {
    let wrong = |text: &str| json(text).expect_err(text).to_string();
    assert_eq!(wrong("{\"kind\": \"TEST\"\n \"x\": 1}"), "not JSON: line 2, column 2");
    assert_eq!(wrong("\"TEST\""), "the document is no record, and Readings is expected");
    assert_eq!(
        wrong(r#"{"records": [{"id": "TEST", "id": "JANE"}]}"#),
        "two members of one name: records[0].id"
    );
    assert_eq!(wrong(""), "not JSON: line 1, column 0");
    let deep = format!("{}1{}", r#"{"records": {"device": {"x": "#, "}}}");
    assert!(json(&deep).is_ok());
    let deep = format!("{}1{}", r#"{"x": "#.repeat(40), "}".repeat(40));
    assert_eq!(wrong(&deep), "over the limit of 32 records within each other");
    assert!(matches!(json(&"[".repeat(100_000)), Err(Unreadable::Syntax { .. })));
}

#[test]
fn limits_are_kept() {
    let (shapes, root) = shapes();
    let limits = Limits { bytes: 100, records: 3, values: 2, depth: 32 };
    let read = |text: &str| read_json(text, &shapes, root, &limits);
    assert_eq!(
        read(&format!("\"{}\"", "x".repeat(100))).err(),
        Some(Unreadable::OverLimit { limit: 100, unit: "bytes" })
    );
    assert_eq!(
        read(r#"{"records": [{}, {}, {}]}"#).err(),
        Some(Unreadable::OverLimit { limit: 3, unit: "records" })
    );
    assert_eq!(
        read(r#"{"a": 1, "b": 2, "c": 3}"#).err(),
        Some(Unreadable::OverLimit { limit: 2, unit: "values" })
    );
}

fn rows() -> (Arc<Shapes>, ShapeId) {
    let mut shapes = Shapes::default();
    let (root, row) = (shapes.add("Rows").expect("new"), shapes.add("Row").expect("new"));
    let list = Member { name: "rows", written: "rows".to_owned(), holds: Holds::Record(row), many: true };
    assert!(shapes.add_member(root, list));
    for (name, written) in [("at", "Time"), ("glucose", "Glucose (mg/dL)")] {
        let member =
            Member { name, written: written.to_owned(), holds: Holds::Value(Value::Text), many: false };
        assert!(shapes.add_member(row, member));
    }
    (Arc::new(shapes), root)
}

#[test]
fn lines_of_csv_are_records() {
    let (shapes, root) = rows();
    let read = |text: &str, form| read_csv(text, form, &shapes, root, &Limits::default());
    let text =
        "\u{FEFF}Glucose (mg/dL); Time ;Note\r\n101;2026-01-02;\"a;\"\"b\"\"\"\r\n;2026-01-03\n7;8;9;10\n";
    let records = read(text, Csv { separator: b';', header: true }).expect("read");
    let expected = [
        ("rows[0].at", "2026-01-02"),
        ("rows[0].glucose", "101"),
        ("rows[0].*1", "a;\"b\""),
        ("rows[1].at", "2026-01-03"),
        ("rows[2].at", "8"),
        ("rows[2].glucose", "7"),
        ("rows[2].*1", "9"),
        ("rows[2].*2[3]", "10"),
    ];
    assert_eq!(all(&records), pairs(&expected));
    let records = read("a,b,c\n", Csv { header: false, ..Csv::default() }).expect("read");
    assert_eq!(
        all(&records),
        pairs(&[("rows[0].at", "a"), ("rows[0].glucose", "b"), ("rows[0].*1[2]", "c")])
    );
    assert_eq!(read("Time,Time\n1,2\n", Csv::default()).err(), Some(Unreadable::Twice("Time".to_owned())));
    let other = read("Time,Name,Name\n1,2,3\n", Csv::default()).err();
    assert_eq!(other, Some(Unreadable::Twice("column 3".to_owned())), "what no one declared is not told");
    assert!(read("", Csv::default()).expect("an empty file has no lines").index().leaves().is_empty());
}

#[test]
fn text_is_utf_8_or_what_its_mark_says_or_windows_1252() {
    let told = |bytes: &[u8]| {
        let (text, issue) = decode(bytes);
        (text.into_owned(), issue.map(|issue| issue.code))
    };
    let assumed = Some("charset-assumed".to_owned());
    assert_eq!(told("Müller".as_bytes()), ("Müller".to_owned(), None));
    assert_eq!(told(b"\xEF\xBB\xBFM\xC3\xBCller"), ("Müller".to_owned(), None));
    assert_eq!(told(b"\xFF\xFEM\0\xFC\0"), ("Mü".to_owned(), None));
    assert_eq!(told(b"M\xFCller \x80"), ("Müller €".to_owned(), assumed.clone()));
    assert_eq!(told(b"\xEF\xBB\xBFM\xFC"), ("M\u{FFFD}".to_owned(), assumed));
}

proptest! {
    #[test]
    fn any_json_is_read_whole_or_refused(value in any_json()) {
        let text = value.to_string();
        if let Ok(records) = json(&text) {
            let mut expected = Vec::new();
            values(&value, &mut expected);
            let mut found: Vec<String> = all(&records).into_iter().map(|(_, value)| value).collect();
            expected.sort();
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
        let (shapes, root) = rows();
        let _ = json(&text);
        let _ = read_csv(&text, Csv::default(), &shapes, root, &Limits::default());
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        "\\PC{0,6}".prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let name = prop_oneof![
            Just("kind".to_owned()),
            Just("records".to_owned()),
            Just("id".to_owned()),
            Just("device".to_owned()),
            Just("serial-number".to_owned()),
            Just("samples".to_owned()),
            Just("flags".to_owned()),
            "[a-z ]{0,3}",
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            proptest::collection::vec((name, inner), 0..5)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

fn values(json: &serde_json::Value, found: &mut Vec<String>) {
    match json {
        serde_json::Value::Null => {}
        serde_json::Value::String(text) if text.is_empty() => {}
        serde_json::Value::String(text) => found.push(text.clone()),
        serde_json::Value::Array(items) => items.iter().for_each(|item| values(item, found)),
        serde_json::Value::Object(members) => members.values().for_each(|value| values(value, found)),
        other => found.push(other.to_string()),
    }
}

mod of_fhir {
    use super::*;

    fn fhir(text: &str) -> Records {
        read_fhir(text, &Limits::default()).expect("it can be read")
    }

    /// The record of a place.
    fn record(records: &Records, place: &str) -> u32 {
        let found = (0..records.segments.len()).find(|record| records.place_of_record(*record) == place);
        found.unwrap_or_else(|| panic!("nothing stands at {place}")) as u32
    }

    #[test]
    fn every_type_of_r4_has_a_shape() {
        let shapes = fhir_shapes();
        let has = |shape: &str, member: &str| {
            let shape = shapes.get(shapes.named(shape).unwrap_or_else(|| panic!("{shape}")));
            shape.member(member).map(|(_, member)| (member.holds, member.many))
        };
        let record = |name: &str| Holds::Record(shapes.named(name).expect("it is there"));
        assert_eq!(has("Patient", "name"), Some((record("HumanName"), true)));
        assert_eq!(has("Patient", "contact"), Some((record("PatientContact"), true)));
        assert_eq!(has("Patient", "_birthDate"), Some((record("Element"), false)));
        assert_eq!(has("Patient", "deceasedBoolean"), Some((Holds::Value(Value::Boolean), false)));
        assert_eq!(has("Observation", "valueQuantity"), Some((record("Quantity"), false)));
        assert_eq!(has("Observation", "value"), None);
        assert_eq!(has("QuestionnaireItem", "item"), Some((record("QuestionnaireItem"), true)));
        assert_eq!(has("HumanName", "given"), Some((Holds::Value(Value::Text), true)));
        assert_eq!(has("Resources", "Patient"), Some((record("Patient"), true)));
    }

    #[test]
    fn resources_stand_beside_each_other_and_know_each_other() {
        let records = fhir(
            r##"{"resourceType": "Bundle", "id": "b", "entry": [
                {"fullUrl": "urn:uuid:1", "resource": {"resourceType": "Patient", "id": "p", "name": [{"given": ["TEST", null, "X"]}],
                  "generalPractitioner": [{"reference": "#doc"}, {"reference": "#nobody"}],
                  "contained": [{"resourceType": "Practitioner", "id": "doc", "active": true}]}},
                {"fullUrl": "http://test.example/fhir/Patient/q", "resource": {"resourceType": "Patient", "id": "q"}},
                {"resource": {"resourceType": "Basic", "subject": {"reference": "Patient/q"}}},
                {"fullUrl": "http://test.example/fhir/Observation/o", "resource": {"resourceType": "Observation", "id": "o",
                  "subject": {"reference": "urn:uuid:1"}, "focus": [{"reference": "Patient/q/_history/3"}, {"reference": "http://test.example/fhir/Patient/q"},
                            {"reference": "http://other.example/fhir/Patient/q"}, {"reference": "#doc"}, {"display": "nobody"}]}},
                {"response": {"status": "200"}}]}"##,
        );
        let expected = [
            ("Bundle[0].resourceType", "Bundle"),
            ("Bundle[0].id", "b"),
            ("Patient[0].resourceType", "Patient"),
            ("Patient[0].id", "p"),
            ("Patient[0].name[0].given[0]", "TEST"),
            ("Patient[0].name[0].given[2]", "X"),
            ("Patient[0].generalPractitioner[0].reference", "#doc"),
            ("Patient[0].contained[0].active", "true"),
        ];
        let found = all(&records);
        for pair in pairs(&expected) {
            assert!(found.contains(&pair), "{pair:?} is not in {found:?}");
        }
        let leads = |from: &str| {
            records.target_of(record(&records, from)).map(|to| records.place_of_record(to as usize))
        };
        assert_eq!(leads("Observation[0].subject").as_deref(), Some("Patient[0]"));
        assert_eq!(leads("Observation[0].focus[0]").as_deref(), Some("Patient[1]"));
        assert_eq!(leads("Observation[0].focus[1]").as_deref(), Some("Patient[1]"));
        assert_eq!(leads("Observation[0].focus[2]"), None, "of another server");
        assert_eq!(leads("Basic[0].subject"), None, "relative to nothing");
        assert_eq!(leads("Observation[0].focus[3]"), None, "contained in another resource");
        assert_eq!(leads("Observation[0].focus[4]"), None);
        assert_eq!(leads("Patient[0].generalPractitioner[0]").as_deref(), Some("Patient[0].contained[0]"));
        assert_eq!(leads("Patient[0].generalPractitioner[1]"), None);
        assert_eq!(leads("Patient[0]"), None, "no reference");
    }

    #[test]
    fn a_name_that_two_resources_have_leads_to_neither() {
        let entry = |id: &str| {
            format!(
                r#"{{"resource": {{"resourceType": "Patient", "id": "{id}", "link": [{{"other": {{"reference": "Patient/a"}}}}]}}}}"#
            )
        };
        let bundle = |ids: [&str; 2]| {
            format!(r#"{{"resourceType": "Bundle", "entry": [{}, {}]}}"#, entry(ids[0]), entry(ids[1]))
        };
        let leads = |ids| {
            let records = fhir(&bundle(ids));
            records.target_of(record(&records, "Patient[0].link[0].other")).is_some()
        };
        assert!(leads(["a", "b"]));
        assert!(!leads(["a", "a"]));
    }

    #[test]
    fn one_resource_is_a_document_and_what_is_none_is_told() {
        assert_eq!(all(&fhir(r#"{"resourceType": "Patient", "id": "p"}"#))[1].0, "Patient[0].id");
        assert_eq!(all(&fhir(r#"{"resourceType": "Unheard", "a": 1}"#))[1].0, "*1[0].*2");
        let refused = read_fhir("[]", &Limits::default()).expect_err("no resource");
        assert_eq!(refused.to_string(), "the document is no record, and Resource is expected");
    }
}
