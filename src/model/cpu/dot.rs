//! The arithmetic of the CPU backend: two matrix products in a fixed order of additions, vectorised.
//!
//! Every number is computed in an order that depends on its own row only, never on how many rows are computed together,
//! which tile they fall into, how work is split between threads, or what the processor can do:
//!
//! * [`matmul_nt`], `y = x w^T`: a dot product along `k` in 16 lanes (element `i` goes to lane `i % 16`), each lane a chain of
//!   fused multiply-adds, the lanes added in a fixed tree;
//! * [`matmul_nn`], `y += x w`: each output a chain of fused multiply-adds over the rows of `w`, first to last.
//!
//! With AVX2, FMA and F16C a lane group is two registers; without them it is an array and the compiler's own code, slow
//! but equal to the last bit. Weights are read in their stored type and widened exactly.

use crate::dtype::DType;
use std::sync::OnceLock;

/// Lanes of one dot product.
pub(super) const LANES: usize = 16;

/// Rows of a matrix in storage: `rows` rows of at least `width` elements, `stride` elements apart, at any alignment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub dtype: DType,
    pub data: &'a [u8],
    pub stride: usize,
    pub rows: usize,
    pub width: usize,
}

impl<'a> Rows<'a> {
    /// A contiguous matrix of stored weights.
    pub fn stored(dtype: DType, data: &'a [u8], rows: usize, width: usize) -> Self {
        Rows { dtype, data, stride: width, rows, width }
    }

    /// A matrix of computed values.
    pub fn computed(data: &'a [f32], stride: usize, rows: usize, width: usize) -> Self {
        Rows { dtype: DType::F32, data: bytemuck::cast_slice(data), stride, rows, width }
    }

    /// Rows `from .. to`.
    pub fn slice(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.rows, "rows {from}..{to} of {}", self.rows);
        if from == to {
            return Rows { data: &[], rows: 0, ..self };
        }
        Rows { data: &self.data[from * self.stride * self.dtype.size()..], rows: to - from, ..self }
    }

    /// Columns `from .. to`.
    pub fn columns(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.width, "columns {from}..{to} of {}", self.width);
        Rows { data: &self.data[from * self.dtype.size()..], width: to - from, ..self }
    }

    /// Panics unless the last element of the last row lies inside the data: the fact that the unchecked loads rely on.
    fn check(&self) {
        if self.rows > 0 {
            let elements = (self.rows - 1) * self.stride + self.width;
            assert!(
                self.width <= self.stride && elements * self.dtype.size() <= self.data.len(),
                "matrix view too short"
            );
        }
    }

    /// Whether two rows are equal in every component, compared as numbers: 0 equals -0. Ends at the first difference.
    pub fn rows_equal(&self, a: usize, b: usize) -> bool {
        let size = self.dtype.size();
        let row = |r: usize| self.data[r * self.stride * size..][..self.width * size].chunks_exact(size);
        let value = |bytes: &[u8]| match (self.dtype, bytes) {
            (DType::F32, &[b0, b1, b2, b3]) => f32::from_le_bytes([b0, b1, b2, b3]),
            (DType::Bf16, &[b0, b1]) => half::bf16::from_le_bytes([b0, b1]).to_f32(),
            (DType::F16, &[b0, b1]) => half::f16::from_le_bytes([b0, b1]).to_f32(),
            _ => f32::NAN,
        };
        row(a).zip(row(b)).all(|(x, y)| value(x) == value(y))
    }

    /// Widens one row to f32.
    pub fn row_to(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.width);
        let size = self.dtype.size();
        let bytes = &self.data[row * self.stride * size..][..self.width * size];
        match self.dtype {
            DType::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            DType::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            DType::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
    }
}

/// What the processor offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Nothing assumed.
    Portable,
}

/// The best level of this processor.
pub(super) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Level::Avx2;
        }
        Level::Portable
    })
}

/// `y[m, n] = x[m, k] w[n, k]^T`; row `i` of `y` starts at `i * ldy`, row `i` of `x` at `i * ldx`.
pub(super) fn matmul_nt(y: &mut [f32], ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
    // SAFETY: the slice is ours alone while we write.
    unsafe { matmul_nt_at(level(), Out::new(y), ldy, x, ldx, m, w) };
}

