use burn_tensor::{DType, Int, Tensor, TensorData, backend::Backend};

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

    /// Copies whole blocks, `(from, to)`, in every layer: the copy of copy-on-write.
    pub fn copy_blocks(&mut self, copies: &[(u32, u32)], block_size: usize) {
        let rows = |block: u32| {
            let start = block as i32 * block_size as i32;
            (start..start + block_size as i32).collect::<Vec<_>>()
        };
        let tensors = self.layers.iter_mut().flat_map(|layer| [&mut layer.keys, &mut layer.values]);
        for tensor in tensors {
            for &(from, to) in copies {
                let options = (&tensor.device(), DType::I32);
                let from =
                    Tensor::<B, 1, Int>::from_data(TensorData::from(&rows(from)[..]), options);
                let to = to as usize * block_size;
                // `select` copies; a slice would share the cache's memory and force a copy of it all.
                tensor.inplace(|cache| {
                    let block = cache.clone().select(0, from);
                    cache.slice_assign([to..to + block_size], block)
                });
            }
        }
    }

    /// Downloads a block: keys and values of each layer in turn, each `[block_size, row]`.
    pub fn read_block(&self, block: u32, block_size: usize) -> Vec<TensorData> {
        let start = block as usize * block_size;
        let read =
            |tensor: &Tensor<B, 2>| tensor.clone().slice([start..start + block_size]).into_data();
        self.layers.iter().flat_map(|layer| [read(&layer.keys), read(&layer.values)]).collect()
    }

    /// Uploads what [`KvCache::read_block`] gave to another block.
    pub fn write_block(&mut self, block: u32, block_size: usize, data: Vec<TensorData>) {
        let start = block as usize * block_size;
        let tensors = self.layers.iter_mut().flat_map(|layer| [&mut layer.keys, &mut layer.values]);
        for (tensor, data) in tensors.zip(data) {
            let rows = Tensor::from_data(data, (&tensor.device(), DType::F32));
            tensor.inplace(|cache| cache.slice_assign([start..start + block_size], rows));
        }
    }
}
