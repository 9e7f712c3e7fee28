//! Cases of Hopper's attention: the problems of `attention` by wgmma, where rows are many and wherever they are.

use super::attention::{cases_of, timings_of};
use super::case::Case;
use super::timing::Timed;
use crate::cuda::ops::attention::AttentionProducts;

const OP: &str = "attention_sm90";

pub fn cases() -> Vec<Case> {
    [AttentionProducts::Both, AttentionProducts::Wgmma]
        .into_iter()
        .flat_map(|products| cases_of(OP, products))
        .collect()
}

pub fn timings() -> Vec<Timed> {
    timings_of(OP, AttentionProducts::Both)
}
