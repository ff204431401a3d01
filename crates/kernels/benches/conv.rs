//! GFLOP/s of the three products of a convolution, for the layers of ResNet-20, LeNet-5 and VGG-16: `cargo bench -p briquette-kernels`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use briquette_kernels::{Conv2d, Epilogue, Padding, Precision, fma_gflops};

// As in the binary: results are large, and the system takes its time over fresh pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Channels, side, filters, kernel, stride, padding.
const LAYERS: [(&str, [usize; 6]); 11] = [
    ("resnet20 conv1", [3, 32, 16, 3, 1, 1]),
    ("resnet20 stage 1", [16, 32, 16, 3, 1, 1]),
    ("resnet20 to stage 2", [16, 32, 32, 3, 2, 1]),
    ("resnet20 stage 2", [32, 16, 32, 3, 1, 1]),
    ("resnet20 stage 3", [64, 8, 64, 3, 1, 1]),
    ("lenet5 conv1", [1, 28, 20, 5, 1, 0]),
    ("lenet5 conv2", [20, 12, 50, 5, 1, 0]),
    ("vgg16 conv2", [64, 32, 64, 3, 1, 1]),
    ("vgg16 conv6", [256, 8, 256, 3, 1, 1]),
    ("vgg16 conv9", [512, 4, 512, 3, 1, 1]),
    ("vgg16 conv12", [512, 2, 512, 3, 1, 1]),
];
const BATCH: usize = 32;
const RUNS: usize = 15;
const WARM_UP: Duration = Duration::from_millis(60);

#[allow(clippy::print_stdout)] // A benchmark speaks on stdout.
fn main() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread starts");
    println!("fused multiply-adds: {:.1} GFLOP/s on one thread", one.install(fma_gflops));
    println!("{:22} {:>8} {:>10} {:>10} {:>10}", "layer", "threads", "forward", "input", "weights");
    for (name, [channels, side, filters, kernel, stride, padding]) in LAYERS {
        let conv = Conv2d {
            batch: BATCH,
            input: [side, side, channels],
            filters,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: Padding::all(padding),
            dilation: [1; 2],
            groups: 1,
            precision: Precision::F32,
        };
        let out = conv.output().expect("the layers fit");
        let noise = |count: usize| -> Vec<f32> { (0..count).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect() };
        let (x, w, dy) = (
            noise(BATCH * channels * side * side),
            noise(filters * channels * kernel * kernel),
            noise(BATCH * out.iter().product::<usize>()),
        );
        let flops = 2.0 * (dy.len() * channels * kernel * kernel) as f64;
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
            let speed = |mut work: Box<dyn FnMut() + Send + '_>| {
                let mut times: Vec<f64> = Vec::new();
                pool.install(|| {
                    // New threads begin on one core; the system spreads them after some milliseconds.
                    let began = Instant::now();
                    while began.elapsed() < WARM_UP {
                        work();
                    }
                    for _ in 0..RUNS {
                        let began = Instant::now();
                        work();
                        times.push(began.elapsed().as_secs_f64());
                    }
                });
                times.sort_by(f64::total_cmp);
                flops / times[RUNS / 2] / 1e9
            };
            let none = Epilogue::default();
            let forward = speed(Box::new(|| drop(black_box(conv.forward(&x, &w, &none).expect("shapes fit")))));
            let input = speed(Box::new(|| drop(black_box(conv.input_gradient(&dy, &w).expect("shapes fit")))));
            let weights = speed(Box::new(|| drop(black_box(conv.weight_gradient(&x, &dy).expect("shapes fit")))));
            println!("{name:22} {threads:>8} {forward:>10.1} {input:>10.1} {weights:>10.1}");
        }
    }
}
