"""Zero-shot retrieval between pictures and captions: what eval_flickr.py and eval_coco.py share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import PartialState
from torch import Tensor

from lamra.collators.messages import INSTRUCTION_IMAGE_TO_TEXT, INSTRUCTION_TEXT_TO_IMAGE
from lamra.common import upstream
from lamra.common.cli import require
from lamra.common.lock import folder_lock
from lamra.common.processes import start_processes
from lamra.datasets.caption import CaptionedImages, load_captioned_images
from lamra.datasets.items import Item
from lamra.eval.inference import RetrieverArguments, load_retriever
from lamra.eval.metrics import retrieval_recalls
from lamra.eval.reporting.files import write_metrics, write_provenance, write_ranking
from lamra.eval.reporting.tables import PRACTICE_STAGE1_FLICKR30K, print_recalls
from lamra.eval.search import top_k
from lamra.eval.shards import made_by

RERANK_DEPTH = 50
PROTOCOLS = ("released", "clean")


@dataclass
class ZeroshotArguments(RetrieverArguments):
    image_data_path: str = field(default="", metadata={"help": "folder of pictures"})
    text_data_path: str = field(default="", metadata={"help": "LamRA_Eval's list of captions or Karpathy's json"})
    mode: str = field(default="pretrained", metadata={"help": "finetuned: with instructions, see --protocol"})
    protocol: str = field(
        default="released",
        metadata={
            "help": "of --mode finetuned: released embeds pictures with their instruction and captions without, as "
            "the paper's numbers were measured; clean instructs queries alone"
        },
    )
    save_for_rerank: bool = field(default=False, metadata={"help": f"write the top {RERANK_DEPTH} of each query"})
    output_dir: str | None = field(default=None, metadata={"help": "default: results/<model>/<data>"})
    data_name: str | None = field(default=None, metadata={"help": "what to call pictures that are your own"})

    def __post_init__(self):
        super().__post_init__()
        for flag in ("image_data_path", "text_data_path"):
            require(bool(getattr(self, flag)), flag, "", "a path")
        require(self.mode in ("pretrained", "finetuned"), "mode", self.mode, "pretrained or finetuned")
        require(self.protocol in PROTOCOLS, "protocol", self.protocol, " or ".join(PROTOCOLS))


def evaluate(default_name: str) -> None:
    """Parse the command line, encode, print the table and write metrics.json (and rankings, where asked)."""
    (args,) = upstream.parse(upstream.ZEROSHOT, ZeroshotArguments)
    data_name = args.data_name or default_name
    start_processes()
    folder = output_folder(args, data_name.lower())
    with folder_lock(folder):
        _evaluate(args, data_name, folder)


def _evaluate(args: ZeroshotArguments, data_name: str, folder: Path) -> None:
    data = load_captioned_images(args.image_data_path, args.text_data_path)
    retriever = load_retriever(args)
    protocol = args.protocol if args.mode == "finetuned" else None  # without instructions both are the same
    made = made_by(args, retriever.settings, retriever.embedder, protocol)
    images, texts = data.images, data.texts
    instructed_images = with_instruction(images, INSTRUCTION_IMAGE_TO_TEXT)
    if protocol == "released":
        images = instructed_images
    image_gallery = retriever.encode(images, f"{data_name} pictures")  # (I, D)
    text_gallery = retriever.encode(texts, f"{data_name} captions")  # (T, D)
    image_query, text_query = image_gallery, text_gallery
    if protocol == "clean":
        image_query = retriever.encode(instructed_images, f"{data_name} picture queries")
        text_query = retriever.encode(
            with_instruction(texts, INSTRUCTION_TEXT_TO_IMAGE), f"{data_name} caption queries"
        )
    if not PartialState().is_main_process:
        return

    metrics = retrieval_recalls(
        image_gallery, text_gallery, data.image_of_text, image_query=image_query, text_query=text_query
    )
    write_metrics(folder, metrics | ({"protocol": protocol} if protocol else {}))
    if args.save_for_rerank:
        write_provenance(folder, {**made, "mode": args.mode})
        save_ranking(folder / "ranking_image_retrieval.jsonl", text_query, data.texts, image_gallery, data.images)
        save_ranking(folder / "ranking_text_retrieval.jsonl", image_query, data.images, text_gallery, data.texts)
    show(data_name, data, metrics, f", protocol {protocol}" if protocol else "")
    print(f"written to {folder}/")


def output_folder(args, *default: str) -> Path:
    """--output_dir, or its default: results/<model>/..."""
    return Path(args.output_dir or Path("results", run_name(args.model_id), *default))


def run_name(model_id: str) -> Path:
    """The model's place below checkpoints/ (run, run/checkpoint-478), or the last part of another path."""
    path, ours = Path(model_id).resolve(), Path("checkpoints").resolve()
    return path.relative_to(ours) if path.is_relative_to(ours) else Path(path.name)


def with_instruction(items: list[Item], instruction: str | None) -> list[Item]:
    return [replace(item, instruction=instruction) for item in items]


def save_ranking(path: Path, query: Tensor, queries: list[Item], gallery: Tensor, candidates: list[Item]) -> None:
    """Each query's best candidates, see write_ranking."""
    scores, indices = top_k(query, gallery, RERANK_DEPTH)  # (Q, k)
    rows = zip(queries, indices.tolist(), scores.tolist())
    write_ranking(path, ((query.id, [candidates[i].id for i in best], score) for query, best, score in rows))


def show(data_name: str, data: CaptionedImages, metrics: dict[str, float], protocol: str) -> None:
    print(f"\n{data_name}: {len(data.images)} pictures, {len(data.texts)} captions{protocol}, recall@K")
    rows = {"this model": metrics}
    if not protocol and data_name == "Flickr30K" and (len(data.images), len(data.texts)) == (1000, 5000):
        rows["the practice's Qwen2-VL-7B"] = PRACTICE_STAGE1_FLICKR30K
    print_recalls(rows)
