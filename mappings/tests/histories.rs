//! The mappings that come with the program over several messages of one patient: what is known afterwards, and that the order in
//! which messages arrive does not change it.

use mappings::resource::State;
use mappings::{Catalog, Context};
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message};
use serde_json::Value;
use std::collections::BTreeMap;
use uuid::Uuid;

/// What is known: resources by id, and the id of each alias.
#[derive(Default)]
struct Known {
    states: BTreeMap<Uuid, (String, State)>,
    aliases: BTreeMap<(String, String, String), Uuid>,
}

impl Known {
    /// Takes a message in as the store does: a known alias wins over the computed id.
    fn take(&mut self, catalog: &Catalog, number: usize, sender: &str, text: &str) {
        let text = text.trim().lines().map(str::trim).collect::<Vec<_>>().join("\r");
        let message = Message::parse(&text, &Limits::default()).expect("a message");
        let context = context(number, sender);
        let id = context.message_id;
        let program = catalog.program_of("test", &message).expect("a mapping takes it");
        let mapped = program.run(&message, &context).expect("it is mapped");
        for contribution in &mapped.contributions {
            let kind = contribution.resource_type.to_string();
            let names = contribution
                .aliases
                .iter()
                .map(|(system, value)| (kind.clone(), system.clone(), value.clone()));
            let names: Vec<_> = names.collect();
            let known = names.iter().find_map(|name| self.aliases.get(name)).copied();
            let target = known.unwrap_or(contribution.id);
            for name in names {
                self.aliases.entry(name).or_insert(target);
            }
            let (_, state) = self.states.entry(target).or_insert_with(|| (kind, State::default()));
            state.apply(contribution, &mapped.stamp, id);
        }
    }

    fn all(&self, kind: &str) -> Vec<Value> {
        let of_kind = self.states.iter().filter(|(_, (known, _))| known == kind);
        let rendered = of_kind
            .map(|(id, (kind, state))| serde_json::from_str(&state.render(kind, *id).json).expect("JSON"));
        rendered.collect()
    }

    fn one(&self, kind: &str) -> Value {
        let mut all = self.all(kind);
        assert_eq!(all.len(), 1, "{kind}: {all:?}");
        all.remove(0)
    }
}

fn context(number: usize, sender: &str) -> Context<'static> {
    Context {
        message_id: Uuid::from_u128(number as u128 + 1),
        received_at: jiff::Timestamp::UNIX_EPOCH,
        seq: number as i64,
        sender: sender.into(),
        authority: "test".into(),
        zone: Zone::UTC,
        namespace: Uuid::nil(),
        systems: &[],
        options: &[],
        wire: &[],
        codes: None,
        parties: mappings::Parties::default(),
    }
}

/// What is known after these messages of one sender.
fn after(messages: &[&str]) -> Known {
    let catalog = Catalog::builtin();
    let mut known = Known::default();
    for (number, text) in messages.iter().enumerate() {
        known.take(&catalog, number, "test", text);
    }
    known
}

const ADMISSION: &str = r"
    MSH|^~\&|ADT|TESTHOSP|||20250301083000||ADT^A01^ADT_A01|TEST1|P|2.5.1
    EVN|A01|20250301083000
    PID|||TEST4711^^^TESTHOSP^MR~TEST0815^^^TESTREG^PI||TEST^JANE^MARIA||19800304|F|||1 TEST STREET^^TESTTOWN||^PRN^PH^^^^555|||M
    NK1|1|TEST^JOHN|SPO^Spouse^HL70063
    PV1||I|WARD1^R1^B1^TESTHOSP||||TEST01^TEST^CARL^^^DR||||||||||||TESTVIS1^^^TESTHOSP|||||||||||||||||||||||||20250301083000
    AL1|1|DA|70618^Penicillin^RXNORM|SV";

