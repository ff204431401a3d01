//! Pooling that keeps rows and columns at random.
//!
//! A pool of the window `k` and the stride `s` becomes the largest values of all windows of `k` by `k`, a map of the same size, of which, in every
//! step, of each `grid` rows `grid / s` at random are kept, and of the columns likewise, the same for all channels and images. At test each `s` by
//! `s` of the map's values give their mean. That is the expectation over the draws where `grid = s`; with a larger grid the rows that are kept are
//! order statistics, which reach further.
//!
//! Zhai, Wu, Kumar, Cheng, Lu, Zhang, Feris. "S3Pool: Pooling with Stochastic Spatial Sampling". CVPR 2017. arXiv:1611.05138.
//! Differs from the authors' code: the map of largest values keeps its size, as if minus infinity lay around it, half of the window in front and
//! what is left behind; means at test lie on the grid of the training, where theirs are off by one pixel.
//!
//! ```
//! use briquette_core::{pass::Pass, zoo::Arch};
//! use briquette_dynamic_nets::s3pool::S3Pool;
//! use burn::tensor::Device;
//!
//! let arch = Arch::named("lenet5").unwrap();
//! let method: S3Pool = serde_json::from_str(r#"{ "grid": 4 }"#).unwrap();
//! let net = method.plan(arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap();
//! assert!(net.index("pool1.max").is_ok());
//! ```

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::layers::{MaxPool, SpatialSampling};
use briquette_core::net::{Net, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use briquette_core::{Padding, Window};
use serde::Deserialize;

use crate::pools;

/// Replaces pools by stochastic ones.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct S3Pool {
    /// Max and mean pools by name; all whose step is 2 or more without it.
    #[serde(default)]
    layers: Layers,
    /// Rows, and columns, among which is drawn: a multiple of each pool's stride; the stride itself without it.
    grid: Option<usize>,
    /// Training afterwards.
    tune: Option<Recipe>,
}

impl Method for S3Pool {
    const NAME: &'static str = "s3pool";
    const FAMILY: &'static str = "pooling";
    const PAPER: &'static str = "Zhai, Wu, Kumar, Cheng, Lu, Zhang, Feris, CVPR 2017, arXiv:1611.05138";
    const EXAMPLE: &'static str = "grid = 4\ntune = { epochs = 10 }";
}

