//! Convolutions whose weights are packed once, for inference.

use std::sync::OnceLock;

use super::Conv2d;
use super::depthwise::{Axis, transposed};
use super::geometry::{Cut, View};
use super::pack::pack;
use super::products::{Epilogue, FilterPanel, packed_len, panels};
use crate::buffer::Target;
use crate::lanes::Isa;
use crate::operand::{Precision, Single};
use crate::{Error, count};

/// A convolution in single precision that is ready to run: its weights lie in panels, and what the pixels of an image reach is known. A fully connected layer
/// is one of a single pixel.
#[derive(Debug)]
pub struct Packed {
    /// Of one image.
    conv: Conv2d,
    /// Values of an image of the input and of the output.
    sizes: [usize; 2],
    isa: Isa,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Panels(Box<Panels>),
    /// A filter for each channel, `[taps, channels]`.
    Depthwise {
        axes: [Axis; 2],
        weights: Vec<f32>,
    },
}

#[derive(Debug)]
struct Panels {
    view: View,
    panels: Vec<FilterPanel>,
    /// Those of each group, one after the other.
    weights: Vec<f32>,
    /// How one image is cut, and the first batch of several; each is made when it comes.
    one: OnceLock<Cut>,
    several: OnceLock<(usize, Cut)>,
}

/// Pixels of an output of which tables are kept from run to run.
const KEPT: usize = 1 << 16;

/// What the pixels of an image may reach: taps from all rows, or all columns, and from all kinds of pixels. Others are more than tables should hold.
const REACHES: [usize; 2] = [1 << 22, 1 << 24];

/// Packed weights that there may be beside two for each weight.
const PADDED: usize = 1 << 20;

impl Packed {
    /// Packs the weights `[filters, channels / groups, kh, kw]`; the number of images is each run's own.
    ///
    /// # Errors
    /// When they have not the length that the shapes ask for, for factors of less than single precision, filters so few that vectors would be nearly
    /// empty, and kernels so large that tables of what they reach would be.
    pub fn new(conv: Conv2d, w: &[f32]) -> Result<Self, Error> {
        Self::new_on(Isa::of_this_machine(), conv, w)
    }

    fn new_on(isa: Isa, conv: Conv2d, w: &[f32]) -> Result<Self, Error> {
        let conv = Conv2d { batch: 1, ..conv };
        let ([input, weights, output], out) = (conv.sizes()?, conv.output()?);
        if w.len() != weights || conv.precision != Precision::F32 {
            return Err(Error(format!("{} weights, {conv:?} takes {weights} in single precision", w.len())));
        }
        let reach = |axis: usize| (out[axis], conv.kernel[axis].min(conv.input[axis]));
        let [rows, columns] = [0, 1].map(|axis| count(&[reach(axis).0, reach(axis).1]));
        // Pixels of one kind are those from which the same taps reach the image: at the border a row for each tap.
        let kinds = [0, 1].map(|axis| reach(axis).0.min(2 * reach(axis).1 + 1));
        let all = count(&[kinds[0], reach(0).1, kinds[1], reach(1).1]);
        if rows? > REACHES[0] || columns? > REACHES[0] || all? > REACHES[1] {
            return Err(Error(format!("a kernel of {:?} reaches too many pixels: {conv:?}", conv.kernel)));
        }
        let packed = packed_len(conv.filters / conv.groups, isa.lanes(), weights / conv.filters.max(1));
        if !conv.is_depthwise() && count(&[packed, conv.groups])? > PADDED + 2 * weights {
            return Err(Error(format!("groups of so few filters fill no vectors: {conv:?}")));
        }
        let form = if conv.is_depthwise() {
            let axes = [conv.axis(0, false, out[0]), conv.axis(1, false, out[1])];
            Form::Depthwise { axes, weights: transposed(w, conv.filters) }
        } else {
            let (view, lanes) = (View::of_input(&conv, out), isa.lanes());
            let (panels, weights) = (panels(view.filters, lanes), pack::<Single>(&view, w, lanes));
            Form::Panels(Box::new(Panels { view, panels, weights, one: OnceLock::new(), several: OnceLock::new() }))
        };
        Ok(Self { conv, sizes: [input, output], isa, form })
    }

