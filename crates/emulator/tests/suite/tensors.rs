//! Tensor maps and the copies that go through them, and parameters that are read at generic addresses.

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode_enum};
use cudarc::driver::{CudaSlice, DevicePtr};
use ggro_emulator::{Config, Copies, Fault};

use crate::harness::{Arg, Bench, shape};

/// What cuTensorMapEncodeTiled is told, in numbers.
#[derive(Clone, Debug)]
pub struct Tensor {
    kind: u32,
    address: u64,
    sizes: Vec<u64>,
    /// In bytes, of all dimensions but the first.
    strides: Vec<u64>,
    elements: Vec<u32>,
    area: Vec<u32>,
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
}

const U16: u32 = 1;
const BF16: u32 = 9;

impl Tensor {
    /// Rows of 16-bit elements.
    pub fn matrix(address: u64, sizes: [u64; 2], pitch: u64, area: [u32; 2], swizzle: u32) -> Tensor {
        Tensor {
            kind: BF16,
            address,
            sizes: sizes.to_vec(),
            strides: vec![pitch],
            elements: vec![1, 1],
            area: area.to_vec(),
            interleave: 0,
            swizzle,
            promotion: 0,
            fill: 0,
        }
    }

    pub fn map(&self) -> Result<sys::CUtensorMap, CUresult> {
        type Encode = unsafe extern "C" fn(
            *mut sys::CUtensorMap,
            u32,
            u32,
            u64,
            *const u64,
            *const u64,
            *const u32,
            *const u32,
            u32,
            u32,
            u32,
            u32,
        ) -> CUresult;
        // The types of cudarc have no numbers but the right ones.
        // SAFETY: these are the function's own arguments, as C passes them.
        let encode: Encode = unsafe {
            let found =
                libc::dlsym(libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW), c"cuTensorMapEncodeTiled".as_ptr());
            assert!(!found.is_null());
            std::mem::transmute::<*mut libc::c_void, Encode>(found)
        };
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the lists have as many elements as there are dimensions, the strides one fewer.
        let code = unsafe {
            encode(
                &raw mut map,
                self.kind,
                self.sizes.len() as u32,
                self.address,
                self.sizes.as_ptr(),
                self.strides.as_ptr(),
                self.area.as_ptr(),
                self.elements.as_ptr(),
                self.interleave,
                self.swizzle,
                self.promotion,
                self.fill,
            )
        };
        if code == CUresult::CUDA_SUCCESS { Ok(map) } else { Err(code) }
    }

    fn bytes(&self) -> usize {
        let element = if self.kind == 0 { 1 } else { 2 };
        self.area.iter().product::<u32>() as usize * element
    }
}

pub fn address<T>(b: &Bench, slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(&b.stream).0
}

const HEAD: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";
const INSTRUCTION: &str = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes";

/// A kernel of 32 threads: the first copies a box of `bytes` to `s` with these lines, all wait, and `out` receives what has
/// come.
struct Text<'a> {
    bytes: usize,
    /// From `%rd1`, the map, to `%r1`, at `%r3` to `%r5`, for the mbarrier `%r2`.
    copy: &'a str,
    /// Announced on the mbarrier.
    announced: usize,
    /// By all threads, before the copy and after it.
    before: &'a str,
    after: &'a str,
}

const WAIT: &str =
    "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%r2], 0;\n@done bra passed;\nbra again;\npassed:";

