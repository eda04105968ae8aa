//! The mappings that come with the program: they have no mistakes, and their tests hold.

use mappings::Catalog;
use schemas::hl7v2::definitions::Version;
use schemas::yaml::{Node, Value};

#[test]
fn the_shipped_mappings_have_no_mistakes_and_their_tests_hold() {
    let catalog = Catalog::from_files(Catalog::builtin_files()).unwrap_or_else(|mistakes| {
        panic!("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    });
    let failures: Vec<String> = catalog.run_tests().iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn no_two_mappings_take_the_same_event_of_the_same_structure() {
    let catalog = Catalog::builtin();
    for version in Version::ALL {
        let mut seen = std::collections::HashMap::new();
        for program in catalog.programs().iter().filter(|program| program.takes_version(version)) {
            let (code, events) = program.takes();
            for (event, structure) in
                events.iter().flat_map(|event| program.structures().iter().map(move |s| (event, s)))
            {
                let other = seen.insert(format!("{code}^{event}^{structure}"), program.name());
                assert_eq!(
                    other,
                    None,
                    "{code}^{event}^{structure} of {version} is taken by {} too",
                    program.name()
                );
            }
        }
    }
}

/// Holds a file against what it should be; `UPDATE_GOLDEN=1` writes it.
fn assert_file(name: &str, expected: &str) {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, expected).expect("the file can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{name} is not what it should be: run the test with UPDATE_GOLDEN=1");
}

#[test]
fn the_page_about_writing_a_mapping_lists_keys_and_functions_as_they_are() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let page = std::fs::read_to_string(path).expect("the page can be read");
    let mut blocks = page.split("```text\n");
    let (before, keys) = (blocks.next(), blocks.next());
    let between = keys.and_then(|keys| keys.split_once("```\n")).map(|(_, between)| between);
    let (Some(before), Some(between), Some(_)) = (before, between, blocks.next()) else {
        panic!("the page has a block of keys and one of functions");
    };
    let (keys, functions) = (mappings::keys_reference(), mappings::reference());
    assert_file("README.md", &format!("{before}```text\n{keys}```\n{between}```text\n{functions}```\n"));
}

#[test]
fn the_schema_for_editors_is_as_it_is_and_takes_every_shipped_file() {
    let schema = mappings::json_schema();
    assert_file("mapping.schema.json", &(schema.to_string() + "\n"));
    let validator = jsonschema::validator_for(&schema).expect("it is a JSON Schema");
    let mut taken = 0;
    for (file, text) in Catalog::builtin_files() {
        if !file.ends_with(".yaml") || file == "guide.yaml" {
            continue;
        }
        for document in schemas::yaml::read(&text).expect("it is YAML") {
            let json = as_json(&document);
            let wrong: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
            assert!(wrong.is_empty(), "{file}: {wrong:?}");
            taken += 1;
        }
    }
    assert!(taken > 50);
    for wrong in [
        r#"{"type_map": "x", "from": "CX", "to": "Identifier", "rules": {"valeu": {"value": "CX.1"}}}"#,
        r#"{"segment_map": "x", "from": "PID", "to": "Patient", "rules": {"active": {"cnst": "true"}}}"#,
        r#"{"mapping": "x", "source": {"structure": "ADT_A01"}}"#,
        r#"{"mappping": "x"}"#,
    ] {
        let wrong: serde_json::Value = serde_json::from_str(wrong).expect("JSON");
        assert!(!validator.is_valid(&wrong), "{wrong}");
    }
}

/// A document as an editor sees it.
fn as_json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Empty => serde_json::Value::Null,
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(as_json).collect(),
        Value::Map(entries) => entries.iter().map(|(key, node)| (key.name.clone(), as_json(node))).collect(),
    }
}
