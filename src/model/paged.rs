//! The half of a model that every backend has alike: sequences, their blocks of keys and values, the checks before a batch
//! and what is taken back after one that failed. The other half is [`Compute`].

use super::spans::{self, CheckedSpan, Tail, TailGradient, handle, reward_rows, score};
use super::{
    Gradient, GradientSpan, Logits, Model, PolicyRow, PolicyRows, PolicySpan, RewardSpan, Role, Score, SeqId, Span,
    Work, no_head,
};
use crate::files::config::{ModelConfig, ModelKind};
use crate::kv::{BlockCopy, KvHandle, KvPool};
use crate::{Error, Result};
use std::collections::HashSet;

/// What a backend computes, on spans that were checked and for which there are blocks. It appends them to their sequences.
/// A model with one kind of head is never asked for the other's results.
pub(super) trait Compute {
    /// The model's shape.
    fn config(&self) -> &ModelConfig;

    /// Its sequences.
    fn kv(&self) -> &KvPool;

    /// As [`kv`](Self::kv).
    fn kv_mut(&mut self) -> &mut KvPool;

    /// A fork took blocks, and may need a copy of one before anything is written.
    fn forked(&mut self, copy: Option<BlockCopy>) -> Result<()>;

    /// As [`Model::alive`].
    fn alive(&self) -> Result<()> {
        Ok(())
    }

