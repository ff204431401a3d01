//! The engine, which knows nothing of Burn, against Burn's forward pass.

use briquette_core::net::Net;
use briquette_core::stored::Storage;
use briquette_core::zoo::{Wanted, ZOO};
use briquette_runtime::{Engine, Model};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Largest difference of the two outputs, relative to the largest logit.
pub(crate) fn difference(net: &Net, model: &Model, images: Vec<f32>, batch: usize) -> f32 {
    let engine = Engine::new(model, 2).unwrap().run(&images, batch).unwrap();
    let shape = net.input_shape();
    let images = Tensor::<4>::from_data(TensorData::new(images, [batch, shape[0], shape[1], shape[2]]), &net.device());
    let burn = briquette_core::coding::floats(net.forward(images));
    assert_eq!(engine.len(), burn.len());
    let scale = burn.iter().fold(1e-6_f32, |most, v| most.max(v.abs()));
    engine.iter().zip(&burn).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs())) / scale
}

/// Random vectors in place of zero biases and neutral normalization.
fn stir(net: Net, rng: &mut ChaCha8Rng) -> Net {
    let device = net.device();
    let nodes = net.nodes.into_iter().map(|node| {
        let mut parameters = node.parameters();
        for parameter in parameters.iter_mut().filter(|parameter| parameter.shape.len() == 1) {
            let range = if matches!(parameter.name, "gamma" | "var") { 0.5..1.5 } else { -0.5..0.5 };
            parameter.base.iter_mut().for_each(|v| *v = rng.random_range(range.clone()));
        }
        node.with(parameters, &device).unwrap()
    });
    Net { nodes: nodes.collect() }
}

#[test]
fn engine_and_burn_agree_on_every_net_of_the_zoo() {
    for arch in ZOO {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        // Narrow where the full net is heavy: the operations and their wiring are the same.
        let width = if arch.input[1] > 32 { 0.125 } else { 0.5 };
        let normalization = Some((vec![0.4; arch.input[0]], vec![0.3; arch.input[0]]));
        let wanted = Wanted { width, normalization, ..arch.wanted() };
        let net = stir(arch.build(&wanted, &Device::flex()).unwrap(), &mut rng);
        let bytes = net.to_model(Storage::default()).unwrap().to_bytes().unwrap();
        let model = Model::from_bytes(&bytes).unwrap();
        let batch = 2;
        let images = (0..batch * arch.input.iter().product::<usize>()).map(|_| rng.random_range(0.0..1.0)).collect();
        let difference = difference(&net, &model, images, batch);
        assert!(difference <= 1e-4, "{}: {difference}", arch.name);
    }
}
