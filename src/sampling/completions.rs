//! Sampled completions of a prompt as a state machine: one, several, or the best of several by the reward model.
//!
//! Completions share the prompt, which goes through each model once. A completion's n-th token depends on the seed, the
//! number of the completion, n and the row alone, so it is the same in any batch.

use super::choose::{choose_of, reported};
use super::{Counts, Sampling};
use crate::answer::{Completion, Completions, StopReason, TokenLogprob};
use crate::model::{Role, RowStats, TopK, Work};
use crate::task::{
    Ask, FullLogits, Liveness, Outcome, Outlook, PolicyOutput, Progress, Request, RewardOutput, SeqKey, Speculation,
    Task, TaskOrigin, cut,
};
use crate::{Error, Result};
use std::sync::Arc;

/// Is shown a completion's ids as they come, and says whether it ends for a reason of the caller's: a stop string, say.
/// A closure of an id that can be cloned is one.
pub trait CheckStop: Send {
    /// Whether the completion ends with this id, the next one. It is shown each id once, up to the first that ends it.
    fn ends_with(&mut self, id: u32) -> bool;
    /// The same check for another completion, which has been shown the same ids.
    fn fork(&self) -> StopCheck;
}

impl<F: FnMut(u32) -> bool + Clone + Send + 'static> CheckStop for F {
    fn ends_with(&mut self, id: u32) -> bool {
        self(id)
    }
    fn fork(&self) -> StopCheck {
        Box::new(self.clone())
    }
}

/// The check of one completion.
pub type StopCheck = Box<dyn CheckStop>;

/// Makes a check for every completion.
pub type NewStopCheck = Arc<dyn Fn() -> StopCheck + Send + Sync>;

/// Which completions of a prompt are wanted.
#[derive(Clone)]
pub struct CompletionSpec {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Completions.
    pub n: usize,
    /// Whether each is scored by the reward model.
    pub score: bool,
    /// Tokens of a completion, at most.
    pub max_new_tokens: usize,
    /// Ids that end a completion; the id is part of it.
    pub stop_ids: Vec<u32>,
    /// What else ends one.
    pub stop_check: Option<NewStopCheck>,
    /// Whether every token is reported as it comes ([`Progress::Token`]).
    pub stream_tokens: bool,
    /// Whether log-probabilities of the prompt are reported ([`Progress::Prompt`]). The policy then runs through the prompt one
    /// token at a time.
    pub prompt_logprobs: bool,
}

impl Default for CompletionSpec {
    /// One greedy completion of at most 128 tokens, without stop ids.
    fn default() -> CompletionSpec {
        CompletionSpec {
            sampling: Sampling::default(),
            n: 1,
            score: false,
            max_new_tokens: 128,
            stop_ids: Vec::new(),
            stop_check: None,
            stream_tokens: false,
            prompt_logprobs: false,
        }
    }
}

/// One completion in progress.
struct Stream {
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    /// Empty if there are no penalties: nothing else asks for them.
    counts: Counts,
    reason: Option<StopReason>,
    reward: Option<f32>,
    check: Option<StopCheck>,
}

/// Completions in progress.
pub struct Sampler {
    spec: CompletionSpec,
    prompt: Vec<u32>,
    reward_vocab: usize,
    streams: Vec<Stream>,
    /// The distribution after the prompt was seen.
    begun: bool,
    /// Log-probabilities of the prompt so far.
    scanned: Vec<TokenLogprob>,
    progress: Vec<Progress>,
    /// The prompt went through the reward model.
    prompt_scored: bool,
    necessary: Work,
    tokens: usize,
    outcome: Outcome<Completions>,
}

