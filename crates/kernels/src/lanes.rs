//! Vectors of floats: what kernels are written over, once for every instruction set, and the choice among the sets at run time.

// Loads and stores go through pointers; each kernel checks their reach before its loops.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

/// A vector of floats in registers. Values of a type exist only where its instructions were found.
pub(crate) trait Lanes: Copy {
    /// As many pairs of bf16 as there are lanes.
    type Pairs: Copy;

    /// Floats in a vector.
    const COUNT: usize;

    /// The same number in each lane.
    fn splat(value: f32) -> Self;
    /// # Safety
    /// `at` points to [`Lanes::COUNT`] readable floats.
    unsafe fn load(at: *const f32) -> Self;
    /// The first `count` floats, the other lanes zero.
    ///
    /// # Safety
    /// `at` points to `count` readable floats, of at most [`Lanes::COUNT`].
    unsafe fn load_some(at: *const f32, count: usize) -> Self;
    /// # Safety
    /// `at` points to [`Lanes::COUNT`] writable floats.
    unsafe fn store(self, at: *mut f32);
    /// # Safety
    /// `at` points to `count` writable floats, of at most [`Lanes::COUNT`].
    unsafe fn store_some(self, at: *mut f32, count: usize);
    /// `self * factor + sum`.
    fn multiply_add(self, factor: Self, sum: Self) -> Self;
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn subtract(self, other: Self) -> Self;
    /// `self * other`.
    fn multiply(self, other: Self) -> Self;
    /// `self / other`.
    fn divide(self, other: Self) -> Self;
    /// The square root.
    fn root(self) -> Self;
    /// `self` where it is larger than `other`, else `other`: NaN in either gives `other`.
    fn max(self, other: Self) -> Self;
    /// `then` where `self` is larger than `other`, else `otherwise`; NaN is not larger.
    fn choose_if_larger(self, other: Self, then: Self, otherwise: Self) -> Self;
    /// `then` where `self` equals `other`, else `otherwise`; NaN equals nothing.
    fn choose_if_equal(self, other: Self, then: Self, otherwise: Self) -> Self;

    /// Bit `i` is set where lane `i` is zero or larger, of either sign of zero; NaN is not.
    fn not_negative(self) -> u32;

    /// # Safety
    /// `at` points to [`Lanes::COUNT`] readable pairs.
    unsafe fn load_pairs(at: *const u32) -> Self::Pairs;
    /// The same pair in each lane, its first value in the low half.
    fn splat_pair(pair: u32) -> Self::Pairs;
    /// `self` plus the products of both values of the pairs.
    fn add_products(self, a: Self::Pairs, b: Self::Pairs) -> Self;

    /// The rectifier; NaN stays NaN.
    #[inline(always)]
    fn rectified(self) -> Self {
        Self::splat(0.0).max(self)
    }

    /// `self` where `gate` is positive, else zero.
    #[inline(always)]
    fn where_positive(self, gate: Self) -> Self {
        gate.choose_if_larger(Self::splat(0.0), self, Self::splat(0.0))
    }
}

/// Loops over vectors, to be compiled for each instruction set. Implementations mark `run` as always inlined.
pub(crate) trait Work {
    /// What the loops bring.
    type Output;
    /// The loops.
    fn run<L: Lanes>(self) -> Self::Output;
}

/// The instructions that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust; the twin that the others are tested against.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 F and BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// What this machine has, the plainest first.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Isa::Avx2);
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
                if is_x86_feature_detected!("avx512bf16") {
                    all.push(Isa::Avx512Bf16);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(Isa::Neon);
        }
        all
    }

    /// The best that this machine has, or the one that `BRIQUETTE_ISA` names: `portable`, `avx2`, `avx512`, `avx512bf16` or `neon`. A name that this
    /// machine does not have changes nothing.
    pub(crate) fn of_this_machine() -> Self {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| chosen(&Isa::all()).unwrap_or(Isa::Portable))
    }

    /// Runs the loops on these instructions.
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        match self {
            Isa::Portable => work.run::<plain::Plain>(),
            // SAFETY: a value of this enum other than `Portable` comes from `all`, which found the instructions.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::on_avx2(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::on_avx512(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => unsafe { x86::on_avx512_bf16(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { neon::on_neon(work) },
        }
    }

    /// Floats in a vector of these instructions.
    pub(crate) fn lanes(self) -> usize {
        struct Count;
        impl Work for Count {
            type Output = usize;

            #[inline(always)]
            fn run<L: Lanes>(self) -> usize {
                L::COUNT
            }
        }
        self.run(Count)
    }
}

