"""GPU hours and memory of every stage, computed: the tables of docs/cost.md.

    python benchmarks/cost.py [--only Qwen2-VL-7B]

Hours are FLOPs over what an H100 reaches. FLOPs follow from published shapes, from M-BEIR's sizes (mbeir_sizes.py) and
from the tokens that the constants below assume. Memory is the estimate of --dry_run True. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from backbones import PUBLISHED, picture_flops
from mbeir_sizes import SIZES, TRAIN_POOL_ROWS, UP_TRAIN_ROWS
from shapes import PREFIX, SUFFIX

from lamra.models.embedder import Embedder
from lamra.models.families import FAMILIES
from lamra.models.lora import add_lora
from lamra.train.dry_run import GIB, memory_estimate
from lamra.train.throughput import PEAK_TFLOPS, flops_per_token

MODELS = ("Qwen2-VL-2B", "Qwen2-VL-7B", "Qwen3-VL-4B", "Qwen3-VL-8B")
GPUS = (1, 8, 16)
PEAK = PEAK_TFLOPS["H100"] * 1e12
# Shares of the peak, of FLOPs that are needed: what is computed again is not counted. The first was measured at the 7B,
# 27.4 % in stage 1 and 27.0 % in stage 2, all of it recomputed. The second is assumed: 33 % was measured for pointwise
# answers whose pictures are known, and the encode loop never ran on a GPU.
TRAINING, FORWARD = 0.27, 0.30
SEARCH = 1.13e12  # FLOP/s measured: 512 queries in 200,000 x 3584, top 50, in 0.65 s
CACHED = 4 / 3  # the gradient cache's second forward pass: 4 passes instead of 3 where all is recomputed

SENTENCE = 13.9  # tokens of nli_for_simcse.csv's sentences, measured
PHOTOGRAPH = (500, 375)  # pixels; of M-BEIR's pictures nothing was measured
CANDIDATE_TEXT = 75  # 434 bytes a row of the pool, less its other fields: 330 bytes
QUERY_TEXT, INSTRUCTION = 14, 12
RANK_PROMPT = 100  # tokens of LamRA-Rank's question and frame, about
LIST = 3.5  # candidates of a training list on average


class Stage(NamedTuple):
    """What a stage computes.

    Attributes:
        tokens, pictures: in all, that a forward pass sees.
        scores: of the search.
        lora: rank of what is trained; 0: nothing is.
        batch: pairs of a step that are each other's negatives; 0: no matter.
        a_gpu: pairs of a step on a GPU, and their tokens; of an evaluation the budget.
    """

    tokens: float
    pictures: float
    scores: float = 0.0
    lora: int = 0
    batch: int = 0
    a_gpu: tuple[int, float] = (0, 32768)


class Cost(NamedTuple):
    gpu_hours: float
    hours: float
    gib: float


def side(model: str, modality: str, text: float) -> tuple[float, int]:
    """Tokens and pictures of an item."""
    pixels = FAMILIES[PUBLISHED[model].family].token_side
    picture = round(PHOTOGRAPH[0] / pixels) * round(PHOTOGRAPH[1] / pixels) + 2  # with the marks around it
    return picture * ("image" in modality) + text * ("text" in modality), int("image" in modality)


def stages(model: str) -> dict[str, Stage]:
    """What each stage computes with a model's pictures; rows and tokens as the constants say."""
    frame = PREFIX + SUFFIX
    train, test, pool = (sum(getattr(size, name) for size in SIZES.values()) for name in ("train", "test", "pool"))

    def mean(side_of: str, by: str) -> tuple[float, float]:
        """Tokens and pictures of a query or a candidate, over the tasks' rows."""
        weights = [getattr(size, by) for size in SIZES.values()]
        text = QUERY_TEXT if side_of == "query" else CANDIDATE_TEXT
        found = [side(model, getattr(size, side_of), text) for size in SIZES.values()]
        tokens, pictures = (sum(w * of[i] for w, of in zip(weights, found)) / sum(weights) for i in (0, 1))
        return tokens, pictures

    query, candidate, tested, pooled = (
        mean(*of) for of in (("query", "train"), ("candidate", "train"), ("query", "test"), ("candidate", "pool"))
    )
    query_prompt, candidate_prompt = query[0] + INSTRUCTION + frame, candidate[0] + frame
    nli, pair = 2 * (SENTENCE + frame), query_prompt + candidate_prompt
    asked = query[0] + INSTRUCTION + RANK_PROMPT
    example = 3 * asked + (2 + LIST) * candidate[0]
    queries = test * (tested[0] + INSTRUCTION + frame), test * tested[1]
    candidates = pool * (pooled[0] + frame), pool * pooled[1]
    return {
        "stage 1": Stage(2 * 275_601 * nli, 0, lora=64, batch=576, a_gpu=(72, 72 * nli)),
        "stage 2": Stage(
            *(UP_TRAIN_ROWS * pair, UP_TRAIN_ROWS * (query[1] + candidate[1])),
            lora=128,
            batch=960,
            a_gpu=(60, 60 * pair),
        ),
        "mining": Stage(
            train * query_prompt + TRAIN_POOL_ROWS * candidate_prompt,
            train * query[1] + TRAIN_POOL_ROWS * candidate[1],
            scores=train * TRAIN_POOL_ROWS,
        ),
        "LamRA-Rank": Stage(
            UP_TRAIN_ROWS * example,
            UP_TRAIN_ROWS * (3 * query[1] + (2 + LIST) * candidate[1]),
            lora=128,
            a_gpu=(2, 2 * example),
        ),
        "evaluation, local": Stage(
            queries[0] + candidates[0],
            queries[1] + candidates[1],
            scores=sum(size.test * size.pool for size in SIZES.values()),
        ),
        "evaluation, global": Stage(*candidates, scores=test * pool),
        "reranking, top 50": Stage(
            test * (tested[0] + INSTRUCTION + 50 * (RANK_PROMPT / 2 + pooled[0])), test * (tested[1] + 50 * pooled[1])
        ),
    }


