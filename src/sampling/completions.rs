//! Sampled completions of a prompt as a state machine: one, several, or the best of several by the reward model.
//!
//! Completions share the prompt, which goes through each model once. A completion's n-th token depends on the seed, the
//! number of the completion, n and the row alone, so it does not depend on what runs beside it.

use super::choose::reported;
use super::{Chosen, Counts, Sampling, choose};
use crate::model::{Role, Work};
use crate::task::{Ask, Finished, Generation, LineId, Part, Progress, Row, Scored, Speculation, Task, Top, Use, Whole};
use crate::{Error, Result};
use std::sync::Arc;

/// Is shown a completion's ids as they come, and says whether it ends here for a reason of the caller's: a stop string, say.
pub type Watch = Box<dyn FnMut(u32) -> bool + Send>;

/// Makes a watch for every completion.
pub type Stop = Arc<dyn Fn() -> Watch + Send + Sync>;

/// What is asked for.
#[derive(Clone)]
pub struct Plan {
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
    pub stop: Option<Stop>,
    /// Whether every token is told as it comes ([`Progress::Chosen`]).
    pub tell: bool,
    /// Whether the policy is asked what it thinks of the prompt's tokens ([`Progress::Prompt`]). It then runs through the prompt a
    /// token at a time.
    pub prompt_logprobs: bool,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A stop id, or the caller's own reason.
    Stop,
    /// The budget.
    Length,
}

/// One completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Its ids, a stop id included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: Reason,
    /// Per id its log-probability and the most likely ids; empty if not asked for.
    pub chosen: Vec<Chosen>,
    /// Reward at its last position, if it was scored.
    pub reward: Option<f32>,
}

/// All completions of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completions {
    /// In the order of their numbers.
    pub all: Vec<Completion>,
    /// The one with the largest reward, the earliest on a tie; 0 if they were not scored.
    pub best: usize,
    /// What had to be run.
    pub work: Work,
}

struct Stream {
    ids: Vec<u32>,
    chosen: Vec<Chosen>,
    counts: Counts,
    reason: Option<Reason>,
    reward: Option<f32>,
    watch: Option<Watch>,
}

/// Completions in progress.
pub struct Sampler {
    plan: Plan,
    prompt: Vec<u32>,
    reward_vocab: usize,
    streams: Vec<Stream>,
    /// The prompt's row was seen.
    begun: bool,
    /// What was thought of the prompt.
    scanned: Vec<Chosen>,
    said: Vec<Progress>,
    /// The prompt went through the reward model.
    based: bool,
    necessary: Work,
    tokens: usize,
    outcome: Option<Result<Completions>>,
    ended: bool,
}

impl Sampler {
    /// Completions of `prompt`; both were checked. `reward_vocab` are the ids that the reward model knows.
    pub fn new(prompt: &[u32], plan: Plan, reward_vocab: usize) -> Sampler {
        let counts = Counts::new(prompt);
        let stream = || Stream {
            ids: Vec::new(),
            chosen: Vec::new(),
            counts: counts.clone(),
            // Asked for nothing but the prompt.
            reason: (plan.max_new_tokens == 0).then_some(Reason::Length),
            reward: None,
            watch: plan.stop.as_ref().map(|stop| stop()),
        };
        Sampler {
            streams: (0..plan.n.max(1)).map(|_| stream()).collect(),
            plan,
            prompt: prompt.to_vec(),
            reward_vocab,
            begun: false,
            scanned: Vec::new(),
            said: Vec::new(),
            based: false,
            necessary: Work::default(),
            tokens: 0,
            outcome: None,
            ended: false,
        }
    }

    /// A single completion goes on on the prompt's own line.
    fn line_of(&self, index: usize, role: Role) -> (LineId, Option<(LineId, usize)>) {
        let trunk = LineId { role, number: 0 };
        match self.streams.len() {
            1 => (trunk, None),
            _ => (LineId { role, number: index as u32 + 1 }, Some((trunk, self.prompt.len()))),
        }
    }