impl Pass for S3Pool {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        tune(self.plan(net)?, self.tune.as_ref(), cx)
    }

    fn plan(&self, mut net: Net) -> Result<Net> {
        self.tune.iter().try_for_each(Recipe::check)?;
        for name in pools::chosen(&net, &self.layers, |stride| stride > 1)? {
            let index = net.index(&name)?;
            let before = net.shapes()?.swap_remove(index);
            let Some(Window { kernel, stride: [stride, across], .. }) = pools::window(&net.nodes[index].op.layer()) else {
                return Err(Error::node(&name, "is no max or mean pool"));
            };
            if stride != across {
                return Err(Error::node(
                    &name,
                    format!("steps by {:?}; stochastic pools step alike in both directions", [stride, across]),
                ));
            }
            let sides = kernel.map(|side| [(side - 1) / 2, side / 2]);
            let largest = MaxPool { window: Window { padding: Padding(sides), ..Window::new(kernel, [1, 1]) } };
            let sampling = SpatialSampling { stride, grid: self.grid.unwrap_or(stride) };
            net = net.rewrite(index, vec![(format!("{name}.max"), Op::fixed(largest)), (name.clone(), Op::fixed(sampling))])?;
            pools::same_shape(&name, &before, &net.shapes()?[net.index(&name)?])?;
        }
        Ok(net)
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::coding::floats;
    use briquette_core::stored::Storage;
    use briquette_handmade::{get, refusal, run};
    use briquette_runtime::{Engine, Model};
    use burn::tensor::{Device, Tensor, TensorData};
    use serde_json::json;

    use super::*;

    const X: [f32; 64] = [
        -0.579, 0.24, -0.931, 0.286, -1.351, -0.983, 0.259, 0.074, -0.724, 0.141, 1.592, -1.141, -1.11, 1.012, -0.547, 0.068,
        1.238, 0.026, -1.571, 3.316, 1.632, -0.563, 0.73, 1.099, 0.11, 1.92, 0.428, -0.066, -1.034, -0.23, 0.662, 2.071, -0.181,
        -0.515, -1.945, 0.434, 1.053, 0.225, -0.202, -0.474, 1.422, -0.989, 0.82, 0.257, 0.364, -0.598, 1.423, -1.469, 2.447,
        0.899, -1.421, -0.168, 1.39, 0.59, 0.335, 1.262, -0.248, 0.35, 0.366, -0.098, 0.432, 0.962, 0.468, 1.161,
    ];

    fn pooled(window: Window) -> Net {
        let mut b = Builder::new([1, 8, 8], 1, &Device::flex());
        let x = b.max_pool("pool", b.input(), window);
        b.flatten("flatten", x);
        b.finish().unwrap()
    }

    /// `s3pool-expectation` of the reference values: the mean over the map of largest values, which is that over the draws of a grid of the stride.
    #[test]
    fn at_test_windows_of_the_largest_values_give_their_mean() {
        let expected = [
            1.1655, 2.1275, 1.167, 0.63275, 1.92, 2.02975, 1.01925, 2.071, 1.397, 1.02075, 1.32225, 0.9085, 1.0155, 0.6385,
            1.069, 1.2115,
        ];
        let method: S3Pool = serde_json::from_value(json!({ "grid": 4 })).unwrap();
        let net = method.plan(pooled(Window::square(2))).unwrap();
        let burn = floats(net.forward(Tensor::from_data(TensorData::new(X.to_vec(), [1, 1, 8, 8]), &Device::flex())));
        let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        let engine = Engine::new(&Model::from_bytes(&bytes).unwrap(), 1).unwrap().run(&X, 1).unwrap();
        for found in [burn, engine] {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-5), "{found:?}");
        }
    }

    /// In training every value is one of the map of largest values, `max_map_same` of `s3pool` of the reference values, in some rows and columns.
    #[test]
    fn in_training_rows_and_columns_of_the_largest_values_are_kept() {
        let map = [
            [0.24, 1.592, 1.592, 0.286, 1.012, 1.012, 0.259, 0.074],
            [1.238, 1.592, 3.316, 3.316, 1.632, 1.012, 1.099, 1.099],
            [1.92, 1.92, 3.316, 3.316, 1.632, 0.73, 2.071, 2.071],
            [1.92, 1.92, 0.434, 1.053, 1.053, 0.662, 2.071, 2.071],
            [1.422, 0.82, 0.82, 1.053, 1.053, 1.423, 1.423, -0.474],
            [2.447, 0.899, 0.82, 1.39, 1.39, 1.423, 1.423, 1.262],
            [2.447, 0.899, 0.366, 1.39, 1.39, 0.962, 1.262, 1.262],
            [0.35, 0.366, 0.366, 0.432, 0.962, 0.962, 1.161, 1.161],
        ];
        let method: S3Pool = serde_json::from_value(json!({ "grid": 4 })).unwrap();
        let net = method.plan(pooled(Window::square(2))).unwrap();
        let pairs = || (0..4).flat_map(|a| (a + 1..4).map(move |b| [a, b]));
        let kept: Vec<[usize; 4]> = pairs().flat_map(|[a, b]| pairs().map(move |[c, d]| [a, b, 4 + c, 4 + d])).collect();
        let device = Device::flex().autodiff();
        let mut seen = std::collections::BTreeSet::new();
        briquette_core::chance::seed(5);
        for _ in 0..20 {
            let found = floats(net.forward(Tensor::from_data(TensorData::new(X.to_vec(), [1, 1, 8, 8]), &device)).inner());
            let is = |rows: &[usize; 4], columns: &[usize; 4]| {
                let values = rows.iter().flat_map(|row| columns.iter().map(|column| map[*row][*column]));
                values.zip(&found).all(|(a, b): (f32, _)| a == *b)
            };
            let place =
                kept.iter().find_map(|rows| kept.iter().find(|columns| is(rows, columns)).map(|columns| (*rows, *columns)));
            seen.insert(place.unwrap_or_else(|| panic!("{found:?}")));
        }
        assert!(seen.len() > 15, "{seen:?}");
    }

    #[test]
    fn a_tuned_network_learns_through_what_was_kept() {
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(4, 3).same());
        let x = b.max_pool("pool", x, Window::square(2));
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        let net = b.finish().unwrap();
        let before = get(&net, "conv", "weight");
        let net = run::<S3Pool>(net, json!({ "tune": { "epochs": 1, "batch": 20, "lr": 0.01 } })).unwrap();
        assert!(get(&net, "conv", "weight") != before);
    }

    #[test]
    fn what_cannot_become_a_stochastic_pool_is_refused() {
        let refuse = |window: Window, settings| refusal::<S3Pool>(pooled(window), settings);
        let odd = Window { padding: Padding::all(1), ..Window::new([3, 3], [3, 3]) };
        assert_eq!(refuse(odd, json!({})), "node 'pool': gives [1, 3, 3], and would give [1, 2, 2]; leave it out");
        assert!(refuse(Window::square(2), json!({ "grid": 3 })).contains("a grid of 3 for a stride of 2"));
        assert_eq!(refuse(Window::square(2), json!({ "layers": ["flatten"] })), "node 'flatten': is no max or mean pool");
        let wide = refuse(Window::new([2, 2], [2, 1]), json!({ "layers": ["pool"] }));
        assert_eq!(wide, "node 'pool': steps by [2, 1]; stochastic pools step alike in both directions");
        let none = refuse(Window::new([2, 2], [2, 1]), json!({}));
        assert_eq!(none, "the network has no pool that could be replaced; name layers in `layers`");
    }
}
