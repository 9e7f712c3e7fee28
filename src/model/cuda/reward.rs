//! A reward model on a device.

use super::decoder::{Decoder, Linear};
use super::gradient::GradientPass;
use crate::Result;
use crate::cuda::{Buffer, Device};
use crate::files::config::ModelConfig;
use crate::kv::{BlockCopy, KvPool};
use crate::model::paged::Compute;
use crate::model::spans::{self, CheckedSpan, Tail, TailGradient};

/// A reward model on a stream of its own.
pub(super) struct RewardModel {
    pub device: Device,
    pub decoder: Decoder,
    pub rewards: Buffer<f32>, // [n]
    pub gradient: GradientPass,
    /// What is added to a score; its gradient is none.
    pub bias: Option<f32>,
}

impl RewardModel {
    fn with_bias(&self, score: f32) -> f32 {
        self.bias.map_or(score, |bias| score + bias)
    }
}

impl Compute for RewardModel {
    fn config(&self) -> &ModelConfig {
        &self.decoder.config
    }

    fn kv(&self) -> &KvPool {
        &self.decoder.kv
    }

    fn kv_mut(&mut self) -> &mut KvPool {
        &mut self.decoder.kv
    }

    fn forked(&mut self, copy: Option<BlockCopy>) -> Result<()> {
        self.decoder.copy_block(&self.device, copy)
    }

    fn alive(&self) -> Result<()> {
        self.device.alive()
    }

    fn rewards(&mut self, checked: &[CheckedSpan<'_>], wanted: &[Vec<usize>]) -> Result<Vec<Vec<f32>>> {
        let d = self.decoder.sizes.hidden_padded;
        let mut out = vec![Vec::new(); checked.len()];
        for batch in spans::batches(checked, wanted, self.decoder.state.rows) {
            let RewardModel { device, decoder: reward, rewards, .. } = self;
            reward.forward(device, &batch, |_| ())?;
            let rows = batch.live.len();
            if rows == 0 {
                continue;
            }
            reward.norm(device, rows)?;
            let layout = reward.weights.head_layout();
            let mut linear = Linear { device, storage: reward.storage, layout, scratch: &mut reward.state.scratch };
            linear.run_f32(
                rewards.first_mut(rows),
                reward.state.normed.first(rows * d),
                rows,
                reward.weights.head(),
            )?;
            let back = rewards.download_first(device, rows)?;
            for (&(_, owner), reward) in batch.live.iter().zip(back) {
                out[owner].push(self.with_bias(reward));
            }
        }
        Ok(out)
    }

    fn gradients(&mut self, tails: &[Tail<'_>]) -> Result<Vec<TailGradient>> {
        let mut rest = tails;
        let mut all = Vec::with_capacity(tails.len());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.gradient.together(rest)?);
            all.extend(self.gradient.run(&self.device, &mut self.decoder, now)?);
            rest = later;
        }
        for score in all.iter_mut().flat_map(|tail: &mut TailGradient| &mut tail.rewards) {
            *score = self.with_bias(*score);
        }
        Ok(all)
    }

    fn same_embedding(&self, a: u32, b: u32) -> bool {
        a == b
    }

    fn positions(&self) -> (u64, u64) {
        (self.decoder.forwarded, self.decoder.differentiated)
    }

    fn gradient_tokens(&self) -> usize {
        self.gradient.rows()
    }
}
