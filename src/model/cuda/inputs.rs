//! What a step needs from the host, sent to the device in one copy.

use super::graphs::BufferAddress;
use crate::Result;
use crate::cuda::{Buffer, Device, Element, Packets, View};
use std::marker::PhantomData;

/// Slices start at multiples of this many bytes.
const ALIGN: usize = 16;

/// Host data of one step. Kept from step to step for its memory.
#[derive(Debug, Default)]
pub(super) struct StepInputs {
    bytes: Vec<u8>,
}

/// Where some elements are among the inputs of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice<T> {
    at: usize,
    len: usize,
    element: PhantomData<T>,
}

impl StepInputs {
    /// Starts over.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Adds elements.
    pub fn push<T: Element>(&mut self, data: &[T]) -> Slice<T> {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytemuck::cast_slice(data));
        Slice { at, len: data.len(), element: PhantomData }
    }
}

/// The device's copy of the last inputs.
#[derive(Debug)]
pub(super) struct DeviceInputs {
    buffer: Buffer<u8>,
    packets: Packets,
}

impl DeviceInputs {
    /// Room for inputs of some bytes.
    pub fn new(device: &Device, bytes: usize) -> Result<Self> {
        Ok(DeviceInputs { buffer: Buffer::uninitialised(device, bytes)?, packets: Packets::new(device) })
    }

    /// Sends the inputs of a step, which may be changed as soon as this returns. More than there were ever before make the buffer grow, to twice the size: work lists follow the
    /// lengths of contexts, which have no small bound.
    pub fn receive(&mut self, device: &Device, inputs: &StepInputs) -> Result<()> {
        if inputs.bytes.len() > self.buffer.len() {
            self.buffer = Buffer::uninitialised(device, 2 * inputs.bytes.len())?;
        }
        self.packets.send(&inputs.bytes, self.buffer.first_mut(inputs.bytes.len()))
    }

    /// Where it is.
    pub fn place(&self) -> BufferAddress {
        BufferAddress { address: self.buffer.address(), len: self.buffer.len() }
    }

    /// Elements of the inputs received last, which must be those that the slice is of.
    pub fn view<T: Element>(&self, slice: Slice<T>) -> View<'_, T> {
        self.buffer.view().slice(slice.at..slice.at + slice.len * size_of::<T>()).cast()
    }
}
