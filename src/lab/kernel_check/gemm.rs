//! Cases of `gemm`.

use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::{Case, Check, ROWS};
use crate::Result;
use crate::cuda::Device;
use crate::cuda::ops::gemm::{Chunks, Operands, Output, Plan, Scratch, Shape, TILES, gemm, gemm_planned};
use crate::dtype::HalfType;

const OP: &str = "gemm";

/// What becomes of the sums.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Into {
    F32,
    HalfType,
    Residual,
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (tokens, n, k) in [
            (1usize, 1, 64),
            (1, 130, 1152),
            (2, 31, 128),
            (7, 64, 2304),
            (9, 33, 64),
            (16, 111, 1024),
            (31, 129, 192),
            (33, 40, 2304),
            (64, 100, 1088),
            (65, 131, 192),
            (129, 257, 1152),
            (1, 32_000, 128),
            (3, 128_256, 64),
        ] {
            for (into, bias, values) in [
                (Into::F32, false, Values::Normal(1.0)),
                (Into::HalfType, true, Values::Normal(0.05)),
                (Into::Residual, false, Values::Outliers),
            ] {
                // What a wide matrix shows, one way of storing it shows.
                if n > 1000 && into != Into::F32 {
                    continue;
                }
                let name = format!("{} [{tokens}, {n}, {k}] into {into:?}, {values}", storage.name());
                let seed = name.clone();
                cases.push(Case::new(OP, name, tokens.next_multiple_of(8) * n * k, move |device, check| {
                    Problem::new(&seed, storage, Shape { tokens, n, k }, into, bias, values).check(device, check)
                }));
            }
        }
        for (tokens, n, k) in [(257, 40, 1088), (257, 24, 2112), (34, 36, 1088)] {
            let name = format!("{} {tokens} rows alone and together in every tile, n {n}, k {k}", storage.name());
            // Of which the emulated device does sixteen in the time of one element.
            cases.push(Case::new(OP, name, tokens * n * k * 10 / 16, move |device, check| {
                let shape = Shape { tokens, n, k };
                let problem = Problem::new("together", storage, shape, Into::F32, false, Values::Outliers);
                problem.alone_and_together(device, check)
            }));
        }
    }
    cases
}

/// One problem on the host.
struct Problem {
    storage: HalfType,
    shape: Shape,
    into: Into,
    x: Vec<u16>,
    w: Vec<u16>,
    bias: Option<Vec<u16>>,
    residual: Vec<f32>,
}

impl Problem {
    fn new(seed: &str, storage: HalfType, shape: Shape, into: Into, bias: bool, values: Values) -> Self {
        let Shape { tokens, n, k } = shape;
        let mut random = Random::named(seed);
        let x = stored(storage, &random.vector(tokens * k, values));
        let w = stored(storage, &random.vector(n * k, Values::Normal(0.1)));
        let bias = bias.then(|| stored(storage, &random.vector(n, Values::Normal(1.0))));
        let residual = random.vector(tokens * n, Values::Normal(1.0));
        Problem { storage, shape, into, x, w, bias, residual }
    }

