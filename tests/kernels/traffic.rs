//! Bytes that each kernel moves through global memory, over the fewest that it must move.

use crate::emulated::Emulated;
use ggro::cuda::Buffer;
use ggro::cuda::ops::candidate_scores::{self, ScoreQuery, candidate_scores};
use ggro::cuda::ops::copy_rows::copy_rows;
use ggro::cuda::ops::embed::{Table, embed};
use ggro::cuda::ops::gemm::{self, Operands, Output, Shape, gemm};
use ggro::cuda::ops::gemm_backward::{self, gemm_backward};
use ggro::cuda::ops::kv::{KvLayout, KvRows};
use ggro::cuda::ops::kv_copy::kv_copy;
use ggro::cuda::ops::logits::{chosen_logits, log_probabilities};
use ggro::cuda::ops::pad_convert::{Changed, Layout, Stored, pad_convert};
use ggro::cuda::ops::rmsnorm::{Delta, Norm, Upstream, rmsnorm, rmsnorm_backward};
use ggro::cuda::ops::rope::{Gradients, HeadNorms, HeadOrder, Heads, Inputs, Turns, rope, rope_backward};
use ggro::cuda::ops::softmax_entropy::{RowStatsOut, Scratch, TopKOut, TopKQuery, When, softmax_entropy, top_k};
use ggro::cuda::ops::swiglu::{Gates, swiglu, swiglu_backward};
use ggro::cuda::ops::weight_layout::WeightLayout;
use ggro::dtype::DType;
use ggro::dtype::HalfType;
use ggro_emulator::{Config, Counters};

pub fn over_floor(what: &str, moved: u64, floor: usize, limit: f64) {
    let ratio = moved as f64 / floor as f64;
    println!("{what}: {moved} bytes, {ratio:.3} of the floor");
    assert!((0.99..=limit).contains(&ratio), "{what}: {ratio}");
}

/// All bytes of a kernel, however often the same ones.
fn all(counters: &Counters) -> u64 {
    counters.bytes_read + counters.bytes_written
}

/// Each byte once per launch: what passes through DRAM if caches hold what is used again at once.
fn once(counters: &Counters) -> u64 {
    counters.unique_bytes_read + counters.unique_bytes_written
}

/// Whole sectors: what misplaced or ragged accesses cost.
pub fn sectors(counters: &Counters) -> u64 {
    32 * (counters.sectors_read + counters.sectors_written)
}

