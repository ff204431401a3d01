//! A network with two exits: trained at both, stored, and run by the engine, which skips what no sample needs.

use briquette_core::builder::{At, Builder, Conv};
use briquette_core::coding::floats;
use briquette_core::context::{Context, Data, Silent};
use briquette_core::cost::Cost;
use briquette_core::error::Result;
use briquette_core::net::{Net, Op};
use briquette_core::objective::{Objective, Seen};
use briquette_core::pass::Pass;
use briquette_core::stored::Storage;
use briquette_core::surgery::Keep;
use briquette_core::training::{Extras, Recipe, cross_entropy, fit, images};
use briquette_data::{Dataset, GlyphCounts, Loader, Locations};
use briquette_pruning_sharing::quantization::fixed_point::FixedPoint;
use briquette_runtime::layers::{Gate, Measure, Merge, Route};
use briquette_runtime::{Engine, Model, layers};
use burn::tensor::{Device, Tensor};

use crate::program::Bench;

/// A first exit behind one convolution, a second behind two more, for images of 28 by 28.
fn net(gate: Gate) -> Net {
    let mut b = Builder::new([1, 28, 28], 5, &Device::flex());
    let mut x = b.conv("conv1", b.input(), Conv::new(8, 3).stride(2));
    x = b.relu("relu1", x);
    let early = head(&mut b, "exit1", x);
    let decision = b.fixed("gate", &[early], gate);
    let leaving = b.fixed("leave", &[early, decision], Route { leaving: true });
    let mut on = b.fixed("go-on", &[x, decision], Route { leaving: false });
    on = b.conv("conv2", on, Conv::new(16, 3).stride(2));
    on = b.relu("relu2", on);
    on = b.conv("conv3", on, Conv::new(24, 3));
    on = b.relu("relu3", on);
    let late = head(&mut b, "exit2", on);
    b.fixed("merge", &[leaving, late, decision], Merge);
    b.finish().unwrap()
}

fn head(b: &mut Builder, name: &str, x: At) -> At {
    let x = b.flatten(&format!("{name}-flatten"), x);
    b.linear(name, x, 10)
}

/// The sum of both exits' losses in the place of the task's.
struct Both;

impl Objective for Both {
    fn taps(&self, net: &Net) -> Result<Vec<usize>> {
        ["exit1", "exit2"].into_iter().map(|name| net.index(name)).collect()
    }

    fn task(&self) -> f64 {
        0.0
    }

    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>> {
        let losses = seen.taps.iter().map(|exit| cross_entropy(exit.clone().vector(), seen.labels, 0.0));
        Ok(losses.reduce(|sum, loss| sum + loss).expect("there are two exits"))
    }
}

fn data() -> Data {
    let at = Locations { glyphs: GlyphCounts { train: 1200, test: 160 }, ..Locations::from_env(None) };
    let splits = briquette_data::open("glyphs", &at).unwrap();
    Data { train: splits.train, valid: splits.test.clone(), test: splits.test }
}

fn pixels(data: &Dataset) -> Vec<f32> {
    Loader::ordered(data, data.len()).next().unwrap().unwrap().images
}

/// Trained at both exits.
fn trained(data: &Data) -> Net {
    let mut silent = Silent;
    let mut cx = Context::new(&Device::flex(), 11, data, &mut silent);
    let recipe = Recipe { epochs: 2, batch: 32, lr: 3e-3, ..Recipe::default() };
    let never = Gate { measure: Measure::Confidence, threshold: 1.0 };
    fit(net(never), &recipe, Extras { objectives: vec![&mut Both], ..Extras::default() }, &mut cx).unwrap()
}

/// The same weights with another gate.
fn gated(net: &Net, gate: Gate) -> Net {
    let (mut net, index) = (net.deep_clone(), net.index("gate").unwrap());
    net.nodes[index].op = Op::fixed(gate);
    net
}

