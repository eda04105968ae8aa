//! What is remembered from message to message changes nothing: every message maps to the same bytes, whatever came before it.

use mappings::{Catalog, Context, Mapped, Quarantined};
use proptest::prelude::*;
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message};
use std::sync::OnceLock;
use uuid::Uuid;

/// The messages of the tests that stand in the mappings.
fn messages() -> &'static [String] {
    static MESSAGES: OnceLock<Vec<String>> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let mut messages = Vec::new();
        for (_, text) in Catalog::builtin_files() {
            for given in text.split("given: |\n").skip(1) {
                let lines = given.lines().take_while(|line| line.starts_with("      "));
                messages.push(lines.map(str::trim).collect::<Vec<_>>().join("\r"));
            }
        }
        messages
    })
}

fn catalogs() -> &'static (Catalog, Catalog) {
    static CATALOGS: OnceLock<(Catalog, Catalog)> = OnceLock::new();
    CATALOGS.get_or_init(|| (Catalog::builtin(), Catalog::builtin()))
}

fn map(catalog: &Catalog, text: &str, sender: &str, number: u128) -> Option<Result<Mapped, Quarantined>> {
    let message = Message::parse(text, &Limits::default()).ok()?;
    let systems = [("TESTHOSP".to_owned(), format!("urn:oid:1.2.{}", sender.len()))];
    let context = Context {
        message_id: Uuid::from_u128(number),
        received_at: jiff::Timestamp::UNIX_EPOCH,
        seq: 1,
        sender: sender.into(),
        authority: sender.into(),
        zone: if sender == "lab" { Zone::UTC } else { Zone::named("Europe/Berlin").expect("a zone") },
        namespace: Uuid::from_u128(1),
        systems: &systems,
        options: &[],
        wire: &[],
        codes: None,
        parties: mappings::Parties::default(),
    };
    Some(catalog.program_of(&context.sender, &message)?.run(&message, &context))
}

/// Maps by a catalog that remembers and by one that does not, and holds the results against each other.
fn assert_same((remembers, forgets): &(Catalog, Catalog), text: &str, sender: &str, number: u128) {
    forgets.forget();
    let known = map(remembers, text, sender, number);
    let new = map(forgets, text, sender, number);
    match (known, new) {
        (Some(Ok(known)), Some(Ok(new))) => {
            assert_eq!(known.contributions.len(), new.contributions.len(), "{text}");
            for (known, new) in known.contributions.iter().zip(&new.contributions) {
                let names = |of: &mappings::resource::Contribution| {
                    of.slots.iter().map(|slot| slot.name).collect::<Vec<_>>()
                };
                assert_eq!(names(known), names(new), "{} of {text}", new.resource_type);
                // The store keeps one value for a name.
                let mut once = names(new);
                once.sort_unstable();
                once.dedup();
                assert_eq!(once.len(), new.slots.len(), "{} of {text}", new.resource_type);
                for (known, new) in known.slots.iter().zip(&new.slots) {
                    assert!(known == new, "slot {} of {text}", new.name);
                }
                assert!(**known == **new, "{} of {text}", new.resource_type);
            }
            assert_eq!(known.issues, new.issues, "{text}");
            assert_eq!(known.effects, new.effects, "{text}");
            assert!(known.unmapped_codes == new.unmapped_codes, "{text}");
        }
        (Some(Err(known)), Some(Err(new))) => assert_eq!(known.reason, new.reason, "{text}"),
        (None, None) => {}
        _ => panic!("one is mapped, the other is not: {text}"),
    }
}

#[test]
fn the_second_time_is_as_the_first() {
    assert!(messages().len() > 20, "the tests of the mappings are found");
    for (number, text) in messages().iter().chain(messages()).enumerate() {
        assert_same(catalogs(), text, "lab", number as u128);
        assert_same(catalogs(), text, "hospital", number as u128);
    }
}

/// After many messages of one kind the slots that were always the same are looked up together; then one field is another.
#[test]
fn a_change_after_a_thousand_like_messages_is_seen() {
    for kind in ["ADT^A01", "ORU^R01"] {
        let catalogs = (Catalog::builtin(), Catalog::builtin());
        let mut of_kind = messages().iter().filter(|text| text.contains(kind));
        let base = of_kind.by_ref().max_by_key(|text| text.len()).expect("a message of the kind");
        for number in 0..1100 {
            map(&catalogs.0, base, "lab", number);
        }
        // Another event, another version, other values: what a condition reads counts like what is carried over.
        for event in ["A02", "A03", "A04", "A05", "A08", "A11", "A12", "A13", "A26", "A38"] {
            assert_same(&catalogs, &base.replacen("^A01", &format!("^{event}"), 1), "lab", 1);
        }
        for text in messages().iter().filter(|text| text.contains(kind)) {
            assert_same(&catalogs, text, "lab", 1);
        }
        let segments: Vec<Vec<&str>> = base.split('\r').map(|line| line.split('|').collect()).collect();
        for (place, fields) in segments.iter().enumerate().skip(1) {
            for (field, value) in
                (1..fields.len()).flat_map(|field| ["", "\"\"", "^A"].map(|value| (field, value)))
            {
                let mut changed = segments.clone();
                changed[place][field] = value;
                let text = changed.iter().map(|fields| fields.join("|")).collect::<Vec<_>>().join("\r");
                assert_same(&catalogs, &text, "lab", 1);
            }
        }
    }
}

/// What stands in a field instead: the same leaves in other places, nulls, escapes, more repetitions.
const VALUES: [&str; 16] = [
    "",
    "\"\"",
    "A",
    "^A",
    "A^B",
    "A^^B",
    "A&B^C",
    "^^^TESTHOSP",
    "1001^TESTDOC^ALAN",
    "~1001",
    "1001~1002^B",
    "20250302081500",
    "20250302",
    "a\\T\\b",
    "\"\"^\"\"",
    "-12.50",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn no_history_changes_what_a_message_says(
        which in 0usize..1000,
        changes in proptest::collection::vec((1usize..40, 1usize..50, 0..VALUES.len()), 0..6),
        from_lab in any::<bool>(),
        number in 0u128..3,
    ) {
        let base = &messages()[which % messages().len()];
        let mut segments: Vec<Vec<String>> =
            base.split('\r').map(|segment| segment.split('|').map(str::to_owned).collect()).collect();
        for (segment, field, value) in changes {
            let place = segment % segments.len();
            if place == 0 {
                continue; // the header chooses the mapping
            }
            let fields = &mut segments[place];
            if fields.len() <= field {
                fields.resize(field + 1, String::new());
            }
            fields[field] = VALUES[value].to_owned();
        }
        let text = segments.iter().map(|fields| fields.join("|")).collect::<Vec<_>>().join("\r");
        assert_same(catalogs(), &text, if from_lab { "lab" } else { "hospital" }, number);
    }
}
