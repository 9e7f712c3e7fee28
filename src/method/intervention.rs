//! One response of the method as a state machine: branches, the walk through them, what is asked of the models next.
//!
//! A response is a sequence of segments. In each segment the policy decodes greedily until it becomes uncertain. The gradient of
//! the reward at the slot's embedding then says which of the policy's own likely tokens to try at the slot instead. This goes on
//! from candidate to candidate until one would repeat. The best candidate is committed, and the next segment begins where that
//! one became uncertain.
//!
//! A candidate depends on the prefix and the token at the slot alone, and the tokens that can stand there are known as soon as the
//! slot is reached. So candidates may be decoded and scored before the walk reaches them ([`Speculation`]), and those of the next
//! segment before this one's winner is known (`ahead`). A candidate that the walk never reaches changes nothing: neither the
//! record, nor the uniform numbers, nor the work counted. Its errors are dropped.
//!
//! Where no gradient proposes ([`Proposals::Random`], [`Proposals::All`]), the tokens to try are known in their order as soon as
//! the slot is reached. What is run ahead is in vain only if the walk ends before.
//!
//! No work is done twice:
//!
//! * The policy sequence that holds the prefix is continued by the unforced candidate; each forced one forks off it at the slot.
//!   The winner's sequence holds the next prefix, and the distribution that made the winner stop is the next segment's first. Only the
//!   last generated token of a candidate never runs through the policy.
//! * The reward sequence goes the same way. Rewards of positions that no later span will pass again (the end of the prefix, the
//!   position where the final reward is pooled) are asked for when their span is run.
//! * The largest logits are reported only for a distribution that is, or may turn out to be, the one at a slot.

mod ahead;
mod branch;
mod proposal;
mod tasks;

use self::branch::Branch;
use self::proposal::unscored;
use crate::answer::{CandidateStop, FinishReason, Margins, Response, Segment};
use crate::method::candidate::{CandidateState, Decoding, smallest};
use crate::method::nudge::{self, Shortlist};
use crate::method::walk::Walk;
use crate::method::{Options, Proposals};
use crate::model::Work;
use crate::rng::Uniforms;
use crate::task::{Outcome, Progress, RewardOutput, Speculation, pool_position};
use crate::{Error, Result};
use std::sync::Arc;

/// Rewards of a text at its last position, and where the final reward would be pooled if it ended there.
#[derive(Clone, Copy, Debug)]
struct PooledReward {
    last: f32,
    pooled: f32,
}

/// A response in progress.
pub struct Intervention {
    decoding: Decoding,
    uniforms: Uniforms,
    uniforms_used: Vec<f64>,
    /// Prompt and committed segments.
    prefix: Vec<u32>,
    /// Positions of the trunk's reward sequence that were run.
    reward_len: usize,
    /// Rewards of the prefix, once anything was scored.
    known: Option<PooledReward>,
    /// Sequences of the trunk, and where they came from if nothing was run on them yet.
    trunk: [u32; 2],
    fork_from: [Option<(u32, usize)>; 2],
    numbers: u32,

    // The segment in progress.
    offset: usize,
    walk: Walk,
    branches: Vec<Branch>,
    shortlist: Option<Arc<Shortlist>>,
    candidates: Arc<[u32]>,
    /// The branch that the walk waits for.
    current: usize,
    best: Option<(usize, PooledReward)>,
    /// Rewards up to the slot.
    before: Option<PooledReward>,
    /// Whether what the branches share goes through the reward model by itself.
    shared_apart: bool,
    /// Gap between the two most likely of the ids whose embedding is the proposed one's.
    tied_embedding: Option<f64>,
    /// Places on the shortlist in the order in which they are likely to be proposed.
    proposal_order: Vec<usize>,
    /// Where all of the shortlist is tried: how much of it was.
    passed: usize,
    speculation: Speculation,

