//! Biclustering of filters and channels.
//!
//! The `N` filters of a kernel are divided into `H` clusters of the same size and its `C` channels into `G`, independently of each other: filters
//! by their vectors of length `C kh kw`, channels by theirs of length `N kh kw`. Each of the `G H` blocks, whose weights are alike, is then
//! approximated by itself:
//!
//! - [`svd`]: `U[n, a] B[a, b, y, x] A[c, b]`, by two truncated singular value decompositions, of the block as `[N/H, C/G kh kw]` and of what that
//!   leaves on the right as `[C/G, r_out kh kw]`. With one cluster each there are these two for the whole kernel.
//! - [`outer_products`]: `sum_k alpha_k[c] beta_k[y, x] gamma_k[n]`, by alternating least squares.
//!
//! As layers, from the input: the channels in the order of [`Partition::channels`]; `reduce`, by one pixel, in `G` groups; `core`, which has the
//! stride, the padding and the dilation, in `G H` groups, or with outer products a group for each channel; what comes out of block `(g, h)`
//! moved from the place `(g, h)` to `(h, g)`, [`Factors::exchange`]; `expand`, by one pixel, in `H` groups, with the bias; the filters back in
//! their old order, [`Partition::restore`]. No exchange is needed where there is one cluster of either. All three are fixed permutations of
//! channels, [`permutation`], of which the first and the last can go into the layers next door.
//!
//! Denton, Zaremba, Bruna, LeCun, Fergus. "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation". NIPS 2014.
//! arXiv:1404.0736.
//! Differs from the paper: singular values go into the second decomposition, unless `weighted` is off, which leaves them with the filters
//! and lets the second weigh directions alike that matter differently; sums of outer products are fitted jointly instead of one after the
//! other.
//!
//! In a config `ranks` is `[r_out, r_in]` of each block, or with outer products their number.
//!
//! ```
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use briquette_low_rank::bicluster::Bicluster;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([8, 12, 12], 1, &Device::flex());
//! let x = b.conv("conv", b.input(), Conv::new(16, 3).same());
//! b.global_avg_pool("pool", x);
//! let method: Bicluster = serde_json::from_value(serde_json::json!({ "ranks": [3, 2] })).unwrap();
//! let net = method.plan(b.finish().unwrap()).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 4 * (2 * 4 + 3 * 2 * 9 + 8 * 3), "four blocks instead of 16 * 8 * 9");
//! ```

mod clusters;

use briquette_core::error::{Error, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

pub use self::clusters::{Clusters, clusters};
use crate::algebra::{self, Matrix};
use crate::chain::{Layer, Link};
use crate::compose::{compose, permutation, ungrouped};
use crate::cp::{self, Fitted, Settings, Tensor};
use crate::factorization::{self, Factorization, Factorized};
use crate::kernel::{CHANNELS, FILTERS, HEIGHT, Kernel, WIDTH};
use crate::ranks::Spectrum;

/// Puts a chain for each block of filters and channels in the place of convolutions.
pub type Bicluster = Factorized<Blocks>;

/// The form of blocks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Blocks {
    /// `[H, G]`, clusters of filters and of channels.
    #[serde(default = "two_by_two")]
    clusters: [usize; 2],
    /// How a block is approximated.
    #[serde(default)]
    form: Form,
    /// Whether singular values go into the second decomposition.
    weighted: Option<bool>,
}

/// How a block is approximated.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// By two singular value decompositions.
    #[default]
    Svd,
    /// By a sum of outer products.
    OuterProducts,
}

fn two_by_two() -> [usize; 2] {
    [2, 2]
}

/// Starts of a clustering.
const RESTARTS: usize = 10;

impl Blocks {
    /// Filters, channels and taps of a block.
    fn block(&self, layer: &Layer) -> [usize; 3] {
        let ([h, g], [n, c, kh, kw]) = (self.clusters, layer.shape);
        [n / h, c / g, kh * kw]
    }

    /// `[r_out, r_in]`, the second not more than the first leaves.
    fn of_block(&self, layer: &Layer, ranks: &[usize]) -> [usize; 2] {
        let [_, columns, taps] = self.block(layer);
        match ranks {
            [output, input, ..] => [*output, (*input).min(columns).min(output * taps)],
            _ => [ranks[0], 1],
        }
    }
}

