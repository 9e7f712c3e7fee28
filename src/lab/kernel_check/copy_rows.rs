//! Cases of `copy_rows`.

use super::case::{Case, Check};
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored};
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::copy_rows::copy_rows;
use crate::cuda::{Buffer, Device, Element};
use crate::dtype::HalfType;

const OP: &str = "copy_rows";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, width) in
        [(1usize, 8usize), (5, 64), (7, 264), (3, 4104), (40, 72), (2, 16), (32, 8), (33, 16), (129, 24), (257, 8)]
    {
        cases.push(Case::new(OP, format!("{n} rows of {width} f32"), n * width, move |device, check| {
            let src = Random::named("rows").vector(2 * n * width, Values::Normal(1.0));
            run(device, check, &src, n, width)
        }));
        cases.push(Case::new(OP, format!("{n} rows of {width} words"), n * width, move |device, check| {
            let src = Random::named("rows").vector(2 * n * width, Values::Normal(1.0));
            run(device, check, &stored(HalfType::Bf16, &src), n, width)
        }));
    }
    cases
}

/// `n` rows out of `2n`, into `n + 3`, and two pairs that name no row.
fn run<T: Element + std::fmt::Debug>(
    device: &Device,
    check: &mut Check,
    src: &[T],
    n: usize,
    width: usize,
) -> Result<()> {
    let mut random = Random::named("pairs");
    let mut pairs: Vec<[u32; 2]> = (0..n).map(|to| [random.below(2 * n) as u32, (n + 2 - to) as u32]).collect();
    pairs[0][0] = 2 * n as u32 - 1;
    pairs.insert(n / 2, [2 * n as u32, 0]);
    pairs.insert(0, [0, n as u32 + 3]);
    let (device_src, device_pairs) = (Guarded::input(device, src)?, Guarded::input(device, &pairs)?);
    let mut expected = Guarded::<T>::output(device, (n + 3) * width, 0)?.read(device, check, "dst")?;
    for &[from, to] in &pairs {
        let (from, to) = (from as usize * width, to as usize * width);
        if let (Some(from), Some(to)) = (src.get(from..from + width), expected.get_mut(to..to + width)) {
            to.copy_from_slice(from);
        }
    }
    for what in ["dst", "dst, run again"] {
        let mut dst = Guarded::output(device, (n + 3) * width, 0)?;
        copy_rows(device, &mut dst.view_mut(), device_src.view(), device_pairs.view(), width)?;
        let found = dst.read(device, check, what)?;
        check.same(what, &found, &expected);
    }
    Ok(())
}

pub fn timings() -> Vec<Timed> {
    Timed::each(OP, [8, 64, 512], |rows| format!("f32 [{rows}, 4096]"), time)
}

fn time(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let width = 4096;
    let (elements, bytes) = (rows * width, 8 * rows * width);
    let pairs = Buffer::from_slice(device, &(0..rows as u32).map(|i| [i, i]).collect::<Vec<_>>())?;
    let mut sets = device.sets(bytes, |_| {
        Ok((Buffer::<f32>::zeros(device, elements)?, Buffer::<f32>::uninitialised(device, elements)?))
    })?;
    let seconds = device
        .median(&mut sets, |(src, dst)| copy_rows(device, &mut dst.view_mut(), src.view(), pairs.view(), width))?;
    Ok(Measured::bytes(seconds, bytes))
}
