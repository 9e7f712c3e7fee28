//! Element types: what files hold, and what a device stores.

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
    /// `bf16`, `f16` or `f32`.
    pub fn name(self) -> &'static str {
        match self {
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::F32 => "f32",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 => 4,
        }
    }
}

/// The type of weights and activations on a device: 16 bits wide, in `u16` buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HalfType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl HalfType {
    /// Both types.
    pub const ALL: [HalfType; 2] = [HalfType::Bf16, HalfType::F16];

    /// `bf16` or `f16`, as kernel names end.
    pub fn name(self) -> &'static str {
        match self {
            HalfType::Bf16 => "bf16",
            HalfType::F16 => "f16",
        }
    }

    /// Rounds to nearest even.
    pub fn round(self, x: f32) -> u16 {
        match self {
            HalfType::Bf16 => half::bf16::from_f32(x).to_bits(),
            HalfType::F16 => half::f16::from_f32(x).to_bits(),
        }
    }

    /// Widens exactly.
    pub fn widen(self, bits: u16) -> f32 {
        match self {
            HalfType::Bf16 => half::bf16::from_bits(bits).to_f32(),
            HalfType::F16 => half::f16::from_bits(bits).to_f32(),
        }
    }
}
