//! Page-locked host memory, and packets of it on their way to the device.
//!
//! The driver copies pinned memory while the host goes on. Ordinary memory it copies twice, waits for where it is more than
//! 64 KiB, and on machines where the device reads it directly, it may read it later than the call returns.

use super::buffer::ViewMut;
use super::device::{Device, Event};
use crate::{Error, Result};
use cudarc::driver::{CudaContext, result};
use std::ptr::NonNull;
use std::sync::Arc;

/// Packets that may be on their way: one that the device reads, one that waits for it, one that is being written, and one more.
const PACKETS: usize = 4;

/// Page-locked host memory.
#[derive(Debug)]
pub(super) struct Pinned {
    address: NonNull<u8>,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the memory belongs to this value alone and may be read, written and released by any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        let context = device.bound()?.context().clone();
        let what = "cannot allocate pinned host memory";
        // SAFETY: an allocation of at least one byte without flags; it is released by `drop`.
        let memory = unsafe { result::malloc_host(len.max(1), 0) }.map_err(|e| device.fault(what, e))?;
        let address = NonNull::new(memory.cast::<u8>()).ok_or_else(|| Error::Backend(what.to_string()))?;
        // SAFETY: the allocation has `len` bytes. Written once, so that they may be lent as a slice.
        unsafe { address.write_bytes(0, len) };
        Ok(Pinned { address, len, context })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that live as long as `self`. The device only reads them.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone. No copy still reads them, because whoever
        // queues one waits for the event that follows it before writing again.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Nothing can be done about a driver that refuses; the memory is then lost until the process ends.
        let _ = self.context.bind_to_thread();
        // SAFETY: allocated by `malloc_host`, released once; whoever queued a copy has waited for it.
        let _ = unsafe { result::free_host(self.address.as_ptr().cast()) };
    }
}

/// Packets of pinned memory that are filled in turn. One is filled again only after the event that follows its copy.
#[derive(Debug)]
pub struct Packets {
    device: Device,
    ring: [Option<Packet>; PACKETS],
    next: usize,
}

#[derive(Debug)]
struct Packet {
    memory: Pinned,
    copied: Event,
}

impl Packets {
    /// For copies on a device's stream.
    pub fn new(device: &Device) -> Self {
        Packets { device: device.clone(), ring: std::array::from_fn(|_| None), next: 0 }
    }

    /// Queues a copy of `bytes`, which may be overwritten as soon as this returns. It waits only for the packet before the last
    /// three.
    ///
    /// # Errors
    /// There is no pinned memory, or the device fails.
    pub fn send(&mut self, bytes: &[u8], mut to: ViewMut<'_, u8>) -> Result<()> {
        if to.len() != bytes.len() {
            return Err(Error::Backend(format!("copy of {} bytes to {}", bytes.len(), to.len())));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let device = &self.device;
        let at = self.next % PACKETS;
        self.next = (at + 1) % PACKETS;
        let mut packet = match self.ring[at].take() {
            Some(packet) => {
                // Put back where waiting fails: its memory may still be read.
                if let Err(why) = device.wait(&packet.copied) {
                    self.ring[at] = Some(packet);
                    return Err(why);
                }
                packet
            }
            None => Packet { memory: Pinned::new(device, bytes.len().next_power_of_two())?, copied: device.mark()? },
        };
        if packet.memory.len() < bytes.len() {
            packet.memory = Pinned::new(device, bytes.len().next_power_of_two())?;
        }
        packet.memory.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let queued = queue(device, &packet.memory.bytes()[..bytes.len()], &mut to);
        let marked = device.mark_again(&packet.copied);
        self.ring[at] = Some(packet);
        queued.and(marked)
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        // No packet is released under a copy; a device that fails here runs nothing any more.
        if self.ring.iter().any(Option::is_some) {
            let _ = self.device.synchronize();
        }
    }
}

/// Queues a copy.
fn queue(device: &Device, from: &[u8], to: &mut ViewMut<'_, u8>) -> Result<()> {
    let stream = device.bound()?;
    // SAFETY: the destination has as many bytes and is lent to us alone; what is queued later on the one stream comes after
    // the copy. The source is a packet, which is neither written nor released before the event that follows the copy.
    let queued = unsafe { result::memcpy_htod_async(to.address, from, stream.cu_stream()) };
    queued.map_err(|e| device.fault("cannot copy to the device", e))
}