impl Factorization for Blocks {
    const NAME: &'static str = "bicluster";
    const PAPER: &'static str = "Denton, Zaremba, Bruna, LeCun, Fergus, NIPS 2014, arXiv:1404.0736";
    const EXAMPLE: &'static str = "layers = [\"conv2\"]\nclusters = [2, 2]\nranks = { fraction = 0.4 }\ntune = { epochs = 4 }";

    fn check(&self) -> Result<()> {
        let why = if self.clusters.contains(&0) {
            "`clusters` are at least 1"
        } else if self.form == Form::OuterProducts && self.weighted.is_some() {
            "`weighted` is of `form = \"svd\"`"
        } else {
            return Ok(());
        };
        Err(Error::Invalid(format!("bicluster: {why}")))
    }

    fn refuses(&self, layer: &Layer) -> Option<String> {
        let ([h, g], [n, c, ..]) = (self.clusters, layer.shape);
        if layer.pointwise() {
            return Some("has a kernel of one pixel, whose blocks are matrices; use svd for it".into());
        }
        let uneven = !n.is_multiple_of(h) || !c.is_multiple_of(g);
        uneven.then(|| format!("has {n} filters and {c} channels, which `clusters = [{h}, {g}]` does not divide evenly"))
    }

    fn limits(&self, layer: &Layer) -> Vec<usize> {
        let [rows, columns, taps] = self.block(layer);
        match self.form {
            Form::Svd => vec![rows.min(columns * taps), columns],
            Form::OuterProducts => vec![(columns * taps).min(columns * rows).min(taps * rows)],
        }
    }

    fn within(&self, layer: &Layer, ranks: &[usize]) -> Vec<usize> {
        match (self.form, self.of_block(layer, ranks)) {
            (Form::Svd, both) => both.to_vec(),
            (Form::OuterProducts, [terms, _]) => vec![terms],
        }
    }

    fn known(&self, layer: &Layer) -> Vec<usize> {
        let [rows, columns, taps] = self.block(layer);
        if self.form == Form::OuterProducts { vec![rows.min(columns * taps)] } else { self.limits(layer) }
    }

    fn links(&self, layer: &Layer, ranks: &[usize]) -> Vec<Link> {
        let ([h, g], [n, c, ..]) = (self.clusters, layer.shape);
        let [of_core, read] = self.of_block(layer, ranks);
        let (blocks, outer) = (h * g, self.form == Form::OuterProducts);
        let reduced = blocks * if outer { of_core } else { read };
        vec![
            layer.moved("order", c),
            Link { groups: g, ..layer.across("reduce", [reduced, c / g]) },
            layer.whole("core", [blocks * of_core, read], if outer { reduced } else { blocks }),
            layer.moved("exchange", blocks * of_core),
            Link { groups: h, ..layer.across("expand", [n, g * of_core]) },
            layer.moved("restore", n),
        ]
    }

    /// Those of the blocks of the clusters that are found with the seed 0.
    fn spectra(&self, _: &Layer, kernel: &Kernel) -> Vec<Spectrum> {
        let Ok(partition) = Partition::of(kernel, self.clusters, RESTARTS, 0) else { return Vec::new() };
        let blocks = partition.blocks(kernel);
        let modes: &[usize] = if self.form == Form::Svd { &[FILTERS, CHANNELS] } else { &[FILTERS] };
        let of_mode = |mode: &usize| {
            let others = [FILTERS + CHANNELS - mode, HEIGHT, WIDTH];
            let each: Vec<Spectrum> = blocks.iter().map(|block| Spectrum::of(&block.unfold(&[*mode], &others))).collect();
            Spectrum::together(&each)
        };
        modes.iter().map(of_mode).collect()
    }

