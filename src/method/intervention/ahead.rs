//! What is run before the walk asks for it, and how likely it is to be of use.
//!
//! Two kinds of text are: other candidates of the segment, and, behind candidates that have ended, the candidates of the segment
//! that begins there, and of the one behind that. One of those that have ended wins in the end, and by then the next segment has
//! been decoded about as far as the walk's longest candidate took longer. So a segment costs the steps of its winner, and not
//! those of its longest candidate. Rewards of the next segment go along with those that are needed: when it is that segment's
//! turn, its walk is known as far as they are.
//!
//! Chances order the work and decide nothing else. They are rough: what the walk visits lies near the top of the last gradient's
//! scores, because gradients of the candidates of a segment are alike.

use super::Intervention;
use super::branch::{Ahead, Branch};
use super::proposal::{first_order, sort_places};
use crate::method::candidate::CandidateState;
use crate::method::nudge::Shortlist;
use crate::method::{Options, Proposals};
use crate::model::Role;
use crate::task::{Ask, BranchPath, GradientAsk, SeqKey, Task, TaskOrigin, pool_position};
use std::sync::Arc;

/// How likely the walk comes to a candidate that it has not asked for, from its place in the order of proposals.
fn visit_chance(place: usize, scored: bool) -> f64 {
    let place = i32::try_from(place).unwrap_or(i32::MAX);
    // Without a gradient there is only the policy's own order.
    if scored { 0.95 * 0.75f64.powi(place) } else { 0.25 * 0.95f64.powi(place) }
}

/// How likely a candidate that is visited turns out to be the best one.
const WINS: f64 = 0.35;
/// Candidates of the segment that are less likely than this leave their rows to the next one.
pub(super) const UNLIKELY: f64 = 0.05;
/// Candidates that a walk visits, about.
const VISITS: f64 = 2.5;
/// Branches of later segments that are begun, for each row that there is for them. Most never run: which of them are likely
/// changes with every reward, and what is begun then is not begun late.
const STARTED: usize = 8;

/// How likely the best of so many candidates that were scored wins.
fn best_wins(scored: usize) -> f64 {
    let scored = scored as f64;
    scored / (scored + 1.0 + (VISITS - scored).max(0.0))
}

impl Ahead {
    /// A segment whose unforced branch has begun.
    fn new(unforced: Branch, list: Shortlist) -> Ahead {
        let (candidates, order) = (Arc::from(&list.ids[..]), (0..list.ids.len()).collect());
        Ahead { branches: vec![unforced], chances: vec![1.0], list, candidates, order, ordered: false }
    }

    /// Finds the chances again, for other branches or another order.
    fn update_chances(&mut self) {
        let at_slot = |branch: &Branch| branch.state.generated().first().copied();
        let unforced = self.branches.first().and_then(at_slot);
        let ids = self.order.iter().filter_map(|&place| self.list.ids.get(place).copied());
        let others: Vec<u32> = ids.filter(|&id| Some(id) != unforced).collect();
        let chance = |branch: &Branch| {
            let before = others.iter().position(|&id| at_slot(branch) == Some(id));
            before.map_or(0.0, |before| visit_chance(before, self.ordered))
        };
        self.chances = std::iter::once(1.0).chain(self.branches.iter().skip(1).map(chance)).collect();
    }

    /// Branches that have ended and may win, with the chance of each if the segment is of use.
    fn possible_winners(&self) -> impl Iterator<Item = (f64, usize)> {
        let scored = self.branches.iter().filter_map(|branch| Some(branch.reward.as_ref()?.reward));
        let (count, best) = (scored.clone().count(), scored.fold(f32::NEG_INFINITY, f32::max));
        let chance = move |branch: &Branch, chance: f64| match &branch.reward {
            _ if !branch.goes_on() || branch.failed.is_some() => None,
            Some(scored) if scored.reward < best => None,
            Some(_) => Some(best_wins(count)),
            None => Some(chance * WINS),
        };
        let places = self.branches.iter().zip(&self.chances).enumerate();
        places.filter_map(move |(place, (branch, &own))| Some((chance(branch, own)?, place)))
    }

    /// Takes the order of the proposals from a branch's gradient.
    pub(super) fn sort(&mut self, place: usize, options: &Options) {
        if options.proposals != Proposals::Gradient {
            return;
        }
        let Some(branch) = self.branches.get(place) else { return };
        let gradient = branch.reward.as_ref().and_then(|scored| scored.gradient.as_ref());
        let (Some((dots, _)), Some(&current)) = (gradient, branch.state.generated().first()) else { return };
        let at_slot = self.branches.first().and_then(|unforced| unforced.at_slot.as_ref());
        if let Ok(scores) = first_order(options, &self.list, dots, current, at_slot) {
            sort_places(&mut self.order, &scores);
            self.ordered = true;
            self.update_chances();
        }
    }
}