impl Text<'_> {
    fn kernel(&self) -> String {
        let Text { bytes, copy, announced, before, after } = self;
        format!(
            "{HEAD}.visible .entry t(.param .u64 out, .param .align 64 .b8 map[128], .param .u32 c0, .param .u32 c1, .param .u32 c2, \
             .param .u64 other) {{\n\
             .reg .b64 %rd<8>;\n.reg .b32 %r<16>;\n.reg .pred q, done;\n.shared .align 8 .b8 full[8];\n\
             .shared .align 1024 .b8 s[{bytes}];\n\
             mov.u32 %r0, %tid.x;\nmov.u32 %r1, s;\nmov.u32 %r2, full;\nld.param.u32 %r3, [c0];\nld.param.u32 %r4, [c1];\n\
             ld.param.u32 %r5, [c2];\nmov.b64 %rd0, map;\ncvta.param.u64 %rd1, %rd0;\n{before}\n\
             setp.ne.u32 q, %r0, 0;\n@q bra others;\nmbarrier.init.shared::cta.b64 [%r2], 1;\n\
             fence.mbarrier_init.release.cluster;\n\
             mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {announced};\n{copy}\nothers:\nbar.sync 0;\n{after}\n\
             ld.param.u64 %rd3, [out];\nmov.u32 %r6, %r0;\nnext:\nsetp.ge.u32 q, %r6, {};\n@q bra end;\nshl.b32 %r7, %r6, 2;\n\
             add.s32 %r8, %r1, %r7;\nld.shared.u32 %r9, [%r8];\nmul.wide.u32 %rd2, %r6, 4;\nadd.s64 %rd2, %rd3, %rd2;\n\
             st.global.u32 [%rd2], %r9;\nadd.s32 %r6, %r6, 32;\nbra next;\nend:\nret;\n}}\n",
            bytes / 4
        )
    }
}

fn bench(config: Config, text: &str) -> Bench {
    Bench::with_image(config, format!("{text}\0").as_bytes())
}

fn launch(b: &Bench, map: sys::CUtensorMap, at: [i32; 3], bytes: usize) -> Vec<u16> {
    let (out, copied) = (b.zeros::<u16>(bytes / 2), b.up(&map.opaque));
    let at = at.map(Arg::I32);
    b.launch("t", shape(1, 32), &[b.pointer(&out), Arg::Map(map), at[0], at[1], at[2], b.pointer(&copied)]).unwrap();
    b.stream.clone_dtoh(&out).unwrap_or_default()
}

/// Where an element of a box lies in shared memory, in elements.
fn place(row: usize, column: usize, width: usize, swizzle: u32) -> usize {
    let (line, byte) = (row * width * 2, column * 2);
    let exchanged = match swizzle {
        1 => byte ^ (row / 4 % 2 * 16),
        2 => byte ^ (row / 2 % 4 * 16),
        3 => byte ^ (row % 8 * 16),
        _ => byte,
    };
    (line + exchanged) / 2
}

fn right(b: &Bench, tensor: &Tensor, at: [i32; 3], data: &[u16]) {
    let got = launch(b, tensor.map().unwrap(), at, tensor.bytes());
    b.assert_clean();
    let (width, height) = (tensor.area[0] as usize, tensor.area[1] as usize);
    let depth = tensor.area.get(2).map_or(1, |d| *d as usize);
    for z in 0..depth {
        for y in 0..height {
            for x in 0..width {
                let place3 = [at[0] as i64 + x as i64, at[1] as i64 + y as i64, at[2] as i64 + z as i64];
                let inside = (0..tensor.sizes.len()).all(|d| (0..tensor.sizes[d] as i64).contains(&place3[d]));
                let offset = place3[0] * 2
                    + place3[1] * tensor.strides[0] as i64
                    + tensor.strides.get(1).map_or(0, |s| place3[2] * *s as i64);
                let expected = if inside { data[offset as usize / 2] } else { 0 };
                let found = got[place(z * height + y, x, width, tensor.swizzle)];
                assert_eq!(found, expected, "{x} {y} {z} of {tensor:?} at {at:?}");
            }
        }
    }
}

fn numbers(n: usize) -> Vec<u16> {
    (0..n).map(|i| (i * 7 + 1) as u16).collect()
}

