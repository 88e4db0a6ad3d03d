"""A guest through every evaluation, on as many processes as there are; test_guests.py starts it under torchrun, too.

guest_worker.py LIBRARY MODEL WORLD M-BEIR SUITE OUT        # LIBRARY: folder of the stand-in, or - for the real library
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lamra.eval import embed, eval_mbeir, eval_mbeir_global, zeroshot
from lamra.eval.zeroshot_suite import evaluate_set
from lamra.miniature.mbeir import TASKS


def evaluate_all(model: Path, world: Path, mbeir: Path | None, suite: Path, out: Path, **more: str) -> None:
    """Flickr, M-BEIR in both settings, SugarCrepe, ShareGPT4V and embed.py, each into a folder of its own.

    Args:
        mbeir: None for a guest that does not take texts and pictures together.
        suite: holds sugarcrepe/, sharegpt4v.json and items.jsonl.
        more: flags, of a guest its library.
    """
    images = world / "test" / "images"
    flags = {"model_id": model, "num_workers": 0, "max_tokens_per_batch": 3000, **more}
    captions = {"image_data_path": images, "text_data_path": world / "test" / "captions.json", "mode": "finetuned"}
    runs: dict[str, tuple[Callable[[], None], dict]] = {
        "flickr": (partial(zeroshot.evaluate_captions, "Flickr30K"), captions | {"save_for_rerank": True}),
        "sugarcrepe": (
            partial(evaluate_set, "sugarcrepe"),
            {"annotation_path_prefix": suite / "sugarcrepe", "image_path_prefix": images},
        ),
        "sharegpt4v": (
            partial(evaluate_set, "sharegpt4v"),
            {"text_data_path": suite / "sharegpt4v.json", "image_data_path": images},
        ),
    }
    if mbeir:
        for pool, main in (("local", eval_mbeir.main), ("global", eval_mbeir_global.main)):
            runs[f"mbeir_{pool}"] = (main, {"data_path": mbeir, "tasks": ",".join(TASKS), "shard_size": 5})
    for name, (main, own) in runs.items():
        start(main, output_dir=out / name, **flags, **own)
    start(embed.main, input=suite / "items.jsonl", image_root=images, output=out / "items.npz", **flags)


def start(main: Callable[[], None], **flags: object) -> None:
    sys.argv = ["entrypoint", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]
    main()


if __name__ == "__main__":
    import torch.distributed as dist

    library, model, world, mbeir, suite, out = sys.argv[1:]
    if library != "-":
        sys.path.insert(0, library)
    of_guest = {"library": "sentence-transformers"}
    evaluate_all(Path(model), Path(world), None if mbeir == "-" else Path(mbeir), Path(suite), Path(out), **of_guest)
    dist.destroy_process_group()
