//! Merging what messages say, in whatever order; references; the stored form.

use super::*;
use crate::names;
use proptest::prelude::*;

fn stamp(sender: &str, at: i64, seq: i64) -> Stamp {
    Stamp { sender: sender.into(), at: Some(at), number: None, seq, labels: None }
}

fn labelled(seq: i64) -> Stamp {
    Stamp { labels: Some(r#"{"security":[{"code":"R"}]}"#.into()), ..stamp("a", seq, seq) }
}

fn valued(name: &str, order: u32, path: &str, list: bool, json: &str) -> SlotWrite {
    let fragment = Fragment { path: path.to_owned().into(), list, json: json.to_owned() };
    SlotWrite {
        name: names::name(name),
        order,
        on_existing: None,
        write: Write::Valued(Arc::new([fragment])),
    }
}

fn cleared(name: &str, order: u32) -> SlotWrite {
    SlotWrite { name: names::name(name), order, on_existing: None, write: Write::Cleared }
}

fn patient(on_existing: Existing, slots: Vec<SlotWrite>) -> Contribution {
    Contribution {
        resource_type: "Patient".into(),
        id: Uuid::nil(),
        aliases: Vec::new(),
        within: None,
        on_existing,
        slots,
    }
}

fn message(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn body(state: &State) -> String {
    let text = state.rendered();
    let start = text.find(",\"").map_or(text.len() - 1, |at| at + 1);
    let rest = &text[start..];
    rest.split_once(',').map_or("{}".to_owned(), |(_, rest)| format!("{{{rest}"))
}

#[test]
fn what_was_said_under_labels_stays_under_them_until_it_is_said_without() {
    let name = |json: &str| valued("pid/name", 1, "name", true, json);
    let birth = || valued("pid/birth", 2, "birthDate", false, "\"1970-01-01\"");
    let (one, other) = (r#"{"family":"TEST"}"#, r#"{"family":"OTHER"}"#);
    let mut state = State::default();
    state.apply(&patient(Existing::Merge, vec![name(one), birth()]), &labelled(1), message(1));
    let id = Uuid::from_u128(7);
    let open = |state: &State| {
        state.render_open("Patient", id, |labels| !labels.contains("\"R\"")).map(|rendered| {
            let redacted = rendered.is_redacted();
            assert_eq!(rendered.json.contains("REDACTED"), redacted);
            (redacted, rendered.json.contains("TEST"), rendered.json.contains("1970"))
        })
    };
    let whole = state.render("Patient", id).json;
    assert!(whole.contains(r#""meta":{"security":[{"code":"R"}]}"#), "{whole}");
    assert_eq!(open(&state), None, "nothing is known of it otherwise");

    // Another sender says the name too, in passing; nothing of it is taken, but it is no secret any more.
    let applied = state.apply(&patient(Existing::Add, vec![name(one)]), &stamp("b", 2, 2), message(2));
    assert!(applied.changed);
    assert_eq!(open(&state), Some((true, true, false)), "the birth date still is");
    // Something else in its place says nothing of what was said before.
    state.apply(&patient(Existing::Add, vec![name(other), birth()]), &labelled(3), message(3));
    assert_eq!(open(&state), Some((true, true, false)));
    assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&state));
    state.apply(&patient(Existing::Merge, vec![birth()]), &stamp("a", 4, 4), message(4));
    assert_eq!(open(&state), Some((false, true, true)));
    assert!(!state.render("Patient", id).json.contains("meta"));
}

#[test]
fn what_was_said_openly_is_no_secret_for_being_said_under_a_label_in_whatever_order() {
    let slots = || vec![valued("pid/name", 1, "name", true, r#"{"family":"TEST"}"#)];
    for order in [[1, 2], [2, 1], [1, 1], [2, 2]] {
        let mut state = State::default();
        for n in order {
            let by = if n == 1 { stamp("a", 1, 1) } else { labelled(2) };
            state.apply(&patient(Existing::Merge, slots()), &by, message(n));
            state.apply(&patient(Existing::Merge, slots()), &by, message(n));
        }
        let secret = order == [2, 2];
        assert_eq!(state.render("Patient", Uuid::nil()).json.contains("security"), secret, "{order:?}");
    }
}

#[test]
fn a_state_without_labels_is_written_as_before_there_were_any() {
    let mut state = State::default();
    let slots = vec![valued("pid/name", 1, "name", true, r#"{"family":"TEST"}"#)];
    state.apply(&patient(Existing::Merge, slots), &stamp("a", 1, 1), message(1));
    assert_eq!(state.encode()[0], UNLABELLED);
    assert_eq!(State::decode(&state.encode()), Ok(state));
}

#[test]
fn slots_are_rendered_in_rule_order_and_lists_are_joined() {
    let mut state = State::default();
    let slots = vec![
        valued("pid/birth", 5, "birthDate", false, "\"1970-01-01\""),
        valued("pid/end", 9, "period.end", false, "\"2\""),
        valued("pid/home", 3, "telecom", true, "{\"value\":\"1\"}"),
        valued("pid/work", 4, "telecom", true, "{\"value\":\"2\"},{\"value\":\"3\"}"),
        valued("pid/start", 8, "period.start", false, "\"1\""),
    ];
    let applied = state.apply(&patient(Existing::Merge, slots), &stamp("a", 1, 1), message(1));
    assert!(applied.changed);
    assert_eq!(
        state.render("Patient", Uuid::from_u128(7)).json,
        concat!(
            r#"{"resourceType":"Patient","id":"00000000-0000-0000-0000-000000000007","#,
            r#""telecom":[{"value":"1"},{"value":"2"},{"value":"3"}],"birthDate":"1970-01-01","#,
            r#""period":{"start":"1","end":"2"}}"#
        )
    );
}

#[test]
fn what_stands_beside_the_items_of_a_list_stands_beside_its_own() {
    let beside = |name: &str, order, json: &str, beside: &str| {
        let mut slot = valued(name, order, "category", true, json);
        let Write::Valued(fragments) = &slot.write else { unreachable!("it was given a value") };
        let own = Fragment { path: "_category".into(), list: true, json: beside.to_owned() };
        slot.write = Write::Valued(fragments.iter().cloned().chain([own]).collect());
        slot
    };
    let mut state = State::default();
    let slots = vec![
        valued("zzz/two", 1, "category", true, "\"food\",\"biologic\""),
        beside("zzz/one", 2, "\"medication\"", "{\"extension\":[1]}"),
        valued("zzz/last", 3, "category", true, "\"environment\""),
    ];
    state.apply(&patient(Existing::Merge, slots), &stamp("a", 1, 1), message(1));
    assert_eq!(
        body(&state),
        concat!(
            r#"{"category":["food","biologic","medication","environment"],"#,
            r#""_category":[null,null,{"extension":[1]},null]}"#
        )
    );
}

#[test]
fn a_thin_message_fills_and_never_wipes() {
    let mut state = State::default();
    let rich = patient(
        Existing::Merge,
        vec![
            valued("pid/name", 1, "name", true, "{\"family\":\"TEST\"}"),
            valued("pid/sex", 2, "gender", false, "\"male\""),
        ],
    );
    let thin = patient(
        Existing::Fill,
        vec![
            valued("pid/name", 1, "name", true, "{\"family\":\"T\"}"),
            valued("pid/birth", 3, "birthDate", false, "\"1970\""),
            cleared("pid/sex", 2),
        ],
    );
    state.apply(&rich, &stamp("a", 1, 1), message(1));
    let applied = state.apply(&thin, &stamp("a", 2, 2), message(2));
    assert_eq!((applied.changed, applied.skipped), (true, 2));
    assert_eq!(body(&state), r#"{"name":[{"family":"TEST"}],"gender":"male","birthDate":"1970"}"#);
}

#[test]
fn an_authority_replaces_what_a_thin_copy_said_even_if_it_comes_late() {
    let mut state = State::default();
    let name = |mode, family: &str| {
        patient(mode, vec![valued("pid/name", 1, "name", true, &format!("{{\"family\":\"{family}\"}}"))])
    };
    state.apply(&name(Existing::Fill, "THIN"), &stamp("a", 5, 1), message(1));
    state.apply(&name(Existing::Merge, "TEST"), &stamp("a", 3, 2), message(2));
    assert_eq!(body(&state), r#"{"name":[{"family":"TEST"}]}"#);
}

#[test]
fn null_empties_a_slot_and_is_remembered() {
    let mut state = State::default();
    let sex = |seq, at| {
        (
            patient(Existing::Merge, vec![valued("pid/sex", 2, "gender", false, "\"male\"")]),
            stamp("a", at, seq),
        )
    };
    let (set, first) = sex(1, 1);
    state.apply(&set, &first, message(1));
    let applied =
        state.apply(&patient(Existing::Merge, vec![cleared("pid/sex", 2)]), &stamp("a", 9, 2), message(2));
    assert_eq!(applied.cleared, ["gender"]);
    assert_eq!(body(&state), "{}");
    let (late, between) = sex(3, 5);
    let applied = state.apply(&late, &between, message(3));
    assert_eq!((applied.changed, applied.skipped), (false, 1), "older than the emptying");
    let fill = patient(Existing::Fill, vec![valued("pid/sex", 2, "gender", false, "\"male\"")]);
    assert!(!state.apply(&fill, &stamp("b", 99, 4), message(4)).changed, "no thin copy fills a tombstone");
}

#[test]
fn a_replay_of_a_message_rewrites_its_own_slots_and_no_others() {
    let mut state = State::default();
    let sex = |code: &str| patient(Existing::Merge, vec![valued("pid/sex", 2, "gender", false, code)]);
    state.apply(&sex("\"unknown\""), &stamp("a", 1, 1), message(1));
    state.apply(&sex("\"male\""), &stamp("a", 1, 1), message(1));
    assert_eq!(body(&state), r#"{"gender":"male"}"#);
    state.apply(&sex("\"female\""), &stamp("a", 2, 2), message(2));
    assert!(!state.apply(&sex("\"other\""), &stamp("a", 1, 1), message(1)).changed);
}

#[test]
fn a_choice_has_one_type_and_a_value_needs_no_reason_for_its_absence() {
    let mut state = State::default();
    let slots = vec![
        valued("obx/absent", 1, "dataAbsentReason", false, "{}"),
        valued("obx/value", 2, "value/Quantity", false, "{\"value\":1}"),
        valued("nte/value", 3, "value/String", false, "\"1\""),
    ];
    state.apply(&patient(Existing::Merge, slots), &stamp("a", 1, 1), message(1));
    assert_eq!(body(&state), r#"{"valueQuantity":{"value":1}}"#);
    let other = vec![cleared("obx/value", 2)];
    let applied = state.apply(&patient(Existing::Merge, other), &stamp("a", 2, 2), message(2));
    assert_eq!(applied.cleared, ["valueQuantity"]);
    assert_eq!(body(&state), r#"{"valueString":"1"}"#);
}

#[test]
fn a_resource_named_in_passing_grows_and_is_not_touched_otherwise() {
    let name = |value: &str| valued("xcn/name", 1, "name", true, value);
    let add = |slots| patient(Existing::Add, slots);
    let mut state = State::default();
    state.apply(&add(vec![name("{\"family\":\"TEST\"}")]), &stamp("a", 1, 1), message(1));
    let before = state.clone();
    let again = state.apply(&add(vec![name("{\"family\":\"OTHER\"}")]), &stamp("a", 9, 2), message(2));
    assert!(!again.changed && !again.touched);
    assert_eq!(state, before);
    let more = valued("xcn/gender", 2, "gender", false, "\"female\"");
    assert!(state.apply(&add(vec![more]), &stamp("b", 1, 3), message(3)).changed);
    assert_eq!(body(&state), r#"{"name":[{"family":"TEST"}],"gender":"female"}"#);
}

#[test]
fn keep_changes_nothing_that_exists() {
    let mut state = State::default();
    let sex = |code: &str| patient(Existing::Keep, vec![valued("pid/sex", 2, "gender", false, code)]);
    assert!(state.apply(&sex("\"male\""), &stamp("a", 1, 1), message(1)).changed);
    assert!(!state.apply(&sex("\"female\""), &stamp("a", 2, 2), message(2)).changed);
}

#[test]
fn a_whole_write_clears_the_rest_and_later_parts_change_elements() {
    let mut state = State::default();
    let part = |n, at, path: &str, json: &str| {
        (
            patient(Existing::Merge, vec![valued(&format!("pid/{path}"), 3, path, false, json)]),
            stamp("a", at, n),
        )
    };
    let (birth, first) = part(1, 1, "birthDate", "\"1970\"");
    state.apply(&birth, &first, message(1));
    let elements = [("gender".to_owned(), "\"male\"".to_owned()), ("active".to_owned(), "true".to_owned())];
    let applied = state.replace(&elements, &stamp("b", 1, 2), message(2));
    assert_eq!(applied.cleared, ["birthDate"]);
    assert_eq!(body(&state), r#"{"gender":"male","active":true}"#);
    let (gender, later) = part(3, 9, "gender", "\"female\"");
    state.apply(&gender, &later, message(3));
    assert_eq!(body(&state), r#"{"active":true,"gender":"female"}"#);
    let fill = patient(Existing::Fill, vec![valued("pid/active", 1, "active", false, "false")]);
    assert!(!state.apply(&fill, &stamp("c", 99, 4), message(4)).changed);
}

#[test]
fn another_name_and_another_birth_date_is_another_person() {
    let mut state = State::default();
    let person = |family: &str, birth: &str| {
        let name = valued("pid/name", 1, "name", true, &format!("{{\"family\":\"{family}\"}}"));
        patient(
            Existing::Merge,
            vec![name, valued("pid/birth", 2, "birthDate", false, &format!("\"{birth}\""))],
        )
    };
    state.apply(&person("TEST", "1970-01-31"), &stamp("a", 1, 1), message(1));
    assert!(state.identity_conflict(&person("OTHER", "1980-02-01")));
    assert!(!state.identity_conflict(&person("OTHER", "1970-01-31")), "a married name");
    assert!(!state.identity_conflict(&person("Test", "1980-02-01")), "a corrected birth date");
    assert!(!state.identity_conflict(&person("OTHER", "1970")), "a coarser birth date is no other");
}

#[test]
fn a_number_given_anew_names_two_patients() {
    let about = |kind: &str, who: u128| {
        let reference = format!("{{\"reference\":\"Patient/{}\"}}", Uuid::from_u128(who));
        let slots = vec![valued("set/subject", 1, "subject", false, &reference)];
        Contribution { resource_type: kind.to_owned().into(), ..patient(Existing::Merge, slots) }
    };
    let mut state = State::default();
    assert_eq!(state.patients(&about("Observation", 1)), None, "nothing is known yet");
    state.apply(&about("Observation", 1), &stamp("a", 1, 1), message(1));
    assert_eq!(state.patients(&about("Observation", 2)), Some((Uuid::from_u128(1), Uuid::from_u128(2))));
    assert_eq!(state.patients(&about("Account", 2)), None, "an account may have several");
}

#[test]
fn references_follow_a_moved_resource() {
    let (from, to) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut json = format!("{{\"reference\":\"Patient/{from}\"}}");
    assert!(relink(&mut json, &[(from, to)]));
    assert_eq!(json, format!("{{\"reference\":\"Patient/{to}\"}}"));
    assert!(!relink(&mut json, &[(from, to)]));
}

fn any_message() -> impl Strategy<Value = (bool, Vec<(usize, Option<u8>)>)> {
    (any::<bool>(), proptest::collection::vec((0usize..4, proptest::option::of(0u8..4)), 1..4))
}

fn contribution(merge: bool, writes: &[(usize, Option<u8>)]) -> Contribution {
    let mut seen = std::collections::HashSet::new();
    let slots = writes
        .iter()
        .filter(|(slot, _)| seen.insert(*slot))
        .map(|(slot, value)| {
            let name = format!("m/{slot}");
            match value {
                Some(value) => valued(&name, *slot as u32, &format!("e{slot}"), false, &value.to_string()),
                None => cleared(&name, *slot as u32),
            }
        })
        .collect();
    patient(if merge { Existing::Merge } else { Existing::Fill }, slots)
}

proptest! {
    #[test]
    fn the_order_of_arrival_within_a_sender_does_not_matter(
        messages in proptest::collection::vec(any_message(), 1..8),
        order in any::<u64>(),
    ) {
        let apply = |indexes: &[usize]| {
            let mut state = State::default();
            for (seq, index) in indexes.iter().enumerate() {
                let (merge, writes) = &messages[*index];
                let stamp = stamp("a", *index as i64, seq as i64);
                state.apply(&contribution(*merge, writes), &stamp, message(*index as u128 + 1));
            }
            body(&state)
        };
        let in_order: Vec<usize> = (0..messages.len()).collect();
        let mut shuffled = in_order.clone();
        let mut seed = order;
        for i in (1..shuffled.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(i, (seed >> 33) as usize % (i + 1));
        }
        prop_assert_eq!(apply(&in_order), apply(&shuffled));
    }

    #[test]
    fn a_message_applied_twice_changes_nothing(messages in proptest::collection::vec(any_message(), 1..8)) {
        let mut state = State::default();
        for (n, (merge, writes)) in messages.iter().enumerate() {
            let one = contribution(*merge, writes);
            let stamp = stamp("a", n as i64, n as i64);
            state.apply(&one, &stamp, message(n as u128));
            let before = state.clone();
            let again = state.apply(&one, &stamp, message(n as u128));
            prop_assert!(!again.changed);
            prop_assert_eq!(&state, &before);
        }
        prop_assert_eq!(State::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn damaged_bytes_are_refused_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for format in [FORMAT, UNLABELLED] {
            let _ = State::decode(&[&[format], &bytes[..]].concat());
        }
        let mut state = State::default();
        state.apply(&contribution(true, &[(1, Some(2))]), &stamp("a", 1, 1), message(1));
        let whole = state.encode();
        for cut in 0..whole.len() {
            prop_assert_eq!(State::decode(&whole[..cut]), Err(NotAState));
        }
    }
}
