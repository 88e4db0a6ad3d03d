"""A process that has imported everything once, and forks the processes that tests start.

Importing torch, transformers, DeepSpeed and this project costs 7 CPU seconds a process. Here they are imported at the
first request; a process that is started through `stand_in.py` (in the place of python, torchrun and accelerate) begins
where its imports would have ended. Nothing is computed in the server: torch's threads do not survive a fork.

    python tests/support/fork_server.py SOCKET        # ends with the process that started it

The launchers' own code parses their command lines and prepares the environment. In place of the processes that they
would start stand forks, and in place of torchrun's agent `launch_ranks`. What the agent itself does (it finds other
machines, ends ranks that do not stop) is tried with real launchers, see `run_script(real=True)`.
"""

from __future__ import annotations

import array
import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # torchrun's variable, and its 30 seconds
TETHER = "common/tether.py"
REFUSED = 2


def import_everything() -> None:
    """What a run imports until its first step and what its launcher imports; no thread of torch's starts."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import accelerate.commands.launch  # noqa: F401
    import deepspeed.runtime.zero.stage3
    import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import torch.distributed.run
    import torch.utils.tensorboard  # noqa: F401
    import transformers
    from transformers import Qwen2VLForConditionalGeneration, Trainer  # noqa: F401

    import lamra.eval.embed
    import lamra.eval.eval_mbeir
    import lamra.eval.eval_rerank
    import lamra.eval.mine_negatives
    import lamra.eval.mine_rerank
    import lamra.eval.teacher_scores
    import lamra.eval.zeroshot
    import lamra.export.merge_lora
    import lamra.train.train_mbeir
    import lamra.train.train_nli
    import lamra.train.train_rerank  # noqa: F401

    assert transformers.trainer.Trainer is Trainer
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page


def serve(path: str) -> NoReturn:
    from lamra.common.tether import end_with

    end_with(os.getppid())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        imported = False
        try:
            while True:
                connection, _ = server.accept()
                if not imported:
                    import_everything()
                    imported = True
                with connection:
                    me = os.getpid()
                    if os.fork() == 0:
                        server.close()
                        end_with(me)
                        answer(connection)
        finally:
            reap(0)


def reap(options: int = os.WNOHANG) -> None:
    """Take leave of forks that have ended: their CPU time becomes this process's."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, options)[0] > 0:
            pass


def answer(connection: socket.socket) -> NoReturn:
    """In a fork of the server: become the launcher, or the parent of the one process, that was asked for."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        request = receive(connection)
        os.chdir(request["cwd"])
        os.umask(request["umask"])
        os.environ.clear()
        os.environ.update(request["environment"])
        launcher = Launcher(connection)
        try:
            status = launcher.main(request["program"], request["arguments"])
        except SystemExit as end:
            status = status_of(end)
        except BaseException:
            traceback.print_exc()
        flush()
        connection.sendall(str(status).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def receive(connection: socket.socket) -> dict:
    """A request, whose standard streams become this process's."""
    data, ancillary, _, _ = connection.recvmsg(2**16, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i")
    for _, _, content in ancillary:
        streams.frombytes(content[: len(content) - len(content) % streams.itemsize])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2))
    while not data.endswith(b"\n"):
        data += connection.recv(2**16)
    return json.loads(data)


def status_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()


