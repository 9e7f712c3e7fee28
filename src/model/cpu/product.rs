//! The two matrix products of the CPU backend, in a fixed order of additions, blocked for registers and caches.
//!
//! Every number is computed in an order that depends on its own row only, never on how many rows are computed together,
//! which tile they fall into, how work is split between threads, or what the processor can do:
//!
//! * [`matmul_nt`], `y = x w^T`: a dot product along `k` in 16 [lanes](super::lanes);
//! * [`matmul_nn`], `y += x w`: each output a chain of fused multiply-adds over the rows of `w`, first to last.
//!
//! Few rows of `x` read the weights as they are stored. For more rows, a panel of weights is widened to f32 once, in the order
//! in which the tiles read it, and stays in the second-level cache while all rows of `x` pass; a piece of a few rows of `x` stays
//! in the first level. Meanwhile the next panel is fetched, a few lines at a time, unless its terms are only some of a row's.

// Tiles are arrays of arrays with two or three indices in step; iterators over them would hide which term meets which.
#![allow(clippy::needless_range_loop)]

mod buffer;
mod nn;
mod nt;

#[cfg(target_arch = "x86_64")]
use super::lanes::x86::{Avx2, Avx512};
use super::lanes::{Array, Bf16, Element, F16, F32, InstructionSet, LANES, Lanes, level};
use super::rows::StoredRows;
use crate::dtype::DType;
use buffer::LaneBuffer;
use nn::{NnTile, nn, nn_tile};
#[cfg(target_arch = "x86_64")]
use nt::nt_tile_in_halves;
use nt::{NtTile, nt, nt_tile};
use std::cell::RefCell;

/// Evaluates an expression with `$lanes`, the lanes of a level.
macro_rules! with_lanes {
    ($level:expr, $lanes:ident => $value:expr) => {{
        macro_rules! of {
            ($type:ty) => {{
                type $lanes = $type;
                $value
            }};
        }
        match $level {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => of!(Avx512),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => of!(Avx2),
            InstructionSet::Portable => of!(Array),
        }
    }};
}

/// `y[m, n] = x[m, k] w[n, k]^T`; row `i` of `y` starts at `i * ldy`.
pub(super) fn matmul_nt(y: &mut [f32], ldy: usize, x: &Left<'_>, w: StoredRows<'_>) {
    // SAFETY: the slice is ours alone while we write.
    unsafe { matmul_nt_at(level(), Out::new(y), ldy, x, w) };
}

/// `y[m, width] += x[m, n] w[n, width]`.
pub(super) fn matmul_nn(y: &mut [f32], ldy: usize, x: &[f32], ldx: usize, m: usize, w: StoredRows<'_>) {
    // SAFETY: the slice is ours alone while we write.
    unsafe { matmul_nn_at(level(), Out::new(y), ldy, x, ldx, m, w) };
}

/// Where a product is written: a slice whose column ranges may belong to different threads.
#[derive(Clone, Copy)]
pub(super) struct Out {
    data: *mut f32,
    len: usize,
}

// SAFETY: only a pointer and its length; writing through it is unsafe and states who may.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    pub fn new(y: &mut [f32]) -> Self {
        Out { data: y.as_mut_ptr(), len: y.len() }
    }

    /// The matrix from an element on.
    pub fn from(self, from: usize) -> Self {
        assert!(from <= self.len);
        // SAFETY: stays inside the slice or one past it.
        Out { data: unsafe { self.data.add(from) }, len: self.len - from }
    }
}

/// [`matmul_nt`] into columns `.. w.rows` of `y`.
///
/// # Safety
/// The slice behind `y` lives, and nothing else touches those columns of rows `..m` meanwhile.
pub(super) unsafe fn matmul_nt_columns(y: Out, ldy: usize, x: &Left<'_>, w: StoredRows<'_>) {
    // SAFETY: the caller's promise.
    unsafe { matmul_nt_at(level(), y, ldy, x, w) };
}

/// [`matmul_nn`] into columns `.. w.width` of `y`.
///
/// # Safety
/// The slice behind `y` lives, and nothing else touches those columns of rows `..m` meanwhile.
pub(super) unsafe fn matmul_nn_columns(y: Out, ldy: usize, x: &[f32], ldx: usize, m: usize, w: StoredRows<'_>) {
    // SAFETY: the caller's promise.
    unsafe { matmul_nn_at(level(), y, ldy, x, ldx, m, w) };
}