    fn factors(&self, layer: &Layer, kernel: &Kernel, ranks: &[usize], seed: u64) -> Result<factorization::Factors> {
        let partition = Partition::of(kernel, self.clusters, RESTARTS, 0)?;
        let ranks = self.of_block(layer, ranks);
        let found = match self.form {
            Form::Svd => svd(kernel, &partition, ranks, self.weighted.unwrap_or(true))?,
            Form::OuterProducts => outer_products(kernel, &partition, ranks[0], seed)?,
        };
        let residual = found.residual;
        let order = |channels: Vec<usize>| {
            Kernel::new([channels.len(), 1, 1, 1], channels.into_iter().map(|channel| channel as f64).collect())
        };
        let orders = [partition.channels.order(), found.exchange(), partition.restore()];
        let [channels, exchange, restore] = orders.map(order);
        let kernels = vec![channels, found.reduce, found.core, exchange, found.expand, restore];
        Ok(factorization::Factors { kernels, residual, note: None })
    }
}

/// Clusters of filters and of channels.
#[derive(Debug, Clone, PartialEq)]
pub struct Partition {
    /// Of the filters, `H`.
    pub filters: Clusters,
    /// Of the channels, `G`.
    pub channels: Clusters,
}

impl Partition {
    /// `H` clusters of filters and `G` of channels, each the best of so many starts.
    ///
    /// # Errors
    /// As [`clusters`].
    pub fn of(kernel: &Kernel, [h, g]: [usize; 2], restarts: usize, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let filters = clusters(&kernel.unfold(&[CHANNELS, HEIGHT, WIDTH], &[FILTERS]), h, restarts, &mut rng)?;
        let channels = clusters(&kernel.unfold(&[FILTERS, HEIGHT, WIDTH], &[CHANNELS]), g, restarts, &mut rng)?;
        Ok(Self { filters, channels })
    }

    /// The place, after `expand`, of each filter of the kernel.
    pub fn restore(&self) -> Vec<usize> {
        let mut places = vec![0; self.filters.labels.len()];
        self.filters.order().into_iter().enumerate().for_each(|(place, filter)| places[filter] = place);
        places
    }

    /// Each block's weights `[N/H, C/G, kh, kw]`, those of the first cluster of channels first.
    fn blocks(&self, kernel: &Kernel) -> Vec<Kernel> {
        let [n, c, height, width] = kernel.shape;
        let (filters, channels) = (self.filters.order(), self.channels.order());
        let (rows, columns) = (n / self.filters.count, c / self.channels.count);
        let block = |channels: &[usize], filters: &[usize]| {
            let planes =
                filters.iter().flat_map(|filter| channels.iter().map(move |channel| (filter * c + channel) * height * width));
            let values = planes.flat_map(|start| kernel.values[start..start + height * width].iter().copied());
            Kernel::new([rows, columns, height, width], values.collect())
        };
        channels.chunks(columns).flat_map(|channels| filters.chunks(rows).map(|filters| block(channels, filters))).collect()
    }

    fn check(&self, kernel: &Kernel, ranks: [(&str, usize, usize); 2]) -> Result<()> {
        if [self.filters.labels.len(), self.channels.labels.len()] != kernel.shape[..2] {
            return Err(Error::Invalid(format!("a partition of another kernel than {:?}", kernel.shape)));
        }
        match ranks.into_iter().find(|(_, rank, most)| !(1..=*most).contains(rank)) {
            Some((what, rank, most)) => {
                Err(Error::Invalid(format!("{what} {rank} of blocks of a kernel {:?}; 1 to {most}", kernel.shape)))
            }
            None => Ok(()),
        }
    }
}

/// The kernels of all blocks, and the permutations between them.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// The clusters.
    pub partition: Partition,
    /// `[G H r_in, C/G, 1, 1]`, in `G` groups.
    pub reduce: Kernel,
    /// `[G H r_out, r_in, kh, kw]`, in [`Factors::groups`].
    pub core: Kernel,
    /// `[N, G r_out, 1, 1]`, in `H` groups.
    pub expand: Kernel,
    /// `||W - W~||^2`, of all blocks.
    pub residual: f64,
}

impl Factors {
    /// Groups of `core`: `G H`, or as many as it has channels where a block is a sum of outer products.
    pub fn groups(&self) -> usize {
        self.reduce.shape[FILTERS] / self.core.shape[CHANNELS]
    }

    /// The channel of `core`'s output at each place of `expand`'s input.
    pub fn exchange(&self) -> Vec<usize> {
        let (h, g) = (self.partition.filters.count, self.partition.channels.count);
        let rank = self.expand.shape[CHANNELS] / g;
        let block = |h_at: usize| (0..g).flat_map(move |g_at| ((g_at * h + h_at) * rank..).take(rank));
        (0..h).flat_map(block).collect()
    }

