//! Seconds of an epoch of ResNet-56 on 32 by 32 pixels with all blocks and with stochastic depth, in turns:
//! `cargo run --release -p briquette-dynamic-nets --example stochastic_depth`.
#![allow(clippy::print_stdout)]

use briquette_core::context::{Context, Data, Silent};
use briquette_core::pass::Pass;
use briquette_core::passes::Train;
use briquette_core::zoo::Arch;
use briquette_data::Dataset;
use briquette_dynamic_nets::stochastic_depth::StochasticDepth;
use burn::tensor::Device;

const IMAGES: usize = 640;
const TURNS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let set = |count: usize| {
        let pixels = (0..count * 3072).map(|i| ((i * 7919) % 256) as u8).collect();
        Dataset::from_memory("noise", [3, 32, 32], 10, pixels, (0..count).map(|i| (i % 10) as u16).collect())
    };
    let data = Data { train: set(IMAGES)?, valid: set(10)?, test: set(10)? };
    let recipe = r#"{ "epochs": 1, "batch": 64, "optimizer": "sgd", "lr": 0.01, "choose": "last" }"#;
    let all: Train = serde_json::from_str(recipe)?;
    let some: StochasticDepth = serde_json::from_str(&format!(r#"{{ "train": {recipe} }}"#))?;
    let passes: [&dyn Pass; 2] = [&all, &some];
    let arch = Arch::named("resnet56")?;
    let mut seconds = [Vec::new(), Vec::new()];
    for turn in 0..TURNS {
        for (pass, seconds) in passes.iter().zip(&mut seconds) {
            let mut silent = Silent;
            let mut cx = Context::new(&Device::flex(), turn as u64, &data, &mut silent);
            pass.run(arch.build(&arch.wanted(), &Device::flex())?, &mut cx)?;
            seconds.extend(cx.curve.iter().map(|epoch| epoch.seconds));
        }
    }
    let [all, some] = seconds.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        (seconds[0], seconds[TURNS / 2], seconds[TURNS - 1])
    });
    println!("{IMAGES} images, seconds (least, median, most): all blocks {all:?}, stochastic depth {some:?}");
    println!("{:.1} % less time", 100.0 * (1.0 - some.1 / all.1));
    Ok(())
}
