//! The engine as others use it: a thread that owns the backend, and tickets for what it was asked.

use super::command::{BuildRequest, Command, Handle, OnUpdate, Update};
use super::scheduler::{Event, RequestStats, Scheduler, SchedulerStats, stuck};
use super::settings::Settings;
use super::submitter::Submitter;
use super::ticket::{Ticket, UpdateSender};
use super::{baseline, intervention, sampler};
use crate::answer::{Completions, Response, RewardReport};
use crate::baselines::Baseline;
use crate::method::Options;
use crate::model::{ModelPair, Role, StepTime, Work};
use crate::rng::Uniforms;
use crate::sampling::CompletionSpec;
use crate::scoring::{RewardQuery, scorer};
use crate::task::Request;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// What an engine is doing, as of its last step.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Counters of the scheduler.
    pub scheduler: SchedulerStats,
    /// Requests that wait for free blocks.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// Blocks of keys and values that are free, of policy and reward model.
    pub blocks_free: [usize; 2],
    /// Free blocks when the engine had just started.
    pub blocks: [usize; 2],
    /// Blocks in use, kept prompts included.
    pub blocks_in_use: [usize; 2],
    /// Token positions that went through the models.
    pub work: Work,
    /// What the steps took, by kind of work.
    pub seconds: StepTime,
    /// What they took altogether, planning included.
    pub step_seconds: f64,
    /// When the current step began, if one runs.
    pub step_since: Option<Instant>,
    /// Why the device is lost, if it is. The engine has ended then.
    pub dead: Option<String>,
}

/// A running engine. Dropped, it cancels what is in flight and gives the device back.
pub struct Engine {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    next: AtomicU64,
    status: Arc<Mutex<Status>>,
}

