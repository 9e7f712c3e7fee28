//! Spans before anything is computed: they are checked, long batches are cut, and the rows whose results are asked for are
//! found.

use super::{GradientSpan, Logits, PolicySpan, RewardSpan, Role, Score, SeqId, Span};
use crate::files::config::ModelConfig;
use crate::kv::{BLOCK, KvHandle, KvPool};
use crate::{Error, Result};
use std::collections::HashSet;

/// A checked span.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckedSpan<'a> {
    pub seq: KvHandle,
    pub start: usize,
    pub ids: &'a [u32],
}

impl CheckedSpan<'_> {
    /// Tokens `from .. to` of it.
    pub fn slice(&self, from: usize, to: usize) -> Self {
        CheckedSpan { seq: self.seq, start: self.start + from, ids: &self.ids[from..to] }
    }
}

/// The positions of a span from its slot on, and what is asked of them.
#[derive(Clone, Debug)]
pub(super) struct Tail<'a> {
    pub span: CheckedSpan<'a>,
    /// Rows within it whose rewards are wanted, ascending; the last one is the last row.
    pub scored: Vec<usize>,
    /// Ids whose embeddings are multiplied with the gradient at the first row.
    pub candidates: &'a [u32],
    /// Whether the gradient of every row is wanted.
    pub rows: bool,
}

/// What a [`Tail`] gives.
#[derive(Debug)]
pub(super) struct TailGradient {
    /// Of the scored rows.
    pub rewards: Vec<f32>,
    /// Per candidate.
    pub dots: Vec<f32>,
    /// Of the gradient at the first row.
    pub norm: f32,
    /// `[rows, hidden]` if asked for, else empty.
    pub rows: Vec<f32>,
}

/// Longest sequence of a pair, in tokens: as asked for, or as long as all of its models were made for.
pub(super) fn longest(
    policy: Option<&ModelConfig>,
    reward: Option<&ModelConfig>,
    asked: Option<usize>,
) -> Result<usize> {
    let models = [("policy", policy), ("reward model", reward)];
    let models = models.into_iter().filter_map(|(name, config)| Some((name, config?.max_position_embeddings)));
    let Some(limit) = models.clone().map(|(_, positions)| positions).min() else {
        return Err(Error::invalid("neither a policy nor a reward model was given"));
    };
    let len = asked.unwrap_or(limit);
    if len == 0 || len > limit {
        let each: Vec<String> = models.map(|(name, positions)| format!("{name} {positions}")).collect();
        return Err(Error::invalid(format!(
            "max-model-len is {len}; expected 1 to {limit} ({} positions)",
            each.join(", ")
        )));
    }
    Ok(len)
}

/// The longest sequence of the draft model beside a pair with sequences of so many tokens. One that was made for fewer
/// guesses nothing behind them.
pub(super) fn longest_draft(draft: Option<&ModelConfig>, pair: usize) -> usize {
    draft.map_or(pair, |config| config.max_position_embeddings.min(pair))
}

/// The bookkeeping's name for a sequence.
pub(super) fn handle(seq: SeqId) -> KvHandle {
    KvHandle { index: seq.index, generation: seq.generation }
}

/// Checks the spans of a batch; nothing is appended yet.
pub(super) fn check<'a>(
    role: Role,
    config: &ModelConfig,
    kv: &KvPool,
    max_len: usize,
    spans: impl IntoIterator<Item = Span<'a>>,
) -> Result<Vec<CheckedSpan<'a>>> {
    let name = role.name();
    let mut seen = HashSet::new();
    let checked = spans.into_iter().map(|span| {
        if span.seq.role != role {
            return Err(Error::Backend(format!("a {} sequence was given to the {name}", span.seq.role.name())));
        }
        let seq = handle(span.seq);
        let len = kv.len(seq)?;
        if len != span.start || span.ids.is_empty() || !seen.insert(seq) {
            return Err(Error::Backend(format!(
                "malformed {name} span: {} tokens at {} of a sequence of {len}",
                span.ids.len(),
                span.start
            )));
        }
        if len + span.ids.len() > max_len {
            return Err(Error::invalid(format!(
                "a sequence of {} tokens does not fit the context of {max_len}",
                len + span.ids.len(),
            )));
        }
        let vocab = config.vocab_size;
        if let Some(id) = span.ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::invalid(format!("token id {id} is beyond the {name} model's vocabulary of {vocab}")));
        }
        Ok(CheckedSpan { seq, start: span.start, ids: span.ids })
    });
    checked.collect()
}

/// Whether there are blocks for all of the spans.
pub(super) fn check_room(kv: &KvPool, spans: &[CheckedSpan<'_>]) -> Result<()> {
    let mut needed = 0;
    for span in spans {
        needed += kv.blocks_needed(span.seq, span.ids.len())?;
    }
    let free = kv.blocks_free();
    if needed > free {
        return Err(Error::Backend(format!(
            "out of key/value memory: {needed} blocks of {BLOCK} positions needed, {free} free"
        )));
    }
    Ok(())
}

/// Rows that go through the layers together.
#[derive(Debug, Default)]
pub(super) struct Batch<'a> {
    /// Pieces of spans, in order.
    pub pieces: Vec<CheckedSpan<'a>>,
    /// Rows of this batch whose result is asked for, ascending, with the span each belongs to.
    pub live: Vec<(usize, usize)>,
    /// Rows of all pieces.
    pub rows: usize,
}