/// What both exits say of all images, a gate at whose first exit some of them leave, and how many. Its threshold lies between two confidences in the
/// middle, so that rounding decides for no sample.
fn divided(net: &Net, data: &Dataset) -> ([Vec<f32>; 2], Gate, usize) {
    let total = data.len();
    let batch = Loader::ordered(data, total).next().unwrap().unwrap();
    let mut exits: [Vec<f32>; 2] = Default::default();
    let wanted = ["exit1", "exit2"].map(|name| net.index(name).unwrap());
    net.trace(images(&batch, data.shape, &Device::flex()), |node, value| {
        if let Some(exit) = wanted.iter().position(|wanted| *wanted == node) {
            exits[exit] = floats(value.clone().vector());
        }
        value
    });
    let confidence = |logits: &[f32]| {
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        1.0 / logits.iter().map(|z| (z - largest).exp()).sum::<f32>()
    };
    let mut sorted: Vec<f32> = exits[0].chunks(10).map(confidence).collect();
    sorted.sort_by(f32::total_cmp);
    let widest = (total / 4..3 * total / 4).max_by(|a, b| (sorted[a + 1] - sorted[*a]).total_cmp(&(sorted[b + 1] - sorted[*b])));
    let at = widest.unwrap();
    let threshold = f32::midpoint(sorted[at], sorted[at + 1]);
    (exits, Gate { measure: Measure::Confidence, threshold }, total - at - 1)
}

fn stored(net: &Net) -> Model {
    Model::from_bytes(&net.to_model(Storage::default()).unwrap().to_bytes().unwrap()).unwrap()
}

/// Outputs of all images in batches of this size, and for how many of them each step computed.
fn run(model: &Model, threads: usize, images: &[f32], batch: usize) -> (Vec<f32>, Vec<(String, usize)>) {
    let engine = Engine::new(model, threads).unwrap();
    let (mut outputs, mut counts) = (Vec::new(), Vec::<(String, usize)>::new());
    for rows in images.chunks(784 * batch) {
        let (output, samples) = engine.run_counted(rows, rows.len() / 784).unwrap();
        assert_eq!(output, engine.run(rows, rows.len() / 784).unwrap());
        outputs.extend(output);
        match counts.is_empty() {
            true => counts = samples,
            false => counts.iter_mut().zip(samples).for_each(|((_, sum), (_, more))| *sum += more),
        }
    }
    (outputs, counts)
}

fn count(counts: &[(String, usize)], step: &str) -> usize {
    counts.iter().find(|(name, _)| name == step).unwrap_or_else(|| panic!("{step}: {counts:?}")).1
}

#[test]
fn exits_are_the_same_at_any_batch_and_with_any_threads_and_are_counted() {
    let data = data();
    let net = trained(&data);
    let (test, total) = (pixels(&data.test), data.test.len());
    let (exits, gate, leaving) = divided(&net, &data.test);

    let net = gated(&net, gate);
    let model = stored(&net);
    let (expected, counts) = run(&model, 1, &test, 32);
    let steps = ["conv1", "exit1", "gate", "conv2", "conv3", "exit2"].map(|step| count(&counts, step));
    let on = total - leaving;
    assert_eq!(steps, [total, total, total, on, on, on], "{counts:?}");
    assert!(leaving > 0 && on > 0);
    let class = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class);
    let classes = |outputs: &[f32]| outputs.chunks(10).map(class).collect::<Vec<_>>();
    for batch in [1, 7, 32, total] {
        // Threads change no bit; a batch of another size is summed in another order.
        let one = run(&model, 1, &test, batch);
        assert_eq!(classes(&one.0), classes(&expected), "batches of {batch}");
        assert!(one.0.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "batches of {batch}");
        for threads in [1, 2, 3] {
            let found = run(&model, threads, &test, batch);
            assert!(found == one, "{threads} threads, batches of {batch}");
            assert_eq!(["conv2", "exit2"].map(|step| count(&found.1, step)), [on, on]);
        }
    }
    // Burn says the same; every row is that of its exit.
    let batch = Loader::ordered(&data.test, total).next().unwrap().unwrap();
    let burn = floats(net.forward(images(&batch, data.test.shape, &Device::flex())));
    let size = burn.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    assert!(burn.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4 * size));
    for (row, logits) in exits[0].chunks(10).enumerate() {
        let exit = usize::from(!gate.leaves(logits));
        let of_exit = &exits[exit][10 * row..10 * row + 10];
        assert!(of_exit.iter().zip(&expected[10 * row..]).all(|(a, b)| (a - b).abs() < 1e-4 * size), "{row}");
    }
    // Both exits have learned, and the cost is that of those who went on.
    for logits in &exits {
        let right = logits.chunks(10).zip(&batch.labels).filter(|(row, label)| {
            row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class as u16) == Some(**label)
        });
        assert!(right.count() > total / 2);
    }
    let cost = Cost::of(&net).unwrap();
    let share = |name: &str| counts.iter().find(|(step, _)| step == name).map(|(_, rows)| *rows as f64 / total as f64);
    let deep: u64 = cost.layers.iter().filter(|l| ["conv2", "conv3", "exit2"].contains(&&l.name[..])).map(|l| l.macs).sum();
    let expected = cost.macs() as f64 - deep as f64 * leaving as f64 / total as f64;
    assert!((cost.expected_macs(share).unwrap() - expected).abs() < 1.0);
}

