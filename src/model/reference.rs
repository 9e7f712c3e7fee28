//! Local stand-in until the reference backend is merged.
#![allow(missing_docs, unused_variables)]
use super::*;
use crate::pair::Pair;
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    pub max_model_len: Option<usize>,
    pub threads: Option<usize>,
}
#[derive(Debug)]
pub struct Reference(Arc<Pair>);
#[derive(Clone, Debug)]
pub struct PolicyRows {
    pub hidden: Vec<f32>,
    pub logits: Vec<f32>,
}
impl Reference {
    pub fn load(pair: &Arc<Pair>, options: &LoadOptions) -> Result<Reference> {
        Ok(Reference(pair.clone()))
    }
    pub fn policy_rows(&mut self, ids: &[u32]) -> Result<PolicyRows> {
        unimplemented!()
    }
}
impl Backend for Reference {
    fn config(&self, role: Role) -> &ModelConfig {
        unimplemented!()
    }
    fn max_len(&self) -> usize {
        unimplemented!()
    }
    fn create(&mut self, role: Role) -> Result<SeqId> {
        unimplemented!()
    }
    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        unimplemented!()
    }
    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()> {
        unimplemented!()
    }
    fn release(&mut self, seq: SeqId) {
        unimplemented!()
    }
    fn len(&self, seq: SeqId) -> usize {
        unimplemented!()
    }
    fn policy_step(&mut self, spans: &[PolicySpan<'_>]) -> Result<Vec<PolicyRow>> {
        unimplemented!()
    }
    fn logits_row(&mut self, seq: SeqId) -> Result<Vec<f32>> {
        unimplemented!()
    }
    fn reward_score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        unimplemented!()
    }
    fn reward_gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        unimplemented!()
    }
    fn same_embedding(&self, a: u32, b: u32) -> bool {
        unimplemented!()
    }
    fn work(&self) -> Work {
        unimplemented!()
    }
}
