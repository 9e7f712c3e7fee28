//! Verified drafts: tokens that are run before they are known, and taken back where they were not what came.
//!
//! A span of the policy that answers a task may go on with guessed ids. The row behind each of them is computed in the
//! same step, from the same keys and values as if the ids had come one by one, so it has the same bits. Rows are handed
//! to the request one by one, as long as what it asks about next is the text that was guessed; the sequence is cut back
//! to what was asked about. So a request never sees a guess. Only what it is told in one step differs.
//!
//! They are found in the request's texts, or made by the draft model, whichever is expected to bring more.
//!
//! Guesses take rows and blocks of keys and values that nobody else needs in the step.

use super::{Entry, Scheduler};
use crate::engine::draft::{DraftSource, Guess, LONGEST_DRAFT, WINDOW, guess, share};
use crate::engine::draft_model::Wish;
use crate::engine::execute::policy_output;
use crate::engine::settings::Drafting;
use crate::engine::step::{Draft, Step, TaskSpan};
use crate::model::{ModelPair, PolicyRow, Role, Work, timed};
use crate::task::{Ask, FullLogits, PolicyOutput};

/// While guesses of a draft model are right a step brings several tokens, so each of them is worth less than a step. This is
/// what they were worth together where the model was right in seven of ten cases.
const TOKENS_PER_STEP: f64 = 1.5;

/// Makes guesses in place of the engine: from a text and how many ids it may have.
pub(super) type GuessWith = Box<dyn FnMut(&[u32], usize) -> Vec<u32> + Send>;

/// Guessed tokens of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DraftCount {
    /// Run.
    pub drafted: u64,
    /// Found to be right.
    pub accepted: u64,
}

/// Guessed tokens, by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DraftStats {
    /// Other candidates of the segment, and other completions of the prompt.
    pub siblings: DraftCount,
    /// The prompt and what was written.
    pub text: DraftCount,
    /// The draft model.
    #[serde(default, skip_serializing_if = "DraftCount::is_zero")]
    pub model: DraftCount,
}

impl DraftCount {
    fn is_zero(&self) -> bool {
        *self == DraftCount::default()
    }
}

impl DraftStats {
    /// Guessed tokens that were run.
    pub fn drafted(&self) -> u64 {
        self.siblings.drafted + self.text.drafted + self.model.drafted
    }

    /// Those that were right.
    pub fn accepted(&self) -> u64 {
        self.siblings.accepted + self.text.accepted + self.model.accepted
    }

    fn count(&mut self, source: DraftSource, drafted: usize, accepted: usize) {
        let count = match source {
            DraftSource::Sibling => &mut self.siblings,
            DraftSource::Text => &mut self.text,
            DraftSource::Model => &mut self.model,
        };
        count.drafted += drafted as u64;
        count.accepted += accepted as u64;
    }
}

