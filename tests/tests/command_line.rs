//! The verbs as scripts use them: what is data and what is diagnostics, every form of input, every option of a search, every way
//! to end.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::command::Ended;
use tests::gateway::{Gateway, Setup, Subscription};
use tests::generate::{Kind, Population, Run};
use tests::receiver::Receiver;
use tests::sender::Connection;
use tests::webhook::{Behaviour, Webhook};

const WAIT: Duration = Duration::from_secs(20);

/// Runs `pons` in a folder, with something on its standard input.
async fn pons(folder: &Path, arguments: &[&str], input: &[u8]) -> Ended {
    tests::command::pons(folder, arguments, input).await.unwrap()
}

/// Some messages of one stay, and the strings that may not be shown.
fn stay() -> (Vec<String>, Vec<Vec<u8>>) {
    let mut population = Population::new(Run::new(2), 7, 1);
    let kinds = [Kind::Admit, Kind::Result, Kind::Update, Kind::Discharge];
    let messages = kinds.iter().map(|kind| population.message(*kind, 0).bytes).collect();
    (population.canaries(), messages)
}

/// The resources of each Bundle, without the Provenance, which names the message by its very bytes.
fn resources(out: &str) -> Vec<Vec<Value>> {
    out.lines()
        .map(|line| {
            let bundle: Value = serde_json::from_str(line).unwrap();
            let entries = bundle["entry"].as_array().unwrap();
            let resources = entries.iter().map(|entry| entry["resource"].clone());
            resources.filter(|resource| resource["resourceType"] != "Provenance").collect()
        })
        .collect()
}

fn replaced(messages: &[Vec<u8>], end: &str) -> Vec<u8> {
    String::from_utf8(messages.concat()).unwrap().replace('\r', end).into_bytes()
}

#[tokio::test]
async fn map_reads_every_form_in_which_messages_lie_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let (_, messages) = stay();
    let framed: Vec<u8> =
        messages.iter().flat_map(|message| [b"\x0B", &message[..], b"\x1C\r"].concat()).collect();
    let batch = [b"FHS|^~\\&|A|B\rBHS|^~\\&|A|B\r", &messages.concat()[..], b"BTS|4\rFTS|1\r"].concat();
    let expected = {
        let (code, out, error) = pons(folder.path(), &["map", "-"], &messages.concat()).await;
        assert_eq!((code, out.lines().count()), (Some(0), 4), "{error}");
        resources(&out)
    };
    for (form, bytes) in [
        ("LF", replaced(&messages, "\n")),
        ("CRLF", replaced(&messages, "\r\n")),
        ("frames", framed),
        ("batch", batch),
        ("with a byte order mark", [b"\xEF\xBB\xBF", &messages.concat()[..]].concat()),
    ] {
        std::fs::write(folder.path().join("in.hl7"), &bytes).unwrap();
        let (code, out, error) = pons(folder.path(), &["map", "in.hl7"], b"").await;
        assert_eq!(code, Some(0), "{form}: {error}");
        assert_eq!(resources(&out), expected, "{form}");
    }
    let one: Vec<String> = (0..4).map(|n| format!("{n}.hl7")).collect();
    for (name, message) in one.iter().zip(&messages) {
        std::fs::write(folder.path().join(name), message).unwrap();
    }
    let arguments: Vec<&str> = std::iter::once("map").chain(one.iter().map(String::as_str)).collect();
    let (code, out, _) = pons(folder.path(), &arguments, b"").await;
    assert_eq!((code, resources(&out)), (Some(0), expected), "a file a message");
}

#[tokio::test]
async fn map_explains_every_field_and_element_and_the_bundle_stays_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (_, messages) = stay();
    let (_, plain, _) = pons(folder.path(), &["map", "-"], &messages.concat()).await;
    let (code, out, error) = pons(folder.path(), &["map", "--explain", "-"], &messages.concat()).await;
    assert_eq!((code, &out), (Some(0), &plain));
    let lines = error.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<Value> = lines.filter(|line| line["lineage"].is_object()).collect();
    assert_eq!(told.len(), 4);
    let elements = told[0]["lineage"]["elements"].as_array().unwrap();
    let family = elements.iter().find(|one| one["element"] == "Patient.name[0].family").unwrap();
    assert_eq!(family["from"], serde_json::json!(["PID-5.1"]));
    assert!(family["at"].as_str().unwrap().starts_with("hl7v2/datatype/names.yaml:"), "{family}");
    let fields = told[0]["lineage"]["fields"].as_array().unwrap();
    assert!(
        fields
            .iter()
            .any(|one| one["field"] == "PID-1" && one["state"] == "ignored" && one["reason"] == "set id")
    );
}

