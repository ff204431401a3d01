//! The same small training on another device, and a step of every method. Behind a switch, for it takes a build of its own and a device:
//! `cargo xtask test --device D`.

use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::training::{cross_entropy, images};
use briquette_data::Loader;
use briquette_runner::METHODS;
use burn::tensor::Device;

use crate::conformance::{Case, DATA, ensure, every_case, example};
use crate::program::{Bench, rows};

/// What kernels differ in: a convolutional network with batch norms and pooling, a structural matrix, a mask, and quantized activations with steps that
/// train.
const CONFIG: &str = r#"
model = "lenet5-norm"
data = { name = "glyphs", train = 1200, test = 1000 }
seed = 3

[[pass]]
method = "train"
epochs = 3
batch = 50
lr = 4e-3

[[pass]]
method = "circulant"
layers = ["fc1"]
tune = { epochs = 2, batch = 50, lr = 2e-2 }

[[pass]]
method = "magnitude"
keep = { rest = 0.3 }
tune = { epochs = 1, batch = 50, optimizer = "sgd", lr = 0.01 }

[[pass]]
method = "fixed-point"
layers = ["conv"]
bits = 8
activations = 8
reach = "mse"
learned = true
tune = { epochs = 1, batch = 50, lr = 1e-4 }

[[pass]]
method = "encode"
"#;

fn device() -> String {
    std::env::var("BRIQUETTE_TEST_DEVICE").expect("`cargo xtask test --device D` names the device")
}

/// Every method with one step on all images, an epoch of its training, on both devices: the losses of the steps, and that of the network that comes
/// out.
#[test]
fn a_step_of_every_method_has_the_loss_of_flex() {
    let (device, _) = briquette_runner::device::open(&device()).unwrap();
    every_case(|case| {
        let (here, there) = (losses(case, &Device::flex())?, losses(case, &device)?);
        let near = |(here, there): (&f64, &f64)| (here - there).abs() <= 1e-3 * here.abs().max(1.0);
        let same = here.len() == there.len() && here.iter().zip(&there).all(near);
        ensure(same, &format!("losses {here:?} on flex, {there:?} on the device"))
    });
}

fn losses(case: &Case, device: &Device) -> Result<Vec<f64>> {
    let mut settings = example(case.entry);
    if settings.get("tune").is_none() {
        settings["tune"] = serde_json::json!({});
    }
    let step = |mut settings| {
        case.entry.recipes(&mut settings, &mut |recipe| (recipe.epochs, recipe.batch) = (1, DATA.train.len()));
        let mut pass = (case.entry.parse)(settings, METHODS)?;
        pass.shorten();
        Ok::<_, serde_json::Error>(pass)
    };
    let pass = step(settings).or_else(|_| step(example(case.entry))).unwrap();
    let start = case.start();
    let mut host = case.files(&start)?;
    let mut cx = Context::new(device, 3, &DATA, &mut host);
    cx.distillations = METHODS.distillations();
    let net = pass.run(Net::from_state(&start.to_state(), device)?, &mut cx)?;
    let batch = Loader::ordered(&DATA.train, DATA.train.len()).next().expect("there are images")?;
    let ended = cross_entropy(net.forward(images(&batch, DATA.train.shape, device)), &batch.labels, 0.0);
    Ok(cx.curve.iter().map(|epoch| epoch.train_loss).chain([f64::from(ended.into_scalar::<f32>())]).collect())
}

#[test]
#[allow(clippy::print_stdout)] // Who tries a device looks at what it made of the training.
fn a_training_ends_as_on_flex() {
    let device = device();
    let bench = Bench::with(CONFIG);
    let accuracies = |device: &str| -> Vec<(String, f64)> {
        let output = bench.call(&["run", "small.toml", "--device", device, "--out", &device.replace(':', "-")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows = rows(&bench.path(&device.replace(':', "-")));
        let row = |row: &serde_json::Value| (row["method"].as_str().unwrap().to_string(), row["accuracy"].as_f64().unwrap());
        rows.as_array().unwrap().iter().map(row).collect()
    };
    let (here, there) = (accuracies("flex"), accuracies(&device));
    assert_eq!(here.len(), there.len());
    println!("flex {here:?}\n{device} {there:?}");
    assert!(here.last().unwrap().1 > 0.8, "a network that learned nothing tells nothing: {here:?}");
    for ((method, here), (_, there)) in here.iter().zip(&there) {
        assert!((here - there).abs() <= 0.005, "after {method}: {here} on flex, {there} on {device}");
    }
}
