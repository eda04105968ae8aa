//! The shape of the house as assertions: who may depend on whom, who may name what, what lies where.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate `tests` lies in the workspace")
}

/// Every package that one of ours is built from, itself included: all features, normal and build dependencies, for this host.
fn built_from(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--package", package, "--edges", "normal,build", "--prefix", "none"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let names: BTreeSet<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert!(names.contains(package), "cargo tree names the package itself");
    names
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// The Rust files of one of our crates.
fn sources(of: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files_below(&root().join(of), &mut found);
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found
}

/// Whether code, comments aside, uses a crate: its name stands there as a whole word before `::`, or after `use`.
fn names_crate(code: &str, name: &str) -> bool {
    let word = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).any(|line| {
        line.match_indices(name).any(|(at, _)| {
            let before = &line.as_bytes()[..at];
            let after = &line[at + name.len()..];
            !word(before.last().copied())
                && (after.starts_with("::")
                    || (line[..at].trim_end().ends_with("use") && !word(after.bytes().next())))
        })
    })
}

/// Asserts that only files below `allowed` name a crate.
fn only_named_in(name: &str, allowed: &[&str]) {
    let mut offenders = Vec::new();
    for package in ["gateway", "adapters", "mappings", "schemas", "tests"] {
        for file in sources(package) {
            let code = fs::read_to_string(&file).expect("a source file is UTF-8");
            let inside = allowed.iter().any(|folder| file.starts_with(root().join(folder)));
            if names_crate(&code, name) && !inside {
                offenders.push(file);
            }
        }
    }
    assert!(offenders.is_empty(), "only {allowed:?} may name {name}, not {offenders:?}");
}

#[test]
fn a_use_of_a_crate_is_recognised() {
    for code in [
        "use fenced::Row;",
        "    fenced::query(\"\")",
        "use fenced;",
        "x: ::fenced::PgPool",
        "fn f(p:&fenced::P)",
    ] {
        assert!(names_crate(code, "fenced"), "{code}");
    }
    for code in [
        "// fenced::query",
        "let my_fenced = 1;",
        "my_fenced::f()",
        "\"fenced is elsewhere\"",
        "use fencedy;",
    ] {
        assert!(!names_crate(code, "fenced"), "{code}");
    }
}

#[test]
fn schemas_and_mappings_are_pure() {
    for package in ["schemas", "mappings"] {
        let tree = built_from(package);
        for banned in
            ["tokio", "hyper", "lapin", "sqlx", "mio", "socket2", "tracing", "rand", "adapters", "gateway"]
        {
            assert!(!tree.contains(banned), "{package} must not depend on {banned}");
        }
    }
    assert!(!built_from("schemas").contains("mappings"), "schemas stands below mappings");
}

#[test]
fn adapters_know_neither_mappings_nor_store_nor_bus() {
    let tree = built_from("adapters");
    for banned in ["mappings", "gateway", "sqlx", "lapin"] {
        assert!(!tree.contains(banned), "adapters must not depend on {banned}");
    }
}

#[test]
fn the_gateway_is_built_without_the_typed_fhir_models_and_without_the_oracle() {
    let tree = built_from("gateway");
    for expected in ["adapters", "mappings", "schemas", "sqlx", "lapin"] {
        assert!(tree.contains(expected), "the gateway stands on {expected}");
    }
    for banned in ["fhir-sdk", "fhir-model", "hl7-parser", "tests"] {
        assert!(!tree.contains(banned), "{banned} must not be in the binary");
    }
}

#[test]
fn one_tls_stack_and_one_crypto_provider() {
    let tree = built_from("gateway");
    assert!(tree.contains("rustls") && tree.contains("aws-lc-rs"));
    for banned in ["openssl", "openssl-sys", "native-tls", "ring", "rsa"] {
        assert!(!tree.contains(banned), "{banned} is a second stack");
    }
}

#[test]
fn only_the_store_names_sqlx() {
    only_named_in("sqlx", &["gateway/src/store"]);
}

