//! What every method of every scheme must do, whatever it computes. A method takes part by being in its crate's list, with the settings
//! that it gives as its example, shrunk as for a trial run, on each of two small networks whose structure its `plan` accepts, or on a third one where it
//! accepts neither.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{LazyLock, OnceLock};

use briquette_core::Window;
use briquette_core::builder::{Builder, Conv};
use briquette_core::coding::floats;
use briquette_core::context::{Context, Data, Event, Host, Memory, Saved, StateWriter};
use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::pass::{Entry, Pass};
use briquette_core::promises::Promises;
use briquette_core::stored::{Storage, Stored};
use briquette_core::training::{cross_entropy, images};
use briquette_core::zoo::{Arch, Wanted};
use briquette_data::{GlyphCounts, Loader, Locations};
use briquette_pruning_sharing::quantization::pact::Pact;
use briquette_pruning_sharing::structural::circulant::Circulant;
use briquette_runner::{METHODS, methods};
use briquette_runtime::{Model, layers};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

/// Methods after which a network may cost more than before, and why.
const DEARER: &[(&str, &str)] = &[
    ("acdc", "its transforms are as long as the larger side of the layer, 784 inputs for 60 outputs"),
    ("block-drop", "its policy is a network of its own"),
    ("cyclic", "it rounds six filters up to two for each of four views"),
    ("detail-preserving-pooling", "its pools have parameters"),
    ("dynamic-network", "its low branch and its control node come on top"),
    ("early-exit", "its exits have heads of their own"),
    ("group-equivariant", "with as many weights there are twice as many filters of twice as many channels"),
    ("low-displacement", "its transforms are as long as the larger side of the layer, 784 inputs for 60 outputs"),
    ("mixture-of-experts", "several layers, of which two compute an image, stand in the place of one"),
    ("net2net", "it is there to make networks larger"),
    ("s3pool", "its pools are two nodes of the container"),
];

/// Parameters of methods that the gradient of the loss may leave alone, by what the names of their nodes begin with and by the end of their path, and why.
const STILL: &[(&str, &[&str], &str, &str)] = &[
    (
        "block-drop",
        &["policy.", "conv2", "norm2", "conv3", "norm3"],
        "",
        "rewards teach the policy, and the output's loss the block where it runs, which may be for none",
    ),
    (
        "dynamic-network",
        &["control.", "low.", "conv2", "norm2", "conv3", "norm3"],
        "",
        "rewards teach the control node, and the output's loss the branch that it chooses",
    ),
    (
        "early-exit",
        &["exit", "conv2", "norm2", "conv3", "norm3", "conv4", "norm4", "fc2", "fc3", "output"],
        "",
        "either side of an exit is taught by the samples that go there, which may be none; its training taps all exits",
    ),
    (
        "pact",
        &[""],
        "Tensors.parameters.0.values.One",
        "only activations beyond a clip value pull at it; until there are some, its decay alone does",
    ),
];

#[test]
fn names_are_unique_and_those_of_the_files() {
    let methods = methods();
    assert!(methods.windows(2).all(|pair| pair[0].name != pair[1].name), "two methods of one name");
    every_method(|entry| {
        let kebab = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        ensure(entry.name.split('-').all(kebab), "the name is not in kebab case")?;
        ensure(source(entry).is_some(), "its crate has no file of its name")
    });
}

#[test]
fn examples_are_read_and_unknown_settings_refused() {
    every_method(|entry| {
        let mut settings = example(entry);
        (entry.parse)(settings.clone(), METHODS).map_err(|error| Error::Invalid(error.to_string()))?;
        settings["no-such-setting"] = 1.into();
        let refused = (entry.parse)(settings, METHODS).map_or_else(|error| error.to_string(), |_| "nothing is refused".into());
        ensure(refused.contains("unknown field `no-such-setting`"), &refused)?;
        ensure(!entry.paper.is_empty() && !entry.family.is_empty(), "names no paper or no family")
    });
}

