//! Cases of `random_fill`: the bits that the host has.

use super::case::{Case, Check};
use super::guarded::Guarded;
use super::timing::Timed;
use crate::Result;
use crate::cuda::Device;
use crate::cuda::ops::random_fill::random_fill;
use crate::dtype::HalfType;
use crate::rng::RandomFill;

const OP: &str = "random_fill";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (count, first, shift) in [(1usize, 0usize, 0usize), (33, 7, 1), (257, 1 << 33, 0), (70_000, 12_345, 3)] {
            let name = format!("{} {count} elements from {first} on, {shift} off", storage.name());
            cases.push(Case::new(OP, name, count, move |device, check| {
                for from in [
                    RandomFill { seed: 0, mean: 0.0, scale: 0.02 },
                    RandomFill { seed: u64::MAX, mean: 1.0, scale: 0.0 },
                    RandomFill { seed: 42, mean: -3.0, scale: 40.0 },
                ] {
                    run(device, check, storage, (count, first, shift), from)?;
                }
                Ok(())
            }));
        }
    }
    cases
}

/// None: it runs once, while a synthetic model is made.
pub fn timings() -> Vec<Timed> {
    Vec::new()
}

fn run(
    device: &Device,
    check: &mut Check,
    storage: HalfType,
    (count, first, shift): (usize, usize, usize),
    from: RandomFill,
) -> Result<()> {
    let expected: Vec<u16> = (0..count).map(|i| storage.round(from.element((first + i) as u64))).collect();
    for what in ["out", "out, run again"] {
        let mut out = Guarded::output(device, count, shift)?;
        random_fill(device, storage, &mut out.view_mut(), first, from)?;
        let found = out.read(device, check, what)?;
        check.same(what, &found, &expected);
    }
    // In two pieces.
    let (mut out, half) = (Guarded::output(device, count, shift)?, count / 2);
    random_fill(device, storage, &mut out.view_mut().slice(0..half), first, from)?;
    random_fill(device, storage, &mut out.view_mut().slice(half..count), first + half, from)?;
    let found = out.read(device, check, "pieces")?;
    check.same("in two pieces", &found, &expected);
    Ok(())
}
