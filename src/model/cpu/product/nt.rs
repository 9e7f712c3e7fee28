//! `y = x w^T`: dot products in 16 lanes.

use super::{LaneBuffer, ProductOperands, SCRATCH, Tiles, parts, with_rows};
use crate::model::cpu::cache::second_level_cache;
#[cfg(target_arch = "x86_64")]
use crate::model::cpu::lanes::x86::Half;
use crate::model::cpu::lanes::{Element, F32, LANES, Lanes, load_tail, prefetch, prefetch_l2};

/// Floats of a widened panel. It and the bytes of the next one have to fit the second-level cache. The larger it is, the less often
/// rows of x come from further away: with 2 MB, half of the cache was faster than 384 KB by a tenth; with 1 MB, only 384 KB was
/// measured. Virtual processors name sizes that the real one does not have, so a larger cache is not believed.
fn panel_floats() -> usize {
    match second_level_cache() {
        Some(bytes) if bytes >= 2 << 20 => (1 << 20) / size_of::<f32>(),
        _ => 96 << 10,
    }
}

/// Floats of lanes that a thread keeps between products, at most: 16 MB.
const KEPT_LANES: usize = 4 << 20;

/// Terms of a dot product in a panel: more would leave it too few rows, and rows of x would come from further away too often.
const PANEL_TERMS: usize = 2048;

/// Terms of a dot product between two visits of its lanes: six rows of them are 24 KB, and stay in the first-level cache.
const NT_TERMS: usize = 1024;

/// Sums of `M x N` groups of lanes, `[M][N]`.
#[inline(always)]
unsafe fn sums<L: Lanes, const M: usize, const N: usize>(acc: [[L; N]; M]) -> [[f32; N]; M] {
    const { assert!(M * N <= 32) };
    let mut out = [[0.0; N]; M];
    // SAFETY: the features are the caller's promise.
    unsafe {
        sixteen_sums(&acc, &mut out, 0);
        if M * N > 16 {
            sixteen_sums(&acc, &mut out, 16);
        }
    }
    out
}

/// Sixteen of the sums, from the one with number `base` on.
#[inline(always)]
unsafe fn sixteen_sums<L: Lanes, const M: usize, const N: usize>(
    acc: &[[L; N]; M],
    out: &mut [[f32; N]; M],
    base: usize,
) {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let mut groups = [L::zero(); 16];
        for m in 0..M {
            for n in 0..N {
                if (base..base + 16).contains(&(m * N + n)) {
                    groups[m * N + n - base] = acc[m][n];
                }
            }
        }
        let sums = L::sums(groups);
        for m in 0..M {
            for n in 0..N {
                if (base..base + 16).contains(&(m * N + n)) {
                    out[m][n] = sums[m * N + n - base];
                }
            }
        }
    }
}

/// A piece of x against a tile of a panel: operands of [`nt_tile`].
#[derive(Clone, Copy)]
pub(super) struct NtTile {
    /// `[group][row][lane]`.
    pub x: *const f32,
    /// `[group][row][lane]`.
    pub w: *const f32,
    pub groups: usize,
    /// `[row of x][row of w][lane]`: what the sums are from the terms before, and become if more follow.
    pub lanes: *mut f32,
    pub first: bool,
    pub last: bool,
    /// Where the sums go with the last terms, and how many of the columns are y's.
    pub y: *mut f32,
    pub ldy: usize,
    pub columns: usize,
}

