//! Parameters of the method, resolved in one place: what is given, over a preset, over what holds for every pair.
//!
//! Command-line flags, fields of HTTP requests and runs fill a [`Given`]. [`Given::over`] makes [`Parameters`] of it, which a
//! run records in `FILE.config.json`, and [`Parameters::over`] the [`Options`] that a response is decoded with.

use crate::files::demo;
use crate::files::pair::Pair;
use crate::method::entropy::{SIGNALS, signal, threshold_of};
use crate::method::{Options, Proposals, Selection};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Parameters that belong together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// Budget of new tokens.
    pub max_new_tokens: usize,
    /// Threshold of the entropy, in nats.
    pub entropy_threshold: f64,
    /// Candidates per segment, the unforced one included.
    pub num_refinement_steps: usize,
}

impl Preset {
    /// The official code's parameters for dialogue with its pair of 8 billion weights: what holds for a pair of which nothing
    /// better is known.
    pub const DIALOGUE: Preset = Preset { max_new_tokens: 128, entropy_threshold: 1.5, num_refinement_steps: 8 };

    /// What suits the embedded demo pair.
    pub const DEMO: Preset =
        Preset { max_new_tokens: demo::MAX_NEW_TOKENS, entropy_threshold: demo::ENTROPY_THRESHOLD, ..Preset::DIALOGUE };
}

/// What the official code publishes parameters for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// HEx-PHI and XSTest.
    Safety,
    /// HH-RLHF.
    Helpfulness,
    /// ARC-Challenge.
    Reasoning,
    /// MMLU-Pro.
    Knowledge,
}

/// Weights of a policy below which the official parameters are those of its pair of 3 billion weights.
const SMALL: u64 = 5_000_000_000;

impl Published {
    /// The parameters, for a policy of so many weights.
    pub fn preset(self, weights: u64) -> Preset {
        let (max_new_tokens, entropy_threshold, large, small) = match self {
            Published::Safety => (256, 1.5, 8, 8),
            Published::Helpfulness => (128, 1.5, 8, 3),
            Published::Reasoning => (1024, 2.0, 8, 3),
            Published::Knowledge => (1024, 2.0, 8, 8),
        };
        let num_refinement_steps = if weights < SMALL { small } else { large };
        Preset { max_new_tokens, entropy_threshold, num_refinement_steps }
    }
}

/// Parameters that were given; what is `None` is filled by [`over`](Given::over).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Given {
    /// Budget of new tokens.
    pub max_new_tokens: Option<usize>,
    /// Name of the statistic that is compared with the threshold.
    pub signal: Option<String>,
    /// The threshold, in the signal's unit: nats for entropy.
    pub entropy_threshold: Option<f64>,
    /// Candidates per segment, the unforced one included.
    pub num_refinement_steps: Option<usize>,
    /// Nudges are chosen among so many of the policy's most likely tokens.
    pub nudge_top_k: Option<usize>,
    /// Temperature of a nudge that is drawn.
    pub nudge_temperature: Option<f64>,
    /// How a nudge is chosen.
    pub nudge_selection: Option<Selection>,
    /// The threshold is tested from this many generated tokens of a candidate on.
    pub min_generated: Option<usize>,
    /// Where proposals come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposals: Option<Proposals>,
    /// Weight of a token's log-probability in its score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprob_weight: Option<f64>,
}

/// Parameters of the method, complete. Serialised, they are the fields of `FILE.config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// See [`Given::max_new_tokens`].
    pub max_new_tokens: usize,
    /// See [`Given::signal`].
    pub signal: String,
    /// See [`Given::entropy_threshold`].
    pub entropy_threshold: f64,
    /// See [`Given::num_refinement_steps`].
    pub num_refinement_steps: usize,
    /// See [`Given::nudge_top_k`].
    pub nudge_top_k: usize,
    /// See [`Given::nudge_temperature`].
    pub nudge_temperature: f64,
    /// See [`Given::nudge_selection`].
    pub nudge_selection: Selection,
    /// See [`Given::min_generated`]; `None`: the official code's 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_generated: Option<usize>,
    /// See [`Given::proposals`]. Left out where it is the published method's, as [`logprob_weight`](Self::logprob_weight) is: files
    /// from before there was a choice have neither.
    #[serde(default, skip_serializing_if = "is_default")]
    pub proposals: Proposals,
    /// See [`Given::logprob_weight`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub logprob_weight: f64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Given {
    /// These, and those of `other` where nothing is given here.
    #[must_use]
    pub fn or(self, other: Given) -> Given {
        Given {
            max_new_tokens: self.max_new_tokens.or(other.max_new_tokens),
            signal: self.signal.or(other.signal),
            entropy_threshold: self.entropy_threshold.or(other.entropy_threshold),
            num_refinement_steps: self.num_refinement_steps.or(other.num_refinement_steps),
            nudge_top_k: self.nudge_top_k.or(other.nudge_top_k),
            nudge_temperature: self.nudge_temperature.or(other.nudge_temperature),
            nudge_selection: self.nudge_selection.or(other.nudge_selection),
            min_generated: self.min_generated.or(other.min_generated),
            proposals: self.proposals.or(other.proposals),
            logprob_weight: self.logprob_weight.or(other.logprob_weight),
        }
    }

    /// Whether uniform numbers are consumed, so that answers depend on the seed.
    pub fn draws(&self) -> bool {
        self.proposals.unwrap_or_default().draws(self.nudge_selection == Some(Selection::Sample))
    }

    /// Fills what was not given. A preset's threshold is one of the entropy; other signals have thresholds of their own.
    ///
    /// # Errors
    /// There is no such signal.
    pub fn over(&self, preset: Preset) -> Result<Parameters> {
        let rest = Options::new(0, vec![0]);
        let name = self.signal.clone().unwrap_or_else(|| SIGNALS[0].name().to_string());
        if signal(&name).is_none() {
            return Err(Error::invalid(format!("{name:?} is not a signal")));
        }
        let threshold = match name == SIGNALS[0].name() {
            true => preset.entropy_threshold,
            false => threshold_of(&name),
        };
        Ok(Parameters {
            max_new_tokens: self.max_new_tokens.unwrap_or(preset.max_new_tokens),
            signal: name,
            entropy_threshold: self.entropy_threshold.unwrap_or(threshold),
            num_refinement_steps: self.num_refinement_steps.unwrap_or(preset.num_refinement_steps),
            nudge_top_k: self.nudge_top_k.unwrap_or(rest.top_k),
            nudge_temperature: self.nudge_temperature.unwrap_or(rest.temperature),
            nudge_selection: self.nudge_selection.unwrap_or(rest.selection),
            min_generated: self.min_generated,
            proposals: self.proposals.unwrap_or(rest.proposals),
            logprob_weight: self.logprob_weight.unwrap_or(rest.logprob_weight),
        })
    }
}