const THIN_RESULT: &str = r"
    MSH|^~\&|LAB|TESTLAB|||20250302083000||ORU^R01^ORU_R01|TEST2|P|2.5.1
    PID|||TEST4711^^^TESTHOSP^MR||T^J||19800304
    PV1||O|LAB||||||||||||||||TESTVIS1^^^TESTHOSP
    OBR|1||FILL1^TESTLAB|HB^Haemoglobin^L|||20250302080000||||||||||||||||||F
    OBX|1|NM|HB^Haemoglobin^L||13.5|g/dL|||||F";

const UPDATE_WITHOUT_VISIT: &str = r#"
    MSH|^~\&|ADT|TESTHOSP|||20250303083000||ADT^A08^ADT_A01|TEST3|P|2.5.1
    EVN|A08|20250303083000
    PID|||TEST4711^^^TESTHOSP^MR||TEST-OTTO^JANE||||||||"""#;

#[test]
fn a_thin_result_and_an_update_without_a_visit_lose_nothing() {
    let known = after(&[ADMISSION, THIN_RESULT, UPDATE_WITHOUT_VISIT]);
    let patient = known.one("Patient");
    assert_eq!(patient["name"][0]["family"], "TEST-OTTO");
    assert_eq!(patient["gender"], "female");
    assert_eq!(patient["birthDate"], "1980-03-04");
    assert_eq!(patient["address"][0]["city"], "TESTTOWN");
    assert_eq!(patient["contact"][0]["name"]["given"][0], "JOHN");
    assert_eq!(patient["maritalStatus"]["coding"][0]["code"], "M");
    assert!(patient.get("telecom").is_none(), "the null deleted the telephone");
    let encounter = known.one("Encounter");
    assert_eq!(encounter["status"], "in-progress");
    assert_eq!(encounter["class"]["code"], "IMP", "a laboratory's idea of the visit does not count");
    assert_eq!(encounter["period"]["start"], "2025-03-01T08:30:00Z");
    assert_eq!(encounter["location"].as_array().map(Vec::len), Some(1));
    assert_eq!(known.one("AllergyIntolerance")["criticality"], "high");
    let observation = known.one("Observation");
    assert_eq!(
        observation["subject"]["reference"],
        format!("Patient/{}", patient["id"].as_str().expect("an id"))
    );
}

#[test]
fn messages_of_one_sender_may_arrive_in_any_order() {
    let messages = [ADMISSION, THIN_RESULT, UPDATE_WITHOUT_VISIT];
    let expected = after(&messages);
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let known = after(&order.map(|index| messages[index]));
        for kind in ["Patient", "Encounter"] {
            assert_eq!(known.one(kind), expected.one(kind), "{kind} after {order:?}");
        }
    }
}

#[test]
fn a_patient_is_found_by_the_number_that_a_laboratory_knows() {
    let by_other_number = THIN_RESULT.replace("TEST4711^^^TESTHOSP^MR", "TEST0815^^^TESTREG^PI");
    let known = after(&[ADMISSION, &by_other_number]);
    assert_eq!(known.one("Patient")["name"][0]["family"], "TEST");
}

const DISCHARGE: &str = r"
    MSH|^~\&|ADT|TESTHOSP|||20250305100000||ADT^A03^ADT_A03|TEST4|P|2.5.1
    EVN|A03|20250305100000
    PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE
    PV1||I|WARD1^R1^B1^TESTHOSP||||||||||||||||TESTVIS1^^^TESTHOSP|||||||||||||||||01|||||||||20250305095500";

#[test]
fn an_update_after_the_discharge_does_not_reopen_the_visit() {
    let update = r"
        MSH|^~\&|ADT|TESTHOSP|||20250306100000||ADT^A08^ADT_A01|TEST5|P|2.5.1
        EVN|A08|20250306100000
        PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE
        PV1|||WARD1^R1^B1^TESTHOSP|||||||MED|||||||||TESTVIS1^^^TESTHOSP";
    let encounter = after(&[ADMISSION, DISCHARGE, update]).one("Encounter");
    assert_eq!(encounter["status"], "finished");
    assert_eq!(encounter["class"]["code"], "IMP", "an update without a class leaves the class");
    assert_eq!(encounter["period"]["end"], "2025-03-05T09:55:00Z");
    assert_eq!(encounter["serviceType"]["coding"][1]["code"], "MED");
}

#[test]
fn a_cancelled_discharge_takes_the_end_back_and_a_late_copy_does_not_bring_it_again() {
    let cancel = r"
        MSH|^~\&|ADT|TESTHOSP|||20250305110000||ADT^A13^ADT_A01|TEST6|P|2.5.1
        EVN|A13|20250305110000
        PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE
        PV1||I|||||||||||||||||TESTVIS1^^^TESTHOSP";
    for order in [[ADMISSION, DISCHARGE, cancel], [ADMISSION, cancel, DISCHARGE]] {
        let encounter = after(&order).one("Encounter");
        assert_eq!(encounter["status"], "in-progress");
        assert!(encounter["period"].get("end").is_none());
        assert!(encounter.get("hospitalization").is_none(), "the disposition went with the discharge");
        assert_eq!(encounter["period"]["start"], "2025-03-01T08:30:00Z");
    }
}

#[test]
fn a_correction_meets_its_result_although_the_set_ids_moved() {
    let result = |at: &str, status: &str, first: &str, second: &str| {
        format!(
            r"
            MSH|^~\&|LAB|TESTLAB|||{at}||ORU^R01^ORU_R01|TEST{at}|P|2.5.1
            PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE
            OBR|1||FILL1^TESTLAB|PANEL^Panel^L|||20250302080000||||||||||||||||||{status}
            {first}
            {second}"
        )
    };
    let before =
        result("20250302090000", "P", "OBX|1|NM|HB^^L||13.5|g/dL|||||P", "OBX|2|NM|NA^^L||140|mmol/L|||||P");
    let later = result("20250302100000", "C", "OBX|1|NM|NA^^L||141|mmol/L|||||C", "OBX|2|NM|HB^^L||||||||W");
    let known = after(&[&before, &later]);
    assert_eq!(known.one("DiagnosticReport")["status"], "corrected");
    let observations = known.all("Observation");
    assert_eq!(observations.len(), 2);
    let of = |code: &str| {
        observations.iter().find(|one| one["code"]["coding"][0]["code"] == code).expect("an observation")
    };
    assert_eq!(of("NA")["valueQuantity"]["value"].to_string(), "141");
    assert_eq!(of("NA")["status"], "corrected");
    assert_eq!(of("HB")["status"], "entered-in-error");
    assert!(of("HB").get("valueQuantity").is_none(), "what was wrong is no longer said");
    assert_eq!(of("HB")["dataAbsentReason"]["coding"][0]["code"], "unknown");
    assert!(of("NA").get("dataAbsentReason").is_none());
}

#[test]
fn without_order_numbers_the_results_of_two_patients_stay_apart() {
    let result = |patient: &str, value: &str| {
        format!(
            r"
            MSH|^~\&|LAB|TESTLAB|||20250302083000||ORU^R01^ORU_R01|{patient}|P|2.5.1
            PID|||{patient}^^^TESTHOSP^MR||TEST^JANE
            ORC|RE
            OBR|1|||HB^Haemoglobin^L|||20250302080000||||||||||||||||||F
            OBX|1|NM|HB^Haemoglobin^L||{value}|g/dL|||||F"
        )
    };
    let only_filler = result("TEST3", "15").replace("OBR|1||", "OBR|1||FILL9");
    let only_placer = result("TEST4", "16").replace("OBR|1|", "OBR|1|PLAC9");
    let known = after(&[&result("TEST1", "13"), &result("TEST2", "14"), &only_filler, &only_placer]);
    for kind in ["Patient", "ServiceRequest", "DiagnosticReport", "Observation"] {
        let all = known.all(kind);
        assert_eq!(all.len(), 4, "{kind}");
        let subjects: std::collections::BTreeSet<_> =
            all.iter().map(|one| one["subject"].to_string()).collect();
        assert!(kind == "Patient" || subjects.len() == 4, "{kind} of four patients");
    }
}

#[test]
fn two_visits_of_one_day_and_two_results_of_one_order_stay_apart() {
    let visit = |number: &str, at: &str| {
        format!(
            r"
            MSH|^~\&|ADT|TESTHOSP|||{at}||ADT^A04^ADT_A01|TEST{at}|P|2.5.1
            EVN|A04|{at}
            PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE
            PV1||O|||||||||||||||||{number}^^^TESTHOSP|||||||||||||||||||||||||20250301"
        )
    };
    let known = after(&[&visit("TESTVIS1", "20250301080000"), &visit("TESTVIS2", "20250301150000")]);
    assert_eq!(known.all("Encounter").len(), 2);
    let result = |filler: &str| THIN_RESULT.replace("OBR|1||FILL1", &format!("OBR|1|PLAC1^TESTEHR|{filler}"));
    let known = after(&[&result("FILL1"), &result("FILL2")]);
    assert_eq!(known.all("DiagnosticReport").len(), 2);
    assert_eq!(known.all("Observation").len(), 2);
    assert_eq!(known.all("ServiceRequest").len(), 1);
}

#[test]
fn a_merge_leaves_the_prior_record_as_it_was_but_for_the_link() {
    let prior = ADMISSION.replace("TEST4711", "TEST9999").replace("TEST0815", "TEST8888");
    let merge = r"
        MSH|^~\&|ADT|TESTHOSP|||20250310083000||ADT^A40^ADT_A39|TEST9|P|2.5.1
        EVN|A40|20250310083000
        PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE||19800304
        MRG|TEST9999^^^TESTHOSP^MR||||||TEST^OLD";
    let known = after(&[&prior, merge]);
    let patients = known.all("Patient");
    let prior = patients.iter().find(|one| one["active"] == false).expect("the prior patient");
    assert_eq!(prior["identifier"].as_array().map(Vec::len), Some(2), "no number stands there twice");
    assert_eq!(prior["name"][0]["given"][0], "JANE");
    assert_eq!(prior["link"][0]["type"], "replaced-by");
    let survivor = patients.iter().find(|one| one.get("active").is_none()).expect("the survivor");
    assert_eq!(survivor["link"][0]["type"], "replaces");
    assert_eq!(
        survivor["link"][0]["other"]["reference"],
        format!("Patient/{}", prior["id"].as_str().expect("an id"))
    );
}

#[test]
fn a_result_completes_the_order_that_it_answers_and_leaves_the_rest_of_it() {
    let order = r"
        MSH|^~\&|EHR|TESTHOSP|||20250301070000||ORM^O01|TEST1|P|2.5.1
        PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE
        ORC|NW|PLAC1^TESTEHR||||||||||TEST02^TEST^DORA^^^DR^^^TESTHOSP
        OBR|1|PLAC1^TESTEHR||HB^Haemoglobin^L|S||||||||||||||||||||||||||R07.9^Chest pain^I10";
    let result = r"
        MSH|^~\&|LAB|TESTLAB|||20250302083000||ORU^R01^ORU_R01|TEST2|P|2.5.1
        PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE
        ORC|RE|PLAC1^TESTEHR|FILL1^TESTLAB
        OBR|1|PLAC1^TESTEHR|FILL1^TESTLAB|HB^Haemoglobin^L|||20250302080000||||||||||||||||||F
        OBX|1|NM|HB^Haemoglobin^L||13.5|g/dL|||||F";
    let known = after(&[order, result]);
    let request = known.one("ServiceRequest");
    assert_eq!(request["status"], "completed");
    assert_eq!(request["priority"], "stat");
    assert_eq!(request["reasonCode"][0]["coding"][0]["code"], "R07.9");
    assert_eq!(request["requester"]["display"], "DR DORA TEST");
    let based_on = &known.one("DiagnosticReport")["basedOn"][0]["reference"];
    assert_eq!(*based_on, format!("ServiceRequest/{}", request["id"].as_str().expect("an id")));
}

#[test]
fn a_repeated_segment_that_is_left_out_deletes_nothing_and_one_sent_again_is_no_second() {
    let again = ADMISSION.replace("ADT^A01^ADT_A01|TEST1", "ADT^A08^ADT_A01|TEST7").replace("AL1|1", "AL1|9");
    let without: String = again.lines().filter(|line| !line.contains("AL1|")).collect::<Vec<_>>().join("\n");
    let known = after(&[ADMISSION, &again, &without]);
    assert_eq!(known.all("AllergyIntolerance").len(), 1);
    assert_eq!(known.all("RelatedPerson").len(), 1);
    assert_eq!(known.all("Location").len(), 4);
    assert_eq!(known.all("Practitioner").len(), 1);
}

#[test]
fn the_messages_of_a_hospital_are_taken_in_every_version() {
    let catalog = Catalog::builtin();
    for (code, trigger, structure, mapping, versions) in [
        ("ADT", "A01", "ADT_A01", "adt_visit", &["2.1", "2.3", "2.5.1", "2.8.2"][..]),
        ("ADT", "A02", "ADT_A02", "adt_visit", &["2.2", "2.5.1"]),
        ("ADT", "A03", "ADT_A03", "adt_visit", &["2.2", "2.5.1"]),
        ("ADT", "A04", "", "adt_visit", &["2.3", "2.5.1"]),
        ("ADT", "A08", "", "adt_visit", &["2.3", "2.5.1"]),
        ("ADT", "A11", "ADT_A09", "adt_visit", &["2.3", "2.5.1"]),
        ("ADT", "A13", "", "adt_visit", &["2.3", "2.5.1"]),
        ("ADT", "A40", "ADT_A39", "adt_a40", &["2.3", "2.5.1"]),
        ("ORU", "R01", "ORU_R01", "oru_r01", &["2.1", "2.3", "2.5.1", "2.8.2"]),
        ("ORM", "O01", "", "orm_o01", &["2.1", "2.3.1", "2.5.1"]),
        ("OML", "O21", "OML_O21", "oml_o21", &["2.4", "2.5.1", "2.8.2"]),
    ] {
        for version in versions {
            let program = catalog.program_for(code, trigger, structure, version);
            assert_eq!(program.map(|p| p.name()), Some(mapping), "{code}^{trigger} {version}");
        }
    }
    assert!(catalog.program_for("PMU", "B01", "PMU_B01", "2.5.1").is_none(), "nobody takes it");
}

fn order(number: &str, time: &str, control: &str, status: &str, result: &str) -> String {
    format!(
        "MSH|^~\\&|ADT|TESTHOSP|||{time}||OML^O21^OML_O21|{number}|P|2.5.1\n\
         PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE||19800304|F\n\
         PV1||I|||||||||||||||||TESTVIS1^^^TESTHOSP\n\
         ORC|{control}|PLAC7^TESTHOSP|FILL7^TESTLAB||{status}\n\
         OBR|1|PLAC7^TESTHOSP|FILL7^TESTLAB|HB^Haemoglobin^L||||||||||||||||||||{result}"
    )
}

fn order_status(messages: &[String]) -> String {
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    let known = after(&messages);
    known.one("ServiceRequest")["status"].as_str().expect("a status").to_owned()
}

#[test]
fn an_order_goes_from_new_to_cancelled_and_a_late_copy_of_the_new_one_does_not_revive_it() {
    let new = order("TEST1", "20250301080000", "NW", "", "");
    let cancelled = order("TEST2", "20250301090000", "CA", "", "");
    assert_eq!(order_status(std::slice::from_ref(&new)), "active");
    assert_eq!(order_status(&[new.clone(), cancelled.clone()]), "revoked");
    assert_eq!(order_status(&[cancelled, new]), "revoked");
}

#[test]
fn a_change_of_an_order_that_tells_no_status_leaves_the_known_one() {
    let new = order("TEST1", "20250301080000", "NW", "", "");
    let held = order("TEST2", "20250301090000", "HD", "", "");
    let done = order("TEST3", "20250301100000", "SC", "CM", "");
    let changed = order("TEST4", "20250301110000", "XO", "", "");
    assert_eq!(order_status(&[new.clone(), held.clone(), changed.clone()]), "on-hold");
    assert_eq!(order_status(&[new.clone(), done.clone(), changed.clone()]), "completed");
    assert_eq!(order_status(&[changed, done, new]), "completed", "in another order of arrival");
}

#[test]
fn a_message_that_tells_no_status_of_a_bed_leaves_the_known_one_and_that_of_the_ward() {
    let admission = |control: &str, place: &str, status: &str| {
        format!(
            "MSH|^~\\&|ADT|TESTHOSP|||20250301083000||ADT^A01^ADT_A01|{control}|P|2.5.1\n\
             EVN|A01|2025030108300{control}\n\
             PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE\n\
             PV1||I|{place}||||||||||||||||TESTVIS1^^^TESTHOSP|||||||||||||||||||||{status}"
        )
    };
    let status_of = |known: &Known, name: &str| {
        let places = known.all("Location");
        let place = places.into_iter().find(|place| place["name"] == name).expect("the place");
        place["operationalStatus"]["code"].as_str().map(str::to_owned)
    };
    let told = [admission("1", "WARD1^R1^B1^TESTHOSP", "K"), admission("2", "WARD1^R1^B2^TESTHOSP", "O")];
    let first = after(&[&told[0], &told[1]]);
    assert_eq!(status_of(&first, "B1").as_deref(), Some("K"));
    assert_eq!(status_of(&first, "B2").as_deref(), Some("O"));
    assert_eq!(status_of(&first, "WARD1"), None, "what is said of a bed is not said of its ward");
    let untold = admission("3", "WARD1^R1^B1^TESTHOSP", "");
    assert_eq!(status_of(&after(&[&told[0], &untold]), "B1").as_deref(), Some("K"));
    let null = admission("4", "WARD1^R1^B1^TESTHOSP", "\"\"");
    assert_eq!(status_of(&after(&[&told[0], &null]), "B1"), None, "HL7's null deletes it");
}

#[test]
fn the_notes_of_every_part_of_an_appointment_are_kept() {
    let known = after(&[r"
        MSH|^~\&|SCHED|TESTHOSP|||20250301083000||SIU^S12^SIU_S12|TEST1|P|2.5.1
        SCH|PLAN1^TESTHOSP|||||CHECKUP|||||^^30^20250310090000^20250310093000||||||||||||||BOOKED
        NTE|1||Bring the film.
        NTE|2||Come early.
        PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE
        RGS|1
        AIS|1||XRAY^X-ray^L
        NTE|1||No metal.
        AIG|1||LAMP^Lamp^L
        NTE|1||Lead apron."]);
    let text = known.one("Appointment").to_string();
    for note in ["Bring the film.", "Come early.", "No metal.", "Lead apron."] {
        assert!(text.contains(note), "{note} is lost: {text}");
    }
}

#[test]
fn two_places_of_a_message_that_tell_of_one_thing_are_joined_and_the_first_is_believed() {
    let catalog = Catalog::builtin();
    let text = r"MSH|^~\&|LAB|TESTLAB|||20250302083000||ORU^R01^ORU_R01|TEST1|P|2.5.1
        PID|1||TEST4711^^^TESTHOSP^MR||TEST^JANE||19700101|M||||||||||||||||||||||Y
        OBR|1|P1^TESTHOSP|FILL1^TESTLAB|HB^Haemoglobin^L|||||||||||||||||||||F
        NTE|1||Fasting
        OBX|1|NM|HB^Haemoglobin^L||13.5|g/dL|||||F
        PID|2||TEST4711^^^TESTHOSP^MR||TEST^JANE||19700102|F||||||||||||||||||||||N
        OBR|1|P1^TESTHOSP|FILL1^TESTLAB|HB^Haemoglobin^L|||||||||||||||||||||F
        NTE|1||After two hours
        OBX|1|NM|HB2^Haemoglobin^L||13.6|g/dL|||||F";
    let known = after(&[text]);
    let patient = known.one("Patient");
    assert_eq!(patient["gender"], "male", "{patient}");
    assert_eq!(patient["birthDate"], "1970-01-01");
    assert_eq!(patient["deceasedBoolean"], true);
    assert_eq!(patient["identifier"].as_array().map(Vec::len), Some(1), "what is said twice stands once");
    let notes = known.one("DiagnosticReport").to_string() + &known.one("ServiceRequest").to_string();
    assert!(notes.contains("Fasting") && notes.contains("After two hours"), "{notes}");
    let lines = text.lines().map(str::trim).collect::<Vec<_>>().join("\r");
    let message = Message::parse(&lines, &Limits::default()).expect("a message");
    let mapped = catalog.program_of("test", &message).expect("a mapping").run(&message, &context(0, "test"));
    let issues = mapped.expect("it is mapped").issues;
    let otherwise: Vec<_> = issues
        .iter()
        .filter(|issue| issue.code == "said-otherwise")
        .map(|issue| issue.rule.as_str())
        .collect();
    for rule in ["pid_patient/gender", "pid_patient/birthDate", "pid_patient/deceased[x]"] {
        assert!(otherwise.contains(&rule), "{rule} is told: {otherwise:?}");
    }
}

#[test]
fn two_coded_comments_about_a_patient_are_two() {
    let comment = |number: &str, code: &str| {
        format!(
            r"
        MSH|^~\&|LAB|TESTLAB|||20250302083000||ORU^R01^ORU_R01|TEST{number}|P|2.8.2
        PID|||TEST4711^^^TESTHOSP^MR||TEST^JANE
        NTE|1||||||||{code}
        OBR|1||FILL{number}^TESTLAB|HB^Haemoglobin^L|||||||||||||||||||||F"
        )
    };
    let (first, second) = (comment("1", "FAST^Fasting^L"), comment("2", "LATE^Sent late^L"));
    let comments = after(&[&first, &second, &first]).all("Observation");
    let mut told: Vec<_> = comments.iter().filter_map(|comment| comment["valueString"].as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, ["Fasting", "Sent late"], "one does not take the place of the other");
}

#[test]
fn a_new_booking_forgets_why_the_old_one_was_missed() {
    let appointment = |event: &str, reason: &str| {
        format!(
            r"
        MSH|^~\&|SCHED|TESTHOSP|||20250302083000||SIU^{event}^SIU_S12|TEST{event}|P|2.5
        SCH|P1|F1||||{reason}|||30|MIN|^^M30^20250310083000+0100^20250310090000+0100|||||TEST02^TEST^DORA||||TEST21^TEST^EVA
        PID|1||TEST4711^^^TESTHOSP^MR||TEST^JANE
        RGS|1
        AIL|1||ROOM7^^^TESTHOSP"
        )
    };
    let missed = appointment("S26", "ICE^Roads were icy^L");
    let known = after(&[&missed]).one("Appointment");
    assert_eq!((&known["status"], &known["comment"]), (&"noshow".into(), &"Roads were icy".into()));
    let known = after(&[&missed, &appointment("S13", "NEW^Another day^L")]).one("Appointment");
    assert_eq!(known["comment"], Value::Null, "{known}");
}

#[test]
fn a_label_with_its_display_and_without_is_one() {
    let known = after(&[r"
        MSH|^~\&|ADT|TESTHOSP|||20250302083000||ADT^A01^ADT_A01|TEST1|P|2.8.2||||||||||||||R
        EVN||20250302083000
        PID|1||TEST4711^^^TESTHOSP^MR||TEST^JANE
        PD1||||||||||||Y
        PV1|1|I"]);
    let labels = &known.one("Patient")["meta"]["security"];
    assert_eq!(labels.as_array().map(Vec::len), Some(1), "{labels}");
    assert_eq!((&labels[0]["code"], &labels[0]["display"]), (&"R".into(), &"restricted".into()), "{labels}");
}
