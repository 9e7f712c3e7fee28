//! The CUDA device: context, embedded kernel images, buffers, and one safe function per kernel.
//!
//! libcuda is loaded at run time, so the binary needs no CUDA to start; [`Device::open`] says in words what is missing.
//! All kernels are resolved once; launching looks nothing up and allocates nothing. A [`Device`] has one stream, and buffers are
//! used on the stream that they were made on, so work on them is ordered by the program and needs no events between.

mod buffer;
mod device;
pub mod images;
mod kernels;
pub mod ops;
pub mod staging;

pub use buffer::{Buffer, Element, View, ViewMut};
pub(crate) use device::Graph;
pub use device::{Device, Event};
pub use images::{Capability, Image, Usage};
pub use kernels::{Spec, specs};

/// Storage type of weights and activations: both are 16 bits wide and live in `u16` buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Storage {
    /// Both types.
    pub const ALL: [Storage; 2] = [Storage::Bf16, Storage::F16];

    /// `bf16` or `f16`, as kernel names end.
    pub fn name(self) -> &'static str {
        match self {
            Storage::Bf16 => "bf16",
            Storage::F16 => "f16",
        }
    }

    /// Rounds to nearest even.
    pub fn round(self, x: f32) -> u16 {
        match self {
            Storage::Bf16 => half::bf16::from_f32(x).to_bits(),
            Storage::F16 => half::f16::from_f32(x).to_bits(),
        }
    }

    /// Widens exactly.
    pub fn widen(self, bits: u16) -> f32 {
        match self {
            Storage::Bf16 => half::bf16::from_bits(bits).to_f32(),
            Storage::F16 => half::f16::from_bits(bits).to_f32(),
        }
    }
}
