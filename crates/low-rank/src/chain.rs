//! A layer in place of which a chain of convolutions comes, and the links of the chain.

use briquette_core::coding::Coding;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node, Op};
use briquette_core::stored::Stored;
use briquette_parts::clock;
use briquette_runtime::{Layer as Described, Padding, layers};
use burn::tensor::Device;

use crate::kernel::Kernel;

/// One group of a convolution, or a fully connected layer as a convolution of one pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// `[filters, channels, height, width]` of the kernel of one group.
    pub shape: [usize; 4],
    /// Number of groups; each is factorized by itself, with as many channels in between.
    pub groups: usize,
    /// Step, vertical and horizontal.
    pub stride: [usize; 2],
    /// Zeros around the input.
    pub padding: Padding,
    /// Spacing of the kernel's taps.
    pub dilation: [usize; 2],
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Whether it is fully connected.
    pub connected: bool,
}

/// A convolution of a chain, for one group of the layer, or a new order of its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// What follows the layer's name and a dot in its own.
    pub name: &'static str,
    /// `[filters, channels of a group, height, width]`.
    pub shape: [usize; 4],
    /// Groups of channels within the group of the layer.
    pub groups: usize,
    /// Step, vertical and horizontal.
    pub stride: [usize; 2],
    /// Zeros around its input.
    pub padding: Padding,
    /// Spacing of its taps.
    pub dilation: [usize; 2],
    /// Whether it only moves channels, `shape[0]` of them, without a weight: the values of its kernel are then the channel that comes to each place.
    pub moves: bool,
}

impl Layer {
    /// The layer that a node is; none if it is no convolution and not fully connected. `input` is the shape of what it reads.
    pub(crate) fn of(node: &Node, input: &[usize]) -> Option<Self> {
        let weight = node.op.weight_shape()?;
        match (node.op.layer(), &weight[..], input) {
            (Described::Conv2d(layers::Conv2d { stride, padding, dilation, groups }), &[n, c, kh, kw], &[_, height, width]) => {
                let shape = [n / groups.max(1), c, kh, kw];
                Some(Self { shape, groups, stride, padding, dilation, input: [height, width], connected: false })
            }
            (Described::Linear(_), &[n, c], _) => Some(Self {
                shape: [n, c, 1, 1],
                groups: 1,
                stride: [1; 2],
                padding: Padding::NONE,
                dilation: [1; 2],
                input: [1; 2],
                connected: true,
            }),
            _ => None,
        }
    }

    /// The convolution of a pixel, which fully connected layers are too.
    pub fn pointwise(&self) -> bool {
        self.shape[2..] == [1, 1]
    }

    /// A link of one pixel, from `channels` to `filters`.
    pub fn across(&self, name: &'static str, [filters, channels]: [usize; 2]) -> Link {
        Link {
            name,
            shape: [filters, channels, 1, 1],
            groups: 1,
            stride: [1; 2],
            padding: Padding::NONE,
            dilation: [1; 2],
            moves: false,
        }
    }

    /// A link that puts so many channels into another order.
    pub fn moved(&self, name: &'static str, channels: usize) -> Link {
        Link { moves: true, ..self.across(name, [channels, 1]) }
    }

    /// A link with the layer's own kernel, stride, padding and dilation.
    pub fn whole(&self, name: &'static str, [filters, channels]: [usize; 2], groups: usize) -> Link {
        let [_, _, kh, kw] = self.shape;
        let shape = [filters, channels, kh, kw];
        Link { name, shape, groups, stride: self.stride, padding: self.padding, dilation: self.dilation, moves: false }
    }

    /// A link with what of the layer's kernel, stride, padding and dilation is along one axis, 0 vertical and 1 horizontal.
    pub fn along(&self, axis: usize, name: &'static str, [filters, channels]: [usize; 2], groups: usize) -> Link {
        let own = |of: [usize; 2]| if axis == 0 { [of[0], 1] } else { [1, of[1]] };
        let mut sides = [[0; 2]; 2];
        sides[axis] = self.padding.0[axis];
        let [kh, kw] = own([self.shape[2], self.shape[3]]);
        Link {
            name,
            shape: [filters, channels, kh, kw],
            groups,
            stride: own(self.stride),
            padding: Padding(sides),
            dilation: own(self.dilation),
            moves: false,
        }
    }