#[test]
fn bytes_over_the_floor() {
    let emulated = Emulated::new(Config { checked: true, ..Config::default() });
    let device = &emulated.device;

    let (rows, d) = (8, 4096);
    let weight = Buffer::from_slice(device, &vec![0x3f80u16; d]).unwrap();
    let mut residual = Buffer::from_slice(device, &vec![1.0f32; rows * d]).unwrap();
    let delta = Buffer::from_slice(device, &vec![0x3f80u16; rows * d]).unwrap();
    let mut out = Buffer::<u16>::uninitialised(device, rows * d).unwrap();
    let added = Delta::Half(delta.view());
    let (y, x) = (&mut out.view_mut(), &mut residual.view_mut());
    let norm = Norm { weight: weight.view(), columns: d, eps: 1e-5 };
    rmsnorm(device, HalfType::Bf16, y, x, added, norm).unwrap();
    let counters = &emulated.machine.report().kernels["rmsnorm_bf16"];
    let floor = rows * d * (4 + 4 + 2 + 2) + d * 2;
    over_floor("rmsnorm, each byte once", once(counters), floor, 1.0);
    // The weight is read by every row, from L2.
    over_floor("rmsnorm, sectors", sectors(counters), floor + (rows - 1) * d * 2, 1.05);

    let (rows, f) = (8, 14_336);
    let gate_up = Buffer::from_slice(device, &vec![0x3f80u16; rows * 2 * f]).unwrap();
    let mut act = Buffer::<u16>::uninitialised(device, rows * f).unwrap();
    swiglu(device, HalfType::Bf16, &mut act.view_mut(), gate_up.view(), f, Gates::Apart).unwrap();
    let counters = &emulated.machine.report().kernels["swiglu_bf16"];
    over_floor("swiglu, all bytes", all(counters), 6 * rows * f, 1.0);
    over_floor("swiglu, sectors", sectors(counters), 6 * rows * f, 1.0);

    let (rows, d, v) = (8, 4096, 100);
    let ids = Buffer::from_slice(device, &[3u32, 1, 4, 15, 9, 2, 6, 53]).unwrap();
    let mut out = Buffer::<f32>::uninitialised(device, rows * d).unwrap();
    for layout in [WeightLayout::Rows, WeightLayout::Tiles] {
        let elements = Buffer::from_slice(device, &vec![0x3f80u16; layout.elements(v, d)]).unwrap();
        let table = Table { elements: elements.view(), vocabulary: v, layout };
        emulated.machine.reset();
        embed(device, HalfType::Bf16, &mut out.view_mut(), table, ids.view(), d).unwrap();
        let counters = &emulated.machine.report().kernels["embed_bf16"];
        over_floor(&format!("embed of {layout:?}, each byte once"), once(counters), 6 * rows * d + 4 * rows, 1.0);
        // Each warp asks for its row's id.
        over_floor(&format!("embed of {layout:?}, sectors"), sectors(counters), 6 * rows * d, 1.05);
    }

    let heads = Heads { heads: 32, kv_heads: 8, head: 128, padded: 128 };
    let qkv = Buffer::from_slice(device, &vec![0x3f80u16; rows * heads.qkv()]).unwrap();
    let places = Buffer::from_slice(device, &(0..rows as u32).collect::<Vec<_>>()).unwrap();
    let table = Buffer::from_slice(device, &vec![[1.0f32, 0.0]; 64 * rows]).unwrap();
    let mut q = Buffer::<u16>::uninitialised(device, rows * 32 * 128).unwrap();
    let layout = KvLayout { layers: 1, kv_heads: 8, head: 128 };
    let mut pool = Buffer::<u16>::uninitialised(device, layout.block()).unwrap();
    let turns = Turns { positions: places.view(), table: table.view() };
    let inputs = Inputs { qkv: qkv.view(), turns, norms: None, order: HeadOrder::Halves };
    let mut kv = KvRows { pool: pool.view_mut(), layout, layer: 0, slots: places.view() };
    rope(device, HalfType::Bf16, &mut q.view_mut(), &mut kv, &inputs, heads).unwrap();
    let counters = &emulated.machine.report().kernels["rope_bf16"];
    let (floor, table) = (4 * rows * heads.qkv(), rows * 64 * 8);
    over_floor("rope, each byte once", once(counters), floor + table, 1.05);
    // 16 groups of lanes read a row's part of the table, from L1; a warp holds two of them.
    over_floor("rope, sectors", sectors(counters), floor + 8 * 4 * table, 1.05);

    let (rows, v) = (2, 128_256);
    let logits = Buffer::from_slice(device, &vec![0.5f32; rows * v]).unwrap();
    let floors = Buffer::from_slice(device, &vec![1e-9f64; rows]).unwrap();
    let mut stats = Buffer::<RowStatsOut>::uninitialised(device, rows).unwrap();
    let mut scratch = Scratch::new(device, rows, v).unwrap();
    softmax_entropy(device, &mut stats.view_mut(), logits.view(), floors.view(), &mut scratch).unwrap();
    let kernels = emulated.machine.report().kernels;
    let first = &kernels["softmax_entropy_splits_f32"];
    over_floor("softmax_entropy, first sweep", once(first), rows * v * 4, 1.05);
    over_floor("softmax_entropy, first sweep, sectors", sectors(first), rows * v * 4, 1.05);
    let second = &kernels["softmax_entropy_f32"];
    over_floor("softmax_entropy, second sweep (from L2)", once(second), rows * v * 4, 1.05);

    for (tokens, limit) in [(1, 1.1), (8, 1.3)] {
        let (n, k) = (1024, 2048);
        let x = Buffer::from_slice(device, &vec![0x3f80u16; tokens * k]).unwrap();
        let w = Buffer::from_slice(device, &vec![0x3c00u16; n * k]).unwrap();
        let mut y = Buffer::<u16>::uninitialised(device, tokens * n).unwrap();
        let mut scratch = gemm::Scratch::new(device, gemm::Room::of(WeightLayout::Rows, &[(n, k)])).unwrap();
        emulated.machine.reset();
        let operands =
            Operands { storage: HalfType::Bf16, x: x.view(), w: w.view(), layout: WeightLayout::Rows, bias: None };
        let y = &mut Output::Half(y.view_mut());
        gemm(device, y, operands, Shape { tokens, n, k }, &mut scratch).unwrap();
        let counters = &emulated.machine.report().kernels["gemm_stream8_bf16"];
        let floor = 2 * (n * k + tokens * k + tokens * n);
        over_floor(&format!("gemm, {tokens} tokens, each byte once"), once(counters), floor, 1.1);
        // Each block of outputs reads the tokens again, from L2.
        over_floor(&format!("gemm, {tokens} tokens, all bytes"), all(counters), floor, limit);
        let conflicts = counters.bank_conflicts as f64 / counters.shared_wavefronts as f64;
        println!("gemm, {tokens} tokens: {conflicts:.3} of the shared-memory passes are bank conflicts");
        assert!(conflicts < 0.02, "{counters:?}");
    }

    // Backward: the same, with the weights read by columns.
    for (tokens, limit) in [(1, 1.1), (8, 1.3)] {
        let (n, k) = (2048, 1024);
        let dy = Buffer::from_slice(device, &vec![0x3f80u16; tokens * n]).unwrap();
        let w = Buffer::from_slice(device, &vec![0x3c00u16; n * k]).unwrap();
        let mut dx = Buffer::<f32>::uninitialised(device, tokens * k).unwrap();
        let mut scratch = gemm::Scratch::new(device, gemm::Room::of(WeightLayout::Rows, &[(k, n)])).unwrap();
        emulated.machine.reset();
        let gradients = gemm_backward::Gradients {
            storage: HalfType::Bf16,
            dy: dy.view(),
            w: w.view(),
            layout: WeightLayout::Rows,
        };
        let dx = &mut Output::F32(dx.view_mut());
        gemm_backward(device, dx, gradients, Shape { tokens, n, k }, &mut scratch).unwrap();
        let counters = &emulated.machine.report().kernels["gemm_backward_stream8_bf16"];
        let floor = 2 * (n * k + tokens * n) + 4 * tokens * k;
        over_floor(&format!("gemm_backward, {tokens} tokens, each byte once"), once(counters), floor, 1.1);
        over_floor(&format!("gemm_backward, {tokens} tokens, all bytes"), all(counters), floor, limit);
        let conflicts = counters.bank_conflicts as f64 / counters.shared_wavefronts as f64;
        println!("gemm_backward, {tokens} tokens: {conflicts:.3} of the shared-memory passes are bank conflicts");
        assert!(conflicts < 0.02, "{counters:?}");
    }
    backward_bytes(&emulated);
    chosen_bytes(&emulated);
    emulated.assert_clean();
}