/// `y[m, width] += x[m, n] w[n, width]`.
pub(super) fn matmul_nn(y: &mut [f32], ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
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

    /// The matrix from column `from` on.
    pub fn columns_from(self, from: usize) -> Self {
        assert!(from <= self.len);
        // SAFETY: stays inside the slice or one past it.
        Out { data: unsafe { self.data.add(from) }, len: self.len - from }
    }
}

/// [`matmul_nt`] into columns `.. w.rows` of `y`.
///
/// # Safety
/// The slice behind `y` lives, and nothing else touches those columns of rows `..m` meanwhile.
pub(super) unsafe fn matmul_nt_columns(y: Out, ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
    // SAFETY: the caller's promise.
    unsafe { matmul_nt_at(level(), y, ldy, x, ldx, m, w) };
}

/// [`matmul_nn`] into columns `.. w.width` of `y`.
///
/// # Safety
/// The slice behind `y` lives, and nothing else touches those columns of rows `..m` meanwhile.
pub(super) unsafe fn matmul_nn_columns(y: Out, ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
    // SAFETY: the caller's promise.
    unsafe { matmul_nn_at(level(), y, ldy, x, ldx, m, w) };
}

/// # Safety
/// As [`matmul_nt_columns`].
unsafe fn matmul_nt_at(level: Level, y: Out, ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
    if m == 0 || w.rows == 0 {
        return;
    }
    w.check();
    assert!(y.len >= (m - 1) * ldy + w.rows && x.len() >= (m - 1) * ldx + w.width, "nt operands too short");
    // SAFETY: the asserts above bound every access of `matmul_nt_block` (rows `..m` of x and y, all of w's view), and the AVX2
    // instance only runs where `level` found its features.
    unsafe {
        match (level, w.dtype) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, DType::F32) => avx2::nt::<F32>(y.data, ldy, x, ldx, m, w),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, DType::Bf16) => avx2::nt::<Bf16>(y.data, ldy, x, ldx, m, w),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, DType::F16) => avx2::nt::<F16>(y.data, ldy, x, ldx, m, w),
            (Level::Portable, DType::F32) => matmul_nt_block::<Array, F32>(y.data, ldy, x, ldx, m, w),
            (Level::Portable, DType::Bf16) => matmul_nt_block::<Array, Bf16>(y.data, ldy, x, ldx, m, w),
            (Level::Portable, DType::F16) => matmul_nt_block::<Array, F16>(y.data, ldy, x, ldx, m, w),
        }
    }
}

/// # Safety
/// As [`matmul_nn_columns`].
unsafe fn matmul_nn_at(level: Level, y: Out, ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
    if m == 0 || w.rows == 0 || w.width == 0 {
        return;
    }
    w.check();
    assert!(y.len >= (m - 1) * ldy + w.width && x.len() >= (m - 1) * ldx + w.rows, "nn operands too short");
    // SAFETY: as in `matmul_nt_at`.
    unsafe {
        match (level, w.dtype) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, DType::F32) => avx2::nn::<F32>(y.data, ldy, x, ldx, m, w),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, DType::Bf16) => avx2::nn::<Bf16>(y.data, ldy, x, ldx, m, w),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, DType::F16) => avx2::nn::<F16>(y.data, ldy, x, ldx, m, w),
            (Level::Portable, DType::F32) => matmul_nn_block::<Array, F32>(y.data, ldy, x, ldx, m, w),
            (Level::Portable, DType::Bf16) => matmul_nn_block::<Array, Bf16>(y.data, ldy, x, ldx, m, w),
            (Level::Portable, DType::F16) => matmul_nn_block::<Array, F16>(y.data, ldy, x, ldx, m, w),
        }
    }
}

/// Sixteen f32 lanes.
///
/// # Safety
/// All functions of an implementation need the processor features it is made of; pointers must be valid for 16 elements
/// at any alignment.
trait Group: Copy {
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load_f32(p: *const u8) -> Self;
    unsafe fn load_bf16(p: *const u8) -> Self;
    unsafe fn load_f16(p: *const u8) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// `self + a * b`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// The lanes added in the fixed tree: 8 apart, 4 apart, 2 apart, neighbours.
    unsafe fn sum(self) -> f32;
}

