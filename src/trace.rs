//! Traces: one response with every decision, as JSON, and the requests that ask for one.
//!
//! The schema is that of the golden fixtures (`tests/goldens/README.md`, part 2), so that a response of this engine and
//! one of the PyTorch reference can be compared field by field, and so that a trace is itself a request: its
//! `prompt_ids`, `options` and `uniforms_used` say all that is needed to decode it again.
//!
//! Floats are rounded to 9 significant digits, which identifies every `f32`. Fields that the fixtures do not have stand at
//! the end (`work`, and `signal` and `signals` where the signal is not Shannon entropy). So do options that no fixture uses,
//! where they are not what the published method has: `proposals` and `logprob_weight`.

use crate::answer::{Candidate, CandidateStop, FinishReason, Margins, Repeat, Response, Segment, Slot, WalkEnd};
use crate::files::checkpoint::read_whole_text;
use crate::files::tokenizer::Tokenizer;
use crate::method::{Options, Proposals, Selection};
use crate::model::Work;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

mod request;

pub use request::{RequestFile, RequestOptions};

/// Entries of a top-k list that are written when the list is longer than [`LONG_TOP_K`].
const TOP_K_WRITTEN: usize = 32;
/// Lists up to this length are written whole.
const LONG_TOP_K: usize = 64;

/// A file of traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceFile {
    /// The pair's name.
    pub model: String,
    /// Its traces.
    pub traces: Vec<Trace>,
}

impl TraceFile {
    /// Reads `traces.json`.
    ///
    /// # Errors
    /// The file is not readable or does not have the schema.
    pub fn read(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let text = read_whole_text(path, file)?;
        serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not a trace file: {e}")))
    }
}

/// One response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// A name for people.
    pub name: String,
    /// The request in words, where it came as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_text: Option<String>,
    /// `final_ids` as text, special tokens included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_text: Option<String>,
    /// Whether encoding `final_text` gives `final_ids` again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_stable: Option<bool>,
    /// Parameters of the method.
    pub options: TraceOptions,
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// Prompt and answer.
    pub final_ids: Vec<u32>,
    /// The answer.
    pub new_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Absolute length after each segment.
    pub segment_boundaries: Vec<usize>,
    /// Segments whose best candidate is not the unforced one.
    pub num_nudges: usize,
    /// Reward of the last segment's best candidate, pooled at the last position.
    pub last_segment_reward: f64,
    /// Reward of `final_ids`, pooled at `final_pool_position`.
    pub final_reward: f64,
    /// Rightmost position whose id is not the reward model's pad id.
    pub final_pool_position: usize,
    /// The uniform numbers that sampling consumed.
    pub uniforms_used: Vec<f64>,
    /// How often re-tokenising between segments changed ids: never, as it is not done.
    pub round_trip_changes: usize,
    /// Every segment.
    pub segments: Vec<TraceSegment>,
    /// Each margin's minimum.
    pub min_margins: Margins,
    /// Token positions that went through the models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
}

/// Parameters under their names in the specification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceOptions {
    /// Budget M.
    pub max_new_tokens: usize,
    /// Threshold of the signal.
    pub entropy_threshold: f64,
    /// Candidates per segment S.
    pub max_candidates: usize,
    /// Proposals are limited to the K largest logits.
    pub top_k: usize,
    /// Divides scores when sampling.
    pub temperature: f64,
    /// Greedy or sampled choice.
    pub selection: Selection,
    /// Slot offset in the first segment.
    pub first_offset: usize,
    /// Generated tokens from which on the threshold is tested.
    pub min_generated: usize,
    /// Ids that end a segment.
    pub stop_ids: Vec<u32>,
    /// End-of-turn id.
    pub finish_id: u32,
    /// Factor on the score of the token now at the slot.
    pub damping: f64,
    /// Floor of the probabilities in the entropy.
    pub probability_floor: f64,
    /// The reward model's pad id.
    pub reward_pad_id: Option<u32>,
    /// Name of the signal, where it is not Shannon entropy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Where proposals come from, if not from the gradient.
    #[serde(default, skip_serializing_if = "is_default")]
    pub proposals: Proposals,
    /// Weight of a token's log-probability in its score, if it has one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logprob_weight: f64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceSegment {
    /// Position of its first token.
    pub start: usize,
    /// Position where a token may be forced.
    pub slot: usize,
    /// Index of the candidate kept.
    pub best: usize,
    /// Why the walk ended.
    pub walk_end: WalkEnd,
    /// Best minus runner-up reward.
    pub reward_margin: Option<f64>,
    /// The distinct candidates.
    pub candidates: Vec<TraceCandidate>,
    /// The proposal that closed the walk.
    pub repeat: Option<Repeat>,
}

