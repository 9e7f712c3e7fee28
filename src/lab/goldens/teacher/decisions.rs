//! The decisions of traces as a backend's numbers would take them, each behind the trace's own history.

use super::candidates::Tried;
use super::lockstep::RewardAnswer;
use crate::Result;
use crate::answer::CandidateStop;
use crate::method::entropy::{Threshold, signal};
use crate::method::{Proposals, Selection, gradient, nudge};
use crate::model::{PolicyRow, RowStats};
use crate::trace::{ENTROPY, Trace};
use crate::{Error, trace::TraceOptions};

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecisionKind {
    /// Which token follows.
    Token,
    /// Whether the uncertainty ends the candidate.
    Stop,
    /// Which ids may be proposed at the slot.
    Shortlist,
    /// Which of several ids with one embedding is placed.
    Twin,
    /// Which token the gradient proposes.
    Proposal,
    /// Which token is drawn by the gradient's weights.
    Draw,
    /// Which candidate is kept.
    Best,
}

impl DecisionKind {
    /// All of them.
    pub const ALL: [DecisionKind; 7] = [
        DecisionKind::Token,
        DecisionKind::Stop,
        DecisionKind::Shortlist,
        DecisionKind::Twin,
        DecisionKind::Proposal,
        DecisionKind::Draw,
        DecisionKind::Best,
    ];

    /// A word for tables.
    pub fn name(self) -> &'static str {
        match self {
            DecisionKind::Token => "token",
            DecisionKind::Stop => "stop",
            DecisionKind::Shortlist => "shortlist",
            DecisionKind::Twin => "twin",
            DecisionKind::Proposal => "proposal",
            DecisionKind::Draw => "draw",
            DecisionKind::Best => "best",
        }
    }

    /// Whether it comes out of a backward pass.
    pub fn of_gradient(self) -> bool {
        matches!(self, DecisionKind::Proposal | DecisionKind::Draw)
    }

    /// Kinds that compare the same sort of numbers share their errors: here, differences of two logits.
    pub(super) fn same_numbers(self, other: DecisionKind) -> bool {
        let logits = |kind| matches!(kind, DecisionKind::Token | DecisionKind::Shortlist | DecisionKind::Twin);
        self == other || (logits(self) && logits(other))
    }
}

/// One decision, as a backend takes it.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub kind: DecisionKind,
    /// Place of the candidate in the list (of the segment's first one for what belongs to the segment).
    pub candidate: usize,
    /// Of the generated tokens, where it is about one.
    pub token: usize,
    /// The choice of the trace and the backend's.
    pub expected: u32,
    pub found: u32,
    /// How far the backend's numbers stand on the trace's side of the tipping point; negative on the other side.
    pub lead: f64,
    /// Where more than one number is compared: all of them.
    pub behind: Vec<f64>,
}

impl Decision {
    pub fn agrees(&self) -> bool {
        self.expected == self.found
    }

    /// How far the number that decides is from the exact one.
    pub fn error(&self, exact: &Decision) -> f64 {
        if self.behind.is_empty() && exact.behind.is_empty() {
            return if self.lead == exact.lead { 0.0 } else { (self.lead - exact.lead).abs() };
        }
        let pairs = self.behind.iter().zip(&exact.behind);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, crate::lab::goldens::worse)
    }
}

/// Everything a backend said.
pub(super) struct BackendOutputs {
    /// Per candidate, of its own tokens.
    pub rows: Vec<Vec<PolicyRow>>,
    pub answers: Vec<RewardAnswer>,
    /// Final rewards of the traces.
    pub pooled: Vec<f64>,
}

