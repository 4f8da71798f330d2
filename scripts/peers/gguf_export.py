"""Random weights in the shape of a real model, as a GGUF file.

Speed does not depend on what the numbers are, so no weight is quantized: the blocks of each format
are filled with random bytes, and their scales are set so that the weights have the size of a real
model's. Which matrix gets which type follows what `llama-quantize` writes for that name.

    python gguf_export.py --config config.json --type q8_0 --output model.gguf
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m")

# Standard deviation of the weights, as models are initialised.
DEVIATION = 0.02


def scales(count, value):
    """`count` float16 scales of one value, as `[count, 2]` bytes."""
    return np.full(count, value, np.float16).view(np.uint8).reshape(count, 2)


def blocks(random, tensor_type, count):
    """`count` random blocks of a quantized type, `[count, bytes of a block]`."""
    _, size = gguf.GGML_QUANT_SIZES[tensor_type]
    data = np.frombuffer(random.bytes(count * size), np.uint8).reshape(count, size).copy()
    if tensor_type == Type.Q8_0:
        data[:, 0:2] = scales(count, DEVIATION / 74)
    elif tensor_type == Type.Q4_0:
        data[:, 0:2] = scales(count, DEVIATION / 4.6)
    elif tensor_type == Type.Q4_K:
        # Scales and minima of the eight parts are six bits each, 32 in the middle.
        data[:, 0:2] = scales(count, DEVIATION / 32 / 4.6)
        data[:, 2:4] = scales(count, DEVIATION / 32 / 4.6 * 7.5)
    elif tensor_type == Type.Q6_K:
        # The sixteen scales are signed bytes.
        data[:, 208:210] = scales(count, DEVIATION / 74 / 18)
    else:
        raise ValueError(f"no random blocks of {tensor_type.name}")
    return data


def tensor(random, tensor_type, shape):
    """Random weights `[rows, columns]` and how the file stores them."""
    rows, columns = shape
    if tensor_type in (Type.F32, Type.F16, Type.BF16):
        values = random.standard_normal((rows, columns), np.float32) * np.float32(DEVIATION)
        if tensor_type == Type.F16:
            return values.astype(np.float16)
        if tensor_type == Type.BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values
    block, size = gguf.GGML_QUANT_SIZES[tensor_type]
    if columns % block:
        raise ValueError(f"rows of {columns} weights are no whole blocks of {tensor_type.name}")
    return blocks(random, tensor_type, rows * columns // block).reshape(rows, -1)


def matrix_type(file_type, name, layer, layers):
    """The type of a matrix in a file of this type, as `llama-quantize` chooses it."""
    if file_type in ("f32", "f16", "bf16", "q8_0"):
        return Type[file_type.upper()]
    if name == "output":
        return Type.Q6_K
    if file_type == "q4_0":
        return Type.Q4_0
    # Q4_K_M: the first and the last eighth of the layers and every third between them have more
    # bits where it matters most.
    eighth = layers // 8
    chosen = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return Type.Q6_K if name in ("attn_v", "ffn_down") and chosen else Type.Q4_K


def matrices(shape):
    """Names, layer and `[rows, columns]` of all matrices."""
    hidden, mlp = shape["hidden_size"], shape["intermediate_size"]
    q = shape["num_attention_heads"] * shape["head_dim"]
    kv = shape["num_key_value_heads"] * shape["head_dim"]
    vocab = shape["vocab_size"]
    yield "token_embd", 0, (vocab, hidden)
    for layer in range(shape["num_hidden_layers"]):
        yield "attn_q", layer, (q, hidden)
        yield "attn_k", layer, (kv, hidden)
        yield "attn_v", layer, (kv, hidden)
        yield "attn_output", layer, (hidden, q)
        yield "ffn_gate", layer, (mlp, hidden)
        yield "ffn_up", layer, (mlp, hidden)
        yield "ffn_down", layer, (hidden, mlp)
    if not shape["tie_word_embeddings"]:
        yield "output", 0, (vocab, hidden)


def architecture(shape):
    """GGUF's name of the family; normalised queries and keys are Qwen 3's."""
    return "qwen3" if shape["architectures"][0].startswith("Qwen3") else "llama"


# Numbers of file types, as llama.cpp's `llama_ftype` has them.
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "bf16": 32}


def write_metadata(writer, shape, file_type, vocabulary):
    """Configuration, and a vocabulary without meaning."""
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_vocab_size(shape["vocab_size"])
    known = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    count = shape["vocab_size"]
    tokens = (known + [f"t{index}" for index in range(count)])[:count]
    kinds = ([2, 3, 3] + [6] * 256 + [1] * count)[:count]
    writer.add_tokenizer_model(vocabulary)
    if vocabulary == "gpt2":
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(["a b"])
        writer.add_pad_token_id(0)
        writer.add_chat_template("{{ messages }}")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(count)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def export(shape, file_type, path, seed=1, vocabulary="llama"):
    """Writes the model unless it is there; `shape` is a model's config.json as a dictionary."""
    path = Path(path)
    if path.exists():
        return path
    part = path.with_suffix(".part")
    random = np.random.Generator(np.random.SFC64(seed))
    layers, hidden = shape["num_hidden_layers"], shape["hidden_size"]
    writer = gguf.GGUFWriter(part, architecture(shape))
    write_metadata(writer, shape, file_type, vocabulary)
    norms = [("output_norm.weight", hidden)]
    for layer in range(layers):
        names = [("attn_norm", hidden), ("ffn_norm", hidden)]
        if architecture(shape) == "qwen3":
            names += [("attn_q_norm", shape["head_dim"]), ("attn_k_norm", shape["head_dim"])]
        norms += [(f"blk.{layer}.{name}.weight", size) for name, size in names]
    # Shapes come first and the data after them, one matrix at a time, so that memory holds one.
    plan = []
    for name, layer, dims in matrices(shape):
        kind = matrix_type(file_type, name, layer, layers)
        whole = name if name in ("token_embd", "output") else f"blk.{layer}.{name}"
        plan.append((whole, kind, dims))
        block, size = gguf.GGML_QUANT_SIZES[kind]
        row = dims[1] // block * size
        nbytes = dims[0] * row
        is_float = kind in (Type.F32, Type.F16)
        stored = dims if is_float else (dims[0], row)
        dtype = {Type.F32: np.float32, Type.F16: np.float16}.get(kind, np.uint8)
        writer.add_tensor_info(f"{whole}.weight", stored, np.dtype(dtype), nbytes, kind)
    for name, size in norms:
        writer.add_tensor_info(name, (size,), np.dtype(np.float32), 4 * size, Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, kind, dims in plan:
        writer.write_tensor_data(tensor(random, kind, dims))
    for _, size in norms:
        writer.write_tensor_data(np.ones(size, np.float32))
    writer.close()
    part.rename(path)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="config.json of the shape")
    parser.add_argument("--type", choices=TYPES, required=True)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    config = json.loads(Path(options.config).read_text())
    export(config, options.type, options.output)


if __name__ == "__main__":
    main()
