//! Walks through a network whose steps an agent takes, and the best of them.

use std::num::NonZeroUsize;

use briquette_core::Layer;
use briquette_core::context::{Context, Event};
use briquette_core::error::Result;
use briquette_core::net::Node;

use crate::ddpg::Agent;

/// What an agent walks through: choices of a number for each step, of which all together have a reward.
pub trait Walk {
    /// Number of steps.
    fn steps(&self) -> usize;

    /// What the agent sees before the next step, after these actions.
    ///
    /// # Errors
    /// As the walk says.
    fn state(&mut self, taken: &[f64], cx: &mut Context<'_>) -> Result<Vec<f32>>;

    /// What becomes of the action of the next step, after these. The default leaves it.
    ///
    /// # Errors
    /// As the walk says.
    fn bounded(&mut self, _taken: &[f64], action: f64, _cx: &mut Context<'_>) -> Result<f64> {
        Ok(action)
    }

    /// What the actions of a whole walk choose, within the budget, with the actions that would have chosen it: those are what the agent learns from.
    ///
    /// # Errors
    /// As the walk says.
    fn choice(&mut self, actions: &[f64], cx: &mut Context<'_>) -> Result<(Vec<usize>, Vec<f64>)>;

    /// What the choice is worth, the same whenever it is asked.
    ///
    /// # Errors
    /// As the walk says.
    fn reward(&mut self, choice: &[usize], cx: &mut Context<'_>) -> Result<f64>;
}

/// The choice of the highest reward among so many walks, the first of equals, and its reward.
///
/// Nothing of the agent is kept: a run that goes on walks again, by the same seed, and what [`Walk::reward`] has measured is known.
///
/// # Errors
/// Those of the walk.
pub fn best(walk: &mut dyn Walk, mut agent: Agent, episodes: usize, cx: &mut Context<'_>) -> Result<(Vec<usize>, f64)> {
    let mut best: (Vec<usize>, f64) = (Vec::new(), f64::NEG_INFINITY);
    for episode in 0..episodes {
        let mut actions = Vec::new();
        for _ in 0..walk.steps() {
            let state = walk.state(&actions, cx)?;
            actions.push(walk.bounded(&actions, agent.act(&state), cx)?);
        }
        let (choice, actions) = walk.choice(&actions, cx)?;
        let reward = walk.reward(&choice, cx)?;
        // What the agent would have seen on the way to this choice.
        let states = (0..actions.len()).map(|step| walk.state(&actions[..step], cx)).collect::<Result<Vec<_>>>()?;
        agent.learn(&states.into_iter().zip(actions).collect::<Vec<_>>(), reward);
        if reward > best.1 {
            best = (choice, reward);
        }
        cx.host.event(Event::Note(&format!("episode {} of {episodes}: reward {reward:.4}, best {:.4}", episode + 1, best.1)));
    }
    Ok(best)
}

/// Walks, and those at the start whose actions are uniform, for a trial run.
pub(crate) fn shorten(episodes: &mut NonZeroUsize, explore: &mut usize) {
    *episodes = (*episodes).min(TRIAL);
    *explore = (*explore).min(TRIAL.get() / 2);
}

/// Walks of a trial run.
const TRIAL: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Rows of numbers, one for each step, each column brought to `[0, 1]` over the steps; a column of one value stays.
pub fn normalized(mut rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    for column in 0..rows.first().map_or(0, Vec::len) {
        let values = || rows.iter().map(|row| row[column]);
        let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        if most > least {
            rows.iter_mut().for_each(|row| row[column] = (row[column] - least) / (most - least));
        }
    }
    rows
}

/// What an agent sees of a layer: its type, 0 for a convolution and 1 for a fully connected layer, inputs, outputs, stride, 0 without one, side of the kernel, and weights.
pub(crate) fn outline(node: &Node) -> [f64; 6] {
    let shape = node.op.weight_shape().unwrap_or_default();
    let weights: usize = shape.iter().product();
    let at = |dimension: usize| shape.get(dimension).copied().unwrap_or(1);
    let (kind, groups, stride) =
        if let Layer::Conv2d(conv) = node.op.layer() { (0.0, conv.groups, conv.stride[0]) } else { (1.0, 1, 0) };
    [kind, (groups * at(1)) as f64, at(0) as f64, stride as f64, at(2) as f64, weights as f64]
}

#[cfg(test)]
mod tests {
    use briquette_handmade::{context, images};

    use super::*;
    use crate::ddpg::Learning;

    /// Five layers that bear few bits differently well, of different sizes, under a budget of bits.
    struct Toy {
        rewards: Vec<f64>,
    }

    const SIZES: [usize; 5] = [1, 4, 8, 8, 6];
    /// What is lost of a layer halves with each bit.
    const NEEDS: [f64; 5] = [4.0, 1.0, 0.4, 2.5, 0.2];
    const BUDGET: usize = 90;

    fn cost(bits: &[usize]) -> usize {
        bits.iter().zip(SIZES).map(|(bits, size)| bits * size).sum()
    }

    fn worth(bits: &[usize]) -> f64 {
        -bits.iter().zip(NEEDS).map(|(bits, need)| need * 2.0 * 0.5_f64.powf(*bits as f64)).sum::<f64>()
    }

    impl Walk for Toy {
        fn steps(&self) -> usize {
            SIZES.len()
        }

        fn state(&mut self, taken: &[f64], _: &mut Context<'_>) -> Result<Vec<f32>> {
            let at = taken.len();
            Ok(vec![at as f32 / 4.0, SIZES[at] as f32 / 8.0, taken.last().map_or(1.0, |last| *last as f32)])
        }

        fn choice(&mut self, actions: &[f64], _: &mut Context<'_>) -> Result<(Vec<usize>, Vec<f64>)> {
            let mut bits: Vec<usize> = actions.iter().map(|action| 1 + ((action * 8.0) as usize).min(7)).collect();
            let spent = |bits: &[usize]| Ok(cost(bits) as f64);
            crate::refill::sweep(&mut bits, &[1; 5], spent, BUDGET as f64)?;
            crate::refill::refill(&mut bits, &[8; 5], &[0, 1, 2, 3, 4], spent, BUDGET as f64)?;
            let actions = bits.iter().map(|bits| (*bits as f64 - 0.5) / 8.0).collect();
            Ok((bits, actions))
        }

        fn reward(&mut self, choice: &[usize], _: &mut Context<'_>) -> Result<f64> {
            self.rewards.push(worth(choice));
            Ok(worth(choice))
        }
    }

    #[test]
    fn the_best_walk_comes_to_the_optimum_that_enumeration_finds_and_what_is_learned_holds() {
        let every = (0..8_usize.pow(5)).map(|code| (0..5).map(|at| 1 + code / 8_usize.pow(at) % 8).collect::<Vec<usize>>());
        let optimum = every.filter(|bits| cost(bits) <= BUDGET).map(|bits| worth(&bits)).fold(f64::NEG_INFINITY, f64::max);
        let (data, mut host) = (images(), briquette_core::context::Silent);
        let mut cx = context(&data, &mut host);
        let learning = Learning { hidden: 48, explore: 30, decay: 0.99, memory: 500 };
        let mut toy = Toy { rewards: Vec::new() };
        let (bits, found) = best(&mut toy, Agent::new(3, learning, 2), 350, &mut cx).unwrap();
        assert!(cost(&bits) <= BUDGET && found == worth(&bits));
        let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len() as f64;
        let (before, after) = (mean(&toy.rewards[..30]), mean(&toy.rewards[310..]));
        assert!(
            found > optimum - 0.05 && after > before + 0.7 * (optimum - before),
            "{optimum}: {found}, from {before} to {after}"
        );
    }

    /// Three layers of a network, as the public code of AMC sees them.
    #[test]
    fn states_are_normalized_as_published() {
        let raw = vec![
            vec![0.0, 0.0, 3.0, 16.0, 1.0, 3.0, 432.0, 0.0, 0.0, 1.0],
            vec![1.0, 0.0, 16.0, 32.0, 2.0, 3.0, 4608.0, 0.0, 0.0, 1.0],
            vec![2.0, 1.0, 32.0, 10.0, 0.0, 1.0, 320.0, 0.0, 0.0, 1.0],
        ];
        let golden = [
            [0.0, 0.0, 0.0, 0.272_727_272_7, 0.5, 1.0, 0.026_119_402_99, 0.0, 0.0, 1.0],
            [0.5, 0.0, 0.448_275_862_1, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0],
            [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        ];
        let near = |row: Vec<f64>, golden: [f64; 10]| row.iter().zip(golden).all(|(found, golden)| (found - golden).abs() < 1e-8);
        assert!(normalized(raw).into_iter().zip(golden).all(|(row, golden)| near(row, golden)));
    }
}
