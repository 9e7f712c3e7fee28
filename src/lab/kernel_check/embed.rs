//! Cases of `embed`.

use super::case::{Case, Check};
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::rows::{ROWS, Rows, batches, repeated};
use super::timing::{Bench, COLD, Measured, Timed};
use crate::Result;
use crate::cuda::ops::embed::{Table, embed};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use std::ops::Range;

const OP: &str = "embed";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let layouts = [(WeightLayout::Rows, "rows"), (WeightLayout::Tiles, "rows in tiles")];
    for (storage, (layout, rows)) in HalfType::ALL.into_iter().flat_map(|storage| layouts.map(|of| (storage, of))) {
        for (n, v, d) in
            [(1usize, 1usize, 8usize), (7, 31, 64), (33, 111, 264), (3, 40, 4096), (2, 9, 4104), (300, 7, 64)]
        {
            let name = format!("{} [{n}, {d}] of {v} {rows}", storage.name());
            let run = move |seed: &str, device: &Device, check: &mut Check| {
                run(seed, device, check, (storage, layout), (n, v, d))
            };
            cases.push(Case::seeded(OP, name, n * d, run));
        }
    }
    cases
}

fn run(
    seed: &str,
    device: &Device,
    check: &mut Check,
    (storage, layout): (HalfType, WeightLayout),
    (n, v, d): (usize, usize, usize),
) -> Result<()> {
    let mut random = Random::named(seed);
    let table = stored(storage, &random.vector(v * d, Values::Outliers));
    let mut ids: Vec<u32> = (0..n).map(|_| random.below(v) as u32).collect();
    // The last and the first row of the table, an id after the last, and the id that an all-NaN row of logits gives.
    for (at, id) in [(0, v as u32 - 1), (2, 0), (4, v as u32), (5, u32::MAX)] {
        if at < n {
            ids[at] = id;
        }
    }
    let device_table = Guarded::input(device, &layout.arranged(&table, v, d))?;
    let embedded = |check: &mut Check, rows: Range<usize>| {
        let device_ids = Guarded::input(device, &ids[rows.clone()])?;
        let mut out = Guarded::output(device, rows.len() * d, 0)?;
        let table = Table { elements: device_table.view(), vocabulary: v, layout };
        embed(device, storage, &mut out.view_mut(), table, device_ids.view(), d)?;
        Ok(Rows { name: "out", width: d, values: out.read(device, check, "out")? })
    };
    let all: Rows<f32> = repeated(check, n, embedded)?;
    let last = ROWS.into_iter().filter(|&rows| rows < n).map(|rows| n - rows..n);
    batches(check, &all, last, embedded)?;
    for (&id, row) in ids.iter().zip(all.values.chunks_exact(d)) {
        match table.get(id as usize * d..(id as usize + 1) * d) {
            Some(expected) => check.same(&format!("row of id {id}"), row, &widened(storage, expected)),
            None if row.iter().all(|x| x.is_nan()) => {}
            None => check.fail(format!("the row of id {id}, which is not in the table, is {row:?}")),
        }
    }
    Ok(())
}

pub fn timings() -> Vec<Timed> {
    Timed::each(OP, [1, 128, 2048], |rows| format!("bf16 [{rows}, 4096]"), time)
}

fn time(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let d = 4096;
    let bytes = rows * d * 6;
    // Rows far apart, in a table larger than any cache.
    let vocabulary = COLD / d;
    let table = Buffer::<u16>::zeros(device, vocabulary * d)?;
    let ids: Vec<u32> = (0..rows).map(|row| (row * 7919 % vocabulary) as u32).collect();
    let ids = Buffer::from_slice(device, &ids)?;
    let mut sets = device.sets(bytes, |_| Buffer::<f32>::uninitialised(device, rows * d))?;
    let table = Table { elements: table.view(), vocabulary, layout: WeightLayout::Rows };
    let seconds =
        device.median(&mut sets, |out| embed(device, HalfType::Bf16, &mut out.view_mut(), table, ids.view(), d))?;
    Ok(Measured::bytes(seconds, bytes))
}
