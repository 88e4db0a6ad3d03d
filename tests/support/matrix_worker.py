"""Started by test_matrix.py, one process for each rank: every cell of the matrix on this rank's rows.

The first rank writes a line of json for each cell: how far loss and gradients are from those of one process. A cell
that hangs or aborts has no line, and those before it keep theirs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lamra.models.backbone import Backbone
from lamra.models.families import FAMILIES
from lamra.models.losses import LossOptions, info_nce
from lamra.models.settings import Settings
from lamra.train.build import build_embedder, build_reranker
from lamra.train.flags import ModelArguments

IMAGE, START, END = 507, 505, 506
WORLD, QUERIES, CHUNK = 2, 2, 3  # processes, queries of each, rows of a gradient-cache chunk
PREFIX = 2  # tokens that all prompts begin with

PARALLEL = ("none", "zero2", "zero3")
TRAINED = {
    "frozen": {},
    "projector": dict(train_vision_projector=True),
    "vision LoRA": dict(use_vision_lora=True),
}
# Row -> patch grid of its picture, for each rank. Rows are queries, positives, hard negatives; chunks hold 3 of them,
# so that a rank has a chunk with pictures and a chunk without.
PICTURES = {
    "pictures on one rank": ({}, {1: (2, 4), 2: (2, 2)}),
    "mixed": ({0: (2, 4), 5: (2, 2)}, {1: (2, 2), 3: (4, 4)}),
    "text": ({}, {}),  # after steps with pictures, whose gradients must not come back
}


@dataclass(frozen=True)
class Cell:
    parallel: str
    trained: str
    data: str
    cache: bool
    hard_negatives: int
    family: str = "qwen2_vl"

    def __str__(self) -> str:
        return f"{self.parallel}, {self.reference}, cache {'on' if self.cache else 'off'}"

    @property
    def reference(self) -> str:
        """What one process computes for it."""
        return f"{self.family}, {self.trained}, {self.data}, {self.hard_negatives} hard negatives"


CELLS = [Cell(*values) for values in product(PARALLEL, TRAINED, PICTURES, (False, True), (0, 2))]
OTHERS = ("qwen2_5_vl", "qwen3_vl")
CELLS += [
    Cell(parallel, trained, "pictures on one rank", True, 2, family)
    for family, parallel, trained in product(OTHERS, PARALLEL, TRAINED)
]


def rows(data: str, hard_negatives: int, family: str = "qwen2_vl") -> list[list[dict]]:
    """The rows of each rank: token ids, pixel_values and grid."""
    of_ranks, columns = [], 3 * 2 * (FAMILIES[family].token_side // 2) ** 2
    for rank, pictures in enumerate(PICTURES[data]):
        of_rank = []
        for row in range(QUERIES * (2 + hard_negatives)):
            generator = torch.Generator().manual_seed(100 * rank + row)
            ids = torch.randint(3, 500, (3 + (7 * row + rank) % 5,), generator=generator)
            ids = torch.cat([torch.arange(10, 10 + PREFIX), ids])
            grid, patches = pictures.get(row), 0
            if grid:
                patches = grid[0] * grid[1]
                picture = torch.tensor([START] + [IMAGE] * (patches // 4) + [END])
                ids = torch.cat([ids[: PREFIX + 1], picture, ids[PREFIX + 1 :]])
            of_rank.append({"ids": ids, "pixels": torch.randn(patches, columns, generator=generator), "grid": grid})
        of_ranks.append(of_rank)
    return of_ranks


def collated(rows: list[dict]) -> dict[str, Tensor]:
    ids = [row["ids"] for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
    }
    if grids := [(1, *row["grid"]) for row in rows if row["grid"]]:
        batch |= {"pixel_values": torch.cat([row["pixels"] for row in rows]), "image_grid_thw": torch.tensor(grids)}
    return batch


def build(
    folder: Path,
    trained: str,
    builder=build_embedder,
    parallel: str = "none",
    prefix: tuple[int, ...] = (),
    learn_temperature: bool = False,
) -> tuple[Backbone, bool]:
    """A model with trained weights that are no zeros, the same on every rank; and find_unused_parameters."""
    args = SimpleNamespace(
        bf16=False,
        fp16=False,
        device="cpu",
        deepspeed=parallel != "none",
        grad_cache_chunk=0,
        selective_checkpointing=False,
        learn_temperature=learn_temperature,
        temperature_min=0.01,
        temperature_max=1.0,
    )
    model_args = ModelArguments(lora_r=4, lora_alpha=8, lora_dropout=0.0, share_prefix=bool(prefix), **TRAINED[trained])
    model = builder(folder, model_args, args, Settings("base", "sequential"), *prefix).train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return model, args.ddp_find_unused_parameters


def contrastive_loss(model: nn.Module, rows: list[dict], queries: int) -> Tensor:
    embeddings = model(**collated(rows))
    return info_nce(embeddings[:queries], embeddings[queries:], temperature=0.05).loss


def loss_with_options(model: nn.Module, rows: list[dict], queries: int) -> Tensor:
    """Of an embedder whose temperature is trained."""
    embeddings, temperature = model(**collated(rows), with_temperature=True)
    options = LossOptions(symmetric=True, false_negative_margin=0.0, hardness_weight=2.0)
    return info_nce(embeddings[:queries], embeddings[queries:], temperature, options=options).loss


def answer_loss(model: nn.Module, rows: list[dict]) -> Tensor:
    """Of a reranker, whose answer is the last token of each row."""
    batch = collated(rows)
    last = batch["attention_mask"].sum(dim=1, keepdim=True) - 1
    answer_mask = torch.zeros_like(batch["attention_mask"], dtype=torch.bool).scatter(1, last - 1, True)
    return F.cross_entropy(model(answer_mask=answer_mask, **batch), batch["input_ids"].gather(1, last)[:, 0])


class Parallel:
    """A model under one kind of data parallelism: backward passes that leave the weights as they are."""

    def __init__(
        self, folder: Path, parallel: str, trained: str, builder=build_embedder, learn_temperature: bool = False
    ):
        self.zero = parallel != "none"
        prefix = (PREFIX,) if builder is build_embedder else ()  # what is expected was computed without
        if self.zero:
            import deepspeed
            from transformers.integrations import HfDeepSpeedConfig

            config = self.config(parallel)
            alive = HfDeepSpeedConfig(config)  # ZeRO-3 loads weights in shards
            self.model, _ = build(folder, trained, builder, parallel, prefix, learn_temperature)
            optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.0)
            self.engine, *_ = deepspeed.initialize(model=self.model, optimizer=optimizer, config=config)
            del alive
        else:
            self.model, unused = build(folder, trained, builder, parallel, prefix, learn_temperature)
            self.engine = DistributedDataParallel(self.model, find_unused_parameters=unused)

    @staticmethod
    def config(parallel: str) -> dict:
        """ds_configs/zero?.json with what the Trainer fills in, small enough that every weight is shared out."""
        path = Path(__file__).parents[2] / f"ds_configs/{parallel}.json"
        config = json.loads(path.read_text())
        zero = config["zero_optimization"] | {"reduce_bucket_size": 4096}
        if parallel == "zero3":
            zero |= {"stage3_prefetch_bucket_size": 4096, "stage3_param_persistence_threshold": 0}
        return config | {
            "zero_optimization": zero,
            "bf16": {"enabled": False},
            "fp16": {"enabled": False},
            "gradient_clipping": 0.0,
            "train_batch_size": WORLD,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
        }

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.zero:
            self.engine.zero_grad()
            loss.backward()
            return {name: p.grad for name, p in trained.items() if p.grad is not None}
        from deepspeed.utils import safe_get_full_grad

        self.engine.backward(loss)
        found = {name: safe_get_full_grad(p) for name, p in trained.items()}
        self.engine.step()  # at a learning rate of 0: clears the gradients
        return {name: gradient for name, gradient in found.items() if gradient is not None}


def far_from(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of any gradient; one that is not there is zero."""
    scale = max(gradient.norm() for gradient in expected.values())
    errors = []
    for name in found.keys() | expected.keys():
        zero = torch.zeros(())
        gradient = expected.get(name, zero)
        errors.append((found.get(name, zero) - gradient).norm() / max(gradient.norm(), 1e-3 * scale))
    return max(errors).item()


