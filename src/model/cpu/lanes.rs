//! Sixteen f32 lanes: what every sum of the CPU backend is made of, for each kind of processor.
//!
//! A dot product adds element `i` to lane `i % 16`, each lane a chain of fused multiply-adds, and adds the lanes in a
//! fixed tree at the end. AVX-512 holds the lanes in one register, AVX2 in two, and without either they are an array: slow,
//! but equal to the last bit.

// Loops over the lanes stay loops: iterators and closures of arrays are inlined or not as the compiler cuts the crate.
#![allow(clippy::needless_range_loop)]

use std::sync::OnceLock;

/// Lanes of one dot product.
pub(super) const LANES: usize = 16;

/// What the processor offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InstructionSet {
    /// AVX-512 (F, BW, DQ, VL), and AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Nothing assumed.
    Portable,
}

impl InstructionSet {
    /// All that this processor can do, best first.
    pub fn available() -> &'static [InstructionSet] {
        static LEVELS: OnceLock<Vec<InstructionSet>> = OnceLock::new();
        LEVELS.get_or_init(|| {
            let mut levels = Vec::new();
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    levels.push(InstructionSet::Avx512);
                }
                levels.push(InstructionSet::Avx2);
            }
            levels.push(InstructionSet::Portable);
            levels
        })
    }
}

/// The best level of this processor.
#[inline]
pub(super) fn level() -> InstructionSet {
    static LEVEL: OnceLock<InstructionSet> = OnceLock::new();
    *LEVEL.get_or_init(|| InstructionSet::available()[0])
}

/// Sixteen f32 lanes.
///
/// # Safety
/// All functions of an implementation need the processor features it is made of; pointers must be valid for 16 elements
/// at any alignment.
pub(super) trait Lanes: Copy {
    /// Groups that registers hold, if loading two groups at once is cheaper than one after the other; 0 if it is not.
    const PAIRED: usize = 0;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load_f32(p: *const u8) -> Self;
    unsafe fn load_bf16(p: *const u8) -> Self;
    /// [`load_bf16`](Self::load_bf16) of two groups, one behind the other: `p` is valid for 32 elements.
    #[inline(always)]
    unsafe fn load_bf16_pair(p: *const u8) -> [Self; 2] {
        // SAFETY: the trait's contract; the second group is 32 bytes behind the first.
        unsafe { [Self::load_bf16(p), Self::load_bf16(p.add(LANES * 2))] }
    }
    unsafe fn load_f16(p: *const u8) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// `self + a * b`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// The lanes added in the tree of [`lane_sum`].
    unsafe fn sum(self) -> f32;
    /// [`sum`](Self::sum) of sixteen at once.
    #[inline(always)]
    unsafe fn sums(groups: [Self; 16]) -> [f32; 16] {
        let mut out = [0.0; 16];
        for (sum, group) in out.iter_mut().zip(groups) {
            // SAFETY: the trait's contract.
            *sum = unsafe { group.sum() };
        }
        out
    }
}

/// The tree over 16 lanes: 8 apart, 4 apart, 2 apart, neighbours.
#[inline(always)]
pub(super) fn lane_sum(lanes: [f32; LANES]) -> f32 {
    let (mut a, mut b) = ([0.0; 8], [0.0; 4]);
    for i in 0..8 {
        a[i] = lanes[i] + lanes[i + 8];
    }
    for i in 0..4 {
        b[i] = a[i] + a[i + 4];
    }
    (b[0] + b[2]) + (b[1] + b[3])
}

/// Asks for the cache line at `p`, which need not be readable.
#[inline(always)]
pub(super) fn prefetch(p: *const u8) {
    prefetch_to::<0>(p);
}

/// Asks for the cache line at `p`, which need not be readable, to be in the second-level cache.
#[inline(always)]
pub(super) fn prefetch_l2(p: *const u8) {
    prefetch_to::<1>(p);
}

