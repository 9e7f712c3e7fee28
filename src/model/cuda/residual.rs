//! The residual stream of a batch. It is added to in one place; or, for a backward pass, each layer's attention and MLP leave it where
//! the tape keeps it, and the next one goes on from there. Nothing is copied for that.

use crate::cuda::ops::gemm::Output;
use crate::cuda::{Buffer, View, ViewMut};

/// The residual stream of one layer, as the tape keeps it. The last layer's attention and MLP have the live rows alone.
pub(super) struct LayerResidual {
    /// Before the layer.
    pub input: Buffer<f32>, // [n, hidden]
    /// Between attention and MLP.
    pub middle: Buffer<f32>, // [n, hidden]
}

/// The stream on its way through the layers. What is asked for has `rows` rows.
pub(super) struct ResidualStream<'a> {
    /// All rows, unless there is a tape.
    pub all: &'a mut Buffer<f32>,
    /// The live rows, from the last layer's attention on.
    pub live: &'a mut Buffer<f32>,
    /// Per layer.
    pub tape: Option<&'a mut [LayerResidual]>,
    /// Layers.
    pub layers: usize,
    /// Elements of a row.
    pub width: usize,
}

impl ResidualStream<'_> {
    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.layers
    }

    /// Before a layer.
    pub fn input(&mut self, layer: usize, rows: usize) -> ViewMut<'_, f32> {
        match &mut self.tape {
            None => self.all.first_mut(rows * self.width),
            Some(tape) => tape[layer].input.first_mut(rows * self.width),
        }
    }

    /// Where the last layer's live rows go, and the `rows` rows of the batch that they are among.
    pub fn live(&mut self, live_rows: usize, rows: usize) -> (ViewMut<'_, f32>, View<'_, f32>) {
        let (live, all) = (live_rows * self.width, rows * self.width);
        let last = self.layers - 1;
        let from = self.tape.as_ref().map_or(&*self.all, |tape| &tape[last].input);
        (self.live.first_mut(live), from.first(all))
    }

    /// Where attention adds.
    pub fn after_attention(&mut self, layer: usize, rows: usize) -> Output<'_> {
        let (is_last, len) = (self.is_last(layer), rows * self.width);
        match &mut self.tape {
            None if is_last => Output::Add(self.live.first_mut(len)),
            None => Output::Add(self.all.first_mut(len)),
            Some(tape) => {
                let LayerResidual { input, middle } = &mut tape[layer];
                let before = if is_last { &*self.live } else { &*input };
                Output::Sum { y: middle.first_mut(len), before: before.first(len) }
            }
        }
    }

    /// Between attention and MLP.
    pub fn middle(&mut self, layer: usize, rows: usize) -> ViewMut<'_, f32> {
        let (is_last, len) = (self.is_last(layer), rows * self.width);
        match &mut self.tape {
            None if is_last => self.live.first_mut(len),
            None => self.all.first_mut(len),
            Some(tape) => tape[layer].middle.first_mut(len),
        }
    }

    /// Where the MLP adds.
    pub fn after_mlp(&mut self, layer: usize, rows: usize) -> Output<'_> {
        let (is_last, len) = (self.is_last(layer), rows * self.width);
        match &mut self.tape {
            None if is_last => Output::Add(self.live.first_mut(len)),
            None => Output::Add(self.all.first_mut(len)),
            Some(tape) => {
                let (here, above) = tape.split_at_mut(layer + 1);
                let to = above.first_mut().map_or(&mut *self.live, |above| &mut above.input);
                Output::Sum { y: to.first_mut(len), before: here[layer].middle.first(len) }
            }
        }
    }
}