class Launcher:
    """What python, torchrun or accelerate would be; its client's word (a signal, or its end) comes through a socket."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.ranks: dict[int, int] = {}  # descriptor that becomes readable at the process's end -> its number
        self.signalled = False

    def main(self, program: str, arguments: list[str]) -> int:
        if program == "python":
            self.start(arguments)
            return self.wait(passes_on=True)
        import torch.distributed.run

        from lamra.common.launcher import launch

        torch.distributed.run.run = self.launch_ranks
        if program == "accelerate":
            subprocess.Popen = self.launch_alone  # its way to start one process
        launch(program, arguments)
        return 0

    def launch_ranks(self, args) -> None:
        """In place of torchrun's agent: start the ranks of one machine, end them all when one fails."""
        from torch.distributed.run import config_from_args

        config, _, command = config_from_args(args)
        assert config.min_nodes == config.max_nodes, "the number of machines is given"
        nodes, node, here = config.max_nodes, args.node_rank, config.nproc_per_node
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        if nodes > 1:  # its machines are all this one
            port = config.rdzv_endpoint.rpartition(":")[2]
        world = nodes * here
        variables = dict(MASTER_ADDR="localhost", MASTER_PORT=port, WORLD_SIZE=world, LOCAL_WORLD_SIZE=here)
        variables |= dict(GROUP_RANK=node, GROUP_WORLD_SIZE=nodes, ROLE_WORLD_SIZE=world, ROLE_NAME=config.role)
        variables |= dict(TORCHELASTIC_RESTART_COUNT=0, TORCHELASTIC_MAX_RESTARTS=config.max_restarts)
        variables |= dict(TORCHELASTIC_RUN_ID=config.run_id or "none", TORCHELASTIC_USE_AGENT_STORE=False)
        os.environ.update({name: str(value) for name, value in variables.items()})
        script = [part for part in command if part != "-u"]
        for rank in range(here):
            self.start(script, RANK=node * here + rank, LOCAL_RANK=rank, ROLE_RANK=node * here + rank)
        failed = self.wait(passes_on=True)
        if failed == REFUSED:
            raise subprocess.CalledProcessError(failed, script)
        if failed or self.signalled:
            raise SystemExit(1)

    def launch_alone(self, command: list[str], env: dict[str, str]):
        from types import SimpleNamespace

        os.environ.update(env)
        self.start([part for part in command if part not in (sys.executable, "-u")])
        process = SimpleNamespace(returncode=None)

        def wait() -> None:
            process.returncode = self.wait(passes_on=False)

        process.wait = wait
        return process

    def start(self, command: list[str], **variables) -> None:
        """Fork a process that runs a file of Python's, with environment variables of its own."""
        flush()
        me = os.getpid()
        number = os.fork()
        if number == 0:
            self.connection.close()
            become(command, me, {name: str(value) for name, value in variables.items()})
        self.ranks[os.pidfd_open(number)] = number

    def wait(self, passes_on: bool) -> int:
        """Until all have ended or one has failed, when the others are ended: the first status that is not 0.

        A signal that the client got goes on to all if `passes_on`; a client that ended ends them at once.
        """
        poll = select.poll()
        for descriptor in (self.connection.fileno(), *self.ranks):
            poll.register(descriptor, select.POLLIN)
        failed, deadline = 0, None
        while self.ranks:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            ready = [descriptor for descriptor, _ in poll.poll(None if left is None else 1000 * left)]
            if not ready:
                self.signal(signal.SIGKILL)
            for descriptor in ready:
                if descriptor == self.connection.fileno():
                    word = self.connection.recv(1)
                    if not word or not passes_on:
                        self.signal(signal.SIGKILL)
                        poll.unregister(descriptor)
                        failed = failed or -(word[0] if word else signal.SIGKILL)
                        continue
                    self.signalled = True
                    self.signal(word[0])
                else:
                    poll.unregister(descriptor)
                    status = os.waitstatus_to_exitcode(os.waitpid(self.ranks.pop(descriptor), 0)[1])
                    os.close(descriptor)
                    if status == 0:
                        continue
                    if not failed:
                        self.signal(signal.SIGTERM)
                    failed = failed or status
                if deadline is None:
                    deadline = time.monotonic() + int(os.environ.get(SHUTDOWN_TIMEOUT, 30))
        return failed

    def signal(self, number: int) -> None:
        for process in self.ranks.values():
            os.kill(process, number)


def become(command: list[str], parent: int, variables: dict[str, str]) -> NoReturn:
    """In a fork: run a file as Python would, behind common/tether.py if the command says so, and exit."""
    status = 1
    try:
        from lamra.common import tether

        tether.end_with(parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        os.environ.update(variables)
        if command[0].endswith(TETHER):
            tether.end_with_named_parent()
            os.environ[tether.PARENT] = str(os.getpid())
            command = command[1:]
        sys.argv = list(command)
        sys.path[0] = str(Path(command[0]).resolve().parent)
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = status_of(end)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # as the interpreter does at its end: waits for threads, then atexit
            atexit._run_exitfuncs()
        finally:
            flush()
            os._exit(status & 0xFF)


if __name__ == "__main__":
    serve(sys.argv[1])
