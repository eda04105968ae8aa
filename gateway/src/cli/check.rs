//! `pons check`: configuration and mappings, offline. Every mistake at once.

use super::{ConfigArgument, Exit, Outcome, complain, configuration};
use crate::pipeline;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// A folder of mappings to check beside the built-in ones
    dir: Option<PathBuf>,
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    let config = configuration(&arguments.config)?;
    let catalog = match &arguments.dir {
        None => pipeline::catalog(&config)?,
        Some(folder) => pipeline::catalog_for(&config, Some(folder))?,
    };
    complain(&format!(
        "the configuration is right: {} sources, {} senders, {} subscriptions, {} mappings",
        config.sources.len(),
        config.senders.len(),
        config.subscriptions.len(),
        catalog.programs().len()
    ));
    Ok(Exit::Ok)
}
