//! Mappings with mistakes, each told with its place.

use super::*;

/// The mistakes of a mapping whose PID map has these rules, each as `line:column text`.
pub(super) fn mistakes_of(pid: &str) -> Vec<String> {
    let text = format!("segment_map: pid\nfrom: PID\nto: Patient\nrules:\n{pid}");
    let files = vec![
        ("common.yaml".to_owned(), COMMON.to_owned()),
        ("pid.yaml".to_owned(), text),
        ("table/sex.json".to_owned(), TABLE.to_owned()),
    ];
    let found = Catalog::from_files(files).expect_err("it has mistakes");
    found.iter().map(|m| format!("{}:{} {}", m.file, m.mistake.place, m.mistake.text)).collect()
}

#[test]
fn every_mistake_is_told_at_once_with_its_place_and_the_nearest_spelling() {
    let found = mistakes_of(
        "  nam: {each: PID-5, use: xpn_name}
  gender: {value: PID-8}
  birthDate: {value: PID-7}
  active: {const: yes}
  maritalStatus: {use: xpn_name, from: PID-5}
  multipleBirth[x]: {value: yes_no(PID-24)}
  name: [{each: PID-5, use: xpn_nam}]
  deceased[x]: {as: boolen, value: yes_no(PID-99)}
  address: {all: [{each: PID-11, set: {city: {valu: XAD.3}}}]}
  contact: {set: {gender: {const: femal}}}
  identifier: {all: [{id: a, each: PID-3, use: cx_identifier, with: {us: x}}]}
  telecom: {each: PID-13, set: {value: {value: vlued(XTN.1)}}}
  generalPractitioner: {ref: doctor}
  photo: {each: PID-3, set: {title: {value: XPN.1}}}
  link: {set: {type: {const: seealso}}}
",
    );
    let expected = [
        "5:3 Patient has no such element; did you mean `name`?",
        "6:19 Patient.gender is bound to a fixed list of codes: translate the value by `map:`",
        "7:22 Patient.birthDate is a date: expected date(..)",
        "8:19 expected a boolean",
        "9:24 Patient.maritalStatus takes a CodeableConcept, and xpn_name makes a HumanName",
        "10:21 say by `as:` which type Patient.multipleBirth[x] gets: one of boolean, integer",
        "11:9 a list says neither `first:` nor `all:`; write one of them before it",
        "12:21 Patient.deceased[x] takes one of boolean, dateTime, not boolen; did you mean `boolean`?",
        "12:43 PID has 40 fields",
        "13:19 each item needs an `id:`: it is the name of its slot",
        "13:47 unknown key; did you mean `value`?",
        "14:35 Patient.contact.gender takes one of male, female, other, unknown; did you mean `female`?",
        "15:70 `us` is no parameter of cx_identifier",
        "16:48 there is no function of this name; did you mean `valued`?",
        "17:30 no mapping has a resource with this id",
        "18:45 `XPN` does not stand here; here stands",
        "19:16 Patient.link.other is required, and no rule writes it",
    ];
    for expected in expected {
        let full = format!("pid.yaml:{expected}");
        assert!(
            found.iter().any(|found| found.starts_with(&full)),
            "{expected}\nis not among\n{}",
            found.join("\n")
        );
    }
}

#[test]
fn maps_that_call_each_other_in_a_circle_are_refused() {
    let text = "type_map: a\nfrom: XPN\nto: HumanName\nrules:\n  period: {use: b, from: XPN.1}\n---\n\
                type_map: b\nfrom: FN\nto: Period\nrules:\n  extension: {all: [{id: x, url: x, as: HumanName, use: a, from: FN.1}]}\n";
    let found = Catalog::from_files(vec![("a.yaml".to_owned(), text.to_owned())]).expect_err("a circle");
    assert!(found.iter().any(|m| m.mistake.text.contains("in a circle: a -> b -> a")), "{found:?}");
}

