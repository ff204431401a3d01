//! Readers of files from outside, each as a function of bytes that must come back whatever they are, and what to begin with.
//!
//! `fuzz/readers.rs` hands them to libFuzzer, `tests/readers.rs` replays seeds and finds as an ordinary test.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use briquette_core::builder::{Builder, Conv};
use briquette_core::context::{Context, Data, Memory};
use briquette_core::net::Net;
use briquette_core::stored::Storage;
use briquette_core::training::{Extras, Recipe, fit};
use briquette_data::Dataset;
use briquette_runner::config::Config;
use briquette_runtime::{
    Activation, Coded, Coder, Engine, Grid, Layer, Model, Node, Padding, Permission, Places, Product, Shared, Sizes, Stage,
    StepGradient, Structure, ValueFormat, Window, layers,
};
use burn::tensor::Device;

/// A reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A container, as far as a small engine and a small network.
    Container,
    /// A PyTorch checkpoint.
    Checkpoint,
    /// A safetensors file, as far as a network of its weights.
    Safetensors,
    /// IDX files of images and of labels.
    Idx,
    /// Records of CIFAR.
    Cifar,
    /// A tar archive of images.
    Shards,
    /// A config and what `--set` changes in it.
    Config,
    /// A network as a run keeps it between its passes.
    State,
}

/// All of them.
pub(crate) const TARGETS: [Target; 8] = [
    Target::Container,
    Target::Checkpoint,
    Target::Safetensors,
    Target::Idx,
    Target::Cifar,
    Target::Shards,
    Target::Config,
    Target::State,
];

impl Target {
    /// Its name, which is also that of its folder in `fuzz/corpus`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Target::Container => "container",
            Target::Checkpoint => "checkpoint",
            Target::Safetensors => "safetensors",
            Target::Idx => "idx",
            Target::Cifar => "cifar",
            Target::Shards => "shards",
            Target::Config => "config",
            Target::State => "state",
        }
    }

    /// The target of a name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name() == name)
    }

    /// Reads the bytes.
    ///
    /// # Panics
    /// Only where there is a fault to be mended.
    pub(crate) fn run(self, bytes: &[u8]) {
        match self {
            Target::Container => container(bytes),
            Target::Checkpoint => checkpoint(bytes, "pt"),
            Target::Safetensors => checkpoint(bytes, "safetensors"),
            Target::Idx => idx(bytes),
            Target::Cifar => cifar(bytes),
            Target::Shards => shards(bytes),
            Target::Config => config(bytes),
            Target::State => state(bytes),
        }
    }

    /// Small files that are right, or nearly so; those of PyTorch lie in `fuzz/corpus`, for nothing here writes them.
    pub(crate) fn seeds(self) -> Vec<Vec<u8>> {
        match self {
            Target::Container => containers(),
            Target::Checkpoint => Vec::new(),
            Target::Safetensors => vec![plain_safetensors()],
            Target::Idx => idx_files(),
            Target::Cifar => vec![[vec![0, 1], vec![7; 3 * 1024]].concat(), [vec![1, 2, 1], vec![9; 3 * 1024]].concat()],
            Target::Shards => archives(),
            Target::Config => configs(),
            Target::State => states(),
        }
    }
}

/// Reads a container twice: as it is, and with its checksums repaired, as a forger would.
fn container(bytes: &[u8]) {
    let mut forged = bytes.to_vec();
    repair(&mut forged);
    for bytes in [bytes, &forged] {
        let faults = Model::verify(bytes);
        let Ok(model) = Model::from_bytes(bytes) else {
            assert!(!faults.is_empty(), "unreadable, yet sound");
            continue;
        };
        // What was read can be written, and is the same when it is read again.
        let again = model.to_bytes().expect("what was read is within the limits");
        assert!(Model::from_bytes(&again).is_ok_and(|model| model.to_bytes().is_ok_and(|bytes| bytes == again)));
        // A run reads its network from a container without asking first whether that is sound.
        if values(&model) <= SMALL {
            assert!(Net::from_model(&model, &Device::flex()).is_err() || faults.is_empty(), "a network of {faults:?}");
        }
        let (Ok(shapes), Ok(())) = (model.check(), model.finite()) else {
            assert!(!faults.is_empty(), "it does not hold together or is not finite, yet is sound");
            continue;
        };
        assert_eq!(faults, Vec::<String>::new());
        run(&model, &shapes);
    }
}

