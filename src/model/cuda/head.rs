//! From final hidden states to the policy's rows: logits, their statistics, their largest.

use super::decoder::{Decoder, Linear};
use super::graphs::BufferAddress;
use super::inputs::{Slice, StepInputs};
use super::sizes::Sizes;
use crate::cuda::ops::copy_rows::copy_rows;
use crate::cuda::ops::logits::{chosen_logits, log_probabilities};
use crate::cuda::ops::softmax_entropy::{
    MAX_K, RowStatsOut, Scratch, TopKOut, TopKQuery, When, softmax_entropy, top_k as device_top_k,
};
use crate::cuda::{Buffer, Device};
use crate::model::{PolicyRow, RowStats, Signal, TopK, top_k};
use crate::{Error, Result};

/// Logits that are computed at once, in bytes: what a large cache does not hold anyway.
const LOGITS: usize = 128 << 20;

/// What is asked of one row.
#[derive(Clone, Copy)]
pub(super) struct HeadAsk {
    /// Probability floor.
    pub floor: f64,
    /// Largest logits.
    pub top_k: TopK,
    /// Where the hidden state is kept for [`Head::row`], if it is.
    pub keep: Option<u32>,
}

/// Buffers behind the policy's last norm, sized once for `r` rows at a time.
pub(super) struct Head {
    rows: usize,
    /// Lists of largest logits have ids below this. A launch has it as a parameter: see [`Shape`](super::graphs::Shape).
    pub ids_below: usize,
    logits: Buffer<f32>,  // [r, vocab]
    results: Buffer<u64>, // statistics, counts, ids and logits of the lists: one copy back
    scratch: Scratch,
    kept: Buffer<u16>,  // [sequences, hidden]
    asked: Buffer<f32>, // grows to [vocab] with the first ask for log-probabilities or single logits
    exact: Buffer<f64>, // [1], the probability floor of a row that has none
}

/// What is asked of a batch's rows, as the device reads it.
#[derive(Clone, Copy)]
pub(super) struct HeadInputs {
    pairs: Slice<[u32; 2]>,
    floors: Slice<f64>,
    wishes: Slice<TopKQuery>,
}

impl HeadInputs {
    /// Adds them to what a batch needs from the host, for `rows` rows: nothing is asked of those beyond `asked`.
    pub fn push(inputs: &mut StepInputs, asked: &[HeadAsk], rows: usize) -> Self {
        let mut pairs: Vec<_> =
            asked.iter().enumerate().map(|(row, asked)| [row as u32, asked.keep.unwrap_or(u32::MAX)]).collect();
        let mut floors: Vec<_> = asked.iter().map(|asked| asked.floor).collect();
        let mut wishes: Vec<_> = asked.iter().map(|asked| wish(asked.top_k)).collect();
        // No place: these are kept nowhere.
        pairs.resize(rows.max(asked.len()), [0, u32::MAX]);
        floors.resize(pairs.len(), 0.0);
        wishes.resize(pairs.len(), wish(TopK::Skip));
        HeadInputs { pairs: inputs.push(&pairs), floors: inputs.push(&floors), wishes: inputs.push(&wishes) }
    }
}

/// Words of a row's statistics.
const STATS: usize = size_of::<RowStatsOut>() / 8;
/// Words of everything that goes back of a row, at most.
const RESULTS: usize = STATS + 1 + MAX_K;
/// Hidden states that there is room for at first.
const KEPT: usize = 64;

impl Head {
    pub fn new(device: &Device, decoder: &Decoder) -> Result<Self> {
        let vocab = decoder.sizes.vocab;
        let rows = Self::rows_at_once(vocab, decoder.state.rows);
        Ok(Head {
            rows,
            ids_below: vocab,
            logits: Buffer::uninitialised(device, rows * vocab)?,
            results: Buffer::uninitialised(device, rows * RESULTS)?,
            scratch: Scratch::new(device, rows, vocab)?,
            kept: Buffer::uninitialised(device, KEPT * decoder.sizes.hidden_padded)?,
            asked: Buffer::uninitialised(device, 0)?,
            exact: Buffer::zeros(device, 1)?,
        })
    }

    fn rows_at_once(vocab: usize, rows: usize) -> usize {
        (LOGITS / 4 / vocab).clamp(8, 256).min(rows).max(1)
    }

