//! Planted bugs. Each must be caught in every schedule that is named, with kernel, place and the right class.

use cudarc::driver::sys::CUresult;
use ggro_emulator::{Config, Copies, Fault, Schedule, Streams};

use crate::harness::{Arg, Bench, Shape, noise, shape};

const SCHEDULES: [Schedule; 4] = [Schedule::Forward, Schedule::Reverse, Schedule::Shuffle(1), Schedule::Shuffle(2)];

fn configs(checked: bool) -> Vec<Config> {
    let copies = [Copies::Late, Copies::Early];
    let all = SCHEDULES.into_iter().flat_map(|schedule| copies.map(|copies| (schedule, copies)));
    all.map(|(schedule, copies)| Config { checked, schedule, copies, streams: Streams::Eager }).collect()
}

/// Runs the kernel in every checked configuration; each must report a fault of this kind in the kernel's own lines, and the
/// launch must fail with this error.
fn caught(kind: &str, error: CUresult, kernel: &str, launch: impl Fn(&Bench)) -> Fault {
    let mut first = None;
    for config in configs(true) {
        let b = Bench::new(config);
        launch(&b);
        let faults = b.device.faults();
        let fault = faults.iter().find(|f| f.kind == kind && f.kernel == kernel);
        let fault = fault.unwrap_or_else(|| panic!("{kernel}, {config:?}: no {kind:?} in {faults:#?}"));
        assert!(is_in(kernel, &fault.at), "{fault:?}");
        assert!(fault.block.is_some() && fault.thread.is_some());
        assert_eq!(b.error(), Some(error), "{kernel}, {config:?}");
        first.get_or_insert_with(|| fault.clone());
    }
    first.expect("there are configurations")
}

/// Is `bugs.cu:LINE` one of the kernel's lines? (Of a kernel of tensor_bugs.cu, one of tensor.cu.)
fn is_in(kernel: &str, at: &str) -> bool {
    let source = include_str!("../../kernels/bugs.cu");
    let Some(begin) = source.find(&format!("BUG({kernel},")) else { return at.starts_with("tensor.cu:") };
    let end = begin + source[begin..].find("\n\n").unwrap_or(source.len() - begin);
    let line = |at: usize| 1 + source[..at].matches('\n').count();
    let named = at.strip_prefix("bugs.cu:").and_then(|line| line.parse().ok());
    named.is_some_and(|named: usize| (line(begin)..=line(end)).contains(&named))
}

fn run(b: &Bench, kernel: &str, shape: Shape, args: &[Arg]) {
    b.launch(kernel, shape, args).unwrap_or_else(|e| panic!("{kernel}: {e}"));
}

const FAILED: CUresult = CUresult::CUDA_ERROR_LAUNCH_FAILED;
const ILLEGAL: CUresult = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
const MISALIGNED: CUresult = CUresult::CUDA_ERROR_MISALIGNED_ADDRESS;

#[test]
fn global_out_of_bounds() {
    let f = caught("out of bounds", ILLEGAL, "bug_read_past_end", |b| {
        let (out, input) = (b.raw::<f32>(64), b.zeros::<f32>(64));
        run(b, "bug_read_past_end", shape(1, 64), &[b.pointer(&out), b.pointer(&input), Arg::I32(1)]);
    });
    assert!(
        f.message.contains("read of 4 bytes") && f.message.contains("0 bytes past the end of an allocation of 256"),
        "{f:?}"
    );
    assert_eq!(f.thread, Some([63, 0, 0]));
    let f = caught("out of bounds", ILLEGAL, "bug_write_past_end", |b| {
        let out = b.raw::<f32>(63);
        run(b, "bug_write_past_end", shape(1, 64), &[b.pointer(&out), Arg::I32(63)]);
    });
    assert!(f.message.contains("write of 4 bytes") && f.message.contains("4 bytes past the end"), "{f:?}");
}

#[test]
fn far_out_of_bounds_without_the_checker() {
    for schedule in SCHEDULES {
        let b = Bench::new(Config { schedule, ..Config::default() });
        let (out, input) = (b.raw::<f32>(64), b.zeros::<f32>(64));
        run(&b, "bug_read_past_end", shape(1, 64), &[b.pointer(&out), b.pointer(&input), Arg::I32(64)]);
        assert_eq!(b.error(), Some(ILLEGAL));
        let faults = b.device.faults();
        assert_eq!((faults[0].kind.as_str(), faults[0].kernel.as_str()), ("out of bounds", "bug_read_past_end"));
        assert_eq!(faults[0].thread, Some([63, 0, 0]));
        assert!(is_in("bug_read_past_end", &faults[0].at), "{faults:?}");
    }
}

