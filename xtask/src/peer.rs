//! PyTorch in a throw-away environment, for benchmarks that compare.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{root, say};

/// The version that is compared with.
const PYTORCH: &str = "torch==2.15.0";

/// The arguments with the interpreter that has PyTorch after a bare `--peer`; the environment is made when it is not there yet.
pub(crate) fn with_peer(mut arguments: Vec<String>) -> Result<Vec<String>> {
    let Some(at) = arguments.iter().position(|argument| argument == "--peer") else { return Ok(arguments) };
    if arguments.get(at + 1).is_some_and(|next| !next.starts_with('-')) {
        return Ok(arguments);
    }
    let folder = root().join("target/peer");
    let python = folder.join("bin/python");
    let ready = Command::new(&python).args(["-c", "import torch"]).stderr(Stdio::null()).status();
    if !ready.is_ok_and(|status| status.success()) {
        say(&format!("installing {PYTORCH} into {}, some gigabytes; remove the folder when you are done", folder.display()));
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", PYTORCH, "numpy"]))?;
    }
    arguments.insert(at + 1, python.display().to_string());
    Ok(arguments)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed") }
}
