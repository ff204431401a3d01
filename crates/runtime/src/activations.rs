//! How much of a network's feature maps has to be held at a time.

use crate::Error;

/// Most values of the feature maps of one sample that are alive at the fullest moment of a run (256 MiB of floats): a bound for files from
/// outside, in which a few bytes can ask for maps of any size. VGG-16 on 224 by 224 pixels holds a tenth of it.
pub const MAX_ACTIVATIONS: usize = 1 << 26;

/// Most values of feature maps that are held for all samples that go through a network together (1 GiB of floats). Of samples that need more
/// fewer go together.
pub const MAX_ACTIVATIONS_HELD: usize = 1 << 28;

/// How many samples may go through a network together, at most `wanted`, that holds so many values of each at its fullest moment.
pub fn samples_together(fullest: usize, wanted: usize) -> usize {
    (MAX_ACTIVATIONS_HELD / fullest.max(1)).clamp(1, wanted.max(1))
}

/// Values of one sample that are alive at the fullest moment, when each node's output is dropped after its last reader: of `nodes` in the
/// order of execution, each with the earlier nodes that it reads and the size of its output.
pub fn fullest<'a>(nodes: impl Iterator<Item = (&'a [usize], usize)>) -> usize {
    let nodes: Vec<(&[usize], usize)> = nodes.collect();
    let mut last: Vec<usize> = (0..nodes.len()).collect();
    for (position, (inputs, _)) in nodes.iter().enumerate() {
        inputs.iter().for_each(|input| last[*input] = position);
    }
    let mut dead = vec![0_usize; nodes.len()];
    for ((_, size), last) in nodes.iter().zip(last) {
        dead[last] = dead[last].saturating_add(*size);
    }
    let (mut live, mut fullest) = (0_usize, 0);
    for ((_, size), dead) in nodes.iter().zip(dead) {
        live = live.saturating_add(*size);
        fullest = fullest.max(live);
        live = live.saturating_sub(dead);
    }
    fullest
}

/// [`fullest`], refused where it is more than [`MAX_ACTIVATIONS`].
///
/// # Errors
/// [`Error::Limit`] with both numbers.
pub fn bounded<'a>(nodes: impl Iterator<Item = (&'a [usize], usize)>) -> Result<usize, Error> {
    match fullest(nodes) {
        found if found > MAX_ACTIVATIONS => Err(Error::Limit {
            what: "values of one sample's feature maps that are needed at a time",
            found: found as u64,
            limit: MAX_ACTIVATIONS as u64,
        }),
        fits => Ok(fits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_lives_until_its_last_reader() {
        let of = |nodes: &[(&[usize], usize)]| fullest(nodes.iter().copied());
        assert_eq!(of(&[(&[], 5)]), 5);
        // A chain holds two neighbours.
        assert_eq!(of(&[(&[], 1), (&[0], 20), (&[1], 300), (&[2], 4000), (&[3], 5)]), 4300);
        // A shortcut holds its beginning until the sum.
        assert_eq!(of(&[(&[], 100), (&[0], 100), (&[1], 100), (&[0, 2], 100)]), 300);
        // Nobody reads the second, which dies at once.
        assert_eq!(of(&[(&[], 1), (&[0], 70), (&[0], 20), (&[2], 5)]), 71);
    }

    #[test]
    fn samples_that_need_more_go_alone() {
        assert_eq!(samples_together(1000, 32), 32);
        assert_eq!(samples_together(MAX_ACTIVATIONS, 32), 4);
        assert_eq!(samples_together(usize::MAX, 32), 1);
        assert_eq!(samples_together(0, 0), 1);
        assert!(bounded([(&[][..], MAX_ACTIVATIONS)].into_iter()).is_ok());
        let error = bounded([(&[][..], MAX_ACTIVATIONS + 1)].into_iter()).unwrap_err().to_string();
        assert!(error.ends_with("67108865 is more than the limit of 67108864"), "{error}");
    }
}