/// A stored element type.
trait Element {
    const SIZE: usize;
    /// # Safety
    /// `p` is valid for 16 elements; `G`'s features are present.
    unsafe fn load<G: Group>(p: *const u8) -> G;
}

struct F32;
struct Bf16;
struct F16;

impl Element for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<G: Group>(p: *const u8) -> G {
        // SAFETY: the caller's promise.
        unsafe { G::load_f32(p) }
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<G: Group>(p: *const u8) -> G {
        // SAFETY: the caller's promise.
        unsafe { G::load_bf16(p) }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<G: Group>(p: *const u8) -> G {
        // SAFETY: the caller's promise.
        unsafe { G::load_f16(p) }
    }
}

/// Sixteen lanes without any processor feature: the same roundings, in software where there is no FMA.
#[derive(Clone, Copy)]
struct Array([f32; LANES]);

impl Group for Array {
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
        Array(std::array::from_fn(|i| unsafe { p.cast::<f32>().add(i).read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self {
        Array(std::array::from_fn(|i| {
            // SAFETY: as `load_f32`.
            half::bf16::from_bits(unsafe { p.cast::<u16>().add(i).read_unaligned() }).to_f32()
        }))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        Array(std::array::from_fn(|i| {
            // SAFETY: as `load_f32`.
            half::f16::from_bits(unsafe { p.cast::<u16>().add(i).read_unaligned() }).to_f32()
        }))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: valid for 16 elements by the trait's contract.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Array(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        lane_sum(self.0)
    }
}

/// The fixed tree over 16 lanes.
#[inline(always)]
pub(super) fn lane_sum(lanes: [f32; LANES]) -> f32 {
    let a: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let b: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
    (b[0] + b[2]) + (b[1] + b[3])
}

/// Loads the `count < 16` elements at `p`, zeros behind them.
///
/// # Safety
/// `p` is valid for `count` elements of `E`; `G`'s features are present.
#[inline(always)]
unsafe fn load_tail<G: Group, E: Element>(p: *const u8, count: usize) -> G {
    let mut padded = [0u8; LANES * 4];
    // SAFETY: `count * SIZE` bytes are readable by the caller's promise and fit the buffer as count < 16; the buffer is
    // then valid for a whole group.
    unsafe {
        std::ptr::copy_nonoverlapping(p, padded.as_mut_ptr(), count * E::SIZE);
        E::load::<G>(padded.as_ptr())
    }
}

/// One tile of [`matmul_nt`]: `M` rows of x against `N` rows of w.
///
/// # Safety
/// `x` is valid for `M` rows of `k` floats `ldx` apart, `w` for `N` rows of `k` elements `ldw` elements apart, `y` for
/// `M` rows of `N` floats `ldy` apart; `G`'s features are present.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn matmul_nt_tile<G: Group, E: Element, const M: usize, const N: usize>(
    y: *mut f32,
    ldy: usize,
    x: *const f32,
    ldx: usize,
    w: *const u8,
    ldw: usize,
    k: usize,
) {
    // SAFETY: `i` stays below `k` rounded down to whole groups, the tail is read with its own length; all pointers are
    // inside the ranges the caller promises.
    unsafe {
        let mut acc = [[G::zero(); N]; M];
        let whole = k - k % LANES;
        let mut i = 0;
        while i < whole {
            let wv: [G; N] = std::array::from_fn(|n| E::load::<G>(w.add((n * ldw + i) * E::SIZE)));
            for (m, row) in acc.iter_mut().enumerate() {
                let xv = G::load_f32(x.add(m * ldx + i).cast());
                for (a, wv) in row.iter_mut().zip(wv) {
                    *a = a.fma(xv, wv);
                }
            }
            i += LANES;
        }
        if whole < k {
            let wv: [G; N] = std::array::from_fn(|n| load_tail::<G, E>(w.add((n * ldw + whole) * E::SIZE), k - whole));
            for (m, row) in acc.iter_mut().enumerate() {
                let xv = load_tail::<G, F32>(x.add(m * ldx + whole).cast(), k - whole);
                for (a, wv) in row.iter_mut().zip(wv) {
                    *a = a.fma(xv, wv);
                }
            }
        }
        for (m, row) in acc.iter().enumerate() {
            for (n, a) in row.iter().enumerate() {
                *y.add(m * ldy + n) = a.sum();
            }
        }
    }
}

/// Weight rows worked on at a time when several rows of x use them: small enough to stay in the first-level cache.
const PANEL_BYTES: usize = 24 << 10;

/// # Safety
/// The operands satisfy the asserts of [`matmul_nt_at`]; `G`'s features are present.
#[inline(always)]
unsafe fn matmul_nt_block<G: Group, E: Element>(y: *mut f32, ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
    let (n, k, ldw) = (w.rows, w.width, w.stride);
    let (yp, xp, wp) = (y, x.as_ptr(), w.data.as_ptr());
    // SAFETY: tiles cover rows `..m` and weight rows `..n` exactly once, and the caller asserted the ranges; the panel
    // holds `count` rows of `k` floats.
    unsafe {
        if m == 1 {
            let whole = n - n % 4;
            for j in (0..whole).step_by(4) {
                matmul_nt_tile::<G, E, 1, 4>(yp.add(j), ldy, xp, ldx, wp.add(j * ldw * E::SIZE), ldw, k);
            }
            for j in whole..n {
                matmul_nt_tile::<G, E, 1, 1>(yp.add(j), ldy, xp, ldx, wp.add(j * ldw * E::SIZE), ldw, k);
            }
            return;
        }
        let rows = (PANEL_BYTES / (4 * k.max(1)) / 3 * 3).max(3);
        // Widening costs about as much as one use of the row, so it pays from the third row of x on.
        let widen = E::SIZE != 4 && m > 2;
        let mut panel = if widen { vec![0.0f32; rows.min(n) * k] } else { Vec::new() };
        for j in (0..n).step_by(rows) {
            let count = rows.min(n - j);
            let (y, w) = (yp.add(j), wp.add(j * ldw * E::SIZE));
            if widen {
                for r in 0..count {
                    widen_row::<G, E>(w.add(r * ldw * E::SIZE), &mut panel[r * k..(r + 1) * k]);
                }
                matmul_nt_sweep::<G, F32>(y, ldy, xp, ldx, m, panel.as_ptr().cast(), k, count, k);
            } else {
                matmul_nt_sweep::<G, E>(y, ldy, xp, ldx, m, w, ldw, count, k);
            }
        }
    }
}

/// # Safety
/// `p` is valid for `out.len()` elements of `E`; `G`'s features are present.
#[inline(always)]
unsafe fn widen_row<G: Group, E: Element>(p: *const u8, out: &mut [f32]) {
    let (k, whole) = (out.len(), out.len() - out.len() % LANES);
    // SAFETY: whole groups lie inside both sides; the tail goes through a padded buffer.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            E::load::<G>(p.add(i * E::SIZE)).store(out.as_mut_ptr().add(i));
        }
        if whole < k {
            let mut tail = [0.0f32; LANES];
            load_tail::<G, E>(p.add(whole * E::SIZE), k - whole).store(tail.as_mut_ptr());
            out[whole..].copy_from_slice(&tail[..k - whole]);
        }
    }
}

/// All tiles of `m` rows of x and `n` rows of w.
///
/// # Safety
/// As [`matmul_nt_tile`] for `m` and `n` rows.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn matmul_nt_sweep<G: Group, E: Element>(
    y: *mut f32,
    ldy: usize,
    x: *const f32,
    ldx: usize,
    m: usize,
    w: *const u8,
    ldw: usize,
    n: usize,
    k: usize,
) {
    let (pairs, triples) = (m - m % 2, n - n % 3);
    // SAFETY: every tile lies inside `m` x `n`.
    unsafe {
        for i in (0..pairs).step_by(2) {
            let (y, x) = (y.add(i * ldy), x.add(i * ldx));
            for j in (0..triples).step_by(3) {
                matmul_nt_tile::<G, E, 2, 3>(y.add(j), ldy, x, ldx, w.add(j * ldw * E::SIZE), ldw, k);
            }
            for j in triples..n {
                matmul_nt_tile::<G, E, 2, 1>(y.add(j), ldy, x, ldx, w.add(j * ldw * E::SIZE), ldw, k);
            }
        }
        if pairs < m {
            let (y, x) = (y.add(pairs * ldy), x.add(pairs * ldx));
            for j in (0..triples).step_by(3) {
                matmul_nt_tile::<G, E, 1, 3>(y.add(j), ldy, x, ldx, w.add(j * ldw * E::SIZE), ldw, k);
            }
            for j in triples..n {
                matmul_nt_tile::<G, E, 1, 1>(y.add(j), ldy, x, ldx, w.add(j * ldw * E::SIZE), ldw, k);
            }
        }
    }
}