impl Sampler {
    /// Completions of `prompt`; both were checked. `reward_vocab` are the ids that the reward model knows.
    pub fn new(prompt: &[u32], spec: CompletionSpec, reward_vocab: usize) -> Sampler {
        let counts = if spec.sampling.penalises() { Counts::new(prompt) } else { Counts::default() };
        let stream = || Stream {
            ids: Vec::new(),
            logprobs: Vec::new(),
            counts: counts.clone(),
            // Only the prompt is asked about.
            reason: (spec.max_new_tokens == 0).then_some(StopReason::Length),
            reward: None,
            check: spec.stop_check.as_ref().map(|new| new()),
        };
        Sampler {
            streams: (0..spec.n.max(1)).map(|_| stream()).collect(),
            spec,
            prompt: prompt.to_vec(),
            reward_vocab,
            begun: false,
            scanned: Vec::new(),
            progress: Vec::new(),
            prompt_scored: false,
            necessary: Work::default(),
            tokens: 0,
            outcome: Outcome::pending(),
        }
    }

    /// A single completion goes on on the prompt's own sequence.
    fn key_of(&self, index: usize, role: Role) -> (SeqKey, Option<(SeqKey, usize)>) {
        let trunk = SeqKey { role, number: 0 };
        match self.streams.len() {
            1 => (trunk, None),
            _ => (SeqKey { role, number: index as u32 + 1 }, Some((trunk, self.prompt.len()))),
        }
    }

    /// The next token of a completion that has begun.
    fn decode_task(&self, index: usize) -> Task {
        let (key, parent) = self.key_of(index, Role::Policy);
        let len = self.prompt.len() + self.streams[index].ids.len();
        necessary(key, parent, len, len - 1, self.ask(), TaskOrigin::Decode(index))
    }

    fn ask(&self) -> Ask {
        let sampling = &self.spec.sampling;
        let suppresses = sampling.min_tokens > 0 && !sampling.suppress_ids.is_empty();
        let full_logits = if sampling.plain() && !suppresses && sampling.logprobs.is_none() && !self.scans() {
            FullLogits::Never
        } else {
            FullLogits::Always
        };
        Ask::Policy { floor: 0.0, top_k: TopK::Skip, full_logits }
    }

    /// Whether the prompt is run through a token at a time, and is not yet at its end.
    fn scans(&self) -> bool {
        self.spec.prompt_logprobs && self.scanned.len() + 1 < self.prompt.len()
    }

    /// Lets a completion take its next token. `of_logits` are the statistics of the row's logits, if they came with it.
    fn push(&mut self, index: usize, output: &PolicyOutput, of_logits: Option<&RowStats>) -> Result<()> {
        let stats = &output.row.stats;
        let stream = &mut self.streams[index];
        if stream.reason.is_some() {
            return Ok(());
        }
        let position = self.prompt.len() + stream.ids.len();
        if !stats.finite {
            return Err(Error::NonFinite { what: "logit", model: "policy", position: position - 1 });
        }
        let token = stream.ids.len() as u64;
        let chosen = match output.logits.as_ref().zip(of_logits) {
            Some((logits, stats)) => {
                choose_of(logits, stats, &self.spec.sampling, &stream.counts, (index as u64, token))
            }
            None => TokenLogprob {
                id: stats.argmax,
                logprob: stats.max_probability.ln(),
                entropy: stats.entropy,
                top: Vec::new(),
            },
        };
        let id = chosen.id;
        if self.spec.score && id as usize >= self.reward_vocab {
            return Err(Error::invalid(format!(
                "the policy chose id {id}, which the reward model cannot read: its vocabulary has {} ids",
                self.reward_vocab
            )));
        }
        stream.ids.push(id);
        if self.spec.sampling.penalises() {
            stream.counts.push(id);
        }
        match (self.spec.stream_tokens, self.spec.sampling.logprobs.is_some()) {
            (true, true) => {
                self.progress.push(Progress::Token(index, chosen.clone()));
                stream.logprobs.push(chosen);
            }
            (true, false) => self.progress.push(Progress::Token(index, chosen)),
            (false, true) => stream.logprobs.push(chosen),
            (false, false) => {}
        }
        self.tokens += 1;
        if self.spec.stop_ids.contains(&id) || stream.check.as_mut().is_some_and(|check| check.ends_with(id)) {
            stream.reason = Some(StopReason::Stop);
        } else if stream.ids.len() >= self.spec.max_new_tokens {
            stream.reason = Some(StopReason::Length);
        }
        Ok(())
    }