#[test]
fn every_method_takes_one_of_the_networks() {
    every_method(|entry| {
        let refusals = || STARTS.iter().chain([&WIDENING]).filter_map(|start| accepts(entry, *start).err()).collect::<Vec<_>>();
        ensure(!starts(entry).is_empty(), &refusals().join("; "))
    });
}

#[test]
fn what_comes_out_is_a_network_of_the_same_inputs_and_outputs() {
    every_case(|case| {
        let (net, _) = case.run()?;
        let (before, after) = (case.start().shapes()?, net.shapes()?);
        ensure((before.first(), before.last()) == (after.first(), after.last()), "inputs or outputs have another shape")?;
        net.to_model(Storage::default())?.check()?;
        Ok(())
    });
}

#[test]
fn nothing_costs_more_than_before() {
    every_case(|case| {
        let (net, storage) = case.run()?;
        let cost = |net: &Net, storage| -> Result<[u64; 3]> {
            let (cost, bytes) = (Cost::of(net)?, net.to_model(storage)?.to_bytes()?.len());
            Ok([cost.macs(), cost.params() as u64, bytes as u64])
        };
        let (before, after) = (cost(&case.start(), Storage::default())?, cost(&net, storage)?);
        let more = after.iter().zip(before).any(|(after, before)| *after > before);
        let text = format!("from {before:?} to {after:?} multiply-accumulates, parameters, bytes");
        match DEARER.iter().find(|(name, _)| *name == case.entry.name) {
            None => ensure(!more, &text),
            Some((_, reason)) => ensure(more, &format!("{text}, although {reason:?}")),
        }
    });
}

#[test]
fn one_seed_gives_the_same_bits() {
    every_case(|case| ensure(case.run()?.0.to_state() == case.run_on(case.start())?.0.to_state(), "two runs differ"));
}

#[test]
fn a_container_holds_every_value() {
    every_case(|case| {
        let (net, storage) = case.run()?;
        let bytes = net.to_model(storage)?.to_bytes()?;
        let back = Net::from_model(&Model::from_bytes(&bytes)?, &Device::flex())?;
        ensure(values(&back) == values(&net), "the container gives other values back")?;
        Promises::of(&net).check(&back)
    });
}

/// Whatever a method keeps from step to step, or takes from one of its trainings into what follows, is part of the states that it saves.
#[test]
fn interrupted_at_any_state_and_resumed_a_method_ends_with_the_same_bits() {
    every_case(|case| {
        let mut calm = Torn { left: usize::MAX, memory: case.files(&case.start())? };
        let ended = case.trained(&mut calm, 1)?;
        let saves = usize::MAX - calm.left;
        for left in 0..saves + usize::from(saves > 0) {
            let mut torn = Torn { left, memory: case.files(&case.start())? };
            let interrupted = case.trained(&mut torn, 2).is_err();
            ensure(interrupted == (left < saves), "it goes on although its state cannot be saved")?;
            torn.left = usize::MAX;
            let resumed = case.trained(&mut torn, 3)?;
            let after = format!("interrupted after {left} of {saves} states, the ");
            ensure(resumed.0 == ended.0, &(after.clone() + "network differs"))?;
            ensure(resumed.1 == ended.1, &format!("{after}curves differ: {:?} and {:?}", ended.1, resumed.1))?;
            ensure(torn.memory.files == calm.memory.files, &(after + "files differ"))?;
        }
        Ok(())
    });
}

/// A host under which a run ends once it wants to save more states than are left.
struct Torn {
    left: usize,
    memory: Memory,
}

impl Host for Torn {
    fn before(&mut self, device: &Device) -> Result<Net> {
        self.memory.before(device)
    }

    fn event(&mut self, _: Event<'_>) {}

    fn stop_requested(&self) -> bool {
        false
    }

    fn saved(&mut self, key: &str) -> Result<Option<Saved<'_>>> {
        self.memory.saved(key)
    }

    fn save(&mut self, key: &str, state: &mut StateWriter<'_>) -> Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| Error::Host("killed".into()))?;
        self.memory.save(key, state)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.memory.write(name, bytes)
    }

    fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        self.memory.read(name)
    }
}

