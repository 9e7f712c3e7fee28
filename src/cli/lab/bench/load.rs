//! `ggro bench load`.

use super::{Common, files_of, reopen};
use crate::Error;
use crate::lab::bench::load;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let common = &args.common;
    let before = common.before()?;
    if common.synthetic.synthetic.is_some() {
        let message =
            "--synthetic: random models are made, not loaded; write them with `ggro synth` and pass the directories";
        return Err(Error::invalid(message).into());
    }
    let (mut device, len) = (common.device.find()?, common.pair.max_model_len);
    let ((files, bytes), mut header) = {
        let pair = common.pair.load()?;
        let opened = common.device.open(&mut device, &pair, len)?;
        let header = common.ready(opened, &device, common.pair.names(), "load")?.header;
        (files_of(pair.parts()), header)
    };
    // Limits of arithmetic say nothing about disks.
    header.limits = None;
    let mut sink = common.sink.begin(&header, before, if files.is_empty() { 1 } else { 2 })?;
    // Files are read from the beginning each time: what is still mapped is not dropped from the page cache.
    let mut open = || reopen(&common.device, &mut device, &*common.pair.load()?, len);
    load(&mut open, &files, bytes, common.runs.runs, &mut |row| sink.row(row))?;
    sink.finish()
}
