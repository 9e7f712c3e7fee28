//! The tensors of a fixture file.

use crate::files::checkpoint::read_whole;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::path::{Path, PathBuf};

/// A fixture file's bytes.
pub(super) struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorFile {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = read_whole(path, file)?;
        Ok(TensorFile { path: path.to_path_buf(), bytes })
    }

    pub(super) fn tensors(&self) -> Result<Tensors<'_>> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|e| Error::file(&self.path, e.to_string()))?;
        Ok(Tensors { path: &self.path, tensors })
    }
}

/// Its tensors, by name.
pub(super) struct Tensors<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
}

impl Tensors<'_> {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.names().contains(&name)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.tensors.names().into_iter().map(str::to_string).collect()
    }

    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.view(name)?.shape().to_vec())
    }

    pub(super) fn f32(&self, name: &str) -> Result<Vec<f32>> {
        let bytes = self.data(name, Dtype::F32)?;
        Ok(chunks(&bytes).map(f32::from_le_bytes).collect())
    }

    pub(super) fn f64(&self, name: &str) -> Result<Vec<f64>> {
        let bytes = self.data(name, Dtype::F64)?;
        Ok(chunks(&bytes).map(f64::from_le_bytes).collect())
    }

    /// Integers that are token ids or positions.
    pub(super) fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let bytes = self.data(name, Dtype::I64)?;
        chunks(&bytes)
            .map(|c| {
                u32::try_from(i64::from_le_bytes(c))
                    .map_err(|_| Error::file(self.path, format!("{name}: an entry is not an id")))
            })
            .collect()
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.tensors.tensor(name).map_err(|e| Error::file(self.path, format!("{name}: {e}")))
    }

    fn data(&self, name: &str, dtype: Dtype) -> Result<Vec<u8>> {
        let view = self.view(name)?;
        if view.dtype() != dtype {
            let message = format!("{name}: {dtype:?} expected, {:?} found", view.dtype());
            return Err(Error::file(self.path, message));
        }
        Ok(view.data().to_vec())
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}
