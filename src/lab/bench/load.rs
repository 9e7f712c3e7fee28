//! How long it takes until models can be used: their weights read, and a token run through each.

use super::cost::Cost;
use super::report::Row;
use crate::model::{ModelPair, PolicySpan, RewardSpan, Role, Span, TopK};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Opens a pair, or one model.
pub type Open<'a> = &'a mut dyn FnMut() -> Result<ModelPair>;

/// Times loading: first with the files dropped from the page cache (where there are files), then with them in it. On a CPU
/// weights are mapped and read by the first token, which is why that belongs to it.
///
/// # Errors
/// A file cannot be dropped from the cache, or a model does not open or run.
pub fn load(open: Open<'_>, files: &[PathBuf], bytes: u64, runs: usize, done: &mut dyn FnMut(Row)) -> Result<()> {
    let cost = Cost { bytes: bytes as f64, flops: 0.0 };
    let row = |case: &str, seconds: Vec<f64>| {
        let row = Row::new("load", case.to_string(), seconds);
        let gigabytes = Some(cost.bytes / row.seconds / 1e9);
        Row { gigabytes_per_second: gigabytes, cost: Some(cost), ..row }
    };
    if !files.is_empty() {
        let cold = (0..runs.max(1)).map(|_| {
            files.iter().try_for_each(|file| forget(file))?;
            once(open)
        });
        done(row("cold", cold.collect::<Result<Vec<f64>>>()?));
    }
    once(open)?;
    let warm = (0..runs.max(1)).map(|_| once(open));
    done(row("warm", warm.collect::<Result<Vec<f64>>>()?));
    Ok(())
}

/// Seconds until a token was run through every model.
fn once(open: Open<'_>) -> Result<f64> {
    let started = Instant::now();
    let mut backend = open()?;
    if backend.has(Role::Policy) {
        let span = Span { seq: backend.create(Role::Policy)?, start: 0, ids: &[0] };
        backend.policy_step(&[PolicySpan { span, floor: 0.0, top_k: TopK::Skip, before: &[] }])?;
    }
    if backend.has(Role::Reward) {
        let span = Span { seq: backend.create(Role::Reward)?, start: 0, ids: &[0] };
        backend.reward_score(&[RewardSpan { span, also_at: &[] }])?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Asks the system to drop a file from the page cache. What others hold mapped stays.
fn forget(path: &Path) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let dropped = file.sync_all().and_then(|()| Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?));
    dropped.map_err(|e| Error::io(path, e))
}