/// The backward passes of the norm, the activation and the rotation.
fn backward_bytes(emulated: &Emulated) {
    let device = &emulated.device;
    let (rows, d, f) = (8, 4096, 14_336);
    let ones = |n: usize| Buffer::from_slice(device, &vec![0x3f80u16; n]).unwrap();
    let ones_f32 = |n: usize| Buffer::from_slice(device, &vec![1.0f32; n]).unwrap();

    let (weight, residual, dy, mut grad) = (ones(d), ones_f32(rows * d), ones_f32(rows * d), ones_f32(rows * d));
    let mut rounded = Buffer::<u16>::uninitialised(device, rows * d).unwrap();
    let norm = Norm { weight: weight.view(), columns: d, eps: 1e-5 };
    let upstream = Upstream::Rows(dy.view());
    let (out, out_16) = (&mut grad.view_mut(), &mut rounded.view_mut());
    rmsnorm_backward(device, HalfType::Bf16, out, Some(out_16), upstream, residual.view(), norm).unwrap();
    let counters = &emulated.machine.report().kernels["rmsnorm_backward_bf16"];
    let floor = rows * d * (12 + 4 + 2) + d * 2;
    over_floor("rmsnorm_backward, each byte once", once(counters), floor, 1.0);
    over_floor("rmsnorm_backward, sectors", sectors(counters), floor + (rows - 1) * d * 2, 1.05);

    let (gate_up, d_act) = (ones(rows * 2 * f), ones_f32(rows * f));
    let mut d_gate_up = Buffer::<u16>::uninitialised(device, rows * 2 * f).unwrap();
    let out = &mut d_gate_up.view_mut();
    swiglu_backward(device, HalfType::Bf16, out, d_act.view(), gate_up.view(), f).unwrap();
    let counters = &emulated.machine.report().kernels["swiglu_backward_bf16"];
    over_floor("swiglu_backward, sectors", sectors(counters), 12 * rows * f, 1.0);

    let heads = Heads { heads: 32, kv_heads: 8, head: 128, padded: 128 };
    let (qkv, weight) = (ones(rows * heads.qkv()), ones(128));
    let (dq, dk, dv) = (ones_f32(rows * 32 * 128), ones_f32(rows * 8 * 128), ones_f32(rows * 8 * 128));
    let places = Buffer::from_slice(device, &(0..rows as u32).collect::<Vec<_>>()).unwrap();
    let table = Buffer::from_slice(device, &vec![[1.0f32, 0.0]; 64 * rows]).unwrap();
    let mut d_qkv = Buffer::<u16>::uninitialised(device, rows * heads.qkv()).unwrap();
    for normed in [false, true] {
        let norms = normed.then(|| HeadNorms { q: weight.view(), k: weight.view(), eps: 1e-6 });
        let turns = Turns { positions: places.view(), table: table.view() };
        let inputs = Inputs { qkv: qkv.view(), turns, norms, order: HeadOrder::Halves };
        let gradients = Gradients { q: dq.view(), k: dk.view(), v: dv.view() };
        emulated.machine.reset();
        rope_backward(device, HalfType::Bf16, &mut d_qkv.view_mut(), &gradients, &inputs, heads).unwrap();
        let counters = &emulated.machine.report().kernels["rope_backward_bf16"];
        let floor = rows * (6 * heads.qkv() + 64 * 8 + if normed { 2 * 40 * 128 } else { 0 });
        over_floor(&format!("rope_backward, norms {normed}, each byte once"), once(counters), floor, 1.07);
    }
}