    /// `y` for some of the tokens, widened; by the kernel that fits, or by a particular one.
    fn run(
        &self,
        device: &Device,
        check: &mut Check,
        tokens: std::ops::Range<usize>,
        tile: Option<usize>,
    ) -> Result<Vec<f32>> {
        let Shape { n, k, .. } = self.shape;
        let shape = Shape { tokens: tokens.len(), ..self.shape };
        let x = Guarded::input(device, &self.x[tokens.start * k..tokens.end * k])?;
        let w = Guarded::input(device, &self.w)?;
        let bias = self.bias.as_ref().map(|bias| Guarded::input(device, bias)).transpose()?;
        let operands =
            Operands { storage: self.storage, x: x.view(), w: w.view(), bias: bias.as_ref().map(|bias| bias.view()) };
        let elements = shape.tokens * n;
        let (mut f32s, mut words);
        let plan = tile.map(|tile| Plan::with_tile(shape, tile));
        let mut scratch = match plan {
            Some(plan) => Scratch::with_room(device, plan.workspace, plan.tickets)?,
            None => Scratch::new(device, &[(n, k)], 32 * elements)?,
        };
        let mut launch = |y: &mut Output<'_>| match plan {
            Some(plan) => gemm_planned(device, y, operands, shape, plan, &mut scratch),
            None => gemm(device, y, operands, shape, &mut scratch),
        };
        match self.into {
            Into::F32 => {
                f32s = Guarded::output(device, elements, 0)?;
                launch(&mut Output::F32(f32s.view_mut()))?;
                let first = f32s.read(device, check, "y")?;
                // Into a fresh buffer, so that a launch which writes nothing is seen; the tickets are back at zero.
                f32s = Guarded::output(device, elements, 0)?;
                launch(&mut Output::F32(f32s.view_mut()))?;
                let second = f32s.read(device, check, "y")?;
                check.same("y, run again", &second, &first);
                Ok(first)
            }
            Into::HalfType => {
                words = Guarded::output(device, elements, 0)?;
                launch(&mut Output::HalfType(words.view_mut()))?;
                Ok(widened(self.storage, &words.read(device, check, "y")?))
            }
            Into::Residual => {
                f32s = Guarded::shifted(device, &self.residual[tokens.start * n..tokens.end * n], 0)?;
                launch(&mut Output::Add(f32s.view_mut()))?;
                f32s.read(device, check, "y")
            }
        }
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let Shape { tokens, n, k } = self.shape;
        let y = self.run(device, check, 0..tokens, None)?;
        let (x, w) = (widened(self.storage, &self.x), widened(self.storage, &self.w));
        let bias = self.bias.as_ref().map(|bias| widened(self.storage, bias));
        let (mut error, mut allowed) = (0.0f64, 0.0f64);
        let mut at = (0, 0);
        for t in 0..tokens {
            for o in 0..n {
                let (x, w) = (&x[t * k..(t + 1) * k], &w[o * k..(o + 1) * k]);
                let (bias, residual) = (bias.as_ref().map_or(0.0, |bias| bias[o]), self.residual[t * n + o]);
                let mut exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                let terms: f64 = x.iter().zip(w).map(|(&x, &w)| (f64::from(x) * f64::from(w)).abs()).sum();
                exact += f64::from(bias);
                let mut simulated = truncated_dot(x, w) + bias;
                let mut unit = terms + f64::from(bias.abs());
                match self.into {
                    Into::F32 => {}
                    Into::HalfType => simulated = self.storage.widen(self.storage.round(simulated)),
                    Into::Residual => {
                        exact += f64::from(residual);
                        simulated += residual;
                        unit += f64::from(residual.abs());
                    }
                }
                let found = (f64::from(y[t * n + o]) - exact).abs() / unit;
                let found = if found.is_nan() { f64::INFINITY } else { found };
                if found > error {
                    (error, at) = (found, (t, o));
                }
                allowed = allowed.max((f64::from(simulated) - exact).abs() / unit);
            }
        }
        // A single product may be exact by luck: two roundings in f32, and half a unit of the storage type, always pass.
        let least = match (self.into, self.storage) {
            (Into::HalfType, HalfType::Bf16) => 1.0 / 512.0,
            (Into::HalfType, HalfType::F16) => 1.0 / 4096.0,
            _ => f64::from(f32::EPSILON),
        };
        let least = if tokens * n < 8 { least } else { f64::from(f32::EPSILON) };
        check.bound(|| format!("y at token {}, output {}", at.0, at.1), error, (2.0 * allowed).max(least));
        Ok(())
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let Shape { tokens, n, k } = self.shape;
        if Chunks::of(n, k).count < 2 {
            check.fail("the case has one chunk only");
        }
        let all = self.run(device, check, 0..tokens, None)?;
        for (index, tile) in TILES.iter().enumerate() {
            let found = self.run(device, check, 0..tokens, Some(index))?;
            check.same(&format!("all tokens by {}", tile.kernels[self.storage as usize]), &found, &all);
        }
        for some in ROWS.into_iter().filter(|&some| some <= tokens) {
            let found = self.run(device, check, 0..some, None)?;
            check.same(&format!("the first {some} tokens"), &found, &all[..some * n]);
        }
        for t in [1, tokens / 3, tokens - 1] {
            let found = self.run(device, check, t..t + 1, None)?;
            check.same(&format!("token {t} alone"), &found, &all[t * n..(t + 1) * n]);
        }
        Ok(())
    }
}

/// A dot product as a tensor core may compute it at worst: 16 exact products at a time, and what is added to the sum so
/// far is cut off to f32 instead of rounded.
pub(super) fn truncated_dot(x: &[f32], w: &[f32]) -> f32 {
    x.chunks(16).zip(w.chunks(16)).fold(0.0f32, |sum, (x, w)| {
        let products: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
        toward_zero(f64::from(sum) + products)
    })
}

fn toward_zero(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near).abs() > x.abs() { near.to_bits().checked_sub(1).map_or(near, f32::from_bits) } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_goes_toward_zero() {
        for x in [1.0 + 1e-9, 0.1, -0.1, 1.0 - 1e-9, -3.3, 0.0, 1e-30] {
            let cut = f64::from(toward_zero(x));
            assert!(cut.abs() <= x.abs() && (cut - x).abs() <= x.abs() * 1.2e-7, "{x}: {cut}");
        }
    }
}