/// One tile of [`matmul_nn`]: `M` rows of y, `C` groups of columns, `n` rows of w.
///
/// # Safety
/// `y` is valid for `M` rows of `C` groups `ldy` apart, `x` for `M` rows of `n` floats `ldx` apart, `w` for `n` rows of
/// `C` groups `ldw` elements apart; `G`'s features are present.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn matmul_nn_tile<G: Group, E: Element, const M: usize, const C: usize>(
    y: *mut f32,
    ldy: usize,
    x: *const f32,
    ldx: usize,
    w: *const u8,
    ldw: usize,
    n: usize,
) {
    // SAFETY: the ranges are the caller's promise.
    unsafe {
        let mut acc: [[G; C]; M] =
            std::array::from_fn(|m| std::array::from_fn(|c| G::load_f32(y.add(m * ldy + c * LANES).cast())));
        for j in 0..n {
            let wv: [G; C] = std::array::from_fn(|c| E::load::<G>(w.add((j * ldw + c * LANES) * E::SIZE)));
            for (m, row) in acc.iter_mut().enumerate() {
                let xv = G::splat(*x.add(m * ldx + j));
                for (a, wv) in row.iter_mut().zip(wv) {
                    *a = a.fma(xv, wv);
                }
            }
        }
        for (m, row) in acc.iter().enumerate() {
            for (c, a) in row.iter().enumerate() {
                a.store(y.add(m * ldy + c * LANES));
            }
        }
    }
}

