//! Lists the topic files, so that they travel inside the binary: a topic exists because its file is in its folder.

use std::fmt::Write as _;
use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let folder = root.join("../schemas/topics");
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = std::fs::read_dir(&folder).expect("the folder of the topics is there");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the folder of the topics can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    let mut list = String::from("/// Every topic file, by name.\nconst FILES: &[(&str, &str)] = &[\n");
    for path in files {
        let name = path.file_stem().expect("a file with an extension has a stem").to_string_lossy();
        writeln!(list, "    ({name:?}, include_str!({:?})),", path.display().to_string())
            .expect("writing to a String");
    }
    list.push_str("];\n");
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it")).join("topics.rs");
    std::fs::write(out, list).expect("the folder for generated files can be written");
}