#[test]
fn boxes_of_matrices() {
    // 40 rows of 72 elements, of which 70 belong to the tensor.
    let data = numbers(40 * 72);
    for config in Config::matrix() {
        for (swizzle, area) in [(0, [24, 5]), (1, [16, 16]), (2, [32, 20]), (3, [64, 8])] {
            let bytes = (area[0] * area[1] * 2) as usize;
            let copy = format!("prefetch.tensormap [%rd1];\n{INSTRUCTION} [%r1], [%rd1, {{%r3, %r4}}], [%r2];");
            let text = Text { bytes, copy: &copy, announced: bytes, before: "", after: WAIT };
            let b = bench(config, &text.kernel());
            let x = b.up(&data);
            let tensor = Tensor::matrix(address(&b, &x), [70, 40], 144, area, swizzle);
            for at in [[0, 0, 0], [3, 7, 0], [-5, -2, 0], [60, 35, 0], [-64, 0, 0], [0, 40, 0], [i32::MAX, i32::MIN, 0]]
            {
                right(&b, &tensor, at, &data);
            }
        }
    }
}

#[test]
fn other_spellings_and_dimensions() {
    let data = numbers(6 * 10 * 16);
    let config = Config { checked: true, ..Config::default() };
    let ending = "global.mbarrier::complete_tx::bytes";
    for copy in [
        "prefetch.tensormap [%rd1];\ncp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], \
         [%rd1, {%r3, %r4, %r5}], [%r2];"
            .to_owned(),
        format!(
            "createpolicy.fractional.L2::evict_first.b64 %rd4, 1.0;\n\
             cp.async.bulk.tensor.3d.shared::cta.{ending}.L2::cache_hint [%r1], [%rd1, {{%r3, %r4, %r5}}], [%r2], %rd4;"
        ),
        // The map in global memory.
        format!(
            "ld.param.u64 %rd4, [other];\n\
             cp.async.bulk.tensor.3d.shared::cluster.{ending} [%r1], [%rd4, {{%r3, %r4, %r5}}], [%r2];"
        ),
        // The parameter's address as an operand.
        format!(
            "cvta.param.u64 %rd4, map;\n\
             cp.async.bulk.tensor.3d.shared::cluster.{ending} [%r1], [%rd4, {{%r3, %r4, %r5}}], [%r2];"
        ),
    ] {
        let bytes = 16 * 3 * 2 * 2;
        let text = Text { bytes, copy: &copy, announced: bytes, before: "", after: WAIT };
        let b = bench(config, &text.kernel());
        let x = b.up(&data);
        let tensor = Tensor {
            sizes: vec![16, 10, 6],
            strides: vec![32, 320],
            elements: vec![1; 3],
            area: vec![16, 3, 2],
            kind: U16,
            ..Tensor::matrix(address(&b, &x), [1, 1], 16, [8, 1], 0)
        };
        for at in [[0, 0, 0], [1, 8, 4], [-3, -1, 5]] {
            right(&b, &tensor, at, &data);
        }
    }
    // Every row of the box is read once, in sectors of 32 bytes.
    let bytes = 64 * 8 * 2;
    let copy = format!("{INSTRUCTION} [%r1], [%rd1, {{%r3, %r4}}], [%r2];");
    let text = Text { bytes, copy: &copy, announced: bytes, before: "", after: WAIT };
    let b = bench(config, &text.kernel());
    let x = b.up(&numbers(64 * 16));
    launch(&b, Tensor::matrix(address(&b, &x), [64, 16], 128, [64, 8], 3).map().unwrap(), [0, 12, 0], bytes);
    let counters = &b.device.report().kernels["t"];
    assert_eq!((counters.bytes_read, counters.unique_bytes_read, counters.sectors_read), (512, 512, 16));
    drop(x);
    drop(b);

    // The other bulk copies have hints, too.
    let copy = "ld.param.u64 %rd4, [other];\nmov.b64 %rd5, 0;\n\
                cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r1], [%rd4], 128, [%r2], %rd5;";
    let b = bench(config, &Text { bytes: 128, copy, announced: 128, before: "", after: WAIT }.kernel());
    let map = sys::CUtensorMap { opaque: [0x0001_0002_0003_0004; 16] };
    assert_eq!(launch(&b, map, [0; 3], 128)[..4], [4, 3, 2, 1]);
    b.assert_clean();
}