/// # Safety
/// As [`matmul_nt_columns`]; the processor has `level`, for which x was made.
unsafe fn matmul_nt_at(level: InstructionSet, y: Out, ldy: usize, left: &Left<'_>, w: StoredRows<'_>) {
    let m = left.rows();
    if m == 0 || w.rows == 0 {
        return;
    }
    w.check();
    let packed = m > tile_rows(level).0;
    let (x, ldx) = match left {
        Left::Few { x, ldx, .. } => {
            assert!(!packed && x.len() >= (m - 1) * ldx + w.width, "nt operands too short");
            (x.as_ptr(), *ldx)
        }
        Left::Packed { x, k, .. } => {
            assert!(packed && *k == w.width && x.len() >= m * k.next_multiple_of(LANES), "nt operands do not match");
            (x.as_ptr(), 0)
        }
    };
    assert!(y.len >= (m - 1) * ldy + w.rows, "nt operands too short");
    let operands = ProductOperands { y: y.data, ldy, x, ldx, m, w };
    // SAFETY: the asserts above bound every access of `nt` (rows `..m` of x and y, all of w's view), and the caller says that
    // the processor has the level.
    unsafe { with_lanes!(level, L => nt_of::<L>(operands)) }
}

/// # Safety
/// As [`matmul_nn_columns`]; the processor has `level`.
unsafe fn matmul_nn_at(level: InstructionSet, y: Out, ldy: usize, x: &[f32], ldx: usize, m: usize, w: StoredRows<'_>) {
    if m == 0 || w.rows == 0 || w.width == 0 {
        return;
    }
    w.check();
    assert!(y.len >= (m - 1) * ldy + w.width && x.len() >= (m - 1) * ldx + w.rows, "nn operands too short");
    let operands = ProductOperands { y: y.data, ldy, x: x.as_ptr(), ldx, m, w };
    // SAFETY: as in `matmul_nt_at`.
    unsafe { with_lanes!(level, L => nn_of::<L>(operands)) }
}

/// # Safety
/// As [`nt`].
unsafe fn nt_of<L: Tiles>(o: ProductOperands<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match o.w.dtype {
            DType::F32 => L::nt::<F32>(o),
            DType::Bf16 => L::nt::<Bf16>(o),
            DType::F16 => L::nt::<F16>(o),
        }
    }
}

/// # Safety
/// As [`nn`].
unsafe fn nn_of<L: Tiles>(o: ProductOperands<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match o.w.dtype {
            DType::F32 => L::nn::<F32>(o),
            DType::Bf16 => L::nn::<Bf16>(o),
            DType::F16 => L::nn::<F16>(o),
        }
    }
}

/// The operands of a product whose ranges have been checked.
#[derive(Clone, Copy)]
struct ProductOperands<'a> {
    y: *mut f32,
    ldy: usize,
    x: *const f32,
    ldx: usize,
    m: usize,
    w: StoredRows<'a>,
}

/// Floats of packed rows that are kept between products, at most: 64 MB.
const KEPT: usize = 16 << 20;

thread_local! {
    /// Packed rows of x.
    static PACKED: RefCell<LaneBuffer> = const { RefCell::new(LaneBuffer::new()) };
    /// A widened panel, and lanes between their visits; kept, so that pages are not asked for again and again.
    static SCRATCH: RefCell<(LaneBuffer, LaneBuffer)> = const { RefCell::new((LaneBuffer::new(), LaneBuffer::new())) };
}

/// The left side of [`matmul_nt`]: many rows, packed once for all weights they meet, or a view of few.
pub(super) enum Left<'a> {
    Few { x: &'a [f32], ldx: usize, m: usize },
    Packed { x: LaneBuffer, m: usize, k: usize },
}

impl<'a> Left<'a> {
    /// Rows `..m` of x, `k` floats each, `ldx` apart.
    pub fn new(x: &'a [f32], ldx: usize, m: usize, k: usize) -> Self {
        Self::at(level(), x, ldx, m, k)
    }

