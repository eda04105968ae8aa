//! `pons`: arguments, then the configuration, then one subcommand.

use std::process::ExitCode;

/// Mapping takes and frees much memory in small pieces, on several threads; this one gives it back and is quicker at it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    gateway::cli::main()
}
