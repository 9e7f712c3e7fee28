//! The method and its row statistics, without a model: golden softmax rows, and a scripted backend whose logits, rewards
//! and gradients are closures over token ids.
//!
//! Every response decoded here is compared with an independent, naive transcription of the algorithm that recomputes
//! everything, and its work with the least that is possible.

mod edges;
mod failures;
mod naive;
mod pooling;
mod property;
mod rows;
