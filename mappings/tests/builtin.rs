//! The mappings that come with the program: they compile, their own tests hold, and the messages that they promise are taken.

use mappings::Catalog;

#[test]
fn every_mapping_compiles_and_its_tests_hold() {
    let catalog = Catalog::builtin();
    let failures: Vec<String> = catalog.run_tests().iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(catalog.test_count() > 0, "the mappings have tests");
}

#[test]
fn the_messages_of_a_hospital_are_taken_in_every_version() {
    let catalog = Catalog::builtin();
    for (code, trigger, structure, mapping, versions) in [
        ("ADT", "A01", "ADT_A01", "adt_visit", &["2.1", "2.3", "2.5.1", "2.8.2"][..]),
        ("ADT", "A02", "ADT_A02", "adt_visit", &["2.2", "2.5.1"]),
        ("ADT", "A03", "ADT_A03", "adt_visit", &["2.2", "2.5.1"]),
        ("ADT", "A04", "", "adt_visit", &["2.3", "2.5.1"]),
        ("ADT", "A08", "", "adt_visit", &["2.3", "2.5.1"]),
        ("ADT", "A11", "ADT_A09", "adt_visit", &["2.3", "2.5.1"]),
        ("ADT", "A13", "", "adt_visit", &["2.3", "2.5.1"]),
        ("ADT", "A40", "ADT_A39", "adt_a40", &["2.3", "2.5.1"]),
        ("ORU", "R01", "ORU_R01", "oru_r01", &["2.1", "2.3", "2.5.1", "2.8.2"]),
        ("ORM", "O01", "", "orm_o01", &["2.1", "2.3.1", "2.5.1"]),
        ("OML", "O21", "OML_O21", "oml_o21", &["2.4", "2.5.1", "2.8.2"]),
    ] {
        for version in versions {
            let program = catalog.program_for(code, trigger, structure, version);
            assert_eq!(program.map(|p| p.name()), Some(mapping), "{code}^{trigger} {version}");
        }
    }
    assert!(catalog.program_for("SIU", "S12", "SIU_S12", "2.5.1").is_none(), "not taken yet");
}
