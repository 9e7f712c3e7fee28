//! Images kept in `build/images`: what nvcc made of these very sources, for machines with a driver and no toolkit.
//!
//! `manifest` says which compiler, flags and targets made them and has a hash of every source, so that images of other sources
//! are never taken. `scripts/store-images.py` refreshes them, and says in CI whether they are what nvcc makes today.

use crate::nvcc::{FLAGS, Image, Made, listed, parse, read, targets_of, texts_of};
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

/// Where they are, seen from the package.
const DIR: &str = "build/images";
const MANIFEST: &str = "manifest";

/// Copies the images into `out`, if they are those of the sources in `kernels`.
///
/// # Errors
/// In words: there are none, they are of other sources, or they cannot be read.
pub fn copy(kernels: &Path, out: &Path) -> Result<(Made, Vec<Image>), String> {
    let manifest = Manifest::of(kernels)?;
    let made = manifest.made();
    let mut images = Vec::new();
    for name in &manifest.names {
        let stored = Path::new(DIR).join(format!("{name}.zst"));
        let packed = out.join(format!("{name}-stored.zst"));
        let bytes = std::fs::copy(&stored, &packed).map_err(|e| format!("{}: {e}", stored.display()))?;
        let report = Path::new(DIR).join(format!("{name}.ptxas.zst"));
        let usage = parse(&String::from_utf8_lossy(&unpacked(&report)?));
        let targets = targets_of(name, &made.targets);
        images.push(Image { name: name.clone(), targets, packed, usage, bytes, fresh: false });
    }
    Ok((made, images))
}

/// The PTX that the emulated device executes, as [`texts_of`] calls it, if it is that of the sources in `kernels`.
///
/// # Errors
/// As [`copy`].
#[allow(dead_code, reason = "tests execute it; the build script has no use for it")]
pub fn ptx(kernels: &Path) -> Result<Vec<(String, Vec<u8>)>, String> {
    let manifest = Manifest::of(kernels)?;
    let targets = manifest.made().targets;
    let mut texts = Vec::new();
    for name in manifest.names {
        let packed = Path::new(DIR).join(format!("{name}.zst"));
        let all = unpacked(&packed)?;
        let pieces = pieces(&all).unwrap_or_default();
        for (target, place) in texts_of(&name) {
            let index = targets_of(&name, &targets).iter().position(|known| known == target);
            let index = index.ok_or_else(|| format!("no PTX for {target} is stored"))?;
            let text = pieces.get(index);
            let text = text.ok_or_else(|| format!("{}: not what scripts/store-images.py writes", packed.display()))?;
            texts.push((place, text.to_vec()));
        }
    }
    Ok(texts)
}

/// What says of which sources the images are, once it has said that they are of these.
struct Manifest {
    text: String,
    /// Of the sources, without extension.
    names: Vec<String>,
}

impl Manifest {
    fn of(kernels: &Path) -> Result<Self, String> {
        let mut manifest = Manifest { text: read(&Path::new(DIR).join(MANIFEST))?, names: Vec::new() };
        for (name, hash) in hashes(kernels)? {
            if manifest.field(&name) != Some(&hash) {
                return Err(format!(
                    "the stored images are of other sources: kernels/{name}.cu, or a header, has changed"
                ));
            }
            manifest.names.push(name);
        }
        Ok(manifest)
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    fn made(&self) -> Made {
        let [nvcc, ptxas] = ["nvcc", "ptxas"].map(|tool| self.field(tool).unwrap_or_default().to_string());
        let targets = self.field("targets").unwrap_or_default().split(',').map(str::to_string).collect();
        Made { nvcc, ptxas, targets }
    }
}

/// The code of each target in a file as `build/nvcc.rs` makes it.
fn pieces(all: &[u8]) -> Option<Vec<&[u8]>> {
    let end = all.iter().position(|&byte| byte == b'\n')?;
    let mut rest = &all[end + 1..];
    let mut pieces = Vec::new();
    for length in std::str::from_utf8(&all[..end]).ok()?.split(' ') {
        let (piece, behind) = rest.split_at_checked(length.parse().ok()?)?;
        pieces.push(piece);
        rest = behind;
    }
    Some(pieces)
}

/// A packed file.
fn unpacked(packed: &Path) -> Result<Vec<u8>, String> {
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", packed.display());
    let file = std::fs::File::open(packed).map_err(|e| fail(&e))?;
    let mut bytes = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(std::io::BufReader::new(file)).map_err(|e| fail(&e))?;
    decoder.read_to_end(&mut bytes).map_err(|e| fail(&e))?;
    Ok(bytes)
}

/// Writes images as the script stores them, but not packed.
///
/// # Errors
/// A file cannot be written.
pub fn write(kernels: &Path, dir: &Path, made: &Made, images: &[Image]) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("{}: {e}", dir.display());
    std::fs::create_dir_all(dir).map_err(fail)?;
    let Made { nvcc, ptxas, targets } = made;
    let mut manifest =
        format!("nvcc {nvcc}\nptxas {ptxas}\nflags {}\ntargets {}\n", FLAGS.join(" "), targets.join(","));
    for (name, hash) in hashes(kernels)? {
        let _ = writeln!(manifest, "{name} {hash}");
    }
    for image in images {
        let all = unpacked(&image.packed)?;
        std::fs::write(dir.join(format!("{}.code", image.name)), all).map_err(fail)?;
        // How long it took is another time each time.
        let report = read(&image.packed.with_extension("ptxas"))?;
        let lines = report.lines().filter(|line| !line.contains("Compile time")).map(|line| format!("{line}\n"));
        std::fs::write(dir.join(format!("{}.ptxas", image.name)), lines.collect::<String>()).map_err(fail)?;
    }
    std::fs::write(dir.join(MANIFEST), manifest).map_err(fail)
}

/// Every source with the hash of it, the headers and the flags.
fn hashes(kernels: &Path) -> Result<Vec<(String, String)>, String> {
    let mut begun = Fnv::default();
    begun.add(FLAGS.join(" ").as_bytes());
    for header in listed(kernels, "cuh")? {
        begun.add(header.file_name().unwrap_or_default().as_encoded_bytes());
        begun.add(read(&header)?.as_bytes());
    }
    let hash = |file: std::path::PathBuf| {
        let mut hash = begun;
        hash.add(read(&file)?.as_bytes());
        Ok((file.file_stem().unwrap_or_default().to_string_lossy().into_owned(), format!("{:032x}", hash.0)))
    };
    listed(kernels, "cu")?.into_iter().map(hash).collect()
}

/// FNV-1a of 128 bits: the same with every compiler, unlike the standard library's hashes.
#[derive(Clone, Copy)]
struct Fnv(u128);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        // The length keeps neighbours apart.
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}
