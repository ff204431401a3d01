//! What the CP decomposition of a large kernel takes: `cargo run -p briquette-low-rank --example cp_scale -- RANK SWEEPS DIM DIM ...` tells
//! the seconds of a sweep and the most that was allocated at once, the kernel included, in multiples of the kernel.

use std::alloc::System;
use std::error::Error;
use std::io::Write;
use std::time::Instant;

use briquette_core::streams::standard_normal;
use briquette_low_rank::cp::{Settings, Solver, Tensor, decompose};
use cap::Cap;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = std::env::args().skip(1).map(|argument| argument.parse()).collect::<Result<Vec<usize>, _>>()?;
    let [rank, sweeps, shape @ ..] = &arguments[..] else { return Err("usage: cp_scale RANK SWEEPS DIM DIM ...".into()) };
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
        ALLOCATOR.max_allocated() as f64 / kernel,
        factors as f64 / kernel,
    )?;
    Ok(())
}
