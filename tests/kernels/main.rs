//! The kernels, as nvcc compiles them, and their launch path on the emulated device: every case of the conformance harness, plain
//! and with every access observed, in several orders and modes; the golden rows; models, the engine, commands and the server;
//! bytes moved; and that broken kernels are noticed.

mod cards;
mod cli;
mod copies;
mod damaged;
mod dependents;
mod emulated;
mod engine;
mod family;
mod full;
mod gradient_pages;
mod graphs;
mod harness;
mod hopper;
mod launches;
mod lost;
mod model;
mod mutations;
// What the build script knows of nvcc and of stored images.
#[allow(dead_code, reason = "tests make no images")]
#[path = "../../build/nvcc.rs"]
mod nvcc;
mod planted;
mod self_check;
mod serve;
mod shared_pages;
mod smollm2;
mod sources;
mod steps;
#[allow(dead_code, reason = "tests take the PTX alone")]
#[path = "../../build/stored.rs"]
mod stored;
mod traffic;
mod vectors;
mod weights;
