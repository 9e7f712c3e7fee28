//! A stored matrix into its place in a padded or fused one, converted to the storage type.

use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, int, side};
use crate::cuda::ops::rope::{PAIRS, pair_place};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::dtype::DType;
use crate::dtype::HalfType;
use crate::{Error, Result};

/// Threads of a block.
const THREADS: u32 = 256;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        Spec::pair("pad_convert", ["pad_convert_bf16", "pad_convert_f16"], THREADS, 0).to_vec()
    }
}

/// Sizes and positions are multiples of this where elements move in packs of 16 stored bytes.
const PACK: usize = 8;
/// Blocks of a launch, at most: some per multiprocessor of any card; threads go round.
const BLOCKS: usize = 2048;

/// How indices are spread: `of` consecutive ones stay together, and the next `of` start `to` further on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Indices per group.
    pub of: usize,
    /// Places per group, at least as many.
    pub to: usize,
    /// A group is a head whose elements go to the places of their pairs: see [`pair_place`].
    pub paired: bool,
}

impl Groups {
    /// Groups of one size.
    pub fn new(of: usize, to: usize) -> Self {
        Groups { of, to, paired: false }
    }

    /// Heads of `head` elements, stored as `padded`, in pairs.
    pub fn pairs(head: usize, padded: usize) -> Self {
        Groups { of: head, to: padded, paired: true }
    }

    /// Indices that stay as they are.
    pub fn plain(count: usize) -> Self {
        Groups { of: count, to: count, paired: false }
    }

    /// Where an index goes.
    pub fn place(self, index: usize) -> usize {
        let within = index % self.of;
        index / self.of * self.to + if self.paired { pair_place(within, self.of) } else { within }
    }

    /// One more than the last place of `count` indices.
    fn end(self, count: usize) -> usize {
        match (count, self.paired) {
            (0, _) => 0,
            // The last element of a head is not the last of its pairs.
            (_, true) => count.div_ceil(self.of) * self.to,
            (_, false) => self.place(count - 1) + 1,
        }
    }

    /// Whether every index has a place of its own.
    fn are_apart(self) -> bool {
        // Whole groups of pairs, and no head beyond its places.
        let pairs = self.of.is_multiple_of(2) && self.to.is_multiple_of(2 * PAIRS);
        self.of > 0 && self.to >= self.of && (!self.paired || pairs)
    }
}

/// Where a stored `[rows, cols]` goes in a destination with `width` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Stored rows.
    pub rows: usize,
    /// Stored columns.
    pub cols: usize,
    /// Columns of the destination, padding included; of one in tiles those of the matrix, not of its tiles.
    pub width: usize,
    /// How the destination lies.
    pub destination: WeightLayout,
    /// Row of the destination that takes stored row 0.
    pub first_row: usize,
    /// How rows are spread.
    pub row_groups: Groups,
    /// How columns are spread.
    pub col_groups: Groups,
}

impl Layout {
    /// A matrix in the upper left corner of one with wider rows, row after row.
    pub fn corner(rows: usize, cols: usize, width: usize) -> Self {
        let (row_groups, col_groups) = (Groups::plain(rows), Groups::plain(cols));
        Layout { rows, cols, width, destination: WeightLayout::Rows, first_row: 0, row_groups, col_groups }
    }

    /// The element of the destination that takes stored element `index`.
    pub fn place(&self, index: usize) -> usize {
        let (row, col) = (index / self.cols, index % self.cols);
        let (row, col) = (self.first_row + self.row_groups.place(row), self.col_groups.place(col));
        self.destination.index(self.width, row, col)
    }

    /// Where a stored matrix lies as a whole, if nothing comes between its elements. In tiles, no matrix does.
    pub fn contiguous(&self) -> Option<std::ops::Range<usize>> {
        if self.destination == WeightLayout::Tiles {
            return None;
        }
        let together = |groups: Groups, count: usize| !groups.paired && (groups.of == groups.to || count <= groups.of);
        let whole = self.cols == self.width || self.rows == 1;
        let start = self.first_row * self.width;
        (whole && together(self.row_groups, self.rows) && together(self.col_groups, self.cols))
            .then_some(start..start + self.rows * self.cols)
    }

    /// One more than the last row of the destination that takes a stored one.
    fn last_row(&self) -> usize {
        self.first_row.saturating_add(self.row_groups.end(self.rows))
    }

