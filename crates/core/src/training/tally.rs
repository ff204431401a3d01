//! Losses and hits of many batches, read from the device as seldom as can be.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::hits;
use crate::coding::floats;
use crate::extension;

/// Sums losses and counts hits over the batches of an epoch or of an evaluation.
///
/// On the device `flex` each batch is read when it is added, in double precision and in order. Anywhere else a read would wait for all that
/// the device has still to compute: there the sums are tensors, which are read after the first batch, so that a progress bar has a loss to
/// show, after every [`BETWEEN`] batches, and when the figures are asked for.
pub(super) struct Tally<const K: usize> {
    /// Hits are labels among the largest so many logits.
    ranks: [usize; K],
    at_once: bool,
    waiting: Option<Waiting>,
    /// Batches until the next read.
    left: usize,
    loss: f64,
    hits: [usize; K],
    samples: usize,
}

/// What has not been read yet.
struct Waiting {
    /// Sum of the losses, each times its batch's samples.
    loss: Tensor<1>,
    /// Hits of each rank, `[ranks]`.
    hits: Tensor<1, Int>,
    samples: usize,
}

/// Batches between two reads: seldom enough to cost nothing, and few enough for sums in single precision.
const BETWEEN: usize = 50;

impl<const K: usize> Tally<K> {
    pub(super) fn new(device: &Device, ranks: [usize; K]) -> Self {
        Self { ranks, at_once: extension::is_flex(device), waiting: None, left: 1, loss: 0.0, hits: [0; K], samples: 0 }
    }

    /// Adds a batch: its logits `[batch, classes]`, its labels and its mean loss, none of them part of a graph. Returns the sum of the losses that
    /// are known so far; one that is not finite says that this batch's loss is not, or that of one since the read before.
    pub(super) fn add(&mut self, logits: &Tensor<2>, labels: &[u16], loss: Tensor<1>) -> f64 {
        if self.at_once {
            let logits = floats(logits.clone());
            self.hits.iter_mut().zip(self.ranks).for_each(|(sum, k)| *sum += hits(&logits, labels, k));
            self.loss += f64::from(floats(loss)[0]) * labels.len() as f64;
            self.samples += labels.len();
            return self.loss;
        }
        let hits = Tensor::cat(self.ranks.map(|k| hits_there(logits, labels, k)).to_vec(), 0);
        let loss = loss.mul_scalar(labels.len() as f64);
        self.waiting = Some(match self.waiting.take() {
            None => Waiting { loss, hits, samples: labels.len() },
            Some(sums) => Waiting { loss: sums.loss + loss, hits: sums.hits + hits, samples: sums.samples + labels.len() },
        });
        self.left -= 1;
        if self.left == 0 {
            self.read();
        }
        self.loss
    }

    /// Reads what the device still has.
    fn read(&mut self) {
        self.left = BETWEEN;
        let Some(Waiting { loss, hits, samples }) = self.waiting.take() else { return };
        self.loss += f64::from(floats(loss)[0]);
        let hits = hits.into_data().iter::<i64>().collect::<Vec<_>>();
        self.hits.iter_mut().zip(hits).for_each(|(sum, hits)| *sum += hits as usize);
        self.samples += samples;
    }

    /// Mean loss of the samples that have been read.
    pub(super) fn loss_so_far(&self) -> f64 {
        self.loss / self.samples as f64
    }

    /// Mean loss, and for each rank the share of samples that are hits, of all that was added; zeros if nothing was.
    pub(super) fn means(&mut self) -> (f64, [f64; K]) {
        self.read();
        let samples = self.samples.max(1) as f64;
        (self.loss / samples, self.hits.map(|hits| hits as f64 / samples))
    }
}

/// [`hits`], counted on the device of the logits: `[1]`.
fn hits_there(logits: &Tensor<2>, labels: &[u16], k: usize) -> Tensor<1, Int> {
    let [n, classes] = logits.dims();
    let device = logits.device();
    let label: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
    let label = Tensor::<2, Int>::from_data(TensorData::new(label, [n, 1]), &device);
    let own = logits.clone().gather(1, label.clone());
    let class = Tensor::<1, Int>::arange(0..classes as i64, &device).unsqueeze::<2>();
    let above = logits.clone().greater(own.clone().expand([n, classes])).int();
    let equal = logits.clone().equal(own.clone().expand([n, classes])).int();
    let before = class.expand([n, classes]).lower(label.expand([n, classes])).int();
    let ahead = (above + equal * before).sum_dim(1);
    // What is not finite is not of its own size at most.
    let finite = own.abs().lower_equal_elem(f32::MAX).int();
    (ahead.lower_elem(k as i64).int() * finite).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As on a device that is better not waited for.
    fn there<const K: usize>(ranks: [usize; K]) -> Tally<K> {
        Tally { at_once: false, ..Tally::new(&Device::flex(), ranks) }
    }

    fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    #[test]
    fn sums_on_the_device_are_those_of_the_host() {
        let (mut here, mut there) = (Tally::new(&Device::flex(), [1, 5]), there([1, 5]));
        for batch in 0..3 * BETWEEN + 7 {
            let (n, classes) = (1 + batch % 4, 9);
            // Few values: ties are frequent.
            let logits = (0..n * classes).map(|i| ((i * 31 + batch * 17) % 7) as f32).collect();
            let labels: Vec<u16> = (0..n).map(|i| ((i * 5 + batch) % classes) as u16).collect();
            let (logits, loss) = (tensor(logits, [n, classes]), (batch % 13) as f32 / 8.0);
            here.add(&logits, &labels, tensor(vec![loss], [1]));
            there.add(&logits, &labels, tensor(vec![loss], [1]));
            assert!(there.loss_so_far().is_finite());
        }
        // Eighths are summed exactly in any precision.
        assert_eq!(here.means(), there.means());
        let (_, [top1, top5]) = here.means();
        assert!(0.0 < top1 && top1 < top5 && top5 < 1.0);
    }

    #[test]
    fn hits_are_counted_as_on_the_host() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for rows in [
            [1.0, 1.0, 0.0, 1.0],
            [nan, nan, nan, nan],
            [nan, 1.0, 0.0, 2.0],
            [inf, 1.0, 0.0, 2.0],
            [-inf, 1.0, inf, nan],
            [0.0, -0.0, 0.0, -1.0],
            [f32::MAX, f32::MIN, 5.0, f32::MAX],
        ] {
            for label in 0..4 {
                for k in [1, 2, 3, 5] {
                    let found = hits_there(&tensor(rows.to_vec(), [1, 4]), &[label], k);
                    let found = found.into_data().iter::<i64>().next();
                    assert_eq!(found, Some(hits(&rows, &[label], k) as i64), "{rows:?}, label {label}, {k}");
                }
            }
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_is_seen_at_the_next_read() {
        let mut tally = there([1]);
        let add = |tally: &mut Tally<1>, loss| tally.add(&tensor(vec![1.0, 0.0], [1, 2]), &[0], tensor(vec![loss], [1]));
        assert_eq!(add(&mut tally, 0.5), 0.5, "the first batch is read, so that there is a loss to show");
        assert_eq!(add(&mut tally, f32::NAN), 0.5);
        let seen = (0..BETWEEN).position(|_| !add(&mut tally, 0.5).is_finite());
        assert_eq!(seen, Some(BETWEEN - 2));
        let mut tally = there([1]);
        add(&mut tally, 0.5);
        add(&mut tally, f32::INFINITY);
        assert!(!tally.means().0.is_finite());
        assert_eq!(there([1, 5]).means(), (0.0, [0.0; 2]));
    }
}
