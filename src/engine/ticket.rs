//! A request in flight, as its holder sees it: blocking, as a stream of updates, or awaited.

use super::command::{Handle, Update};
use super::scheduler::RequestStats;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A request in flight. Dropped, it is cancelled before the engine's next step.
///
/// There are three ways to use it: [`wait`](Ticket::wait) for the result, iterate over its updates (each `next` blocks), or,
/// in an async task of any runtime, [`update`](Ticket::update) and `.await` on the ticket itself.
pub struct Ticket<T> {
    handle: Handle,
    channel: Arc<Channel<T>>,
}

struct Channel<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    updates: VecDeque<Update<T>>,
    /// No more updates will come.
    closed: bool,
    /// The ticket was dropped.
    abandoned: bool,
    waker: Option<Waker>,
}

impl<T> Channel<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes whoever waits for it.
    fn change(&self, change: impl FnOnce(&mut State<T>)) {
        let mut state = self.state();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        self.arrived.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The engine's end of a ticket. Dropped, it closes the ticket.
pub(super) struct UpdateSender<T>(Arc<Channel<T>>);

impl<T> UpdateSender<T> {
    pub fn new() -> UpdateSender<T> {
        let state = State { updates: VecDeque::new(), closed: false, abandoned: false, waker: None };
        UpdateSender(Arc::new(Channel { state: Mutex::new(state), arrived: Condvar::new() }))
    }

    /// The holder's end.
    pub fn ticket(&self) -> impl FnOnce(Handle) -> Ticket<T> + use<T> {
        let channel = self.0.clone();
        move |handle| Ticket { handle, channel }
    }

    /// Passes an update on. False if the ticket was dropped.
    pub fn send(&self, update: Update<T>) -> bool {
        self.0.change(|state| state.updates.push_back(update));
        !self.0.state().abandoned
    }
}

impl<T> Drop for UpdateSender<T> {
    fn drop(&mut self) {
        self.0.change(|state| state.closed = true);
    }
}

impl<T> Ticket<T> {
    /// Ends the request before the next step. The last update then is [`Update::Cancelled`].
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// Blocks until the request has ended, and gives its output with what was run for it.
    ///
    /// # Errors
    /// The request's own, or the engine has ended.
    pub fn wait(mut self) -> Result<(T, RequestStats)> {
        loop {
            if let Some(result) = outcome(self.next()) {
                return result;
            }
        }
    }

    /// Waits for the next update without blocking the thread. `None` after the end.
    pub async fn update(&mut self) -> Option<Update<T>> {
        std::future::poll_fn(|context| self.poll_update(context)).await
    }

    /// [`update`](Ticket::update) for implementations of streams.
    pub fn poll_update(&mut self, context: &mut Context<'_>) -> Poll<Option<Update<T>>> {
        let mut state = self.channel.state();
        match state.updates.pop_front() {
            Some(update) => Poll::Ready(Some(update)),
            None if state.closed => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// What an update says of the end, if it is the last one.
fn outcome<T>(update: Option<Update<T>>) -> Option<Result<(T, RequestStats)>> {
    match update {
        Some(Update::Accepted | Update::Started | Update::Progress(_)) => None,
        Some(Update::Ended(result, stats)) => Some(result.map(|output| (output, stats))),
        Some(Update::Cancelled(_)) => Some(Err(Error::invalid("the request was cancelled"))),
        None => Some(Err(Error::EngineStopped)),
    }
}

/// Updates as they come; `next` blocks.
impl<T> Iterator for Ticket<T> {
    type Item = Update<T>;

    fn next(&mut self) -> Option<Update<T>> {
        let waiting = |state: &mut State<T>| state.updates.is_empty() && !state.closed;
        let state = self.channel.arrived.wait_while(self.channel.state(), waiting);
        state.unwrap_or_else(PoisonError::into_inner).updates.pop_front()
    }
}

/// The result, as [`Ticket::wait`] gives it.
impl<T> Future for Ticket<T> {
    type Output = Result<(T, RequestStats)>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.poll_update(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(update) => {
                    if let Some(result) = outcome(update) {
                        return Poll::Ready(result);
                    }
                }
            }
        }
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        // The handle cancels the request; this frees the updates that still come.
        self.channel.change(|state| {
            state.abandoned = true;
            state.updates.clear();
        });
    }
}