/// Cuts spans into batches of at most `limit` rows. `live` holds, per span, the wanted rows within it, ascending.
pub(super) fn batches<'a>(spans: &[CheckedSpan<'a>], live: &[Vec<usize>], limit: usize) -> Vec<Batch<'a>> {
    let mut all = Vec::new();
    let mut batch = Batch::default();
    for (index, span) in spans.iter().enumerate() {
        let mut from = 0;
        while from < span.ids.len() {
            let to = span.ids.len().min(from + limit - batch.rows);
            let wanted = live[index].iter().filter(|&&row| row >= from && row < to);
            batch.live.extend(wanted.map(|row| (batch.rows + row - from, index)));
            batch.pieces.push(span.slice(from, to));
            batch.rows += to - from;
            from = to;
            if batch.rows == limit {
                all.push(std::mem::take(&mut batch));
            }
        }
    }
    if batch.rows > 0 {
        all.push(batch);
    }
    all
}

/// Positions of a span whose reward is asked for, as ascending rows with the last one included, and for every entry of
/// `also_at` its place among them.
pub(super) fn reward_rows(span: &RewardSpan<'_>) -> Result<(Vec<usize>, Vec<usize>)> {
    let count = span.span.ids.len();
    let mut rows = vec![count.saturating_sub(1)];
    for &position in span.also_at {
        if position < span.span.start || position >= span.span.start + count {
            return Err(Error::Backend(format!(
                "reward asked for at position {position} outside of a span of {count} tokens at {}",
                span.span.start
            )));
        }
        rows.push(position - span.span.start);
    }
    rows.sort_unstable();
    rows.dedup();
    let places = span.also_at.iter().filter_map(|p| rows.binary_search(&(p - span.span.start)).ok()).collect();
    Ok((rows, places))
}

/// Checks slots and candidates of spans that are to be differentiated.
pub(super) fn check_gradient(spans: &[GradientSpan<'_>], vocab: usize) -> Result<()> {
    for span in spans {
        let (start, end) = (span.span.span.start, span.span.span.start + span.span.span.ids.len());
        if span.slot < start || span.slot >= end {
            return Err(Error::Backend(format!("slot {} outside of its span {start}..{end}", span.slot)));
        }
        if let Some(id) = span.candidates.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Backend(format!("candidate {id} is beyond the reward model's vocabulary of {vocab}")));
        }
    }
    Ok(())
}

/// Checks that spans ask for rows that they have, and for no more than `most` each.
pub(super) fn check_rows(spans: &[PolicySpan<'_>], most: usize) -> Result<()> {
    for span in spans {
        let (rows, tokens) = (span.rows(), span.span.ids.len());
        if rows > tokens || rows > most {
            return Err(Error::Backend(format!(
                "{rows} rows asked for of a span of {tokens} tokens; a span reports at most {most}"
            )));
        }
    }
    Ok(())
}

/// The last rows of each span, whose results are asked for, within it.
pub(super) fn last_rows(spans: &[PolicySpan<'_>]) -> Vec<Vec<usize>> {
    let of = |span: &PolicySpan<'_>| {
        let tokens = span.span.ids.len();
        (tokens.saturating_sub(span.rows())..tokens).collect()
    };
    spans.iter().map(of).collect()
}

/// Checks ids whose logits are asked for.
pub(super) fn check_logits(asked: Logits<'_>, vocab: usize) -> Result<()> {
    match asked {
        Logits::Of(ids) => match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => Err(Error::Backend(format!("the logit of id {id}, beyond the policy's vocabulary of {vocab}"))),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The rewards of a span's wanted rows, as they were asked for.
pub(super) fn score(rewards: &[f32], places: &[usize]) -> Score {
    let reward = rewards.last().copied().unwrap_or(f32::NAN);
    Score { reward, also: places.iter().map(|&p| rewards[p]).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_every_row_once_and_keep_the_wanted_ones() {
        let ids: Vec<u32> = (0..150).collect();
        let seq = |index| KvHandle { index, generation: 0 };
        let spans = [
            CheckedSpan { seq: seq(0), start: 7, ids: &ids[..100] },
            CheckedSpan { seq: seq(1), start: 0, ids: &ids[..1] },
            CheckedSpan { seq: seq(2), start: 3, ids: &ids },
        ];
        let live = [vec![0, 63, 64, 99], vec![0], vec![149]];
        for limit in [1, 64, 100, 1000] {
            let all = batches(&spans, &live, limit);
            let mut rows = vec![Vec::new(); 3];
            let mut wanted = vec![Vec::new(); 3];
            for batch in &all {
                assert!(batch.rows <= limit && batch.live.is_sorted());
                let flat: Vec<(usize, usize)> = batch
                    .pieces
                    .iter()
                    .flat_map(|p| (0..p.ids.len()).map(move |i| (p.seq.index as usize, p.start + i)))
                    .collect();
                assert_eq!(flat.len(), batch.rows);
                for &(row, owner) in &batch.live {
                    assert_eq!(flat[row].0, owner);
                    wanted[owner].push(flat[row].1 - spans[owner].start);
                }
                for (owner, position) in flat {
                    rows[owner].push(position - spans[owner].start);
                }
            }
            for (span, rows) in spans.iter().zip(&rows) {
                assert_eq!(*rows, (0..span.ids.len()).collect::<Vec<_>>());
            }
            assert_eq!(wanted, live);
        }
    }
}