    fn ask(&self) -> Ask {
        let sampling = &self.plan.sampling;
        let barred = sampling.barred_before > 0 && !sampling.barred.is_empty();
        let whole = if sampling.plain() && !barred && sampling.logprobs.is_none() && !self.scans() {
            Whole::Never
        } else {
            Whole::Always
        };
        Ask::Row { floor: 0.0, top: Top::Skip, whole }
    }

    /// Whether the prompt is run through a token at a time, and is not yet at its end.
    fn scans(&self) -> bool {
        self.plan.prompt_logprobs && self.scanned.len() + 1 < self.prompt.len()
    }

    /// Lets a completion take its next token from a row.
    fn push(&mut self, index: usize, row: &Row) -> Result<()> {
        let stats = &row.row.stats;
        let stream = &mut self.streams[index];
        if stream.reason.is_some() {
            return Ok(());
        }
        let position = self.prompt.len() + stream.ids.len();
        if !stats.finite {
            return Err(Error::NonFinite { what: "logit", model: "policy", position: position - 1 });
        }
        let token = stream.ids.len() as u64;
        let chosen = match &row.logits {
            Some(logits) => choose(logits, &self.plan.sampling, &stream.counts, index as u64, token),
            None => Chosen {
                id: stats.argmax,
                logprob: stats.max_probability.ln(),
                entropy: stats.entropy,
                top: Vec::new(),
            },
        };
        let id = chosen.id;
        if self.plan.score && id as usize >= self.reward_vocab {
            return Err(Error::invalid(format!(
                "the policy chose id {id}, which the reward model cannot read: its vocabulary has {} ids",
                self.reward_vocab
            )));
        }
        stream.ids.push(id);
        stream.counts.push(id);
        if self.plan.tell {
            self.said.push(Progress::Chosen(index, chosen.clone()));
        }
        if self.plan.sampling.logprobs.is_some() {
            stream.chosen.push(chosen);
        }
        self.tokens += 1;
        if self.plan.stop_ids.contains(&id) || stream.watch.as_mut().is_some_and(|watch| watch(id)) {
            stream.reason = Some(Reason::Stop);
        } else if stream.ids.len() >= self.plan.max_new_tokens {
            stream.reason = Some(Reason::Length);
        }
        Ok(())
    }

    fn end(&mut self, outcome: Result<Completions>) {
        self.ended = true;
        self.outcome = Some(outcome);
    }
}

impl Generation for Sampler {
    fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    fn tasks(&self, out: &mut Vec<Task>) {
        let len = self.prompt.len();
        if self.ended {
            return;
        }
        let necessary =
            |line, parent, len, fresh, ask, part| Task { line, parent, len, fresh, speculative: false, ask, part };
        let score = || Ask::Score { also_at: Vec::new(), gradient: None };
        if !self.begun {
            let line = LineId { role: Role::Policy, number: 0 };
            let (len, fresh) = match self.plan.prompt_logprobs {
                true => (self.scanned.len() + 1, self.scanned.len()),
                false => (len, 0),
            };
            out.push(necessary(line, None, len, fresh, self.ask(), Part::Decode(0)));
        }
        let shared = self.plan.score && self.streams.len() > 1;
        if shared && !self.based {
            let line = LineId { role: Role::Reward, number: 0 };
            out.push(necessary(line, None, len, 0, score(), Part::Base));
        }
        if !self.begun {
            return;
        }
        for (index, stream) in self.streams.iter().enumerate() {
            let len = len + stream.ids.len();
            if stream.reason.is_none() {
                let (line, parent) = self.line_of(index, Role::Policy);
                out.push(necessary(line, parent, len, len - 1, self.ask(), Part::Decode(index)));
            } else if self.plan.score && stream.reward.is_none() && (self.based || !shared) {
                let (line, parent) = self.line_of(index, Role::Reward);
                let fresh = if shared { self.prompt.len() } else { 0 };
                out.push(necessary(line, parent, len, fresh, score(), Part::Score(index)));
            }
        }
    }