/// To which level, counted from 0.
#[inline(always)]
fn prefetch_to<const LEVEL: usize>(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address has no effect but on the cache; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match LEVEL {
            0 => _mm_prefetch::<_MM_HINT_T0>(p.cast()),
            _ => _mm_prefetch::<_MM_HINT_T1>(p.cast()),
        }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// A stored element type.
pub(super) trait Element {
    const SIZE: usize;
    /// Sixteen elements, widened exactly.
    ///
    /// # Safety
    /// `p` is valid for 16 elements at any alignment; `L`'s features are present.
    unsafe fn load<L: Lanes>(p: *const u8) -> L;
    /// [`load`](Self::load) of two groups, one behind the other.
    ///
    /// # Safety
    /// `p` is valid for 32 elements at any alignment; `L`'s features are present.
    #[inline(always)]
    unsafe fn load_pair<L: Lanes>(p: *const u8) -> [L; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Self::load(p), Self::load(p.add(LANES * Self::SIZE))] }
    }
}

pub(super) struct F32;
pub(super) struct Bf16;
pub(super) struct F16;

impl Element for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f32(p) }
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn load_pair<L: Lanes>(p: *const u8) -> [L; 2] {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16_pair(p) }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(p) }
    }
}

/// Loads the `count < 16` elements at `p`, zeros behind them.
///
/// # Safety
/// `p` is valid for `count` elements of `E`; `L`'s features are present.
#[inline(always)]
pub(super) unsafe fn load_tail<L: Lanes, E: Element>(p: *const u8, count: usize) -> L {
    let mut padded = [0u8; LANES * 4];
    // SAFETY: `count * SIZE` bytes are readable by the caller's promise and fit the buffer as count < 16; the buffer is
    // then valid for a whole group.
    unsafe {
        std::ptr::copy_nonoverlapping(p, padded.as_mut_ptr(), count * E::SIZE);
        E::load::<L>(padded.as_ptr())
    }
}

/// The lanes without any processor feature: the same roundings, in software where there is no FMA.
#[derive(Clone, Copy)]
pub(super) struct Array([f32; LANES]);

