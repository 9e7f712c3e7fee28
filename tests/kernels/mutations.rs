//! A test of the tests: kernels with one planted mistake each must turn the harness red. nvcc compiles them anew, which takes
//! minutes; `planted` needs none.

mod hopper;

use crate::emulated::{self, Emulated, KERNELS, alone, folder_of, ptx};
use crate::harness::first_failure;
use crate::nvcc;
use ggro::lab::kernel_check::Case;
use ggro_emulator::Config;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

struct Mutation {
    name: &'static str,
    op: &'static str,
    /// The header or the kernel.
    file: &'static str,
    /// Replaced once.
    from: &'static str,
    to: &'static str,
}

/// The mistakes in everything but Hopper's products.
const MUTATIONS: &[Mutation] = &[
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
        file: "gemm.cuh",
        from: "if (args.bias != nullptr) value",
        to: "value *= 1.02f; if (args.bias != nullptr) value",
    },
    Mutation {
        name: "last-token-dropped",
        op: "gemm",
        file: "gemm.cuh",
        from: "x_valid = min(args.tokens - first_token, kTokens)",
        to: "x_valid = min(args.tokens - first_token - (first_token > 0), kTokens)",
    },
    Mutation {
        name: "product-without-its-wait",
        op: "gemm",
        file: "gemm.cuh",
        from: "cp_async_wait<STAGES - 2>",
        to: "cp_async_wait<STAGES - 1>",
    },
    Mutation {
        name: "product-without-its-barrier",
        op: "gemm",
        file: "gemm.cuh",
        from: "__syncthreads();  // stage `read`",
        to: "// stage `read`",
    },
    Mutation {
        name: "chunks-in-descending-order",
        op: "gemm",
        file: "gemm.cuh",
        from: "for (int s = 1; s < splits; ++s)",
        to: "for (int s = splits - 1; s > 0; --s)",
    },
    Mutation {
        name: "bias-off-by-one",
        op: "gemm",
        file: "gemm.cuh",
        from: "args.bias)[column]",
        to: "args.bias)[column - (column > 0)]",
    },
    Mutation {
        name: "norm-over-the-padding",
        op: "rmsnorm",
        file: "rmsnorm.cu",
        from: "partial) / static_cast<float>(columns)",
        to: "partial) / static_cast<float>(d)",
    },
    Mutation {
        name: "unknown-id-read",
        op: "embed",
        file: "embed.cu",
        from: "known = id < vocabulary",
        to: "known = id <= vocabulary",
    },
    Mutation {
        name: "half-an-embedding-twice",
        op: "embed",
        file: "embed.cu",
        from: "to_float(pack.at[i])",
        to: "to_float(pack.at[i % 2])",
    },
    Mutation {
        name: "tiles-read-as-rows",
        op: "embed",
        file: "embed.cu",
        from: "tiled ? tile_index",
        to: "false ? tile_index",
    },
    Mutation {
        name: "embedding-without-its-tail",
        op: "embed",
        file: "embed.cu",
        from: "at < d; at +=",
        to: "at + 4 < d; at +=",
    },
    Mutation {
        name: "pair-behind-the-rows",
        op: "copy_rows",
        file: "copy_rows.cu",
        from: "pair.x >= src_rows || pair.y >= dst_rows",
        to: "pair.x >= src_rows",
    },
    Mutation {
        name: "row-without-its-tail",
        op: "copy_rows",
        file: "copy_rows.cu",
        from: "at < words;",
        to: "at + 1 < words;",
    },
    Mutation {
        name: "row-to-its-own-place",
        op: "copy_rows",
        file: "copy_rows.cu",
        from: "(pair.y) * words",
        to: "(pair.x) * words",
    },
    Mutation {
        name: "too-many-positions",
        op: "kv_copy",
        file: "kv_copy.cu",
        from: "min(copy[2], kKvBlock)",
        to: "copy[2]",
    },
    Mutation {
        name: "keys-for-values",
        op: "kv_copy",
        file: "kv_copy.cu",
        from: "to) * planes + blockIdx.x",
        to: "to) * planes + (blockIdx.x ^ 1)",
    },
    Mutation {
        name: "block-behind-the-pool",
        op: "kv_copy",
        file: "kv_copy.cu",
        from: "from >= blocks || to >= blocks",
        to: "from >= blocks",
    },
    Mutation {
        name: "log-probability-in-f32",
        op: "logits",
        file: "logits.cu",
        from: "static_cast<float>(static_cast<double>(logit) - log_sum_exp)",
        to: "logit - static_cast<float>(log_sum_exp)",
    },
    Mutation {
        name: "log-probabilities-without-their-tail",
        op: "logits",
        file: "logits.cu",
        from: "if (id < v)",
        to: "if (id + 1 < v)",
    },
    Mutation {
        name: "logit-of-the-next-row",
        op: "logits",
        file: "logits.cu",
        from: "pair.x < rows && pair.y < v",
        to: "pair.x < rows",
    },
    Mutation {
        name: "gate-for-up",
        op: "swiglu",
        file: "swiglu.cu",
        from: "load128(row + gate_at), up = load128(row + up_at)",
        to: "load128(row + up_at), up = load128(row + gate_at)",
    },
    Mutation {
        name: "groups-read-as-rows",
        op: "swiglu",
        file: "swiglu.cu",
        from: "grouped ? 2 * at + 8 : f + at",
        to: "f + at",
    },
    Mutation {
        name: "scaled-gate",
        op: "swiglu",
        file: "gated.cuh",
        from: "return ptx::rcp_approx(",
        to: "return 1.02f * ptx::rcp_approx(",
    },
    Mutation {
        name: "activation-without-its-tail",
        op: "swiglu",
        file: "swiglu.cu",
        from: "if (at >= f)",
        to: "if (at + 8 >= f)",
    },
    Mutation {
        name: "turned-back",
        op: "rope",
        file: "heads.cuh",
        from: "a = fmaf(first, cos, -(second * sin));",
        to: "a = fmaf(first, cos, second * sin);",
    },
    Mutation {
        name: "deferred-norm-over-the-padding",
        op: "rmsnorm",
        file: "norms.cuh",
        from: "squares / static_cast<float>(columns) + eps",
        to: "squares / static_cast<float>(columns + 1) + eps",
    },
    Mutation {
        name: "deferred-norm-scaled-by-itself",
        op: "rmsnorm",
        file: "rmsnorm.cu",
        from: "before != nullptr ? before[blockIdx.x] : r",
        to: "r",
    },
    Mutation {
        name: "pairs-in-halves",
        op: "rope",
        file: "heads.cuh",
        from: "return pair / kPairGroup * 2 * kPairGroup + pair % kPairGroup;",
        to: "return pair;",
    },
    Mutation {
        name: "padding-between-pairs-left-alone",
        op: "rope",
        file: "rope.cu",
        from: "head[columns.a + i] = head[columns.b + i] = from_float<T>(0.0f);",
        to: "",
    },
    Mutation {
        name: "partners-in-the-wrong-half",
        op: "pad_convert",
        file: "pad_convert.cu",
        from: "(at < half ? 0 : kPairGroup)",
        to: "(at <= half ? 0 : kPairGroup)",
    },
    Mutation {
        name: "head-norm-over-the-padding",
        op: "rope",
        file: "rope.cu",
        from: "static_cast<float>(2 * at.half)",
        to: "static_cast<float>(2 * kPairs * at.lanes)",
    },
    Mutation {
        name: "padding-left-alone",
        op: "rope",
        file: "rope.cu",
        from: "head[2 * pair] = head[2 * pair + 1] = from_float<T>(0.0f);",
        to: "",
    },
    Mutation {
        name: "values-turned",
        op: "rope",
        file: "rope.cu",
        from: "head >= heads + args.kv_heads",
        to: "head >= heads + 2 * args.kv_heads",
    },
    Mutation {
        name: "row-kept-without-a-slot",
        op: "rope",
        file: "rope.cu",
        from: "} else if (kept) {",
        to: "} else {",
    },
    Mutation {
        name: "key-norm-for-queries",
        op: "rope",
        file: "rope.cu",
        from: "head < heads ? args.q_weight",
        to: "head + 1 < heads ? args.q_weight",
    },
    Mutation {
        name: "heads-without-their-padding",
        op: "pad_convert",
        file: "pad_convert.cu",
        from: "return x / of * to + x % of",
        to: "return x",
    },
    Mutation {
        name: "rows-without-an-origin",
        op: "pad_convert",
        file: "pad_convert.cu",
        from: "const int to_row = places.first_row + (",
        to: "const int to_row = (",
    },
    Mutation {
        name: "tiles-without-the-cut-one",
        op: "pad_convert",
        file: "common.cuh",
        from: "((width + 63) / 64)",
        to: "(width / 64)",
    },
    Mutation {
        name: "tiles-with-their-chunks-in-order",
        op: "pad_convert",
        file: "common.cuh",
        from: "line * LINE + ((chunk ^ turn) << 4)",
        to: "line * LINE + (chunk << 4)",
    },
    Mutation {
        name: "infinite-taken-for-rounded",
        op: "pad_convert",
        file: "pad_convert.cu",
        from: "if (finite(back))",
        to: "if (true)",
    },
    Mutation {
        name: "pieces-all-at-the-front",
        op: "pad_convert",
        file: "pad_convert.cu",
        from: "places.first + index",
        to: "index",
    },
    Mutation {
        name: "norm-gradient-without-its-projection",
        op: "rmsnorm",
        file: "rmsnorm.cu",
        from: "scale * fmaf(-x.x, back, g.x)",
        to: "scale * g.x",
    },
    Mutation {
        name: "norm-gradient-in-place-of-the-residual",
        op: "rmsnorm",
        file: "rmsnorm.cu",
        from: "if (dy != nullptr) dx = add(",
        to: "if (false) dx = add(",
    },
    Mutation {
        name: "one-scratch-for-two-sums",
        op: "rmsnorm",
        file: "rmsnorm.cu",
        from: "block_sum(along, partial[1])",
        to: "block_sum(along, partial[0])",
    },
    Mutation {
        name: "gate-gradient-without-its-second-term",
        op: "swiglu",
        file: "gated.cuh",
        from: "fmaf(g, 1.0f - s, 1.0f)",
        to: "1.0f",
    },
    Mutation {
        name: "scaled-up-gradient",
        op: "swiglu",
        file: "gated.cuh",
        from: "d_act * (g * s)",
        to: "d_act * (1.02f * g * s)",
    },
    Mutation {
        name: "gradients-exchanged",
        op: "swiglu",
        file: "swiglu.cu",
        from: "2 * row + at, d_gate)",
        to: "2 * row + at, d_up)",
    },
    Mutation {
        name: "turned-on-instead-of-back",
        op: "rope",
        file: "heads.cuh",
        from: "a = fmaf(first, cos, second * sin);",
        to: "a = fmaf(first, cos, -(second * sin));",
    },
    Mutation {
        name: "head-gradient-without-its-projection",
        op: "rope",
        file: "rope.cu",
        from: "scale * fmaf(-x.a[i], back, g.a[i])",
        to: "scale * g.a[i]",
    },
    Mutation { name: "key-gradients-for-values", op: "rope", file: "rope.cu", from: "(value ? dv : dk)", to: "dk" },
    Mutation {
        name: "weights-not-transposed",
        op: "gemm_backward",
        file: "gemm.cuh",
        from: "ldmatrix_x4_trans(a[i]",
        to: "ldmatrix_x4(a[i]",
    },
    Mutation {
        name: "rows-behind-the-last",
        op: "gemm_backward",
        file: "gemm.cuh",
        from: "at < valid && (!BY_COLUMNS",
        to: "(at < valid || BY_COLUMNS) && (!BY_COLUMNS",
    },
    Mutation {
        name: "columns-behind-the-last",
        op: "gemm_backward",
        file: "gemm.cuh",
        from: "(!BY_COLUMNS || chunk * 8 < columns)",
        to: "true",
    },
    Mutation {
        name: "one-panel-for-two",
        op: "gemm_backward",
        file: "gemm.cuh",
        from: "stage + at * kLine, corner + at,",
        to: "stage + at * kLine, corner,",
    },
    Mutation {
        name: "candidates-behind-the-list",
        op: "candidate_scores",
        file: "candidate_scores.cu",
        from: "count > listed - first",
        to: "false",
    },
    Mutation {
        name: "candidate-without-a-row",
        op: "candidate_scores",
        file: "candidate_scores.cu",
        from: "if (id < vocabulary)",
        to: "if (id <= vocabulary)",
    },
    Mutation {
        name: "norm-without-its-scale",
        op: "candidate_scores",
        file: "candidate_scores.cu",
        from: "sqrtf(squares) * scale",
        to: "sqrtf(squares)",
    },
    Mutation {
        name: "second-round-of-candidates-dropped",
        op: "candidate_scores",
        file: "candidate_scores.cu",
        from: "c += kScoreWarps",
        to: "c += 2 * kScoreWarps",
    },
    Mutation {
        name: "causal-mask-off-by-one",
        op: "attention",
        file: "attention_forward.cuh",
        from: "key <= highest[i / 2]",
        to: "key <= highest[i / 2] + 1",
    },
    Mutation {
        name: "window-off-by-one",
        op: "attention",
        file: "attention_forward.cuh",
        from: "key >= lowest[i / 2]",
        to: "key + 1 >= lowest[i / 2]",
    },
    Mutation {
        name: "scores-scaled",
        op: "attention",
        file: "attention.cu",
        from: "log2_scale = args.scale *",
        to: "log2_scale = 1.02f * args.scale *",
    },
    Mutation {
        name: "sums-not-rescaled",
        op: "attention",
        file: "attention.cu",
        from: "__fmul_rn(o[slice + j][i], shrink[i / 2])",
        to: "o[slice + j][i]",
    },
    Mutation {
        name: "unwritten-positions-read",
        op: "attention",
        file: "attention.cuh",
        from: "const bool real = first + line < valid;",
        to: "const bool real = true;",
    },
    Mutation {
        name: "another-sequence-not-kept-out",
        op: "attention",
        file: "attention.cu",
        from: "sees[i / 2] ? next[0][j][i] : o[slice + j][i]",
        to: "next[0][j][i]",
    },
    Mutation {
        name: "pages-without-their-wait",
        op: "attention",
        file: "attention.cu",
        from: "cp_async_wait<STAGES - 2>",
        to: "cp_async_wait<STAGES - 1>",
    },
    Mutation {
        name: "maxima-without-their-barrier",
        op: "attention",
        file: "attention.cu",
        from: "__syncthreads();  // the maxima are complete",
        to: "",
    },
    Mutation {
        name: "last-part-dropped",
        op: "attention",
        file: "attention_forward.cuh",
        from: "k < part.y; ++k",
        to: "k + 1 < part.y; ++k",
    },
    Mutation {
        name: "token-ticket-not-reset",
        op: "attention",
        file: "attention_forward.cuh",
        from: "if (last) *ticket = 0;",
        to: "",
    },
    Mutation {
        name: "delta-left-out",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "__fsub_rn(dp, delta)",
        to: "dp",
    },
    Mutation {
        name: "keys-gradient-not-scaled",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "__fmul_rn(k[1], args.scale)",
        to: "k[1]",
    },
    Mutation {
        name: "window-of-queries-off-by-one",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "max(lowest - first, 0)",
        to: "max(lowest - first - 1, 0)",
    },
    Mutation {
        name: "window-of-keys-off-by-one",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "at + 1 - args.window",
        to: "at - args.window",
    },
    Mutation {
        name: "keys-see-the-query-before",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "key[r] <= row.highest",
        to: "key[r] <= row.highest + 1",
    },
    Mutation {
        name: "another-branch-not-kept-out",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "sees[i / 2] ? next[0][j][i] : o[slice][0][j][i]",
        to: "next[0][j][i]",
    },
    Mutation {
        name: "another-branch-added-in-place",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "in_place && (sees[r] || token >= count)",
        to: "in_place",
    },
    Mutation {
        name: "gradients-without-their-barrier",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "__syncthreads();  // the table of score gradients is complete",
        to: "",
    },
    Mutation {
        name: "rows-without-their-barrier",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "__syncthreads();  // this turn's stage",
        to: "// this turn's stage",
    },
    Mutation {
        name: "gradient-pages-without-their-wait",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "cp_async_wait<STAGES - 2>",
        to: "cp_async_wait<STAGES - 1>",
    },
    Mutation {
        name: "gradient-parts-in-descending-order",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "static_cast<size_t>(part.x + k)",
        to: "static_cast<size_t>(part.x + part.y - 1 - k)",
    },
    Mutation {
        name: "every-tile-has-the-first-tokens",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "2 * (item.x + before) + i",
        to: "2 * item.x + i",
    },
    Mutation {
        name: "gradient-ticket-not-reset",
        op: "attention_backward",
        file: "attention_backward.cu",
        from: "if (last) *ticket = 0;",
        to: "",
    },
];

