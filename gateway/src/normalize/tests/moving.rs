//! A visit or an account that was recorded for the wrong patient moves with all that belongs to it.

use super::{Bench, adt};
use serde_json::Value;

const JANE: &str = "PID|1||1001^^^GENHOSP^MR||TEST^JANE||19700101|F\n";
const OTTO: &str = "PID|1||1002^^^GENHOSP^MR||TEST^OTTO||19800101|M\n";

fn visit(number: &str) -> String {
    format!("PV1|1|I|3A^12^1^GENHOSP||||||||||||||||{number}^^^GENHOSP^VN\n")
}

/// A result with its specimen; of a visit, if there is one.
fn result(filler: &str, at: &str, patient: &str, visit: &str) -> String {
    let text = format!(
        "MSH|^~\\&|ADT1|GENHOSP|||{at}||ORU^R01^ORU_R01|R{filler}|P|2.5.1\n{patient}{visit}OBR|1||{filler}^LAB|2823-3^Potassium^LN|||{at}|||||||||||||||{at}|||F\n\
         OBX|1|NM|2823-3^Potassium^LN||4.1|mmol/L^^UCUM|||||F\nSPM|1|S{filler}&LAB||119297000^Blood^SCT\n"
    );
    text.replace('\n', "\r")
}

fn moved(at: &str, control: &str, into: &str, from: &str, number: &str) -> String {
    adt(
        "A45^ADT_A45",
        at,
        control,
        &format!(
            "{into}MRG|{from}^^^GENHOSP^MR||||{number}^^^GENHOSP\nPV1|1|I|||||||||||||||||{number}^^^GENHOSP^VN\n"
        ),
    )
}

/// Jane's visit V1 with a result, another visit of hers, and a result of no visit.
async fn begun() -> Bench {
    let bench = Bench::new().await;
    let story = [
        adt("A01", "20260301100000", "C1", &format!("{JANE}{}", visit("V1"))),
        adt("A01", "20260301100500", "C2", &format!("{JANE}{}", visit("V2"))),
        adt("A01", "20260301101000", "C3", &format!("{OTTO}{}", visit("V3"))),
        result("F1", "20260301110000", JANE, &visit("V1")),
        result("F2", "20260301110500", JANE, &visit("V2")),
        result("F3", "20260301111000", JANE, ""),
    ];
    assert_eq!(bench.send("adt", &story.each_ref().map(String::as_str)).await, vec![None; 6]);
    bench
}

impl Bench {
    /// Whose something is, by the numbers of the patients to whom it refers.
    async fn whose(&self, kind: &str, value: &str) -> Vec<&'static str> {
        let mut whose = Vec::new();
        for number in ["1001", "1002", "1003"] {
            let Some(patient) = self.named("Patient", "GENHOSP", number).await else { continue };
            let id = patient["id"].as_str().expect("an id");
            let mut tx = self.store.begin_record(&self.held.leases).await.expect("begun");
            for about in tx.about(id.parse().expect("a UUID")).await.expect("read") {
                let one = self.read(about).await.expect("it is there");
                let mut values = one["identifier"].as_array().into_iter().flatten().map(|of| &of["value"]);
                let is_it = one["resourceType"] == kind && values.any(|of| of == value);
                if is_it && one["subject"].to_string().contains(id) {
                    whose.push(number);
                }
            }
        }
        whose
    }
}

#[tokio::test]
async fn a_visit_moves_with_its_results_and_their_specimens_and_nothing_else() {
    let bench = begun().await;
    bench.store_one("adt", &moved("20260301120000", "C4", OTTO, "1001", "V1")).await;
    let mut recorded = bench.work().await;
    assert_eq!(bench.whose("Encounter", "V1").await, ["1002"]);
    assert_eq!(bench.whose("Encounter", "V2").await, ["1001"]);
    for (filler, whose) in [("F1", "1002"), ("F2", "1001"), ("F3", "1001")] {
        assert_eq!(bench.whose("DiagnosticReport", filler).await, [whose], "{filler}");
        assert_eq!(bench.whose("Specimen", &format!("S{filler}")).await, [whose], "{filler}");
    }

    // Whoever subscribes sees what moved as it is now.
    let recorded = recorded.remove(0);
    assert_eq!(recorded.done.quarantined, None);
    let bundle: Value = serde_json::from_slice(&recorded.bundle).expect("JSON");
    let entries = bundle["entry"].as_array().expect("entries");
    let observation = entries.iter().find(|entry| entry["resource"]["resourceType"] == "Observation");
    let otto = bench.named("Patient", "GENHOSP", "1002").await.expect("known")["id"].clone();
    let reference = Value::from(format!("urn:uuid:{}", otto.as_str().expect("an id")));
    assert_eq!(observation.expect("it moved")["resource"]["subject"]["reference"], reference);
    assert!(recorded.issues.iter().any(|issue| issue.code == "moved"), "{:?}", recorded.issues);
    let jane = bench.named("Patient", "GENHOSP", "1001").await.expect("known");
    assert!(jane.get("active").is_none(), "who had the visit goes on: {jane}");
}

