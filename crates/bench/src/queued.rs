//! Training speed on devices that compute while the host goes on: the steps of a turn are given to the device, then it is waited for.

use std::collections::BTreeMap;

use anyhow::Result;
use briquette_core::cost::Cost;
use briquette_core::net::{Net, Op};
use briquette_runner::steps::{Mode, Steps, queued};
use briquette_runner::timing::median;
use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::tensor::{Device, Tensor};

use crate::peer::{FORMATS, Peer};
use crate::training::{Case, TrainingRow, fastest, net};

/// Ours, the network's convolutions alone, and the peer's formats in turn; speeds are medians over the turns. The convolutions' share of a step is
/// at most what is said: alone, each has the sum of its output and that sum's gradient beside it.
///
/// # Errors
/// When the device fails or the peer is gone.
pub(crate) fn row(device: &Device, case: Case, mode: Mode, mut peer: Option<&mut Peer>) -> Result<TrainingRow> {
    let net = net(case.net, device)?;
    let products = Cost::of(&net)?.macs() as f64 * if mode == Mode::Train { 6.0 } else { 2.0 } / 1e9;
    let mut ours = Steps::new(&net, case.batch, mode)?;
    let convolutions = Convolutions::of(&net, device, case.batch, mode)?;
    let (mut times, mut alone) = (Vec::new(), Vec::new());
    let mut formats = FORMATS.map(|format| (format, Vec::new()));
    for _ in 0..TURNS {
        times.push(ours.run_queued(STEPS)?);
        alone.push(queued(&convolutions.device, STEPS, || convolutions.step())?);
        if let Some(peer) = &mut peer {
            for (format, times) in &mut formats {
                times.extend(peer.steps(case.net, mode, case.batch, STEPS, format)?);
            }
        }
    }
    let peer = peer.and_then(|_| fastest(case, formats));
    let step = median(times);
    let share = median(alone) / step;
    let images_per_s = case.batch as f64 / step;
    Ok(TrainingRow {
        net: case.net,
        mode,
        batch: case.batch,
        threads: rayon::current_num_threads(),
        images_per_s,
        baseline_images_per_s: None,
        peer_images_per_s: peer.map(|(_, speed)| speed),
        peer_format: peer.map(|(format, _)| format),
        gflops: images_per_s * products,
        peak_mib: None,
        baseline_peak_mib: None,
        shares: BTreeMap::from([("convolutions".to_string(), share), ("rest".to_string(), 1.0 - share)]),
    })
}

/// Steps in a turn, and turns.
const STEPS: usize = 20;
const TURNS: usize = 5;

/// The convolutions of a network, each with maps of its own, which lie as they do between layers: channels last.
struct Convolutions {
    device: Device,
    mode: Mode,
    all: Vec<(Conv2d, Tensor<4>)>,
}

impl Convolutions {
    fn of(net: &Net, device: &Device, batch: usize, mode: Mode) -> Result<Self> {
        let shapes = net.shapes()?;
        let trains = mode == Mode::Train;
        let device = if trains { device.clone().autodiff() } else { device.clone() };
        let mut all = Vec::new();
        for node in &net.nodes {
            let Op::Conv2d(conv) = &node.op else { continue };
            let [channels, height, width] = shapes[node.inputs[0]][..] else { continue };
            let maps = Tensor::ones([batch, height, width, channels], &device).permute([0, 3, 1, 2]);
            let conv = if trains { conv.clone().train() } else { conv.clone() };
            // The images themselves need no gradient.
            all.push((conv, if trains && node.inputs[0] > 0 { maps.require_grad() } else { maps }));
        }
        Ok(Self { device, mode, all })
    }

    /// All of them once, with the gradients of weights and maps in training.
    fn step(&self) {
        let outputs: Vec<Tensor<4>> = self.all.iter().map(|(conv, maps)| conv.forward(maps.clone())).collect();
        if self.mode == Mode::Train {
            for output in outputs {
                output.sum().backward();
            }
        }
    }
}
