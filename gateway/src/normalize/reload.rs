//! Exchanges the mappings while the gateway runs: what changed in their folder is compiled, tested and taken, all of it or
//! nothing.
//!
//! Invariant: mappings with a mistake, or with a test that fails, are never used; the ones in use stay.

use super::Mapper;
use crate::pipeline::mapping_files;
use crate::telemetry::metrics::Metrics;
use mappings::Catalog;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often the folder is looked at. A change counts once the folder looks the same twice: somebody may be copying.
const EVERY: Duration = Duration::from_secs(1);

/// What a folder looks like from outside: each file with its length, the time that it says it was changed, and what tells another
/// file of that length and time: its number, and when the disk last wrote about it, in seconds and nanoseconds.
type Look = Vec<(PathBuf, u64, Option<SystemTime>, [i64; 3])>;

/// Watches the folder until `stop`.
pub async fn watch(folder: PathBuf, mapper: Arc<Mapper>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // It may have changed since it was read for the start.
    let (mut used, mut before): (Option<Look>, Option<Look>) = (None, None);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let of = folder.clone();
        let Ok(now) = tokio::task::spawn_blocking(move || look(&of)).await else { continue };
        let steady = before.as_ref() == Some(&now);
        if steady && used.as_ref() != Some(&now) {
            let (of, current) = (folder.clone(), mapper.catalog());
            let read = tokio::task::spawn_blocking(move || read(&of, &current)).await;
            match read {
                Ok(Outcome::Same) => {}
                Ok(Outcome::New(catalog)) => {
                    tracing::info!(
                        digest = catalog.digest(),
                        mappings = catalog.programs().len(),
                        "mappings exchanged"
                    );
                    metrics.mappings_read(true);
                    mapper.exchange(Arc::new(catalog));
                }
                Ok(Outcome::Refused(reasons)) => {
                    for reason in reasons {
                        tracing::error!(reason, "mappings not exchanged");
                    }
                    tracing::error!(digest = mapper.catalog().digest(), "the mappings in use stay");
                    metrics.mappings_read(false);
                }
                Err(error) => tracing::error!(%error, "mappings not exchanged: reading them broke off"),
            }
            used = Some(now.clone());
        }
        before = Some(now);
    }
}

/// What reading the folder gave.
enum Outcome {
    /// What is used already.
    Same,
    New(Catalog),
    /// Why not, a line each.
    Refused(Vec<String>),
}

fn read(folder: &Path, current: &Catalog) -> Outcome {
    let files = match mapping_files(Some(folder)) {
        Ok(files) => files,
        Err(error) => return Outcome::Refused(vec![error.to_string()]),
    };
    if Catalog::digest_of(&files) == current.digest() {
        return Outcome::Same;
    }
    let catalog = match Catalog::from_files(files) {
        Ok(catalog) => catalog,
        Err(mistakes) => return Outcome::Refused(mistakes.iter().map(ToString::to_string).collect()),
    };
    let failures = catalog.run_tests();
    if failures.is_empty() {
        Outcome::New(catalog)
    } else {
        Outcome::Refused(failures.iter().map(ToString::to_string).collect())
    }
}

fn look(folder: &Path) -> Look {
    let mut found = Look::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // Followed: a folder that is mounted may be a link to what changes.
            let Ok(about) = std::fs::metadata(&path) else { continue };
            if about.is_dir() {
                open.push(path);
            } else {
                let file = [about.ino().cast_signed(), about.ctime(), about.ctime_nsec()];
                found.push((path, about.len(), about.modified().ok(), file));
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_exchanged_for_one_of_the_same_length_and_time_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("sex.json"), folder.path().join("other"));
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).unwrap();
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        };
        write(&path, "F: female");
        let before = look(folder.path());
        assert_eq!(look(folder.path()), before, "what nobody changed looks the same");
        write(&other, "F: unsure");
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(look(folder.path()), before);
        let before = look(folder.path());
        std::thread::sleep(Duration::from_millis(20)); // the disk's clock has ticks
        write(&path, "F: female");
        assert_ne!(look(folder.path()), before, "written in place");
    }
}
