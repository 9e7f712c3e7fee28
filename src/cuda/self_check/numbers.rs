//! The numbers of a problem, drawn from their names: the laboratory computes from the same ones.

use crate::Result;
use crate::cuda::buffer::{Buffer, Element};
use crate::cuda::device::Device;
use crate::dtype::HalfType;
use crate::rng::RandomFill;

/// Numbers with 24 bits, of mean 0 and this deviation.
pub(crate) fn singles(name: &str, len: usize, scale: f32) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let from = RandomFill { seed, mean: 0.0, scale };
    (0..len as u64).map(|index| from.element(index)).collect()
}

/// The same, rounded to what both storage types hold: bf16's 8 bits, and nothing below f16's smallest normal number.
pub(crate) fn halves(name: &str, len: usize, scale: f32) -> Vec<f32> {
    let mut all = singles(name, len, scale);
    for x in &mut all {
        let rounded = HalfType::Bf16.widen(HalfType::Bf16.round(*x));
        *x = if rounded.abs() < 6.2e-5 { 0.0 } else { rounded };
    }
    all
}

/// Numbers on the device, in the storage type.
pub(super) fn stored(device: &Device, storage: HalfType, values: &[f32]) -> Result<Buffer<u16>> {
    let bits: Vec<u16> = values.iter().map(|&x| storage.round(x)).collect();
    Buffer::from_slice(device, &bits)
}

/// An output of NaN, so that what is not written shows.
pub(super) fn unwritten<T: Element>(device: &Device, len: usize) -> Result<Buffer<T>> {
    let mut element = T::zeroed();
    bytemuck::bytes_of_mut(&mut element).fill(0xff);
    Buffer::from_slice(device, &vec![element; len])
}

/// What an output in the storage type means.
pub(super) fn widened(storage: HalfType, bits: &[u16]) -> Vec<f64> {
    bits.iter().map(|&bits| f64::from(storage.widen(bits))).collect()
}

/// The same of one in f32.
pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}
