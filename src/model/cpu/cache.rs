//! What the processor says of its caches.

use std::sync::OnceLock;

/// Bytes of a core's second-level cache; `None` if the processor does not say.
pub(super) fn second_level_cache() -> Option<usize> {
    static BYTES: OnceLock<Option<usize>> = OnceLock::new();
    *BYTES.get_or_init(read)
}

/// From `cpuid`: leaf 4 on Intel's processors, leaf 0x8000001d on AMD's, in the same format.
#[cfg(target_arch = "x86_64")]
fn read() -> Option<usize> {
    use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
    let data_of = |leaf: u32, cache: u32| {
        let CpuidResult { eax, ebx, ecx, .. } = __cpuid_count(leaf, cache);
        let (kind, level) = (eax & 0x1f, eax >> 5 & 7);
        let part = |shift: u32, bits: u32| (ebx >> shift & ((1 << bits) - 1)) as usize + 1;
        let (line, partitions, ways, sets) = (part(0, 12), part(12, 10), part(22, 10), ecx as usize + 1);
        (kind, level, line * partitions * ways * sets)
    };
    for leaf in [4, 0x8000_001d] {
        if __cpuid(leaf & 0x8000_0000).eax < leaf {
            continue;
        }
        // Kind 0 ends the list, 2 is a cache of instructions.
        let caches = (0..16).map(|cache| data_of(leaf, cache)).take_while(|&(kind, ..)| kind != 0);
        if let Some((.., bytes)) = caches.filter(|&(kind, level, _)| kind != 2 && level == 2).last() {
            return Some(bytes);
        }
    }
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn read() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::second_level_cache;

    #[test]
    fn a_second_level_cache_has_a_likely_size() {
        if let Some(bytes) = second_level_cache() {
            assert!((64 << 10..=64 << 20).contains(&bytes), "{bytes}");
        }
    }
}
