use super::*;
use crate::cost::{Cost, LayerCost};
use crate::net::Op;

/// Name, parameters (biases and batch norm included, running statistics not), weights alone, multiply-accumulates.
/// LeNets, VGG-16 CIFAR, Courbariaux's networks, ResNet-56/110: Appendix B of the survey reference. One-tower AlexNet, GoogLeNet, MobileNet V2, SqueezeNet, VGG,
/// ResNet-18/34/50: torchvision's counts; AlexNet, GoogLeNet of 2014, NIN: Caffe's; NIN with norms, WRN: Zagoruyko and Komodakis' logs and definitions;
/// MobileNet V1: Keras' parameters.
const PUBLISHED: &[(&str, usize, Option<usize>, Option<u64>)] = &[
    ("lenet300", 266_610, Some(266_200), Some(266_200)),
    ("lenet5", 431_080, Some(430_500), Some(2_293_000)),
    ("courbariaux-cnn", 14_031_774, Some(14_022_016), None),
    ("mlp1", 816_158, Some(813_056), None),
    ("mlp", 2_919_454, Some(2_910_208), None),
    ("mlp1000", 795_010, Some(794_000), Some(794_000)),
    ("resnet20", 269_722, None, None),
    ("resnet32", 464_154, None, None),
    ("resnet44", 658_586, None, None),
    ("resnet56", 853_018, None, Some(125_485_696)),
    ("resnet18", 11_689_512, None, Some(1_814_073_344)),
    ("resnet34", 21_797_672, None, Some(3_663_761_408)),
    ("resnet50", 25_557_032, None, Some(4_089_184_256)),
    ("vgg16", 138_357_544, None, Some(15_470_264_320)),
    ("vgg11", 132_863_336, None, None),
    ("vgg13", 133_047_848, None, None),
    ("vgg19", 143_667_240, None, None),
    ("alexnet", 60_965_224, Some(60_954_656), Some(724_406_816)),
    ("alexnet-one-tower", 61_100_840, Some(61_090_496), Some(714_188_480)),
    ("all-cnn-c", 1_369_738, Some(1_368_480), Some(281_174_016)),
    ("cnn8", 1_038_986, Some(1_036_928), Some(253_625_600)),
    ("googlenet", 6_624_904, Some(6_609_344), Some(1_498_376_192)),
    ("googlenet-2014", 6_998_552, Some(6_990_272), Some(1_582_671_872)),
    ("mobilenet-v1", 4_231_976, Some(4_209_088), Some(568_740_352)),
    ("mobilenet-v2", 3_504_872, Some(3_469_760), Some(300_774_272)),
    ("nin", 966_986, Some(965_568), Some(222_486_528)),
    ("nin-norm", 1_005_642, Some(1_002_432), Some(224_724_864)),
    ("squeezenet1.0", 1_248_424, Some(1_244_448), Some(818_924_576)),
    ("squeezenet1.1", 1_235_496, Some(1_231_552), Some(349_151_936)),
    ("wrn-16-1", 175_066, Some(174_128), Some(26_657_408)),
    ("wrn-16-2", 691_674, Some(689_840), Some(101_106_944)),
    ("wrn-16-4", 2_748_890, Some(2_745_264), Some(392_612_352)),
    ("wrn-16-8", 10_961_370, Some(10_954_160), Some(1_548_145_664)),
    ("wrn-28-10", 36_479_194, Some(36_461_232), Some(5_243_328_768)),
    ("wrn-40-1", 563_930, Some(561_200), Some(83_280_512)),
    ("wrn-40-2", 2_243_546, Some(2_238_128), Some(327_599_360)),
    ("wrn-40-4", 8_949_210, Some(8_938_416), Some(1_298_582_016)),
];

