//! What a block of a kernel of attention needs, and the forward kernels by mma.

use crate::cuda::kernels::{Smaller, Spec};
use crate::dtype::HalfType;
use crate::kv::BLOCK;

/// One kernel, forward or backward, and what a block of it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Kernel names for bf16 and f16.
    pub kernels: [&'static str; 2],
    /// Elements of a head.
    pub head: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    /// The same sums in less shared memory, for cards that have less: names and bytes.
    pub smaller: Option<([&'static str; 2], u32)>,
}

impl Class {
    /// The kernel for a storage type, before any device is there.
    pub(in crate::cuda::ops) fn spec(&self, image: &'static str, storage: HalfType) -> Spec {
        let named = |(names, shared): ([&'static str; 2], u32)| Smaller { name: names[storage as usize], shared };
        let name = self.kernels[storage as usize];
        Spec::new(image, name, self.threads, self.shared).or(self.smaller.map(named))
    }
}

/// Every kernel, with the numbers of `kernels/attention.cu`: for heads of 32, 64 and 128 elements, few, some and many rows.
pub const KERNELS: [Class; 9] = [
    class(["attention_few_32_bf16", "attention_few_32_f16"], 32, 1, 4, 3),
    class(["attention_some_32_bf16", "attention_some_32_f16"], 32, 2, 2, 2),
    class(["attention_many_32_bf16", "attention_many_32_f16"], 32, 4, 1, 2),
    class(["attention_few_64_bf16", "attention_few_64_f16"], 64, 1, 4, 3),
    class(["attention_some_64_bf16", "attention_some_64_f16"], 64, 2, 2, 2),
    class(["attention_many_64_bf16", "attention_many_64_f16"], 64, 4, 1, 2),
    Class {
        smaller: Some((["attention_few_128_99k_bf16", "attention_few_128_99k_f16"], shared(128, 1, 4, 2))),
        ..class(["attention_few_128_bf16", "attention_few_128_f16"], 128, 1, 4, 3)
    },
    class(["attention_some_128_bf16", "attention_some_128_f16"], 128, 2, 2, 2),
    Class {
        smaller: Some((["attention_many_128_99k_bf16", "attention_many_128_99k_f16"], shared(128, 4, 2, 2))),
        ..class(["attention_many_128_bf16", "attention_many_128_f16"], 128, 4, 2, 3)
    },
];

const fn class(kernels: [&'static str; 2], head: usize, by_rows: usize, by_keys: usize, stages: usize) -> Class {
    let shared = shared(head, by_rows, by_keys, stages);
    let threads = (by_rows * by_keys * 32) as u32;
    Class { kernels, head, threads, shared, smaller: None }
}

const fn shared(head: usize, by_rows: usize, by_keys: usize, stages: usize) -> u32 {
    let (rows, line) = (by_rows * 16, head * 2);
    let exchange = if by_keys > 1 { rows * (2 * BLOCK + 4 * by_keys + 64) } else { 0 };
    ((rows + stages * 2 * BLOCK) * line + exchange) as u32
}
