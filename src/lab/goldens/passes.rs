//! Forward and backward passes of a device against `forward_*.safetensors`, next to the rounding simulation's.

use super::Check;
use super::errors::{BACKWARD, Errors, FORWARD};
use super::forward::{FLOOR, Forward, norm, nothing};
use crate::Result;
use crate::lab::goldens::sequences::Sequences;
use crate::model::PolicyRows;
use crate::model::{GradientSpan, ModelPair, PolicySpan, RewardSpan, Role, Span, TopK};

/// Sequences that go on together.
const WIDTH: usize = 128;

/// How far a backend is from golden passes, per quantity:
///
/// * `hidden state`: of every position, the norm of the difference over the norm;
/// * `logit`: of every recorded row, the root mean square of the differences, from a pass over the whole text and from single
///   tokens behind it;
/// * `entropy`, `reward`: of every position;
/// * `gradient`: of the whole text and of its second half behind a cached first one, the norm of the difference over the norm;
/// * `gradient row`: the same of every position;
/// * `gradient direction`: the angle between found and expected gradient.
///
/// A zero where zero is expected is no error, anything else there an infinite one.
#[derive(Clone, Debug)]
pub struct Passes {
    errors: Vec<(&'static str, f64, Vec<f64>)>,
}

impl Passes {
    /// Asks a backend. `rows` are its hidden states and logits of one pass over the ids of each fixture, if it has them.
    /// Without `gradients` nothing needs a backward pass.
    ///
    /// # Errors
    /// The backend's own.
    pub fn of(
        backend: &mut ModelPair,
        goldens: &[Forward],
        rows: Option<&[PolicyRows]>,
        gradients: bool,
    ) -> Result<Passes> {
        let mut passes = Passes { errors: Vec::new() };
        for (index, golden) in goldens.iter().enumerate() {
            if let Some(rows) = rows.and_then(|rows| rows.get(index)) {
                passes.whole(golden, rows);
            }
            passes.steps(&mut Sequences::new(backend), golden)?;
            passes.rewards(&mut Sequences::new(backend), golden)?;
            if gradients {
                for cut in [0, golden.ids.len() / 2] {
                    passes.gradients(&mut Sequences::new(backend), golden, cut)?;
                }
            }
        }
        Ok(passes)
    }

    /// Whether gradients were asked for.
    pub fn has_gradients(&self) -> bool {
        self.errors.iter().any(|quantity| quantity.0 == "gradient")
    }

    /// Holds a device to twice (gradients: three times) the errors of a simulation of the same fixtures.
    pub fn compare(name: &str, simulated: &Passes, device: &Passes) -> Check {
        let mut check = Check::new(name);
        let values: usize = device.errors.iter().map(|quantity| quantity.2.len()).sum();
        check.extent = format!("{values} errors of {} quantities", device.errors.len());
        for (quantity, factor, expected) in &simulated.errors {
            let found = device.errors.iter().find(|found| found.0 == *quantity);
            let found = found.filter(|found| found.2.len() == expected.len());
            let Some((_, _, found)) = found else {
                check.differs(|| format!("{quantity}: {} values expected, another number found", expected.len()));
                continue;
            };
            let [found, expected] = [found, expected].map(|errors| Errors::of(errors.iter().copied()));
            check.within(quantity, found, expected, *factor);
        }
        check
    }

    fn note(&mut self, quantity: &'static str, factor: f64, error: f64) {
        match self.errors.iter_mut().find(|entry| entry.0 == quantity) {
            Some((_, _, errors)) => errors.push(error),
            None => self.errors.push((quantity, factor, vec![error])),
        }
    }

    fn whole(&mut self, golden: &Forward, rows: &PolicyRows) {
        let d = golden.hidden.len() / golden.ids.len();
        let vocabulary = golden.vocabulary();
        for (position, expected) in golden.hidden.chunks_exact(d.max(1)).enumerate() {
            let error =
                rows.hidden.get(position * d..(position + 1) * d).map_or(f64::NAN, |found| relative(found, expected));
            self.note("hidden state", FORWARD, error);
        }
        for (&position, expected) in golden.logit_positions.iter().zip(golden.logits.chunks_exact(vocabulary.max(1))) {
            let found = rows.logits.get(position * vocabulary..(position + 1) * vocabulary);
            self.note("logit", FORWARD, found.map_or(f64::NAN, |found| mean(found, expected)));
        }
    }

