//! Verified drafts: tokens that are run before they are known, and taken back where they were not what came.
//!
//! A span of the policy that answers a task may go on with guessed ids. The row behind each of them is computed in the
//! same step, from the same keys and values as if the ids had come one by one, so it has the same bits. Rows are handed
//! to the request one by one, as long as what it asks about next is the text that was guessed; the sequence is cut back
//! to what was asked about. So a request never sees a guess. Only what it is told in one step differs.
//!
//! Guesses take rows and blocks of keys and values that nobody else needs in the step.

use super::{Entry, Scheduler};
use crate::engine::draft::{DraftSource, Guess, LONGEST_DRAFT, WINDOW, guess, share};
use crate::engine::execute::policy_output;
use crate::engine::settings::Drafting;
use crate::engine::step::{Draft, Step, TaskSpan};
use crate::model::{ModelPair, PolicyRow, Role, Work};
use crate::task::{Ask, FullLogits, PolicyOutput};

/// Makes guesses in place of the engine: from a text and how many ids it may have.
pub(super) type GuessWith = Box<dyn FnMut(&[u32], usize) -> Vec<u32> + Send>;

/// Guessed tokens of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DraftCount {
    /// Run.
    pub drafted: u64,
    /// Found to be right.
    pub accepted: u64,
}

/// Guessed tokens, by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DraftStats {
    /// Other candidates of the segment, and other completions of the prompt.
    pub siblings: DraftCount,
    /// The prompt and what was written.
    pub text: DraftCount,
}

impl DraftStats {
    /// Guessed tokens that were run.
    pub fn drafted(&self) -> u64 {
        self.siblings.drafted + self.text.drafted
    }

    /// Those that were right.
    pub fn accepted(&self) -> u64 {
        self.siblings.accepted + self.text.accepted
    }

    fn count(&mut self, source: DraftSource, drafted: usize, accepted: usize) {
        let count = match source {
            DraftSource::Sibling => &mut self.siblings,
            DraftSource::Text => &mut self.text,
        };
        count.drafted += drafted as u64;
        count.accepted += accepted as u64;
    }
}

impl std::ops::AddAssign for DraftStats {
    fn add_assign(&mut self, more: DraftStats) {
        for (count, more) in [(&mut self.siblings, more.siblings), (&mut self.text, more.text)] {
            count.drafted += more.drafted;
            count.accepted += more.accepted;
        }
    }
}

impl<T> Scheduler<T> {
    /// Lets something else make all guesses, whatever the settings say: they are run as far as there is room. For
    /// tests.
    pub fn guess_with(&mut self, guess: impl FnMut(&[u32], usize) -> Vec<u32> + Send + 'static) {
        self.guess_with = Some(Box::new(guess));
    }

