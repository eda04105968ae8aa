//! A small disk that can be filled: a tmpfs under the store.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs; it is unmounted when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one of so many MiB.
    ///
    /// # Errors
    /// When this process may not mount: only root may, and not in every container.
    pub fn mount(mebibytes: u32) -> Result<SmallDisk> {
        let folder = tempfile::tempdir().context("a folder")?;
        let at = folder.path().join("disk");
        fs::create_dir(&at)?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0777"), "tmpfs"])
            .arg(&at)
            .output()
            .context("mount")?;
        if !output.status.success() {
            bail!(
                "no small disk, since mounting needs root: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(SmallDisk { at, _folder: folder })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Fills it to the last block, until [`SmallDisk::free`].
    ///
    /// # Errors
    /// When the filler cannot be made at all.
    pub fn fill(&self) -> Result<()> {
        let mut filler =
            File::options().create(true).append(true).open(self.filler()).context("the filler")?;
        for block in [vec![0; 1 << 20], vec![0; 4096], vec![0; 1]] {
            while filler.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    /// Takes the filler away.
    ///
    /// # Errors
    /// When there was none.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("the filler")
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that still has a file open there loses it when it ends.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root, for a small disk: tests/run has it"]
    fn a_full_disk_takes_nothing_and_a_freed_one_does() {
        let disk = SmallDisk::mount(2).unwrap();
        disk.fill().unwrap();
        let file = disk.path().join("file");
        assert!(fs::write(&file, [0; 8192]).is_err());
        disk.free().unwrap();
        fs::write(&file, [0; 8192]).unwrap();
    }
}