#[test]
fn only_the_bus_names_lapin() {
    only_named_in("lapin", &["gateway/src/bus"]);
}

#[test]
fn only_schemas_names_hl7_parser_and_fhir_sdk() {
    for name in ["hl7_parser", "fhir_sdk", "fhir_model"] {
        only_named_in(name, &["schemas"]);
    }
}

#[test]
fn only_their_owners_list_the_fenced_packages() {
    let owners =
        [("sqlx", "gateway"), ("lapin", "gateway"), ("hl7-parser", "schemas"), ("fhir-sdk", "schemas")];
    for (dependency, owner) in owners {
        for package in ["gateway", "adapters", "mappings", "schemas", "tests"] {
            let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).expect("a manifest");
            let listed = manifest.lines().any(|line| {
                line.strip_prefix(dependency).is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
            });
            assert_eq!(listed, package == owner, "{dependency} belongs to {owner}: see {package}/Cargo.toml");
        }
    }
}

#[test]
fn the_top_level_is_as_fixed() {
    let fixed: BTreeSet<&str> = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "adapters",
        "gateway",
        "helm",
        "mappings",
        "schemas",
        "tests",
        // Settings of tools, which look for them here.
        "clippy.toml",
        "deny.toml",
        "rustfmt.toml",
    ]
    .into();
    let listed = Command::new("git").args(["ls-files"]).current_dir(root()).output();
    // A source archive without its history has nothing to list; the working copy may hold what is ignored.
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else { return };
    let listed = String::from_utf8(listed.stdout).expect("our file names are UTF-8");
    let odd: BTreeSet<&str> = listed
        .lines()
        .filter_map(|path| path.split('/').next())
        .filter(|name| !name.starts_with('.') && !fixed.contains(name))
        .collect();
    assert!(odd.is_empty(), "not part of the top level: {odd:?}");
}

/// Lines that are logic: neither blank nor comments, and before the tests of the file.
fn logic(code: &str) -> usize {
    code.lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

/// Whether a file holds tests only: a suite that runs over several implementations, or the tests of a module.
fn is_test(file: &Path) -> bool {
    let names: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    names.iter().rev().take(3).any(|name| ["tests", "tests.rs", "suite.rs"].contains(name))
}

#[test]
fn no_file_holds_more_logic_than_a_person_can_read() {
    let mut long = Vec::new();
    for package in ["gateway", "adapters", "mappings", "schemas", "tests"] {
        for file in sources(package).into_iter().filter(|file| !is_test(file)) {
            let lines = logic(&fs::read_to_string(&file).expect("a source file is UTF-8"));
            if lines > 1000 {
                long.push((lines, file));
            }
        }
    }
    assert!(long.is_empty(), "over 1,000 lines of logic, split by topic: {long:?}");
}

#[test]
fn every_folder_of_data_says_where_it_comes_from() {
    // Data made from somebody else's facts: origin and licence stand beside them, in SOURCE.md.
    let mut data = Vec::new();
    for folder in ["schemas", "mappings/table"] {
        files_below(&root().join(folder), &mut data);
    }
    data.retain(|path| {
        let made = path.extension().is_some_and(|extension| extension == "txt" || extension == "json");
        made && !path.components().any(|part| part.as_os_str() == "src" || part.as_os_str() == "tests")
    });
    assert!(data.len() > 50, "there are data: {}", data.len());
    let folders: BTreeSet<&Path> = data.iter().filter_map(|file| file.parent()).collect();
    for folder in folders {
        let source = folder.join("SOURCE.md");
        let text = fs::read_to_string(&source)
            .unwrap_or_else(|_| panic!("{} is missing: origin and licence", source.display()));
        let named = ["licen", "CC0", "public domain"].iter().any(|word| text.contains(word));
        assert!(named, "{} names no licence", source.display());
    }
}

#[test]
fn unsafe_code_is_forbidden_everywhere() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    assert!(workspace.contains("unsafe_code = \"forbid\""));
    for package in ["gateway", "adapters", "mappings", "schemas", "tests"] {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).expect("a manifest");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{package} takes the workspace's lints");
    }
}
