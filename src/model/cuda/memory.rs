//! What models need of a device's memory, before anything is loaded: weights, workspace, and what is left for keys and
//! values. Plain arithmetic. What the kernels themselves take is measured when they are loaded, and is not free any more.

use super::sizes::Sizes;
use crate::cuda::Device;
use crate::error::{Error, Remedy, Result};
use crate::kv::BLOCK;
use std::fmt::Write as _;

/// Sequences of full length that keys and values are kept for, at most: more are not taken from a device that has room.
pub const SEQUENCES: usize = 64;

/// What one model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelNeeds {
    /// Bytes of its weights, padding included.
    pub weights: u64,
    /// Bytes of the keys and values of one token, padding included.
    pub kv_per_token: u64,
}

impl ModelNeeds {
    /// From a model's sizes and the bytes of its weights; keys and values are stored in 16 bits.
    pub fn new(sizes: &Sizes, weights: u64) -> Self {
        ModelNeeds { weights, kv_per_token: 2 * sizes.kv_per_token() as u64 }
    }
}

/// What a pair needs, or one of its models, and how much of the device it may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needs {
    /// The policy.
    pub policy: Option<ModelNeeds>,
    /// The reward model.
    pub reward: Option<ModelNeeds>,
    /// The draft model.
    pub draft: Option<ModelNeeds>,
    /// Bytes of activations and logits.
    pub workspace: u64,
    /// Bytes of what kernels leave to others: chunk sums and parts of rows.
    pub scratch: u64,
    /// Bytes that are set aside for recorded passes.
    pub graphs: u64,
    /// Bytes of what the reward gradient keeps.
    pub gradient: u64,
    /// Longest sequence, in tokens.
    pub max_len: usize,
    /// Share of the device's memory that may be in use, by whomever.
    pub utilization: f64,
    /// Sequences of full length, at most, that keys and values are kept for.
    pub sequences: usize,
}

/// A device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that are free.
    pub free: u64,
    /// All bytes.
    pub total: u64,
    /// Bytes that loading the kernels took, of those that are not free.
    pub kernels: u64,
}

impl DeviceMemory {
    /// As the device says now.
    ///
    /// # Errors
    /// It does not say.
    pub fn of(device: &Device) -> Result<Self> {
        let (free, total) = device.memory()?;
        Ok(DeviceMemory { free: free as u64, total: total as u64, kernels: device.code() })
    }
}

/// How a device's memory is divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryBudget {
    needs: Needs,
    device: DeviceMemory,
    /// Blocks of keys and values of each model.
    pub blocks: usize,
}

impl Needs {
    /// The models that are there, by name.
    fn models(&self) -> impl Iterator<Item = (&'static str, ModelNeeds)> {
        let models = [("policy", self.policy), ("reward", self.reward), ("draft", self.draft)];
        models.into_iter().filter_map(|(name, model)| Some((name, model?)))
    }

    /// Bytes of one block of keys and values, of all models.
    fn block(&self) -> u64 {
        let per_token = self.models().map(|(_, model)| model.kv_per_token).fold(0, u64::saturating_add);
        per_token.saturating_mul(BLOCK as u64)
    }

    /// Blocks of one sequence of full length, and one more: a fork copies the block it parts in.
    fn least(&self) -> u64 {
        self.max_len.div_ceil(BLOCK) as u64 + 1
    }

    /// Bytes besides keys and values.
    fn fixed(&self) -> u64 {
        let weights = self.models().map(|(_, model)| model.weights);
        weights.chain([self.workspace, self.scratch, self.graphs, self.gradient]).fold(0, u64::saturating_add)
    }

    /// Divides a device's memory.
    ///
    /// # Errors
    /// The pair does not fit; the message says what is needed, what is there and what could be changed.
    pub fn divide(&self, device: DeviceMemory) -> Result<MemoryBudget> {
        let allowed = allowed(device, self.utilization);
        let needed = self.fixed().saturating_add(self.block().saturating_mul(self.least()));
        if needed > allowed {
            return Err(self.refusal(device, needed, allowed));
        }
        let wanted = (self.sequences.max(1) as u64).saturating_mul(self.least());
        let room = (allowed - self.fixed()) / self.block().max(1);
        let blocks = room.min(wanted).min(u64::from(u32::MAX)) as usize;
        Ok(MemoryBudget { needs: *self, device, blocks })
    }

