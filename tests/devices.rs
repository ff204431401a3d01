//! The same small training on another device. Behind a switch, for it takes a build of its own and a device: `cargo xtask test --device D`.

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

#[test]
#[allow(clippy::print_stdout)] // Who tries a device looks at what it made of the training.
fn a_training_ends_as_on_flex() {
    let device = std::env::var("BRIQUETTE_TEST_DEVICE").expect("`cargo xtask test --device D` names the device");
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
