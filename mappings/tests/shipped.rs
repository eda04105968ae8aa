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
