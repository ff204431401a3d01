//! How long containers take in the engine.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use briquette_runtime::{Engine, Model, StepTimes};
use serde::Serialize;

use crate::report::Row;

/// Latencies of a network beside those of a baseline, each keyed `b<batch>t<threads>`, as first quartile, median and third quartile.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Times {
    /// Milliseconds of a batch.
    pub ms: BTreeMap<String, [f64; 3]>,
    /// How often the network's time goes into the baseline's, turn by turn.
    pub speedup: BTreeMap<String, [f64; 3]>,
}

impl Times {
    /// Puts them into a row.
    pub fn into_row(self, row: &mut Row) {
        row.latency_ms = self.ms.iter().map(|(key, [_, median, _])| (key.clone(), *median)).collect();
        row.latency_quartiles = self.ms.into_iter().map(|(key, [low, _, high])| (key, [low, high])).collect();
        row.speedup = self.speedup;
    }
}

/// Times batches of 1 and 32 on one thread and on all. Both networks take turns, so that a machine whose speed drifts treats them alike, and the one
/// that goes first changes from turn to turn.
///
/// # Errors
/// When an engine refuses.
pub fn beside(baseline: &Model, model: &Model) -> Result<Times> {
    let mut threads = vec![1, rayon::current_num_threads()];
    threads.dedup();
    let mut times = Times::default();
    for threads in threads {
        let engines = [Engine::new(baseline, threads)?, Engine::new(model, threads)?];
        for batch in [1, 32] {
            let sides = turns(2, |side| once(&engines[side], batch))?;
            let ratios = sides[0].iter().zip(&sides[1]).map(|(baseline, model)| baseline / model);
            let (key, quartiles) = (format!("b{batch}t{threads}"), |values| Spread::of(values).quartiles());
            times.speedup.insert(key.clone(), quartiles(ratios.collect()));
            times.ms.insert(key, quartiles(sides[1].clone()));
        }
    }
    Ok(times)
}

const LEAST_TURNS: usize = 6;
const MOST_TURNS: usize = 200;
const BUDGET: Duration = Duration::from_millis(400);

/// What `run` says of each side, turn by turn; who goes first changes. The first turn, in which everything is cold, is left out.
pub(crate) fn turns(sides: usize, mut run: impl FnMut(usize) -> Result<f64>) -> Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::new(); sides];
    let (began, mut turn) = (Instant::now(), 0);
    while turn < LEAST_TURNS || (began.elapsed() < BUDGET && turn < MOST_TURNS) {
        for side in (0..sides).map(|place| (turn + place) % sides) {
            times[side].push(run(side)?);
        }
        turn += 1;
    }
    Ok(times.into_iter().map(|mut times| times.split_off(1)).collect())
}

/// Milliseconds of a batch.
pub(crate) fn once(engine: &Engine, batch: usize) -> Result<f64> {
    let input = images(engine, batch);
    let began = Instant::now();
    engine.run(&input, batch)?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// [`once`], and of that each step's.
pub(crate) fn once_by_step(engine: &Engine, batch: usize) -> Result<(f64, StepTimes)> {
    let input = images(engine, batch);
    let began = Instant::now();
    let (_, steps) = engine.run_timed(&input, batch)?;
    Ok((began.elapsed().as_secs_f64() * 1e3, steps))
}

/// Any input will do where every image takes the same way: no kernel's time depends on the values. Where samples may leave early, times are those of the exits
/// that these leave at.
fn images(engine: &Engine, batch: usize) -> Vec<f32> {
    let count = engine.input_shape().iter().product::<usize>() * batch;
    (0..count).map(|i| (i % 251) as f32 / 251.0).collect()
}

/// The middle of the values; the lower of two.
pub fn median(values: Vec<f64>) -> f64 {
    Spread::of(values).median
}

/// How values spread: the least, first quartile, median, third quartile, and the largest. Each is one of the values, of two between the lower
/// one; not numbers where there is no value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| values.get(values.len().saturating_sub(1) * quarter / 4).copied().unwrap_or(f64::NAN);
        Self { min: at(0), low: at(1), median: at(2), high: at(3), max: at(4) }
    }

    pub(crate) fn quartiles(self) -> [f64; 3] {
        [self.low, self.median, self.high]
    }
}

/// The time, to the second.
pub(crate) fn now() -> Result<String> {
    Ok(jiff::Timestamp::now().round(jiff::Unit::Second)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_core::stored::Storage;
    use briquette_core::zoo::{Arch, Wanted};
    use burn::tensor::Device;

    #[test]
    fn a_machine_that_slows_down_treats_both_networks_alike() {
        // Each run takes longer than the one before: one network after the other, the second would look many times as slow as it is.
        let mut slow = 1.0;
        let sides = turns(2, |side| {
            slow *= 1.01;
            Ok(slow * [2.0, 1.0][side])
        })
        .unwrap();
        let (baseline, model) = (&sides[0], &sides[1]);
        assert!(baseline.len() == model.len() && baseline.len() >= LEAST_TURNS - 1);
        let ratios = baseline.iter().zip(model).map(|(baseline, model)| baseline / model);
        let [low, median, high] = Spread::of(ratios.collect()).quartiles();
        assert!(
            (1.97..=1.99).contains(&low) && (2.0..2.03).contains(&high) && (low..=high).contains(&median),
            "{low} {median} {high}"
        );
    }

    #[test]
    fn quartiles_are_values_that_were_measured() {
        let Spread { min, low, median: middle, high, max } = Spread::of(vec![5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!([min, low, middle, high, max], [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!((Spread::of(vec![7.0]).quartiles(), median(vec![4.0, 1.0])), ([7.0; 3], 1.0));
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn every_row_has_the_spread_of_its_latency_and_of_its_speed_up() {
        let arch = Arch::named("lenet300").unwrap();
        let net = arch.build(&Wanted { width: 0.05, ..arch.wanted() }, &Device::flex()).unwrap();
        let model = net.to_model(Storage::default()).unwrap();
        let mut row = Row::default();
        beside(&model, &model).unwrap().into_row(&mut row);
        assert!(row.latency_ms.contains_key("b1t1") && row.latency_ms.contains_key("b32t1"));
        for (key, median) in &row.latency_ms {
            let ([low, high], speedup) = (row.latency_quartiles[key], row.speedup[key]);
            assert!(0.0 < low && low <= *median && *median <= high, "{key}: {low} {median} {high}");
            assert!(speedup.is_sorted() && speedup[0] > 0.0 && speedup[2].is_finite(), "{key}: {speedup:?}");
        }
    }
}
