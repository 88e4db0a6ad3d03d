"""Flags of what looks at M-BEIR's training queries: to mine what is wrong for them, or to ask a reranker about it."""

from __future__ import annotations

from dataclasses import dataclass

from lamra.common.flags import LARGEST_SEED, OUT_FOLDER, flag
from lamra.datasets.mbeir.layout import TrainingFiles
from lamra.eval.flags import GuestArguments, ShardFlags


@dataclass
class SeededTrainingFiles(TrainingFiles):
    seed: int = flag(0, "draws each query's instruction", low=0, high=LARGEST_SEED)


@dataclass
class MiningFlags(ShardFlags, SeededTrainingFiles, GuestArguments):
    own_kind: bool = flag(True, "of the positives' data set and modality only, as from a local pool")
    search_depth: int | None = flag(
        None, "candidates to choose from; default: as many as it takes to find enough", low=1
    )
    output_dir: str | None = flag(None, "default: below results/<model>/", path=OUT_FOLDER)
    search_memory: float = flag(4.0, "GiB that a process's search may use", above=0)