/// Most values of all tensors and maps of a network that is run.
const SMALL: usize = 1 << 16;

/// Values of all tensors of a model.
fn values(model: &Model) -> usize {
    model.nodes.iter().map(values_of).sum()
}

fn values_of(node: &Node) -> usize {
    node.tensors.iter().map(|(_, coded)| coded.shape().iter().product::<usize>()).sum()
}

/// Makes an engine of a sound model and runs it, and the network that trains, if that takes no time.
fn run(model: &Model, shapes: &[Vec<usize>]) {
    let maps = shapes.iter().map(|shape| shape.iter().product::<usize>()).sum::<usize>();
    if values(model) + maps > SMALL {
        return;
    }
    let macs = |(node, shape): (&Node, &Vec<usize>)| node.layer.macs(values_of(node), shape);
    let windows = |(node, shape): (&Node, &Vec<usize>)| {
        if let Layer::MaxPool(layers::MaxPool { window }) | Layer::AvgPool(layers::AvgPool { window, .. }) = &node.layer {
            (window.kernel[0] * window.kernel[1] * shape.iter().product::<usize>()) as u64
        } else if let Layer::Structured(layers::Structured { structure }) = &node.layer {
            structure.count() as u64 * structure.features()[0] as u64
        } else {
            0
        }
    };
    let nodes = || model.nodes.iter().zip(shapes);
    if nodes().map(macs).sum::<u64>() + nodes().map(windows).sum::<u64>() > 1 << 22 {
        return;
    }
    let engine = Engine::new(model, 1).expect("the model is sound");
    let batch = 2;
    let images: Vec<f32> = (0..batch * shapes[0].iter().product::<usize>()).map(|i| (i % 7) as f32 / 7.0).collect();
    let output = engine.run(&images, batch).expect("the input has the engine's shape");
    assert_eq!(output.len(), batch * engine.output_shape().iter().product::<usize>());
    if let Ok(net) = Net::from_model(model, &Device::flex()) {
        let shape = net.input_shape();
        let data = burn::tensor::TensorData::new(images, [batch, shape[0], shape[1], shape[2]]);
        let logits = net.forward(burn::tensor::Tensor::from_data(data, &Device::flex()));
        assert_eq!(logits.dims()[0] * logits.dims()[1], output.len());
    }
}

/// Writes the right checksum behind each section.
fn repair(bytes: &mut [u8]) {
    let mut at = 5;
    while at < bytes.len() {
        let (start, mut length) = (at, 0_u64);
        for shift in (0..63).step_by(7) {
            let Some(byte) = bytes.get(at) else { return };
            length |= u64::from(byte & 0x7f) << shift;
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let Some(end) = usize::try_from(length).ok().and_then(|length| at.checked_add(length)) else { return };
        let Some(body) = bytes.get(start..end) else { return };
        let checksum = crc32fast::hash(body).to_le_bytes();
        let Some(place) = bytes.get_mut(end..end.saturating_add(4)) else { return };
        place.copy_from_slice(&checksum);
        at = end + 4;
    }
}

/// Reads a checkpoint and takes its weights into a network.
fn checkpoint(bytes: &[u8], ending: &str) {
    let mut file = tempfile::Builder::new().suffix(&format!(".{ending}")).tempfile_in(memory()).expect("a temporary file");
    file.write_all(bytes).expect("a temporary file");
    if let Ok(checkpoint) = briquette_interchange::read(file.path()) {
        let mut b = Builder::new([1, 1, 2], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("fc", x, 3);
        let net = b.finish().expect("a small network");
        if let Ok(net) = briquette_interchange::assign(net, &checkpoint, None) {
            let _ = net.to_model(Storage::default()).and_then(|model| Ok(model.to_bytes()?));
        }
    }
}

/// Where files lie in memory, if there is such a place.
fn memory() -> std::path::PathBuf {
    Some(Path::new("/dev/shm")).filter(|path| path.is_dir()).map_or_else(std::env::temp_dir, Path::to_path_buf)
}

fn plain_safetensors() -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView};

    let bytes = |count: u8| (0..count).map(|i| if i % 4 == 3 { 63 } else { i }).collect::<Vec<u8>>();
    let (weight, bias, counter) = (bytes(24), bytes(6), bytes(8));
    let view = |kind, shape: &[usize], bytes| TensorView::new(kind, shape.to_vec(), bytes).expect("a tensor");
    let tensors: BTreeMap<&str, TensorView<'_>> = [
        ("fc.weight", view(Dtype::F32, &[3, 2], &weight)),
        ("fc.bias", view(Dtype::F16, &[3], &bias)),
        ("num_batches_tracked", view(Dtype::I64, &[], &counter)),
    ]
    .into();
    safetensors::serialize(tensors, None).expect("tensors")
}