    segments: Vec<Segment>,
    segment_boundaries: Vec<usize>,
    necessary: Work,
    tokens: usize,
    progress: Vec<Progress>,
    outcome: Outcome<Response>,
}

impl Intervention {
    /// A response to `prompt`. Ranges and lengths have to be checked before; `vocab` are the ids of policy and reward model.
    pub fn new(prompt: &[u32], options: &Options, uniforms: Uniforms, vocab: (usize, usize)) -> Intervention {
        Intervention {
            uniforms,
            uniforms_used: Vec::new(),
            prefix: prompt.to_vec(),
            reward_len: 0,
            known: None,
            trunk: [0, 0],
            fork_from: [None, None],
            numbers: 0,
            offset: options.first_offset,
            walk: Walk::new(prompt.len(), options.first_offset, options),
            branches: vec![Branch::new(0, CandidateState::unforced(prompt.len()))],
            shortlist: None,
            candidates: Arc::from([]),
            current: 0,
            best: None,
            before: None,
            shared_apart: false,
            tied_embedding: None,
            proposal_order: Vec::new(),
            passed: 0,
            speculation: Speculation::OFF,
            segments: Vec::new(),
            segment_boundaries: Vec::new(),
            necessary: Work { policy_forward: prompt.len() as u64, ..Work::default() },
            tokens: 0,
            progress: Vec::new(),
            outcome: Outcome::pending(),
            decoding: Decoding::new(prompt.len(), options, vocab),
        }
    }

    /// Where the reward of the prefix followed by `tail` is pooled.
    fn pool(&self, tail: &[u32]) -> usize {
        pool_position(&self.prefix, tail, self.decoding.options.reward_pad_id)
    }

    /// Absolute position of the slot.
    fn slot(&self) -> usize {
        self.walk.slot()
    }

    /// Branches beside the one that the walk waits for, decoded before anyone asked for them.
    fn spawn(&mut self, speculation: Speculation, same: &dyn Fn(u32, u32) -> bool) {
        let visited = self.walk.candidates().len();
        if speculation.width <= 1 || visited + 1 >= self.walk.most() {
            return;
        }
        let Some(shortlist) = &self.shortlist else { return };
        if self.branches[0].state.generated().len() <= self.offset {
            return;
        }
        // Those that come first in the order of proposals; others that are there already take no place from them.
        let mut waiting = 0;
        let mut tokens = Vec::new();
        for &place in self.proposal_order.iter().skip(self.passed) {
            if waiting + 1 >= speculation.width {
                break;
            }
            let proposed = shortlist.ids[place];
            // Most are there already; which token would be placed takes longer to find out.
            let there = |branch: &Branch| branch.state.generated().get(self.offset) == Some(&proposed);
            if let Some(index) = self.branches.iter().position(there) {
                let branch = &self.branches[index];
                waiting += usize::from(index != self.current && !branch.visited && !branch.retired);
                continue;
            }
            if shortlist.placed(proposed, same) == proposed {
                tokens.push(proposed);
                waiting += 1;
            }
        }
        for token in tokens {
            self.force(token, token);
        }
    }

    /// A new branch with another token at the slot. Returns its index.
    fn force(&mut self, proposed: u32, placed: u32) -> usize {
        self.numbers += 1;
        let mut branch = Branch::new(self.numbers, self.branches[0].state.forced(self.offset, proposed, placed));
        if let Some(row) = &self.branches[0].at_slot {
            self.tokens += 1;
            self.decoding.push_forced(&mut branch, row);
        } else {
            branch.failed = Some(internal("the row at a slot"));
        }
        self.branches.push(branch);
        self.branches.len() - 1
    }

