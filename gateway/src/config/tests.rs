use super::*;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("token"), "s3cret\n").expect("written");
    folder
}

fn mistakes(text: &str) -> Vec<String> {
    match Config::parse(text, folder().path()) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
    }
}

const GOOD: &str = "\
store: postgres://pons@127.0.0.1/pons
bus: amqp://127.0.0.1:5672
sources:
  - {name: main, adapter: mllp, listen: '127.0.0.1:2575', zone: Europe/Berlin}
senders:
  - {name: genhosp, application: ADT1, facility: GENHOSP, systems: {GENHOSP: 'urn:oid:1.2.3'}}
  - {name: portal, token: {file: token}}
subscriptions:
  - name: insurer
    topics: [encounter-start, encounter-end]
    senders: [genhosp]
    destination: {adapter: mllp, connect: '127.0.0.1:2576'}
";

#[test]
fn a_whole_file_is_read() {
    let folder = folder();
    let config = Config::parse(GOOD, folder.path()).expect("valid");
    assert_eq!(config.store.reveal(), "postgres://pons@127.0.0.1/pons");
    assert_eq!(config.sources[0].common.zone.as_ref().map(|z| z.name.as_str()), Some("Europe/Berlin"));
    assert_eq!(config.senders[0].systems, [("GENHOSP".to_owned(), "urn:oid:1.2.3".to_owned())]);
    let token = config.senders[1].token.as_ref().and_then(|token| token.value().ok());
    assert_eq!(token.as_deref(), Some("s3cret"));
    assert_eq!(config.subscriptions[0].topics, ["encounter-start", "encounter-end"]);
    assert!(matches!(config.subscriptions[0].to, To::Adapter(_)));
    assert!(!format!("{config:?}").contains("s3cret"), "a secret is never shown");
}

#[test]
fn the_embedded_default_listens_on_loopback_only() {
    let config = Config::embedded();
    assert_eq!(config.store.reveal(), "sqlite:pons-data/pons.db");
    assert_eq!(config.bus.reveal(), "embedded");
    assert!(config.http.listen.expect("on").ip().is_loopback());
    assert_eq!(config.sources.len(), 1);
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let text = GOOD
        .replace("sources:\n", "sourcs: []\nsources:\n")
        .replace("Europe/Berlin", "Europe/Berlinn")
        .replace("senders: [genhosp]", "senders: [genhsop]")
        .replace("encounter-end]", "encounter-ende]")
        .replace("{adapter: mllp, connect", "{adapter: mlpp, connect")
        .replace("amqp://", "ampq://");
    assert_eq!(
        mistakes(&text),
        [
            "2:6: bus: expected `embedded` or an address that begins with amqp:// or amqps://",
            "3:1: sourcs: unknown key; did you mean `sources`?",
            "5:65: sources[0].zone: expected an IANA time zone such as Europe/Berlin",
            "11:31: subscriptions[0].topics: unknown topic; did you mean `encounter-end`?",
            "12:15: subscriptions: there is no sender `genhsop`; did you mean `genhosp`?",
            "13:28: subscriptions[0].destination.adapter: unknown adapter; did you mean `mllp`?",
        ]
    );
}

#[test]
fn a_filter_is_one_that_every_topic_takes() {
    let with = |filters: &str| {
        GOOD.replace("    senders: [genhosp]\n", &format!("    senders: [genhosp]\n    filters: {filters}\n"))
    };
    let folder = folder();
    let read =
        Config::parse(&with("['Encounter?class=IMP', 'Encounter?type=T1']"), folder.path()).expect("valid");
    let shown: Vec<_> = read.subscriptions[0].filters.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["Encounter?class=IMP", "Encounter?type=T1"]);
    assert_eq!(
        mistakes(&with("['Encounter?klass=IMP', 'Encounter?class:is=IMP']")),
        [
            "12:15: subscriptions[0].filters: topic encounter-start takes filters by: Encounter?class, Encounter?type, \
             Encounter?patient, Encounter?service-provider, Encounter?location",
            "12:38: subscriptions[0].filters: class: modifier :is is not taken; those taken are :not and :missing",
        ]
    );
    let orders = |filters: &str| with(filters).replace("[encounter-start, encounter-end]", "[order-placed]");
    let one = mistakes(&orders("['ServiceRequest?priority=stat']"));
    assert_eq!(
        one,
        [
            "12:14: subscriptions[0].filters: topic order-placed is about NutritionOrder too: filter these as well"
        ]
    );
}