#[tokio::test]
async fn a_result_that_still_names_the_wrong_patient_waits_for_a_person() {
    let bench = begun().await;
    let outcomes = bench
        .send(
            "adt",
            &[
                &moved("20260301120000", "C4", OTTO, "1001", "V1"),
                &result("F1", "20260301130000", JANE, &visit("V1")),
                &result("F1", "20260301130500", OTTO, &visit("V1")),
            ],
        )
        .await;
    assert!(outcomes[1].as_deref().is_some_and(|why| why.contains("another patient")), "{outcomes:?}");
    assert_eq!((&outcomes[0], &outcomes[2]), (&None, &None));
    assert_eq!(bench.whose("DiagnosticReport", "F1").await, ["1002"]);
}

#[tokio::test]
async fn a_visit_of_somebody_else_does_not_move() {
    let bench = begun().await;
    let third = "PID|1||1003^^^GENHOSP^MR||TEST^ANNA||19900101|F\n";
    let outcomes = bench.send("adt", &[&moved("20260301120500", "C5", third, "1002", "V1")]).await;
    assert!(outcomes[0].as_deref().is_some_and(|why| why.contains("whose it is not")), "{outcomes:?}");
    let from_nobody =
        moved("20260301121000", "C6", OTTO, "1001", "V1").replace("MRG|1001^^^GENHOSP^MR", "MRG|");
    let outcomes = bench.send("adt", &[&from_nobody]).await;
    assert!(outcomes[0].as_deref().is_some_and(|why| why.contains("another patient")), "{outcomes:?}");
    assert_eq!(bench.whose("Encounter", "V1").await, ["1001"]);
    assert_eq!(bench.whose("DiagnosticReport", "F1").await, ["1001"]);
}

#[tokio::test]
async fn what_was_recorded_under_a_number_that_was_merged_since_moves_too() {
    let bench = begun().await;
    let merge = adt(
        "A40",
        "20260301113000",
        "C9",
        "PID|1||1003^^^GENHOSP^MR||TEST^JANE||19700101|F\nMRG|1001^^^GENHOSP^MR\n",
    );
    // Since then the visit itself is known under the surviving number.
    let again = adt(
        "A08",
        "20260301114000",
        "C8",
        &format!("PID|1||1003^^^GENHOSP^MR||TEST^JANE||19700101|F\n{}", visit("V1")),
    );
    let moved = moved("20260301120000", "C4", OTTO, "1003", "V1");
    assert_eq!(bench.send("adt", &[&merge, &again, &moved]).await, [None, None, None]);
    assert_eq!(bench.whose("Encounter", "V1").await, ["1002"]);
    assert_eq!(bench.whose("DiagnosticReport", "F1").await, ["1002"]);
    assert_eq!(bench.whose("DiagnosticReport", "F2").await, ["1001"]);
}

#[tokio::test]
async fn a_move_from_before_what_is_known_moves_nothing() {
    let bench = begun().await;
    let late = moved("20260301090000", "C4", OTTO, "1001", "V1");
    assert_eq!(bench.send("adt", &[&late]).await, [None]);
    assert_eq!(bench.whose("Encounter", "V1").await, ["1001"]);
    assert_eq!(bench.whose("DiagnosticReport", "F1").await, ["1001"]);
}

#[tokio::test]
async fn what_comes_in_with_a_move_is_taken_in_sequence() {
    let bench = begun().await;
    for text in [
        result("F4", "20260301115000", JANE, &visit("V1")),
        moved("20260301120000", "C4", OTTO, "1001", "V1"),
        result("F5", "20260301121000", OTTO, &visit("V1")),
        moved("20260301130000", "C5", JANE, "1002", "V1"),
    ] {
        bench.store_one("adt", &text).await;
    }
    assert!(bench.work().await.iter().all(|one| one.done.quarantined.is_none()));
    for filler in ["F1", "F4", "F5"] {
        assert_eq!(bench.whose("DiagnosticReport", filler).await, ["1001"], "{filler}: there and back");
    }
}

#[tokio::test]
async fn an_account_moves_with_the_visits_on_it() {
    let bench = Bench::new().await;
    let with_account = |patient: &str| patient.replace('\n', "||||||||||ACC1^^^GENHOSP\n");
    let story = [
        adt("A01", "20260301100000", "C1", &format!("{}{}", with_account(JANE), visit("V1"))),
        result("F1", "20260301110000", JANE, &visit("V1")),
        adt(
            "A44^ADT_A43",
            "20260301120000",
            "C2",
            &format!("{}MRG|1001^^^GENHOSP^MR||ACC1^^^GENHOSP\n", with_account(OTTO)),
        ),
    ];
    assert_eq!(bench.send("adt", &story.each_ref().map(String::as_str)).await, [None, None, None]);
    assert_eq!(bench.whose("Account", "ACC1").await, ["1002"]);
    assert_eq!(bench.whose("Encounter", "V1").await, ["1002"]);
    assert_eq!(bench.whose("DiagnosticReport", "F1").await, ["1002"]);
}

#[tokio::test]
async fn a_move_whose_two_numbers_name_two_visits_waits_for_a_person() {
    let bench = begun().await;
    let text = moved("20260301120000", "C4", OTTO, "1001", "V1")
        .replace("PV1|1|I|||||||||||||||||V1^", "PV1|1|I|||||||||||||||||V3^");
    let outcomes = bench.send("adt", &[&text]).await;
    assert!(outcomes[0].as_deref().is_some_and(|why| why.contains("two resources")), "{outcomes:?}");
    assert_eq!(bench.whose("Encounter", "V1").await, ["1001"]);
    assert_eq!(bench.whose("Encounter", "V3").await, ["1002"]);
}