/// The columns behind the last whole group, through padded buffers.
///
/// # Safety
/// As [`matmul_nn_tile`] with one row and `count < 16` columns.
#[inline(always)]
unsafe fn matmul_nn_tail<G: Group, E: Element>(
    y: *mut f32,
    x: *const f32,
    w: *const u8,
    ldw: usize,
    n: usize,
    count: usize,
) {
    let mut padded = [0.0f32; LANES];
    // SAFETY: reads and writes `count` columns only; the padded buffer holds a whole group.
    unsafe {
        let mut acc = load_tail::<G, F32>(y.cast(), count);
        for j in 0..n {
            acc = acc.fma(G::splat(*x.add(j)), load_tail::<G, E>(w.add(j * ldw * E::SIZE), count));
        }
        acc.store(padded.as_mut_ptr());
        std::ptr::copy_nonoverlapping(padded.as_ptr(), y, count);
    }
}

/// Rows of w between two looks at y: bounds the pages touched at once, without changing the order of any sum.
const NN_ROWS: usize = 128;

/// # Safety
/// The operands satisfy the asserts of [`matmul_nn_at`]; `G`'s features are present.
#[inline(always)]
unsafe fn matmul_nn_block<G: Group, E: Element>(y: *mut f32, ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
    let (ldw, width) = (w.stride, w.width);
    let whole = width - width % LANES;
    let pairs = width - width % (2 * LANES);
    for from in (0..w.rows).step_by(NN_ROWS) {
        let n = NN_ROWS.min(w.rows - from);
        // SAFETY: rows `from .. from + n` of w and the same columns of x exist; column tiles end at `width`.
        unsafe {
            let (yp, xp) = (y, x.as_ptr().add(from));
            let wp = w.data.as_ptr().add(from * ldw * E::SIZE);
            for c in (0..pairs).step_by(2 * LANES) {
                let w = wp.add(c * E::SIZE);
                let threes = m - m % 3;
                for i in (0..threes).step_by(3) {
                    matmul_nn_tile::<G, E, 3, 2>(yp.add(i * ldy + c), ldy, xp.add(i * ldx), ldx, w, ldw, n);
                }
                for i in threes..m {
                    matmul_nn_tile::<G, E, 1, 2>(yp.add(i * ldy + c), ldy, xp.add(i * ldx), ldx, w, ldw, n);
                }
            }
            for i in 0..m {
                if pairs < whole {
                    let w = wp.add(pairs * E::SIZE);
                    matmul_nn_tile::<G, E, 1, 1>(yp.add(i * ldy + pairs), ldy, xp.add(i * ldx), ldx, w, ldw, n);
                }
                if whole < width {
                    let w = wp.add(whole * E::SIZE);
                    matmul_nn_tail::<G, E>(yp.add(i * ldy + whole), xp.add(i * ldx), w, ldw, n, width - whole);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The lane group in two registers.

    use super::{Element, Group, LANES, Rows, matmul_nn_block, matmul_nt_block};
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    struct Pair(__m256, __m256);

    // SAFETY of all blocks in this impl: the intrinsics need AVX2, FMA and F16C, and pointers valid for 16 elements at any
    // alignment (the unaligned forms are used); both are the trait's contract.
    impl Group for Pair {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see above.
            unsafe { Pair(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: see above.
            unsafe { Pair(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load_f32(p: *const u8) -> Self {
            // SAFETY: see above.
            unsafe { Pair(_mm256_loadu_ps(p.cast()), _mm256_loadu_ps(p.cast::<f32>().add(8))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u8) -> Self {
            // SAFETY: see above. A bfloat16 is the upper half of the f32 of the same value.
            unsafe {
                let wide = |p: *const u8| {
                    let half = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half))
                };
                Pair(wide(p), wide(p.add(16)))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u8) -> Self {
            // SAFETY: see above.
            unsafe {
                let wide = |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
                Pair(wide(p), wide(p.add(16)))
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
            unsafe { Pair(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
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

    const _: () = assert!(LANES == 16, "a pair of AVX2 registers has 16 lanes");

    /// # Safety
    /// As [`matmul_nt_block`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn nt<E: Element>(y: *mut f32, ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
        // SAFETY: the caller's promise.
        unsafe { matmul_nt_block::<Pair, E>(y, ldy, x, ldx, m, w) }
    }

    /// # Safety
    /// As [`matmul_nn_block`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn nn<E: Element>(y: *mut f32, ldy: usize, x: &[f32], ldx: usize, m: usize, w: Rows<'_>) {
        // SAFETY: the caller's promise.
        unsafe { matmul_nn_block::<Pair, E>(y, ldy, x, ldx, m, w) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                    let w = Rows::stored(dtype, &bytes[1..], n, k);
                    let mut wide = vec![0.0; n * k];
                    for (r, row) in wide.chunks_exact_mut(k).enumerate() {
                        w.row_to(r, row);
                    }
                    let x = values(m * k, 2);
                    let mut y = vec![f32::NAN; m * n];
                    matmul_nt(&mut y, n, &x, k, m, w);
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

    #[test]
    fn a_row_has_the_same_bits_alone_in_a_batch_and_on_any_processor() {
        for dtype in TYPES {
            for (n, k) in SIZES {
                let bytes = store(&values(n * k, 5), dtype, 0);
                let w = Rows::stored(dtype, &bytes, n, k);
                let m = 7;
                let (xt, xn) = (values(m * k, 6), values(m * n, 7));
                let (mut yt, mut yn) = (vec![0.0; m * n], vec![0.0; m * k]);
                matmul_nt(&mut yt, n, &xt, k, m, w);
                matmul_nn(&mut yn, k, &xn, n, m, w);
                for level in [level(), Level::Portable] {
                    for i in 0..m {
                        let (mut t, mut s) = (vec![0.0; n], vec![0.0; k]);
                        // SAFETY: both slices are this test's own.
                        unsafe {
                            matmul_nt_at(level, Out::new(&mut t), n, &xt[i * k..], k, 1, w);
                            matmul_nn_at(level, Out::new(&mut s), k, &xn[i * n..], n, 1, w);
                        }
                        assert_eq!(t, yt[i * n..(i + 1) * n], "nt {dtype:?} {level:?}");
                        assert_eq!(s, yn[i * k..(i + 1) * k], "nn {dtype:?} {level:?}");
                    }
                }
            }
        }
    }
}
