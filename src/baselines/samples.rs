//! Whole answers that are sampled side by side, of which one is chosen at the end.

use super::range;
use super::strategy::{Answer, Strategy};
use super::text::{Growth, TextId};
use super::texts::Texts;
use crate::Result;
use crate::answer::SearchCounts;
use crate::sampling::MAX_COMPLETIONS;
use serde::{Deserialize, Serialize};

/// Soft best-of-N: one of `n` answers, drawn with probability `softmax(reward / lambda)`.
///
/// arXiv 2506.19248 describes it beside [`BestOfPoisson`], with a lambda that is to be tuned; the defaults are ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftBestOfN {
    /// Answers.
    pub n: usize,
    /// Temperature of the draw, in units of the reward. Towards 0 it becomes best-of-N, and with a large one plain sampling.
    pub lambda: f64,
}

impl Default for SoftBestOfN {
    /// 8 answers, lambda 1.
    fn default() -> SoftBestOfN {
        SoftBestOfN { n: 8, lambda: 1.0 }
    }
}

impl SoftBestOfN {
    pub(super) fn check(&self) -> Result<()> {
        range::count("n", self.n, MAX_COMPLETIONS)?;
        range::positive("lambda", self.lambda)
    }
}

/// Best-of-Poisson (arXiv 2506.19248): best-of-N with `N = 1 + Poisson(mu)`.
///
/// The 1 is the paper's: there is always an answer. N is drawn by inversion of one uniform number. It is at most
/// [`MAX_COMPLETIONS`]; a mean for which more would come with a probability above 1e-9 is refused. The default mean of 7 is ours:
/// 8 answers on average.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BestOfPoisson {
    /// Mean number of answers beyond the first one.
    pub mu: f64,
}

impl Default for BestOfPoisson {
    /// A mean of 7.
    fn default() -> BestOfPoisson {
        BestOfPoisson { mu: 7.0 }
    }
}

/// Probability of more than [`MAX_COMPLETIONS`] answers that is put up with.
const TAIL: f64 = 1e-9;

impl BestOfPoisson {
    pub(super) fn check(&self) -> Result<()> {
        let mu = self.mu;
        range::check("mu", mu, mu.is_finite() && mu >= 0.0, "finite and at least 0")?;
        // Terms behind the largest possible N, which fall once they are behind the mean.
        let beyond = || {
            let log_factorial: f64 = (1..=MAX_COMPLETIONS).map(|k| (k as f64).ln()).sum();
            let mut term = (MAX_COMPLETIONS as f64 * mu.ln() - mu - log_factorial).exp();
            let mut sum = 0.0;
            for k in MAX_COMPLETIONS..MAX_COMPLETIONS + 1000 {
                sum += term;
                term *= mu / (k + 1) as f64;
            }
            sum
        };
        let fits = mu < MAX_COMPLETIONS as f64 && (mu == 0.0 || beyond() <= TAIL);
        range::check("mu", mu, fits, &format!("so small that more than {MAX_COMPLETIONS} answers do not come"))
    }

    /// The number of answers that is exceeded with a probability of 1e-9.
    pub(super) fn most(&self) -> usize {
        self.answers(1.0 - TAIL)
    }

    /// The number of answers that a uniform number gives.
    fn answers(&self, u: f64) -> usize {
        let (mut more, mut term) = (0, (-self.mu).exp());
        let mut sum = term;
        while u >= sum && more + 1 < MAX_COMPLETIONS {
            more += 1;
            term *= self.mu / more as f64;
            sum += term;
        }
        1 + more
    }
}

/// How one answer is chosen.
enum ChoiceRule {
    /// By the largest reward of so many as the request's first number says.
    Best(BestOfPoisson),
    /// By the request's first number.
    Soft(SoftBestOfN),
}

/// The answers.
pub(super) struct Samples {
    choice: ChoiceRule,
    texts: Vec<TextId>,
}

impl Samples {
    pub fn soft(parameters: SoftBestOfN) -> Samples {
        Samples { choice: ChoiceRule::Soft(parameters), texts: Vec::new() }
    }

    pub fn poisson(parameters: BestOfPoisson) -> Samples {
        Samples { choice: ChoiceRule::Best(parameters), texts: Vec::new() }
    }
}

