//! The command line as others build on it: exit codes, what is data and what is diagnostics.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use tests::gateway::binary;
use tests::generate::{Kind, Population, Run};

/// How a run of `pons` ended.
struct Ended {
    code: Option<i32>,
    out: String,
    error: String,
}

/// Runs `pons` in a folder, with something on its standard input.
async fn pons(folder: &Path, arguments: &[&str], input: &[u8]) -> Ended {
    let mut child = Command::new(binary().await.unwrap())
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that reads nothing closes the pipe, which is no failure of the test.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn stay() -> (Population, Vec<Vec<u8>>) {
    let mut population = Population::new(Run::new(1), 1, 1);
    let kinds = [Kind::Admit, Kind::Result, Kind::Update, Kind::Discharge];
    let messages = kinds.iter().map(|kind| population.message(*kind, 0).bytes).collect();
    (population, messages)
}

#[tokio::test]
async fn map_writes_one_bundle_a_message_and_each_is_fhir() {
    let (population, messages) = stay();
    let ended = pons(folder().path(), &["map", "-"], &messages.concat()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.error);
    let bundles: Vec<&str> = ended.out.lines().collect();
    assert_eq!(bundles.len(), 4);
    for bundle in bundles {
        schemas::fhir::typed::check(bundle.as_bytes()).unwrap();
        let bundle: serde_json::Value = serde_json::from_str(bundle).unwrap();
        assert_eq!(schemas::fhir::validate(&bundle), []);
        assert_eq!(bundle["type"], "transaction");
    }
    for line in ended.error.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
        assert!(population.canaries().iter().all(|canary| !line.contains(canary)), "a value in a diagnostic");
    }
    let again = pons(folder().path(), &["map", "-", "--jobs", "2"], &messages.concat()).await;
    assert_eq!(again.out, ended.out, "the same bytes, however many jobs");
}

#[tokio::test]
async fn map_goes_on_after_a_message_that_fails() {
    let (_, messages) = stay();
    let unknown = b"MSH|^~\\&|A|B|C|D|20260101||XYZ^Q99|1|P|2.5.1\r".to_vec();
    let input = [messages[0].clone(), unknown, messages[1].clone()].concat();
    let ended = pons(folder().path(), &["map", "-"], &input).await;
    assert_eq!((ended.code, ended.out.lines().count()), (Some(1), 2), "{}", ended.error);
    assert!(!ended.error.is_empty());
}

#[tokio::test]
async fn wrong_arguments_end_with_2_and_a_wrong_configuration_with_78() {
    let folder = folder();
    for wrong in [&["nonsense"][..], &["map"], &["map", "--nonsense", "-"], &["search", "--state", "rooted"]]
    {
        let ended = pons(folder.path(), wrong, b"").await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{wrong:?}");
    }
    let bad = "stroe: embedded\nhttp: {listen: nowhere}\nsources:\n  - {name: main, adapter: mlpp}\n";
    std::fs::write(folder.path().join("bad.yaml"), bad).unwrap();
    for verb in ["check", "run", "search"] {
        let ended = pons(folder.path(), &[verb, "--config", "bad.yaml"], b"").await;
        assert_eq!(ended.code, Some(78), "{verb}: {}", ended.error);
        for part in ["bad.yaml:1:", "`store`", "bad.yaml:2:", "bad.yaml:4:", "`mllp`"] {
            assert!(ended.error.contains(part), "{verb} says {part}: {}", ended.error);
        }
    }
    assert_eq!(pons(folder.path(), &["run", "--config", "missing.yaml"], b"").await.code, Some(78));
}

#[tokio::test]
async fn a_store_that_is_not_there_is_unavailable() {
    let folder = folder();
    let ended = pons(folder.path(), &["search"], b"").await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(69), ""), "{}", ended.error);
    std::fs::write(folder.path().join("away.yaml"), "store: postgres://postgres@127.0.0.1:1/postgres\n")
        .unwrap();
    let ended = pons(folder.path(), &["search", "--config", "away.yaml"], b"").await;
    assert_eq!(ended.code, Some(69), "{}", ended.error);
}

#[tokio::test]
async fn help_and_version_are_data() {
    for arguments in [&["--help"][..], &["map", "--help"], &["version"]] {
        let ended = pons(folder().path(), arguments, b"").await;
        assert_eq!(ended.code, Some(0));
        assert!(!ended.out.is_empty() && ended.error.is_empty());
    }
}

#[tokio::test]
async fn the_demo_tells_its_story_to_the_end() {
    let ended = pons(folder().path(), &["demo", "--exit"], b"").await;
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.out, ended.error);
    let story = format!("{}{}", ended.out, ended.error).to_lowercase();
    for part in ["admi", "result", "discharge", "insurer"] {
        assert!(story.contains(part), "the story tells of `{part}`");
    }
}
