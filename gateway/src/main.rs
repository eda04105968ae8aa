//! `pons`: arguments, then the configuration, then one subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway::cli::main()
}