/// Multiplies `M` rows of x with `N` rows of w.
///
/// # Safety
/// `x` and `w` are valid for all groups of `M` and of `N` rows, `lanes` for `M x N` groups unless these are all
/// terms, and `y` for `M` rows of `columns` floats if these are the last; `L`'s features are present.
#[inline(always)]
pub(super) unsafe fn nt_tile<L: Lanes, const M: usize, const N: usize>(t: NtTile) {
    // SAFETY: the ranges are the caller's promise.
    unsafe {
        let mut acc = [[L::zero(); N]; M];
        if !t.first {
            for m in 0..M {
                for n in 0..N {
                    acc[m][n] = L::load_f32(t.lanes.add((m * N + n) * LANES).cast_const().cast());
                }
            }
        }
        let (mut x, mut w) = (t.x, t.w);
        for _ in 0..t.groups {
            let mut wv = [L::zero(); N];
            for n in 0..N {
                wv[n] = L::load_f32(w.add(n * LANES).cast());
            }
            for m in 0..M {
                let xv = L::load_f32(x.add(m * LANES).cast());
                for n in 0..N {
                    acc[m][n] = acc[m][n].fma(xv, wv[n]);
                }
            }
            x = x.add(M * LANES);
            w = w.add(N * LANES);
        }
        if !t.last {
            for m in 0..M {
                for n in 0..N {
                    acc[m][n].store(t.lanes.add((m * N + n) * LANES));
                }
            }
            return;
        }
        store_sums(acc, t.y, t.ldy, t.columns);
    }
}

/// [`nt_tile`] where a group of lanes takes two registers: first the lower lanes of all terms, then the upper, as twelve sums of
/// half a group leave registers for their operands.
///
/// # Safety
/// As [`nt_tile`], with the features of AVX2, and `lanes` has room in any case.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn nt_tile_in_halves<L: Lanes, const M: usize, const N: usize>(t: NtTile) {
    // SAFETY: the ranges are the caller's promise; a half ends where its group ends.
    unsafe {
        for half in 0..2 {
            let offset = half * Half::LANES;
            let lanes = t.lanes.add(offset);
            let mut acc = [[Half::zero(); N]; M];
            if !t.first {
                for m in 0..M {
                    for n in 0..N {
                        acc[m][n] = Half::load(lanes.add((m * N + n) * LANES));
                    }
                }
            }
            let (mut x, mut w) = (t.x.wrapping_add(offset), t.w.wrapping_add(offset));
            for _ in 0..t.groups {
                let mut wv = [Half::zero(); N];
                for n in 0..N {
                    wv[n] = Half::load(w.add(n * LANES));
                }
                for m in 0..M {
                    let xv = Half::load(x.add(m * LANES));
                    for n in 0..N {
                        acc[m][n] = acc[m][n].fma(xv, wv[n]);
                    }
                }
                // At the end both lie behind the operands.
                x = x.wrapping_add(M * LANES);
                w = w.wrapping_add(N * LANES);
            }
            for m in 0..M {
                for n in 0..N {
                    acc[m][n].store(lanes.add((m * N + n) * LANES));
                }
            }
        }
        if t.last {
            let mut acc = [[L::zero(); N]; M];
            for m in 0..M {
                for n in 0..N {
                    acc[m][n] = L::load_f32(t.lanes.add((m * N + n) * LANES).cast_const().cast());
                }
            }
            store_sums(acc, t.y, t.ldy, t.columns);
        }
    }
}

/// The `count < 16` terms behind the last whole group of `M` rows of x and `N` rows of w.
///
/// # Safety
/// `x` is valid for `M` rows of `count` floats `ldx` apart, every `w` for `count` elements; `L`'s features are present.
#[inline(always)]
unsafe fn nt_tail<L: Lanes, E: Element, const M: usize, const N: usize>(
    mut acc: [[L; N]; M],
    x: *const f32,
    ldx: usize,
    w: [*const u8; N],
    count: usize,
) -> [[L; N]; M] {
    // SAFETY: only `count` elements are read.
    unsafe {
        let mut wv = [L::zero(); N];
        for n in 0..N {
            wv[n] = load_tail::<L, E>(w[n], count);
        }
        for m in 0..M {
            let xv = load_tail::<L, F32>(x.add(m * ldx).cast(), count);
            for n in 0..N {
                acc[m][n] = acc[m][n].fma(xv, wv[n]);
            }
        }
    }
    acc
}

/// # Safety
/// The operands satisfy the asserts of [`matmul_nt_at`]; `L`'s features are present.
#[inline(always)]
pub(super) unsafe fn nt<L: Tiles, E: Element, const S: usize, const M: usize, const N: usize>(o: ProductOperands<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        if o.m <= L::STORED {
            // As `Left` decides.
            nt_stored::<L, E, S, N>(o);
        } else {
            nt_panels::<L, E, M, N>(o);
        }
    }
}

