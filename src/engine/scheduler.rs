//! Requests to batches: a state machine without clocks, threads or tensors.
//!
//! A turn is one policy batch and one reward batch. [`Scheduler::plan`] forms them from what the running requests ask for,
//! oldest request first; [`run`](super::run::run) gives them to a backend; [`Scheduler::deliver`] hands the results out. For one
//! order of arrivals, cancellations and results, all of it happens in one order.
//!
//! Blocks of keys and values are lent, not owned. Any line can be dropped at any time and is computed again when it is asked
//! for, to the same bits (a promise of every backend). When there is no room for what the oldest requests need, blocks are
//! taken back in this order: prompts kept for later requests, speculative lines, the youngest request (it waits, and goes on
//! where it was), and at last lines of the very request that it can do without for the moment. So the oldest request can
//! always go on, and every request is the oldest at some time.

mod budget;
mod room;

use self::budget::Budget;
use self::room::{Room, Taken};
use super::Settings;
use super::lines::{Lines, Source};
use super::turn::{Answer, Span, Turn, tail};
use crate::kv::BLOCK;
use crate::model::{Backend, Role, Seconds, Work};
use crate::profile::{self, Phase};
use crate::task::{Finished, Generation, Progress, Speculation, Task, Use};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// What a request has run, in token positions. `ran + shared = necessary + speculative + recomputed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Through the models, for this request.
    pub ran: Work,
    /// What the answer needed, whatever was run.
    pub necessary: Work,
    /// Run again after blocks were taken back.
    pub recomputed: Work,
    /// Not run, because another request's prompt had it.
    pub shared: Work,
    /// How often all of its blocks were taken back.
    pub preemptions: u32,
}

impl Account {
    /// What was run and not needed.
    pub fn speculative(&self) -> Work {
        let rest = |of: fn(&Work) -> u64| {
            (of(&self.ran) + of(&self.shared)).saturating_sub(of(&self.necessary) + of(&self.recomputed))
        };
        Work {
            policy_forward: rest(|work| work.policy_forward),
            reward_forward: rest(|work| work.reward_forward),
            reward_backward: rest(|work| work.reward_backward),
        }
    }
}

/// What a turn says of a request.
#[derive(Debug)]
pub enum Event {
    /// It is no longer waiting.
    Started(u64),
    /// It went on.
    Progress(u64, Progress),
    /// It ended; nothing more is said of it.
    Ended(u64, Box<Result<Finished>>, Account),
}

/// Counters of a scheduler since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Turns.
    pub turns: u64,
    /// Batches of the policy.
    pub policy_batches: u64,
    /// Spans in them.
    pub policy_spans: u64,
    /// Batches of the reward model.
    pub reward_batches: u64,
    /// Spans in them.
    pub reward_spans: u64,
    /// Requests whose blocks were taken back.
    pub preemptions: u64,
    /// Speculative lines whose blocks were taken back.
    pub given_up: u64,
}

struct Entry {
    generation: Box<dyn Generation>,
    account: Account,
    /// Positions of each line that were run at least once.
    high: BTreeMap<crate::task::LineId, usize>,
}

/// Requests, waiting and running.
pub struct Scheduler {
    settings: Settings,
    /// By order of arrival.
    waiting: BTreeMap<u64, Entry>,
    running: BTreeMap<u64, Entry>,
    lines: Lines,
    next: u64,
    /// Somebody was preempted, and nobody has ended since: who came in now would be the next to go.
    full: bool,
    /// Turns for which rewards that are needed have been held back.
    held_back: usize,
    totals: Totals,
    seconds: Seconds,
    events: Vec<Event>,
}

impl Scheduler {
    /// Without requests.
    pub fn new(settings: Settings) -> Scheduler {
        Scheduler {
            lines: Lines::new(settings.cached_prompts),
            settings,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            next: 0,
            full: false,
            held_back: 0,
            totals: Totals::default(),
            seconds: Seconds::default(),
            events: Vec::new(),
        }
    }

    /// Takes a request, whose prompt and options were checked. Returns its number; numbers ascend.
    pub fn submit(&mut self, generation: Box<dyn Generation>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.waiting.insert(id, Entry { generation, account: Account::default(), high: BTreeMap::new() });
        id
    }

    /// Forgets a request. What it has run; `None` if there is none of this number.
    pub fn cancel(&mut self, backend: &mut dyn Backend, id: u64) -> Option<Account> {
        let found = self.waiting.remove(&id).or_else(|| self.running.remove(&id));
        self.close_all(backend, id);
        self.full &= found.is_none();
        found.map(|entry| Account { necessary: entry.generation.necessary(), ..entry.account })
    }

