//! What is decoded before the walk asks for it, and how likely it is to be of use.
//!
//! Two kinds of text are: other candidates of the segment, and, behind candidates that have ended, the candidates of the segment
//! that begins there. One of those that have ended wins in the end, and by then the next segment has been decoded about as far as
//! the walk's longest candidate took longer. So a segment costs the steps of its winner, and not those of its longest candidate.
//!
//! Chances order the work and decide nothing else. They are rough: what the walk visits lies near the top of the last gradient's
//! scores, because gradients of the candidates of a segment are alike.

use super::Intervention;
use super::branch::{Ahead, Branch};
use crate::answer::CandidateStop;
use crate::method::candidate::CandidateState;
use crate::method::nudge::Shortlist;

/// How likely the walk comes to a candidate that it has not asked for, from its place in the order of proposals.
fn visit_chance(place: usize, scored: bool) -> f64 {
    let place = i32::try_from(place).unwrap_or(i32::MAX);
    // Without a gradient there is only the policy's own order.
    if scored { 0.95 * 0.75f64.powi(place) } else { 0.25 * 0.95f64.powi(place) }
}

/// How likely a candidate that is visited turns out to be the best one.
const WINS: f64 = 0.35;
/// Candidates of the segment that are less likely than this leave their rows to the next one.
const UNLIKELY: f64 = 0.05;
/// Candidates that a walk visits, about.
const VISITS: f64 = 2.5;

/// How likely a candidate of the next segment is of use if that segment is: the unforced one always.
pub(super) fn chance_ahead(place: usize) -> f64 {
    if place == 0 { 1.0 } else { visit_chance(place, false) }
}

impl Intervention {
    /// Whether the walk can still come to a branch, or has.
    pub(super) fn reaches(&self, index: usize) -> bool {
        // The earliest that another one can be visited is behind the one that the walk waits for.
        index == self.current
            || self.branches[index].visited
            || self.walk.candidates().len().saturating_add(1) < self.walk.most()
    }

    /// Branches beside the one that the walk waits for, which it may still come to.
    pub(super) fn others(&self) -> impl Iterator<Item = (usize, &Branch)> {
        let branches = self.branches.iter().enumerate();
        branches.filter(|&(index, branch)| index != self.current && !branch.visited && self.reaches(index))
    }

    /// Chances that the walk comes to each branch that it has not visited.
    pub(super) fn chances(&self) -> Vec<f64> {
        let mut chances = vec![0.0; self.branches.len()];
        if let Some(chance) = chances.get_mut(self.current) {
            *chance = 1.0;
        }
        let Some(list) = self.shortlist.as_ref().filter(|_| self.branches.len() > 1) else { return chances };
        let ordered = !self.walk.candidates().is_empty() || !self.decoding.options.proposals.differentiates();
        let mut before = 0;
        for &place in self.proposal_order.iter().skip(self.passed) {
            let at_slot = |branch: &Branch| branch.state.generated().get(self.offset) == list.ids.get(place);
            if let Some((index, _)) = self.others().find(|(_, branch)| at_slot(branch)) {
                chances[index] = visit_chance(before, ordered);
                before += 1;
            }
        }
        chances
    }

    /// Branches that have ended and may win, the likeliest first, with the chance of each.
    pub(super) fn possible_winners(&self, chances: &[f64]) -> Vec<(f64, usize)> {
        let best = self.best.map(|(index, rewards)| (index, rewards.last));
        let visited = self.walk.candidates().len() as f64;
        let chance = |(index, branch): (usize, &Branch)| {
            if branch.state.stop() != Some(CandidateStop::Entropy) || branch.state.dropped().is_none() {
                return None;
            }
            let scored = branch.reward.as_ref().map(|scored| scored.reward);
            match best {
                Some((best, _)) if best == index => Some(visited / (visited + 1.0 + (VISITS - visited).max(0.0))),
                Some(_) if branch.visited => None,
                // An equal reward leaves the earlier one ahead.
                Some((_, reward)) if scored.is_some_and(|scored| scored <= reward) => None,
                _ if branch.failed.is_some() || !self.reaches(index) => None,
                _ => Some(chances.get(index).copied().unwrap_or_default() * WINS),
            }
        };
        let branches = self.branches.iter().enumerate().filter(|(_, branch)| !branch.retired);
        let mut winners: Vec<(f64, usize)> =
            branches.filter_map(|(index, branch)| Some((chance((index, branch))?, index))).collect();
        winners.sort_by(|a, b| b.0.total_cmp(&a.0));
        winners
    }