#[test]
fn maps_are_checked() {
    let b = Bench::new(Config::default());
    let x = b.zeros::<u16>(64 * 64);
    let good = Tensor::matrix(address(&b, &x), [64, 64], 128, [64, 64], 3);
    assert!(good.map().is_ok());
    let three = Tensor {
        sizes: vec![64, 8, 8],
        strides: vec![128, 1024],
        elements: vec![1; 3],
        area: vec![64, 8, 8],
        ..good.clone()
    };
    assert!(three.map().is_ok());
    assert!(Tensor { sizes: vec![64, 1 << 32], strides: vec![(1 << 40) - 16], ..good.clone() }.map().is_ok());
    b.assert_clean();
    type Change = fn(&mut Tensor);
    let invalid: [(&str, Change); 20] = [
        ("no type", |t| t.kind = 16),
        ("dimensions", |t| t.sizes.clear()),
        ("dimensions", |t| t.sizes = vec![8; 6]),
        ("address", |t| t.address += 8),
        ("pointer", |t| t.address = 0),
        ("dimension", |t| t.sizes[1] = 0),
        ("dimension", |t| t.sizes[0] = (1 << 32) + 1),
        ("multiple of 16", |t| t.strides[0] = 136),
        ("2^40", |t| t.strides[0] = 1 << 40),
        ("row", |t| t.strides[0] = 112),
        ("256", |t| t.area[1] = 0),
        ("256", |t| t.area[1] = 257),
        ("multiple of 16", |t| (t.area[0], t.swizzle) = (12, 0)),
        ("wider", |t| t.area[0] = 72),
        ("wider", |t| t.swizzle = 2),
        ("element stride", |t| t.elements[1] = 0),
        ("element stride", |t| t.elements[1] = 9),
        ("interleaving", |t| t.interleave = 3),
        ("promotion", |t| t.promotion = 4),
        ("filling", |t| t.fill = 2),
    ];
    let unsupported: [(&str, Change); 6] = [
        ("type", |t| t.kind = 11),
        ("interleaving", |t| t.interleave = 1),
        ("swizzle", |t| t.swizzle = 4),
        ("NaN", |t| t.fill = 1),
        ("element strides", |t| t.elements[1] = 2),
        ("narrower", |t| t.area[0] = 32),
    ];
    let all = invalid.map(|c| (c, CUresult::CUDA_ERROR_INVALID_VALUE)).into_iter();
    for ((word, change), code) in all.chain(unsupported.map(|c| (c, CUresult::CUDA_ERROR_NOT_SUPPORTED))) {
        let mut tensor = good.clone();
        change(&mut tensor);
        assert_eq!(tensor.map(), Err(code), "{word}");
        let faults = b.device.faults();
        assert!(faults[0].kind == "wrong tensor map" && faults[0].message.contains(word), "{word}: {faults:?}");
        b.device.reset();
    }
    let skewed = Tensor { strides: vec![128, 1040], ..three };
    assert_eq!(skewed.map(), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
    b.device.configure("arch=80");
    assert_eq!(good.map(), Err(CUresult::CUDA_ERROR_NOT_SUPPORTED));
    b.device.configure("arch=90");
    b.device.reset();
}

type ChangeTensor = fn(&mut Tensor, u64);
type ChangeMap = fn(&mut sys::CUtensorMap);

/// The first fault of a copy of 64 x 8 elements, of a tensor of 64 x 16. The tensor and its map are changed before; there
/// is memory that nobody has written, too.
fn fault_of(config: Config, text: &Text, tensor_change: ChangeTensor, map_change: ChangeMap) -> Option<Fault> {
    let b = bench(config, &text.kernel());
    let (x, fresh) = (b.up(&numbers(64 * 16)), b.raw::<u16>(64 * 16));
    let mut tensor = Tensor::matrix(address(&b, &x), [64, 16], 128, [64, 8], 3);
    tensor_change(&mut tensor, address(&b, &fresh));
    let mut map = tensor.map().unwrap();
    map_change(&mut map);
    launch(&b, map, [0, 0, 0], 1024);
    let first = b.device.faults().into_iter().next();
    b.device.reset();
    first
}

#[test]
fn mistakes_with_tensors() {
    let copy = format!("{INSTRUCTION} [%r1], [%rd1, {{%r3, %r4}}], [%r2];");
    let good = Text { bytes: 1024, copy: &copy, announced: 1024, before: "", after: WAIT };
    for copies in [Copies::Late, Copies::Early] {
        let observed = Config { checked: true, copies, ..Config::default() };
        let fault = |text: &Text| fault_of(observed, text, |_, _| (), |_| ());
        let kind = |text: &Text| fault(text).map(|f| f.kind);
        assert_eq!(kind(&good), None);

        // No map, a map with another bit, one of a row more than there is, and of rows that nobody wrote.
        for change in
            [|map| map.opaque = [0; 16], |map| map.opaque[1] ^= 256, |map| map.opaque[15] = 1] as [ChangeMap; 3]
        {
            for before in ["", "prefetch.tensormap [%rd1];"] {
                let text = Text { before, ..good };
                assert_eq!(fault_of(observed, &text, |_, _| (), change).unwrap().kind, "tensor map");
            }
        }
        let changed = |change| fault_of(observed, &good, change, |_| ()).unwrap();
        let f = changed(|t, _| (t.sizes[1], t.address) = (17, t.address + 9 * 128));
        assert!(f.kind == "out of bounds" && f.message.contains("past the end"), "{f:?}");
        assert_eq!(changed(|t, fresh| t.address = fresh).kind, "uninitialised read");

        // The target: no multiple of 128, and not at the start of a pattern; too little memory for the box.
        let moved = |by: usize| format!("add.s32 %r1, %r1, {by};\n{copy}");
        for (by, message) in [(64, "multiple of 128"), (128, "repeats after 1024"), (512, "repeats after 1024")] {
            let text = moved(by);
            let f = fault(&Text { copy: &text, ..good }).unwrap();
            assert!(f.kind == "misaligned access" && f.message.contains(message), "{f:?}");
        }
        let text = moved(1024);
        assert_eq!(kind(&Text { copy: &text, ..good }).unwrap(), "out of bounds");
        assert_eq!(kind(&Text { bytes: 512, ..good }).unwrap(), "out of bounds");
        // Another number of dimensions.
        let text = copy.replace("2d", "3d").replace("%r4}", "%r4, %r5}");
        assert_eq!(kind(&Text { copy: &text, ..good }).unwrap(), "tensor map");

        // Too many bytes are waited for, or too few.
        for announced in [1008, 1040] {
            assert_eq!(kind(&Text { announced, ..good }).unwrap(), "endless wait");
        }
        // No fence between the threads' stores and the copy.
        let store = "shl.b32 %r10, %r0, 2;\nadd.s32 %r10, %r1, %r10;\nst.shared.u32 [%r10], %r0;\nbar.sync 0;";
        assert_eq!(kind(&Text { before: store, ..good }).unwrap(), "missing fence");
        let fenced = store.replace("bar", "fence.proxy.async.shared::cta;\nbar");
        assert_eq!(kind(&Text { before: &fenced, ..good }), None);
        // No wait, and one for the wrong phase: the one before, or where the copy has come the one behind.
        for (after, early) in [("", None), (&WAIT.replace(", 0;", ", 1;"), Some("endless wait"))] {
            let found = kind(&Text { after, ..good });
            let expected = if copies == Copies::Late { Some("asynchronous copy race") } else { early };
            assert_eq!(found.as_deref(), expected);
        }
        // A second copy to the same place.
        let twice = format!("{copy}\n{copy}");
        let found = kind(&Text { copy: &twice, announced: 2048, ..good });
        assert_eq!(found.is_some(), copies == Copies::Late, "{found:?}");
    }
}

#[test]
fn graphs_keep_maps() {
    let bytes = 1024;
    let copy = format!("{INSTRUCTION} [%r1], [%rd1, {{%r3, %r4}}], [%r2];");
    let b = bench(Config::default(), &Text { bytes, copy: &copy, announced: bytes, before: "", after: WAIT }.kernel());
    let (x, out) = (b.up(&numbers(64 * 16)), b.zeros::<u16>(512));
    let tensor = Tensor::matrix(address(&b, &x), [64, 16], 128, [64, 8], 0);
    b.stream.synchronize().unwrap();
    b.stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    {
        let args =
            [b.pointer(&out), Arg::Map(tensor.map().unwrap()), Arg::I32(0), Arg::I32(2), Arg::I32(0), b.pointer(&x)];
        b.launch("t", shape(1, 32), &args).unwrap();
    }
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = b.stream.end_capture(flags).unwrap().unwrap();
    for _ in 0..2 {
        graph.launch().unwrap();
        assert_eq!(b.down(&out), numbers(64 * 16)[128..640]);
    }
    b.assert_clean();
}

/// Words of a structure, read through its address and in vectors.
#[test]
fn parameters_at_generic_addresses() {
    let text = |load: &str| {
        format!(
            "{HEAD}.visible .entry t(.param .u64 out, .param .align 64 .b8 map[128], .param .u32 last) {{\n\
             .reg .b64 %rd<12>;\n.reg .b32 %r<8>;\nmov.u32 %r0, %tid.x;\nld.param.u64 %rd0, [out];\n\
             mul.wide.u32 %rd1, %r0, 8;\nadd.s64 %rd0, %rd0, %rd1;\nmov.b64 %rd2, map;\nadd.s64 %rd3, %rd2, %rd1;\n\
             {load}\nst.global.u64 [%rd0], %rd4;\nret;\n}}\n"
        )
    };
    let words: [u64; 16] = std::array::from_fn(|i| ((i as u64) << 40) + 3 * i as u64);
    let run = |load: &str, threads: u32| {
        let b = bench(Config { checked: true, ..Config::default() }, &text(load));
        let out = b.zeros::<u64>(32);
        b.launch("t", shape(1, threads), &[b.pointer(&out), Arg::Map(sys::CUtensorMap { opaque: words }), Arg::I32(9)])
            .unwrap();
        let got = b.stream.clone_dtoh(&out).unwrap_or_default();
        let fault = b.device.faults().into_iter().next();
        b.device.reset();
        (got, fault)
    };
    for load in [
        "cvta.param.u64 %rd5, %rd3;\nld.u64 %rd4, [%rd5];",
        "ld.param.u64 %rd4, [%rd3];",
        "cvta.param.u64 %rd5, %rd3;\nld.v2.u32 {%r1, %r2}, [%rd5];\nmov.b64 %rd4, {%r1, %r2};",
    ] {
        let (got, fault) = run(load, 16);
        assert_eq!(got[..16], words, "{load}: {fault:?}");
        let (_, fault) = run(load, 32);
        assert_eq!(fault.unwrap().kind, "out of bounds", "{load}");
    }
    let (got, fault) = run("ld.param.v2.u64 {%rd4, %rd5}, [map+16];\nadd.s64 %rd4, %rd4, %rd5;", 1);
    assert_eq!((got[0], fault), (words[2] + words[3], None));
    let (got, fault) = run("ld.param.v4.b32 {%r1, %r2, %r3, %r4}, [map+48];\ncvt.u64.u32 %rd4, %r3;", 1);
    assert_eq!((got[0], fault), (21, None));
    // Other generic addresses are none that the device knows.
    let (_, fault) = run("ld.param.u64 %rd5, [out];\nld.u64 %rd4, [%rd5];", 1);
    assert_eq!(fault.unwrap().kind, "out of bounds");
}
