use super::constants::emptied;
use super::*;
use crate::cost::Cost;
use crate::zoo::{Wanted, ZOO};

/// Whether shapes and the cut network give the same cost of every layer, or refuse in the same words; true where there is one.
fn foretold(net: Net, rng: &mut ChaCha8Rng, what: &str) -> bool {
    let groups = net.channel_groups().unwrap();
    let open = groups.iter().filter(|group| group.frozen.is_none());
    let cuts: Vec<(&ChannelGroup, Keep)> = open.map(|group| (group, random_keep(group, rng))).collect();
    let expected = net.cost_after(&cuts).map_err(|error| error.to_string());
    let cut = net.keep(&cuts).map(|cut| Cost::of(&cut).unwrap()).map_err(|error| error.to_string());
    assert_eq!(expected, cut, "{what}");
    expected.is_ok()
}

#[test]
fn shapes_tell_the_cost_of_a_cut_of_random_nets() {
    let told = (0..600).filter(|&seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let net = random_net(&mut rng);
        let net = if seed % 2 == 0 { net } else { coded(net, &mut rng) };
        foretold(net, &mut rng, &format!("seed {seed}"))
    });
    assert!(told.count() > 450);
}

#[test]
fn shapes_tell_the_cost_of_a_cut_once_constants_and_norms_are_folded() {
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let net = random_net(&mut rng).fold_norms().unwrap();
        let filters: Vec<(usize, usize)> = net.own_weights().map(|(index, _)| (index, 0)).collect();
        let net = emptied(net, &filters);
        let groups = net.channel_groups().unwrap();
        let open = groups.iter().filter(|group| group.frozen.is_none());
        let cuts: Vec<_> = open.map(|group| (group, Keep::new((0..group.len()).map(|unit| unit > 0).collect()))).collect();
        let Ok((net, _)) = net.absorb(&cuts, Border::Mean) else { continue };
        foretold(net, &mut rng, &format!("seed {seed}"));
    }
}

#[test]
fn shapes_tell_the_cost_of_a_cut_of_every_network_of_the_zoo() {
    for (arch, seed) in ZOO.iter().zip(0..) {
        let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex()).unwrap();
        foretold(net, &mut ChaCha8Rng::seed_from_u64(seed), arch.name);
    }
}

#[test]
fn a_cut_that_is_refused_has_no_cost() {
    let net = zoo("lenet5");
    let groups = net.channel_groups().unwrap();
    let none = [(&groups[0], Keep::new(vec![false; groups[0].len()]))];
    assert_eq!(net.cost_after(&none).unwrap_err().to_string(), net.keep(&none).unwrap_err().to_string());
}
