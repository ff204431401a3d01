//! The Gauss-Newton matrix of the cross-entropy, as the factors of a sum.

use briquette_core::coding::floats;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::streams::stream;
use briquette_core::training::{cross_entropy, probe};
use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Classes up to which all are gone through; of more, one is drawn for each image.
pub const ALL_CLASSES: usize = 32;

/// One term of the sum: the vector `x = scale * gradient` of one layer, for one image and class.
#[derive(Debug, Clone, Copy)]
pub struct Factor<'a> {
    /// The layer's index.
    pub layer: usize,
    /// In the order of [`Node::weight`](briquette_core::net::Node::weight).
    pub gradient: &'a [f32],
    /// What multiplies it.
    pub scale: f64,
}

/// Hands to `visit`, for each of `samples` training images, each class `k` and each of the `layers` (by index), the vector
/// `x = sqrt(p_k) dL_k/dw`, where `p_k` is the network's own probability of class `k` and `L_k = -log p_k` the loss if `k` were the label; no
/// label is needed. The Gauss-Newton matrix, which is also the Fisher information, is `H = (1/P) sum x x^T` over all of them, with `P`, the
/// number of images, as returned.
///
/// With `labels = n` the classes of an image are `n` draws from its `p`, by the pass's seed, and `x = dL_k/dw / sqrt(n)`: the same matrix in
/// the mean, by `n` backward passes instead of one for each class. Without it all classes are gone through up to [`ALL_CLASSES`], and one is
/// drawn where there are more.
///
/// # Errors
/// Gradients that are not finite, and the errors of [`probe`].
pub fn factors(
    net: &Net,
    layers: &[usize],
    what: &str,
    (samples, labels): (usize, Option<usize>),
    cx: &mut Context<'_>,
    mut visit: impl FnMut(Factor<'_>),
) -> Result<usize> {
    let probed = net.probed();
    let device: Device = net.device().autodiff();
    let mut rng = ChaCha8Rng::seed_from_u64(stream(cx.seed, &format!("{what}-labels")));
    probe(cx, what, (samples, 1), &device, |image, _| {
        let mut logits = Some(probed.forward(image.clone()));
        let values = logits.clone().map_or(Vec::new(), |logits| floats(logits.inner()));
        for (class, share) in classes(&values, labels, &mut rng) {
            let logits = logits.take().unwrap_or_else(|| probed.forward(image.clone()));
            let loss = cross_entropy(logits, &[class as u16], 0.0);
            let scale = match share {
                Some(share) => share.sqrt(),
                None => (-0.5 * f64::from(loss.clone().into_scalar::<f32>())).exp(),
            };
            let grads = loss.backward();
            for &layer in layers {
                let Some(gradient) = probed.nodes[layer].gradient("weight", &grads) else { continue };
                if gradient.iter().any(|x| !x.is_finite()) || !scale.is_finite() {
                    let detail = "the loss has a gradient that is not finite; check the weights and the training images";
                    return Err(Error::node(&probed.nodes[layer].name, detail));
                }
                visit(Factor { layer, gradient: &gradient, scale });
            }
        }
        Ok(())
    })
}

/// The classes to go through with the shares of the draws that fell to them; none where all are gone through by their probability.
fn classes(logits: &[f32], labels: Option<usize>, rng: &mut ChaCha8Rng) -> Vec<(usize, Option<f64>)> {
    let draws = match labels {
        None if logits.len() <= ALL_CLASSES => return (0..logits.len()).map(|class| (class, None)).collect(),
        draws => draws.unwrap_or(1),
    };
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, logit| most.max(*logit));
    let odds: Vec<f64> = logits.iter().map(|logit| f64::from(logit - most).exp()).collect();
    let total: f64 = odds.iter().sum();
    let mut counts = vec![0_usize; logits.len()];
    for _ in 0..draws {
        let mut rest = rng.random::<f64>() * total;
        let found = odds.iter().position(|odds| {
            rest -= odds;
            rest < 0.0
        });
        // Rounding may leave a rest behind the last.
        counts[found.unwrap_or(logits.len() - 1)] += 1;
    }
    let share = |count: usize| count as f64 / draws as f64;
    counts.into_iter().enumerate().filter(|(_, count)| *count > 0).map(|(class, count)| (class, Some(share(count)))).collect()
}

#[cfg(test)]
mod tests {
    use briquette_core::context::Silent;

    use super::*;
    use briquette_handmade::{context, images, stirred};

    /// The diagonal at `fc2`, and the number of gradients that it took.
    fn diagonal(labels: Option<usize>, seed: u64) -> (Vec<f64>, usize) {
        let (data, mut silent, net) = (images(), Silent, stirred());
        let (mut sums, mut count) = (vec![0.0; 15], 0);
        let mut cx = Context { seed, ..context(&data, &mut silent) };
        factors(&net, &[net.index("fc2").unwrap()], "factors", (40, labels), &mut cx, |factor| {
            count += 1;
            sums.iter_mut().zip(factor.gradient).for_each(|(sum, g)| *sum += (factor.scale * f64::from(*g)).powi(2) / 40.0);
        })
        .unwrap();
        (sums, count)
    }

    #[test]
    fn labels_that_the_network_draws_give_the_matrix_of_all_classes_in_the_mean() {
        let (all, passes) = diagonal(None, 3);
        assert_eq!(passes, 40 * 3);
        let (one, passes) = diagonal(Some(1), 3);
        assert_eq!(passes, 40);
        assert_ne!(one, all);
        assert_eq!(one, diagonal(Some(1), 3).0, "the seed alone decides");
        let largest = all.iter().copied().fold(0.0, f64::max);
        let far = |drawn: &[f64]| drawn.iter().zip(&all).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
        let (many, passes) = diagonal(Some(5000), 3);
        assert!(passes <= 40 * 3 && far(&many) < 0.02, "{}", far(&many));
        assert!(far(&one) > far(&many));
    }

    #[test]
    fn beyond_a_few_classes_one_is_drawn_by_its_probability() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(classes(&[0.0; ALL_CLASSES], None, &mut rng).len(), ALL_CLASSES);
        assert_eq!(classes(&[0.0; ALL_CLASSES + 1], None, &mut rng).len(), 1);
        let mut logits = [-2.0; 1000];
        logits[7] = 8.0;
        // Odds of e^10 against 999.
        let sevens = (0..1000).filter(|_| classes(&logits, None, &mut rng) == [(7, Some(1.0))]).count();
        assert!((930..985).contains(&sevens), "{sevens}");
    }
}
