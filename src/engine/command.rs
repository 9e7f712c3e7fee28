//! Messages to the engine's thread, and its updates on a request.

use super::scheduler::RequestStats;
use super::submitter::Submitter;
use crate::Result;
use crate::model::ModelPair;
use crate::task::{Progress, Request};
use std::sync::mpsc::Sender;

/// Makes a request, once it can be checked against the backend. Outputs go to the ticket by another way.
pub(super) type BuildRequest = Box<dyn FnOnce(&ModelPair) -> Result<Box<dyn Request<Output = ()>>> + Send>;

/// Passes an update on. False if the listener has gone, which cancels the request.
pub(super) type OnUpdate = Box<dyn FnMut(Update<()>) -> bool + Send>;

/// To the engine's thread.
pub(super) enum Command {
    /// A request under this number.
    Submit(u64, Submitter, BuildRequest, OnUpdate),
    /// The request of this number is no longer wanted.
    Cancel(u64),
    /// Handles hold a sender too, so a closed channel does not tell that the engine was dropped.
    Stop,
}

/// News of a request that ends with a `T`.
#[derive(Debug)]
pub enum Update<T> {
    /// It was found to be sound, and waits or runs.
    Accepted,
    /// It runs.
    Started,
    /// It went on.
    Progress(Progress),
    /// It was cancelled after this was run for it. The last update.
    Cancelled(RequestStats),
    /// It ended. The last update.
    Ended(Result<T>, RequestStats),
}

impl<T> Update<T> {
    /// The same with another output.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Update<U> {
        self.and_then(|output| Ok(convert(output)))
    }

    pub(super) fn and_then<U>(self, convert: impl FnOnce(T) -> Result<U>) -> Update<U> {
        match self {
            Update::Accepted => Update::Accepted,
            Update::Started => Update::Started,
            Update::Progress(progress) => Update::Progress(progress),
            Update::Cancelled(stats) => Update::Cancelled(stats),
            Update::Ended(result, stats) => Update::Ended(result.and_then(convert), stats),
        }
    }
}

/// The right to cancel a request; dropped, it does.
pub struct Handle {
    pub(super) id: u64,
    pub(super) commands: Sender<Command>,
}

impl Handle {
    /// Ends the request before the next step. The last update says what was run for it.
    pub fn cancel(&self) {
        // Fails only if the engine has ended.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel();
    }
}
