"""What a user or a stranger may bring, as tables of cases (a module an area), and how a table is run.

A case ends well in one of two ways: refused, in exit status 2 and one sentence that names the flag or the file, or in a
result that is right. Each runs in a forked process of its own: it may hang, use up its memory or be killed.
"""

from __future__ import annotations

import gc
import json
import os
import re
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from lamra.common.cli import REFUSED
from lamra.common.errors import UserError

AT_ONCE = 2


@dataclass(frozen=True)
class Case:
    """Something that a user may do.

    Attributes:
        run: gets an empty folder, does the thing in this process, and asserts what is right of its result.
        refused: what the sentence must contain (a flag, the name of a file); None: it must not be refused; ANY: either.
    """

    name: str
    run: Callable[[Path], object]
    refused: str | None


ANY = "*"


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        ended: "refused" (UserError, or exit status 2), "ok", "traceback" (any other exception or status, or killed by a
            signal), "endless".
        text: the sentence, or the traceback with what was printed.
    """

    case: Case
    ended: str
    text: str

    def fault(self) -> str | None:
        """What is wrong with it; None if it ended as it should."""
        wanted, words = self.case.refused, None
        if self.ended in ("traceback", "endless"):
            words = self.ended
        elif self.ended == "ok" and wanted not in (None, ANY):
            words = f"accepted, should be refused with {wanted!r}"
        elif self.ended == "refused" and wanted is None:
            words = "refused"
        elif self.ended == "refused" and len(self.text.splitlines()) != 1:
            words = "more or less than one line"
        elif self.ended == "refused" and wanted != ANY and wanted not in self.text:
            words = f"the sentence lacks {wanted!r}"
        return words and f"{self.case.name}: {words}: {self.text}"


def run_forked(cases: Iterable[Case], folder: Path, seconds: float = 20) -> list[Outcome]:
    """Run each case in a forked child, AT_ONCE side by side, in folder/<number>; their outcomes, in order.

    What the cases need is best imported before this is called. Start no thread before: a fork has none.
    """
    cases = list(cases)
    waiting, outcomes = list(enumerate(cases)), {}
    running: dict[int, tuple[int, int, float, IO]] = {}  # descriptor of the process -> row, its number, end, its words
    poll = select.poll()
    sys.stdout.flush()
    gc.freeze()  # a collection in a fork would copy every page
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            row, case = waiting.pop(0)
            own = folder / str(row)
            own.mkdir(parents=True)
            words = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (open until the process has ended)
            number = os.fork()
            if number == 0:
                _run(case, own, words)
            descriptor = os.pidfd_open(number)
            poll.register(descriptor, select.POLLIN)
            running[descriptor] = row, number, time.monotonic() + seconds, words
        next_end = min(end for _, _, end, _ in running.values())
        ended = [descriptor for descriptor, _ in poll.poll(max(0, 1000 * (next_end - time.monotonic())))]
        late = [descriptor for descriptor, (_, _, end, _) in running.items() if time.monotonic() > end]
        for descriptor in ended or late:
            row, number, _, words = running.pop(descriptor)
            if descriptor not in ended:
                os.killpg(number, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
            poll.unregister(descriptor)
            os.close(descriptor)
            with words:
                words.seek(0)
                text = words.read().decode(errors="backslashreplace")
            outcomes[row] = (
                _outcome(cases[row], status, text)
                if descriptor in ended
                else (Outcome(cases[row], "endless", f"not after {seconds} s\n{text[-3000:]}"))
            )
    return [outcomes[row] for row in range(len(cases))]


def count(outcomes: Iterable[Outcome]) -> str:
    """ "12 starts: 10 refused, 2 ok"."""
    counts = Counter(outcome.ended for outcome in outcomes)
    return f"{counts.total()} starts: " + ", ".join(f"{number} {ended}" for ended, number in counts.most_common())


def faults(outcomes: Iterable[Outcome]) -> list[str]:
    return [fault for outcome in outcomes if (fault := outcome.fault())]


def start(main: Callable[[], None], *command: Any) -> None:
    """An entrypoint with these words on its command line, in this process; ends in SystemExit if it refuses."""
    from lamra.common.cli import run

    sys.argv = ["entrypoint", *map(str, command)]
    run(main)


def _run(case: Case, folder: Path, words: IO) -> NoReturn:
    """In the fork: the last line that is printed is a json of how the case ended, where that is known."""
    ended, text = "ok", ""
    try:
        os.setsid()
        for number in (1, 2):
            os.dup2(words.fileno(), number)
        sys.stdout, sys.stderr = (
            os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
            for number in (1, 2)
        )
        case.run(folder)
    except SystemExit as end:
        if end.code not in (None, 0):
            ended = "status" if end.code == REFUSED else "traceback"
            text = f"exit status {end.code}"
    except UserError as error:
        ended, text = "refused", str(error)
    except BaseException:
        ended, text = "traceback", traceback.format_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.write(1, b"\n" + json.dumps([ended, text]).encode())
        os._exit(0)


def _outcome(case: Case, status: int, text: str) -> Outcome:
    printed, _, last = text.rpartition("\n")
    if status != 0 or not last.startswith("["):
        return Outcome(case, "traceback", f"ended with status {status}\n{text[-3000:]}")
    ended, words = json.loads(last)
    if ended == "status":
        _, _, words = printed.rpartition("\nerror: ")
        return Outcome(case, "refused", re.sub(r"\n+$", "", words))
    return Outcome(case, ended, f"{words}\n{printed[-3000:]}" if ended == "traceback" else words)