    /// The kernel that the layers make.
    pub fn dense(&self) -> Kernel {
        let Partition { filters, channels } = &self.partition;
        let layers = [
            ungrouped(&self.reduce, channels.count),
            ungrouped(&self.core, self.groups()),
            permutation(&self.exchange()),
            ungrouped(&self.expand, filters.count),
            permutation(&self.partition.restore()),
        ];
        layers.iter().fold(permutation(&channels.order()), |all, next| compose(&all, next))
    }

    /// From each block's factors: `A^T` `[r_in, C/G]` and the core by rows, `U` `[N/H, r_out]`, and what they miss.
    fn of(
        partition: &Partition,
        [n, c, height, width]: [usize; 4],
        ranks: [usize; 2],
        blocks: &[(Matrix, Vec<f64>, Matrix, f64)],
    ) -> Self {
        let (h, g) = (partition.filters.count, partition.channels.count);
        let [of_core, read] = ranks;
        let count = blocks.len();
        let rows = |matrix: &Matrix| matrix.transpose().as_slice().to_vec();
        let reduce = blocks.iter().flat_map(|(a, ..)| rows(a)).collect::<Vec<_>>();
        let core = blocks.iter().flat_map(|(_, core, ..)| core.iter().copied()).collect::<Vec<_>>();
        let filter = |at: usize| {
            let (cluster, row) = (at / (n / h), at % (n / h));
            (0..g).flat_map(move |g_at| blocks[g_at * h + cluster].2.row(row).iter().copied().collect::<Vec<_>>())
        };
        Self {
            partition: partition.clone(),
            reduce: Kernel::new([reduce.len() / (c / g), c / g, 1, 1], reduce),
            core: Kernel::new([count * of_core, read, height, width], core),
            expand: Kernel::new([n, g * of_core, 1, 1], (0..n).flat_map(filter).collect()),
            residual: blocks.iter().map(|(.., residual)| residual).sum(),
        }
    }
}

/// Blocks by two singular value decompositions, of `ranks` `[r_out, r_in]`.
///
/// # Errors
/// When `r_out` is not in `1..=min(N/H, C/G kh kw)` or `r_in` not in `1..=min(C/G, r_out kh kw)`, and for a partition of another kernel.
pub fn svd(kernel: &Kernel, partition: &Partition, [output, input]: [usize; 2], weighted: bool) -> Result<Factors> {
    let [n, c, height, width] = kernel.shape;
    let (rows, columns, taps) = (n / partition.filters.count, c / partition.channels.count, height * width);
    let most =
        [("output rank", output, rows.min(columns * taps)), ("input rank", input, columns.min(output.saturating_mul(taps)))];
    partition.check(kernel, most)?;
    let factors = |block: &Kernel| {
        let first = algebra::svd(&block.unfold(&[FILTERS], &[CHANNELS, HEIGHT, WIDTH]));
        let (mut u, mut v) = (first.u.columns(0, output).into_owned(), first.v.columns(0, output).into_owned());
        let scaled = if weighted { &mut v } else { &mut u };
        scaled.column_iter_mut().zip(&first.s).for_each(|(mut column, s)| column *= *s);
        let weights: Vec<f64> = u.column_iter().map(|column| column.norm_squared()).collect();
        let right = Kernel::fold([output, columns, height, width], &v, &[CHANNELS, HEIGHT, WIDTH], &[FILTERS]);
        let right = right.unfold(&[CHANNELS], &[FILTERS, HEIGHT, WIDTH]);
        let a = algebra::svd(&right).u.columns(0, input).into_owned();
        let core = a.tr_mul(&right);
        // The columns of `U` are orthogonal, and to what the first decomposition has cut off.
        let missed = (&right - &a * &core).column_iter().map(|column| column.norm_squared()).collect::<Vec<f64>>();
        let second: f64 =
            missed.chunks_exact(taps).zip(&weights).map(|(missed, weight)| weight * missed.iter().sum::<f64>()).sum();
        let residual = first.s[output..].iter().map(|s| s * s).sum::<f64>() + second;
        let core = Kernel::fold([output, input, height, width], &core, &[CHANNELS], &[FILTERS, HEIGHT, WIDTH]);
        (a.transpose(), core.values, u, residual)
    };
    let blocks: Vec<_> = partition.blocks(kernel).iter().map(factors).collect();
    Ok(Factors::of(partition, kernel.shape, [output, input], &blocks))
}

