//! Safetensors checkpoints, memory-mapped: one file or shards, looked up by name with dtype and shape checked.

use crate::Result;
use std::path::{Path, PathBuf};

/// Element type of stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 => 4,
        }
    }
}

/// The files of one model: a directory, or the pair embedded in the binary.
#[derive(Clone, Debug)]
pub enum Files {
    /// A Hugging Face directory.
    Dir(PathBuf),
    /// Files compiled into the binary: a label for messages and `(name, content)`.
    Embedded(&'static str, &'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// Path of a file, for messages.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Files::Dir(dir) => dir.join(name),
            Files::Embedded(label, _) => Path::new(label).join(name),
        }
    }
}

/// One tensor inside a checkpoint: raw little-endian bytes, possibly misaligned.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Element type.
    pub dtype: DType,
    /// Shape, outermost first.
    pub shape: &'a [usize],
    /// `shape.product() * dtype.size()` bytes, at any alignment.
    pub data: &'a [u8],
}

/// Bytes of one tensor that keep their file mapped: cheap to clone, at any alignment.
#[derive(Clone, Debug)]
pub struct Bytes {}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &[]
    }
}

/// An open checkpoint. Cheap to keep: the data stays in the page cache.
#[derive(Debug)]
pub struct Checkpoint {}

impl Checkpoint {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A file is missing or not a regular file, a header is truncated, oversized or not JSON, tensor data overlaps, lies
    /// outside the file or does not have `dtype x shape` bytes, a shard name is not a plain file name, the index names a
    /// tensor that its shard lacks, or two shards hold the same name.
    pub fn open(_files: &Files) -> Result<Self> {
        Ok(Checkpoint {})
    }

    /// The tensor `name`, which must have exactly this shape and a floating-point dtype.
    ///
    /// # Errors
    /// No such tensor, another shape, or an integer or quantised dtype; names the file, expected and found.
    pub fn tensor(&self, _name: &str, _shape: &[usize]) -> Result<Tensor<'_>> {
        unimplemented!()
    }

    /// As [`tensor`](Self::tensor), as bytes that outlive the checkpoint.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn load(&self, _name: &str, _shape: &[usize]) -> Result<(DType, Bytes)> {
        unimplemented!()
    }

    /// Whether the checkpoint holds `name`.
    pub fn contains(&self, _name: &str) -> bool {
        false
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Bytes of tensor data in all files.
    pub fn bytes(&self) -> u64 {
        0
    }
}