#[test]
fn a_quantized_network_skips_work_in_integers_and_says_what_burn_says() {
    let data = data();
    let mut silent = Silent;
    let method: FixedPoint = serde_json::from_value(serde_json::json!({ "bits": 8, "activations": 8 })).unwrap();
    let net = method.run(trained(&data), &mut Context::new(&Device::flex(), 3, &data, &mut silent)).unwrap();
    let (_, gate, leaving) = divided(&net, &data.test);
    let (net, total) = (gated(&net, gate), data.test.len());
    let model = stored(&net);
    let (outputs, counts) = run(&model, 2, &pixels(&data.test), 32);
    let steps = ["conv1", "exit1", "conv2", "conv3", "exit2"].map(|step| count(&counts, step));
    let on = total - leaving;
    assert_eq!(steps, [total, total, on, on, on]);
    assert!(
        counts.iter().all(|(step, _)| !step.ends_with("-quantized")),
        "layers on a branch take codes as others do: {counts:?}"
    );
    let batch = Loader::ordered(&data.test, total).next().unwrap().unwrap();
    let burn = floats(net.forward(images(&batch, data.test.shape, &Device::flex())));
    let size = burn.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    let far = |by: f32| burn.iter().zip(&outputs).filter(|(a, b)| (*a - *b).abs() > by * size).count();
    // Burn sums in floats, and may take a value between two codes to the other one.
    assert!(far(1e-2) == 0 && 10 * far(1e-5) < burn.len(), "{} and {} of {}", far(1e-2), far(1e-5), burn.len());
}

#[test]
fn where_all_leave_nothing_behind_is_run_and_where_none_does_all_is() {
    let net = net(Gate { measure: Measure::Entropy, threshold: 0.5 });
    let images: Vec<f32> = (0..40 * 784_usize).map(|i| ((i * i) % 251) as f32 / 250.0).collect();
    for (threshold, on) in [(1.0, 0), (0.0, 40)] {
        let model = stored(&gated(&net, Gate { measure: Measure::Entropy, threshold }));
        let (outputs, counts) = run(&model, 2, &images, 40);
        assert_eq!((outputs.len(), count(&counts, "conv1"), count(&counts, "conv2")), (400, 40, on));
        assert_eq!(count(&counts, "exit2"), on);
    }
}