#[test]
fn a_second_run_works_or_says_why_not() {
    every_case(|case| {
        let (once, _) = case.run()?;
        let promises = Promises::of(&once);
        match case.run_on(once) {
            Ok((twice, _)) => {
                promises.check(&twice)?;
                twice.shapes()?;
                Ok(())
            }
            Err(error) => ensure(!error.to_string().is_empty(), "an error without a word"),
        }
    });
}

#[test]
fn earlier_masks_and_codebooks_are_kept_or_refused() {
    use briquette_pruning_sharing::pruning::magnitude;
    use briquette_pruning_sharing::quantization::kmeans_sharing;
    every_case(|case| {
        if pass(case.entry).replaces() {
            return Ok(());
        }
        let masked = magnitude::prune(case.start(), |_| Some(0.5));
        let shared = kmeans_sharing::share(masked.deep_clone(), |_| Some(16), kmeans_sharing::Init::Linear);
        for net in [masked, shared] {
            let promises = Promises::of(&net);
            match case.run_on(net) {
                Ok((net, _)) => promises.check(&net)?,
                Err(error) => ensure(!error.to_string().is_empty(), "an error without a word")?,
            }
        }
        Ok(())
    });
}

/// A method that has no example for such layers has to take them, or to say why not.
#[test]
fn layers_in_groups_structural_ones_and_those_on_grids_are_taken_or_refused() {
    let mut taken = [0; OTHERS.len()];
    let mut faults = Vec::new();
    for entry in methods() {
        for ((on, make), taken) in OTHERS.into_iter().zip(&mut taken) {
            let case = Case { entry, on, make, done: OnceLock::new() };
            faults.extend(fault(&format!("{} on the {on} network", entry.name), || {
                let start = case.start();
                let (promises, shapes) = (Promises::of(&start), start.shapes()?);
                if let Ok(planned) = pass(entry).plan(case.start()) {
                    planned.shapes()?;
                }
                match case.run_on(start) {
                    Ok((net, storage)) => {
                        *taken += 1;
                        let after = net.shapes()?;
                        ensure(
                            (shapes.first(), shapes.last()) == (after.first(), after.last()),
                            "inputs or outputs have another shape",
                        )?;
                        let back = Net::from_model(&Model::from_bytes(&net.to_model(storage)?.to_bytes()?)?, &Device::flex())?;
                        ensure(values(&back) == values(&net), "the container gives other values back")?;
                        if pass(entry).replaces() { Ok(()) } else { promises.check(&net) }
                    }
                    Err(error) => ensure(!error.to_string().is_empty(), "an error without a word"),
                }
            }));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    assert!(taken.into_iter().all(|taken| taken > methods().len() / 3), "{taken:?} of {}", methods().len());
}

/// The network with one weight of each layer that has any replaced.
fn poisoned(net: Net, by: f32) -> Net {
    let device = net.device();
    let poison = |node: Node| {
        let mut parameters = node.parameters();
        parameters.iter_mut().filter(|stored| stored.name == "weight").for_each(|stored| stored.base[1] = by);
        node.with(parameters, &device).unwrap()
    };
    Net { nodes: net.nodes.into_iter().map(|node| if node.weight().is_some() { poison(node) } else { node }).collect() }
}

#[test]
fn weights_that_are_not_finite_are_refused_or_stay_to_be_seen() {
    every_case(|case| {
        // What brings or draws other weights may forget these.
        if pass(case.entry).replaces() {
            return Ok(());
        }
        for by in [f32::NAN, f32::INFINITY] {
            let Ok((net, _)) = case.run_on(poisoned(case.start(), by)) else { continue };
            for (_, node) in net.weighted().filter(|(_, node)| node.weight().is_some()) {
                ensure(!node.not_finite().is_empty(), &format!("the weight {by} of '{}' has become a number", node.name))?;
            }
        }
        Ok(())
    });
}

#[test]
fn whatever_trains_on_has_its_gradient() {
    every_case(|case| {
        let (net, _) = case.run_on(case.start())?;
        let net = net.train();
        let batch = Loader::ordered(&DATA.train, 50).next().unwrap().unwrap();
        let images = images(&batch, DATA.train.shape, &Device::flex().autodiff());
        let gradients = cross_entropy(net.forward(images), &batch.labels, 0.0).backward();
        let mut reached =
            Reached { gradients: GradientsParams::from_grads(gradients, &net), path: Vec::new(), groups: BTreeMap::new() };
        net.visit(&mut reached);
        let owners = net.weighted().filter(|(index, _)| {
            let node = format!("nodes.{index}.");
            reached.groups.keys().any(|path| path.starts_with(&node))
        });
        ensure(owners.count() == net.weighted().count(), "a layer has nothing that trains")?;
        let name = |path: &str| net.nodes[path.split('.').nth(1).unwrap().parse::<usize>().unwrap()].name.as_str();
        let of = |nodes: &[&str], path: &str| nodes.iter().any(|node| name(path).starts_with(node));
        let still = |path: &str| {
            STILL.iter().any(|(method, nodes, end, _)| *method == case.entry.name && path.ends_with(end) && of(nodes, path))
        };
        let left = reached.groups.iter().filter(|(path, reached)| !**reached && !still(path));
        let left: Vec<&String> = left.map(|(path, _)| path).collect();
        ensure(left.is_empty(), &format!("no gradient reaches {left:?}"))
    });
}

/// For every parameter that trains, alone or through the parts of its coding, whether a gradient other than zero reaches it.
struct Reached {
    gradients: GradientsParams,
    path: Vec<String>,
    groups: BTreeMap<String, bool>,
}

impl ModuleVisitor for Reached {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.base().is_require_grad() {
            let owner = self.path.iter().position(|part| part == "coding").unwrap_or(self.path.len());
            let reached = self.gradients.get::<D>(param.id).is_some_and(|gradient| floats(gradient).iter().any(|g| *g != 0.0));
            *self.groups.entry(self.path[..owner].join(".")).or_default() |= reached;
        }
    }
}

/// A method with its example's settings, and a network that it takes.
pub(crate) struct Case {
    pub(crate) entry: &'static Entry,
    on: &'static str,
    make: fn() -> Net,
    /// The state of what comes out and how it is stored, once the method has run.
    done: OnceLock<std::result::Result<(Vec<u8>, Storage), String>>,
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let taken = |entry| starts(entry).into_iter().map(move |start| (entry, start));
    methods().into_iter().flat_map(taken).map(|(entry, (on, make))| Case { entry, on, make, done: OnceLock::new() }).collect()
});

