//! Vectors of 32-bit words: four bytes or 32 bits of a factor in each lane, and sums of their products. What integer and one-bit kernels are
//! written over, once for every instruction set.

// Loads and stores go through pointers; each kernel checks their reach before its loops.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use crate::lanes::chosen;

/// Columns that are put into words at a time.
pub(crate) const INTERLEAVED: usize = 16;

/// A vector of words in registers. Values of a type exist only where its instructions were found. Sums wrap around.
pub(crate) trait Words: Copy {
    /// Numbers of set bits, before they are added up for each word.
    type Counts: Copy;

    /// Words in a vector.
    const COUNT: usize;
    /// Vectors of a panel, and rows that are multiplied with them at a time: as many sums as registers hold beside the factors.
    const TILE: (usize, usize);
    /// Words whose set bits [`Words::Counts`] hold at most, in each lane.
    const MOST: usize;

    /// The same word in each lane.
    fn splat(word: u32) -> Self;
    /// # Safety
    /// `at` points to [`Words::COUNT`] readable words.
    unsafe fn load(at: *const u32) -> Self;
    /// The first `count` words, the other lanes zero.
    ///
    /// # Safety
    /// `at` points to `count` readable words, of at most [`Words::COUNT`].
    unsafe fn load_some(at: *const u32, count: usize) -> Self;
    /// # Safety
    /// `at` points to [`Words::COUNT`] writable words.
    unsafe fn store(self, at: *mut u32);
    /// # Safety
    /// `at` points to `count` writable words, of at most [`Words::COUNT`].
    unsafe fn store_some(self, at: *mut u32, count: usize);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn subtract(self, other: Self) -> Self;
    /// `self` plus the products of the four bytes of a word of `unsigned` and of one of `signed`, exactly.
    fn add_products(self, unsigned: Self, signed: Self) -> Self;

    /// Makes words of four rows of [`INTERLEAVED`] bytes: the first bytes of all rows, then the second ones.
    ///
    /// # Safety
    /// The rows are readable, and as many words are writable at `to`.
    unsafe fn interleave(rows: [*const u8; 4], to: *mut u32);

    /// Nothing counted.
    fn none() -> Self::Counts;
    /// `counts` and the bits in which two words differ.
    fn count(counts: Self::Counts, a: Self, b: Self) -> Self::Counts;
    /// What was counted in each lane.
    fn counted(counts: Self::Counts) -> Self;
}

/// Loops over vectors, to be compiled for each instruction set. Implementations mark `run` as always inlined.
pub(crate) trait WordWork {
    /// What the loops bring.
    type Output;
    /// The loops.
    fn run<W: Words>(self) -> Self::Output;
}

/// The instructions that integer and one-bit kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WordIsa {
    /// Plain Rust; the twin that the others are tested against.
    Portable,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F and BW.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// And VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// And VPOPCNTDQ.
    #[cfg(target_arch = "x86_64")]
    Avx512Popcnt,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// And DotProd.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// And I8MM.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
}

impl WordIsa {
    /// What this machine has, the plainest first.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![WordIsa::Portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            all.push(WordIsa::Avx2);
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                all.push(WordIsa::Avx512);
                if is_x86_feature_detected!("avx512vnni") {
                    all.push(WordIsa::Avx512Vnni);
                    if is_x86_feature_detected!("avx512vpopcntdq") {
                        all.push(WordIsa::Avx512Popcnt);
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(WordIsa::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                all.push(WordIsa::NeonDot);
                if std::arch::is_aarch64_feature_detected!("i8mm") {
                    all.push(WordIsa::NeonI8mm);
                }
            }
        }
        all
    }

    /// The best that this machine has, or the one that `BRIQUETTE_ISA` names: `portable`, `avx2`, `avx512`, `avx512vnni`, `avx512popcnt`, `neon`, `neondot` or
    /// `neoni8mm`. A name that this machine does not have, or that only products of floats know, changes nothing.
    pub(crate) fn of_this_machine() -> Self {
        static ISA: OnceLock<WordIsa> = OnceLock::new();
        *ISA.get_or_init(|| chosen(&WordIsa::all()).unwrap_or(WordIsa::Portable))
    }

