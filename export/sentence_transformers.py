"""One folder for sentence-transformers, mteb, vLLM, transformers and this project. Started by scripts/export.sh.

It holds a merged model, what sentence-transformers needs beside it, golden.json (inputs with this project's own
vectors) and verify.py, which tells whether another installation gives them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lamra.common.cli import note, parse, run
from lamra.common.errors import UserError
from lamra.common.files import remove
from lamra.common.flags import FOLDER, OUT_FOLDER, Flags, flag
from lamra.common.lock import folder_lock
from lamra.datasets.caption import INSTRUCTION_IMAGE_TO_TEXT, INSTRUCTION_TEXT_TO_IMAGE
from lamra.datasets.items import Item, Part, Picture, Text, Video
from lamra.export import verify
from lamra.export.card import training_arguments, write_card
from lamra.export.merge_lora import DTYPES, write_model
from lamra.models.families import family_of
from lamra.models.folders import LAMRA_TEMPLATE, local_folder, read_object
from lamra.models.saving import whole_model
from lamra.models.settings import RUN_FILE, Settings

if TYPE_CHECKING:
    from PIL import Image

    from lamra.collators.processing import Processor

LIBRARY = "sentence_transformers."
GOLDEN = "golden.json"  # marks an export
VIDEO_SETTINGS = "video_preprocessor_config.json"  # in exports that take videos
MEASURED_WITH = "6.2.0"  # of sentence-transformers
# Read from the model's forward by sentence-transformers' first module, for each kind of input.
EMBEDS = {"method": "forward", "method_output_name": "last_hidden_state"}
ANSWERS = {"method": "forward", "method_output_name": "logits"}
# Positions 0, 1, 2, .. for image tokens too: with this mark of theirs at 0, transformers does not compute M-RoPE.
SEQUENTIAL_MODULE = '''"""Rotary positions 0, 1, 2, .. for image tokens too, as this model was trained."""

import torch
from sentence_transformers.base.modules import Transformer


class SequentialTransformer(Transformer):
    def preprocess(self, *args, **kwargs):
        features = super().preprocess(*args, **kwargs)
        if "mm_token_type_ids" in features:  # only with pictures
            features["mm_token_type_ids"] = torch.zeros_like(features["mm_token_type_ids"])
        return features
'''
TEXTS = (
    *("a", "Two dogs run through the snow.", "两只狗在雪地里奔跑。", "a café, a naïve résumé 🙂", "line one\nline two"),
    *(
        "    blanks at both ends   ",
        '"quoted" and {braced}',
        "?",
        "A man plays a guitar on a stage at night. " * 6,
    ),
)
POOLING_MODES = {"last_token": "lasttoken", "mean": "mean"}
CLIP = 364, 280, 3, 4  # width, height, number, frames; of a size at which no clip is resized
SIZES = ((28, 28), (1, 1), (300, 200), (200, 300), (56, 700), (640, 480), (90, 91))  # width, height
# Of an instruction-tuned retriever, in the names that mteb looks for: what it tells the queries of its tasks.
MTEB_PROMPTS = {
    f"{name}{way}Retrieval-query": instruction
    for name in ("Flickr30k", "MSCOCO")
    for way, instruction in (("T2I", INSTRUCTION_TEXT_TO_IMAGE), ("I2T", INSTRUCTION_IMAGE_TO_TEXT))
}


@dataclass
class ExportArguments(Flags):
    model_id: str = flag(MISSING, "folder of an adapter or a merged model, retriever or reranker", path=FOLDER)
    save_path: str = flag(MISSING, "folder of the export", path=OUT_FOLDER)
    original_model_id: str | None = flag(None, "base model, where the remembered one is gone", path=FOLDER)
    dtype: str = flag("bf16", "of the weights", one_of=DTYPES)
    instruction_tuned: bool | None = flag(
        None, "mteb tells its queries what to find; default: True of a run of stage 2, else False"
    )
    force: bool = flag(False, "replace what is in the folder")
    results: str | None = flag(None, "folder of metrics.json files for the model card", path=FOLDER)
    push: str | None = flag(None, "upload it to this repository of the Hugging Face hub, owner/name")
    public: bool = flag(False, "with --push: a new repository is public; default: private")

    def __post_init__(self):
        super().__post_init__()
        self.model_id = local_folder(self.model_id, "model_id")
        folder = Path(self.save_path)
        if folder.resolve() == Path(self.model_id).resolve():
            raise UserError(f"--save_path {folder} is the model's own folder: choose another")
        is_export = (folder / GOLDEN).is_file()
        if not (is_export and self.force) and _content(folder):
            way_out = ", or replace it with --force True" if is_export else "; it holds no export to replace"
            raise UserError(f"--save_path {folder} is not empty: choose another folder{way_out}")
        if self.public and not self.push:
            raise UserError("--public True needs --push owner/name")


def main() -> None:
    (args,) = parse(ExportArguments)
    import torch  # here and not above: --help or a mistake in the flags needs no seconds of imports

    from lamra import load
    from lamra.collators.processing import Processor
    from lamra.models.base_model import base_under
    from lamra.models.folders import is_adapter
    from lamra.models.inspect import inspect_folder
    from lamra.models.loading import load_trained

    base_model = base_under(args.model_id, args.original_model_id) if is_adapter(args.model_id) else None
    inspect_folder(Path(args.model_id), base_model)
    kept = Settings.read(args.model_id)
    if kept and kept.attention != "causal":
        raise UserError(
            f"{args.model_id} was trained with --attention {kept.attention}, which no stock module of "
            "sentence-transformers computes: use it by lamra.load, or train with --attention causal"
        )
    if kept and kept.prompt_style != "lamra":
        raise UserError(
            f"{args.model_id} was trained with --prompt_style {kept.prompt_style}, and only LamRA's prompts are "
            "exported: use it by lamra.load"
        )
    tuned, folder = is_instruction_tuned(args.model_id, args.instruction_tuned), Path(args.save_path)
    with folder_lock(folder, "save_path"):
        # Added in float32 and rounded once, whatever the folder is written in.
        model, settings = load_trained(args.model_id, base_model, dtype=torch.float32)
        with whole_model(folder) as unfinished:
            write_model(unfinished, model.to(getattr(torch, DTYPES[args.dtype])), settings, base_model or args.model_id)
            hidden = model.config.text_config.hidden_size
            del model
            write_library_files(unfinished, Processor(unfinished), settings, hidden, instruction_tuned=tuned)
            loaded = load(unfinished, dtype=torch.float32, device="cpu")
            videos = (unfinished / VIDEO_SETTINGS).is_file()
            write_json(unfinished / GOLDEN, golden(loaded, settings, golden_inputs(videos=videos)))
            name = args.push or folder.name
            write_card(unfinished, Path(args.model_id), settings, args.results, name, instruction_tuned=tuned)
            for earlier in _content(folder):  # an export of another kind has other files
                remove(earlier)
    print(f"exported {args.model_id}, {args.dtype}: {folder}/README.md says how to use it, verify.py checks it")
    if args.push:
        push(folder, args.push, private=not args.public)


def is_instruction_tuned(model_id: str, told: bool | None) -> bool:
    """Whether the queries of a model expect to be told what to find.

    Args:
        told: what --instruction_tuned says; None: as its run.json says.

    Raises:
        UserError: it is said of a reranker, which reads the instruction in its queries.
    """
    settings = Settings.read(model_id)
    if settings and settings.role == "reranker":
        if told is not None:
            raise UserError(f"--instruction_tuned {told} is of retrievers, {model_id} is a reranker: leave it out")
        return False
    if told is not None:
        return told
    arguments = training_arguments(Path(model_id))
    if not arguments:
        note(
            f"no {RUN_FILE} says how {model_id} was trained: its export tells mteb's queries nothing, "
            "--instruction_tuned True tells them what to find"
        )
    return "queries" in arguments  # M-BEIR's, which have instructions


def _content(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_library_files(
    folder: Path, processor: Processor, settings: Settings, hidden: int, *, instruction_tuned: bool
) -> None:
    """Everything that sentence-transformers reads, into the folder of a merged model.

    Not by its own save_pretrained, which drops lm_head and the choice of the PIL image processor.
    """
    from lamra.export.templates import draws_videos, embedding_template, judging_template

    template = folder / "chat_template.jinja"
    template.rename(folder / LAMRA_TEMPLATE)
    tokenizer = read_object(folder / "tokenizer_config.json")
    for key in ("chat_template", "is_local", "local_files_only"):
        tokenizer.pop(key, None)
    write_json(folder / "tokenizer_config.json", tokenizer)
    pictures = read_object(folder / "preprocessor_config.json")
    for key in ("min_pixels", "max_pixels", "processor_class"):
        pictures.pop(key, None)
    pictures["size"] = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    write_json(folder / "preprocessor_config.json", pictures)
    # sentence-transformers' CrossEncoder reads no frames in pairs; Qwen3-VL has a processor of another kind for videos.
    videos = settings.role == "retriever" and draws_videos(processor) and not family_of(folder).frames_apart
    if videos:
        write_json(folder / VIDEO_SETTINGS, video_settings(pictures, processor.visuals.side))

    first = f"{LIBRARY}base.modules.transformer.Transformer"
    if settings.position_ids == "sequential":
        (folder / "modeling_lamra.py").write_text(SEQUENTIAL_MODULE)
        first = "modeling_lamra.SequentialTransformer"
    config: dict[str, Any] = {"similarity_fn_name": "cosine", "default_prompt_name": None}
    if settings.role == "reranker":
        assert settings.rank_style is not None
        template.write_text(judging_template(processor, settings.rank_style), encoding="utf-8")
        output, reads, task = "causal_logits", ANSWERS, "any-to-any"
        modules = [first, f"{LIBRARY}cross_encoder.modules.logit_score.LogitScore"]
        score = {**yes_no(processor, settings.rank_style), "module_input_name": output}
        write_json(folder / "1_LogitScore" / "config.json", score)
        config = {"activation_fn": "torch.nn.modules.activation.Sigmoid", "prompts": {}, "default_prompt_name": None}
    else:
        template.write_text(embedding_template(processor, videos=videos), encoding="utf-8")
        output, reads, task = "token_embeddings", EMBEDS, "feature-extraction"
        modules = [
            first,
            f"{LIBRARY}sentence_transformer.modules.pooling.Pooling",
            f"{LIBRARY}base.modules.normalize.Normalize",
        ]
        pooling = {
            "embedding_dimension": hidden,
            "pooling_mode": POOLING_MODES[settings.pooling],
            "include_prompt": True,
        }
        write_json(folder / "1_Pooling" / "config.json", pooling)
        names = {f"module_{side}_name": "sentence_embedding" for side in ("input", "output")}
        write_json(folder / "2_Normalize" / "config.json", names)
        config["prompts"] = {"query": "", "document": "", **(MTEB_PROMPTS if instruction_tuned else {})}
    kind = "CrossEncoder" if settings.role == "reranker" else "SentenceTransformer"
    versions = {"sentence_transformers": MEASURED_WITH}
    write_json(folder / "config_sentence_transformers.json", {"__version__": versions, "model_type": kind, **config})
    paths = ["", *(f"{number}_{name.rpartition('.')[2]}" for number, name in enumerate(modules) if number)]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": name}
        for number, (path, name) in enumerate(zip(paths, modules))
    ]
    write_json(folder / "modules.json", listed)
    takes = ["text", "image", *(["video"] if videos else [])]
    reading = {
        "transformer_task": task,
        "modality_config": dict.fromkeys(takes, reads) | {"message": {**reads, "format": "structured"}},
        "module_output_name": output,
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        "unpad_inputs": False,
        "processor_kwargs": {"use_fast": False},  # Pillow's resizing, as the model was trained
    }
    write_json(folder / "sentence_bert_config.json", reading)
    shutil.copy(verify.__file__, folder / "verify.py")


def yes_no(processor: Processor, style: str) -> dict[str, int]:
    """The tokens whose logits decide.

    Raises:
        UserError: the tokenizer writes something before both of them.
    """
    from lamra.collators.messages import YES_NO
    from lamra.collators.rerank import RankPrompts

    common, (yes, no) = RankPrompts(processor, style).choices(YES_NO[style])
    if common:
        raise UserError("the tokenizer spells Yes and No by several tokens: such a reranker cannot be a CrossEncoder")
    return {"true_token_id": yes, "false_token_id": no}


def video_settings(pictures: dict[str, Any], side: int) -> dict[str, Any]:
    """How transformers is to show a video: as large as collators.videos does, of a file two frames a second.

    Frames that are given need the rate that they were chosen with. Which frames of a file it chooses differs, see
    docs/export.md.

    Args:
        pictures: preprocessor_config.json, for values that are common to both.
        side: pixels; side x side of them are a token.
    """
    from lamra.collators.videos import MAX_FRAMES, MAX_TOKENS, MIN_FRAMES, MIN_TOKENS, TOTAL_TOKENS

    common = {key: value for key, value in pictures.items() if key != "image_processor_type"}
    return common | {
        "video_processor_type": "Qwen2VLVideoProcessor",
        "size": {"shortest_edge": MIN_TOKENS * side**2, "longest_edge": MAX_TOKENS * side**2},
        "cap_pixels_per_frame": True,
        "max_video_tokens": TOTAL_TOKENS / 0.9,  # of which it gives a clip nine tenths
        "do_sample_frames": True,
        "fps": Video("").fps,
        "min_frames": MIN_FRAMES,
        "max_frames": MAX_FRAMES,
    }


def golden_inputs(*, videos: bool) -> list[dict[str, Any]]:
    """30 inputs: texts, pictures that verify.py draws, and both, a third of them with an instruction; then 3 clips."""
    pictures: list[dict[str, Any]] = [{"picture": [*size, number]} for number, size in enumerate(SIZES)]
    both = [{**picture, "text": text} for picture, text in zip(pictures, TEXTS[1:5])]
    plain: list[dict[str, Any]] = [*({"text": text} for text in TEXTS), *pictures, *both]
    instructed = [{**entry, "instruction": INSTRUCTION_TEXT_TO_IMAGE} for entry in plain[::2]]
    clip: dict[str, Any] = {"clip": list(CLIP)}
    told = {**clip, "text": TEXTS[1]}
    clips = [clip, told, {**told, "instruction": INSTRUCTION_TEXT_TO_IMAGE}] if videos else []
    return [*[*plain, *instructed][:30], *clips]


def item_of(entry: dict[str, Any], clip: Path) -> Item:
    """An input of golden.json; `clip` is the file of CLIP."""
    parts: list[Part] = []
    if "picture" in entry:
        parts.append(Picture(verify.draw(*entry["picture"])))
    if "clip" in entry:
        parts.append(Video(clip))
    if "text" in entry:
        parts.append(Text(entry["text"]))
    return Item("", parts=parts, instruction=entry.get("instruction"))


def write_clip(path: Path, frames: Sequence[Image.Image]) -> Path:
    """A video file of which all frames are shown, each with all its pixels."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=int(Video("").fps))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def golden(model: Any, settings: Settings, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of golden.json: inputs, and what `model`, the float32 export on the CPU, makes of them."""
    with TemporaryDirectory() as folder:
        clip = write_clip(Path(folder, "clip.mkv"), verify.draw_clip(*CLIP))
        items = [item_of(entry, clip) for entry in inputs]
        if settings.role == "reranker":
            plain = [row for row, entry in enumerate(inputs) if "instruction" not in entry]
            pairs = list(zip(plain, plain[5:]))
            scores = [model.rerank(items[query], [items[candidate]]).item() for query, candidate in pairs]
            listed = [
                {"query": inputs[query], "candidate": inputs[candidate], "score": score}
                for (query, candidate), score in zip(pairs, scores)
            ]
            return {"kind": "reranker", "inputs": listed}
        vectors = model.encode(items, None)  # (N, D)
    rounded = [[round(value, 8) for value in vector] for vector in vectors.tolist()]
    return {"kind": "retriever", "inputs": [{**entry, "vector": vector} for entry, vector in zip(inputs, rounded)]}


def push(folder: Path, repository: str, *, private: bool) -> None:
    """Upload an export; an existing repository keeps its visibility.

    Raises:
        UserError: the hub refuses, or cannot be reached; says what it answered.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        found = api.upload_folder(folder_path=folder, repo_id=repository, ignore_patterns=[".*"])
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--push {repository}: {reason}; log in with `hf auth login`, then push again") from None
    note(f"pushed to {found}")


if __name__ == "__main__":
    run(main)
