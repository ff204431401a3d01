//! The binary `briquette`.

use std::process::ExitCode;

// Small networks train about one and a half times faster when large buffers are kept instead of returned to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    briquette_runner::cli::main()
}
