//! Lists the mapping files, so that they travel inside the binary: a mapping exists because its file is in its folder.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut files = Vec::new();
    for folder in ["hl7v2", "fhir", "device", "table", "site"] {
        println!("cargo::rerun-if-changed={folder}");
        gather(&root.join(folder), &mut files);
    }
    println!("cargo::rerun-if-changed=guide.yaml");
    files.push(root.join("guide.yaml"));
    files.sort();
    let mut list = String::from(
        "/// Every mapping file: its path from the crate's folder, and its text.\nconst FILES: &[(&str, &str)] = &[\n",
    );
    for path in files {
        let name = path.strip_prefix(&root).expect("it was found below the root").display().to_string();
        writeln!(list, "    ({name:?}, include_str!({:?})),", path.display().to_string())
            .expect("writing to a String");
    }
    list.push_str("];\n");
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it")).join("files.rs");
    std::fs::write(out, list).expect("the folder for generated files can be written");
}

fn gather(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            gather(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "json") {
            files.push(path);
        }
    }
}
