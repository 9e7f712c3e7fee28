//! The method and its row statistics, without a model: golden softmax rows, and a scripted backend whose logits, rewards
//! and gradients are closures over token ids.

#[path = "method/rows.rs"]
mod rows;
