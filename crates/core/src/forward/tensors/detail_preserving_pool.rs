//! Means that favour details.

use briquette_runtime::layers::DetailPreservingPool;
use burn::tensor::Tensor;

use super::Compute;
use crate::forward::Flow;
use crate::tensors::{Ranked, Tensors};

impl Compute for DetailPreservingPool {
    fn forward(&self, tensors: &Tensors, mut inputs: Vec<Flow>) -> Flow {
        let (x, mean) = (inputs.remove(0).first(), inputs.remove(0).first());
        let channels = mean.dims()[1];
        let [alpha, lambda] = ["log-alpha", "log-lambda"]
            .map(|name| tensors.get(name).map(Ranked::flat).expect("the tensors of a network are checked before it runs"))
            .map(|values| values.reshape([1, channels, 1, 1, 1, 1]));
        Flow::First(pooled(self, x, mean, alpha, lambda))
    }
}

fn pooled(layer: &DetailPreservingPool, x: Tensor<4>, mean: Tensor<4>, alpha: Tensor<6>, lambda: Tensor<6>) -> Tensor<4> {
    let [batch, channels, height, width] = mean.dims();
    let windows = x.reshape([batch, channels, height, 2, width, 2]);
    let mut d = windows.clone() - mean.reshape([batch, channels, height, 1, width, 1]);
    if !layer.symmetric {
        d = d.clamp_min(0.0);
    }
    let sum = |values: Tensor<6>| values.sum_dim(3).sum_dim(5);
    let q = (d.clone() * d).add_scalar(DetailPreservingPool::EPSILON);
    let q = q.clone() / sum(q).div_scalar(4.0);
    let log = q.log() * lambda.exp().div_scalar(2.0);
    // A factor of all weights, which may be beyond any float, has no gradient.
    let most = log.clone().detach().max_dim(3).max_dim(5);
    let w = (log - most.clone()).exp() + (alpha.clamp_max(DetailPreservingPool::LARGEST_ALPHA) - most).exp();
    (sum(w.clone() * windows) / sum(w)).reshape([batch, channels, height, width])
}

#[cfg(test)]
mod tests {
    use briquette_runtime::Window;
    use briquette_runtime::layers::AvgPool;
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::coding::floats;
    use crate::forward::fixed::Forward;

    const X: [f32; 32] = [
        0.543, -0.591, 1.193, 1.606, 0.103, 0.092, 0.543, 2.212, -0.926, -0.544, -0.642, 0.461, 0.28, -0.23, -0.87, -0.458, 0.08,
        -0.311, -1.223, 0.031, -1.155, -1.589, 0.067, 0.28, -0.848, 1.344, -0.095, 0.215, 0.361, 0.019, 0.733, -0.342,
    ];

    /// Output, and the gradients of `x`, `log-alpha` and `log-lambda`.
    type Expected = [&'static [f64]; 4];

    /// `detail-preserving-pooling-1` and `-3` of the reference values: symmetric or not, with means of windows.
    const CASES: [(bool, Expected); 2] = [
        (
            true,
            [
                &[
                    -0.02935276717,
                    1.378967648,
                    -0.3279820335,
                    -0.2217891761,
                    -0.745209865,
                    -0.2835096009,
                    0.2279285896,
                    0.143320637,
                ],
                &[
                    0.04930744092,
                    0.05056827887,
                    0.004809194525,
                    0.008559517399,
                    0.0005611846977,
                    -0.0004369044873,
                    0.0937859443,
                    0.09284534377,
                    0.1349964293,
                    0.0231948633,
                    0.06423699262,
                    0.183730384,
                    0.141030096,
                    0.0007786113606,
                    0.1500998799,
                    0.001932743491,
                    0.1413816755,
                    0.1091979856,
                    0.1861213122,
                    0.1244486098,
                    0.1068515458,
                    0.1425687931,
                    0.1300387466,
                    0.1593913314,
                    0.2279257114,
                    0.2299548582,
                    0.1798699708,
                    0.1274773509,
                    0.1145503578,
                    0.1275690726,
                    0.2538280681,
                    0.2388246102,
                ],
                &[-0.02713598562, 0.01527898716],
                &[0.06792796626, -0.02433481197],
            ],
        ),
        (
            false,
            [
                &[
                    0.2445491292,
                    1.73614102,
                    -0.08839339858,
                    -0.00447151455,
                    -0.5804791631,
                    -0.1122159292,
                    0.4198045768,
                    0.2267231495,
                ],
                &[
                    0.06467378582,
                    0.01780360365,
                    0.02956582425,
                    0.02020117398,
                    0.008837501501,
                    0.008685109034,
                    0.02956582425,
                    0.1206671775,
                    0.04592089795,
                    0.04592089795,
                    0.05305609587,
                    0.2408317124,
                    0.1852422951,
                    0.02291590905,
                    0.05305609587,
                    0.05305609587,
                    0.1760920646,
                    0.1429076148,
                    0.1016453707,
                    0.1505603731,
                    0.0905001603,
                    0.0905001603,
                    0.1575172249,
                    0.1902770313,
                    0.1384424337,
                    0.2767488865,
                    0.158847807,
                    0.1712340956,
                    0.1463662462,
                    0.1384424337,
                    0.3110702904,
                    0.158847807,
                ],
                &[-0.1621920721, -0.2432557232],
                &[0.2010704293, 0.2489587524],
            ],
        ),
    ];

    #[test]
    fn outputs_and_gradients_are_those_of_the_authors_graph() {
        let device = Device::flex().autodiff();
        for (symmetric, expected) in CASES {
            let x = Tensor::<4>::from_data(TensorData::new(X.to_vec(), [1, 2, 4, 4]), &device).require_grad();
            let per = |values: [f32; 2]| Tensor::<1>::from_floats(values, &device).require_grad();
            let (alpha, lambda) = (per([-0.4, 0.3]), per([0.2, -0.5]));
            let wide = |values: &Tensor<1>| values.clone().reshape([1, 2, 1, 1, 1, 1]);
            let mean = AvgPool { window: Window::square(2), count_padding: false }.forward(vec![Flow::First(x.clone())]).first();
            let y = pooled(&DetailPreservingPool { symmetric }, x.clone(), mean, wide(&alpha), wide(&lambda));
            let probe: Vec<f32> = (1..=8).map(|i| i as f32 / 10.0).collect();
            let probe = Tensor::<4>::from_data(TensorData::new(probe, [1, 2, 2, 2]), &device);
            let gradients = (y.clone() * probe).sum().backward();
            let of = |values: &Tensor<1>| floats(values.grad(&gradients).unwrap());
            let found = [floats(y.inner()), floats(x.grad(&gradients).unwrap()), of(&alpha), of(&lambda)];
            for (found, expected) in found.iter().zip(expected) {
                let near = found.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 2e-5);
                assert!(found.len() == expected.len() && near, "{found:?} {expected:?}");
            }
        }
    }
}
