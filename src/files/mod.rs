//! What a model's directory holds, checked before anything of it is used.

mod added;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod demo;
pub mod draft;
mod fields;
pub mod generation;
pub mod hub;
pub(crate) mod json;
mod names;
pub mod pair;
pub mod place;
mod recognise;
pub mod tensors;
pub mod tokenizer;
