//! The reference backend against the golden forward data, and against itself: batches, chunks, forks, reruns.

mod common;
mod goldens;
mod gradient;
mod invariance;
mod one_model;
mod simulation;
mod synthetic;
mod teacher;
