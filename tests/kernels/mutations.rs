//! A test of the tests: kernels with one planted mistake each must turn the harness red.

use crate::emulated::{Emulated, KERNELS, paths};
use ggro::conformance;
use ggro_emulator::Config;
use std::path::Path;

struct Mutation {
    name: &'static str,
    op: &'static str,
    /// The header or the kernel.
    file: &'static str,
    /// Replaced once.
    from: &'static str,
    to: &'static str,
}

const MUTATIONS: [Mutation; 15] = [
    Mutation {
        name: "scaled-norm",
        op: "rmsnorm",
        file: "rmsnorm.cu",
        from: "const float scale = 1.0f /",
        to: "const float scale = 1.02f /",
    },
    Mutation {
        name: "norm-without-its-barrier",
        op: "rmsnorm",
        file: "common.cuh",
        from: "__syncthreads();  // scratch is complete",
        to: "",
    },
    Mutation {
        name: "norm-without-its-tail",
        op: "rmsnorm",
        file: "rmsnorm.cu",
        from: "(d + 3) / 4",
        to: "d / 4 + (d < 4)",
    },
    Mutation {
        name: "delta-not-stored",
        op: "rmsnorm",
        file: "rmsnorm.cu",
        from: "if (delta_kind != kNoDelta) store_group",
        to: "if (false) store_group",
    },
    Mutation {
        name: "highest-id-on-a-tie",
        op: "softmax_entropy",
        file: "softmax_entropy.cu",
        from: "b.argmax < a.argmax",
        to: "b.argmax > a.argmax",
    },
    Mutation {
        name: "floor-ignored",
        op: "softmax_entropy",
        file: "softmax_entropy.cu",
        from: "- below * floor * log(floor)",
        to: "",
    },
    Mutation {
        name: "mask-off-by-one",
        op: "softmax_entropy",
        file: "softmax_entropy.cu",
        from: "id + j < v ? row",
        to: "id + j + 1 < v ? row",
    },
    Mutation {
        name: "threshold-exclusive",
        op: "softmax_entropy",
        file: "softmax_entropy.cu",
        from: "uncertainty >= wish.threshold",
        to: "uncertainty > wish.threshold",
    },
    Mutation {
        name: "ticket-not-reset",
        op: "softmax_entropy",
        file: "common.cuh",
        from: "if (last) *ticket = 0;",
        to: "",
    },
    Mutation {
        name: "scaled-product",
        op: "gemm",
        file: "gemm.cu",
        from: "if (args.bias != nullptr) value",
        to: "value *= 1.02f; if (args.bias != nullptr) value",
    },
    Mutation {
        name: "last-token-dropped",
        op: "gemm",
        file: "gemm.cu",
        from: "x_valid = min(args.tokens - first_token, kTokens)",
        to: "x_valid = min(args.tokens - first_token - (first_token > 0), kTokens)",
    },
    Mutation {
        name: "product-without-its-wait",
        op: "gemm",
        file: "gemm.cu",
        from: "cp_async_wait<STAGES - 2>",
        to: "cp_async_wait<STAGES - 1>",
    },
    Mutation {
        name: "product-without-its-barrier",
        op: "gemm",
        file: "gemm.cu",
        from: "__syncthreads();  // stage `read`",
        to: "// stage `read`",
    },
    Mutation {
        name: "chunks-in-descending-order",
        op: "gemm",
        file: "gemm.cu",
        from: "for (int s = 1; s < splits; ++s)",
        to: "for (int s = splits - 1; s > 0; --s)",
    },
    Mutation {
        name: "bias-off-by-one",
        op: "gemm",
        file: "gemm.cu",
        from: "args.bias)[column]",
        to: "args.bias)[column - (column > 0)]",
    },
];

/// A directory with the op's file and the headers, one of them changed.
fn mutated(mutation: &Mutation) -> std::path::PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations").join(mutation.name);
    std::fs::create_dir_all(&directory).unwrap();
    for file in ["common.cuh", "ptx.cuh", &format!("{}.cu", mutation.op)] {
        let mut text = std::fs::read_to_string(Path::new(KERNELS).join(file)).unwrap();
        if file == mutation.file {
            assert!(text.contains(mutation.from), "{}: {} has changed", mutation.name, file);
            text = text.replacen(mutation.from, mutation.to, 1);
        }
        std::fs::write(directory.join(file), text).unwrap();
    }
    directory
}

#[test]
fn every_planted_mistake_is_found() {
    for mutation in &MUTATIONS {
        let broken = paths(mutated(mutation));
        let emulated = Emulated::new(Config::default());
        // The kernels are resolved; from here on the broken ones run in their place.
        emulated.machine.configure(&format!("kernels={}", broken.checked.display()));
        emulated.machine.reset();
        let mut cases = conformance::cases();
        cases.retain(|case| case.op == mutation.op);
        let found = cases.iter().map(|case| case.run(&emulated.device)).find(|finding| !finding.passed());
        let kernels = emulated.machine.report().kernels;
        assert!(kernels.values().any(|counters| counters.checked_launches > 0), "{} never ran", mutation.name);
        let found = found.unwrap_or_else(|| panic!("{} went unnoticed", mutation.name));
        println!("{}: {} {}: {}", mutation.name, found.op, found.case, found.failures[0]);
    }
}
