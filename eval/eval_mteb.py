"""mteb's tasks, or a task of your own in mteb's way, on an export (or any sentence-transformers model).

Started by scripts/eval/eval_mteb.sh.
"""

from __future__ import annotations

import importlib.util
from dataclasses import MISSING, dataclass
from pathlib import Path

from lamra.common.cli import parse, run
from lamra.common.errors import UserError
from lamra.common.flags import FILE, FOLDER, OUT_FOLDER, Flags, flag
from lamra.common.lock import folder_lock
from lamra.datasets.pairs import task_of_pairs
from lamra.eval.flags import output_folder
from lamra.eval.reporting.results import METRICS, write_json
from lamra.models.folders import local_folder

GET_MTEB = 'pip install "sentence-transformers[image]" mteb'
SHOWN = ("hit_rate_at_1", "hit_rate_at_5", "hit_rate_at_10")  # beside a task's main score


@dataclass
class MtebArguments(Flags):
    model_id: str = flag(MISSING, "folder of an export, or of another sentence-transformers model", path=FOLDER)
    tasks: str | None = flag(None, "mteb's names with commas between; mteb downloads their data")
    own: str | None = flag(None, "pairs.jsonl, as the training reads it: queries find their targets", path=FILE)
    image_root: str | None = flag(None, "folder of --own's pictures; default: that of the file", path=FOLDER)
    instruction: str | None = flag(None, "of the queries of all these tasks; default: the model's own prompts")
    trust_remote_code: bool = flag(False, "run the Python files of the folder: read them first")
    bf16: bool | None = flag(None, "default: True where the GPU has it, else float32")
    batch_size: int = flag(32, "inputs in a forward", low=1)
    output_dir: str | None = flag(None, "default: results/<model>/mteb", path=OUT_FOLDER)

    def __post_init__(self):
        super().__post_init__()
        self.model_id = local_folder(self.model_id, "model_id")
        if not self.tasks and not self.own:
            raise UserError("there is nothing to evaluate: give --tasks Flickr30kT2IRetrieval, or --own pairs.jsonl")
        if self.image_root and not self.own:
            raise UserError(f"--image_root {self.image_root} is of --own, which is not given")
        for library in ("sentence_transformers", "mteb"):
            if importlib.util.find_spec(library) is None:
                raise UserError(f"{library.replace('_', '-')} is not installed: {GET_MTEB}")
        if Path(self.model_id).is_dir() and not Path(self.model_id, "modules.json").is_file():
            raise UserError(
                f"--model_id {self.model_id} has no modules.json: mteb takes exports, MODEL_ID={self.model_id} bash "
                "scripts/export.sh writes one"
            )


def main() -> None:
    (args,) = parse(MtebArguments)
    import mteb

    from lamra.eval.guests import load_library_model
    from lamra.eval.inference import dtype_of, start
    from lamra.eval.mteb_tasks import as_mteb, measure

    folder = output_folder(args, "mteb")
    with folder_lock(folder):
        tasks = []
        if args.own:
            own = task_of_pairs(args.own, args.image_root)
            tasks.append(as_mteb(own, Path(args.own).stem))
        for name in args.tasks.split(",") if args.tasks else ():
            try:
                tasks.append(mteb.get_task(name))
            except KeyError as error:
                raise UserError(f"--tasks {name}: {error.args[0]}") from None
        device = start(args).device
        model = load_library_model(args.model_id, device, dtype_of(args, device), args.trust_remote_code)
        metrics = {}
        for task in tasks:
            name = task.metadata.name
            result = measure(model, task, args.batch_size, query=args.instruction)
            result.to_disk(folder / f"{name}.json")
            scores = next(iter(result.scores.values()))[0]
            main = task.metadata.main_score
            shown = dict.fromkeys([main, *(score for score in SHOWN if score in scores)])
            metrics[name] = {score: scores[score] for score in shown}
            print(f"{name}: " + ", ".join(f"{score} {value:.5f}" for score, value in metrics[name].items()))
        told = {} if args.instruction is None else {"instruction": args.instruction}
        write_json(folder / METRICS, {**metrics, "mteb": mteb.__version__, **told})
        print(f"written to {folder}/")


if __name__ == "__main__":
    run(main)
