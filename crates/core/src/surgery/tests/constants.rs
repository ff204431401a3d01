use briquette_runtime::StepGradient;
use burn::module::Param;
use burn::tensor::Tensor;

use super::*;
use crate::quantize::Quantize;

/// The network with the weights of these filters set to zero, by a mask where they have no values of their own.
pub(super) fn emptied(mut net: Net, filters: &[(usize, usize)]) -> Net {
    let device = net.device();
    for &(index, filter) in filters {
        let node = net.nodes.remove(index);
        let mut parameters = node.parameters();
        let weight = &mut parameters[0];
        let (count, fan_in) = (weight.base.len(), weight.base.len() / weight.shape[0]);
        if weight.coding.source == Source::Free {
            weight.base[filter * fan_in..][..fan_in].fill(0.0);
        } else {
            weight.coding.mask.get_or_insert_with(|| vec![true; count])[filter * fan_in..][..fan_in].fill(false);
        }
        net.nodes.insert(index, node.with(parameters, &device).unwrap());
    }
    net
}

/// The outputs of the network, of the one in which the units are masked, and of the one that is cut, after their constants went to their
/// readers; and how many units are gone.
fn absorbed(net: Net, cuts: &[(&ChannelGroup, Keep)], border: Border, input: &[f32]) -> Result<([Vec<f32>; 3], usize)> {
    let before = output(&net, input);
    let (net, keeps) = net.absorb(cuts, border)?;
    let masked = output(&net.deep_clone().mask(&keeps)?, input);
    let gone = keeps.iter().map(|(group, keep)| group.len() - keep.count()).sum();
    Ok(([before, masked, output(&net.keep(&keeps)?, input)], gone))
}

#[test]
fn units_of_empty_filters_are_masked_and_cut_with_no_change_of_the_output() {
    // Of the networks with free weights, and of those under codings.
    let (mut gone_units, mut wanted_units) = ([0; 2], [0; 2]);
    for seed in 0..1200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let net = random_net(&mut rng);
        let kind = seed as usize % 2;
        let net = if kind == 0 { net } else { coded(net, &mut rng) };
        let groups = net.channel_groups().unwrap();
        let open: Vec<&ChannelGroup> = groups.iter().filter(|group| group.frozen.is_none()).collect();
        let chosen: Vec<Keep> = open.iter().map(|group| random_keep(group, &mut rng)).collect();
        let units = |group: &ChannelGroup, keep: &Keep| (0..group.len()).filter(|u| !keep.0[*u]).collect::<Vec<_>>();
        let filters = open.iter().zip(&chosen).flat_map(|(group, keep)| units(group, keep).into_iter().map(|u| group.filters(u)));
        let net = emptied(net.deep_clone(), &filters.flatten().copied().collect::<Vec<_>>());
        let constant = net.constant_units(&groups).unwrap().into_iter().zip(&groups).filter(|(_, group)| group.frozen.is_none());
        let cuts: Vec<(&ChannelGroup, Keep)> = constant
            .map(|(constant, group)| {
                let full: Vec<f64> = constant.iter().map(|constant| f64::from(u8::from(!constant))).collect();
                let count = full.iter().filter(|full| **full > 0.0).count().max(1);
                (group, group.best(&full, count))
            })
            .collect();
        let input = noise(&mut rng, 2 * net.input_shape().iter().product::<usize>());
        if on_an_edge(&net, &input) {
            continue;
        }
        wanted_units[kind] += cuts.iter().map(|(group, keep)| group.len() - keep.count()).sum::<usize>();
        let ([before, masked, cut], gone) = match absorbed(net, &cuts, Border::Exact, &input) {
            Ok(found) => found,
            // A slice may be left without channels, though its group keeps some.
            Err(error) => {
                assert!(error.to_string().contains("would keep none"), "seed {seed}: {error}");
                continue;
            }
        };
        assert!(agree(&before, &masked) && agree(&before, &cut), "seed {seed}: {before:?}, masked {masked:?}, cut {cut:?}");
        gone_units[kind] += gone;
    }
    // What padding needs stays: about one unit of a group, and where weights are shared all that give something.
    assert!(gone_units[0] > 2000 && 10 * gone_units[0] > 7 * wanted_units[0], "{gone_units:?} of {wanted_units:?}");
    assert!(gone_units[1] > 1000, "{gone_units:?} of {wanted_units:?}");
}