impl BackendOutputs {
    /// The distribution of a candidate's token.
    pub fn row(&self, list: &[Tried<'_>], index: usize, token: usize) -> Option<&PolicyRow> {
        let candidate = &list[index];
        match token.checked_sub(candidate.own_from()) {
            Some(own) => self.rows[index].get(own),
            None => self.rows[candidate.unforced].get(token),
        }
    }
}

/// What may be proposed at the slot of a segment, by the place of its unforced candidate: the first `top_k` of the row's
/// largest logits.
pub(super) fn proposals(traces: &[Trace], list: &[Tried<'_>], rows: &[Vec<PolicyRow>]) -> Vec<Vec<u32>> {
    list.iter()
        .zip(rows)
        .map(|(candidate, rows)| {
            let slot = rows.get(candidate.offset()).filter(|_| !candidate.is_forced());
            let k = traces[candidate.trace].options.top_k;
            slot.map_or(Vec::new(), |row| row.top.iter().take(k).map(|entry| entry.0).collect())
        })
        .collect()
}

/// The uncertainty that ends a segment of a trace.
pub(super) fn threshold(options: &TraceOptions) -> Result<Threshold> {
    let name = options.signal.as_deref().unwrap_or(ENTROPY);
    let signal = signal(name).ok_or_else(|| Error::invalid(format!("the trace's signal {name:?} is not known")))?;
    Ok(Threshold { signal, value: options.entropy_threshold })
}

/// What the decisions are taken about: the same for every backend.
pub(super) struct Questions<'a> {
    pub traces: &'a [Trace],
    pub list: &'a [Tried<'a>],
    /// See [`proposals`]; the exact backend's.
    pub proposals: &'a [Vec<u32>],
    /// Pairs of ids with one embedding.
    pub same: &'a dyn Fn(u32, u32) -> bool,
    /// Size of each candidate's exact gradient, in units of which its scores are compared.
    pub scales: &'a [f64],
    pub gradients: bool,
}

