//! Are the kernels right, and how fast are they? One table of cases for whatever device is there.
//!
//! A case runs one op on one shape and one distribution and compares with an evaluation in f64. What error is allowed is
//! not guessed: it is twice the error of an independent simulation which rounds where the kernel is documented to round;
//! statistics of rows are held to 1e-5, absolute or relative. Around every buffer lie guard words, inputs are surrounded
//! by NaN, outputs start as NaN, every launch is repeated, and rows are run alone, in other batches and in other slots:
//! the bits must be the same.
//!
//! An op's file has its cases, its evaluation in f64 (the oracle), the simulation, and its timings; `OPS` names it.

mod adder;
mod attention;
mod attention_backward;
mod attention_sm90;
mod candidate_scores;
mod case;
mod copy_rows;
mod embed;
mod errors;
mod gemm;
mod gemm_backward;
mod gemm_backward_sm90;
mod gemm_sm90;
mod guarded;
mod kv_copy;
mod logits;
mod numbers;
mod occupancy;
mod pad_convert;
mod paged;
mod random_fill;
mod rmsnorm;
mod rope;
mod rows;
pub mod self_check;
mod softmax_entropy;
mod swiglu;
mod timing;
pub mod vectors;
pub mod wgmma;

pub use case::{Case, Finding};
pub use occupancy::{Listed, Occupancy, list, occupancy};
pub use timing::{Timing, limits};

use crate::Result;
use crate::cuda::Device;
use timing::Timed;

/// The cases and the timings of an op's file.
struct Op {
    cases: fn() -> Vec<Case>,
    timings: fn() -> Vec<Timed>,
}

macro_rules! ops {
    ($($op:ident),* $(,)?) => { [$(Op { cases: $op::cases, timings: $op::timings }),*] };
}

const OPS: [Op; 18] = ops![
    rmsnorm,
    softmax_entropy,
    gemm,
    attention,
    attention_sm90,
    attention_backward,
    gemm_backward,
    gemm_sm90,
    gemm_backward_sm90,
    copy_rows,
    random_fill,
    embed,
    kv_copy,
    logits,
    candidate_scores,
    rope,
    swiglu,
    pad_convert,
];

/// Every case of every op.
pub fn cases() -> Vec<Case> {
    OPS.iter().flat_map(|op| (op.cases)()).collect()
}

fn timings() -> impl Iterator<Item = Timed> {
    OPS.iter().flat_map(|op| (op.timings)())
}

/// Names of what is timed.
pub fn timed() -> Vec<&'static str> {
    let mut names: Vec<&str> = timings().map(|timed| timed.op).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Times the copy, the matrix peak and every op, or one op; `done` sees each timing as it comes.
///
/// `quick` runs everything once and on warm buffers: whether it runs at all, not how fast.
///
/// # Errors
/// The device fails.
pub fn bench(device: &Device, op: Option<&str>, quick: bool, done: impl FnMut(&Timing)) -> Result<Vec<Timing>> {
    let chosen = timings().filter(|timed| case::runs_on(timed.op, device) && op.is_none_or(|op| op == timed.op));
    timing::run(device, chosen.collect(), quick, done)
}

/// Runs the cases of an op, or of all, that are at most `work` large; `done` sees each finding as it comes.
pub fn test(device: &Device, op: Option<&str>, work: Option<u64>, mut done: impl FnMut(&Finding)) -> Vec<Finding> {
    let chosen = |case: &Case| {
        case.runs_on(device) && op.is_none_or(|op| case.op == op) && work.is_none_or(|work| case.work <= work)
    };
    let chosen = cases().into_iter().filter(chosen);
    let findings = chosen.map(|case| {
        let finding = case.run(device);
        done(&finding);
        finding
    });
    findings.collect()
}