#[test]
fn channels_are_cut_through_routes_as_masks_say() {
    let images: Vec<f32> = (0..30 * 784_usize).map(|i| ((i * i * 7) % 251) as f32 / 250.0).collect();
    let at = |threshold: f32| net(Gate { measure: Measure::Confidence, threshold });
    let some = |net: &Net| (1..30).contains(&count(&run(&stored(net), 1, &images, 30).1, "conv2"));
    let net = (0..100).map(|i| at(i as f32 / 100.0)).find(some).expect("a threshold that parts them");
    let back = Net::from_model(&stored(&net), &Device::flex()).unwrap();
    assert!(back.to_state() == net.to_state());
    let groups = net.channel_groups().unwrap();
    let group = |name: &str| groups.iter().find(|group| group.name == name).unwrap_or_else(|| panic!("{groups:?}"));
    assert!(group("exit1").frozen.is_some());
    for name in ["conv1", "conv3"] {
        let keep = || Keep::new((0..group(name).len()).map(|i| i % 3 != 1).collect());
        let [cut, masked] = [net.deep_clone().keep(&[(group(name), keep())]), net.deep_clone().mask(&[(group(name), keep())])]
            .map(|net| run(&stored(&net.unwrap()), 1, &images, 30));
        let size = masked.0.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        assert!(masked.0.iter().zip(&cut.0).all(|(a, b)| (a - b).abs() < 1e-4 * size), "{name}");
        assert_eq!(count(&masked.1, "conv2"), count(&cut.1, "conv2"));
        // Behind the gate no cut changes who leaves.
        assert!(name != "conv3" || (1..30).contains(&count(&cut.1, "conv2")), "{:?}", cut.1);
    }
}

#[test]
fn samples_of_different_branches_do_not_meet() {
    let refused = |wire: &dyn Fn(&mut Builder, [At; 3])| {
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let x = b.linear("fc", x, 3);
        let gate = b.fixed("gate", &[x], Gate { measure: Measure::Entropy, threshold: 0.5 });
        let on = b.fixed("on", &[x, gate], Route { leaving: false });
        wire(&mut b, [x, gate, on]);
        b.finish().unwrap_err().to_string()
    };
    let meets = refused(&|b, [x, _, on]| {
        b.add("add", &[x, on]);
    });
    assert_eq!(meets, "node 'add': its inputs hold different samples; merge them first");
    let open = refused(&|_, _| ());
    assert_eq!(open, "node 'on': the output is that of some samples only; merge it with that of the others");
    let turned = refused(&|b, [x, gate, on]| {
        let off = b.fixed("off", &[x, gate], Route { leaving: true });
        b.fixed("merge", &[on, off, gate], Merge);
    });
    assert_eq!(turned, "node 'merge': a merge takes what left at a gate, what went on there, and that gate's decision");
    let no_gate = refused(&|b, [x, _, on]| {
        let one = b.linear("one", x, 1);
        b.fixed("route", &[on, one], Route { leaving: true });
    });
    assert_eq!(no_gate, "node 'route': a route takes a value and the decision of a gate that saw the same samples");
    // A file says so too.
    let mut model = stored(&net(Gate { measure: Measure::Entropy, threshold: 0.5 }));
    let merge = model.nodes.last_mut().unwrap();
    merge.inputs.swap(0, 1);
    assert!(Model::verify(&model.to_bytes().unwrap())[0].contains("a merge takes what left"));
    model.nodes.last_mut().unwrap().inputs.swap(0, 1);
    let gate = model.nodes.iter_mut().find(|node| node.name == "gate").unwrap();
    gate.layer = layers::Gate { measure: Measure::Entropy, threshold: f32::NAN }.into();
    assert!(model.check().is_err() && Engine::new(&model, 1).is_err());
}

#[test]
fn a_report_has_the_times_of_real_images_and_bench_asks_for_some() {
    let config = "# a few seconds\nmodel = { arch = \"lenet5\", width = 0.2 }\ndata = { name = \"glyphs\", train = 300, test = 300 }\nseed = 5\n\
         [[pass]]\nmethod = \"train\"\nepochs = 1\n[[pass]]\nmethod = \"early-exit\"\nexits = { after = [\"pool1\"] }\n\
         threshold = { leave = [0.5] }\ntrain = { epochs = 1 }\n";
    let bench = Bench::with(config);
    let output = bench.call(&["run", "small.toml", "--out", "out"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(bench.path("out/report.json")).unwrap()).unwrap();
    let row = &report["rows"][1];
    assert!(["b1t1", "b32t1"].iter().all(|key| row["latency_ms"][key].as_f64().unwrap() > 0.0), "{row}");
    assert!(row["notes"].to_string().contains("times are means over 256 test images"), "{row}");
    let (error, _) = bench.refusal(&["bench", "out/model.brq"]);
    assert!(error.contains("how long an image takes depends on where it leaves; name images by `--data NAME`"), "{error}");
}
