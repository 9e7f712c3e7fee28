//! `y += x w`: each output a chain over the rows of `w`.

use super::{LaneBuffer, ProductOperands, SCRATCH, Tiles, parts, with_rows};
use crate::model::cpu::lanes::{Element, F32, LANES, Lanes, load_tail, prefetch_l2};

/// Rows of `w` between two visits of an output of [`matmul_nn`]: with four groups of columns, 32 KB.
const NN_ROWS: usize = 128;

/// Rows of `w` between two visits of an output where `w` is read as it is stored: as many streams of memory.
const STORED_ROWS: usize = 8;

/// Columns that are widened in one go: long enough to read memory in order.
const NN_COLUMNS: usize = 512;

/// # Safety
/// The operands satisfy the asserts of [`matmul_nn_at`]; `L`'s features are present.
#[inline(always)]
pub(super) unsafe fn nn<L: Tiles, E: Element, const M: usize, const C: usize>(o: ProductOperands<'_>) {
    let (n, width) = (o.w.rows, o.w.width);
    let bytes = o.w.stride * E::SIZE;
    let strip = C * LANES;
    if o.m <= M {
        // SAFETY: the caller's promise.
        unsafe {
            with_rows!(o.m, M, R => nn_stored::<L, E, R, C>(o));
            if !width.is_multiple_of(LANES) {
                nn_tail::<L, E>(o);
            }
        }
        return;
    }
    let (mut panel, lanes) = SCRATCH.take();
    let columns = NN_COLUMNS.min(width.next_multiple_of(strip));
    panel.grow(columns * NN_ROWS);
    for from in (0..n).step_by(NN_ROWS) {
        let rows = NN_ROWS.min(n - from);
        for c in (0..width).step_by(NN_COLUMNS) {
            let columns = NN_COLUMNS.min(width - c);
            // SAFETY: rows `from ..` and columns `c ..` are w's; the panel has room for them.
            unsafe {
                let w = o.w.data.as_ptr().add(from * bytes + c * E::SIZE);
                widen_nn::<L, E, C>(w, bytes, rows, columns, &mut panel);
                // What is widened next: one tile fetches one line of each of its rows.
                let next = match c + columns < width {
                    true => w.wrapping_add(columns * E::SIZE),
                    false => w.wrapping_sub(c * E::SIZE).wrapping_add(rows * bytes),
                };
                let mut lines = (0..(columns * E::SIZE).div_ceil(64)).map(|line| next.wrapping_add(line * 64));
                for s in (0..columns).step_by(strip) {
                    let w = panel.as_ptr().add(s * rows);
                    let count = strip.min(columns - s);
                    for (i, m) in parts(o.m, M) {
                        let (ahead, stride) = lines.next().map_or((w.cast(), 0), |line| (line, bytes));
                        let (y, x) = (o.y.add(i * o.ldy + c + s), o.x.add(i * o.ldx + from));
                        let tile = NnTile { y, ldy: o.ldy, x, ldx: o.ldx, w, rows, ahead, stride };
                        if count == strip {
                            with_rows!(m, M, R => L::nn_tile::<R, C>(tile));
                            continue;
                        }
                        // Columns behind the last whole strip: in a strip of its own, and back.
                        const { assert!(C * LANES <= 64 && M <= 6) };
                        let mut padded = [[0.0f32; 64]; 6];
                        for (r, row) in padded.iter_mut().enumerate().take(m) {
                            std::ptr::copy_nonoverlapping(y.add(r * o.ldy), row.as_mut_ptr(), count);
                        }
                        let tile = NnTile { y: padded.as_mut_ptr().cast(), ldy: 64, ..tile };
                        with_rows!(m, M, R => L::nn_tile::<R, C>(tile));
                        for (r, row) in padded.iter().enumerate().take(m) {
                            std::ptr::copy_nonoverlapping(row.as_ptr(), y.add(r * o.ldy), count);
                        }
                    }
                }
            }
        }
    }
    SCRATCH.set((panel, lanes));
}

/// `M` rows of x with the rows of w as they are stored; columns of y behind the last whole group are left to [`nn_tail`].
///
/// # Safety
/// As [`nn`], with `m = M`.
#[inline(always)]
unsafe fn nn_stored<L: Lanes, E: Element, const M: usize, const C: usize>(o: ProductOperands<'_>) {
    let (n, width) = (o.w.rows, o.w.width);
    let bytes = o.w.stride * E::SIZE;
    let whole = width - width % LANES;
    for j in (0..n).step_by(STORED_ROWS) {
        let rows = STORED_ROWS.min(n - j);
        // SAFETY: rows `j ..` of w and the same columns of x exist; groups of columns end at `width`.
        unsafe {
            let (w, x) = (o.w.data.as_ptr().add(j * bytes), o.x.add(j));
            let mut c = 0;
            while c + C * LANES <= whole {
                nn_rows::<L, E, M, C>(o.y.add(c), o.ldy, x, o.ldx, w.add(c * E::SIZE), bytes, rows);
                c += C * LANES;
            }
            // Where a strip is one group, none are left.
            if const { C > 1 } {
                while c < whole {
                    nn_rows::<L, E, M, 1>(o.y.add(c), o.ldy, x, o.ldx, w.add(c * E::SIZE), bytes, rows);
                    c += LANES;
                }
            }
        }
    }
}

