//! What requests end with, as plain data: responses with the record of every decision, completions, rewards.

use crate::Result;
use crate::model::Work;
use serde::{Deserialize, Serialize};

/// Why a candidate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateStop {
    /// The end-of-turn id.
    Finish,
    /// Another stop id.
    StopId,
    /// The budget.
    Length,
    /// The uncertainty signal reached its threshold.
    Entropy,
}

/// Why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalkEnd {
    /// A proposal led back to a candidate already tried.
    Duplicate,
    /// S candidates were tried.
    Budget,
    /// A candidate ended before its slot.
    NoSlot,
    /// Every id of the shortlist was tried.
    Exhausted,
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The end-of-turn id.
    Finish,
    /// The budget.
    Length,
    /// A stop id other than the end-of-turn id came first in a segment.
    Stalled,
}

/// Distances of a candidate's decisions from their tipping points; `None` where nothing was decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Margins {
    /// Smallest top-two logit gap over free tokens.
    pub argmax: Option<f64>,
    /// Smallest distance of the signal from its threshold where tested.
    pub entropy: Option<f64>,
    /// Top-two gap of damped scores; when sampling or drawing, distance of `u` to the nearest edge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Logit gap between ranks K and K+1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k_edge: Option<f64>,
    /// Best minus runner-up reward of the walk (on segments; in a response's minimum).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// Logit gap between the two largest of the ids whose embedding equals the proposed one's.
    #[serde(rename = "twin", skip_serializing_if = "Option::is_none")]
    pub tied_embedding: Option<f64>,
}

/// What was learnt at a candidate's slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Euclidean norm of the reward gradient at the slot; `None` if none is taken to propose.
    pub gradient_norm: Option<f64>,
    /// The K candidate ids, most likely first.
    pub ids: Vec<u32>,
    /// Their logits.
    pub logits: Vec<f32>,
    /// `E_R[v] . g` before damping, and before they are shuffled; empty without a gradient.
    pub dots: Vec<f32>,
    /// Sampling weights `w`, normalised; empty when no choice is made by them.
    pub weights: Vec<f64>,
    /// The proposal these scores lead to; `None` if none was drawn.
    pub next_proposal: Option<u32>,
}

/// One candidate of a segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The id proposed; `None` for the unforced one.
    pub proposed: Option<u32>,
    /// The id really placed at the slot.
    pub forced: Option<u32>,
    /// Kept ids.
    pub ids: Vec<u32>,
    /// The generated id that was not kept.
    pub dropped: Option<u32>,
    /// Why it ended.
    pub stop: CandidateStop,
    /// Floored entropy per generated token (nats).
    pub entropies: Vec<f64>,
    /// Exact entropy per generated token (nats).
    pub entropies_exact: Vec<f64>,
    /// Value of the uncertainty signal per generated token; equals `entropies` for Shannon entropy.
    pub signals: Vec<f64>,
    /// Log-probability of each generated token (nats), of a forced one too.
    pub logprobs: Vec<f64>,
    /// Reward at the last kept position.
    pub reward: f32,
    /// `None` if there was no slot or nothing was to be proposed from it. Where all ids are tried, the unforced candidate has it.
    pub slot: Option<Slot>,
    /// Distances from tipping points.
    pub margins: Margins,
}

/// The proposal that closed a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    /// The id proposed.
    pub proposed: u32,
    /// Index of the candidate it would have repeated.
    pub same_as: usize,
}

/// One committed segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
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
    /// The distinct candidates, in order.
    pub candidates: Vec<Candidate>,
    /// The proposal that closed the walk, if one did.
    pub repeat: Option<Repeat>,
}

