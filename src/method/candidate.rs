//! One candidate of a segment while it is decoded: which token comes next, when it ends, what of it is kept.
//!
//! Pure state without a model. The caller takes the [`next`](CandidateState::next) token of each distribution and hands it
//! to [`push`](CandidateState::push), until that returns a stop.

use crate::answer::{Candidate, CandidateStop, Margins, Slot};
use crate::method::Options;
use crate::model::RowStats;

/// What does not change while a response is decoded.
#[derive(Clone, Debug)]
pub struct Decoding {
    /// Parameters of the response.
    pub options: Options,
    /// Length of the prompt.
    pub prompt_len: usize,
    /// No sequence grows past this length: prompt and budget.
    pub end: usize,
    /// Ids that may be proposed in a segment, at most.
    pub shortlist_len: usize,
    /// Ids that the reward model knows.
    pub reward_vocab: usize,
}

impl Decoding {
    /// For a prompt of this length; `vocab` are the ids of policy and reward model.
    pub fn new(prompt_len: usize, options: &Options, vocab: (usize, usize)) -> Decoding {
        Decoding {
            options: options.clone(),
            prompt_len,
            end: prompt_len.saturating_add(options.max_new_tokens),
            shortlist_len: options.top_k.min(vocab.0.min(vocab.1)),
            reward_vocab: vocab.1,
        }
    }
}

/// What is known of a generated token.
#[derive(Clone, Copy, Debug)]
struct Token {
    entropy: f64,
    entropy_exact: f64,
    signal: f64,
    logprob: f64,
    gap: f32,
}

/// A candidate being decoded.
#[derive(Clone, Debug)]
pub struct CandidateState {
    start: usize,
    proposed: Option<u32>,
    /// Offset of the slot and the token placed there.
    forced: Option<(usize, u32)>,
    generated: Vec<u32>,
    /// One per generated id.
    tokens: Vec<Token>,
    stop: Option<CandidateStop>,
    drops_last: bool,
}

impl CandidateState {
    /// The candidate that follows the policy's own choices, behind a prefix of `start` tokens.
    pub fn unforced(start: usize) -> CandidateState {
        CandidateState {
            start,
            proposed: None,
            forced: None,
            generated: Vec::new(),
            tokens: Vec::new(),
            stop: None,
            drops_last: false,
        }
    }

    /// The candidate with `placed` at `offset`. What comes before the slot is the same for all candidates of a segment
    /// and is taken from this one, which must have reached the slot.
    pub fn forced(&self, offset: usize, proposed: u32, placed: u32) -> CandidateState {
        debug_assert!(self.generated.len() > offset);
        let shared = offset.min(self.generated.len());
        CandidateState {
            start: self.start,
            proposed: Some(proposed),
            forced: Some((offset, placed)),
            generated: self.generated[..shared].to_vec(),
            tokens: self.tokens[..shared].to_vec(),
            stop: None,
            drops_last: false,
        }
    }

    /// Says which proposal led to it; it was decoded before anyone proposed it.
    pub fn propose(&mut self, proposed: u32) {
        self.proposed = Some(proposed);
    }

    /// The token that follows: the forced one at the slot, otherwise the row's argmax.
    pub fn next(&self, stats: &RowStats) -> u32 {
        match self.forced {
            Some((offset, placed)) if offset == self.generated.len() => placed,
            _ => stats.argmax,
        }
    }

    /// Appends a token with the statistics of the distribution that produced it, and says whether the candidate ends.
    ///
    /// The order of the tests matters. A finish or stop id ends it however certain the policy was; a token that fills
    /// the budget is never dropped for being uncertain; the threshold is inclusive.
    pub fn push(&mut self, token: u32, stats: &RowStats, decoding: &Decoding) -> Option<CandidateStop> {
        debug_assert!(self.stop.is_none());
        let options = &decoding.options;
        let signal = options.signal.value(stats);
        self.generated.push(token);
        self.tokens.push(Token {
            entropy: stats.entropy_floored,
            entropy_exact: stats.entropy,
            signal,
            logprob: if token == stats.argmax { stats.max_probability.ln() } else { f64::NEG_INFINITY },
            gap: stats.margin,
        });

        let full = self.len() >= decoding.end;
        self.stop = if token == options.finish_id {
            Some(CandidateStop::Finish)
        } else if options.stop_ids.contains(&token) {
            Some(CandidateStop::StopId)
        } else if full {
            Some(CandidateStop::Length)
        } else if self.generated.len() >= options.min_generated && options.threshold().reached_by(signal) {
            Some(CandidateStop::Entropy)
        } else {
            None
        };
        // The uncertain token is the next segment's to decide; a foreign stop id is no part of the answer. As the
        // budget's last token either is kept.
        self.drops_last = matches!(self.stop, Some(CandidateStop::Entropy | CandidateStop::StopId)) && !full;
        self.stop
    }

    /// Says how likely the last token was, which is not the most likely one.
    pub fn likelihood(&mut self, logit: f32, stats: &RowStats) {
        if let Some(last) = self.tokens.last_mut() {
            last.logprob = f64::from(logit) - stats.log_sum_exp;
        }
    }