/// The first two bytes tell how many are of the labels; the images follow.
fn idx(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (labels, images) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    if let Ok(set) = Dataset::from_idx("fuzz", 10, images, labels) {
        used(&set);
    }
}

fn idx_files() -> Vec<Vec<u8>> {
    let labels = [&[0, 0, 8, 1, 0, 0, 0, 2][..], &[3, 9]].concat();
    let images = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3][..], &[40; 12]].concat();
    // The same images gzipped, stored without compression.
    let length = (images.len() as u16).to_le_bytes();
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1, length[0], length[1], !length[0], !length[1]];
    let tail = [crc32fast::hash(&images).to_le_bytes(), (images.len() as u32).to_le_bytes()].concat();
    let packed = [&head[..], &images, &tail].concat();
    [images, packed].map(|images| [&(labels.len() as u16).to_le_bytes()[..], &labels, &images].concat()).into()
}

/// The first byte tells how many lead a record.
fn cifar(bytes: &[u8]) {
    let Some((lead, records)) = bytes.split_first() else { return };
    if let Ok(set) = Dataset::from_cifar("fuzz", 10, usize::from(*lead) + 1, records) {
        used(&set);
    }
}

/// Reads an archive as both splits of a set, twice: as it is, and with the checksums of its headers repaired.
fn shards(bytes: &[u8]) {
    let mut forged = bytes.to_vec();
    for block in forged.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        mark(block);
    }
    for bytes in [bytes, &forged] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for split in ["train", "test"] {
            std::fs::create_dir(folder.path().join(split)).expect("a folder");
            std::fs::write(folder.path().join(split).join("0.tar"), bytes).expect("an archive");
        }
        let (name, at) = (format!("shards:{}", folder.path().display()), briquette_data::Locations::from_env(None));
        let planned = briquette_data::outline(&name, &at);
        if let Ok(set) = briquette_data::open(&name, &at) {
            assert_eq!(planned.expect("what is read can be planned"), set.outline());
            // Whether an image can be decoded is seen when it is read.
            let _ = set.normalization();
            assert!(briquette_data::Loader::ordered(&set.train, 3).count() <= set.train.len().div_ceil(3));
        }
    }
}

/// Writes a header's checksum: the sum of its bytes, those of the sum itself taken for blanks.
fn mark(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Archives of class folders and of keys, with an extended header and a long name.
fn archives() -> Vec<Vec<u8>> {
    let member = |name: &str, kind: u8, content: &[u8]| {
        let mut bytes = vec![0; 512];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        bytes[156] = kind;
        bytes[257..265].copy_from_slice(b"ustar\x0000");
        mark(&mut bytes);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [&kind[..], data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc32fast::hash(&body).to_be_bytes()].concat()
    };
    // One grey pixel, stored without compression.
    let png = [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0]),
        chunk(b"IDAT", &[0x78, 1, 1, 2, 0, 0xfd, 0xff, 0, 77, 0, 79, 0, 78]),
        chunk(b"IEND", &[]),
    ]
    .concat();
    let folders = [
        member("ant/", b'5', b""),
        member("ant/0.png", b'0', &png),
        member("pax", b'x', b"18 path=cat/a.png\n"),
        member("short", b'0', &png),
        member("././@LongLink", b'L', b"cat/b.png\0"),
        member("cat", b'0', &png),
    ];
    let keys = [member("7.png", b'0', &png), member("7.cls", b'0', b"0\n"), member("7.json", b'0', b"{}")];
    [folders.concat(), keys.concat()].map(|members| [members, vec![0; 1024]].concat()).into()
}

