//! Forward and backward passes by themselves, against `forward_*.safetensors`.

use super::tensors::TensorFile;
use super::{ABSOLUTE, Check, GRADIENT};
use crate::model::PolicyRows;
use crate::model::{GradientSpan, ModelPair, PolicySpan, RewardSpan, Role, SeqId, Span, TopK};
use crate::{Error, Result};
use std::path::Path;

/// The floor with which the fixtures' `entropy_floor_1e-9` was computed.
pub(super) const FLOOR: f64 = 1e-9;

/// One fixture of passes over `ids`.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Name of the file, without its extension.
    pub name: String,
    /// The tokens.
    pub ids: Vec<u32>,
    /// `[T, d]`, after the final norm.
    pub(super) hidden: Vec<f32>,
    /// Positions whose logits are recorded.
    pub(super) logit_positions: Vec<usize>,
    /// `[logit_positions, V]`.
    pub(super) logits: Vec<f32>,
    pub(super) entropy: Vec<f64>,
    pub(super) entropy_floored: Vec<f64>,
    pub(super) reward_by_position: Vec<f64>,
    /// `[T, d_R]`: the last position's reward by every embedding.
    pub(super) gradient: Vec<f32>,
}

impl Forward {
    /// Reads a fixture.
    ///
    /// # Errors
    /// The file cannot be read, lacks a tensor or contradicts itself.
    pub fn read(path: &Path) -> Result<Self> {
        let file = TensorFile::read(path)?;
        let tensors = file.tensors()?;
        let ids = tensors.ids("ids")?;
        let logit_positions = if tensors.contains("logit_positions") {
            tensors.ids("logit_positions")?.into_iter().map(|p| p as usize).collect()
        } else {
            (0..ids.len()).collect()
        };
        let forward = Forward {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            hidden: tensors.f32("policy_hidden")?,
            logits: tensors.f32("policy_logits")?,
            entropy: tensors.f64("entropy")?,
            entropy_floored: tensors.f64("entropy_floor_1e-9")?,
            reward_by_position: tensors.f64("reward_by_position")?,
            gradient: tensors.f32("reward_grad_last")?,
            logit_positions,
            ids,
        };
        let (t, rows) = (forward.ids.len(), forward.logit_positions.len());
        let consistent = t > 0
            && forward.entropy.len() == t
            && forward.entropy_floored.len() == t
            && forward.reward_by_position.len() == t
            && forward.hidden.len().is_multiple_of(t)
            && forward.gradient.len().is_multiple_of(t)
            && tensors.shape("policy_logits")?.first() == Some(&rows)
            && forward.logit_positions.iter().all(|&p| p < t);
        if consistent { Ok(forward) } else { Err(Error::file(path, "the tensors' lengths do not fit each other")) }
    }

    /// Length of a row of logits.
    pub(super) fn vocabulary(&self) -> usize {
        self.logits.len() / self.logit_positions.len().max(1)
    }
}

/// Replays a fixture. The policy goes token by token; `rows`, if the backend can give them, are its hidden states and logits
/// from one pass over all ids. The reward model goes in one span, and for the gradient also in two.
///
/// # Errors
/// The backend's own.
pub fn forward(backend: &mut ModelPair, golden: &Forward, rows: Option<&PolicyRows>) -> Result<Check> {
    let mut check = Check::new(&golden.name);
    check.extent = format!("{} ids, {} rows of logits", golden.ids.len(), golden.logit_positions.len());
    if let Some(rows) = rows {
        whole(&mut check, golden, rows);
    }
    with_sequence(backend, Role::Policy, |backend, seq| steps(backend, seq, golden, &mut check))?;
    with_sequence(backend, Role::Reward, |backend, seq| rewards(backend, seq, golden, &mut check))?;
    for cut in [0, golden.ids.len() / 2] {
        with_sequence(backend, Role::Reward, |backend, seq| gradients(backend, seq, golden, cut, &mut check))?;
    }
    Ok(check)
}

/// Runs `work` on a new sequence and releases it whatever happens.
fn with_sequence(
    backend: &mut ModelPair,
    role: Role,
    work: impl FnOnce(&mut ModelPair, SeqId) -> Result<()>,
) -> Result<()> {
    let seq = backend.create(role)?;
    let result = work(backend, seq);
    backend.release(seq);
    result
}

fn whole(check: &mut Check, golden: &Forward, rows: &PolicyRows) {
    compare(check, "hidden state", "hidden states", &golden.hidden, &rows.hidden);
    let vocabulary = rows.logits.len() / golden.ids.len();
    let expected = golden.logits.chunks_exact(vocabulary.max(1));
    for (&position, expected) in golden.logit_positions.iter().zip(expected) {
        let found = &rows.logits[position * vocabulary..(position + 1) * vocabulary];
        compare(check, "logit", &format!("logits at position {position}"), expected, found);
    }
}