    /// Checks that every element has a place of its own among `len`.
    fn check(&self, len: usize) -> Result<()> {
        let wrong = |what: &str| Err(Error::Backend(format!("{OP}: {what} of {self:?} in {len} elements")));
        for groups in [self.row_groups, self.col_groups] {
            if !groups.are_apart() {
                return wrong("overlapping groups");
            }
        }
        if self.col_groups.paired || (self.row_groups.paired && !self.rows.is_multiple_of(self.row_groups.of)) {
            return wrong("pairs of columns, or of parts of a head,");
        }
        if self.rows == 0 || self.cols == 0 || self.col_groups.end(self.cols) > self.width {
            return wrong("no room for the columns");
        }
        if self.destination.elements(self.last_row(), self.width) > len {
            return wrong("no room for the rows");
        }
        Ok(())
    }
}

const OP: &str = "pad_convert";

/// What is placed.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Raw little-endian elements, aligned to their size.
    pub bytes: View<'a, u8>,
    /// Their type.
    pub dtype: DType,
    /// Index of the first in its matrix.
    pub first: usize,
}

/// Elements that were changed on their way, added to what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Changed {
    /// Rounded to another number.
    pub rounded: u64,
    /// Beyond the storage type's range: became infinite.
    pub infinite: u64,
}

// SAFETY: two integers; zero bytes are a value.
unsafe impl bytemuck::Zeroable for Changed {}
// SAFETY: two integers of 8 bytes each, without padding; any bytes are a value.
unsafe impl bytemuck::Pod for Changed {}

