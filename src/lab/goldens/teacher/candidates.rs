//! The candidates of traces, checked: what each was made of, and which tokens a follower has to feed.

use crate::trace::{Trace, TraceCandidate};
use crate::{Error, Result};

/// A candidate of a trace with everything it generated.
pub(super) struct Tried<'a> {
    /// Places in the traces, for messages and for what belongs to a whole segment.
    pub trace: usize,
    pub segment: usize,
    pub candidate: usize,
    pub record: &'a TraceCandidate,
    /// Length of the prefix.
    pub start: usize,
    /// Position where a token may be forced.
    pub slot: usize,
    /// Kept ids, and the dropped one.
    pub generated: Vec<u32>,
    /// Place in the list of the segment's unforced candidate.
    pub unforced: usize,
}

impl Tried<'_> {
    /// The slot's place among the generated tokens.
    pub fn offset(&self) -> usize {
        self.slot - self.start
    }

    pub fn is_forced(&self) -> bool {
        self.record.forced.is_some()
    }

    /// Whether a token at the slot was kept, so that the reward has a gradient there.
    pub fn has_slot(&self) -> bool {
        self.record.ids.len() > self.offset()
    }

    /// The first token whose distribution is this candidate's own; those before are the unforced candidate's.
    pub fn own_from(&self) -> usize {
        if self.is_forced() { self.offset() + 1 } else { 0 }
    }

    /// What the policy is fed behind the first positions of the final text: their number, and the tokens. The row after each
    /// is the distribution of a token from [`own_from`](Self::own_from) on.
    pub fn policy_feed(&self, text: &[u32]) -> (usize, Vec<u32>) {
        let fed = &self.generated[..self.generated.len() - 1];
        if self.is_forced() {
            (self.slot, fed[self.offset().min(fed.len())..].to_vec())
        } else {
            (self.start - 1, [&text[self.start - 1..self.start], fed].concat())
        }
    }

    /// The same for the reward model: the row after the last token scores the candidate.
    pub fn reward_feed<'b>(&'b self, text: &'b [u32]) -> (usize, &'b [u32]) {
        let ids = &self.record.ids[..];
        if ids.is_empty() {
            (self.start - 1, &text[self.start - 1..self.start])
        } else if self.is_forced() && self.has_slot() {
            (self.slot, &ids[self.offset()..])
        } else {
            (self.start, ids)
        }
    }
}

/// All candidates of `traces`, in order.
///
/// # Errors
/// A trace contradicts itself.
pub(super) fn candidates(traces: &[Trace]) -> Result<Vec<Tried<'_>>> {
    let mut list = Vec::new();
    for (trace, golden) in traces.iter().enumerate() {
        for (number, segment) in golden.segments.iter().enumerate() {
            let unforced = list.len();
            for (index, record) in segment.candidates.iter().enumerate() {
                let tried = Tried {
                    trace,
                    segment: number,
                    candidate: index,
                    record,
                    start: segment.start,
                    slot: segment.slot,
                    generated: record.ids.iter().copied().chain(record.dropped).collect(),
                    unforced,
                };
                if !consistent(golden, segment.best < segment.candidates.len(), &tried, list.get(unforced)) {
                    return Err(Error::invalid(format!(
                        "trace {:?}: segment {number} candidate {index} contradicts the rest of the trace",
                        golden.name
                    )));
                }
                list.push(tried);
            }
        }
        if golden.final_pool_position >= golden.final_ids.len() {
            return Err(Error::invalid(format!("trace {:?}: the pooled position is beyond its ids", golden.name)));
        }
    }
    Ok(list)
}

fn consistent(trace: &Trace, has_best: bool, tried: &Tried<'_>, unforced: Option<&Tried<'_>>) -> bool {
    let text = &trace.final_ids;
    let placed = has_best && tried.start >= 1 && tried.slot >= tried.start && tried.start <= text.len();
    if !placed || tried.generated.is_empty() || tried.is_forced() != (tried.candidate > 0) {
        return false;
    }
    let Some(forced) = tried.record.forced else { return true };
    // A forced candidate goes on from the committed text, which must hold what all candidates share.
    let offset = tried.offset();
    tried.slot <= text.len()
        && tried.generated.get(offset) == Some(&forced)
        && tried.generated[..offset] == text[tried.start..tried.slot]
        && unforced.is_some_and(|u| u.generated.len() > offset && u.generated[..offset] == tried.generated[..offset])
}