def measured(folder: Path, parallel: str, wanted: list[str]) -> Iterator[tuple[str, float, float]]:
    """Name, error of the loss and error of the gradients of each cell."""
    expected, rank = load_file(folder / "expected.safetensors"), dist.get_rank()

    def errors(name: str, reference: str, loss: Tensor, model: Parallel) -> tuple[str, float, float]:
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        gradients = model.gradients(loss)
        start = f"{reference}/"
        of_reference = {k.removeprefix(start): v for k, v in expected.items() if k.startswith(start)}
        loss = of_reference.pop("loss")
        return name, (mean / WORLD / loss - 1).abs().item(), far_from(gradients, of_reference)

    for family, trained in product(("qwen2_vl", *OTHERS), TRAINED):
        chosen = parallel, trained, family
        cells = [cell for cell in CELLS if (cell.parallel, cell.trained, cell.family) == chosen and str(cell) in wanted]
        if cells:
            model = Parallel(folder / family, parallel, trained)
        for cell in cells:
            model.model.grad_cache_chunk = CHUNK * cell.cache
            loss = contrastive_loss(model.engine, rows(cell.data, cell.hard_negatives, family)[rank], QUERIES)
            yield errors(str(cell), cell.reference, loss, model)

    learnt = {f"{parallel}, temperature, cache off": 0, f"{parallel}, temperature, cache on": CHUNK}
    if learnt.keys() <= set(wanted):
        model = Parallel(folder / "qwen2_vl", parallel, "projector", learn_temperature=True)
        for name, chunk in learnt.items():
            model.model.grad_cache_chunk = chunk
            loss = loss_with_options(model.engine, rows("mixed", 2)[rank], QUERIES)
            yield errors(name, "temperature", loss, model)

    few = rows("pictures on one rank", 0)[rank]
    if (name := f"{parallel}, evaluation") in wanted:
        model = Parallel(folder / "qwen2_vl", parallel, "frozen")
        model.model.eval()
        with torch.no_grad():
            embeddings = model.model(**collated(few))
        error = (embeddings - expected[f"evaluation/{rank}"]).norm()
        dist.all_reduce(error)
        yield name, 0.0, error.item()
    if (name := f"{parallel}, reranker") in wanted:
        model = Parallel(folder / "qwen2_vl", parallel, "projector", build_reranker)
        yield errors(name, "reranker", answer_loss(model.engine, few), model)


def different_hard_negatives() -> str:
    """What info_nce says on this rank when the ranks hold 2 and 1 hard negatives."""
    unit = F.normalize(torch.randn(5, 4), dim=1)
    try:
        info_nce(unit[:1], unit[1 : 4 - dist.get_rank()], temperature=0.05)
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder: Path, wanted: list[str]) -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", timeout=timedelta(seconds=100), dist_init_required=True)
    with open(folder / f"report{dist.get_rank()}.jsonl", "a") as report:
        for parallel in PARALLEL:
            for name, loss, gradient in measured(folder, parallel, wanted):
                report.write(json.dumps({"name": name, "loss": loss, "gradient": gradient}) + "\n")
                report.flush()
        report.write(json.dumps({"name": "different", "said": different_hard_negatives()}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[1], "wanted.json").read_text()))
