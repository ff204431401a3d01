//! The binary `briquette`.

use std::process::ExitCode;

// Training asks for the same large buffers at every step; this allocator keeps them instead of returning them to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    briquette_runner::cli::main()
}