/// Name, what differs from the paper, parameters, multiply-accumulates.
const VARIED: &[(&str, Varied, usize, u64)] = &[
    ("all-cnn-c", Varied::Classes(100), 1_387_108, 282_279_936),
    ("nin", Varied::Classes(100), 984_356, 223_592_448),
    ("squeezenet1.1", Varied::Size(227), 1_235_496, 387_747_520),
    ("mobilenet-v1", Varied::Width(0.75), 2_585_560, 325_400_448),
    ("mobilenet-v1", Varied::Width(0.5), 1_331_592, 149_497_088),
    ("mobilenet-v1", Varied::Width(0.25), 470_072, 41_030_272),
    ("mobilenet-v1", Varied::Size(192), 4_231_976, 418_121_728),
    ("mobilenet-v1", Varied::Size(160), 4_231_976, 290_675_200),
    ("mobilenet-v1", Varied::Size(128), 4_231_976, 186_400_768),
    ("mobilenet-v2", Varied::Width(1.4), 6_108_776, 582_195_824),
    ("mobilenet-v2", Varied::Width(0.75), 2_636_424, 209_069_792),
    ("mobilenet-v2", Varied::Width(0.5), 1_968_680, 97_131_840),
    ("mobilenet-v2", Varied::Width(0.35), 1_677_128, 59_285_808),
];

#[derive(Debug)]
enum Varied {
    Width(f64),
    Size(usize),
    Classes(usize),
}

/// Name, weights, biases, multiply-accumulates and output of each convolution.
type Layers = &'static [(&'static str, usize, usize, u64, [usize; 3])];

const NIN: Layers = &[
    ("conv1", 14_400, 192, 14_745_600, [192, 32, 32]),
    ("cccp1", 30_720, 160, 31_457_280, [160, 32, 32]),
    ("cccp2", 15_360, 96, 15_728_640, [96, 32, 32]),
    ("conv2", 460_800, 192, 117_964_800, [192, 16, 16]),
    ("cccp3", 36_864, 192, 9_437_184, [192, 16, 16]),
    ("cccp4", 36_864, 192, 9_437_184, [192, 16, 16]),
    ("conv3", 331_776, 192, 21_233_664, [192, 8, 8]),
    ("cccp5", 36_864, 192, 2_359_296, [192, 8, 8]),
    ("cccp6", 1_920, 10, 122_880, [10, 8, 8]),
];

const ALL_CNN_C: Layers = &[
    ("conv1", 2_592, 96, 2_654_208, [96, 32, 32]),
    ("conv2", 82_944, 96, 84_934_656, [96, 32, 32]),
    ("conv3", 82_944, 96, 21_233_664, [96, 16, 16]),
    ("conv4", 165_888, 192, 42_467_328, [192, 16, 16]),
    ("conv5", 331_776, 192, 84_934_656, [192, 16, 16]),
    ("conv6", 331_776, 192, 21_233_664, [192, 8, 8]),
    ("conv7", 331_776, 192, 21_233_664, [192, 8, 8]),
    ("conv8", 36_864, 192, 2_359_296, [192, 8, 8]),
    ("conv9", 1_920, 10, 122_880, [10, 8, 8]),
];