impl std::ops::AddAssign for DraftStats {
    fn add_assign(&mut self, more: DraftStats) {
        let DraftStats { siblings, text, model } = self;
        for (count, more) in [(siblings, more.siblings), (text, more.text), (model, more.model)] {
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
    pub(super) fn draft(&mut self, backend: &mut ModelPair, step: &mut Step) {
        if backend.span_rows() <= 1 || step.policy.is_empty() {
            return;
        }
        let Ok(vocab) = backend.config(Role::Policy).map(|config| config.vocab_size) else { return };
        let rows = step.policy.iter().map(TaskSpan::tokens).fold(0, usize::saturating_add);
        // Tokens of texts that are hardly of use are hardly worth anything.
        let worth: f64 = step.policy.iter().map(|span| span.tokens() as f64 * span.task.chance).sum();
        let price = share(rows, worth, self.settings.row_cost.unwrap_or_else(|| backend.row_cost()));
        if price >= 1.0 && self.guess_with.is_none() {
            return;
        }
        // A step of the draft model for all texts that have a row is as much of what their tokens are worth.
        let draft_cost = backend.draft_cost().map(|cost| self.settings.draft_cost.unwrap_or(cost));
        let mut room = self.settings.batch_tokens.saturating_sub(rows);
        let (mut found, mut wishes, mut wishing) = (Vec::new(), Vec::new(), Vec::new());
        for (place, span) in step.policy.iter().enumerate().filter(|(_, span)| span.last) {
            let Some(entry) = self.running.get_mut(&span.request) else { continue };
            let drafting = entry.submitter.drafting.unwrap_or(self.settings.drafting);
            if drafting == Drafting::Off && self.guess_with.is_none() {
                continue;
            }
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
            // Behind the end of a text nothing comes.
            let goes_on = |id: u32| (id as usize) < vocab && !outlook.stop_ids.contains(&id);
            let known = |ids: &[u32]| ids.iter().take_while(|&&id| goes_on(id)).count();
            if let Some(guess_with) = &mut self.guess_with {
                let mut ids = guess_with(&entry.request.ids(&span.task, 0), most);
                ids.truncate(known(&ids).min(most));
                room -= ids.len();
                found.push((place, Guess { ids, source: DraftSource::Text, matched: 0, classes: Vec::new() }));
                continue;
            }
            let price = price / span.task.chance;
            let draft_cost = draft_cost.map(|cost| TOKENS_PER_STEP * cost / span.task.chance);
            if price.is_nan() || price >= 1.0 {
                continue;
            }
            let mut brings = 0.0;
            let mut guess = None;
            if entry.acceptance.hopeful(price) {
                // What stands far before is not looked through.
                let text = entry.request.ids(&span.task, span.task.len.saturating_sub(WINDOW));
                guess = self::guess(&text, &outlook.siblings, most);
            }
            if let Some(guess) = &mut guess {
                let tokens = entry.acceptance.worth(guess, price).min(known(&guess.ids));
                brings = entry.acceptance.gain(guess, tokens, price);
                guess.ids.truncate(tokens);
            }
            let model = draft_cost.filter(|_| drafting == Drafting::Model);
            if let Some(cost) = model
                && entry.acceptance.model.gain(most, price + cost) > brings
            {
                wishing.push((place, guess));
                wishes.push(Wish {
                    key: (span.request, span.task.key),
                    text: entry.request.ids(&span.task, 0),
                    most,
                    stop_ids: outlook.stop_ids.to_vec(),
                    vocab,
                    confidence: entry.acceptance.model,
                    price: [price, cost],
                });
            } else if let Some(guess) = guess {
                room -= guess.ids.len();
                found.push((place, guess));
            }
        }
        if let Some(model) = backend.draft.as_deref_mut().filter(|_| !wishes.is_empty()) {
            let (drafter, budget) = (&mut self.drafter, self.settings.batch_tokens);
            let guesses = timed(&mut self.seconds.draft, || drafter.guess(model, &wishes, budget));
            self.stats.draft_work = self.drafter.work();
            for (((place, other), guess), wish) in wishing.into_iter().zip(guesses).zip(&wishes) {
                let vain = guess.as_ref().is_some_and(|guess| guess.ids.is_empty());
                if let Some(entry) = self.running.get_mut(&wish.key.0).filter(|_| vain) {
                    entry.acceptance.model.vain();
                }
                // What was found stands in for what the model did not guess.
                found.extend(guess.filter(|_| !vain).or(other).map(|guess| (place, guess)));
            }
            found.sort_by_key(|&(place, _)| place);
        }
        self.extend(backend, step, found, rows);
    }

    /// Lets spans go on with guesses, as far as there are rows and blocks for them. `rows`: those of the step without.
    fn extend(&mut self, backend: &ModelPair, step: &mut Step, found: Vec<(usize, Guess)>, rows: usize) {
        let mut room = self.settings.batch_tokens.saturating_sub(rows);
        let promised = step.policy.iter().map(|span| backend.blocks_needed(span.seq, span.ids.len()));
        let promised = promised.fold(self.running.len(), usize::saturating_add);
        let mut blocks = backend.blocks_free(Role::Policy).saturating_sub(promised);
        for (place, mut guess) in found {
            let Some(span) = step.policy.get_mut(place) else { continue };
            let Some(entry) = self.running.get(&span.request) else { continue };
            let mut tokens = guess.ids.len().min(room);
            let needed = |tokens: usize| backend.blocks_needed(span.seq, span.ids.len() + tokens);
            while tokens > 0 && needed(tokens).saturating_sub(needed(0)) > blocks {
                tokens -= 1;
            }
            if tokens == 0 {
                continue;
            }
            blocks = blocks.saturating_sub(needed(tokens).saturating_sub(needed(0)));
            room -= tokens;
            guess.ids.truncate(tokens);
            guess.classes.truncate(tokens);
            let top_k = (1..=tokens).map(|behind| entry.request.top_k_behind(&span.task, behind)).collect();
            span.ids.append(&mut guess.ids);
            let Guess { source, matched, classes, .. } = guess;
            span.draft = Some(Draft { top_k, source, matched, classes });
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
            self.learn(draft, drafted, accepted);
        }
        self.stats.drafts += stats;
        stats
    }

    /// Of so many guessed tokens, the first ones were right.
    pub(super) fn learn(&mut self, draft: &Draft, drafted: usize, accepted: usize) {
        match draft.source {
            DraftSource::Model => self.acceptance.model.learn(&draft.classes, accepted),
            source => self.acceptance.learn(source, draft.matched, drafted, accepted),
        }
    }
}
