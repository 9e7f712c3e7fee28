//! PTX of this crate's kernels that is stored with them, for machines without nvcc. `scripts/store-images.py` writes it.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The sources.
pub const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");

/// Unpacks what is stored into a folder, if it is of these very sources.
pub fn unpack() -> io::Result<PathBuf> {
    let stored = Path::new(KERNELS).join("ptx");
    let made_of = fs::read_to_string(stored.join("manifest"))?;
    if made_of.trim() != format!("{:016x}", sources()?) {
        return Err(io::Error::other(
            "the stored PTX is of other sources: with an nvcc, NVCC=$(scripts/install-nvcc.sh), the tests make their own",
        ));
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stored-ptx");
    fs::create_dir_all(&folder)?;
    for packed in listed(&stored, &["zst"])? {
        let mut text = Vec::new();
        let unpacked = ruzstd::decoding::StreamingDecoder::new(fs::File::open(&packed)?);
        unpacked.map_err(io::Error::other)?.read_to_end(&mut text)?;
        fs::write(folder.join(packed.file_stem().unwrap_or_default()).with_extension("ptx"), text)?;
    }
    Ok(folder)
}

/// FNV-1a of the names and texts of all sources, as in the script.
fn sources() -> io::Result<u64> {
    let mut files = listed(Path::new(KERNELS), &["cu", "cuh"])?;
    files.push(Path::new(KERNELS).join("../../../kernels/ptx.cuh"));
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for file in files {
        let name = file.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
        for byte in name.into_iter().chain([0]).chain(fs::read(&file)?).chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    Ok(hash)
}

fn listed(folder: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What is stored is not forgotten when a source changes.
#[test]
fn the_stored_ptx_is_of_these_sources() {
    let folder = unpack().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(listed(&folder, &["ptx"]).unwrap().len(), listed(Path::new(KERNELS), &["cu"]).unwrap().len());
}