    /// Lets the policy's spans of a planned step go on with guesses, as far as they are worth their rows.
    pub(super) fn draft(&mut self, backend: &ModelPair, step: &mut Step) {
        let off = self.settings.drafting == Drafting::Off && self.guess_with.is_none();
        if off || backend.span_rows() <= 1 || step.policy.is_empty() {
            return;
        }
        let Ok(vocab) = backend.config(Role::Policy).map(|config| config.vocab_size) else { return };
        let rows = step.policy.iter().map(TaskSpan::tokens).fold(0, usize::saturating_add);
        let price = share(rows, self.settings.row_cost.unwrap_or_else(|| backend.row_cost()));
        if price >= 1.0 && self.guess_with.is_none() {
            return;
        }
        let mut room = self.settings.batch_tokens.saturating_sub(rows);
        let promised = step.policy.iter().map(|span| backend.blocks_needed(span.seq, span.ids.len()));
        let promised = promised.fold(self.running.len(), usize::saturating_add);
        let mut blocks = backend.blocks_free(Role::Policy).saturating_sub(promised);
        for span in step.policy.iter_mut().filter(|span| span.last) {
            let Some(entry) = self.running.get_mut(&span.request) else { continue };
            // The row behind the task's own tokens is not the last one then.
            let no_logits = matches!(span.task.ask, Ask::Policy { full_logits: FullLogits::Never, .. });
            if !no_logits && !backend.keeps_span_rows() {
                continue;
            }
            let Some(outlook) = entry.request.outlook(&span.task) else { continue };
            let most = outlook.most.min(LONGEST_DRAFT).min(room).min(backend.span_rows() - 1);
            let most = most.min(backend.max_len().saturating_sub(span.task.len));
            if most == 0 {
                continue;
            }
            if self.guess_with.is_none() && !entry.acceptance.hopeful(price) {
                continue;
            }
            // What stands far before is not looked through.
            let from = if self.guess_with.is_none() { span.task.len.saturating_sub(WINDOW) } else { 0 };
            let text = entry.request.ids(&span.task, from);
            let found = match &mut self.guess_with {
                Some(guess_with) => {
                    let ids = guess_with(&text, most);
                    (!ids.is_empty()).then_some(Guess { ids, source: DraftSource::Text, matched: 0 })
                }
                None => guess(&text, &outlook.siblings, most),
            };
            let Some(mut found) = found else { continue };
            let worth = match self.guess_with {
                Some(_) => found.ids.len(),
                None => entry.acceptance.worth(&found, price),
            };
            // Behind the end of a text nothing comes.
            let goes_on = |id: u32| (id as usize) < vocab && !outlook.stop_ids.contains(&id);
            let known = found.ids.iter().take_while(|&&id| goes_on(id)).count();
            let mut tokens = worth.min(most).min(known);
            let needed = |tokens: usize| backend.blocks_needed(span.seq, span.ids.len() + tokens);
            while tokens > 0 && needed(tokens).saturating_sub(needed(0)) > blocks {
                tokens -= 1;
            }
            if tokens == 0 {
                continue;
            }
            blocks = blocks.saturating_sub(needed(tokens).saturating_sub(needed(0)));
            room -= tokens;
            found.ids.truncate(tokens);
            let top_k = (1..=tokens).map(|behind| entry.request.top_k_behind(&span.task, behind)).collect();
            span.ids.append(&mut found.ids);
            span.draft = Some(Draft { top_k, source: found.source, matched: found.matched });
        }
    }
}

impl<T> Entry<T> {
    /// Hands out a row, and those behind guessed tokens as far as the guesses were right. Takes the rest back, and says
    /// what was guessed.
    pub(super) fn verify(
        &mut self,
        backend: &mut ModelPair,
        span: &TaskSpan,
        first: PolicyOutput,
        behind: Vec<PolicyRow>,
    ) -> DraftStats {
        let (drafted, mut accepted) = (behind.len(), 0);
        let mut task = span.task.clone();
        self.request.on_policy(&task, first);
        for (&id, row) in span.guessed().iter().zip(behind) {
            let Some(next) = self.request.following(&task) else { break };
            if next.key != task.key || next.len != task.len + 1 || self.request.ids(&next, task.len) != [id] {
                break;
            }
            // What cannot be told now is asked for again, by itself.
            let Ok(output) = policy_output(backend, span, drafted - accepted - 1, row) else { break };
            accepted += 1;
            self.request.on_policy(&next, output);
            task = next;
        }
        let end = span.task.len + accepted;
        if backend.len(span.seq) > end && backend.truncate(span.seq, end).is_err() {
            self.sequences.close(backend, span.task.key);
        }
        let again = self.sequences.run_on(span.task.key, span.task.len, end);
        self.stats.ran += Work::of(Role::Policy, drafted, 0);
        self.stats.recomputed += Work::of(Role::Policy, again, 0);
        let mut stats = DraftStats::default();
        if let Some(draft) = &span.draft {
            stats.count(draft.source, drafted, accepted);
            self.acceptance.learn(draft.source, draft.matched, drafted, accepted);
        }
        self.stats.drafts += stats;
        stats
    }
}