@cache
def built(model: str, lora: int) -> tuple[Embedder, int, dict]:
    """A model on the meta device, FLOPs of a picture's forward pass, and the values of each parameter."""
    shape, default = PUBLISHED[model], torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            stock = FAMILIES[shape.family].model_class._from_config(shape.config(), attn_implementation="sdpa")
            trained = add_lora(stock, r=lora, alpha=2 * lora, dropout=0.0) if lora else stock.requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    embedder = Embedder(trained, FAMILIES[shape.family].position_ids)
    picture, _ = side(model, "image", 0)
    flops = picture_flops(stock, FAMILIES[shape.family], int(picture) - 2)
    return embedder, flops, {parameter: parameter.numel() for parameter in embedder.parameters()}


def cost(model: str, stage: Stage, gpus: int) -> Cost:
    """Hours and GiB of a stage on so many GPUs, without loss between them.

    FLOPs of a token are throughput.flops_per_token's: 4 for each weight that is read, 6 where it is trained, 2 in a
    forward pass; of a picture, the vision tower's forward pass. Where the GPUs' pairs do not fill the batch, the
    gradient cache does.
    """
    embedder, of_picture, size = built(model, stage.lora)
    a_token = flops_per_token(embedder) / (1 if stage.lora else 2)
    work = (stage.tokens * a_token + stage.pictures * of_picture) / (TRAINING if stage.lora else FORWARD) / PEAK
    pairs, tokens = stage.a_gpu
    work *= CACHED if gpus * pairs < stage.batch else 1
    hidden = embedder.config.text_config.hidden_size
    hours = (work + 2 * stage.scores * hidden / SEARCH) / 3600
    held = memory_estimate(embedder, tokens if stage.lora else 0, size=size, shards=gpus, recomputed=True)
    held += 0 if stage.lora else 34 * tokens * hidden * 2  # one layer's values, as the estimate counts them
    return Cost(hours, hours / gpus, held / GIB)


def table(models: Sequence[str] = MODELS) -> list[str]:
    """The rows of docs/cost.md: a line for each model and stage; GPU hours are those on 16."""
    lines = []
    for model in models:
        for name, stage in stages(model).items():
            found = [cost(model, stage, gpus) for gpus in GPUS]
            hours = [found[-1].gpu_hours, *(of.hours for of in found)]
            figures = [f"{of:.1f}" if of >= 1 else f"{of:.2f}" for of in hours] + [f"{of.gib:.1f}" for of in found]
            lines.append(f"| {model} | {name} | {' | '.join(figures)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PUBLISHED)
    args = parser.parse_args()
    lines = table([args.only] if args.only else MODELS)
    print("\n".join(lines))
    print(json.dumps({"rows": len(lines), "training": TRAINING, "forward": FORWARD}))


if __name__ == "__main__":
    main()
