"""What the comparisons with upstream's stage 2 and LamRA-Rank share: its files laid out, its models, its batches."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from comparison import Comparison, json_fields, read_json, real_tokens, recipe_weights
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lamra.collators.processing import IMAGE_TOKEN, Processor
from lamra.datasets.caption import CaptionedImages, load_captioned_images
from lamra.datasets.items import Item
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import INSTRUCTIONS, TRAIN_QUERIES, global_pool
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows, dataset_of, id_key

EMB = "<emb>"
TIE = 1e-5  # a difference of cosines that rounding may make
PIXEL_STEP = 17  # the files hold every 17th row of a pixel matrix
ONE_PROMPT = "instructions/one_prompt.tsv"


class Values:
    """Upstream's values of one kind, tensors and json, and what their keys are called in the report."""

    def __init__(self, name: str, tensors: dict[str, Tensor], entries: dict | None = None):
        self.name, self.tensors, self.json = name, tensors, entries or {}
        self.paths = [path for key, value in self.json.items() for path in json_fields(key, value)]

    @classmethod
    def read(cls, folder: Path, name: str) -> Values:
        return cls(name, load_file(folder / f"{name}.safetensors"), read_json(folder / f"{name}.json"))

    def key(self, name: str) -> str:
        return f"{self.name}:{name}"

    def json_key(self, path: str) -> str:
        return f"{self.name}.json:{path}"

    def keys(self, *prefixes: str) -> list[str]:
        """Keys of the tensors and fields that begin so; without prefixes all."""
        tensors = [self.key(key) for key in self.tensors if key.startswith(prefixes or "")]
        return tensors + [self.json_key(path) for path in self.paths if path.startswith(prefixes or "")]

    def compare_parts(self, comparison: Comparison, parts: Iterable[tuple[Callable[[], None], list[str]]]) -> None:
        """Run each part, which compares the keys that begin with its prefixes; together they compare all keys."""
        for part, prefixes in parts:
            with comparison.computing(*self.keys(*prefixes)):
                part()
        comparison.require_all(self.keys())

    def leave_out_inputs(self, comparison: Comparison, *paths: str) -> None:
        """Fields of the json that other values are computed from; some are in one set only."""
        for path in paths:
            if path in self.paths:
                comparison.leave_out(self.json_key(path), "an input: what follows from it is compared")

    def compare_json(self, comparison: Comparison, name: str, what: str, found, expected=None) -> None:
        """Compare the fields of json entry `name` that `found` has; `expected` is the entry where it was adapted."""
        fields = json_fields(name, self.json[name] if expected is None else expected)
        for path, values in json_fields(name, found).items():
            if path in fields:
                comparison.equal(self.json_key(path), what, values, fields[path])


class Benchmark:
    """A reference folder's M-BEIR, laid out in a folder that can be written, with all its pictures."""

    def __init__(self, golden: Path, root: Path, photographs: Path):
        """
        Args:
            photographs: what to link as mbeir_images/coco where the reference folder has no such folder.
        """
        self.root = root
        source = golden / "mbeir"
        for path in source.rglob("*"):
            if path.is_file() and "mbeir_images" not in path.relative_to(source).parts:
                target = root / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        pictures = root / "mbeir_images"
        pictures.mkdir()
        for path in (source / "mbeir_images").iterdir():
            os.symlink(path.resolve(), pictures / path.name)
        self.photographs = pictures / "coco"
        if not self.photographs.exists():
            os.symlink(photographs.resolve(), self.photographs)
        self.train_queries, self.train_pool = self.queries(TRAIN_QUERIES), self.pool(global_pool("train"))
        self.test_queries = self.queries(_only(root, "query/test/*.jsonl"))
        self.test_pool = self.pool(global_pool("test"))
        self.instructions = Instructions(root / INSTRUCTIONS)
        self.one_prompt = Instructions(root / ONE_PROMPT)

    def queries(self, name: str | Path) -> Rows:
        return Rows(self.root / name, self.root, QUERY)

    def pool(self, name: str | Path) -> Rows:
        return Rows(self.root / name, self.root, CANDIDATE)

    @cached_property
    def train_pairs(self) -> MBEIRPairs:
        return MBEIRPairs(self.train_queries, self.train_pool, self.instructions)

    def answers(self) -> list[list[int]]:
        return read_qrels(_only(self.root, "qrels/test/*.txt"), self.test_queries, self.test_pool)


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{root} has {len(found)} files {pattern}: expected one")
    return found[0]


