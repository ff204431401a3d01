use super::*;

fn written(text: &str) -> std::result::Result<Ranks, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn rule(text: &str) -> Rule {
    serde_json::from_str(text).unwrap()
}

fn of(singular: &[f64], shape: [usize; 2]) -> Spectrum {
    Spectrum { singular: singular.to_vec(), shape, energy: singular.iter().map(|s| s * s).sum() }
}

fn message(rule: &Rule, spectra: &[Spectrum], limits: &[usize]) -> String {
    rule.choose(spectra, limits).unwrap_err().to_string()
}

/// Golden values of a 10 by 7 matrix.
const FC: [f64; 7] = [11.53404349, 6.996705766, 2.629084684, 1.361628569, 0.6100130828, 0.4784901077, 0.07242291293];

#[test]
fn ranks_are_numbers_lists_rules_or_tables_of_these() {
    assert_eq!(written("16").unwrap(), Ranks::Layers(PerLayer::All(Rule::Fixed(16))));
    assert_eq!(written("[16, 32]").unwrap(), Ranks::Layers(PerLayer::All(Rule::Each(vec![16, 32]))));
    let Ranks::Layers(PerLayer::Each(each)) = written(r#"{ "conv1": 4, "conv2": [2, 3], "rest": { "energy": 0.9 } }"#).unwrap()
    else {
        panic!("by layers")
    };
    assert_eq!(each[&Selector::from("conv2")], Rule::Each(vec![2, 3]));
    assert_eq!(each[&Selector::from("rest")], Rule::Energy(Share(0.9), Rounding::default()));
    let (eight, two) = (NonZeroUsize::new(8).unwrap(), NonZeroUsize::new(2).unwrap());
    assert_eq!(
        written(r#"{ "macs": 0.5, "multiple": 8, "floor": 2 }"#).unwrap(),
        Ranks::Budget(Budget::Macs(Share(0.5)), On::Energy, Rounding { multiple: eight, floor: two })
    );
    assert_eq!(written(r#"{ "ms": 1.5 }"#).unwrap(), Ranks::Budget(Budget::Ms(1.5), On::Energy, Rounding::default()));
    let on_accuracy = Ranks::Budget(Budget::Bytes(Share(0.5)), On::Accuracy(Some(two)), Rounding::default());
    assert_eq!(written(r#"{ "bytes": 0.5, "on": "accuracy", "images": 2 }"#).unwrap(), on_accuracy);
}

#[test]
fn what_makes_no_sense_is_refused_in_plain_words() {
    for (text, expected) in [
        ("0", "a rank is a whole number of at least 1, not 0"),
        ("0.5", "not 0.5; a share of the limit is { fraction = 0.5 }"),
        ("-3", "at least 1, not -3"),
        (r#""all""#, "a whole number of at least 1, not \"all\""),
        ("[]", "a list of ranks has at least one"),
        ("[4, 0]", "at least 1, not 0"),
        ("{}", "a table of ranks has a rule or layers"),
        (r#"{ "energy": 0.0 }"#, "a share lies in (0, 1], not 0"),
        (r#"{ "evbmf": 1.5 }"#, "a share lies in (0, 1], not 1.5"),
        (r#"{ "energy": 0.9, "fraction": 0.5 }"#, "exactly one of `fraction`, `energy`"),
        (r#"{ "multiple": 8 }"#, "exactly one of `fraction`, `energy`"),
        (r#"{ "energy": 0.9, "multiple": 0 }"#, "nonzero"),
        (r#"{ "energy": 0.9, "conv1": 4 }"#, "unknown field `conv1`"),
        (r#"{ "energy": 0.5, "on": "accuracy" }"#, "`on` is of a budget, `macs`, `bytes` or `ms`"),
        (r#"{ "macs": 0.5, "images": 9 }"#, "`images` are those of `on = \"accuracy\"`"),
        (r#"{ "macs": 0.5, "on": "loss" }"#, "unknown variant `loss`"),
        (r#"{ "ms": 0 }"#, "`ms` is a number of milliseconds above 0, not 0"),
        (r#"{ "conv1": { "macs": 0.5 } }"#, "`conv1`: `macs`, `bytes` and `ms` are budgets for all layers"),
        (r#"{ "conv1": 0 }"#, "`conv1`: a rank is a whole number"),
        (r#"{ "layer1": { "0": 4 } }"#, r#"a name with dots needs quotes: { "layer1.0" = 4 }"#),
    ] {
        let error = written(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn the_least_rank_that_keeps_the_energy() {
    for (share, rank) in [(0.5, 1), (0.8, 2), (0.9, 2), (0.95, 2), (0.99, 4), (0.999, 6), (1.0, 7)] {
        assert_eq!(energy_rank(&FC, share), rank, "{share}");
        assert_eq!(of(&FC, [10, 7]).keeping(share).unwrap(), rank, "{share}");
    }
    assert_eq!(energy_rank(&[3.0, 1.0, 0.0, 0.0], 1.0), 2, "zeros keep nothing");
    assert_eq!(energy_rank(&[0.0; 3], 0.9), 0);
    assert_eq!(energy_rank(&[], 0.9), 0);
}

#[test]
fn a_spectrum_that_is_cut_off_counts_the_energy_of_the_rest() {
    let whole = of(&FC, [10, 7]);
    let cut = Spectrum { singular: FC[..3].to_vec(), ..whole };
    let rule = |share: f64| Rule::Energy(Share(share), Rounding::default());
    assert_eq!(rule(0.95).choose(std::slice::from_ref(&cut), &[7]).unwrap().ranks, [2]);
    let error = message(&rule(0.99), &[cut], &[7]);
    assert_eq!(error, "the 3 largest singular values hold less than 0.99 of the energy; lower `energy`");
}

#[test]
fn fixed_ranks_stay_within_their_limits() {
    assert_eq!(Rule::Fixed(3).choose(&[], &[8, 3]).unwrap(), Chosen { ranks: vec![3, 3], note: None });
    assert_eq!(Rule::Each(vec![8, 2]).choose(&[], &[8, 3]).unwrap().ranks, [8, 2]);
    assert_eq!(message(&Rule::Fixed(4), &[], &[8, 3]), "rank 4 is not in 1..=3, all that its shape allows");
    assert_eq!(message(&Rule::Fixed(0), &[], &[8]), "rank 0 is not in 1..=8, all that its shape allows");
    assert_eq!(message(&Rule::Each(vec![1]), &[], &[8, 3]), "`ranks` lists 1, but it has 2");
}

#[test]
fn found_ranks_are_raised_to_the_floor_rounded_up_and_cut_off() {
    let ranks = |text: &str| rule(text).choose(&[], &[64, 20, 3]).unwrap();
    assert_eq!(ranks(r#"{ "fraction": 0.25 }"#), Chosen { ranks: vec![16, 5, 1], note: None });
    assert_eq!(ranks(r#"{ "fraction": 0.25, "multiple": 8 }"#).ranks, [16, 8, 3]);
    let raised = ranks(r#"{ "fraction": 0.25, "floor": 6, "multiple": 4 }"#);
    assert_eq!(raised.ranks, [16, 8, 3]);
    assert_eq!(raised.note.unwrap().to_string(), "the rule found rank 16, 5, 1; raised to the floor of 6");
    let vast = format!(r#"{{ "fraction": 0.9, "multiple": {} }}"#, usize::MAX / 2 + 2);
    assert_eq!(ranks(&vast).ranks, [64, 20, 3], "a multiple beyond all numbers");
}

#[test]
fn a_multiple_and_a_floor_are_of_all_groups_together() {
    let of = |multiple: usize, floor: usize, groups: usize| {
        let each = |number: usize| NonZeroUsize::new(number).unwrap();
        let of_group = Rounding { multiple: each(multiple), floor: each(floor) }.of_group(groups);
        (of_group.multiple.get(), of_group.floor.get())
    };
    assert_eq!([of(8, 6, 1), of(8, 6, 2), of(6, 6, 4), of(3, 1, 2), of(4, 9, 4)], [(8, 6), (4, 3), (3, 2), (3, 1), (1, 3)]);
}

#[test]
fn evbmf_is_weakened_and_says_when_the_floor_applied() {
    // Four singular values beyond the noise of an 8 by 72 matrix.
    let spectrum = of(&[90.0, 70.0, 60.0, 50.0, 9.5, 9.0, 8.5, 8.0], [8, 72]);
    let ranks = |w: f64, spectrum: &Spectrum| {
        Rule::Evbmf(Share(w), Rounding::default()).choose(std::slice::from_ref(spectrum), &[8]).unwrap()
    };
    assert_eq!(ranks(1.0, &spectrum), Chosen { ranks: vec![4], note: None });
    assert_eq!(ranks(0.5, &spectrum).ranks, [6]);
    assert_eq!(ranks(0.3, &spectrum).ranks, [7], "8 - 1.2");
    let noise = of(&[9.5, 9.2, 9.0, 8.8, 8.5, 8.3, 8.2, 8.0], [8, 72]);
    let floored = ranks(1.0, &noise);
    assert_eq!(floored.ranks, [1]);
    assert_eq!(floored.note.unwrap().to_string(), "the rule found rank 0; raised to the floor of 1");
    assert_eq!(ranks(0.7, &of(&[0.0; 8], [8, 72])).ranks, [3], "8 - 5.6");
}

#[test]
fn weights_that_are_not_finite_and_spectra_that_are_missing_are_refused() {
    let energy = rule(r#"{ "energy": 0.9 }"#);
    let error = message(&energy, &[of(&[f64::NAN, 1.0], [2, 2])], &[2]);
    assert!(error.starts_with("its weights are not finite"), "{error}");
    assert_eq!(message(&energy, &[], &[2]), "0 spectra for 1 ranks");
}

#[test]
fn ranks_that_follow_from_shapes_are_exact_without_weights() {
    for (text, exact) in [
        ("16", true),
        ("[1, 2]", true),
        (r#"{ "fraction": 0.5 }"#, true),
        (r#"{ "energy": 0.5 }"#, false),
        (r#"{ "evbmf": 0.5 }"#, false),
        (r#"{ "bytes": 0.5 }"#, false),
        (r#"{ "conv1": 4, "rest": { "fraction": 0.5 } }"#, true),
        (r#"{ "conv1": 4, "rest": { "energy": 0.5 } }"#, false),
    ] {
        assert_eq!(written(text).unwrap().exact(), exact, "{text}");
    }
}
