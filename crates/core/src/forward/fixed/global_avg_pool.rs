//! Mean of channels.

use briquette_runtime::layers::GlobalAvgPool;

use super::Forward;
use crate::extension;
use crate::forward::Flow;

impl Forward for GlobalAvgPool {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0).last() {
            Ok(x) => Flow::Vector(extension::channel_means(x)),
            Err(x) => {
                let [n, c, h, w] = x.dims();
                Flow::Vector(x.reshape([n, c, h * w]).mean_dim(2).reshape([n, c]))
            }
        }
    }
}
