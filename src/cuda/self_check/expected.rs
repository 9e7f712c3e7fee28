//! What the kernels are known to give: results in f64 and how far off a sound device may be.

use crate::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors};

/// The file, which `ggro kernels record-self-check` writes.
pub(crate) const FILE: &[u8] = include_bytes!("expected.safetensors");

/// The name of an output's results in the file, and of their bounds.
pub(crate) fn names(expected: &str, output: &str) -> [String; 2] {
    [format!("{expected}.{output}"), format!("{expected}.{output}.bound")]
}

/// Results of all cases.
pub(super) struct Expected<'a>(SafeTensors<'a>);

/// One output's.
pub(super) struct ExpectedOutput {
    /// In f64.
    pub values: Vec<f64>,
    /// As many for each storage type.
    pub bounds: Vec<f32>,
}

impl Expected<'static> {
    pub fn embedded() -> Result<Self> {
        SafeTensors::deserialize(FILE).map(Expected).map_err(|e| broken(&e.to_string()))
    }
}

impl Expected<'_> {
    pub fn of(&self, expected: &str, output: &str) -> Result<ExpectedOutput> {
        let [values, bounds] = names(expected, output);
        let bytes = |name: &str, dtype: Dtype| match self.0.tensor(name) {
            Ok(tensor) if tensor.dtype() == dtype => Ok(tensor.data().to_vec()),
            _ => Err(broken(&format!("there is no `{name}`"))),
        };
        let values = bytes(&values, Dtype::F64)?.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        let bounds = bytes(&bounds, Dtype::F32)?.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        Ok(ExpectedOutput { values, bounds })
    }
}

fn broken(why: &str) -> Error {
    Error::Backend(format!("the self-check's results: {why}"))
}
