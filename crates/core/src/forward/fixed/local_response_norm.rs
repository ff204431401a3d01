//! Normalization across channels.

use briquette_runtime::layers::LocalResponseNorm;
use burn::tensor::module::avg_pool2d;
use burn::tensor::ops::AvgPoolOptions;

use super::Forward;
use crate::forward::Flow;

impl Forward for LocalResponseNorm {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let Self { size, alpha, beta, k } = *self;
        let x = inputs.remove(0).first();
        let [n, c, h, w] = x.dims();
        // What reaches beyond all channels counts in the mean, but nothing is there.
        let (before, after) = ((size / 2).min(c - 1), ((size - 1) / 2).min(c - 1));
        let (seen, squares) = (before + 1 + after, x.clone().powi_scalar(2).reshape([n, 1, c, h * w]));
        let options = AvgPoolOptions::new([seen, 1])
            .with_stride([1, 1])
            .with_padding_pairs([(before, after), (0, 0)])
            .with_count_include_pad(true);
        let mean = avg_pool2d(squares, options).reshape([n, c, h, w]);
        let alpha = if seen < size { alpha * seen as f64 / size as f64 } else { alpha };
        Flow::First(x / (mean.mul_scalar(alpha).add_scalar(k)).powf_scalar(beta))
    }
}
