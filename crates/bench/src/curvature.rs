//! Pruning by curvature where layers are large and classes are many: AlexNet with weights as drawn, on images of noise in its 1000 classes.

use std::fmt;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use briquette_core::context::{Context, Data, Silent};
use briquette_core::net::{Net, Node};
use briquette_core::zoo::Arch;
use briquette_data::Dataset;
use briquette_runner::METHODS;
use briquette_runner::memory::{forget_peak, peak};
use burn::tensor::Device;
use serde::Serialize;

/// The figures of all methods.
#[derive(Debug, Serialize)]
pub(crate) struct Curvature(Vec<CurvatureRow>);

/// One method's figures.
#[derive(Debug, Serialize)]
pub(crate) struct CurvatureRow {
    /// The method and its settings.
    pub(crate) what: String,
    /// Wall-clock time.
    pub(crate) seconds: f64,
    /// Highest resident memory of the process, over the bytes of the dense network.
    pub(crate) peak: f64,
    /// Share of the weights of all layers that is not zero afterwards.
    pub(crate) left: f64,
}

const IMAGES: usize = 100;

/// Optimal brain damage of all of AlexNet, and optimal brain surgery on its first fully connected layer.
///
/// # Errors
/// When a method fails, or the system does not tell a process's memory.
pub(crate) fn curvature() -> Result<Curvature> {
    [
        ("optimal-brain-damage", serde_json::json!({ "global": 0.11, "calibration-images": IMAGES })),
        (
            "optimal-brain-surgeon",
            serde_json::json!({ "keep": { "fc6": 0.09 }, "blocks": { "size": 8 }, "memory-mib": 4096, "calibration-images": IMAGES }),
        ),
    ]
    .into_iter()
    .map(|(name, settings)| row(name, settings))
    .collect::<Result<_>>()
    .map(Curvature)
}

fn row(name: &str, settings: serde_json::Value) -> Result<CurvatureRow> {
    let arch = Arch::named("alexnet")?;
    let net = arch.build(&arch.wanted(), &Device::flex())?;
    let [c, h, w] = net.input_shape()[..] else { anyhow::bail!("AlexNet takes no images") };
    let pixels = (0..IMAGES * c * h * w).map(|i| (i * i / 7 * 31 % 251) as u8).collect();
    let labels = (0..IMAGES).map(|i| (i * 1000 / IMAGES) as u16).collect();
    let images = Dataset::from_memory("noise", [c, h, w], 1000, pixels, labels)?;
    let data = Data { train: images.clone(), valid: images.clone(), test: images };
    let what = format!("{name} {settings}");
    let method = (METHODS.find(name)?.parse)(settings, METHODS)?;
    let dense = 4.0 * values(&net).count() as f64;
    forget_peak()?;
    let began = Instant::now();
    let net = method.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut Silent))?;
    let seconds = began.elapsed().as_secs_f64();
    let peak = peak().context("this system does not tell a process's memory")? as f64 / dense;
    let left = values(&net).filter(|value| *value != 0.0).count() as f64 / values(&net).count() as f64;
    ensure!(left < 1.0, "{what} left every weight");
    Ok(CurvatureRow { what, seconds, peak, left })
}

fn values(net: &Net) -> impl Iterator<Item = f32> {
    net.nodes.iter().filter_map(Node::weight).flat_map(|weight| weight.values())
}

impl fmt::Display for Curvature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for CurvatureRow { what, seconds, peak, left } in &self.0 {
            let left = 100.0 * left;
            writeln!(f, "{what}\n  {seconds:.1} s  peak {peak:.2} times the dense values, {left:.1} % left")?;
        }
        Ok(())
    }
}
