//! Every kernel, resolved once.

use super::images::Image;
use super::ops::attention::plan as attention;
use super::ops::attention_backward::plan as attention_backward;
use super::ops::gemm::{self, TILES};
use crate::dtype::HalfType;
use crate::{Error, Result};
use cudarc::driver::{result, sys};
use std::ffi::CString;

/// A kernel as the host knows it before any device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The file it is in.
    pub image: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Threads per block, at most.
    pub threads: u32,
    /// Dynamic shared memory in bytes, at most.
    pub shared: u32,
}

/// A kernel that can be launched.
#[derive(Debug)]
pub struct Kernel {
    pub(super) function: sys::CUfunction,
    pub(super) name: &'static str,
}

// SAFETY: a handle that any thread with the context current may launch; launching does not change it.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// All kernels. Pairs are indexed by [`HalfType`]: bf16, then f16.
#[derive(Debug)]
pub(super) struct Kernels {
    pub attention: [[Kernel; attention::KERNELS.len()]; 2],
    pub attention_backward: [[Kernel; attention_backward::KERNELS.len()]; 2],
    pub copy_rows: Kernel,
    pub draw: [Kernel; 2],
    pub embed: [Kernel; 2],
    pub kv_copy: Kernel,
    pub log_probabilities: Kernel,
    pub chosen_logits: Kernel,
    pub rope: [Kernel; 2],
    pub rope_backward: [Kernel; 2],
    pub swiglu: [Kernel; 2],
    pub swiglu_backward: [Kernel; 2],
    pub nudge: [Kernel; 2],
    pub rmsnorm: [Kernel; 2],
    pub rmsnorm_backward: [Kernel; 2],
    pub softmax_entropy_splits: Kernel,
    pub softmax_entropy: Kernel,
    pub top_k: Kernel,
    pub gemm: [[Kernel; TILES.len()]; 2],
    pub gemm_backward: [[Kernel; TILES.len()]; 2],
    pub peak_mma: Kernel,
    pub place: [Kernel; 2],
    pub probe: Kernel,
    pub probe_bulk: Kernel,
}

/// Threads of a `copy_rows` block, at most.
pub(super) const COPY_THREADS: u32 = 256;
/// Threads of the `draw` blocks.
pub(super) const DRAW_THREADS: u32 = 256;
/// Threads of an `embed` block, at most.
pub(super) const EMBED_THREADS: u32 = 512;
/// Threads of the `kv_copy` blocks.
pub(super) const KV_COPY_THREADS: u32 = 256;
/// Threads of the blocks of `logits.cu`.
pub(super) const LOGITS_THREADS: u32 = 256;
/// Threads of the `nudge` blocks.
pub(super) const NUDGE_THREADS: u32 = 1024;
/// Threads of the `rope` blocks.
pub(super) const ROPE_THREADS: u32 = 256;
/// Threads of a `swiglu` block, at most.
pub(super) const SWIGLU_THREADS: u32 = 256;
/// Threads of an `rmsnorm` block, at most.
pub(super) const NORM_THREADS: u32 = 512;
/// Shared memory that a block gets without asking, less what `rmsnorm` declares.
pub(super) const NORM_SHARED: u32 = 48 * 1024 - 64;
/// Threads of the softmax blocks.
pub(super) const SOFTMAX_THREADS: u32 = 256;
/// Threads of the peak blocks.
pub(super) const PEAK_THREADS: u32 = 256;
/// Threads of the `place` blocks.
pub(super) const PLACE_THREADS: u32 = 256;

const COPY_ROWS: &str = "copy_rows";
const DRAW: [&str; 2] = ["draw_bf16", "draw_f16"];
const EMBED: [&str; 2] = ["embed_bf16", "embed_f16"];
const KV_COPY: &str = "kv_copy";
const LOGITS: [&str; 2] = ["log_probabilities_f32", "chosen_logits_f32"];
const NUDGE: [&str; 2] = ["nudge_bf16", "nudge_f16"];
const ROPE: [&str; 2] = ["rope_bf16", "rope_f16"];
const ROPE_BACKWARD: [&str; 2] = ["rope_backward_bf16", "rope_backward_f16"];
const SWIGLU: [&str; 2] = ["swiglu_bf16", "swiglu_f16"];
const SWIGLU_BACKWARD: [&str; 2] = ["swiglu_backward_bf16", "swiglu_backward_f16"];
const RMSNORM: [&str; 2] = ["rmsnorm_bf16", "rmsnorm_f16"];
const RMSNORM_BACKWARD: [&str; 2] = ["rmsnorm_backward_bf16", "rmsnorm_backward_f16"];
const SOFTMAX: [&str; 3] = ["softmax_entropy_splits_f32", "softmax_entropy_f32", "top_k_f32"];
const PEAK: &str = "peak_mma_bf16";
const PLACE: [&str; 2] = ["place_bf16", "place_f16"];
const PROBE: [&str; 2] = ["probe", "probe_bulk"];