/// One candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceCandidate {
    /// The id proposed.
    pub proposed: Option<u32>,
    /// The id really placed.
    pub forced: Option<u32>,
    /// Kept ids.
    pub ids: Vec<u32>,
    /// The id that was generated and not kept.
    pub dropped: Option<u32>,
    /// Why it ended.
    pub stop: CandidateStop,
    /// Floored entropy per generated token.
    pub entropies: Vec<f64>,
    /// Exact entropy per generated token.
    pub entropies_exact: Vec<f64>,
    /// Reward at the last kept position.
    pub reward: f64,
    /// Euclidean norm of the gradient at the slot, if one was taken to propose.
    pub slot_gradient_norm: Option<f64>,
    /// What the next proposal was chosen from.
    pub top_k: Option<TraceTopK>,
    /// The next proposal.
    pub next_proposal: Option<u32>,
    /// Distances of the decisions from their tipping points.
    pub margins: Margins,
    /// Value of the signal per generated token, where it is not Shannon entropy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<Vec<f64>>,
}

/// The policy's largest logits at the slot and the reward model's first-order scores of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceTopK {
    /// How many there were; the lists are cut to 32 when there were more than 64.
    pub count: usize,
    /// Ids, most likely first.
    pub ids: Vec<u32>,
    /// Their logits.
    pub logits: Vec<f64>,
    /// `E_R[v] . g` before damping; missing where no gradient was taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dots: Vec<f64>,
    /// Sampling weights, normalised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probs: Option<Vec<f64>>,
}

/// The name of a finish reason in the schema.
pub fn finish_reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Finish => "finish",
        FinishReason::Length => "length",
        FinishReason::Stalled => "stalled",
    }
}

impl Trace {
    /// The record of a response decoded with `options`. `user_text` is the request in words; the tokenizer adds the text.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn from_response(
        name: &str,
        user_text: Option<&str>,
        options: &Options,
        response: &Response,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self> {
        let (final_text, round_trip_stable) = match tokenizer {
            Some(tokenizer) => {
                let text = tokenizer.decode(&response.final_ids)?;
                let stable = tokenizer.encode(&text)? == response.final_ids;
                (Some(text), Some(stable))
            }
            None => (None, None),
        };
        let other_signal = options.signal.name() != ENTROPY;
        Ok(Trace {
            name: name.to_string(),
            user_text: user_text.map(str::to_string),
            final_text,
            round_trip_stable,
            options: TraceOptions::from(options),
            prompt_ids: response.final_ids[..response.prompt_len].to_vec(),
            final_ids: response.final_ids.clone(),
            new_ids: response.final_ids[response.prompt_len..].to_vec(),
            finish_reason: response.finish_reason,
            segment_boundaries: response.segment_boundaries.clone(),
            num_nudges: response.num_nudges,
            last_segment_reward: round(response.last_segment_reward.into()),
            final_reward: round(response.final_reward.into()),
            final_pool_position: response.final_pool_position,
            // Never rounded: a replay must draw with the same bits.
            uniforms_used: response.uniforms_used.clone(),
            round_trip_changes: 0,
            segments: response.segments.iter().map(|s| segment(s, other_signal)).collect(),
            min_margins: margins(&response.min_margins),
            work: Some(response.work),
        })
    }
}

