//! Correct kernels, plain and checked, in every schedule and copy mode: right results and no fault.

use ggro_emulator::{Config, Schedule};

use crate::harness::{Arg, Bench, bf16, from_bf16, noise, shape};
use crate::tensors::{Tensor, address};

fn everywhere(test: impl Fn(&Bench)) {
    for config in Config::matrix() {
        let bench = Bench::new(config);
        for lanes in ["lanes=together", "lanes=apart"] {
            bench.device.configure(lanes);
            test(&bench);
        }
        bench.assert_clean();
        let kernels = bench.device.report().kernels;
        assert!(!kernels.is_empty() && kernels.values().all(|c| c.instructions > 0), "no kernel ran");
        let checked: u64 = kernels.values().map(|c| c.checked_launches).sum();
        assert_eq!(checked > 0, config.checked, "{config:?}");
    }
}

#[test]
fn copy() {
    everywhere(|b| {
        let x = noise(1000, 1);
        let (input, output) = (b.up(&x), b.raw::<f32>(1000));
        b.launch("copy", shape(4, 256), &[b.pointer(&output), b.pointer(&input), Arg::I32(1000), Arg::F32(3.0)])
            .unwrap();
        let y = b.down(&output);
        assert!(x.iter().zip(&y).all(|(x, y)| x * 3.0 == *y));
    });
}

#[test]
fn block_sums() {
    everywhere(|b| {
        let x: Vec<f32> = (0..4096).map(|i| (i % 17) as f32).collect();
        let (input, output) = (b.up(&x), b.raw::<f32>(4));
        b.launch("block_sums", shape(4, 256), &[b.pointer(&output), b.pointer(&input)]).unwrap();
        let expected: Vec<f32> = x.chunks(1024).map(|c| c.iter().sum()).collect();
        assert_eq!(b.down(&output), expected);
    });
}

#[test]
fn reverse_with_all_the_shared_memory() {
    everywhere(|b| {
        for words in [1, 33, 12_288, 58_112] {
            let x = noise(words, 2);
            let (input, output) = (b.up(&x), b.raw::<f32>(words));
            let shared = 4 * words as u32;
            let args = [b.pointer(&output), b.pointer(&input), Arg::I32(words as i32)];
            b.launch("reverse", shape(1, 256).shared(shared), &args).unwrap();
            assert!(b.down(&output).iter().rev().eq(x.iter()), "{words} words");
        }
    });
}

#[test]
fn parameters_of_every_size() {
    everywhere(|b| {
        let out = b.raw::<f64>(1);
        let args = [b.pointer(&out), Arg::I32(-1), Arg::I64(1 << 40), Arg::F32(0.5), Arg::U8(200), Arg::F64(0.25)];
        b.launch("mixed", shape(1, 32), &args).unwrap();
        assert_eq!(b.down(&out), [(1u64 << 40) as f64 + 199.75]);
    });
}

#[test]
fn collectives() {
    everywhere(|b| {
        let out = b.raw::<i32>(640);
        b.launch("collectives", shape(1, 64), &[b.pointer(&out)]).unwrap();
        let got = b.down(&out);
        for (t, mine) in got.chunks(10).enumerate() {
            let (t, lane, warp) = (t as i32, t as i32 % 32, t as i32 / 32 * 32);
            let ballot = (0..32).filter(|l| l % 3 == 0).fold(0u32, |m, l| m | 1 << l) as i32;
            let segment = lane / 8 * 8;
            let up = if lane < 3 { t } else { t - 3 };
            let down = if lane % 16 + 2 >= 16 { t } else { t + 2 };
            let index = warp + segment + (lane + 1) % 8;
            assert_eq!(mine, [ballot, 1, 0, index, up, down, warp + (lane ^ 5), 13, 1, 0], "thread {t}");
        }
    });
}

