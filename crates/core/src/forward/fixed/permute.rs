//! Channels in another order.

use briquette_runtime::layers::Permute;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::Forward;
use crate::forward::Flow;

impl Forward for Permute {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let order: Vec<i64> = self.order.iter().map(|channel| *channel as i64).collect();
        let places = |device: &Device| Tensor::<1, Int>::from_data(TensorData::new(order.clone(), [order.len()]), device);
        match inputs.remove(0) {
            Flow::First(x) => Flow::First({
                let places = places(&x.device());
                x.select(1, places)
            }),
            Flow::Last(x) => Flow::Last({
                let places = places(&x.device());
                x.select(3, places)
            }),
            Flow::Vector(x) => Flow::Vector({
                let places = places(&x.device());
                x.select(1, places)
            }),
        }
    }
}
