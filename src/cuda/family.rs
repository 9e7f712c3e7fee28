//! The two families of kernels for products with stored weights and for attention, and which of them a device runs.

use super::device::Device;
use super::ops::weight_layout::WeightLayout;
use super::ops::{attention, gemm};
use crate::{Error, Result};

/// A family of kernels for products with stored weights and for attention. Each reads weights in a layout of its own and adds in an
/// order of its own, so the results of two families differ in their last bits. The head of a reward model, of one row, is multiplied
/// by the kernels of every card in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFamily {
    /// Those of every card, by mma.
    Sm80,
    /// Those of Hopper alone, by wgmma.
    Sm90,
    /// The same, but with products of one width alone, whatever the number of tokens, and no attention by mma. A row's bits depend on
    /// its company if wgmma gives a column other bits in a product of another width, or than mma does, which `ggro kernels test` finds
    /// out: then this is the family to run.
    Sm90Wide,
}

impl KernelFamily {
    /// All of them.
    pub const ALL: [KernelFamily; 3] = [KernelFamily::Sm80, KernelFamily::Sm90, KernelFamily::Sm90Wide];

    /// As text: `sm80`, `sm90` or `sm90-wide`.
    pub fn name(self) -> &'static str {
        match self {
            KernelFamily::Sm80 => "sm80",
            KernelFamily::Sm90 => "sm90",
            KernelFamily::Sm90Wide => "sm90-wide",
        }
    }

    /// How its weights lie in memory.
    pub fn weight_layout(self) -> WeightLayout {
        match self {
            KernelFamily::Sm80 => WeightLayout::Rows,
            KernelFamily::Sm90 | KernelFamily::Sm90Wide => WeightLayout::Tiles,
        }
    }

    /// Whether a device has its kernels.
    pub fn runs_on(self, device: &Device) -> bool {
        match self {
            KernelFamily::Sm80 => true,
            KernelFamily::Sm90 | KernelFamily::Sm90Wide => {
                gemm::sm90::runs_on(device) && attention::sm90::runs_on(device)
            }
        }
    }
}

impl Device {
    /// The family that multiplies with stored weights.
    pub fn family(&self) -> KernelFamily {
        match (self.weight_layout(), self.widest_products) {
            (WeightLayout::Rows, _) => KernelFamily::Sm80,
            (WeightLayout::Tiles, false) => KernelFamily::Sm90,
            (WeightLayout::Tiles, true) => KernelFamily::Sm90Wide,
        }
    }

    /// The same device with another family, chosen before a model is loaded: its weights lie as the family reads them.
    ///
    /// # Errors
    /// The device does not have the family's kernels.
    pub fn with_family(mut self, family: KernelFamily) -> Result<Self> {
        if !family.runs_on(&self) {
            return Err(Error::Backend(format!("{} has no kernels of {}", self.name(), family.name())));
        }
        self.widest_products = family == KernelFamily::Sm90Wide;
        Ok(self.with_weight_layout(family.weight_layout()))
    }
}
