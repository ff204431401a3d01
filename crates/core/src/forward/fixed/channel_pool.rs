//! Pooling over channels.

use briquette_runtime::layers::{ChannelPool, Reduction};
use burn::tensor::Tensor;

use super::Forward;
use crate::forward::Flow;

impl Forward for ChannelPool {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            Flow::Vector(x) => Flow::Vector(pool(self, x)),
            Flow::Last(x) => Flow::Last(pooled(self, x)),
            Flow::First(x) => Flow::First(pooled(self, x.permute([0, 2, 3, 1])).permute([0, 3, 1, 2])),
        }
    }
}

/// Of maps channels last.
fn pooled(layer: &ChannelPool, x: Tensor<4>) -> Tensor<4> {
    let [batch, height, width, channels] = x.dims();
    pool(layer, x.reshape([batch * height * width, channels])).reshape([batch as i32, height as i32, width as i32, -1])
}

/// Of rows of channels.
fn pool(layer: &ChannelPool, x: Tensor<2>) -> Tensor<2> {
    let ([rows, _], [a, b], [s, t], [down, across]) = (x.dims(), layer.grid, layer.window, layer.windows());
    let grids = x.reshape([-1, a as i32, b as i32]);
    let count = grids.dims()[0];
    let windows = grids.slice([0..count, 0..down * s, 0..across * t]).reshape([count, down, s, across, t]);
    let windows = match layer.reduction {
        Reduction::Max => windows.max_dim(4).max_dim(2),
        Reduction::Mean => windows.mean_dim(4).mean_dim(2),
    };
    windows.reshape([rows as i32, -1])
}
