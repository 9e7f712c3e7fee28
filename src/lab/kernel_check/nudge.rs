//! Cases of `nudge`: products against f64, choices against the method's own on the same products.

use super::errors::Errors;
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::{Case, Check};
use crate::Result;
use crate::cuda::Device;
use crate::cuda::ops::nudge::{Inputs, NudgeChoice, NudgeWish, nudge};
use crate::dtype::HalfType;
use crate::method::{gradient, nudge as method};

const OP: &str = "nudge";
/// Of the table.
const VOCABULARY: usize = 97;
const ROWS: usize = 5;
/// The gradient's row that holds a NaN.
const BAD_ROW: u32 = 3;
/// A power of two, as a backward pass in 16 bits would undo it.
const SCALE: f32 = 0.125;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for storage in HalfType::ALL {
        for d in [8, 64, 264, 4096] {
            for values in [Values::Normal(0.02), Values::Outliers] {
                let name = format!("{} of {d}, {values}", storage.name());
                let seed = name.clone();
                cases.push(Case::new(OP, name, 400 * d, move |device, check| {
                    Problem::new(&seed, storage, d, values).check(device, check)
                }));
            }
        }
        let name = format!("{} rows alone and together", storage.name());
        cases.push(Case::new(OP, name, 600 * 64, move |device, check| {
            Problem::many(storage).alone_and_together(device, check)
        }));
    }
    cases
}

/// One problem on the host.
struct Problem {
    storage: HalfType,
    d: usize,
    grads: Vec<f32>,
    table: Vec<u16>,
    ids: Vec<u32>,
    wishes: Vec<NudgeWish>,
    /// How many of the wishes, the first ones, have an answer.
    answered: usize,
}

impl Problem {
    fn new(seed: &str, storage: HalfType, d: usize, values: Values) -> Self {
        let mut random = Random::named(seed);
        let table = stored(storage, &random.vector(VOCABULARY * d, values));
        let mut grads = random.vector(ROWS * d, Values::Normal(0.3));
        grads[BAD_ROW as usize * d + d / 2] = f32::NAN;
        let mut problem = Problem { storage, d, grads, table, ids: Vec::new(), wishes: Vec::new(), answered: 0 };
        let greedy = NudgeWish { damping: 1e-10, temperature: 0.1, uniform: -1.0, ..NudgeWish::default() };
        for (count, row) in [(1, 0), (2, 4), (25, 1), (31, 0), (64, 2), (33, 4)] {
            // Twice the same token: the products tie.
            let mut ids: Vec<u32> = (0..count).map(|_| random.below(VOCABULARY) as u32).collect();
            let copied = random.below(count);
            ids[count - 1] = ids[copied];
            let current = ids[random.below(count)];
            problem.wish(&ids, NudgeWish { row, current, ..greedy });
            // All negative, or all positive: damping decides.
            problem.wish(&[ids[0]; 3], NudgeWish { row, current: ids[0], damping: f64::MAX, ..greedy });
            for uniform in [0.0, 0.4, 0.999_999] {
                problem.wish(&ids, NudgeWish { row, current, uniform, temperature: 0.7, ..greedy });
            }
            // A token that is no candidate.
            problem.wish(&ids, NudgeWish { row, current: VOCABULARY as u32, uniform: 0.5, ..greedy });
        }
        problem.answered = problem.wishes.len();
        problem.wish(&[4, VOCABULARY as u32, 5], greedy);
        problem.wish(&[4, 5], NudgeWish { row: BAD_ROW, ..greedy });
        problem.wish(&[4, 5], NudgeWish { row: ROWS as u32, ..greedy });
        problem.wish(&[7; 65], greedy);
        problem.wish(&[], greedy);
        let end = problem.ids.len() as u32;
        for (first, count) in [(end - 1, 2), (end + 1, 1), (u32::MAX, 2)] {
            problem.wishes.push(NudgeWish { first, count, ..greedy });
        }
        problem
    }

