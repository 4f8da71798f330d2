"""Our side: the release binaries of this repository."""

import json
import tempfile
from pathlib import Path

from task import Measured, Unavailable, run_program

# The output head is in few bits as well, as it is in the files that the peers get.
QUANTS = {
    16: "none+activations=16bit",
    8: "int8+lm_head=int8+activations=16bit",
    4: "int4:group=128+lm_head=int8+activations=16bit",
}


class Ours:
    name = "engine"

    def __init__(self, options):
        self.bench = Path(options.bench)
        if not self.bench.is_file():
            raise Unavailable(
                f"{self.bench} is not there: cargo build --release --examples, or give --bench"
            )
        self.scratch = options.scratch
        self.device = options.device
        self.quants = {**QUANTS, **dict(options.quant or [])}
        self.machine = None

    def describe(self):
        machine = self.machine or {}
        return f"{machine.get('version')} (commit {machine.get('commit')})"

    def formats(self, bits):
        return [self.quants[bits]] if bits in self.quants else []

    def export(self, shape):
        """Random weights of a shape as files; returns the folder with its config.json."""
        command = [self.bench, "--shape", shape, "--export", self.scratch]
        return Path(run_program(command).stdout.strip())

    def measure(self, task, quant):
        if task.kind == "start":
            return self.start(task, quant)
        prefill = task.kind == "prefill"
        prompt = task.prompt if prefill else max(task.depth, 1)
        with tempfile.NamedTemporaryFile(suffix=".json", dir=self.scratch) as file:
            command = [self.bench, *self.model(task.shape, quant), "--device", self.device]
            command += ["--threads", task.threads, "--repeats", 1]
            command += ["--batch", task.batch, "--prompt-tokens", prompt]
            command += ["--output-tokens", 1 if prefill else task.output, "--json", file.name]
            run_program(command)
            report = json.loads(Path(file.name).read_text())
        self.machine = report["machine"]
        row = report["rows"][0]
        value = row["prefill_tokens_per_s" if prefill else "decode_tokens_per_s"]
        return Measured(value, row["peak_memory_bytes"])

    def start(self, task, quant):
        command = [self.bench.with_name("generate"), *self.model(task.shape, quant)]
        command += ["--device", self.device, "--threads", task.threads]
        command += ["--max-context", 64, "--tokens", "1,2,3,4,5,6,7,8", "--max-tokens", 1]
        finished = run_program([*command, "--ignore-eos", "--json"])
        return Measured(finished.seconds, finished.peak_bytes)

    def model(self, shape, quant):
        """Files in this format, made with `quantize` before, so that no time goes into that."""
        # What a file cannot say: activations are rounded while it runs.
        activations = [part for part in quant.split("+") if part.startswith("activations=")]
        return ["--model", self.quantized(shape, quant), "--quant", "+".join(["none", *activations])]

    def quantized(self, shape, quant):
        source = self.export(shape)
        weights = "+".join(part for part in quant.split("+") if not part.startswith("activations="))
        if weights == "none":
            return source
        target = source.with_name(f"{shape}-{weights.replace(':', '-').replace('=', '-')}")
        if not (target / "config.json").is_file():
            quantize = self.bench.with_name("quantize")
            if not quantize.is_file():
                raise Unavailable(f"{quantize} is not there: cargo build --release --examples")
            run_program([quantize, "--model", source, "--scheme", weights, "--output", target])
        return target