    /// Starts segments behind branches that may win, as far as there are rows for them.
    pub(super) fn start_ahead(&mut self, same: &dyn Fn(u32, u32) -> bool) {
        let most_segments = self.decoding.options.max_segments;
        if most_segments.is_some_and(|most| self.segments.len().saturating_add(1) >= most) {
            return;
        }
        let chances = self.chances();
        let likely = |index: usize| chances.get(index).is_some_and(|&chance| chance >= UNLIKELY);
        let decoding = self.others().filter(|&(index, branch)| branch.decodes() && likely(index)).count();
        let needed = usize::from(self.branches[self.current].decodes());
        let mut rows = self.speculation.rows.saturating_sub(decoding + needed);
        for (_, index) in self.possible_winners(&chances) {
            if rows == 0 {
                break;
            }
            rows = rows.saturating_sub(self.fill_ahead(index, rows, same));
        }
    }

    /// Starts candidates of the segment behind a branch until so many of them are decoded. Returns how many are.
    fn fill_ahead(&mut self, index: usize, rows: usize, same: &dyn Fn(u32, u32) -> bool) -> usize {
        let branch = &mut self.branches[index];
        let kept = branch.state.kept().len();
        if branch.ahead.is_none() {
            let Some(row) = branch.last.take() else { return 0 };
            let list = Shortlist::new(&row.row.top, self.decoding.shortlist_len);
            let mut unforced = Branch::new(branch.number, CandidateState::unforced(self.prefix.len() + kept));
            self.tokens += 1;
            self.decoding.push(&mut unforced, row, 0);
            branch.ahead = Some(Box::new(Ahead { branches: vec![unforced], list, passed: 0 }));
        }
        let Some(ahead) = &mut branch.ahead else { return 0 };
        let mut decoded = ahead.branches.iter().filter(|branch| branch.decodes()).count();
        // A forced candidate that was dropped at once has no sequence of its own to fork from, and tokens that are drawn are not
        // known before the draw.
        let options = &self.decoding.options;
        let listed = options.proposals.differentiates() || options.proposals == crate::method::Proposals::All;
        if kept <= self.offset || options.max_candidates <= 1 || !listed {
            return decoded;
        }
        while decoded < rows && ahead.branches.len() < self.speculation.width {
            let Some(&proposed) = ahead.list.ids.get(ahead.passed) else { break };
            ahead.passed += 1;
            let unforced = &ahead.branches[0];
            let (Some(row), false) = (&unforced.at_slot, unforced.state.generated().is_empty()) else { break };
            if unforced.state.generated().first() == Some(&proposed) || ahead.list.placed(proposed, same) != proposed {
                continue;
            }
            self.numbers += 1;
            let mut forced = Branch::new(self.numbers, unforced.state.forced(0, proposed, proposed));
            self.tokens += 1;
            self.decoding.push_forced(&mut forced, row);
            decoded += usize::from(forced.decodes());
            ahead.branches.push(forced);
        }
        decoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_in_an_order_is_likelier() {
        for scored in [false, true] {
            assert!((0..100).all(|place| visit_chance(place, scored) >= visit_chance(place + 1, scored)));
            assert!(visit_chance(usize::MAX, scored) >= 0.0 && visit_chance(0, scored) < 1.0);
        }
        assert_eq!(chance_ahead(0), 1.0);
    }
}
