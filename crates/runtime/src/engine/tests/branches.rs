//! Networks that skip work, drawn at random: each sample comes out as if it were alone.

use super::*;
use crate::layers::{Gate, Measure, Merge, Route};

/// A network under construction whose values have four channels of 3 by 3, and draws for it.
struct Wiring<'a> {
    nodes: Vec<Node>,
    draws: std::iter::Cycle<std::slice::Iter<'a, usize>>,
}

impl Wiring<'_> {
    fn draw(&mut self, below: usize) -> usize {
        self.draws.next().unwrap() % below
    }

    fn push(&mut self, inputs: &[usize], layer: impl Into<Layer>, tensors: &[(&str, &[usize], &[f32])]) -> usize {
        let index = self.nodes.len() + 1;
        self.nodes.push(node(&format!("node{index}"), inputs, layer.into(), tensors));
        index
    }

    fn gate(&mut self, x: usize) -> usize {
        let pooled = self.push(&[x], layers::GlobalAvgPool, &[]);
        let measure = [Measure::Confidence, Measure::Entropy, Measure::Sigmoid][self.draw(3)];
        let count = if measure == Measure::Sigmoid { 1 } else { 3 };
        let weight: Vec<f32> = values(4 * count, pooled, 0).iter().map(|w| 4.0 * w).collect();
        let logits = self.push(&[pooled], layers::Linear, &[("weight", &[count, 4], &weight)]);
        let threshold = [0.0, 0.35, 0.4, 0.5, 1.0][self.draw(5)];
        self.push(&[logits], Gate { measure, threshold }, &[])
    }

    /// Something that looks at `x`; no more than so many gates one inside the other.
    fn block(&mut self, x: usize, gates: usize) -> usize {
        match self.draw(6) {
            0 => {
                let weight = values(4 * 4 * 9, x, 3);
                let conv = layers::Conv2d { stride: [1, 1], padding: Padding::all(1), dilation: [1, 1], groups: 1 };
                self.push(&[x], conv, &[("weight", &[4, 4, 3, 3], &weight), ("bias", &[4], &values(4, x, 0))])
            }
            1 => self.push(&[x], Activation::Relu, &[]),
            2 => {
                let shift = values(4, x, 0);
                let norm: [(&str, &[usize], &[f32]); 4] =
                    [("gamma", &[4], &[1.5; 4]), ("beta", &[4], &shift), ("mean", &[4], &[0.0; 4]), ("var", &[4], &[1.0; 4])];
                self.push(&[x], layers::BatchNorm { epsilon: 1e-5 }, &norm)
            }
            3 if gates > 0 => {
                let other = self.block(x, gates - 1);
                self.push(&[other, x], layers::Add, &[])
            }
            _ if gates > 0 => {
                let (gate, other) = (self.gate(x), self.block(x, 0));
                let sides = [true, false].map(|leaving| {
                    let routed = self.push(&[x, gate], Route { leaving }, &[]);
                    let side = self.blocks(routed, gates - 1);
                    // A value from before the gate, read on one side alone or on both.
                    match self.draw(2) {
                        0 => side,
                        _ => {
                            let other = self.push(&[other, gate], Route { leaving }, &[]);
                            self.push(&[side, other], layers::Add, &[])
                        }
                    }
                });
                self.push(&[sides[0], sides[1], gate], Merge, &[])
            }
            _ => self.push(&[x], layers::Dropout { p: 0.5 }, &[]),
        }
    }

    fn blocks(&mut self, mut x: usize, gates: usize) -> usize {
        for _ in 0..self.draw(4) {
            x = self.block(x, gates);
        }
        x
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_sample_that_skips_work_comes_out_as_if_alone(draws in prop::collection::vec(0_usize..60, 40), samples in 2_usize..9) {
        let mut wiring = Wiring { nodes: Vec::new(), draws: draws.iter().cycle() };
        let gated = wiring.gate(0);
        let sides = [true, false].map(|leaving| {
            let routed = wiring.push(&[0, gated], Route { leaving }, &[]);
            wiring.blocks(routed, 2)
        });
        let x = wiring.push(&[sides[0], sides[1], gated], Merge, &[]);
        wiring.blocks(x, 2);
        let model = model(&[4, 3, 3], wiring.nodes);
        let shapes = model.check().unwrap();
        let input = values(samples * 36, draws[0], 0);
        // Neither fused nor packed: in floats the same operations, but for scales that go into weights.
        let plain = Engine { program: Program::lower(&model, &shapes, false), ..Engine::new(&model, 1).unwrap() };
        let alone: Vec<f32> = input.chunks(36).flat_map(|sample| plain.run(sample, 1).unwrap()).collect();
        let engine = Engine::new(&model, 1).unwrap();
        let (together, counts) = engine.run_counted(&input, samples).unwrap();
        assert_close(&together, &alone, 1e-4);
        prop_assert!(counts.iter().all(|(_, rows)| *rows <= samples));
        let shared = Engine::new(&model, 2).unwrap();
        prop_assert_eq!((&shared.run(&input, samples).unwrap(), shared.peak_bytes(3)), (&together, engine.peak_bytes(3)));
    }
}