/// Few rows of x, with the rows of w as they are stored.
///
/// # Safety
/// As [`nt`].
#[inline(always)]
unsafe fn nt_stored<L: Lanes, E: Element, const M: usize, const N: usize>(o: ProductOperands<'_>) {
    let n = o.w.rows;
    let row = o.w.stride * E::SIZE;
    let start = o.w.data.as_ptr();
    for j in (0..n).step_by(N) {
        // Behind the last row the last row stands again; what it gives is not stored.
        let count = N.min(n - j);
        // SAFETY: all rows are rows of w; sums of `count` rows are stored, which y has room for.
        unsafe {
            let w: [*const u8; N] = std::array::from_fn(|r| start.add((j + r.min(count - 1)) * row));
            // The rows of the next tile, in the order in which they lie in memory. The first-level cache has no room for long
            // rows, and the second-level one has more requests under way.
            let mut next = w[0].wrapping_add(N * row);
            for (from, rows) in parts(o.m, M) {
                let o = ProductOperands { y: o.y.add(from * o.ldy + j), x: o.x.add(from * o.ldx), m: rows, ..o };
                with_rows!(rows, M, R => nt_stored_tile::<L, E, R, N>(o, w, count, next));
                next = w[0];
            }
        }
    }
}

/// `M` rows of x with `N` rows of w, of which `count` are stored.
///
/// # Safety
/// As [`nt`], with `m = M` and rows of w at `w`.
#[inline(always)]
unsafe fn nt_stored_tile<L: Lanes, E: Element, const M: usize, const N: usize>(
    o: ProductOperands<'_>,
    w: [*const u8; N],
    count: usize,
    next: *const u8,
) {
    let k = o.w.width;
    let whole = k / LANES;
    let (x, ldx) = (o.x, o.ldx);
    // SAFETY: the caller's promise; a tail has fewer than 16 terms.
    unsafe {
        let mut acc = [[L::zero(); N]; M];
        // Two groups at a time where their operands fit beside the sums.
        let paired = if M * N + 2 * N < L::PAIRED { whole / 2 * 2 } else { 0 };
        for g in (0..paired).step_by(2) {
            let mut wv = [[L::zero(); 2]; N];
            for n in 0..N {
                wv[n] = E::load_pair(w[n].add(g * LANES * E::SIZE));
            }
            for m in 0..M {
                for half in 0..2 {
                    let xv = L::load_f32(x.add(m * ldx + (g + half) * LANES).cast());
                    for n in 0..N {
                        acc[m][n] = acc[m][n].fma(xv, wv[n][half]);
                    }
                }
            }
            for line in 0..2 * N * LANES * E::SIZE / 64 {
                prefetch_l2(next.wrapping_add(g * N * LANES * E::SIZE + line * 64));
            }
        }
        for g in paired..whole {
            let mut wv = [L::zero(); N];
            for n in 0..N {
                wv[n] = E::load(w[n].add(g * LANES * E::SIZE));
            }
            for m in 0..M {
                let xv = L::load_f32(x.add(m * ldx + g * LANES).cast());
                for n in 0..N {
                    acc[m][n] = acc[m][n].fma(xv, wv[n]);
                }
            }
            for line in 0..N * LANES * E::SIZE / 64 {
                prefetch_l2(next.wrapping_add(g * N * LANES * E::SIZE + line * 64));
            }
        }
        if !k.is_multiple_of(LANES) {
            let at = whole * LANES;
            acc = nt_tail::<L, E, M, N>(acc, o.x.add(at), o.ldx, w.map(|w| w.add(at * E::SIZE)), k - at);
        }
        store_sums(acc, o.y, o.ldy, count);
    }
}

/// Writes the sums of `M x N` groups of lanes, of which the first `count` columns are y's.
///
/// # Safety
/// `y` is valid for `M` rows of `count` floats `ldy` apart; `L`'s features are present.
#[inline(always)]
unsafe fn store_sums<L: Lanes, const M: usize, const N: usize>(
    acc: [[L; N]; M],
    y: *mut f32,
    ldy: usize,
    count: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for (m, row) in sums(acc).iter().enumerate() {
            let y = y.add(m * ldy);
            if count == N {
                y.cast::<[f32; N]>().write_unaligned(*row);
            } else {
                for (n, sum) in row.iter().enumerate().take(count) {
                    *y.add(n) = *sum;
                }
            }
        }
    }
}

