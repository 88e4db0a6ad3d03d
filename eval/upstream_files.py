"""The result files of LamRA's published code ("upstream"), where its next command looks for them.

Rankings are three files; datasets.rankings.ranking_lines, which reads them, describes them. Upstream's .pth files of
embeddings are not written: they are pickles, and results/<model>/mbeir/embeddings holds the same.
"""

from __future__ import annotations

import json
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.datasets.rankings import QUERY_NAMES, Ranking, ranking_files
from lamra.datasets.tasks import FileItems

RETRIEVED = Path("LamRA_Ret_eval_results")
RETRIEVED_GLOBAL = Path("LamRA_Ret_eval_global_results")
RERANKED = Path("mbeir_rerank_files")
MINED = Path("rerank_training_data")
MINED_TOGETHER = "rerank_data_all.json"
KS = (1, 5, 10, 50)


def write_json(path: Path, content) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")


def read_json(path: str | Path, kind: type, command: str):
    """A file of upstream's.

    Raises:
        UserError: it is missing, or is no json of this kind; names it and the command that writes it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path} does not exist: {command} writes it") from None
    except ValueError as error:
        raise UserError(f"{path} is no json ({error}): let {command} write it again") from None
    if not isinstance(content, kind):
        raise UserError(f"{path} holds no {kind.__name__}: let {command} write it again")
    return content


def write_retrieved(prefix: Path, queries: FileItems, gallery: FileItems, ranking: Ranking, *, nested: bool) -> None:
    """A ranking; its scores are cosines, one level deeper where a task has a pool of its own."""
    qids = [queries.id(ranked.query) for ranked in ranking]
    dids = [[gallery.id(row) for row in ranked.candidates] for ranked in ranking]
    scores = [[ranked.scores] if nested else ranked.scores for ranked in ranking]
    for path, content in zip(ranking_files(f"{prefix}{QUERY_NAMES}"), (qids, dids, scores)):
        write_json(path, content)


def append_recalls(path: Path, qrels: Path, recalls: dict[str, float]) -> None:
    """A paragraph for each evaluation, as upstream keeps it."""
    lines = [str(qrels), *(f"recall_at_{k} = {recalls[f'recall@{k}']}" for k in KS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write("\n".join(lines) + "\n")