/// Name of the signal that the fixtures use.
pub(crate) const ENTROPY: &str = "entropy";

impl From<&Options> for TraceOptions {
    fn from(options: &Options) -> Self {
        let signal = options.signal.name();
        TraceOptions {
            max_new_tokens: options.max_new_tokens,
            entropy_threshold: options.entropy_threshold,
            max_candidates: options.max_candidates,
            top_k: options.top_k,
            temperature: options.temperature,
            selection: options.selection,
            first_offset: options.first_offset,
            min_generated: options.min_generated,
            stop_ids: options.stop_ids.clone(),
            finish_id: options.finish_id,
            damping: options.damping,
            probability_floor: options.probability_floor,
            reward_pad_id: options.reward_pad_id,
            signal: (signal != ENTROPY).then(|| signal.to_string()),
            proposals: options.proposals,
            logprob_weight: options.logprob_weight,
        }
    }
}

fn segment(segment: &Segment, other_signal: bool) -> TraceSegment {
    TraceSegment {
        start: segment.start,
        slot: segment.slot,
        best: segment.best,
        walk_end: segment.walk_end,
        reward_margin: segment.reward_margin.map(round),
        candidates: segment.candidates.iter().map(|c| candidate(c, other_signal)).collect(),
        repeat: segment.repeat,
    }
}

fn candidate(candidate: &Candidate, other_signal: bool) -> TraceCandidate {
    let slot = candidate.slot.as_ref();
    TraceCandidate {
        proposed: candidate.proposed,
        forced: candidate.forced,
        ids: candidate.ids.clone(),
        dropped: candidate.dropped,
        stop: candidate.stop,
        entropies: rounded(&candidate.entropies),
        entropies_exact: rounded(&candidate.entropies_exact),
        reward: round(candidate.reward.into()),
        slot_gradient_norm: slot.and_then(|s| s.gradient_norm).map(round),
        top_k: slot.map(top_k),
        next_proposal: slot.and_then(|s| s.next_proposal),
        margins: margins(&candidate.margins),
        signals: other_signal.then(|| rounded(&candidate.signals)),
    }
}

fn top_k(slot: &Slot) -> TraceTopK {
    let count = slot.ids.len();
    let written = if count > LONG_TOP_K { TOP_K_WRITTEN } else { count };
    let sum: f64 = slot.weights.iter().sum();
    TraceTopK {
        count,
        ids: slot.ids.iter().take(written).copied().collect(),
        logits: slot.logits.iter().take(written).map(|&x| round(x.into())).collect(),
        dots: slot.dots.iter().take(written).map(|&x| round(x.into())).collect(),
        probs: (!slot.weights.is_empty()).then(|| slot.weights.iter().take(written).map(|w| round(w / sum)).collect()),
    }
}

fn margins(margins: &Margins) -> Margins {
    // A gap to nothing is infinite, which JSON cannot say: no value.
    let finite = |margin: Option<f64>| margin.filter(|m| m.is_finite()).map(round);
    Margins {
        argmax: finite(margins.argmax),
        entropy: finite(margins.entropy),
        score: finite(margins.score),
        top_k_edge: finite(margins.top_k_edge),
        reward: finite(margins.reward),
        tied_embedding: finite(margins.tied_embedding),
    }
}

fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&x| round(x)).collect()
}

/// To 9 significant digits, enough to tell any two `f32` apart. JSON has no infinity: the largest number stands for it.
fn round(x: f64) -> f64 {
    let x = x.clamp(f64::MIN, f64::MAX);
    format!("{x:.8e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_digits() {
        assert_eq!(round(0.123_456_789_123), 0.123_456_789);
        assert_eq!(round(-9.876_543_219_9), -9.876_543_22);
        assert_eq!(round(0.0), 0.0);
        for x in [1.0e-30f32, 3.402_823_4e38, 0.1, -7.000_000_5] {
            assert_eq!(round(x.into()) as f32, x);
        }
    }
}