    /// Ends the request if something went wrong.
    fn check(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.outcome.end(Err(error));
        }
    }

    /// Takes the distribution after the prompt or one of its tokens, or after a completion.
    fn take_policy(&mut self, task: &Task, index: usize, output: &PolicyOutput) -> Result<()> {
        self.necessary.policy_forward += (task.len - task.fresh) as u64;
        if !self.begun && self.scans() {
            let next = self.prompt[self.scanned.len() + 1];
            let Some(logits) = output.logits.as_ref().filter(|_| output.row.stats.finite) else {
                return Err(Error::NonFinite { what: "logit", model: "policy", position: task.len - 1 });
            };
            self.scanned.push(reported(logits, &output.row.stats, next, self.spec.sampling.logprobs));
            return Ok(());
        }
        if !self.begun && self.spec.prompt_logprobs {
            self.progress.push(Progress::Prompt(std::mem::take(&mut self.scanned)));
        }
        let streams = if self.begun { index..index + 1 } else { 0..self.streams.len() };
        self.begun = true;
        // Of the first row all completions take a token.
        let of_logits = output.logits.as_ref().map(|logits| RowStats::of(logits, 0.0));
        streams.into_iter().try_for_each(|index| self.push(index, output, of_logits.as_ref()))
    }
}

/// A task that the completions need, as they need all.
fn necessary(
    key: SeqKey,
    parent: Option<(SeqKey, usize)>,
    len: usize,
    fresh: usize,
    ask: Ask,
    origin: TaskOrigin,
) -> Task {
    Task { key, parent, len, fresh, speculative: false, chance: 1.0, ask, origin }
}

impl Request for Sampler {
    type Output = Completions;

    fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    fn tasks(&self, out: &mut Vec<Task>) {
        let len = self.prompt.len();
        if self.outcome.ended() {
            return;
        }
        let score = || Ask::Reward { also_at: Vec::new(), gradient: None };
        if !self.begun {
            let key = SeqKey { role: Role::Policy, number: 0 };
            let (len, fresh) = match self.spec.prompt_logprobs {
                true => (self.scanned.len() + 1, self.scanned.len()),
                false => (len, 0),
            };
            out.push(necessary(key, None, len, fresh, self.ask(), TaskOrigin::Decode(0)));
        }
        let shared = self.spec.score && self.streams.len() > 1;
        if shared && !self.prompt_scored {
            let key = SeqKey { role: Role::Reward, number: 0 };
            out.push(necessary(key, None, len, 0, score(), TaskOrigin::Shared));
        }
        if !self.begun {
            return;
        }
        for (index, stream) in self.streams.iter().enumerate() {
            let len = len + stream.ids.len();
            if stream.reason.is_none() {
                out.push(self.decode_task(index));
            } else if self.spec.score && stream.reward.is_none() && (self.prompt_scored || !shared) {
                let (key, parent) = self.key_of(index, Role::Reward);
                let fresh = if shared { self.prompt.len() } else { 0 };
                out.push(necessary(key, parent, len, fresh, score(), TaskOrigin::Score(index)));
            }
        }
    }

    fn ids(&self, task: &Task, from: usize) -> Vec<u32> {
        let tail = match task.origin {
            TaskOrigin::Decode(index) | TaskOrigin::Score(index) => &self.streams[index].ids[..],
            TaskOrigin::Shared | TaskOrigin::RunAhead(_) | TaskOrigin::ScoreAhead(_) => &[],
        };
        cut([&self.prompt, tail], from, task.len)
    }

