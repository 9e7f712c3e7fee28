//! Bytes that each kernel moves through global memory, over the fewest that it must move.

use crate::emulated::Emulated;
use ggro::cuda::ops::gemm::{self, Operands, Output, Shape, gemm};
use ggro::cuda::ops::rmsnorm::{Delta, Norm, rmsnorm};
use ggro::cuda::ops::softmax_entropy::{RowStatsOut, Scratch, softmax_entropy};
use ggro::cuda::{Buffer, Storage};
use ggro_emulator::{Config, Counters};

fn over_floor(what: &str, moved: u64, floor: usize, limit: f64) {
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
fn sectors(counters: &Counters) -> u64 {
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
    let added = Delta::Storage(delta.view());
    let (y, x) = (&mut out.view_mut(), &mut residual.view_mut());
    let norm = Norm { weight: weight.view(), columns: d, eps: 1e-5 };
    rmsnorm(device, Storage::Bf16, y, x, added, norm).unwrap();
    let counters = &emulated.machine.report().kernels["rmsnorm_bf16"];
    let floor = rows * d * (4 + 4 + 2 + 2) + d * 2;
    over_floor("rmsnorm, each byte once", once(counters), floor, 1.0);
    // The weight is read by every row, from L2.
    over_floor("rmsnorm, sectors", sectors(counters), floor + (rows - 1) * d * 2, 1.05);

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
        let mut scratch = gemm::Scratch::new(device, &[(n, k)], 0).unwrap();
        emulated.machine.reset();
        let operands = Operands { storage: Storage::Bf16, x: x.view(), w: w.view(), bias: None };
        let y = &mut Output::Storage(y.view_mut());
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
    emulated.assert_clean();
}
