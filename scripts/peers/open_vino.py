"""OpenVINO GenAI on the CPU, from a GGUF file, one sequence at a time.

The file is both the peer and the program that it runs: a process of its own for each measurement.
"""

import importlib.util
import json
import os
import random
import sys
from pathlib import Path

from task import Measured, Unavailable, run_program

FORMATS = {8: ["q8_0"], 4: ["q4_0"]}


class Peer:
    name = "OpenVINO GenAI"

    def __init__(self, options):
        if options.device != "cpu":
            raise Unavailable("measured on CPUs alone")
        # Its packages may live in an environment of their own.
        self.python = os.environ.get("OPENVINO_PYTHON", sys.executable)
        if self.python == sys.executable and importlib.util.find_spec("openvino_genai") is None:
            raise Unavailable("openvino_genai is not installed: pip install openvino-genai")
        try:
            import gguf_export
        except ImportError as error:
            raise Unavailable(f"{error.name} is not installed: pip install gguf") from error
        self.export = gguf_export.export
        self.scratch = options.scratch
        self.config = options.config
        self.version = "version unknown"

    def describe(self):
        return self.version

    def formats(self, bits):
        return FORMATS.get(bits, [])

    def measure(self, task, file_type):
        if task.batch > 1 or task.kind == "start":
            raise Unavailable("one sequence, from when the model is loaded")
        path = Path(self.scratch) / f"{task.shape}-{file_type}-bpe.gguf"
        # Of the vocabularies of GGUF files it reads those of byte pairs.
        model = self.export(self.config(task.shape), file_type, path, vocabulary="gpt2")
        finished = run_program([self.python, Path(__file__).resolve(), task.json(), model])
        answer = json.loads(finished.stdout.splitlines()[-1])
        self.version = answer["version"]
        return Measured(answer["tokens_per_s"], finished.peak_bytes)


def main():
    import numpy
    import openvino
    import openvino_genai

    task, model = json.loads(sys.argv[1]), sys.argv[2]
    prefill = task["kind"] == "prefill"
    length = max(task["prompt"] if prefill else task["depth"], 1)
    new = 1 if prefill else task["output"]
    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=task["threads"])
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens = settings.min_new_tokens = new
    settings.ignore_eos, settings.do_sample = True, False
    # Another prompt each time, as it keeps those that it knows; the first one is a warm-up.
    for seed in range(2):
        tokens = random.Random(seed).choices(range(300, 20_000), k=length)
        ids = openvino.Tensor(numpy.array([tokens], dtype=numpy.int64))
        mask = openvino.Tensor(numpy.ones((1, length), dtype=numpy.int64))
        inputs = openvino_genai.TokenizedInputs(ids, mask)
        metrics = pipeline.generate(inputs, settings).perf_metrics
    per_second = 1e3 * length / metrics.get_ttft().mean if prefill else 1e3 / metrics.get_tpot().mean
    answer = {"version": openvino_genai.__version__, "tokens_per_s": per_second}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
