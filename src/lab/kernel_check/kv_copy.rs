//! Cases of `kv_copy`.

use super::case::{Case, Check};
use super::guarded::Guarded;
use super::numbers::Random;
use super::rows::ROWS;
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::kv::KvLayout;
use crate::cuda::ops::kv_copy::kv_copy;
use crate::cuda::{Buffer, Device};
use crate::kv::BLOCK;

const OP: &str = "kv_copy";

/// Blocks of the pool.
const BLOCKS: usize = 7;

pub fn cases() -> Vec<Case> {
    let shapes = [(1, 1, 32), (3, 2, 64), (2, 3, 128)];
    let case = |(layers, kv_heads, head)| {
        let layout = KvLayout { layers, kv_heads, head };
        let name = format!("{layers} layers, {kv_heads} heads of {head}");
        Case::new(OP, name, layout.block() * BLOCKS, move |device, check| run(device, check, layout))
    };
    shapes.into_iter().map(case).collect()
}

fn run(device: &Device, check: &mut Check, layout: KvLayout) -> Result<()> {
    let mut random = Random::named("pool");
    let pool: Vec<u16> = (0..BLOCKS * layout.block()).map(|_| random.below(1 << 16) as u16).collect();
    // A source may serve twice; 65 positions are 64; what is not there is left out.
    let copies = [[0, 2, 1], [0, 4, 63], [6, 1, 64], [3, 5, 65], [7, 3, 64], [3, 7, 64], [u32::MAX, 3, 9], [6, 0, 0]];
    // As many copies as there are rows in other checks. One of them is real, since no two may share a target.
    let many: Vec<Vec<[u32; 3]>> = ROWS
        .iter()
        .map(|&count| [[0, 2, 33]].into_iter().chain([[u32::MAX, 3, 9]; 257]).take(count).collect())
        .collect();
    let few = [&copies[..], &copies[..1], &copies[3..4], &[]];
    for copies in few.into_iter().chain(many.iter().map(Vec::as_slice)) {
        let mut expected = pool.clone();
        for &[from, to, positions] in copies {
            let block = |id: u32| id as usize * layout.block();
            if from as usize >= BLOCKS || to as usize >= BLOCKS {
                continue;
            }
            for plane in (0..layout.block()).step_by(BLOCK * layout.head) {
                let len = (positions as usize).min(BLOCK) * layout.head;
                let from = block(from) + plane;
                expected[block(to) + plane..][..len].copy_from_slice(&pool[from..from + len]);
            }
        }
        let device_copies = Guarded::input(device, copies)?;
        for what in ["the pool", "the pool, run again"] {
            let mut device_pool = Guarded::shifted(device, &pool, 0)?;
            kv_copy(device, &mut device_pool.view_mut(), device_copies.view(), layout)?;
            let found = device_pool.read(device, check, what)?;
            check.same(what, &found, &expected);
        }
    }
    Ok(())
}

pub fn timings() -> Vec<Timed> {
    Timed::each(OP, [1, 25], |copies| format!("{copies} blocks of 32 layers, 8 heads of 128"), time)
}

fn time(device: &Bench<'_>, copies: usize) -> Result<Measured> {
    let layout = KvLayout { layers: 32, kv_heads: 8, head: 128 };
    let mut pool = Buffer::<u16>::zeros(device, 2 * copies * layout.block())?;
    let list: Vec<[u32; 3]> = (0..copies as u32).map(|i| [2 * i, 2 * i + 1, 64]).collect();
    let list = Buffer::from_slice(device, &list)?;
    let seconds = device.median(&mut [()], |_| kv_copy(device, &mut pool.view_mut(), list.view(), layout))?;
    Ok(Measured::bytes(seconds, 2 * copies * 2 * layout.block()))
}