/// Ops with many instances of one template: lines without which a broken one compiles sooner, and what the names of cases
/// that need none of them contain.
const NARROWED: [(&str, &[&str], &[&str]); 4] = [
    (
        "attention",
        &[
            "ATTENTION_CLASSES(64, SUFFIX, T, 1, 2)",
            "ATTENTION_CLASSES(128, SUFFIX, T, 2, 3)",
            "ATTENTION_HEADS(f16, __half)",
        ],
        &["bf16", "heads of 32"],
    ),
    (
        "attention_backward",
        &[
            "ATTENTION_BACKWARD(64, SUFFIX, T, 1, 32, 4, 3)",
            "ATTENTION_BACKWARD(128, SUFFIX, T, 2, 16, 2, 2)",
            "ATTENTION_BACKWARD_HEADS(f16, __half)",
        ],
        &["bf16", "heads of 32"],
    ),
    (
        "gemm_sm90",
        &[
            "GEMM_ALL(gemm_sm90, f16, __half, false)",
            "GEMM_ALL(gemm_backward_sm90, bf16, __nv_bfloat16, true)",
            "GEMM_ALL(gemm_backward_sm90, f16, __half, true)",
        ],
        &["bf16"],
    ),
    (
        "gemm_backward_sm90",
        &[
            "GEMM_ALL(gemm_sm90, bf16, __nv_bfloat16, false)",
            "GEMM_ALL(gemm_sm90, f16, __half, false)",
            "GEMM_ALL(gemm_backward_sm90, f16, __half, true)",
        ],
        &["bf16"],
    ),
];