impl Strategy for Samples {
    fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>> {
        if self.texts.is_empty() {
            let n = match &self.choice {
                ChoiceRule::Best(poisson) => poisson.answers(texts.uniform(0)),
                ChoiceRule::Soft(soft) => soft.n,
            };
            self.texts = (0..n as u64).map(|stream| texts.extend(texts.prompt(), Growth::to_the_end(stream))).collect();
            self.texts.iter().for_each(|&text| texts.score(text));
            texts.keep(&self.texts);
            return Ok(None);
        }
        let best = match &self.choice {
            ChoiceRule::Best(_) => texts.best(&self.texts)?,
            ChoiceRule::Soft(soft) => {
                let rewards = self.texts.iter().map(|&text| texts.reward(text)).collect::<Result<Vec<f32>>>()?;
                drawn(&rewards, soft.lambda, texts.uniform(0))
            }
        };
        let n = self.texts.len() as u64;
        let counts = SearchCounts { proposals: n, rejected: n - 1, rounds: 1 };
        Ok(Some(Answer { all: std::mem::take(&mut self.texts), best, counts }))
    }
}

/// The place that a uniform number draws with probability `softmax(rewards / lambda)`: the first one whose cumulated weight
/// exceeds its share of the sum.
fn drawn(rewards: &[f32], lambda: f64, u: f64) -> usize {
    let most = rewards.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = rewards.iter().map(|&reward| ((f64::from(reward) - f64::from(most)) / lambda).exp());
    let mut sum = 0.0;
    let cumulated: Vec<f64> = weights
        .map(|weight| {
            sum += weight;
            sum
        })
        .collect();
    cumulated.iter().position(|&weight| weight > u * sum).unwrap_or(rewards.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_numbers_have_their_probabilities() {
        for mu in [0.0, 0.3, 7.0, 60.0] {
            let (steps, poisson) = (200_000, BestOfPoisson { mu });
            poisson.check().unwrap();
            let counts = (0..steps).map(|step| poisson.answers((f64::from(step) + 0.5) / f64::from(steps)));
            let counts: Vec<usize> = counts.collect();
            assert!(counts.is_sorted(), "larger numbers never give fewer answers");
            let of = |n: usize| counts.iter().filter(|&&count| count == n).count() as f64 / f64::from(steps);
            let mean = counts.iter().sum::<usize>() as f64 / f64::from(steps);
            assert!((mean - 1.0 - mu).abs() < 1e-2, "{mean} at {mu}");
            assert!((of(1) - (-mu).exp()).abs() < 1e-5 && of(0) == 0.0);
            assert!((of(2) - mu * (-mu).exp()).abs() < 1e-5);
        }
        assert_eq!(BestOfPoisson { mu: 60.0 }.answers(1.0f64.next_down()), MAX_COMPLETIONS);
    }

    #[test]
    fn a_mean_that_is_too_large_is_refused() {
        let last =
            (0..1280).map(|step| f64::from(step) / 10.0).rfind(|&mu| BestOfPoisson { mu }.check().is_ok()).unwrap();
        assert!((60.0..90.0).contains(&last), "{last}");
        for mu in [-1.0, f64::NAN, f64::INFINITY, 128.0, 1e300] {
            let text = BestOfPoisson { mu }.check().unwrap_err().to_string();
            assert!(text.starts_with("mu must be"), "{text}");
        }
    }

    #[test]
    fn a_draw_follows_the_weights() {
        // Weights 1, 2 and 1, whatever is added to the rewards.
        for shift in [0.0, 30.0, -1000.0] {
            let rewards = [shift, shift + 2.0f32.ln(), shift];
            let at = |u: f64| drawn(&rewards, 1.0, u);
            assert_eq!([0.0, 0.24, 0.26, 0.74, 0.76, 1.0f64.next_down()].map(at), [0, 0, 1, 1, 2, 2]);
        }
        assert_eq!(drawn(&[0.0, 1.0], 1e-6, 0.0), 1, "a small lambda takes the best");
        assert_eq!(drawn(&[5.0], 1.0, 0.999), 0);
    }
}
