//! Deep deterministic policy gradients: a policy of actions in `[0, 1]` that learns from rewards.
//!
//! An actor `mu(s)` gives an action for a state, a critic `Q(s, a)` says what it is worth. Of a batch of `n` past steps `(s, a, r, s')` the critic
//! descends on `1/n sum (Q(s, a) - y)^2` with `y = r - b + Q'(s', mu'(s'))`, without the last term where the walk ended, and the actor ascends on
//! `1/n sum Q(s, mu(s))`. `b` is a running mean of the rewards of batches; `Q'` and `mu'` follow their originals by `p' += tau (p - p')`.
//! Both networks have two hidden layers of rectifiers, the actor ends in a sigmoid. Until `explore` walks are done actions are uniform; in walk `e` they are
//! drawn from `N(mu(s), sigma^2)` cut off to `[0, 1]`, `sigma = 0.5 decay^(e - explore)`.
//!
//! Lillicrap, Hunt, Pritzel, Heess, Erez, Tassa, Silver, Wierstra. "Continuous control with deep reinforcement learning". ICLR 2016. arXiv:1509.02971;
//! as He et al. and Wang et al. use it, see [`amc`](crate::amc) and [`haq`](crate::haq): a walk has one reward, which all its steps get, and future counts in full.
//! Departs from them in nothing but the first layer of the critic, which reads state and action side by side.

mod perceptron;

use std::collections::VecDeque;

use briquette_core::streams::standard_normal;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::adam::Adam;
use perceptron::{Perceptron, sigmoid};

/// How an agent learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learning {
    /// Units of each hidden layer.
    pub hidden: usize,
    /// Walks of uniform actions, from which nothing is learned yet.
    pub explore: usize,
    /// What the deviation of the noise is multiplied by after each further walk.
    pub decay: f64,
    /// Steps that are remembered.
    pub memory: usize,
}

impl Learning {
    /// Deviation of the noise in the walk of this number.
    pub fn sigma(&self, walk: usize) -> f64 {
        0.5 * self.decay.powf(walk as f64 - self.explore as f64)
    }
}

/// The policy and what it has seen.
#[derive(Debug)]
pub struct Agent {
    learning: Learning,
    rng: ChaCha8Rng,
    actor: Trained,
    critic: Trained,
    seen: VecDeque<Seen>,
    /// `b`, none before the first batch.
    baseline: Option<f64>,
    walks: usize,
}

/// A step of a walk.
#[derive(Debug, Clone)]
struct Seen {
    state: Vec<f32>,
    action: f32,
    reward: f64,
    /// None where the walk ended.
    next: Option<Vec<f32>>,
}

/// A network, what follows it, and its optimizer.
#[derive(Debug)]
struct Trained {
    now: Perceptron,
    target: Perceptron,
    adam: Adam,
}

impl Trained {
    fn new(sizes: [usize; 4], rate: f32, rng: &mut ChaCha8Rng) -> Self {
        let now = Perceptron::new(sizes, rng);
        Self { target: now.clone(), adam: Adam::new(now.values.len(), rate), now }
    }

    fn step(&mut self, gradient: &[f32]) {
        self.adam.step(&mut self.now.values, gradient);
        self.target.values.iter_mut().zip(&self.now.values).for_each(|(target, now)| *target += TAU * (now - *target));
    }
}

impl Agent {
    /// One that knows nothing, for states of so many numbers.
    pub fn new(state: usize, learning: Learning, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let hidden = learning.hidden;
        let actor = Trained::new([state, hidden, hidden, 1], ACTOR_RATE, &mut rng);
        let critic = Trained::new([state + 1, hidden, hidden, 1], CRITIC_RATE, &mut rng);
        Self { learning, rng, actor, critic, seen: VecDeque::new(), baseline: None, walks: 0 }
    }

    /// The action that the policy takes in a state, without noise.
    pub fn policy(&self, state: &[f32]) -> f64 {
        f64::from(sigmoid(self.actor.now.outputs(state.to_vec())[0]))
    }

    /// The action to try in a state.
    pub fn act(&mut self, state: &[f32]) -> f64 {
        if self.walks < self.learning.explore {
            return self.rng.random();
        }
        let (mean, sigma) = (self.policy(state), self.learning.sigma(self.walks));
        cut_off_normal(&mut self.rng, mean, sigma)
    }

    /// Remembers the states and actions of a walk that had this reward, and learns as often as it had steps.
    pub fn learn(&mut self, walk: &[(Vec<f32>, f64)], reward: f64) {
        let nexts = walk.iter().skip(1).map(|(state, _)| Some(state.clone())).chain([None]);
        let steps = walk.iter().zip(nexts);
        self.seen.extend(steps.map(|((state, action), next)| Seen {
            state: state.clone(),
            action: *action as f32,
            reward,
            next,
        }));
        while self.seen.len() > self.learning.memory {
            self.seen.pop_front();
        }
        if self.walks >= self.learning.explore {
            walk.iter().for_each(|_| self.update());
        }
        self.walks += 1;
    }