    fn refusal(&self, device: DeviceMemory, needed: u64, allowed: u64) -> Error {
        let kv = self.block().saturating_mul(self.least());
        let what = if self.policy.is_some() && self.reward.is_some() { "pair" } else { "model" };
        let named = |name| match name {
            "reward" => "reward model",
            "draft" => "draft model",
            name => name,
        };
        let weights: Vec<String> =
            self.models().map(|(name, model)| format!("{} {}", named(name), bytes(model.weights))).collect();
        let mut text = format!(
            "the {what} does not fit the device: {} are needed ({}, workspace {}, scratch {}, graphs {}, gradient {}, \
             keys and values of one sequence of {} tokens {}), {} of {} are free, and a share of {} leaves {} of them",
            bytes(needed),
            weights.join(", "),
            bytes(self.workspace),
            bytes(self.scratch),
            bytes(self.graphs),
            bytes(self.gradient),
            self.max_len,
            bytes(kv),
            bytes(device.free),
            bytes(device.total),
            self.utilization,
            bytes(allowed),
        );
        let (mut ways, mut remedies) = (Vec::new(), Vec::new());
        let fixed = self.fixed();
        let fits = allowed.saturating_sub(fixed) / self.block().max(1);
        if fits >= 2 {
            let longest = (fits - 1) * BLOCK as u64;
            ways.push(format!("sequences of at most {longest} tokens"));
            remedies.push(Remedy::ContextTokens(longest));
        }
        if self.gradient > 0 && needed - self.gradient.min(needed) <= allowed {
            ways.push("a gradient over fewer tokens".to_string());
            remedies.push(Remedy::FewerGradientTokens);
        }
        if needed <= device.free {
            ways.push("a larger share of the device's memory".to_string());
            remedies.push(Remedy::MoreMemory);
        } else if needed <= device.total {
            ways.push("ending what else uses the device".to_string());
        }
        if ways.is_empty() {
            ways.push(format!("a smaller {what}, a larger device, or the CPU"));
            remedies.push(Remedy::Cpu);
        }
        let _ = write!(text, "; what would help: {}", ways.join(", or "));
        Error::OutOfMemory { message: text, remedies }
    }
}

/// Bytes that may be taken: the share of the whole, less what is in use.
fn allowed(device: DeviceMemory, utilization: f64) -> u64 {
    let share = (device.total as f64 * utilization.clamp(0.0, 1.0)) as u64;
    share.saturating_sub(device.total.saturating_sub(device.free)).min(device.free)
}

impl MemoryBudget {
    /// Bytes of the keys and values of all models.
    pub fn kv(&self) -> u64 {
        self.needs.block().saturating_mul(self.blocks as u64)
    }

    /// Bytes that stay free.
    pub fn left(&self) -> u64 {
        self.device.free.saturating_sub(self.needs.fixed()).saturating_sub(self.kv())
    }

    /// What goes where: name and bytes, in the order of a report.
    pub fn parts(&self) -> Vec<(&'static str, u64)> {
        let named = |name| match name {
            "policy" => "policy weights",
            "draft" => "draft weights",
            _ => "reward weights",
        };
        let mut parts: Vec<_> = self.needs.models().map(|(name, model)| (named(name), model.weights)).collect();
        parts.extend([
            ("workspace", self.needs.workspace),
            ("scratch", self.needs.scratch),
            ("graphs", self.needs.graphs),
            ("gradient", self.needs.gradient),
            ("keys and values", self.kv()),
            ("left", self.left()),
        ]);
        parts
    }
}

impl std::fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (tokens, needs) = (self.blocks * BLOCK, &self.needs);
        let weights: Vec<String> =
            needs.models().map(|(name, model)| format!("{} {name}", bytes(model.weights))).collect();
        let each: Vec<String> = needs.models().map(|(_, model)| bytes(model.kv_per_token)).collect();
        write!(
            f,
            "{} weights, {} workspace, {} scratch, {} graphs, {} gradient; {} keys and values ({tokens} tokens, {} each), \
             {} left of {} free, with {} of kernels loaded",
            weights.join(" + "),
            bytes(needs.workspace),
            bytes(needs.scratch),
            bytes(needs.graphs),
            bytes(needs.gradient),
            bytes(self.kv()),
            each.join(" + "),
            bytes(self.left()),
            bytes(self.device.free),
            bytes(self.device.kernels),
        )
    }
}

