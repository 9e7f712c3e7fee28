//! How matrices of weights lie in memory: row after row, or in the tiles that products on some cards read.

use crate::cuda::device::Device;

/// Rows and columns of a tile.
pub const TILE: usize = 64;
/// Elements of a chunk, which stay together: 16 bytes.
const CHUNK: usize = 8;

/// How a matrix of weights `[n, k]` lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WeightLayout {
    /// Row after row.
    #[default]
    Rows,
    /// Tiles of 64 x 64 elements, 8192 bytes each: those of rows 0 to 63 from left to right, then those of the next 64 rows.
    /// Row `r` of a tile is a line of 128 bytes, in which the 16-byte chunk `c` is at place `c ^ (r % 8)`: a tile that is
    /// copied to shared memory as it is can be read there without bank conflicts. Rows and columns that the matrix lacks
    /// are zero.
    Tiles,
}

impl WeightLayout {
    /// Elements that a matrix takes, padding included. A number beyond `usize` is its largest: no buffer has room for that.
    pub fn elements(self, n: usize, k: usize) -> usize {
        match self {
            WeightLayout::Rows => n.saturating_mul(k),
            WeightLayout::Tiles => n.div_ceil(TILE).saturating_mul(k.div_ceil(TILE)).saturating_mul(TILE * TILE),
        }
    }

    /// Index of the element `(row, col)` of a matrix with `k` columns.
    pub fn index(self, k: usize, row: usize, col: usize) -> usize {
        match self {
            WeightLayout::Rows => row * k + col,
            WeightLayout::Tiles => {
                let tile = row / TILE * k.div_ceil(TILE) + col / TILE;
                let chunk = (col % TILE / CHUNK) ^ (row % CHUNK);
                (tile * TILE + row % TILE) * TILE + chunk * CHUNK + col % CHUNK
            }
        }
    }

    /// Rows `[n, k]` brought into this layout.
    pub fn arranged(self, rows: &[u16], n: usize, k: usize) -> Vec<u16> {
        let mut out = vec![0; self.elements(n, k)];
        for (row, line) in rows.chunks_exact(k.max(1)).take(n).enumerate() {
            for (col, &element) in line.iter().enumerate() {
                out[self.index(k, row, col)] = element;
            }
        }
        out
    }
}

impl Device {
    /// How the device's products read matrices of weights.
    pub fn weight_layout(&self) -> WeightLayout {
        if self.tiled_weights { WeightLayout::Tiles } else { WeightLayout::Rows }
    }

    /// Whether its products take the last step of the norms before them: those of weights in tiles do.
    pub fn defers_norms(&self) -> bool {
        self.weight_layout() == WeightLayout::Tiles
    }

    /// The same device, whose products read weights in this layout.
    pub(crate) fn with_weight_layout(mut self, layout: WeightLayout) -> Self {
        self.tiled_weights = layout == WeightLayout::Tiles;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::WeightLayout::{Rows, Tiles};

    /// Sizes below, at and beyond whole tiles.
    const SIZES: [(usize, usize); 7] = [(1, 1), (64, 64), (1, 200), (65, 8), (63, 72), (130, 136), (128, 192)];

    #[test]
    fn every_element_has_a_place_of_its_own() {
        for layout in [Rows, Tiles] {
            for (n, k) in SIZES {
                let mut taken = vec![false; layout.elements(n, k)];
                for (row, col) in (0..n).flat_map(|row| (0..k).map(move |col| (row, col))) {
                    let index = layout.index(k, row, col);
                    assert!(!std::mem::replace(&mut taken[index], true), "{layout:?} [{n}, {k}]: ({row}, {col})");
                }
                let whole = layout == Rows || (n.is_multiple_of(64) && k.is_multiple_of(64));
                assert_eq!(taken.iter().all(|&taken| taken), whole, "{layout:?} [{n}, {k}]");
            }
        }
        assert_eq!([Rows, Tiles].map(|layout| layout.elements(65, 100)), [6500, 4 * 4096]);
        assert_eq!([Rows, Tiles].map(|layout| layout.elements(usize::MAX, 65)), [usize::MAX; 2]);
        assert_eq!([Rows, Tiles].map(|layout| layout.elements(0, 65)), [0, 0]);
    }

    /// Written out by hand: tile, line, chunk, element.
    #[test]
    fn places_in_tiles_are_those_that_the_kernels_read() {
        for (k, row, col, expected) in [
            (64, 0, 63, 63),
            // Line 1: the first two chunks have changed places.
            (64, 1, 0, 64 + 8),
            (64, 1, 9, 64 + 1),
            // Line 7: the chunks are in reverse.
            (64, 7, 3, 7 * 64 + 56 + 3),
            (64, 8, 8, 8 * 64 + 8),
            (64, 64, 0, 4096),
            // Three tiles side by side: 150 columns.
            (150, 0, 64, 4096),
            (150, 63, 149, 2 * 4096 + 63 * 64 + ((2 ^ 7) * 8) + 5),
            (150, 66, 130, (3 + 2) * 4096 + 2 * 64 + 2 * 8 + 2),
        ] {
            assert_eq!(Tiles.index(k, row, col), expected, "({row}, {col}) of {k} columns");
        }
    }

    #[test]
    fn rows_are_arranged_with_zeros_around_them() {
        for (n, k) in SIZES {
            let rows: Vec<u16> = (0..n * k).map(|i| i as u16 | 1).collect();
            assert_eq!(Rows.arranged(&rows, n, k), rows);
            let tiles = Tiles.arranged(&rows, n, k);
            assert!((0..n * k).all(|i| tiles[Tiles.index(k, i / k, i % k)] == rows[i]), "[{n}, {k}]");
            assert_eq!(tiles.iter().filter(|&&element| element != 0).count(), n * k, "[{n}, {k}]");
        }
    }
}
