//! The driver's side: launch checks, sticky errors, streams, events, graphs, memory, images.

use std::ffi::c_void;
use std::path::Path;
use std::process::Command;

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode_enum, CUstreamCaptureStatus_enum};
use cudarc::driver::{CudaContext, result};
use ggro_emulator::{Config, Report, Streams};

use crate::harness::{Arg, Bench, Shape, launch_raw, libcuda, noise, shape};

fn lazy() -> Config {
    Config { streams: Streams::Lazy, ..Config::default() }
}

fn copy_args(b: &Bench, n: usize) -> (cudarc::driver::CudaSlice<f32>, cudarc::driver::CudaSlice<f32>) {
    (b.zeros::<f32>(n), b.up(&vec![1.0; n]))
}

fn code<T>(result: Result<T, cudarc::driver::DriverError>) -> CUresult {
    result.err().map_or(CUresult::CUDA_SUCCESS, |e| e.0)
}

#[test]
fn device_properties() {
    let b = Bench::new(Config::default());
    assert_eq!(b.ctx.name().unwrap(), "ggro emulated device");
    assert_eq!(b.ctx.compute_capability().unwrap(), (9, 0));
    let attribute = |a| b.ctx.attribute(a).unwrap();
    assert_eq!(attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), 132);
    assert_eq!(attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN), 232_448);
    assert!(code(CudaContext::new(1)) == CUresult::CUDA_ERROR_INVALID_DEVICE);
    let (free, total) = result::mem_get_info().unwrap();
    assert!(free <= total && total == 16 << 30);
}

