//! Why a device cannot be used, and what would help.

use super::Arithmetic;
use crate::Error;
use crate::cuda::{KernelFamily, images};
use std::fmt;

/// Why there is no CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoCuda {
    /// f32 is asked for, and CUDA stores 16 bits.
    Arithmetic,
    /// The build has no kernels; the reason in words.
    NoKernels(String),
    /// The driver or the device says so, in these words.
    NoDevice(String),
    /// Its kernels compute something else than they should; which card and where, in words.
    SelfCheck(String),
    /// A self-check of the kernels for Hopper alone took the device from this process; which card and how, in words.
    Lost(String),
    /// A self-check of dependent launches did; likewise.
    LostLaunching(String),
    /// It does not have the kernels that are asked for; why, in words.
    Kernels(KernelFamily, String),
}

impl NoCuda {
    /// What would help, to be put behind the reason; empty if nothing is known.
    pub fn help(&self) -> &'static str {
        match self {
            NoCuda::NoKernels(_) => "; CUDA 13 and scripts/install-nvcc.sh both bring one",
            NoCuda::NoDevice(why) if why.contains("libcuda") => {
                "; install NVIDIA's driver: `ggro doctor` says which release"
            }
            NoCuda::SelfCheck(_) => "; `ggro doctor` says more, and --no-self-check uses the device all the same",
            NoCuda::Lost(_) => "; --kernels sm80 uses the device without these kernels",
            NoCuda::LostLaunching(_) => "; --dependent-launches=false uses the device without them",
            _ => "",
        }
    }

    /// The reason in a few words.
    pub fn brief(&self) -> &str {
        match self {
            NoCuda::Arithmetic => "f32 is the CPU's, CUDA stores bf16 or f16",
            NoCuda::NoKernels(_) => "no CUDA kernels in this build",
            NoCuda::NoDevice(why) | NoCuda::Kernels(_, why) => why,
            NoCuda::SelfCheck(_) => "the CUDA device failed its self-check",
            NoCuda::Lost(_) => "the self-check of the kernels of sm90 lost the CUDA device",
            NoCuda::LostLaunching(_) => "the self-check of dependent launches lost the CUDA device",
        }
    }
}

impl From<&Error> for NoCuda {
    fn from(why: &Error) -> NoCuda {
        match images::embedded().is_empty() {
            true => NoCuda::NoKernels(why.to_string()),
            false => NoCuda::NoDevice(why.to_string()),
        }
    }
}

/// The reason with what would help.
impl fmt::Display for NoCuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoCuda::NoKernels(why) => write!(f, "{why}{}", self.help()),
            NoCuda::SelfCheck(why) | NoCuda::Lost(why) | NoCuda::LostLaunching(why) => {
                write!(f, "{} ({why}){}", self.brief(), self.help())
            }
            _ => write!(f, "{}{}", self.brief(), self.help()),
        }
    }
}

/// Why the device that is asked for cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is no CUDA device of this number.
    Cuda(usize, NoCuda),
    /// The CPU does not compute in this arithmetic.
    Arithmetic(Arithmetic),
    /// It does not have the kernels that are asked for; why, in words.
    Kernels(KernelFamily, String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Cuda(index, why) => write!(f, "cuda:{index}: {why}"),
            Unusable::Kernels(family, why) => write!(f, "{}: {why}", family.name()),
            Unusable::Arithmetic(arithmetic) => write!(
                f,
                "{}: the CPU backend computes in f32 from the stored weights, whatever their type; use auto or f32",
                arithmetic.name()
            ),
        }
    }
}

impl From<Unusable> for Error {
    fn from(unusable: Unusable) -> Error {
        Error::invalid(unusable.to_string())
    }
}
