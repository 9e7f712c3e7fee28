//! `ggro synth`.

use crate::cli::args::seed;
use crate::cli::models::bar;
use crate::cli::say;
use crate::files::place::behind_links;
use crate::model::synthetic::{PRESETS, folder};
use crate::runtime::bytes_in_words;
use crate::{Error, Result};
use clap::builder::PossibleValuesParser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Write a random pair of a published shape as Hugging Face directories
///
/// DIR/policy and DIR/reward get a config, bf16 weights and a byte tokenizer. They are for programs that read files, and for measuring
/// loading times. `ggro bench --synthetic` uses the same weights without files.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// llama-3.1-8b (30 GB), llama-3.2-3b (14 GB), llama-3.2-1b (6 GB), qwen3-8b (31 GB), demo
    #[arg(value_name = "SHAPE", hide_possible_values = true, value_parser = PossibleValuesParser::new(PRESETS))]
    shape: String,

    /// Output directory; it must be empty or not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Seed of the weights
    #[arg(long, value_name = "N", default_value = "0", value_parser = seed)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dir = std::path::absolute(behind_links(&args.dir)).map_err(|e| Error::io(&args.dir, e))?;
    if std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file() {
        return Err(Error::file(&args.dir, "is there already, and is not an empty directory").into());
    }
    // Written to a temporary directory and renamed, so that the directory is complete or absent.
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let part = dir.with_file_name(format!(".{name}.{}.part", std::process::id()));
    std::fs::create_dir_all(&part).map_err(|e| Error::io(&args.dir, e))?;
    let bar = bar(None, "{spinner} {bytes} written, {bytes_per_sec}, {elapsed}");
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut bytes = 0;
    let written = folder::write(&args.shape, args.seed, &part, &mut |_, size| {
        bytes += size;
        bar.set_position(bytes);
    });
    bar.finish_and_clear();
    let moved = written.and_then(|()| place(&part, &dir));
    if moved.is_err() {
        // The first error counts: an error of the clean-up is dropped.
        let _ = std::fs::remove_dir_all(&part);
    }
    moved?;
    let shown = args.dir.display();
    say(&format!("wrote {}: --policy {shown}/policy --reward {shown}/reward", bytes_in_words(bytes)));
    Ok(ExitCode::SUCCESS)
}

fn place(part: &Path, dir: &Path) -> Result<()> {
    if dir.is_dir() {
        std::fs::remove_dir(dir).map_err(|e| Error::io(dir, e))?;
    }
    std::fs::rename(part, dir).map_err(|e| Error::io(dir, e))
}
