//! `pons test`: runs the tests that stand in the mappings.

use super::{Exit, Outcome, complain, print};
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// A folder of mappings to test beside the built-in ones
    dir: Option<PathBuf>,
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    let catalog = crate::pipeline::catalog_with(arguments.dir.as_deref())?;
    let failures = catalog.run_tests();
    for failure in &failures {
        print(&failure.to_string())?;
    }
    complain(&format!("{} tests, {} failures", catalog.test_count(), failures.len()));
    Ok(if failures.is_empty() { Exit::Ok } else { Exit::Failed })
}
