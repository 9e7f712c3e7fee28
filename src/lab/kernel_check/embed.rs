//! Cases of `embed`.

use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::{Case, Check, ROWS};
use crate::Result;
use crate::cuda::Device;
use crate::cuda::ops::embed::embed;
use crate::dtype::HalfType;

const OP: &str = "embed";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (n, v, d) in
            [(1usize, 1usize, 8usize), (7, 31, 64), (33, 111, 264), (3, 40, 4096), (2, 9, 4104), (300, 7, 64)]
        {
            let name = format!("{} [{n}, {d}] of {v} rows", storage.name());
            let seed = name.clone();
            cases.push(Case::new(OP, name, n * d, move |device, check| run(&seed, device, check, storage, (n, v, d))));
        }
    }
    cases
}

fn run(
    seed: &str,
    device: &Device,
    check: &mut Check,
    storage: HalfType,
    (n, v, d): (usize, usize, usize),
) -> Result<()> {
    let mut random = Random::named(seed);
    let table = stored(storage, &random.vector(v * d, Values::Outliers));
    let mut ids: Vec<u32> = (0..n).map(|_| random.below(v) as u32).collect();
    // The first and the last row of the table, one behind it, and what an all-NaN row of logits gives.
    for (at, id) in [(0, v as u32 - 1), (2, 0), (4, v as u32), (5, u32::MAX)] {
        if at < n {
            ids[at] = id;
        }
    }
    let device_table = Guarded::input(device, &table)?;
    let mut embedded = |ids: &[u32]| {
        let device_ids = Guarded::input(device, ids)?;
        let mut out = Guarded::output(device, ids.len() * d, 0)?;
        embed(device, storage, &mut out.view_mut(), device_table.view(), device_ids.view(), d)?;
        out.read(device, check, "out")
    };
    let all: Vec<f32> = embedded(&ids)?;
    let again = embedded(&ids)?;
    let mut some = Vec::new();
    for rows in ROWS.into_iter().filter(|&rows| rows < n) {
        some.push((rows, embedded(&ids[n - rows..])?));
    }
    check.same("out, run again", &again, &all);
    for (rows, found) in some {
        check.same(&format!("the last {rows} rows"), &found, &all[(n - rows) * d..]);
    }
    for (&id, row) in ids.iter().zip(all.chunks_exact(d)) {
        match table.get(id as usize * d..(id as usize + 1) * d) {
            Some(expected) => check.same(&format!("row of id {id}"), row, &widened(storage, expected)),
            None if row.iter().all(|x| x.is_nan()) => {}
            None => check.fail(format!("the row of id {id}, which is not in the table, is {row:?}")),
        }
    }
    Ok(())
}
