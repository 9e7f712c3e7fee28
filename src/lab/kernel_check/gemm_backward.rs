//! Cases of `gemm_backward`.

use super::errors::{Errors, half_unit};
use super::gemm::truncated_dot;
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::{Case, Check, ROWS};
use crate::Result;
use crate::cuda::Device;
use crate::cuda::ops::gemm::{Chunks, Output, Plan, Scratch, Shape, TILES};
use crate::cuda::ops::gemm_backward::{Gradients, gemm_backward, gemm_backward_planned};
use crate::dtype::HalfType;

const OP: &str = "gemm_backward";

/// What becomes of the sums.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Into {
    F32,
    HalfType,
    Gradient,
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for (tokens, n, k) in [
            (1usize, 8usize, 8usize),
            (1, 1160, 136),
            (2, 96, 24),
            (7, 2304, 64),
            (9, 64, 40),
            (16, 1024, 112),
            (31, 200, 136),
            (33, 2304, 40),
            (64, 1096, 104),
            (65, 160, 136),
            (129, 1120, 264),
            (1, 72, 32_000),
        ] {
            for (into, values) in [
                (Into::F32, Values::Normal(1.0)),
                (Into::HalfType, Values::Normal(0.05)),
                (Into::Gradient, Values::Outliers),
            ] {
                // What a wide matrix shows, one way of storing it shows.
                if k > 1000 && into != Into::F32 {
                    continue;
                }
                let name = format!("{} [{tokens}, {n}, {k}] into {into:?}, {values}", storage.name());
                let seed = name.clone();
                cases.push(Case::new(OP, name, tokens.next_multiple_of(8) * n * k, move |device, check| {
                    Problem::new(&seed, storage, Shape { tokens, n, k }, into, values).check(device, check)
                }));
            }
        }
        for (tokens, n, k) in [(257, 1056, 40), (257, 2112, 24), (34, 1056, 40)] {
            let name = format!("{} {tokens} rows alone and together in every tile, n {n}, k {k}", storage.name());
            // Of which the emulated device does sixteen in the time of one element.
            cases.push(Case::new(OP, name, tokens * n * k * 10 / 16, move |device, check| {
                let shape = Shape { tokens, n, k };
                Problem::new("together", storage, shape, Into::F32, Values::Outliers).alone_and_together(device, check)
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
    dy: Vec<u16>,
    w: Vec<u16>,
    gradient: Vec<f32>,
}

impl Problem {
    fn new(seed: &str, storage: HalfType, shape: Shape, into: Into, values: Values) -> Self {
        let Shape { tokens, n, k } = shape;
        let mut random = Random::named(seed);
        let dy = stored(storage, &random.vector(tokens * n, values));
        let w = stored(storage, &random.vector(n * k, Values::Normal(0.1)));
        let gradient = random.vector(tokens * k, Values::Normal(1.0));
        Problem { storage, shape, into, dy, w, gradient }
    }

    /// `dx` for some of the tokens, widened; by the kernel that fits, or by a particular one.
    fn run(
        &self,
        device: &Device,
        check: &mut Check,
        tokens: std::ops::Range<usize>,
        tile: Option<usize>,
    ) -> Result<Vec<f32>> {
        let Shape { n, k, .. } = self.shape;
        let shape = Shape { tokens: tokens.len(), ..self.shape };
        let dy = Guarded::input(device, &self.dy[tokens.start * n..tokens.end * n])?;
        let w = Guarded::input(device, &self.w)?;
        let gradients = Gradients { storage: self.storage, dy: dy.view(), w: w.view() };
        let elements = shape.tokens * k;
        let plan = tile.map(|tile| Plan::with_tile(shape.transposed(), tile));
        let mut scratch = match plan {
            Some(plan) => Scratch::with_room(device, plan.workspace, plan.tickets)?,
            None => Scratch::new(device, &[(k, n)], 32 * elements)?,
        };
        let mut launch = |dx: &mut Output<'_>| match plan {
            Some(plan) => gemm_backward_planned(device, dx, gradients, shape, plan, &mut scratch),
            None => gemm_backward(device, dx, gradients, shape, &mut scratch),
        };
        match self.into {
            Into::F32 => {
                let mut runs = Vec::new();
                // Into a fresh buffer each, so that a launch which writes nothing is seen; the tickets are back at zero.
                for what in ["dx", "dx, run again"] {
                    let mut out = Guarded::output(device, elements, 0)?;
                    launch(&mut Output::F32(out.view_mut()))?;
                    runs.push(out.read(device, check, what)?);
                }
                check.same("dx, run again", &runs[1], &runs[0]);
                Ok(runs.swap_remove(0))
            }
            Into::HalfType => {
                let mut out = Guarded::output(device, elements, 0)?;
                launch(&mut Output::HalfType(out.view_mut()))?;
                Ok(widened(self.storage, &out.read(device, check, "dx")?))
            }
            Into::Gradient => {
                let mut out = Guarded::shifted(device, &self.gradient[tokens.start * k..tokens.end * k], 0)?;
                launch(&mut Output::Add(out.view_mut()))?;
                out.read(device, check, "dx")
            }
        }
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let Shape { tokens, n, k } = self.shape;
        let dx = self.run(device, check, 0..tokens, None)?;
        let (dy, w) = (widened(self.storage, &self.dy), widened(self.storage, &self.w));
        let columns: Vec<Vec<f32>> = (0..k).map(|i| w.iter().skip(i).step_by(k).copied().collect()).collect();
        let mut errors = Errors::default();
        for t in 0..tokens {
            let dy = &dy[t * n..(t + 1) * n];
            for (i, column) in columns.iter().enumerate() {
                let products = || dy.iter().zip(column).map(|(&dy, &w)| f64::from(dy) * f64::from(w));
                let (mut exact, mut terms) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                let mut simulated = truncated_dot(dy, column);
                match self.into {
                    Into::F32 => {}
                    Into::HalfType => simulated = self.storage.widen(self.storage.round(simulated)),
                    Into::Gradient => {
                        let before = self.gradient[t * k + i];
                        exact += f64::from(before);
                        terms += f64::from(before.abs());
                        simulated += before;
                    }
                }
                errors.add(dx[t * k + i], simulated, exact, terms);
            }
        }
        let least = match self.into {
            Into::HalfType => half_unit(self.storage) / 2.0,
            _ => f64::from(f32::EPSILON),
        };
        errors.check(check, "dx", 3.0, least);
        Ok(())
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let Shape { tokens, n, k } = self.shape;
        if Chunks::of(k, n).count < 2 {
            check.fail("the case has one chunk only");
        }
        let all = self.run(device, check, 0..tokens, None)?;
        for (index, tile) in TILES.iter().enumerate() {
            let found = self.run(device, check, 0..tokens, Some(index))?;
            check.same(&format!("all tokens by {}", tile.backward[self.storage as usize]), &found, &all);
        }
        for some in ROWS.into_iter().filter(|&some| some <= tokens) {
            let found = self.run(device, check, 0..some, None)?;
            check.same(&format!("the first {some} tokens"), &found, &all[..some * k]);
        }
        for t in [1, tokens / 3, tokens - 1] {
            let found = self.run(device, check, t..t + 1, None)?;
            check.same(&format!("token {t} alone"), &found, &all[t * k..(t + 1) * k]);
        }
        Ok(())
    }
}
