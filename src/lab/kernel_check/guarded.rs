//! Buffers that notice when a kernel reads or writes past them.

use super::case::Check;
use crate::Result;
use crate::cuda::{Buffer, Device, Element, View, ViewMut};

/// Guard elements on each side; a multiple of every alignment that kernels ask for.
const GUARD: usize = 64;

/// A buffer between guards, optionally shifted off its alignment.
pub struct Guarded<T> {
    buffer: Buffer<T>,
    before: Vec<T>,
    after: Vec<T>,
    len: usize,
}

impl<T: Element + std::fmt::Debug> Guarded<T> {
    /// An input: reading past it finds NaN.
    pub fn input(device: &Device, data: &[T]) -> Result<Self> {
        Self::between(device, data, 0xff, 0)
    }

    /// An input, `shift` elements away from an aligned address.
    pub fn shifted(device: &Device, data: &[T], shift: usize) -> Result<Self> {
        Self::between(device, data, 0xff, shift)
    }

    /// An output of NaN.
    pub fn output(device: &Device, len: usize, shift: usize) -> Result<Self> {
        Self::between(device, &vec![filled(0xff); len], 0xa5, shift)
    }

    fn between(device: &Device, data: &[T], guard: u8, shift: usize) -> Result<Self> {
        let (before, after) = (vec![filled(guard); GUARD + shift], vec![filled(guard); GUARD]);
        let all = [&before, data, &after].concat();
        Ok(Guarded { buffer: Buffer::from_slice(device, &all)?, before, after, len: data.len() })
    }

    pub fn view(&self) -> View<'_, T> {
        self.buffer.view().slice(self.before.len()..self.before.len() + self.len)
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        let start = self.before.len();
        self.buffer.view_mut().slice_owned(start..start + self.len)
    }

    /// What is in it now; the guards must be what they were.
    pub fn read(&self, device: &Device, check: &mut Check, what: &str) -> Result<Vec<T>> {
        let mut all = self.buffer.download(device)?;
        let after = all.split_off(self.before.len() + self.len);
        let data = all.split_off(self.before.len());
        check.digest.add(bytemuck::cast_slice(&data));
        check.same(&format!("{what}, guard before it"), &all, &self.before);
        check.same(&format!("{what}, guard after it"), &after, &self.after);
        Ok(data)
    }
}

/// An element of equal bytes: 0xff is NaN in every float.
fn filled<T: Element>(byte: u8) -> T {
    let mut value = T::zeroed();
    bytemuck::bytes_of_mut(&mut value).fill(byte);
    value
}
