//! What the methods share that put a block of smaller convolutions in the place of one: which layers they replace, how the block's weights
//! begin, and the training afterwards. A method adds the block, and where it knows one, its least-squares start.

use briquette_core::Layer;
use briquette_core::builder::{At, Builder, Conv};
use briquette_core::context::Context;
use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use briquette_runtime::activations::MAX_ACTIVATIONS;
use briquette_runtime::layers;
use burn::tensor::Device;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::chosen::{Init, chosen, finite};

/// A method: it replaces convolutions of more than one pixel, in one group, by blocks of one form. A layer that `layers` names is replaced
/// whatever the block costs; of the others those are that have fewer parameters and no more multiply-accumulates as a block. Nodes of a block
/// bear the layer's name with an ending; its last one has the layer's readers, and batch norms and activations behind the layer stay.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rewriting<F> {
    /// Convolutions, by name; all that fit without it.
    #[serde(default)]
    layers: Layers,
    /// Of these, the layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Where the weights begin.
    #[serde(default)]
    init: Init,
    /// Training afterwards.
    tune: Option<Recipe>,
    /// What only this form has to set.
    #[serde(flatten)]
    form: F,
}

/// A convolution that a block replaces.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// Its geometry.
    pub conv: Conv,
    /// Channels that it reads.
    pub channels: usize,
    /// Whether a batch norm is all that reads it.
    pub normed: bool,
    /// Where the weights of its block begin.
    pub init: Init,
}

/// What a method says of its block.
pub trait Compact: std::fmt::Debug + Send + DeserializeOwned + 'static {
    /// [`Method::NAME`].
    const NAME: &'static str;
    /// [`Method::PAPER`].
    const PAPER: &'static str;
    /// [`Method::EXAMPLE`].
    const EXAMPLE: &'static str;

    /// Refuses settings without sense.
    ///
    /// # Errors
    /// Names the setting.
    fn check(&self, init: Init) -> Result<()>;

    /// The most maps between two nodes of the block.
    ///
    /// # Errors
    /// Why the convolution has no such block.
    fn width(&self, site: &Site) -> std::result::Result<usize, String>;

    /// Appends the block of the layer `name`; its last node is the last one built.
    fn build(&self, b: &mut Builder, name: &str, at: At, site: &Site) -> At;

    /// The weights of the block's convolutions, in order, that come near to `weight` `[filters, channels, height, width]`. `block` has been
    /// drawn at random.
    fn fit(&self, site: &Site, weight: &[f32], block: &[Node]) -> Vec<Vec<f32>>;

    /// [`Pass::shorten`].
    fn shorten(&mut self) {}
}

impl<F: Compact> Method for Rewriting<F> {
    const NAME: &'static str = F::NAME;
    const FAMILY: &'static str = "compact filters";
    const PAPER: &'static str = F::PAPER;
    const EXAMPLE: &'static str = F::EXAMPLE;
}

impl<F: Compact> Pass for Rewriting<F> {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.each(net, cx.seed, self.init)?;
        tune(net, self.tune.as_ref(), cx)
    }

    /// Weights are drawn when somebody reads them.
    fn plan(&self, net: Net) -> Result<Net> {
        self.each(net, 0, Init::Random)
    }

    fn shorten(&mut self) {
        self.form.shorten();
    }
}

impl<F: Compact> Rewriting<F> {
    /// Replaces the layers by blocks whose weights have the values of `start`; their structure follows from the settings.
    fn each(&self, mut net: Net, seed: u64, start: Init) -> Result<Net> {
        self.form.check(self.init)?;
        self.tune.iter().try_for_each(Recipe::check)?;
        let (shapes, cost, device) = (net.shapes()?, Cost::of(&net)?, net.device());
        let fit = |index: usize| {
            let node = &net.nodes[index];
            let site = self.site(&net, index)?;
            let block = self.drawn(&node.name, &site, &shapes[node.inputs[0]], seed, &device)?;
            let before = cost.layers.iter().find(|layer| layer.node == index).map_or((0, 0), |layer| (layer.params, layer.macs));
            let after = Cost::of(&block).map(|cost| (cost.params(), cost.macs())).map_err(|error| error.to_string())?;
            let named = self.layers.all_done(&net, |other| other != index, "").is_err();
            if named || (after.0 < before.0 && after.1 <= before.1) {
                return Ok((site, block));
            }
            Err(format!(
                "has {} parameters and {} multiply-accumulates, and would have {} and {}; name it in `layers` if it shall",
                before.0, before.1, after.0, after.1
            ))
        };
        for (name, (site, block)) in chosen(&net, [&self.layers, &self.except], fit)? {
            let index = net.index(&name)?;
            let node = &net.nodes[index];
            let block = inner(block, index, node.inputs[0]);
            let weight = &finite(node)?[0].base;
            let block = match start {
                Init::Fit => fitted(self.form.fit(&site, weight, &block), node, block, &device)?,
                Init::Random => block,
            };
            net = net.replace(index, block)?;
        }
        Ok(net)
    }