    /// Requests that have not ended.
    pub fn requests(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Requests that hold blocks, or may.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Counters.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// What the turns took, by kind of work.
    pub fn seconds(&self) -> Seconds {
        self.seconds
    }

    /// Gives all sequences back, kept prompts included, and forgets all requests.
    pub fn clear(&mut self, backend: &mut dyn Backend) {
        self.waiting.clear();
        self.running.clear();
        self.lines.clear(backend);
    }

    /// How far each request may run ahead of its walk, for the load there is.
    fn speculation(&self, backend: &dyn Backend) -> Speculation {
        match self.settings.speculation {
            super::Width::Off => Speculation::OFF,
            super::Width::Fixed(width) => {
                Speculation { width: width.max(1), run_ahead: self.settings.run_ahead && width > 1 }
            }
            super::Width::Auto => {
                let width = (backend.cheap_rows() / self.running.len().max(1)).clamp(1, super::WIDEST);
                Speculation { width, run_ahead: self.settings.run_ahead && width > 1 }
            }
        }
    }

    /// Forms the next turn.
    pub fn plan(&mut self, backend: &mut dyn Backend) -> Turn {
        let _range = profile::range(Phase::Scheduler, self.running.len());
        // A pass of the reward model takes as long for one segment as for many, so segments wait a little for each other,
        // as long as there is something to decode meanwhile.
        let patience = self.settings.patience.unwrap_or(if backend.cheap_rows() > 1 { super::PATIENCE } else { 0 });
        let hold = self.held_back < patience && self.running.len() > 1;
        let (mut turn, mut due) = self.form(backend, hold);
        if due && turn.policy.is_empty() {
            (turn, due) = self.form(backend, false);
        }
        self.held_back = if due { self.held_back + 1 } else { 0 };
        self.totals.turns += 1;
        self.totals.policy_batches += u64::from(!turn.policy.is_empty());
        self.totals.policy_spans += turn.policy.len() as u64;
        self.totals.reward_batches += u64::from(!turn.reward.is_empty());
        self.totals.reward_spans += turn.reward.len() as u64;
        turn
    }

    /// A turn, without its reward batch if that is to be held back, and whether the batch would have been needed.
    fn form(&mut self, backend: &mut dyn Backend, hold: bool) -> (Turn, bool) {
        self.admit(backend);
        let mut tasks = Vec::new();
        for (&id, entry) in &self.running {
            let mut own = Vec::new();
            entry.generation.tasks(&mut own);
            tasks.extend(own.into_iter().map(|task| (id, task)));
        }
        // What is needed comes first, then what may be; within each the oldest request first.
        tasks.sort_by_key(|(_, task)| task.speculative);
        let (mut turn, mut taken, mut due) = (Turn::default(), Taken::default(), false);
        let mut budget = Budget::new(&self.settings, backend, tasks.iter().map(|(_, task)| task));
        for (id, task) in tasks {
            let allowed = budget.allows(&task);
            // Somebody older may have needed its blocks meanwhile.
            if !self.running.contains_key(&id) {
                continue;
            }
            if task.line.role == Role::Reward && hold {
                due |= !task.speculative;
                continue;
            }
            if tail(&task) > backend.gradient_tokens() {
                let reason = too_long(tail(&task), backend.gradient_tokens());
                turn.refused.push((id, task, reason));
                continue;
            }
            if allowed == 0 {
                continue;
            }
            match self.room(backend, id, &task, allowed, &taken) {
                Room::Found(source, end) => match self.span(backend, id, &task, source, end) {
                    Ok(span) => {
                        taken.add(backend, &span);
                        budget.spend(&span);
                        turn.push(span);
                    }
                    Err(error) => turn.refused.push((id, task, error.to_string())),
                },
                Room::NotNow if task.speculative || taken.holds(id) => {}
                Room::NotNow => self.preempt(backend, id),
                Room::Never(needed) => {
                    let reason = never(&task, needed);
                    turn.refused.push((id, task, reason));
                }
            }
        }
        (turn, due)
    }

    /// Opens a task's line, counts what it will run, and cuts the span.
    fn span(&mut self, backend: &mut dyn Backend, id: u64, task: &Task, source: Source, end: usize) -> Result<Span> {
        let seq = self.lines.open(backend, (id, task.line), source)?;
        let start = backend.len(seq);
        let Some(entry) = self.running.get_mut(&id) else {
            return Err(Error::Backend("a request that does not run".to_string()));
        };
        let known = entry.high.get(&task.line).copied().unwrap_or(0).max(task.fresh);
        let new = end.saturating_sub(start.max(known));
        let account = &mut entry.account;
        let (ran, again, shared) = (end - start, end - start - new, start.saturating_sub(known));
        let backward = if end == task.len { tail(task) } else { 0 };
        add(&mut account.ran, task.line.role, ran, backward);
        add(&mut account.recomputed, task.line.role, again, 0);
        add(&mut account.shared, task.line.role, shared, 0);
        entry.high.insert(task.line, end.max(known));
        let mut ids = entry.generation.ids(task, start);
        ids.truncate(end - start);
        Ok(Span { request: id, seq, start, ids, last: end == task.len, task: task.clone() })
    }

    /// Hands the results of a turn out, in the order of its spans: the policy's, then the reward model's.
    pub fn deliver(&mut self, backend: &mut dyn Backend, turn: Turn, answers: Vec<Answer>) {
        let _range = profile::range(Phase::Scheduler, answers.len());
        let mut told: Vec<u64> = Vec::new();
        for (span, answer) in turn.policy.into_iter().chain(turn.reward).zip(answers) {
            let Some(entry) = self.running.get_mut(&span.request) else { continue };
            told.push(span.request);
            match answer {
                Answer::Row(row) => entry.generation.row(&span.task, row),
                Answer::Scored(scored) => entry.generation.scored(&span.task, scored),
                Answer::Closer => {}
                Answer::Failed(error) => entry.generation.failed(&span.task, error),
            }
        }
        for (id, task, reason) in turn.refused {
            if let Some(entry) = self.running.get_mut(&id).or_else(|| self.waiting.get_mut(&id)) {
                entry.generation.failed(&task, Error::invalid(reason));
                told.push(id);
            }
        }
        told.sort_unstable();
        told.dedup();
        let speculation = self.speculation(backend);
        for id in told {
            let Some(entry) = self.running.get_mut(&id) else { continue };
            entry.generation.advance(speculation, &|a, b| backend.same_embedding(a, b));
            self.settle(backend, id);
        }
    }

    /// Reports a request's progress and drops what it no longer needs.
    fn settle(&mut self, backend: &mut dyn Backend, id: u64) {
        let Some(entry) = self.running.get_mut(&id) else { return };
        for progress in entry.generation.progress() {
            self.events.push(Event::Progress(id, progress));
        }
        if !entry.generation.ended() {
            let Entry { generation, high, .. } = entry;
            high.retain(|line, _| generation.line(*line) != Use::Dead);
            for key in self.lines.of(id).into_iter().filter(|key| generation.line(key.1) == Use::Dead) {
                self.lines.close(backend, key);
            }
            return;
        }
        let Some(mut entry) = self.running.remove(&id) else { return };
        self.full = false;
        let outcome = entry.generation.take();
        let outcome = outcome.unwrap_or_else(|| Err(Error::Backend("a request ended without a result".to_string())));
        if outcome.is_ok() {
            for role in [Role::Policy, Role::Reward] {
                self.lines.keep(backend, (id, entry.generation.trunk(role)), entry.generation.prompt());
            }
        }
        self.close_all(backend, id);
        let account = Account { necessary: entry.generation.necessary(), ..entry.account };
        self.events.push(Event::Ended(id, Box::new(outcome), account));
    }

    /// What happened since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Plans a turn, runs it and delivers it. False if there was nothing to do.
    pub fn turn(&mut self, backend: &mut dyn Backend) -> bool {
        let turn = self.plan(backend);
        let busy = !turn.is_empty();
        self.run(backend, turn);
        busy
    }

    /// Runs a planned turn and delivers it.
    pub fn run(&mut self, backend: &mut dyn Backend, turn: Turn) {
        let (answers, seconds) = super::run::run(backend, &turn);
        self.seconds += seconds;
        self.deliver(backend, turn, answers);
    }
}

fn never(task: &Task, needed: usize) -> String {
    format!(
        "a text of {} tokens needs {needed} blocks of {BLOCK} tokens of keys and values of the {} model, and there are not that \
         many",
        task.len,
        task.line.role.name()
    )
}

fn too_long(tail: usize, limit: usize) -> String {
    format!(
        "a segment of {tail} tokens is longer than the {limit} tokens that the gradient has room for; use a larger \
         --gradient-tokens, or a lower --entropy-threshold for shorter segments"
    )
}

fn add(work: &mut Work, role: Role, forward: usize, backward: usize) {
    match role {
        Role::Policy => work.policy_forward += forward as u64,
        Role::Reward => work.reward_forward += forward as u64,
    }
    work.reward_backward += backward as u64;
}
