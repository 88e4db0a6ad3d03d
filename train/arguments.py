"""The training flags with transformers' own checks behind them: what the Trainer reads. Imports take seconds."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch
import transformers
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.flags import require
from lamra.common.processes import TIMEOUT, check_devices, default_workers
from lamra.train.flags import TrainingFlags
from lamra.train.inherited import NOTED


def training_arguments(flags: TrainingFlags) -> TrainingArguments:
    """What the Trainer reads of the flags.

    Raises:
        UserError: transformers, torch or this machine refuse a value.
    """
    return TrainingArguments(**vars(flags))


@dataclass
class TrainingArguments(TrainingFlags, transformers.TrainingArguments):
    """Hugging Face's training arguments with this project's flags."""

    def __post_init__(self):
        TrainingFlags.__post_init__(self)
        for flag, value in self.set_by_user().items():
            if flag in NOTED:
                note(f"--{flag} {value} is ignored: {NOTED[flag]}")
        for flag, names in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
            choices = [name.value for name in names]
            require(getattr(self, flag) in choices, flag, getattr(self, flag), f"one of {', '.join(choices)}")
        self._fit_to_this_machine()
        self._fit_to_one_process()
        try:
            transformers.TrainingArguments.__post_init__(self)
        except ValueError as error:  # a library's word on a bad value
            raise UserError(" ".join(str(error).split())) from None
        self._check_made()

    def _check_made(self) -> None:
        """Make optimizer and schedule for one weight: what the libraries refuse is told before a model is loaded."""
        missing = set(self.report_to) - {"kubeflow", *get_available_reporting_integrations()}
        require(not missing, "report_to", ",".join(missing), "one that is installed, or none")
        flags = f"--optim {OptimizerNames(self.optim).value} --optim_args {self.optim_args}"
        try:
            make, options = transformers.Trainer.get_optimizer_cls_and_kwargs(self)
            optimizer = make([torch.nn.Parameter(torch.zeros(1))], **options)
            schedule = SchedulerType(self.lr_scheduler_type).value
            flags = f"--lr_scheduler_type {schedule} --lr_scheduler_kwargs {self.lr_scheduler_kwargs}"
            scheduler = transformers.get_scheduler(
                self.lr_scheduler_type,
                optimizer,
                num_warmup_steps=1,
                num_training_steps=10,
                scheduler_specific_kwargs=self.lr_scheduler_kwargs,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the optimizer has made no step
                for _ in range(10):
                    scheduler.step()
        except Exception as error:  # whatever a library says of a value or of itself
            raise UserError(f"{flags}: {' '.join(str(error).split())}; give others, or leave them out") from None

    def _fit_to_one_process(self) -> None:
        """Drop what means nothing without data workers or without other processes."""
        if "RANK" not in os.environ and self.ddp_backend:
            note(f"--ddp_backend {self.ddp_backend} is ignored: this process works alone")
            self.ddp_backend = None
        available = self.ddp_backend is None or torch.distributed.is_backend_available(self.ddp_backend)
        on_device = self.ddp_backend in (None, "gloo", "mpi") or not self.use_cpu
        require(available and on_device, "ddp_backend", self.ddp_backend, "gloo, or nccl on CUDA")
        if self.dataloader_num_workers:
            return
        for name, default in (
            ("dataloader_persistent_workers", False),
            ("dataloader_prefetch_factor", None),
            ("dataloader_multiprocessing_context", None),
        ):
            if getattr(self, name) != default:
                note(f"--{name} {getattr(self, name)} is ignored: there are no data workers here")
                setattr(self, name, default)

    def _fit_to_this_machine(self) -> None:
        """Drop what means nothing without CUDA, and refuse what this CUDA machine cannot do."""
        if torch.cuda.is_available() and not self.use_cpu:
            check_devices(self.bf16)
            return
        self.use_cpu = True
        if self.fp16:
            raise UserError("--fp16 True needs a CUDA GPU: use --bf16 True, or neither")
        if self.deepspeed:
            start_deepspeed_on_cpu()
        if self.tf32:
            note("--tf32 True is ignored: it means nothing without CUDA")
        self.tf32 = None
        self.dataloader_pin_memory = False
        self.dataloader_num_workers = min(self.dataloader_num_workers, default_workers())


def start_deepspeed_on_cpu() -> None:
    """Bring DeepSpeed up on gloo; ZeRO-3 wants that done before the model is built."""
    if "RANK" not in os.environ:
        raise UserError("--deepspeed needs a launcher: start with torchrun --nproc_per_node 1 instead of python")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # slow to import, and optional without --deepspeed

    # Its shared-memory all-reduce would be compiled at the first start, for minutes; gloo does the same without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", timeout=TIMEOUT)
