//! Kernel images embedded by the build, and which devices they run on.

use crate::{Error, Result};
use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, Read};

/// The code of one `.cu` file for all of its targets.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Name of the file without its extension.
    pub name: &'static str,
    /// What it was compiled for, in the order of its code.
    pub targets: &'static [&'static str],
    /// Its code.
    pub code: Code,
    /// What the assembler reported per kernel and target.
    pub usage: &'static [Usage],
}

/// Machine code, or PTX, which the driver compiles while loading.
#[derive(Clone, Copy)]
pub enum Code {
    /// That of all targets, as `build/nvcc.rs` packs it.
    Packed(&'static [u8]),
    /// What `cuModuleLoadData` takes, whatever the target: a stand-in's.
    Plain(&'static [u8]),
}

impl Code {
    /// As it is kept.
    pub fn bytes(&self) -> &'static [u8] {
        let (Code::Packed(bytes) | Code::Plain(bytes)) = self;
        bytes
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}

impl Image {
    /// What `cuModuleLoadData` takes for one of its targets: machine code, or text that ends with a zero.
    ///
    /// # Errors
    /// It has no code for the target, or is damaged.
    pub fn code_for(&self, target: &str) -> Result<Cow<'static, [u8]>> {
        let index = self.targets.iter().position(|&known| known == target);
        let index =
            index.ok_or_else(|| Error::Backend(format!("kernel image {} has no code for {target}", self.name)))?;
        match self.code {
            Code::Plain(bytes) => Ok(Cow::Borrowed(bytes)),
            Code::Packed(bytes) => unpacked(bytes, index)
                .map(Cow::Owned)
                .map_err(|e| Error::Backend(format!("kernel image {} cannot be unpacked: {e}", self.name))),
        }
    }

    /// Which of its targets a device takes; none of one for Hopper alone, if the device or the build is not for Hopper.
    ///
    /// # Errors
    /// It is for all cards, and was not built for this one.
    pub fn target_for(&self, device: Capability) -> Result<Option<&'static str>> {
        match target_for(self.targets, device) {
            Err(_) if is_for_hopper(self.name) => Ok(None),
            found => found.map(Some),
        }
    }
}

/// Whether the kernels of an image are for Hopper alone, by its name, as in `build/nvcc.rs`.
pub fn is_for_hopper(image: &str) -> bool {
    image.ends_with("_sm90")
}

/// The piece at `index`: the lengths of all are in the first line, and they lie one after the other.
fn unpacked(packed: &[u8], index: usize) -> std::result::Result<Vec<u8>, String> {
    let words = |e: std::io::Error| e.to_string();
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed).map_err(|e| e.to_string())?;
    let mut decoder = std::io::BufReader::with_capacity(1 << 16, decoder);
    let mut line = String::new();
    decoder.read_line(&mut line).map_err(words)?;
    let lengths: Vec<u64> = line.split_whitespace().filter_map(|length| length.parse().ok()).collect();
    let length = lengths.get(index).ok_or_else(|| format!("it has code for {} targets", lengths.len()))?;
    std::io::copy(&mut decoder.by_ref().take(lengths[..index].iter().sum()), &mut std::io::sink()).map_err(words)?;
    let mut code = Vec::new();
    decoder.take(*length).read_to_end(&mut code).map_err(words)?;
    if code.len() as u64 == *length { Ok(code) } else { Err("it ends early".to_string()) }
}

/// Resources of one kernel on one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// For instance `sm_90a`.
    pub target: &'static str,
    /// Registers per thread.
    pub registers: u32,
    /// Static shared memory in bytes.
    pub shared: u32,
    /// Stack frame in bytes: local memory.
    pub stack: u32,
    /// Bytes stored to local memory for want of registers.
    pub spill_stores: u32,
    /// Bytes loaded back.
    pub spill_loads: u32,
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The embedded images; empty if the build found neither nvcc nor stored images of its sources.
pub fn embedded() -> &'static [Image] {
    IMAGES
}

/// Release of the compiler, empty if there was none.
pub fn compiler() -> &'static str {
    COMPILER
}

/// Release of the assembler, empty if there was none.
pub fn assembler() -> &'static str {
    ASSEMBLER
}

/// Whether the images are those that are stored with the sources, because the build found no nvcc.
pub fn stored() -> bool {
    STORED
}

/// Targets of the embedded images that are for all cards.
pub fn targets() -> &'static [&'static str] {
    TARGETS
}

/// Compute capability, major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability(pub u32, pub u32);

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A parsed target: machine code or PTX, the capability, and whether it is bound to exactly that one (`sm_90a`).
fn parse(target: &str) -> Option<(bool, Capability, bool)> {
    let (kind, number) = target.split_once('_')?;
    let machine = match kind {
        "sm" => true,
        "compute" => false,
        _ => return None,
    };
    let digits = number.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let value: u32 = digits.parse().ok()?;
    // `a` is for one capability, `f` for its family; the latter is not told apart here.
    Some((machine, Capability(value / 10, value % 10), digits.len() != number.len()))
}