    /// Bytes of the buffers, without the scratch. Those that grow with what is asked are counted as they are at first, but for
    /// the row that log-probabilities take.
    pub fn bytes(sizes: &Sizes, rows: usize) -> u64 {
        let at_once = Self::rows_at_once(sizes.vocab, rows);
        (at_once * (4 * sizes.vocab + 8 * RESULTS) + 2 * KEPT * sizes.hidden_padded + 4 * sizes.vocab) as u64
    }

    /// Bytes of the scratch.
    pub fn scratch_bytes(sizes: &Sizes, rows: usize) -> u64 {
        Scratch::bytes(Self::rows_at_once(sizes.vocab, rows), sizes.vocab)
    }

    /// Rows for the normed hidden states at the start of `decoder.state.normed`, one for each of `asked`, whose inputs went
    /// to the device with the batch.
    pub fn run(
        &mut self,
        device: &Device,
        decoder: &mut Decoder,
        row_inputs: HeadInputs,
        asked: &[HeadAsk],
    ) -> Result<Vec<PolicyRow>> {
        self.room_for(device, decoder, asked)?;
        self.keep(device, decoder, row_inputs)?;
        let mut out = Vec::with_capacity(asked.len());
        for (index, group) in asked.chunks(self.rows).enumerate() {
            let (first, stride) = (index * self.rows, self.stride(group));
            self.launch(device, decoder, row_inputs, first..first + group.len(), stride)?;
            self.collect(device, decoder.sizes.vocab, group, group.len(), stride, &mut out)?;
        }
        Ok(out)
    }

    /// Rows whose logits are there together, at most.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Where hidden states are kept.
    pub fn kept(&self) -> BufferAddress {
        BufferAddress { address: self.kept.address(), len: self.kept.len() }
    }

    /// Length of the lists that some rows ask for.
    pub fn stride(&self, asked: &[HeadAsk]) -> usize {
        asked.iter().map(|asked| wish(asked.top_k).k as usize).max().unwrap_or(0).min(self.ids_below)
    }

    /// The same as one of a few lengths.
    pub fn padded_stride(&self, asked: &[HeadAsk]) -> usize {
        self.stride(asked).next_multiple_of(32).min(MAX_K).min(self.ids_below)
    }

    /// Makes room for the hidden states of some rows.
    pub fn room_for(&mut self, device: &Device, decoder: &Decoder, asked: &[HeadAsk]) -> Result<()> {
        let d = decoder.sizes.hidden_padded;
        let last = asked.iter().filter_map(|asked| asked.keep).max().map_or(0, |last| last as usize);
        if (last + 1) * d > self.kept.len() {
            // As many as ever lived at once, rounded up to a power of two.
            let mut more = Buffer::uninitialised(device, (last + 1).next_power_of_two() * d)?;
            more.first_mut(self.kept.len()).copy_from(device, self.kept.view())?;
            self.kept = more;
        }
        Ok(())
    }

    /// Keeps hidden states for [`row`](Self::row).
    pub fn keep(&mut self, device: &Device, decoder: &Decoder, row_inputs: HeadInputs) -> Result<()> {
        let (d, pairs) = (decoder.sizes.hidden_padded, decoder.device_inputs.view(row_inputs.pairs));
        let hidden = decoder.state.normed.first(pairs.len() * d);
        copy_rows(device, &mut self.kept.view_mut(), hidden, pairs, d)
    }