#[test]
fn a_table_that_answers_what_the_element_does_not_take_is_refused() {
    let table = TABLE.replace("\"female\"", "\"woman\"");
    let text = "segment_map: pid\nfrom: PID\nto: Patient\nrules:\n  gender: {value: PID-8, map: sex}\n";
    let files = vec![("pid.yaml".to_owned(), text.to_owned()), ("table/sex.json".to_owned(), table)];
    let found = Catalog::from_files(files).expect_err("a wrong table");
    assert_eq!(found[0].mistake.text, "the table sex answers woman, which Patient.gender does not take");
}

#[test]
fn an_item_of_a_list_of_primitives_has_extensions_where_it_is_alone() {
    let read = |category: &str| {
        let rule = "extension: [{id: a, url: \"http://test.example/a\", as: string, value: AL1-3.1}]";
        let text = format!(
            "segment_map: al1\nfrom: AL1\nto: AllergyIntolerance\nrules:\n  category: {}\n",
            category.replace("EXTENDED", &format!("const: food, {rule}"))
        );
        Catalog::from_files(vec![("al1.yaml".to_owned(), text)])
            .map_err(|found| found.iter().map(|one| one.mistake.text.clone()).collect::<Vec<_>>().join("; "))
    };
    for alone in
        ["{EXTENDED}", "{all: [{id: a, EXTENDED}, {id: b, const: biologic}]}", "{first: [{id: a, EXTENDED}]}"]
    {
        read(alone).expect("it stands alone in its slot");
    }
    for several in
        ["{each: AL1-5, EXTENDED}", "{first: [{id: a, all: [{id: b, EXTENDED}, {id: c, const: biologic}]}]}"]
    {
        let told = read(several).expect_err("its place in the list is not known");
        assert!(told.contains("the one item of its rule"), "{several}: {told}");
    }
}

#[test]
fn a_merge_is_of_two_of_a_kind_and_a_move_from_patient_to_patient() {
    let visit = "\n- {id: visit, type: Encounter, from: PV1, identity: {keys: [{value: PV1-19.1}], else: omit}, parts: [], \
                 set: {status: {const: planned}, class: {concept: \"v3-ActCode#IMP\"}}}";
    let told = |effect: &str| -> Vec<String> {
        let text = format!(
            "segment_map: pid\nfrom: PID\nto: Patient\nrules:\n  birthDate: {{value: date(PID-7)}}\n---\nmapping: adt\nversion: 1\n\
             source: {{format: hl7v2, structure: ADT_A01, events: [A01]}}\nresources:{PATIENT}{visit}\neffects: [{{id: x, {effect}}}]"
        );
        let files = vec![
            ("test.yaml".to_owned(), [COMMON, &text].join("\n---\n")),
            ("table/sex.json".to_owned(), TABLE.to_owned()),
        ];
        let found = Catalog::from_files(files).map(drop).err().unwrap_or_default();
        found.iter().map(|one| one.mistake.text.clone()).collect()
    };
    assert_eq!(told("merge: {from: visit, into: visit}"), Vec::<String>::new());
    assert_eq!(
        told("merge: {from: patient, into: visit}"),
        ["a merge is of two of a kind, and patient is one of type Patient"]
    );
    assert_eq!(told("move: {what: visit, from: patient, into: patient}"), Vec::<String>::new());
    assert_eq!(
        told("move: {what: visit, from: visit, into: patient}"),
        ["something moves from patient to patient, and this one is of type Encounter"]
    );
    assert_eq!(
        told("move: {what: visits, from: patient, into: patient}"),
        ["this mapping has no resource with this id; did you mean `visit`?"]
    );
    let told_of_two =
        told("move: {what: visit, from: patient, into: patient}, merge: {from: visit, into: visit}");
    assert_eq!(told_of_two, ["an effect does one thing: write two effects"]);
    assert!(!told("move: {from: patient, into: patient}").is_empty(), "what moves has to be said");
}
