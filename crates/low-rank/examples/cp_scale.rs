//! What the CP decomposition of a large kernel takes: `cargo run -p briquette-low-rank --example cp_scale -- RANK SWEEPS DIM DIM ...` tells
//! the seconds of a sweep and the most that the process held, less what it held before it had the kernel, in multiples of the kernel.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use briquette_core::streams::standard_normal;
use briquette_low_rank::cp::{Settings, Solver, Tensor, decompose};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = std::env::args().skip(1).map(|argument| argument.parse()).collect::<Result<Vec<usize>, _>>()?;
    let [rank, sweeps, shape @ ..] = &arguments[..] else { return Err("usage: cp_scale RANK SWEEPS DIM DIM ...".into()) };
    let before = memory("VmRSS")?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let values = (0..shape.iter().product()).map(|_| standard_normal(&mut rng)).collect();
    let tensor = Tensor::new(shape.to_vec(), values)?;
    let settings = Settings { rank: *rank, starts: 1, sweeps: *sweeps, solver: Solver::Als, correction: false, seed: 1 };
    let began = Instant::now();
    let fitted = decompose(&tensor, &settings)?;
    let seconds = began.elapsed().as_secs_f64() / fitted.sweeps as f64;
    let kernel = size_of_val(tensor.values()) as f64;
    let factors: usize = fitted.factors.iter().map(|factor| size_of_val(factor.as_slice())).sum();
    writeln!(
        std::io::stdout(),
        "{shape:?} rank {rank}: {seconds:.3} s a sweep of {}, error {:.4}, at most {:.2} kernels, factors of {:.2} among them",
        fitted.sweeps,
        fitted.error,
        (memory("VmHWM")? - before) / kernel,
        factors as f64 / kernel,
    )?;
    Ok(())
}

/// Bytes of this process, which Linux tells.
fn memory(what: &str) -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(what)).ok_or("/proc/self/status does not tell")?;
    Ok(line.split_whitespace().nth(1).ok_or("an empty line")?.parse::<f64>()? * 1024.0)
}
