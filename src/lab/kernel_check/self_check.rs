//! What the engine's self-check compares with: its problems in f64, and how far off a sound device may be.
//!
//! The bounds are not those of the cases here, which a kernel has to meet on the worst inputs. They have room for any order of
//! sums and for what a tensor core cuts off, and are far below what a broken kernel is off by.

use super::errors::{SMALLEST, half_unit};
use super::{attention, attention_backward, rmsnorm, rope, swiglu};
use crate::cuda::ops::rope::Heads;
use crate::cuda::self_check::attention::{Context, HEADS, QUERIES};
use crate::cuda::self_check::names;
use crate::cuda::self_check::products::ProductCase;
use crate::cuda::self_check::rows::{Between, EPS, Gate, NormCase, ROWS, Turn};
use crate::cuda::self_check::tables::{Block, CandidatesCase, CopiedRows, DRAW, DRAWN, Embedding, LogitsCase, Padded};
use crate::dtype::HalfType;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::path::Path;

/// Of f32 arithmetic, relative to the magnitudes that a sum is made of.
const SINGLE: f64 = 1e-5;
/// The same where a tensor core adds up some thousand terms in steps of 16, each of which may cut off two units of 24 bits.
const PRODUCT: f64 = 2e-5;

/// One output of the self-check.
#[derive(Clone, Debug, PartialEq)]
struct ExpectedValues {
    expected: String,
    output: &'static str,
    values: Vec<f64>,
    /// As many for each storage type, or once if there is none.
    bounds: Vec<f32>,
}

/// A value, and the magnitudes that it was added up from.
type Sum = (f64, f64);

/// How far off an output may be.
#[derive(Clone, Copy)]
enum Slack {
    /// Every element is what it is.
    Exact,
    /// Relative to the sum's magnitudes, without a storage type.
    Alone(f64),
    /// The same in both storage types.
    Single(f64),
    /// And then rounded to the storage type.
    Rounded(f64),
    /// So many half units of the storage type, relative to the sum's magnitudes; then stored in f32.
    Units(f64),
    /// And then rounded once more.
    RoundedUnits(f64),
}

impl Slack {
    fn bound(self, storage: HalfType, (value, terms): Sum) -> f64 {
        let unit = half_unit(storage);
        let rounding = 1.05 * unit * (value.abs() + SMALLEST);
        match self {
            Slack::Exact => 0.0,
            Slack::Alone(slack) | Slack::Single(slack) => slack * terms,
            Slack::Rounded(slack) => rounding + slack * terms,
            Slack::Units(units) => units * unit * (terms + SMALLEST),
            Slack::RoundedUnits(units) => rounding + units * unit * (terms + SMALLEST),
        }
    }
}

/// All results.
struct Results(Vec<ExpectedValues>);

impl Results {
    fn add(&mut self, expected: &str, output: &'static str, slack: Slack, sums: impl IntoIterator<Item = Sum>) {
        let sums: Vec<Sum> = sums.into_iter().collect();
        let types = if matches!(slack, Slack::Alone(_)) { &HalfType::ALL[..1] } else { &HalfType::ALL[..] };
        let bounds = types.iter().flat_map(|&storage| sums.iter().map(move |&sum| slack.bound(storage, sum) as f32));
        let bounds = bounds.collect();
        let values = sums.iter().map(|sum| sum.0).collect();
        self.0.push(ExpectedValues { expected: expected.to_string(), output, values, bounds });
    }

