"""Started by test_faults.py under torchrun: the training's own entrypoint with pictures to train on, or with a fault.

python faulty_training.py pictures|nan FLAGS: the flags of train_nli.py, and for pictures --data_path FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lamra.datasets.items import Item, Pair
from lamra.train import train_nli
from lamra.train.arguments import DataArguments, ModelArguments, TrainingArguments, parse
from lamra.train.entrypoint import run
from lamra.train.stage import Stage
from lamra.train.trainer import ContrastiveTrainer


def picture_pairs(folder: Path) -> list[Pair]:
    """A sentence and its picture, for each file of the folder."""
    files = sorted(folder.iterdir())
    return [Pair(Item(f"q{i}", f"picture {i}"), Item(f.name, images=(f,))) for i, f in enumerate(files)]


def train_on_pictures() -> None:
    model_args, data_args, args = parse(ModelArguments, DataArguments, TrainingArguments)
    pairs = picture_pairs(Path(data_args.data_path))
    data = {"path": data_args.data_path, "sha256": "none", "pairs": len(pairs)}
    Stage(model_args, args).train(pairs, None, data_args, data, "done")


def with_nan_at(steps: tuple[int, ...]) -> None:
    """Make the second process's loss NaN in these steps."""
    compute_loss = ContrastiveTrainer.compute_loss

    def faulty(self, model, inputs, **kwargs):
        if self.state.global_step + 1 not in steps or self.args.process_index != 1:
            return compute_loss(self, model, inputs, **kwargs)
        hook = model.register_forward_hook(lambda _model, _inputs, embeddings: embeddings * torch.nan)
        try:
            return compute_loss(self, model, inputs, **kwargs)
        finally:
            hook.remove()

    ContrastiveTrainer.compute_loss = faulty


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    if fault == "nan":
        with_nan_at((4, 6))
    run(train_on_pictures if fault == "pictures" else train_nli.main)