#[tokio::test]
async fn map_reads_json_and_csv_by_a_mapping_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("site")).unwrap();
    let mapping = |format: &str| {
        format!(
            "record: Scale{format}\nmembers: {{rows: [Weight{format}]}}\n---\nrecord: Weight{format}\nmembers: {{id: text, kg: number}}\n---\n\
             record_map: weight_{format}\nfrom: Weight{format}\nto: Observation\nrules:\n  status: {{const: final}}\n  \
             code: {{concept: \"loinc#29463-7\"}}\n  value[x]: {{as: Quantity, set: {{value: {{value: Weight{format}.kg}}}}}}\n  \
             identifier: {{all: [{{id: own, set: {{value: {{value: Weight{format}.id}}}}}}]}}\n---\n\
             mapping: scale_{format}\nversion: 1\nsource: {{format: {format}, record: Scale{format}}}\nresources:\n\
             - {{id: weight, type: Observation, each: Scale{format}.rows, identity: {{keys: [{{value: Weight{format}.id}}], else: message}}, \
             parts: [{{use: weight_{format}, from: Weight{format}}}]}}\n"
        )
    };
    for format in ["json", "csv"] {
        std::fs::write(folder.path().join(format!("site/{format}.yaml")), mapping(format)).unwrap();
    }
    let map = |format: &str| {
        [
            "map".to_owned(),
            "--mappings".into(),
            "site".into(),
            "--mapping".into(),
            format!("scale_{format}"),
            "-".into(),
        ]
    };
    for (format, document) in [
        ("json", "{\"rows\": [{\"id\": \"a\", \"kg\": 70.50}]}"),
        ("json", "\u{FEFF}[{\"id\": \"a\", \"kg\": 70.50}]"),
        ("csv", "kg,id\r\n70.50,a\r\n"),
    ] {
        let arguments = map(format);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, out, error) = pons(folder.path(), &arguments, document.as_bytes()).await;
        assert_eq!((code, error.as_str()), (Some(0), ""), "{document}");
        assert!(out.contains("\"valueQuantity\":{\"value\":70.50}"), "{document}: {out}");
    }
    let arguments = map("json");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, out, error) = pons(folder.path(), &arguments, b"{\"rows\": [{\"id\": \"TESTPATIENT\"}").await;
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.contains("not JSON: line 1, column 31") && !error.contains("TESTPATIENT"), "{error}");
}