    /// As [`Model::step`].
    fn step(
        &mut self,
        spans: &[PolicySpan<'_>],
        checked: &[CheckedSpan<'_>],
        ids_below: usize,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<PolicyRow>> {
        let _ = (spans, checked, ids_below, meanwhile);
        Err(no_head(self.config()))
    }

    /// As [`Model::logits_before`], of the sequence at this index of the pool's table, which was run.
    fn logits(&mut self, index: u32, back: usize, asked: Logits<'_>) -> Result<Vec<f32>> {
        let _ = (index, back, asked);
        Err(no_head(self.config()))
    }

    /// As [`Model::all_rows`].
    fn all_rows(&mut self, checked: CheckedSpan<'_>) -> Result<PolicyRows> {
        let _ = checked;
        Err(no_head(self.config()))
    }

    /// Rewards of some rows of each span, ascending within it.
    fn rewards(&mut self, checked: &[CheckedSpan<'_>], rows: &[Vec<usize>]) -> Result<Vec<Vec<f32>>> {
        let _ = (checked, rows);
        Err(no_head(self.config()))
    }

    /// Rewards and gradients of tails, each behind what its sequence holds.
    fn gradients(&mut self, tails: &[Tail<'_>]) -> Result<Vec<TailGradient>> {
        let _ = tails;
        Err(no_head(self.config()))
    }

    /// As [`Model::same_embedding`].
    fn same_embedding(&self, a: u32, b: u32) -> bool;

    /// Token positions that went forwards and backwards.
    fn positions(&self) -> (u64, u64);

    /// As [`Model::free_batch_rows`].
    fn free_batch_rows(&self) -> usize {
        1
    }

    /// As [`Model::span_rows`].
    fn span_rows(&self) -> usize {
        1
    }

    /// As [`Model::keeps_span_rows`].
    fn keeps_span_rows(&self) -> bool {
        false
    }

    /// As [`Model::row_cost`].
    fn row_cost(&self) -> f64 {
        1.0 / self.free_batch_rows().max(1) as f64
    }

    /// As [`Model::gradient_tokens`].
    fn gradient_tokens(&self) -> usize {
        usize::MAX
    }
}

/// A model of some backend.
pub(super) struct Paged<C> {
    compute: C,
    max_len: usize,
    /// Sequences of a language model whose last hidden state is kept.
    kept: HashSet<SeqId>,
}

impl<C: Compute> Paged<C> {
    pub fn new(compute: C, max_len: usize) -> Self {
        Paged { compute, max_len, kept: HashSet::new() }
    }

    fn require(&self, kind: ModelKind) -> Result<()> {
        match self.compute.config() {
            config if config.kind == kind => Ok(()),
            config => Err(no_head(config)),
        }
    }

    /// Checks the spans of a batch and that there is room for them; nothing is appended yet.
    fn check<'a>(&self, spans: impl IntoIterator<Item = Span<'a>>) -> Result<Vec<CheckedSpan<'a>>> {
        self.compute.alive()?;
        let (config, kv) = (self.compute.config(), self.compute.kv());
        let checked = spans::check(Role::of(config.kind), config, kv, self.max_len, spans)?;
        spans::check_room(kv, &checked)?;
        Ok(checked)
    }

    /// Forgets what a failed batch appended.
    fn undo<T>(&mut self, checked: &[CheckedSpan<'_>], result: Result<T>) -> Result<T> {
        if result.is_err() {
            let kv = self.compute.kv_mut();
            for span in checked {
                if kv.len(span.seq).is_ok_and(|len| len > span.start) {
                    kv.truncate(span.seq, span.start)?;
                }
            }
        }
        result
    }

    fn named(&self, KvHandle { index, generation }: KvHandle) -> SeqId {
        SeqId { role: Role::of(self.compute.config().kind), index, generation }
    }

    /// What stands before the slots runs like any prefix; what stands behind is recorded and differentiated.
    fn gradients(
        &mut self,
        spans: &[GradientSpan<'_>],
        checked: &[CheckedSpan<'_>],
        asked: &[(Vec<usize>, Vec<usize>)],
    ) -> Result<Vec<Gradient>> {
        let cut = |i: usize| spans[i].slot - spans[i].span.span.start;
        let heads: Vec<CheckedSpan<'_>> = checked.iter().enumerate().map(|(i, span)| span.slice(0, cut(i))).collect();
        let before =
            asked.iter().enumerate().map(|(i, (rows, _))| rows.iter().copied().filter(|&r| r < cut(i)).collect());
        let rewards = self.compute.rewards(&heads, &before.collect::<Vec<_>>())?;

        let tails = checked.iter().zip(asked).enumerate().map(|(i, (span, (rows, _)))| Tail {
            span: span.slice(cut(i), span.ids.len()),
            scored: rows.iter().filter(|&&r| r >= cut(i)).map(|r| r - cut(i)).collect(),
            candidates: spans[i].candidates,
            rows: spans[i].rows,
        });
        let found = self.compute.gradients(&tails.collect::<Vec<_>>())?;
        let gradients = found.into_iter().zip(rewards).zip(asked).map(|((tail, mut rewards), (_, places))| {
            rewards.extend(tail.rewards);
            Gradient { score: score(&rewards, places), dots: tail.dots, norm: tail.norm, rows: tail.rows }
        });
        Ok(gradients.collect())
    }
}

impl<C: Compute> Model for Paged<C> {
    fn config(&self) -> &ModelConfig {
        self.compute.config()
    }

    fn max_len(&self) -> usize {
        self.max_len
    }

    fn create(&mut self) -> Result<SeqId> {
        let made = self.compute.kv_mut().create();
        Ok(self.named(made))
    }

    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        let (child, copy) = self.compute.kv_mut().fork(handle(seq), len)?;
        self.compute.forked(copy)?;
        Ok(self.named(child))
    }

    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()> {
        self.kept.remove(&seq);
        self.compute.kv_mut().truncate(handle(seq), len)
    }

    fn release(&mut self, seq: SeqId) {
        self.kept.remove(&seq);
        self.compute.kv_mut().release(handle(seq));
    }

    fn len(&self, seq: SeqId) -> usize {
        self.compute.kv().len(handle(seq)).unwrap_or(0)
    }

    fn step(
        &mut self,
        spans: &[PolicySpan<'_>],
        ids_below: usize,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<PolicyRow>> {
        self.require(ModelKind::CausalLm)?;
        let checked = self.check(spans.iter().map(|span| span.span))?;
        spans::check_rows(spans, self.compute.span_rows())?;
        let rows = self.compute.step(spans, &checked, ids_below, meanwhile);
        let rows = self.undo(&checked, rows)?;
        self.kept.extend(spans.iter().map(|span| span.span.seq));
        Ok(rows)
    }

    fn logits(&mut self, seq: SeqId, asked: Logits<'_>) -> Result<Vec<f32>> {
        self.logits_before(seq, 0, asked)
    }

    fn logits_before(&mut self, seq: SeqId, back: usize, asked: Logits<'_>) -> Result<Vec<f32>> {
        self.require(ModelKind::CausalLm)?;
        spans::check_logits(asked, self.compute.config().vocab_size)?;
        if !self.kept.contains(&seq) {
            return Err(Error::Backend(
                "logits asked for of a sequence that was not run since it was made or cut back".to_string(),
            ));
        }
        self.compute.logits(seq.index, back, asked)
    }

    fn all_rows(&mut self, ids: &[u32]) -> Result<PolicyRows> {
        self.require(ModelKind::CausalLm)?;
        let seq = self.create()?;
        let checked = self.check([Span { seq, start: 0, ids }]);
        let rows = checked.and_then(|checked| self.compute.all_rows(checked[0]));
        self.release(seq);
        rows
    }

    fn score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        self.require(ModelKind::Reward)?;
        let checked = self.check(spans.iter().map(|span| span.span))?;
        let asked = spans.iter().map(reward_rows).collect::<Result<Vec<_>>>()?;
        let (rows, places): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        let rewards = self.compute.rewards(&checked, &rows);
        let rewards = self.undo(&checked, rewards)?;
        Ok(rewards.iter().zip(&places).map(|(rewards, places)| score(rewards, places)).collect())
    }

    fn gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        self.require(ModelKind::Reward)?;
        let checked = self.check(spans.iter().map(|span| span.span.span))?;
        let asked = spans.iter().map(|span| reward_rows(&span.span)).collect::<Result<Vec<_>>>()?;
        spans::check_gradient(spans, self.compute.config().vocab_size)?;
        let gradients = self.gradients(spans, &checked, &asked);
        self.undo(&checked, gradients)
    }

    fn same_embedding(&self, a: u32, b: u32) -> bool {
        a == b || self.compute.same_embedding(a, b)
    }

    fn work(&self) -> Work {
        let (forward, backward) = self.compute.positions();
        match self.compute.config().kind {
            ModelKind::CausalLm => Work { policy_forward: forward, ..Work::default() },
            ModelKind::Reward => Work { reward_forward: forward, reward_backward: backward, ..Work::default() },
        }
    }

    fn alive(&self) -> Result<()> {
        self.compute.alive()
    }

    fn blocks_free(&self) -> usize {
        self.compute.kv().blocks_free()
    }

    fn blocks_in_use(&self) -> usize {
        self.compute.kv().blocks_in_use()
    }

    fn blocks_needed(&self, seq: SeqId, count: usize) -> usize {
        self.compute.kv().blocks_needed(handle(seq), count).unwrap_or(usize::MAX)
    }

    fn free_batch_rows(&self) -> usize {
        self.compute.free_batch_rows()
    }

    fn span_rows(&self) -> usize {
        self.compute.span_rows()
    }

    fn keeps_span_rows(&self) -> bool {
        self.compute.keeps_span_rows()
    }

    fn row_cost(&self) -> f64 {
        self.compute.row_cost()
    }

    fn gradient_tokens(&self) -> usize {
        self.compute.gradient_tokens()
    }
}