/// A finished response.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Prompt and answer.
    pub final_ids: Vec<u32>,
    /// Length of the prompt.
    pub prompt_len: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Absolute length after each segment; a finished response's last one excludes the end-of-turn id.
    pub segment_boundaries: Vec<usize>,
    /// Segments whose best candidate was not the unforced one.
    pub num_nudges: usize,
    /// Reward of the last segment's best candidate, pooled at the last position.
    pub last_segment_reward: f32,
    /// Reward of `final_ids` pooled at `final_pool_position`.
    pub final_reward: f32,
    /// Rightmost position whose id is not the reward model's pad id.
    pub final_pool_position: usize,
    /// The uniform numbers consumed.
    pub uniforms_used: Vec<f64>,
    /// Smallest margins over all candidates and segments.
    pub min_margins: Margins,
    /// Every segment.
    pub segments: Vec<Segment>,
    /// The answer's text, if it was tokenised again between segments ([`Respell`]). Otherwise it is the text of its ids.
    pub respelled: Option<String>,
    /// Work done for this response.
    pub work: Work,
}

impl Response {
    /// The ids of the answer, the end-of-turn id included.
    pub fn new_ids(&self) -> &[u32] {
        &self.final_ids[self.prompt_len..]
    }
}

/// A text of prompt and answer that is tokenised again while the answer grows.
pub trait Respell {
    /// Ids of the text of ids: that of the prompt if the flag is false, and else one that the reward model reads.
    ///
    /// # Errors
    /// The text cannot be decoded or encoded.
    fn respell(&mut self, ids: &[u32], reader: bool) -> Result<Vec<u32>>;

    /// Where the answer begins in the last text, whose ids these are.
    ///
    /// # Errors
    /// The text cannot be decoded.
    fn answer(&mut self, ids: &[u32]) -> Result<RespelledAnswer>;
}

/// The answer in a text that was tokenised again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RespelledAnswer {
    /// How many ids stand for nothing but the prompt. The id behind them may stand for its end and the answer's beginning.
    pub prompt_len: usize,
    /// The answer's text, with the beginning that was given, without the assistant header and the end of turn.
    pub text: String,
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The id.
    pub id: u32,
    /// Its log-probability in nats under the softmax of the untouched logits.
    pub logprob: f64,
    /// Entropy of that softmax in nats.
    pub entropy: f64,
    /// The most likely tokens of the untouched logits with theirs, as many as were asked for, most likely first, the lower
    /// id first on a tie. Impossible ones (a logit of minus infinity) are left out.
    pub top: Vec<(u32, f64)>,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A stop id, or the caller's own reason.
    Stop,
    /// The budget.
    Length,
}

/// One sampled completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Its ids, a stop id included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
    /// Per id its log-probability and the most likely ids; empty if not asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Reward at its last position, if it was scored.
    pub reward: Option<f32>,
}

/// All completions of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completions {
    /// In the order of their numbers.
    pub all: Vec<Completion>,
    /// The one that is the answer. When sampling, that is the one with the largest reward, the earliest on a tie, and 0 if they
    /// were not scored; a search chooses by its own rule.
    pub best: usize,
    /// What had to be run.
    pub work: Work,
    /// What a search tried; `None` for sampling.
    pub search: Option<SearchCounts>,
}

/// What a search for an answer tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchCounts {
    /// Texts that were proposed: samples, segments, blocks or next tokens.
    pub proposals: u64,
    /// Those that were turned down: by a test, by a ranking, or because another one was better.
    pub rejected: u64,
    /// Segments, blocks or tokens that were committed; rounds of a beam; rankings of speculative rejection; 1 for a choice among
    /// whole answers.
    pub rounds: u64,
}

/// Rewards of a given text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewardReport {
    /// Reward of the text.
    pub reward: f32,
    /// Position where it is pooled.
    pub pooled_at: usize,
    /// Reward of every beginning, from one token to all that count; empty if not asked for.
    pub every: Vec<f32>,
    /// The gradient, `[positions, hidden]` from the asked position to the end of the text; empty if not asked for.
    pub gradient: Vec<f32>,
    /// Per position of the query's `scores` the gradient's products with the ids' embeddings, in their order.
    pub scores: Vec<Vec<f32>>,
    /// What had to be run.
    pub work: Work,
}