/// The authors' network for 227 by 227, up to conv10, which is padded there.
const SQUEEZENET_1_0: Layers = &[
    ("conv1", 14_112, 96, 173_873_952, [96, 111, 111]),
    ("fire2.squeeze", 1_536, 16, 4_646_400, [16, 55, 55]),
    ("fire2.expand1x1", 1_024, 64, 3_097_600, [64, 55, 55]),
    ("fire2.expand3x3", 9_216, 64, 27_878_400, [64, 55, 55]),
    ("fire3.squeeze", 2_048, 16, 6_195_200, [16, 55, 55]),
    ("fire3.expand1x1", 1_024, 64, 3_097_600, [64, 55, 55]),
    ("fire3.expand3x3", 9_216, 64, 27_878_400, [64, 55, 55]),
    ("fire4.squeeze", 4_096, 32, 12_390_400, [32, 55, 55]),
    ("fire4.expand1x1", 4_096, 128, 12_390_400, [128, 55, 55]),
    ("fire4.expand3x3", 36_864, 128, 111_513_600, [128, 55, 55]),
    ("fire5.squeeze", 8_192, 32, 5_971_968, [32, 27, 27]),
    ("fire5.expand1x1", 4_096, 128, 2_985_984, [128, 27, 27]),
    ("fire5.expand3x3", 36_864, 128, 26_873_856, [128, 27, 27]),
    ("fire6.squeeze", 12_288, 48, 8_957_952, [48, 27, 27]),
    ("fire6.expand1x1", 9_216, 192, 6_718_464, [192, 27, 27]),
    ("fire6.expand3x3", 82_944, 192, 60_466_176, [192, 27, 27]),
    ("fire7.squeeze", 18_432, 48, 13_436_928, [48, 27, 27]),
    ("fire7.expand1x1", 9_216, 192, 6_718_464, [192, 27, 27]),
    ("fire7.expand3x3", 82_944, 192, 60_466_176, [192, 27, 27]),
    ("fire8.squeeze", 24_576, 64, 17_915_904, [64, 27, 27]),
    ("fire8.expand1x1", 16_384, 256, 11_943_936, [256, 27, 27]),
    ("fire8.expand3x3", 147_456, 256, 107_495_424, [256, 27, 27]),
    ("fire9.squeeze", 32_768, 64, 5_537_792, [64, 13, 13]),
    ("fire9.expand1x1", 16_384, 256, 2_768_896, [256, 13, 13]),
    ("fire9.expand3x3", 147_456, 256, 24_920_064, [256, 13, 13]),
];

fn built(name: &str, varied: &Varied) -> Net {
    let arch = Arch::named(name).unwrap();
    let mut wanted = arch.wanted();
    match *varied {
        Varied::Width(width) => wanted.width = width,
        Varied::Size(size) => wanted.size = Some(size),
        Varied::Classes(classes) => wanted.classes = classes,
    }
    arch.build(&wanted, &Device::flex()).unwrap()
}