/// The branch at the end of a path.
pub(super) fn find_mut(branches: &mut [Branch], path: BranchPath) -> Option<&mut Branch> {
    let mut branch = branches.get_mut(path.branch())?;
    for &place in path.places() {
        branch = branch.ahead.as_mut()?.branches.get_mut(place)?;
    }
    Some(branch)
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
        let visited = self.walk.candidates().len();
        let chance = |(index, branch): (usize, &Branch)| {
            if !branch.goes_on() {
                return None;
            }
            let scored = branch.reward.as_ref().map(|scored| scored.reward);
            match best {
                Some((best, _)) if best == index => Some(best_wins(visited)),
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
        let chances = self.chances();
        let likely = |index: usize| chances.get(index).is_some_and(|&chance| chance >= UNLIKELY);
        let decoding = self.others().filter(|&(index, branch)| branch.decodes() && likely(index)).count();
        let needed = usize::from(self.branches[self.current].decodes());
        let rows = self.speculation.rows.saturating_sub(decoding + needed);
        if rows == 0 {
            return;
        }
        let mut ends = Vec::new();
        for (chance, index) in self.possible_winners(&chances) {
            self.ends(BranchPath::new(index), chance, &mut ends);
        }
        ends.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut decoded = 0;
        for (_, path) in ends {
            if decoded >= rows.saturating_mul(STARTED) {
                break;
            }
            decoded += self.fill_ahead(path, rows, same);
        }
    }

    /// Branches behind which a segment may begin: this one, and those of the segment behind it.
    fn ends(&self, path: BranchPath, chance: f64, out: &mut Vec<(f64, BranchPath)>) {
        let before = self.segments.len().saturating_add(path.places().len());
        let most = self.decoding.options.max_segments;
        if path.then(0).is_none() || most.is_some_and(|most| before.saturating_add(1) >= most) {
            return;
        }
        out.push((chance, path));
        if let Some(ahead) = self.branch_at(path).and_then(|branch| branch.ahead.as_ref()) {
            for (wins, place) in ahead.possible_winners() {
                path.then(place).into_iter().for_each(|path| self.ends(path, chance * wins, out));
            }
        }
    }

    /// The branch at the end of a path.
    pub(super) fn branch_at(&self, path: BranchPath) -> Option<&Branch> {
        let branch = self.branches.get(path.branch())?;
        path.places().iter().try_fold(branch, |branch, &place| branch.ahead.as_ref()?.branches.get(place))
    }

    /// Starts candidates of the segment behind a branch until so many of them are decoded. Returns how many are.
    fn fill_ahead(&mut self, path: BranchPath, rows: usize, same: &dyn Fn(u32, u32) -> bool) -> usize {
        let offset = if path.places().is_empty() { self.offset } else { 0 };
        let Some(branch) = find_mut(&mut self.branches, path) else { return 0 };
        let kept = branch.state.kept().len();
        if branch.ahead.is_none() {
            let Some(row) = branch.last.take() else { return 0 };
            let list = Shortlist::new(&row.row.top, self.decoding.shortlist_len);
            let mut unforced = Branch::new(branch.number, CandidateState::unforced(branch.start() + kept));
            self.tokens += 1;
            self.decoding.push(&mut unforced, row, 0);
            branch.ahead = Some(Box::new(Ahead::new(unforced, list)));
        }
        let Some(ahead) = &mut branch.ahead else { return 0 };
        let mut decoded = ahead.branches.iter().filter(|branch| branch.decodes()).count();
        // A forced candidate that was dropped at once has no sequence of its own to fork from, and tokens that are drawn are not
        // known before the draw.
        let options = &self.decoding.options;
        let listed = options.proposals.differentiates() || options.proposals == Proposals::All;
        if kept <= offset || options.max_candidates <= 1 || !listed {
            return decoded;
        }
        let begun = ahead.branches.len();
        for &place in &ahead.order {
            if decoded >= rows || ahead.branches.len() >= self.speculation.width {
                break;
            }
            let Some(&proposed) = ahead.list.ids.get(place) else { continue };
            let unforced = &ahead.branches[0];
            let (Some(row), false) = (&unforced.at_slot, unforced.state.generated().is_empty()) else { break };
            let there = |branch: &Branch| branch.state.generated().first() == Some(&proposed);
            if ahead.branches.iter().any(there) || ahead.list.placed(proposed, same) != proposed {
                continue;
            }
            self.numbers += 1;
            let mut forced = Branch::new(self.numbers, unforced.state.forced(0, proposed, proposed));
            self.tokens += 1;
            self.decoding.push_forced(&mut forced, row);
            decoded += usize::from(forced.decodes());
            ahead.branches.push(forced);
        }
        if ahead.branches.len() > begun {
            ahead.update_chances();
        }
        decoded
    }

    /// What is run of the segments behind a branch, should it win with this chance.
    pub(super) fn likely_ahead(&self, path: BranchPath, chance: f64, out: &mut Vec<(f64, TaskOrigin)>) {
        let Some(branch) = self.branch_at(path) else { return };
        let Some(ahead) = &branch.ahead else { return };
        // Its reward sequence is what theirs go on from.
        let scored = path.places().is_empty() && branch.reward.is_some();
        for (place, (own, likely)) in ahead.branches.iter().zip(&ahead.chances).enumerate() {
            let (Some(path), chance) = (path.then(place), chance * likely) else { continue };
            if own.decodes() {
                out.push((chance, TaskOrigin::RunAhead(path)));
            } else if scored && chance >= UNLIKELY && own.reward.is_none() && own.failed.is_none() {
                out.push((chance, TaskOrigin::ScoreAhead(path)));
            }
        }
        for (wins, place) in ahead.possible_winners() {
            path.then(place).into_iter().for_each(|path| self.likely_ahead(path, chance * wins, out));
        }
    }

    fn key_at(&self, path: BranchPath, role: Role) -> Option<SeqKey> {
        match path.split() {
            None => Some(self.key_of(path.branch(), role)),
            // The unforced one goes on with the sequence of the branch before it.
            Some((before, 0)) => self.key_at(before, role),
            Some(_) => self.branch_at(path).map(|branch| SeqKey { role, number: branch.number }),
        }
    }

    fn parent_at(&self, path: BranchPath, role: Role) -> Option<(SeqKey, usize)> {
        match path.split() {
            None => self.parent_of(path.branch(), role),
            Some((before, 0)) => self.parent_at(before, role),
            // The others fork where the segment before them ends.
            Some((before, _)) => Some((self.key_at(before, role)?, self.branch_at(path)?.start())),
        }
    }

    /// The next token of a branch of a later segment, if it has one.
    pub(super) fn decode_ahead(&self, path: BranchPath, chance: f64) -> Option<Task> {
        let branch = self.branch_at(path).filter(|branch| branch.decodes())?;
        let (len, next) = (branch.state.len(), branch.state.generated().len());
        Some(Task {
            key: self.key_at(path, Role::Policy)?,
            parent: self.parent_at(path, Role::Policy),
            len,
            fresh: len - 1,
            speculative: true,
            chance,
            ask: self.decoding.ask(len, next, 0),
            origin: TaskOrigin::RunAhead(path),
        })
    }

    /// The reward of an ended branch of the next segment, if its text has a token.
    pub(super) fn score_ahead(&self, path: BranchPath, chance: f64) -> Option<Task> {
        let (before, _) = path.split()?;
        let (before, branch) = (self.branch_at(before)?, self.branch_at(path)?);
        let (start, kept) = (branch.start(), branch.state.kept());
        let (len, last) = (start + kept.len(), (start + kept.len()).checked_sub(1)?);
        let options = &self.decoding.options;
        let place = path.places().last()?;
        // The unforced one proposes if it may; the earliest that another one is visited is as the second.
        let proposes = options.max_candidates > if *place == 0 { 1 } else { 2 };
        if kept.is_empty() || !proposes || !options.proposals.differentiates() {
            return None;
        }
        let tail = [before.state.kept(), kept].concat();
        let pool = pool_position(&self.prefix, &tail, options.reward_pad_id);
        let candidates = before.ahead.as_ref()?.candidates.clone();
        Some(Task {
            key: self.key_at(path, Role::Reward)?,
            parent: self.parent_at(path, Role::Reward),
            len,
            fresh: start,
            speculative: true,
            chance,
            ask: Ask::Reward {
                also_at: [pool].into_iter().filter(|&at| at >= start && at != last).collect(),
                gradient: Some(GradientAsk { slot: start, candidates, rows: false }),
            },
            origin: TaskOrigin::ScoreAhead(path),
        })
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
        assert!((1..100).all(|scored| best_wins(scored) < best_wins(scored + 1)));
    }
}