/// A first layer, of whose four filters the last two give constants, behind a norm that shifts; and a second that reads them.
fn shifting(second: Conv, bias: bool, norm: bool) -> Net {
    let mut b = Builder::new([2, 6, 6], 5, &Device::flex());
    let x = b.conv("first", b.input(), Conv::new(4, 3).no_bias());
    let x = b.batch_norm("norm", x);
    let x = b.relu("relu", x);
    let x = b.conv("second", x, if bias { second } else { second.no_bias() });
    let x = if norm { b.batch_norm("next-norm", x) } else { x };
    let x = b.global_avg_pool("pool", x);
    b.linear("fc", x, 3);
    let net = stir(b.finish().unwrap(), &mut ChaCha8Rng::seed_from_u64(4));
    let net = emptied(net, &[(1, 2), (1, 3)]);
    with(with(net, "norm", "beta", &[0.3, -0.2, 0.9, 1.7]), "norm", "mean", &[0.1, 0.2, 0.3, -0.4])
}

fn with(mut net: Net, node: &str, parameter: &str, values: &[f32]) -> Net {
    let (index, device) = (net.index(node).unwrap(), net.device());
    let node = net.nodes.remove(index);
    let mut parameters = node.parameters();
    parameters.iter_mut().find(|stored| stored.name == parameter).unwrap().base = values.to_vec();
    net.nodes.insert(index, node.with(parameters, &device).unwrap());
    net
}

fn of(net: &Net, node: &str, parameter: &str) -> Option<Vec<f32>> {
    net.nodes[net.index(node).unwrap()].parameters().into_iter().find(|stored| stored.name == parameter).map(|stored| stored.base)
}

#[test]
fn a_shift_behind_a_norm_becomes_the_bias_or_the_mean_of_what_reads_it() {
    let input = noise(&mut ChaCha8Rng::seed_from_u64(6), 2 * 72);
    for (bias, norm) in [(true, false), (false, false), (true, true), (false, true)] {
        let net = shifting(Conv::new(5, 3), bias, norm);
        let groups = net.channel_groups().unwrap();
        let cuts = [(&groups[0], Keep::new(vec![true, true, false, false]))];
        for border in [Border::Exact, Border::Mean] {
            let ([before, masked, cut], gone) = absorbed(net.deep_clone(), &cuts, border, &input).unwrap();
            assert!(agree(&before, &masked) && agree(&before, &cut), "{bias} {norm} {border:?}");
            assert_eq!(gone, 2);
            // Without the shift it would be another network.
            assert!(!agree(&before, &output(&net.deep_clone().keep(&cuts).unwrap(), &input)));
            let (moved, _) = net.deep_clone().absorb(&cuts, border).unwrap();
            assert_eq!(of(&moved, "second", "bias").is_some(), bias || !norm);
            assert_eq!(norm && of(&moved, "next-norm", "mean") != of(&net, "next-norm", "mean"), norm && !bias);
        }
    }
}