    /// Rewards that a scored branch brings, checked: of itself, and up to the slot.
    fn rewards(&self, index: usize) -> Result<(PooledReward, Option<PooledReward>)> {
        let branch = &self.branches[index];
        let kept = branch.state.kept();
        let len = self.prefix.len() + kept.len();
        let last = len - 1;
        let proposes = self.walk.will_propose(kept.len());
        if index == 0
            && proposes
            && self.shared_apart
            && let Some(before) = self.before
        {
            finite("reward", before.last, self.slot() - 1)?;
            finite("reward", before.pooled, self.pool(self.shared_tail()))?;
        }
        let Some(scored) = &branch.reward else {
            return Err(internal("a reward"));
        };
        if self.scored_from(index) == len {
            let known = self.before.ok_or_else(|| internal("an unknown reward"))?;
            return Ok((known, None));
        }
        if scored.also.len() != branch.also_at.len() {
            return Err(internal("a reward per position"));
        }
        let asked = branch.also_at.iter().chain([&last]).zip(scored.also.iter().chain([&scored.reward]));
        for (&position, &reward) in asked {
            finite("reward", reward, position)?;
        }
        if let Some((dots, norm)) = scored.gradient.as_ref().filter(|_| self.differentiates(index, kept.len())) {
            for &value in dots.iter().chain([norm]) {
                finite("reward gradient", value, self.slot())?;
            }
        }
        let at = |position: usize| -> Result<f32> {
            if position == last {
                return Ok(scored.reward);
            }
            match branch.also_at.iter().position(|&asked| asked == position) {
                Some(i) => Ok(scored.also[i]),
                // Before the span only the position where the final reward is pooled is ever looked up.
                None => self.before.map(|known| known.pooled).ok_or_else(|| internal("an unknown reward")),
            }
        };
        let pool = self.pool(kept);
        let before = match self.before_slot(index) {
            Some((last, pooled)) => Some(PooledReward { last: at(last)?, pooled: at(pooled)? }),
            None => None,
        };
        Ok((PooledReward { last: scored.reward, pooled: at(pool)? }, before))
    }

    /// Goes one step along the walk, if the branch it waits for is complete.
    fn step(&mut self, same: &dyn Fn(u32, u32) -> bool) -> Result<bool> {
        let index = self.current;
        if self.branches[index].failed.is_some() {
            return Err(self.branches[index].failed.take().unwrap_or_else(|| internal("an error")));
        }
        if !self.branches[index].ended() {
            return Ok(false);
        }
        if self.branches[index].reward.is_none() {
            if self.has_unscored(index) || self.shared_waits() {
                return Ok(false);
            }
            // The text ends where an earlier one did, so its reward is known.
            self.branches[index].reward = Some(RewardOutput::default());
        }
        let kept = self.branches[index].state.kept().len();
        let proposes = self.walk.will_propose(kept);
        let proposals = self.decoding.options.proposals;
        let listed = kept > self.offset && (proposes || self.decoding.options.full_trace);
        let differentiates = listed && proposals.differentiates();
        let shortlist = match &self.shortlist {
            Some(list) if !list.ids.is_empty() => Some(list.clone()),
            _ if listed => return Err(internal("the largest logits at a slot")),
            _ => None,
        };
        let (rewards, before) = self.rewards(index)?;
        self.count(index, kept, differentiates);
        self.before = before.or(self.before);

        let mut margins = Margins { tied_embedding: self.tied_embedding.take(), ..Margins::default() };
        let gradient = self.branches[index].reward.as_mut().and_then(|scored| scored.gradient.take());
        // The list is the same for all candidates of a segment. Where there may be as many as it is long, one has it.
        let recorded = listed && (index == 0 || proposals != Proposals::All);
        let mut slot = None;
        if let Some(list) = shortlist.as_ref().filter(|_| recorded) {
            let (found, margin) = match proposals {
                Proposals::Gradient | Proposals::ShuffledGradient => {
                    let (dots, norm) = gradient.ok_or_else(|| internal("a gradient"))?;
                    if dots.len() != list.ids.len() {
                        return Err(internal("a first-order score per proposal"));
                    }
                    let current = self.branches[index].state.kept()[self.offset];
                    self.propose(list, dots, norm, current, proposes)?
                }
                Proposals::Random => self.draw(list, proposes)?,
                Proposals::All => (unscored(list), None),
            };
            margins.score = margin;
            margins.top_k_edge = list.edge_margin;
            slot = Some(found);
        }
        let mut proposed = slot.as_ref().and_then(|slot| slot.next_proposal);
        if let Some(list) = shortlist.as_ref().filter(|_| proposes && proposals == Proposals::All) {
            proposed = self.next_untried(list, same);
            if let Some(slot) = &mut slot {
                slot.next_proposal = proposed;
            }
        }
        let branch = &mut self.branches[index];
        branch.visited = true;
        let record = branch.state.record(&self.decoding, rewards.last, slot, margins);
        let loser = if self.walk.add(record) {
            self.best.replace((index, rewards)).map(|(loser, _)| loser)
        } else {
            Some(index)
        };
        if let Some(loser) = loser {
            self.branches[loser].ahead = None;
            // The unforced branch's sequences stay while there may be more forks of them.
            self.branches[loser].retired = loser != 0;
        }
        if proposes && proposals == Proposals::All && proposed.is_none() {
            self.walk.exhaust();
        }
        if self.walk.end().is_none() {
            let proposed = proposed.ok_or_else(|| internal("a proposal"))?;
            let list = shortlist.ok_or_else(|| internal("the largest logits at a slot"))?;
            let placed = list.placed(proposed, same);
            if !self.walk.close(proposed, placed) {
                let slot_row = self.branches[0].at_slot.as_ref();
                self.tied_embedding = match slot_row.and_then(|row| row.logits.as_ref()) {
                    Some(row) => nudge::tied_margin(&row[..self.decoding.reward_vocab.min(row.len())], proposed, same),
                    None => list.tied_margin(proposed, same),
                };
                // None that was visited: a token that was at the slot before closes the walk.
                let there = |b: &Branch| b.state.generated().get(self.offset) == Some(&placed);
                self.current = match self.branches.iter().position(there) {
                    Some(index) => index,
                    None => self.force(proposed, placed),
                };
                self.branches[self.current].state.propose(proposed);
                return Ok(true);
            }
        }
        self.commit()?;
        Ok(true)
    }

