//! The CUDA device: context, embedded kernel images, buffers, and one safe function per kernel.
//!
//! libcuda is loaded at run time, so the binary needs no CUDA to start; [`Device::open`] says in words what is missing.
//! All kernels are resolved when a device is opened; launching allocates nothing. A [`Device`] has one stream, and buffers are
//! used on the stream that they were made on, so work on them is ordered by the program and needs no events between.

mod buffer;
mod device;
pub mod driver;
mod family;
pub mod images;
pub mod instruments;
mod kernels;
mod launch;
mod open;
pub mod ops;
mod pinned;
pub mod self_check;
pub mod staging;

pub use buffer::{Buffer, Element, View, ViewMut};
pub(crate) use device::Graph;
pub use device::{Device, Event};
pub use family::KernelFamily;
pub use images::{Capability, Code, Image, Usage};
pub use kernels::{Smaller, Spec};
pub use open::specs;
pub use pinned::Packets;
