//! How long a layer takes in the engine, beside what may come in its place.

use std::time::{Duration, Instant};

use briquette_core::error::Result;
use briquette_core::net::{Net, Node, Op};
use briquette_core::stored::Storage;
use briquette_runtime::{Engine, layers};

/// Milliseconds of one sample on one thread, the median of turns in which the networks run one after the other.
///
/// # Errors
/// When a network cannot be stored or the engine refuses it.
pub fn turns(nets: &[Net]) -> Result<Vec<f64>> {
    let engines =
        nets.iter().map(|net| Ok(Engine::new(&net.to_model(Storage::default())?, 1)?)).collect::<Result<Vec<Engine>>>()?;
    let mut times = vec![Vec::new(); nets.len()];
    let began = Instant::now();
    while times[0].len() < LEAST || (began.elapsed() < ENOUGH && times[0].len() < MOST) {
        for ((engine, net), times) in engines.iter().zip(nets).zip(&mut times) {
            let pixels = vec![0.5; net.input_shape().iter().product()];
            let began = Instant::now();
            engine.run(&pixels, 1)?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(times.into_iter().map(median).collect())
}

/// A network of these operations in a row, on maps `[channels, height, width]` or on as many features, and the mean of what they compute.
pub fn alone(input: [usize; 3], connected: bool, operations: Vec<Op>) -> Net {
    // A fully connected layer reads a vector, and makes one.
    let (before, after) =
        if connected { (Some(Op::fixed(layers::Flatten)), None) } else { (None, Some(Op::fixed(layers::GlobalAvgPool))) };
    let start = Op::fixed(layers::Input { shape: input.to_vec() });
    let all = std::iter::once(start).chain(before).chain(operations).chain(after).enumerate();
    let node = |(at, op): (usize, Op)| Node { op, name: format!("{at}"), inputs: at.checked_sub(1).into_iter().collect() };
    Net { nodes: all.map(node).collect() }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Turns that are always measured.
const LEAST: usize = 7;
/// Turns that are always enough.
const MOST: usize = 200;
/// Time that is enough.
const ENOUGH: Duration = Duration::from_millis(100);