/// The file of an op's kernels.
fn source_of(op: &str) -> &str {
    if op == "gemm_backward_sm90" { "gemm_sm90" } else { op }
}

/// A folder with the op's file and the headers, one of them changed. It is named after what is in it.
fn mutated(mutation: &Mutation) -> PathBuf {
    let own = format!("{}.cu", source_of(mutation.op));
    let mut changed = false;
    let mut files = Vec::new();
    for path in ["cu", "cuh"].into_iter().flat_map(|kind| nvcc::listed(Path::new(KERNELS), kind).unwrap()) {
        let file = path.file_name().unwrap().to_str().unwrap().to_string();
        if file != own && !file.ends_with(".cuh") {
            continue;
        }
        let mut text = std::fs::read_to_string(&path).unwrap();
        if file == mutation.file {
            assert!(text.contains(mutation.from), "{}: {} has changed", mutation.name, file);
            text = text.replacen(mutation.from, mutation.to, 1);
            changed = true;
        }
        for (_, dropped, _) in NARROWED.iter().filter(|(op, ..)| file == own && *op == mutation.op) {
            for line in *dropped {
                assert!(text.contains(line), "{line} is not in {file}");
                text = text.replacen(line, "", 1);
            }
        }
        files.push((file, text));
    }
    assert!(changed, "{}: there is no {}", mutation.name, mutation.file);
    let mut hasher = DefaultHasher::new();
    (&files, nvcc::FLAGS).hash(&mut hasher);
    let name = format!("{}-{:016x}", mutation.name, hasher.finish());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for (file, text) in files {
        std::fs::write(folder.join(file), text).unwrap();
    }
    folder
}

