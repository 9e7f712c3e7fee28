//! Images kept in `build/images`: what nvcc made of these very sources, for machines with a driver and no toolkit.
//!
//! `manifest` says which compiler, flags and targets made them and has a hash of every source, so that images of other sources
//! are never taken. `scripts/store-images.py` refreshes them, and says in CI whether they are what nvcc makes today.

use crate::nvcc::{FLAGS, Image, listed, parse, read};
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

/// Where they are, seen from the package.
const DIR: &str = "build/images";
const MANIFEST: &str = "manifest";

/// Stored images, unpacked.
pub struct Stored {
    /// Release of the compiler, as in `13.0`.
    pub version: String,
    /// What they were compiled for.
    pub targets: Vec<String>,
    /// One per source.
    pub images: Vec<Image>,
}

/// Unpacks the images into `out`, if they are those of the sources in `kernels`.
///
/// # Errors
/// In words: there are none, they are of other sources, or they cannot be read.
pub fn unpack(kernels: &Path, out: &Path) -> Result<Stored, String> {
    let manifest = Manifest::of(kernels)?;
    let mut images = Vec::new();
    for name in &manifest.names {
        let bytes = unpacked(&format!("{name}.fatbin"))?;
        let path = out.join(format!("{name}-stored.fatbin"));
        std::fs::write(&path, &bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        let usage = parse(&read(&Path::new(DIR).join(format!("{name}.ptxas")))?);
        images.push(Image { name: name.clone(), path, usage, bytes: bytes.len() as u64, fresh: false });
    }
    let targets = manifest.field("targets").unwrap_or_default().split(',').map(str::to_string).collect();
    Ok(Stored { version: manifest.field("nvcc").unwrap_or_default(), targets, images })
}

/// The PTX for `compute_80` by name of the source, if it is that of the sources in `kernels`.
///
/// # Errors
/// As [`unpack`].
#[allow(dead_code, reason = "tests execute it; the build script has no use for it")]
pub fn ptx(kernels: &Path) -> Result<Vec<(String, Vec<u8>)>, String> {
    let names = Manifest::of(kernels)?.names;
    names.into_iter().map(|name| Ok((name.clone(), unpacked(&format!("{name}.80.ptx"))?))).collect()
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
            if manifest.field(&name) != Some(hash) {
                return Err(format!(
                    "the stored images are of other sources: kernels/{name}.cu, or a header, has changed"
                ));
            }
            manifest.names.push(name);
        }
        Ok(manifest)
    }

    fn field(&self, name: &str) -> Option<String> {
        let mut lines = self.text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
    }
}

/// A stored file, unpacked.
fn unpacked(name: &str) -> Result<Vec<u8>, String> {
    let packed = Path::new(DIR).join(format!("{name}.zst"));
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", packed.display());
    let file = std::fs::File::open(&packed).map_err(|e| fail(&e))?;
    let mut bytes = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(std::io::BufReader::new(file)).map_err(|e| fail(&e))?;
    decoder.read_to_end(&mut bytes).map_err(|e| fail(&e))?;
    Ok(bytes)
}

/// Writes images as the script stores them, but not packed.
///
/// # Errors
/// A file cannot be written.
pub fn write(kernels: &Path, dir: &Path, version: &str, targets: &[String], images: &[Image]) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("{}: {e}", dir.display());
    std::fs::create_dir_all(dir).map_err(fail)?;
    let mut manifest = format!("nvcc {version}\nflags {}\ntargets {}\n", FLAGS.join(" "), targets.join(","));
    for (name, hash) in hashes(kernels)? {
        let _ = writeln!(manifest, "{name} {hash}");
    }
    for image in images {
        std::fs::copy(&image.path, dir.join(format!("{}.fatbin", image.name))).map_err(fail)?;
        for target in targets.iter().filter_map(|target| target.strip_prefix("compute_")) {
            let text = image.path.with_extension(format!("{target}.ptx"));
            std::fs::copy(&text, dir.join(format!("{}.{target}.ptx", image.name))).map_err(fail)?;
        }
        // How long it took is another time each time.
        let report = read(&image.path.with_extension("ptxas"))?;
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
