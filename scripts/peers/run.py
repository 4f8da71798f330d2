"""Runs the same tasks on this engine and on its peers, in turns, and compares them.

    python scripts/peers/run.py --shape tinyllama-1.1b --threads 2 --llama-bench PATH --json out.json

A round measures every side of a cell once, one after the other; ratios are taken within a round and
then their median, because a machine's speed moves from minute to minute. README.md tells more.
"""

import argparse
import datetime
import functools
import importlib
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from ours import Ours
from task import Task, Unavailable

# Each is a file here with a class `Peer`.
PEERS = ("llama_cpp", "hf_transformers", "open_vino")
REPOSITORY = Path(__file__).resolve().parents[2]


def numbers(text):
    return [int(part) for part in text.split(",") if part]


def override(text):
    bits, _, quant = text.partition("=")
    return int(bits), quant


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    add = parser.add_argument
    add("--bench", default=target / "release/examples/bench_cpu", help="our benchmark's binary")
    add("--llama-bench", help="llama.cpp's benchmark; llama-batched-bench lies beside it")
    add("--device", default="cpu", help="cpu, wgpu or cuda; peers use the card unless it is cpu")
    add("--shape", default="tinyllama-1.1b")
    add("--bits", type=numbers, default=[16, 8, 4], metavar="16,8,4")
    add("--quant", type=override, action="append", metavar="BITS=SCHEME", help="our format instead")
    add("--peers", default=",".join(PEERS))
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--prefill", type=numbers, default=[512], metavar="TOKENS")
    add("--depth", type=numbers, default=[128, 1024, 2000], metavar="POSITIONS")
    add("--batch", type=numbers, default=[8, 16], metavar="SEQUENCES")
    add("--start", action="store_true", help="also from the program's start to its first token")
    add("--rounds", type=int, default=3)
    add("--scratch", default=Path(tempfile.gettempdir()) / "engine-peers", help="folder for models")
    add("--json", metavar="FILE")
    add("--markdown", metavar="FILE")
    return parser.parse_args()


def tasks(options):
    """All cells, those of one format together."""
    context = options.config(options.shape)["max_position_embeddings"]
    for bits in options.bits:
        make = functools.partial(Task, options.shape, bits=bits, threads=options.threads)
        for prompt in options.prefill:
            yield make("prefill", prompt=prompt)
        for depth in options.depth:
            yield make("decode", depth=depth, output=max(1, min(64, context - depth)))
        for batch in options.batch:
            yield make("decode", depth=64, output=32, batch=batch)
        if options.start:
            yield make("start")


def peers(options):
    """Every peer that is here, and for the others why not."""
    found, missing = [], {}
    for name in filter(None, options.peers.split(",")):
        module = importlib.import_module(name)
        try:
            found.append(module.Peer(options))
        except Unavailable as reason:
            missing[module.Peer.name] = str(reason)
    return found, missing


def attempt(side, task, form, notes):
    """One measurement, or nothing with a note."""
    try:
        return side.measure(task, form)
    except (Unavailable, RuntimeError, OSError, ValueError, LookupError) as reason:
        note = f"{side.name} {form}, {task.words()}: {reason}"
        if note not in notes:
            notes.append(note)
            print(f"not measured: {note}", file=sys.stderr)
        return None


def spread(values):
    values = [value for value in values if value is not None]
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(task, own, other):
    """How much faster we are: above 1 is good, whatever is measured."""
    if own is None or other is None or not own.value or not other.value:
        return None
    return other.value / own.value if task.kind == "start" else own.value / other.value


def measure_cell(task, sides, rounds, notes):
    """All rounds of one cell; the first side is ours."""
    cells = [(side, form) for side in sides for form in side.formats(task.bits)]
    results = [[] for _ in cells]
    for index in range(rounds):
        for result, (side, form) in zip(results, cells):
            result.append(attempt(side, task, form, notes))
        last = ", ".join(f"{r[-1].value:.1f}" if r[-1] else "-" for r in results)
        print(f"{task.bits} bits, {task.words()}, round {index + 1}: {last}", file=sys.stderr)
    entries = []
    for (side, form), result in zip(cells, results):
        entry = {
            "side": side.name,
            "format": form,
            "value": spread([one and one.value for one in result]),
            "peak_memory_bytes": max((one.peak_bytes or 0 for one in result if one), default=None),
            "ours_over_this": None,
        }
        if side is not sides[0] and results:
            entry["ours_over_this"] = spread([ratio(task, *pair) for pair in zip(results[0], result)])
        entries.append(entry)
    unit = "s" if task.kind == "start" else "tok/s"
    return {"task": asdict(task), "unit": unit, "sides": entries}


def show(value, digits=1):
    if value is None:
        return ""
    median, low, high = (f"{value[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}–{high})"


def markdown(report):
    machine = report["machine"] or {}
    lines = [
        f"{machine.get('cpu') or 'unknown CPU'}, {report['threads']} threads; {report['date']}",
        "",
        *[f"* {name} {version}" for name, version in report["versions"].items()],
        *[f"* {name}: not measured, {reason}" for name, reason in report["missing"].items()],
        *[f"* not measured: {note}" for note in report["notes"]],
        "",
        f"Shape {report['shape']}; medians of {report['rounds']} rounds, smallest and largest in",
        "parentheses; ratios are taken within a round, above 1 we are faster.",
        "",
        "| bits | task | unit | side | format | value | ours / this | peak MiB |",
        "|---:|---|---|---|---|---:|---:|---:|",
    ]
    for cell in report["cells"]:
        task = Task(**cell["task"])
        for entry in cell["sides"]:
            peak = entry["peak_memory_bytes"]
            columns = [
                task.bits,
                task.words(),
                cell["unit"],
                entry["side"],
                entry["format"],
                show(entry["value"], 2 if task.kind == "start" else 1),
                show(entry["ours_over_this"], 2),
                f"{peak / 2**20:.0f}" if peak else "",
            ]
            lines.append("| " + " | ".join(map(str, columns)) + " |")
    return "\n".join(lines) + "\n"


def main():
    options = parse()
    options.scratch = Path(options.scratch)
    options.scratch.mkdir(parents=True, exist_ok=True)
    try:
        ours = Ours(options)
    except Unavailable as reason:
        sys.exit(f"error: {reason}")

    @functools.cache
    def config(shape):
        return json.loads((ours.export(shape) / "config.json").read_text())

    options.config = config
    others, missing = peers(options)
    for name, reason in missing.items():
        print(f"not measured: {name}: {reason}", file=sys.stderr)
    sides = [ours, *others]
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "threads": options.threads,
        "shape": options.shape,
        "rounds": options.rounds,
        "missing": missing,
        "notes": [],
        "cells": [],
    }
    for task in tasks(options):
        cell = measure_cell(task, sides, options.rounds, report["notes"])
        report["cells"].append(cell)
        report["machine"] = ours.machine
        report["versions"] = {side.name: side.describe() for side in sides}
        # After each cell, so that a run that is cut short leaves what it has.
        write(report, options)
    print(markdown(report))


def write(report, options):
    if options.markdown:
        Path(options.markdown).write_text(markdown(report))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