/// A guide of one row a kind, invented here.
fn write_guide(folder: &Path) {
    let sheets = [
        (
            "messages/HL7 Message - FHIR R4_ ADT_A01 - Sheet1.csv",
            "IN,,,,,,,,,FHIR\nSort Order,Identifier,Syntax,Name,Min,Max,A,B,C,Primary Target,Segment Map\n\
             1,ADT_A01.PID,PID,Patient,1,1,,,,Patient[1],PID[Patient]\n2,ADT_A01.XYZ,XYZ,None,1,1,,,,Patient[1],XYZ[Patient]\n",
        ),
        (
            "segments/HL7 Segment - FHIR R4_ PID[Patient] - PID.csv",
            "v2,,,,,,,,,FHIR\nSort Order,Identifier,Name,Type,Min,Max,A,B,C,FHIR Attribute,,Type,Min,Max,Map,Vocabulary,Assignment\n\
             5,PID-5,Name,XPN,1,1,,,,name[1],,HumanName,0,-1,,,\n6,PID-5,Name,XPN,1,1,,,,photo,,Attachment,0,-1,,,\n",
        ),
        (
            "datatypes/HL7 Data Type - FHIR R4_ XPN[HumanName] - Sheet1.csv",
            "v2,,,,,,,,,FHIR\nSort Order,Identifier,Name,Type,Min,Max,A,B,C,FHIR Attribute/ Data Type,,Type,Min,Max,Map,Vocabulary,Assignment\n\
             2,XPN.2,Given,ST,1,1,,,,given[1],,string,0,-1,,,\n",
        ),
        (
            "codesystems/HL7 Concept Map_ AdministrativeSex - Sheet1.csv",
            "v2,,,,,,FHIR\nCode,Text,Code System,A,B,C,Code,,Display,Code System\n\
             F,Female,HL70001,,,,female,,Female,http://hl7.org/fhir/administrative-gender\nF,Female,HL70001,,,,male,,Male,\n",
        ),
    ];
    for (name, text) in sheets {
        let path = folder.join("mappings").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

#[tokio::test]
async fn coverage_counts_what_tests_show_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    write_guide(folder.path());
    std::fs::create_dir_all(folder.path().join("own")).unwrap();
    std::fs::write(folder.path().join("own/guide.yaml"), "rows: []\n").unwrap();
    let arguments = ["coverage", "--guide", ".", "--mappings", "own", "--rows"];
    let (code, out, error) = pons(folder.path(), &arguments, b"").await;
    assert_eq!(code, Some(1), "something is open: {error}");
    let lines: Vec<&str> = out.lines().collect();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[1]), ["messages", "2", "1", "0", "1"]);
    assert_eq!(words(lines[2]), ["segments", "2", "1", "0", "1"]);
    assert_eq!(words(lines[3]), ["data", "types", "1", "1", "0", "0"]);
    assert_eq!(words(lines[4]), ["tables", "2", "1", "0", "1"]);
    assert!(lines.contains(&"PID[Patient] 4  PID-5 -> photo  open"), "{out}");
    // A reason closes a row; a note about a row that is not there is a mistake.
    let skip = "rows:\n  - {map: 'PID[Patient]', rows: '4', skip: nobody has one}\n";
    std::fs::write(folder.path().join("own/guide.yaml"), skip).unwrap();
    let arguments = ["coverage", "--guide", ".", "--mappings", "own", "--format", "json"];
    let (code, out, _) = pons(folder.path(), &arguments, b"").await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &told["kinds"]["segments"]["maps"]["PID[Patient]"]["skipped"]),
        (Some(1), &serde_json::json!(1))
    );
    assert_eq!(told["total"], serde_json::json!({"done": 4, "skipped": 1, "open": 2}));
    std::fs::write(folder.path().join("own/guide.yaml"), skip.replace("'4'", "'9'")).unwrap();
    let (code, _, error) = pons(folder.path(), &arguments, b"").await;
    assert_eq!(code, Some(78));
    assert!(error.contains("the guide has no counted row PID[Patient] 9"), "{error}");
}

#[tokio::test]
async fn map_gives_the_same_bytes_again_and_with_many_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let mut population = Population::new(Run::new(3), 8, 5);
    let input: Vec<u8> = (0..40)
        .flat_map(|turn| {
            let patient = turn % 5;
            population.message(population.next_kind(patient), patient).bytes
        })
        .collect();
    let once = pons(folder.path(), &["map", "-"], &input).await;
    assert_eq!((once.0, once.1.lines().count()), (Some(0), 40));
    assert_eq!(pons(folder.path(), &["map", "-"], &input).await, once, "again");
    assert_eq!(pons(folder.path(), &["map", "--jobs", "4", "-"], &input).await, once, "four at once");
}

