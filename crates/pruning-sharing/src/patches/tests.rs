use briquette_core::builder::{Builder, Conv};
use briquette_core::context::Silent;
use burn::tensor::Device;

use super::*;
use crate::pruning::channel_lasso::ChannelLasso;
use crate::pruning::thinet::ThiNet;
use briquette_handmade::{context, dependent, get, images, outputs, refusal, run, set};

pub(crate) fn agree(a: &Net, b: &Net) -> bool {
    let (a, b) = (outputs(a), outputs(b));
    let size = a.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-3 * size)
}

/// As the method's cut, but the weights of what stays remain as they are.
pub(crate) fn unfitted<C: Choice>(method: &ByNextLayer<C>, net: Net, cx: &mut Context<'_>) -> Net {
    let sample = Sample { images: C::IMAGES, positions: method.positions, hold_back: true };
    let choose = |moments: &Moments, count: usize| {
        let stays = C::choose(moments, count).0;
        let factors: Vec<f64> = stays.iter().map(|stays| f64::from(u8::from(*stays))).collect();
        (stays, moments.scaled(&factors))
    };
    cut(C::NAME, method.counts(&net).unwrap(), net, sample, cx, choose).unwrap()
}

pub(crate) fn of_conv2(net: &Net) -> Moments {
    let (data, mut silent) = (images(), Silent);
    let sample = Sample { images: 40, positions: 20, hold_back: false };
    let reading = Reading::of(net, &net.channel_groups().unwrap()[0], net.index("conv2").unwrap());
    moments(net, net, &reading, sample, "patches", &mut context(&data, &mut silent)).unwrap()
}

/// A convolution of 8 filters in two groups, whose units are filters `c` and `c + 4`, read by a convolution or a fully connected layer. Nothing
/// reads unit 2, and of unit 1 the filters and what reads them are those of unit 3, but for a factor each.
fn grouped(flat: bool) -> Net {
    let mut b = Builder::new([1, 4, 4], 17, &Device::flex());
    let mut x = b.conv("lift", b.input(), Conv::new(4, 1));
    x = b.relu("relu1", x);
    x = b.conv("grouped", x, Conv::new(8, 2).groups(2));
    x = b.relu("relu2", x);
    if flat {
        x = b.flatten("flatten", x);
        b.linear("reader", x, 3);
    } else {
        x = b.conv("reader", x, Conv::new(3, 2));
        b.global_avg_pool("pool", x);
    }
    let net = b.finish().unwrap();
    let mut filters = get(&net, "grouped", "weight");
    let of_filter = filters.len() / 8;
    (0..8).filter(|filter| filter % 4 == 1).for_each(|filter| {
        (0..of_filter).for_each(|i| filters[filter * of_filter + i] = 2.0 * filters[(filter + 2) * of_filter + i]);
    });
    let mut readers = get(&net, "reader", "weight");
    let of_channel = readers.len() / 3 / 8;
    for i in 0..readers.len() {
        match i / of_channel % 4 {
            1 => readers[i] = 0.01 * readers[i + 2 * of_channel],
            2 => readers[i] = 0.0,
            _ => {}
        }
    }
    set(set(net, "grouped", "weight", &filters), "reader", "weight", &readers)
}

#[test]
fn a_unit_of_a_convolution_in_groups_goes_with_its_filters_of_every_group() {
    for flat in [false, true] {
        let net = grouped(flat);
        for share in [0.25, 0.5] {
            let settings = serde_json::json!({ "ratio": { "grouped": share } });
            let thinet = run::<ThiNet>(net.deep_clone(), settings.clone()).unwrap();
            let lasso = run::<ChannelLasso>(net.deep_clone(), settings).unwrap();
            for cut in [thinet, lasso] {
                assert_eq!(
                    cut.nodes[cut.index("grouped").unwrap()].op.weight_shape().unwrap()[0],
                    if share == 0.25 { 6 } else { 4 }
                );
                assert!(agree(&net, &cut), "{flat} {share}: {:?} {:?}", outputs(&net), outputs(&cut));
            }
        }
    }
}

#[test]
fn least_squares_reproduce_the_output_when_what_goes_depends_on_what_stays() {
    let net = dependent();
    let cut = |stays: [bool; 4]| {
        let choose = |moments: &Moments, _: usize| (stays.to_vec(), moments.reconstructed(&stays));
        let channels: Channels = serde_json::from_value(serde_json::json!({ "ratio": { "conv1": 0.5 } })).unwrap();
        let (data, mut silent) = (images(), Silent);
        let sample = Sample { images: 40, positions: 20, hold_back: false };
        let groups = counts("patches", &channels, &net).unwrap();
        super::cut("patches", groups, net.deep_clone(), sample, &mut context(&data, &mut silent), choose).unwrap()
    };
    assert!(agree(&net, &cut([true, true, false, false])) && agree(&net, &cut([true, false, false, true])));
    assert!(!agree(&net, &cut([false, true, false, true])));
}

#[test]
fn a_layer_in_layers_whose_channels_no_one_layer_reads_is_refused() {
    let settings = serde_json::json!({ "ratio": 0.25, "layers": ["lift", "grouped"] });
    let why = "node 'lift': its channels are not read by one layer alone, or by one in groups; use filter-l1 for it";
    assert_eq!(refusal::<ThiNet>(grouped(false), settings), why);
    let kind = refusal::<ThiNet>(grouped(true), serde_json::json!({ "ratio": 0.25, "layers": ["li*"] }));
    assert!(kind.starts_with("thinet: no layer's channels are read by one layer alone"), "{kind}");
}
