//! Where keys and values lie in a model's pool of blocks.

use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::launch::{check_room, product};
use crate::kv::BLOCK;
use crate::{Error, Result};

/// Shape of a pool. A block holds [`BLOCK`] positions of all layers: element
/// `((((block * layers + layer) * 2 + kv) * kv_heads + head) * BLOCK + position % BLOCK) * head_size + dim`, where `kv` is
/// 0 for keys and 1 for values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers of the model.
    pub layers: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head, padding included.
    pub head: usize,
}

impl KvLayout {
    /// Elements of a block.
    pub fn block(&self) -> usize {
        self.layers.saturating_mul(self.layer(1))
    }

    /// Where a layer starts in a block.
    pub fn layer(&self, layer: usize) -> usize {
        [2, self.kv_heads, BLOCK, self.head].into_iter().fold(layer, usize::saturating_mul)
    }

    /// Slots of a pool of this many elements; an error unless it is made of whole blocks and slots fit into a `u32`.
    pub(super) fn slots(&self, op: &str, elements: usize) -> Result<u32> {
        let block = self.block();
        if block == 0 || !elements.is_multiple_of(block) {
            return Err(Error::Backend(format!("{op}: the pool has {elements} elements, not whole blocks of {block}")));
        }
        let slots = product(op, elements / block, BLOCK)?;
        // The last number is no slot.
        u32::try_from(slots).ok().filter(|&slots| slots < u32::MAX).ok_or_else(|| {
            Error::Backend(format!("{op}: {slots} slots of keys and values are more than 32 bits number"))
        })
    }
}

/// One layer of a pool, and where in it the keys and values of a batch's rows go.
#[derive(Debug)]
pub struct KvRows<'a> {
    /// The whole pool.
    pub pool: ViewMut<'a, u16>,
    /// Its shape.
    pub layout: KvLayout,
    /// The layer.
    pub layer: usize,
    /// Per row `block * BLOCK + position % BLOCK`. A row whose slot is not in the pool, such as `u32::MAX`, is not kept.
    /// No two rows have one slot.
    pub slots: View<'a, u32>,
}

impl KvRows<'_> {
    /// Slots of the pool, and where the layer starts in a block.
    pub(super) fn check(&self, op: &str) -> Result<(u32, usize)> {
        check_room(op, "the pool's layers", self.layout.layers, self.layer.saturating_add(1))?;
        Ok((self.layout.slots(op, self.pool.len())?, self.layout.layer(self.layer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other() {
        let layout = KvLayout { layers: 3, kv_heads: 2, head: 32 };
        assert_eq!(layout.layer(1), 2 * 2 * 64 * 32);
        assert_eq!(layout.block(), 3 * 2 * 2 * 64 * 32);
        assert_eq!(layout.slots("op", 5 * layout.block()).unwrap(), 320);
        assert!(layout.slots("op", 5 * layout.block() + 1).is_err());
        assert!(KvLayout { layers: 0, ..layout }.slots("op", 0).is_err());
        assert!(KvLayout { layers: usize::MAX, ..layout }.slots("op", 64).is_err(), "no overflow");
    }
}