#[test]
fn sixteen_bit_rounding() {
    let mut x = vec![
        0.0,
        -0.0,
        1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        65504.0,
        65519.9,
        65520.0,
        6.0e-8,
        2.9e-8,
        -3.0e-8,
        6.1e-5,
        6.097e-5,
        f32::MIN_POSITIVE,
        1.003_906_3,
        1.000_488_3,
        f32::MAX,
        1.0e-40,
    ];
    x.extend(noise(200, 3).iter().map(|v| v * 1.0e-5));
    x.extend(noise(200, 4).iter().map(|v| v * 1.0e4));
    let b = Bench::new(Config::default());
    let (input, to_bf16, to_f16) = (b.up(&x), b.raw::<f32>(x.len()), b.raw::<f32>(x.len()));
    let args = [b.pointer(&to_bf16), b.pointer(&to_f16), b.pointer(&input), Arg::I32(x.len() as i32)];
    b.launch("round_trip", shape(1, 128), &args).unwrap();
    for ((x, y), z) in x.iter().zip(b.down(&to_bf16)).zip(b.down(&to_f16)) {
        assert_eq!(y.to_bits(), from_bf16(bf16(*x)).to_bits(), "bf16 of {x}");
        assert_eq!(z.to_bits(), f16_by_search(*x).to_bits(), "f16 of {x:e}");
    }
}

/// The nearest f16, ties to even, found by looking at all of them.
fn f16_by_search(x: f32) -> f32 {
    let value = |bits: u32| match bits >> 10 {
        0 => f64::from(bits) * 2f64.powi(-24),
        exponent => f64::from(bits & 0x3ff | 0x400) * 2f64.powi(exponent as i32 - 25),
    };
    let magnitude = f64::from(x.abs());
    if magnitude >= 65520.0 {
        return f32::INFINITY.copysign(x);
    }
    let best = (0..0x7c00).min_by(|a, b| {
        let (da, db) = ((value(*a) - magnitude).abs(), (value(*b) - magnitude).abs());
        da.total_cmp(&db).then((a & 1).cmp(&(b & 1)))
    });
    (value(best.unwrap()) as f32).copysign(x)
}

fn matmul(b: &Bench, m: usize, n: usize, k: usize) {
    let x: Vec<u16> = noise(m * k, 5).iter().map(|v| bf16(*v)).collect();
    let w: Vec<u16> = noise(n * k, 6).iter().map(|v| bf16(*v)).collect();
    let (dx, dw, out) = (b.up(&x), b.up(&w), b.raw::<f32>(m * n));
    let args =
        [b.pointer(&out), b.pointer(&dx), b.pointer(&dw), Arg::I32(m as i32), Arg::I32(n as i32), Arg::I32(k as i32)];
    let grid = shape(n.div_ceil(64) as u32, 128).rows(m.div_ceil(64) as u32).shared(3 * 2 * 64 * 40 * 2);
    b.launch("matmul", grid, &args).unwrap();
    let got = b.down(&out);
    for i in 0..m {
        for j in 0..n {
            let exact: f64 =
                (0..k).map(|l| f64::from(from_bf16(x[i * k + l])) * f64::from(from_bf16(w[j * k + l]))).sum();
            let error = (f64::from(got[i * n + j]) - exact).abs();
            assert!(error < 1e-5 * (k as f64).sqrt(), "row {i} column {j}: {} for {exact}", got[i * n + j]);
        }
    }
}

#[test]
fn tensor_core_tile() {
    everywhere(|b| matmul(b, 70, 72, 128));
}

#[test]
fn product_of_a_warpgroup() {
    everywhere(|b| {
        let (m, n, k) = (64, 128, 48);
        let x: Vec<u16> = noise(m * k, 9).iter().map(|v| bf16(*v)).collect();
        let w: Vec<u16> = noise(n * k, 10).iter().map(|v| bf16(*v)).collect();
        let (dx, dw, out) = (b.up(&x), b.up(&w), b.raw::<f32>(m * n));
        let args = [b.pointer(&out), b.pointer(&dx), b.pointer(&dw), Arg::I32(k as i32)];
        b.launch("warpgroup_product", shape(1, 128), &args).unwrap();
        for (i, got) in b.down(&out).into_iter().enumerate() {
            let term = |l: usize| f64::from(from_bf16(x[i / n * k + l])) * f64::from(from_bf16(w[i % n * k + l]));
            let exact: f64 = (0..k).map(term).sum();
            assert!((f64::from(got) - exact).abs() < 1e-5, "row {} column {}: {got} for {exact}", i / n, i % n);
        }
    });
}