/// The columns of y behind the last whole group. Few matrices have any, so it is compiled for no number of rows: it would be a good
/// part of all code of the products.
///
/// # Safety
/// As [`nn`].
#[inline(always)]
unsafe fn nn_tail<L: Lanes, E: Element>(o: ProductOperands<'_>) {
    let bytes = o.w.stride * E::SIZE;
    let count = o.w.width % LANES;
    let from = o.w.width - count;
    for m in 0..o.m {
        // SAFETY: row `m` of x and of y, all rows of w, and their last `count` columns exist.
        unsafe {
            let y = o.y.add(m * o.ldy + from);
            let mut acc = load_tail::<L, F32>(y.cast_const().cast(), count);
            for j in 0..o.w.rows {
                let w = load_tail::<L, E>(o.w.data.as_ptr().add(j * bytes + from * E::SIZE), count);
                acc = acc.fma(L::splat(*o.x.add(m * o.ldx + j)), w);
            }
            let mut padded = [0.0f32; LANES];
            acc.store(padded.as_mut_ptr());
            std::ptr::copy_nonoverlapping(padded.as_ptr(), y, count);
        }
    }
}

/// `M` rows of y and `C` groups of columns, `n` rows of w `bytes` apart.
///
/// # Safety
/// `y` is valid for `M` rows of `C` groups `ldy` apart, `x` for `M` rows of `n` floats `ldx` apart, `w` for `n` rows of
/// `C` groups; `L`'s features are present.
#[inline(always)]
unsafe fn nn_rows<L: Lanes, E: Element, const M: usize, const C: usize>(
    y: *mut f32,
    ldy: usize,
    x: *const f32,
    ldx: usize,
    w: *const u8,
    bytes: usize,
    n: usize,
) {
    // SAFETY: the ranges are the caller's promise.
    unsafe {
        let mut acc = [[L::zero(); C]; M];
        for m in 0..M {
            for c in 0..C {
                acc[m][c] = L::load_f32(y.add(m * ldy + c * LANES).cast_const().cast());
            }
        }
        for j in 0..n {
            let mut wv = [L::zero(); C];
            for c in 0..C {
                wv[c] = E::load(w.add(j * bytes + c * LANES * E::SIZE));
            }
            for m in 0..M {
                let xv = L::splat(*x.add(m * ldx + j));
                for c in 0..C {
                    acc[m][c] = acc[m][c].fma(xv, wv[c]);
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

/// A few rows of y and a strip of columns against a panel: operands of [`nn_tile`].
#[derive(Clone, Copy)]
pub(super) struct NnTile {
    pub y: *mut f32,
    pub ldy: usize,
    pub x: *const f32,
    pub ldx: usize,
    /// `[row][C groups]`.
    pub w: *const f32,
    pub rows: usize,
    /// A line of memory that is needed soon, and how far the next one lies behind it: one for each row.
    pub ahead: *const u8,
    pub stride: usize,
}

/// `M` rows of y and a strip of `C` groups of columns.
///
/// # Safety
/// `y` is valid for `M` rows of `C` groups `ldy` floats apart, `x` for `M` rows of `rows` floats `ldx` apart, `w` for all rows;
/// `L`'s features are present.
#[inline(always)]
pub(super) unsafe fn nn_tile<L: Lanes, const M: usize, const C: usize>(t: NnTile) {
    // SAFETY: the ranges are the caller's promise.
    unsafe {
        let mut acc = [[L::zero(); C]; M];
        for m in 0..M {
            for c in 0..C {
                acc[m][c] = L::load_f32(t.y.add(m * t.ldy + c * LANES).cast_const().cast());
            }
        }
        let (mut x, mut w, mut ahead) = (t.x, t.w, t.ahead);
        for _ in 0..t.rows {
            prefetch_l2(ahead);
            let mut wv = [L::zero(); C];
            for c in 0..C {
                wv[c] = L::load_f32(w.add(c * LANES).cast());
            }
            for m in 0..M {
                let xv = L::splat(*x.add(m * t.ldx));
                for c in 0..C {
                    acc[m][c] = acc[m][c].fma(xv, wv[c]);
                }
            }
            x = x.add(1);
            w = w.add(C * LANES);
            ahead = ahead.wrapping_add(t.stride);
        }
        for m in 0..M {
            for c in 0..C {
                acc[m][c].store(t.y.add(m * t.ldy + c * LANES));
            }
        }
    }
}

/// Widens `rows` rows of `columns` elements into strips of `C` groups: `[strip][row][C groups]`, zeros behind the last column.
///
/// # Safety
/// As [`widen_nt`].
#[inline(always)]
unsafe fn widen_nn<L: Lanes, E: Element, const C: usize>(
    w: *const u8,
    bytes: usize,
    rows: usize,
    columns: usize,
    panel: &mut LaneBuffer,
) {
    let strip = C * LANES;
    assert!(panel.len() >= columns.next_multiple_of(strip) * rows);
    for s in (0..columns).step_by(strip) {
        for r in 0..rows {
            // SAFETY: the assert above bounds the panel; of w only what lies before `columns` is read.
            unsafe {
                let (from, to) = (w.add(r * bytes + s * E::SIZE), panel.as_mut_ptr().add((s * rows) + r * strip));
                if columns - s >= strip {
                    for c in 0..C {
                        E::load::<L>(from.add(c * LANES * E::SIZE)).store(to.add(c * LANES));
                    }
                } else {
                    for c in (0..strip).step_by(LANES) {
                        let count = (columns - s).saturating_sub(c).min(LANES);
                        let group = match count {
                            LANES => E::load::<L>(from.add(c * E::SIZE)),
                            _ => load_tail::<L, E>(from.wrapping_add(c * E::SIZE), count),
                        };
                        group.store(to.add(c));
                    }
                }
            }
        }
    }
}
