//! Launches that may begin before the one before them has ended: what comes before their wait sees what was there before the chain,
//! and touches nothing that the chain touches.

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode_enum};
use ggro_emulator::{Config, Streams};

use crate::harness::{Bench, Shape, launch_dependent, shape};

const N: u32 = 128;
const MODES: [&str; 2] = ["dependents=late", "dependents=early"];

fn blocks() -> Shape {
    shape(N / 64, 64)
}

/// A device with three rows of numbers and weights, which are all 1.
struct Chain {
    rows: [CudaSlice<f32>; 3],
    weights: CudaSlice<f32>,
    b: Bench,
}

impl Chain {
    fn new(config: Config, mode: &str) -> Self {
        let b = Bench::new(config);
        b.device.configure(mode);
        Chain { rows: [0, 1, 2].map(|_| b.zeros(N as usize)), weights: b.up(&[1.0; N as usize]), b }
    }

    /// `rows[to] = rows[from] + 1`, or what the kernel makes of it.
    fn launch(&self, kernel: &str, to: usize, from: usize) -> CUresult {
        let args = [&self.rows[to], &self.rows[from], &self.weights].map(|slice| self.b.pointer(slice));
        let function = self.b.function(kernel).unwrap();
        let launched = launch_dependent(function, &self.b.stream, blocks(), &args);
        launched.err().map_or(CUresult::CUDA_SUCCESS, |error| error.0)
    }

    /// Adds to the first row, and to the second what the first has then, and so on.
    fn add(&self, kernel: &str) {
        assert_eq!(
            [(1, 0), (2, 1), (0, 2)].map(|(to, from)| self.launch(kernel, to, from)),
            [CUresult::CUDA_SUCCESS; 3]
        );
    }

    fn first(&self) -> [f32; 3] {
        [0, 1, 2].map(|row| self.b.down(&self.rows[row])[7])
    }

    /// Launches that were dependent, of all kernels.
    fn dependent(&self) -> u64 {
        self.b.device.report().kernels.values().map(|counters| counters.dependent_launches).sum()
    }

    fn graph(&self, work: impl FnOnce()) -> cudarc::driver::CudaGraph {
        let stream = &self.b.stream;
        stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        work();
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        stream.end_capture(flags).unwrap().unwrap()
    }
}

fn configs() -> Vec<Config> {
    let streams = [Streams::Eager, Streams::Lazy];
    let all = streams.into_iter().flat_map(|streams| [false, true].map(|checked| (streams, checked)));
    all.map(|(streams, checked)| Config { streams, checked, ..Config::default() }).collect()
}

#[test]
fn a_chain_says_the_same_late_and_early() {
    for config in configs() {
        for mode in MODES {
            for kernel in ["add_weights", "add_late"] {
                let chain = Chain::new(config, mode);
                chain.add(kernel);
                assert_eq!(chain.first(), [3.0, 1.0, 2.0], "{config:?}, {mode}, {kernel}");
                assert_eq!(chain.dependent(), 2, "the first of them has nothing before it");
                let early = chain.b.device.report().kernels[kernel].early_bytes_read;
                let weights = if kernel == "add_weights" && config.checked { 2 * 4 * u64::from(N) } else { 0 };
                assert_eq!(early, weights, "{config:?}, {mode}, {kernel}");
                chain.b.assert_clean();
            }
        }
    }
}

#[test]
fn what_is_between_two_kernels_is_waited_for() {
    let mut chain = Chain::new(Config::default(), MODES[1]);
    // Each of them reads early what the last one has written, which is no mistake then.
    let event = chain.b.stream.record_event(None).unwrap();
    chain.launch("bug_reads_early", 1, 0);
    chain.b.stream.memset_zeros(&mut chain.rows[2]).unwrap();
    chain.launch("bug_reads_early", 2, 1);
    let [.., third] = &mut chain.rows;
    chain.b.stream.memcpy_htod(&[5.0; N as usize], third).unwrap();
    chain.launch("bug_reads_early", 0, 2);
    chain.b.stream.wait(&event).unwrap();
    chain.launch("bug_reads_early", 1, 0);
    assert_eq!(chain.first(), [6.0, 7.0, 5.0]);
    assert_eq!(chain.dependent(), 0);
    // A launch without the attribute waits, too.
    let args = [&chain.rows[2], &chain.rows[1], &chain.weights].map(|slice| chain.b.pointer(slice));
    chain.launch("add_weights", 1, 0);
    chain.b.launch("bug_never_waits", blocks(), &args).unwrap();
    assert_eq!((chain.first()[2], chain.dependent()), (8.0, 0));
    chain.b.assert_clean();
}

