//! Cases of `candidate_scores`: products and norms against f64.

use super::case::{Case, Check};
use super::errors::Errors;
use super::guarded::Guarded;
use super::numbers::{Random, Values, stored, widened};
use super::rows::{Rows, batches, first_of};
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::candidate_scores::{Inputs, ScoreQuery, candidate_scores};
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use std::ops::Range;

const OP: &str = "candidate_scores";
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
                cases.push(Case::seeded(OP, name, 400 * d, move |seed, device, check| {
                    Problem::new(seed, storage, d, values).check(device, check)
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
    queries: Vec<ScoreQuery>,
    /// How many of the queries, the first ones, have an answer.
    answered: usize,
}

impl Problem {
    fn new(seed: &str, storage: HalfType, d: usize, values: Values) -> Self {
        let mut random = Random::named(seed);
        let table = stored(storage, &random.vector(VOCABULARY * d, values));
        let mut grads = random.vector(ROWS * d, Values::Normal(0.3));
        grads[BAD_ROW as usize * d + d / 2] = f32::NAN;
        let mut problem = Problem { storage, d, grads, table, ids: Vec::new(), queries: Vec::new(), answered: 0 };
        for (count, row) in [(1, 0), (2, 4), (25, 1), (31, 0), (64, 2), (33, 4)] {
            // Twice the same token.
            let mut ids: Vec<u32> = (0..count).map(|_| random.below(VOCABULARY) as u32).collect();
            ids[count - 1] = ids[random.below(count)];
            problem.ask(row, &ids);
        }
        problem.answered = problem.queries.len();
        problem.ask(0, &[4, VOCABULARY as u32, 5]);
        problem.ask(BAD_ROW, &[4, 5]);
        problem.ask(ROWS as u32, &[4, 5]);
        problem.ask(0, &[7; 65]);
        problem.ask(0, &[]);
        let end = problem.ids.len() as u32;
        problem.queries.extend([(end - 1, 2), (end + 1, 1), (u32::MAX, 2)].map(|(first, count)| ScoreQuery {
            row: 0,
            first,
            count,
        }));
        problem
    }

    /// As many queries as there are rows anywhere, of three candidates each.
    fn many(storage: HalfType) -> Self {
        let mut random = Random::named("together");
        let d = 64;
        let table = stored(storage, &random.vector(VOCABULARY * d, Values::Normal(0.02)));
        let grads = random.vector(ROWS * d, Values::Normal(0.3));
        let mut problem = Problem { storage, d, grads, table, ids: Vec::new(), queries: Vec::new(), answered: 0 };
        for index in 0..257u32 {
            problem.ask(index % ROWS as u32, &[0; 3].map(|_| random.below(VOCABULARY) as u32));
        }
        problem
    }

    /// Every query has three candidates.
    fn alone_and_together(&self, device: &Device, check: &mut Check) -> Result<()> {
        let run = |check: &mut Check, queries: Range<usize>| {
            let (norms, mut products) = self.run(device, check, &self.queries[queries.clone()])?;
            products.truncate(3 * queries.end);
            let products = Rows { name: "products", width: 3, values: products };
            Ok((Rows { name: "norms", width: 1, values: norms }, products))
        };
        let all = run(check, 0..self.queries.len())?;
        batches(check, &all, first_of(self.queries.len()), run)
    }

    fn ask(&mut self, row: u32, ids: &[u32]) {
        self.queries.push(ScoreQuery { row, first: self.ids.len() as u32, count: ids.len() as u32 });
        self.ids.extend(ids);
    }

    /// Norms and products.
    fn run(&self, device: &Device, check: &mut Check, queries: &[ScoreQuery]) -> Result<(Vec<f32>, Vec<f32>)> {
        let grads = Guarded::input(device, &self.grads)?;
        let table = Guarded::input(device, &self.table)?;
        let ids = Guarded::input(device, &self.ids)?;
        let device_queries = Guarded::input(device, queries)?;
        let inputs = Inputs {
            grads: grads.view(),
            table: table.view(),
            ids: ids.view(),
            queries: device_queries.view(),
            d: self.d,
            scale: SCALE,
        };
        let mut norms = Guarded::output(device, queries.len(), 0)?;
        let mut products = Guarded::output(device, self.ids.len(), 0)?;
        candidate_scores(device, self.storage, &mut norms.view_mut(), &mut products.view_mut(), &inputs)?;
        Ok((norms.read(device, check, "norms")?, products.read(device, check, "products")?))
    }

    fn check(&self, device: &Device, check: &mut Check) -> Result<()> {
        let (norms, products) = self.run(device, check, &self.queries)?;
        let again = self.run(device, check, &self.queries)?;
        check.same("norms, run again", &again.0, &norms);
        check.same("products, run again", &again.1, &products);
        let (mut of_products, mut of_norms) = (Errors::default(), Errors::default());
        for (at, (query, &norm)) in self.queries.iter().zip(&norms).enumerate() {
            let range = query.first as usize..query.first as usize + query.count as usize;
            if at >= self.answered {
                self.check_refused(check, at, norm, products.get(range));
                continue;
            }
            let (ids, products) = (&self.ids[range.clone()], &products[range.clone()]);
            let grad = &self.grads[query.row as usize * self.d..][..self.d];
            for (&id, &product) in ids.iter().zip(products) {
                let row = widened(self.storage, &self.table[id as usize * self.d..][..self.d]);
                Self::compare(&mut of_products, product, &row, grad, |x| x);
            }
            Self::compare(&mut of_norms, norm, grad, grad, f64::sqrt);
            let (alone, found) = self.run(device, check, &[*query])?;
            check.same(&format!("norm of query {at} alone"), &alone, &[norm]);
            check.same(&format!("products of query {at} alone"), &found[range], products);
        }
        of_products.check(check, "products", 3.0, f64::from(f32::EPSILON));
        of_norms.check(check, "norms", 3.0, f64::from(f32::EPSILON));
        Ok(())
    }

    /// A query without an answer, or with one that is no number.
    fn check_refused(&self, check: &mut Check, at: usize, norm: f32, products: Option<&[f32]>) {
        // The first one has an answer for all candidates but the middle one.
        let partly = at == self.answered;
        if norm.is_nan() == partly {
            check.fail(format!("query {at}: the norm is {norm}"));
        }
        let products = products.unwrap_or(&[]);
        if let Some(number) = products.iter().enumerate().position(|(i, x)| x.is_nan() == (partly && i != 1)) {
            check.fail(format!("query {at}: the product of candidate {number} is {}", products[number]));
        }
    }

    /// `finish(a . b)`, scaled.
    fn compare(errors: &mut Errors, found: f32, a: &[f32], b: &[f32], finish: fn(f64) -> f64) {
        let products = || a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
        let simulated = a.iter().zip(b).fold(0.0f32, |sum, (a, b)| sum + a * b);
        let scale = f64::from(SCALE);
        let (exact, terms) = (finish(products().sum()), finish(products().map(f64::abs).sum()));
        errors.add(found, (finish(f64::from(simulated)) * scale) as f32, exact * scale, terms * scale);
    }
}

pub fn timings() -> Vec<Timed> {
    Timed::each(OP, [1, 8, 64], |slots| format!("bf16 {slots} slots, 25 of 4096"), time)
}

fn time(device: &Bench<'_>, slots: usize) -> Result<Measured> {
    /// Candidates of a slot, of `D` elements.
    const K: usize = 25;
    const D: usize = 4096;
    let mut random = Random::named("bench");
    let drawn = stored(HalfType::Bf16, &random.vector(512 * D, Values::Normal(0.02)));
    // Rows all over a table that no cache holds.
    let vocabulary = 32_768;
    let table: Vec<u16> = drawn.iter().copied().cycle().take(vocabulary * D).collect();
    let table = Buffer::from_slice(device, &table)?;
    let grads = Buffer::from_slice(device, &random.vector(slots * D, Values::Normal(0.3)))?;
    let ids: Vec<u32> = (0..slots * K).map(|_| random.below(vocabulary) as u32).collect();
    let query = |slot: usize| ScoreQuery { row: slot as u32, first: (slot * K) as u32, count: K as u32 };
    let ids = Buffer::from_slice(device, &ids)?;
    let queries = Buffer::from_slice(device, &(0..slots).map(query).collect::<Vec<_>>())?;
    let mut norms = Buffer::<f32>::uninitialised(device, slots)?;
    let mut products = Buffer::<f32>::uninitialised(device, slots * K)?;
    let seconds = device.median(&mut [()], |_| {
        let (grads, table, ids, queries) = (grads.view(), table.view(), ids.view(), queries.view());
        let inputs = Inputs { grads, table, ids, queries, d: D, scale: 1.0 };
        candidate_scores(device, HalfType::Bf16, &mut norms.view_mut(), &mut products.view_mut(), &inputs)
    })?;
    Ok(Measured::bytes(seconds, slots * (K * (2 * D + 8) + 4 * D)))
}