/// Lists, log-probabilities, candidates and copies.
fn chosen_bytes(emulated: &Emulated) {
    let device = &emulated.device;
    let (rows, v) = (2, 128_256);
    let values: Vec<f32> = (0..rows * v).map(|i| (i * 7919 % 10_007) as f32 * 1e-3).collect();
    let logits = Buffer::from_slice(device, &values).unwrap();
    let stats = Buffer::from_slice(device, &vec![RowStatsOut { finite: 1, ..RowStatsOut::default() }; rows]).unwrap();
    let mut scratch = Scratch::new(device, rows, v).unwrap();
    let queries = Buffer::from_slice(device, &vec![TopKQuery::new(25, When::Always, 0.0); rows]).unwrap();
    let mut ids = Buffer::<u32>::uninitialised(device, rows * 25).unwrap();
    let mut largest = Buffer::<f32>::uninitialised(device, rows * 25).unwrap();
    let mut found = Buffer::<u32>::uninitialised(device, rows).unwrap();
    let mut lists = TopKOut { ids: ids.view_mut(), logits: largest.view_mut(), found: found.view_mut(), stride: 25 };
    emulated.machine.reset();
    top_k(device, &mut lists, logits.view(), stats.view(), queries.view(), v, &mut scratch).unwrap();
    let counters = &emulated.machine.report().kernels["top_k_f32"];
    // Each split of 4096 logits leaves its largest 25 to the row's last block.
    let floor = rows * v * 4 + rows * v.div_ceil(4096) * 25 * 8 * 2;
    over_floor("top_k, each byte once", once(counters), floor, 1.05);
    over_floor("top_k, sectors", sectors(counters), floor, 1.1);

    let mut out = Buffer::<f32>::uninitialised(device, rows * v).unwrap();
    log_probabilities(device, &mut out.view_mut(), logits.view(), stats.view()).unwrap();
    let counters = &emulated.machine.report().kernels["log_probabilities_f32"];
    over_floor("log_probabilities, each byte once", once(counters), 2 * rows * v * 4, 1.01);
    // Every warp reads its row's statistics, from L1.
    over_floor("log_probabilities, sectors", sectors(counters), 2 * rows * v * 4, 1.07);

    let (n, pairs) = (512, (0..512u32).map(|i| [i % 2, i * 8]).collect::<Vec<_>>());
    let pairs = Buffer::from_slice(device, &pairs).unwrap();
    let mut few = Buffer::<f32>::uninitialised(device, n).unwrap();
    chosen_logits(device, &mut few.view_mut(), logits.view(), pairs.view(), v).unwrap();
    let counters = &emulated.machine.report().kernels["chosen_logits_f32"];
    over_floor("chosen_logits, all bytes", all(counters), n * (8 + 4 + 4), 1.0);

    let (d, candidates) = (4096, 25);
    let grads = Buffer::from_slice(device, &vec![0.5f32; d]).unwrap();
    let table = Buffer::from_slice(device, &vec![0x3c00u16; candidates * d]).unwrap();
    let ids = Buffer::from_slice(device, &(0..candidates as u32).collect::<Vec<_>>()).unwrap();
    let query = ScoreQuery { row: 0, first: 0, count: candidates as u32 };
    let queries = Buffer::from_slice(device, &[query]).unwrap();
    let mut norms = Buffer::<f32>::uninitialised(device, 1).unwrap();
    let mut products = Buffer::<f32>::uninitialised(device, candidates).unwrap();
    let (grads, table, ids, queries) = (grads.view(), table.view(), ids.view(), queries.view());
    let inputs = candidate_scores::Inputs { grads, table, ids, queries, d, scale: 1.0 };
    candidate_scores(device, HalfType::Bf16, &mut norms.view_mut(), &mut products.view_mut(), &inputs).unwrap();
    let counters = &emulated.machine.report().kernels["candidate_scores_bf16"];
    over_floor("candidate_scores, each byte once", once(counters), candidates * 2 * d + 4 * d, 1.01);

    let (rows, width) = (64, 4096);
    let src = Buffer::<f32>::zeros(device, rows * width).unwrap();
    let mut dst = Buffer::<f32>::uninitialised(device, rows * width).unwrap();
    let pairs = Buffer::from_slice(device, &(0..rows as u32).map(|i| [i, 63 - i]).collect::<Vec<_>>()).unwrap();
    copy_rows(device, &mut dst.view_mut(), src.view(), pairs.view(), width).unwrap();
    let counters = &emulated.machine.report().kernels["copy_rows"];
    over_floor("copy_rows, sectors", sectors(counters), 2 * rows * width * 4, 1.01);

    let layout = KvLayout { layers: 4, kv_heads: 8, head: 128 };
    let mut pool = Buffer::<u16>::zeros(device, 2 * layout.block()).unwrap();
    for positions in [1usize, 40, 64] {
        let copies = Buffer::from_slice(device, &[[0, 1, positions as u32]]).unwrap();
        emulated.machine.reset();
        kv_copy(device, &mut pool.view_mut(), copies.view(), layout).unwrap();
        let counters = &emulated.machine.report().kernels["kv_copy"];
        let floor = 2 * 2 * positions * 2 * 4 * 8 * 128;
        over_floor(&format!("kv_copy of {positions} positions, each byte once"), once(counters), floor, 1.01);
    }
}