    /// Length of the sequence, prefix included.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.start + self.generated.len()
    }

    /// Every generated id, the dropped one included.
    pub fn generated(&self) -> &[u32] {
        &self.generated
    }

    /// The ids that are part of the answer.
    pub fn kept(&self) -> &[u32] {
        match self.generated.split_last() {
            Some((_, kept)) if self.drops_last => kept,
            _ => &self.generated,
        }
    }

    /// The generated id that is not kept, if there is one.
    pub fn dropped(&self) -> Option<u32> {
        self.generated.last().copied().filter(|_| self.drops_last)
    }

    /// Why it ended, once it has.
    pub fn stop(&self) -> Option<CandidateStop> {
        self.stop
    }

    /// The record of an ended candidate. `slot` comes with the margins of its scores and of the shortlist's edge; the
    /// margins of what was decided before are added here.
    pub fn record(&self, decoding: &Decoding, reward: f32, slot: Option<Slot>, mut margins: Margins) -> Candidate {
        let slot_offset = self.forced.map(|(offset, _)| offset);
        let free = self.tokens.iter().enumerate().filter(|&(i, _)| Some(i) != slot_offset);
        margins.argmax = smallest(free.map(|(_, token)| f64::from(token.gap)));
        // Every token but the last went through all tests; the last one did if no earlier test ended the candidate.
        let stop = self.stop.unwrap_or(CandidateStop::Length);
        let last_tested = stop == CandidateStop::Entropy;
        let tested = self.tokens.len() - usize::from(!last_tested && !self.tokens.is_empty());
        margins.entropy = smallest(
            self.tokens[..tested]
                .iter()
                .skip(decoding.options.min_generated.saturating_sub(1))
                .map(|token| (token.signal - decoding.options.entropy_threshold).abs()),
        );
        let each = |value: fn(&Token) -> f64| self.tokens.iter().map(value).collect();
        Candidate {
            proposed: self.proposed,
            forced: self.forced.map(|(_, placed)| placed),
            ids: self.kept().to_vec(),
            dropped: self.dropped(),
            stop,
            entropies: each(|token| token.entropy),
            entropies_exact: each(|token| token.entropy_exact),
            signals: each(|token| token.signal),
            logprobs: each(|token| token.logprob),
            reward,
            slot,
            margins,
        }
    }
}

/// The smallest finite value, if there is one.
pub(super) fn smallest(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.filter(|value| value.is_finite()).min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoding() -> Decoding {
        let options = Options { max_new_tokens: 6, ..Options::new(1, vec![1, 2]) };
        Decoding::new(10, &options, (30, 30))
    }

    fn row(argmax: u32, entropy: f64) -> RowStats {
        RowStats { argmax, entropy_floored: entropy, ..RowStats::of(&[0.5, 0.0], 0.0) }
    }

    fn run(tokens: &[(u32, f64)]) -> CandidateState {
        let mut state = CandidateState::unforced(10);
        for (i, &(token, entropy)) in tokens.iter().enumerate() {
            let stop = state.push(token, &row(token, entropy), &decoding());
            assert_eq!(stop.is_some(), i + 1 == tokens.len(), "token {i}");
        }
        state
    }

    #[test]
    fn the_tests_come_in_order() {
        use CandidateStop::*;
        let calm = (7, 0.0);
        for (tokens, stop, kept) in [
            // A finish within the first tokens, however uncertain.
            (vec![(1, 9.0)], Finish, 1),
            (vec![calm, calm, calm, (1, 9.0)], Finish, 4),
            (vec![calm, calm, calm, calm, calm, (1, 9.0)], Finish, 6),
            // A foreign stop id is dropped, except where it fills the budget.
            (vec![(2, 0.0)], StopId, 0),
            (vec![calm, calm, (2, 9.0)], StopId, 2),
            (vec![calm, calm, calm, calm, calm, (2, 9.0)], StopId, 6),
            // The budget's last token is kept however uncertain it was.
            (vec![calm, calm, calm, calm, calm, (7, 9.0)], Length, 6),
            // The threshold is tested from the fourth token on, and is inclusive.
            (vec![(7, 9.0), (7, 9.0), (7, 9.0), (7, 2.0)], Entropy, 3),
            (vec![calm, calm, calm, (7, 2f64.next_down()), (7, 2.5)], Entropy, 4),
        ] {
            let state = run(&tokens);
            assert_eq!(state.stop(), Some(stop), "{tokens:?}");
            assert_eq!(state.kept().len(), kept, "{tokens:?}");
            assert_eq!(state.dropped().is_some(), kept < tokens.len(), "{tokens:?}");
        }
    }

    #[test]
    fn only_what_was_tested_has_a_margin() {
        let entropy =
            |tokens: &[(u32, f64)]| run(tokens).record(&decoding(), 0.0, None, Margins::default()).margins.entropy;
        assert_eq!(entropy(&[(7, 1.9), (7, 0.0), (7, 0.0), (7, 5.0)]), Some(3.0));
        assert_eq!(entropy(&[(7, 0.0), (7, 0.0), (7, 0.0), (7, 0.5), (1, 1.9)]), Some(1.5));
        assert_eq!(entropy(&[(7, 0.0), (7, 0.0), (7, 0.0), (1, 1.9)]), None);
    }

    #[test]
    fn a_forced_candidate_shares_what_came_before_the_slot() {
        let unforced = run(&[(7, 0.1), (8, 0.2), (9, 0.3), (1, 0.4)]);
        let mut forced = unforced.forced(2, 20, 21);
        assert_eq!(forced.generated(), [7, 8]);
        assert_eq!(forced.next(&row(9, 0.3)), 21);
        assert_eq!(forced.push(21, &row(9, 0.3), &decoding()), None);
        assert_eq!(forced.next(&row(9, 0.3)), 9);
        assert_eq!(forced.push(1, &row(1, 0.0), &decoding()), Some(CandidateStop::Finish));
        let record = forced.record(&decoding(), 0.5, None, Margins::default());
        assert_eq!(record.entropies, [0.1, 0.2, 0.3, 0.0]);
        assert_eq!((record.proposed, record.forced), (Some(20), Some(21)));
    }
}