impl Lanes for Array {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Array([0.0; LANES])
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Array([value; LANES])
    }
    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> Self {
        // SAFETY: valid for 16 elements by the trait's contract; read_unaligned asks for no alignment.
        Array(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        // SAFETY: as `load_f32`.
        let stored = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        let mut lanes = [0.0; LANES];
        for i in 0..LANES {
            lanes[i] = half::bf16::from_bits(stored[i]).to_f32();
        }
        Array(lanes)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: as `load_f32`.
        let stored = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        let mut lanes = [0.0; LANES];
        for i in 0..LANES {
            lanes[i] = half::f16::from_bits(stored[i]).to_f32();
        }
        Array(lanes)
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: valid for 16 elements by the trait's contract.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        let mut lanes = self.0;
        for i in 0..LANES {
            lanes[i] = a.0[i].mul_add(b.0[i], lanes[i]);
        }
        Array(lanes)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        lane_sum(self.0)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    //! The lanes in registers of AVX2 and AVX-512.

    use super::{LANES, Lanes};
    use std::arch::x86_64::*;

    const _: () = assert!(LANES == 16, "two AVX2 registers, or one of AVX-512, have 16 lanes");

    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    // SAFETY of all blocks in this impl: the intrinsics need AVX2, FMA and F16C, and pointers valid for 16 elements at any
    // alignment (the unaligned forms are used); both are the trait's contract.
    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see above.
            unsafe { Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: see above.
            unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load_f32(p: *const u8) -> Self {
            // SAFETY: see above.
            unsafe { Avx2(_mm256_loadu_ps(p.cast()), _mm256_loadu_ps(p.cast::<f32>().add(8))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u8) -> Self {
            // SAFETY: see above. A bfloat16 is the upper half of the f32 of the same value.
            unsafe {
                let wide = |p: *const u8| {
                    let half = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half))
                };
                Avx2(wide(p), wide(p.add(16)))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u8) -> Self {
            // SAFETY: see above.
            unsafe {
                let wide = |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
                Avx2(wide(p), wide(p.add(16)))
            }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { Avx2(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see above. Same tree as `lane_sum`.
            unsafe {
                let eight = _mm256_add_ps(self.0, self.1);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
    }

    /// One of the two registers.
    #[derive(Clone, Copy)]
    pub struct Half(__m256);

    // SAFETY of all blocks in this impl: as above, with pointers valid for 8 elements.
    impl Half {
        pub const LANES: usize = LANES / 2;

        #[inline(always)]
        pub unsafe fn zero() -> Self {
            // SAFETY: see above.
            unsafe { Half(_mm256_setzero_ps()) }
        }
        #[inline(always)]
        pub unsafe fn load(p: *const f32) -> Self {
            // SAFETY: see above.
            unsafe { Half(_mm256_loadu_ps(p)) }
        }
        #[inline(always)]
        pub unsafe fn store(self, p: *mut f32) {
            // SAFETY: see above.
            unsafe { _mm256_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        pub unsafe fn fma(self, a: Self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { Half(_mm256_fmadd_ps(a.0, b.0, self.0)) }
        }
    }

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    /// Of each lane, which of 32 16-bit elements becomes the upper half of its f32: those of the first group, and of the second.
    const UPPER: [[u32; LANES]; 2] = {
        let mut upper = [[0; LANES]; 2];
        let mut lane = 0;
        while lane < LANES {
            upper[0][lane] = (lane as u32) << 16;
            upper[1][lane] = ((LANES + lane) as u32) << 16;
            lane += 1;
        }
        upper
    };

    // SAFETY of all blocks in this impl: the intrinsics need AVX-512 F, BW and DQ, and pointers valid for 16 elements at any
    // alignment (the unaligned forms are used); both are the trait's contract.
    impl Lanes for Avx512 {
        const PAIRED: usize = 32;
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see above.
            unsafe { Avx512(_mm512_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: see above.
            unsafe { Avx512(_mm512_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load_f32(p: *const u8) -> Self {
            // SAFETY: see above.
            unsafe { Avx512(_mm512_loadu_ps(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u8) -> Self {
            // SAFETY: see above. A bfloat16 is the upper half of the f32 of the same value.
            unsafe {
                let half = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(half)))
            }
        }
        /// One instruction a group in place of two: the upper halves are picked, the lower ones stay zero.
        #[inline(always)]
        unsafe fn load_bf16_pair(p: *const u8) -> [Self; 2] {
            // SAFETY: see above; 64 bytes are readable by the trait's contract.
            unsafe {
                let both = _mm512_loadu_si512(p.cast());
                let group = |upper: &[u32; LANES]| {
                    let index = _mm512_loadu_si512(upper.as_ptr().cast());
                    Avx512(_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaa_aaaa, index, both)))
                };
                [group(&UPPER[0]), group(&UPPER[1])]
            }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u8) -> Self {
            // SAFETY: see above.
            unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { Avx512(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see above. Same tree as `lane_sum`.
            unsafe {
                let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
        /// Four rounds of the tree, each on two registers at a time whose sums share the result: 15 additions for 16 sums.
        #[inline(always)]
        unsafe fn sums(g: [Self; 16]) -> [f32; 16] {
            // One round: the halves of two registers side by side, added.
            macro_rules! round {
                ($shuffle:ident, $left:literal, $right:literal, $a:expr, $b:expr) => {{
                    let (a, b) = ($a, $b);
                    _mm512_add_ps($shuffle::<$left>(a, b), $shuffle::<$right>(a, b))
                }};
            }
            // The rounds leave the sum of register `4 u + v` at `4 v + u`, so every fourth goes into one quarter.
            macro_rules! quarter {
                ($i:literal) => {{
                    let left = round!(_mm512_shuffle_f32x4, 0x44, 0xee, g[$i].0, g[$i + 4].0);
                    let right = round!(_mm512_shuffle_f32x4, 0x44, 0xee, g[$i + 8].0, g[$i + 12].0);
                    round!(_mm512_shuffle_f32x4, 0x88, 0xdd, left, right)
                }};
            }
            // SAFETY: see above.
            unsafe {
                let left = round!(_mm512_shuffle_ps, 0x44, 0xee, quarter!(0), quarter!(1));
                let right = round!(_mm512_shuffle_ps, 0x44, 0xee, quarter!(2), quarter!(3));
                let all = round!(_mm512_shuffle_ps, 0x88, 0xdd, left, right);
                let mut out = [0.0f32; 16];
                _mm512_storeu_ps(out.as_mut_ptr(), all);
                out
            }
        }
    }
}