/// Blocks as sums of `terms` outer products.
///
/// # Errors
/// When `terms` is not in `1..=min(C/G kh kw, C/G N/H, kh kw N/H)`, which always suffice, and for a partition of another kernel.
pub fn outer_products(kernel: &Kernel, partition: &Partition, terms: usize, seed: u64) -> Result<Factors> {
    let [n, c, height, width] = kernel.shape;
    let (rows, columns, taps) = (n / partition.filters.count, c / partition.channels.count, height * width);
    let most = (columns * taps).min(columns * rows).min(taps * rows);
    partition.check(kernel, [("a number of outer products of", terms, most); 2])?;
    let factors = |(at, block): (u64, &Kernel)| {
        let tensor = Tensor::of(block, &[&[CHANNELS], &[HEIGHT, WIDTH], &[FILTERS]])?;
        let settings = Settings { rank: terms, starts: STARTS, seed: seed.wrapping_add(at), ..Settings::default() };
        let Fitted { factors, error, .. } = cp::decompose(&tensor, &settings)?;
        let [alpha, beta, gamma] = [0, 1, 2].map(|mode| &factors[mode]);
        Ok((alpha.transpose(), beta.as_slice().to_vec(), gamma.clone(), error.powi(2) * tensor.energy()))
    };
    let blocks = (0..).zip(&partition.blocks(kernel)).map(factors).collect::<Result<Vec<_>>>()?;
    Ok(Factors::of(partition, kernel.shape, [terms, 1], &blocks))
}

/// Starts of a fit to a block.
const STARTS: usize = 4;

#[cfg(test)]
mod tests {
    use briquette_handmade::refusal;
    use serde_json::json;

    use super::*;
    use crate::golden::{self, near};
    use crate::proof::{convolutions, reproduces};

    fn kernel() -> Kernel {
        golden::kernel([12, 8, 3, 3], golden::BICLUSTER)
    }

    fn planted() -> Partition {
        Partition::of(&kernel(), [3, 2], 10, 1).unwrap()
    }

    fn count(factors: &Factors) -> usize {
        [&factors.reduce, &factors.core, &factors.expand].map(|kernel| kernel.values.len()).iter().sum()
    }

    #[test]
    fn the_planted_partition_is_found() {
        for seed in 0..5 {
            let Partition { filters, channels } = Partition::of(&kernel(), [3, 2], 10, seed).unwrap();
            assert_eq!(filters.labels, [0, 1, 1, 1, 2, 0, 2, 2, 1, 0, 0, 2]);
            assert_eq!(channels.labels, [0, 1, 0, 1, 1, 0, 1, 0]);
            assert!(near(filters.inertia, 972.4966325, 1e-9) && near(channels.inertia, 703.7357269, 1e-9));
        }
    }

