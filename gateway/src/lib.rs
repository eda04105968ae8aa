//! The running process: tasks, RabbitMQ, SQL, HTTP and the configuration.

pub mod api;
pub mod bus;
pub mod cli;
pub mod config;
pub mod deliver;
pub mod demo;
pub mod files;
mod http;
pub mod ingest;
pub mod lifecycle;
pub mod normalize;
pub mod pipeline;
pub mod route;
mod squeeze;
pub mod store;
pub mod telemetry;
pub mod upkeep;

/// An error with its sources, each after a colon: what a person reads in a log line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
