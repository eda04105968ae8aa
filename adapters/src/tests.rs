//! What holds for every row of [`ADAPTERS`], and what tests of destinations share.

use crate::settings::{Fallback, Kind, Setting};
use crate::{
    ADAPTERS, DeliverError, Destination, Intake, Outcome, Outgoing, Received, Rejection, Source,
    SourceContext, Verdict, adapter,
};
use async_trait::async_trait;
use schemas::message::{DeliveryId, MessageId};
use schemas::yaml::{self, Fields, Mistake};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A delivery of a message with a control id.
pub(crate) fn outgoing(control_id: &str) -> Outgoing {
    let original =
        format!("MSH|^~\\&|A|B|C|D|2026||ADT^A01|{control_id}|P|2.5.1\rPID|1||TEST-7||TEST^JANE\r");
    Outgoing {
        delivery: DeliveryId(Uuid::from_u128(7)),
        subscription: "test".into(),
        attempt: 1,
        bundle: r#"{"resourceType":"Bundle","type":"history"}"#.into(),
        event: r#"{"specversion":"1.0","data":{"resourceType":"Bundle","type":"history"}}"#.into(),
        passes: None,
        original: original.into(),
        traceparent: None,
    }
}

/// Reads the configuration of a destination as the gateway does.
pub(crate) fn destination(
    name: &str,
    config: &str,
    folder: &Path,
) -> Result<Arc<dyn Destination>, Vec<Mistake>> {
    let spec = adapter(name).and_then(|spec| spec.destination.as_ref()).expect("a row");
    read(config, |fields| (spec.read)(fields, folder))
}

fn source(name: &str, config: &str) -> Result<Arc<dyn Source>, Vec<Mistake>> {
    let spec = adapter(name).and_then(|spec| spec.source.as_ref()).expect("a row");
    let context = SourceContext { name: "test".into(), folder: Path::new(".").into() };
    read(config, |fields| (spec.read)(fields, &context))
}

fn read<T>(config: &str, read: impl FnOnce(&mut Fields) -> Option<T>) -> Result<T, Vec<Mistake>> {
    let node = yaml::read(config).expect("YAML").remove(0);
    let mut mistakes = Vec::new();
    let mut fields = Fields::new(&node, "", &mut mistakes);
    let value = read(&mut fields);
    fields.finish();
    match value {
        Some(value) if mistakes.is_empty() => Ok(value),
        Some(_) => Err(mistakes),
        None => {
            assert!(!mistakes.is_empty(), "nothing was made, and no mistake says why");
            Err(mistakes)
        }
    }
}

/// An intake that is never asked.
struct NoIntake;

#[async_trait]
impl Intake for NoIntake {
    async fn accept(&self, _: Received) -> Verdict {
        Verdict::Unavailable { reason: "test".to_owned() }
    }

    async fn outcome(&self, _: MessageId) -> Outcome {
        Outcome::Unknown
    }

    async fn keep_refused(&self, _: Received, _: Rejection) {}
}

