//! Bytes that attention's backward pass moves: a prefix is read by the queries' pass alone, once per block of queries.

use crate::emulated::Emulated;
use crate::traffic::{over_floor, sectors};
use ggro::cuda::Buffer;
use ggro::cuda::ops::attention::{self, AttentionProducts, PlanLimits, Query, Sequence};
use ggro::cuda::ops::attention_backward::{
    BackwardLists, Inputs, KeySegment, Output, Plan, Scratch, attention_backward,
};
use ggro::cuda::ops::kv::KvLayout;
use ggro::dtype::HalfType;
use ggro::kv::BlockId;
use ggro_emulator::Config;

/// A segment whose queries fill two blocks, behind a prefix.
#[test]
fn a_prefix_is_read_by_queries_alone() {
    let emulated = Emulated::new(Config { checked: true, ..Config::default() });
    let device = &emulated.device;
    let (heads, kv_heads, head) = (8, 2, 128);
    let shape = attention::Shape { heads, kv_heads, head, scale: 0.1, window: None };
    let layout = KvLayout { layers: 1, kv_heads, head };
    let (prefix, len) = (512usize, 32usize);
    let blocks: Vec<BlockId> = (0..9).map(BlockId).collect();
    let query = |i: usize| Query { row: i as u32, out: i as u32, position: (prefix + i) as u32 };
    let queries: Vec<Query> = (0..len).map(query).collect();
    let segment = KeySegment { blocks: &blocks, start: prefix as u32, len: len as u32, row: 0, queries: &queries };
    let keys = Plan::new(&shape, &[segment]).unwrap();
    let sequence = Sequence { blocks: &blocks, queries: &queries };
    let pool = Buffer::from_slice(device, &vec![0x3c00u16; blocks.len() * layout.block()]).unwrap();
    let rows = Buffer::from_slice(device, &vec![0x3c00u16; len * heads * head]).unwrap();
    let gradients = Buffer::from_slice(device, &vec![0x3c00u16; len * heads * head]).unwrap();
    let lse = Buffer::from_slice(device, &vec![7.0f32; len * heads]).unwrap();
    let mut dq = Buffer::<f32>::uninitialised(device, len * heads * head).unwrap();
    let mut dk = Buffer::<f32>::uninitialised(device, len * kv_heads * head).unwrap();
    let mut dv = Buffer::<f32>::uninitialised(device, len * kv_heads * head).unwrap();
    let mut parts = attention::Scratch::new(device, &[shape], 3 * len).unwrap();
    let mut scratch = Scratch::new(device, heads, len).unwrap();

    // In bytes: keys and values of a position, and a row of queries in the storage type.
    let (pair, row) = (2 * kv_heads * head * 2, heads * head * 2);
    let normals = len * heads * 4;
    for apart in [false, true] {
        let limits = PlanLimits { blocks: 1, partials: 0, products: AttentionProducts::Mma };
        let limits = if apart { parts.limits(device, &shape) } else { limits };
        let plan = attention::Plan::new(&shape, &[sequence], limits).unwrap();
        assert_eq!(plan.partials(), if apart { 3 * len } else { 0 });
        let words = [plan.words(), keys.words()].map(|words| Buffer::from_slice(device, words).unwrap());
        emulated.machine.reset();
        let inputs = Inputs {
            storage: HalfType::Bf16,
            q: rows.view(),
            pool: pool.view(),
            layout,
            layer: 0,
            out: rows.view(),
            lse: lse.view(),
            d_out: gradients.view(),
        };
        let mut output = Output { q: dq.view_mut(), k: dk.view_mut(), v: dv.view_mut() };
        let work = BackwardLists { queries: (&plan, words[0].view()), keys: (&keys, words[1].view()) };
        attention_backward(device, &mut output, inputs, work, &mut parts, &mut scratch).unwrap();
        let kernels = emulated.machine.report().kernels;
        let queries = &kernels["attention_backward_many_128_bf16"];
        // Two blocks of 16 queries each: the first does not reach the last 16 positions. Queries, d_out and out come in once
        // per part, which is written and read again.
        let visible = 2 * (prefix + len) - len / 2;
        let chunks = if apart { 3 } else { 1 };
        let exchange = if apart { 2 * chunks * len * 2 * row } else { 0 };
        let floor = visible * pair + chunks * (3 * len * row + normals) + exchange + len * 2 * row + normals;
        over_floor(&format!("attention_backward, queries, apart {apart}, sectors"), sectors(queries), floor, 1.05);
        let walked = &kernels["attention_backward_keys_128_bf16"];
        // The segment's own keys and values; its queries, their normalisers and deltas; gradients in f32.
        let floor = len * pair + 2 * len * row + 2 * normals + 2 * len * pair;
        let once = walked.unique_bytes_read + walked.unique_bytes_written;
        over_floor(&format!("attention_backward, keys, apart {apart}, each byte once"), once, floor, 1.05);
        over_floor(&format!("attention_backward, keys, apart {apart}, sectors"), sectors(walked), floor, 1.2);
        for (name, counters) in &kernels {
            let (conflicts, passes) = (counters.bank_conflicts, counters.shared_wavefronts);
            println!("{name}: {conflicts} of {passes} shared-memory passes are bank conflicts");
            assert!(conflicts * 20 < passes, "{name}: {counters:?}");
        }
    }
    emulated.assert_clean();
}