def row_of(rows: Rows, identifier: str) -> int:
    """The row of an id."""
    (row,) = rows.rows_of([id_key(identifier)]).tolist()
    if row < 0:
        raise ValueError(f"{identifier} is not in {rows.path}")
    return row


def item_of(rows: Rows, identifier: str, instruction: str | None = None) -> Item:
    return rows.item(row_of(rows, identifier), instruction)


def flickr(golden: Path, folder: Path, values: dict) -> CaptionedImages:
    """The pictures and captions of json entry "flickr", written in LamRA_Eval's layout and read by the project."""
    folder.mkdir()
    for sentence in values["pictures"]:  # "mbeir_images/small/s00.jpg, converted to RGB, as 0.png"
        source, name = re.fullmatch(r"(\S+), converted to RGB, as (\S+)", sentence).groups()
        Image.open(golden / "mbeir" / source).convert("RGB").save(folder / name)
    (folder / "captions.json").write_text(json.dumps(values["captions"]))
    return load_captioned_images(folder, folder / "captions.json")


def model_folder(golden: Path, values: Values, config: str, processor: Path, folder: Path) -> Path:
    """A published model folder: the weights by recipe in transformers 4's names, tokenizer and preprocessor."""
    folder.mkdir()
    model = values.json["model"]
    state = recipe_weights(model["tensors"], model["seed"], model.get("lm_head_seed", model["seed"]))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(golden / config, folder / "config.json")
    for path in processor.iterdir():
        if path.name != "config.json" and path.is_file():
            os.symlink(path.resolve(), folder / path.name)
    return folder


def compare_recipe(comparison: Comparison, values: Values, config: dict, folder: Path) -> None:
    """The json's entry "model" with the weights that were drawn."""
    state, expected = load_file(folder / "model.safetensors"), values.json["model"]
    found = {
        "vocab_size": config["vocab_size"],
        # A sum depends on its order in the last digits.
        "tensors": {n: [list(t.shape), _rounded(float(t.double().abs().sum()))] for n, t in state.items()},
    }
    tensors = {name: [shape, _rounded(total)] for name, (shape, total) in expected["tensors"].items()}
    values.leave_out_inputs(comparison, "model.seed", "model.lm_head_seed")
    values.compare_json(comparison, "model", "drawn by the recipe", found, {**expected, "tensors": tensors})


def _rounded(total: float) -> str:
    return f"{total:.8e}"


def attempts(function: Callable, arguments: Sequence) -> list:
    """function of each argument, or what it raised, so that a refused row does not hide the others."""
    results = []
    for argument in arguments:
        try:
            results.append(function(argument))
        except ValueError as error:
            results.append(error)
    return results