    /// The node as a convolution that can become a block, or why it cannot.
    fn site(&self, net: &Net, index: usize) -> std::result::Result<Site, String> {
        let node = &net.nodes[index];
        let (Layer::Conv2d(layers::Conv2d { stride, padding, dilation, groups: 1 }), Op::Conv2d(own)) =
            (node.op.layer(), &node.op)
        else {
            return Err("is no convolution in one group; only such become smaller ones".into());
        };
        let [filters, channels, height, width] = own.weight.lazy_shape().dims::<4>();
        if [height, width] == [1; 2] {
            return Err("is a convolution by one pixel, which no smaller one can replace".into());
        }
        let readers: Vec<&Op> = net.nodes.iter().filter(|node| node.inputs.contains(&index)).map(|node| &node.op).collect();
        let bias = own.bias.is_some();
        Ok(Site {
            conv: Conv { filters, kernel: [height, width], stride, padding, dilation, groups: 1, bias },
            channels,
            normed: matches!(readers[..], [Op::BatchNorm(_)]),
            init: self.init,
        })
    }

    /// A network of the block alone, between an input and a mean.
    fn drawn(&self, name: &str, site: &Site, input: &[usize], seed: u64, device: &Device) -> std::result::Result<Net, String> {
        let &[channels, height, width] = input else { return Err(format!("reads {input:?}, which are no maps")) };
        let (padding, maps) = (site.conv.padding, self.form.width(site)?);
        let pixels = padding.around(0, height).zip(padding.around(1, width)).and_then(|(h, w)| h.checked_mul(w));
        if pixels.and_then(|pixels| pixels.checked_mul(maps)).is_none_or(|held| held > MAX_ACTIVATIONS) {
            return Err(format!(
                "would have {maps} maps inside, which together have more values than the limit of {MAX_ACTIVATIONS}"
            ));
        }
        let mut b = Builder::new([channels, height, width], seed, device);
        let at = b.input();
        let end = self.form.build(&mut b, name, at, site);
        b.global_avg_pool("mean", end);
        b.finish().map_err(|error| error.to_string())
    }
}

/// The nodes between the input of a block and its mean, as they read one another in the place of the node at `index`, which reads `input`.
fn inner(block: Net, index: usize, input: usize) -> Vec<Node> {
    let mut nodes = block.nodes;
    nodes.pop();
    let place = |read: usize| if read == 0 { input } else { index + read - 1 };
    let moved = |node: Node| Node { inputs: node.inputs.iter().map(|&read| place(read)).collect(), ..node };
    nodes.into_iter().skip(1).map(moved).collect()
}

/// The block with these weights of its convolutions. Its last filters, as many as the node has, take the node's bias.
fn fitted(weights: Vec<Vec<f32>>, node: &Node, mut block: Vec<Node>, device: &Device) -> Result<Vec<Node>> {
    let mut bias = node.parameters().into_iter().find(|stored| stored.name == "bias").map_or_else(Vec::new, |bias| bias.base);
    let convolutions = block.iter_mut().filter(|node| node.op.weight_shape().is_some());
    for (node, weight) in convolutions.zip(weights).collect::<Vec<_>>().into_iter().rev() {
        let mut parameters = node.parameters();
        for stored in &mut parameters {
            stored.base = match stored.name {
                "weight" => weight.clone(),
                _ if bias.is_empty() => vec![0.0; stored.base.len()],
                _ => bias.split_off(bias.len().saturating_sub(stored.base.len())),
            };
        }
        *node = node.clone().with(parameters, device)?;
    }
    Ok(block)
}

/// Batch norm and rectifier behind the convolution `name`.
pub(crate) fn normalized(b: &mut Builder, name: &str, at: At) -> At {
    let x = b.batch_norm(&format!("{name}.norm"), at);
    b.relu(&format!("{name}.relu"), x)
}

/// Refuses a least-squares start of what a batch norm and a rectifier take apart.
///
/// # Errors
/// When `norm` goes with [`Init::Fit`].
pub(crate) fn linear(norm: bool, init: Init) -> Result<()> {
    match (norm, init) {
        (true, Init::Fit) => Err(Error::Invalid(
            "`norm` puts a rectifier between the convolutions, for which there is no least-squares start; set init = \"random\""
                .into(),
        )),
        (false, _) | (_, Init::Random) => Ok(()),
    }
}

/// Whether a singular value is none beside the largest.
pub(crate) fn vanishes(value: f64, largest: f64) -> bool {
    value <= f64::from(f32::EPSILON) * largest
}

