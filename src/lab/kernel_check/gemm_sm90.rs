//! Cases of Hopper's products: the problems of `gemm` with weights in tiles.

use super::case::Case;
use super::gemm::{GemmKernels, cases_of, gated_cases, head_cases, norm_cases, timings_of, waiting_cases};
use super::timing::Timed;
use crate::cuda::ops::gemm::Direction;
use crate::cuda::ops::weight_layout::WeightLayout;

const FORWARD: GemmKernels = GemmKernels { direction: Direction::Forward, layout: WeightLayout::Tiles };

pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, 64),
        (1, 130, 1152),
        (2, 31, 128),
        (9, 64, 2304),
        (17, 33, 8),
        (25, 111, 1024),
        (33, 129, 200),
        (49, 40, 2304),
        (65, 100, 1088),
        (97, 131, 192),
        (129, 257, 1152),
        (137, 64, 128),
        (193, 129, 64),
        (2048, 8, 64),
        (1, 32_000, 128),
    ];
    let mut cases = cases_of(FORWARD, &shapes, [(257, 40, 1088), (97, 136, 2112), (34, 36, 1088)]);
    cases.extend(waiting_cases(FORWARD));
    cases.extend(gated_cases(FORWARD, &[(1, 8, 64), (9, 72, 200), (34, 24, 1088), (129, 136, 72)]));
    let heads = [(64, 2, 1, 1, 64), (20, 3, 1, 9, 200), (18, 1, 1, 26, 72), (80, 1, 1, 34, 1088), (128, 2, 1, 129, 72)];
    cases.extend(head_cases(FORWARD, &heads));
    cases
        .extend(norm_cases(FORWARD, &[(1, 64, 40, 64), (9, 192, 192, 200), (34, 2112, 2100, 72), (129, 128, 128, 72)]));
    cases
}

pub fn timings() -> Vec<Timed> {
    timings_of(FORWARD)
}
