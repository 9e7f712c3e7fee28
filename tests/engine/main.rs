//! The engine: many requests, speculation, blocks taken back, and still the answers of one request after the other.

mod baselines;
mod cost;
mod demo;
mod draft_model;
mod drafts;
mod goldens;
mod pieces;
mod replay;
mod retokenize;
mod sampled;
mod storm;
