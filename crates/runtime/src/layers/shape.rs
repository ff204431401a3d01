//! Shapes of feature maps and vectors.

use crate::Padding;
use crate::activations::MAX_ACTIVATIONS;

/// Why shapes do not fit; the caller adds which node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Wrong number of inputs.
    #[error("{layer} takes {expected} input(s), {found} are wired")]
    Arity {
        /// Name of the layer's kind.
        layer: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What it got.
        found: usize,
    },
    /// A setting or a shape does not fit.
    #[error("{layer}: {detail}")]
    Mismatch {
        /// Name of the layer's kind.
        layer: &'static str,
        /// What does not fit, with both shapes.
        detail: String,
    },
}

/// Channels, height and width of a feature map.
pub(super) fn map(input: &[usize]) -> Result<[usize; 3], String> {
    match *input {
        [c, h, w] => Ok([c, h, w]),
        _ => Err(format!("takes a feature map [channels, height, width], got {input:?}")),
    }
}

/// The shape with another number of channels.
pub(super) fn with_channels(channels: usize, input: &[usize]) -> Vec<usize> {
    std::iter::once(channels).chain(input.iter().skip(1).copied()).collect()
}

/// Height and width of a feature map with what lies around it. What is padded is a map like others, for Burn may hold it.
pub(super) fn padded(padding: Padding, [c, h, w]: [usize; 3]) -> Result<[usize; 2], String> {
    let sides = padding.around(0, h).zip(padding.around(1, w));
    let within = |(h, w): &(usize, usize)| c.saturating_mul(*h).saturating_mul(*w) <= MAX_ACTIVATIONS;
    let sides = sides.filter(within).map(|(h, w)| [h, w]);
    sides.ok_or_else(|| format!("the input {:?} with {padding:?} has more values than the limit of {MAX_ACTIVATIONS}", [c, h, w]))
}

/// Number of window positions along one axis of this size, padding included, or none when the window does not fit once.
pub(super) fn extent(size: usize, kernel: usize, stride: usize, dilation: usize) -> Option<usize> {
    if kernel == 0 || stride == 0 || dilation == 0 {
        return None;
    }
    let span = (kernel - 1).checked_mul(dilation)?.checked_add(1)?;
    size.checked_sub(span).map(|rest| rest / stride + 1)
}
