//! What a step needs from the host, sent to the device in one copy.

use crate::Result;
use crate::cuda::{Buffer, Device, Element, View};
use std::marker::PhantomData;

/// Sections start at multiples of this many bytes.
const ALIGN: usize = 16;

/// Host data of one step. Kept from step to step for its memory.
#[derive(Debug, Default)]
pub(super) struct Packet {
    bytes: Vec<u8>,
}

/// Where in a packet some elements are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<T> {
    at: usize,
    len: usize,
    element: PhantomData<T>,
}

impl Packet {
    /// Starts over.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Adds elements.
    pub fn push<T: Element>(&mut self, data: &[T]) -> Section<T> {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytemuck::cast_slice(data));
        Section { at, len: data.len(), element: PhantomData }
    }
}

/// The device's copy of the last packet.
#[derive(Debug)]
pub(super) struct Inbox {
    buffer: Buffer<u8>,
}

impl Inbox {
    /// Room for packets of some bytes.
    pub fn new(device: &Device, bytes: usize) -> Result<Self> {
        Ok(Inbox { buffer: Buffer::uninitialised(device, bytes)? })
    }

    /// Sends a packet. One that is larger than any before makes the buffer grow, to twice the size: work lists follow the
    /// lengths of contexts, which have no small bound.
    pub fn receive(&mut self, device: &Device, packet: &Packet) -> Result<()> {
        if packet.bytes.len() > self.buffer.len() {
            self.buffer = Buffer::uninitialised(device, 2 * packet.bytes.len())?;
        }
        self.buffer.upload_first(device, &packet.bytes)
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.buffer.address()
    }

    /// Elements of the packet received last, which must be the one that the section is of.
    pub fn view<T: Element>(&self, section: Section<T>) -> View<'_, T> {
        self.buffer.view().slice(section.at..section.at + section.len * size_of::<T>()).cast()
    }
}