#[test]
fn what_is_written_for_a_subscriber_is_said_by_topic_or_for_all() {
    let with =
        |lines: &str| GOOD.replace("    senders: [genhosp]\n", &format!("    senders: [genhosp]\n{lines}"));
    let folder = folder();
    let read = |lines: &str| {
        let config = Config::parse(&with(lines), folder.path()).expect("valid");
        config.subscriptions[0].writes.clone()
    };
    assert_eq!(read(""), None);
    let all = read("    write: write_adt_a08\n    receiving_application: LIS\n").expect("it is written");
    assert_eq!(all.mappings, [(None, "write_adt_a08".to_owned())]);
    assert_eq!(all.parties.receiving_application.as_deref(), Some("LIS"));
    let by_topic = "    write: {encounter-start: write_adt_a01, encounter-end: write_adt_a03}\n    systems: {H: 'urn:oid:1.2'}\n";
    let by_topic = read(by_topic).expect("it is written");
    assert_eq!(by_topic.mappings[1], (Some("encounter-end".to_owned()), "write_adt_a03".to_owned()));
    assert_eq!(by_topic.systems.len(), 1);
    assert_eq!(
        mistakes(&with("    write: {encounter-start: write_adt_a01, encounter-ends: write_adt_a03}\n")),
        [
            "12:12: subscriptions[0].write: says nothing of its topic encounter-end",
            "12:45: subscriptions[0].write.encounter-ends: is none of its topics; did you mean `encounter-end`?",
        ]
    );
    assert_eq!(mistakes(&with("    sending_facility: X\n")).len(), 1, "nothing is written");
    let hook = with("    write: write_adt_a08\n").replace(
        "{adapter: mllp, connect: '127.0.0.1:2576'}",
        "{adapter: rest-hook, url: 'http://127.0.0.1:1/'}",
    );
    assert_eq!(mistakes(&hook), ["12:12: subscriptions[0].write: only `mllp` takes messages of HL7 v2"]);
}

#[test]
fn notifications_need_an_address_and_a_name_that_is_an_id() {
    let with = |content: &str| {
        GOOD.replace("    senders: [genhosp]\n", &format!("    senders: [genhosp]\n    content: {content}\n"))
    };
    let told = |text: &str| mistakes(text).join("; ");
    let hook = "{adapter: rest-hook, url: 'http://127.0.0.1:1/'}";
    let hook = |text: String| text.replace("{adapter: mllp, connect: '127.0.0.1:2576'}", hook);
    assert!(told(&with("id-only")).contains("`mllp` takes no notifications"));
    assert!(told(&hook(with("id-only"))).contains("say under which `/fhir` is reached"));
    assert!(told(&hook(with("some"))).contains("expected one of"));
    let addressed = format!("http: {{base_url: 'https://pons.test/fhir/'}}\n{}", hook(with("id-only")));
    assert!(told(&addressed).contains("has one topic"));
    let addressed = addressed.replace("[encounter-start, encounter-end]", "[encounter-end]");
    let owned =
        |owner: &str| addressed.replace("content: id-only", &format!("content: id-only\n    owner: {owner}"));
    assert!(told(&owned("genhsop")).contains("there is no sender `genhsop`; did you mean `genhosp`?"));
    assert_eq!(told(&owned("portal")), "");
    let whole = owned("portal").replace("content: id-only", "content: message");
    assert!(told(&whole).contains("whole messages cannot be asked for"));
    assert!(told(&addressed.replace("name: insurer", "name: the_insurer")).contains("rename it"));
    let folder = folder();
    let config = Config::parse(&addressed, folder.path()).expect("valid");
    let notifies = config.subscriptions[0].notifies.as_ref().expect("it is notified");
    assert_eq!((&*notifies.base, notifies.payload), ("https://pons.test/fhir", Payload::IdOnly));
    assert!(Config::parse(GOOD, folder.path()).expect("valid").subscriptions[0].notifies.is_none());
}

#[test]
fn a_listener_off_loopback_needs_tls_or_a_waiver() {
    assert_eq!(mistakes("http: {listen: '0.0.0.0:8080'}").len(), 1);
    assert!(mistakes("http: {listen: '0.0.0.0:8080', plain_text_waiver: true}").is_empty());
    assert!(mistakes("http: {enabled: false}").is_empty());
}

#[test]
fn a_secret_that_leads_nowhere_and_a_name_used_twice_are_mistakes() {
    assert_eq!(mistakes("senders: [{name: a, token: {file: none}}]").len(), 1);
    assert_eq!(mistakes("senders: [{name: a, facility: X}, {name: a, facility: Y}]").len(), 1);
    assert_eq!(mistakes("senders: [{name: 'a b', facility: X}]").len(), 1);
    assert_eq!(mistakes("senders: [{name: a}]").len(), 1, "a sender must be known by something");
}

