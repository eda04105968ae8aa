//! The mappings that come with the program: they have no mistakes, and their tests hold.

use mappings::Catalog;

#[test]
fn the_shipped_mappings_have_no_mistakes_and_their_tests_hold() {
    let catalog = Catalog::from_files(Catalog::builtin_files()).unwrap_or_else(|mistakes| {
        panic!("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    });
    let failures: Vec<String> = catalog.run_tests().iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn no_two_mappings_take_the_same_event() {
    let catalog = Catalog::builtin();
    let mut seen = std::collections::HashMap::new();
    for program in catalog.programs() {
        let (code, events) = program.takes();
        for event in events {
            let other = seen.insert(format!("{code}^{event}"), program.name());
            assert_eq!(other, None, "{code}^{event} is taken by {} too", program.name());
        }
    }
}

/// `UPDATE_GOLDEN=1` writes the functions into the page again.
#[test]
fn the_page_about_writing_a_mapping_lists_the_functions_as_they_are() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let page = std::fs::read_to_string(path).expect("the page can be read");
    let (before, _) = page.split_once("```text\n").expect("the page has a block of functions");
    let expected = format!("{before}```text\n{}```\n", mappings::reference());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &expected).expect("the page can be written");
    } else {
        assert_eq!(page, expected, "run the test with UPDATE_GOLDEN=1");
    }
}
