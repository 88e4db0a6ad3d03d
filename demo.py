"""Find pictures in a folder by words or by another picture: the smallest use of a trained model.

python demo.py --model_id DIR --folder PICTURES --text "two dogs in the snow"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lamra.datasets.items import Item
from lamra.eval.retriever import RetrieverArguments, load_retriever
from lamra.eval.search import top_k
from lamra.train.arguments import parse
from lamra.train.entrypoint import run

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass
class DemoArguments(RetrieverArguments):
    folder: str = field(default="", metadata={"help": "pictures to search"})
    text: str | None = field(default=None, metadata={"help": "what to look for, in words"})
    image: str | None = field(default=None, metadata={"help": "what to look for, as a picture; alone or with --text"})
    top: int = field(default=10, metadata={"help": "how many to show"})

    def __post_init__(self):
        super().__post_init__()
        if not (self.text or self.image):
            raise ValueError('give --text "what to look for", --image picture.jpg, or both')
        if self.image and not Path(self.image).is_file():
            raise ValueError(f"--image {self.image} does not exist")
        if not Path(self.folder).is_dir():
            raise ValueError(f"--folder {self.folder} is not a folder")


def main() -> None:
    (args,) = parse(DemoArguments)
    paths = sorted(path for path in Path(args.folder).rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise ValueError(f"--folder {args.folder} holds no picture ({', '.join(sorted(PICTURES))})")
    retriever = load_retriever(args)
    gallery = retriever.encode([Item(str(path), images=(path,)) for path in paths], "pictures")  # (N, D)
    query = retriever.encode([Item("query", args.text, (args.image,) if args.image else ())], "query")  # (1, D)
    scores, indices = top_k(query, gallery, args.top)
    for rank, (score, index) in enumerate(zip(scores[0].tolist(), indices[0].tolist()), start=1):
        print(f"{rank:3d}  {score:.4f}  {paths[index]}")


if __name__ == "__main__":
    run(main)