    /// Every position as a single token behind a fork of the whole text.
    fn steps(&mut self, held: &mut Sequences<'_>, golden: &Forward) -> Result<()> {
        let trunk = held.create(Role::Policy)?;
        let span = Span { seq: trunk, start: 0, ids: &golden.ids };
        held.backend.policy_step(&[PolicySpan { span, floor: 0.0, top_k: TopK::Skip, before: &[] }])?;
        let vocabulary = golden.vocabulary();
        for from in (0..golden.ids.len()).step_by(WIDTH) {
            let to = golden.ids.len().min(from + WIDTH);
            let mut forks = Vec::new();
            for position in from..to {
                forks.push(held.fork(trunk, position)?);
            }
            let spans: Vec<PolicySpan<'_>> = (from..to)
                .zip(&forks)
                .map(|(start, &seq)| PolicySpan {
                    span: Span { seq, start, ids: &golden.ids[start..=start] },
                    floor: FLOOR,
                    top_k: TopK::Skip,
                    before: &[],
                })
                .collect();
            let rows = held.backend.policy_step(&spans)?;
            for position in from..to {
                let stats = &rows.get(position - from).ok_or_else(nothing)?.stats;
                self.note("entropy", FORWARD, stats.entropy - golden.entropy[position]);
                self.note("entropy", FORWARD, stats.entropy_floored - golden.entropy_floored[position]);
            }
            for (index, position) in golden.logit_positions.iter().enumerate().filter(|(_, p)| (from..to).contains(*p))
            {
                let found = held.backend.logits_row(forks[position - from])?;
                self.note("logit", FORWARD, mean(&found, &golden.logits[index * vocabulary..(index + 1) * vocabulary]));
            }
            forks.into_iter().for_each(|seq| held.release(seq));
        }
        Ok(())
    }

    fn rewards(&mut self, held: &mut Sequences<'_>, golden: &Forward) -> Result<()> {
        let seq = held.create(Role::Reward)?;
        let earlier: Vec<usize> = (0..golden.ids.len() - 1).collect();
        let span = RewardSpan { span: Span { seq, start: 0, ids: &golden.ids }, also_at: &earlier };
        let score = held.backend.reward_score(&[span])?.pop().ok_or_else(nothing)?;
        let found: Vec<f64> = score.also.iter().chain([&score.reward]).map(|&reward| reward.into()).collect();
        for (position, expected) in golden.reward_by_position.iter().enumerate() {
            self.note("reward", FORWARD, found.get(position).map_or(f64::NAN, |found| found - expected));
        }
        Ok(())
    }

    /// The gradient of positions `cut ..` behind a cached prefix of `cut` ids.
    fn gradients(&mut self, held: &mut Sequences<'_>, golden: &Forward, cut: usize) -> Result<()> {
        let seq = held.create(Role::Reward)?;
        if cut > 0 {
            let span = Span { seq, start: 0, ids: &golden.ids[..cut] };
            held.backend.reward_score(&[RewardSpan { span, also_at: &[] }])?;
        }
        let span = RewardSpan { span: Span { seq, start: cut, ids: &golden.ids[cut..] }, also_at: &[] };
        let wanted = GradientSpan { span, slot: cut, candidates: &[], rows: true };
        let found = held.backend.reward_gradient(&[wanted])?.pop().ok_or_else(nothing)?;
        let last = golden.reward_by_position.last().copied().unwrap_or(f64::NAN);
        self.note("reward", FORWARD, f64::from(found.score.reward) - last);
        let width = golden.gradient.len() / golden.ids.len();
        let expected = &golden.gradient[cut * width..];
        if found.rows.len() != expected.len() {
            self.note("gradient", BACKWARD, f64::NAN);
            return Ok(());
        }
        self.note("gradient", BACKWARD, relative(&found.rows, expected));
        self.note("gradient direction", BACKWARD, angle(&found.rows, expected));
        for (found, expected) in found.rows.chunks_exact(width.max(1)).zip(expected.chunks_exact(width.max(1))) {
            self.note("gradient row", BACKWARD, relative(found, expected));
        }
        Ok(())
    }
}

/// Norm of the difference over the norm expected.
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let difference = norm(found.iter().zip(expected).map(|(&f, &e)| f64::from(f) - f64::from(e)));
    if difference == 0.0 { 0.0 } else { difference / norm(expected.iter().map(|&e| e.into())) }
}

/// Root mean square of the differences.
fn mean(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let difference = norm(found.iter().zip(expected).map(|(&f, &e)| f64::from(f) - f64::from(e)));
    difference / f64::max(expected.len() as f64, 1.0).sqrt()
}

/// Angle between two vectors, in radians while it is small: the distance of the unit vectors, which unlike the cosine keeps
/// its digits.
fn angle(found: &[f32], expected: &[f32]) -> f64 {
    let [length, expected_length] = [found, expected].map(|v| norm(v.iter().map(|&x| x.into())));
    if length == 0.0 && expected_length == 0.0 {
        return 0.0;
    }
    norm(found.iter().zip(expected).map(|(&f, &e)| f64::from(f) / length - f64::from(e) / expected_length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_changes_the_length_and_a_turn_the_direction() {
        let expected = [3.0f32, 4.0];
        assert!((relative(&[3.06, 4.08], &expected) - 0.02).abs() < 1e-6);
        assert!(angle(&[3.06, 4.08], &expected) < 1e-6);
        assert!((angle(&[-4.0, 3.0], &expected) - 2f64.sqrt()).abs() < 1e-12);
        assert_eq!((relative(&[0.0], &[0.0]), angle(&[0.0], &[0.0])), (0.0, 0.0));
        assert!(relative(&[1e-30], &[0.0]).is_infinite());
        assert!(angle(&[1e-30], &[0.0]).is_nan());
        assert!((mean(&[1.0, 1.0], &[0.0, 2.0]) - 1.0).abs() < 1e-12);
    }
}
