"""Retrieval between pictures and captions: what eval_flickr.py and eval_coco.py share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lamra.common import upstream
from lamra.common.cli import note
from lamra.common.flags import FILE_OR_FOLDER, FOLDER, OUT_FOLDER, flag
from lamra.common.lock import folder_lock
from lamra.common.processes import first_process_first, is_first_process
from lamra.datasets.caption import PROTOCOLS, CaptionedImages, captioned_tasks, load_captioned_images
from lamra.datasets.rankings import write_by_query, write_ranking
from lamra.eval.flags import DEPTH, SearchArguments, output_folder
from lamra.eval.reporting.results import MADE_BY, METRICS, PRACTICE_STAGE1_FLICKR30K, print_recalls, write_json

GET_CAPTIONS = "bash scripts/download.sh flickr coco gets it"


@dataclass
class ZeroshotArguments(SearchArguments):
    image_data_path: str = flag("", "folder of pictures", path=FOLDER, source=GET_CAPTIONS)
    text_data_path: str = flag(
        "", "their captions, in one of the layouts of docs/own_data.md", path=FILE_OR_FOLDER, source=GET_CAPTIONS
    )
    mode: str = flag("pretrained", "finetuned: with instructions, see --protocol", one_of=("pretrained", "finetuned"))
    protocol: str = flag(
        "released",
        "of --mode finetuned: released embeds pictures with their instruction and captions without, as "
        "the paper's numbers were measured; clean instructs queries alone",
        one_of=PROTOCOLS,
    )
    save_for_rerank: bool = flag(False, f"write the top {DEPTH} of each query")
    output_dir: str | None = flag(None, "default: results/<model>/<data>", path=OUT_FOLDER)
    data_name: str | None = flag(None, "what to call pictures that are your own")


def evaluate_captions(default_name: str) -> None:
    """Parse the command line and evaluate what it names."""
    (args,) = upstream.parse(upstream.ZEROSHOT, ZeroshotArguments)
    evaluate_captions_of(args, default_name)


def evaluate_captions_of(args: ZeroshotArguments, default_name: str) -> None:
    """Encode, print the table and write metrics.json (and rankings, with --save_for_rerank)."""
    from lamra.eval.evaluate import evaluate  # torch and transformers, which --help does not wait for
    from lamra.eval.inference import load_retriever, start
    from lamra.eval.metrics import measures_by_query
    from lamra.eval.unreadable import Unreadable

    data_name, state = args.data_name or default_name, start(args)
    folder = output_folder(args, data_name.lower())
    with folder_lock(folder):
        with first_process_first("the first process unpacks the data set's shards"):
            data = load_captioned_images(
                args.image_data_path, args.text_data_path, pictures_there=not args.skip_unreadable
            )
        note(f"{args.text_data_path}: {data.layout}, {len(data.images)} pictures, {len(data.texts)} captions")
        retriever = load_retriever(args)
        unreadable = Unreadable(args.skip_unreadable, retriever)
        data = data.without(unreadable.rows(data.images, args.text_data_path))
        protocol = args.protocol if args.mode == "finetuned" else None  # without instructions both are the same
        provenance = retriever.provenance(args, protocol)
        tasks = captioned_tasks(data, data_name, args.text_data_path, protocol)
        metrics: dict[str, float] = {}
        for task, ranking, found in evaluate(
            tasks,
            lambda items: retriever.encode(items, items.name),
            depth=DEPTH,
            device=state.device,
            **args.stored_as,
        ):
            metrics |= {f"{task.name}_{name}": value for name, value in found.items()}
            by_query = measures_by_query(task, ranking)
            write_by_query(folder / f"queries_{task.name}.jsonl", task.queries, ranking, by_query)
            if args.save_for_rerank:
                write_ranking(folder / f"ranking_{task.name}.jsonl", task.queries, task.gallery, ranking)
        if is_first_process():
            if args.save_for_rerank:
                write_json(folder / MADE_BY, {**provenance, **args.stored_as, "mode": args.mode})
            named = {**({"protocol": protocol} if protocol else {}), **args.stored_as}
            write_json(folder / METRICS, {**metrics, **named, **retriever.for_metrics, **unreadable.for_metrics()})
            print_table(data_name, data, metrics, "".join(f", {name} {value}" for name, value in named.items()))
            print(f"written to {folder}/")


def print_table(data_name: str, data: CaptionedImages, metrics: Mapping[str, float], named: str) -> None:
    print(f"\n{data_name}: {len(data.images)} pictures, {len(data.texts)} captions{named}, recall@K")
    rows = {"this model": metrics}
    if not named and data_name == "Flickr30K" and (len(data.images), len(data.texts)) == (1000, 5000):
        rows["the practice's Qwen2-VL-7B"] = PRACTICE_STAGE1_FLICKR30K
    print_recalls(rows)
