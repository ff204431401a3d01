//! Some of the rows and columns of maps.

use briquette_runtime::layers::SpatialSampling;
use burn::tensor::{Int, Tensor, TensorData};

use super::Forward;
use super::avg_pool::average;
use crate::chance;
use crate::forward::Flow;

impl Forward for SpatialSampling {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            Flow::First(x) if x.device().is_autodiff() => Flow::First(sampled(self, x, [2, 3])),
            Flow::Last(x) if x.device().is_autodiff() => Flow::Last(sampled(self, x, [1, 2])),
            x => Flow::First(average(x.first(), &self.mean(), false)),
        }
    }
}

/// The same rows and columns, which lie along these dimensions, of all maps.
fn sampled(layer: &SpatialSampling, x: Tensor<4>, axes: [usize; 2]) -> Tensor<4> {
    axes.into_iter().fold(x, |x, axis| {
        let kept = drawn(layer, x.dims()[axis]);
        let count = kept.len();
        let kept = Tensor::<1, Int>::from_data(TensorData::new(kept, [count]), &x.device());
        x.select(axis, kept)
    })
}

/// Which of so many rows stay.
fn drawn(layer: &SpatialSampling, size: usize) -> Vec<i32> {
    let grids = (0..size).step_by(layer.grid).map(|start| (start, layer.grid.min(size - start)));
    grids.flat_map(|(start, len)| chance::some(len, len / layer.stride).into_iter().map(move |at| (start + at) as i32)).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::coding::floats;

    /// The weights of `s3pool-expectation` of the reference values, which enumeration gives: how often a row of a grid is the first or the second kept.
    #[test]
    fn rows_stay_as_often_as_order_statistics_say() {
        for (grid, expected) in [(2, [0.5, 0.5]), (4, [0.5, 1.0 / 3.0]), (8, [0.5, 0.285_714_285_7])] {
            chance::seed(7);
            let layer = SpatialSampling { stride: 2, grid };
            let (draws, mut first) = (20_000, [0.0_f64; 2]);
            for _ in 0..draws {
                let kept = drawn(&layer, 8);
                assert!(kept.len() == 4 && kept.is_sorted_by(|a, b| a < b), "{kept:?}");
                if kept[0] < 2 {
                    first[kept[0] as usize] += 1.0 / f64::from(draws);
                }
            }
            assert_eq!(drawn(&layer, 9).len(), 4);
            assert!(first.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.02), "{first:?}");
        }
    }

    /// `s3pool` of the reference values has these rows and columns of the map; here of any map, channels first and last.
    #[test]
    fn training_keeps_the_same_rows_and_columns_of_all_maps_and_evaluation_takes_means() {
        let layer = SpatialSampling { stride: 2, grid: 4 };
        let values: Vec<f32> = (0..2 * 3 * 64).map(|i| i as f32).collect();
        let x = |device: &Device| Tensor::<4>::from_data(TensorData::new(values.clone(), [2, 3, 8, 8]), device);
        let device = Device::flex().autodiff();
        let run = |flow: Flow| {
            chance::seed(3);
            layer.forward(vec![flow]).first()
        };
        let kept = floats(run(Flow::First(x(&device))).inner());
        let last = run(Flow::Last(x(&device).permute([0, 2, 3, 1])));
        assert_eq!(floats(last.inner()), kept);
        // Of a map of its own numbers, places within the map are those of the first.
        let places: Vec<f32> = kept[..16].to_vec();
        for (map, rows) in kept.chunks(16).enumerate() {
            assert!(rows.iter().zip(&places).all(|(a, b)| *a == b + 64.0 * map as f32));
        }
        let (rows, columns) =
            (places.chunks(4).map(|row| row[0] as usize / 8), places[..4].iter().map(|place| *place as usize % 8));
        for kept in [rows.collect::<Vec<_>>(), columns.collect()] {
            assert!(kept[0] < kept[1] && kept[1] < 4 && kept[2] >= 4 && kept[2] < kept[3], "{kept:?}");
        }
        let mean = floats(layer.forward(vec![Flow::First(x(&Device::flex()))]).first());
        assert_eq!(mean[..5], [4.5, 6.5, 8.5, 10.5, 20.5]);
    }
}
