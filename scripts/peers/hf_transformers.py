"""Hugging Face transformers with `torch.compile`: random weights in bf16, a static cache.

The file is both the peer and the program that it runs: a process of its own for each measurement.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path

from task import Measured, Unavailable, run_program


class Peer:
    name = "transformers + torch.compile"

    def __init__(self, options):
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise Unavailable(f"{package} is not installed: pip install torch transformers")
        self.config = options.config
        self.device = "cpu" if options.device == "cpu" else "cuda"

    def describe(self):
        from importlib.metadata import version

        return f"{version('transformers')}, torch {version('torch')}"

    def formats(self, bits):
        return ["bf16"] if bits == 16 else []

    def measure(self, task, _format):
        if task.kind == "start":
            raise Unavailable("compiling comes first: no fair start")
        config = json.dumps(self.config(task.shape))
        command = [sys.executable, Path(__file__).resolve(), task.json(), config, self.device]
        finished = run_program(command, timeout=1800)
        return Measured(float(finished.stdout.split()[-1]), finished.peak_bytes)


def model_of(config, device):
    """The model with whatever numbers its memory held, which costs no time to make."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family = "qwen3" if config["architectures"][0].startswith("Qwen3") else "llama"
    settings = AutoConfig.for_model(family, **config)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(settings).eval()


def timed(call, device):
    import torch

    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    import torch
    from transformers import StaticCache

    task, config, device = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(task["threads"])
    model = model_of(config, device)
    compiled = torch.compile(model, mode="default" if device == "cpu" else "reduce-overhead")
    batch, length = task["batch"], task["prompt"] if task["kind"] == "prefill" else task["depth"]
    longest = length + task["output"] + 1
    ids = torch.randint(0, config["vocab_size"], (batch, max(length, 1)), device=device)

    def step(tokens, start):
        positions = torch.arange(start, start + tokens.shape[1], device=device)
        last = compiled(
            tokens, past_key_values=cache, cache_position=positions, logits_to_keep=1
        ).logits[:, -1:]
        return last.argmax(-1)

    def prompt():
        return step(ids, 0)

    def decode():
        token = prompt()
        first = time.perf_counter()
        for i in range(task["output"] - 1):
            token = step(token, length + i)
            # Each token is known before the next begins, as when text is shown.
            token[0, 0].item()
        decode.seconds = time.perf_counter() - first

    with torch.inference_mode():
        cache = StaticCache(config=model.config, max_cache_len=longest)
        prefill = task["kind"] == "prefill"
        # The first calls compile.
        for _ in range(2):
            prompt() if prefill else decode()
        if prefill:
            print(batch * length / timed(prompt, device))
        else:
            decode()
            print(batch * (task["output"] - 1) / decode.seconds)


if __name__ == "__main__":
    main()