    fn outlook(&self, task: &Task) -> Option<Outlook<'_>> {
        let TaskOrigin::Decode(own) = task.origin else { return None };
        // Several completions go on from the prompt in different ways, each on a sequence of its own.
        if !self.begun && (self.scans() || self.streams.len() > 1) {
            return None;
        }
        // The last token of a completion is not run.
        let most = self.prompt.len().saturating_add(self.spec.max_new_tokens).saturating_sub(task.len + 1);
        let others = self.streams.iter().enumerate().filter(|&(index, _)| index != own);
        Some(Outlook {
            most,
            stop_ids: &self.spec.stop_ids,
            siblings: others.map(|(_, stream)| &stream.ids[..]).collect(),
        })
    }

    fn following(&self, task: &Task) -> Option<Task> {
        let TaskOrigin::Decode(index) = task.origin else { return None };
        let goes_on = self.begun && !self.outcome.ended() && self.streams.get(index)?.reason.is_none();
        goes_on.then(|| self.decode_task(index)).filter(|next| next.key == task.key)
    }

    fn on_policy(&mut self, task: &Task, output: PolicyOutput) {
        let TaskOrigin::Decode(index) = task.origin else { return };
        if !self.outcome.ended() {
            let taken = self.take_policy(task, index, &output);
            self.check(taken);
        }
    }

    fn on_reward(&mut self, task: &Task, output: RewardOutput) {
        if self.outcome.ended() {
            return;
        }
        self.necessary.reward_forward += (task.len - task.fresh) as u64;
        match task.origin {
            TaskOrigin::Shared => self.prompt_scored = true,
            TaskOrigin::Score(_) if !output.reward.is_finite() => {
                self.outcome.end(Err(Error::NonFinite { what: "reward", model: "reward", position: task.len - 1 }));
            }
            TaskOrigin::Score(index) => self.streams[index].reward = Some(output.reward),
            TaskOrigin::Decode(_) | TaskOrigin::RunAhead(_) | TaskOrigin::ScoreAhead(_) => {}
        }
    }

    fn on_failure(&mut self, _: &Task, error: Error) {
        self.outcome.end(Err(error));
    }

    fn advance(&mut self, _: Speculation, _: &dyn Fn(u32, u32) -> bool) {
        let done = |stream: &Stream| stream.reason.is_some() && (!self.spec.score || stream.reward.is_some());
        if self.outcome.ended() || !self.begun || !self.streams.iter().all(done) {
            return;
        }
        let all = self.streams.drain(..).map(|stream| Completion {
            ids: stream.ids,
            reason: stream.reason.unwrap_or(StopReason::Length),
            logprobs: stream.logprobs,
            reward: stream.reward,
        });
        let all: Vec<Completion> = all.collect();
        let mut best = 0;
        for (index, completion) in all.iter().enumerate() {
            if completion.reward > all[best].reward {
                best = index;
            }
        }
        let work = self.necessary;
        self.outcome.end(Ok(Completions { all, best, work, search: None }));
    }

    fn liveness(&self, key: SeqKey) -> Liveness {
        let stream = key.number.checked_sub(1).and_then(|index| self.streams.get(index as usize));
        match (key.role, stream) {
            (Role::Policy, Some(stream)) if stream.reason.is_some() => Liveness::Dead,
            (Role::Reward, Some(stream)) if stream.reward.is_some() => Liveness::Dead,
            _ => Liveness::Necessary,
        }
    }

    fn progress(&mut self) -> Vec<Progress> {
        let mut progress = std::mem::take(&mut self.progress);
        match std::mem::take(&mut self.tokens) {
            0 => {}
            count if progress.is_empty() => progress = vec![Progress::Tokens(count)],
            count => progress.insert(0, Progress::Tokens(count)),
        }
        progress
    }

    fn ended(&self) -> bool {
        self.outcome.ended()
    }

    fn necessary(&self) -> Work {
        self.necessary
    }

    fn trunk(&self, role: Role) -> SeqKey {
        SeqKey { role, number: 0 }
    }

    fn take(&mut self) -> Option<Result<Completions>> {
        self.outcome.take()
    }
}
