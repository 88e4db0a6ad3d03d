"""A pytest plugin: the CPU seconds of each test, with those of the processes that it started.

pytest -p cpu --cpu 30 tests/runs        # in one process: the fork server's seconds are counted for all workers
"""

from __future__ import annotations

import os
import resource
from collections import Counter

import pytest

SECONDS: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", type=int, default=30, help="show so many tests that use most CPU seconds")


def seconds_used(server: int | None) -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    used = sum(usage.ru_utime + usage.ru_stime for usage in both)
    if server:
        with open(f"/proc/{server}/stat") as file:
            used += sum(map(int, file.read().rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")
    return used


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    server = getattr(item.config, "fork_server", None)
    before = seconds_used(server and server.pid)
    yield
    SECONDS[item.nodeid] = seconds_used(server and server.pid) - before


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    terminalreporter.section("CPU seconds")
    for name, seconds in SECONDS.most_common(config.option.cpu):
        terminalreporter.write_line(f"{seconds:8.1f} {name}")
    files: Counter[str] = Counter()
    for name, seconds in SECONDS.items():
        files[name.partition("::")[0]] += seconds
    for name, seconds in [*files.most_common(), ("all", sum(files.values()))]:
        terminalreporter.write_line(f"{seconds:8.1f} {name}")