    fn at(level: InstructionSet, x: &'a [f32], ldx: usize, m: usize, k: usize) -> Self {
        let (stored, most) = tile_rows(level);
        assert!(m == 0 || x.len() >= (m - 1) * ldx + k, "x too short");
        if m <= stored {
            return Left::Few { x, ldx, m };
        }
        // `[piece][group][row][lane]`, zeros behind the last term.
        let groups = k.div_ceil(LANES);
        let mut packed = PACKED.take();
        packed.grow(m * groups * LANES);
        for (from, rows) in parts(m, most) {
            let piece = &mut packed.lines_mut()[from * groups..(from + rows) * groups];
            for r in 0..rows {
                let row = &x[(from + r) * ldx..][..k];
                for (g, terms) in row.chunks(LANES).enumerate() {
                    let line = &mut piece[g * rows + r].0;
                    line[..terms.len()].copy_from_slice(terms);
                    line[terms.len()..].fill(0.0);
                }
            }
        }
        Left::Packed { x: packed, m, k }
    }

    fn rows(&self) -> usize {
        match *self {
            Left::Few { m, .. } | Left::Packed { m, .. } => m,
        }
    }
}

impl Drop for Left<'_> {
    /// Keeps the memory for the next product of this thread.
    fn drop(&mut self) {
        if let Left::Packed { x, .. } = self
            && x.len() <= KEPT
        {
            PACKED.set(std::mem::take(x));
        }
    }
}

/// Rows of x that [`matmul_nt`] multiplies with weights as they are stored at most, and in a tile of packed rows.
fn tile_rows(level: InstructionSet) -> (usize, usize) {
    with_lanes!(level, L => (L::STORED, L::NT_ROWS))
}

/// `(from, size)` of nearly equal parts of `n`, none above `most`.
fn parts(n: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = n.div_ceil(most).max(1);
    let (size, longer) = (n / count, n % count);
    (0..count).map(move |i| (i * size + i.min(longer), size + usize::from(i < longer)))
}

/// Evaluates a call with `$rows`, a constant, the number in `1..=$most` that `$count` is. The guards are constants of their own: only
/// then are cases above `$most` not compiled.
macro_rules! with_rows {
    ($count:expr, $most:expr, $rows:ident => $call:expr) => {{
        macro_rules! case {
            ($number:literal) => {{
                const $rows: usize = $number;
                $call
            }};
        }
        match $count {
            1 => case!(1),
            2 if const { $most >= 2 } => case!(2),
            3 if const { $most >= 3 } => case!(3),
            4 if const { $most >= 4 } => case!(4),
            5 if const { $most >= 5 } => case!(5),
            6 if const { $most >= 6 } => case!(6),
            _ => unreachable!("a tile has at most {} rows", $most),
        }
    }};
}

use with_rows;

