use super::*;

#[test]
fn codings_lose_the_entries_of_their_weights() {
    let net = zoo("lenet300");
    let device = net.device();
    let index = net.index("fc2").unwrap();
    let mut nodes = net.nodes;
    let node = nodes.remove(index);
    let mut parameters = node.parameters();
    let count = parameters[0].base.len();
    let source = Source::Codebook { centroids: vec![-1.0, 1.0], assignment: (0..count).map(|i| (i / 300 % 2) as u32).collect() };
    parameters[0].coding = Coding { mask: Some((0..count).map(|i| i % 300 != 5).collect()), source };
    nodes.insert(index, node.with(parameters, &device).unwrap());
    let net = Net { nodes };
    let groups = net.channel_groups().unwrap();
    let cuts = [
        (&groups[0], Keep::new((0..300).map(|unit| unit >= 4).collect())),
        (&groups[1], Keep::new((0..100).map(|unit| unit != 0).collect())),
    ];
    let cut = net.keep(&cuts).unwrap();
    let weight = cut.nodes[index].weight().unwrap();
    assert_eq!(weight.shape, [99, 296]);
    let Source::Codebook { assignment, .. } = &weight.coding.source else { panic!("the codebook is gone") };
    assert!(assignment.iter().enumerate().all(|(i, &a)| a == ((i / 296 + 1) % 2) as u32));
    assert!(weight.coding.mask.unwrap().iter().enumerate().all(|(i, &keep)| keep == (i % 296 != 1)));
}

/// LeNet-300-100 whose second layer has this source, cut to 99 outputs, and if `inputs` to 296 inputs: the layer's weight, and what of the
/// whole one is left.
fn cut_fc2(source: impl Fn(&[usize]) -> Source, inputs: bool) -> (Stored, Vec<f32>) {
    let net = zoo("lenet300");
    let (index, device) = (net.index("fc2").unwrap(), net.device());
    let mut nodes = net.nodes;
    let node = nodes.remove(index);
    let mut parameters = node.parameters();
    parameters[0].coding = Coding { mask: None, source: source(&parameters[0].shape) };
    let whole = parameters[0].values();
    nodes.insert(index, node.with(parameters, &device).unwrap());
    let net = Net { nodes };
    let groups = net.channel_groups().unwrap();
    let mut cuts = vec![(&groups[1], Keep::new((0..100).map(|unit| unit != 2).collect()))];
    if inputs {
        cuts.push((&groups[0], Keep::new((0..300).map(|unit| unit >= 4).collect())));
    }
    let cut = net.keep(&cuts).unwrap();
    let stays = |i: &usize| i / 300 != 2 && !(inputs && i % 300 < 4);
    let left = (0..whole.len()).filter(stays).map(|i| whole[i]).collect();
    (cut.nodes[index].weight().unwrap(), left)
}

#[test]
fn a_cut_breaks_a_hash_up_into_the_codebook_of_its_values() {
    let hashed = |values: usize| {
        move |shape: &[usize]| {
            let values: Vec<f32> = (1..=values).map(|i| i as f32 * 1e-4).collect();
            let places = Places::Hash { seed: 3 }.all(shape, values.len());
            Source::Shared { rule: Places::Hash { seed: 3 }, values, places }
        }
    };
    let (weight, left) = cut_fc2(hashed(50), false);
    assert!(weight.values() == left);
    assert!(matches!(&weight.coding.source, Source::Codebook { centroids, .. } if centroids.len() == 100));
}

#[test]
fn a_product_loses_rows_and_is_broken_up_by_columns() {
    let product = |shape: &[usize]| {
        let stage = briquette_runtime::Stage {
            centroids: (0..4 * shape[1]).map(|i| (i % 53) as f32 * 0.01).collect(),
            indices: (0..75 * shape[0]).map(|i| (i * i % 4) as u16).collect(),
        };
        let product = briquette_runtime::Product { width: 4, columns: shape[1], taps: 1, stages: vec![stage.clone(), stage] };
        Source::Product { product, transposed: false }
    };
    let (weight, left) = cut_fc2(product, false);
    assert!(weight.values() == left && matches!(&weight.coding.source, Source::Product { product, .. } if product.rows() == 99));
    let (weight, left) = cut_fc2(product, true);
    assert!(weight.values() == left && matches!(weight.coding.source, Source::Codebook { .. }));
}