/// What nvcc makes of the op's file in a folder, for Hopper. A compiled folder is not compiled again.
fn compiled(nvcc: &Path, op: &str, folder: &Path) -> String {
    let to = folder.join("made.ptx");
    if !to.is_file() {
        let part = folder.join("part.ptx");
        let mut command = Command::new(nvcc);
        // Mistakes may leave a variable unused.
        command.args(nvcc::FLAGS.into_iter().filter(|flag| !flag.contains("warnings")));
        command.args(["-w", "-ptx", "-arch=compute_90a", "-o"]).arg(&part).arg(folder.join(format!("{op}.cu")));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(part, &to).unwrap();
    }
    std::fs::read_to_string(to).unwrap()
}

/// The nvcc that the script installs, or has installed.
fn installed() -> PathBuf {
    let output = Command::new("scripts/install-nvcc.sh").output().unwrap();
    assert!(output.status.success(), "mistakes are compiled: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// These mistakes, compiled on all cores: texts in their order.
fn all_compiled(mutations: &[Mutation]) -> Vec<String> {
    let nvcc = nvcc::find().unwrap_or_else(installed);
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let work = || {
        let mut texts = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(mutation) = mutations.get(index) else { return texts };
            texts.push((index, compiled(&nvcc, source_of(mutation.op), &mutated(mutation))));
        }
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut texts: Vec<(usize, String)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    texts.sort_unstable_by_key(|(index, _)| *index);
    println!("{} mistakes compiled in {:.0} s", texts.len(), began.elapsed().as_secs_f64());
    texts.into_iter().map(|(_, text)| text).collect()
}

#[test]
#[ignore = "minutes of nvcc"]
fn every_planted_mistake_is_found() {
    alone("mutations::every_planted_mistake_is_found", || found(MUTATIONS));
}

/// The same in the products of Hopper, whose many kernels take nvcc longer than all others: `.ci/full`.
#[test]
#[ignore = "minutes of nvcc: the whole matrix"]
fn every_planted_mistake_of_hopper_is_found() {
    alone("mutations::every_planted_mistake_of_hopper_is_found", || found(hopper::MUTATIONS));
}

fn found(mutations: &[Mutation]) {
    let mut unnoticed = Vec::new();
    for (mutation, text) in mutations.iter().zip(all_compiled(mutations)) {
        let mut texts = ptx().to_vec();
        let mine = |(name, _): &&mut (String, String)| emulated::source(name) == source_of(mutation.op);
        texts.iter_mut().filter(mine).for_each(|(_, of_source)| of_source.clone_from(&text));
        let folder = folder_of("mutation", &texts);
        let emulated = Emulated::new(Config { checked: true, ..Config::default() });
        emulated.replace(&folder);
        let narrowed = NARROWED.iter().find(|(op, ..)| *op == mutation.op).map_or(&[][..], |(_, _, names)| names);
        let kept = |case: &Case| narrowed.iter().all(|name| case.name.contains(name));
        let found = first_failure(&emulated, mutation.op, kept);
        let kernels = emulated.machine.report().kernels;
        assert!(kernels.values().any(|counters| counters.instructions > 0), "{} never ran", mutation.name);
        match found {
            Some(found) => println!("{}: {} {}: {}", mutation.name, found.op, found.case, found.failures[0]),
            None => unnoticed.push(mutation.name),
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
    println!("{} of {} planted mistakes are found", mutations.len() - unnoticed.len(), mutations.len());
    assert!(unnoticed.is_empty(), "unnoticed: {unnoticed:?}");
}
