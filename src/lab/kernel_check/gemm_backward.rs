//! Cases of `gemm_backward`: the problems of `gemm`, the other way.

use super::case::Case;
use super::gemm::{GemmKernels, cases_of, timings_of};
use super::timing::Timed;
use crate::cuda::ops::gemm::Direction;
use crate::cuda::ops::weight_layout::WeightLayout;

const BACKWARD: GemmKernels = GemmKernels { direction: Direction::Backward, layout: WeightLayout::Rows };

pub fn cases() -> Vec<Case> {
    let shapes = [
        (1, 8, 8),
        (1, 1160, 136),
        (2, 96, 24),
        (7, 2304, 64),
        (9, 64, 40),
        (16, 1024, 112),
        (31, 200, 136),
        (33, 2304, 40),
        (64, 1096, 104),
        (65, 160, 136),
        (129, 1120, 264),
        (1, 72, 32_000),
    ];
    cases_of(BACKWARD, &shapes, [(257, 1056, 40), (257, 2112, 24), (34, 1056, 40)])
}

pub fn timings() -> Vec<Timed> {
    timings_of(BACKWARD)
}
