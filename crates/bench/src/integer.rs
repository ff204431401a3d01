//! Products of bytes and of bits beside those of floats, on our own kernels.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use briquette_kernels::{Conv2d, Epilogue, Linear, Padding, Precision, bits, integer};
use serde::Serialize;

/// Everything that one benchmark of integer products brought.
#[derive(Debug, Serialize)]
pub(crate) struct Integers {
    /// Instructions of the products of floats.
    pub(crate) instructions: String,
    /// Those of the products of bytes and bits.
    pub(crate) integer_instructions: String,
    /// Threads of all of them.
    pub(crate) threads: usize,
    /// One row per shape.
    pub(crate) rows: Vec<IntegerRow>,
}

/// One shape's speeds in 10^9 operations per second, of which a product and a sum are two. All sides took turns, of which the fastest counts: what
/// else runs on the machine only makes them slower.
#[derive(Debug, Serialize)]
pub(crate) struct IntegerRow {
    /// Rows of the weights, or filters.
    pub(crate) rows: usize,
    /// Columns of the weights: what is summed up for each result.
    pub(crate) columns: usize,
    /// Activations by which the weights are multiplied: rows, or windows.
    pub(crate) count: usize,
    /// Weights of floats by rows of activations, the weights packed each time.
    pub(crate) f32: f64,
    /// Weights of eight bits by rows of activations.
    pub(crate) i8: f64,
    /// The same by columns.
    pub(crate) i8_columns: f64,
    /// Weights of one bit by rows of activations.
    pub(crate) bits: f64,
    /// The 3x3 convolution, padded, that has these products.
    pub(crate) conv_f32: f64,
    /// The same of eight bits.
    pub(crate) conv_i8: f64,
    /// The same of one bit.
    pub(crate) conv_bits: f64,
}

/// Filters and channels of 3x3 convolutions of an image of 32x32 pixels.
const SHAPES: [[usize; 2]; 6] = [[64, 64], [128, 64], [128, 128], [256, 256], [512, 256], [512, 512]];
const SIDE: usize = 32;

const TURNS: usize = 25;
const WARM_UP: Duration = Duration::from_millis(60);

/// Measures products of floats, bytes and bits on all threads of the pool in which it is called.
///
/// # Errors
/// When a kernel refuses a shape.
pub(crate) fn integers() -> Result<Integers> {
    Ok(Integers {
        instructions: briquette_kernels::instructions(),
        integer_instructions: briquette_kernels::integer_instructions(),
        threads: rayon::current_num_threads(),
        rows: SHAPES.into_iter().map(row).collect::<Result<_>>()?,
    })
}

fn row([rows, channels]: [usize; 2]) -> Result<IntegerRow> {
    let threads = rayon::current_num_threads();
    let (columns, count) = (9 * channels, SIDE * SIDE);
    let conv = Conv2d {
        batch: 1,
        input: [SIDE, SIDE, channels],
        filters: rows,
        kernel: [3, 3],
        stride: [1, 1],
        padding: Padding::all(1),
        dilation: [1, 1],
        groups: 1,
        precision: Precision::F32,
    };
    let linear = Linear { rows: count, inputs: columns, outputs: rows, precision: Precision::F32 };
    let bytes = |count: usize| (0..count).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect::<Vec<u8>>();
    let (x, w) = (bytes(count * columns), bytes(rows * columns));
    let w: Vec<i8> = w.into_iter().map(u8::cast_signed).collect();
    let x_f32: Vec<f32> = x.iter().map(|x| f32::from(*x) - 128.0).collect();
    let w_f32: Vec<f32> = w.iter().map(|w| f32::from(*w)).collect();
    let signs = |rows, columns, values: &[f32]| bits::Matrix::of_signs(rows, columns, values, threads);
    let (x_bits, w_bits) = (signs(count, columns, &x_f32)?, signs(rows, columns, &w_f32)?);
    let weights = (integer::Weights::pack(rows, columns, &w)?, bits::Weights::pack(&w_bits)?);
    let convs = (integer::Convolution::pack(conv, &w)?, bits::Convolution::pack(conv, &w_bits)?);
    let image = count * channels;
    let image_bits = signs(1, image, &x_f32[..image])?;
    let by_columns = integer::Columns { values: &x, stride: count, count };
    let plain = Epilogue::default();
    let mut out = vec![0; rows * count];
    let sides = |side: usize, out: &mut [i32]| match side {
        0 => linear.forward(&x_f32, &w_f32, &plain).map(drop),
        1 => weights.0.times_rows(count, &x, out, threads),
        2 => weights.0.times_columns(by_columns, out, threads),
        3 => weights.1.times(&x_bits, out, threads),
        4 => conv.forward(&x_f32[..image], &w_f32, &plain).map(drop),
        5 => convs.0.forward(1, &x[..image], 128, out, threads),
        _ => convs.1.forward(&image_bits, out, threads),
    };
    let began = Instant::now();
    while began.elapsed() < WARM_UP {
        (0..7).try_for_each(|side| sides(side, &mut out))?;
    }
    let mut times = [f64::INFINITY; 7];
    for _ in 0..TURNS {
        for (side, time) in times.iter_mut().enumerate() {
            let began = Instant::now();
            sides(side, &mut out)?;
            *time = time.min(began.elapsed().as_secs_f64());
        }
    }
    let operations = 2e-9 * (rows * columns * count) as f64;
    let [f32, i8, i8_columns, bits, conv_f32, conv_i8, conv_bits] = times.map(|time| operations / time);
    Ok(IntegerRow { rows, columns, count, f32, i8, i8_columns, bits, conv_f32, conv_i8, conv_bits })
}

/// Ratios are to the same product or convolution of floats.
impl fmt::Display for Integers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads =
            ["rows", "columns", "count", "f32", "i8", "", "by columns", "", "1 bit", "", "3x3 f32", "i8", "", "1 bit", ""];
        let line = |cells: [String; 15]| cells.map(|cell| format!("{cell:>10}")).concat();
        writeln!(f, "{}", line(heads.map(String::from)))?;
        for row in &self.rows {
            let speed = |speed: f64| format!("{speed:.0}");
            let ratio = |speed: f64, f32: f64| format!("{:.1}x", speed / f32);
            let cells = [
                row.rows.to_string(),
                row.columns.to_string(),
                row.count.to_string(),
                speed(row.f32),
                speed(row.i8),
                ratio(row.i8, row.f32),
                speed(row.i8_columns),
                ratio(row.i8_columns, row.f32),
                speed(row.bits),
                ratio(row.bits, row.f32),
                speed(row.conv_f32),
                speed(row.conv_i8),
                ratio(row.conv_i8, row.conv_f32),
                speed(row.conv_bits),
                ratio(row.conv_bits, row.conv_f32),
            ];
            writeln!(f, "{}", line(cells))?;
        }
        let Self { instructions, integer_instructions, threads, .. } = self;
        write!(f, "10^9 operations per second on {threads} threads; instructions: {instructions}, {integer_instructions}")
    }
}