/// Every kernel of every image.
pub fn specs() -> Vec<Spec> {
    let mut specs = Vec::new();
    for storage in HalfType::ALL {
        specs.extend(attention::KERNELS.iter().map(|class| Spec {
            image: "attention",
            name: class.kernels[storage as usize],
            threads: class.threads,
            shared: class.shared,
        }));
        specs.extend(attention_backward::KERNELS.iter().map(|class| Spec {
            image: "attention_backward",
            name: class.kernels[storage as usize],
            threads: class.threads,
            shared: class.shared,
        }));
    }
    specs.push(Spec { image: "copy_rows", name: COPY_ROWS, threads: COPY_THREADS, shared: 0 });
    specs.extend(DRAW.map(|name| Spec { image: "draw", name, threads: DRAW_THREADS, shared: 0 }));
    specs.extend(EMBED.map(|name| Spec { image: "embed", name, threads: EMBED_THREADS, shared: 0 }));
    specs.push(Spec { image: "kv_copy", name: KV_COPY, threads: KV_COPY_THREADS, shared: 0 });
    specs.extend(LOGITS.map(|name| Spec { image: "logits", name, threads: LOGITS_THREADS, shared: 0 }));
    specs.extend(NUDGE.map(|name| Spec { image: "nudge", name, threads: NUDGE_THREADS, shared: 0 }));
    specs.extend(ROPE.map(|name| Spec { image: "rope", name, threads: ROPE_THREADS, shared: 0 }));
    specs.extend(ROPE_BACKWARD.map(|name| Spec { image: "rope", name, threads: ROPE_THREADS, shared: 0 }));
    specs.extend(SWIGLU.map(|name| Spec { image: "swiglu", name, threads: SWIGLU_THREADS, shared: 0 }));
    specs.extend(SWIGLU_BACKWARD.map(|name| Spec { image: "swiglu", name, threads: SWIGLU_THREADS, shared: 0 }));
    specs.extend(RMSNORM.map(|name| Spec { image: "rmsnorm", name, threads: NORM_THREADS, shared: NORM_SHARED }));
    specs.extend(RMSNORM_BACKWARD.map(|name| Spec {
        image: "rmsnorm",
        name,
        threads: NORM_THREADS,
        shared: NORM_SHARED,
    }));
    specs.extend(SOFTMAX.map(|name| Spec { image: "softmax_entropy", name, threads: SOFTMAX_THREADS, shared: 0 }));
    specs.push(Spec { image: "peak", name: PEAK, threads: PEAK_THREADS, shared: 0 });
    specs.extend(PLACE.map(|name| Spec { image: "place", name, threads: PLACE_THREADS, shared: 0 }));
    specs.extend(PROBE.map(|name| Spec { image: "probe", name, threads: 32, shared: 0 }));
    for storage in HalfType::ALL {
        for tile in &TILES {
            let (threads, shared) = (tile.threads, tile.shared());
            let [forward, backward] = [tile.kernels, tile.backward].map(|names| names[storage as usize]);
            specs.push(Spec { image: "gemm", name: forward, threads, shared });
            specs.push(Spec { image: "gemm_backward", name: backward, threads, shared });
        }
    }
    specs
}