pub(crate) static DATA: LazyLock<Data> = LazyLock::new(|| {
    let at = Locations { glyphs: GlyphCounts { train: 120, test: 20 }, ..Locations::from_env(None) };
    let set = briquette_data::open("glyphs", &at).unwrap();
    let (train, valid) = set.train.split(20, 1);
    Data { train, valid, test: set.test }
});

/// The name of a network and how it is made.
type Start = (&'static str, fn() -> Net);

const STARTS: [Start; 2] = [("convolutional", convolutional), ("fully connected", fully_connected)];

/// Convolutions with batch norm, the first before a pool, two of them beside a residual connection; the fully connected layer is the output.
fn convolutional() -> Net {
    let mut b = Builder::new([1, 28, 28], 5, &Device::flex());
    let mut x = b.conv("conv1", b.input(), Conv::new(4, 5).stride(2).no_bias());
    x = b.batch_norm("norm1", x);
    x = b.relu("relu1", x);
    let short = b.max_pool("pool1", x, Window::square(2));
    x = b.conv("conv2", short, Conv::new(6, 3).same().no_bias());
    x = b.batch_norm("norm2", x);
    x = b.relu("relu2", x);
    x = b.conv("conv3", x, Conv::new(4, 3).same().no_bias());
    x = b.batch_norm("norm3", x);
    x = b.add("add", &[x, short]);
    x = b.relu("relu3", x);
    x = b.conv("conv4", x, Conv::new(8, 3).no_bias());
    x = b.batch_norm("norm4", x);
    x = b.relu("relu4", x);
    x = b.flatten("flatten", x);
    b.linear("output", x, 10);
    b.finish().unwrap()
}

/// A narrow LeNet-300-100, whose layers the examples name.
fn fully_connected() -> Net {
    let arch = Arch::named("lenet300").unwrap();
    arch.build(&Wanted { width: 0.2, ..arch.wanted() }, &Device::flex()).unwrap()
}

/// For methods that take no other.
const WIDENING: Start = ("widening", widening);

/// A residual block that puts channels behind its sum.
fn widening() -> Net {
    let mut b = Builder::new([1, 28, 28], 5, &Device::flex());
    let mut x = b.conv("conv1", b.input(), Conv::new(4, 5).stride(4).no_bias());
    x = b.batch_norm("norm1", x);
    let hidden = b.conv("conv2", x, Conv::new(6, 3).same().no_bias());
    let hidden = b.relu("relu2", hidden);
    let [old, new] = [("old", 4), ("new", 2)].map(|(name, filters)| {
        let branch = b.conv(name, hidden, Conv::new(filters, 3).same().no_bias());
        b.batch_norm(&format!("{name}.norm"), branch)
    });
    x = b.add("add", &[old, x]);
    x = b.fixed("wide", &[x, new], layers::Concat);
    x = b.relu("relu3", x);
    x = b.flatten("flatten", x);
    b.linear("output", x, 10);
    b.finish().unwrap()
}

/// The networks that a method takes.
fn starts(entry: &'static Entry) -> Vec<Start> {
    let taken = |starts: &[Start]| starts.iter().copied().filter(|start| accepts(entry, *start).is_ok()).collect::<Vec<_>>();
    let usual = taken(&STARTS);
    if usual.is_empty() { taken(&[WIDENING]) } else { usual }
}

/// Networks that the methods' examples are not made for.
const OTHERS: [Start; 3] = [("grouped", grouped), ("structural", structural), ("quantized", quantized)];

/// A convolution in two groups and one in as many as channels.
fn grouped() -> Net {
    let mut b = Builder::new([1, 28, 28], 5, &Device::flex());
    let mut x = b.conv("conv1", b.input(), Conv::new(4, 5).stride(4).no_bias());
    x = b.batch_norm("norm1", x);
    x = b.relu("relu1", x);
    x = b.conv("conv2", x, Conv::new(8, 3).groups(2));
    x = b.relu("relu2", x);
    x = b.conv("conv3", x, Conv::new(6, 1));
    x = b.relu("relu3", x);
    x = b.conv("conv4", x, Conv::new(6, 3).groups(6).no_bias());
    x = b.batch_norm("norm4", x);
    x = b.relu("relu4", x);
    x = b.flatten("flatten", x);
    b.linear("output", x, 10);
    b.finish().unwrap()
}

/// The fully connected one, its second layer a circulant matrix.
fn structural() -> Net {
    let circulant = serde_json::json!({ "layers": ["fc2"], "init": "random" });
    let circulant: Circulant = serde_json::from_value(circulant).unwrap();
    circulant.run(fully_connected(), &mut Context::new(&Device::flex(), 3, &DATA, &mut Memory::default())).unwrap()
}

/// The convolutional one, its inner layers on grids that follow from their largest weights, reading what is clipped.
fn quantized() -> Net {
    let pact: Pact = serde_json::from_value(serde_json::json!({ "bits": 3, "activations": 4, "train": {} })).unwrap();
    pact.plan(convolutional()).unwrap()
}

impl Case {
    pub(crate) fn start(&self) -> Net {
        (self.make)()
    }

    /// What comes out, from the state that the first call keeps.
    fn run(&self) -> Result<(Net, Storage)> {
        let afresh = || match self.run_on(self.start()) {
            Ok((net, storage)) => Ok((net.to_state(), storage)),
            Err(error) => Err(error.to_string()),
        };
        let (state, storage) = self.done.get_or_init(afresh).clone().map_err(Error::Invalid)?;
        Ok((Net::from_state(&state, &Device::flex())?, storage))
    }

    /// The state and the curve that come out of two epochs of each training, in a process whose generator has drawn before.
    fn trained(&self, host: &mut Torn, drawn: u64) -> Result<(Vec<u8>, Vec<[f64; 3]>)> {
        let mut settings = example(self.entry);
        if settings.get("tune").is_none() {
            settings["tune"] = serde_json::json!({ "batch": 40 });
        }
        let twice = |mut settings| {
            self.entry.recipes(&mut settings, &mut |recipe| recipe.epochs = 2);
            let mut pass = (self.entry.parse)(settings, METHODS)?;
            pass.shorten();
            Ok::<_, serde_json::Error>(pass)
        };
        let pass = twice(settings).or_else(|_| twice(example(self.entry))).unwrap();
        briquette_core::chance::seed(drawn);
        let mut cx = Context::new(&Device::flex(), 3, &DATA, host);
        cx.distillations = METHODS.distillations();
        let net = pass.run(self.start(), &mut cx)?;
        Ok((net.to_state(), cx.curve.iter().map(|epoch| [epoch.lr, epoch.train_loss, epoch.valid_accuracy]).collect()))
    }

    /// A file that is read has to be there; one that is written replaces it.
    pub(crate) fn files(&self, net: &Net) -> Result<Memory> {
        let mut host = Memory { before: Some(net.deep_clone()), ..Memory::default() };
        if let Some(name) = example(self.entry)["file"].as_str() {
            host.files.insert(name.into(), net.to_model(Storage::default())?.to_bytes()?);
        }
        Ok(host)
    }

    fn run_on(&self, net: Net) -> Result<(Net, Storage)> {
        let mut host = self.files(&net)?;
        let mut cx = Context::new(&Device::flex(), 3, &DATA, &mut host);
        cx.distillations = METHODS.distillations();
        let net = pass(self.entry).run(net, &mut cx)?;
        Ok((net, cx.storage))
    }
}

pub(crate) fn example(entry: &Entry) -> serde_json::Value {
    let table: toml::Table = entry.example.parse().unwrap();
    serde_json::to_value(table).unwrap()
}

fn pass(entry: &'static Entry) -> Box<dyn Pass> {
    entry.read(example(entry), METHODS, true).unwrap().pass
}

fn accepts(entry: &'static Entry, (name, make): Start) -> std::result::Result<(), String> {
    pass(entry).plan(make()).map(drop).map_err(|error| format!("{name}: {error}"))
}

/// The text of the file that holds the method.
pub(crate) fn source(entry: &Entry) -> Option<String> {
    file(&[entry.home], &entry.name.replace('-', "_"))
}

/// The text of the first file of this name in these crates, in whatever folder.
pub(crate) fn file(homes: &[&str], name: &str) -> Option<String> {
    fn within(folder: &Path, name: &str) -> Option<String> {
        let entries: Vec<_> = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        let here = || std::fs::read_to_string(folder.join(name)).ok();
        here().or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|folder| within(folder, name)))
    }
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    homes.iter().find_map(|home| within(&crates.join(home).join("src"), &format!("{name}.rs")))
}

fn values(net: &Net) -> Vec<Vec<u32>> {
    let bits = |stored: Stored| stored.values().iter().map(|v| v.to_bits()).collect();
    net.nodes.iter().flat_map(Node::parameters).map(bits).collect()
}

pub(crate) fn ensure(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Invalid(otherwise.into())) }
}

/// Checks all methods and tells all faults, panics among them, with the methods' names.
pub(crate) fn every_method(check: impl Fn(&'static Entry) -> Result<()>) {
    let faults: Vec<String> = methods().into_iter().filter_map(|entry| fault(entry.name, || check(entry))).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Checks all methods on all networks that they take and tells all faults.
pub(crate) fn every_case(check: impl Fn(&Case) -> Result<()>) {
    let name = |case: &Case| format!("{} on the {} network", case.entry.name, case.on);
    let faults: Vec<String> = CASES.iter().filter_map(|case| fault(&name(case), || check(case))).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn fault(name: &str, check: impl FnOnce() -> Result<()>) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(check)) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{name}: {error}")),
        Err(_) => Some(format!("{name}: panics, see above")),
    }
}
