//! Cases of Hopper's data gradients: the problems of `gemm_backward` with weights in tiles.

use super::case::Case;
use super::gemm::{GemmKernels, cases_of, gated_cases, timings_of, waiting_cases};
use super::timing::Timed;
use crate::cuda::ops::gemm::Direction;
use crate::cuda::ops::weight_layout::WeightLayout;

const BACKWARD: GemmKernels = GemmKernels { direction: Direction::Backward, layout: WeightLayout::Tiles };

pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 8, 8),
        (1, 1160, 136),
        (2, 96, 24),
        (9, 2304, 64),
        (17, 64, 33),
        (25, 1024, 112),
        (33, 200, 136),
        (49, 2304, 40),
        (65, 1096, 104),
        (97, 160, 136),
        (129, 1120, 264),
        (193, 64, 129),
        (1, 72, 32_000),
    ];
    let mut cases = cases_of(BACKWARD, &shapes, [(257, 1056, 40), (97, 2112, 136), (34, 1056, 40)]);
    cases.extend(waiting_cases(BACKWARD));
    cases.extend(gated_cases(BACKWARD, &[(1, 8, 64), (9, 72, 200), (34, 40, 1088), (129, 136, 72)]));
    cases
}

pub fn timings() -> Vec<Timed> {
    timings_of(BACKWARD)
}
