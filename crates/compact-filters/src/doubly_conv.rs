//! Doubly convolutional networks.
//!
//! Filters of trained networks are shifted copies of each other. So a meta filter of side `z'` gives the filters of side `z` that are its
//! windows, `m^2` for `m = z' - z + 1` shifts along each side, in the order `meta m^2 + a m + b` of the window whose upper left corner is
//! at `(a, b)`. They share the meta filter's values ([`Places::Windows`]), which are all that is trained, decays and is stored: `z'^2`
//! instead of `m^2 z^2` for each input channel. With `pool = 1` each window gives a map; with `pool = s` so do the `s` by `s` windows next
//! to each other, the largest of their values at each pixel (`floor(m / s)^2` maps of a meta filter), and with `pool = "all"` all windows
//! of a meta filter. Pooling comes before the bias, which is added to what is left, and before batch norm. A share `plain` of the maps
//! stays with filters of their own.
//!
//! Zhai, Cheng, Zhang, Lu. "Doubly Convolutional Neural Networks". NIPS 2016. arXiv:1610.09716.
//! Differs from the paper, which trains from scratch: `init = "fit"` takes the filters in order as the windows, those of a block that is
//! pooled all as the one filter of its map; the meta filter of least squares has at each place the mean of what the windows that cover it
//! have there. Convolutions stay that are no smaller than the meta filters, as in the paper, and those by one pixel, whose windows share
//! nothing.
//!
//! ```
//! use briquette_compact_filters::doubly_conv::{self, DoublyConv, Metas, Pool};
//! use briquette_core::builder::{Builder, Conv};
//! use briquette_core::pass::Pass;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([3, 8, 8], 1, &Device::flex());
//! let pooled = Metas { meta: 4, pool: Pool::All, plain: 0 };
//! let x = b.input();
//! let x = doubly_conv::conv(&mut b, "conv1", x, Conv::new(16, 3), pooled).unwrap();
//! assert_eq!(b.shape(x), [16, 6, 6]);
//! let x = b.conv("conv2", x, Conv::new(8, 3));
//! b.global_avg_pool("pool", x);
//!
//! let settings = serde_json::json!({ "layers": ["conv2"], "meta": 4, "init": "random" });
//! let method: DoublyConv = serde_json::from_value(settings).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(doubly_conv::values(&net, "conv1"), Some(16 * 3 * 16));
//! assert_eq!(doubly_conv::values(&net, "conv2"), Some(2 * 16 * 16), "instead of 8 * 16 * 9");
//! ```

use briquette_core::Layer;
use briquette_core::builder::{At, Builder, Conv, he_normal};
use briquette_core::coding::{Coding, Source};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::{Layers, Ratio};
use briquette_runtime::layers::{self, ChannelPool, Concat, Reduction};
use briquette_runtime::{MAX_ELEMENTS_TOTAL, Places};
use serde::Deserialize;

use crate::chosen::{Init, chosen, finite};
use crate::expansion::{affine, fixed};

/// Makes the filters of convolutions windows of meta filters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DoublyConv {
    /// Convolutions, by name; without it all that are smaller than the meta filters.
    #[serde(default)]
    layers: Layers,
    /// Of these, the layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Side of the meta filters.
    meta: usize,
    /// What is pooled.
    #[serde(default)]
    pool: Pool,
    /// Share of the maps that have filters of their own.
    #[serde(default = "none")]
    plain: Ratio,
    /// Where the values begin.
    #[serde(default)]
    init: Init,
    /// Training afterwards.
    tune: Option<Recipe>,
}

fn none() -> Ratio {
    Ratio::try_from(0.0).expect("0 is a share")
}

/// Of which windows the largest value is taken: a number of them along each side, or `"all"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Given")]
pub enum Pool {
    /// So many along each side; 1 pools nothing.
    Side(usize),
    /// All of a meta filter.
    All,
}

