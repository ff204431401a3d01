//! Maps of one channel under each other.

use briquette_runtime::layers::Regroup;

use super::Forward;
use crate::forward::Flow;

impl Forward for Regroup {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let Self { maps, apart, back } = *self;
        match inputs.remove(0) {
            Flow::Last(x) => {
                let [n, h, w, c] = x.dims();
                Flow::Last(match (back, apart) {
                    (false, false) => {
                        x.reshape([n, h, w, c / maps, maps]).permute([0, 4, 1, 2, 3]).reshape([n, maps * h, w, c / maps])
                    }
                    (false, true) => {
                        x.reshape([n, h, w, maps, c / maps]).permute([0, 3, 1, 2, 4]).reshape([n, maps * h, w, c / maps])
                    }
                    (true, false) => {
                        x.reshape([n, maps, h / maps, w, c]).permute([0, 2, 3, 4, 1]).reshape([n, h / maps, w, c * maps])
                    }
                    (true, true) => {
                        x.reshape([n, maps, h / maps, w, c]).permute([0, 2, 3, 1, 4]).reshape([n, h / maps, w, c * maps])
                    }
                })
            }
            other => {
                let x = other.first();
                let [n, c, h, w] = x.dims();
                Flow::First(match (back, apart) {
                    (false, false) => x.reshape([n, c / maps, maps * h, w]),
                    (false, true) => x.reshape([n, maps, c / maps, h, w]).swap_dims(1, 2).reshape([n, c / maps, maps * h, w]),
                    (true, false) => x.reshape([n, c * maps, h / maps, w]),
                    (true, true) => x.reshape([n, c, maps, h / maps, w]).swap_dims(1, 2).reshape([n, c * maps, h / maps, w]),
                })
            }
        }
    }
}