/// Writes consecutive elements of a stored matrix to their places in `out`, converted to the storage type (rounded to
/// nearest even), and counts those that changed. Other elements of `out`, the padding of tiles among them, are not touched.
pub fn pad_convert(
    device: &Device,
    storage: HalfType,
    out: &mut ViewMut<'_, u16>,
    stored: Stored<'_>,
    layout: &Layout,
    changed: &mut ViewMut<'_, Changed>,
) -> Result<()> {
    let size = stored.dtype.size();
    let count = stored.bytes.len() / size;
    check_len(OP, "stored bytes", stored.bytes.len(), count * size)?;
    check_len(OP, "changed", changed.len(), 1)?;
    layout.check(out.len())?;
    if stored.first.checked_add(count).is_none_or(|end| end > layout.rows * layout.cols) {
        return Err(Error::Backend(format!("{OP}: {count} elements from {} on of {layout:?}", stored.first)));
    }
    if !stored.bytes.address.is_multiple_of(size as u64) {
        return Err(Error::Backend(format!("{OP}: stored elements are not aligned")));
    }
    if count == 0 {
        return Ok(());
    }
    // Whole packs that stay together on both sides, in the chunks of tiles too.
    let packs = [layout.cols, layout.width, stored.first, count]
        .iter()
        .chain([&layout.col_groups.of, &layout.col_groups.to])
        .all(|size| size.is_multiple_of(PACK))
        && stored.bytes.address.is_multiple_of(16)
        && out.address.is_multiple_of(16);
    let kind: i32 = match stored.dtype {
        DType::Bf16 => 0,
        DType::F16 => 1,
        DType::F32 => 2,
    };
    let items = if packs { stored.bytes.len() / 16 } else { count };
    let blocks = items.div_ceil(THREADS as usize).min(BLOCKS);
    let launch = Launch { grid: (side(OP, "blocks", blocks, i32::MAX as u32)?, 1, 1), threads: THREADS, shared: 0 };
    let (first, count) = (stored.first as u64, count as u64);
    let (cols, width) = (int(OP, "columns", layout.cols)?, int(OP, "width", layout.width)?);
    let tiled = i32::from(layout.destination == WeightLayout::Tiles);
    let first_row = int(OP, "first row", layout.first_row)?;
    let rows = (int(OP, "row group", layout.row_groups.of)?, int(OP, "row group", layout.row_groups.to)?);
    let columns = (int(OP, "column group", layout.col_groups.of)?, int(OP, "column group", layout.col_groups.to)?);
    int(OP, "rows", layout.last_row())?;
    let (paired, packs) = (i32::from(layout.row_groups.paired), i32::from(packs));
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (T* out, const void* stored, int kind, u64 first, u64 count, int cols, int width, int tiled, int
    // first_row, int row_of, int row_to, int paired, int col_of, int col_to, int packs, u64* changed). `stored` has `count` elements of
    // `kind`, which are elements `first ..` of a [rows, cols] matrix; `check` holds the place of each of them inside `out`, in
    // the layout that `tiled` names, and its row and column fit an int. Both that and `changed`, two words, are lent to us
    // alone. With `packs` all indices are multiples of 8 and addresses of 16.
    unsafe {
        device.launch(
            &kernels[storage as usize],
            launch,
            args![
                out.address,
                stored.bytes.address,
                kind,
                first,
                count,
                cols,
                width,
                tiled,
                first_row,
                rows.0,
                rows.1,
                paired,
                columns.0,
                columns.1,
                packs,
                changed.address,
            ],
        )
    }
}

// The device reads and writes the fields in this order.
const _: () = assert!(size_of::<Changed>() == 16 && std::mem::offset_of!(Changed, infinite) == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_spread_indices() {
        let groups = Groups::new(3, 8);
        assert_eq!([0, 2, 3, 7].map(|index| groups.place(index)), [0, 2, 8, 17]);
        assert_eq!((groups.end(0), groups.end(3), groups.end(4)), (0, 3, 9));
    }

    #[test]
    fn halves_of_heads_become_pairs() {
        // Two heads of 20 elements in 32 places: pairs 0 to 7, then 8 and 9.
        let groups = Groups::pairs(20, 32);
        assert_eq!([0, 7, 10, 17].map(|index| groups.place(index)), [0, 7, 8, 15]);
        assert_eq!([8, 9, 18, 19].map(|index| groups.place(index)), [16, 17, 24, 25]);
        assert_eq!((groups.place(20), groups.end(20), groups.end(40)), (32, 32, 64));
        for (head, padded) in [(2, 32), (18, 32), (32, 32), (40, 64), (80, 128), (128, 128)] {
            let groups = Groups::pairs(head, padded);
            let places: std::collections::BTreeSet<usize> = (0..3 * head).map(|index| groups.place(index)).collect();
            assert!(places.len() == 3 * head && places.iter().all(|&place| place < groups.end(3 * head)), "{head}");
        }
        let layout = Layout { row_groups: Groups::pairs(20, 32), ..Layout::corner(40, 8, 8) };
        assert!(layout.check(64 * 8).is_ok() && layout.check(64 * 8 - 1).is_err() && layout.contiguous().is_none());
        assert!(Layout { rows: 30, ..layout }.check(1 << 20).is_err(), "half a head");
        assert!(Layout { row_groups: Groups::pairs(20, 24), ..layout }.check(1 << 20).is_err());
        assert!(Layout { row_groups: Groups::pairs(21, 32), ..layout }.check(1 << 20).is_err());
        assert!(Layout { col_groups: Groups::pairs(8, 16), ..Layout::corner(4, 8, 16) }.check(1 << 20).is_err());
    }

    #[test]
    fn only_whole_rows_without_gaps_are_contiguous() {
        let plain = Layout::corner(4, 8, 8);
        assert_eq!(plain.contiguous(), Some(0..32));
        assert_eq!(Layout { first_row: 2, ..plain }.contiguous(), Some(16..48));
        assert_eq!(Layout { width: 16, ..plain }.contiguous(), None);
        assert_eq!(Layout { row_groups: Groups::new(2, 3), ..plain }.contiguous(), None);
        assert_eq!(Layout { row_groups: Groups::new(4, 9), ..plain }.contiguous(), Some(0..32));
        assert_eq!(Layout { rows: 1, row_groups: Groups::plain(1), width: 16, ..plain }.contiguous(), Some(0..8));
        let whole_tiles = Layout { destination: WeightLayout::Tiles, ..Layout::corner(64, 64, 64) };
        assert_eq!(whole_tiles.contiguous(), None);
    }

    #[test]
    fn places_outside_the_destination_are_refused() {
        let layout = Layout { first_row: 1, ..Layout::corner(4, 8, 16) };
        assert!(layout.check(80).is_ok());
        assert!(layout.check(79).is_err());
        assert!(Layout { col_groups: Groups::new(4, 16), ..layout }.check(80).is_err());
        assert!(Layout { row_groups: Groups::new(2, 1), ..layout }.check(80).is_err());
        assert!(Layout { row_groups: Groups::new(0, 1), ..layout }.check(80).is_err());
        assert!(Layout { first_row: usize::MAX, ..layout }.check(80).is_err());
        let tiles = Layout { first_row: 62, destination: WeightLayout::Tiles, ..layout };
        assert!(tiles.check(2 * 4096).is_ok());
        assert!(tiles.check(2 * 4096 - 1).is_err(), "row 64 takes a tile of its own");
        assert!(Layout { first_row: 60, ..tiles }.check(4096).is_ok());
        assert!(Layout { width: 65, ..tiles }.check(2 * 4096).is_err(), "column 64 takes a tile of its own");
    }
}