#[test]
fn what_a_sender_may_subscribe_to_is_listed() {
    let with = |subscribes: &str| {
        let base = "http: {base_url: 'https://pons.test/fhir'}\n";
        base.to_owned()
            + &GOOD.replace("{file: token}}", &format!("{{file: token}}, subscribes: {subscribes}}}"))
    };
    let right = "{topics: [encounter-end], senders: [genhosp], endpoints: ['https://payer.test/a', '*']}";
    let folder = folder();
    let config = Config::parse(&with(right), folder.path()).expect("valid");
    let subscribes = config.senders[1].subscribes.as_ref().expect("it is given");
    assert_eq!((subscribes.endpoints.len(), subscribes.subscriptions_max), (2, 20));
    assert_eq!(subscribes.content, Payload::FullResource);
    assert_eq!(
        mistakes(&with("{topics: encounter-ende, senders: nobody, endpoints: [payer.test], content: all}")),
        [
            "8:63: senders[1].subscribes.topics: unknown topic; did you mean `encounter-end`?",
            "8:88: senders: there is no sender `nobody`; known: genhosp, portal",
            "8:108: senders[1].subscribes.endpoints: expected what an http:, https:, mllp: or mllps: URL begins with, or `*`",
            "8:130: senders[1].subscribes.content: expected one of full-resource, id-only, empty",
        ]
    );
    let nothing = mistakes(&with("{}"));
    assert_eq!(nothing.len(), 3, "{nothing:?}");
    let nowhere = mistakes(&with(right).replace("http: {base_url: 'https://pons.test/fhir'}\n", ""));
    assert!(matches!(&nowhere[..], [one] if one.contains("base_url")), "{nowhere:?}");
}

#[test]
fn channels_are_listed_with_what_each_needs() {
    let folder = folder();
    let with = |top: &str, subscribes: &str| {
        let text = "http: {base_url: 'https://pons.test/fhir'}\n".to_owned()
            + top
            + &GOOD.replace("{file: token}}", &format!("{{file: token}}, subscribes: {subscribes}}}"));
        Config::parse(&text, folder.path()).err().unwrap_or_default()
    };
    let check = |top: &str, subscribes: &str, expected: &[&str]| {
        let mistakes: Vec<String> = with(top, subscribes).iter().map(ToString::to_string).collect();
        let fits = mistakes.iter().zip(expected).all(|(mistake, expected)| mistake.contains(expected));
        assert!(mistakes.len() == expected.len() && fits, "{subscribes}: {mistakes:?}");
    };
    let all = "topics: '*', senders: '*'";
    check("", &format!("{{{all}, channels: websocket}}"), &[]);
    check("", &format!("{{{all}, channels: [websocket]}}"), &[]);
    check("", &format!("{{{all}, channels: amqp}}"), &["amqp: a queue of its own needs RabbitMQ"]);
    check("", &format!("{{{all}, channels: pigeon}}"), &["unknown channel"]);
    check("", &format!("{{{all}, channels: rest-hook}}"), &["endpoints"]);
    check(
        "",
        &format!("{{{all}, channels: mllp, endpoints: '*'}}"),
        &["is missing: how events", "no receiver"],
    );
    check(
        "",
        &format!("{{{all}, channels: mllp, mllp: {{write: write_adt_a03}}, endpoints: 'mllp://ward:2575'}}"),
        &[],
    );
    check(
        "",
        &format!("{{{all}, endpoints: '*', mllp: {{write: write_adt_a03}}}}"),
        &["`channels` does not list mllp"],
    );
    let bus = "bus_management: 'http://a:b@h:15672'\n";
    check(bus, &format!("{{{all}, channels: amqp}}"), &[]);
    check(&format!("{bus}bus_public: 'amqps://h:5671/'\n"), &format!("{{{all}, channels: amqp}}"), &[]);
    check(
        &format!("{bus}bus_public: 'amqp://root:x@h'\n"),
        &format!("{{{all}, channels: amqp}}"),
        &["without a user"],
    );
}

#[test]
fn whose_what_is_fetched_is_must_be_said_and_be_allowed() {
    let folder = folder();
    let check = |source: &str, sender: &str, expected: &[&str]| {
        let text = format!("sources:\n  - {source}\nsenders:\n  - {sender}\n");
        let mistakes = Config::parse(&text, folder.path()).err().unwrap_or_default();
        let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        let fits = mistakes.iter().zip(expected).all(|(mistake, expected)| mistake.contains(expected));
        assert!(mistakes.len() == expected.len() && fits, "{source} {sender}: {mistakes:?}");
    };
    let mqtt = |rest: &str| format!("{{name: m, adapter: mqtt, broker: '127.0.0.1:1883', topics: a{rest}}}");
    let whole = mqtt(", mapping: vitals, sender: ward");
    check(&whole, "{name: ward}", &[]);
    check(&whole, "{name: ward, sources: [m], types: [ADT, vitals]}", &[]);
    check(&mqtt(", sender: ward"), "{name: ward}", &["mapping: is missing"]);
    check(
        &mqtt(", mapping: vitals"),
        "{name: ward, facility: W}",
        &["sender: is missing: whose its documents are"],
    );
    check(&whole, "{name: other, facility: W}", &["sources: there is no sender `ward`"]);
    check(
        &whole,
        "{name: ward, types: [ADT]}",
        &["4:25: senders.types: source m fetches in its name, read by `vitals`: list that"],
    );
    check(
        "{name: m, adapter: mllp, listen: '127.0.0.1:0', sender: ward}",
        "{name: ward, facility: W}",
        &["here each request or message says itself whose it is"],
    );
}
