//! Kernels for Hopper alone: they are on Hopper and on no other card, and what measures its tensor core multiplies.

use crate::emulated::Emulated;
use ggro::cuda::Buffer;
use ggro::cuda::instruments::wgmma_peak::{self, wgmma_peak};
use ggro::lab::kernel_check;
use ggro::lab::kernel_check::wgmma::{Wgmma, wgmma};
use ggro_emulator::{Config, Copies, Schedule};

/// Its launch is refused in words elsewhere, and the benchmark does without it.
#[test]
fn they_are_on_no_other_card() {
    for arch in [80, 86, 89, 90, 100, 120] {
        let emulated = Emulated::new(Config::default());
        emulated.machine.configure(&format!("arch={arch}"));
        let emulated = emulated.opened_again();
        let device = &emulated.device;
        assert_eq!(wgmma_peak::runs_on(device), arch == 90, "{arch}");
        let mut out = Buffer::<f32>::zeros(device, wgmma_peak::THREADS as usize).unwrap();
        let launched = wgmma_peak(device, &mut out.view_mut(), 1, 1);
        match launched {
            Ok(_) => assert_eq!(arch, 90),
            Err(error) => {
                let error = error.to_string();
                assert!(arch != 90 && error.contains("wgmma_peak_sm90 are for Hopper alone"), "{arch}: {error}");
            }
        }
        let timings = kernel_check::bench(device, Some("none"), true, |_| ()).unwrap();
        let names: Vec<&str> = timings.iter().map(|timing| timing.op).collect();
        let all = ["copy", "read", "peak_mma", "peak_wgmma"];
        assert_eq!(names, all[..if arch == 90 { 4 } else { 3 }], "{arch}");
        emulated.assert_clean();
    }
}

/// `kernels record` asks a card; sums that are exact, or cut in groups, do not depend on the width.
#[test]
fn widths_of_products_agree() {
    for mma in ["mma=exact", "mma=16"] {
        let emulated = Emulated::new(Config::default());
        emulated.machine.configure(mma);
        let answer = wgmma(&emulated.device).unwrap();
        assert_eq!(answer, Some(Wgmma { widths_agree: true, agrees_with_mma: true }), "{mma}");
        emulated.machine.configure("arch=80");
        assert_eq!(wgmma(&emulated.opened_again().device).unwrap(), None);
    }
}

/// An element of either operand of `wgmma_peak`, by its row and its place along the sum: 2^-7, with a few low bits in the even
/// places.
fn element(row: usize, place: usize) -> f64 {
    let low = if place.is_multiple_of(2) { row % 8 + place % 8 / 2 } else { 0 };
    (1.0 + low as f64 / 128.0) / 128.0
}

/// The sums are those of the products, on each thread, however warps and copies are ordered.
#[test]
fn products_of_the_peak_are_right() {
    let (blocks, rounds) = (2, 3);
    let other = Config { schedule: Schedule::Shuffle(1), copies: Copies::Early, ..Config::default() };
    for config in [Config { checked: true, ..Config::default() }, other] {
        let emulated = Emulated::new(config);
        let device = &emulated.device;
        let threads = wgmma_peak::THREADS as usize;
        let mut out = Buffer::<f32>::uninitialised(device, blocks * threads).unwrap();
        let flops = wgmma_peak(device, &mut out.view_mut(), blocks, rounds).unwrap();
        let sums = out.download(device).unwrap();
        for (thread, &sum) in sums.iter().enumerate() {
            // A thread has two rows of its warp, 8 apart, and two neighbouring columns of each 8 of 128.
            let (row, column) = (thread % 32 / 4, thread % 4 * 2);
            let product = |column| (0..16).map(|place| element(row, place) * element(column, place)).sum::<f64>();
            let expected = (rounds * 16 * 2 * 16) as f64 * (product(column) + product(column + 1));
            let error = (f64::from(sum) - expected).abs();
            assert!(error <= 1e-6 * expected, "thread {thread}: {sum}, expected {expected}");
        }
        let counted = emulated.machine.report().kernels["wgmma_peak_bf16"].matrix_flops;
        assert_eq!(counted as f64, flops);
        emulated.assert_clean();
    }
}