/// What every block owes, as checks for the methods' own tests.
#[cfg(test)]
pub(crate) mod proof {
    use briquette_core::coding::floats;
    use briquette_core::stored::Storage;
    use briquette_handmade::{outputs, refusal, run, set};
    use briquette_runtime::{Engine, Model};
    use burn::tensor::{Tensor, TensorData};
    use serde_json::{Value, json};

    use super::*;
    use crate::depthwise_separable::DepthwiseSeparable;

    /// A convolution by one pixel of 6 filters, one of 8 filters that keeps the size, and a fully connected layer of 3 outputs.
    pub(crate) fn net(kernel: usize) -> Net {
        let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
        let mut x = b.conv("lift", b.input(), Conv::new(6, 1));
        x = b.relu("relu1", x);
        x = b.conv("mix", x, Conv::new(8, kernel).same());
        x = b.relu("relu2", x);
        x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        b.finish().unwrap()
    }

    /// The convolution `mix` alone, with this kernel unless it is empty.
    pub(crate) fn alone(input: [usize; 3], conv: Conv, kernel: &[f32]) -> Net {
        let mut b = Builder::new(input, 5, &Device::flex());
        let x = b.conv("mix", b.input(), conv);
        b.flatten("flatten", x);
        let net = b.finish().unwrap();
        if kernel.is_empty() { net } else { set(net, "mix", "weight", kernel) }
    }

    /// What the network makes of one image.
    pub(crate) fn output(net: &Net, x: &[f32]) -> Vec<f32> {
        let [c, h, w] = net.input_shape()[..] else { panic!("no image") };
        floats(net.forward(Tensor::from_data(TensorData::new(x.to_vec(), [1, c, h, w]), &Device::flex())))
    }

