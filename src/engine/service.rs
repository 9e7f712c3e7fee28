//! The engine as others use it: a thread that owns the backend, and tickets for what it was asked.

use super::scheduler::{Account, Event, Scheduler, Totals};
use super::{Finished, Generation, Progress, Settings};
use crate::model::Backend;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

/// Makes a request, once it can be checked against the backend.
pub type Make = Box<dyn FnOnce(&dyn Backend) -> Result<Box<dyn Generation>> + Send>;

enum Command {
    Submit(u64, Make, Sender<Update>),
    Cancel(u64),
    Totals(Sender<(Totals, usize)>),
    /// Tickets can send too, so that the last sender has gone says nothing about the engine.
    Stop,
}

/// What a ticket's holder is told.
#[derive(Debug)]
pub enum Update {
    /// The response went on.
    Progress(Progress),
    /// It ended, and nothing more will be said.
    Ended(Result<Finished>, Account),
}

/// A running engine. Dropped, it cancels what is in flight and gives the device back.
pub struct Engine {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    next: std::sync::atomic::AtomicU64,
}

/// A request in flight. Dropped, it is cancelled before the next step.
pub struct Ticket {
    id: u64,
    updates: Receiver<Update>,
    commands: Sender<Command>,
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
        let run = move || match open() {
            Ok(mut backend) => {
                if ready.send(Ok(())).is_ok() {
                    serve(backend.as_mut(), settings, &received);
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
        Ok(Engine { commands, thread: Some(thread), next: std::sync::atomic::AtomicU64::new(0) })
    }

    /// Hands a request in. What is wrong with it is the first and last thing its ticket says.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn submit(&self, make: Make) -> Result<Ticket> {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (told, updates) = channel();
        let commands = self.commands.clone();
        commands.send(Command::Submit(id, make, told)).map_err(|_| gone())?;
        Ok(Ticket { id, updates, commands })
    }

    /// Counters, and the requests that have not ended.
    ///
    /// # Errors
    /// The engine has ended.
    pub fn totals(&self) -> Result<(Totals, usize)> {
        let (told, answer) = channel();
        self.commands.send(Command::Totals(told)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A thread that has ended hears nothing, and needs to hear nothing.
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there.
            let _ = thread.join();
        }
    }
}

impl Ticket {
    /// The next thing that is said; waits for it. `None` after the end.
    pub fn next(&self) -> Option<Update> {
        self.updates.recv().ok()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The request's own, or the engine has ended.
    pub fn wait(&self) -> Result<(Finished, Account)> {
        loop {
            match self.next() {
                Some(Update::Progress(_)) => {}
                Some(Update::Ended(outcome, account)) => return Ok((outcome?, account)),
                None => return Err(gone()),
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // An engine that has ended has nothing left to cancel.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

fn gone() -> Error {
    Error::Backend("the engine has ended".to_string())
}

/// Turn after turn, until the engine is dropped.
fn serve(backend: &mut dyn Backend, settings: Settings, commands: &Receiver<Command>) {
    let mut scheduler = Scheduler::new(settings);
    let mut holders: BTreeMap<u64, (u64, Sender<Update>)> = BTreeMap::new();
    loop {
        // Between two turns everything that was said is heard; without requests there is nothing to do but listen.
        loop {
            let command = match scheduler.requests() {
                0 => commands.recv().map_err(|_| TryRecvError::Disconnected),
                _ => commands.try_recv(),
            };
            match command {
                Ok(Command::Submit(ticket, make, told)) => match make(backend) {
                    Ok(generation) => {
                        holders.insert(scheduler.submit(generation), (ticket, told));
                    }
                    Err(error) => drop(told.send(Update::Ended(Err(error), Account::default()))),
                },
                Ok(Command::Cancel(ticket)) => {
                    let found = holders.iter().find(|(_, (held, _))| *held == ticket).map(|(&id, _)| id);
                    if let Some(id) = found {
                        scheduler.cancel(backend, id);
                        holders.remove(&id);
                    }
                }
                Ok(Command::Totals(told)) => drop(told.send((scheduler.totals(), scheduler.requests()))),
                Err(TryRecvError::Empty) => break,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    scheduler.clear(backend);
                    return;
                }
            }
        }
        if !scheduler.turn(backend) {
            // Not a state that requests can get into by themselves; to spin in it would help nobody.
            scheduler.clear(backend);
            for (_, told) in std::mem::take(&mut holders).into_values() {
                let _ = told.send(Update::Ended(Err(super::stuck()), Account::default()));
            }
        }
        for event in scheduler.events() {
            match event {
                Event::Progress(id, progress) => {
                    let Some((_, told)) = holders.get(&id) else { continue };
                    if told.send(Update::Progress(progress)).is_err() {
                        scheduler.cancel(backend, id);
                        holders.remove(&id);
                    }
                }
                Event::Ended(id, outcome, account) => {
                    if let Some((_, told)) = holders.remove(&id) {
                        // A holder that has left does not want to know.
                        let _ = told.send(Update::Ended(*outcome, account));
                    }
                }
            }
        }
    }
}
