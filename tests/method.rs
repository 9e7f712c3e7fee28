//! The method and its row statistics, without a model: golden softmax rows, and a scripted backend whose logits, rewards
//! and gradients are closures over token ids.
//!
//! Every response decoded here is compared with an independent, naive transcription of the algorithm that recomputes
//! everything, and its work with the least that is possible.

#[path = "method/edges.rs"]
mod edges;
#[path = "method/failures.rs"]
mod failures;
#[path = "method/naive.rs"]
mod naive;
#[path = "method/pooling.rs"]
mod pooling;
#[path = "method/property.rs"]
mod property;
#[path = "method/rows.rs"]
mod rows;
#[path = "method/scripted.rs"]
mod scripted;
