"""Making an index of a source, and the model that made one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.lock import folder_lock
from lamra.common.processes import on_first_process
from lamra.eval.flags import GuestArguments
from lamra.eval.index import ivf_pq as approximate
from lamra.eval.index.held import Held
from lamra.eval.index.index import VERSION, Changes, Index, made_by
from lamra.eval.index.ivf_pq import LEAST_FOR_PQ
from lamra.eval.index.rows import root_of, rows_of
from lamra.eval.inference import Retriever
from lamra.eval.unreadable import Unreadable

# Flags that decide vectors and are not in a model's folder. Not trust_remote_code: a user says that each time.
REMEMBERED = (
    *("original_model_id", "position_ids", "max_pixels", "special_tokens_in_text", "exif_rotation"),
    *("prompt_style", "attn_implementation", "library"),
)


def make_index(
    retriever: Retriever,
    source: str | Path,
    folder: str | Path,
    *,
    image_root: str | Path | None = None,
    ivf_pq: bool | None = None,
    skip_unreadable: int = 0,
    truncate_dim: int | None = None,
    report: Callable[[str], None] = note,
) -> Index:
    """Make an index of a source, or bring an earlier one up to date. All processes must call this.

    Args:
        source: a folder of pictures and videos, or a jsonl of items.
        folder: of the database.
        image_root: of a jsonl; default: its own folder.
        ivf_pq: search approximately; None leaves it as it is, at first exact.
        skip_unreadable: so many items may be left out.
        truncate_dim: keep so many of the vectors' first dimensions.
        report: gets a sentence of what was done.

    Raises:
        UserError: another job writes it; it is of another source, model or settings; or as rows_of and Index.update.
    """
    source, folder = Path(source), Path(folder)
    with folder_lock(folder, "output_dir"):
        index = Index(folder, flag="output_dir")  # on all processes before the first embedding, so before the first row
        index.retriever = retriever
        rows = on_first_process(lambda: rows_of(source, image_root, skip_unreadable > 0, note))
        about = about_of(retriever, source, root_of(source, image_root), truncate_dim)
        if index.about:
            require_source(index.about, about, folder)
            index.require_made_by(about["made_by"])
        if ivf_pq and len(rows) < LEAST_FOR_PQ:
            raise UserError(f"--ivf_pq True: {len(rows)} items are too few, it needs {LEAST_FOR_PQ} or more")
        changes = index.update(rows, root_of(source, image_root), about, Unreadable(skip_unreadable, retriever))
        if not on_first_process(lambda: len(index)):
            raise UserError(f"none of the {len(rows)} items of {source} can be read: there is nothing to index")
        on_first_process(lambda: _finish(index, ivf_pq, changes, report))
        return Index.open(folder, retriever, "output_dir")


def _finish(index: Index, ivf_pq: bool | None, changes: Changes, report: Callable[[str], None]) -> None:
    """Say what was done, and make what approximate search goes through, or drop it."""
    left_out = f", {changes.unreadable} left out" if changes.unreadable else ""
    report(
        f"{len(index)} items in {index.folder}: {changes.new} new, {changes.changed} changed, {changes.gone} gone, "
        f"{changes.same} as they were{left_out}"
    )
    was = index.is_approximate
    if not (was if ivf_pq is None else ivf_pq):
        approximate.drop(index)
        if not Held.fits(index.table, len(index)):
            report(
                "so many vectors are read from disk for each search: --ivf_pq True finds most of the same much faster"
            )
        return
    if len(index) < LEAST_FOR_PQ:  # some are gone, or cannot be read
        approximate.drop(index)
        report(f"{len(index)} items are too few for IVF-PQ: search is exact")
        return
    kept = approximate.kept(index)
    stands = was and "partitions" in kept and not (changes.new or changes.changed or changes.gone)
    recall = kept["recall@10"] if stands else approximate.build(index)
    report(f"IVF-PQ finds {100 * recall:.1f}% of the exact 10 nearest (recall@10)")


def about_of(retriever: Retriever, source: Path, root: Path, truncate_dim: int | None) -> dict[str, Any]:
    """What the table's metadata says of its rows. All processes must call this."""
    args = retriever.args
    flags = {name: value for name in REMEMBERED if (value := getattr(args, name, None)) is not None}
    return {
        "version": VERSION,
        "source": os.path.abspath(source),
        "root": os.path.abspath(root),
        "model_id": os.path.abspath(args.model_id),
        "flags": flags,
        "made_by": made_by(retriever, truncate_dim),
    }


def require_source(there: dict[str, Any], about: dict[str, Any], folder: Path) -> None:
    """Refuse to turn the index of one source into another's, which would forget all its rows."""
    if there["source"] != about["source"]:
        raise UserError(
            f"--output_dir {folder} is the index of {there['source']}: choose another for {about['source']}"
        )
    if there["root"] != about["root"]:
        raise UserError(
            f"--image_root {about['root']}: the pictures of --output_dir {folder} were in {there['root']}, choose "
            "another folder for the index"
        )


def arguments_of(about: dict[str, Any], model_id: str | None = None, flag: str = "model_id", **others: Any):
    """The GuestArguments of the model that made an index.

    Args:
        model_id: where it is now; default: where it was.
        flag: that says so, for a sentence.
        others: flags beside those remembered.

    Raises:
        UserError: the model is gone.
    """
    flags = about["flags"] | {"bf16": about["made_by"]["dtype"] == "torch.bfloat16"} | others
    model_id = model_id or about["model_id"]
    if not Path(model_id).exists():
        raise UserError(f"the model of this index, {model_id}, does not exist: give --{flag} where it is now")
    return GuestArguments(str(model_id), **flags)