    fn update(&mut self) {
        let batch: Vec<Seen> = (0..BATCH).map(|_| self.seen[self.rng.random_range(0..self.seen.len())].clone()).collect();
        let mean = batch.iter().map(|seen| seen.reward).sum::<f64>() / BATCH as f64;
        let baseline = self.baseline.map_or(mean, |before| before + 0.5 * (mean - before));
        self.baseline = Some(baseline);
        let worth: Vec<f32> = batch.iter().map(|seen| (seen.reward - baseline) as f32 + self.future(seen)).collect();

        let pairs = |actions: &dyn Fn(usize) -> f32| -> Vec<f32> {
            batch.iter().enumerate().flat_map(|(at, seen)| seen.state.iter().copied().chain([actions(at)])).collect()
        };
        let seen = self.critic.now.trace(pairs(&|at| batch[at].action));
        let slopes = seen.outputs().iter().zip(&worth).map(|(found, worth)| 2.0 * (found - worth) / BATCH as f32).collect();
        let (gradient, _) = self.critic.now.backward(&seen, slopes);
        self.critic.step(&gradient);

        let acted = self.actor.now.trace(batch.iter().flat_map(|seen| seen.state.clone()).collect());
        let actions: Vec<f32> = acted.outputs().iter().map(|x| sigmoid(*x)).collect();
        let judged = self.critic.now.trace(pairs(&|at| actions[at]));
        let (_, inputs) = self.critic.now.backward(&judged, vec![-1.0 / BATCH as f32; BATCH]);
        let width = inputs.len() / BATCH;
        let by_action = inputs.chunks_exact(width).map(|slopes| slopes[width - 1]);
        let slopes = by_action.zip(&actions).map(|(slope, action)| slope * action * (1.0 - action)).collect();
        let (gradient, _) = self.actor.now.backward(&acted, slopes);
        self.actor.step(&gradient);
    }

    /// What is to come after a step.
    fn future(&self, seen: &Seen) -> f32 {
        let Some(next) = &seen.next else { return 0.0 };
        let action = sigmoid(self.actor.target.outputs(next.clone())[0]);
        self.critic.target.outputs(next.iter().copied().chain([action]).collect())[0]
    }
}

/// A draw from `N(mean, sigma^2)` among those in `[0, 1]`.
fn cut_off_normal(rng: &mut ChaCha8Rng, mean: f64, sigma: f64) -> f64 {
    let mut draws = (0..DRAWS).map(|_| mean + sigma * standard_normal(rng));
    draws.find(|draw| (0.0..=1.0).contains(draw)).unwrap_or(mean)
}

const BATCH: usize = 64;
const ACTOR_RATE: f32 = 1e-4;
const CRITIC_RATE: f32 = 1e-3;
/// `tau`.
const TAU: f32 = 0.01;
/// Draws of which one lies in `[0, 1]`: a mean inside is missed by two thirds of them at most.
const DRAWS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Learning = Learning { hidden: 32, explore: 30, decay: 0.97, memory: 400 };

    /// Deviations in the public code of both papers.
    #[test]
    fn noise_falls_as_published() {
        let amc = Learning { explore: 100, decay: 0.95, ..SMALL };
        let haq = Learning { explore: 20, decay: 0.99, ..SMALL };
        let golden = [
            (amc, 101, 0.475),
            (amc, 110, 0.299_368_469_6),
            (amc, 150, 0.038_472_487_64),
            (amc, 400, 1.037_651_674e-7),
            (haq, 21, 0.495),
            (haq, 100, 0.223_761_606_9),
            (haq, 600, 0.001_470_221_844),
        ];
        for (learning, walk, sigma) in golden {
            assert!((learning.sigma(walk) / sigma - 1.0).abs() < 1e-8, "{walk}: {}", learning.sigma(walk));
        }
    }

    #[test]
    fn noise_stays_within_the_actions_and_has_the_mean_of_what_is_cut_off() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        // phi and Phi of the ends give the mean: 0.2 + 0.5 (phi(-0.4) - phi(1.6)) / (Phi(1.6) - Phi(-0.4)).
        for (mean, sigma, expected) in [(0.2, 0.5, 0.4142), (0.5, 0.5, 0.5), (0.9, 0.001, 0.9)] {
            let draws: Vec<f64> = (0..4000).map(|_| cut_off_normal(&mut rng, mean, sigma)).collect();
            assert!(draws.iter().all(|draw| (0.0..=1.0).contains(draw)));
            let found = draws.iter().sum::<f64>() / 4000.0;
            assert!((found - expected).abs() < 0.02, "{found}");
        }
    }

    /// Three steps whose rewards add up, each the higher the nearer its action is to a target of its own.
    fn taught(seed: u64) -> (Agent, Vec<f64>) {
        let mut agent = Agent::new(3, SMALL, seed);
        let targets = [0.2, 0.8, 0.5];
        let state = |step: usize| -> Vec<f32> { (0..3).map(|at| if at == step { 1.0 } else { 0.0 }).collect() };
        for _ in 0..400 {
            let walk: Vec<(Vec<f32>, f64)> = (0..3).map(|step| (state(step), agent.act(&state(step)))).collect();
            let reward = -walk.iter().zip(targets).map(|((_, action), target)| (action - target).powi(2)).sum::<f64>();
            agent.learn(&walk, reward);
        }
        let actions = (0..3).map(|step| agent.policy(&state(step))).collect();
        (agent, actions)
    }

    #[test]
    fn the_policy_comes_to_the_best_actions_and_repeats_by_its_seed() {
        let (agent, actions) = taught(1);
        let apart: f64 = actions.iter().zip([0.2, 0.8, 0.5]).map(|(action, target)| (action - target).powi(2)).sum();
        assert!(apart < 0.06, "of 0.18 at the start: {actions:?}");
        let (again, same) = taught(1);
        assert_eq!((actions, agent.baseline), (same, again.baseline));
        assert_eq!(agent.seen.len(), 400, "older steps are forgotten");
    }
}
