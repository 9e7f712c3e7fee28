//! The engine: many requests, speculation, blocks taken back, and still the answers of one request after the other.

#[macro_use]
#[path = "engine/common.rs"]
mod common;
#[path = "engine/cost.rs"]
mod cost;
#[path = "engine/demo.rs"]
mod demo;
#[path = "engine/goldens.rs"]
mod goldens;
#[path = "engine/sampled.rs"]
mod sampled;
#[path = "method/scripted.rs"]
mod scripted;
#[path = "engine/storm.rs"]
mod storm;