impl Engine {
    /// Starts the thread, which opens the backend itself: a device belongs to the thread that drives it.
    ///
    /// # Errors
    /// The backend does not open, or the thread does not start.
    pub fn start(settings: Settings, open: impl FnOnce() -> Result<ModelPair> + Send + 'static) -> Result<Engine> {
        let (commands, received) = channel();
        let (ready, opened) = channel();
        let status = Arc::new(Mutex::new(Status::default()));
        let shown = status.clone();
        let run = move || match open() {
            Ok(mut backend) => {
                let mut worker = Worker::new(settings, &backend, shown);
                worker.show(&mut backend, None);
                if ready.send(Ok(())).is_ok() {
                    worker.serve(&mut backend, &received);
                }
            }
            Err(error) => {
                // `start` waits for this; if its thread is gone, the error is lost with it.
                let _ = ready.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("engine".to_string()).spawn(run);
        let thread = thread.map_err(|e| Error::Backend(format!("the engine's thread does not start: {e}")))?;
        opened.recv().unwrap_or(Err(Error::EngineStopped))?;
        Ok(Engine { commands, thread: Some(thread), next: AtomicU64::new(0), status })
    }

    /// A response to `prompt` by the method. Where `options` ask for sampled nudges, they are drawn from seed 0; use
    /// [`submit`](Engine::submit) with [`intervention`] for other numbers.
    ///
    /// # Errors
    /// The engine has ended. What is wrong with the request is said by its ticket.
    pub fn generate(&self, prompt: &[u32], options: &Options) -> Result<Ticket<Response>> {
        let (prompt, options) = (prompt.to_vec(), options.clone());
        self.submit(move |backend| intervention(backend, &prompt, &options, Uniforms::Seeded(0)))
    }

    /// Sampled completions of `prompt`.
    ///
    /// # Errors
    /// As [`generate`](Engine::generate).
    pub fn sample(&self, prompt: &[u32], spec: CompletionSpec) -> Result<Ticket<Completions>> {
        let prompt = prompt.to_vec();
        self.submit(move |backend| sampler(backend, &prompt, spec))
    }

    /// An answer to `prompt` by one of the methods that GGRO is compared with. For a method of one's own use
    /// [`submit`](Engine::submit) with [`searcher`](super::searcher).
    ///
    /// # Errors
    /// As [`generate`](Engine::generate).
    pub fn search(&self, prompt: &[u32], spec: CompletionSpec, method: &Baseline) -> Result<Ticket<Completions>> {
        let (prompt, method) = (prompt.to_vec(), method.clone());
        self.submit(move |backend| baseline(backend, &prompt, spec, &method))
    }

    /// A number for a group of requests that take turns as one ([`Submitter::group`]).
    pub fn group(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Rewards of a given text. `pad` is the reward model's pad id, see [`pool_position`](crate::task::pool_position).
    ///
    /// # Errors
    /// As [`generate`](Engine::generate).
    pub fn score(&self, query: RewardQuery, pad: Option<u32>) -> Result<Ticket<RewardReport>> {
        self.submit(move |backend| scorer(backend, query, pad))
    }

    /// Hands in a request, which `build` makes on the engine's thread. An error of `build` is the ticket's last update.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn submit<R>(&self, build: impl FnOnce(&ModelPair) -> Result<R> + Send + 'static) -> Result<Ticket<R::Output>>
    where
        R: Request + 'static,
        R::Output: Send + 'static,
    {
        self.submit_for(Submitter::default(), build)
    }

    /// [`submit`](Engine::submit) for one of several who use the engine.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn submit_for<R>(
        &self,
        submitter: Submitter,
        build: impl FnOnce(&ModelPair) -> Result<R> + Send + 'static,
    ) -> Result<Ticket<R::Output>>
    where
        R: Request + 'static,
        R::Output: Send + 'static,
    {
        let sender = UpdateSender::new();
        let ticket = sender.ticket();
        Ok(ticket(self.submit_to(submitter, build, move |update| sender.send(update))?))
    }

    /// [`submit_for`](Engine::submit_for) with a listener in place of a ticket. It is called on the engine's thread, must not
    /// block, and ends the request by returning false.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn submit_to<R>(
        &self,
        submitter: Submitter,
        build: impl FnOnce(&ModelPair) -> Result<R> + Send + 'static,
        mut on_update: impl FnMut(Update<R::Output>) -> bool + Send + 'static,
    ) -> Result<Handle>
    where
        R: Request + 'static,
        R::Output: Send + 'static,
    {
        // Requests of all kinds share a scheduler, so their outputs go around it.
        let (tx, output) = channel();
        let build: BuildRequest = Box::new(move |backend| {
            let request = build(backend)?;
            Ok(Box::new(request.map(move |output| drop(tx.send(output)))))
        });
        let on_update: OnUpdate =
            Box::new(move |update| on_update(update.and_then(|()| output.try_recv().map_err(|_| stuck()))));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let commands = self.commands.clone();
        commands.send(Command::Submit(id, submitter, build, on_update)).map_err(|_| self.gone())?;
        Ok(Handle { id, commands })
    }

    /// What it is doing. Does not wait for it.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it before the next step, and with it all requests. Does not wait for it.
    pub fn stop(&self) {
        // Fails only if the thread has ended already.
        let _ = self.commands.send(Command::Stop);
    }

    /// Whether its thread has ended: the device is lost.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn gone(&self) -> Error {
        self.status().dead.map_or(Error::EngineStopped, Error::DeviceLost)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by that thread.
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
struct Worker {
    scheduler: Scheduler<()>,
    /// By the scheduler's number: the handle's number, and who listens.
    listeners: BTreeMap<u64, (u64, OnUpdate)>,
    status: Arc<Mutex<Status>>,
    blocks: [usize; 2],
    step_seconds: f64,
}

impl Worker {
    fn new(settings: Settings, backend: &ModelPair, status: Arc<Mutex<Status>>) -> Worker {
        let blocks = [Role::Policy, Role::Reward].map(|role| backend.blocks_free(role));
        let scheduler = Scheduler::new(settings);
        Worker { scheduler, listeners: BTreeMap::new(), status, blocks, step_seconds: 0.0 }
    }

    /// Step after step, until the engine is dropped or the device is lost.
    fn serve(&mut self, backend: &mut ModelPair, commands: &Receiver<Command>) {
        while self.take_commands(backend, commands) {
            let started = Instant::now();
            self.show(backend, Some(started));
            let step = self.scheduler.plan(backend);
            // Before it is run: the time in the queue ends here.
            self.tell_started();
            let busy = !step.is_empty();
            self.scheduler.run(backend, step);
            self.step_seconds += started.elapsed().as_secs_f64();
            if !busy && self.scheduler.requests() > 0 {
                // No sequence of requests leads here. If a fault does, they end instead of keeping the thread busy forever.
                self.end_all(backend, stuck);
            }
            // Before anybody is told: who hears of an end finds it in the status.
            self.show(backend, None);
            if self.report(backend)
                && let Err(error) = backend.alive()
            {
                let why = error.to_string();
                self.end_all(backend, || Error::DeviceLost(why.clone()));
                let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
                status.dead = Some(why);
                (status.running, status.waiting, status.step_since) = (0, 0, None);
                return;
            }
        }
        self.scheduler.clear(backend);
    }

    /// Takes the commands that have come since the last step; waits for one if there are no requests. False: stop.
    fn take_commands(&mut self, backend: &mut ModelPair, commands: &Receiver<Command>) -> bool {
        loop {
            let command = match self.scheduler.requests() {
                0 => {
                    self.show(backend, None);
                    commands.recv().map_err(|_| TryRecvError::Disconnected)
                }
                _ => commands.try_recv(),
            };
            match command {
                Ok(Command::Submit(handle, submitter, build, mut on_update)) => match build(backend) {
                    Ok(request) => {
                        if on_update(Update::Accepted) {
                            let id = self.scheduler.submit_for(submitter, request);
                            self.listeners.insert(id, (handle, on_update));
                        }
                    }
                    Err(error) => drop(on_update(Update::Ended(Err(error), RequestStats::default()))),
                },
                Ok(Command::Cancel(handle)) => {
                    let found = self.listeners.iter().find(|(_, (held, _))| *held == handle).map(|(&id, _)| id);
                    if let Some(id) = found {
                        let stats = self.scheduler.cancel(backend, id).unwrap_or_default();
                        if let Some((_, mut on_update)) = self.listeners.remove(&id) {
                            on_update(Update::Cancelled(stats));
                        }
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Tells requests that they run from now on.
    fn tell_started(&mut self) {
        for event in self.scheduler.events() {
            if let Event::Started(id) = event
                && let Some((_, on_update)) = self.listeners.get_mut(&id)
            {
                // A listener that has gone says so again after the step, whose spans may not be taken away now.
                on_update(Update::Started);
            }
        }
    }

    /// Passes on what happened in a step. Whether the backend failed in it.
    fn report(&mut self, backend: &mut ModelPair) -> bool {
        let mut failed = false;
        for event in self.scheduler.events() {
            let (id, update) = match event {
                Event::Started(id) => (id, Update::Started),
                Event::Progress(id, progress) => (id, Update::Progress(progress)),
                Event::Ended(id, result, stats) => {
                    failed |= matches!(result, Err(Error::Backend(_) | Error::DeviceLost(_)));
                    if let Some((_, mut on_update)) = self.listeners.remove(&id) {
                        on_update(Update::Ended(result, stats));
                    }
                    continue;
                }
            };
            let Some((_, on_update)) = self.listeners.get_mut(&id) else { continue };
            if !on_update(update) {
                self.scheduler.cancel(backend, id);
                self.listeners.remove(&id);
            }
        }
        failed
    }

    fn end_all(&mut self, backend: &mut ModelPair, why: impl Fn() -> Error) {
        self.scheduler.clear(backend);
        for (_, mut on_update) in std::mem::take(&mut self.listeners).into_values() {
            on_update(Update::Ended(Err(why()), RequestStats::default()));
        }
    }

    /// Publishes the status.
    fn show(&self, backend: &mut ModelPair, step_since: Option<Instant>) {
        let running = self.scheduler.running();
        let status = Status {
            scheduler: self.scheduler.stats(),
            waiting: self.scheduler.requests() - running,
            running,
            blocks_free: [Role::Policy, Role::Reward].map(|role| backend.blocks_free(role)),
            blocks: self.blocks,
            blocks_in_use: [Role::Policy, Role::Reward].map(|role| backend.blocks_in_use(role)),
            work: backend.work(),
            seconds: self.scheduler.seconds(),
            step_seconds: self.step_seconds,
            step_since,
            dead: None,
        };
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
