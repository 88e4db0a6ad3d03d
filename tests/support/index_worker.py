"""Index a source again and again, killed at random moments; a last run is left to end.

    python tests/support/index_worker.py MODEL SOURCE INDEX KILLS

Each run is a fork of a process that has loaded the model and never LanceDB, whose threads no fork would have. Prints a
json: the rows that each run found, and what the last one said.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from lamra import load
from lamra.eval.index import index, make


def child(work) -> int:
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return process


def main(model: str, source: str, folder: str, kills: int) -> None:
    index.TOGETHER = 1
    retriever = load(model)
    found, said = Path(folder).with_suffix(".found"), Path(folder).with_suffix(".said")

    def run() -> None:
        with open(found, "a") as file:
            file.write(f"{len(index.Index(folder))}\n")
        make.make_index(retriever, source, folder, report=said.write_text)

    chance = random.Random(0)
    for _ in range(kills):
        victim = child(run)
        rows = len(found.read_text().split()) if found.exists() else 0
        while not found.exists() or len(found.read_text().split()) == rows:  # LanceDB is imported
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
    _, status = os.waitpid(child(run), 0)
    assert status == 0
    print(json.dumps({"found": [int(count) for count in found.read_text().split()], "said": said.read_text()}))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
