//! The methods that GGRO is compared with, on the same engine: cached, batched and counted.
//!
//! | [`Baseline::name`] | parameters | method |
//! |---|---|---|
//! | `rejection-sampling` | [`RejectionSampling`] | whole answers until one is accepted |
//! | `cards` | [`Cards`] | segments until one is accepted (arXiv 2406.16306) |
//! | `speculative-rejection` | [`SpeculativeRejection`] | many samples, the worse ones dropped early (arXiv 2410.20290) |
//! | `args` | [`Args`] | each token by logit and reward (arXiv 2402.01694) |
//! | `blockwise` | [`Blockwise`] | the best of K blocks (arXiv 2310.17022) |
//! | `beam` | [`Beam`] | beam search over chunks (arXiv 2405.19262) |
//! | `soft-best-of-n` | [`SoftBestOfN`] | one of n samples by a draw |
//! | `best-of-poisson` | [`BestOfPoisson`] | the best of a random number of samples (arXiv 2506.19248) |
//!
//! `docs/methods.md` has their defaults, their sources and what they cost. Greedy decoding, sampling and best-of-N are in
//! [`sampling`](crate::sampling).
//!
//! All of them are a [`Strategy`]: decisions over [`Texts`], which the request [`Search`] runs. A text that goes on from another
//! one shares its keys and values in both models, so the reward of a longer text costs its new tokens only. A method of one's own
//! is another implementation of the trait (`examples/06_own_method.rs`).
//!
//! Tokens are drawn by [`choose`](crate::sampling::choose), by the seed, the number of a stream, and the number of tokens of the
//! answer before it. The i-th sample of rejection sampling, speculative rejection, soft best-of-N and best-of-Poisson is stream
//! i, so at one seed it is the i-th completion of best-of-N. Proposal p of segment, block or round s is stream
//! `s * 2^32 + p`. Acceptance and other draws of a method have numbers of their own ([`Texts::uniform`]).

mod acceptance;
mod args;
mod beam;
mod cards;
mod named;
mod range;
mod rejection_sampling;
mod samples;
mod search;
mod sequences;
mod speculative_rejection;
mod strategy;
mod text;
mod texts;

use crate::Result;
use serde::{Deserialize, Serialize};

pub use args::Args;
pub use beam::{Beam, Blockwise};
pub use cards::{Acceptance, Cards};
pub use rejection_sampling::RejectionSampling;
pub use samples::{BestOfPoisson, SoftBestOfN};
pub use search::Search;
pub use speculative_rejection::SpeculativeRejection;
pub use strategy::{Answer, Strategy};
pub use text::{Growth, TextId, Uncertain};
pub use texts::Texts;

/// A method with its parameters. Serialised, it has its name in the field `name`, and the parameters beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Baseline {
    /// Whole answers until one is accepted.
    RejectionSampling(RejectionSampling),
    /// Segments until one is accepted.
    Cards(Cards),
    /// Many samples, the worse ones dropped early.
    SpeculativeRejection(SpeculativeRejection),
    /// Each token by logit and reward.
    Args(Args),
    /// The best of K blocks.
    Blockwise(Blockwise),
    /// Beam search over chunks.
    Beam(Beam),
    /// One of n samples by a draw.
    SoftBestOfN(SoftBestOfN),
    /// The best of a random number of samples.
    BestOfPoisson(BestOfPoisson),
}

impl Baseline {
    /// The names of all methods.
    pub const NAMES: [&str; 8] = [
        "rejection-sampling",
        "cards",
        "speculative-rejection",
        "args",
        "blockwise",
        "beam",
        "soft-best-of-n",
        "best-of-poisson",
    ];

    /// The method's name.
    pub fn name(&self) -> &'static str {
        match self {
            Baseline::RejectionSampling(_) => "rejection-sampling",
            Baseline::Cards(_) => "cards",
            Baseline::SpeculativeRejection(_) => "speculative-rejection",
            Baseline::Args(_) => "args",
            Baseline::Blockwise(_) => "blockwise",
            Baseline::Beam(_) => "beam",
            Baseline::SoftBestOfN(_) => "soft-best-of-n",
            Baseline::BestOfPoisson(_) => "best-of-poisson",
        }
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// The first one out of range, after the method's name and by its own, with its allowed values.
    pub fn check(&self) -> Result<()> {
        let checked = match self {
            Baseline::RejectionSampling(parameters) => parameters.check(),
            Baseline::Cards(parameters) => parameters.check(),
            Baseline::SpeculativeRejection(parameters) => parameters.check(),
            Baseline::Args(parameters) => parameters.check(),
            Baseline::Blockwise(parameters) => parameters.check(),
            Baseline::Beam(parameters) => parameters.check(),
            Baseline::SoftBestOfN(parameters) => parameters.check(),
            Baseline::BestOfPoisson(parameters) => parameters.check(),
        };
        checked.map_err(|error| error.within(self.name()))
    }