/// The one of these instruction sets that `BRIQUETTE_ISA` names, else the last.
pub(crate) fn chosen<I: Copy + std::fmt::Debug>(all: &[I]) -> Option<I> {
    let wanted = std::env::var("BRIQUETTE_ISA").unwrap_or_default();
    let named = all.iter().find(|isa| format!("{isa:?}").eq_ignore_ascii_case(&wanted));
    named.or(all.last()).copied()
}

/// The instruction set that the kernels of this process use, for reports.
pub fn instructions() -> String {
    format!("{:?}", Isa::of_this_machine()).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on the same floats, on one instruction set.
    struct Everything<'a>(&'a [f32], &'a [f32]);

    impl Work for Everything<'_> {
        type Output = Vec<Vec<f32>>;

        #[inline(always)]
        fn run<L: Lanes>(self) -> Vec<Vec<f32>> {
            let (a, b) = (self.0.as_chunks::<48>().0, self.1.as_chunks::<48>().0);
            let mut all = vec![Vec::new(); 14];
            for (a, b) in a.iter().zip(b) {
                for at in (0..48).step_by(L::COUNT) {
                    // SAFETY: both hold 48 floats, which is a multiple of every vector's length.
                    let (a, b) = unsafe { (L::load(a.as_ptr().add(at)), L::load(b.as_ptr().add(at))) };
                    let bits: [u32; 48] = std::array::from_fn(|i| 0x4040_3f80 + (i as u32) * 0x0001_0002);
                    // SAFETY: 48 pairs are a multiple of every vector's length.
                    let pairs = unsafe { L::load_pairs(bits.as_ptr().add(at)) };
                    let results = [
                        a.multiply_add(b, L::splat(0.5)),
                        a.add(b),
                        a.subtract(b),
                        a.multiply(b),
                        a.divide(b),
                        a.multiply(a).root(),
                        a.max(b),
                        a.choose_if_larger(b, a, L::splat(7.0)),
                        a.choose_if_equal(b, a, L::splat(7.0)),
                        a.rectified(),
                        a.where_positive(b),
                        a.add_products(pairs, L::splat_pair(u32::from_le_bytes([0x80, 0x3f, 0, 0xc0]))),
                    ];
                    let mut to = [0.0; 48];
                    for (all, result) in all.iter_mut().zip(results) {
                        // SAFETY: 48 floats hold any vector.
                        unsafe { result.store(to.as_mut_ptr()) };
                        all.extend(&to[..L::COUNT]);
                    }
                    for count in 0..=L::COUNT {
                        to.fill(-1.0);
                        // SAFETY: 48 floats hold any part of a vector.
                        unsafe {
                            a.store_some(to.as_mut_ptr(), count);
                            assert!(to[count..].iter().all(|v| *v == -1.0), "a partial store reached beyond its end");
                            L::load_some(to.as_ptr(), count).store(to.as_mut_ptr());
                        }
                        assert!(to[count..L::COUNT].iter().all(|v| *v == 0.0), "a partial load leaves the other lanes zero");
                    }
                    all[12].extend(&to[..L::COUNT]);
                    all[13].extend((0..L::COUNT).map(|lane| (a.not_negative() >> lane & 1) as f32));
                }
            }
            all
        }
    }

    #[test]
    fn pairs_are_multiplied_low_half_by_low_half() {
        // 1 and 3 times 1 and -2.
        let one = Isa::Portable.run(Everything(&[0.5; 48], &[0.0; 48]))[11][0];
        assert_eq!(one, 0.5 + 1.0 - 6.0);
    }

    #[test]
    fn every_instruction_set_computes_what_plain_rust_does() {
        let mut a: Vec<f32> = (0..480_i16).map(|i| f32::from(i * 37 % 101) / 16.0 - 3.0).collect();
        let b: Vec<f32> = (0..480_i16).map(|i| f32::from(i * 53 % 97) / 16.0 - 3.0).collect();
        (a[5], a[77], a[200]) = (f32::NAN, f32::INFINITY, b[200]);
        (a[6], a[7]) = (0.0, -0.0);
        let plain = Isa::Portable.run(Everything(&a, &b));
        assert!(plain[9][5].is_nan() && plain[6][5] == b[5] && plain[8][200] == b[200]);
        assert!(plain[13].iter().zip(&a).all(|(bit, a)| (*bit == 1.0) == (*a >= 0.0)));
        for isa in Isa::all() {
            for (found, plain) in isa.run(Everything(&a, &b)).iter().zip(&plain) {
                // A fused product rounds once, a plain one twice.
                let near =
                    |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a - b).abs() < 1e-5 || (a.is_nan() && b.is_nan());
                assert!(found.iter().zip(plain).all(near), "{isa:?}");
            }
        }
    }
}