impl Default for Pool {
    fn default() -> Self {
        Pool::Side(1)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Side(usize),
    Word(String),
}

impl TryFrom<Given> for Pool {
    type Error = String;

    fn try_from(given: Given) -> std::result::Result<Self, String> {
        match given {
            Given::Side(side) => Ok(Pool::Side(side)),
            Given::Word(word) if word == "all" => Ok(Pool::All),
            Given::Word(word) => Err(format!("`pool` is a number or \"all\", not \"{word}\"")),
        }
    }
}

/// How the filters of a convolution come from meta filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metas {
    /// Side of the meta filters.
    pub meta: usize,
    /// What is pooled.
    pub pool: Pool,
    /// Maps with filters of their own, the last ones.
    pub plain: usize,
}

/// The filters of one convolution.
#[derive(Debug, Clone, Copy)]
struct Windows {
    meta: usize,
    /// Windows along each side.
    grid: [usize; 2],
    /// Of which so many are pooled.
    pooled: [usize; 2],
    /// Meta filters.
    metas: usize,
    /// Maps with filters of their own.
    plain: usize,
}

impl Metas {
    /// For so many filters of so many channels, height and width, or why they cannot be.
    fn windows(&self, filters: usize, [channels, h, w]: [usize; 3]) -> std::result::Result<Windows, String> {
        let meta = self.meta;
        if meta < h.max(w) || ![h, w].iter().any(|side| *side > 1 && meta > *side) {
            return Err(format!("has a kernel of {h} by {w}, whose windows in {meta} by {meta} share nothing; leave it out"));
        }
        let grid = [meta - h + 1, meta - w + 1];
        let pooled = match self.pool {
            Pool::All => grid,
            Pool::Side(side) => [side; 2],
        };
        if pooled.contains(&0) || pooled[0] > grid[0] || pooled[1] > grid[1] {
            return Err(format!(
                "has {grid:?} windows in a meta filter, of which `pool` takes {pooled:?} together; set 1 or more, and no more than there are"
            ));
        }
        let maps = (grid[0] / pooled[0]).saturating_mul(grid[1] / pooled[1]);
        let doubly = filters.saturating_sub(self.plain);
        if doubly == 0 || !doubly.is_multiple_of(maps) {
            let plain = self.plain;
            return Err(format!(
                "has {filters} filters less {plain} plain ones, where each meta filter gives {maps} maps; change `plain`, or leave it out"
            ));
        }
        let metas = doubly / maps;
        if [metas, grid[0], grid[1], channels, h, w].into_iter().fold(1, usize::saturating_mul) > MAX_ELEMENTS_TOTAL {
            return Err(format!("takes more weights than the limit of {MAX_ELEMENTS_TOTAL}; set a smaller `meta`"));
        }
        let windows = Windows { meta, grid, pooled, metas, plain: self.plain };
        match windows.rule().count(&[windows.filters(), channels, h, w]) {
            Ok(_) => Ok(windows),
            Err(error) => Err(format!("has filters that cannot be shared ({error}); set a smaller `meta`")),
        }
    }
}

impl Windows {
    /// Filters that are windows.
    fn filters(&self) -> usize {
        self.metas * self.grid[0] * self.grid[1]
    }

    fn rule(&self) -> Places {
        Places::Windows { sides: [self.meta; 2] }
    }

    /// What pools the windows, where any are.
    fn pool(&self) -> Option<ChannelPool> {
        let pool = ChannelPool { grid: self.grid, window: self.pooled, reduction: Reduction::Max };
        (self.pooled != [1, 1]).then_some(pool)
    }

    /// The map that each window goes into, if any.
    fn map(&self, filter: usize) -> Option<usize> {
        let ([down, across], [s, t]) = (self.grid, self.pooled);
        let (meta, a, b) = (filter / (down * across), filter / across % down, filter % across);
        let (rows, columns) = (down / s, across / t);
        (a / s < rows && b / t < columns).then(|| (meta * rows + a / s) * columns + b / t)
    }
}

