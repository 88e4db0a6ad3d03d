"""Does this installation of sentence-transformers give this model's own vectors? python verify.py

It embeds the inputs of golden.json and compares. It needs `pip install "sentence-transformers[image]"`, and nothing of
the project that made this folder. A folder with modeling_lamra.py runs that file: read its few lines, then give
--trust_remote_code.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path

# Of the largest difference. Measured on a CPU: 2.4e-7 and 4e-3; GPUs round their products otherwise.
LIMITS = {"float32": 1e-4, "bfloat16": 0.03}
NEEDS = 'it needs sentence-transformers with its parts for pictures: pip install "sentence-transformers[image]"'


@cache
def draw(width: int, height: int, number: int):
    """A picture of rectangles, stripes and a gradient: the same bytes on every machine."""
    from PIL import Image

    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            stripe = 90 if (x // (3 + number % 5) + y // (2 + number % 7)) % 2 else 0
            inside = 120 if width // 4 <= x < 3 * width // 4 and height // 3 <= y < 2 * height // 3 else 0
            pixels += bytes(((x * 255 // width + stripe) % 256, (y * 13 + inside) % 256, (number * 37 + x * y) % 256))
    return Image.frombytes("RGB", (width, height), bytes(pixels))


def draw_clip(width: int, height: int, number: int, count: int) -> list:
    """Frames of a clip, different ones."""
    return [draw(width, height, number + frame) for frame in range(count)]


def shown(entry: dict):
    """An input of golden.json as sentence-transformers takes it; of a clip the chosen frames, at their size."""
    parts = {"text": entry["text"]} if "text" in entry else {}
    if "picture" in entry:
        parts["image"] = draw(*entry["picture"])
    if "clip" in entry:
        frames = draw_clip(*entry["clip"])
        parts["video"] = {"array": frames, "video_metadata": {"fps": 2, "total_num_frames": len(frames)}}
    return parts["text"] if parts.keys() == {"text"} else parts


def measure(folder: Path, dtype: str, trust_remote_code: bool, device: str | None) -> list[float]:
    """The largest difference of each golden vector, or of each golden score of a reranker."""
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    golden = json.loads((folder / "golden.json").read_text())
    options = {"device": device, "trust_remote_code": trust_remote_code, "model_kwargs": {"torch_dtype": dtype}}
    if golden["kind"] == "reranker":
        model = CrossEncoder(str(folder), **options)
        scores = model.predict([(shown(pair["query"]), shown(pair["candidate"])) for pair in golden["inputs"]])
        return [abs(float(found) - pair["score"]) for found, pair in zip(scores, golden["inputs"])]
    model = SentenceTransformer(str(folder), **options)
    differences = []
    for entry in golden["inputs"]:
        found = model.encode([shown(entry)], prompt=entry.get("instruction"), convert_to_tensor=True)[0].float().cpu()
        differences.append((found - torch.tensor(entry["vector"])).abs().max().item())
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=sorted(LIMITS), default="float32", help="of the weights while they compute")
    parser.add_argument("--device")
    parser.add_argument("--trust_remote_code", action="store_true")
    args = parser.parse_args()
    folder = Path(__file__).resolve().parent
    try:
        import sentence_transformers  # noqa: F401
        import torchvision  # noqa: F401  (transformers' processor of Qwen2-VL needs it, for texts too)
    except ImportError as error:
        print(f"error: {error}: {NEEDS}", file=sys.stderr)
        return 2
    if (folder / "modeling_lamra.py").is_file() and not args.trust_remote_code:
        print("error: the folder has code of its own: read modeling_lamra.py, add --trust_remote_code", file=sys.stderr)
        return 2
    differences = measure(folder, args.dtype, args.trust_remote_code, args.device)
    worst = max(range(len(differences)), key=lambda i: differences[i])
    fits = differences[worst] <= LIMITS[args.dtype]
    print(f"{len(differences)} inputs, {args.dtype}: largest difference {differences[worst]:.2e} (input {worst})")
    print("the same model" if fits else f"NOT the same: more than {LIMITS[args.dtype]}")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
