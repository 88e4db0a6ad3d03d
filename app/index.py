"""Make an index of a folder of pictures and videos, or of a jsonl of items, or bring it up to date.

python app/index.py --model_id DIR --source FOLDER|FILE.jsonl [--output_dir INDEX]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lamra.common.cli import parse, run
from lamra.common.flags import FILE_OR_FOLDER, FOLDER, OUT_FOLDER, flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process
from lamra.eval.flags import SkippingArguments
from lamra.eval.index.extra import default_folder, require_lancedb


@dataclass
class IndexArguments(SkippingArguments):
    source: str = flag("", "pictures and videos to index, or items.jsonl", path=FILE_OR_FOLDER)
    image_root: str | None = flag(
        None, "with items.jsonl: folder of all pictures and videos; default: that of the file", path=FOLDER
    )
    output_dir: str | None = flag(None, "of the index; default: results/<model>/index/<source>", path=OUT_FOLDER)
    ivf_pq: bool | None = flag(
        None, "search approximately, with the recall measured; default: as the index is, at first exact"
    )

    def __post_init__(self):
        super().__post_init__()
        is_folder = Path(self.source).is_dir()
        require(
            not (is_folder and self.image_root), "image_root", self.image_root, "it with --source items.jsonl alone"
        )
        if self.output_dir is None:
            self.output_dir = str(default_folder(self.model_id, self.source))


def main() -> None:
    (args,) = parse(IndexArguments)
    require_lancedb()
    with folder_lock(args.output_dir, "output_dir"):
        from lamra.eval.index.make import make_index  # torch and transformers, which --help does not wait for
        from lamra.eval.inference import load_retriever

        make_index(
            load_retriever(args),
            args.source,
            args.output_dir,
            image_root=args.image_root,
            ivf_pq=args.ivf_pq,
            skip_unreadable=args.skip_unreadable,
            truncate_dim=args.truncate_dim,
            report=lambda sentence: print(sentence, flush=True) if is_first_process() else None,
        )


if __name__ == "__main__":
    run(main)