    #[test]
    fn clusters_keep_their_size_where_the_nearest_mean_would_not() {
        // Five points on a heap and one far away: one of the heap has to join it.
        let points = Matrix::from_row_slice(1, 6, &[0.0, 0.1, 0.2, 0.3, 0.4, 9.0]);
        let found = clusters(&points, 2, 5, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
        assert_eq!(found.labels, [0, 0, 0, 1, 1, 1]);
        let alike = clusters(&Matrix::zeros(3, 4), 2, 1, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
        assert_eq!((alike.order().len(), alike.inertia), (4, 0.0));
    }

    #[test]
    fn two_decompositions_of_each_block_err_as_numpy() {
        let (kernel, partition) = (kernel(), planted());
        for (rank, params, unweighted, weighted) in [
            (4, 1056, 0.0, 0.0),
            (3, 630, 14.21204971, 14.03922236),
            (2, 312, 25.21123594, 25.12573752),
            (1, 102, 36.22026806, 36.22026806),
        ] {
            for (carry, wanted) in [(false, unweighted), (true, weighted)] {
                let factors = svd(&kernel, &partition, [rank, rank], carry).unwrap();
                let error = factors.dense().distance(&kernel);
                assert!(near(error, wanted, 1e-7), "{rank}, {carry}: {error} and {wanted}");
                assert!(near(factors.residual.sqrt(), error, 1e-6), "{rank}, {carry}: {} and {error}", factors.residual.sqrt());
                assert_eq!((count(&factors), factors.groups()), (params, 6));
            }
        }
    }

    #[test]
    fn one_cluster_is_two_decompositions_in_sequence() {
        // The reference begins with the channels: the kernel is turned so that they are its filters.
        let kernel = kernel();
        let turned = kernel.unfold(&[CHANNELS], &[FILTERS, HEIGHT, WIDTH]);
        let turned = Kernel::fold([8, 12, 3, 3], &turned, &[FILTERS], &[CHANNELS, HEIGHT, WIDTH]);
        let one = Partition::of(&turned, [1, 1], 1, 1).unwrap();
        for (ranks, wanted) in [([8, 12], 0.0), ([6, 6], 21.44254513), ([4, 4], 30.07747336)] {
            let error = svd(&turned, &one, ranks, true).unwrap().dense().distance(&turned);
            assert!(near(error, wanted, 1e-7), "{ranks:?}: {error} and {wanted}");
        }
    }

    #[test]
    fn sums_of_outer_products_err_no_more_than_the_best_that_tensorly_found() {
        let (kernel, partition) = (kernel(), planted());
        for (terms, params, best) in [(1, 102, 35.63034009), (2, 204, 27.82923998), (3, 306, 21.55060853)] {
            let factors = outer_products(&kernel, &partition, terms, 1).unwrap();
            let error = factors.dense().distance(&kernel);
            assert!(error < best * 1.003, "{terms}: {error} and {best}");
            assert!(near(factors.residual.sqrt(), error, 1e-9));
            assert_eq!((count(&factors), factors.groups()), (params, 6 * terms));
        }
    }

    #[test]
    fn what_cannot_be_divided_and_ranks_that_blocks_do_not_have_are_refused() {
        let (kernel, partition) = (kernel(), planted());
        for wrong in [[5, 2], [3, 3], [0, 1], [1, 0]] {
            assert!(Partition::of(&kernel, wrong, 2, 0).unwrap_err().to_string().contains("take a divisor"), "{wrong:?}");
        }
        assert!(Partition::of(&kernel, [3, 2], 0, 0).is_err());
        let broken = Kernel::new([2, 1, 1, 1], vec![1.0, f64::NAN]);
        assert!(Partition::of(&broken, [2, 1], 1, 0).unwrap_err().to_string().contains("NaN"));
        for ranks in [[0, 1], [1, 0], [5, 4], [4, 5]] {
            assert!(svd(&kernel, &partition, ranks, true).is_err(), "{ranks:?}");
        }
        assert!(outer_products(&kernel, &partition, 0, 0).is_err() && outer_products(&kernel, &partition, 17, 0).is_err());
        assert!(svd(&Kernel::new([12, 4, 1, 1], vec![1.0; 48]), &partition, [1, 1], true).is_err());
    }

    #[test]
    fn blocks_compute_what_the_layer_did_at_full_rank() {
        let nets = || convolutions([3, 2]).into_iter().filter(|net| net.nodes[1].op.weight_shape().unwrap()[1] == 4).collect();
        for clusters in [[1, 1], [2, 2], [3, 1]] {
            reproduces::<Bicluster>(nets(), &json!({ "clusters": clusters }));
        }
        reproduces::<Bicluster>(nets(), &json!({ "form": "outer-products", "clusters": [3, 2] }));
    }

    #[test]
    fn clusters_that_do_not_divide_the_layer_are_refused() {
        let refused = |settings| refusal::<Bicluster>(convolutions([3, 2]).remove(0), settings);
        let why = "node 'layer': has 6 filters and 4 channels, which `clusters = [4, 2]` does not divide evenly";
        assert_eq!(refused(json!({ "clusters": [4, 2], "ranks": 1 })), why);
        assert_eq!(refused(json!({ "clusters": [0, 2], "ranks": 1 })), "bicluster: `clusters` are at least 1");
    }
}
