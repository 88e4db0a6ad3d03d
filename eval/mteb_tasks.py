"""mteb beside this project's evaluations: its own tasks, and ours as tasks of its kind.

What mteb calls hit_rate_at_k is recall@k here; its recall_at_k is the share of a query's answers that are found.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lamra.common.errors import UserError
from lamra.datasets.items import Item, Video
from lamra.datasets.tasks import Items, RetrievalTask

if TYPE_CHECKING:
    from mteb import AbsTask
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.results import TaskResult
    from sentence_transformers import SentenceTransformer

LETTERS = {"text": "t", "image": "i"}  # of mteb's categories, "it2i" for example


def measure(
    model: SentenceTransformer, task: AbsTask, batch_size: int, *, query: str | None = None, document: str = ""
) -> TaskResult:
    """Run a task through mteb's own wrapper of this library.

    Args:
        query: instruction of the queries, in place of all prompts of the model; None leaves these.
        document: instruction of the gallery, beside `query`.

    Raises:
        UserError: the model does not take what the task is made of, or the task's data cannot be had.
    """
    import mteb
    from mteb.models import SentenceTransformerEncoderWrapper

    name, wanted = task.metadata.name, task.metadata.modalities
    # A video's frames would be mteb's choice, not ours.
    if missing := [modality for modality in wanted if modality not in LETTERS or not model.supports(modality)]:
        raise UserError(
            f"mteb's task {name} has inputs of the kind {missing[0]}, which this model does not take through mteb"
        )
    try:
        task.load_data()
    except OSError as error:  # also a hub that is not reached, or does not have it
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the data of mteb's task {name} cannot be had: {reason}") from None
    prompts = None if query is None else {"query": query, "document": document}
    wrapper = SentenceTransformerEncoderWrapper(model, model_prompts=prompts)
    # Of a model that is not on the hub mteb would believe that it takes texts alone.
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update={"modalities": [*LETTERS]})
    found = mteb.evaluate(wrapper, task, cache=None, co2_tracker=False, encode_kwargs={"batch_size": batch_size})
    return found.task_results[0]


def as_mteb(task: RetrievalTask, name: str) -> AbsTaskRetrieval:
    """A task of ours, of which all queries search the whole gallery, as one of mteb's.

    mteb opens the pictures itself, as Hugging Face's datasets does: turned as EXIF says.

    Raises:
        UserError: queries (or candidates) are not all of one kind: a text, a picture, or one of each.
    """
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    sides = {"queries": _table(task.queries), "corpus": _table(task.gallery)}
    kinds = {side: [kind for kind in ("image", "text") if kind in table.features] for side, table in sides.items()}
    category = "2".join("".join(LETTERS[kind] for kind in of_side) for of_side in kinds.values())

    class Ours(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=name,
            description=f"{task.name} of {task.queries.path}",
            dataset={"path": str(task.queries.path), "revision": "local"},
            type="Any2AnyRetrieval",
            category=category,
            modalities=sorted({kind for of_side in kinds.values() for kind in of_side}),
            eval_splits=["test"],
            eval_langs=["eng-Latn"],  # mteb wants one
            main_score="hit_rate_at_1",
        )

        def load_data(self, **_: Any) -> None:
            answers = {
                task.queries.id(query): {task.gallery.id(row): 1 for row in rows}
                for query, rows in enumerate(task.answers)
            }
            self.dataset = {"default": {"test": {**sides, "relevant_docs": answers, "top_ranked": None}}}
            self.data_loaded = True

    return Ours()


def _table(items: Items) -> Any:
    """datasets.Dataset of id, text and image, those that the items have."""
    import datasets

    rows = [items[number] for number in range(len(items))]
    kinds = _kinds(rows[0], items.path)
    columns: dict[str, list[str]] = {"id": [items.id(number) for number in range(len(items))]}
    for kind in kinds:
        columns[kind] = []
    for item in rows:
        if _kinds(item, items.path) != kinds:
            raise UserError(
                f"{items.path}: item {rows[0].id} is {' and '.join(kinds)}, and item {item.id} is not: in a task of "
                "mteb's all queries are of one kind, and all that they search; make a file for each kind"
            )
        if "text" in kinds:
            columns["text"].append(item.texts[0])
        if "image" in kinds:
            columns["image"].append(os.fspath(item.files[0]))
    table = datasets.Dataset.from_dict(columns)
    return table.cast_column("image", datasets.Image()) if "image" in kinds else table


def _kinds(item: Item, path: object) -> list[str]:
    if len(item.texts) > 1 or len(item.images) > 1 or any(isinstance(part, Video) for part in item.parts):
        raise UserError(f"{path}: item {item.id} is not a text, a picture, or one of each, as mteb's tasks have them")
    return [kind for kind, has in (("image", item.images), ("text", item.texts)) if has]