/// A convolution of `conv.filters` maps, `[c, h, w]` to `[filters, h', w']`, whose filters are windows of meta filters; He-normal values,
/// of the fan-in of a window. Bias, pooling and the plain filters are as the method has them, and the last node is called `name`.
///
/// # Errors
/// Windows that do not fit the kernel or the number of filters, and groups.
pub fn conv(b: &mut Builder, name: &str, at: At, conv: Conv, metas: Metas) -> Result<At> {
    let refuse = |why: String| Error::node(name, why);
    if conv.groups != 1 {
        return Err(refuse(ONE_GROUP.into()));
    }
    let windows = metas.windows(conv.filters, [b.shape(at)[0], conv.kernel[0], conv.kernel[1]]).map_err(refuse)?;
    let (pool, split) = (windows.pool(), windows.plain > 0);
    let part = |part: &str, last: bool| if last { name.to_string() } else { format!("{name}.{part}") };
    let shared = Conv { filters: windows.filters(), bias: conv.bias && pool.is_none(), ..conv };
    let mut x = b.shared_conv(&part("windows", pool.is_none() && !split), at, shared, windows.rule());
    if let Some(pool) = pool {
        x = b.fixed(&part("pool", !conv.bias && !split), &[x], pool);
        if conv.bias {
            x = b.affine(&part("bias", !split), x, false, 0.0);
        }
    }
    if split {
        let own = b.conv(&part("plain", false), at, Conv { filters: windows.plain, ..conv });
        x = b.fixed(name, &[x, own], Concat);
    }
    Ok(x)
}

/// Values that are trained of the weight of the convolution `name`, its plain filters included; none without such a convolution.
pub fn values(net: &Net, name: &str) -> Option<usize> {
    let parts = [name.to_string(), format!("{name}.windows"), format!("{name}.plain")];
    let of = |node: &Node| Some(count(&node.weight()?));
    let found: Vec<usize> = net.nodes.iter().filter(|node| parts.contains(&node.name)).filter_map(of).collect();
    (!found.is_empty()).then(|| found.iter().sum())
}

fn count(weight: &Stored) -> usize {
    if let Source::Shared { values, .. } = &weight.coding.source { values.len() } else { weight.base.len() }
}

const ONE_GROUP: &str = "is no convolution in one group; leave it out";

impl Method for DoublyConv {
    const NAME: &'static str = "doubly-conv";
    const FAMILY: &'static str = "compact filters";
    const PAPER: &'static str = "Zhai, Cheng, Zhang, Lu, NIPS 2016, arXiv:1610.09716";
    const EXAMPLE: &'static str = "meta = 4\ntune = { epochs = 10 }";
}

impl Pass for DoublyConv {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.rewritten(net, cx.seed)?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.rewritten(net, 0)
    }
}

impl DoublyConv {
    fn rewritten(&self, mut net: Net, seed: u64) -> Result<Net> {
        self.tune.iter().try_for_each(Recipe::check)?;
        let fitting = chosen(&net, [&self.layers, &self.except], |index| self.fit(&net.nodes[index]))?;
        for (name, windows) in fitting {
            net = self.replaced(net, &name, windows, seed)?;
        }
        Ok(net)
    }

    fn fit(&self, node: &Node) -> std::result::Result<Windows, String> {
        let (Layer::Conv2d(layers::Conv2d { groups: 1, .. }), Some(&[filters, channels, h, w])) =
            (node.op.layer(), node.op.weight_shape().as_deref())
        else {
            return Err(ONE_GROUP.into());
        };
        let plain = self.plain.get() * filters as f64;
        if (plain - plain.round()).abs() > 1e-6 {
            return Err(format!(
                "has {filters} filters, of which {} are no whole number of `plain` ones; change it",
                self.plain.get()
            ));
        }
        Metas { meta: self.meta, pool: self.pool, plain: plain.round() as usize }.windows(filters, [channels, h, w])
    }