/// Unobserved, what was there before shows in the results; observed, it is said.
#[test]
fn touches_before_the_wait_are_found() {
    let early_reads = ["bug_reads_early", "bug_copies_early", "bug_copies_bulk_early"];
    for copies in [ggro_emulator::Copies::Late, ggro_emulator::Copies::Early] {
        for kernel in early_reads {
            for (mode, expected) in MODES.into_iter().zip([2.0, 1.0]) {
                let chain = Chain::new(Config { copies, ..Config::default() }, mode);
                chain.launch("add_weights", 1, 0);
                chain.launch(kernel, 2, 1);
                assert_eq!(chain.first()[2], expected, "{kernel}, {mode}");
                chain.b.assert_clean();
                // Two kernels earlier, when the one in between touches none of it.
                chain.launch("add_weights", 2, 1);
                chain.launch("add_weights", 0, 1);
                chain.launch(kernel, 1, 2);
                assert_eq!(chain.first()[1], expected + 1.0, "{kernel}, {mode}");
            }
        }
    }
    for config in configs().into_iter().filter(|config| config.checked) {
        for mode in MODES {
            for (kernel, [to, from], words) in [
                ("bug_reads_early", [2, 1], "read of byte 0"),
                ("bug_copies_early", [2, 1], "read of byte 0"),
                ("bug_copies_bulk_early", [2, 1], "read of byte 0"),
                ("bug_writes_early", [0, 2], "need not have ended reads it"),
                ("bug_writes_early", [1, 2], "need not have ended writes it"),
            ] {
                for between in [0, 2] {
                    let chain = Chain::new(config, mode);
                    chain.launch("add_weights", 1, 0);
                    // Kernels that have waited themselves: whether they have is not known yet.
                    (0..between).for_each(|_| _ = chain.launch("add_weights", 2, 2));
                    chain.launch(kernel, to, from);
                    assert_eq!(chain.b.error(), Some(CUresult::CUDA_ERROR_LAUNCH_FAILED));
                    let faults = chain.b.device.faults();
                    let fault = &faults[0];
                    assert_eq!((fault.kind.as_str(), fault.kernel.as_str()), ("early access", kernel), "{faults:?}");
                    assert!(fault.message.contains(words) && fault.at.starts_with("dependents.cu:"), "{fault:?}");
                }
            }
        }
    }
}

/// Such a load may see what was there when the kernel began: also of a kernel two earlier, and not of what is behind a copy.
#[test]
fn read_only_loads_of_what_the_chain_writes_are_found() {
    for config in configs() {
        for mode in MODES {
            for between in [0, 2] {
                let mut chain = Chain::new(config, mode);
                chain.launch("add_weights", 1, 0);
                chain.b.stream.memcpy_htod(&[5.0; N as usize], &mut chain.rows[2]).unwrap();
                chain.launch("add_weights", 0, 2);
                chain.launch("bug_reads_constant", 2, 1);
                assert_eq!(chain.first(), [6.0, 1.0, 2.0], "{config:?}, {mode}");
                chain.b.assert_clean();
                chain.launch("add_weights", 0, 2);
                (0..between).for_each(|_| _ = chain.launch("add_weights", 1, 1));
                chain.launch("bug_reads_constant", 1, 0);
                // Where streams are lazy, nothing has run yet.
                _ = chain.b.error();
                let found = chain.b.device.faults();
                let kinds = found.iter().map(|fault| (fault.kind.as_str(), fault.kernel.as_str()));
                let expected = [("read-only data written", "bug_reads_constant")];
                assert_eq!(kinds.collect::<Vec<_>>(), expected[..usize::from(config.checked)], "{config:?}, {mode}");
            }
        }
    }
}

#[test]
fn a_kernel_that_never_waits_is_found() {
    for config in configs() {
        for mode in MODES {
            for (kernel, block) in [("bug_never_waits", [0, 0, 0]), ("bug_first_block_waits", [1, 0, 0])] {
                let chain = Chain::new(config, mode);
                chain.launch("add_weights", 1, 0);
                // It needs nothing of the kernel before it.
                chain.launch(kernel, 2, 2);
                assert_eq!(chain.b.error(), Some(CUresult::CUDA_ERROR_LAUNCH_FAILED));
                let faults = chain.b.device.faults();
                assert_eq!((faults[0].kind.as_str(), faults[0].block), ("missing wait", Some(block)), "{faults:?}");
            }
        }
    }
}

#[test]
fn graphs_keep_the_edges() {
    for config in configs() {
        for mode in MODES {
            let chain = Chain::new(config, mode);
            let graph = chain.graph(|| chain.add("add_weights"));
            // The first of a graph waits for whatever was before it.
            chain.launch("add_weights", 0, 0);
            for _ in 0..3 {
                graph.launch().unwrap();
            }
            assert_eq!(chain.first(), [10.0, 8.0, 9.0], "{config:?}, {mode}");
            assert_eq!(chain.dependent(), 6);
            chain.b.assert_clean();
        }
    }
    let chain = Chain::new(Config { checked: true, ..Config::default() }, MODES[1]);
    let graph = chain.graph(|| {
        chain.add("add_weights");
        chain.launch("bug_reads_early", 1, 0);
    });
    graph.launch().unwrap();
    assert_eq!(chain.b.error(), Some(CUresult::CUDA_ERROR_LAUNCH_FAILED));
    assert_eq!(chain.b.device.faults()[0].kind, "early access");
}

/// Cards before Hopper have no such launches, and graphs of drivers before 12.3 no such edges.
#[test]
fn what_cannot_be_is_refused() {
    let chain = Chain::new(Config::default(), MODES[0]);
    chain.b.device.configure("arch=80");
    assert_eq!(chain.launch("add_weights", 1, 0), CUresult::CUDA_ERROR_NOT_SUPPORTED);
    chain.b.device.configure("arch=90");
    chain.b.device.configure("driver=12020");
    let mut captured = CUresult::CUDA_SUCCESS;
    assert_eq!(chain.launch("add_weights", 1, 0), CUresult::CUDA_SUCCESS);
    drop(chain.graph(|| captured = chain.launch("add_weights", 1, 0)));
    chain.b.device.configure("driver=13000");
    assert_eq!(captured, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    chain.b.assert_clean();
}