/// The target that the driver takes for a device: exact machine code, else older code of the same major version, else
/// PTX, which it compiles while loading.
pub fn target_for<'a>(targets: &[&'a str], device: Capability) -> Result<&'a str> {
    let usable = |target: &&'a str| -> Option<(u32, Capability, &'a str)> {
        let (machine, built, exact) = parse(target)?;
        let fits = match (machine, exact) {
            (_, true) => built == device,
            (true, false) => built.0 == device.0 && built.1 <= device.1,
            (false, false) => built <= device,
        };
        let rank = u32::from(machine) * 2 + u32::from(exact);
        fits.then_some((rank, built, *target))
    };
    let best = targets.iter().filter_map(usable).max_by_key(|&(rank, built, _)| (rank, built));
    best.map(|(_, _, target)| target).ok_or_else(|| {
        Error::Backend(if targets.is_empty() {
            "this ggro was built without CUDA kernels; build it where nvcc is (NVCC, CUDA_HOME or PATH)".to_string()
        } else {
            format!("the kernels were built for {}; this device has compute capability {device}", targets.join(", "))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_target_is_chosen() {
        let default = ["sm_80", "sm_90a", "sm_100", "sm_120", "compute_80"];
        let cases = [
            (Capability(7, 5), None),
            (Capability(8, 0), Some("sm_80")),
            (Capability(8, 6), Some("sm_80")),
            (Capability(8, 9), Some("sm_80")),
            (Capability(9, 0), Some("sm_90a")),
            (Capability(10, 0), Some("sm_100")),
            (Capability(10, 3), Some("sm_100")),
            (Capability(11, 0), Some("compute_80")),
            (Capability(12, 1), Some("sm_120")),
        ];
        for (device, expected) in cases {
            assert_eq!(target_for(&default, device).ok(), expected, "{device}");
        }
        assert_eq!(target_for(&["sm_80", "sm_86"], Capability(8, 9)).ok(), Some("sm_86"));
        assert_eq!(target_for(&["sm_86"], Capability(8, 0)).ok(), None);
        assert_eq!(target_for(&["sm_90", "sm_90a"], Capability(9, 0)).ok(), Some("sm_90a"));
        assert_eq!(target_for(&["compute_90a"], Capability(10, 0)).ok(), None);
        assert_eq!(target_for(&["compute_100"], Capability(12, 0)).ok(), Some("compute_100"));
        assert_eq!(target_for(&["nonsense", "sm_x"], Capability(9, 0)).ok(), None);
        let message = target_for(&default, Capability(7, 5)).unwrap_err().to_string();
        assert!(message.contains("sm_90a") && message.contains("7.5"), "{message}");
        assert!(target_for(&[], Capability(9, 0)).unwrap_err().to_string().contains("without CUDA kernels"));
    }

    #[test]
    fn what_is_for_hopper_alone_is_left_out_elsewhere() {
        let image = |name, targets| Image { name, targets, code: Code::Plain(b""), usage: &[] };
        let usual = image("product", &["sm_80", "sm_90a", "compute_80"]);
        let hopper = image("product_sm90", &["sm_90a", "compute_90a"]);
        let cases = [
            (Capability(8, 6), Some("sm_80"), None),
            (Capability(9, 0), Some("sm_90a"), Some("sm_90a")),
            (Capability(10, 0), Some("compute_80"), None),
            (Capability(12, 0), Some("compute_80"), None),
        ];
        for (device, expected, alone) in cases {
            assert_eq!(usual.target_for(device).unwrap(), expected, "{device}");
            assert_eq!(hopper.target_for(device).unwrap(), alone, "{device}");
        }
        assert!(usual.target_for(Capability(7, 5)).is_err());
        assert_eq!(hopper.target_for(Capability(7, 5)).unwrap(), None);
        // As the emulated device has it, and where the build was told of other targets.
        assert_eq!(image("a_sm90", &["compute_90a"]).target_for(Capability(9, 0)).unwrap(), Some("compute_90a"));
        assert_eq!(image("a_sm90", &[]).target_for(Capability(9, 0)).unwrap(), None);
    }

    #[test]
    fn no_embedded_kernel_uses_local_memory() {
        for image in embedded() {
            for target in image.targets {
                let code = image.code_for(target).unwrap();
                let text = code.ends_with(&[0]) && code.starts_with(b"//");
                assert_eq!(text, target.starts_with("compute_"), "{} for {target}", image.name);
            }
            let error = image.code_for("sm_20").unwrap_err().to_string();
            assert!(error.contains(image.name) && error.contains("sm_20"), "{error}");
            match is_for_hopper(image.name) {
                true => assert!(image.targets.iter().all(|target| target.ends_with("_90a")), "{image:?}"),
                false => assert_eq!(image.targets, targets(), "{}", image.name),
            }
            for usage in image.usage {
                assert_eq!((usage.stack, usage.spill_stores, usage.spill_loads), (0, 0, 0), "{usage:?}");
                assert!(usage.registers > 0, "{usage:?}");
            }
        }
        assert_eq!(embedded().is_empty(), compiler().is_empty());
        assert_eq!(embedded().is_empty(), assembler().is_empty());
    }
}
