use burn_tensor::{DType, Tensor, backend::Backend};

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub struct LayerKv<B: Backend> {
    /// Rotated keys, `f32 [slots, kv_heads * head_dim]`.
    pub keys: Tensor<B, 2>,
    /// Values, `f32 [slots, kv_heads * head_dim]`.
    pub values: Tensor<B, 2>,
}

/// The KV storage of a model, allocated once.
///
/// A *slot* holds one position's key and value. Which sequence owns which slots is decided
/// elsewhere; here `slot = block_id * block_size + position % block_size` and nothing more.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    /// One entry per layer.
    pub layers: Vec<LayerKv<B>>,
}

impl<B: Backend> KvCache<B> {
    /// Allocates `slots` slots of `row_len = kv_heads * head_dim` floats for each of `num_layers`.
    pub fn allocate(num_layers: usize, slots: usize, row_len: usize, device: &B::Device) -> Self {
        let zeros = || Tensor::zeros([slots, row_len], (device, DType::F32));
        let layers = (0..num_layers).map(|_| LayerKv { keys: zeros(), values: zeros() }).collect();
        Self { layers }
    }

    /// Bytes of one slot over all layers.
    pub fn slot_bytes(num_layers: usize, row_len: usize) -> usize {
        num_layers * 2 * row_len * size_of::<f32>()
    }

    /// Copies whole blocks, `(from, to)`, in every layer: the copy of copy-on-write.
    pub fn copy_blocks(&mut self, copies: &[(u32, u32)], block_size: usize) {
        for layer in &mut self.layers {
            for tensor in [&mut layer.keys, &mut layer.values] {
                for &(from, to) in copies {
                    let from = from as usize * block_size;
                    let to = to as usize * block_size;
                    tensor.inplace(|rows| {
                        let block = rows.clone().slice([from..from + block_size]);
                        rows.slice_assign([to..to + block_size], block)
                    });
                }
            }
        }
    }
}