    /// As many wishes as there are rows anywhere, of three candidates each.
    fn many(storage: HalfType) -> Self {
        let mut random = Random::named("together");
        let d = 64;
        let table = stored(storage, &random.vector(VOCABULARY * d, Values::Normal(0.02)));
        let grads = random.vector(ROWS * d, Values::Normal(0.3));
        let mut problem = Problem { storage, d, grads, table, ids: Vec::new(), wishes: Vec::new(), answered: 0 };
        for index in 0..257u32 {
            let ids = [0; 3].map(|_| random.below(VOCABULARY) as u32);
            let wish = NudgeWish { damping: 1e-10, temperature: 0.1, uniform: -1.0, ..NudgeWish::default() };
            problem.wish(&ids, NudgeWish { row: index % ROWS as u32, current: ids[1], ..wish });
        }
        problem
    }

    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let (all, products) = self.run(device, check, &self.wishes)?;
        for count in super::ROWS {
            let (some, found) = self.run(device, check, &self.wishes[..count])?;
            check.same(&format!("the first {count} wishes"), &some, &all[..count]);
            check.same(&format!("products of the first {count} wishes"), &found[..3 * count], &products[..3 * count]);
        }
        Ok(())
    }

    fn wish(&mut self, ids: &[u32], wish: NudgeWish) {
        let (first, count) = (self.ids.len() as u32, ids.len() as u32);
        self.ids.extend(ids);
        self.wishes.push(NudgeWish { first, count, ..wish });
    }

    fn run(&self, device: &Device, check: &mut Check, wishes: &[NudgeWish]) -> Result<(Vec<NudgeChoice>, Vec<f32>)> {
        let grads = Guarded::input(device, &self.grads)?;
        let table = Guarded::input(device, &self.table)?;
        let ids = Guarded::input(device, &self.ids)?;
        let device_wishes = Guarded::input(device, wishes)?;
        let inputs = Inputs {
            grads: grads.view(),
            table: table.view(),
            ids: ids.view(),
            wishes: device_wishes.view(),
            d: self.d,
            scale: SCALE,
        };
        let mut choices = Guarded::output(device, wishes.len(), 0)?;
        let mut products = Guarded::output(device, self.ids.len(), 0)?;
        nudge(device, self.storage, &mut choices.view_mut(), &mut products.view_mut(), &inputs)?;
        Ok((choices.read(device, check, "choices")?, products.read(device, check, "products")?))
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let (choices, products) = self.run(device, check, &self.wishes)?;
        let again = self.run(device, check, &self.wishes)?;
        check.same("choices, run again", &again.0, &choices);
        check.same("products, run again", &again.1, &products);
        let (mut errors, mut norms) = (Errors::default(), Errors::default());
        for (at, (wish, choice)) in self.wishes.iter().zip(&choices).enumerate() {
            if at >= self.answered {
                if choice.finite != 0 {
                    check.fail(format!("wish {at}, which has no answer, got {choice:?}"));
                }
                continue;
            }
            let range = wish.first as usize..(wish.first + wish.count) as usize;
            let (ids, products) = (&self.ids[range.clone()], &products[range.clone()]);
            let grad = &self.grads[wish.row as usize * self.d..][..self.d];
            for (&id, &product) in ids.iter().zip(products) {
                let row = widened(self.storage, &self.table[id as usize * self.d..][..self.d]);
                Self::compare(&mut errors, product, &row, grad, |x| x);
            }
            Self::compare(&mut norms, choice.norm, grad, grad, f64::sqrt);
            self.check_choice(check, at, choice, ids, products);
            if at % 7 == 3 {
                let (alone, found) = self.run(device, check, &[*wish])?;
                check.same(&format!("wish {at} alone"), &alone, &choices[at..=at]);
                check.same(&format!("products of wish {at} alone"), &found[range], products);
            }
        }
        errors.check(check, "products", 3.0, f64::from(f32::EPSILON));
        norms.check(check, "norms", 3.0, f64::from(f32::EPSILON));
        Ok(())
    }

    /// `finish(a . b)`, scaled.
    fn compare(errors: &mut Errors, found: f32, a: &[f32], b: &[f32], finish: fn(f64) -> f64) {
        let products = || a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
        let simulated = a.iter().zip(b).fold(0.0f32, |sum, (a, b)| sum + a * b);
        let scale = f64::from(SCALE);
        let (exact, terms) = (finish(products().sum()), finish(products().map(f64::abs).sum()));
        errors.add(found, (finish(f64::from(simulated)) * scale) as f32, exact * scale, terms * scale);
    }

    fn check_choice(&self, check: &mut Check, at: usize, found: &NudgeChoice, ids: &[u32], products: &[f32]) {
        let wish = &self.wishes[at];
        let scores = gradient::scores(ids, products, wish.current, wish.damping);
        let expected = match wish.uniform {
            u if u < 0.0 => method::greedy(&scores),
            u => method::sampled(&method::weights(&scores, wish.temperature), u),
        };
        let Some(expected) = expected else { return check.fail(format!("wish {at} has no candidates")) };
        let index = found.index as usize;
        if (index, found.finite) != (expected.index, 1) || ids.get(index) != Some(&found.id) {
            check.fail(format!("wish {at}, {wish:?}: {found:?} instead of {expected:?}"));
        }
        check.close(|| format!("wish {at}: margin"), found.margin, expected.margin.unwrap_or(f64::INFINITY));
    }
}