impl Parameters {
    /// Options with these parameters, and `base` for everything else.
    pub fn over(&self, base: Options) -> Options {
        Options {
            max_new_tokens: self.max_new_tokens,
            entropy_threshold: self.entropy_threshold,
            signal: signal(&self.signal).unwrap_or(base.signal),
            max_candidates: self.num_refinement_steps,
            top_k: self.nudge_top_k,
            temperature: self.nudge_temperature,
            selection: self.nudge_selection,
            min_generated: self.min_generated.unwrap_or(base.min_generated),
            proposals: self.proposals,
            logprob_weight: self.logprob_weight,
            ..base
        }
    }

    /// Options with these parameters for a pair, with its stop ids and pad id.
    ///
    /// # Errors
    /// The pair has no policy.
    pub fn options(&self, pair: &Pair) -> Result<Options> {
        Ok(self.over(Options::for_pair(pair)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn published_parameters_depend_on_the_policy() {
        assert_eq!(Published::Helpfulness.preset(3_200_000_000).num_refinement_steps, 3);
        assert_eq!(Published::Reasoning.preset(8_000_000_000).num_refinement_steps, 8);
        assert_eq!(Published::Helpfulness.preset(8_000_000_000), Preset::DIALOGUE);
    }

    #[test]
    fn what_is_given_wins_over_the_preset() {
        let given = Given { entropy_threshold: Some(0.5), nudge_top_k: Some(3), ..Given::default() };
        let parameters = given.over(Preset::DEMO).unwrap();
        assert_eq!((parameters.entropy_threshold, parameters.max_new_tokens), (0.5, 200));
        let options = parameters.over(Options { min_generated: 7, ..Options::new(2, vec![2]) });
        assert_eq!((options.top_k, options.max_candidates, options.min_generated), (3, 8, 7));
        // A preset's threshold is in nats, and means nothing to another signal.
        let margin = Given { signal: Some("margin".to_string()), ..Given::default() };
        assert_eq!(margin.over(Preset::DEMO).unwrap().entropy_threshold, -0.5);
        let unknown = Given { signal: Some("mood".to_string()), ..Given::default() };
        assert_eq!(unknown.over(Preset::DEMO).unwrap_err().to_string(), "\"mood\" is not a signal");
        let both = Given { nudge_top_k: Some(5), max_new_tokens: Some(9), ..Given::default() };
        assert_eq!(
            given.or(both),
            Given { entropy_threshold: Some(0.5), nudge_top_k: Some(3), max_new_tokens: Some(9), ..Given::default() }
        );
    }

    #[test]
    fn parameters_are_written_as_runs_have_always_written_them() {
        let parameters = Given::default().over(Preset::DIALOGUE).unwrap();
        let expected = json!({
            "max_new_tokens": 128, "signal": "entropy", "entropy_threshold": 1.5, "num_refinement_steps": 8,
            "nudge_top_k": 25, "nudge_temperature": 0.1, "nudge_selection": "greedy",
        });
        assert_eq!(serde_json::to_string(&parameters).unwrap(), expected.to_string());
        assert_eq!(serde_json::from_value::<Parameters>(expected).unwrap(), parameters);
        assert_eq!(serde_json::from_value::<Given>(json!({ "nudge_top_k": 2 })).unwrap().nudge_top_k, Some(2));
        let same = Given { proposals: Some(Proposals::Gradient), logprob_weight: Some(0.0), ..Given::default() };
        assert_eq!(same.over(Preset::DIALOGUE).unwrap(), parameters);
    }

    #[test]
    fn controls_are_written_where_they_are_asked_for() {
        let given: Given =
            serde_json::from_value(json!({ "proposals": "shuffled-gradient", "logprob_weight": 0.25 })).unwrap();
        let parameters = given.over(Preset::DIALOGUE).unwrap();
        let written = serde_json::to_value(&parameters).unwrap();
        assert_eq!((&written["proposals"], &written["logprob_weight"]), (&json!("shuffled-gradient"), &json!(0.25)));
        assert_eq!(serde_json::from_value::<Parameters>(written).unwrap(), parameters);
        let options = parameters.over(Options::new(2, vec![2]));
        assert_eq!((options.proposals, options.logprob_weight), (Proposals::ShuffledGradient, 0.25));
        assert!(given.draws() && options.draws());
        let all = Given { proposals: Some(Proposals::All), nudge_selection: Some(Selection::Sample), ..given.clone() };
        assert!(!all.draws() && !Given::default().draws());
        assert_eq!(Given::default().or(given.clone()), given);
    }
}
