"""The model card of an export: what it was made of, what was measured, how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lamra.datasets.caption import INSTRUCTION_TEXT_TO_IMAGE
from lamra.eval.flags import run_name
from lamra.eval.reporting.results import METRICS
from lamra.models.settings import RUN_FILE, Settings

# Of a run's arguments those that a reader compares with other recipes.
SHOWN = (
    *("data_path", "queries", "per_device_train_batch_size", "gradient_accumulation_steps", "grad_cache_chunk"),
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "temperature", "use_lora", "lora_r"),
    *("symmetric_loss", "false_negative_margin", "false_negative_above", "hardness_weight"),
    *("lora_alpha", "lora_dropout", "train_vision_encoder", "train_vision_projector", "use_vision_lora", "seed"),
)
# Of the base models; the weights here are theirs with what was trained added.
LICENCES = {
    "Qwen2-VL-2B-Instruct": "apache-2.0",
    "Qwen2-VL-7B-Instruct": "apache-2.0",
    "Qwen2.5-VL-7B-Instruct": "apache-2.0",
    "Qwen2.5-VL-3B-Instruct": "other",
    **dict.fromkeys(("Qwen3-VL-2B-Instruct", "Qwen3-VL-4B-Instruct", "Qwen3-VL-8B-Instruct"), "apache-2.0"),
}
EMBED = """```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}"{trust})
pictures = model.encode([Image.open("dog.jpg").convert("RGB")])  # pictures as PIL images or paths
texts = model.encode(["two dogs in the snow"]{prompt})
both = model.encode([{{"image": "dog.jpg", "text": "the same in winter"}}])
print(model.similarity(texts, pictures))
```

Needs `pip install "sentence-transformers[image]"`. An instruction is passed as `prompt=`.

- **LamRA**: `from lamra import load; load("{name}").encode(["two dogs in the snow"])`, and every script of the project
  with `MODEL_ID={name}`.
- **transformers**: the class that config.json names under `architectures`; the embedding is the normalised last hidden
  state at the prompt's last token.
- **mteb**: through sentence-transformers; give its wrapper the modalities image and text.{prompts}
- **vLLM**: `vllm serve {name} --runner pooling`, messages and not `input`; from its source, not run.
"""
RANK = """```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("{name}"{trust})
print(model.predict([("two dogs in the snow", "dog.jpg")]))  # P(Yes)
```

Needs `pip install "sentence-transformers[image]"`.

- **LamRA**: `from lamra import load; load("{name}").rerank("two dogs in the snow", candidates)`, and
  `MODEL_ID={name} bash scripts/eval/rerank_mbeir.sh`.
"""
SEQUENTIAL = """
`modeling_lamra.py` is code of this folder, a few lines that sentence-transformers runs only with
`trust_remote_code=True`: this model was trained with positions 0, 1, 2, .. for image tokens too, where the stock model
counts rows and columns. Without it texts would be right and pictures wrong, so the folder refuses to load. Where Python
cannot be run (vLLM), use a model trained with `--position_ids mrope`.
"""


def training_arguments(model_id: Path) -> dict[str, Any]:
    """What the run.json of a model says; nothing where it has none, as merged and published models."""
    run_file = model_id / RUN_FILE
    return json.loads(run_file.read_text())["arguments"] if run_file.is_file() else {}


def write_card(
    folder: Path, model_id: Path, settings: Settings, results: str | None, name: str, *, instruction_tuned: bool
) -> None:
    """README.md of an export.

    Args:
        model_id: what is exported; its run.json, where it has one, says how it was trained.
        results: folder of metrics.json files; None looks where the evaluations of `model_id` write them.
        name: of the repository, or of the folder.
    """
    from huggingface_hub import ModelCard, ModelCardData

    arguments = training_arguments(model_id)
    base = str(arguments.get("model_id") or Path(settings.base_model).name)
    measured = Path(results) if results else Path("results", run_name(str(model_id)))
    is_reranker = settings.role == "reranker"
    data = ModelCardData(
        base_model=base,
        base_model_relation="finetune",
        library_name="sentence-transformers",
        pipeline_tag="text-ranking" if is_reranker else "sentence-similarity",
        license=LICENCES.get(Path(settings.base_model).name, "other"),
        tags=["sentence-transformers", "multimodal", "retrieval", "lamra", "reranker" if is_reranker else "embedding"],
    )
    sequential = settings.position_ids == "sequential"
    usage = (RANK if is_reranker else EMBED).format(
        name=name,
        trust=", trust_remote_code=True" if sequential else "",
        prompt=f', prompt="{INSTRUCTION_TEXT_TO_IMAGE}"' if instruction_tuned else "",
        prompts=" The folder has\n  the instructions of its Flickr30k and MSCOCO tasks." if instruction_tuned else "",
    )
    parts = [
        f"# {name}",
        f"A {'reranker' if is_reranker else 'retriever'} of texts, pictures and both, on {base}, trained with LamRA, "
        "rebuilt (method: arXiv 2412.01720).",
        f"## Use\n\n{usage}",
        SEQUENTIAL.strip() if sequential else "",
        "`python verify.py` embeds the inputs of golden.json and says whether an installation gives these vectors."
        if not is_reranker
        else "`python verify.py` scores the pairs of golden.json and says whether an installation gives these scores.",
        "## Measured\n\n" + _measured(measured),
        "## Training\n\n" + _training(arguments, settings),
        "## Limits\n\n" + _limits(settings),
    ]
    ModelCard("---\n" + data.to_yaml() + "\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n").save(
        folder / "README.md"
    )


def _measured(results: Path) -> str:
    rows = [
        f"| {path.parent.relative_to(results)} | {content.get('protocol') or '-'} | {name} | {value:.4f} |"
        for path, content in ((path, json.loads(path.read_text())) for path in sorted(results.glob(f"**/{METRICS}")))
        for name, value in _numbers(content)
    ]
    if not rows:
        return "Nothing was measured before this export."
    return "\n".join(["| data | protocol | measure | value |", "|---|---|---|---|", *rows])


def _numbers(content: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, float]]:
    """Recalls and the like of a metrics.json, with the names that lead to them."""
    for name, value in content.items():
        if isinstance(value, Mapping) and name not in ("paper", "skipped_unreadable"):
            yield from _numbers(value, f"{within}{name} ")
        elif isinstance(value, float) and "@" in name:
            yield within + name, value


def _training(arguments: Mapping[str, Any], settings: Settings) -> str:
    rows = {name: arguments[name] for name in SHOWN if arguments.get(name) is not None}
    if arguments.get("learn_temperature"):
        rows["temperature"] = f"{settings.temperature:.4g}, learnt from {rows['temperature']:g}"
    rows |= {
        "position_ids": settings.position_ids,
        "min_pixels": settings.min_pixels,
        "max_pixels": settings.max_pixels,
    }
    note = "" if arguments else "\n\nNo run.json stood beside the weights: what is not listed is not known."
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + note


def _limits(settings: Settings) -> str:
    lines = [
        "Pictures are resized by Pillow; torchvision's resizing differs in the last digits. Give RGB pictures: "
        "transparency is dropped here, and put on white by transformers.",
        "A text is not cut below the model's own limit.",
        "A text that spells a special token such as `<|im_end|>` is read as that token; in training it was read as "
        + ("that, too." if settings.special_tokens_in_text == "special" else "plain letters."),
        "No study of bias or of harmful use was made. The licence of the base model holds, and those of the data.",
    ]
    return "\n".join(f"- {line}" for line in lines)