/// The example with another port on loopback.
fn with_port(example: &str, port: u16) -> String {
    let (head, rest) = example.split_once("127.0.0.1:").expect("examples stay on loopback");
    format!("{head}127.0.0.1:{port}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// Each side of each adapter: its table, and what reading a configuration comes to.
type Side = (String, &'static [Setting], &'static str, Box<dyn Fn(&str) -> Vec<Mistake>>);

fn sides() -> Vec<Side> {
    let mut sides: Vec<Side> = Vec::new();
    for spec in ADAPTERS {
        if let Some(side) = &spec.source {
            let read = |config: &str| source(spec.name, config).err().unwrap_or_default();
            sides.push((format!("{} source", spec.name), side.settings, side.example, Box::new(read)));
        }
        if let Some(side) = &spec.destination {
            let read =
                |config: &str| destination(spec.name, config, Path::new(".")).err().unwrap_or_default();
            sides.push((format!("{} destination", spec.name), side.settings, side.example, Box::new(read)));
        }
    }
    sides
}

#[test]
fn names_are_unique_and_every_key_is_explained() {
    let mut names: Vec<&str> = ADAPTERS.iter().map(|spec| spec.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ADAPTERS.len());
    for spec in ADAPTERS {
        assert!(spec.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", spec.name);
        assert!(!spec.summary.is_empty() && !spec.summary.ends_with('.'), "{}", spec.name);
        assert!(spec.source.is_some() || spec.destination.is_some(), "{}", spec.name);
    }
    fn explained(table: &[Setting]) {
        for setting in table {
            assert!(setting.help.ends_with('.'), "{}", setting.key);
            assert!(!setting.kind.expected().is_empty(), "{}", setting.key);
            if let Kind::Map(table) = setting.kind {
                explained(table);
            }
        }
    }
    for (_, settings, ..) in sides() {
        explained(settings);
    }
}

#[test]
fn the_example_works_and_every_default_may_be_written_out() {
    for (name, settings, example, read) in sides() {
        assert_eq!(read(example), [], "{name}");
        for setting in settings {
            if let Fallback::Value(default) = setting.default
                && !example.contains(&format!("{}:", setting.key))
            {
                assert_eq!(
                    read(&format!("{example}\n{}: '{default}'", setting.key)),
                    [],
                    "{name} {}",
                    setting.key
                );
            }
        }
    }
}

#[test]
fn every_key_of_a_table_is_read_and_every_other_reported() {
    for (name, settings, example, read) in sides() {
        for setting in settings {
            let rest: Vec<&str> =
                example.lines().filter(|line| !line.starts_with(&format!("{}:", setting.key))).collect();
            let config = format!("{}\n{}: {{x: y}}", rest.join("\n"), setting.key);
            let mistakes = read(config.trim_start());
            let about = |mistake: &Mistake| mistake.key.split('.').next() == Some(setting.key);
            assert!(mistakes.iter().any(about), "{name} {}: {mistakes:?}", setting.key);
            let unknown =
                |mistake: &Mistake| mistake.key == setting.key && mistake.text.starts_with("unknown");
            assert!(!mistakes.iter().any(unknown), "{name} {}: {mistakes:?}", setting.key);
            if setting.default == Fallback::Required {
                let mistakes = read(if rest.is_empty() { "{}" } else { rest[0] });
                let expected = format!("{}: is missing", setting.key);
                assert!(
                    mistakes.iter().any(|mistake| mistake.to_string().ends_with(&expected)),
                    "{name}: {mistakes:?}"
                );
            }
        }
        let mistakes = read(&format!("{example}\nzzzzzz: 1\nyyyyyy: 2"));
        assert_eq!(mistakes.len(), 2, "{name}: {mistakes:?}");
    }
}

#[tokio::test]
async fn every_source_stops_when_it_is_told_to() {
    for spec in ADAPTERS {
        let Some(side) = &spec.source else { continue };
        let listens = side.example.contains("listen:");
        let example = if listens { with_port(side.example, 0) } else { side.example.to_owned() };
        let source = source(spec.name, &example).expect("the example");
        let stop = CancellationToken::new();
        let running = source.start(Arc::new(NoIntake), stop.clone()).await.expect("a free port");
        assert_eq!(running.address.is_some_and(|address| address.port() > 0), listens, "{}", spec.name);
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), running.task)
            .await
            .expect("in time")
            .expect("no panic");
    }
}

#[tokio::test]
async fn no_destination_takes_silence_for_success() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    for spec in ADAPTERS {
        let Some(side) = &spec.destination else { continue };
        let config = format!("{}\nanswer_timeout: 50ms", with_port(side.example, port));
        let destination = destination(spec.name, &config, Path::new(".")).expect("the example");
        for answer in
            [None, Some(&b""[..]), Some(b"garbage\r\n\r\n"), Some(b"HTTP/1.1 200"), Some(b"\x0B\x1C\r")]
        {
            // `None` reads and says nothing; else it says this and closes.
            let outgoing = outgoing("TEST1");
            let other_side = async {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                if let Some(answer) = answer {
                    let _ = stream.write_all(answer).await;
                    let _ = stream.shutdown().await;
                }
                stream
            };
            let (delivered, _stream) = tokio::join!(destination.deliver(&outgoing), other_side);
            assert!(
                matches!(delivered, Err(DeliverError::Again { .. })),
                "{} {answer:?}: {delivered:?}",
                spec.name
            );
        }
    }
}

#[tokio::test]
async fn a_destination_that_nobody_serves_is_away() {
    let port =
        TcpListener::bind("127.0.0.1:0").await.and_then(|gone| gone.local_addr()).expect("a port").port();
    for spec in ADAPTERS {
        let Some(side) = &spec.destination else { continue };
        let destination =
            destination(spec.name, &with_port(side.example, port), Path::new(".")).expect("the example");
        let delivered = destination.deliver(&outgoing("TEST1")).await;
        assert!(
            matches!(delivered, Err(DeliverError::Again { away: true, .. })),
            "{}: {delivered:?}",
            spec.name
        );
    }
}