#[tokio::test]
async fn map_tells_what_failed_in_json_and_writes_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (canaries, messages) = stay();
    let text = |message: &[u8]| String::from_utf8(message.to_vec()).unwrap();
    let broken = [
        text(&messages[0]),
        text(&messages[1]).replace("ORU^R01^ORU_R01", "XYZ^Q99"),
        text(&messages[2]).replace("|ADT^A08", "|ADT^Q98"),
        text(&messages[3]),
    ];
    std::fs::write(folder.path().join("some.hl7"), broken.concat()).unwrap();
    let (code, out, error) = pons(folder.path(), &["map", "some.hl7"], b"").await;
    assert_eq!((code, out.lines().count()), (Some(1), 2), "{error}");
    let diagnostics: Vec<Value> = error.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed: Vec<(&str, u64)> = diagnostics
        .iter()
        .filter(|line| line["severity"] == "error")
        .map(|line| (line["file"].as_str().unwrap(), line["message"].as_u64().unwrap()))
        .collect();
    assert_eq!(failed, [("some.hl7", 2), ("some.hl7", 3)]);
    assert!(canaries.iter().all(|canary| !error.contains(canary)), "a value in a diagnostic");

    // A file that is not there is told like everything else, and the next one is still mapped.
    let (code, out, error) = pons(folder.path(), &["map", "missing.hl7", "some.hl7"], b"").await;
    assert_eq!((code, out.lines().count()), (Some(65), 2));
    let first: Value = serde_json::from_str(error.lines().next().unwrap()).unwrap();
    assert_eq!((&first["file"], &first["code"]), (&"missing.hl7".into(), &"not-read".into()));

    for nothing in ["", "hello", "\x0B\x1C\r"] {
        let (code, out, error) = pons(folder.path(), &["map", "-"], nothing.as_bytes()).await;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{nothing:?}");
        serde_json::from_str::<Value>(error.lines().next().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn check_tells_every_mistake_at_once_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let bad = "\
data_dir: data
retention: 5
http: {listen: '0.0.0.0:8080', body_max: lots}
sources:
  - {name: main, adapter: mllp, listen: '127.0.0.1:0', frame_maxx: 1MiB}
senders:
  - {name: genhosp, facility: GENHOSP, zone: Mars/Olympus}
subscriptions:
  - name: insurer
    topics: [encounter-begin]
    senders: [genhopsital]
    destination: {adapter: rest-hook}
";
    std::fs::write(folder.path().join("pons.yaml"), bad).unwrap();
    let (code, out, error) = pons(folder.path(), &["check", "--config", "pons.yaml"], b"").await;
    assert_eq!((code, out.as_str()), (Some(78), ""), "{error}");
    for (line, key) in [
        (2, "retention"),
        (3, "listen"),
        (3, "body_max"),
        (5, "frame_max"),
        (7, "zone"),
        (10, "topics"),
        (11, "genhopsital"),
        (12, "url"),
    ] {
        let place = format!("pons.yaml:{line}:");
        let told = error.lines().any(|told| {
            let column = told.strip_prefix(&place).and_then(|rest| rest.split(':').next());
            column.is_some_and(|column| column.parse::<u32>().is_ok()) && told.contains(key)
        });
        assert!(told, "{place} {key}: {error}");
    }
    assert!(error.contains("did you mean `frame_max`?"), "{error}");

    assert_eq!(pons(folder.path(), &["check"], b"").await.0, Some(0), "the embedded default is right");
    assert_eq!(pons(folder.path(), &["check", "no-such-folder"], b"").await.0, Some(78));
    let mappings = folder.path().join("mappings");
    std::fs::create_dir(&mappings).unwrap();
    std::fs::write(mappings.join("own.yaml"), "segment_map: own\nfrom: PIDX\nto: Patientt\n").unwrap();
    let (code, _, error) = pons(folder.path(), &["check", "mappings"], b"").await;
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("own.yaml:"), "{error}");
}

/// Sends each message on one connection and waits for its answer.
async fn send(gateway: &Gateway, messages: &[Vec<u8>]) {
    let mut connection = Connection::open(gateway.mllp).await.unwrap();
    for message in messages {
        connection.send(message).await.unwrap();
        connection.receive(WAIT).await.unwrap();
    }
}

/// The control ids that a search finds, newest first.
async fn search(gateway: &Gateway, options: &[&str]) -> Vec<String> {
    let arguments = [&["search", "--format", "json"], options].concat();
    let (code, out) = gateway.pons(&arguments).await.unwrap();
    assert_eq!(code, Some(0), "{options:?}");
    let row = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    out.lines().map(|line| row(line)["control_id"].as_str().unwrap().to_owned()).collect()
}

