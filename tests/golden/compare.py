"""Compare this project with upstream's own numbers, key by key: python tests/golden/compare.py FOLDER_OR_FILE

It takes a folder with upstream_mbeir and upstream_rank (.safetensors and .json, mbeir/, config_*.json); a file in the
format of upstream_golden.safetensors or upstream_collate.safetensors, or a folder of such; the folder of this program.
A line a key: key, what was compared, worst error, ok or FAIL. The last line is json; exit status 1 if a key failed.

Equal are: token ids, masks, labels, positions, grids, pixels, rendered prompts, recalls, files, rankings (ties apart).
Within 1e-5, relative: hidden states, losses, gradients, features, scores, P(Yes). Everything is computed in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from comparison import Comparison, read_json
from stage1 import Stage1, compare_collate, tensors_of
from stage2_mbeir import Stage2
from stage2_rank import Rank

DATA = Path(__file__).parents[3] / "shared" / "data"


def compare(
    path: str | Path,
    *,
    model: str | Path | None = None,
    reranker: str | Path | None = None,
    data: str | Path = DATA,
    processor: str | Path | None = None,
) -> dict:
    """Compare all keys below `path`, which is not written to; prints a line for each.

    Args:
        model, reranker: folders (adapter, merged or base) to take instead of the reference models of the files.
        data: a folder with coco/images, nli_sample.csv and flickr8k.
        processor: Qwen2-VL's tokenizer and preprocessor_config.json; by default qwen2vl_processor in `data`.

    Returns:
        "worst" error, number of keys "compared", "left_out" with reasons, and keys that "failed".

    Raises:
        ValueError: there is nothing to compare.
    """
    path, data = Path(path), Path(data)
    processor = Path(processor or data / "qwen2vl_processor")
    comparison = Comparison()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stage2 = [name for name in ("upstream_mbeir", "upstream_rank") if (path / f"{name}.safetensors").is_file()]
        if "upstream_mbeir" in stage2:
            Stage2(comparison, path, work, processor, data / "coco" / "images", model).compare()
        if "upstream_rank" in stage2:
            Rank(comparison, path, work, processor, data / "coco" / "images", reranker).compare()
        for files in [] if stage2 else stage1_files(path):
            tensors = tensors_of(files)
            if any(name.startswith("weight.") for name in tensors):
                Stage1(comparison, tensors, given_configuration(files[0]), work, model).compare()
            elif {"nli.input_ids", "flickr.input_ids"} & tensors.keys():
                compare_collate(comparison, tensors, processor, data)
            else:
                raise ValueError(f"{files[0]} has none of the known keys: expected the format of ../shared/golden")
    if not comparison.results:
        raise ValueError(f"{path} has no reference values: name a folder or a .safetensors file of them")
    return comparison.summary()


def stage1_files(path: Path) -> list[list[Path]]:
    """The files of each set of values; model.safetensors and values.safetensors are one."""
    if path.is_file():
        return [[path]]
    files = sorted(path.glob("*.safetensors"))
    return [files] if {"model", "values"} == {file.stem for file in files} else [[file] for file in files]


def given_configuration(file: Path) -> dict:
    """<file's name>.json or config.json beside a file of values, if there is one."""
    for path in (file.with_suffix(".json"), file.with_name("config.json")):
        if path.is_file():
            return read_json(path)
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="FOLDER_OR_FILE")
    parser.add_argument("--model", help="retriever's folder (adapter, merged or base) instead of the reference model")
    parser.add_argument("--reranker", help="the same for LamRA-Rank's values")
    parser.add_argument("--data", default=DATA, help="coco/images, nli_sample.csv, flickr8k (default: %(default)s)")
    parser.add_argument("--processor", help="tokenizer and preprocessor_config.json (default: DATA/qwen2vl_processor)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        summary = compare(args.path, model=args.model, reranker=args.reranker, data=args.data, processor=args.processor)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(summary))
    sys.exit(bool(summary["failed"]))


if __name__ == "__main__":
    main()
