//! A search as a request: a method's decisions over texts, whose rows and rewards the engine finds.

use super::strategy::{Answer, Strategy};
use super::text::TextId;
use super::texts::{Texts, unknown};
use crate::answer::{Completion, Completions, StopReason, TokenLogprob};
use crate::model::{Role, Work};
use crate::sampling::CompletionSpec;
use crate::task::{
    Liveness, Outcome, PolicyOutput, Progress, Request, RewardOutput, SeqKey, Speculation, Task, TaskOrigin, cut,
};
use crate::{Error, Result};
use std::sync::Arc;

/// Decisions in a row of which none asks a model for anything. A method that takes more is at fault.
const MOST_DECISIONS: usize = 1 << 16;

/// Texts in flight at most where tokens are drawn: all logits of each row come to the host and are gone through there, which is not
/// as cheap as a row of a batch. Not measured on a GPU.
const SAMPLED_AHEAD: usize = 4;

/// A search in progress.
pub struct Search {
    strategy: Box<dyn Strategy>,
    texts: Texts,
    /// Tokens of the answer that were reported.
    reported: usize,
    progress: Vec<Progress>,
    outcome: Outcome<Completions>,
}

impl Search {
    /// A search for an answer to `prompt`; both were checked. Of `spec`, `n`, `score` and `prompt_logprobs` do not count.
    /// `reward_vocab` are the ids that the reward model knows.
    ///
    /// # Errors
    /// The strategy's.
    pub fn new(
        prompt: &[u32],
        spec: CompletionSpec,
        reward_vocab: usize,
        strategy: Box<dyn Strategy>,
    ) -> Result<Search> {
        let texts = Texts::new(prompt, spec, reward_vocab, strategy.top_k());
        let mut search = Search { strategy, texts, reported: 0, progress: Vec::new(), outcome: Outcome::pending() };
        search.go_on();
        match search.outcome.take() {
            Some(Err(error)) => Err(error),
            Some(Ok(_)) => Err(asks_nothing()),
            None => Ok(search),
        }
    }

    /// Goes on as far as what is known allows.
    fn go_on(&mut self) {
        for _ in 0..MOST_DECISIONS {
            match self.decide() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.outcome.end(Err(error)),
            }
        }
        self.outcome.end(Err(asks_nothing()));
    }

    /// Lets texts grow, and takes a decision if there is nothing to wait for. False: there is, or the search has ended.
    fn decide(&mut self) -> Result<bool> {
        self.texts.grow();
        if let Some(error) = self.texts.failure() {
            return Err(error);
        }
        if self.texts.pending() {
            self.report();
            self.texts.prune();
            self.texts.settle();
            return Ok(false);
        }
        match self.strategy.next(&mut self.texts)? {
            Some(answer) => {
                let completions = self.finish(&answer)?;
                self.outcome.end(Ok(completions));
                Ok(false)
            }
            None => {
                self.texts.prune();
                Ok(true)
            }
        }
    }

    /// Reports the tokens that have become final.
    fn report(&mut self) {
        if self.texts.spec.stream_tokens {
            let settled = self.texts.settled(self.reported);
            self.reported += settled.len();
            self.progress.extend(settled.into_iter().map(|token| Progress::Token(0, Arc::unwrap_or_clone(token))));
        }
    }

    /// The answer as completions; the texts are given up.
    fn finish(&mut self, answer: &Answer) -> Result<Completions> {
        let best = answer.all.get(answer.best).and_then(|id| self.texts.all.get(id));
        let best = best.ok_or_else(|| unknown("answers with a"))?;
        if self.texts.spec.stream_tokens {
            let rest = best.logprobs.get(self.reported..).unwrap_or_default();
            self.progress.extend(rest.iter().map(|token| Progress::Token(0, TokenLogprob::clone(token))));
        }
        let logprobs = self.texts.spec.sampling.logprobs.is_some();
        let completion = |id: &TextId| {
            let text = self.texts.all.get(id).ok_or_else(|| unknown("answers with a"))?;
            let completion = Completion {
                ids: text.ids.clone(),
                reason: text.stop.unwrap_or(StopReason::Length),
                logprobs: Vec::new(),
                reward: text.asked_reward(),
            };
            Ok((completion, if logprobs { text.logprobs.clone() } else { Vec::new() }))
        };
        let all = answer.all.iter().map(completion).collect::<Result<Vec<_>>>()?;
        // Then most log-probabilities have one owner, and are moved.
        self.texts.all.clear();
        let all = all.into_iter().map(|(completion, logprobs)| Completion {
            logprobs: logprobs.into_iter().map(Arc::unwrap_or_clone).collect(),
            ..completion
        });
        let (all, work) = (all.collect(), self.texts.necessary);
        Ok(Completions { all, best: answer.best, work, search: Some(answer.counts) })
    }
}

fn asks_nothing() -> Error {
    Error::Backend("a method that neither asks for anything nor gives an answer".to_string())
}

/// The text that a task is about.
fn text_of(task: &Task) -> Option<TextId> {
    match task.origin {
        TaskOrigin::Decode(number) | TaskOrigin::Score(number) => u32::try_from(number).ok().map(TextId),
        TaskOrigin::RunAhead(_) | TaskOrigin::ScoreAhead(_) | TaskOrigin::Shared => None,
    }
}

impl Request for Search {
    type Output = Completions;

    fn prompt(&self) -> &[u32] {
        &self.texts.prompt
    }

    fn tasks(&self, out: &mut Vec<Task>) {
        if !self.outcome.ended() {
            self.texts.tasks(out);
        }
    }

    fn ids(&self, task: &Task, from: usize) -> Vec<u32> {
        let tail = text_of(task).map_or(&[][..], |id| self.texts.ids(id));
        cut([&self.texts.prompt, tail], from, task.len)
    }

    fn on_policy(&mut self, task: &Task, output: PolicyOutput) {
        if let Some(id) = text_of(task).filter(|_| !self.outcome.ended()) {
            self.texts.on_row(id, task, output);
        }
    }

    fn on_reward(&mut self, task: &Task, output: RewardOutput) {
        if let Some(id) = text_of(task).filter(|_| !self.outcome.ended()) {
            self.texts.on_reward(id, task, &output);
        }
    }

    fn on_failure(&mut self, task: &Task, error: Error) {
        if let Some(id) = text_of(task).filter(|_| !self.outcome.ended()) {
            self.texts.on_failure(id, task, error);
        }
    }

    fn advance(&mut self, speculation: Speculation, _: &dyn Fn(u32, u32) -> bool) {
        if !self.outcome.ended() {
            let most = if self.texts.needs_logits() { SAMPLED_AHEAD } else { usize::MAX };
            self.texts.width = speculation.width.clamp(1, most);
            self.go_on();
        }
        match std::mem::take(&mut self.texts.tokens) {
            0 => {}
            count => self.progress.insert(0, Progress::Tokens(count)),
        }
    }

    fn liveness(&self, key: SeqKey) -> Liveness {
        self.texts.liveness(key)
    }

    fn progress(&mut self) -> Vec<Progress> {
        std::mem::take(&mut self.progress)
    }

    fn ended(&self) -> bool {
        self.outcome.ended()
    }

    fn necessary(&self) -> Work {
        self.texts.necessary
    }

    fn trunk(&self, role: Role) -> SeqKey {
        SeqKey { role, number: 0 }
    }

    fn take(&mut self) -> Option<Result<Completions>> {
        self.outcome.take()
    }
}
