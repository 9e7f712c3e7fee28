//! What several test binaries share. Not part of the product: helpers panic where a test should fail.
//!
//! * [`fixtures`]: the golden pairs and their traces; [`requests`]: those traces as requests, and driving them together;
//! * [`backend`]: small asks to any backend; [`invariance`]: the bit-equality that every backend owes;
//! * [`lessons`]: a device against the goldens and the demo pair, measured by the rounding simulation;
//! * [`golden_rows`]: softmax rows with known statistics, on a device;
//! * [`scripted`]: a backend made of closures, which holds its caller to the contract;
//! * [`fuzz`]: what untrusted bytes are given to.

pub mod backend;
pub mod fixtures;
pub mod fuzz;
pub mod golden_rows;
pub mod invariance;
pub mod lessons;
pub mod random;
pub mod requests;
pub mod scripted;