#[test]
fn parameters_and_macs_are_the_published_ones() {
    for (name, params, weights, macs) in PUBLISHED {
        let arch = Arch::named(name).unwrap();
        let cost = Cost::of(&arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap();
        assert_eq!(cost.params(), *params, "{name}: parameters");
        assert!(weights.is_none_or(|weights| cost.weights() == weights), "{name}: weights {}", cost.weights());
        assert!(macs.is_none_or(|macs| cost.macs() == macs), "{name}: MACs {}", cost.macs());
    }
}

#[test]
fn vgg_16_on_cifar_counts_as_in_li_et_al() {
    let arch = Arch::named("vgg16-cifar").unwrap();
    let cost = Cost::of(&arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap();
    assert_eq!(format!("{:.2}", cost.weights() as f64 / 1e6), "14.98");
    assert_eq!(format!("{:.1}", cost.macs() as f64 / 1e6), "313.5");
    assert_eq!(format!("{:.3}", Cost::of_zoo("resnet110").params() as f64 / 1e6), "1.728");
}

#[test]
fn width_scales_channels_and_bad_widths_are_refused() {
    let arch = Arch::named("resnet20").unwrap();
    let half = arch.build(&Wanted { width: 0.5, ..arch.wanted() }, &Device::flex()).unwrap();
    assert_eq!(half.nodes[1].op.weight_shape().unwrap()[0], 8);
    assert!(arch.build(&Wanted { width: 0.0, ..arch.wanted() }, &Device::flex()).is_err());
    assert!(Arch::named("resnet21").unwrap_err().to_string().contains("resnet20"));
}

#[test]
fn widths_resolutions_and_classes_count_as_published() {
    for (name, varied, params, macs) in VARIED {
        let cost = Cost::of(&built(name, varied)).unwrap();
        assert_eq!((cost.params(), cost.macs()), (*params, *macs), "{name}, {varied:?}");
    }
}

#[test]
fn layers_count_as_in_the_definitions_of_the_authors() {
    for (name, layers, size) in [("nin", NIN, 32), ("all-cnn-c", ALL_CNN_C, 32), ("squeezenet1.0", SQUEEZENET_1_0, 227)] {
        let net = built(name, &Varied::Size(size));
        let (cost, shapes) = (Cost::of(&net).unwrap(), net.shapes().unwrap());
        for (layer, (own, weights, biases, macs, shape)) in cost.layers.iter().zip(layers) {
            let found = (&*layer.name, layer.weights, layer.params - layer.weights, layer.macs);
            assert_eq!(found, (*own, *weights, *biases, *macs), "{name}");
            assert_eq!(shapes[layer.node], shape, "{name}: {own}");
        }
        let rest: Vec<_> = cost.layers[layers.len()..].iter().map(|layer| (&*layer.name, layer.weights, layer.macs)).collect();
        // 115,200,000 on the authors' padded maps of 15 by 15.
        let unpadded = [("conv10", 512_000, 512_000 * 13 * 13)];
        assert_eq!(rest, if name == "squeezenet1.0" { &unpadded[..] } else { &[] });
    }
}

#[test]
fn inverted_residuals_count_as_their_formula() {
    let net = built("mobilenet-v2", &Varied::Size(224));
    let cost = Cost::of(&net).unwrap();
    // Weights, scales and shifts, multiply-accumulates, and whether the input is added.
    let blocks = [
        ("block1.", 800, 96, 10_035_200, false),
        ("block2.", 4_704, 432, 29_202_432, false),
        ("block3.", 8_208, 624, 25_740_288, true),
        ("block14.", 152_640, 2_624, 15_607_872, false),
    ];
    for (name, weights, learned, macs, added) in blocks {
        let layers: Vec<_> = cost.layers.iter().filter(|layer| layer.name.starts_with(name)).collect();
        let sum = |count: fn(&LayerCost) -> usize| layers.iter().map(|layer| count(layer)).sum::<usize>();
        let found = (sum(|layer| layer.weights), sum(|layer| layer.params - layer.weights), sum(|layer| layer.macs as usize));
        assert_eq!(found, (weights, learned, macs), "{name}");
        assert_eq!(net.index(&format!("{name}add")).is_ok(), added, "{name}");
    }
}

#[test]
fn a_wide_block_projects_what_it_has_activated_and_passes_on_what_it_has_not() {
    let net = built("wrn-16-2", &Varied::Width(0.25));
    let reads =
        |node: &str| net.nodes[net.index(node).unwrap()].inputs.iter().map(|&input| &*net.nodes[input].name).collect::<Vec<_>>();
    assert_eq!(reads("layer2.0.shortcut"), ["layer2.0.relu1"]);
    assert_eq!(reads("layer2.0.conv1"), ["layer2.0.relu1"]);
    assert_eq!(reads("layer2.1.add"), ["layer2.1.conv2", "layer2.0.add"]);
}

#[test]
fn torchvision_steadies_the_norms_of_googlenet_by_more() {
    let net = built("googlenet", &Varied::Width(0.1));
    let norms = net.nodes.iter().filter_map(|node| if let Op::BatchNorm(norm) = &node.op { Some(norm.epsilon) } else { None });
    assert_eq!(norms.collect::<Vec<_>>(), [1e-3; 57]);
}

#[test]
fn images_that_a_network_cannot_take_are_refused() {
    let device = Device::flex();
    let build = |arch: &Arch, size: usize| arch.build(&Wanted { width: 0.1, size: Some(size), ..arch.wanted() }, &device);
    for arch in ZOO {
        for size in [0, 1, 2, 5, 17, 33, 1 << 40, usize::MAX] {
            match build(arch, size) {
                Ok(net) => assert_eq!(net.input_shape(), [arch.input[0], size, size]),
                Err(error) => {
                    let named = format!("model '{}' takes no images of {size} by {size} ", arch.name);
                    assert!(error.to_string().starts_with(&named), "{error}");
                }
            }
        }
        assert!(build(arch, 0).is_err() && build(arch, 1 << 40).is_err(), "{}", arch.name);
    }
    let vgg = Arch::named("vgg16").unwrap();
    assert!(build(vgg, 32).is_ok());
    let error = build(vgg, 31).unwrap_err().to_string();
    let start = "model 'vgg16' takes no images of 31 by 31 (its paper's are 224 by 224): node 'pool5': ";
    assert!(error.starts_with(start) && error.contains("does not fit the input"), "{error}");
}
