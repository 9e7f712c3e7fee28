//! The decision: segment boundaries, the refinement walk, keep the best, stop.
//!
//! A response is a row of segments. In each one the policy writes greedily until it becomes uncertain; the reward model
//! then says, by the gradient at the slot's embedding, which of the policy's own likely tokens to try there instead, and
//! so on from candidate to candidate until one would repeat. The best is committed and the next segment begins where it
//! became uncertain.
//!
//! [`decode`] walks one response, one candidate after the other, and does no work twice:
//!
//! * The policy sequence that holds the prefix is continued by the unforced candidate; each forced one is a fork of it at
//!   the slot. The winner's sequence holds the next prefix, and the row that made the winner stop is the next segment's
//!   first row. Only the last generated token of a candidate never runs through the policy.
//! * The reward sequence goes the same way. A candidate is one span behind what is already there. Rewards of positions
//!   that no later span will pass again (the end of the prefix, the position where the final reward is pooled) are asked
//!   for when their span is run.
//! * Rows report their largest logits where they are, or may turn out to be, the row at a slot.

use super::candidate::{CandidateState, smallest};
use super::nudge::{self, Shortlist};
use super::runner::{Branch, Known, Question, Runner, internal};
use super::walk::Walk;
use super::{CandidateStop, FinishReason, Margins, Options, Response, Segment, Selection, Slot, Uniforms, gradient};
use crate::model::{Backend, PolicyRow, Role, SeqId};
use crate::{Error, Result};

/// Is told what happens while a response is decoded.
pub trait Observer {
    /// A segment was committed; `committed` are the ids it added.
    fn segment(&mut self, segment: &Segment, committed: &[u32]) -> Result<()> {
        let _ = (segment, committed);
        Ok(())
    }
    /// A token of a candidate was decoded (for progress displays).
    fn token(&mut self) {}
}

/// Decodes one response.
///
/// # Errors
/// Options out of range, an empty prompt, a prompt beyond the context, an id beyond a vocabulary, recorded uniforms that
/// run out, numbers that are not finite, or the backend's own failure. All sequences are released either way.
pub fn decode(
    backend: &mut dyn Backend,
    prompt: &[u32],
    options: &Options,
    uniforms: Uniforms,
    observer: &mut dyn Observer,
) -> Result<Response> {
    check(backend, prompt, options)?;
    let work_before = backend.work();
    let runner = Runner::new(backend, prompt.len(), options, observer);
    let mut decoder = Decoder::start(runner, prompt, uniforms)?;
    let mut segments = Vec::new();
    let mut segment_boundaries = Vec::new();
    let (finish_reason, rewards) = loop {
        let committed = decoder.segment(segments.is_empty())?;
        let start = committed.segment.start;
        decoder.runner.observer.segment(&committed.segment, &decoder.prefix[start..])?;
        segments.push(committed.segment);
        segment_boundaries.push(committed.boundary);
        if let Some(reason) = committed.end {
            break (reason, committed.rewards);
        }
    };
    Ok(Response {
        prompt_len: prompt.len(),
        finish_reason,
        segment_boundaries,
        num_nudges: segments.iter().filter(|segment| segment.best != 0).count(),
        last_segment_reward: rewards.last,
        final_reward: rewards.pooled,
        final_pool_position: gradient::pool_position(&decoder.prefix, options.reward_pad_id),
        final_ids: decoder.prefix,
        uniforms_used: decoder.uniforms_used,
        min_margins: smallest_margins(&segments),
        segments,
        work: decoder.runner.sequences.backend.work() - work_before,
    })
}

fn check(backend: &dyn Backend, prompt: &[u32], options: &Options) -> Result<()> {
    options.check()?;
    if prompt.is_empty() {
        return Err(Error::invalid("the prompt is empty"));
    }
    for role in [Role::Policy, Role::Reward] {
        let vocab = backend.config(role).vocab_size;
        if let Some(at) = prompt.iter().position(|&id| id as usize >= vocab) {
            return Err(Error::invalid(format!(
                "prompt id {} at position {at} is beyond the {} model's vocabulary of {vocab}",
                prompt[at],
                role.name()
            )));
        }
    }
    let (len, limit) = (prompt.len(), backend.max_len());
    if len >= limit {
        return Err(Error::invalid(format!(
            "the prompt has {len} tokens, and the longest sequence is {limit}; an answer does not fit"
        )));
    }
    if options.max_new_tokens > limit - len {
        return Err(Error::invalid(format!(
            "the prompt's {len} tokens and max_new_tokens {} exceed the longest sequence of {limit}; \
             lower max_new_tokens to {} or less",
            options.max_new_tokens,
            limit - len
        )));
    }
    Ok(())
}

