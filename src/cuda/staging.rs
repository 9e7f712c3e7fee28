//! Host memory on its way to the device: pinned slots that threads fill while earlier ones are being copied.
//!
//! The host goes on while pinned memory is copied, so that reading a file, copying it into a slot and sending a slot to the
//! device overlap. A slot is filled again only after the event that follows its copy has been reached. All copies are queued by
//! the calling thread on the device's one stream: the copy engine never waits for the host while a filled slot is there,
//! and whatever is launched between two copies sees them in order.

use super::buffer::ViewMut;
use super::device::{Device, Event};
use super::pinned::Pinned;
use crate::{Error, Result};
use cudarc::driver::result;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Mutex, PoisonError};

/// Bytes of a slot: large enough that a copy's fixed cost vanishes, small enough to fill the ring early.
pub const SLOT: usize = 16 << 20;
/// Slots of a ring, at most.
const SLOTS: usize = 8;
/// Threads that fill slots, at most.
const THREADS: usize = 8;

/// A filled slot: the bytes of one piece.
#[derive(Debug)]
pub struct FilledSlot<'a> {
    device: &'a Device,
    bytes: &'a [u8],
}

impl FilledSlot<'_> {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Queues a copy of all bytes.
    pub fn copy_to(&self, to: &mut ViewMut<'_, u8>) -> Result<()> {
        if to.len() != self.bytes.len() {
            return Err(Error::Backend(format!("copy of {} bytes to {}", self.bytes.len(), to.len())));
        }
        if self.bytes.is_empty() {
            return Ok(());
        }
        let stream = self.device.bound()?;
        // SAFETY: the destination has as many bytes and is lent to us alone; what is queued later on the one stream comes
        // after the copy. The source is a slot, which `stream` neither fills nor releases before the copy is done.
        let queued = unsafe { result::memcpy_htod_async(to.address, self.bytes, stream.cu_stream()) };
        queued.map_err(|e| self.device.fault("cannot copy to the device", e))
    }
}

/// Slots that were queued, in their order. Dropping it waits for all of them, so that no slot is released under a copy.
struct InFlight<'a> {
    device: &'a Device,
    slots: VecDeque<(Pinned, Option<Event>)>,
}

impl InFlight<'_> {
    /// The oldest slot, when its copy is done; without waiting for it unless asked to.
    fn take(&mut self, wait: bool) -> Result<Option<Pinned>> {
        let Some((_, event)) = self.slots.front() else { return Ok(None) };
        match event {
            Some(event) if wait => self.device.wait(event)?,
            Some(event) if !self.device.reached(event)? => return Ok(None),
            Some(_) => {}
            None => self.device.synchronize()?,
        }
        Ok(self.slots.pop_front().map(|(slot, _)| slot))
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        // A device that fails here runs nothing any more.
        if !self.slots.is_empty() {
            let _ = self.device.synchronize();
        }
    }
}

/// Brings `pieces`, of at most [`SLOT`] bytes each, to the device. `queue` gets each piece by its index, in any order, and
/// queues its copy and what follows it. Returns when everything has been done.
///
/// # Errors
/// Those of `queue` and of the device; pieces that were not queued yet are dropped.
pub fn stream<P: AsRef<[u8]> + Sync>(
    device: &Device,
    pieces: &[P],
    mut queue: impl FnMut(usize, &FilledSlot<'_>) -> Result<()>,
) -> Result<()> {
    let largest = pieces.iter().map(|piece| piece.as_ref().len()).max().unwrap_or(0);
    if largest > SLOT {
        return Err(Error::Backend(format!("a piece of {largest} bytes does not fit a slot of {SLOT}")));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (to_fill, empty) = mpsc::channel::<Pinned>();
    let (to_queue, filled) = mpsc::channel::<(usize, Pinned)>();
    let (empty, next) = (Mutex::new(empty), AtomicUsize::new(0));
    for _ in 0..SLOTS.min(pieces.len()) {
        let _ = to_fill.send(Pinned::new(device, largest)?);
    }
    let fill = |to_queue: mpsc::Sender<(usize, Pinned)>| {
        loop {
            // The lock is held while waiting for a slot: a thread that waits for the lock would wait for a slot anyway.
            let slot = empty.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(mut slot) = slot else { return };
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(index).map(AsRef::as_ref) else { return };
            slot.bytes_mut()[..piece.len()].copy_from_slice(piece);
            if to_queue.send((index, slot)).is_err() {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(cores).min(pieces.len()) {
            let to_queue = to_queue.clone();
            scope.spawn(|| fill(to_queue));
        }
        drop(to_queue);
        // Moved in, so that the threads end when this returns, with an error too.
        let (to_fill, filled) = (to_fill, filled);
        let mut flight = InFlight { device, slots: VecDeque::new() };
        for _ in 0..pieces.len() {
            let (index, slot) = loop {
                match filled.try_recv() {
                    Ok(piece) => break piece,
                    Err(TryRecvError::Disconnected) => {
                        return Err(Error::Backend("a thread that reads weights has failed".to_string()));
                    }
                    // Nothing to queue: wait for a copy, whose slot can then be filled, or else for a thread.
                    Err(TryRecvError::Empty) => match flight.take(true)? {
                        Some(slot) => drop(to_fill.send(slot)),
                        None => {
                            if let Ok(piece) = filled.recv() {
                                break piece;
                            }
                        }
                    },
                }
            };
            let len = pieces.get(index).map_or(0, |piece| piece.as_ref().len());
            let queued = queue(index, &FilledSlot { device, bytes: &slot.bytes()[..len] });
            // Kept whatever happened: a copy may have been queued before the failure.
            flight.slots.push_back((slot, device.mark().ok()));
            queued?;
            while let Some(slot) = flight.take(false)? {
                let _ = to_fill.send(slot);
            }
        }
        while flight.take(true)?.is_some() {}
        device.synchronize()
    })
}