    fn ids(&self, task: &Task, from: usize) -> Vec<u32> {
        let tail = match task.part {
            Part::Decode(index) | Part::Score(index) | Part::Ahead(index) => &self.streams[index].ids[..],
            Part::Base => &[],
        };
        self.prompt.iter().chain(tail).copied().skip(from).take(task.len.saturating_sub(from)).collect()
    }

    fn row(&mut self, task: &Task, row: Row) {
        let Part::Decode(index) = task.part else { return };
        if self.ended {
            return;
        }
        self.necessary.policy_forward += (task.len - task.fresh) as u64;
        if !self.begun && self.scans() {
            let next = self.prompt[self.scanned.len() + 1];
            match row.logits.as_ref().filter(|_| row.row.stats.finite) {
                Some(logits) => {
                    self.scanned.push(reported(logits, &row.row.stats, next, self.plan.sampling.logprobs));
                }
                None => {
                    self.end(Err(Error::NonFinite { what: "logit", model: "policy", position: task.len - 1 }));
                }
            }
            return;
        }
        if !self.begun && self.plan.prompt_logprobs {
            self.said.push(Progress::Prompt(std::mem::take(&mut self.scanned)));
        }
        let streams = if self.begun { index..index + 1 } else { 0..self.streams.len() };
        self.begun = true;
        for index in streams {
            if let Err(error) = self.push(index, &row) {
                self.end(Err(error));
                return;
            }
        }
    }

    fn scored(&mut self, task: &Task, scored: Scored) {
        if self.ended {
            return;
        }
        self.necessary.reward_forward += (task.len - task.fresh) as u64;
        match task.part {
            Part::Base => self.based = true,
            Part::Score(_) if !scored.reward.is_finite() => {
                self.end(Err(Error::NonFinite { what: "reward", model: "reward", position: task.len - 1 }));
            }
            Part::Score(index) => self.streams[index].reward = Some(scored.reward),
            Part::Decode(_) | Part::Ahead(_) => {}
        }
    }

    fn failed(&mut self, _: &Task, error: Error) {
        if !self.ended {
            self.end(Err(error));
        }
    }

    fn advance(&mut self, _: Speculation, _: &dyn Fn(u32, u32) -> bool) {
        let done = |stream: &Stream| stream.reason.is_some() && (!self.plan.score || stream.reward.is_some());
        if self.ended || !self.begun || !self.streams.iter().all(done) {
            return;
        }
        let all = self.streams.drain(..).map(|stream| Completion {
            ids: stream.ids,
            reason: stream.reason.unwrap_or(Reason::Length),
            chosen: stream.chosen,
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
        self.end(Ok(Completions { all, best, work }));
    }

    fn line(&self, line: LineId) -> Use {
        let stream = line.number.checked_sub(1).and_then(|index| self.streams.get(index as usize));
        match (line.role, stream) {
            (Role::Policy, Some(stream)) if stream.reason.is_some() => Use::Dead,
            (Role::Reward, Some(stream)) if stream.reward.is_some() => Use::Dead,
            _ => Use::Necessary,
        }
    }

    fn progress(&mut self) -> Vec<Progress> {
        let mut said = std::mem::take(&mut self.said);
        match std::mem::take(&mut self.tokens) {
            0 => {}
            count => said.insert(0, Progress::Tokens(count)),
        }
        said
    }

    fn ended(&self) -> bool {
        self.ended
    }

    fn necessary(&self) -> Work {
        self.necessary
    }

    fn trunk(&self, role: Role) -> LineId {
        LineId { role, number: 0 }
    }

    fn take(&mut self) -> Option<Result<Finished>> {
        Some(self.outcome.take()?.map(|all| Finished::Completions(Box::new(all))))
    }
}
