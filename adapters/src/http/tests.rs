//! Requests of every kind, taken apart or refused.

use super::SPEC;
use crate::{Document, Feed, Reads, SourceContext, Unopened};
use bytes::Bytes;
use hyper::Request;
use hyper::http::request::Parts;
use schemas::records::Csv;
use schemas::yaml::{self, Fields, Mistake};
use std::path::Path;
use std::sync::Arc;

fn feed(config: &str, folder: &Path) -> Result<Arc<dyn Feed>, Vec<Mistake>> {
    let node = yaml::read(config).expect("YAML").remove(0);
    let mut mistakes = Vec::new();
    let mut fields = Fields::new(&node, "", &mut mistakes);
    let context = SourceContext { name: "test".into(), folder: folder.into() };
    let source = (SPEC.source.as_ref().expect("a source").read)(&mut fields, &context);
    fields.finish();
    match source {
        Some(source) if mistakes.is_empty() => Ok(source.feed().expect("a feed")),
        _ => Err(mistakes),
    }
}

fn head(headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::post("/feeds/test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("valid").into_parts().0
}

const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

fn documents(feed: &dyn Feed, headers: &[(&str, &str)], body: &str) -> Result<Vec<Document>, Unopened> {
    read(feed, headers, body, Reads::Json)
}

fn read(
    feed: &dyn Feed,
    headers: &[(&str, &str)],
    body: &str,
    reads: Reads,
) -> Result<Vec<Document>, Unopened> {
    let head = head(headers);
    feed.admits(&head, reads)?;
    feed.open(&head, &Bytes::copy_from_slice(body.as_bytes()), reads)
}

#[test]
fn each_document_is_a_message_with_its_patient() {
    let feed = feed("patient: {at: /who, assigner: GENHOSP}", Path::new(".")).expect("configured");
    let found =
        documents(&*feed, &[JSON], r#"[{"who":"7","v":1.0},{"v":2},{"who":[8]}]"#).expect("taken apart");
    let patients: Vec<_> = found.iter().map(|one| one.patient.clone()).collect();
    assert_eq!(patients, [Some((Some("GENHOSP".into()), "7".to_owned())), None, None]);
    assert_eq!(&found[0].bytes[..], br#"{"who":"7","v":1.0}"#);
    assert!(found.iter().all(|one| !one.is_csv && one.fault.is_none()));
    let lines = documents(&*feed, &[("content-type", "application/x-ndjson")], "{\"who\":\"7\"}\nnone\n");
    let lines = lines.expect("taken apart");
    assert_eq!(lines[1].fault.as_deref(), Some("not JSON: line 2, column 2"));
    assert_eq!((lines[0].patient.is_some(), lines[1].patient.is_some()), (true, false));
}

#[test]
fn csv_is_read_as_its_mapping_has_it() {
    let feed = feed("patient: {at: mrn}", Path::new(".")).expect("configured");
    let tabs = Reads::Csv(Csv { separator: b'\t', header: true });
    let csv = [("content-type", "text/csv")];
    let found = read(&*feed, &csv, "mrn\tv\n7\t1\n8\t2\n", tabs).expect("taken apart");
    assert_eq!(&found[1].bytes[..], b"mrn\tv\n8\t2");
    assert!(found.iter().all(|one| one.is_csv));
    assert_eq!(found[1].patient, Some((None, "8".to_owned())));
    assert_eq!(
        read(&*feed, &csv, "", Reads::Json),
        Err(Unopened::Media("application/json or application/x-ndjson"))
    );
    assert_eq!(read(&*feed, &[JSON], "{}", tabs), Err(Unopened::Media("text/csv")));
    let packed = [JSON, ("content-encoding", "gzip")];
    assert_eq!(read(&*feed, &packed, "{}", Reads::Json), Err(Unopened::Encoded));
}

#[test]
fn what_cannot_be_taken_apart_is_refused_by_what_is_wrong_with_it() {
    let feed = feed("documents_max: 2", Path::new(".")).expect("configured");
    let refused =
        |headers: &[(&str, &str)], body: &str| documents(&*feed, headers, body).expect_err("refused");
    assert_eq!(refused(&[JSON], "{"), Unopened::Malformed("not JSON: line 1, column 1".to_owned()));
    assert_eq!(refused(&[JSON], "[1,2,3]"), Unopened::TooMany("more than 2 documents".to_owned()));
    for headers in [&[][..], &[("content-type", "text/html")]] {
        assert!(matches!(refused(headers, "{}"), Unopened::Media(_)));
    }
}

#[test]
fn a_signature_proves_the_sender_and_nothing_less_does() {
    // RFC 4231, test case 2.
    const BODY: &str = "what do ya want for nothing?";
    const HEX: &str = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("secret"), "Jefe\n").expect("written");
    let config = "signature: {sender: cloud, secret: {file: secret}, header: X-Sig, prefix: 'sha256='}";
    let feed = feed(config, folder.path()).expect("configured");
    assert_eq!(feed.signer().map(|signer| &**signer), Some("cloud"));
    let signed =
        |value: &str| documents(&*feed, &[JSON, ("x-sig", value)], BODY).expect_err("that is no JSON");
    assert!(matches!(signed(&format!("sha256={HEX}")), Unopened::Malformed(_)));
    assert!(matches!(signed(&format!("sha256={}", HEX.to_uppercase())), Unopened::Malformed(_)));
    let wrong = HEX.replacen('5', "6", 1);
    for value in
        [HEX, "", "sha256=", "sha256=zz", &format!("sha256={wrong}"), &format!("sha256={}", &HEX[..62])]
    {
        assert_eq!(signed(value), Unopened::Unsigned, "{value}");
    }
    assert_eq!(
        feed.admits(&head(&[JSON]), Reads::Json),
        Err(Unopened::Unsigned),
        "known before the body is read"
    );
    std::fs::write(folder.path().join("secret"), "other").expect("written");
    assert_eq!(signed(&format!("sha256={HEX}")), Unopened::Unsigned, "the secret is read anew");
}

#[test]
fn a_signature_may_be_base64() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("secret"), "Jefe").expect("written");
    let config = "signature: {sender: cloud, secret: {file: secret}, encoding: base64}";
    let feed = feed(config, folder.path()).expect("configured");
    let value = "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=";
    let opened = documents(&*feed, &[JSON, ("x-signature-256", value)], "what do ya want for nothing?");
    assert!(matches!(opened, Err(Unopened::Malformed(_))));
}

#[test]
fn every_mistake_of_a_configuration_is_told() {
    for (config, expected) in [
        ("signature: {sender: cloud}", "secret: is missing"),
        ("patient: {assigner: X}", "at: "),
        ("documents_max: 0", "documents_max: expected a whole number"),
        ("document_max: 3", "document_max"),
    ] {
        let mistakes = feed(config, Path::new(".")).expect_err(config);
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|mistake| mistake.contains(expected)), "{config}: {told:?}");
    }
}
