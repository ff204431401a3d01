//! How long containers take in the engine.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use briquette_data::Dataset;
use briquette_runtime::branches::Branch;
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

/// Whether a network decides for each image what it computes.
pub fn decides(model: &Model) -> bool {
    model.nodes.iter().any(|node| node.layer.kind().branch() == Branch::Decides)
}

/// The images that engines are timed on.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// `[count, channels, height, width]`, pixels / 255.
    pixels: Vec<f32>,
    /// How many they are.
    pub count: usize,
}

/// Images of a set whose mean time stands for that of all, and most values of them, 64 MiB.
const IMAGES: usize = 256;
const VALUES: usize = 1 << 24;

impl Inputs {
    /// One image of any values, `[channels, height, width]`: no kernel's time depends on them.
    pub fn any(shape: &[usize]) -> Self {
        let size = shape.iter().product::<usize>();
        Self { pixels: (0..size).map(|i| (i % 251) as f32 / 251.0).collect(), count: 1 }
    }

    /// Images of a set, 256 at most, fewer large ones, evenly spread over it.
    ///
    /// # Errors
    /// When there are none, or one cannot be read.
    pub fn of(data: &Dataset) -> Result<Self> {
        if data.is_empty() {
            bail!("the data '{}' have no images to time networks on", data.name);
        }
        let most = (VALUES / data.shape.iter().product::<usize>()).clamp(1, IMAGES);
        let (count, mut pixels) = (data.len().min(most), Vec::new());
        for place in 0..count {
            pixels.extend(data.pixel(place * data.len() / count)?.into_iter().map(|pixel| f32::from(pixel) / 255.0));
        }
        Ok(Self { pixels, count })
    }

    /// What networks that take turns are timed on: images of the set where one of them [decides] what it computes for each, and any values where none does.
    ///
    /// # Errors
    /// As [`Inputs::of`].
    pub fn between(models: [&Model; 2], data: impl FnOnce() -> Result<Dataset>) -> Result<Self> {
        match models.into_iter().any(decides) {
            true => Self::of(&data()?),
            false => Ok(Self::any(&models[0].check()?[0])),
        }
    }

    /// The images in batches, each once, those that do not fill a batch left out; one batch of them over and over where they are fewer.
    pub(crate) fn batches(&self, batch: usize) -> Vec<Vec<f32>> {
        let images: Vec<&[f32]> = self.pixels.chunks_exact(self.pixels.len() / self.count).collect();
        let image = |at: usize| images[at % images.len()].iter().copied();
        let batches = (images.len() / batch).max(1);
        (0..batches).map(|number| (0..batch).flat_map(|place| image(number * batch + place)).collect()).collect()
    }
}

