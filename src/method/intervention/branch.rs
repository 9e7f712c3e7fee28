//! One candidate while it is decoded, with the sequences it runs on, and what decides its tokens.

use crate::Error;
use crate::answer::CandidateStop;
use crate::method::candidate::{CandidateState, Decoding};
use crate::method::nudge::Shortlist;
use crate::model::TopK;
use crate::task::{Ask, FullLogits, PolicyOutput, RewardOutput};
use std::sync::Arc;

/// One candidate, decoded so far.
pub(super) struct Branch {
    /// Number of its sequences.
    pub number: u32,
    pub state: CandidateState,
    /// The distribution that produced the last token, once it has ended.
    pub last: Option<PolicyOutput>,
    /// The distribution at the slot, once it was reached, if anything uses it. All branches of a segment have the same one; the
    /// unforced branch keeps it.
    pub at_slot: Option<PolicyOutput>,
    pub reward: Option<RewardOutput>,
    /// Rewards that were asked for, in the order of the answer.
    pub also_at: Vec<usize>,
    pub failed: Option<Error>,
    /// The next segment's candidates, should this one win.
    pub ahead: Option<Box<Ahead>>,
    pub visited: bool,
    /// It lost and is not used any more.
    pub retired: bool,
}

/// The segment behind a candidate, decoded before it is known whether that one wins.
pub(super) struct Ahead {
    /// Its candidates, the unforced one first.
    pub branches: Vec<Branch>,
    /// How likely each of them is of use if the segment is: the unforced one always.
    pub chances: Vec<f64>,
    /// What may be placed at its slot.
    pub list: Shortlist,
    /// The ids of the list.
    pub candidates: Arc<[u32]>,
    /// Places of the list in the order in which they are likely to be proposed.
    pub order: Vec<usize>,
    /// Whether that is the order of a gradient's scores; otherwise it is the policy's.
    pub ordered: bool,
}

impl Branch {
    pub fn new(number: u32, state: CandidateState) -> Branch {
        Branch {
            number,
            state,
            last: None,
            at_slot: None,
            reward: None,
            also_at: Vec::new(),
            failed: None,
            ahead: None,
            visited: false,
            retired: false,
        }
    }

    pub fn ended(&self) -> bool {
        self.state.stop().is_some()
    }

    /// Position of its segment's first token.
    pub fn start(&self) -> usize {
        self.state.len() - self.state.generated().len()
    }

    /// Whether another segment begins where it ends.
    pub fn goes_on(&self) -> bool {
        self.state.stop() == Some(CandidateStop::Entropy) && self.state.dropped().is_some()
    }

    /// Whether its sequences, or those of a segment behind it, have this number.
    pub fn has(&self, number: u32) -> bool {
        self.number == number || self.ahead.iter().any(|ahead| ahead.branches.iter().any(|branch| branch.has(number)))
    }

    /// Whether it waits for its next token.
    pub fn decodes(&self) -> bool {
        !self.ended() && self.failed.is_none() && !self.retired
    }
}

impl Decoding {
    /// Whether the largest logits are used: not in plain greedy decoding.
    pub(super) fn nudges(&self) -> bool {
        self.options.max_candidates > 1 || self.options.full_trace
    }

    /// What is asked of the distribution that produces the token at index `next` of a segment whose slot is at index `offset`, after
    /// `len` positions. One more than the shortlist holds is taken, for the margin at its edge.
    pub(super) fn ask(&self, len: usize, next: usize, offset: usize) -> Ask {
        let take = self.shortlist_len + 1;
        let top_k = if !self.nudges() {
            TopK::Skip
        } else if next == offset {
            TopK::Take(take)
        } else if next + 1 >= self.options.min_generated && len + 1 < self.end {
            // If it ends this segment for uncertainty, this is the distribution at the next one's slot.
            TopK::TakeIf(take, self.options.threshold())
        } else {
            TopK::Skip
        };
        let full_logits = if self.options.full_trace { FullLogits::WithTopK } else { FullLogits::Never };
        Ask::Policy { floor: self.options.probability_floor, top_k, full_logits }
    }

    /// Lets an unforced branch take its next token, or a forced one that has taken the token at the slot.
    pub(super) fn push(&self, branch: &mut Branch, output: PolicyOutput, offset: usize) {
        let at_slot = branch.state.generated().len() == offset && self.nudges();
        if !self.take_token(branch, &output) {
            return;
        }
        match (at_slot, branch.ended()) {
            (true, true) => (branch.at_slot, branch.last) = (Some(output.clone()), Some(output)),
            (true, false) => branch.at_slot = Some(output),
            (false, true) => branch.last = Some(output),
            (false, false) => {}
        }
    }

    /// Lets a forced branch take the token at the slot.
    pub(super) fn push_forced(&self, branch: &mut Branch, at_slot: &PolicyOutput) {
        if self.take_token(branch, at_slot) && branch.ended() {
            branch.last = Some(at_slot.clone());
        }
    }

    /// Lets a branch take its next token: the nudge at the slot, otherwise the most likely one. False if there is none.
    fn take_token(&self, branch: &mut Branch, output: &PolicyOutput) -> bool {
        let stats = &output.row.stats;
        if !stats.finite {
            let position = branch.state.len().saturating_sub(1);
            branch.failed = Some(Error::NonFinite { what: "logit", model: "policy", position });
            return false;
        }
        let token = branch.state.next(stats);
        branch.state.push(token, stats, self);
        if token != stats.argmax {
            let listed = || output.row.top.iter().find(|(id, _)| *id == token).map(|&(_, logit)| logit);
            let logit = output.logits.as_ref().and_then(|logits| logits.get(token as usize).copied());
            if let Some(logit) = logit.or_else(listed) {
                branch.state.likelihood(logit, stats);
            }
        }
        if token as usize >= self.reward_vocab && branch.state.dropped().is_none() {
            branch.failed = Some(Error::invalid(format!(
                "the policy chose id {token}, which the reward model cannot read: its vocabulary has {} ids",
                self.reward_vocab
            )));
        }
        true
    }
}
