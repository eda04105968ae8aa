//! `pons run`: the gateway, until it is told to stop.

use super::{ConfigArgument, Exit, Failure, Outcome, complain, configuration};
use crate::pipeline::{self, StartError};
use crate::telemetry;
use tokio::signal::unix::{SignalKind, signal};

pub(super) fn main(arguments: &ConfigArgument) -> Outcome {
    let config = configuration(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let telemetry = telemetry::start(config.log_json, config.otlp.as_deref())
            .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
        let mut terminate = signal(SignalKind::terminate())?;
        let running = tokio::select! {
            started = pipeline::start(config) => started?,
            _ = terminate.recv() => return Ok(Exit::Ok),
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Ok),
        };
        if let Some(address) = running.http {
            tracing::info!(%address, "serving FHIR at /fhir, metrics at /metrics, health at /livez and /readyz");
        }
        if arguments.config.is_none() {
            complain(
                "no configuration: any sender on loopback is taken, its times are read as UTC, nobody is subscribed; \
                 the data lies in ./pons-data. For real use write a configuration (see README.md) and give it with --config.",
            );
        }
        tracing::info!("ready");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("stopping");
        running.stop().await;
        telemetry.stop().await;
        Ok(Exit::Ok)
    })
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let exit = match &error {
            StartError::Store(error) => return Failure::from_store(error),
            StartError::Mappings(_)
            | StartError::NoMapping(_)
            | StartError::Bus(_)
            | StartError::Telemetry(_)
            | StartError::Folder(_) => Exit::Configuration,
            StartError::Io { .. } => Exit::Unavailable,
        };
        Failure::new(exit, error.to_string())
    }
}