#[test]
fn use_after_free() {
    for checked in [false, true] {
        let b = Bench::new(Config { checked, streams: Streams::Lazy, ..Config::default() });
        let (out, input) = (b.raw::<f32>(64), b.zeros::<f32>(4096));
        let args = [b.pointer(&out), b.pointer(&input)];
        run(&b, "bug_copy_global", shape(1, 64), &args);
        b.stream.synchronize().unwrap();
        // The free is ordered before the second launch.
        let other = b.ctx.new_stream().unwrap();
        drop(input);
        b.stream.synchronize().unwrap();
        let error = b.launch_on(&other, "bug_copy_global", shape(1, 64), &args).unwrap_err();
        assert_eq!(error.0, CUresult::CUDA_ERROR_INVALID_VALUE);
        let faults = b.device.faults();
        assert_eq!(faults[0].kind, "wrong parameters", "{faults:?}");
    }
}

#[test]
fn misaligned_vector() {
    let launch = |b: &Bench| {
        let (out, input) = (b.raw::<f32>(64), b.zeros::<f32>(64));
        run(b, "bug_misaligned_vector", shape(1, 64), &[b.pointer(&out), b.pointer(&input)]);
    };
    caught("misaligned access", MISALIGNED, "bug_misaligned_vector", launch);
}

#[test]
fn uninitialised() {
    let f = caught("uninitialised read", FAILED, "bug_copy_global", |b| {
        let (out, input) = (b.raw::<f32>(64), b.raw::<f32>(64));
        run(b, "bug_copy_global", shape(1, 64), &[b.pointer(&out), b.pointer(&input)]);
    });
    assert_eq!(f.count, 64);
    let f = caught("uninitialised read", FAILED, "bug_uninitialised_shared", |b| {
        let out = b.raw::<f32>(64);
        run(b, "bug_uninitialised_shared", shape(1, 64), &[b.pointer(&out)]);
    });
    assert_eq!((f.thread, f.count), (Some([63, 0, 0]), 1));
    // The plain build answers with NaN.
    let b = Bench::new(Config::default());
    let (out, input) = (b.raw::<f32>(64), b.raw::<f32>(64));
    run(&b, "bug_copy_global", shape(1, 64), &[b.pointer(&out), b.pointer(&input)]);
    assert!(b.down(&out).iter().all(|x| x.is_nan()));
    run(&b, "bug_uninitialised_shared", shape(1, 64), &[b.pointer(&out)]);
    assert!(b.down(&out)[63].is_nan());
}

#[test]
fn shared_memory_races() {
    for kernel in ["bug_no_syncthreads", "bug_no_second_barrier"] {
        caught("shared memory race", FAILED, kernel, |b| {
            let out = b.raw::<f32>(64);
            run(b, kernel, shape(1, 64), &[b.pointer(&out)]);
        });
    }
}

#[test]
fn missing_syncwarp() {
    caught("shared memory race", FAILED, "bug_no_syncwarp", |b| {
        let out = b.raw::<f32>(32);
        run(b, "bug_no_syncwarp", shape(1, 32), &[b.pointer(&out)]);
    });
}

#[test]
fn divergent_barriers() {
    for config in [false, true].into_iter().flat_map(configs) {
        let b = Bench::new(config);
        for (kernel, kind) in [
            ("bug_barrier_after_exit", "divergent barrier"),
            ("bug_two_barriers", "divergent barrier"),
            ("bug_barrier_deadlock", "deadlock"),
        ] {
            let out = b.raw::<f32>(64);
            run(&b, kernel, shape(1, 64), &[b.pointer(&out)]);
            let faults = b.device.faults();
            assert_eq!((faults[0].kind.as_str(), faults[0].kernel.as_str()), (kind, kernel), "{config:?}");
            assert!(is_in(kernel, &faults[0].at), "{faults:?}");
            assert_eq!(b.error(), Some(FAILED));
            b.device.reset();
        }
    }
    let b = Bench::new(Config::default());
    b.device.configure("exits=allow");
    let out = b.raw::<f32>(64);
    run(&b, "bug_barrier_after_exit", shape(1, 64), &[b.pointer(&out)]);
    assert_eq!(b.error(), None);
}

