"""What is measured, and how a program is run and watched: shared by all sides of the comparison."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass


class Unavailable(Exception):
    """This side cannot be measured here, and why; its cells stay empty."""


@dataclass(frozen=True)
class Task:
    """One cell of the table.

    kind      prefill: tokens of a prompt per second
              decode:  new tokens per second after `depth` positions, for all `batch` sequences
              start:   seconds from a program's start to its first token, from a warm file cache
    bits      16, 8 or 4: each side says which of its formats that is
    """

    shape: str
    kind: str
    bits: int
    threads: int
    prompt: int = 512
    output: int = 64
    depth: int = 0
    batch: int = 1

    def words(self):
        if self.kind == "prefill":
            return f"prefill {self.prompt}"
        if self.kind == "start":
            return "start to first token"
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"decode at depth {self.depth}{batch}"

    def json(self):
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Measured:
    """One measurement: tokens per second, or seconds for a start; peak memory where it was seen."""

    value: float
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Finished:
    """What a program printed, how long it took and the most memory it held."""

    stdout: str
    seconds: float
    peak_bytes: int


# Runs the rest of its command line and tells what only the parent of a process is told.
WATCHER = """
import json, resource, subprocess, sys, time
start = time.monotonic()
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, capture_output=True, text=True)
seconds = time.monotonic() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps([done.returncode, done.stdout, done.stderr[-4000:], seconds, peak]))
"""


def run_program(command, timeout=900):
    """Runs a program to its end; an error in one line if it fails or takes too long."""
    command = [str(part) for part in command]
    watcher = [sys.executable, "-c", WATCHER, *command]
    # A group of its own, so that what takes too long ends with everything that it started.
    process = subprocess.Popen(watcher, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        answer, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise RuntimeError(f"{command[0]} took longer than {timeout} s") from error
    code, stdout, stderr, seconds, peak = json.loads(answer)
    if code != 0:
        last = (stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{command[0]} ended with {code}: {last}")
    return Finished(stdout, seconds, peak)