/// A segment's outcome.
struct Committed {
    segment: Segment,
    boundary: usize,
    rewards: Known,
    /// Why the response ends here, if it does.
    end: Option<FinishReason>,
}

/// The unforced candidate as the others see it: what they share with it, and where they fork off.
struct Trunk {
    state: CandidateState,
    policy: SeqId,
    reward: SeqId,
    /// The row at the slot, if the slot was reached.
    slot_row: Option<PolicyRow>,
    /// Every logit of it, where the record wants twins beyond the shortlist.
    slot_logits: Option<Vec<f32>>,
}

/// A response in progress, between two segments.
struct Decoder<'a> {
    runner: Runner<'a>,
    uniforms: Uniforms,
    uniforms_used: Vec<f64>,
    prompt_len: usize,
    /// Prompt and committed segments.
    prefix: Vec<u32>,
    /// Holds the prefix.
    policy: SeqId,
    /// The row after the prefix.
    row: PolicyRow,
    /// Every logit of it, where `policy` itself did not compute it.
    row_logits: Option<Vec<f32>>,
    /// Holds the prefix, once anything was scored.
    reward: SeqId,
    /// Rewards of the prefix, once anything was scored.
    known: Option<Known>,
}

impl<'a> Decoder<'a> {
    /// Runs the prompt through the policy.
    fn start(mut runner: Runner<'a>, prompt: &[u32], uniforms: Uniforms) -> Result<Decoder<'a>> {
        let policy = runner.sequences.create(Role::Policy)?;
        let reward = runner.sequences.create(Role::Reward)?;
        let row = runner.step(policy, prompt, 0, runner.options.first_offset)?;
        Ok(Decoder {
            runner,
            uniforms,
            uniforms_used: Vec::new(),
            prompt_len: prompt.len(),
            prefix: prompt.to_vec(),
            policy,
            row,
            row_logits: None,
            reward,
            known: None,
        })
    }

    /// Decodes, scores and refines one segment and commits its best candidate.
    fn segment(&mut self, first: bool) -> Result<Committed> {
        let options = self.runner.options;
        let offset = if first { options.first_offset } else { 0 };
        let mut walk = Walk::new(self.prefix.len(), offset, options.max_candidates);
        let (mut branch, trunk) = self.unforced(offset)?;
        let top = trunk.slot_row.as_ref().map_or(&[][..], |row| &row.top);
        let shortlist = Shortlist::new(top, self.runner.shortlist_len);

        let mut before = self.known;
        let mut twin = None;
        // Losers give their sequences back at once, but the unforced one's stay while there may be more forks.
        let mut best: Option<(Branch, Known)> = None;
        loop {
            let kept = branch.state.kept().len();
            let proposes = walk.will_propose(kept);
            let differentiates = kept > offset && (proposes || options.full_trace);
            if differentiates && shortlist.ids.is_empty() {
                return Err(internal("the largest logits at a slot"));
            }
            let answer = self.runner.score(
                &branch,
                &self.prefix,
                &Question {
                    slot: walk.slot(),
                    before,
                    proposals: differentiates.then_some(&shortlist),
                    continues: proposes,
                },
            )?;
            before = answer.before_slot.or(before);

            let mut margins = Margins { twin, ..Margins::default() };
            let slot = match answer.gradient {
                Some((dots, norm)) => {
                    let current = branch.state.kept()[offset];
                    let (slot, margin) = self.propose(&shortlist, dots, norm, current, proposes)?;
                    margins.score = margin;
                    margins.top_k_edge = shortlist.edge_margin;
                    Some(slot)
                }
                None => None,
            };
            let proposed = slot.as_ref().and_then(|slot| slot.next_proposal);
            let record = branch.state.clone().record(&self.runner.rules, answer.rewards.last, slot, margins);
            if walk.add(record) {
                if let Some((loser, _)) = best.replace((branch, answer.rewards)) {
                    self.release(&loser, &trunk);
                }
            } else {
                self.release(&branch, &trunk);
            }
            if walk.end().is_some() {
                break;
            }

            let proposed = proposed.ok_or_else(|| internal("a proposal"))?;
            let backend = &*self.runner.sequences.backend;
            let same = |a, b| backend.same_embedding(a, b);
            let placed = shortlist.placed(proposed, same);
            if walk.close(proposed, placed) {
                break;
            }
            twin = match &trunk.slot_logits {
                Some(logits) => nudge::twin_margin(self.runner.readable(logits), proposed, same),
                None => shortlist.twin_margin(proposed, same),
            };
            branch = self.forced(&trunk, walk.slot(), trunk.state.forced(offset, proposed, placed))?;
        }
        let (winner, rewards) = best.ok_or_else(|| internal("a candidate"))?;
        Ok(self.commit(walk.finish(), winner, rewards, trunk))
    }

    /// The policy's own continuation of the prefix.
    fn unforced(&mut self, offset: usize) -> Result<(Branch, Trunk)> {
        let mut state = CandidateState::unforced(self.prefix.len());
        let mut row = self.row.clone();
        let (mut slot_row, mut slot_logits) = (None, None);
        loop {
            if state.generated().len() == offset && self.runner.nudges() {
                slot_row = Some(row.clone());
                if self.runner.options.full_trace {
                    slot_logits = Some(match self.row_logits.take() {
                        Some(logits) => logits,
                        None => self.runner.sequences.backend.logits_row(self.policy)?,
                    });
                }
            }
            if self.runner.push(&mut state, &row)? {
                break;
            }
            row = self.runner.extend(self.policy, &state, offset)?;
        }
        let trunk = Trunk { state: state.clone(), policy: self.policy, reward: self.reward, slot_row, slot_logits };
        Ok((Branch { state, row, policy: trunk.policy, reward: trunk.reward }, trunk))
    }

    /// A candidate with another token at the slot, from the slot on.
    fn forced(&mut self, trunk: &Trunk, slot: usize, mut state: CandidateState) -> Result<Branch> {
        let offset = state.generated().len();
        let mut row = trunk.slot_row.clone().ok_or_else(|| internal("the row at a slot"))?;
        let policy = self.runner.sequences.fork(trunk.policy, slot)?;
        let reward = self.runner.sequences.fork(trunk.reward, slot)?;
        while !self.runner.push(&mut state, &row)? {
            row = self.runner.extend(policy, &state, offset)?;
        }
        Ok(Branch { state, row, policy, reward })
    }

    /// Scores the shortlist and chooses from it. The choice is left out where it is neither used nor free of charge: a
    /// uniform number is drawn only for a proposal that will be used.
    fn propose(
        &mut self,
        shortlist: &Shortlist,
        dots: Vec<f32>,
        norm: f32,
        current: u32,
        used: bool,
    ) -> Result<(Slot, Option<f64>)> {
        let options = self.runner.options;
        let scores = gradient::scores(&shortlist.ids, &dots, current, options.damping);
        let (weights, choice) = match options.selection {
            Selection::Greedy => (Vec::new(), nudge::greedy(&scores)),
            Selection::Sample => {
                let weights = nudge::weights(&scores, options.temperature);
                let choice = if used {
                    let u = self.uniforms.nth(self.uniforms_used.len())?;
                    self.uniforms_used.push(u);
                    nudge::sampled(&weights, u)
                } else {
                    None
                };
                (weights, choice)
            }
        };
        let slot = Slot {
            gradient_norm: f64::from(norm),
            ids: shortlist.ids.clone(),
            logits: shortlist.logits.clone(),
            dots,
            weights,
            next_proposal: choice.map(|choice| shortlist.ids[choice.index]),
        };
        Ok((slot, choice.and_then(|choice| choice.margin)))
    }

    fn release(&mut self, branch: &Branch, trunk: &Trunk) {
        if branch.policy != trunk.policy {
            self.runner.sequences.release(branch.policy);
            self.runner.sequences.release(branch.reward);
        }
    }

    /// Makes the winner the prefix of the next segment.
    fn commit(&mut self, segment: Segment, winner: Branch, rewards: Known, trunk: Trunk) -> Committed {
        if winner.policy != trunk.policy {
            self.runner.sequences.release(trunk.policy);
            self.runner.sequences.release(trunk.reward);
        }
        let kept = winner.state.kept();
        self.prefix.extend_from_slice(kept);
        let new_tokens = self.prefix.len() - self.prompt_len;
        let (boundary, end) = if winner.state.stop() == Some(CandidateStop::Finish) {
            (self.prefix.len() - 1, Some(FinishReason::Finish))
        } else if new_tokens >= self.runner.options.max_new_tokens {
            (self.prefix.len(), Some(FinishReason::Length))
        } else if kept.is_empty() {
            (self.prefix.len(), Some(FinishReason::Stalled))
        } else {
            (self.prefix.len(), None)
        };
        // A forced token that was dropped at once: the fork computed nothing, and the row after the new prefix is the
        // slot's own.
        let nothing_run = winner.policy != trunk.policy && self.prefix.len() == segment.slot;
        self.row_logits = trunk.slot_logits.filter(|_| nothing_run);
        self.row = winner.row;
        self.policy = winner.policy;
        self.reward = winner.reward;
        self.known = Some(rewards);
        Committed { segment, boundary, rewards, end }
    }
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
        twin: least(|margins| margins.twin),
    }
}
