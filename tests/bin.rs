//! The binary `briquette` as the tests start, stop and kill it: cargo hands a binary's path only to tests of the same package.

use std::process::ExitCode;

fn main() -> ExitCode {
    briquette_runner::cli::main()
}