#[test]
fn deadlock_names_every_waiting_place() {
    let b = Bench::new(Config::default());
    let out = b.raw::<f32>(64);
    run(&b, "bug_barrier_deadlock", shape(1, 64), &[b.pointer(&out)]);
    let message = b.device.faults()[0].message.clone();
    let barrier =
        ["bar.sync", "barrier.sync"].iter().any(|op| message.contains(&format!("31 thread(s) wait for {op}")));
    assert!(barrier && message.contains("1 thread(s) wait for shfl.sync.idx"), "{message}");
    assert!(message.matches(" at bugs.cu:").count() == 2, "{message}");
}

#[test]
fn asynchronous_copies() {
    let launch = |kernel: &'static str| {
        move |b: &Bench| {
            let (out, input) = (b.raw::<f32>(64), b.up(&noise(768, 1)));
            run(b, kernel, shape(1, 64), &[b.pointer(&out), b.pointer(&input)]);
        }
    };
    caught("asynchronous copy race", FAILED, "bug_no_copy_wait", launch("bug_no_copy_wait"));
    caught("shared memory race", FAILED, "bug_copy_without_barrier", launch("bug_copy_without_barrier"));
    caught("shared memory race", FAILED, "bug_refill_too_early", launch("bug_refill_too_early"));

    // Without the checker the values give the bugs away, each in its mode.
    let expected =
        |x: &[f32]| -> Vec<f32> { (0..64).map(|t| (0..3).map(|r| x[256 * r + 4 * (63 - t)]).sum()).collect() };
    for schedule in SCHEDULES {
        let b = Bench::new(Config { schedule, copies: Copies::Late, ..Config::default() });
        let x = noise(768, 1);
        let (out, input) = (b.raw::<f32>(64), b.up(&x));
        run(&b, "bug_no_copy_wait", shape(1, 64), &[b.pointer(&out), b.pointer(&input)]);
        assert!(b.down(&out).iter().all(|v| v.is_nan()), "{schedule:?}");
        b.device.configure("copies=early");
        run(&b, "bug_refill_too_early", shape(1, 64), &[b.pointer(&out), b.pointer(&input)]);
        assert_ne!(b.down(&out), expected(&x), "{schedule:?}");
    }
}

#[test]
fn pipelines_with_a_line_missing() {
    let matmul = |b: &Bench| {
        let (x, w, out) = (b.zeros::<u16>(64 * 128), b.zeros::<u16>(64 * 128), b.raw::<f32>(64 * 64));
        let sizes = [Arg::I32(64), Arg::I32(64), Arg::I32(128)];
        let args = [&[b.pointer(&out), b.pointer(&x), b.pointer(&w)], &sizes[..]].concat();
        run(b, "bug_matmul_wait", shape(1, 128).shared(3 * 2 * 64 * 40 * 2), &args);
    };
    caught("asynchronous copy race", FAILED, "bug_matmul_wait", matmul);
    caught("missing fence", FAILED, "bug_no_proxy_fence", |b: &Bench| {
        let (x, w, out) = (b.zeros::<u16>(64 * 16), b.zeros::<u16>(128 * 16), b.raw::<f32>(64 * 128));
        let args = [b.pointer(&out), b.pointer(&x), b.pointer(&w), Arg::I32(16)];
        run(b, "bug_no_proxy_fence", shape(1, 128), &args);
    });
    let bulk = |b: &Bench| {
        let x = noise(7 * 256, 7);
        let (input, output) = (b.up(&x), b.raw::<f32>(x.len()));
        let args = [b.pointer(&output), b.pointer(&input), Arg::I32(7)];
        run(b, "bug_bulk_refill", shape(1, 64).shared(2048), &args);
        x.iter().zip(b.stream.clone_dtoh(&output).unwrap_or_default()).all(|(x, y)| 2.0 * x == y)
    };
    for config in configs(false).into_iter().filter(|c| c.copies == Copies::Early) {
        let b = Bench::new(config);
        let right = bulk(&b);
        assert!(!right || !b.device.faults().is_empty(), "{config:?}: the early refill went unnoticed");
    }
}

#[test]
fn bulk_copy_without_wait() {
    let launch = |b: &Bench| {
        let (out, input) = (b.raw::<f32>(64), b.up(&noise(64, 1)));
        run(b, "bug_no_bulk_wait", shape(1, 64).shared(256), &[b.pointer(&out), b.pointer(&input)]);
    };
    for config in configs(true) {
        let b = Bench::new(Config { copies: Copies::Late, ..config });
        launch(&b);
        assert_eq!(b.device.faults()[0].kind, "asynchronous copy race", "{config:?}");
    }
    let b = Bench::new(Config::default());
    b.device.configure("faults=report");
    let (out, input) = (b.raw::<f32>(64), b.up(&noise(64, 1)));
    run(&b, "bug_no_bulk_wait", shape(1, 64).shared(256), &[b.pointer(&out), b.pointer(&input)]);
    assert!(b.down(&out)[0].is_nan());
    drop((out, input));
    drop(b);
    for config in configs(false) {
        let b = Bench::new(config);
        for kernel in ["bug_mbarrier_never_initialised", "bug_mbarrier_two_arrivals"] {
            let out = b.raw::<f32>(64);
            run(&b, kernel, shape(1, 64), &[b.pointer(&out)]);
            let faults = b.device.faults();
            assert_eq!(faults[0].kind, "mbarrier");
            assert!(is_in(kernel, &faults[0].at), "{faults:?}");
            b.device.reset();
        }
    }
}