def compare_inputs(
    comparison: Comparison,
    values: Values,
    key: str,
    encoded: Sequence[dict | Exception],
    what: str,
    *,
    processor: Processor,
    tail: int | None = None,
    skipped: dict[int, str] | None = None,
) -> dict[int, str]:
    """Token ids, masks, grids and pixel rows of a batch.

    Upstream pads on the left (in LamRA-Rank's training on the right) and its retrieval prompts go on after the pooled
    position: `<emb>.<|im_end|>\n`, in evaluation with another generation prompt. Ours pad on the right and end there.
    So the real tokens are compared, without upstream's tail, and its mask with one of our lengths and upstream's tail.

    Args:
        processor: made `encoded`.
        tail: id of the token that upstream's tail begins with; None where it has none.
        skipped: rows that are left out -> why.

    Returns:
        `skipped`, and rows whose hidden states cannot be compared: upstream cuts a candidate's prompt in evaluation at
        1,024 tokens and loses <emb> with its end, where nothing is cut here.
    """
    skipped = dict(skipped or {})
    kept = [row for row in range(len(encoded)) if row not in skipped]
    expected, tails = [], []
    for ids in real_tokens(values.tensors, key):
        end = max((i for i, token in enumerate(ids) if token == tail), default=len(ids))
        expected.append(ids[:end])
        tails.append(len(ids) - end)
    found = [[str(prompt)] if isinstance(prompt, Exception) else prompt["input_ids"] for prompt in encoded]
    width = values.tensors[f"{key}.input_ids"].shape[1]
    for row in kept:
        if tail and not tails[row] and len(expected[row]) == width and len(found[row]) > width:
            found[row] = found[row][:width]
            skipped[row] = f"its hidden state; upstream cut it after {width} tokens, before {EMB}"
    for row, reason in skipped.items():
        comparison.leave_out(values.key(f"{key} row {row}"), reason)
    comparison.equal(values.key(f"{key}.input_ids"), what, [found[i] for i in kept], [expected[i] for i in kept])

    mask = values.tensors[f"{key}.attention_mask"].long()
    on_the_left = not mask[:, 0].all()
    masks = torch.zeros_like(mask)
    for row, ids, more in zip(masks, found, tails):
        row[slice(width - len(ids) - more, None) if on_the_left else slice(len(ids) + more)] = 1
    comparison.equal(values.key(f"{key}.attention_mask"), what, masks[kept], mask[kept])

    pictures = [prompt for prompt in encoded if isinstance(prompt, dict) and prompt["image_grid_thw"] is not None]
    grids = [prompt["image_grid_thw"].tolist() for prompt in pictures]
    if grids or f"{key}.image_grid_thw" in values.tensors:
        expected = values.tensors.get(f"{key}.image_grid_thw", [])
        comparison.equal(values.key(f"{key}.image_grid_thw"), what, sum(grids, []), expected)
    for name in (f"{key}.pixel_rows_fp16", f"{key}.pixel_values_fp16"):
        if name in values.tensors:
            pixels = processor.visuals.floats(torch.cat([prompt["pixel_values"] for prompt in pictures]))
            comparison.equal(values.key(name), what, pixels[::PIXEL_STEP].half(), values.tensors[name])
    return skipped


def rendered(processor: Processor, encoded: dict | Exception) -> str | Exception:
    """The text that token ids stand for, a picture's tokens as one."""
    if isinstance(encoded, Exception):
        return encoded
    text = processor.tokenizer.decode(encoded["input_ids"], clean_up_tokenization_spaces=False)
    return re.sub(f"(?:{re.escape(IMAGE_TOKEN)})+", IMAGE_TOKEN, text)


def upstream_text(text: str) -> str:
    """Upstream's rendered text up to its tail, composed (NFC) as the tokenizer does before it splits."""
    return unicodedata.normalize("NFC", text[: text.rindex(EMB)] if EMB in text else text)


def ambiguous(items: Sequence[Item]) -> dict[int, str]:
    """Rows that cannot be compared -> why."""
    reason = f"the text holds a literal {EMB}, which upstream takes for its own token and pools there"
    return {row: reason for row, item in enumerate(items) if EMB in f"{item.instruction} {item.text}"}


def draws(pairs: MBEIRPairs, query: str, positive: str, prompt: str) -> tuple[str | None, str | None]:
    """Positive and instruction, None where training here could not draw it for the query."""
    row, candidate = row_of(pairs.queries, query), row_of(pairs.pool, positive)
    dataset = dataset_of(id_key(query))
    prompts = pairs.instructions.prompts(dataset, pairs.queries.modality(row), pairs.pool.modality(candidate))
    return positive if is_positive(pairs, query, positive) else None, prompt if prompt in prompts else None


def is_positive(pairs: MBEIRPairs, query: str, candidate: str) -> bool:
    return row_of(pairs.pool, candidate) in pairs.positives(row_of(pairs.queries, query))


def same_ranking(scores: Tensor, found: Sequence[int], expected: Sequence[int]) -> list[int]:
    """`expected` with candidates whose scores are equal, within a tolerance, put in the order of `found`.

    Args:
        scores: (N,) of all candidates.
    """
    tied = [abs(float(scores[ours] - scores[theirs])) <= TIE for ours, theirs in zip(found, expected)]
    return [ours if tie else theirs for ours, theirs, tie in zip(found, expected, tied)] + list(expected[len(tied) :])
