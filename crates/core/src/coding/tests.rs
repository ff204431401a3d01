use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};

use super::*;

fn coded(mask: Option<Vec<bool>>, source: Source, device: &Device) -> Param<Tensor<2>> {
    let base = Tensor::<2>::from_floats([[1.0, -2.0], [3.0, 0.5]], device);
    Coding { mask, source }.attach(Param::from_tensor(base))
}

#[test]
fn masked_weights_are_zero_and_get_no_gradient() {
    let device = Device::flex().autodiff();
    let param = coded(Some(vec![true, false, true, false]), Source::Free, &device).train();
    assert_eq!(floats(param.val()), [1.0, 0.0, 3.0, 0.0]);
    let grads = param.val().powi_scalar(2).sum().backward();
    assert_eq!(floats(param.base().grad(&grads).unwrap()), [2.0, 0.0, 6.0, 0.0]);
}

#[test]
fn a_centroids_gradient_is_the_sum_of_its_members() {
    let device = Device::flex().autodiff();
    let source = Source::Codebook { centroids: vec![0.5, -1.0], assignment: vec![0, 1, 0, 0] };
    let param = coded(Some(vec![true, true, true, false]), source, &device).train();
    assert_eq!(floats(param.val()), [0.5, -1.0, 0.5, 0.0]);
    let factors = Tensor::<2>::from_floats([[1.0, 10.0], [100.0, 1000.0]], &device);
    let grads = (param.val() * factors).sum().backward();
    let book = &param.reparameterization::<DeviceCoding>().unwrap().books[0];
    assert_eq!(floats(book.centroids.val().grad(&grads).unwrap()), [101.0, 10.0]);
}

/// A loss that is not linear, of all weights of a 5 by 3 matrix, and its gradient by the centroids of each book.
fn loss(source: Source, device: &Device) -> (f64, Vec<Vec<f32>>) {
    let base = Param::from_tensor(Tensor::<2>::zeros([5, 3], device));
    let param = Coding { mask: None, source }.attach(base).train();
    let factors = Tensor::<1, Int>::arange(1..16, device).float().reshape([5, 3]);
    let loss = (param.val() * factors).sin().sum();
    let grads = loss.backward();
    let coded = param.reparameterization::<DeviceCoding>().unwrap();
    let of_books = coded.books.iter().map(|book| floats(book.centroids.val().grad(&grads).unwrap()));
    let of_base = coded.base.iter().map(|base| floats(base.base.val().grad(&grads).unwrap()));
    let gradients = of_books.chain(of_base).collect();
    (f64::from(floats(loss)[0]), gradients)
}

/// Against central differences along every number that `parts` of the source list.
fn differentiates(source: &Source, parts: impl Fn(&mut Source) -> Vec<&mut f32>) {
    let device = Device::flex().autodiff();
    let (_, gradients) = loss(source.clone(), &device);
    for (which, gradient) in gradients.concat().into_iter().enumerate() {
        let moved = |by: f32| {
            let mut source = source.clone();
            *parts(&mut source)[which] += by;
            loss(source, &device).0
        };
        let slope = (moved(4e-3) - moved(-4e-3)) / 8e-3;
        assert!((slope - f64::from(gradient)).abs() < 2e-2 * (1.0 + slope.abs()), "{which}: {gradient}, {slope}");
    }
}

