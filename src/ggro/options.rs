//! Parameters of the method, in one struct that every face fills.

use super::entropy::Signal;
use crate::{Error, Result};

/// How the nudge token is chosen among the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The largest first-order score.
    Greedy,
    /// Drawn from `softmax(score / temperature)`.
    Sample,
}

/// Parameters of one response.
#[derive(Clone, Debug)]
pub struct Options {
    /// Budget M: new tokens, counted from the end of the prompt.
    pub max_new_tokens: usize,
    /// Threshold tau of the uncertainty signal (nats for entropy); reaching it ends a segment.
    pub entropy_threshold: f64,
    /// Which statistic is compared with the threshold.
    pub signal: &'static dyn Signal,
    /// Candidates per segment S, the unforced one included; 1 is greedy decoding.
    pub max_candidates: usize,
    /// Proposals are limited to the K most likely tokens.
    pub top_k: usize,
    /// Divides scores when sampling.
    pub temperature: f64,
    /// Greedy or sampled choice of the nudge token.
    pub selection: Selection,
    /// Offset of the slot in the first segment (length of the assistant header if the policy writes it itself).
    pub first_offset: usize,
    /// The threshold is tested from this many generated tokens of a candidate on.
    pub min_generated: usize,
    /// End-of-turn id.
    pub finish_id: u32,
    /// Ids that end a segment; contains `finish_id`.
    pub stop_ids: Vec<u32>,
    /// Factor on the score of the token now at the slot.
    pub damping: f64,
    /// Floor of the probabilities in the entropy; 0 is exact.
    pub probability_floor: f64,
    /// The final reward is pooled at the rightmost position with another id.
    pub reward_pad_id: Option<u32>,
    /// Record what no decision needs: gradient, candidate scores and unused next proposal of the last candidate too.
    pub full_trace: bool,
}

impl Options {
    /// Checks every range.
    ///
    /// # Errors
    /// The first option out of range, by name, with its allowed values.
    pub fn check(&self) -> Result<()> {
        Err(Error::invalid("not checked yet"))
    }
}

/// Source of the uniform numbers that sampling consumes, one per proposal used.
#[derive(Clone, Debug)]
pub enum Uniforms {
    /// Counter-based from a seed: the n-th number depends on the seed and n alone.
    Seeded(u64),
    /// Recorded values, in order.
    Recorded(Vec<f64>),
}
