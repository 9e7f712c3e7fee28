//! Device memory: buffers that own it and views that lend it to kernels.

use super::device::Device;
use crate::{Error, Result};
use cudarc::driver::{CudaSlice, DevicePtr, result, sys};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Anything whose bytes may be copied to a device and back.
pub trait Element: bytemuck::Pod {}

impl<T: bytemuck::Pod> Element for T {}

/// Device memory for `len` elements. Released in stream order when dropped.
#[derive(Debug)]
pub struct Buffer<T> {
    memory: CudaSlice<u8>,
    address: sys::CUdeviceptr,
    len: usize,
    element: PhantomData<T>,
}

/// Elements that a kernel may read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    pub(super) address: sys::CUdeviceptr,
    len: usize,
    owner: PhantomData<&'a T>,
}

/// Elements that a kernel may read and write.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    pub(super) address: sys::CUdeviceptr,
    len: usize,
    owner: PhantomData<&'a mut T>,
}

impl<T: Element> Buffer<T> {
    /// Memory that holds anything; kernels must write before they read.
    pub fn uninitialised(device: &Device, len: usize) -> Result<Self> {
        let stream = device.stream();
        // SAFETY: bytes of device memory have no invalid value, and `T` has none either.
        let memory = unsafe { stream.alloc::<u8>(bytes::<T>(len)?) };
        Self::new(device, memory.map_err(|e| device.fault("cannot allocate device memory", e))?, len)
    }

    /// Memory of zero bytes.
    pub fn zeros(device: &Device, len: usize) -> Result<Self> {
        let memory = device.stream().alloc_zeros::<u8>(bytes::<T>(len)?);
        Self::new(device, memory.map_err(|e| device.fault("cannot allocate device memory", e))?, len)
    }

    /// A copy of `data`.
    pub fn from_slice(device: &Device, data: &[T]) -> Result<Self> {
        let mut buffer = Self::uninitialised(device, data.len())?;
        buffer.upload(device, data)?;
        Ok(buffer)
    }

    fn new(device: &Device, memory: CudaSlice<u8>, len: usize) -> Result<Self> {
        let stream: &Arc<_> = device.stream();
        let address = memory.device_ptr(stream).0;
        Ok(Buffer { memory, address, len, element: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where it is: two buffers that live at the same time are at different places.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements, to read.
    pub fn view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, owner: PhantomData }
    }

    /// All elements, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { address: self.address, len: self.len, owner: PhantomData }
    }

    /// The first `len` elements, to read. Panics if they are not there.
    pub fn first(&self, len: usize) -> View<'_, T> {
        self.view().slice(0..len)
    }

    /// The first `len` elements, to write. Panics if they are not there.
    pub fn first_mut(&mut self, len: usize) -> ViewMut<'_, T> {
        self.view_mut().slice_owned(0..len)
    }

    /// Overwrites the whole buffer. Returns when `data` has been read.
    pub fn upload(&mut self, device: &Device, data: &[T]) -> Result<()> {
        if data.len() != self.len {
            return Err(Error::Backend(format!("upload of {} elements into {}", data.len(), self.len)));
        }
        if data.is_empty() {
            return Ok(());
        }
        let copied = device.stream().memcpy_htod(bytemuck::cast_slice::<T, u8>(data), &mut self.memory);
        // Ordinary memory may be read later, and belongs to the caller.
        let done = device.synchronize();
        copied.map_err(|e| device.fault("cannot copy to the device", e))?;
        done
    }

    /// Waits for the stream and copies everything back.
    pub fn download(&self, device: &Device) -> Result<Vec<T>> {
        self.download_first(device, self.len)
    }

    /// Waits for the stream and copies the first `len` elements back. Panics if they are not there.
    pub fn download_first(&self, device: &Device, len: usize) -> Result<Vec<T>> {
        assert!(len <= self.len, "{len} elements of a buffer of {}", self.len);
        let mut data = vec![T::zeroed(); len];
        if len > 0 {
            let part = self.memory.slice(..len * size_of::<T>());
            let copied = device.stream().memcpy_dtoh(&part, bytemuck::cast_slice_mut::<T, u8>(&mut data));
            copied.map_err(|e| device.fault("cannot copy from the device", e))?;
            device.synchronize()?;
        }
        Ok(data)
    }

    /// Copies the whole of another buffer of the same length, on the device.
    pub fn copy_from(&mut self, device: &Device, other: &Buffer<T>) -> Result<()> {
        if other.len != self.len {
            return Err(Error::Backend(format!("copy of {} elements into {}", other.len, self.len)));
        }
        let copied = device.stream().memcpy_dtod(&other.memory, &mut self.memory);
        copied.map_err(|e| device.fault("cannot copy on the device", e))
    }
}

/// Size of an allocation; the driver refuses to allocate nothing.
fn bytes<T>(len: usize) -> Result<usize> {
    let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize);
    bytes.map(|bytes| bytes.max(1)).ok_or_else(|| Error::Backend(format!("a buffer of {len} elements is too large")))
}