#[test]
fn launch_shapes_are_checked() {
    let b = Bench::new(Config::default());
    let (out, input) = copy_args(&b, 64);
    let args = [b.pointer(&out), b.pointer(&input), Arg::I32(64), Arg::F32(1.0)];
    let attempt = |grid, block, shared| code(b.launch("copy", Shape { grid, block, shared }, &args));
    assert_eq!(attempt((1, 1, 1), 64, 0), CUresult::CUDA_SUCCESS);
    assert_eq!(attempt((1, 1, 1), 1025, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(attempt((0, 1, 1), 64, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(attempt((1, 65_536, 1), 64, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(attempt((1, 1, 1), 64, 48 << 10), CUresult::CUDA_SUCCESS);
    // One byte more needs the attribute, which has its own limit.
    let function = b.function("copy").unwrap();
    let fat = Shape { grid: (1, 1, 1), block: 64, shared: (48 << 10) + 1 };
    assert_eq!(code(launch_raw(function, &b.stream, fat, &args)), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code(b.allow_shared(function, 232_449)), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(attempt((1, 1, 1), 64, 232_448), CUresult::CUDA_SUCCESS);
    assert_eq!(code(b.function("no_such_kernel")), CUresult::CUDA_ERROR_NOT_FOUND);
    b.assert_clean();
}

#[test]
fn parameters_are_checked() {
    let b = Bench::new(Config::default());
    let (out, input) = copy_args(&b, 64);
    let attempt = |args: &[Arg]| {
        b.device.reset();
        let result = code(b.launch("copy", shape(1, 64), args));
        let faults = b.device.faults();
        assert_eq!(faults[0].kind, "wrong parameters", "{faults:?}");
        result
    };
    // One too few; a number for a pointer; the order wrong.
    let (o, i) = (b.pointer(&out), b.pointer(&input));
    assert_eq!(attempt(&[o, i, Arg::I32(64)]), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(attempt(&[o, Arg::I64(64), i, Arg::F32(1.0)]), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(attempt(&[Arg::F64(1.0), o, i, Arg::I32(64)]), CUresult::CUDA_ERROR_INVALID_VALUE);

    // A packed buffer says its size, so the sizes themselves are checked.
    b.device.reset();
    let function = b.function("copy").unwrap();
    let packed = |bytes: usize| {
        let mut buffer = [0u8; 32];
        for (at, arg) in [(0, o), (8, i)] {
            if let Arg::Pointer(p) = arg {
                buffer[at..at + 8].copy_from_slice(&p.to_le_bytes());
            }
        }
        buffer[16..20].copy_from_slice(&64i32.to_le_bytes());
        buffer[20..24].copy_from_slice(&2.0f32.to_le_bytes());
        let mut size = bytes;
        let mut extra: [*mut c_void; 5] =
            [1 as _, buffer.as_mut_ptr().cast(), 2 as _, (&raw mut size).cast(), std::ptr::null_mut()];
        // SAFETY: the buffer and its size outlive the call, which copies them.
        unsafe {
            let stream = b.stream.cu_stream();
            sys::cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, std::ptr::null_mut(), extra.as_mut_ptr())
        }
    };
    assert_eq!(packed(24), CUresult::CUDA_SUCCESS);
    assert_eq!(b.down(&out), vec![2.0; 64]);
    assert_eq!(packed(20), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(packed(32), CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn errors_are_sticky() {
    let b = Bench::new(Config::default());
    let out = b.raw::<f32>(64);
    b.launch("bug_trap", shape(1, 64), &[b.pointer(&out)]).unwrap();
    let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;
    assert_eq!(code(b.stream.synchronize()), failed);
    assert_eq!(code(b.launch("fixed_syncwarp", shape(1, 32), &[b.pointer(&out)])), failed);
    assert_eq!(code(b.stream.clone_dtoh(&out)), failed);
    assert_eq!(code(b.stream.alloc_zeros::<f32>(1)), failed);
    assert_eq!(code(b.ctx.synchronize()), failed);
    b.device.reset();
    assert_eq!(code(b.ctx.synchronize()), CUresult::CUDA_SUCCESS);
    // A refused launch is not sticky.
    assert_eq!(
        code(b.launch("fixed_syncwarp", shape(1, 2048), &[b.pointer(&out)])),
        CUresult::CUDA_ERROR_INVALID_VALUE
    );
    assert_eq!(code(b.ctx.synchronize()), CUresult::CUDA_SUCCESS);
}

/// What a process saw is in its report when it has ended, names that are no UTF-8 too, and a kernel with a long name.
#[test]
fn a_report_at_exit() {
    const INNER: &str = "GGRO_TEST_REPORT_AT_EXIT";
    let name = "k".repeat(1500);
    if std::env::var_os(INNER).is_some() {
        let mut text = b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry ".to_vec();
        text.extend(name.as_bytes());
        text.extend(b"() {\n.loc 1 7 1\ntrap;\n}\n.file 1 \"/\xc3\xbc/a\xe9 \xf8\x90\x80\x80\xe2\x82\xac.cu\"\n\0");
        let b = Bench::with_image(Config::default(), &text);
        b.launch(&name, shape(1, 32), &[]).unwrap();
        assert_eq!(code(b.stream.synchronize()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
        // Without the reset of a bench that is dropped.
        return std::mem::forget(b);
    }
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("at-exit-{}.json", std::process::id()));
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["driver::a_report_at_exit", "--exact"])
        .env(INNER, "1")
        .env("GGRO_EMU_REPORT", &report)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    let found: Report = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    std::fs::remove_file(report).unwrap();
    assert_eq!(found.kernels[&name].launches, 1);
    let fault = &found.faults[0];
    assert_eq!((fault.kind.as_str(), &fault.kernel), ("trap", &name));
    assert_eq!(fault.at, "a\u{fffd} \u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{20ac}.cu:7");
}

#[test]
fn a_missing_event_shows_with_lazy_streams() {
    let b = Bench::new(lazy());
    let other = b.ctx.new_stream().unwrap();
    let (middle, input) = copy_args(&b, 64);
    let out = b.zeros::<f32>(64);
    b.stream.synchronize().unwrap();
    let first = [b.pointer(&middle), b.pointer(&input), Arg::I32(64), Arg::F32(2.0)];
    let second = [b.pointer(&out), b.pointer(&middle), Arg::I32(64), Arg::F32(1.0)];
    b.launch("copy", shape(1, 64), &first).unwrap();
    b.launch_on(&other, "copy", shape(1, 64), &second).unwrap();
    assert_eq!(other.clone_dtoh(&out).unwrap(), vec![0.0; 64], "stale: nothing ordered the streams");

    b.launch("copy", shape(1, 64), &first).unwrap();
    let event = b.stream.record_event(None).unwrap();
    other.wait(&event).unwrap();
    b.launch_on(&other, "copy", shape(1, 64), &second).unwrap();
    assert_eq!(other.clone_dtoh(&out).unwrap(), vec![2.0; 64]);
    b.assert_clean();
}

#[test]
fn pinned_memory_is_read_late() {
    let b = Bench::new(lazy());
    // SAFETY: written below before it is read.
    let mut pinned = unsafe { b.ctx.alloc_pinned::<f32>(4) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(1.0);
    let mut device = b.zeros::<f32>(4);
    let (p, d) = (pinned.as_mut_ptr().unwrap(), &mut device);
    b.stream.synchronize().unwrap();
    // SAFETY: both ranges hold 4 floats; writing the source before the copy has run is what is tested.
    unsafe {
        let Arg::Pointer(to) = b.pointer(d) else { unreachable!() };
        sys::cuMemcpyHtoDAsync_v2(to, p.cast(), 16, b.stream.cu_stream()).result().unwrap();
        *p = 5.0;
    }
    assert_eq!(b.down(&device), [5.0, 1.0, 1.0, 1.0]);
    let mut pageable = vec![1.0f32; 4];
    b.stream.memcpy_htod(&pageable, &mut device).unwrap();
    pageable[0] = 5.0;
    assert_eq!(b.down(&device), [1.0; 4]);
}

#[test]
fn events_measure_time() {
    for config in [Config::default(), lazy()] {
        let b = Bench::new(config);
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let start = b.stream.record_event(flags).unwrap();
        let (out, input) = copy_args(&b, 64);
        let args = [b.pointer(&out), b.pointer(&input), Arg::I32(64), Arg::F32(1.0)];
        b.launch("copy", shape(1, 64), &args).unwrap();
        let end = b.stream.record_event(flags).unwrap();
        assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
        let untimed = b.stream.record_event(None).unwrap();
        assert_eq!(code(start.elapsed_ms(&untimed)), CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
}

#[test]
fn graphs() {
    for config in Config::matrix().into_iter().flat_map(|c| [c, Config { streams: Streams::Lazy, ..c }]) {
        let b = Bench::new(config);
        let (out, input) = copy_args(&b, 64);
        let twice = b.zeros::<f32>(64);
        b.stream.synchronize().unwrap();
        b.stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        assert_eq!(b.stream.capture_status().unwrap(), CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_ACTIVE);
        b.launch("copy", shape(1, 64), &[b.pointer(&out), b.pointer(&input), Arg::I32(64), Arg::F32(3.0)]).unwrap();
        b.launch("copy", shape(1, 64), &[b.pointer(&twice), b.pointer(&out), Arg::I32(64), Arg::F32(2.0)]).unwrap();
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = b.stream.end_capture(flags).unwrap().unwrap();
        assert!(!b.device.report().kernels.contains_key("copy"), "captured, not run");
        for _ in 0..2 {
            graph.launch().unwrap();
        }
        assert_eq!(b.down(&twice), vec![6.0; 64]);
        assert_eq!(b.device.report().kernels["copy"].launches, 4);
        b.assert_clean();
    }
}

#[test]
fn captures_that_must_fail() {
    let b = Bench::new(Config::default());
    let mode = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_GLOBAL;
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let end = || code(b.stream.end_capture(flags));
    let outside = b.stream.record_event(None).unwrap();

    b.stream.begin_capture(mode).unwrap();
    assert_eq!(code(b.stream.wait(&outside)), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    assert_eq!(end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    b.stream.begin_capture(mode).unwrap();
    assert_eq!(code(b.stream.synchronize()), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    b.stream.begin_capture(mode).unwrap();
    // SAFETY: the allocation is refused.
    assert_eq!(code(unsafe { result::malloc_sync(16) }), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    // A second stream joins through an event, works, and must be waited for.
    let other = b.ctx.new_stream().unwrap();
    let (out, input) = copy_args(&b, 64);
    let args = [b.pointer(&out), b.pointer(&input), Arg::I32(64), Arg::F32(3.0)];
    for joined in [false, true] {
        b.stream.begin_capture(mode).unwrap();
        let fork = b.stream.record_event(None).unwrap();
        other.wait(&fork).unwrap();
        b.launch_on(&other, "copy", shape(1, 64), &args).unwrap();
        if joined {
            let join = other.record_event(None).unwrap();
            b.stream.wait(&join).unwrap();
        }
        let expected = if joined { CUresult::CUDA_SUCCESS } else { CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED };
        assert_eq!(end(), expected);
    }
}

#[test]
fn memory_limits() {
    let b = Bench::new(Config::default());
    b.device.configure("memory=1048576");
    assert_eq!(code(b.stream.alloc_zeros::<u8>(2 << 20)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let half = b.zeros::<u8>(512 << 10);
    assert_eq!(code(b.stream.alloc_zeros::<u8>(768 << 10)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    drop(half);
    assert_eq!(code(b.stream.alloc_zeros::<u8>(768 << 10)), CUresult::CUDA_SUCCESS);
    let slice = b.zeros::<u8>(100);
    let Arg::Pointer(p) = b.pointer(&slice) else { unreachable!() };
    // SAFETY: the driver refuses the copy.
    let error = unsafe { result::memcpy_htod_sync(p, &[0u8; 101]) };
    assert_eq!(code(error), CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn images_that_are_none() {
    let b = Bench::new(Config::default());
    // SAFETY: the text is longer than any header that is looked at.
    let error = unsafe { result::module::load_data([7u8; 128].as_ptr().cast()) };
    assert_eq!(code(error), CUresult::CUDA_ERROR_INVALID_IMAGE);
    // A stub has what the folder has, and nothing without one.
    b.device.configure("ptx=image");
    assert_eq!(code(b.function("copy")), CUresult::CUDA_ERROR_NOT_FOUND);
    assert_eq!(b.device.faults()[0].kind, "no code");
    b.device.reset();
    b.device.configure("ptx=/nowhere");
    assert_eq!(code(b.function("copy")), CUresult::CUDA_ERROR_NOT_FOUND);
    assert_eq!(b.device.faults()[0].kind, "no code");
}

/// Where nvcc is, launches are checked against the real compiler's output.
#[test]
fn real_images() {
    let Some(nvcc) = ggro_emulator::nvcc() else { return eprintln!("not tested: images of machine code, no nvcc") };
    let directory = libcuda().with_file_name("images");
    std::fs::create_dir_all(&directory).unwrap();
    let compile = |flags: &[&str], name: &str| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/launch.cu");
        let target = directory.join(name);
        let output = Command::new(&nvcc).args(flags).arg(source).arg("-o").arg(&target).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(target).unwrap()
    };
    let cubin = compile(&["-arch=sm_90a", "-cubin"], "90.cubin");
    let older = compile(&["-arch=sm_80", "-cubin"], "80.cubin");
    let both =
        ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a", "-fatbin", "--no-compress"];
    let fatbin = compile(&both, "both.fatbin");

    for image in [&cubin, &fatbin] {
        let b = Bench::with_image(Config::default(), image);
        let x = noise(1024, 1);
        let (input, output) = (b.up(&x), b.raw::<f32>(1024));
        let args = [b.pointer(&output), b.pointer(&input), Arg::I32(1024), Arg::F32(3.0)];
        b.launch("copy", shape(4, 256), &args).unwrap();
        assert!(b.down(&output).iter().zip(&x).all(|(y, x)| *y == 3.0 * x));
        // __launch_bounds__(256) is in the image.
        assert_eq!(code(b.launch("copy", shape(1, 512), &args)), CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
        let out = b.raw::<f64>(1);
        let mixed = [b.pointer(&out), Arg::I32(-1), Arg::I64(5), Arg::F32(0.5), Arg::U8(200), Arg::F64(0.25)];
        b.launch("mixed", shape(1, 32), &mixed).unwrap();
        assert_eq!(b.down(&out), [204.75]);
        let attribute = |name: &str, a| {
            let function = b.function(name).unwrap();
            // SAFETY: the function belongs to the bench's module.
            unsafe { result::function::get_function_attribute(function, a) }.unwrap()
        };
        use sys::CUfunction_attribute_enum as A;
        assert_eq!(attribute("copy", A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK), 256);
        assert!((4..64).contains(&attribute("copy", A::CU_FUNC_ATTRIBUTE_NUM_REGS)));
        // 8 floats, which the compiler rounds up.
        assert!((32..=128).contains(&attribute("block_sums", A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)));
        // A kernel that only the folder of PTX has is not in the image.
        assert_eq!(code(b.function("matmul")), CUresult::CUDA_ERROR_NOT_FOUND);
        b.assert_clean();
    }
    // What an image has as text runs where no folder has it: alone, in a fatbin, and beside machine code.
    let text = compile(&["-arch=compute_90a", "-ptx"], "90.ptx");
    let only = compile(&["-gencode=arch=compute_90a,code=compute_90a", "-fatbin", "--no-compress"], "90.fatbin");
    let beside = ["-gencode=arch=compute_90a,code=[sm_90a,compute_90a]", "-fatbin", "--no-compress"];
    let beside = compile(&beside, "beside.fatbin");
    for image in [&[text, vec![0]].concat(), &only, &beside] {
        let b = Bench::with_image(Config::default(), image);
        b.device.configure("ptx=image");
        let x = noise(1024, 1);
        let (input, output) = (b.up(&x), b.raw::<f32>(1024));
        let args = [b.pointer(&output), b.pointer(&input), Arg::I32(1024), Arg::F32(3.0)];
        b.launch("copy", shape(4, 256), &args).unwrap();
        assert!(x.iter().zip(b.down(&output)).all(|(x, y)| x * 3.0 == y));
        assert_eq!(code(b.launch("copy", shape(1, 512), &args)), CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
        assert_eq!(code(b.function("matmul")), CUresult::CUDA_ERROR_NOT_FOUND);
        b.assert_clean();
    }
    // Machine code alone does not run, and neither does PTX of other sources.
    let b = Bench::with_image(Config::default(), &cubin);
    b.device.configure("ptx=image");
    assert_eq!(code(b.function("copy")), CUresult::CUDA_ERROR_NOT_FOUND);
    assert_eq!(b.device.faults()[0].kind, "no code");
    b.device.reset();
    let other = directory.join("other");
    std::fs::create_dir_all(&other).unwrap();
    let kernel = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry copy(.param .u32 n) { ret; }\n";
    std::fs::write(other.join("other.ptx"), kernel).unwrap();
    b.device.configure(&format!("ptx={}", other.display()));
    assert_eq!(code(b.function("copy")), CUresult::CUDA_ERROR_INVALID_IMAGE);
    assert_eq!(b.device.faults()[0].kind, "parameter layout");
    drop(b);
    let load = |image: &[u8]| {
        // SAFETY: a whole cubin; modules that do load are left to the process.
        code(unsafe { result::module::load_data(image.as_ptr().cast()) })
    };
    let b = Bench::new(Config::default());
    assert_eq!(load(&older), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    b.device.configure("arch=80");
    assert_eq!(load(&older), CUresult::CUDA_SUCCESS);
    assert_eq!(load(&cubin), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
}