/// What is done with any set.
fn used(set: &Dataset) {
    let (train, valid) = set.split(set.len() / 3, 1);
    assert_eq!(train.len() + valid.len(), set.len());
    assert_eq!(set.class_counts().iter().sum::<usize>(), set.len());
    assert!(set.statistics().expect("memory").0.iter().all(|mean| (0.0..=1.0).contains(mean)));
    for batch in briquette_data::Loader::ordered(set, 3) {
        assert!(batch.expect("memory").labels.iter().all(|label| usize::from(*label) < set.classes));
    }
}

/// What follows a zero byte changes the text before it, as `--set` does.
fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0');
    let text = parts.next().unwrap_or_default();
    let sets: Vec<String> = parts.map(str::to_string).collect();
    for smoke in [false, true] {
        if let Ok(config) = Config::parse(Path::new("fuzz.toml"), text, &sets, smoke, None) {
            assert_eq!(config.hash().len(), 64);
            // What is in force is a config of the same experiment.
            let again = Config::parse(Path::new("fuzz.toml"), &config.text, &[], smoke, None).expect("it was read before");
            assert_eq!((again.text, again.passes.len()), (config.text, config.passes.len()));
        }
    }
}

/// Every method with its example, and overrides.
fn configs() -> Vec<Vec<u8>> {
    let head = "# expected\nmodel = { arch = \"lenet5\", width = 0.5 }\ndata = { name = \"glyphs\", train = 100 }\nseed = 3\n";
    let of = |name: &str, example: &str| format!("{head}[[pass]]\nmethod = \"{name}\"\n{example}\n").into_bytes();
    let mut texts: Vec<Vec<u8>> = briquette_runner::methods().iter().map(|entry| of(entry.name, entry.example)).collect();
    texts.push(
        format!("{head}[[pass]]\nmethod = \"train\"\nepochs = 3\0pass.0.epochs=1\0seed=9\0model=\"lenet300\"").into_bytes(),
    );
    texts
}

/// Reads a state twice: as it is, and with its checksum repaired.
fn state(bytes: &[u8]) {
    let mut forged = bytes.to_vec();
    if let Some((body, checksum)) = forged.split_last_chunk_mut::<4>() {
        *checksum = crc32fast::hash(body).to_le_bytes();
    }
    for bytes in [bytes, &forged] {
        if let Ok(net) = Net::from_state(bytes, &Device::flex()) {
            let again = net.to_state();
            assert!(Net::from_state(&again, &Device::flex()).is_ok_and(|net| net.to_state() == again));
        }
        let mut host = Memory { states: [(STATE.to_string(), bytes.to_vec())].into(), ..Memory::default() };
        let _ = train(&mut host);
    }
}

/// Where a training keeps its state.
const STATE: &str = "training-0";

/// One epoch of a small network, or what is left of it.
fn train(host: &mut Memory) -> briquette_core::Result<Net> {
    let mut b = Builder::new([1, 3, 3], 1, &Device::flex());
    let x = b.conv("conv", b.input(), Conv::new(2, 3).same());
    let x = b.batch_norm("norm", x);
    let x = b.flatten("flatten", x);
    b.linear("fc", x, 2);
    let images = Dataset::from_memory("dots", [1, 3, 3], 2, (0..36).map(|i| i * 3 % 251).collect(), vec![0, 1, 0, 1]);
    let images = images.expect("four images");
    let data = Data { train: images.clone(), valid: images.clone(), test: images };
    let recipe = Recipe { batch: 2, ..Recipe::default() };
    fit(b.finish()?, &recipe, Extras::default(), &mut Context::new(&Device::flex(), 1, &data, host))
}

fn saved_state() -> Vec<u8> {
    let mut host = Memory::default();
    train(&mut host).expect("a small network trains");
    host.states.remove(STATE).expect("a training keeps its state")
}