async fn until(gateway: &Gateway, options: &[&str], count: usize) -> Vec<String> {
    let began = Instant::now();
    loop {
        let found = search(gateway, options).await;
        if found.len() == count {
            return found;
        }
        assert!(began.elapsed() < WAIT, "{options:?} finds {} and not {count}", found.len());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn search_finds_by_each_of_its_options_and_show_shows_no_patient() {
    let run = Run::fresh();
    let hook = Webhook::start(run).await.unwrap();
    let refusing = Webhook::start(run).await.unwrap();
    refusing.behave(Behaviour::Refuse(422));
    let setup = Setup {
        subscriptions: vec![
            Subscription::webhook("insurer", &["encounter-start"], &hook.url()),
            Subscription::webhook("archive", &["encounter-end"], &refusing.url()),
        ],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await.unwrap();
    let mut population = Population::new(run, 3, 2);
    let canaries = population.canaries();
    let sent: Vec<_> = [(Kind::Admit, 0), (Kind::Admit, 1), (Kind::Result, 0), (Kind::Discharge, 0)]
        .map(|(kind, patient)| population.message(kind, patient))
        .to_vec();
    let id = |at: usize| sent[at].control_id.clone();
    let bytes: Vec<Vec<u8>> = sent.iter().map(|message| message.bytes.clone()).collect();
    let training = String::from_utf8(bytes[0].clone()).unwrap().replace("|P|2.5.1", "|T|2.5.1");
    send(&gateway, &bytes).await;
    send(&gateway, &[training.replace(&id(0), "TRAINING").into_bytes()]).await;

    assert_eq!(until(&gateway, &["--state", "parked"], 1).await, [id(3)]);
    assert_eq!(until(&gateway, &["--state", "delivered"], 2).await, [id(1), id(0)]);
    assert_eq!(until(&gateway, &["--state", "routed"], 4).await.len(), 4);
    // Of its options each finds what it names and nothing else.
    let mrn = |at: usize| {
        let text = String::from_utf8(bytes[at].clone()).unwrap();
        let (_, rest) = text.split_once("\rPID|1||").unwrap();
        rest.split('^').next().unwrap().to_owned()
    };
    assert_eq!(search(&gateway, &["--patient", &mrn(0)]).await, [id(3), id(2), id(0)]);
    assert_eq!(search(&gateway, &["--patient", &mrn(1)]).await, [id(1)]);
    assert_eq!(search(&gateway, &["--control-id", &id(2)]).await, [id(2)]);
    assert_eq!(search(&gateway, &["--type", "ORU^R01"]).await, [id(2)]);
    assert_eq!(search(&gateway, &["--type", "ADT", "--state", "routed"]).await, [id(3), id(1), id(0)]);
    assert_eq!(search(&gateway, &["--state", "rejected"]).await, ["TRAINING"]);
    assert_eq!(search(&gateway, &["--sender", "genhosp"]).await.len(), 4);
    assert_eq!(search(&gateway, &["--sender", "nobody"]).await, [] as [&str; 0]);
    assert_eq!(search(&gateway, &["--since", "1h"]).await.len(), 5);
    assert_eq!(search(&gateway, &["--since", "2999-01-01T00:00:00Z"]).await, [] as [&str; 0]);
    assert_eq!(search(&gateway, &["--limit", "2", "--state", "routed"]).await, [id(3), id(2)]);
    assert_eq!(search(&gateway, &["--patient", &mrn(0), "--type", "ADT^A03"]).await, [id(3)]);

    let (_, found) = gateway.pons(&["search", "--state", "parked", "--format", "json"]).await.unwrap();
    let parked: Value = serde_json::from_str(found.lines().next().unwrap()).unwrap();
    let parked = parked["id"].as_str().unwrap();
    let (code, shown) = gateway.pons(&["show", parked]).await.unwrap();
    assert_eq!(code, Some(0));
    for part in ["received", "mapped by", "to archive", "encounter-end", "attempt 1: HTTP 422", "parked"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let (_, table) = gateway.pons(&["search"]).await.unwrap();
    for canary in &canaries {
        assert!(!shown.contains(canary) && !table.contains(canary), "a value is shown unasked");
    }
    let (_, all) = gateway.pons(&["show", "--show-phi", parked]).await.unwrap();
    assert!(canaries.iter().take(3).all(|canary| all.contains(canary)), "asked for, it is shown");
    let nobody = "01890000-0000-7000-8000-000000000000";
    assert_eq!(gateway.pons(&["show", nobody]).await.unwrap(), (Some(1), String::new()));
    assert_eq!(gateway.pons(&["replay", nobody]).await.unwrap().0, Some(1));
    assert_eq!(gateway.pons(&["replay"]).await.unwrap().0, Some(2), "a replay of everything is not meant");
    gateway.no_canary_logged(&canaries).unwrap();
}

#[tokio::test]
async fn send_ends_by_what_it_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (_, messages) = stay();
    std::fs::write(folder.path().join("all.hl7"), messages.concat()).unwrap();
    std::fs::write(folder.path().join("empty.hl7"), "").unwrap();
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let to = gateway.mllp.to_string();
    let (code, out, error) = pons(folder.path(), &["send", "--to", &to, "all.hl7"], b"").await;
    assert_eq!((code, out.lines().count()), (Some(0), 4), "{error}");
    for (at, line) in out.lines().enumerate() {
        assert!(line.starts_with(&format!("all.hl7#{} ", at + 1)) && line.ends_with("CA"), "{line}");
    }
    assert_eq!(until(&gateway, &["--state", "routed"], 4).await.len(), 4);
    // What is refused fails, and the others are sent.
    let mixed = [
        String::from_utf8(messages[0].clone()).unwrap().replace("|P|2.5.1", "|T|2.5.1").into_bytes(),
        messages[1].clone(),
    ];
    let (code, out, _) = pons(folder.path(), &["send", "--to", &to, "-"], &mixed.concat()).await;
    assert_eq!((code, out.lines().count()), (Some(1), 2), "{out}");
    let receiver = Receiver::start(Run::new(2)).await.unwrap();
    let other = receiver.address().to_string();
    assert_eq!(pons(folder.path(), &["send", "--to", &other, "all.hl7"], b"").await.0, Some(0));
    assert_eq!(receiver.accepted(), 4);
    for (arguments, expected) in [
        (&["send", "--to", "127.0.0.1:1", "all.hl7"][..], 69),
        (&["send", "--to", "nowhere", "all.hl7"], 2),
        (&["send", "--to", &to, "missing.hl7"], 65),
        (&["send", "--to", &to, "empty.hl7"], 65),
        (&["send", "all.hl7"], 2),
    ] {
        let (code, out, error) = pons(folder.path(), arguments, b"").await;
        assert_eq!((code, out.as_str()), (Some(expected), ""), "{arguments:?}: {error}");
    }
}

#[tokio::test]
async fn a_gateway_that_cannot_start_says_why_and_harms_no_other() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let yaml = std::fs::read_to_string(gateway.config()).unwrap();
    let data = yaml.lines().find(|line| line.starts_with("data_dir:")).unwrap();
    let run = async |name: &str, yaml: &str| {
        std::fs::write(folder.path().join(name), yaml).unwrap();
        pons(folder.path(), &["run", "--config", name], b"").await
    };
    let (code, out, error) = run("same.yaml", &yaml).await;
    assert_eq!((code, out.as_str()), (Some(78), ""), "{error}");
    assert!(error.contains("in use by another `pons run`"), "{error}");
    let (code, _, error) = run("port.yaml", &yaml.replace(data, "data_dir: own")).await;
    assert_eq!(code, Some(69), "{error}");
    assert!(error.contains(&format!("cannot listen on {}", gateway.http)), "{error}");
    std::fs::write(folder.path().join("file"), "").unwrap();
    let (code, _, error) = run("file.yaml", &yaml.replace(data, "data_dir: file")).await;
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("data_dir: cannot make file"), "{error}");
    std::fs::create_dir(folder.path().join("odd")).unwrap();
    std::fs::write(folder.path().join("odd/pons.db"), "no database at all, whatever it is called").unwrap();
    let (code, _, error) = run("odd.yaml", &yaml.replace(data, "data_dir: odd")).await;
    assert_eq!(code, Some(78), "{error}");
    assert_eq!(pons(folder.path(), &["search", "--config", "odd.yaml"], b"").await.0, Some(78));
    let (_, messages) = stay();
    send(&gateway, &messages).await;
    assert_eq!(until(&gateway, &["--state", "routed"], 4).await.len(), 4, "the first one goes on");
}

#[tokio::test]
async fn map_writes_one_bundle_a_message_and_each_is_fhir() {
    let (canaries, messages) = stay();
    let folder = tempfile::tempdir().unwrap();
    let (code, out, error) = pons(folder.path(), &["map", "-"], &messages.concat()).await;
    assert_eq!(code, Some(0), "{error}");
    let bundles: Vec<&str> = out.lines().collect();
    assert_eq!(bundles.len(), 4);
    for bundle in bundles {
        schemas::fhir::typed::check(bundle.as_bytes()).unwrap();
        let bundle: Value = serde_json::from_str(bundle).unwrap();
        assert_eq!(schemas::fhir::validate(&bundle), []);
        assert_eq!(bundle["type"], "transaction");
    }
    for line in error.lines() {
        serde_json::from_str::<Value>(line).unwrap();
        assert!(canaries.iter().all(|canary| !line.contains(canary)), "a value in a diagnostic");
    }
}

#[tokio::test]
async fn wrong_arguments_end_with_2_and_a_wrong_configuration_with_78() {
    let folder = tempfile::tempdir().unwrap();
    for wrong in [&["nonsense"][..], &["map"], &["map", "--nonsense", "-"], &["search", "--state", "rooted"]]
    {
        let (code, out, _) = pons(folder.path(), wrong, b"").await;
        assert_eq!((code, out.as_str()), (Some(2), ""), "{wrong:?}");
    }
    let bad = "stroe: embedded\nhttp: {listen: nowhere}\nsources:\n  - {name: main, adapter: mlpp}\n";
    std::fs::write(folder.path().join("bad.yaml"), bad).unwrap();
    for verb in ["check", "run", "search"] {
        let (code, _, error) = pons(folder.path(), &[verb, "--config", "bad.yaml"], b"").await;
        assert_eq!(code, Some(78), "{verb}: {error}");
        for part in ["bad.yaml:1:", "`store`", "bad.yaml:2:", "bad.yaml:4:", "`mllp`"] {
            assert!(error.contains(part), "{verb} says {part}: {error}");
        }
    }
    assert_eq!(pons(folder.path(), &["run", "--config", "missing.yaml"], b"").await.0, Some(78));
}

#[tokio::test]
async fn a_store_that_is_not_there_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, error) = pons(folder.path(), &["search"], b"").await;
    assert_eq!((code, out.as_str()), (Some(69), ""), "{error}");
    std::fs::write(folder.path().join("away.yaml"), "store: postgres://postgres@127.0.0.1:1/postgres\n")
        .unwrap();
    let (code, _, error) = pons(folder.path(), &["search", "--config", "away.yaml"], b"").await;
    assert_eq!(code, Some(69), "{error}");
}

