//! Weights of a synthetic model.

use super::{args, side};
use crate::Result;
use crate::cuda::device::Launch;
use crate::cuda::kernels::DRAW_THREADS;
use crate::cuda::{Device, Storage, ViewMut};

const OP: &str = "draw";

/// Blocks of a launch, at most: enough for any card.
const BLOCKS: usize = 4096;

/// What elements of a tensor are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Which tensor of which model.
    pub seed: u64,
    /// Mean of the elements.
    pub mean: f32,
    /// Their standard deviation.
    pub scale: f32,
}

impl Draw {
    /// Element `index`, before it is rounded to a storage type. The bits that [`draw`] rounds.
    pub fn element(&self, index: u64) -> f32 {
        let mut word = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index.wrapping_add(1)));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        let part = |shift: u32| ((word >> shift) & 0xffff) as i32;
        let sum = part(0) + part(16) + part(32) + part(48);
        let z = (sum - 131_072) as f32 * 2.6429e-05;
        z.mul_add(self.scale, self.mean)
    }
}

/// `out[i]` = element `first + i`, rounded to the storage type.
pub fn draw(device: &Device, storage: Storage, out: &mut ViewMut<'_, u16>, first: usize, from: Draw) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let blocks = out.len().div_ceil(DRAW_THREADS as usize).min(BLOCKS);
    let launch =
        Launch { grid: (side(OP, "blocks", blocks, i32::MAX as u32)?, 1, 1), threads: DRAW_THREADS, shared: 0 };
    let (first, count) = (first as u64, out.len() as u64);
    let Draw { seed, mean, scale } = from;
    // SAFETY: parameters are (T* out, u64 first, u64 count, u64 seed, float mean, float scale); elements below count of out are
    // written, which has as many and is lent to us alone.
    unsafe {
        device.launch(
            &device.kernels().draw[storage as usize],
            launch,
            args![out.address, first, count, seed, mean, scale],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Draw;

    #[test]
    fn elements_have_the_mean_and_deviation_that_were_asked_for() {
        let draw = Draw { seed: 7, mean: 1.5, scale: 0.25 };
        let n = 100_000;
        let all: Vec<f64> = (0..n).map(|i| f64::from(draw.element(i))).collect();
        let mean = all.iter().sum::<f64>() / n as f64;
        let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 1.5).abs() < 0.005 && (variance.sqrt() - 0.25).abs() < 0.005, "{mean} {variance}");
        let other = Draw { seed: 8, ..draw };
        assert!((0..100).all(|i| draw.element(i) != draw.element(i + 1)));
        assert!((0..100).any(|i| draw.element(i) != other.element(i)));
    }
}
