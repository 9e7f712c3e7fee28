//! How matrices of weights lie in memory.

/// Outputs and terms of a tile.
const TILE: usize = 64;
/// Elements that stay together: 16 bytes.
const CHUNK: usize = 8;

/// How a matrix of weights `[n, k]` lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WeightLayout {
    /// Row after row.
    #[default]
    Rows,
    /// Tiles of 64 x 64.
    Tiles,
}

impl WeightLayout {
    /// Elements that a matrix takes, padding included.
    pub fn elements(self, n: usize, k: usize) -> usize {
        match self {
            WeightLayout::Rows => n * k,
            WeightLayout::Tiles => n.next_multiple_of(TILE) * k.next_multiple_of(TILE),
        }
    }

    /// Index of an element in a matrix of `k` columns.
    pub fn index(self, k: usize, row: usize, col: usize) -> usize {
        match self {
            WeightLayout::Rows => row * k + col,
            WeightLayout::Tiles => {
                let tile = row / TILE * k.div_ceil(TILE) + col / TILE;
                let chunk = (col % TILE / CHUNK) ^ (row % CHUNK);
                tile * TILE * TILE + row % TILE * TILE + chunk * CHUNK + col % CHUNK
            }
        }
    }

    /// Rows brought into this layout.
    pub fn arranged(self, rows: &[u16], n: usize, k: usize) -> Vec<u16> {
        let mut out = vec![0; self.elements(n, k)];
        for (at, &value) in rows.iter().enumerate() {
            out[self.index(k, at / k, at % k)] = value;
        }
        out
    }
}