#[test]
fn where_zeros_are_padded_one_unit_carries_the_shift_of_all_or_its_mean_remains() {
    let input = noise(&mut ChaCha8Rng::seed_from_u64(7), 2 * 72);
    let net = shifting(Conv::new(5, 3).same(), false, true);
    let groups = net.channel_groups().unwrap();
    let cuts = [(&groups[0], Keep::new(vec![true, true, false, false]))];
    let ([before, masked, cut], gone) = absorbed(net.deep_clone(), &cuts, Border::Exact, &input).unwrap();
    assert!(agree(&before, &masked) && agree(&before, &cut));
    assert_eq!(gone, 1, "the larger stays for both");
    // The mean of the layer's outputs, which is all that the next ones see here, stays.
    let ([before, masked, cut], gone) = absorbed(net, &cuts, Border::Mean, &input).unwrap();
    assert!(agree(&before, &masked) && agree(&before, &cut));
    assert_eq!(gone, 2);
}

#[test]
fn a_kept_weight_that_is_zero_is_not_masked_by_what_it_carries() {
    let mut net = shifting(Conv::new(5, 3).same(), false, true);
    let index = net.index("second").unwrap();
    let (node, device) = (net.nodes.remove(index), net.device());
    let mut parameters = node.parameters();
    // The first tap of the first filter reads neither of the two units; another weight is masked.
    [2, 3].into_iter().for_each(|unit| parameters[0].base[unit * 9] = 0.0);
    let mask: Vec<bool> = (0..5 * 4 * 9).map(|i| i != 1).collect();
    parameters[0].coding.mask = Some(mask.clone());
    net.nodes.insert(index, node.with(parameters, &device).unwrap());
    let groups = net.channel_groups().unwrap();
    let cuts = [(&groups[0], Keep::new(vec![true, true, false, false]))];
    let before = of(&net, "second", "weight");
    let (carried, keeps) = net.absorb(&cuts, Border::Exact).unwrap();
    assert!(keeps[0].1.count() == 3 && of(&carried, "second", "weight") != before);
    assert_eq!(carried.nodes[index].weight().unwrap().coding.mask, Some(mask));
}

#[test]
fn what_shares_its_weights_keeps_the_units_that_its_padding_needs_and_what_varies_is_refused() {
    let mut net = shifting(Conv::new(5, 3).same(), true, false);
    let groups = net.channel_groups().unwrap();
    let cuts = [(&groups[0], Keep::new(vec![true, true, false, false]))];
    let index = net.index("second").unwrap();
    let (node, device) = (net.nodes.remove(index), net.device());
    let mut parameters = node.parameters();
    let count = parameters[0].base.len();
    let assignment = (0..count).map(|i| (i % 2) as u32).collect();
    parameters[0].coding.source = Source::Codebook { centroids: vec![-0.5, 0.25], assignment };
    net.nodes.insert(index, node.with(parameters, &device).unwrap());
    let (_, keeps) = net.deep_clone().absorb(&cuts, Border::Exact).unwrap();
    assert_eq!(keeps[0].1, Keep::new(vec![true; 4]));
    let varies = net.absorb(&[(&groups[0], Keep::new(vec![false, true, true, true]))], Border::Mean).unwrap_err().to_string();
    assert_eq!(varies, "node 'second': reads unit 0 of the channels of 'first', which is not constant");
}

#[test]
fn a_quantizer_takes_a_constant_to_the_nearest_of_its_steps_whatever_trains_them() {
    for train in [StepGradient::Fixed, StepGradient::Learned, StepGradient::Clip] {
        let mut b = Builder::new([1, 4, 4], 5, &Device::flex());
        let x = b.conv("first", b.input(), Conv::new(2, 1));
        let scale = Param::from_tensor(Tensor::from_floats([0.25 * train.steps(9, 2.0)], &Device::flex()));
        let x = b.push("quantize", &[x], Quantize::new(scale, 9, 2.0, train).into());
        let x = b.global_avg_pool("pool", x);
        b.linear("fc", x, 3);
        let net = with(emptied(b.finish().unwrap(), &[(1, 1)]), "first", "bias", &[0.1, 0.7]);
        // 2.8 steps.
        assert_eq!(net.constants().unwrap()[2], [None, Some(0.75)], "{train:?}");
    }
}