fn steps(backend: &mut ModelPair, seq: SeqId, golden: &Forward, check: &mut Check) -> Result<()> {
    let width = golden.vocabulary();
    for (position, id) in golden.ids.iter().enumerate() {
        let span = Span { seq, start: position, ids: std::slice::from_ref(id) };
        let step = PolicySpan { span, floor: FLOOR, top_k: TopK::Skip, before: &[] };
        let row = backend.policy_step(&[step])?.pop().ok_or_else(nothing)?;
        let at = |what: &str| format!("{what} at position {position}");
        let expected = golden.entropy[position];
        check.near("entropy", || at("exact entropy"), expected, row.stats.entropy, ABSOLUTE);
        let expected = golden.entropy_floored[position];
        check.near("entropy", || at("entropy"), expected, row.stats.entropy_floored, ABSOLUTE);
        if let Some(index) = golden.logit_positions.iter().position(|&p| p == position) {
            let expected = &golden.logits[index * width..(index + 1) * width];
            let found = backend.logits_row(seq)?;
            compare(check, "logit", &at("stepped logits"), expected, &found);
        }
    }
    Ok(())
}

fn rewards(backend: &mut ModelPair, seq: SeqId, golden: &Forward, check: &mut Check) -> Result<()> {
    let earlier: Vec<usize> = (0..golden.ids.len() - 1).collect();
    let span = RewardSpan { span: Span { seq, start: 0, ids: &golden.ids }, also_at: &earlier };
    let score = backend.reward_score(&[span])?.pop().ok_or_else(nothing)?;
    let found = score.also.iter().chain([&score.reward]);
    check.same(|| "number of rewards".into(), &earlier.len(), &score.also.len());
    for (position, (&expected, &found)) in golden.reward_by_position.iter().zip(found).enumerate() {
        let what = || format!("reward at position {position}");
        check.near("reward", what, expected, found.into(), ABSOLUTE);
    }
    Ok(())
}

/// The gradient of positions `cut ..` behind a cached prefix of `cut` ids: the same as the whole sequence's.
fn gradients(backend: &mut ModelPair, seq: SeqId, golden: &Forward, cut: usize, check: &mut Check) -> Result<()> {
    if cut > 0 {
        let span = Span { seq, start: 0, ids: &golden.ids[..cut] };
        backend.reward_score(&[RewardSpan { span, also_at: &[] }])?;
    }
    let span = Span { seq, start: cut, ids: &golden.ids[cut..] };
    let span = RewardSpan { span, also_at: &[] };
    let wanted = GradientSpan { span, slot: cut, candidates: &[], rows: true };
    let gradient = backend.reward_gradient(&[wanted])?.pop().ok_or_else(nothing)?;
    let expected = golden.reward_by_position.last().copied().unwrap_or(f64::NAN);
    let found = f64::from(gradient.score.reward);
    check.near("reward", || "reward with gradient".into(), expected, found, ABSOLUTE);
    let width = golden.gradient.len() / golden.ids.len();
    let expected = &golden.gradient[cut * width..];
    check.same(|| "length of the gradient".into(), &expected.len(), &gradient.rows.len());
    let rows = expected.chunks_exact(width.max(1)).zip(gradient.rows.chunks_exact(width.max(1)));
    for (row, (expected, found)) in rows.enumerate() {
        let position = cut + row;
        let difference = norm(expected.iter().zip(found).map(|(&e, &f)| f64::from(e) - f64::from(f)));
        let size = norm(expected.iter().map(|&e| e.into()));
        let relative = if difference == 0.0 { 0.0 } else { difference / size };
        if !check.note("gradient", relative, Some(GRADIENT)) {
            check.differs(|| {
                format!(
                    "gradient at position {position} behind {cut} cached ids: off by {relative:.2e} of its norm {size:.3e}"
                )
            });
        }
        if row == 0 {
            // Relative like the rows; behind a sliding window the slot may have no influence at all.
            let found = f64::from(gradient.norm);
            let deviation = if found == size { 0.0 } else { (found - size).abs() / size };
            if !check.note("gradient norm", deviation, Some(GRADIENT)) {
                check.differs(|| {
                    format!("norm of the gradient at position {position}: {size:.9} expected, {found:.9} found")
                });
            }
        }
    }
    Ok(())
}

fn compare(check: &mut Check, quantity: &'static str, what: &str, expected: &[f32], found: &[f32]) {
    check.same(|| format!("number of {what}"), &expected.len(), &found.len());
    for (index, (&expected, &found)) in expected.iter().zip(found).enumerate() {
        let what = || format!("{what}, entry {index}");
        check.near(quantity, what, expected.into(), found.into(), ABSOLUTE);
    }
}

pub(super) fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

pub(super) fn nothing() -> Error {
    Error::Backend("the backend returned no result for a span".to_string())
}