impl<'a, T: Element> View<'a, T> {
    /// The same bytes as elements of another type. Panics if they are not whole, or not aligned.
    pub fn cast<U: Element>(&self) -> View<'a, U> {
        let len = cast_len::<T, U>(self.address, self.len);
        View { address: self.address, len, owner: PhantomData }
    }

    /// Waits for the stream and copies the elements back.
    pub fn download(&self, device: &Device) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); self.len];
        if self.len > 0 {
            let stream = device.bound()?.cu_stream();
            let bytes = bytemuck::cast_slice_mut::<T, u8>(&mut data);
            // SAFETY: the view lies in a live allocation of this many bytes, and `data` outlives the copy: the stream is
            // waited for below, whatever the copy's result.
            let copied = unsafe { result::memcpy_dtoh_async(bytes, self.address, stream) };
            let done = device.synchronize();
            copied.map_err(|e| device.fault("cannot copy from the device", e))?;
            done?;
        }
        Ok(data)
    }
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// The same bytes as elements of another type. Panics if they are not whole, or not aligned.
    pub fn cast<U: Element>(self) -> ViewMut<'a, U> {
        let len = cast_len::<T, U>(self.address, self.len);
        ViewMut { address: self.address, len, owner: PhantomData }
    }

    /// Overwrites all elements with zero bytes.
    pub fn zero(&mut self, device: &Device) -> Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let stream = device.bound()?.cu_stream();
        let bytes = self.len * size_of::<T>();
        // SAFETY: the view lies in a live allocation of this many bytes and is lent to us alone; zero bytes are a value of any
        // plain type; and all work is ordered by the one stream.
        let cleared = unsafe { result::memset_d8_async(self.address, 0, bytes, stream) };
        cleared.map_err(|e| device.fault("cannot clear device memory", e))
    }

    /// Copies another view of the same length here, on the device.
    pub fn copy_from(&mut self, device: &Device, from: View<'_, T>) -> Result<()> {
        if from.len != self.len {
            return Err(Error::Backend(format!("copy of {} elements into {}", from.len, self.len)));
        }
        if self.len == 0 {
            return Ok(());
        }
        let stream = device.bound()?.cu_stream();
        let bytes = self.len * size_of::<T>();
        // SAFETY: both views lie in live allocations of at least this many bytes; the target is lent to us alone, so they
        // do not overlap; and all work is ordered by the one stream.
        let copied = unsafe { result::memcpy_dtod_async(self.address, from.address, bytes, stream) };
        copied.map_err(|e| device.fault("cannot copy on the device", e))
    }
}

fn cast_len<T, U>(address: sys::CUdeviceptr, len: usize) -> usize {
    let bytes = len * size_of::<T>();
    let whole = bytes.is_multiple_of(size_of::<U>().max(1));
    assert!(whole && address.is_multiple_of(align_of::<U>() as u64), "{bytes} bytes at {address:#x} as other elements");
    bytes / size_of::<U>().max(1)
}

impl<'a, T> View<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of the elements. Panics if they are not there.
    pub fn slice(&self, range: Range<usize>) -> View<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of a view of {}", self.len);
        View { address: offset::<T>(self.address, range.start), len: range.len(), owner: PhantomData }
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of the elements. Panics if they are not there.
    pub fn slice(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of a view of {}", self.len);
        ViewMut { address: offset::<T>(self.address, range.start), len: range.len(), owner: PhantomData }
    }

    /// The elements before a place, and those from it on. Panics if it is not there.
    pub fn split_at(&mut self, at: usize) -> (ViewMut<'_, T>, ViewMut<'_, T>) {
        assert!(at <= self.len, "{at} of a view of {}", self.len);
        let (address, rest) = (self.address, offset::<T>(self.address, at));
        let part = |address, len| ViewMut { address, len, owner: PhantomData };
        (part(address, at), part(rest, self.len - at))
    }

    /// Some of the elements for as long as the whole view was lent. Panics if they are not there.
    pub fn slice_owned(self, range: Range<usize>) -> ViewMut<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of a view of {}", self.len);
        ViewMut { address: offset::<T>(self.address, range.start), len: range.len(), owner: PhantomData }
    }

    /// The bytes of the elements.
    pub fn into_bytes(self) -> ViewMut<'a, u8>
    where
        T: Element,
    {
        ViewMut { address: self.address, len: self.len * size_of::<T>(), owner: PhantomData }
    }

    /// The same elements, to read.
    pub fn view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, owner: PhantomData }
    }

    /// The same elements for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { address: self.address, len: self.len, owner: PhantomData }
    }
}

fn offset<T>(address: sys::CUdeviceptr, elements: usize) -> sys::CUdeviceptr {
    address + (elements * size_of::<T>()) as sys::CUdeviceptr
}
