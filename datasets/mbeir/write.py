"""Write M-BEIR's files: for the miniature world, and for your own data."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lamra.datasets.mbeir.layout import TRAIN_QUERIES, qrels_of, queries_of


class MBEIRFiles:
    """Collects rows in memory, gives them ids, and writes them below `root` at the end."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._rows: dict[str, list[str]] = defaultdict(list)
        self._next: dict[tuple[str, int], int] = defaultdict(int)

    def candidate(self, dataset: int, pools: Sequence[str], text: str | None = None, image: str | None = None) -> str:
        """Add a candidate to pools (paths below root); returns its did. Image paths are relative to root."""
        did = self._id("did", dataset)
        row = {"did": did, "txt": text, "img_path": image, "modality": modality(text, image)}
        for pool in pools:
            self._rows[pool].append(json.dumps(row))
        return did

    def query(
        self,
        dataset: int,
        task: str,
        split: str,
        positives: Sequence[str],
        *,
        text: str | None = None,
        image: str | None = None,
        negatives: Sequence[str] = (),
    ) -> str:
        """Add a query and its qrels, or a training query for split "train"; returns its qid."""
        qid = self._id("qid", dataset)
        row: dict[str, object] = {"qid": qid, "query_txt": text, "query_img_path": image}
        row["query_modality"] = modality(text, image)
        row |= {"pos_cand_list": list(positives), "neg_cand_list": list(negatives)}
        self._rows[TRAIN_QUERIES if split == "train" else queries_of(task, split)].append(json.dumps(row))
        if split != "train":
            number = task.rpartition("task")[2]
            self._rows[qrels_of(task, split)] += [f"{qid} 0 {did} 1 {number}" for did in positives]
        return qid

    def write(self) -> None:
        for name, lines in self._rows.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _id(self, kind: str, dataset: int) -> str:
        self._next[kind, dataset] += 1
        return f"{dataset}:{self._next[kind, dataset]}"


def modality(text: str | None, image: str | None) -> str:
    return ",".join(name for name, part in (("image", image), ("text", text)) if part)
