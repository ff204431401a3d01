//! How long a layer takes in the engine, beside the chain that may come in its place.

use std::time::{Duration, Instant};

use briquette_core::error::Result;
use briquette_core::net::{Net, Node, Op};
use briquette_core::stored::Storage;
use briquette_runtime::{Engine, layers};

/// Milliseconds of one sample on one thread, the median of turns in which the networks run one after the other.
///
/// # Errors
/// When a network cannot be stored or the engine refuses it.
pub(crate) fn turns(nets: &[Net]) -> Result<Vec<f64>> {
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

/// A network of these operations in a row, and the mean of what they compute.
pub(crate) fn alone(input: Vec<usize>, operations: Vec<Op>) -> Net {
    let mut nodes =
        vec![Node { op: Op::fixed(layers::Input { shape: input.clone() }), name: "input".into(), inputs: Vec::new() }];
    // A fully connected layer reads a vector.
    let first = if input.len() == 1 { vec![Op::fixed(layers::Flatten)] } else { Vec::new() };
    if input.len() == 1 {
        nodes[0].op = Op::fixed(layers::Input { shape: vec![input[0], 1, 1] });
    }
    let last = if input.len() == 1 { Vec::new() } else { vec![Op::fixed(layers::GlobalAvgPool)] };
    for (at, op) in first.into_iter().chain(operations).chain(last).enumerate() {
        nodes.push(Node { op, name: format!("{at}"), inputs: vec![at] });
    }
    Net { nodes }
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