impl Questions<'_> {
    /// All decisions, in an order that does not depend on what was said.
    ///
    /// # Errors
    /// A trace names an unknown signal.
    pub fn decide(&self, said: &BackendOutputs) -> Result<Vec<Decision>> {
        let mut out = Vec::new();
        for (index, candidate) in self.list.iter().enumerate() {
            let trace = &self.traces[candidate.trace];
            self.tokens(index, &threshold(&trace.options)?, said, &mut out);
            if candidate.unforced == index {
                self.shortlist(index, said, &mut out);
                self.best(index, said, &mut out);
            } else if let Some((proposed, forced)) = candidate.record.proposed.zip(candidate.record.forced) {
                self.twin(index, proposed, forced, said, &mut out);
            }
        }
        if self.gradients {
            self.nudges(said, &mut out)?;
        }
        Ok(out)
    }

    fn tokens(&self, index: usize, threshold: &Threshold, said: &BackendOutputs, out: &mut Vec<Decision>) {
        let candidate = &self.list[index];
        let trace = &self.traces[candidate.trace];
        let options = &trace.options;
        let end = trace.prompt_ids.len().saturating_add(options.max_new_tokens);
        let forced = candidate.is_forced().then(|| candidate.offset());
        for (token, &id) in candidate.generated.iter().enumerate().skip(forced.unwrap_or(0)) {
            let Some(PolicyRow { stats, .. }) = said.row(self.list, index, token) else { continue };
            let decision = |kind, expected, found, lead| {
                let behind = Vec::new();
                Decision { kind, candidate: index, token, expected, found, lead, behind }
            };
            if forced != Some(token) {
                let (found, lead) = next(stats, id);
                out.push(decision(DecisionKind::Token, id, found, lead));
            }
            let full = candidate.start + token + 1 >= end;
            let stopped_before = id == options.finish_id || options.stop_ids.contains(&id) || full;
            if !stopped_before && token + 1 >= options.min_generated {
                let last = token + 1 == candidate.generated.len();
                let expected = last && candidate.record.stop == CandidateStop::Entropy;
                let value = threshold.signal.value(stats);
                let lead = if expected { value - threshold.value } else { threshold.value - value };
                let found = stats.finite && threshold.reached_by(value);
                out.push(decision(DecisionKind::Stop, expected.into(), found.into(), lead));
            }
        }
    }

    /// Whether the same ids are the most likely ones. The lead is the gap between the least likely of them and the most likely
    /// other one.
    fn shortlist(&self, index: usize, said: &BackendOutputs, out: &mut Vec<Decision>) {
        let inside = &self.proposals[index];
        let Some(row) = said.row(self.list, index, self.list[index].offset()) else { return };
        let others = row.top.iter().filter(|entry| !inside.contains(&entry.0));
        let highest = others.map(|entry| entry.1).fold(f32::NEG_INFINITY, f32::max);
        let lowest = inside.iter().map(|&id| logit(row, id)).fold(f32::INFINITY, f32::min);
        if inside.is_empty() || highest == f32::NEG_INFINITY {
            return;
        }
        let inside_found = row.top.iter().take(inside.len()).filter(|entry| inside.contains(&entry.0)).count();
        out.push(Decision {
            kind: DecisionKind::Shortlist,
            candidate: index,
            token: self.list[index].offset(),
            expected: inside.len() as u32,
            found: inside_found as u32,
            lead: f64::from(lowest) - f64::from(highest),
            behind: Vec::new(),
        });
    }

    /// Which of the ids with the proposed one's embedding is the most likely.
    fn twin(&self, index: usize, proposed: u32, forced: u32, said: &BackendOutputs, out: &mut Vec<Decision>) {
        let candidate = &self.list[index];
        let inside = &self.proposals[candidate.unforced];
        let twins: Vec<u32> =
            inside.iter().copied().filter(|&id| id == proposed || (self.same)(id, proposed)).collect();
        let Some(row) = said.row(self.list, candidate.unforced, candidate.offset()) else { return };
        if twins.len() < 2 {
            return;
        }
        let others = twins.iter().filter(|&&id| id != forced).map(|&id| logit(row, id));
        let found = row.top.iter().map(|entry| entry.0).find(|id| twins.contains(id));
        out.push(Decision {
            kind: DecisionKind::Twin,
            candidate: index,
            token: candidate.offset(),
            expected: forced,
            found: found.unwrap_or(u32::MAX),
            lead: f64::from(logit(row, forced)) - f64::from(others.fold(f32::NEG_INFINITY, f32::max)),
            behind: Vec::new(),
        });
    }

    /// Which candidate has the largest reward.
    fn best(&self, first: usize, said: &BackendOutputs, out: &mut Vec<Decision>) {
        let candidate = &self.list[first];
        let segment = &self.traces[candidate.trace].segments[candidate.segment];
        let rewards: Vec<f64> =
            said.answers[first..first + segment.candidates.len()].iter().map(|answer| answer.reward).collect();
        let Some((found, lead)) = lead(&rewards, segment.best) else { return };
        out.push(Decision {
            kind: DecisionKind::Best,
            candidate: first,
            token: 0,
            expected: segment.best as u32,
            found: found as u32,
            lead,
            behind: rewards,
        });
    }

    /// What the gradients propose, greedily or by the trace's uniform numbers.
    fn nudges(&self, said: &BackendOutputs, out: &mut Vec<Decision>) -> Result<()> {
        let mut drawn = vec![0; self.traces.len()];
        for (index, candidate) in self.list.iter().enumerate() {
            let trace = &self.traces[candidate.trace];
            let options = &trace.options;
            let ids = &self.proposals[candidate.unforced];
            if !candidate.has_slot() || ids.is_empty() || !options.proposals.differentiates() {
                continue;
            }
            let current = candidate.record.ids[candidate.offset()];
            let used = candidate.candidate + 1 < options.max_candidates;
            let mut number = || {
                drawn[candidate.trace] += 1;
                trace.uniforms_used.get(drawn[candidate.trace] - 1).copied()
            };
            let mut dots = said.answers[index].dots.clone();
            if options.proposals == Proposals::ShuffledGradient && used {
                let Some(u) = number() else { continue };
                dots = nudge::shuffled(&dots, u)?;
            }
            let mut scores = gradient::scores(ids, &dots, current, options.damping);
            let row = said.row(self.list, candidate.unforced, candidate.offset());
            if let Some(row) = row.filter(|_| options.logprob_weight > 0.0) {
                let logits: Vec<f32> = ids.iter().map(|&id| logit(row, id)).collect();
                gradient::add_logprobs(&mut scores, &logits, row.stats.log_sum_exp, options.logprob_weight);
            }
            let decision = |kind, found: usize, lead, behind| {
                let (expected, found) = (candidate.record.next_proposal?, *ids.get(found)?);
                Some(Decision { kind, candidate: index, token: candidate.offset(), expected, found, lead, behind })
            };
            let proposed = candidate.record.next_proposal.and_then(|next| ids.iter().position(|&id| id == next));
            let taken = match options.selection {
                Selection::Greedy => proposed.and_then(|proposed| {
                    let (found, lead) = lead(&scores, proposed)?;
                    let scale = self.scales[index];
                    decision(
                        DecisionKind::Proposal,
                        found,
                        lead / scale,
                        scores.iter().map(|score| score / scale).collect(),
                    )
                }),
                Selection::Sample if used => {
                    let u = number();
                    u.zip(proposed).and_then(|(u, proposed)| {
                        let weights = nudge::weights(&scores, options.temperature);
                        let total: f64 = weights.iter().sum();
                        let edges = weights.iter().scan(0.0, |sum, weight| {
                            *sum += weight / total;
                            Some(*sum)
                        });
                        let edges: Vec<f64> = edges.collect();
                        let below = if proposed == 0 { 0.0 } else { edges[proposed - 1] };
                        let lead = (u - below).min(edges[proposed] - u);
                        decision(DecisionKind::Draw, nudge::sampled(&weights, u)?.index, lead, edges)
                    })
                }
                Selection::Sample => None,
            };
            out.extend(taken);
        }
        Ok(())
    }

    /// The numbers behind the decisions, by quantity, with the factor of their bound. First-order scores and norms are in
    /// units of the exact gradient's norm.
    pub fn numbers(&self, said: &BackendOutputs) -> Vec<(&'static str, Vec<f64>)> {
        let stats = || said.rows.iter().flatten().map(|row| &row.stats);
        let mut out = vec![
            ("entropy", stats().flat_map(|s| [s.entropy, s.entropy_floored]).collect::<Vec<_>>()),
            ("reward", said.answers.iter().map(|answer| answer.reward).chain(said.pooled.iter().copied()).collect()),
        ];
        if self.gradients {
            let answers = || said.answers.iter().zip(self.scales);
            let dots =
                answers().flat_map(|(answer, &scale)| answer.dots.iter().map(move |&dot| f64::from(dot) / scale));
            out.push(("score", dots.collect()));
            out.push(("gradient norm", answers().map(|(answer, &scale)| answer.norm / scale).collect()));
        }
        out
    }
}

/// The row's choice, and how far the token `id` is ahead of all others. Where another one is ahead, that is its gap to the
/// second one at least.
fn next(stats: &RowStats, id: u32) -> (u32, f64) {
    let margin = f64::from(stats.margin);
    (stats.argmax, if stats.argmax == id { margin } else { -margin })
}

/// A logit of a row's list; of an id that is not in it, the least there: it has no more.
fn logit(row: &PolicyRow, id: u32) -> f32 {
    let found = row.top.iter().find(|entry| entry.0 == id).or(row.top.last());
    found.map_or(f32::NAN, |entry| entry.1)
}

/// The first of the largest values, and how far `expected` is ahead of all others. `None` without a choice.
fn lead(values: &[f64], expected: usize) -> Option<(usize, f64)> {
    let own = *values.get(expected).filter(|_| values.len() > 1)?;
    let others = values.iter().enumerate().filter(|&(i, _)| i != expected).map(|(_, &value)| value);
    let lead = own - others.fold(f64::NEG_INFINITY, crate::lab::goldens::worse);
    Some((nudge::greedy(values)?.index, lead))
}
