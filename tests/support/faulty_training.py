"""Started by test_faults.py under torchrun with the flags of train_nli.py: the second process's loss breaks."""

from __future__ import annotations

import torch

from lamra.common.cli import run
from lamra.train import train_nli
from lamra.train.contrastive_trainer import ContrastiveTrainer

STEPS = (4, 6)

compute_loss = ContrastiveTrainer.compute_loss


def faulty(self, model, inputs, **kwargs):
    if self.state.global_step + 1 not in STEPS or self.args.process_index != 1:
        return compute_loss(self, model, inputs, **kwargs)
    hook = model.register_forward_hook(lambda _model, _inputs, embeddings: embeddings * torch.nan)
    try:
        return compute_loss(self, model, inputs, **kwargs)
    finally:
        hook.remove()


if __name__ == "__main__":
    ContrastiveTrainer.compute_loss = faulty
    run(train_nli.main)
