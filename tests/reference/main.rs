//! The reference backend against the golden forward data, and against itself: batches, chunks, forks, reruns.

#[path = "../backend/mod.rs"]
mod backend;
mod common;
mod goldens;
mod gradient;
mod invariance;
mod simulation;
mod synthetic;
mod teacher;