    /// Counts what had to be run for a branch that the walk has reached.
    fn count(&mut self, index: usize, kept: usize, differentiates: bool) {
        let generated = self.branches[index].state.generated().len();
        let shared = if index == 0 { 0 } else { self.offset };
        self.necessary.policy_forward += (generated - 1 - shared.min(generated - 1)) as u64;
        let len = self.prefix.len() + kept;
        self.necessary.reward_forward += (len - self.scored_from(index)) as u64;
        if differentiates {
            self.necessary.reward_backward += (len - self.slot()) as u64;
        }
    }

    /// Makes the winner the prefix of the next segment.
    fn commit(&mut self) -> Result<()> {
        let (index, rewards) = self.best.take().ok_or_else(|| internal("a candidate"))?;
        let (start, slot, first_trunk) = (self.prefix.len(), self.slot(), self.trunk);
        let options = &self.decoding.options;
        let walk = std::mem::replace(&mut self.walk, Walk::new(0, 0, options));
        let segment = walk.finish();
        let mut winner = self.branches.swap_remove(index);
        self.branches.clear();

        let kept = winner.state.kept();
        self.prefix.extend_from_slice(kept);
        let new_tokens = self.prefix.len() - self.decoding.prompt_len;
        let (boundary, end) = if winner.state.stop() == Some(CandidateStop::Finish) {
            (self.prefix.len() - 1, Some(FinishReason::Finish))
        } else if new_tokens >= options.max_new_tokens
            || options.max_segments.is_some_and(|most| self.segments.len() + 1 >= most)
        {
            (self.prefix.len(), Some(FinishReason::Length))
        } else if kept.is_empty() {
            (self.prefix.len(), Some(FinishReason::Stalled))
        } else {
            (self.prefix.len(), None)
        };
        self.progress.push(Progress::Segment(segment.clone(), self.prefix[start..].to_vec()));
        self.segments.push(segment);
        self.segment_boundaries.push(boundary);
        if index != 0 {
            self.trunk = [winner.number; 2];
            // A forced token that was dropped at once: its sequences were never run, and are still to fork off.
            let unrun = self.prefix.len() == slot;
            self.fork_from = first_trunk.map(|key| unrun.then_some((key, slot)));
        }
        self.reward_len = self.prefix.len();
        self.known = Some(rewards);
        if let Some(reason) = end {
            self.finish(reason, rewards);
            return Ok(());
        }

        self.branches = match winner.ahead.take() {
            Some(ahead) => ahead.branches,
            None => {
                let row = winner.last.take().ok_or_else(|| internal("the row after a segment"))?;
                let mut next = Branch::new(winner.number, CandidateState::unforced(self.prefix.len()));
                self.tokens += 1;
                self.decoding.push(&mut next, row, 0);
                vec![next]
            }
        };
        self.offset = 0;
        self.walk = Walk::new(self.prefix.len(), 0, &self.decoding.options);
        self.current = 0;
        self.before = self.known;
        self.shortlist = None;
        self.passed = 0;
        self.shared_apart = false;
        self.tied_embedding = None;
        self.reach_slot();
        Ok(())
    }

