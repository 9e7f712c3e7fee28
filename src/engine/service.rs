//! The engine as others use it: a thread that owns the backend, and tickets for what it was asked.

use super::scheduler::{Account, Event, Scheduler, Totals};
use super::{Finished, Generation, Progress, Settings};
use crate::model::{Backend, Role, Seconds, Work};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Makes a request, once it can be checked against the backend.
pub type Make = Box<dyn FnOnce(&dyn Backend) -> Result<Box<dyn Generation>> + Send>;

/// Hears what is said of a request, on the engine's thread; false: nobody is there any more.
pub type Tell = Box<dyn FnMut(Update) -> bool + Send>;

enum Command {
    Submit(u64, Make, Tell),
    Cancel(u64),
    Totals(Sender<(Totals, usize)>),
    /// Tickets can send too, so that the last sender has gone says nothing about the engine.
    Stop,
}

/// What a ticket's holder is told.
#[derive(Debug)]
pub enum Update {
    /// It was found to be sound, and waits or runs.
    Accepted,
    /// It runs.
    Started,
    /// The response went on.
    Progress(Progress),
    /// It was cancelled, and nothing more will be said. So much was run for it.
    Cancelled(Account),
    /// It ended, and nothing more will be said.
    Ended(Result<Finished>, Account),
}

/// What an engine is doing, as of its last turn.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Counters of the scheduler.
    pub totals: Totals,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// Blocks of keys and values that nobody holds, of policy and reward model.
    pub blocks_free: [usize; 2],
    /// The same when the engine had just started.
    pub blocks: [usize; 2],
    /// Blocks that somebody holds, kept prompts among them.
    pub blocks_in_use: [usize; 2],
    /// Token positions that went through the models.
    pub work: Work,
    /// What the turns took, by kind of work.
    pub seconds: Seconds,
    /// And altogether.
    pub turn_seconds: f64,
    /// Since when the current turn runs.
    pub turn_since: Option<Instant>,
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

/// The right to cancel a request; dropped, it does.
pub struct Handle {
    id: u64,
    commands: Sender<Command>,
}

/// A request in flight. Dropped, it is cancelled before the next step.
pub struct Ticket {
    handle: Handle,
    updates: Receiver<Update>,
}

impl Engine {
    /// Starts the thread, which opens the backend itself: a device belongs to the thread that drives it.
    ///
    /// # Errors
    /// The backend does not open, or the thread does not start.
    pub fn start(
        settings: Settings,
        open: impl FnOnce() -> Result<Box<dyn Backend>> + Send + 'static,
    ) -> Result<Engine> {
        let (commands, received) = channel();
        let (ready, opened) = channel();
        let status = Arc::new(Mutex::new(Status::default()));
        let shown = status.clone();
        let run = move || match open() {
            Ok(mut backend) => {
                let mut worker = Worker::new(settings, backend.as_mut(), shown);
                worker.show(backend.as_mut(), None);
                if ready.send(Ok(())).is_ok() {
                    worker.serve(backend.as_mut(), &received);
                }
            }
            Err(error) => {
                // Whoever asked is waiting for this answer; if not, there is nobody to tell.
                let _ = ready.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("engine".to_string()).spawn(run);
        let thread = thread.map_err(|e| Error::Backend(format!("the engine's thread does not start: {e}")))?;
        opened.recv().unwrap_or_else(|_| Err(gone()))?;
        Ok(Engine { commands, thread: Some(thread), next: AtomicU64::new(0), status })
    }

    /// Hands a request in. What is wrong with it is the first and last thing its ticket says.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn submit(&self, make: Make) -> Result<Ticket> {
        let (told, updates) = channel();
        let handle = self.submit_to(make, Box::new(move |update| told.send(update).is_ok()))?;
        Ok(Ticket { handle, updates })
    }

    /// Hands a request in, about which `tell` is told.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn submit_to(&self, make: Make, tell: Tell) -> Result<Handle> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let commands = self.commands.clone();
        commands.send(Command::Submit(id, make, tell)).map_err(|_| self.gone())?;
        Ok(Handle { id, commands })
    }

    /// Counters, and the requests that have not ended.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn totals(&self) -> Result<(Totals, usize)> {
        let (told, answer) = channel();
        self.commands.send(Command::Totals(told)).map_err(|_| self.gone())?;
        answer.recv().map_err(|_| self.gone())
    }

    /// What it is doing. Does not wait for it.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it before the next step, and with it all requests. Does not wait for it.
    pub fn stop(&self) {
        // A thread that has ended hears nothing, and needs to hear nothing.
        let _ = self.commands.send(Command::Stop);
    }

    /// Whether its thread has ended: the device is lost.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn gone(&self) -> Error {
        self.status().dead.map_or_else(gone, Error::Backend)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there.
            let _ = thread.join();
        }
    }
}

