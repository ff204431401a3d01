//! What the vector units can do at most: the yardstick of the benchmarks.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::lanes::{Isa, Lanes, Work};

/// Sums in registers, enough to hide the latency of a multiply-add.
const SUMS: usize = 12;
const ROUNDS: usize = 10_000;
const BUDGET: Duration = Duration::from_millis(200);

/// GFLOP/s of fused multiply-adds in registers, over all threads of the current pool, on the instructions that kernels use.
pub fn fma_gflops() -> f64 {
    let one_thread = |_: rayon::BroadcastContext<'_>| {
        let isa = Isa::of_this_machine();
        let (began, mut calls) = (Instant::now(), 0);
        while began.elapsed() < BUDGET {
            black_box(isa.run(MultiplyAdds { factor: black_box(0.999) }));
            calls += 1;
        }
        (calls * ROUNDS * SUMS * isa.lanes() * 2) as f64 / began.elapsed().as_secs_f64() / 1e9
    };
    // The first turn wakes the threads and lets the system spread them.
    rayon::broadcast(one_thread);
    rayon::broadcast(one_thread).iter().sum()
}

struct MultiplyAdds {
    factor: f32,
}

impl Work for MultiplyAdds {
    type Output = bool;

    #[inline(always)]
    fn run<L: Lanes>(self) -> bool {
        let factor = L::splat(self.factor);
        let mut sums = [L::splat(1.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = sum.multiply_add(factor, factor);
            }
        }
        let mut all = L::splat(0.0);
        for sum in sums {
            all = all.add(sum);
        }
        let mut first = [0.0; 1];
        #[allow(unsafe_code)]
        // SAFETY: one float is written to a place for one.
        unsafe {
            all.store_some(first.as_mut_ptr(), 1);
        }
        first[0] > 0.0
    }
}