/// The networks of the containers, and a training's.
fn states() -> Vec<Vec<u8>> {
    let net = |bytes: &Vec<u8>| Net::from_model(&Model::from_bytes(bytes).ok()?, &Device::flex()).ok();
    containers().iter().filter_map(net).map(|net| net.to_state()).chain([saved_state()]).collect()
}

/// Containers with every layer and every way to store a tensor.
fn containers() -> Vec<Vec<u8>> {
    let plain = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i * 7 % 11) as f32 * 0.25 + 0.5).collect();
        Coded::encode(shape, &values, None, &Permission::default()).expect("a tensor")
    };
    let coded = |shape: &[usize], values: ValueFormat, coder: Coder| {
        let mask: Vec<bool> = (0..shape.iter().product()).map(|i: usize| i.is_multiple_of(3)).collect();
        let weights: Vec<f32> = (0..mask.len()).map(|i| (i * 7 % 5) as f32 * 0.5 - 1.0).collect();
        Coded::encode(shape, &weights, Some(&mask), &Permission { values, coder }).expect("a tensor")
    };
    let node = |name: &str, inputs: &[usize], layer: Layer, tensors: Vec<(&str, Coded)>| Node {
        name: name.into(),
        inputs: inputs.to_vec(),
        layer,
        tensors: tensors.into_iter().map(|(name, coded)| (name.to_string(), coded)).collect(),
    };
    let conv = |groups: usize| {
        Layer::Conv2d(layers::Conv2d { stride: [1, 2], padding: Padding::both([1, 0]), dilation: [1, 1], groups })
    };
    let window = Window { padding: Padding([[1, 0], [0, 1]]), ceil: true, ..Window::new([2, 2], [1, 2]) };
    let mut maps = vec![node("x", &[], Layer::Input(layers::Input { shape: vec![2, 5, 5] }), vec![])];
    maps.push(node("n", &[0], Layer::Normalize(layers::Normalize { mean: vec![0.5; 2], std: vec![0.25; 2] }), vec![]));
    let weight = coded(&[4, 2, 3, 2], ValueFormat::Codebook, Coder::Entropy);
    maps.push(node("c", &[1], conv(1), vec![("weight", weight), ("bias", plain(&[4]))]));
    let norm = ["gamma", "beta", "mean", "var"].map(|name| (name, plain(&[4])));
    maps.push(node("b", &[2], Layer::BatchNorm(layers::BatchNorm { epsilon: 1e-5 }), norm.into()));
    maps.push(node(
        "l",
        &[3],
        Layer::LocalResponseNorm(layers::LocalResponseNorm { size: 3, alpha: 0.1, beta: 0.75, k: 1.0 }),
        vec![],
    ));
    maps.push(node("p", &[4], Layer::MaxPool(layers::MaxPool { window }), vec![]));
    maps.push(node("a", &[4], Layer::AvgPool(layers::AvgPool { window, count_padding: true }), vec![]));
    maps.push(node("s", &[5, 6], Layer::Add(layers::Add), vec![]));
    maps.push(node("cat", &[7, 5], Layer::Concat(layers::Concat), vec![]));
    maps.push(node("slice", &[8], Layer::ChannelSlice(layers::ChannelSlice { start: 1, len: 4 }), vec![]));
    maps.push(node("short", &[9], Layer::PadShortcut(layers::PadShortcut { stride: 2, before: 1, after: 1 }), vec![]));
    maps.push(node("mag", &[10], Layer::MeanMagnitude(layers::MeanMagnitude), vec![]));
    maps.push(node("mul", &[10, 11], Layer::Multiply(layers::Multiply), vec![]));
    maps.push(node("ad", &[12], Layer::AdaptiveAvgPool(layers::AdaptiveAvgPool { output: [2, 3] }), vec![]));
    maps.push(node("g", &[13], Layer::GlobalAvgPool(layers::GlobalAvgPool), vec![]));
    maps.push(node("d", &[14], Layer::Dropout(layers::Dropout { p: 0.5 }), vec![]));
    let weight = coded(&[3, 6], ValueFormat::F16, Coder::Huffman);
    maps.push(node(
        "fc",
        &[15],
        Layer::Linear(layers::Linear),
        vec![("weight", weight), ("bias", coded(&[3], ValueFormat::F32, Coder::Packed))],
    ));
    maps.push(node("sm", &[16], Layer::Softmax(layers::Softmax), vec![]));

    let grid = Grid { levels: 5, axis: Some(0), steps: vec![0.25; 4], zeros: vec![2.0, 1.0, 0.0, 4.0] };
    let channel = grid.channel_of(&[4, 6]);
    let values: Vec<f32> = (0..24).map(|i| grid.value(channel(i), (i * 7 % 5) as u16)).collect();
    let on_grid =
        Coded::on_grid(&[4, 6], &values, Some(&values.iter().map(|w| *w != 0.0).collect::<Vec<_>>()), &grid, Coder::Entropy)
            .expect("a tensor");
    let hash = Shared { places: Places::Hash { seed: 7 }, values: vec![0.5, -0.25, 1.5] };
    let values = hash.expand(&[6, 4]);
    let hashed = Coded::shared(&[6, 4], &values, None, &hash, &Permission::default()).expect("a tensor");
    let stage = Stage { centroids: (0..12).map(|i| i as f32 * 0.25).collect(), indices: (0..10).map(|i| i % 2).collect() };
    let product = Product { width: 4, columns: 6, taps: 1, stages: vec![stage] };
    let pieces = Coded::product(&[5, 6], &product.values(), None, &product, &Permission::default()).expect("a tensor");
    let quantize = Layer::Quantize(layers::Quantize { levels: 4, zero: 0.0, train: StepGradient::Learned });
    let mut vectors = vec![
        node("x", &[], Layer::Input(layers::Input { shape: vec![2, 1, 3] }), vec![]),
        node("f", &[0], Layer::Flatten(layers::Flatten), vec![]),
    ];
    vectors.push(node("q", &[1], quantize, vec![("step", plain(&[1]))]));
    vectors.push(node("fc1", &[2], Layer::Linear(layers::Linear), vec![("weight", on_grid)]));
    vectors.push(node("fc2", &[3], Layer::Linear(layers::Linear), vec![("weight", hashed)]));
    vectors.push(node("fc3", &[4], Layer::Linear(layers::Linear), vec![("weight", pieces)]));
    let [rows, columns, ranks] = [&[2, 1][..], &[1, 2], &[2]].map(|sizes| Sizes::new(sizes).expect("within bounds"));
    let structures = [
        Structure::Circulant { inputs: 5, outputs: 4, seed: 1 },
        Structure::Fastfood { inputs: 4, outputs: 5, seed: 2 },
        Structure::Acdc { inputs: 5, outputs: 6, layers: 2, seed: 3 },
        Structure::ToeplitzLike { inputs: 6, outputs: 6, rank: 1 },
        Structure::TwoLevelToeplitz { inputs: 6, outputs: 4, columns: 2 },
        Structure::Kronecker { inputs: 4, outputs: 4, left: [2, 2], right: [2, 2], terms: 1 },
        Structure::Butterfly { inputs: 4, outputs: 2 },
        Structure::TensorTrain { inputs: 2, outputs: 2, rows, columns, ranks },
    ];
    for (structure, name) in structures.into_iter().zip(["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"]) {
        let tensors = structure.parameters().into_iter().map(|p| (p.name, plain(&p.shape))).collect();
        vectors.push(node(name, &[vectors.len() - 1], Layer::Structured(layers::Structured { structure }), tensors));
    }
    let activations = [
        Activation::Relu,
        Activation::LeakyRelu { slope: 0.1 },
        Activation::Relu6,
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::Gelu,
        Activation::Silu,
    ];
    for (activation, name) in activations.into_iter().zip(["a1", "a2", "a3", "a4", "a5", "a6", "a7"]) {
        vectors.push(node(name, &[vectors.len() - 1], Layer::Activation(activation), vec![]));
    }
    vectors.push(node("cc", &[vectors.len() - 1, vectors.len() - 2], Layer::Concat(layers::Concat), vec![]));

    let mut grouped = vec![node("x", &[], Layer::Input(layers::Input { shape: vec![4, 4, 4] }), vec![])];
    let signs = |shape: &[usize]| {
        let grid = Grid::uniform(2, 1.0, 0.5);
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| if i.is_multiple_of(3) { 0.5 } else { -0.5 }).collect();
        Coded::on_grid(shape, &values, None, &grid, Coder::Huffman).expect("a tensor")
    };
    let sign = Layer::Quantize(layers::Quantize { levels: 2, zero: 0.5, train: StepGradient::Fixed });
    grouped.push(node("q", &[0], sign, vec![("step", plain(&[1]))]));
    grouped.push(node("c", &[1], conv(2), vec![("weight", signs(&[4, 2, 2, 2]))]));
    grouped.push(node("dw", &[2], conv(4), vec![("weight", plain(&[4, 1, 2, 1]))]));
    let stage = Stage { centroids: (0..8).map(|i| i as f32 * 0.25).collect(), indices: (0..8).map(|i| i / 3 % 2).collect() };
    let product = Product { width: 2, columns: 4, taps: 2, stages: vec![stage] };
    let by_taps = Coded::product(&[2, 4, 2, 1], &product.values(), None, &product, &Permission::default()).expect("a tensor");
    let plain_conv = Layer::Conv2d(layers::Conv2d { stride: [1, 1], padding: Padding::NONE, dilation: [1, 1], groups: 1 });
    grouped.push(node("pc", &[3], plain_conv, vec![("weight", by_taps)]));
    let pool = layers::ChannelPool { grid: [1, 2], window: [1, 2], reduction: layers::Reduction::Mean };
    grouped.push(node("cp", &[4], Layer::ChannelPool(pool), vec![]));
    grouped.push(node("af", &[5], Layer::Affine(layers::Affine), vec![("scale", plain(&[1])), ("shift", plain(&[1]))]));
    let sampling = layers::SpatialSampling { stride: 1, grid: 2 };
    grouped.push(node("sp", &[6], Layer::SpatialSampling(sampling), vec![]));
    grouped.push(node("g", &[7], Layer::GlobalAvgPool(layers::GlobalAvgPool), vec![]));

    let shared = |places: Places, shape: &[usize]| {
        let values = vec![0.5; places.count(shape).expect("it fits").expect("a number of values")];
        let shared = Shared { places, values };
        Coded::shared(shape, &shared.expand(shape), None, &shared, &Permission::default()).expect("a tensor")
    };
    let in_groups = |groups| Layer::Conv2d(layers::Conv2d { stride: [1, 1], padding: Padding::NONE, dilation: [1, 1], groups });
    let join = layers::Regroup { maps: 4, apart: true, back: false };
    let norm = ["gamma", "beta", "mean", "var"].map(|name| (name, plain(&[1]))).to_vec();
    let views = vec![
        node("x", &[], Layer::Input(layers::Input { shape: vec![1, 4, 4] }), vec![]),
        node("cs", &[0], Layer::Cyclic(layers::Cyclic::Slice), vec![]),
        node("c", &[1], in_groups(4), vec![("weight", shared(Places::Tiles { times: 4 }, &[4, 1, 3, 3]))]),
        node("j", &[2], Layer::Regroup(join), vec![]),
        node("n", &[3], Layer::BatchNorm(layers::BatchNorm { epsilon: 1e-5 }), norm),
        node("b", &[4], Layer::Regroup(layers::Regroup { back: true, ..join }), vec![]),
        node("cr", &[5], Layer::Cyclic(layers::Cyclic::Roll), vec![]),
        node("cp", &[6], Layer::Cyclic(layers::Cyclic::Rms), vec![]),
        node("t", &[7], in_groups(1), vec![("weight", shared(Places::Turns { mirrored: false, grouped: true }, &[4, 4, 2, 2]))]),
        node("f", &[8], Layer::Flatten(layers::Flatten), vec![]),
    ];

    let meta: BTreeMap<String, String> = [("classes".to_string(), "a b".to_string())].into();
    [maps, vectors, grouped, views].map(|nodes| Model { nodes, meta: meta.clone() }.to_bytes().expect("a container")).into()
}