    /// The layer itself as its only link.
    fn dense(&self) -> Link {
        self.whole("", [self.shape[0], self.shape[1]], 1)
    }

    /// A network of this layer alone, or of a chain in its place, with weights that are not zero.
    pub(crate) fn alone(&self, chain: Option<&[Link]>) -> Result<Net> {
        let dense = [self.dense()];
        let links = chain.unwrap_or(&dense);
        let operations = links.iter().enumerate().map(|(at, link)| {
            let kernel = link.filled();
            link.op(&format!("{at}"), self, &vec![&kernel; self.groups], None, &Device::flex())
        });
        let [height, width] = self.input;
        Ok(clock::alone([self.groups * self.shape[1], height, width], self.connected, operations.collect::<Result<_>>()?))
    }

    /// Weights of all groups.
    pub fn weights(&self) -> usize {
        self.groups * self.shape.iter().product::<usize>()
    }

    /// Multiply-accumulates of one sample.
    pub fn macs(&self) -> u64 {
        self.macs_of(&[self.dense()])
    }

    /// Weights of a chain in its place, of all groups.
    pub fn weights_of(&self, chain: &[Link]) -> usize {
        self.groups * chain.iter().map(Link::weights).sum::<usize>()
    }

    /// Multiply-accumulates of a chain in its place, each link over the maps that those before it leave.
    pub fn macs_of(&self, chain: &[Link]) -> u64 {
        let mut size = self.input;
        let each = chain.iter().map(|link| {
            size = link.output(size);
            (link.weights() * size[0] * size[1]) as u64
        });
        self.groups as u64 * each.sum::<u64>()
    }
}

/// A weight that is not zero, which plans would count and the engine would skip.
pub(crate) fn any(at: usize) -> f64 {
    ((at % 17) as f64 - 8.3) / 50.0
}

impl Link {
    /// Weights of one group of the layer.
    fn weights(&self) -> usize {
        if self.moves { 0 } else { self.shape.iter().product() }
    }

    /// A kernel of this shape: an order that changes nothing, and else [`any`] values.
    pub(crate) fn filled(&self) -> Kernel {
        let count = self.shape.iter().product::<usize>();
        Kernel::new(self.shape, (0..count).map(|at| if self.moves { at as f64 } else { any(at) }).collect())
    }

    /// Height and width of its output.
    fn output(&self, input: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| {
            let reach = self.dilation[axis] * (self.shape[2 + axis] - 1) + 1;
            let around = self.padding.around(axis, input[axis]).unwrap_or(usize::MAX);
            around.saturating_sub(reach) / self.stride[axis].max(1) + 1
        })
    }

    /// The operation under this name on all groups of the layer, with a weight from the kernels of each.
    pub(crate) fn op(
        &self,
        name: &str,
        layer: &Layer,
        kernels: &[&Kernel],
        bias: Option<Vec<f32>>,
        device: &Device,
    ) -> Result<Op> {
        let [n, c, kh, kw] = self.shape;
        if let Some(kernel) = kernels.iter().find(|kernel| kernel.shape != self.shape) {
            return Err(Error::node(
                name,
                format!("would have a kernel of shape {:?}, where {:?} is due", kernel.shape, self.shape),
            ));
        }
        if self.moves {
            let of_group = |(group, kernel): (usize, &&Kernel)| {
                kernel.values.iter().map(|channel| group * n + *channel as usize).collect::<Vec<usize>>()
            };
            let order = kernels.iter().enumerate().flat_map(of_group).collect();
            return Op::built(name, &layers::Permute { order }.into(), Vec::new(), device);
        }
        let groups = layer.groups * self.groups;
        let (described, shape) = if layer.connected {
            (layers::Linear.into(), vec![n, c])
        } else {
            let (stride, padding, dilation) = (self.stride, self.padding, self.dilation);
            (layers::Conv2d { stride, padding, dilation, groups }.into(), vec![n * layer.groups, c, kh, kw])
        };
        let base = kernels.iter().flat_map(|kernel| &kernel.values).map(|value| *value as f32).collect();
        let weight = Stored { name: "weight", shape, base, coding: Coding::default() };
        let bias = bias.map(|base| Stored { name: "bias", shape: vec![base.len()], base, coding: Coding::default() });
        Op::built(name, &described, std::iter::once(weight).chain(bias).collect(), device)
    }
}
