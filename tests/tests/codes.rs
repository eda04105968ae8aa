//! Codes that no table translates: they wait, a person translates one, and the messages that have it are mapped again.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use serde_json::Value;
use std::time::{Duration, Instant};
use tests::gateway::{Gateway, Setup, Subscription};
use tests::generate::Run;
use tests::sender::{Connection, acknowledgement};
use tests::webhook::Webhook;

const WAIT: Duration = Duration::from_secs(20);

async fn admit(gateway: &Gateway, number: usize, sex: &str) {
    let message = format!(
        "MSH|^~\\&|ADT1|GENHOSP|||20250301083000||ADT^A01^ADT_A01|CODES{number}|P|2.5.1\rEVN|A01|20250301083000\r\
         PID|||TEST{number}^^^TESTHOSP^MR||TEST^JANE||19800304|{sex}\rPV1||I|||||||||||||||||VISIT{number}\r"
    );
    let mut connection = Connection::open(gateway.mllp).await.unwrap();
    connection.send(message.as_bytes()).await.unwrap();
    let answer = acknowledgement(&connection.receive(WAIT).await.unwrap()).unwrap();
    assert_eq!(answer.code, "AA", "{}", gateway.log());
}

async fn waiting(gateway: &Gateway) -> Vec<Value> {
    let (exit, out) = gateway.pons(&["codes", "--format", "json"]).await.unwrap();
    assert_eq!(exit, Some(0), "{out}");
    out.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn until<T>(gateway: &Gateway, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "it never came: {}", gateway.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_is_translated_and_the_messages_that_wait_for_it_are_mapped_again() {
    let webhook = Webhook::start(Run::new(82)).await.unwrap();
    let setup = Setup {
        subscriptions: vec![Subscription::webhook("insurer", &["encounter-start"], &webhook.url())],
        ..Setup::default()
    };
    let mut gateway = Gateway::start(&setup).await.unwrap();
    admit(&gateway, 1, "WEIBL").await;
    admit(&gateway, 2, "F").await;
    admit(&gateway, 3, "WEIBL").await;
    let found = until(&gateway, async || {
        let all = waiting(&gateway).await;
        all.first().filter(|one| one["messages"] == 2).cloned()
    })
    .await;
    assert_eq!(found["code"], "WEIBL");
    let (sender, table) = (found["sender"].as_str().unwrap(), found["table"].as_str().unwrap());
    let seen = |which: &str| found[which].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(seen("first") <= seen("last"));
    until(&gateway, async || (webhook.requests() >= 3).then_some(())).await;

    // What FHIR does not take is refused, and a dry run changes nothing.
    let map = async |to: &str, more: &[&str]| {
        let config = gateway.config();
        let named = ["codes", "--config", config.to_str().unwrap(), "map", "WEIBL"];
        let named = [&named[..], &["--sender", sender, "--table", table, "--to", to], more].concat();
        let (exit, _, said) = tests::command::pons(config.parent().unwrap(), &named, b"").await.unwrap();
        (exit.unwrap(), said)
    };
    let (exit, said) = map("weiblich", &["--yes"]).await;
    assert!(exit == 2 && said.contains("male, female"), "{exit} {said}");
    let (exit, said) = map("female", &[]).await;
    assert!(exit == 0 && said.contains("2 messages wait for it"), "{exit} {said}");
    assert_eq!(waiting(&gateway).await, std::slice::from_ref(&found));

    let before = webhook.requests();
    let (exit, said) = map("female", &["--yes"]).await;
    assert!(exit == 0 && said.contains("2 messages are to be mapped again"), "{exit} {said}");
    until(&gateway, async || waiting(&gateway).await.is_empty().then_some(())).await;
    until(&gateway, async || (webhook.requests() >= before + 2).then_some(())).await;
    assert!(
        String::from_utf8(webhook.last_body().to_vec()).unwrap().contains("\"female\""),
        "{}",
        gateway.log()
    );

    // It holds for what comes, also after a restart.
    gateway.kill_and_start().await.unwrap();
    gateway.ready(WAIT).await.unwrap();
    let before = webhook.requests();
    admit(&gateway, 4, "WEIBL").await;
    until(&gateway, async || (webhook.requests() > before).then_some(())).await;
    assert!(String::from_utf8(webhook.last_body().to_vec()).unwrap().contains("\"female\""));
    assert!(waiting(&gateway).await.is_empty());
    assert!(!gateway.log().contains("WEIBL"), "a code is a patient's value");
}