impl Kernels {
    /// Loads every image into the current context and finds every kernel in it. Modules stay loaded as long as the
    /// process lives.
    pub fn load(images: &[Image]) -> Result<Self> {
        let mut modules = Vec::new();
        for image in images {
            // SAFETY: the bytes are a whole fat binary made by the build, or what a stand-in driver takes in its place.
            let module = unsafe { result::module::load_data(image.bytes.as_ptr().cast()) }
                .map_err(|e| Error::Backend(format!("kernel image {}: cannot be loaded: {e}", image.name)))?;
            modules.push((image.name, module));
        }
        let specs = specs();
        let kernel = |name: &'static str| -> Result<Kernel> {
            let spec = specs.iter().find(|spec| spec.name == name);
            let spec = spec.ok_or_else(|| Error::Backend(format!("kernel {name} is not in the list")))?;
            let module = modules.iter().find(|(image, _)| *image == spec.image);
            let (_, module) = module.ok_or_else(|| Error::Backend(format!("no kernel image {}", spec.image)))?;
            let c_name = CString::new(name).map_err(|e| Error::Backend(e.to_string()))?;
            // SAFETY: the module was loaded above and is never unloaded.
            let function = unsafe { result::module::get_function(*module, c_name) }
                .map_err(|e| Error::Backend(format!("kernel {name} is missing from its image: {e}")))?;
            // Without asking a block gets 48 KiB, of which its static shared memory is a part.
            if spec.shared > 0 {
                let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function is valid, and the attribute is an integer in the range the driver checks.
                unsafe { result::function::set_function_attribute(function, attribute, spec.shared as i32) }.map_err(
                    |e| Error::Backend(format!("kernel {name}: {} bytes of shared memory: {e}", spec.shared)),
                )?;
            }
            Ok(Kernel { function, name })
        };
        let gemm = |names: fn(&gemm::Tile) -> [&'static str; 2], storage: HalfType| -> Result<[Kernel; TILES.len()]> {
            let all = TILES.iter().map(|tile| kernel(names(tile)[storage as usize]));
            let all = all.collect::<Result<Vec<_>>>()?;
            all.try_into().map_err(|_| Error::Backend("the list of gemm tiles changed".to_string()))
        };
        let attention = |storage: HalfType| -> Result<[Kernel; attention::KERNELS.len()]> {
            let all = attention::KERNELS.iter().map(|class| kernel(class.kernels[storage as usize]));
            let all = all.collect::<Result<Vec<_>>>()?;
            all.try_into().map_err(|_| Error::Backend("the list of attention kernels changed".to_string()))
        };
        let attention_backward = |storage: HalfType| -> Result<[Kernel; attention_backward::KERNELS.len()]> {
            let all = attention_backward::KERNELS.iter().map(|class| kernel(class.kernels[storage as usize]));
            let all = all.collect::<Result<Vec<_>>>()?;
            all.try_into().map_err(|_| Error::Backend("the list of attention_backward kernels changed".to_string()))
        };
        let pair = |names: [&'static str; 2]| -> Result<[Kernel; 2]> { Ok([kernel(names[0])?, kernel(names[1])?]) };
        Ok(Kernels {
            attention: [attention(HalfType::Bf16)?, attention(HalfType::F16)?],
            attention_backward: [attention_backward(HalfType::Bf16)?, attention_backward(HalfType::F16)?],
            copy_rows: kernel(COPY_ROWS)?,
            draw: pair(DRAW)?,
            embed: pair(EMBED)?,
            kv_copy: kernel(KV_COPY)?,
            log_probabilities: kernel(LOGITS[0])?,
            chosen_logits: kernel(LOGITS[1])?,
            rope: pair(ROPE)?,
            rope_backward: pair(ROPE_BACKWARD)?,
            swiglu: pair(SWIGLU)?,
            swiglu_backward: pair(SWIGLU_BACKWARD)?,
            rmsnorm: pair(RMSNORM)?,
            softmax_entropy_splits: kernel(SOFTMAX[0])?,
            softmax_entropy: kernel(SOFTMAX[1])?,
            top_k: kernel(SOFTMAX[2])?,
            rmsnorm_backward: pair(RMSNORM_BACKWARD)?,
            gemm: [gemm(|tile| tile.kernels, HalfType::Bf16)?, gemm(|tile| tile.kernels, HalfType::F16)?],
            gemm_backward: [gemm(|tile| tile.backward, HalfType::Bf16)?, gemm(|tile| tile.backward, HalfType::F16)?],
            nudge: pair(NUDGE)?,
            peak_mma: kernel(PEAK)?,
            place: [kernel(PLACE[0])?, kernel(PLACE[1])?],
            probe: kernel(PROBE[0])?,
            probe_bulk: kernel(PROBE[1])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::images;

    #[test]
    fn the_list_and_the_images_name_the_same_kernels() {
        let specs = specs();
        for image in images::embedded() {
            for usage in image.usage {
                let found = specs.iter().any(|spec| (spec.image, spec.name) == (image.name, usage.kernel));
                assert!(found, "{} of {}.cu is not in the list", usage.kernel, image.name);
            }
        }
        for spec in specs.iter().filter(|_| !images::embedded().is_empty()) {
            let mut usages = images::embedded().iter().flat_map(|image| image.usage);
            assert!(usages.any(|usage| usage.kernel == spec.name), "{} is in no image", spec.name);
        }
    }
}
