"""The result files of LamRA's published code ("upstream"), where its next command looks for them.

Of a ranking: <prefix>_query_names.json, a list of qids; _cand_names.json, for each its candidates' ids, best first; and
_scores.json, for each their scores, one level deeper where a task has a pool of its own. Upstream's .pth files of
embeddings are not written: they are pickles, and results/<model>/mbeir/embeddings holds the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

RETRIEVED = Path("LamRA_Ret_eval_results")
RETRIEVED_GLOBAL = Path("LamRA_Ret_eval_global_results")
RERANKED = Path("mbeir_rerank_files")
MINED = Path("rerank_training_data")
MINED_TOGETHER = "rerank_data_all.json"
KS = (1, 5, 10, 50)

Ranking = dict[str, tuple[list[str], list[float]]]  # qid -> the ids of its candidates, best first, and their scores


def write_json(path: Path, content) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)


def read_json(path: str | Path, kind: type, command: str):
    """A file of upstream's.

    Raises:
        ValueError: it is missing, or is no json of this kind; names it and the command that writes it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{path} does not exist: {command} writes it") from None
    except ValueError as error:
        raise ValueError(f"{path} is no json ({error}): let {command} write it again") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds no {kind.__name__}: let {command} write it again")
    return content


def write_retrieved(prefix: Path, ranking: Iterable[tuple[str, list[str], list[float]]], *, nested: bool) -> None:
    qids, dids, scores = map(list, zip(*ranking))
    for name, content in (
        ("query_names", qids),
        ("cand_names", dids),
        ("scores", [[row] for row in scores] if nested else scores),
    ):
        write_json(Path(f"{prefix}_{name}.json"), content)


def read_retrieved(query_names: str | Path, cand_names: str | Path, scores: str | Path | None = None) -> Ranking:
    """What write_retrieved, or upstream, wrote; without scores all are 0.

    Raises:
        ValueError: a file is missing, or they do not belong together; names them.
    """
    command = "eval/eval_mbeir.py with upstream's flags"
    qids, dids = (read_json(path, list, command) for path in (query_names, cand_names))
    rows = read_json(scores, list, command) if scores else [[0.0] * len(row) for row in dids]
    rows = [row[0] if row and isinstance(row[0], list) else row for row in rows]
    if not len(qids) == len(dids) == len(rows) or any(len(row) != len(found) for row, found in zip(rows, dids)):
        files = ", ".join(str(path) for path in (query_names, cand_names, scores) if path)
        raise ValueError(f"{files} are not of one ranking, their lengths differ: let {command} write them again")
    return {qid: (found, row) for qid, found, row in zip(qids, dids, rows)}


def append_recalls(path: Path, qrels: Path, recalls: dict[str, float]) -> None:
    """A paragraph for each evaluation, as upstream keeps it."""
    lines = [str(qrels), *(f"recall_at_{k} = {recalls[f'recall@{k}']}" for k in KS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write("\n".join(lines) + "\n")
