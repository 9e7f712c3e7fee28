//! The kernels and their launch path on the emulated device: every case of the conformance harness, plain and checked, in
//! every schedule; the golden rows; bytes moved; and that broken kernels are noticed.

mod cards;
mod cli;
mod copies;
mod damaged;
mod emulated;
mod engine;
mod gradient_pages;
mod graphs;
mod harness;
mod lost;
mod model;
mod mutations;
mod ptx;
mod serve;
mod shared_pages;
mod sources;
mod steps;
mod traffic;
mod vectors;
mod weights;