#[test]
fn global_memory_races() {
    caught("global memory race", FAILED, "bug_block_race", |b| {
        run(b, "bug_block_race", shape(4, 1), &[b.pointer(&b.raw::<f32>(1))]);
    });
    caught("global memory race", FAILED, "bug_global_race", |b| {
        run(b, "bug_global_race", shape(1, 64), &[b.pointer(&b.raw::<f32>(128))]);
    });
    caught("global memory race", FAILED, "bug_neighbour_block", |b| {
        run(b, "bug_neighbour_block", shape(4, 32), &[b.pointer(&b.zeros::<f32>(256))]);
    });
    // A last-arriver reduction whose ticket publishes nothing.
    caught("global memory race", FAILED, "bug_ticket_relaxed", |b| {
        let (input, partials) = (b.zeros::<f32>(700), b.raw::<f32>(7));
        let (out, ticket) = (b.raw::<f32>(1), b.zeros::<u32>(1));
        let args = [b.pointer(&out), b.pointer(&partials), b.pointer(&ticket), b.pointer(&input), Arg::I32(100)];
        run(b, "bug_ticket_relaxed", shape(7, 128), &args);
    });
}

#[test]
fn dynamic_shared_overflow() {
    let f = caught("out of bounds", ILLEGAL, "bug_shared_overflow", |b| {
        let out = b.raw::<f32>(64);
        run(b, "bug_shared_overflow", shape(1, 64).shared(400), &[b.pointer(&out), Arg::I32(101)]);
    });
    assert!(f.message.contains("write of 4 bytes of shared memory at byte 400 of 400"), "{f:?}");
    // Bounds are checked always.
    let b = Bench::new(Config::default());
    let out = b.raw::<f32>(64);
    run(&b, "bug_shared_overflow", shape(1, 64).shared(512), &[b.pointer(&out), Arg::I32(129)]);
    assert_eq!(b.error(), Some(ILLEGAL));
}

#[test]
fn traps_loops_and_divisions() {
    for checked in [false, true] {
        let b = Bench::new(Config { checked, ..Config::default() });
        // All memory first: cudarc keeps an error of a failing free and reports it later.
        let (out, flag, zero, ints) = (b.raw::<f32>(64), b.zeros::<u32>(1), b.zeros::<f32>(1), b.raw::<i32>(32));
        run(&b, "bug_trap", shape(1, 64), &[b.pointer(&out)]);
        let faults = b.device.faults();
        assert_eq!((faults[0].kind.as_str(), faults[0].thread), ("trap", Some([5, 0, 0])));
        assert_eq!(b.error(), Some(FAILED));
        b.device.reset();

        run(&b, "bug_wait_for_later_block", shape(2, 1), &[b.pointer(&flag)]);
        assert_eq!(b.device.faults()[0].kind, "endless wait");
        b.device.reset();

        b.device.configure("watchdog=1");
        run(&b, "bug_endless_loop", shape(1, 1), &[b.pointer(&zero)]);
        let faults = b.device.faults();
        assert_eq!(faults[0].kind, "endless loop");
        b.device.reset();

        run(&b, "bug_shuffle_from_nobody", shape(1, 32), &[b.pointer(&ints)]);
        assert_eq!(b.device.faults()[0].kind, "undefined shuffle");
        b.device.reset();

        run(&b, "bug_divide_by_zero", shape(1, 32), &[b.pointer(&ints), Arg::I32(7)]);
        let faults = b.device.faults();
        assert_eq!((faults[0].kind.as_str(), faults[0].thread), ("division by zero", Some([7, 0, 0])));
        assert!(is_in("bug_divide_by_zero", &faults[0].at), "{faults:?}");
        assert_eq!(b.error(), Some(FAILED));
        b.device.reset();

        // And the device works again.
        run(&b, "fixed_syncwarp", shape(1, 32), &[b.pointer(&out)]);
        assert_eq!(b.error(), None);
    }
}
