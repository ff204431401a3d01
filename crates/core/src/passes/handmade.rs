//! A small network and a few images, for the tests of the passes.

use briquette_data::Dataset;
use burn::tensor::Device;

use crate::builder::Builder;
use crate::coding::Coding;
use crate::context::{Context, Data, Host};
use crate::net::Net;

/// One layer of 4 inputs and 3 outputs with this coding of its weight.
pub(super) fn coded(coding: Coding) -> Net {
    let device = Device::flex();
    let mut b = Builder::new([1, 2, 2], 11, &device);
    let x = b.flatten("flatten", b.input());
    b.linear("fc", x, 3);
    let mut net = b.finish().unwrap();
    let node = net.nodes.remove(2);
    let mut parameters = node.parameters();
    parameters[0].coding = coding;
    net.nodes.push(node.with(parameters, &device).unwrap());
    net
}

/// 30 images of 2 by 2 whose brightest pixel among the first three is their class.
pub(super) fn images() -> Data {
    let pixel = |i: usize, p: usize| if p == i % 3 { 200 } else { (i * 7 + p * 13) % 60 };
    let pixels = (0..30).flat_map(|i| (0..4).map(move |p| pixel(i, p) as u8)).collect();
    let all = Dataset::from_memory("handmade", [1, 2, 2], 3, pixels, (0..30).map(|i| i % 3).collect()).unwrap();
    Data { train: all.clone(), valid: all.clone(), test: all }
}

/// A context of seed 3.
pub(super) fn context<'a>(data: &'a Data, host: &'a mut dyn Host) -> Context<'a> {
    Context::new(&Device::flex(), 3, data, host)
}
