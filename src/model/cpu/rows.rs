//! A view of a matrix in storage.

use crate::dtype::DType;

/// Rows of a matrix in storage: `rows` rows of at least `width` elements, `stride` elements apart, at any alignment.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredRows<'a> {
    pub dtype: DType,
    pub data: &'a [u8],
    pub stride: usize,
    pub rows: usize,
    pub width: usize,
}

impl<'a> StoredRows<'a> {
    /// A contiguous matrix of stored weights.
    pub fn stored(dtype: DType, data: &'a [u8], rows: usize, width: usize) -> Self {
        StoredRows { dtype, data, stride: width, rows, width }
    }

    /// A matrix of computed values.
    pub fn computed(data: &'a [f32], stride: usize, rows: usize, width: usize) -> Self {
        StoredRows { dtype: DType::F32, data: bytemuck::cast_slice(data), stride, rows, width }
    }

    /// Rows `from .. to`.
    pub fn slice(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.rows, "rows {from}..{to} of {}", self.rows);
        if from == to {
            return StoredRows { data: &[], rows: 0, ..self };
        }
        StoredRows { data: &self.data[from * self.stride * self.dtype.size()..], rows: to - from, ..self }
    }

    /// Columns `from .. to`.
    pub fn columns(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.width, "columns {from}..{to} of {}", self.width);
        StoredRows { data: &self.data[from * self.dtype.size()..], width: to - from, ..self }
    }

    /// Panics unless the last element of the last row lies inside the data: the fact that the unchecked loads rely on.
    pub fn check(&self) {
        if self.rows > 0 {
            let elements = (self.rows - 1) * self.stride + self.width;
            assert!(
                self.width <= self.stride && elements * self.dtype.size() <= self.data.len(),
                "matrix view too short"
            );
        }
    }

    /// Whether two rows are equal in every component, compared as numbers: 0 equals -0. Ends at the first difference.
    pub fn rows_equal(&self, a: usize, b: usize) -> bool {
        let size = self.dtype.size();
        let row = |r: usize| self.data[r * self.stride * size..][..self.width * size].chunks_exact(size);
        let value = |bytes: &[u8]| match (self.dtype, bytes) {
            (DType::F32, &[b0, b1, b2, b3]) => f32::from_le_bytes([b0, b1, b2, b3]),
            (DType::Bf16, &[b0, b1]) => half::bf16::from_le_bytes([b0, b1]).to_f32(),
            (DType::F16, &[b0, b1]) => half::f16::from_le_bytes([b0, b1]).to_f32(),
            _ => f32::NAN,
        };
        row(a).zip(row(b)).all(|(x, y)| value(x) == value(y))
    }

    /// Widens one row to f32.
    pub fn row_to(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.width);
        let size = self.dtype.size();
        let bytes = &self.data[row * self.stride * size..][..self.width * size];
        match self.dtype {
            DType::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            DType::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            DType::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
    }
}
