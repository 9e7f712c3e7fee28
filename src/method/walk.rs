//! The refinement walk of one segment: which candidates were tried, when the walk ends, which one is kept.
//!
//! Pure state without a model. A candidate is a function of the prefix and the token at the slot, so the walk goes from
//! slot token to slot token; it closes at the first one that was there before, and that repeat is never decoded. Where every
//! token of the shortlist is tried ([`Proposals::All`]), nothing repeats, and the walk ends when none is left.

use crate::answer::{Candidate, Repeat, Segment, WalkEnd};
use crate::method::candidate::smallest;
use crate::method::{Options, Proposals};

/// A segment's walk in progress.
#[derive(Clone, Debug)]
pub struct Walk {
    start: usize,
    offset: usize,
    most: usize,
    /// Proposals come from the shortlist alone, whatever the candidates are like.
    exhaustive: bool,
    candidates: Vec<Candidate>,
    repeat: Option<Repeat>,
    exhausted: bool,
}

impl Walk {
    /// A walk behind a prefix of `start` tokens, with the slot `offset` tokens further on.
    pub fn new(start: usize, offset: usize, options: &Options) -> Walk {
        let exhaustive = options.proposals == Proposals::All && options.max_candidates > 1;
        let most = if exhaustive { usize::MAX } else { options.max_candidates };
        Walk { start, offset, most, exhaustive, candidates: Vec::new(), repeat: None, exhausted: false }
    }

    /// Absolute position of the slot.
    pub fn slot(&self) -> usize {
        self.start.saturating_add(self.offset)
    }

    /// Candidates that it may have.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether the next candidate, if it keeps `kept` tokens, will be asked for a proposal. Not without a token at the
    /// slot, and not the last one allowed.
    pub fn will_propose(&self, kept: usize) -> bool {
        let goes_on = kept > self.offset || (self.exhaustive && !self.candidates.is_empty());
        goes_on && self.candidates.len() + 1 < self.most
    }

    /// Appends a scored candidate. True if it is the best so far; an equal reward leaves the earlier one ahead.
    pub fn add(&mut self, candidate: Candidate) -> bool {
        self.candidates.push(candidate);
        self.best() + 1 == self.candidates.len()
    }

    /// Why the walk has ended, if it has. A candidate without a token at the slot takes precedence over the number of
    /// candidates.
    pub fn end(&self) -> Option<WalkEnd> {
        // Without a gradient, a forced candidate need not have a slot for the walk to go on.
        let by_slot = !self.exhaustive || self.candidates.len() == 1;
        if self.repeat.is_some() {
            Some(WalkEnd::Duplicate)
        } else if self.exhausted {
            Some(WalkEnd::Exhausted)
        } else if by_slot && self.candidates.last().is_some_and(|last| last.ids.len() <= self.offset) {
            Some(WalkEnd::NoSlot)
        } else if self.candidates.len() >= self.most {
            Some(WalkEnd::Budget)
        } else {
            None
        }
    }

    /// Closes the walk if `placed`, the token that forcing `proposed` would really place, was at the slot before.
    pub fn close(&mut self, proposed: u32, placed: u32) -> bool {
        let at_slot = |c: &Candidate| c.ids.get(self.offset) == Some(&placed);
        self.repeat = self.candidates.iter().position(at_slot).map(|same_as| Repeat { proposed, same_as });
        self.repeat.is_some()
    }

    /// Ends the walk: there is nothing left to try.
    pub fn exhaust(&mut self) {
        self.exhausted = true;
    }

    /// The candidates so far.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Index of the largest reward, the earliest on a tie.
    pub fn best(&self) -> usize {
        let mut best = 0;
        for (i, candidate) in self.candidates.iter().enumerate() {
            if candidate.reward > self.candidates[best].reward {
                best = i;
            }
        }
        best
    }

    /// The record of the walk.
    pub fn finish(self) -> Segment {
        let best = self.best();
        let margin = |best_one: &Candidate| {
            let others = self.candidates.iter().enumerate().filter(|&(i, _)| i != best);
            smallest(others.map(|(_, c)| f64::from(best_one.reward) - f64::from(c.reward)))
        };
        Segment {
            start: self.start,
            slot: self.slot(),
            best,
            walk_end: self.end().unwrap_or(WalkEnd::Budget),
            reward_margin: self.candidates.get(best).and_then(margin),
            repeat: self.repeat,
            candidates: self.candidates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{CandidateStop, Margins};

    fn walk(offset: usize, max_candidates: usize, proposals: Proposals) -> Walk {
        Walk::new(5, offset, &Options { max_candidates, proposals, ..Options::new(0, vec![0]) })
    }

    fn candidate(ids: &[u32], reward: f32) -> Candidate {
        Candidate {
            proposed: None,
            forced: None,
            ids: ids.to_vec(),
            dropped: None,
            stop: CandidateStop::Entropy,
            entropies: Vec::new(),
            entropies_exact: Vec::new(),
            signals: Vec::new(),
            logprobs: Vec::new(),
            reward,
            slot: None,
            margins: Margins::default(),
        }
    }

    #[test]
    fn the_earlier_of_equal_rewards_is_kept() {
        let mut walk = walk(0, 4, Proposals::Gradient);
        assert!(walk.add(candidate(&[1], 0.5)));
        assert!(walk.add(candidate(&[2], 0.75)));
        assert!(!walk.add(candidate(&[3], 0.75)));
        assert!(!walk.add(candidate(&[4], 0.25)));
        let segment = walk.finish();
        assert_eq!((segment.best, segment.reward_margin), (1, Some(0.0)));
        assert_eq!(segment.walk_end, WalkEnd::Budget);
    }

    #[test]
    fn no_slot_comes_before_budget() {
        let mut walk = walk(1, 2, Proposals::Random);
        assert!(walk.will_propose(2));
        assert!(!walk.will_propose(1));
        walk.add(candidate(&[1, 2], 0.0));
        assert_eq!(walk.end(), None);
        assert!(!walk.will_propose(2));
        walk.add(candidate(&[1], 0.0));
        assert_eq!(walk.end(), Some(WalkEnd::NoSlot));
    }

    #[test]
    fn the_token_really_placed_closes_the_walk() {
        let mut walk = walk(1, 8, Proposals::ShuffledGradient);
        walk.add(candidate(&[1, 2], 0.0));
        assert!(!walk.close(9, 1));
        walk.add(candidate(&[1, 3], 0.0));
        assert!(walk.close(9, 3));
        assert_eq!(walk.end(), Some(WalkEnd::Duplicate));
        assert_eq!(walk.finish().repeat, Some(Repeat { proposed: 9, same_as: 1 }));
    }

    #[test]
    fn trying_all_goes_on_until_none_is_left() {
        let mut all = walk(1, 2, Proposals::All);
        assert!(all.will_propose(2) && !all.will_propose(1));
        for ids in [&[1, 2][..], &[1], &[1, 3], &[1, 4]] {
            all.add(candidate(ids, 0.0));
            assert!(all.end().is_none() && all.will_propose(1));
        }
        all.exhaust();
        assert_eq!(all.end(), Some(WalkEnd::Exhausted));
        // The unforced candidate has to reach the slot, and one candidate is still one.
        let mut early = walk(1, 2, Proposals::All);
        early.add(candidate(&[1], 0.0));
        assert_eq!(early.end(), Some(WalkEnd::NoSlot));
        let mut greedy = walk(1, 1, Proposals::All);
        assert!(!greedy.will_propose(2));
        greedy.add(candidate(&[1, 2], 0.0));
        assert_eq!(greedy.end(), Some(WalkEnd::Budget));
    }
}
