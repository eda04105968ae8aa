//! Files of mappings on disk, read for the engine, which does no I/O itself.

use std::path::{Path, PathBuf};

/// The most bytes of one file of mappings.
const FILE_MAX: u64 = 16 << 20;

/// Every YAML and JSON file below a folder as (path below the folder, text), in order of the paths.
///
/// # Errors
/// When the folder or a file in it cannot be read, or a file is not text or larger than 16 MiB.
pub fn mappings(folder: &Path) -> std::io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    collect(folder, folder, &mut found)?;
    found.sort();
    found
        .into_iter()
        .map(|(name, path)| {
            if std::fs::metadata(&path)?.len() > FILE_MAX {
                return Err(std::io::Error::other(format!("{name} is larger than {FILE_MAX} bytes")));
            }
            Ok((name, std::fs::read_to_string(path)?))
        })
        .collect()
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<(String, PathBuf)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, found)?;
        } else if path.extension().is_some_and(|kind| kind == "yaml" || kind == "json") {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            found.push((name, path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn yaml_and_json_below_a_folder_are_found_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("site")).expect("made");
        for (name, text) in [("b.yaml", "b"), ("a.json", "a"), ("site/c.yaml", "c"), ("notes.txt", "no")] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let found = super::mappings(folder.path()).expect("read");
        let found: Vec<(&str, &str)> =
            found.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(found, [("a.json", "a"), ("b.yaml", "b"), ("site/c.yaml", "c")]);
        assert!(super::mappings(&folder.path().join("none")).is_err());
    }
}