    /// The network with nodes for the windows, the pooling, its bias and the plain filters in the place of a convolution, whose name the
    /// last of them has.
    fn replaced(&self, net: Net, name: &str, windows: Windows, seed: u64) -> Result<Net> {
        let (device, index) = (net.device(), net.index(name)?);
        let node = &net.nodes[index];
        let (layer, input) = (node.op.layer(), node.inputs[0]);
        let parameters = finite(node)?;
        let shape = parameters[0].shape.clone();
        let (filters, row) = (shape[0], shape[1..].iter().product::<usize>());
        let doubly = filters - windows.plain;
        let (pool, split) = (windows.pool(), windows.plain > 0);
        let own = |part: &str| format!("{name}.{part}");
        let bias = parameters.iter().find(|stored| stored.name == "bias").map(|bias| match self.init {
            Init::Fit => bias.base.clone(),
            Init::Random => vec![0.0; filters],
        });
        let stored = |name, shape: Vec<usize>, base| Stored { name, shape, base, coding: Coding::default() };
        let vector = |values: &[f32]| stored("bias", vec![values.len()], values.to_vec());

        let mut wide = shape.clone();
        wide[0] = windows.filters();
        let values = match self.init {
            Init::Fit => fitted(&windows, &wide, &parameters[0].base)?,
            Init::Random => {
                let count = windows.rule().count(&wide)?.unwrap_or(0);
                he_normal(seed, &own("windows"), count, row)
            }
        };
        let source = Source::shared(windows.rule(), values, &wide)?;
        let shared =
            Stored { coding: Coding { mask: None, source }, ..stored("weight", wide.clone(), vec![0.0; wide.iter().product()]) };
        let made = |name, inputs: &[usize], parameters| fixed(name, inputs, layers::Negate).replaced(&layer, parameters, &device);

        let with_bias = bias.iter().filter(|_| pool.is_none()).map(|bias| vector(&bias[..doubly]));
        let mut nodes = vec![made(own("windows"), &[input], [shared].into_iter().chain(with_bias).collect())?];
        if let Some(pool) = pool {
            nodes.push(fixed(own("pool"), &[index], pool));
            if let Some(bias) = &bias {
                nodes.push(affine(&net, own("bias"), index + 1, None, bias[..doubly].to_vec())?);
            }
        }
        if split {
            let last = index + nodes.len() - 1;
            let mut narrow = shape;
            narrow[0] = windows.plain;
            let weight = match self.init {
                Init::Fit => parameters[0].base[doubly * row..].to_vec(),
                Init::Random => he_normal(seed, &own("plain"), windows.plain * row, row),
            };
            let bias = bias.iter().map(|bias| vector(&bias[doubly..]));
            nodes.push(made(own("plain"), &[input], [stored("weight", narrow, weight)].into_iter().chain(bias).collect())?);
            nodes.push(fixed(own("maps"), &[last, last + 1], Concat));
        }
        if let Some(last) = nodes.last_mut() {
            last.name = name.to_string();
        }
        net.replace(index, nodes)
    }
}