#[tokio::test]
async fn help_and_version_are_data() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["--help"][..], &["map", "--help"], &["version"]] {
        let (code, out, error) = pons(folder.path(), arguments, b"").await;
        assert_eq!(code, Some(0));
        assert!(!out.is_empty() && error.is_empty());
    }
}

#[tokio::test]
async fn the_demo_tells_its_story_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, error) = pons(folder.path(), &["demo", "--exit"], b"").await;
    assert_eq!(code, Some(0), "{out}\n{error}");
    let story = format!("{out}{error}").to_lowercase();
    for part in ["admi", "result", "discharge", "insurer"] {
        assert!(story.contains(part), "the story tells of `{part}`");
    }
    assert_eq!(story.matches("1 delivered").count(), 4, "the store says so of each: {story}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_process_that_was_started_is_the_one_that_runs_with_the_allocator_settled() {
    let gateway = Gateway::start(&Setup::default()).await.unwrap();
    let environment = std::fs::read(format!("/proc/{}/environ", gateway.pid().unwrap())).unwrap();
    let settings =
        environment.split(|byte| *byte == 0).filter(|one| one.starts_with(b"MIMALLOC_PURGE_DELAY="));
    assert_eq!(settings.collect::<Vec<_>>(), [b"MIMALLOC_PURGE_DELAY=50"]);
}
