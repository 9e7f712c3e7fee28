//! One candidate while it is decoded, with the lines it runs on, and what decides its tokens.

use crate::Error;
use crate::method::Options;
use crate::method::candidate::{CandidateState, Rules};
use crate::task::{Ask, Row, Scored, Top, Whole};

/// One candidate, decoded so far.
pub(super) struct Branch {
    /// Its lines.
    pub number: u32,
    pub state: CandidateState,
    /// The newest row: the one that produced the last token.
    pub row: Option<Row>,
    /// The row at the slot, once it was reached, if anything looks at it.
    pub slot_row: Option<Row>,
    pub scored: Option<Scored>,
    /// Rewards that were asked for, in the order of the answer.
    pub also_at: Vec<usize>,
    pub failed: Option<Error>,
    /// The next segment's unforced candidate, should this one win.
    pub ahead: Option<Box<Branch>>,
    pub visited: bool,
    /// It lost; nothing more is asked of it.
    pub retired: bool,
}

impl Branch {
    pub fn new(number: u32, state: CandidateState) -> Branch {
        Branch {
            number,
            state,
            row: None,
            slot_row: None,
            scored: None,
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

    /// Whether it waits for a row.
    pub fn decodes(&self) -> bool {
        !self.ended() && self.failed.is_none() && !self.retired
    }
}

/// What does not change while a response is decoded.
pub(super) struct Fixed {
    pub options: Options,
    pub rules: Rules,
    pub prompt_len: usize,
    pub shortlist_len: usize,
    pub reward_vocab: usize,
}

impl Fixed {
    /// Whether anything looks at the largest logits of a row: not in plain greedy decoding.
    pub fn nudges(&self) -> bool {
        self.options.max_candidates > 1 || self.options.full_trace
    }

    /// What is asked of the row that produces the token at index `next` of a segment whose slot is at index `offset`, after
    /// `len` positions. One more than the shortlist holds is taken, for the margin at its edge.
    pub fn ask(&self, len: usize, next: usize, offset: usize) -> Ask {
        let take = self.shortlist_len + 1;
        let top = if !self.nudges() {
            Top::Skip
        } else if next == offset {
            Top::Take(take)
        } else if next + 1 >= self.options.min_generated && len + 1 < self.rules.end {
            // If it ends this segment for uncertainty, it is the row at the next one's slot.
            Top::TakeIf(take, self.rules.threshold)
        } else {
            Top::Skip
        };
        let whole = if self.options.full_trace { Whole::WithTop } else { Whole::Never };
        Ask::Row { floor: self.options.probability_floor, top, whole }
    }

    /// Lets a branch take the token that its newest row, or the nudge at the slot, decides.
    pub fn push(&self, branch: &mut Branch, row: Row, offset: usize) {
        let stats = &row.row.stats;
        if !stats.finite {
            let position = branch.state.len().saturating_sub(1);
            branch.failed = Some(Error::NonFinite { what: "logit", model: "policy", position });
            return;
        }
        if branch.state.generated().len() == offset && self.nudges() {
            branch.slot_row = Some(row.clone());
        }
        let token = branch.state.next(stats);
        branch.state.push(token, stats, &self.rules);
        if token != stats.argmax {
            let listed = || row.row.top.iter().find(|(id, _)| *id == token).map(|&(_, logit)| logit);
            let logit = row.logits.as_ref().and_then(|logits| logits.get(token as usize).copied());
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
        branch.row = Some(row);
    }
}
