//! Cases of `pad_convert`: exact, because a conversion has one right answer.

use super::case::{Case, Check};
use super::guarded::Guarded;
use super::numbers::{Random, Values};
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::pad_convert::{Changed, Groups, Layout, Stored, pad_convert};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::staging::SLOT;
use crate::cuda::{Buffer, Device};
use crate::dtype::{DType, HalfType};

const OP: &str = "pad_convert";

/// One problem on the host.
struct Problem {
    storage: HalfType,
    dtype: DType,
    layout: Layout,
    /// Rows of the destination.
    n: usize,
    /// Raw elements of the whole stored matrix.
    bytes: Vec<u8>,
}

pub fn cases() -> Vec<Case> {
    let tiles = |layout| Layout { destination: WeightLayout::Tiles, ..layout };
    // With the rows of the destination.
    let layouts = [
        // Padded columns; packs, and a ragged width that has none.
        ("corner", Layout::corner(5, 72, 128), 5),
        ("odd corner", Layout::corner(7, 33, 64), 8),
        // The second of three fused matrices, with padded heads.
        ("heads in rows", Layout { first_row: 64, row_groups: Groups::new(24, 32), ..Layout::corner(72, 40, 64) }, 224),
        ("heads in columns", Layout { col_groups: Groups::new(24, 32), ..Layout::corner(19, 72, 128) }, 19),
        ("odd heads in columns", Layout { col_groups: Groups::new(6, 32), ..Layout::corner(19, 18, 128) }, 19),
        ("bias of heads", Layout { first_row: 96, row_groups: Groups::new(20, 32), ..Layout::corner(60, 1, 1) }, 192),
        (
            "heads in pairs",
            Layout { first_row: 64, row_groups: Groups::pairs(24, 32), ..Layout::corner(72, 40, 64) },
            224,
        ),
        ("bias of heads in pairs", Layout { row_groups: Groups::pairs(18, 32), ..Layout::corner(54, 1, 1) }, 96),
        ("as it is", Layout::corner(3, 4096, 4096), 3),
        ("one element", Layout::corner(1, 1, 1), 1),
        // In tiles: whole and cut ones, with and without packs.
        ("whole tiles", tiles(Layout::corner(64, 128, 128)), 64),
        ("cut tiles", tiles(Layout::corner(70, 136, 192)), 70),
        ("odd corner in tiles", tiles(Layout::corner(7, 33, 64)), 8),
        ("a width of no whole tiles", tiles(Layout::corner(66, 72, 72)), 66),
        // The second of three, which begins and ends inside a tile.
        (
            "heads in rows in tiles",
            tiles(Layout { first_row: 96, row_groups: Groups::new(24, 32), ..Layout::corner(72, 40, 64) }),
            288,
        ),
        (
            "heads in pairs in tiles",
            tiles(Layout { first_row: 96, row_groups: Groups::pairs(20, 32), ..Layout::corner(60, 40, 64) }),
            288,
        ),
        (
            "heads in columns in tiles",
            tiles(Layout { col_groups: Groups::new(24, 32), ..Layout::corner(19, 72, 128) }),
            19,
        ),
        (
            "odd heads in columns in tiles",
            tiles(Layout { col_groups: Groups::new(6, 32), ..Layout::corner(19, 18, 128) }),
            19,
        ),
        ("one element of a tile", tiles(Layout::corner(1, 1, 1)), 1),
    ];
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            for (what, layout, n) in layouts {
                let name = format!(
                    "{} from {}: {what} [{}, {}] in rows of {}",
                    storage.name(),
                    dtype.name(),
                    layout.rows,
                    layout.cols,
                    layout.width
                );
                cases.push(Case::seeded(OP, name, 4 * layout.rows * layout.cols, move |seed, device, check| {
                    Problem::new(seed, storage, dtype, layout, n).check(device, check)
                }));
            }
        }
    }
    cases
}

impl Problem {
    /// Numbers of all kinds: ordinary ones, those between two numbers of the storage type, subnormal, too large, NaN.
    fn new(seed: &str, storage: HalfType, dtype: DType, layout: Layout, n: usize) -> Self {
        let mut random = Random::named(seed);
        let mut bytes = Vec::new();
        for value in random.vector(layout.rows * layout.cols, Values::Normal(1.0)) {
            let value = match random.below(16) {
                0 => 1e6 * value,
                1 => 1e-6 * value,
                2 => 1e-40 * value,
                3 => 3.4e38 * value,
                4 => f32::NAN,
                5 => -0.0,
                6 => f32::NEG_INFINITY,
                // Exact in either type, and a tie between two of its numbers.
                7..=9 => (value * 4.0).round(),
                10 => 1.0 + 1.0 / 256.0,
                11 => 1.0 + 3.0 / 2048.0,
                _ => value,
            };
            match dtype {
                DType::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
                DType::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                DType::F32 => bytes.extend(value.to_le_bytes()),
            }
        }
        Problem { storage, dtype, layout, n, bytes }
    }