impl Handle {
    /// Ends the request before the next step. Its holder is told what was run for it.
    pub fn cancel(&self) {
        // An engine that has ended has nothing left to cancel.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Ticket {
    /// The next thing that is said; waits for it. `None` after the end.
    pub fn next(&self) -> Option<Update> {
        self.updates.recv().ok()
    }

    /// Ends the request before the next step.
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The request's own, or the engine has ended.
    pub fn wait(&self) -> Result<(Finished, Account)> {
        loop {
            match self.next() {
                Some(Update::Accepted | Update::Started | Update::Progress(_)) => {}
                Some(Update::Ended(outcome, account)) => return Ok((outcome?, account)),
                Some(Update::Cancelled(_)) => return Err(Error::invalid("the request was cancelled")),
                None => return Err(gone()),
            }
        }
    }
}

fn gone() -> Error {
    Error::Backend("the engine has ended".to_string())
}

/// What the thread works with.
struct Worker {
    scheduler: Scheduler,
    /// By the scheduler's number: the ticket's, and who is told.
    holders: BTreeMap<u64, (u64, Tell)>,
    status: Arc<Mutex<Status>>,
    blocks: [usize; 2],
    turn_seconds: f64,
}

/// What is left to do after commands were heard.
enum Heard {
    /// Turns.
    Everything,
    /// Nothing any more.
    Stop,
}

impl Worker {
    fn new(settings: Settings, backend: &dyn Backend, status: Arc<Mutex<Status>>) -> Worker {
        let blocks = [Role::Policy, Role::Reward].map(|role| backend.blocks_free(role));
        let scheduler = Scheduler::new(settings);
        Worker { scheduler, holders: BTreeMap::new(), status, blocks, turn_seconds: 0.0 }
    }

    /// Turn after turn, until the engine is dropped or the device is lost.
    fn serve(&mut self, backend: &mut dyn Backend, commands: &Receiver<Command>) {
        while let Heard::Everything = self.hear(backend, commands) {
            let started = Instant::now();
            self.show(backend, Some(started));
            let busy = self.scheduler.turn(backend);
            self.turn_seconds += started.elapsed().as_secs_f64();
            if !busy && self.scheduler.requests() > 0 {
                // Not a state that requests can get into by themselves; to spin in it would help nobody.
                self.end_all(backend, super::stuck);
            }
            if self.tell(backend)
                && let Err(error) = backend.alive()
            {
                let why = error.to_string();
                self.end_all(backend, || Error::Backend(why.clone()));
                let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
                status.dead = Some(why);
                (status.running, status.waiting, status.turn_since) = (0, 0, None);
                return;
            }
            self.show(backend, None);
        }
        self.scheduler.clear(backend);
    }

    /// Between two turns everything that was said is heard; without requests there is nothing to do but listen.
    fn hear(&mut self, backend: &mut dyn Backend, commands: &Receiver<Command>) -> Heard {
        loop {
            let command = match self.scheduler.requests() {
                0 => {
                    self.show(backend, None);
                    commands.recv().map_err(|_| TryRecvError::Disconnected)
                }
                _ => commands.try_recv(),
            };
            match command {
                Ok(Command::Submit(ticket, make, mut tell)) => match make(backend) {
                    Ok(generation) => {
                        if tell(Update::Accepted) {
                            self.holders.insert(self.scheduler.submit(generation), (ticket, tell));
                        }
                    }
                    Err(error) => drop(tell(Update::Ended(Err(error), Account::default()))),
                },
                Ok(Command::Cancel(ticket)) => {
                    let found = self.holders.iter().find(|(_, (held, _))| *held == ticket).map(|(&id, _)| id);
                    if let Some(id) = found {
                        let account = self.scheduler.cancel(backend, id).unwrap_or_default();
                        if let Some((_, mut tell)) = self.holders.remove(&id) {
                            tell(Update::Cancelled(account));
                        }
                    }
                }
                Ok(Command::Totals(told)) => drop(told.send((self.scheduler.totals(), self.scheduler.requests()))),
                Err(TryRecvError::Empty) => return Heard::Everything,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Heard::Stop,
            }
        }
    }

    /// Hands out what a turn has said. Whether the backend failed in it.
    fn tell(&mut self, backend: &mut dyn Backend) -> bool {
        let mut failed = false;
        for event in self.scheduler.events() {
            let (id, update) = match event {
                Event::Started(id) => (id, Update::Started),
                Event::Progress(id, progress) => (id, Update::Progress(progress)),
                Event::Ended(id, outcome, account) => {
                    failed |= matches!(*outcome, Err(Error::Backend(_)));
                    if let Some((_, mut tell)) = self.holders.remove(&id) {
                        // A holder that has left does not want to know.
                        tell(Update::Ended(*outcome, account));
                    }
                    continue;
                }
            };
            let Some((_, tell)) = self.holders.get_mut(&id) else { continue };
            if !tell(update) {
                self.scheduler.cancel(backend, id);
                self.holders.remove(&id);
            }
        }
        failed
    }

    fn end_all(&mut self, backend: &mut dyn Backend, why: impl Fn() -> Error) {
        self.scheduler.clear(backend);
        for (_, mut tell) in std::mem::take(&mut self.holders).into_values() {
            tell(Update::Ended(Err(why()), Account::default()));
        }
    }

    /// Lets others see what is going on.
    fn show(&self, backend: &mut dyn Backend, turn_since: Option<Instant>) {
        let running = self.scheduler.running();
        let status = Status {
            totals: self.scheduler.totals(),
            waiting: self.scheduler.requests() - running,
            running,
            blocks_free: [Role::Policy, Role::Reward].map(|role| backend.blocks_free(role)),
            blocks: self.blocks,
            blocks_in_use: [Role::Policy, Role::Reward].map(|role| backend.blocks_in_use(role)),
            work: backend.work(),
            seconds: self.scheduler.seconds(),
            turn_seconds: self.turn_seconds,
            turn_since,
            dead: None,
        };
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