    /// Elements that are moved or chosen.
    fn moved(&mut self, expected: &str, output: &'static str, values: impl IntoIterator<Item = f64>) {
        self.add(expected, output, Slack::Exact, values.into_iter().map(|value| (value, 0.0)));
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// A sum of products.
fn dot<'a>(a: impl IntoIterator<Item = &'a f32>, b: impl IntoIterator<Item = &'a f32>) -> Sum {
    let products = a.into_iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    products.fold((0.0, 0.0), |(sum, terms), x| (sum + x, terms + x.abs()))
}

fn results() -> Vec<ExpectedValues> {
    let mut all = Results(Vec::new());
    of_tables(&mut all);
    of_logits(&mut all);
    of_norms(&mut all);
    of_norms_between(&mut all);
    of_heads(&mut all);
    of_products(&mut all);
    for head in HEADS {
        of_attention(&mut all, head);
    }
    all.0
}

fn of_tables(all: &mut Results) {
    let Embedding { table, ids } = Embedding::new();
    let rows = ids.iter().flat_map(|&id| &table[id as usize * Embedding::WIDTH..][..Embedding::WIDTH]);
    all.moved("embed", "out", rows.map(|&x| f64::from(x)));

    let (problem, width) = (CopiedRows::new(), CopiedRows::WIDTH);
    let mut dst = vec![0.0; CopiedRows::ROWS * width];
    for [from, to] in problem.pairs.map(|pair| pair.map(|row| row as usize * width)) {
        dst[to..to + width].copy_from_slice(&problem.src[from..from + width]);
    }
    all.moved("copy_rows", "dst", wide(&dst));

    // Of keys and of values, the first positions.
    let block = Block::new().block;
    let plane = block.len() / 2;
    let kept = |at: &usize| at % plane < Block::POSITIONS * Block::LAYOUT.head;
    let copied = (0..block.len()).step_by(Block::STEP).map(|at| if kept(&at) { f64::from(block[at]) } else { 0.0 });
    all.moved("kv_copy", "block", copied);

    let padded = Padded::new();
    let mut out = vec![0.0; Padded::LEN];
    for (index, &x) in padded.stored.iter().enumerate() {
        out[padded.layout.place(index)] = f64::from(x);
    }
    all.add("pad_convert", "out", Slack::Rounded(0.0), out.into_iter().map(|x| (x, 0.0)));

    let drawn = (0..DRAWN).map(|index| f64::from(DRAW.0.element((DRAW.1 + index) as u64)));
    all.add("random_fill", "out", Slack::Rounded(0.0), drawn.map(|x| (x, 0.0)));

    let CandidatesCase { grads, table, ids, queries } = CandidatesCase::new();
    let (width, scale) = (CandidatesCase::WIDTH, f64::from(CandidatesCase::SCALE));
    let row = |values: &[f32], row: u32| values[row as usize * width..][..width].to_vec();
    let scaled = |(sum, terms): Sum| (sum * scale, terms * scale);
    let norms = queries.iter().map(|query| {
        let norm = dot(&row(&grads, query.row), &row(&grads, query.row)).0.sqrt();
        scaled((norm, norm))
    });
    all.add("candidate_scores", "norms", Slack::Single(SINGLE), norms);
    let products = queries.iter().flat_map(|query| {
        let listed = &ids[query.first as usize..][..query.count as usize];
        listed.iter().map(|&id| scaled(dot(&row(&table, id), &row(&grads, query.row)))).collect::<Vec<_>>()
    });
    all.add("candidate_scores", "products", Slack::Single(SINGLE), products);
}

/// Statistics of a row of logits, in the order of the self-check's outputs.
fn statistics(row: &[f32], floor: f64) -> [f64; 8] {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    let max = f64::from(row[order[0]]);
    let norm: f64 = row.iter().map(|&z| (f64::from(z) - max).exp()).sum();
    let log_sum_exp = max + norm.ln();
    let surprises = || row.iter().map(|&z| log_sum_exp - f64::from(z));
    let entropy: f64 = surprises().map(|s| (-s).exp() * s).sum();
    let floored = surprises().map(|s| if (-s).exp() < floor { -floor * floor.ln() } else { (-s).exp() * s }).sum();
    let variance = surprises().map(|s| (-s).exp() * (s - entropy) * (s - entropy)).sum();
    let margin = f64::from(row[order[0]] - row[order[1]]);
    [log_sum_exp, entropy, floored, 1.0 / norm, variance, margin, order[0] as f64, 1.0]
}

fn of_logits(all: &mut Results) {
    let near = |value: f64| (value, value.abs().max(1.0));
    let long = LogitsCase::long();
    let rows: Vec<&[f32]> = long.logits.chunks_exact(long.width).collect();
    let stats: Vec<[f64; 8]> = rows.iter().zip(LogitsCase::FLOORS).map(|(row, floor)| statistics(row, floor)).collect();
    let names =
        ["log_sum_exp", "entropy", "entropy_floored", "max_probability", "varentropy", "margin", "argmax", "finite"];
    for (at, name) in names.into_iter().enumerate() {
        all.add("softmax_entropy", name, Slack::Alone(SINGLE), stats.iter().map(|stats| near(stats[at])));
    }
    let largest: Vec<usize> = rows
        .iter()
        .flat_map(|row| {
            let mut order: Vec<usize> = (0..LogitsCase::BELOW).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            order.truncate(LogitsCase::LARGEST);
            order
        })
        .collect();
    let logit = |(at, &id): (usize, &usize)| f64::from(rows[at / LogitsCase::LARGEST][id]);
    all.moved("top_k", "ids", largest.iter().map(|&id| id as f64));
    all.moved("top_k", "logits", largest.iter().enumerate().map(logit));
    all.moved("top_k", "found", [LogitsCase::LARGEST as f64; 2]);

    let short = LogitsCase::short();
    let rows = short.logits.chunks_exact(short.width).zip(LogitsCase::FLOORS);
    let logs = rows.flat_map(|(row, floor)| {
        let log_sum_exp = statistics(row, floor)[0];
        row.iter().map(move |&z| near(f64::from(z) - log_sum_exp))
    });
    all.add("logits", "log_probabilities", Slack::Alone(SINGLE), logs);
    let chosen = LogitsCase::PAIRS.map(|[row, id]| short.logits[row as usize * short.width + id as usize]);
    all.moved("logits", "chosen", wide(&chosen));
}

fn of_norms(all: &mut Results) {
    let (norm, width) = (NormCase::new(), NormCase::WIDTH);
    let weight = wide(&norm.weight);
    // The residual stream is stored in f32 before it is normed.
    let residual: Vec<f32> = norm.residual.iter().zip(&norm.delta).map(|(x, d)| x + d).collect();
    let out = residual.chunks_exact(width).flat_map(|row| {
        let row = wide(row);
        let r = rmsnorm::inverse_norm(&row, NormCase::COLUMNS, EPS);
        row.iter().zip(&weight).map(|(x, w)| (x * r * w, (x * r * w).abs())).collect::<Vec<Sum>>()
    });
    all.add("rmsnorm", "out", Slack::Rounded(SINGLE), out);
    all.add("rmsnorm", "residual", Slack::Single(SINGLE), residual.iter().map(|&x| (f64::from(x), f64::from(x.abs()))));

    let rows = norm.residual.chunks_exact(width).zip(norm.dy.chunks_exact(width)).zip(norm.grad.chunks_exact(width));
    let grad: Vec<Sum> = rows
        .flat_map(|((x, dy), before)| {
            let through = rmsnorm::exact_backward(&wide(dy), &wide(x), &weight, NormCase::COLUMNS, EPS);
            let sum =
                |((value, terms), &before): (Sum, &f32)| (value + f64::from(before), terms + f64::from(before.abs()));
            through.into_iter().zip(before).map(sum).collect::<Vec<Sum>>()
        })
        .collect();
    all.add("rmsnorm_backward", "grad", Slack::Single(SINGLE), grad.iter().copied());
    all.add("rmsnorm_backward", "rounded", Slack::Rounded(SINGLE), grad);

    let (gate, width) = (Gate::new(), Gate::WIDTH);
    let pairs: Vec<(f64, f64)> = gate
        .gate_up
        .chunks_exact(2 * width)
        .flat_map(|row| (0..width).map(|at| (f64::from(row[at]), f64::from(row[width + at]))))
        .collect();
    let out = pairs.iter().map(|&(gate, up)| swiglu::exact(gate, up));
    all.add("swiglu", "out", Slack::Rounded(SINGLE), out.map(|y| (y, y.abs())));
    let gradients: Vec<[Sum; 2]> =
        pairs.iter().zip(&gate.d_act).map(|(&(g, u), &d)| swiglu::exact_backward(f64::from(d), g, u)).collect();
    let rows = gradients.chunks_exact(width);
    let d_gate_up = rows.flat_map(|row| row.iter().map(|both| both[0]).chain(row.iter().map(|both| both[1])));
    all.add("swiglu_backward", "d_gate_up", Slack::Rounded(SINGLE), d_gate_up.collect::<Vec<Sum>>());
}

fn of_norms_between(all: &mut Results) {
    let between = Between::new();
    let (weight, sums) = (wide(&between.weight), wide(&between.sums()));
    let (mut out, mut inverse): (Vec<Sum>, Vec<Sum>) = (Vec::new(), Vec::new());
    for x in sums.chunks_exact(Between::WIDTH) {
        let r = rmsnorm::inverse_norm(&x[..Between::COLUMNS], Between::COLUMNS, EPS);
        out.extend(x.iter().zip(&weight).map(|(x, w)| (x * r * w, (x * r * w).abs())));
        inverse.push((r, r));
    }
    all.add("norm_between", "out", Slack::Rounded(SINGLE), out);
    all.add("norm_between", "inverse", Slack::Single(SINGLE), inverse);
}

fn of_heads(all: &mut Results) {
    let turned = Turn::new();
    let Heads { heads, kv_heads, head, padded } = Turn::HEADS;
    let (mut q, mut kv, mut gradient): (Vec<Sum>, Vec<Sum>, Vec<Sum>) = (Vec::new(), Vec::new(), Vec::new());
    // Without norms.
    let (mut plain_q, mut plain_kv): (Vec<Sum>, Vec<Sum>) = (Vec::new(), Vec::new());
    for row in 0..ROWS {
        let angles = &turned.table[turned.positions[row] as usize * head / 2..][..head / 2];
        for index in 0..heads + 2 * kv_heads {
            let at = (row * (heads + 2 * kv_heads) + index) * padded;
            let x = wide(&turned.qkv[at..at + head]);
            let d = wide(&turned.gradient[at..at + head]);
            let same = |values: &[f64]| values.iter().map(|&x| (x, x.abs())).collect::<Vec<Sum>>();
            let (mut plain, mut forward, mut backward) = (same(&x), same(&x), same(&d));
            if index < heads + kv_heads {
                let weight = wide(&turned.norms[usize::from(index >= heads)][..head]);
                let r = rmsnorm::inverse_norm(&x, head, EPS);
                let normed: Vec<f64> = x.iter().zip(&weight).map(|(x, w)| x * r * w).collect();
                plain = rope::turn(&x, angles, 1.0);
                forward = rope::turn(&normed, angles, 1.0);
                let back = rope::turn(&d, angles, -1.0);
                let values: Vec<f64> = back.iter().map(|sum| sum.0).collect();
                let through = rmsnorm::exact_backward(&values, &x, &weight, head, EPS);
                // What the turn cancelled, scaled as the norm does.
                let scaled = back.iter().zip(&weight).map(|(sum, w)| sum.1 * r * w.abs());
                backward = through.into_iter().zip(scaled).map(|((x, terms), own)| (x, terms.max(own))).collect();
            }
            for sums in [&mut plain, &mut forward, &mut backward] {
                sums.resize(padded, (0.0, 0.0));
            }
            if index < heads { &mut plain_q } else { &mut plain_kv }.extend(plain);
            if index < heads { &mut q } else { &mut kv }.extend(forward);
            gradient.extend(backward);
        }
    }
    all.add("heads", "q", Slack::Rounded(SINGLE), plain_q);
    all.add("heads", "kv", Slack::Rounded(SINGLE), plain_kv);
    all.add("rope", "q", Slack::Rounded(SINGLE), q);
    all.add("rope", "kv", Slack::Rounded(SINGLE), kv);
    all.add("rope_backward", "d_qkv", Slack::Rounded(SINGLE), gradient);
}

fn of_products(all: &mut Results) {
    let (terms, outputs) = (ProductCase::TERMS, ProductCase::OUTPUTS);
    let forward = ProductCase::forward();
    let and = |(sum, terms): Sum, x: f32| (sum + f64::from(x), terms + f64::from(x.abs()));
    let y: Vec<Sum> = forward
        .x
        .chunks_exact(terms)
        .flat_map(|x| {
            let products = forward.w.chunks_exact(terms).zip(&forward.bias);
            products.map(|(w, &bias)| and(dot(x, w), bias)).collect::<Vec<Sum>>()
        })
        .collect();
    let few = &y[..5 * outputs];
    all.add("gemm_rounded", "y", Slack::Rounded(PRODUCT), few.iter().copied());
    let added = few.iter().zip(&forward.before).map(|(&sum, &before)| and(sum, before));
    all.add("gemm_added", "y", Slack::Single(PRODUCT), added);
    all.add("gemm", "y", Slack::Single(PRODUCT), y);

    let (backward, outputs) = (ProductCase::backward(), ProductCase::BACK);
    let column = |output: usize| backward.w.iter().skip(output).step_by(outputs);
    let rows = backward.x.chunks_exact(terms);
    let dx = rows.flat_map(|dy| (0..outputs).map(move |output| dot(dy, column(output))));
    all.add("gemm_backward", "dx", Slack::Single(PRODUCT), dx.collect::<Vec<Sum>>());
}

fn of_attention(all: &mut Results, size: usize) {
    let context = Context::new(size);
    let (heads, scale) = (context.shape.heads, context.shape.scale);
    let [keys, values] = [&context.keys, &context.values].map(|all| all.chunks_exact(size).collect::<Vec<_>>());
    let position = |row: usize| Context::LEN - 1 - row;
    let seen = |row: usize| {
        let lowest = context.shape.window.map_or(0, |window| (position(row) + 1).saturating_sub(window));
        lowest..position(row) + 1
    };
    let of = |rows: &[f32], row: usize, head: usize| rows[(row * heads + head) * size..][..size].to_vec();

    let (mut out, mut lse): (Vec<Sum>, Vec<Sum>) = (Vec::new(), Vec::new());
    for (row, head) in (0..QUERIES[2]).flat_map(|row| (0..heads).map(move |head| (row, head))) {
        let q = of(&context.queries, row, head);
        let exact = attention::exact(&q, &keys[seen(row)], &values[seen(row)], scale);
        out.extend(exact.out.iter().copied().zip(exact.terms));
        lse.push((exact.lse, exact.lse.abs().max(1.0)));
    }
    let expected = format!("attention_{size}");
    all.add(&expected, "out", Slack::RoundedUnits(3.0), out.into_iter().step_by(Context::STEP));
    all.add(&expected, "lse", Slack::Single(SINGLE), lse);

    for queries in QUERIES {
        let (mut dq, start) = (Vec::new(), Context::LEN - queries);
        let mut rows = Vec::new();
        for (row, head) in (0..queries).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let owned = |all: &[&[f32]]| all[seen(row)].iter().map(|row| row.to_vec()).collect::<Vec<_>>();
            let (q, d_out) = (of(&context.queries, row, head), of(&context.d_out, row, head));
            let pair = (owned(&keys), owned(&values));
            let exact = attention_backward::Exact::new(q, d_out, seen(row).start, pair, f64::from(scale));
            let (values, terms) = exact.dq(f64::from(scale));
            dq.extend(values.into_iter().zip(terms));
            rows.push(exact);
        }
        let (mut dk, mut dv): (Vec<Sum>, Vec<Sum>) = (Vec::new(), Vec::new());
        for (at, d) in (start..Context::LEN).flat_map(|at| (0..size).map(move |d| (at, d))) {
            let seers = || rows.iter().filter(move |one| (one.lowest..one.lowest + one.p.len()).contains(&at));
            let sum = |of: &dyn Fn(&attention_backward::Exact, usize) -> f64| {
                seers().map(|one| of(one, at - one.lowest)).sum::<f64>()
            };
            let scale = f64::from(scale);
            dk.push((
                sum(&|one, j| scale * one.ds[j] * f64::from(one.q[d])),
                sum(&|one, j| scale * one.weight[j] * f64::from(one.q[d].abs())),
            ));
            dv.push((
                sum(&|one, j| one.p[j] * f64::from(one.d_out[d])),
                sum(&|one, j| one.p[j] * f64::from(one.d_out[d].abs())),
            ));
        }
        let expected = Context::backward(size, queries);
        for (output, sums) in [("dq", dq), ("dk", dk), ("dv", dv)] {
            all.add(&expected, output, Slack::Units(4.0), sums.into_iter().step_by(Context::STEP_BACK));
        }
    }
}