#[test]
fn weights_are_converted_without_detours() {
    let emulated = Emulated::new(Config { checked: true, ..Config::default() });
    let device = &emulated.device;
    let (rows, cols, width) = (64, 960, 1024);
    for destination in [WeightLayout::Rows, WeightLayout::Tiles] {
        for (dtype, size) in [(DType::Bf16, 2), (DType::F32, 4)] {
            let stored = Buffer::<u8>::zeros(device, rows * cols * size).unwrap();
            let mut out = Buffer::<u16>::uninitialised(device, destination.elements(rows, width)).unwrap();
            let mut changed = Buffer::<Changed>::zeros(device, 1).unwrap();
            let stored = Stored { bytes: stored.view(), dtype, first: 0 };
            let layout = Layout { destination, ..Layout::corner(rows, cols, width) };
            emulated.machine.reset();
            pad_convert(device, HalfType::F16, &mut out.view_mut(), stored, &layout, &mut changed.view_mut()).unwrap();
            let counters = &emulated.machine.report().kernels["pad_convert_f16"];
            let (floor, what) =
                (rows * cols * (size + 2), format!("pad_convert from {} to {destination:?}", dtype.name()));
            over_floor(&format!("{what}, all bytes"), all(counters), floor, 1.0);
            over_floor(&format!("{what}, sectors"), sectors(counters), floor, 1.0);
        }
    }
    emulated.assert_clean();
}