/// Lanes with the sizes of their tiles, and the products compiled for the processors that have them.
///
/// The loops over panels are functions of their own: inlined, they would share registers with what stands around them.
trait Tiles: Lanes {
    /// Rows of x that meet weights as they are stored at most.
    const STORED: usize;
    /// Packed rows of x in a tile at most.
    const NT_ROWS: usize;
    /// # Safety
    /// As [`nt`].
    unsafe fn nt<E: Element>(o: ProductOperands<'_>);
    /// # Safety
    /// As [`nn`].
    unsafe fn nn<E: Element>(o: ProductOperands<'_>);
    /// # Safety
    /// As [`nt_tile`].
    unsafe fn nt_tile<const M: usize, const N: usize>(tile: NtTile);
    /// # Safety
    /// As [`nn_tile`].
    unsafe fn nn_tile<const M: usize, const C: usize>(tile: NnTile);
}

/// A function of its own with a processor's features, and one of a trait that calls it.
macro_rules! apart {
    (fn $name:ident [$($generics:tt)*] ($o:ident: $operands:ty) { $body:expr } [$($given:tt)*] $($features:literal)?) => {
        unsafe fn $name<$($generics)*>($o: $operands) {
            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn apart<$($generics)*>($o: $operands) {
                // SAFETY: the caller's promise.
                unsafe { $body }
            }
            // SAFETY: the caller's promise; the features are those of the lanes.
            unsafe { apart::<$($given)*>($o) }
        }
    };
}

/// Of [`matmul_nt`]: how many rows of x meet stored weights in a tile and in all, the loop over a panel, and its rows of x and w.
/// Of [`matmul_nn`]: rows of y and groups of columns. Then the features.
macro_rules! tiles {
    ($lanes:ty, stored: $s:literal of $stored:literal, $nt_tile:ident: $m:literal x $n:literal,
     nn_tile: $rows:literal x $columns:literal $(, $features:literal)?) => {
        impl Tiles for $lanes {
            const STORED: usize = $stored;
            const NT_ROWS: usize = $m;
            apart!(fn nt [E: Element] (o: ProductOperands<'_>) { nt::<$lanes, E, $s, $m, $n>(o) } [E] $($features)?);
            apart!(fn nn [E: Element] (o: ProductOperands<'_>) { nn::<$lanes, E, $rows, $columns>(o) } [E] $($features)?);
            apart!(fn nt_tile [const M: usize, const N: usize] (o: NtTile) { $nt_tile::<$lanes, M, N>(o) } [M, N] $($features)?);
            apart!(fn nn_tile [const M: usize, const C: usize] (o: NnTile) { nn_tile::<$lanes, M, C>(o) } [M, C] $($features)?);
        }
    };
}

// As many sums as leave registers for what is multiplied: 24 of 32, or 12 of 16.
tiles!(Array, stored: 2 of 4, nt_tile: 2 x 2, nn_tile: 2 x 2);
#[cfg(target_arch = "x86_64")]
tiles!(Avx2, stored: 2 of 6, nt_tile_in_halves: 4 x 3, nn_tile: 6 x 1, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
tiles!(Avx512, stored: 6 of 24, nt_tile: 6 x 4, nn_tile: 6 x 4, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cpu::lanes::lane_sum;

    /// Deterministic values in [-1, 1) with an outlier now and then.
    fn values(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..count)
            .map(|i| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let v = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                if i % 97 == 13 { v * 1e3 } else { v }
            })
            .collect()
    }

    fn store(values: &[f32], dtype: DType, offset: usize) -> Vec<u8> {
        let mut bytes = vec![0; offset];
        for v in values {
            match dtype {
                DType::F32 => bytes.extend(v.to_le_bytes()),
                DType::Bf16 => bytes.extend(half::bf16::from_f32(*v).to_le_bytes()),
                DType::F16 => bytes.extend(half::f16::from_f32(*v).to_le_bytes()),
            }
        }
        bytes
    }

    const TYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];
    const SIZES: [(usize, usize); 8] = [(1, 1), (3, 5), (7, 16), (4, 31), (33, 33), (12, 111), (130, 48), (300, 17)];

    #[test]
    fn both_products_agree_with_f64_at_odd_sizes_and_odd_addresses() {
        for dtype in TYPES {
            for (n, k) in SIZES {
                for m in [1, 2, 3, 4, 7] {
                    let bytes = store(&values(n * k, 1), dtype, 1);
                    let w = StoredRows::stored(dtype, &bytes[1..], n, k);
                    let mut wide = vec![0.0; n * k];
                    for (r, row) in wide.chunks_exact_mut(k).enumerate() {
                        w.row_to(r, row);
                    }
                    let x = values(m * k, 2);
                    let mut y = vec![f32::NAN; m * n];
                    matmul_nt(&mut y, n, &Left::new(&x, k, m, k), w);
                    for i in 0..m {
                        for j in 0..n {
                            let terms = (0..k).map(|l| x[i * k + l] as f64 * wide[j * k + l] as f64);
                            let (exact, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                            let error = (y[i * n + j] as f64 - exact).abs();
                            assert!(error <= size * 2e-6, "nt {dtype:?} m {m} n {n} k {k}: {error} of {size}");
                        }
                    }
                    let x = values(m * n, 3);
                    let start = values(m * k, 4);
                    let mut y = start.clone();
                    matmul_nn(&mut y, k, &x, n, m, w);
                    for i in 0..m {
                        for l in 0..k {
                            let terms = (0..n).map(|j| x[i * n + j] as f64 * wide[j * k + l] as f64);
                            let begin = start[i * k + l] as f64;
                            let (exact, size) = terms.fold((begin, begin.abs()), |(s, a), t| (s + t, a + t.abs()));
                            let error = (y[i * k + l] as f64 - exact).abs();
                            assert!(error <= size * 2e-5, "nn {dtype:?} m {m} n {n} k {k}: {error} of {size}");
                        }
                    }
                }
            }
        }
    }

    /// Every output by the definition of its order, on every instruction set of this processor, alone and in batches of sizes
    /// that take every path: tiles of each height, weights as stored and in panels, panels of some of the terms.
    #[test]
    fn every_row_has_the_bits_of_its_definition_alone_in_a_batch_and_on_any_processor() {
        let sizes = [
            (1, 1),
            (3, 5),
            (7, 16),
            (4, 31),
            (33, 33),
            (12, 111),
            (130, 48),
            (300, 17),
            (5, 1040),
            (52, 2055),
            (9, 4100),
            (150, 530),
            // Several panels, whatever the cache, and the last one short.
            (150, 2100),
        ];
        for dtype in TYPES {
            for (n, k) in sizes {
                let bytes = store(&values(n * k, 5), dtype, 0);
                let w = StoredRows::stored(dtype, &bytes, n, k);
                let mut wide = vec![0.0; n * k];
                for (r, row) in wide.chunks_exact_mut(k).enumerate() {
                    w.row_to(r, row);
                }
                let most = 27;
                let (xt, xn, start) = (values(most * k, 6), values(most * n, 7), values(most * k, 8));
                let (mut yt, mut yn) = (vec![0.0; most * n], start.clone());
                for i in 0..most {
                    for j in 0..n {
                        let mut lanes = [0.0f32; LANES];
                        for l in 0..k {
                            lanes[l % LANES] = xt[i * k + l].mul_add(wide[j * k + l], lanes[l % LANES]);
                            yn[i * k + l] = xn[i * n + j].mul_add(wide[j * k + l], yn[i * k + l]);
                        }
                        yt[i * n + j] = lane_sum(lanes);
                    }
                }
                for &level in InstructionSet::available() {
                    for m in [1, 2, 3, 4, 5, 6, 7, 8, 13, 25, 27] {
                        if level == InstructionSet::Portable && m > 8 && n * k > 5_000 {
                            continue; // software FMA
                        }
                        let (mut t, mut s) = (vec![f32::NAN; m * n], start[..m * k].to_vec());
                        // SAFETY: both slices are this test's own, and the processor has the level.
                        unsafe {
                            matmul_nt_at(level, Out::new(&mut t), n, &Left::at(level, &xt, k, m, k), w);
                            matmul_nn_at(level, Out::new(&mut s), k, &xn, n, m, w);
                        }
                        assert!(same_bits(&t, &yt[..m * n]), "nt {dtype:?} {level:?} m {m} n {n} k {k}");
                        assert!(same_bits(&s, &yn[..m * k]), "nn {dtype:?} {level:?} m {m} n {n} k {k}");
                    }
                }
            }
        }
    }

    fn same_bits(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
    }

    /// Columns of a wider matrix, written among others.
    #[test]
    fn parts_of_wider_matrices_are_read_and_nothing_beside_them_is_written() {
        let (n, k, ldx, ldy) = (70, 90, 101, 83);
        let bytes = store(&values(n * 120, 5), DType::Bf16, 0);
        let w = StoredRows::stored(DType::Bf16, &bytes, n, 120).columns(7, 7 + k);
        for &level in InstructionSet::available() {
            for m in [1, 5, 30] {
                let (x, z) = (values(m * ldx, 6), values(m * ldx, 7));
                let (mut t, mut s) = (vec![7.0; m * ldy], vec![7.0; m * ldx]);
                // SAFETY: both slices are this test's own, and the processor has the level.
                unsafe {
                    matmul_nt_at(level, Out::new(&mut t), ldy, &Left::at(level, &x, ldx, m, k), w);
                    matmul_nn_at(level, Out::new(&mut s), ldx, &z, ldx, m, w);
                }
                for i in 0..m {
                    let (mut one, mut other) = (vec![0.0; n], vec![7.0; k]);
                    // SAFETY: as above.
                    unsafe {
                        matmul_nt_at(
                            InstructionSet::Portable,
                            Out::new(&mut one),
                            n,
                            &Left::at(InstructionSet::Portable, &x[i * ldx..], ldx, 1, k),
                            w,
                        );
                        matmul_nn_at(InstructionSet::Portable, Out::new(&mut other), k, &z[i * ldx..], n, 1, w);
                    }
                    assert!(same_bits(&t[i * ldy..i * ldy + n], &one) && same_bits(&s[i * ldx..i * ldx + k], &other));
                    assert!(
                        t[i * ldy + n..(i + 1) * ldy].iter().chain(&s[i * ldx + k..(i + 1) * ldx]).all(|&v| v == 7.0)
                    );
                }
            }
        }
    }
}
