"""When the disk or the GPU is full: one sentence with the numbers and the way out, and every process ends."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lamra.common.errors import UserError
from lamra.common.files import DISK_ERRORS, MIB, is_disk_full
from lamra.common.gather import sum_over_processes
from lamra.train.arguments import TrainingArguments
from lamra.train.checkpoints import checkpoints

if TYPE_CHECKING:
    from lamra.train.trainer import LamRATrainer  # which keeps a DiskGuard

GIB = 2**30


class DiskGuard:
    """Keeps a full disk in mind until all processes can stop together.

    A process that raises in the middle of saving would leave the others waiting for it in a collective call.
    """

    def __init__(self):
        self.full = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except DISK_ERRORS as error:
            if not is_disk_full(error):
                raise
            self.full = True

    def saving(self, save: Callable) -> Callable:
        """`save(state_dict, path)`, but without a file where there was no room for all of it."""

        def guarded(state_dict, path):
            with self():
                return save(state_dict, path)
            Path(path).unlink(missing_ok=True)

        return guarded

    def stop_if_full(self, device: torch.device) -> None:
        """Raise OSError on every process if the disk of any is full; all must call this."""
        if sum_over_processes(torch.tensor(float(self.full), device=device)):
            raise OSError(errno.ENOSPC, "the disk is full, on this process or another")


@contextmanager
def tell_when_full(trainer: LamRATrainer) -> Iterator[None]:
    """Turn a full GPU or disk during a trainer's work into a UserError with the numbers and the way out."""
    args = trainer.args
    try:
        yield
    except torch.OutOfMemoryError:
        on_cuda = args.device.type == "cuda"
        total = torch.cuda.get_device_properties(args.device).total_memory if on_cuda else 0
        allocated = torch.cuda.max_memory_allocated(args.device) if on_cuda else 0
        raise UserError(
            memory_sentence(args, trainer.state.global_step + 1, total, allocated, trainer.in_batch_negatives)
        ) from None
    except DISK_ERRORS as error:
        if not is_disk_full(error):
            raise
        shutil.rmtree(trainer.partial_dir, ignore_errors=True)
        raise UserError(disk_sentence(Path(args.output_dir), trainer.state.global_step)) from None


def disk_sentence(folder: Path, step: int) -> str:
    """What to say when a checkpoint of `step` does not fit on the disk of `folder`."""
    saved = checkpoints(folder)
    needed = sum(path.stat().st_size for path in saved[0].rglob("*")) / MIB if saved else 0
    free = shutil.disk_usage(folder).free / MIB
    need = f"a checkpoint needs {needed:.1f}" if saved else "or a quota is reached"
    way_out = f"go on from {saved[0]} with --resume auto" if saved else "start again"
    return (
        f"step {step}: --output_dir {folder} cannot be written: {free:.1f} MiB free, {need}; make room, and {way_out}"
    )


def memory_sentence(
    args: TrainingArguments, step: int, total: float, allocated: float, in_batch_negatives: bool
) -> str:
    """What to say when CUDA is out of memory, and which settings need less and give the same result.

    Args:
        total, allocated: bytes of the device, and the most that this process had allocated.
        in_batch_negatives: the loss is one over the whole batch; otherwise accumulation gives the same.
    """
    prompts = args.grad_cache_chunk or 2 * args.per_device_train_batch_size
    way_out = [] if args.gradient_checkpointing else ["GRADIENT_CHECKPOINTING=True"]
    if in_batch_negatives and prompts > 1:
        way_out.append(f"GRAD_CACHE_CHUNK={prompts // 2} (halve it again if that is too much)")
    elif args.per_device_train_batch_size > 1:
        batch, accumulated = args.per_device_train_batch_size // 2, 2 * args.gradient_accumulation_steps
        way_out.append(f"PER_DEVICE_BATCH_SIZE={batch} GRAD_ACCUM={accumulated}")
    way_out += ["DS_STAGE=zero3"] if args.world_size > 1 and "zero3" not in str(args.deepspeed) else []
    return (
        f"step {step}: CUDA is out of memory on rank {args.process_index}: the device has {total / GIB:.1f} GiB, "
        f"{allocated / GIB:.1f} GiB were allocated at the most, with PER_DEVICE_BATCH_SIZE="
        f"{args.per_device_train_batch_size}, GRAD_CACHE_CHUNK={args.grad_cache_chunk}, GRADIENT_CHECKPOINTING="
        f"{args.gradient_checkpointing}; the batch can stay: set {', then '.join(way_out)}"
    )
