//! One safe function per kernel, in a file of the kernel's name: lengths are checked, the launch shape is computed, and
//! everything that is written is lent as `&mut`.
//!
//! A new op `OP` has its kernels in `kernels/OP.cu`, those for Hopper alone in `kernels/OP_sm90.cu` as a set of their own, and
//! touches four files besides: `cuda/ops/OP.rs` declares the kernels and launches them, `cuda/ops/mod.rs` names it in the list
//! below, `lab/kernel_check/OP.rs` has its cases, its oracle and its timings, and `lab/kernel_check/mod.rs` names those. A
//! mistake planted in `tests/kernels/mutations.rs` then shows that the cases notice one.

pub mod attention;
pub mod attention_backward;
pub mod candidate_scores;
pub mod copy_rows;
pub mod embed;
pub mod gemm;
pub mod gemm_backward;
pub mod kv;
pub mod kv_copy;
pub mod logits;
pub mod pad_convert;
pub mod random_fill;
pub mod rmsnorm;
pub mod rope;
pub mod softmax_entropy;
pub mod swiglu;
mod tensor_map;
pub mod weight_layout;

use crate::cuda::kernels::Registration;

/// Every op.
pub(super) const ALL: [Registration; 17] = [
    Registration::of::<attention::Kernels>(),
    Registration::of::<attention::sm90::Kernels>(),
    Registration::of::<attention_backward::Kernels>(),
    Registration::of::<candidate_scores::Kernels>(),
    Registration::of::<copy_rows::Kernels>(),
    Registration::of::<embed::Kernels>(),
    Registration::of::<gemm::sm80::Forward>(),
    Registration::of::<gemm::sm80::Backward>(),
    Registration::of::<gemm::sm90::Kernels>(),
    Registration::of::<kv_copy::Kernels>(),
    Registration::of::<logits::Kernels>(),
    Registration::of::<pad_convert::Kernels>(),
    Registration::of::<random_fill::Kernels>(),
    Registration::of::<rmsnorm::Kernels>(),
    Registration::of::<rope::Kernels>(),
    Registration::of::<softmax_entropy::Kernels>(),
    Registration::of::<swiglu::Kernels>(),
];
