//! The emulated device through unmodified cudarc: its own kernels in every mode, planted bugs that must be caught, and
//! the driver's behaviour.

mod bugs;
mod dependents;
mod driver;
mod harness;
mod kernels;
mod products;
mod ptx;
mod stored;
mod tensors;