/// Many rows of x, with panels of widened weights.
///
/// # Safety
/// As [`nt`].
#[inline(always)]
unsafe fn nt_panels<L: Tiles, E: Element, const M: usize, const N: usize>(o: ProductOperands<'_>) {
    let (n, k) = (o.w.rows, o.w.width);
    let groups = k.div_ceil(LANES);
    let wide = groups.clamp(1, PANEL_TERMS / LANES);
    let most = (panel_floats() / (wide * LANES) / N).max(1) * N;
    let bytes = o.w.stride * E::SIZE;
    let (mut panel, mut lanes) = SCRATCH.take();
    let rows = most.min(n.next_multiple_of(N));
    panel.grow(rows * wide * LANES);
    // The lanes of one piece of x, or of all where they are visited once for each panel of a row.
    lanes.grow(if wide < groups { o.m } else { M } * rows * LANES);
    for j in (0..n).step_by(most) {
        let count = most.min(n - j);
        for from in (0..groups.max(1)).step_by(wide) {
            let terms = Terms { from, all: groups };
            let width = (k - from * LANES).min(wide * LANES);
            // SAFETY: rows `j .. j + count` and the terms are w's; the panel and the lanes have room for `rows`.
            unsafe {
                let w = o.w.data.as_ptr().add(j * bytes + from * LANES * E::SIZE);
                widen_nt::<L, E, N>(w, bytes, count, width, &mut panel);
                // The panel below this one, which is the next if a panel has all terms.
                let visits = o.m.div_ceil(M) * count.div_ceil(N) * width.div_ceil(NT_TERMS);
                let mut ahead =
                    Ahead::new(w.wrapping_add(count * bytes), if wide < groups { 0 } else { count * bytes }, visits);
                for (row, rows) in parts(o.m, M) {
                    let (y, x) = (o.y.add(row * o.ldy + j), o.x.add((row * groups + from * rows) * LANES));
                    // Behind the last piece follows the first one, for the next panel, if that has the same terms.
                    let next = match row + rows < o.m {
                        true => o.x.wrapping_add(((row + rows) * groups + from * rows) * LANES),
                        false if wide < groups => std::ptr::null(),
                        false => o.x,
                    };
                    let o = ProductOperands { y, x, m: rows, ..o };
                    let kept = if wide < groups { row * count.next_multiple_of(N) * LANES } else { 0 };
                    assert!(lanes.len() >= kept + rows * count.next_multiple_of(N) * LANES);
                    let lanes = lanes.as_mut_ptr().add(kept);
                    with_rows!(rows, M, R => nt_sweep::<L, R, N>(o, next, &panel, count, width, terms, lanes, &mut ahead));
                }
            }
        }
    }
    if lanes.len() > KEPT_LANES {
        lanes = LaneBuffer::new();
    }
    SCRATCH.set((panel, lanes));
}

/// The groups of terms in a panel, of all that a dot product has.
#[derive(Clone, Copy)]
struct Terms {
    from: usize,
    all: usize,
}

/// Lines of memory that are needed soon, fetched a few at a time.
struct Ahead {
    at: *const u8,
    lines: usize,
    at_once: usize,
}

impl Ahead {
    /// The `bytes` at `from`, in `visits` portions.
    fn new(from: *const u8, bytes: usize, visits: usize) -> Self {
        Ahead { at: from, lines: bytes.div_ceil(64), at_once: bytes.div_ceil(64 * visits.max(1)) }
    }

    #[inline(always)]
    fn fetch(&mut self) {
        let count = self.at_once.min(self.lines);
        for line in 0..count {
            prefetch_l2(self.at.wrapping_add(line * 64));
        }
        self.at = self.at.wrapping_add(count * 64);
        self.lines -= count;
    }
}