    /// Logits, statistics and lists of some rows, on the device.
    pub fn launch(
        &mut self,
        device: &Device,
        decoder: &mut Decoder,
        row_inputs: HeadInputs,
        range: std::ops::Range<usize>,
        stride: usize,
    ) -> Result<()> {
        let (d, v, first, rows) = (decoder.sizes.hidden_padded, decoder.sizes.vocab, range.start, range.len());
        let hidden = decoder.state.normed.view().slice(first * d..(first + rows) * d);
        let layout = decoder.weights.head_layout();
        let mut linear = Linear { device, storage: decoder.storage, layout, scratch: &mut decoder.state.scratch };
        linear.run_f32(self.logits.first_mut(rows * v), hidden, rows, decoder.weights.head())?;

        // One buffer for everything that goes back: statistics, then per row a count, then ids, then logits.
        let (words, counts, list) = back(rows, stride);
        let mut results = self.results.first_mut(words + counts + 2 * list);
        let logits = self.logits.first(rows * v);
        let floors = decoder.device_inputs.view(row_inputs.floors).slice(first..first + rows);
        let wishes = decoder.device_inputs.view(row_inputs.wishes).slice(first..first + rows);
        let stats = &mut results.slice(0..words).cast::<RowStatsOut>();
        softmax_entropy(device, stats, logits, floors, &mut self.scratch)?;
        if stride > 0 {
            let (stats, mut rest) = results.split_at(words);
            let (found, mut rest) = rest.split_at(counts);
            let (ids, values) = rest.split_at(list);
            let mut lists = TopKOut {
                found: found.cast::<u32>().slice_owned(0..rows),
                ids: ids.cast::<u32>().slice_owned(0..rows * stride),
                logits: values.cast::<f32>().slice_owned(0..rows * stride),
                stride,
            };
            device_top_k(device, &mut lists, logits, stats.view().cast(), wishes, self.ids_below, &mut self.scratch)?;
        }
        Ok(())
    }

    /// What [`launch`](Self::launch) computed for `rows` rows; `asked` is about the first of them.
    pub fn collect(
        &mut self,
        device: &Device,
        v: usize,
        asked: &[HeadAsk],
        rows: usize,
        stride: usize,
        out: &mut Vec<PolicyRow>,
    ) -> Result<()> {
        let (words, counts, list) = back(rows, stride);
        let length = if stride > 0 { words + counts + 2 * list } else { words };
        let back = self.results.download_first(device, length)?;
        let stats: &[RowStatsOut] = bytemuck::cast_slice(&back[..words]);
        let found: &[u32] = bytemuck::cast_slice(back.get(words..words + counts).unwrap_or(&[]));
        let ids: &[u32] = bytemuck::cast_slice(back.get(words + counts..words + counts + list).unwrap_or(&[]));
        let values: &[f32] = bytemuck::cast_slice(back.get(words + counts + list..).unwrap_or(&[]));
        for (row, asked) in asked.iter().enumerate() {
            let stats = RowStats::from(stats[row]);
            let top = match wanted(asked.top_k, &stats) {
                0 => Vec::new(),
                k if on_device(asked.top_k) => {
                    let count = (found[row] as usize).min(k);
                    let at = row * stride..row * stride + count;
                    ids[at.clone()].iter().copied().zip(values[at].iter().copied()).collect()
                }
                k => {
                    let row = self.logits.view().slice(row * v..(row + 1) * v).download(device)?;
                    top_k(&row, k, self.ids_below)
                }
            };
            out.push(PolicyRow { stats, top });
        }
        Ok(())
    }

    /// The whole row of the hidden state that was kept at a place.
    pub fn row(&mut self, device: &Device, decoder: &mut Decoder, kept: u32) -> Result<Vec<f32>> {
        self.again(device, decoder, kept)?;
        self.logits.download_first(device, decoder.sizes.vocab)
    }

    /// Log-probabilities of that row.
    pub fn log_probabilities(&mut self, device: &Device, decoder: &mut Decoder, kept: u32) -> Result<Vec<f32>> {
        let v = decoder.sizes.vocab;
        self.again(device, decoder, kept)?;
        self.room_for_asked(device, v)?;
        let mut results = self.results.first_mut(STATS);
        let mut stats = results.slice(0..STATS).cast::<RowStatsOut>();
        softmax_entropy(device, &mut stats, self.logits.first(v), self.exact.view(), &mut self.scratch)?;
        log_probabilities(device, &mut self.asked.first_mut(v), self.logits.first(v), stats.view())?;
        self.asked.download_first(device, v)
    }

    /// Single logits of that row.
    pub fn chosen(&mut self, device: &Device, decoder: &mut Decoder, kept: u32, ids: &[u32]) -> Result<Vec<f32>> {
        let v = decoder.sizes.vocab;
        self.again(device, decoder, kept)?;
        self.room_for_asked(device, ids.len())?;
        let pairs: Vec<[u32; 2]> = ids.iter().map(|&id| [0, id]).collect();
        let mut inputs = StepInputs::default();
        let pairs = inputs.push(&pairs);
        // The last batch is done with what it needed.
        decoder.device_inputs.receive(device, &inputs)?;
        let out = &mut self.asked.first_mut(ids.len());
        chosen_logits(device, out, self.logits.first(v), decoder.device_inputs.view(pairs), v)?;
        self.asked.download_first(device, ids.len())
    }