/// The values of the meta filters that come nearest to a weight `[maps, ...]` in windows of the shape `[filters, ...]`.
fn fitted(windows: &Windows, wide: &[usize], weight: &[f32]) -> Result<Vec<f32>> {
    let (rule, row) = (windows.rule(), wide[1..].iter().product::<usize>());
    let mut sums = vec![(0.0, 0_usize); rule.count(wide)?.unwrap_or(0)];
    for (position, place) in rule.all(wide, sums.len()).into_iter().enumerate() {
        let Some(map) = windows.map(position / row) else { continue };
        let (sum, members) = &mut sums[place as usize / 2];
        *sum += f64::from(weight[map * row + position % row]);
        *members += 1;
    }
    Ok(sums.into_iter().map(|(sum, members)| (sum / members.max(1) as f64) as f32).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use briquette_core::coding::floats;
    use briquette_core::stored::Storage;
    use briquette_core::zoo::Arch;
    use briquette_handmade::{get, outputs, refusal, run, set, small};
    use briquette_runtime::Engine;
    use burn::tensor::{Device, Tensor};
    use serde_json::json;

    use super::*;
    use crate::chosen::proof::{agree, pruned};

    /// Filters, and outputs of a convolution on images `x` of which `maps` come from meta filters with these values, by Burn and by the
    /// engine.
    fn computed(golden: &BTreeMap<String, Vec<f32>>, input: [usize; 3], maps: usize, metas: Metas) -> (Vec<f32>, Vec<f32>) {
        let mut b = Builder::new(input, 1, &Device::flex());
        let x = b.input();
        let x = conv(&mut b, "conv", x, Conv::new(maps, 3).same().no_bias(), metas).unwrap();
        b.flatten("flat", x);
        let mut net = b.finish().unwrap();
        let node = net.nodes.remove(1);
        let mut parameters = node.parameters();
        let Source::Shared { values, .. } = &mut parameters[0].coding.source else { panic!("no meta filters") };
        values.clone_from(&golden["meta"]);
        let filters = parameters[0].values();
        net.nodes.insert(1, node.with(parameters, &Device::flex()).unwrap());
        let [c, h, w] = input;
        let x = Tensor::<1>::from_floats(golden["x"].as_slice(), &Device::flex()).reshape([1, c, h, w]);
        let found = floats(net.forward(x));
        let engine = Engine::new(&net.to_model(Storage::default()).unwrap(), 1).unwrap();
        assert!(near(&engine.run(&golden["x"], 1).unwrap(), &found));
        (filters, found)
    }

    fn near(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4)
    }

    #[test]
    fn windows_of_meta_filters_are_convolved_and_pooled() {
        let goldens: BTreeMap<String, BTreeMap<String, Vec<f32>>> =
            serde_json::from_str(include_str!("doubly_conv/goldens.json")).unwrap();
        let four = &goldens["dcnn.4"];
        let (filters, found) = computed(four, [2, 5, 5], 8, Metas { meta: 4, pool: Pool::Side(1), plain: 0 });
        assert_eq!(filters, four["effective"]);
        assert!(near(&found, &four["output_pool1"]));
        let (_, found) = computed(four, [2, 5, 5], 2, Metas { meta: 4, pool: Pool::All, plain: 0 });
        assert!(near(&found, &four["output_pool_all"]));
        let six = &goldens["dcnn.6"];
        let (_, found) = computed(six, [1, 4, 4], 4, Metas { meta: 6, pool: Pool::Side(2), plain: 0 });
        assert!(near(&found, &six["output_pool2"]));
    }

    #[test]
    fn a_layer_is_built_as_the_method_rewrites_it() {
        for (pool, given) in [(Pool::Side(1), json!(1)), (Pool::All, json!("all"))] {
            for plain in [0, 4] {
                let built = |doubly: bool| {
                    let mut b = Builder::new([1, 6, 6], 1, &Device::flex());
                    let x = b.input();
                    let x = match doubly {
                        true => conv(&mut b, "conv", x, Conv::new(8, 3), Metas { meta: 4, pool, plain }).unwrap(),
                        false => b.conv("conv", x, Conv::new(8, 3)),
                    };
                    b.global_avg_pool("pool", x);
                    b.finish().unwrap()
                };
                let settings = json!({ "meta": 4, "pool": given, "plain": plain as f64 / 8.0 });
                let method: DoublyConv = serde_json::from_value(settings).unwrap();
                let outline = |net: &Net| {
                    net.nodes
                        .iter()
                        .map(|node| (node.name.clone(), node.inputs.clone(), node.op.layer(), values(net, &node.name)))
                        .collect::<Vec<_>>()
                };
                let (by_hand, rewritten) = (built(true), method.plan(built(false)).unwrap());
                assert_eq!(outline(&by_hand), outline(&rewritten));
                let expected = if pool == Pool::All { 16 * (8 - plain) } else { 4 * (8 - plain) };
                assert_eq!(values(&rewritten, "conv"), Some(expected + 9 * plain));
            }
        }
    }

    /// Eight filters of 3 by 3 on one channel, the biases of which differ.
    fn eight(weight: &[f32]) -> Net {
        let mut b = Builder::new([1, 4, 4], 3, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(8, 3));
        let x = b.relu("relu", x);
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        let net = set(b.finish().unwrap(), "conv", "weight", weight);
        set(net, "conv", "bias", &[0.1, -0.2, 0.3, 0.0, 0.2, -0.1, 0.4, 0.05])
    }

    fn noise(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * i * 7 + 3 * i) % 17) as f32 / 8.0 - 1.0).collect()
    }

    #[test]
    fn windows_are_fitted_exactly_and_plain_filters_stay() {
        let shape = [4, 1, 3, 3];
        let windows = Source::shared(Places::Windows { sides: [4, 4] }, noise(16), &shape).unwrap();
        let windows =
            Stored { name: "weight", shape: shape.to_vec(), base: vec![0.0; 36], coding: Coding { mask: None, source: windows } };
        let weight = [windows.values(), noise(36)].concat();
        let shared = run::<DoublyConv>(eight(&weight), json!({ "layers": ["conv"], "meta": 4, "plain": 0.5 })).unwrap();
        assert_eq!(values(&shared, "conv"), Some(16 + 36));
        agree(&shared, &eight(&weight));
        // Pooled, a map is one filter, however often it stands.
        let same = [vec![0.5; 9], vec![-0.25; 9]].concat().repeat(4);
        let pooled = run::<DoublyConv>(eight(&same), json!({ "meta": 5, "pool": "all" })).unwrap();
        assert_eq!(values(&pooled, "conv"), Some(8 * 25));
        agree(&pooled, &eight(&same));
    }

    #[test]
    fn no_step_improves_on_the_fit() {
        let weight = noise(72);
        for (pool, windows) in [(json!(1), [8, 1]), (json!(2), [72, 2]), (json!("all"), [72, 3])] {
            let shared =
                run::<DoublyConv>(eight(&weight), json!({ "meta": if pool == 1 { 4 } else { 5 }, "pool": pool })).unwrap();
            let made = shared.nodes.iter().find_map(|node| node.weight().filter(|weight| weight.shape.len() == 4)).unwrap();
            assert_eq!(made.shape[0], windows[0]);
            let Source::Shared { values, places, .. } = &made.coding.source else { panic!("no meta filters") };
            let (mut slopes, filters, side) = (vec![0.0; values.len()], made.values(), windows[1]);
            for (position, place) in places.iter().enumerate() {
                let filter = position / 9;
                let map = match side {
                    1 => filter,
                    // Of 3 by 3 windows one of 2 by 2 is pooled, or all are.
                    _ if filter % 9 / 3 < side && filter % 3 < side => filter / 9,
                    _ => continue,
                };
                slopes[*place as usize / 2] += weight[map * 9 + position % 9] - filters[position];
            }
            assert!(slopes.iter().all(|slope: &f32| slope.abs() < 1e-5), "{slopes:?}");
        }
    }

    #[test]
    fn a_start_from_scratch_is_trained_and_stays_shared() {
        let settings = |tune: Option<serde_json::Value>| json!({ "layers": ["conv2"], "meta": 3, "pool": "all", "init": "random", "tune": tune });
        let start = run::<DoublyConv>(small(), settings(None)).unwrap();
        let tune = json!({ "epochs": 1, "batch": 10, "lr": 0.01 });
        let tuned = run::<DoublyConv>(small(), settings(Some(tune))).unwrap();
        assert!(get(&start, "conv2.windows", "weight") != get(&tuned, "conv2.windows", "weight"));
        assert!(get(&tuned, "conv2", "shift").iter().all(|shift| *shift != 0.0), "biases of pooled maps are trained");
        assert_eq!((values(&start, "conv2"), values(&tuned, "conv2")), (Some(3 * 4 * 9), Some(3 * 4 * 9)));
        assert!(outputs(&tuned).iter().all(|y| y.is_finite()));
        let mut b = Builder::new([1, 4, 4], 3, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(4000, 3));
        b.global_avg_pool("pool", x);
        let drawn = run::<DoublyConv>(b.finish().unwrap(), json!({ "meta": 4, "init": "random" })).unwrap();
        let squares: f32 = get(&drawn, "conv", "weight").iter().map(|w| w * w).sum();
        assert!((squares / 8000.0 - 1.0).abs() < 0.05, "{squares}, expected 2 for each filter");
    }

    #[test]
    fn vgg_16_has_the_weights_of_the_recipe() {
        let arch = Arch::named("vgg16-cifar").unwrap();
        let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let stored = |settings| {
            let method: DoublyConv = serde_json::from_value(settings).unwrap();
            let net = method.plan(net.clone()).unwrap();
            (1..=13).map(|layer| values(&net, &format!("conv{layer}")).unwrap()).sum::<usize>()
        };
        assert_eq!(stored(json!({ "meta": 4, "plain": 0.3125, "init": "random" })), 9_091_884);
        assert_eq!(stored(json!({ "meta": 4, "init": "random" })), 6_537_984);
    }

    #[test]
    fn meta_filters_that_cannot_be_stored_are_refused_where_layers_are_built() {
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.input();
        let row = Conv { kernel: [1, 3], ..Conv::new(1, 3) };
        let refused = conv(&mut b, "conv", x, row, Metas { meta: 5000, pool: Pool::All, plain: 0 }).unwrap_err().to_string();
        assert!(refused.starts_with("node 'conv': has filters that cannot be shared"), "{refused}");
    }

    #[test]
    fn settings_and_layers_that_do_not_fit_are_refused() {
        let refuse = |settings| refusal::<DoublyConv>(small(), settings);
        assert_eq!(
            refuse(json!({ "layers": ["conv1"], "meta": 2 })),
            "node 'conv1': has a kernel of 2 by 2, whose windows in 2 by 2 share nothing; leave it out"
        );
        assert_eq!(
            refuse(json!({ "layers": ["conv2"], "meta": 3 })),
            "node 'conv2': has 3 filters less 0 plain ones, where each meta filter gives 4 maps; change `plain`, or leave it out"
        );
        let none = refuse(json!({ "layers": ["conv1"], "meta": 3, "pool": 0 }));
        assert!(none.contains("`pool` takes [0, 0] together"), "{none}");
        let part = refuse(json!({ "layers": ["conv1"], "meta": 3, "plain": 0.3 }));
        assert_eq!(part, "node 'conv1': has 4 filters, of which 0.3 are no whole number of `plain` ones; change it");
        let large = refuse(json!({ "layers": ["conv1"], "meta": 1_000_000_000_000_usize, "pool": "all" }));
        assert!(large.starts_with("node 'conv1': takes more weights than the limit"), "{large}");
        assert!(refuse(json!({ "layers": ["fc1"], "meta": 3 })).starts_with("node 'fc1': is no convolution in one group"));
        let nan = refusal::<DoublyConv>(set(small(), "conv1", "weight", &[f32::NAN; 16]), json!({ "meta": 3 }));
        assert_eq!(nan, "node 'conv1': holds the weight NaN; train it anew or clip it");
        let coded = refusal::<DoublyConv>(pruned(small(), "conv1"), json!({ "meta": 3 }));
        assert!(coded.starts_with("node 'conv1': is pruned, quantized or shares its weights"), "{coded}");
        let word = serde_json::from_value::<DoublyConv>(json!({ "meta": 3, "pool": "some" })).unwrap_err();
        assert!(word.to_string().contains("`pool` is a number or \"all\", not \"some\""), "{word}");
    }
}