    /// Elements of the destination.
    fn len(&self) -> usize {
        self.layout.destination.elements(self.n, self.layout.width)
    }

    fn element(&self, index: usize) -> f32 {
        let at = |i: usize| self.bytes[index * self.dtype.size() + i];
        match self.dtype {
            DType::Bf16 => half::bf16::from_le_bytes([at(0), at(1)]).to_f32(),
            DType::F16 => half::f16::from_le_bytes([at(0), at(1)]).to_f32(),
            DType::F32 => f32::from_le_bytes([at(0), at(1), at(2), at(3)]),
        }
    }

    /// The destination and the counts after the pieces `cuts[0] .. cuts[1]`, `cuts[1] .. cuts[2]`, ... were placed.
    fn run(
        &self,
        device: &Device,
        check: &mut Check,
        cuts: &[usize],
        shift: usize,
    ) -> Result<(Vec<u16>, Vec<Changed>)> {
        let mut out = Guarded::output(device, self.len(), shift)?;
        // The kernel adds to what is there.
        let mut changed = Guarded::input(device, &[Changed { rounded: 3, infinite: 5 }])?;
        for cut in cuts.windows(2) {
            let size = self.dtype.size();
            // Elements are aligned to their size; `shift` moves them off a pack's alignment.
            let bytes = Guarded::shifted(device, &self.bytes[cut[0] * size..cut[1] * size], shift * size)?;
            let stored = Stored { bytes: bytes.view(), dtype: self.dtype, first: cut[0] };
            let (out, changed) = (&mut out.view_mut(), &mut changed.view_mut());
            pad_convert(device, self.storage, out, stored, &self.layout, changed)?;
        }
        Ok((out.read(device, check, "out")?, changed.read(device, check, "changed")?))
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let count = self.layout.rows * self.layout.cols;
        // What is not filled keeps the NaN that an output starts with.
        let mut expected = vec![0xffffu16; self.len()];
        let (mut rounded, mut infinite) = (0, 0);
        for index in 0..count {
            let value = self.element(index);
            let bits = self.storage.round(value);
            let back = self.storage.widen(bits);
            rounded += u64::from(back != value && !value.is_nan() && back.is_finite());
            infinite += u64::from(back != value && !value.is_nan() && !back.is_finite());
            expected[self.layout.place(index)] = bits;
        }
        let changed = [Changed { rounded: rounded + 3, infinite: infinite + 5 }];

        let whole = self.run(device, check, &[0, count], 0)?;
        // All NaNs count as one: which of them a conversion gives is not specified.
        let nan = |bits: &u16| self.storage.widen(*bits).is_nan();
        let one = |bits: &[u16]| -> Vec<u16> { bits.iter().map(|b| if nan(b) { 0xffff } else { *b }).collect() };
        check.same("out", &one(&whole.0), &one(&expected));
        check.same("changed", &whole.1, &changed);
        let again = self.run(device, check, &[0, count], 0)?;
        check.same("out, run again", &again.0, &whole.0);
        let third = count / 3;
        for (what, cuts, shift) in [
            ("at an odd address", vec![0, count], 1),
            ("in pieces", vec![0, third, third, count], 0),
            ("in whole packs", vec![0, third / 8 * 8, count], 0),
        ] {
            let other = self.run(device, check, &cuts, shift)?;
            check.same(&format!("out, {what}"), &other.0, &whole.0);
            check.same(&format!("changed, {what}"), &other.1, &changed);
        }
        Ok(())
    }
}

/// From a slot of the staging ring.
pub fn timings() -> Vec<Timed> {
    let case = |dtype: DType| format!("{} rows of 4000 into 4096", dtype.name());
    Timed::each(OP, [DType::Bf16, DType::F32], case, time)
}

fn time(device: &Bench<'_>, dtype: DType) -> Result<Measured> {
    let (cols, width) = (4000, 4096);
    let rows = SLOT / (cols * dtype.size());
    let layout = Layout::corner(rows, cols, width);
    let bytes = rows * cols * (dtype.size() + 2);
    let mut changed = Buffer::<Changed>::zeros(device, 1)?;
    let mut sets = device.sets(bytes, |_| {
        let from = Buffer::<u8>::zeros(device, rows * cols * dtype.size())?;
        Ok((Buffer::<u16>::zeros(device, rows * width)?, from))
    })?;
    let seconds = device.median(&mut sets, |(out, from)| {
        let from = Stored { bytes: from.view(), dtype, first: 0 };
        pad_convert(device, HalfType::Bf16, &mut out.view_mut(), from, &layout, &mut changed.view_mut())
    })?;
    Ok(Measured::bytes(seconds, bytes))
}