#[test]
fn a_base_values_gradient_is_the_signed_sum_of_its_members() {
    let device = Device::flex().autodiff();
    let source = Source::shared(Places::Hash { seed: 5 }, vec![0.5, -0.2, 0.1, 0.3], &[5, 3]).unwrap();
    let Source::Shared { places, .. } = &source else { panic!() };
    assert!(places.iter().any(|place| place & 1 == 1) && places.iter().any(|place| place & 1 == 0));
    let (_, gradients) = loss(source.clone(), &device);
    let values = Coding { mask: None, source: source.clone() }.values(vec![0.0; 15], &[5, 3]);
    let mut expected = [0.0_f32; 4];
    for (i, (place, value)) in places.iter().zip(values).enumerate() {
        let factor = (i + 1) as f32;
        let sign = if place & 1 == 0 { 1.0 } else { -1.0 };
        expected[*place as usize / 2] += sign * factor * (value * factor).cos();
    }
    assert!(gradients[0].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{gradients:?} {expected:?}");
    differentiates(&source, |source| {
        let Source::Shared { values, .. } = source else { panic!("no base values") };
        values.iter_mut().collect()
    });
}

#[test]
fn centroids_of_a_product_get_the_gradients_of_their_members() {
    let stage = |offset: u16| briquette_runtime::Stage {
        centroids: (0..10).map(|i| f32::from((i * 3 + offset) % 7) * 0.1 - 0.3).collect(),
        indices: (0..9).map(|i| (i + offset) / 2 % 2).collect(),
    };
    // Of 3 rows and 5 columns, as [5, 3] in Burn.
    let source = Source::Product {
        product: Product { width: 2, columns: 5, taps: 1, stages: vec![stage(0), stage(1)] },
        transposed: true,
    };
    differentiates(&source, |source| {
        let Source::Product { product, .. } = source else { panic!("no product") };
        product.stages.iter_mut().flat_map(|stage| &mut stage.centroids).collect()
    });
    let coding = Coding { mask: None, source };
    let param = coding.clone().attach(Param::from_tensor(Tensor::<2>::zeros([5, 3], &Device::flex())));
    assert_eq!((floats(param.val()), coding_of(&param)), (coding.values(vec![0.0; 15], &[5, 3]), coding));
}

#[test]
fn centroids_that_taps_share_survive_the_way_to_the_device_and_back() {
    let stage = briquette_runtime::Stage {
        centroids: (0..6).map(|i| i as f32 * 0.1 - 0.25).collect(),
        indices: (0..2 * 8_u16).map(|i| i * i % 3 % 2).collect(),
    };
    // 2 outputs, 3 inputs and 4 taps; blocks of 2 inputs and of 1.
    let product = Product { width: 2, columns: 3, taps: 4, stages: vec![stage.clone()] };
    let coding = Coding { mask: None, source: Source::Product { product, transposed: false } };
    let param = coding.clone().attach(Param::from_tensor(Tensor::<4>::zeros([2, 3, 2, 2], &Device::flex())));
    let values = floats(param.val());
    assert_eq!((&values, &coding_of(&param)), (&coding.values(vec![0.0; 24], &[2, 3, 2, 2]), &coding));
    for (output, input, tap) in (0..24).map(|i| (i / 12, i / 4 % 3, i % 4)) {
        let (block, row) = (input / 2, output * 4 + tap);
        let index = stage.indices[block * 8 + row] as usize;
        let expected = if block == 0 { stage.centroids[2 * index + input] } else { stage.centroids[4 + index] };
        assert_eq!(values[(output * 3 + input) * 4 + tap], expected);
    }
}

#[test]
fn a_hash_survives_the_way_to_the_device_and_back() {
    let source = Source::shared(Places::Hash { seed: 0x0123_4567_89ab_cdef }, vec![0.5, -1.0, 0.0], &[2, 2]).unwrap();
    let coding = Coding { mask: Some(vec![true, false, true, true]), source };
    let param = coding.clone().attach(Param::from_tensor(Tensor::<2>::zeros([2, 2], &Device::flex())));
    assert_eq!((floats(param.val()), coding_of(&param)), (coding.values(vec![0.0; 4], &[2, 2]), coding));
}

#[test]
fn a_coding_survives_the_way_to_the_device_and_back() {
    let source = Source::Codebook { centroids: vec![0.5, -1.0], assignment: vec![0, 1, 0, 0] };
    let param = coded(Some(vec![true, true, false, false]), source.clone(), &Device::flex());
    assert_eq!(coding_of(&param), Coding { mask: Some(vec![true, true, false, false]), source });
    let listed = weights(&param);
    assert_eq!(listed[0].values, [0.5, -1.0, 0.0, 0.0]);
    assert_eq!(listed[0].coding, coding_of(&param));
}

#[test]
fn filters_are_the_columns_of_a_matrix_and_the_rows_of_others() {
    let weight = |shape: Vec<usize>| Weight {
        path: String::new(),
        shape,
        values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        coding: Coding::default(),
    };
    let (linear, conv) = (weight(vec![2, 3]), weight(vec![3, 2, 1, 1]));
    assert_eq!((linear.filter_axis(), linear.fan_in(), conv.filter_axis(), conv.fan_in()), (1, 2, 0, 2));
    assert_eq!(linear.filters()[..], [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(conv.filters()[..], conv.values);
    for weight in [linear, conv] {
        assert_eq!(weight.unfiltered(weight.filters().into_owned()), weight.values);
    }
}

/// A map turned counterclockwise by a quarter.
fn quarter(map: &[f32], side: usize) -> Vec<f32> {
    (0..side * side).map(|i| map[i % side * side + side - 1 - i / side]).collect()
}

#[test]
fn filters_that_turn_make_a_network_whose_outputs_turn_with_its_input() {
    use crate::builder::{Builder, Conv};
    let device = Device::flex();
    let mut b = Builder::new([1, 7, 7], 3, &device);
    let mut x = b.conv("lift", b.input(), Conv::new(8, 3).no_bias());
    x = b.relu("relu", x);
    x = b.conv("group", x, Conv::new(12, 3).no_bias());
    b.flatten("flatten", x);
    let turning = |node: crate::net::Node, grouped: bool| {
        let mut parameters = node.parameters();
        for stored in parameters.iter_mut().filter(|stored| stored.name == "weight") {
            let rule = Places::Turns { mirrored: false, grouped };
            let count = rule.count(&stored.shape).unwrap().unwrap();
            let values = (0..count).map(|i| ((i * i * 7 + 3 * i) % 23) as f32 / 11.0 - 1.0).collect();
            stored.coding.source = Source::shared(rule, values, &stored.shape).unwrap();
        }
        node.with(parameters, &device).unwrap()
    };
    let nodes = b.finish().unwrap().nodes.into_iter();
    let nodes = nodes.map(|node| match node.name.as_str() {
        "lift" => turning(node, false),
        "group" => turning(node, true),
        _ => node,
    });
    let net = crate::net::Net { nodes: nodes.collect() };
    let image: Vec<f32> = (0..49).map(|i| ((i * i * 5) % 17) as f32 / 8.0 - 1.0).collect();
    let maps = |image: Vec<f32>| {
        let input = Tensor::<4>::from_data(TensorData::new(image, [1, 1, 7, 7]), &device);
        let y = floats(net.forward(input));
        y.chunks(9).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let (still, turned) = (maps(image.clone()), maps(quarter(&image, 7)));
    assert_eq!((still.len(), turned.len()), (12, 12));
    for filter in 0..3 {
        for g in 0..4 {
            let expected = quarter(&still[4 * filter + (g + 3) % 4], 3);
            let found = &turned[4 * filter + g];
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{filter} {g}: {found:?} {expected:?}");
        }
    }
    assert!(still[0] != still[1]);
}

#[test]
fn base_values_decay_as_weights_do() {
    use crate::training::{Optimizer, Recipe};
    let device = Device::flex();
    let source = Source::shared(Places::Tiles { times: 2 }, vec![1.0, -2.0, 0.5], &[1, 2, 3]).unwrap_err();
    assert!(source.to_string().contains("each filter stands 2 times"), "{source}");
    let source = Source::shared(Places::Tiles { times: 2 }, vec![1.0, -2.0, 0.5], &[2, 3, 1]).unwrap();
    let param = Coding { mask: None, source }.attach(Param::from_tensor(Tensor::<3>::zeros([2, 3, 1], &device)));
    assert_eq!(floats(param.val()), [1.0, -2.0, 0.5, 1.0, -2.0, 0.5]);
    #[derive(Module, Debug)]
    struct One {
        weight: Param<Tensor<3>>,
    }
    let module = One { weight: param }.train();
    let recipe = Recipe { optimizer: Optimizer::Sgd, momentum: 0.0, weight_decay: 0.5, ..Recipe::default() };
    let loss = module.weight.val().sum();
    let gradients = burn::optim::GradientsParams::from_grads(loss.backward(), &module);
    let after = recipe.optimizer().step(0.1, module, gradients);
    // Each step goes by 0.1 times 2, one for each place of a value, and decays by 0.1 * 0.5.
    let found = floats(after.valid().weight.val());
    assert!(found.iter().zip([0.75, -2.1, 0.275, 0.75, -2.1, 0.275]).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
}