/// Runs a kernel of pipeline.cu: a[m, k] b[n, k]^T.
pub fn tensor_product(b: &Bench, kernel: &str, [m, n, k]: [usize; 3]) -> (Vec<f32>, Vec<f32>) {
    let x: Vec<u16> = noise(m * k, 11).iter().map(|v| bf16(*v)).collect();
    let w: Vec<u16> = noise(n * k, 12).iter().map(|v| bf16(*v)).collect();
    let (dx, dw, out) = (b.up(&x), b.up(&w), b.zeros::<f32>(m * n));
    let map = |slice, rows: usize, height| {
        let sizes = [k as u64, rows as u64];
        Arg::Map(Tensor::matrix(address(b, slice), sizes, 2 * k as u64, [64, height], 3).map().unwrap())
    };
    let sizes = [m, n, k].map(|size| Arg::I32(size as i32));
    let args = [&[b.pointer(&out), map(&dx, m, 128), map(&dw, n, 64)], &sizes[..]].concat();
    b.launch(kernel, shape(2, 384).shared(3 * 192 * 128 + 1024), &args).unwrap();
    let got = b.stream.clone_dtoh(&out).unwrap_or_default();
    let value = |list: &[u16], i: usize| f64::from(from_bf16(list[i]));
    let exact =
        (0..m * n).map(|i| (0..k).map(|l| value(&x, i / n * k + l) * value(&w, i % n * k + l)).sum::<f64>() as f32);
    (got, exact.collect())
}

#[test]
fn product_of_tensors() {
    everywhere(|b| {
        let (got, exact) = tensor_product(b, "tensor_product", [200, 100, 328]);
        for (i, (x, y)) in got.iter().zip(exact).enumerate() {
            assert!((x - y).abs() < 2e-5, "row {} column {}: {x} for {y}", i / 100, i % 100);
        }
    });
}

#[test]
fn ldmatrix_transposed_and_f16() {
    everywhere(|b| {
        // Small integers: exact in f16, and their products in f32.
        let f16 = |v: usize| [0u16, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600][v % 7];
        let value = |v: usize| (v % 7) as f32;
        let x: Vec<u16> = (0..256).map(|i| f16(i * 5)).collect();
        let y: Vec<u16> = (0..128).map(|i| f16(i * 3)).collect();
        let (dx, dy, out) = (b.up(&x), b.up(&y), b.raw::<f32>(128));
        b.launch("small_f16", shape(1, 32), &[b.pointer(&out), b.pointer(&dx), b.pointer(&dy)]).unwrap();
        let got = b.down(&out);
        for i in 0..16 {
            for j in 0..8 {
                let exact: f32 = (0..16).map(|k| value((i * 16 + k) * 5) * value((k * 8 + j) * 3)).sum();
                assert_eq!(got[i * 8 + j], exact, "row {i} column {j}");
            }
        }
    });
}

#[test]
fn bulk_copies_and_mbarriers() {
    everywhere(|b| {
        for chunks in [1usize, 2, 7] {
            let x = noise(chunks * 256, 7);
            let (input, output) = (b.up(&x), b.raw::<f32>(x.len()));
            let args = [b.pointer(&output), b.pointer(&input), Arg::I32(chunks as i32)];
            b.launch("bulk_double", shape(1, 64).shared(2048), &args).unwrap();
            b.assert_clean();
            assert!(x.iter().zip(b.down(&output)).all(|(x, y)| 2.0 * x == y), "{chunks} chunks");
        }
    });
}

#[test]
fn last_arriver() {
    everywhere(|b| {
        let x: Vec<f32> = (0..7 * 300).map(|i| (i % 13) as f32).collect();
        let (input, partials, out, ticket) = (b.up(&x), b.raw::<f32>(7), b.raw::<f32>(1), b.zeros::<u32>(1));
        for _ in 0..2 {
            let args = [b.pointer(&out), b.pointer(&partials), b.pointer(&ticket), b.pointer(&input), Arg::I32(300)];
            b.launch("ticket_sum", shape(7, 128), &args).unwrap();
            assert_eq!(b.down(&out), [x.iter().sum::<f32>()]);
            assert_eq!(b.down(&ticket), [0]);
        }
    });
}

