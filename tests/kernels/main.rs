//! The kernels and their launch path on the emulated device: every case of the conformance harness, plain and checked, in
//! every schedule; the golden rows; bytes moved; and that broken kernels are noticed.

mod emulated;
mod goldens;
mod harness;
mod mutations;
mod traffic;
