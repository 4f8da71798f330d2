"""Writes crates/engine-core/tests/data/rope.json: rotary embeddings computed by transformers.

    pip install transformers torch
    python scripts/make_rope_fixture.py crates/engine-core/tests/data/rope.json

Each case holds a config.json, and for some sequence lengths the inverse frequencies, the factor of
cosines and sines, and the cosines and sines of some positions, exactly as the model class computes
them in float32. Lengths matter to `dynamic` and `longrope` alone.
"""

import copy
import json
import sys

import torch
import transformers
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

BASE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}


def llama(name, scaling, lengths=(8,), **changes):
    config = {"architectures": ["LlamaForCausalLM"], **BASE, "rope_scaling": scaling, **changes}
    return name, config, lengths


def phi3(name, scaling, lengths=(8,), **changes):
    config = {"architectures": ["Phi3ForCausalLM"], **BASE, "rope_scaling": scaling, **changes}
    return name, config, lengths


def ramp(count, first, step):
    return [round(first + step * i, 4) for i in range(count)]


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONG = {"type": "longrope", "short_factor": ramp(16, 1.0, 0.05), "long_factor": ramp(16, 1.5, 2.5)}
LONG24 = {**LONG, "short_factor": ramp(12, 1.0, 0.05), "long_factor": ramp(12, 1.5, 2.5)}

CASES = [
    llama("default", None),
    llama("default, head_dim 128, theta 500000", None, head_dim=128, rope_theta=500000.0),
    llama("default, theta 1000000", {"rope_type": "default"}, rope_theta=1000000.0),
    llama("linear", {"type": "linear", "factor": 4.0}),
    llama("linear, factor 2.5", {"rope_type": "linear", "factor": 2.5}),
    llama("dynamic", {"type": "dynamic", "factor": 2.0}, (8, 256, 257, 300, 1024)),
    llama("dynamic, factor 8.5", {"rope_type": "dynamic", "factor": 8.5}, (8, 777)),
    llama("llama3", {**LLAMA3, "original_max_position_embeddings": 64}, rope_theta=500000.0),
    llama(
        "llama3 as published",
        {**LLAMA3, "original_max_position_embeddings": 8192},
        head_dim=128,
        rope_theta=500000.0,
        max_position_embeddings=131072,
    ),
    llama("yarn", {**YARN, "original_max_position_embeddings": 64}),
    llama("yarn, trained context not given", YARN),
    llama(
        "yarn as in Qwen 2.5",
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        head_dim=128,
        rope_theta=1000000.0,
        max_position_embeddings=32768,
    ),
    llama(
        "yarn, mscale",
        {
            **YARN,
            "factor": 40.0,
            "original_max_position_embeddings": 64,
            "mscale": 0.707,
            "mscale_all_dim": 1.0,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
    ),
    llama(
        "yarn, not truncated",
        {**YARN, "original_max_position_embeddings": 64, "truncate": False},
    ),
    llama(
        "yarn, attention factor",
        {**YARN, "original_max_position_embeddings": 64, "attention_factor": 1.25},
    ),
    phi3(
        "longrope",
        LONG,
        (8, 64, 65, 256),
        original_max_position_embeddings=64,
    ),
    phi3(
        "longrope, partial rotary",
        LONG24,
        (8, 65),
        original_max_position_embeddings=64,
        partial_rotary_factor=0.75,
    ),
    phi3("partial rotary", None, partial_rotary_factor=0.75),
    llama(
        "longrope, factor",
        {
            **LONG,
            "rope_type": "longrope",
            "factor": 16.0,
            "original_max_position_embeddings": 64,
        },
        (8, 65),
    ),
    llama(
        "longrope, attention factor",
        {
            **LONG,
            "rope_type": "longrope",
            "attention_factor": 1.5,
            "original_max_position_embeddings": 64,
        },
        (65,),
    ),
    (
        "gemma 3, linear",
        {
            "architectures": ["Gemma3ForCausalLM"],
            **BASE,
            "head_dim": 32,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window": 8,
            "sliding_window_pattern": 2,
        },
        (8,),
    ),
]

CLASSES = {
    "LlamaForCausalLM": (transformers.LlamaConfig, LlamaRotaryEmbedding),
    "Phi3ForCausalLM": (transformers.Phi3Config, Phi3RotaryEmbedding),
    "Gemma3ForCausalLM": (transformers.Gemma3TextConfig, Gemma3RotaryEmbedding),
}


def positions_of(length):
    return sorted({0, 1, 2, 7, length // 2, length - 1})


def measure(rope, length, layer_type):
    # A run over the whole length sets the frequencies; the last position is what counts.
    x = torch.zeros(1, dtype=torch.float32)
    ids = torch.arange(length)[None]
    cos, sin = rope(x, ids, **({"layer_type": layer_type} if layer_type else {}))
    prefix = f"{layer_type}_" if layer_type else ""
    half = cos.shape[-1] // 2
    scaling = getattr(rope, f"{prefix}attention_scaling")
    return {
        "rope_len": length,
        "inv_freq": getattr(rope, f"{prefix}inv_freq").tolist(),
        "attention_factor": float(scaling),
        "positions": positions_of(length),
        "cos": [cos[0, p, :half].tolist() for p in positions_of(length)],
        "sin": [sin[0, p, :half].tolist() for p in positions_of(length)],
    }


def main(path):
    cases = []
    for name, config, lengths in CASES:
        config_class, rope_class = CLASSES[config["architectures"][0]]
        keys = copy.deepcopy(config)
        del keys["architectures"]
        read = config_class(**keys)
        local = rope_class is Gemma3RotaryEmbedding
        types = ["full_attention", "sliding_attention"] if local else [None]
        ropes = []
        for layer_type in types:
            # A new embedding per length: transformers' own state depends on earlier lengths.
            ropes.append([measure(rope_class(config=read), n, layer_type) for n in lengths])
        cases.append({"name": name, "config": config, "ropes": ropes})
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    made = "scripts/make_rope_fixture.py"
    with open(path, "w") as file:
        json.dump({"made_by": made, "versions": versions, "cases": cases}, file, indent=None)
        file.write("\n")


main(sys.argv[1])