    /// Notes the proposals of a segment once its slot is reached.
    fn reach_slot(&mut self) {
        if self.shortlist.is_some() {
            return;
        }
        let Some(row) = &self.branches[0].at_slot else { return };
        let list = Shortlist::new(&row.row.top, self.decoding.shortlist_len);
        self.candidates = Arc::from(&list.ids[..]);
        self.proposal_order = match self.decoding.options.proposals {
            Proposals::Random => self.upcoming(&list),
            Proposals::Gradient | Proposals::ShuffledGradient | Proposals::All => (0..list.ids.len()).collect(),
        };
        self.shortlist = Some(Arc::new(list));
    }

    fn finish(&mut self, finish_reason: FinishReason, rewards: PooledReward) {
        let segments = std::mem::take(&mut self.segments);
        let response = Response {
            prompt_len: self.decoding.prompt_len,
            finish_reason,
            segment_boundaries: std::mem::take(&mut self.segment_boundaries),
            num_nudges: segments.iter().filter(|segment| segment.best != 0).count(),
            last_segment_reward: rewards.last,
            final_reward: rewards.pooled,
            final_pool_position: self.pool(&[]),
            final_ids: self.prefix.clone(),
            uniforms_used: std::mem::take(&mut self.uniforms_used),
            min_margins: smallest_margins(&segments),
            segments,
            respelled: None,
            work: self.necessary,
        };
        self.end(Ok(response));
    }

    fn end(&mut self, outcome: Result<Response>) {
        self.branches.clear();
        self.outcome.end(outcome);
    }
}

fn finite(what: &'static str, value: f32, position: usize) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::NonFinite { what, model: "reward", position })
}

/// The backend broke its contract, or this module misread it.
fn internal(missing: &str) -> Error {
    Error::Backend(format!("the backend did not return what was asked for: {missing}"))
}

/// The smallest of each margin over all candidates and segments.
fn smallest_margins(segments: &[Segment]) -> Margins {
    let least = |of: fn(&Margins) -> Option<f64>| {
        let candidates = segments.iter().flat_map(|segment| &segment.candidates);
        smallest(candidates.filter_map(|candidate| of(&candidate.margins)))
    };
    Margins {
        argmax: least(|margins| margins.argmax),
        entropy: least(|margins| margins.entropy),
        score: least(|margins| margins.score),
        top_k_edge: least(|margins| margins.top_k_edge),
        reward: smallest(segments.iter().filter_map(|segment| segment.reward_margin)),
        tied_embedding: least(|margins| margins.tied_embedding),
    }
}