/// Widens `count` rows of `k` elements into tiles of `N` rows: `[tile][group of k][row][lane]`, zeros behind the
/// last element; behind the last row stands it again.
///
/// # Safety
/// `w` is valid for `count` rows `bytes` apart, `panel` has room; `L`'s features are present.
#[inline(always)]
unsafe fn widen_nt<L: Lanes, E: Element, const N: usize>(
    w: *const u8,
    bytes: usize,
    count: usize,
    k: usize,
    panel: &mut LaneBuffer,
) {
    let (whole, groups) = (k / LANES, k.div_ceil(LANES));
    assert!(panel.len() >= count.next_multiple_of(N) * groups * LANES);
    for (tile, r) in (0..count).step_by(N).enumerate() {
        // SAFETY: the assert above bounds the panel, the caller's promise w: rows behind the last are not read.
        unsafe {
            let to = panel.as_mut_ptr().add(tile * groups * N * LANES);
            let from: [*const u8; N] = std::array::from_fn(|n| w.add((r + n).min(count - 1) * bytes));
            for g in (0..whole - whole % 2).step_by(2) {
                for (n, from) in from.iter().enumerate() {
                    let [first, second] = E::load_pair::<L>(from.add(g * LANES * E::SIZE));
                    first.store(to.add((g * N + n) * LANES));
                    second.store(to.add(((g + 1) * N + n) * LANES));
                }
            }
            if whole % 2 == 1 {
                let g = whole - 1;
                for (n, from) in from.iter().enumerate() {
                    E::load::<L>(from.add(g * LANES * E::SIZE)).store(to.add((g * N + n) * LANES));
                }
            }
            if whole < groups {
                let at = whole * LANES;
                for (n, from) in from.iter().enumerate() {
                    load_tail::<L, E>(from.add(at * E::SIZE), k - at).store(to.add((whole * N + n) * LANES));
                }
            }
        }
    }
}

/// `M` rows of x with a panel of `count` rows and `k` terms.
///
/// # Safety
/// As [`nt`] with `m = M` and packed rows of x; the panel is one of [`widen_nt`], `lanes` has room for `M` rows of it. `next` is
/// where the next piece of x lies, or null, and need not be readable.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn nt_sweep<L: Tiles, const M: usize, const N: usize>(
    o: ProductOperands<'_>,
    next: *const f32,
    panel: &LaneBuffer,
    count: usize,
    k: usize,
    terms: Terms,
    lanes: *mut f32,
    ahead: &mut Ahead,
) {
    let groups = k.div_ceil(LANES);
    assert!(panel.len() >= count.next_multiple_of(N) * groups * LANES);
    let chunk = NT_TERMS / LANES;
    for from in (0..groups.max(1)).step_by(chunk) {
        let to = (from + chunk).min(groups);
        // The terms of x behind these, which come from memory or a cache that several cores share.
        let (x, bytes) = match (groups - to).min(chunk) {
            0 if next.is_null() => (next, 0),
            0 => (next, chunk.min(groups) * M * LANES * 4),
            more => (o.x.wrapping_add(to * M * LANES), more * M * LANES * 4),
        };
        let mut x_ahead = Ahead::new(x.cast(), bytes, count.div_ceil(N));
        for (tile, j) in (0..count).step_by(N).enumerate() {
            ahead.fetch();
            x_ahead.fetch();
            if terms.from > 0 {
                // What the next tile's sums are so far: where all rows wait between panels, they lie in a cache that cores share.
                let next = lanes.wrapping_add((tile + 1) * M * N * LANES);
                for group in 0..M * N {
                    prefetch(next.wrapping_add(group * LANES).cast_const().cast());
                }
            }
            // SAFETY: the groups lie in x and, by the assert, in the panel; `lanes` has room for every tile's; y has the rows and
            // columns.
            unsafe {
                L::nt_tile::<M, N>(NtTile {
                    x: o.x.add(from * M * LANES),
                    w: panel.as_ptr().add((tile * groups + from) * N * LANES),
                    groups: to - from,
                    lanes: lanes.add(tile * M * N * LANES),
                    first: terms.from + from == 0,
                    last: terms.from + to == terms.all,
                    y: o.y.add(j),
                    ldy: o.ldy,
                    columns: N.min(count - j),
                });
            }
        }
    }
}
