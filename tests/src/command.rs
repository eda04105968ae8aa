//! The program as a script runs it: arguments and standard input in; exit code and both outputs out.

use crate::gateway::binary;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How a run of `pons` ended: exit code, standard output, standard error.
pub type Ended = (Option<i32>, String, String);

/// Runs `pons` in a folder, with something on its standard input.
///
/// # Errors
/// When it cannot be started, or writes what is not UTF-8.
pub async fn pons(folder: &Path, arguments: &[&str], input: &[u8]) -> Result<Ended> {
    let mut child = Command::new(binary().await?)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("pons")?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    let write = async {
        // A program that reads nothing closes the pipe, which is no failure.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let output = output?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}