#[test]
fn atomics() {
    everywhere(|b| {
        let x: Vec<u32> = (0..5000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 7).collect();
        let (input, counts) = (b.up(&x), b.zeros::<u32>(64));
        b.launch("histogram", shape(3, 256), &[b.pointer(&counts), b.pointer(&input), Arg::I32(5000)]).unwrap();
        let mut expected = vec![0u32; 64];
        x.iter().for_each(|v| expected[*v as usize % 64] += 1);
        assert_eq!(b.down(&counts), expected);
    });
}

#[test]
fn order_is_kept_by_syncwarp() {
    everywhere(|b| {
        let out = b.raw::<f32>(32);
        b.launch("fixed_syncwarp", shape(1, 32), &[b.pointer(&out)]).unwrap();
        assert_eq!(b.down(&out)[3], 28.0 + 2.0);
    });
}

#[test]
fn counters() {
    let b = &Bench::new(Config { checked: true, ..Config::default() });
    let x = noise(2048, 8);
    let (input, output) = (b.up(&x), b.raw::<f32>(2048));
    b.launch("copy", shape(8, 256), &[b.pointer(&output), b.pointer(&input), Arg::I32(2000), Arg::F32(1.0)]).unwrap();
    let c = b.device.report().kernels["copy"].clone();
    assert_eq!((c.launches, c.blocks, c.threads), (1, 8, 2048));
    assert_eq!((c.bytes_read, c.bytes_written), (8000, 8000));
    assert_eq!((c.unique_bytes_read, c.unique_bytes_written), (8000, 8000));
    assert_eq!((c.sectors_read, c.sectors_written), (250, 250));
    assert_eq!((c.shared_wavefronts, c.bank_conflicts), (0, 0));

    for (stride, conflicts) in [(32, 31 * 32), (33, 0)] {
        b.device.reset();
        let args = [b.pointer(&output), b.pointer(&input), Arg::I32(stride)];
        b.launch("transpose", shape(1, 32).shared(33 * 32 * 4), &args).unwrap();
        let c = b.device.report().kernels["transpose"].clone();
        assert_eq!((c.bank_conflicts, c.shared_wavefronts), (conflicts, 64 + conflicts), "stride {stride}");
        assert_eq!((c.sectors_read, c.sectors_written), (128, 128));
    }

    b.device.reset();
    matmul(b, 64, 64, 128);
    let c = b.device.report().kernels["matmul"].clone();
    assert_eq!((c.bytes_read, c.unique_bytes_read, c.bytes_written), (32768, 32768, 16384));
    assert_eq!((c.sectors_read, c.bank_conflicts), (1024, 0));
    assert_eq!(c.matrix_flops, 2 * 64 * 64 * 128);
    b.assert_clean();
}

#[test]
fn schedules_are_reproducible() {
    let run = |seed| {
        let b = Bench::new(Config { schedule: Schedule::Shuffle(seed), ..Config::default() });
        let out = b.raw::<f32>(1);
        b.launch("bug_block_race", shape(16, 1), &[b.pointer(&out)]).unwrap();
        b.down(&out)[0]
    };
    assert_eq!(run(5), run(5));
    assert!((0..8).any(|s| run(s) != run(5)), "every seed ends with the same block");
}

fn thread_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the given struct.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// The plain build is meant to carry whole toy models. The clock is the thread's own, and still noisy on a shared
/// machine, so the bound is far below what is usual (2 to 5 GFLOP/s).
#[test]
fn plain_speed() {
    let b = Bench::new(Config::default());
    let (m, n, k) = (64usize, 512usize, 512usize);
    let (x, w, out) = (b.zeros::<u16>(m * k), b.zeros::<u16>(n * k), b.raw::<f32>(m * n));
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let args =
            [b.pointer(&out), b.pointer(&x), b.pointer(&w), Arg::I32(m as i32), Arg::I32(n as i32), Arg::I32(k as i32)];
        let start = thread_seconds();
        let grid = shape(n as u32 / 64, 128).shared(3 * 2 * 64 * 40 * 2);
        b.launch("matmul", grid, &args).unwrap();
        best = best.min(thread_seconds() - start);
    }
    let rate = 2.0 * (m * n * k) as f64 / best * 1e-9;
    eprintln!("plain matmul 64x512x512: {rate:.2} GFLOP/s");
    assert!(rate > 0.5, "{rate} GFLOP/s");
}
