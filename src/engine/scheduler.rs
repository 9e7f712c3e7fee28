//! Requests to batches: a state machine without clocks, threads or tensors.
//!
//! A step is one policy batch and one reward batch. [`Scheduler::plan`] forms them from what the running requests ask for,
//! oldest request first; [`Scheduler::run`] gives them to a backend; [`Scheduler::deliver`] hands the results out. For one
//! order of arrivals, cancellations and results, all of it happens in one order.
//!
//! Blocks of keys and values are lent, not owned. Any sequence can be dropped at any time and is computed again when it is asked
//! for, to the same bits (a promise of every backend). When there is no room for what the oldest requests need, blocks are
//! taken back in this order: prompts kept for later requests, speculative sequences, the youngest request (it waits, and goes on
//! where it was), and at last sequences of the very request that it can do without for the moment. So the oldest request can
//! always go on, and every request is the oldest at some time.

mod allocation;
mod budget;
mod drafts;
mod turns;

pub use drafts::{DraftCount, DraftStats};

use self::allocation::{Allocation, Stems, StepReservations};
use self::budget::{Budget, needed};
use self::drafts::GuessWith;
use super::draft::Acceptance;
use super::draft_model::{DraftSequences, DraftWork};
use super::sequences::{CachedPrompts, Sequences, Source};
use super::settings::{MAX_WIDTH, REWARD_BATCH_WAIT, Settings, SpeculationWidth};
use super::step::{SpanOutput, Step, TaskSpan};
use super::submitter::Submitter;
use crate::error::Limit;
use crate::kv::BLOCK;
use crate::model::{ModelPair, Role, SeqId, StepTime, Work, timed};
use crate::profile::{self, Phase};
use crate::task::{Liveness, Progress, Request, Speculation, Task};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a request has run, in token positions. `ran + shared = necessary + speculative + recomputed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestStats {
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
    /// Tokens that were guessed for it. Those that were wrong are among what was run and not needed.
    pub drafts: DraftStats,
}

impl RequestStats {
    /// What was run and not needed.
    pub fn speculative(&self) -> Work {
        (self.ran + self.shared).saturating_sub(self.necessary + self.recomputed)
    }
}

/// What happened to a request in a step.
#[derive(Debug)]
pub enum Event<T> {
    /// It is no longer waiting.
    Started(u64),
    /// It went on.
    Progress(u64, Progress),
    /// It ended. The last event of the request.
    Ended(u64, Result<T>, RequestStats),
}

/// Counters of a scheduler since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Steps.
    pub steps: u64,
    /// Batches of the policy.
    pub policy_batches: u64,
    /// Spans in them.
    pub policy_spans: u64,
    /// Batches of the reward model.
    pub reward_batches: u64,
    /// Spans in them.
    pub reward_spans: u64,
    /// Tokens that were guessed.
    pub drafts: DraftStats,
    /// What the draft model has run for that. It is not among the work of the requests.
    pub draft_work: DraftWork,
    /// Requests whose blocks were taken back.
    pub preemptions: u64,
    /// Speculative sequences whose blocks were taken back.
    pub given_up: u64,
}

struct Entry<T> {
    request: Box<dyn Request<Output = T>>,
    submitter: Submitter,
    stats: RequestStats,
    /// None is in memory while it waits.
    sequences: Sequences,
    /// How often guesses of its text were right.
    acceptance: Acceptance,
}

/// A task of a step that is being formed.
struct PlannedTask {
    /// Number of the request.
    id: u64,
    task: Task,
    /// Tokens that it has to run; not counted for a speculative one.
    wants: usize,
}

impl PlannedTask {
    /// Positions at its end that go in one span.
    fn tail(&self) -> usize {
        self.task.len.saturating_sub(self.task.answered_from())
    }

    /// Whether nothing is left that could be run before its last span.
    fn whole(&self) -> bool {
        self.wants <= self.tail()
    }
}

/// Requests, waiting and running. All of them end with a `T`; [`Request::map`] brings different kinds together.
pub struct Scheduler<T> {
    settings: Settings,
    /// By order of arrival.
    waiting: BTreeMap<u64, Entry<T>>,
    running: BTreeMap<u64, Entry<T>>,
    prompts: CachedPrompts,
    guess_with: Option<GuessWith>,
    /// What the draft model has in memory.
    drafter: DraftSequences,
    next: u64,
    /// A request was preempted, and none has ended since: one that is let in now would be the next to be preempted.
    full: bool,
    /// Steps for which rewards that are needed have waited for others.
    reward_waited: usize,
    stats: SchedulerStats,
    seconds: StepTime,
    events: Vec<Event<T>>,
    /// Empty between steps: their memory is used again.
    tasks: Vec<PlannedTask>,
    likely: Vec<PlannedTask>,
    own: Vec<Task>,
    changed: Vec<u64>,
}

impl<T> Scheduler<T> {
    /// Without requests.
    pub fn new(settings: Settings) -> Scheduler<T> {
        Scheduler {
            prompts: CachedPrompts::new(settings.cached_prompts),
            settings,
            guess_with: None,
            drafter: DraftSequences::default(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            next: 0,
            full: false,
            reward_waited: 0,
            stats: SchedulerStats::default(),
            seconds: StepTime::default(),
            events: Vec::new(),
            tasks: Vec::new(),
            likely: Vec::new(),
            own: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// Takes a request, whose prompt and options were checked. Returns its number; numbers ascend.
    pub fn submit(&mut self, request: Box<dyn Request<Output = T>>) -> u64 {
        self.submit_for(Submitter::default(), request)
    }

    /// [`submit`](Scheduler::submit) for one of several who use the engine.
    pub fn submit_for(&mut self, submitter: Submitter, request: Box<dyn Request<Output = T>>) -> u64 {
        let id = self.next;
        self.next += 1;
        let (stats, sequences, acceptance) = Default::default();
        self.waiting.insert(id, Entry { request, submitter, stats, sequences, acceptance });
        id
    }

    /// Forgets a request. What it has run; `None` if there is none of this number.
    pub fn cancel(&mut self, backend: &mut ModelPair, id: u64) -> Option<RequestStats> {
        let mut entry = self.waiting.remove(&id).or_else(|| self.running.remove(&id))?;
        entry.sequences.close_all(backend);
        self.drafter.forget(backend.draft.as_deref_mut(), id, |_| true);
        self.full = false;
        Some(RequestStats { necessary: entry.request.necessary(), ..entry.stats })
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
    pub fn stats(&self) -> SchedulerStats {
        self.stats
    }

    /// What the steps took, by kind of work.
    pub fn seconds(&self) -> StepTime {
        self.seconds
    }

    /// Gives all sequences back, kept prompts included, and forgets all requests.
    pub fn clear(&mut self, backend: &mut ModelPair) {
        self.waiting.clear();
        for mut entry in std::mem::take(&mut self.running).into_values() {
            entry.sequences.close_all(backend);
        }
        self.prompts.clear(backend);
        self.drafter.clear(backend.draft.as_deref_mut());
    }

    /// How far each request may run ahead of its walk, for the load there is.
    fn speculation(&self, backend: &ModelPair) -> Speculation {
        let (width, share) = match self.settings.speculation {
            SpeculationWidth::Off => return Speculation::OFF,
            SpeculationWidth::Fixed(width) => (width.max(1), width.max(1)),
            SpeculationWidth::Auto => {
                let share = backend.free_batch_rows() / self.running.len().max(1);
                (share.clamp(1, MAX_WIDTH), share)
            }
        };
        let run_ahead = self.settings.run_ahead && width > 1;
        // At least one text runs ahead, whatever the width leaves.
        Speculation { width, run_ahead, rows: share.max(width.saturating_add(usize::from(run_ahead))) }
    }

    /// Forms the next step.
    pub fn plan(&mut self, backend: &mut ModelPair) -> Step {
        let _range = profile::range(Phase::Scheduler, self.running.len());
        // A pass of the reward model takes as long for one segment as for many, so segments wait a little for each other,
        // as long as there are tokens to decode meanwhile.
        let default = if backend.free_batch_rows() > 1 { REWARD_BATCH_WAIT } else { 0 };
        let wait = self.settings.reward_batch_wait.unwrap_or(default);
        let hold = self.reward_waited < wait && self.running.len() > 1;
        let (mut step, mut due) = self.form(backend, hold);
        if due && step.policy.is_empty() {
            (step, due) = self.form(backend, false);
        }
        self.reward_waited = if due { self.reward_waited + 1 } else { 0 };
        self.draft(backend, &mut step);
        self.stats.steps += 1;
        self.stats.policy_batches += u64::from(!step.policy.is_empty());
        self.stats.policy_spans += step.policy.len() as u64;
        self.stats.reward_batches += u64::from(!step.reward.is_empty());
        self.stats.reward_spans += step.reward.len() as u64;
        step
    }

    /// A step, without its reward batch if that is to be held back, and whether the batch would have been needed.
    fn form(&mut self, backend: &mut ModelPair, hold: bool) -> (Step, bool) {
        self.admit(backend);
        // What is needed comes first, then what may be; within each the oldest request first.
        let (mut tasks, mut likely) = (std::mem::take(&mut self.tasks), std::mem::take(&mut self.likely));
        let (mut stems, mut opened) = (Vec::new(), Vec::new());
        for (&id, entry) in &self.running {
            entry.request.tasks(&mut self.own);
            for task in self.own.drain(..) {
                match task.speculative {
                    true => likely.push(PlannedTask { id, task, wants: 0 }),
                    false => {
                        let wants = entry.wants(backend, &task);
                        if wants > 1 {
                            opened.push((id, task.key));
                            stems.extend(entry.stem(backend, &task).map(|stem| ((id, task.key), stem)));
                        }
                        tasks.push(PlannedTask { id, task, wants });
                    }
                }
            }
        }
        tasks.append(&mut likely);
        self.likely = likely;
        // A batch that is full gains nothing by waiting for more.
        let wanted = needed(&tasks, Role::Reward).fold(0_usize, |sum, planned| sum.saturating_add(planned.wants));
        let hold = hold && wanted < self.settings.batch_tokens.max(1);
        let policy = tasks.iter().filter(|planned| planned.task.key.role == Role::Policy).count();
        let mut step = Step::with_room(policy, if hold { 0 } else { tasks.len() - policy });
        let (mut reserved, mut due) = (StepReservations::default(), false);
        let mut budget = Budget::new(&self.settings, backend, &tasks);
        let turns = self.turns(&tasks);
        let stems = Stems::of(stems, &opened);
        let preemptions = self.stats.preemptions;
        for (index, planned) in tasks.drain(..).enumerate() {
            let allowed = budget.allows(&planned, turns.as_ref().map(|turns| turns[index]));
            let PlannedTask { id, task, .. } = planned;
            // An older request may have preempted it for its blocks.
            if self.stats.preemptions > preemptions && !self.running.contains_key(&id) {
                continue;
            }
            if task.key.role == Role::Reward && hold {
                due |= !task.speculative;
                continue;
            }
            if task.differentiated() > backend.gradient_tokens() {
                // When it is needed, perhaps without a gradient, it is asked for again.
                if task.speculative {
                    continue;
                }
                let error = Error::gradient_too_long(task.differentiated(), backend.gradient_tokens());
                step.refused.push((id, task, error));
                continue;
            }
            if allowed == 0 {
                continue;
            }
            let (task, answers) = match stems.get((id, task.key)) {
                // It goes on from there in a later step.
                Some((stem, _)) if reserved.sequences.contains(&(id, stem)) => continue,
                Some(stem) => (task.stem(stem), false),
                // Its sequence is run in this step as far as other tasks go on from it.
                None if stems.any() && reserved.sequences.contains(&(id, task.key)) => continue,
                None => (task, true),
            };
            match self.allocate(backend, id, &task, allowed, &reserved) {
                Allocation::Found(source, start, end) => match self.cut(backend, id, &task, source, start..end) {
                    Ok((seq, ids)) => {
                        let last = answers && end == task.len;
                        let span = TaskSpan { request: id, seq, start, ids, last, task, draft: None };
                        reserved.add(backend, &span);
                        budget.spend(&span);
                        step.push(span);
                    }
                    Err(error) => step.refused.push((id, task, error)),
                },
                Allocation::NotNow if task.speculative || reserved.holds(id) => {}
                Allocation::NotNow => self.preempt(backend, id),
                Allocation::Never => {
                    let error = beyond_memory(backend, &task);
                    step.refused.push((id, task, error));
                }
            }
        }
        self.tasks = tasks;
        (step, due)
    }

    /// Opens a task's sequence, counts what it will run, and cuts the span: its sequence and its ids.
    fn cut(
        &mut self,
        backend: &mut ModelPair,
        id: u64,
        task: &Task,
        source: Source,
        Range { start, end }: Range<usize>,
    ) -> Result<(SeqId, Vec<u32>)> {
        let Some(entry) = self.running.get_mut(&id) else {
            return Err(Error::Backend("a request that does not run".to_string()));
        };
        let seq = self.prompts.open(backend, task.key.role, source)?;
        let known = entry.sequences.run(task.key, seq, task.fresh, end);
        let new = end.saturating_sub(start.max(known));
        let stats = &mut entry.stats;
        let (ran, again, shared) = (end - start, end - start - new, start.saturating_sub(known));
        let backward = if end == task.len { task.differentiated() } else { 0 };
        stats.ran += Work::of(task.key.role, ran, backward);
        stats.recomputed += Work::of(task.key.role, again, 0);
        stats.shared += Work::of(task.key.role, shared, 0);
        let mut ids = entry.request.ids(task, start);
        ids.truncate(end - start);
        Ok((seq, ids))
    }

    /// Hands the results of a step out, in the order of its spans: the policy's, then the reward model's.
    pub fn deliver(&mut self, backend: &mut ModelPair, step: Step, outputs: Vec<SpanOutput>) {
        let _range = profile::range(Phase::Scheduler, outputs.len());
        let mut changed = std::mem::take(&mut self.changed);
        for (span, output) in step.policy.into_iter().chain(step.reward).zip(outputs) {
            let Some(entry) = self.running.get_mut(&span.request) else { continue };
            if changed.last() != Some(&span.request) {
                changed.push(span.request);
            }
            match output {
                SpanOutput::Policy(output) => {
                    // With guesses the batch failed.
                    if let Some(draft) = &span.draft {
                        entry.learn(draft, span.drafted(), 0);
                    }
                    entry.request.on_policy(&span.task, output);
                }
                SpanOutput::Drafted(output, behind) => {
                    let verified = timed(&mut self.seconds.policy, || entry.verify(backend, &span, output, behind));
                    self.stats.drafts += verified;
                }
                SpanOutput::Reward(output) => entry.request.on_reward(&span.task, output),
                SpanOutput::Partial => {}
                SpanOutput::Failed(error) => entry.request.on_failure(&span.task, error),
            }
        }
        for (id, task, error) in step.refused {
            if let Some(entry) = self.running.get_mut(&id).or_else(|| self.waiting.get_mut(&id)) {
                entry.request.on_failure(&task, error);
                changed.push(id);
            }
        }
        // A few ascending runs, which a stable sort merges.
        changed.sort();
        changed.dedup();
        let speculation = self.speculation(backend);
        for id in changed.drain(..) {
            let Some(entry) = self.running.get_mut(&id) else { continue };
            entry.request.advance(speculation, &|a, b| backend.same_embedding(a, b));
            self.events.extend(entry.request.progress().into_iter().map(|progress| Event::Progress(id, progress)));
            if entry.request.ended() {
                self.end(backend, id);
            } else {
                let Entry { request, sequences, .. } = entry;
                let dead = |key| request.liveness(key) == Liveness::Dead;
                sequences.forget(backend, dead);
                self.drafter.forget(backend.draft.as_deref_mut(), id, dead);
            }
        }
        self.changed = changed;
    }

    /// Takes the result of a request that has ended, and its sequences.
    fn end(&mut self, backend: &mut ModelPair, id: u64) {
        let Some(mut entry) = self.running.remove(&id) else { return };
        self.full = false;
        let outcome = entry.request.take();
        let outcome = outcome.unwrap_or_else(|| Err(Error::Backend("a request ended without a result".to_string())));
        let Entry { request, submitter, stats, sequences, .. } = &mut entry;
        if outcome.is_ok() {
            for role in [Role::Policy, Role::Reward] {
                let (trunk, salt) = (request.trunk(role), submitter.cache_salt);
                self.prompts.keep(backend, sequences, trunk, salt, request.prompt());
            }
        }
        sequences.close_all(backend);
        self.drafter.forget(backend.draft.as_deref_mut(), id, |_| true);
        let stats = RequestStats { necessary: request.necessary(), ..*stats };
        self.events.push(Event::Ended(id, outcome, stats));
    }

    /// What happened since the last call.
    pub fn events(&mut self) -> Vec<Event<T>> {
        if self.events.is_empty() {
            return Vec::new();
        }
        // The next step will have about as many.
        let room = Vec::with_capacity(self.events.len());
        std::mem::replace(&mut self.events, room)
    }

    /// Plans a step, runs it and delivers it. False if there was nothing to do.
    pub fn step(&mut self, backend: &mut ModelPair) -> bool {
        let step = self.plan(backend);
        let busy = !step.is_empty();
        self.run(backend, step);
        busy
    }

    /// Runs a planned step and delivers it.
    pub fn run(&mut self, backend: &mut ModelPair, step: Step) {
        let (outputs, seconds) = super::execute::execute(backend, &step);
        self.seconds += seconds;
        self.deliver(backend, step, outputs);
    }
}

fn beyond_memory(backend: &ModelPair, task: &Task) -> Error {
    let (role, len) = (task.key.role, task.len);
    let needed = len.div_ceil(BLOCK);
    Error::TooLong {
        limit_of: Limit::Memory,
        found: len,
        limit: backend.blocks_free(role).saturating_add(backend.blocks_in_use(role)).saturating_mul(BLOCK),
        message: format!(
            "a text of {len} tokens needs {needed} blocks of {BLOCK} tokens of keys and values of the {} model, and there are not \
             that many",
            role.name()
        ),
    }
}

/// No sequence of requests leads here; a fault may.
pub(super) fn stuck() -> Error {
    Error::Backend("a request that can neither go on nor end".to_string())
}