    pub(crate) fn near(a: &[f32], b: &[f32]) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-5 * (1.0 + b.abs())), "{a:?} and {b:?}");
    }

    pub(crate) fn planned<P: Pass + DeserializeOwned>(net: Net, settings: &Value) -> Net {
        serde_json::from_value::<P>(settings.clone()).unwrap().plan(net).unwrap()
    }

    /// The settings with further ones.
    fn with(settings: &Value, mut more: Value) -> Value {
        let mut all = settings.clone();
        all.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
        all
    }

    /// The network with a replaced layer is the one that was planned, comes back from its container and its state, and runs in the engine to
    /// the same outputs.
    pub(crate) fn holds<P: Pass + DeserializeOwned>(kernel: usize, settings: &Value) {
        let settings = with(settings, json!({ "layers": ["mix"] }));
        let replaced = run::<P>(net(kernel), settings.clone()).unwrap();
        assert!(replaced.index("mix").is_err() && replaced.nodes.iter().any(|node| node.name.starts_with("mix.")));
        let plan = planned::<P>(net(kernel), &settings);
        assert_eq!(Cost::of(&plan).unwrap(), Cost::of(&replaced).unwrap());
        assert_eq!(plan.shapes().unwrap(), replaced.shapes().unwrap());
        let wiring = |net: &Net| net.nodes.iter().map(|node| (node.name.clone(), node.inputs.clone())).collect::<Vec<_>>();
        assert_eq!(wiring(&plan), wiring(&replaced));

        let model = replaced.to_model(Storage::default()).unwrap();
        let model = Model::from_bytes(&model.to_bytes().unwrap()).unwrap();
        assert_eq!(outputs(&Net::from_model(&model, &Device::flex()).unwrap()), outputs(&replaced));
        let state = replaced.to_state();
        assert!(Net::from_state(&state, &Device::flex()).unwrap().to_state() == state);
        let pixels: Vec<f32> = (0..48).map(|i| ((i * i * 31) % 251) as f32 / 255.0).collect();
        let ran = Engine::new(&model, 2).unwrap().run(&pixels, 3).unwrap();
        near(&ran, &pixels.chunks(16).flat_map(|image| output(&replaced, image)).collect::<Vec<_>>());
    }

    /// A training moves every parameter of the block.
    pub(crate) fn learns<P: Pass + DeserializeOwned>(kernel: usize, settings: &Value) {
        let start = with(settings, json!({ "layers": ["mix"] }));
        let train = json!({ "tune": { "epochs": 1, "batch": 20, "lr": 0.01 } });
        let (start, trained) = (run::<P>(net(kernel), start.clone()), run::<P>(net(kernel), with(&start, train)));
        for (before, after) in start.unwrap().nodes.iter().zip(&trained.unwrap().nodes) {
            for (old, new) in before.parameters().iter().zip(after.parameters()) {
                assert!(old.base != new.base, "{}.{}", before.name, old.name);
            }
        }
    }

    /// A training moves every weight of the block that is fitted to zeros, whose output is its bias.
    pub(crate) fn learns_from_zeros<P: Pass + DeserializeOwned>(kernel: usize) {
        let zeros = || {
            let net = set(net(kernel), "mix", "weight", &vec![0.0; 8 * 6 * kernel * kernel]);
            set(net, "mix", "bias", &[0.1; 8])
        };
        let start = run::<P>(zeros(), json!({ "layers": ["mix"] })).unwrap();
        near(&outputs(&start), &outputs(&zeros()));
        let tune = json!({ "epochs": 2, "batch": 20, "lr": 0.01 });
        let trained = run::<P>(zeros(), json!({ "layers": ["mix"], "tune": tune })).unwrap();
        for (before, after) in start.nodes.iter().zip(&trained.nodes).filter(|(node, _)| node.name.starts_with("mix.")) {
            assert!(before.weight().unwrap().base != after.weight().unwrap().base, "{}", before.name);
        }
    }

    /// The layer `mix` on two channels computes as a block what it computed before.
    pub(crate) fn keeps<P: Pass + DeserializeOwned>(conv: Conv, settings: &Value) {
        let mut b = Builder::new([1, 4, 4], 7, &Device::flex());
        let x = b.conv("lift", b.input(), Conv::new(2, 1));
        let x = b.conv("mix", x, conv);
        b.flatten("flatten", x);
        let mut net = b.finish().unwrap();
        if conv.bias {
            let bias: Vec<f32> = (0..conv.filters).map(|i| i as f32 / 4.0 - 1.0).collect();
            net = set(net, "mix", "bias", &bias);
        }
        let block = run::<P>(net.deep_clone(), with(settings, json!({ "layers": ["mix"] }))).unwrap();
        assert!(block.index("mix").is_err());
        near(&outputs(&block), &outputs(&net));
    }

    #[test]
    fn layers_that_cannot_be_replaced_are_refused_by_name_and_left_alone_without() {
        let refuse = |net: Net, layers: Value| refusal::<DepthwiseSeparable>(net, json!({ "layers": layers }));
        assert_eq!(refuse(net(3), json!([])), "`layers` names no layer; leave it out for all");
        assert!(refuse(net(3), json!(["fc9"])).starts_with("unknown layer 'fc9'"));
        assert!(refuse(net(3), json!(["lift", "mix"])).starts_with("node 'lift': is a convolution by one pixel"));
        let grouped = alone([4, 4, 4], Conv::new(8, 3).groups(2), &[]);
        assert!(refuse(grouped, json!(["mix"])).starts_with("node 'mix': is no convolution in one group"));
        let mut masked = net(3);
        let (index, device) = (masked.index("mix").unwrap(), masked.device());
        let node = masked.nodes.remove(index);
        let mut parameters = node.parameters();
        parameters[0].mask((0..6 * 8 * 9).map(|i| i % 2 == 0).collect());
        masked.nodes.insert(index, node.with(parameters, &device).unwrap());
        assert!(
            refuse(masked.deep_clone(), json!(["mix"])).starts_with("node 'mix': is pruned, quantized or shares its weights")
        );
        let none = refusal::<DepthwiseSeparable>(masked, json!({}));
        assert!(none.starts_with("node 'lift': is a convolution by one pixel"), "{none}");
        let broken = set(net(3), "mix", "weight", &[f32::NAN; 6 * 8 * 9]);
        assert!(refuse(broken, json!(["mix"])).starts_with("node 'mix': holds the weight NaN"));
        let unknown = serde_json::from_value::<DepthwiseSeparable>(json!({ "rank": 3 })).unwrap_err();
        assert!(unknown.to_string().contains("unknown field `rank`"), "{unknown}");
        // Without names, or by a wildcard, what fits is taken.
        for settings in [json!({}), json!({ "layers": ["*"] })] {
            let replaced = run::<DepthwiseSeparable>(net(3), settings).unwrap();
            assert!(replaced.index("lift").is_ok() && replaced.index("mix").is_err());
        }
    }

    #[test]
    fn a_block_that_costs_more_takes_a_name() {
        // One filter: 9 weights and then 9 and 1.
        let single = || alone([1, 4, 4], Conv::new(1, 3).no_bias(), &[]);
        let refused = refusal::<DepthwiseSeparable>(single(), json!({}));
        assert_eq!(
            refused,
            "node 'mix': has 9 parameters and 36 multiply-accumulates, and would have 10 and 40; \
             name it in `layers` if it shall"
        );
        let named = run::<DepthwiseSeparable>(single(), json!({ "layers": ["mix"] })).unwrap();
        assert_eq!(Cost::of(&named).unwrap().weights(), 10);
    }
}