/// Times batches of 1 and 32 on one thread and on all, the mean over those of the inputs. Both networks take turns, so that a machine whose speed drifts treats them alike, and the one
/// that goes first changes from turn to turn.
///
/// # Errors
/// When an engine refuses.
pub fn beside(baseline: &Model, model: &Model, inputs: &Inputs) -> Result<Times> {
    let mut threads = vec![1, rayon::current_num_threads()];
    threads.dedup();
    let mut times = Times::default();
    for threads in threads {
        let engines = [Engine::new(baseline, threads)?, Engine::new(model, threads)?];
        for batch in [1, 32] {
            let batches = inputs.batches(batch);
            let sides = turns(2, |side| once(&engines[side], batch, &batches))?;
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

/// Mean milliseconds of these batches.
pub(crate) fn once(engine: &Engine, batch: usize, batches: &[Vec<f32>]) -> Result<f64> {
    let began = Instant::now();
    for images in batches {
        engine.run(images, batch)?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e3 / batches.len() as f64)
}

/// [`once`], and of that each step's.
pub(crate) fn once_by_step(engine: &Engine, batch: usize, batches: &[Vec<f32>]) -> Result<(f64, StepTimes)> {
    let (began, mut steps) = (Instant::now(), StepTimes::new());
    for images in batches {
        let (_, taken) = engine.run_timed(images, batch)?;
        if steps.is_empty() {
            steps = taken;
        } else {
            steps.iter_mut().zip(taken).for_each(|((_, sum), (_, ms))| *sum += ms);
        }
    }
    let count = batches.len() as f64;
    steps.iter_mut().for_each(|(_, ms)| *ms /= count);
    Ok((began.elapsed().as_secs_f64() * 1e3 / count, steps))
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
    use briquette_core::builder::Builder;
    use briquette_core::stored::Storage;
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_handmade::set;
    use briquette_runtime::layers::{Gate, Measure, Merge, Route};
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

    /// A network of which an image leaves behind its sum of pixels or goes on through 40 more logits, as the first pixel is bright or dark.
    fn gated() -> Model {
        let gate = Gate { measure: Measure::Confidence, threshold: 0.9 };
        let mut b = Builder::new([1, 2, 2], 5, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let early = b.linear("early", x, 2);
        let decision = b.fixed("gate", &[early], gate);
        let leaving = b.fixed("leave", &[early, decision], Route { leaving: true });
        let mut on = b.fixed("go-on", &[x, decision], Route { leaving: false });
        on = b.linear("hidden", on, 40);
        on = b.linear("late", on, 2);
        b.fixed("merge", &[leaving, on, decision], Merge);
        let net = b.finish().unwrap();
        set(net, "early", "weight", &[9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).to_model(Storage::default()).unwrap()
    }

    #[test]
    fn networks_that_decide_are_timed_on_images_that_go_both_ways() {
        // Every fourth image is bright.
        let pixels = (0..1000).flat_map(|image| [if image % 4 == 0 { 255 } else { 0 }, 1, 2, 3]).collect();
        let data = Dataset::from_memory("mine", [1, 2, 2], 2, pixels, vec![0; 1000]).unwrap();
        let (model, plain) = (gated(), Model { nodes: gated().nodes[..3].to_vec(), ..Model::default() });
        assert!(decides(&model) && !decides(&plain));
        let inputs = Inputs::between([&plain, &model], || Ok(data.clone())).unwrap();
        assert_eq!(inputs, Inputs::of(&data).unwrap());
        let engine = Engine::new(&model, 1).unwrap();
        for batch in [1, 32] {
            let (mut seen, mut on) = (0, 0);
            for images in inputs.batches(batch) {
                let counted = engine.run_counted(&images, batch).unwrap().1;
                let of = |name: &str| counted.iter().find(|(step, _)| step == name).unwrap().1;
                (seen, on) = (seen + of("early"), on + of("hidden"));
            }
            assert!(seen == 256 && (180..=204).contains(&on), "{on} of {seen} go on");
        }
        let mut row = Row::default();
        beside(&plain, &model, &inputs).unwrap().into_row(&mut row);
        assert!(row.latency_ms["b1t1"] > 0.0 && row.latency_ms["b32t1"] > 0.0 && row.speedup["b1t1"][0] > 0.0);
        // The same for all that do not decide, whatever their images.
        let any = Inputs::between([&plain, &plain], || bail!("nobody looks at images")).unwrap();
        assert_eq!((any.clone(), any.batches(32).len(), any.batches(32)[0].len()), (Inputs::any(&[1, 2, 2]), 1, 128));
    }

    #[test]
    fn images_fill_batches_and_few_of_them_come_again() {
        let data = Dataset::from_memory("mine", [1, 1, 1], 1, vec![0, 51, 102, 153, 204], vec![0; 5]).unwrap();
        let inputs = Inputs::of(&data).unwrap();
        assert_eq!(inputs.batches(2), [[0.0, 0.2], [0.4, 0.6]]);
        assert_eq!(inputs.batches(7), [[0.0, 0.2, 0.4, 0.6, 0.8, 0.0, 0.2]]);
    }

    #[test]
    fn every_row_has_the_spread_of_its_latency_and_of_its_speed_up() {
        let arch = Arch::named("lenet300").unwrap();
        let net = arch.build(&Wanted { width: 0.05, ..arch.wanted() }, &Device::flex()).unwrap();
        let model = net.to_model(Storage::default()).unwrap();
        let mut row = Row::default();
        beside(&model, &model, &Inputs::any(&[1, 28, 28])).unwrap().into_row(&mut row);
        assert!(row.latency_ms.contains_key("b1t1") && row.latency_ms.contains_key("b32t1"));
        for (key, median) in &row.latency_ms {
            let ([low, high], speedup) = (row.latency_quartiles[key], row.speedup[key]);
            assert!(0.0 < low && low <= *median && *median <= high, "{key}: {low} {median} {high}");
            assert!(speedup.is_sorted() && speedup[0] > 0.0 && speedup[2].is_finite(), "{key}: {speedup:?}");
        }
    }
}
