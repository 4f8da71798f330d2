"""llama.cpp on the CPU, measured with its own `llama-bench` and `llama-batched-bench`."""

import json
import os
import shutil
from pathlib import Path

from task import Measured, Unavailable, run_program

FORMATS = {16: ["bf16"], 8: ["q8_0"], 4: ["q4_0", "q4_k_m"]}


class Peer:
    name = "llama.cpp"

    def __init__(self, options):
        found = options.llama_bench or os.environ.get("LLAMA_BENCH") or shutil.which("llama-bench")
        if not found or not Path(found).is_file():
            raise Unavailable("no llama-bench: give --llama-bench PATH or set LLAMA_BENCH")
        try:
            import gguf_export
        except ImportError as error:
            raise Unavailable(f"{error.name} is not installed: pip install gguf") from error
        self.export = gguf_export.export
        self.bench = Path(found)
        self.scratch = options.scratch
        self.gpu_layers = 0 if options.device == "cpu" else 99
        self.config = options.config
        self.build = None

    def describe(self):
        return f"build {self.build}" if self.build else "build unknown"

    def formats(self, bits):
        return FORMATS.get(bits, [])

    def model(self, task, file_type):
        path = Path(self.scratch) / f"{task.shape}-{file_type}.gguf"
        return self.export(self.config(task.shape), file_type, path)

    def measure(self, task, file_type):
        if task.batch > 1:
            return self.batched(task, file_type)
        command = [self.bench, "-m", self.model(task, file_type), "-t", task.threads, "-fa", 1]
        command += ["-ngl", self.gpu_layers, "-r", 1, "-o", "json"]
        if task.kind == "prefill":
            command += ["-p", task.prompt, "-n", 0]
        elif task.kind == "decode":
            command += ["-p", 0, "-n", task.output, "-d", task.depth]
        else:
            # As much as a program does until the logits of its first token are there.
            command += ["-p", 8, "-n", 0, "--no-warmup"]
        finished = run_program(command)
        row = json.loads(finished.stdout)[0]
        self.build = f"{row['build_number']} ({row['build_commit']})"
        value = finished.seconds if task.kind == "start" else row["avg_ts"]
        return Measured(value, finished.peak_bytes)

    def batched(self, task, file_type):
        bench = self.bench.with_name("llama-batched-bench")
        if not bench.is_file():
            raise Unavailable(f"{bench} is not there")
        context = task.batch * (task.depth + task.output)
        command = [bench, "-m", self.model(task, file_type), "-t", task.threads, "-fa", "on"]
        command += ["-ngl", self.gpu_layers, "-c", context, "-npp", task.depth]
        command += ["-ntg", task.output, "-npl", task.batch, "--output-format", "jsonl"]
        finished = run_program(command)
        rows = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]
        return Measured(rows[-1]["speed_tg"], finished.peak_bytes)