    /// Bytes of the weights as they lie in memory.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Panels(panels) => 4 * panels.weights.len(),
            Form::Depthwise { weights, .. } => 4 * weights.len(),
        }
    }

    /// Multiplies the weights of each filter by its factor.
    ///
    /// # Panics
    /// If there is not one for each filter.
    pub fn scale_filters(&mut self, factors: &[f32]) {
        assert_eq!(factors.len(), self.conv.filters, "a factor for each filter");
        match &mut self.form {
            Form::Depthwise { weights, .. } => {
                weights.chunks_mut(factors.len().max(1)).for_each(|taps| scale(taps, factors));
            }
            Form::Panels(panels) => {
                let Panels { view, panels, weights, .. } = &mut **panels;
                let (lanes, depth) = (self.isa.lanes(), view.depth(1));
                let each = weights.len() / view.groups;
                for (group, weights) in weights.chunks_mut(each.max(1)).enumerate() {
                    let factors = &factors[group * view.filters..][..view.filters];
                    for panel in panels.iter() {
                        let width = panel.vectors * lanes;
                        let places = weights[panel.first * depth..][..width * depth].chunks_mut(width);
                        places.for_each(|place| scale(place, &factors[panel.first..][..panel.filters]));
                    }
                }
            }
        }
    }

    /// `y = x * w`, and what the epilogue makes of it: `[batch, height, width, filters]` from `[batch, height, width, channels]`. The caller's thread does
    /// it all, or, `parallel`, those of the rayon pool that it is in; the results are the same.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn forward(&self, x: &[f32], epilogue: &Epilogue<'_>, y: &mut [f32], parallel: bool) -> Result<(), Error> {
        let [input, output] = self.sizes;
        let batch = y.len().checked_div(output).unwrap_or(0);
        if x.len() != count(&[batch, input])? || y.len() != batch * output {
            let found = [x.len(), y.len()];
            return Err(Error(format!("input and output have {found:?} values, images have {:?}: {:?}", self.sizes, self.conv)));
        }
        epilogue.check(self.conv.filters, y.len())?;
        let to = Target::of(y);
        match &self.form {
            Form::Depthwise { axes, weights } => {
                let size = [self.conv.input[0], self.conv.input[1]];
                self.conv.gather(self.isa, batch, x, size, axes, weights, epilogue, to, parallel);
            }
            Form::Panels(panels) => {
                let Panels { view, panels, weights, one, several } = &**panels;
                let made = || view.cut(batch, panels.len(), 1);
                let own;
                let kept = match batch {
                    _ if view.pixels_of_target() > KEPT => None,
                    1 => Some(one.get_or_init(made)),
                    _ => Some(several.get_or_init(|| (batch, made()))).filter(|(of, _)| *of == batch).map(|(_, cut)| cut),
                };
                let cut = match kept {
                    Some(cut) => cut,
                    None => {
                        own = made();
                        &own
                    }
                };
                view.products::<Single>(self.isa, x, (panels, weights), cut, epilogue, to, parallel);
            }
        }
        Ok(())
    }
}

fn scale(values: &mut [f32], factors: &[f32]) {
    values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::Padding;
    use crate::conv::tests::PLAIN;

    /// Bit for bit what [`Conv2d::forward`] makes of the scaled weights, of one image or several, on one thread or more.
    #[test]
    fn packed_once_or_each_time_the_result_is_the_same() {
        let plain = Conv2d { filters: 20, padding: Padding::all(1), ..PLAIN };
        let shapes = [
            plain,
            Conv2d { input: [9, 7, 16], filters: 40, stride: [2, 1], ..plain },
            Conv2d { input: [2, 2, 30], filters: 70, ..plain },
            Conv2d { input: [5, 6, 12], filters: 6, groups: 3, ..plain },
            Conv2d { input: [6, 5, 9], filters: 9, groups: 9, ..plain },
            Conv2d { input: [1, 1, 300], filters: 130, kernel: [1, 1], padding: Padding::NONE, ..plain },
        ];
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
        for conv in shapes {
            let [input, weights, output] = conv.sizes().unwrap();
            let (w, factors, bias) = (noise(weights), noise(conv.filters), noise(conv.filters));
            let each = weights / conv.filters;
            let scaled: Vec<f32> = w.iter().enumerate().map(|(i, w)| w * factors[i / each]).collect();
            for isa in Isa::all() {
                let mut packed = Packed::new_on(isa, conv, &w).unwrap();
                packed.scale_filters(&factors);
                for batch in [0, 1, 2, 7, 40] {
                    let (x, residual) = (noise(batch * input), noise(batch * output));
                    let epilogue = Epilogue { bias: Some(&bias), residual: Some(&residual), rectify: true, scale: None };
                    let wanted = Conv2d { batch, ..conv }.forward_on(isa, &x, &scaled, &epilogue).unwrap();
                    for parallel in [false, true] {
                        let mut found = vec![f32::NAN; batch * output];
                        packed.forward(&x, &epilogue, &mut found, parallel).unwrap();
                        assert!(found == wanted, "{conv:?} {isa:?} {batch}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_shapes() {
        let conv = Conv2d { input: [1, 1, 3], kernel: [1, 1], ..PLAIN };
        assert!(Packed::new(conv, &[0.0; 5]).unwrap_err().to_string().starts_with("5 weights"));
        assert!(Packed::new(Conv2d { precision: Precision::Bf16, ..conv }, &[0.0; 6]).is_err());
        let long =
            Conv2d { input: [1, 20_000, 1], kernel: [1, 20_000], padding: Padding([[0, 0], [19_999; 2]]), filters: 1, ..conv };
        assert!(Packed::new(long, &[1.0; 20_000]).unwrap_err().to_string().contains("reaches too many pixels"));
        let wide = Conv2d { input: [200, 200, 1], kernel: [200, 200], padding: Padding::all(199), filters: 1, ..conv };
        assert!(Packed::new(wide, &[1.0; 40_000]).unwrap_err().to_string().contains("reaches too many pixels"));
        let thin = Conv2d { input: [1, 1, 1 << 20], filters: 1, ..conv };
        assert!(Packed::new_on(Isa::Portable, thin, &vec![1.0; 1 << 20]).unwrap_err().to_string().contains("fill no vectors"));
        let packed = Packed::new(conv, &[0.0; 6]).unwrap();
        let run = |x: usize, y: usize| packed.forward(&vec![0.0; x], &Epilogue::default(), &mut vec![0.0; y], false);
        assert!(run(6, 4).is_ok() && run(6, 2).is_err() && run(3, 3).is_err() && run(4, 2).is_err());
        assert!(packed.forward(&[0.0; 3], &Epilogue::biased(&[0.0; 3]), &mut [0.0; 2], false).is_err());
    }
}
