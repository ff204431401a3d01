//! States and containers of whole networks, pruned and shared: time and memory of writing them and reading them back.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use briquette_core::net::Net;
use briquette_core::stored::Storage;
use briquette_core::zoo::Arch;
use briquette_pruning_sharing::pruning::magnitude;
use briquette_pruning_sharing::quantization::kmeans_sharing;
use briquette_runner::files;
use briquette_runner::memory::{forget_peak, peak, shown};
use briquette_runtime::{Coder, Model, ValueFormat};
use burn::tensor::Device;
use serde::Serialize;

/// The figures of all networks.
#[derive(Debug, Serialize)]
pub(crate) struct States(Vec<StatesRow>);

/// One network's figures.
#[derive(Debug, Serialize)]
pub(crate) struct StatesRow {
    /// Network.
    pub(crate) net: String,
    /// Bytes of its values in single precision.
    pub(crate) dense: usize,
    /// What was done, in order.
    pub(crate) steps: Vec<StatesStep>,
}

/// One step's figures.
#[derive(Debug, Serialize)]
pub(crate) struct StatesStep {
    /// What was done.
    pub(crate) what: &'static str,
    /// Wall-clock time.
    pub(crate) seconds: f64,
    /// Size of the file that was written or read; none where there is none.
    pub(crate) bytes: Option<u64>,
    /// Highest resident memory of the process, the network at hand included, over the bytes of the dense network.
    pub(crate) peak: f64,
}

/// Share of the weights that stays.
const KEEP: f64 = 0.1;
/// Centroids of a layer.
const CENTROIDS: usize = 32;

/// Prunes and shares AlexNet and VGG-16, or the network of this name, with random weights; then writes its state and its container and reads both
/// back.
///
/// # Errors
/// When the network is unknown, what comes back is another, or the system does not tell a process's memory.
pub(crate) fn states(only: Option<&str>) -> Result<States> {
    only.map_or(vec!["alexnet", "vgg16"], |net| vec![net]).into_iter().map(row).collect::<Result<_>>().map(States)
}

fn row(name: &str) -> Result<StatesRow> {
    let device = Device::flex();
    let folder = tempfile::tempdir().context("there is no folder for temporary files")?;
    let (state, container) = (folder.path().join("net.state"), folder.path().join("net.brq"));
    let arch = Arch::named(name)?;
    let mut steps = Vec::new();
    let net = arch.build(&arch.wanted(), &device)?;
    let net = step(&mut steps, "prune", || Ok((magnitude::prune(net, |_| Some(KEEP)), None)))?;
    let net =
        step(&mut steps, "share", || Ok((kmeans_sharing::share(net, |_| Some(CENTROIDS), kmeans_sharing::Init::Linear), None)))?;
    step(&mut steps, "write state", || Ok(((), Some(files::stream(&state, |to| Ok(net.write_state(to)?))?))))?;
    let storage = Storage { coder: Coder::Huffman, float: ValueFormat::F32 };
    step(&mut steps, "encode", || {
        let bytes = net.to_model(storage)?.to_bytes()?;
        files::write(&container, &bytes)?;
        Ok(((), Some(bytes.len() as u64)))
    })?;
    drop(net);
    let net = step(&mut steps, "read state", || {
        let file = File::open(&state)?;
        let bytes = file.metadata()?.len();
        Ok((Net::read_state(&mut BufReader::with_capacity(1 << 20, file), &device)?, Some(bytes)))
    })?;
    let again = net.to_model(storage)?.to_bytes()?;
    let dense = 4 * briquette_core::cost::Cost::of(&net)?.params();
    drop(net);
    let bytes = std::fs::read(&container)?;
    ensure!(again == bytes, "{name}: what comes back from the state encodes otherwise");
    drop(again);
    step(&mut steps, "decode", || Ok((Net::from_model(&Model::from_bytes(&bytes)?, &device)?, Some(bytes.len() as u64))))?;
    let steps = steps.into_iter().map(|step| StatesStep { peak: step.peak / dense as f64, ..step }).collect();
    Ok(StatesRow { net: name.to_string(), dense, steps })
}

/// Runs and measures; the peak in bytes for now.
fn step<T>(steps: &mut Vec<StatesStep>, what: &'static str, work: impl FnOnce() -> Result<(T, Option<u64>)>) -> Result<T> {
    forget_peak()?;
    let began = Instant::now();
    let (result, bytes) = work()?;
    let seconds = began.elapsed().as_secs_f64();
    let peak = peak().context("this system does not tell a process's memory")? as f64;
    steps.push(StatesStep { what, seconds, bytes, peak });
    Ok(result)
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.0 {
            writeln!(f, "{}, {} as dense values", row.net, shown(row.dense as u64))?;
            for StatesStep { what, seconds, bytes, peak } in &row.steps {
                let bytes = bytes.map_or(String::new(), shown);
                writeln!(f, "  {what:12} {bytes:>10} {seconds:8.2} s  peak {peak:.2} times the dense values")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_comes_back_from_its_state_and_its_container_is_far_smaller() {
        // Where a process's memory is not measured there is nothing to show.
        if forget_peak().is_err() {
            return;
        }
        let rows = states(Some("lenet300")).unwrap();
        let [row] = &rows.0[..] else { panic!("one network was asked for") };
        let names: Vec<&str> = row.steps.iter().map(|step| step.what).collect();
        assert_eq!(names, ["prune", "share", "write state", "encode", "read state", "decode"]);
        let bytes = |at: usize| row.steps[at].bytes.unwrap() as usize;
        // A byte and a bit for each weight, and less than a byte for each of the tenth that stays.
        assert!(bytes(2) < row.dense / 3 && bytes(3) < row.dense / 25, "{row:?}");
        assert_eq!((bytes(2), bytes(3)), (bytes(4), bytes(5)));
    }
}
