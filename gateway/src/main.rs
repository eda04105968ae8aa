//! `pons`: arguments, then the configuration, then one subcommand.

#[cfg(unix)]
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

/// Mapping takes and frees much memory in small pieces, on several threads; this one gives it back and is quicker at it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The allocator's setting for how long freed memory stays with the process, in milliseconds, and what it should be. At the
/// usual second a burst leaves the process a fifth larger.
const FREED_STAYS: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "50");

/// Has the allocator give freed memory back sooner. It reads its settings before anything of ours runs, so the program begins
/// once more, as the same process with the same arguments; where that is not possible, the process only is larger.
#[cfg(unix)]
fn give_memory_back_soon() {
    let (setting, milliseconds) = FREED_STAYS;
    if std::env::var_os(setting).is_some() {
        return;
    }
    let mut args = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), args.next()) {
        let _ = std::process::Command::new(program).arg0(name).args(args).env(setting, milliseconds).exec();
    }
}

fn main() -> ExitCode {
    #[cfg(unix)]
    give_memory_back_soon();
    // Huge pages make the process a third larger under load, for pieces of memory that are mostly unused. Where the kernel
    // refuses, it only is larger.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    gateway::cli::main()
}
