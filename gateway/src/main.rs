//! `pons`: arguments, then the configuration, then one subcommand.

use std::process::ExitCode;

/// Mapping takes and frees much memory in small pieces, on several threads; this one gives it back and is quicker at it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Huge pages make the process a third larger under load, for pieces of memory that are mostly unused. Where the kernel
    // refuses, it only is larger.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    gateway::cli::main()
}