/// A number of bytes in words.
pub fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn memory(free: u64, total: u64) -> DeviceMemory {
        DeviceMemory { free, total, kernels: GIB / 64 }
    }

    fn needs() -> Needs {
        let model = ModelNeeds { weights: 16 * GIB, kv_per_token: 128 << 10 };
        let (workspace, scratch, graphs, gradient) = (GIB / 2, GIB / 4, GIB / 4, 2 * GIB);
        Needs {
            policy: Some(model),
            reward: Some(model),
            draft: None,
            workspace,
            scratch,
            graphs,
            gradient,
            max_len: 8192,
            utilization: 0.9,
            sequences: 64,
        }
    }

    #[test]
    fn what_is_left_goes_to_keys_and_values() {
        let device = memory(79 * GIB, 80 * GIB);
        let budget = needs().divide(device).unwrap();
        // 0.9 x 80 - 1 in use - 35 fixed = 36 GiB in blocks of 16 MiB.
        assert_eq!(budget.blocks, 36 * 64);
        assert_eq!((budget.kv(), budget.left()), (36 * GIB, 8 * GIB));
        assert_eq!(budget.parts().iter().map(|(_, bytes)| bytes).sum::<u64>(), device.free);
        let text = budget.to_string();
        assert!(text.contains("16.00 GiB policy") && text.contains("147456 tokens"), "{text}");
    }

    #[test]
    fn no_more_than_can_be_used_is_taken() {
        let device = memory(79 * GIB, 80 * GIB);
        let budget = Needs { sequences: 2, max_len: 100, ..needs() }.divide(device).unwrap();
        assert_eq!(budget.blocks, 2 * 3);
    }

    #[test]
    fn a_pair_that_does_not_fit_is_refused_with_what_would_help() {
        let refused = |needs: Needs, free: u64| needs.divide(memory(free, 80 * GIB)).unwrap_err().to_string();
        let text = refused(Needs { max_len: 1 << 20, ..needs() }, 80 * GIB);
        assert!(text.contains("sequences of at most 151488 tokens") && text.contains("needed"), "{text}");
        let text = refused(Needs { utilization: 0.4, ..needs() }, 80 * GIB);
        assert!(text.contains("larger share") && !text.contains("sequences of at most"), "{text}");
        let text = refused(needs(), 20 * GIB);
        assert!(text.contains("ending what else uses the device"), "{text}");
        let large = ModelNeeds { weights: 70 * GIB, kv_per_token: 128 << 10 };
        let text = refused(Needs { policy: Some(large), ..needs() }, 80 * GIB);
        assert!(text.contains("a smaller pair"), "{text}");
        // Sizes beyond all reason saturate.
        let absurd = ModelNeeds { weights: u64::MAX, kv_per_token: u64::MAX };
        refused(Needs { policy: Some(absurd), ..needs() }, 80 * GIB);
    }

    #[test]
    fn one_model_has_the_device_to_itself() {
        let device = memory(79 * GIB, 80 * GIB);
        let policy = Needs { reward: None, gradient: 0, ..needs() };
        let budget = policy.divide(device).unwrap();
        // 0.9 x 80 - 1 in use - 17 fixed = 54 GiB in blocks of 8 MiB.
        assert_eq!(budget.blocks, 54 * 128);
        assert_eq!(budget.parts().iter().map(|(_, bytes)| bytes).sum::<u64>(), device.free);
        let text = budget.to_string();
        assert!(text.starts_with("16.00 GiB policy weights, ") && text.contains("tokens, 128.0 KiB each"), "{text}");
        let text = policy.divide(memory(GIB, 2 * GIB)).unwrap_err().to_string();
        assert!(text.contains("the model does not fit") && !text.contains("reward"), "{text}");
    }

    #[test]
    fn the_longest_sequence_that_is_offered_fits() {
        let device = memory(80 * GIB, 80 * GIB);
        assert!(Needs { max_len: 151_488, ..needs() }.divide(device).is_ok());
    }
}