    /// The decisions for an answer of at most `max_new_tokens` to a prompt of `prompt_len` tokens.
    ///
    /// # Errors
    /// A parameter out of range.
    pub fn strategy(&self, prompt_len: usize, max_new_tokens: usize) -> Result<Box<dyn Strategy>> {
        self.check()?;
        Ok(match self.clone() {
            Baseline::RejectionSampling(parameters) => Box::new(rejection_sampling::Tries::new(parameters)),
            Baseline::Cards(parameters) => Box::new(cards::Segments::new(parameters)),
            Baseline::SpeculativeRejection(parameters) => {
                let samples = speculative_rejection::Samples::new(parameters, prompt_len, max_new_tokens);
                Box::new(samples.map_err(|error| error.within(self.name()))?)
            }
            Baseline::Args(parameters) => Box::new(args::Tokens::new(parameters)),
            Baseline::Blockwise(parameters) => Box::new(beam::Beams::of_blocks(&parameters)),
            Baseline::Beam(parameters) => Box::new(beam::Beams::new(parameters)),
            Baseline::SoftBestOfN(parameters) => Box::new(samples::Samples::soft(parameters)),
            Baseline::BestOfPoisson(parameters) => Box::new(samples::Samples::poisson(parameters)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_file_holds_every_method() {
        for name in Baseline::NAMES {
            let text = format!(r#"{{"name": "{name}", "target_reward": 8.5}}"#);
            let bare = format!(r#"{{"name": "{name}"}}"#);
            let needs_target = ["rejection-sampling", "cards"].contains(&name);
            let read = |text: &str| serde_json::from_str::<Baseline>(text);
            // Only the methods that need a reward to be reached know one, and they do not do without.
            let baseline = if needs_target { read(&text) } else { read(&bare) }.unwrap();
            assert!(if needs_target { read(&bare) } else { read(&text) }.is_err(), "{name}");
            assert_eq!(baseline.name(), name);
            baseline.check().unwrap();
            let written = serde_json::to_string(&baseline).unwrap();
            assert_eq!(read(&written).unwrap(), baseline);
            assert!(read(&bare.replace('}', r#", "alhpa": 1}"#)).is_err(), "a misspelt parameter of {name}");
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let beam = |width, successors, chunk| Baseline::Beam(Beam { width, successors, chunk });
        let rejection = SpeculativeRejection::default();
        for (baseline, words) in [
            (Baseline::RejectionSampling(RejectionSampling::new(f64::NAN)), "rejection-sampling: target_reward"),
            (
                Baseline::RejectionSampling(RejectionSampling { beta: 0.0, ..RejectionSampling::new(1.0) }),
                "beta must be",
            ),
            (
                Baseline::RejectionSampling(RejectionSampling { max_tries: 0, ..RejectionSampling::new(1.0) }),
                "max_tries",
            ),
            (Baseline::Cards(Cards::new(f64::INFINITY)), "cards: target_reward"),
            (Baseline::Cards(Cards { alpha: 1.1, ..Cards::new(1.0) }), "alpha"),
            (Baseline::Cards(Cards { beta: -1.0, ..Cards::new(1.0) }), "beta"),
            (Baseline::Cards(Cards { entropy_threshold: f64::NAN, ..Cards::new(1.0) }), "entropy_threshold"),
            (Baseline::Cards(Cards { min_segment: 65, ..Cards::new(1.0) }), "min_segment must be 1 to max_segment, 64"),
            (Baseline::Cards(Cards { max_segment: 0, ..Cards::new(1.0) }), "max_segment"),
            (Baseline::Cards(Cards { max_rejections: usize::MAX, ..Cards::new(1.0) }), "max_rejections"),
            (
                Baseline::SpeculativeRejection(SpeculativeRejection { n: 129, ..rejection.clone() }),
                "n must be 1 to 128",
            ),
            (Baseline::SpeculativeRejection(SpeculativeRejection { alpha: 1.0, ..rejection.clone() }), "alpha"),
            (Baseline::Args(Args { k: 0, ..Args::default() }), "args: k"),
            (Baseline::Args(Args { weight: f64::NAN, ..Args::default() }), "weight"),
            (Baseline::Blockwise(Blockwise { k: 0, block: 1 }), "k must"),
            (Baseline::Blockwise(Blockwise { k: 1, block: 0 }), "block must"),
            (beam(0, 1, 1), "width"),
            (beam(16, 9, 1), "successors must be 1 to 8"),
            (beam(1, 1, 0), "chunk"),
            (Baseline::SoftBestOfN(SoftBestOfN { n: 0, lambda: 1.0 }), "n must"),
            (Baseline::SoftBestOfN(SoftBestOfN { n: 1, lambda: 0.0 }), "lambda"),
            (Baseline::BestOfPoisson(BestOfPoisson { mu: -0.5 }), "best-of-poisson: mu"),
        ] {
            let error = baseline.check().unwrap_err();
            assert!(error.is_invalid_input() && error.to_string().contains(words), "{error}");
            assert!(baseline.strategy(3, 10).is_err());
        }
        let tight = Baseline::SpeculativeRejection(SpeculativeRejection { kv_budget: Some(18), ..rejection });
        let text = tight.strategy(3, 10).err().unwrap().to_string();
        assert!(
            text.contains("speculative-rejection: kv_budget must be at least 19") && text.contains("not 18"),
            "{text}"
        );
        assert!(tight.strategy(2, 10).is_ok());
    }
}
