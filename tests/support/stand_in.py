"""Stands in for python, torchrun and accelerate: asks the fork server for the process and waits for its end.

    python -IS tests/support/stand_in.py NAME ARGUMENTS ...     # NAME: python, torchrun or accelerate

Also stands in for common/tether.py when it is called with that. Whatever is no file of Python's is executed as it is.
Imports little: it is started for every process of a test. Where LAMRA_RECORD names a file it starts nothing: it adds
its command to that file, as a line of json, and ends with the status LAMRA_RECORD_STATUS.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from typing import NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SERVER, RECORD = "LAMRA_FORK_SERVER", "LAMRA_RECORD"
LAUNCHERS = ("torchrun", "accelerate")


def main(name: str, arguments: list[str]) -> NoReturn:
    if name == "python":
        arguments = [argument for argument in arguments if argument != "-u"]
        if arguments[:1] == ["common/tether.py"]:
            name, arguments = behind_tether(arguments[1:])
        elif not arguments or not arguments[0].endswith(".py"):
            os.execv(sys.executable, [sys.executable, *arguments])
    if RECORD in os.environ:
        with open(os.environ[RECORD], "a") as file:
            file.write(json.dumps([name, *arguments]) + "\n")
        sys.exit(int(os.environ.get("LAMRA_RECORD_STATUS", 0)))
    sys.exit(ask(name, arguments))


def behind_tether(command: list[str]) -> tuple[str, list[str]]:
    """What common/tether.py does before it starts `command`; executes what is neither Python nor a launcher."""
    sys.path.insert(0, ROOT)
    from common import tether

    tether.end_with_named_parent()
    os.environ[tether.PARENT] = str(os.getpid())
    if command[0].endswith(".py"):
        return "python", command
    if command[0] not in LAUNCHERS:
        os.execvp(command[0], command)
    return command[0], command[1:]


def ask(program: str, arguments: list[str]) -> int:
    """Let the server start it with this process's streams, environment and folder; its exit status."""
    mask = os.umask(0)
    os.umask(mask)
    request = dict(program=program, arguments=arguments, cwd=os.getcwd(), umask=mask, environment=dict(os.environ))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SERVER])
        streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        data = json.dumps(request).encode() + b"\n"
        sent = connection.sendmsg([data], streams)
        connection.sendall(data[sent:])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: connection.sendall(bytes([number])))
        if not (answer := connection.recv(16)):
            with open(os.environ[SERVER] + ".log") as log:
                print("the fork server failed; its log:", log.read(), file=sys.stderr)
            return 1
        status = int(answer)
    if status < 0:  # by a signal
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