    /// Runs the loops on these instructions.
    pub(crate) fn run<T: WordWork>(self, work: T) -> T::Output {
        match self {
            WordIsa::Portable => work.run::<plain::Plain>(),
            // SAFETY: a value of this enum other than `Portable` comes from `all`, which found the instructions.
            #[cfg(target_arch = "x86_64")]
            WordIsa::Avx2 => unsafe { x86::on_avx2(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            WordIsa::Avx512 => unsafe { x86::on_avx512(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            WordIsa::Avx512Vnni => unsafe { x86::on_avx512_vnni(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            WordIsa::Avx512Popcnt => unsafe { x86::on_avx512_popcnt(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            WordIsa::Neon => unsafe { neon::on_neon(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            WordIsa::NeonDot => unsafe { neon::on_neon_dot(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            WordIsa::NeonI8mm => unsafe { neon::on_neon_i8mm(work) },
        }
    }

    /// Words in a vector of these instructions, and vectors of a panel.
    pub(crate) fn widths(self) -> (usize, usize) {
        struct Widths;
        impl WordWork for Widths {
            type Output = (usize, usize);

            #[inline(always)]
            fn run<W: Words>(self) -> (usize, usize) {
                (W::COUNT, W::TILE.0)
            }
        }
        self.run(Widths)
    }
}

/// The instruction set that integer and one-bit products of this process use, for reports.
pub fn integer_instructions() -> String {
    format!("{:?}", WordIsa::of_this_machine()).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on the same words, on one instruction set.
    struct Everything<'a>(&'a [u32], &'a [u32]);

    impl WordWork for Everything<'_> {
        type Output = Vec<Vec<u32>>;

        #[inline(always)]
        fn run<W: Words>(self) -> Vec<Vec<u32>> {
            let mut all = vec![Vec::new(); 7];
            for (a, b) in self.0.chunks_exact(W::COUNT).zip(self.1.chunks_exact(W::COUNT)) {
                // SAFETY: both hold a vector.
                let (a, b) = unsafe { (W::load(a.as_ptr()), W::load(b.as_ptr())) };
                let mut counts = W::none();
                for _ in 0..W::MOST.min(100) {
                    counts = W::count(counts, a, b);
                }
                let once = W::counted(W::count(W::none(), a, b));
                let mut to = [0; 16];
                let mut times = W::splat(0);
                for _ in 0..W::MOST.min(100) {
                    times = times.add(once);
                }
                let same = times.subtract(W::counted(counts));
                let results = [a.add(b), a.subtract(b), W::splat(7).add_products(a, b), once, same];
                for (all, result) in all.iter_mut().zip(results) {
                    // SAFETY: no vector has more than sixteen words.
                    unsafe { result.store(to.as_mut_ptr()) };
                    all.extend(&to[..W::COUNT]);
                }
                for count in 0..=W::COUNT {
                    to.fill(9);
                    // SAFETY: sixteen words hold any part of a vector.
                    unsafe {
                        a.store_some(to.as_mut_ptr(), count);
                        assert!(to[count..].iter().all(|v| *v == 9), "a partial store reached beyond its end");
                        W::load_some(to.as_ptr(), count).store(to.as_mut_ptr());
                    }
                    assert!(to[count..W::COUNT].iter().all(|v| *v == 0), "a partial load leaves the other lanes zero");
                }
                all[5].extend(&to[..W::COUNT]);
            }
            for words in self.0.chunks_exact(INTERLEAVED) {
                let (mut rows, mut to) = ([[0; INTERLEAVED]; 4], [0; INTERLEAVED]);
                for (column, word) in words.iter().enumerate() {
                    rows.iter_mut().zip(word.to_ne_bytes()).for_each(|(row, byte)| row[column] = byte);
                }
                // SAFETY: the rows and the words have that length.
                unsafe { W::interleave([0, 1, 2, 3].map(|row: usize| rows[row].as_ptr()), to.as_mut_ptr()) };
                all[6].extend(to);
            }
            all
        }
    }

    #[test]
    fn every_instruction_set_computes_what_the_definition_says() {
        let mut a: Vec<u32> = (0..480_u32).map(|i| i.wrapping_mul(0x9e37_79b9).rotate_left(i % 32)).collect();
        let mut b: Vec<u32> = (0..480_u32).map(|i| (i + 7).wrapping_mul(0x85eb_ca6b).rotate_left(i % 31)).collect();
        (a[0], b[0]) = (u32::MAX, 0x8080_8080);
        (a[1], b[1]) = (u32::MAX, 0x7f7f_7f7f);
        (a[2], b[2]) = (u32::MAX, 0);
        let products = |a: u32, b: u32| {
            let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
            pairs.map(|(a, b)| i32::from(a) * i32::from(b.cast_signed())).sum::<i32>().cast_unsigned()
        };
        let pairs = || a.iter().zip(&b);
        for isa in WordIsa::all() {
            let found = isa.run(Everything(&a, &b));
            assert!(found[0].iter().zip(pairs()).all(|(sum, (a, b))| *sum == a.wrapping_add(*b)), "{isa:?}");
            assert!(found[1].iter().zip(pairs()).all(|(less, (a, b))| *less == a.wrapping_sub(*b)), "{isa:?}");
            assert!(found[2].iter().zip(pairs()).all(|(sum, (a, b))| *sum == products(*a, *b).wrapping_add(7)), "{isa:?}");
            assert!(found[3].iter().zip(pairs()).all(|(count, (a, b))| *count == (a ^ b).count_ones()), "{isa:?}");
            assert!(found[4].iter().all(|difference| *difference == 0), "{isa:?}: counts ran over");
            assert!(found[5] == a && found[6] == a, "{isa:?}");
        }
    }
}