/// The file that the engine embeds.
///
/// # Errors
/// It cannot be made.
pub fn file() -> Result<Vec<u8>> {
    let wrong = |e: safetensors::SafeTensorError| Error::Backend(e.to_string());
    let mut data = Vec::new();
    for ExpectedValues { expected, output, values, bounds } in results() {
        let [value, bound] = names(&expected, output);
        let types = bounds.len() / values.len().max(1);
        let bits = values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        data.push((value, Dtype::F64, vec![values.len()], bits));
        let bits = bounds.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        data.push((bound, Dtype::F32, vec![types, values.len()], bits));
    }
    let views = data.iter().map(|(name, dtype, shape, bits)| {
        TensorView::new(*dtype, shape.clone(), bits).map(|view| (name.as_str(), view)).map_err(wrong)
    });
    safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None).map_err(wrong)
}

/// Writes the file that the engine embeds.
///
/// # Errors
/// It cannot be made or written.
pub fn write(path: &Path) -> Result<usize> {
    let file = file()?;
    std::fs::write(path, &file).map_err(|e| Error::io(path, e))?;
    Ok(file.len())
}

/// Whether two such files say the same: values and bounds to the last digits that a library of functions may round otherwise.
///
/// # Errors
/// One of them is no such file, or says something else, and where.
pub fn agree(a: &[u8], b: &[u8]) -> Result<()> {
    let read = |bytes| SafeTensors::deserialize(bytes).map_err(|e| Error::Backend(e.to_string()));
    let (a, b): (SafeTensors<'_>, SafeTensors<'_>) = (read(a)?, read(b)?);
    let differ = |name: &str| Err(Error::Backend(format!("`{name}` is another one")));
    let [mut ours, mut theirs] = [a.names(), b.names()];
    ours.sort_unstable();
    theirs.sort_unstable();
    if ours != theirs {
        return differ("the list of outputs");
    }
    for name in ours {
        let [a, b] = [&a, &b].map(|file| file.tensor(name).map_err(|e| Error::Backend(e.to_string())));
        let (a, b) = (a?, b?);
        let numbers = |view: &TensorView<'_>| -> Vec<f64> {
            match view.dtype() {
                Dtype::F64 => view.data().chunks_exact(8).map(bytemuck::pod_read_unaligned).collect(),
                _ => view.data().chunks_exact(4).map(|x| f64::from(bytemuck::pod_read_unaligned::<f32>(x))).collect(),
            }
        };
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * a.abs() + 1e-12;
        let (ours, theirs) = (numbers(&a), numbers(&b));
        if a.shape() != b.shape() || a.dtype() != b.dtype() || !ours.iter().zip(&theirs).all(near) {
            return differ(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_has_what_the_laboratory_writes() {
        let embedded = crate::cuda::self_check::FILE;
        assert!(embedded.len() < 200_000, "{} bytes", embedded.len());
        let why = "`ggro kernels record-self-check src/cuda/self_check/expected.safetensors` writes it";
        agree(embedded, &file().unwrap()).unwrap_or_else(|error| panic!("{error}; {why}"));
    }

    #[test]
    fn bounds_are_far_below_what_they_bound() {
        let mean =
            |all: &mut dyn Iterator<Item = f64>, count: usize| (all.map(|x| x * x).sum::<f64>() / count as f64).sqrt();
        for ExpectedValues { expected, output, values, bounds } in results() {
            let size = mean(&mut values.iter().copied(), values.len());
            let of_types = bounds.chunks_exact(values.len());
            let all: Vec<f64> =
                of_types.map(|of| mean(&mut of.iter().copied().map(f64::from), of.len()) / size).collect();
            // The last type is f16, which has three bits more than bf16.
            assert!(all[0] < 0.8 && all[all.len() - 1] < 0.1, "{expected} {output}: {all:?} of it");
        }
    }
}
