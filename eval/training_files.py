"""Flags of what looks at M-BEIR's training queries: to mine what is wrong for them, or to ask a reranker about it."""

from __future__ import annotations

from dataclasses import dataclass

from lamra.common.flags import FILE, FOLDER, LARGEST_SEED, OUT_FOLDER, Flags, flag
from lamra.datasets.mbeir.layout import DATA_PATH, GET_MBEIR, INSTRUCTIONS, TRAIN_POOL, TRAIN_QUERIES
from lamra.eval.flags import GuestArguments


@dataclass
class TrainingFiles(Flags):
    data_path: str = flag(DATA_PATH, "M-BEIR's folder; the paths below are inside it", path=FOLDER, source=GET_MBEIR)
    queries: str = flag(TRAIN_QUERIES, "of the training", path=FILE, inside="data_path", source=GET_MBEIR)
    pool: str = flag(TRAIN_POOL, "candidates", path=FILE, inside="data_path", source=GET_MBEIR)
    instructions: str = flag(INSTRUCTIONS, "what to retrieve", path=FILE, inside="data_path", source=GET_MBEIR)
    seed: int = flag(0, "draws each query's instruction", low=0, high=LARGEST_SEED)


@dataclass
class MiningFlags(TrainingFiles, GuestArguments):
    own_kind: bool = flag(True, "of the positives' data set and modality only, as from a local pool")
    search_depth: int | None = flag(
        None, "candidates to choose from; default: as many as it takes to find enough", low=1
    )
    output_dir: str | None = flag(None, "default: below results/<model>/", path=OUT_FOLDER)
    shard_size: int = flag(100_000, "items encoded between two writes", low=1)
    search_memory: float = flag(4.0, "GiB that a process's search may use", above=0)
