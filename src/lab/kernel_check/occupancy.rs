//! What the compiler made of the kernels, without a device: registers, shared memory, local memory, occupancy.

use crate::cuda::{Spec, Usage, images, specs};

/// One kernel on one target.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Listed {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// For instance `sm_90a`.
    pub target: &'static str,
    /// Threads per block, at most.
    pub threads: u32,
    /// Registers per thread.
    pub registers: u32,
    /// Static shared memory in bytes.
    pub shared_static: u32,
    /// Dynamic shared memory in bytes, at most.
    pub shared_dynamic: u32,
    /// Local memory in bytes: stack frame, spilled stores and loads. Anything but 0 is a defect.
    pub local: u32,
    /// With the largest block and the most dynamic shared memory.
    pub occupancy: Option<Occupancy>,
}

/// How many blocks a multiprocessor holds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Occupancy {
    /// Blocks.
    pub blocks: u32,
    /// Warps of these blocks.
    pub warps: u32,
    /// Percent of the warps that a multiprocessor could hold.
    pub percent: u32,
}

/// Limits of one multiprocessor.
struct OccupancyLimits {
    warps: u32,
    blocks: u32,
    registers: u32,
    shared: u32,
}

/// By the number of a target: data-sheet limits, none for what we do not know.
fn limits(target: &str) -> Option<OccupancyLimits> {
    let digits: String = target.strip_prefix("sm_")?.chars().take_while(char::is_ascii_digit).collect();
    let (warps, blocks, shared) = match digits.parse().ok()? {
        80 => (64, 32, 164),
        86 => (48, 16, 100),
        89 => (48, 24, 100),
        90 | 100 | 103 => (64, 32, 228),
        120 => (48, 24, 100),
        _ => return None,
    };
    Some(OccupancyLimits { warps, blocks, registers: 65_536, shared: shared * 1024 })
}

/// Theoretical occupancy. Registers are handed out per warp in units of 256, shared memory in units of 128 bytes with
/// 1 KiB per block for the system.
pub fn occupancy(target: &str, threads: u32, registers: u32, shared: u32) -> Option<Occupancy> {
    let limits = limits(target)?;
    let warps = threads.div_ceil(32).max(1);
    let per_warp = (registers * 32).next_multiple_of(256).max(256);
    let per_block = (shared + 1024).next_multiple_of(128);
    // Four schedulers, each with a quarter of the registers.
    let by_registers = limits.registers / 4 / per_warp * 4 / warps;
    let blocks = (limits.warps / warps).min(limits.blocks).min(by_registers).min(limits.shared / per_block);
    Some(Occupancy { blocks, warps: blocks * warps, percent: blocks * warps * 100 / limits.warps })
}

/// Every embedded kernel on every target, in the order of the table of kernels. Empty without a compiler.
pub fn list() -> Vec<Listed> {
    let usages = || images::embedded().iter().flat_map(|image| image.usage);
    let of = |spec: Spec| usages().filter(move |usage| usage.kernel == spec.name).map(move |usage| listed(spec, usage));
    specs().into_iter().flat_map(of).collect()
}

fn listed(spec: Spec, usage: &Usage) -> Listed {
    Listed {
        kernel: usage.kernel,
        target: usage.target,
        threads: spec.threads,
        registers: usage.registers,
        shared_static: usage.shared,
        shared_dynamic: spec.shared,
        local: usage.stack + usage.spill_stores + usage.spill_loads,
        occupancy: occupancy(usage.target, spec.threads, usage.registers, usage.shared + spec.shared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occupancy_is_the_scarcest_resource() {
        let blocks = |target, threads, registers, shared| occupancy(target, threads, registers, shared).unwrap().blocks;
        assert_eq!(blocks("sm_90a", 1024, 32, 0), 2, "warps");
        assert_eq!(blocks("sm_90a", 32, 16, 0), 32, "blocks");
        assert_eq!(blocks("sm_90a", 256, 128, 0), 2, "registers");
        assert_eq!(blocks("sm_90a", 256, 129, 0), 1, "registers come in eights");
        assert_eq!(blocks("sm_90a", 128, 40, 54 * 1024), 4, "shared memory");
        assert_eq!(blocks("sm_80", 128, 40, 54 * 1024), 2, "shared memory of the smaller card");
        assert_eq!(blocks("sm_80", 256, 128, 96 * 1024), 1);
        assert_eq!(occupancy("sm_90", 512, 28, 0).unwrap(), Occupancy { blocks: 4, warps: 64, percent: 100 });
        assert!(occupancy("sm_31", 32, 1, 0).is_none());
        assert!(occupancy("compute_80", 32, 1, 0).is_none());
    }

    #[test]
    fn every_embedded_kernel_fits_a_multiprocessor() {
        let all = list();
        let fits = |listed: &Listed| listed.occupancy.is_none_or(|o| o.blocks > 0);
        for listed in &all {
            assert_eq!(listed.local, 0, "{listed:?}");
            // Where a block has too little shared memory for it, the smaller kernel takes its place.
            let smaller = listed.kernel.replace("_bf16", "_99k_bf16").replace("_f16", "_99k_f16");
            let mut instead = all.iter().filter(|other| (other.kernel, other.target) == (&smaller, listed.target));
            assert!(fits(listed) || instead.any(fits), "{listed:?}");
        }
    }

    #[test]
    fn blocks_of_the_backward_pass_of_attention_share_a_multiprocessor() {
        let all = list();
        // Of a head's size: blocks for few, some and many queries, and for keys. On Ampere shared memory has room for fewer.
        let least = [
            ("sm_90a", 32, [4; 4]),
            ("sm_90a", 64, [4, 4, 3, 4]),
            ("sm_90a", 128, [2; 4]),
            ("sm_80", 64, [2, 3, 3, 3]),
        ];
        for (target, head, blocks) in least {
            for (class, blocks) in ["few", "some", "many", "keys"].into_iter().zip(blocks) {
                let kernel = |dtype: &str| format!("attention_backward_{class}_{head}_{dtype}");
                for kernel in ["bf16", "f16"].map(kernel) {
                    // A build may be for other cards.
                    let Some(listed) = all.iter().find(|l| l.kernel == kernel && l.target == target) else { continue };
                    assert!(listed.occupancy.unwrap().blocks >= blocks, "{listed:?}");
                }
            }
        }
        // Two blocks of 256 threads have 128 registers each, on every card.
        for listed in
            all.iter().filter(|l| l.kernel.starts_with("attention_backward_many_128_") && !l.kernel.contains("99k"))
        {
            assert!(listed.registers <= 128 && listed.local == 0, "{listed:?}");
        }
    }
}
