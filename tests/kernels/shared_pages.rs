//! Bytes that attention moves: a page of a prefix that branches share is read once for all of them.

use crate::emulated::Emulated;
use crate::traffic::{over_floor, sectors};
use ggro::cuda::Buffer;
use ggro::cuda::ops::attention::{self, Inputs, Plan, Query, Sequence, attention};
use ggro::cuda::ops::kv::KvLayout;
use ggro::dtype::HalfType;
use ggro::kv::BlockId;
use ggro_emulator::Config;

/// Branches behind a shared prefix: how often its pages are read, and what the parts of rows cost beside them.
#[test]
fn shared_pages_are_read_once() {
    let emulated = Emulated::new(Config { checked: true, ..Config::default() });
    let device = &emulated.device;
    let shape = attention::Shape { heads: 8, kv_heads: 2, head: 128, scale: 0.1, window: None };
    let layout = KvLayout { layers: 1, kv_heads: 2, head: 128 };
    let (prefix, own) = (1024usize, 20usize);
    for (branches, kernel) in [(1usize, "few"), (4, "few"), (8, "some"), (16, "many")] {
        let blocks: Vec<Vec<BlockId>> =
            (0..branches).map(|b| (0..16).chain([16 + b as u32]).map(BlockId).collect()).collect();
        let queries: Vec<[Query; 1]> =
            (0..branches as u32).map(|b| [Query { row: b, out: b, position: (prefix + own - 1) as u32 }]).collect();
        let sequences: Vec<Sequence<'_>> =
            blocks.iter().zip(&queries).map(|(blocks, queries)| Sequence { blocks, queries }).collect();
        let mut scratch = attention::Scratch::new(device, &[shape], 5 * branches).unwrap();
        let plan = Plan::new(&shape, &sequences, scratch.limits(device, &shape)).unwrap();
        let work = Buffer::from_slice(device, plan.words()).unwrap();
        let pool = Buffer::from_slice(device, &vec![0x3c00u16; (16 + branches) * layout.block()]).unwrap();
        let q = Buffer::from_slice(device, &vec![0x3c00u16; branches * 8 * 128]).unwrap();
        let mut out = Buffer::<u16>::uninitialised(device, branches * 8 * 128).unwrap();
        emulated.machine.reset();
        let inputs = Inputs { storage: HalfType::Bf16, q: q.view(), pool: pool.view(), layout, layer: 0 };
        let mut output = attention::Output { out: out.view_mut(), lse: None };
        attention(device, &mut output, inputs, work.view(), &plan, &mut scratch).unwrap();
        let kernels = emulated.machine.report().kernels;
        assert!(kernels.contains_key(&format!("attention_{kernel}_128_bf16")), "{:?}", kernels.keys());
        // Sectors: what all threads of a warp read together, such as a page's entry in the list, counts once.
        let moved: u64 = kernels.values().map(sectors).sum();
        let keys = (prefix + branches * own) * 2 * 2 * 128 * 2;
        let rows = branches * 8 * 128 * 2;
        // Each of a row's five parts reads its query; the parts and their states are written and read again.
        let parts = branches * 5 * 8 * (128 * 2 + 2 * 4 * (128 + 2));
        println!("attention, {branches} branches: parts are {:.3} of keys and values", parts as f64 / keys as f64);
        let what = format!("attention, {branches} branches behind {prefix} positions, sectors");
        over_floor(&what, moved, keys + rows + parts, 1.03);
        let conflicts: u64 = kernels.values().map(|counters| counters.bank_conflicts).sum();
        let passes: u64 = kernels.values().map(|counters| counters.shared_wavefronts).sum();
        println!("attention, {branches} branches: {conflicts} of {passes} shared-memory passes are bank conflicts");
        assert!(conflicts * 50 < passes, "{kernels:?}");
    }
    emulated.assert_clean();
}