    fn room_for_asked(&mut self, device: &Device, len: usize) -> Result<()> {
        if len > self.asked.len() {
            self.asked = Buffer::uninitialised(device, len)?;
        }
        Ok(())
    }

    /// Computes the logits of a kept hidden state once more.
    fn again(&mut self, device: &Device, decoder: &mut Decoder, kept: u32) -> Result<()> {
        let (d, v) = (decoder.sizes.hidden_padded, decoder.sizes.vocab);
        let at = kept as usize * d;
        if at + d > self.kept.len() {
            return Err(Error::Backend(format!("no hidden state was kept at {kept}")));
        }
        let layout = decoder.weights.head_layout();
        let mut linear = Linear { device, storage: decoder.storage, layout, scratch: &mut decoder.state.scratch };
        linear.run_f32(self.logits.first_mut(v), self.kept.view().slice(at..at + d), 1, decoder.weights.head())
    }

    /// Logits of the first `rows` hidden states in `decoder.state.normed`, `[rows, vocab]`.
    pub fn all(&mut self, device: &Device, decoder: &mut Decoder, rows: usize) -> Result<Vec<f32>> {
        let (d, v) = (decoder.sizes.hidden_padded, decoder.sizes.vocab);
        let mut out = Vec::with_capacity(rows * v);
        for first in (0..rows).step_by(self.rows) {
            let count = self.rows.min(rows - first);
            let hidden = decoder.state.normed.view().slice(first * d..(first + count) * d);
            let layout = decoder.weights.head_layout();
            let mut linear = Linear { device, storage: decoder.storage, layout, scratch: &mut decoder.state.scratch };
            linear.run_f32(self.logits.first_mut(count * v), hidden, count, decoder.weights.head())?;
            out.extend(self.logits.download_first(device, count * v)?);
        }
        Ok(out)
    }
}

/// Words of what goes back for some rows: statistics; lengths of lists; their ids, and as many for their logits.
fn back(rows: usize, stride: usize) -> (usize, usize, usize) {
    (rows * STATS, rows.div_ceil(2), (rows * stride).div_ceil(2))
}

/// Whether the device can hold the list.
fn on_device(asked: TopK) -> bool {
    matches!(asked, TopK::Take(k) | TopK::TakeIf(k, _) if k <= MAX_K)
}

/// What the device is asked for. Lists that are too long for it are made from the row, once the statistics are back.
fn wish(asked: TopK) -> TopKQuery {
    match asked {
        TopK::TakeIf(k, threshold) if on_device(asked) => TopKQuery::new(k, when(threshold.signal), threshold.value),
        TopK::Take(k) if on_device(asked) => TopKQuery::new(k, When::Always, 0.0),
        _ => TopKQuery::new(0, When::Never, 0.0),
    }
}

fn when(signal: Signal) -> When {
    match signal {
        Signal::Entropy => When::Entropy,
        Signal::Margin => When::Margin,
        Signal::MaxProbability => When::MaxProbability,
        Signal::Varentropy => When::Varentropy,
    }
}

impl From<RowStatsOut> for RowStats {
    fn from(stats: RowStatsOut) -> Self {
        RowStats {
            argmax: stats.argmax,
            max_logit: stats.max_logit,
            log_sum_exp: stats.log_sum_exp,
            entropy: stats.entropy,
            entropy_floored: stats.entropy_floored,
            max_probability: stats.max_probability,
            margin: stats.margin,
            varentropy: stats.varentropy,
            finite: stats.finite != 0,
        }
    }
}

/// Length of the list that a row gets.
fn wanted(asked: TopK, stats: &RowStats) -> usize {
    match asked {
        _ if !stats.finite => 0,
        TopK::Take(k) => k,
        TopK::TakeIf(k, threshold) if threshold.reached(stats) => k,
        _ => 0,
    }
}
