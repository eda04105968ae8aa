//! The floor under everything durable: what a bare write to the same disk takes, at the same time.

use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One page, as a database writes its log.
const PAGE: [u8; 8192] = [0x5A; 8192];
/// How many pages the file holds; it is written through before anything is measured, so that no write makes it grow.
const PAGES: u64 = 512;
/// How far apart the writes begin: often enough for percentiles, too seldom to slow anybody.
const EVERY: Duration = Duration::from_millis(50);

/// Writes a page every now and then and has it synchronized, until it is asked for what that took.
pub(crate) struct Disk {
    enough: Arc<AtomicBool>,
    writing: JoinHandle<Result<Vec<(Instant, Duration)>>>,
}

impl Disk {
    /// Begins to write, into a file of its own in that folder.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(crate) fn watch(folder: &Path) -> Result<Disk> {
        let file = File::create(folder.join("floor")).context("a file beside the database")?;
        for page in 0..PAGES {
            file.write_all_at(&PAGE, page * PAGE.len() as u64)?;
        }
        file.sync_all()?;
        let enough = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&enough);
        let writing = std::thread::spawn(move || {
            let mut took = Vec::new();
            while !asked.load(Ordering::Relaxed) {
                let began = Instant::now();
                file.write_all_at(&PAGE, took.len() as u64 % PAGES * PAGE.len() as u64)?;
                file.sync_data()?;
                took.push((began, began.elapsed()));
                std::thread::sleep(EVERY.saturating_sub(began.elapsed()));
            }
            Ok(took)
        });
        Ok(Disk { enough, writing })
    }

    /// When each was begun, and what it took.
    ///
    /// # Errors
    /// When a write failed.
    pub(crate) fn took(self) -> Result<Vec<(Instant, Duration)>> {
        self.enough.store(true, Ordering::Relaxed);
        self.writing.join().expect("the writing thread does not panic")
    }
}
