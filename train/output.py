"""The output folder of a run: one job at a time, nothing of another run or model written over by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import remove
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process, on_first_process
from lamra.models.saving import MODEL_MARKS
from lamra.models.settings import FILE_NAME as SETTINGS_FILE
from lamra.models.settings import RUN_FILE, Settings
from lamra.train.arguments import TrainingArguments
from lamra.train.checkpoints import (
    PARTIAL,
    checkpoint_to_resume,
    checkpoints,
    has_checkpoint,
    named_as_checkpoints,
    put_back,
)
from lamra.train.flags import IF_ANY
from lamra.train.guards.skipped import FILE_NAME as SKIPPED_FILE
from lamra.train.record import write_run_record

PREEMPTED = "preempted"  # an empty file in the output folder of a run that was told to stop

# What a run writes into its folder, with its checkpoints.
OF_A_RUN = (
    SETTINGS_FILE, RUN_FILE, PREEMPTED, SKIPPED_FILE, "runs", PARTIAL, ".*.unfinished", *MODEL_MARKS,
    "adapter_model.safetensors", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "merges.txt", "added_tokens.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip


@contextmanager
def output_folder(args: TrainingArguments, base: Path) -> Iterator[str | None]:
    """Around all of a run: no other job writes into its folder. Gives the checkpoint to go on from, None for a new run.

    A dry run writes nothing, and neither locks nor checks the folder.

    Args:
        base: the folder of the model that is trained.

    Raises:
        UserError: as folder_lock, prepare_output and checkpoint_to_resume.
    """

    def decide() -> str | None:
        if not args.dry_run:
            prepare_output(args.output_dir, base, force=args.force, resume=args.resume)
        return checkpoint_to_resume(args.output_dir, args.resume) if args.resume else None

    with nullcontext() if args.dry_run else folder_lock(args.output_dir):
        yield on_first_process(decide, "the first process looks at what the output folder holds")


def prepare_output(folder: str | Path, base: str | Path, *, force: bool, resume: str | None) -> None:
    """Refuse to write over a run or a model; nothing is deleted yet, see `clear_output`.

    Args:
        base: the folder of the model that is trained.

    Raises:
        UserError: the folder is `base`, or holds it, a model that no training wrote there, or a run where neither
            force nor resume is set; with IF_ANY a finished run without a checkpoint.
    """
    folder, inside = Path(folder), Path(base).resolve()
    if folder.resolve() == inside or any(path.resolve() in (inside, *inside.parents) for path in _of_a_run(folder)):
        raise UserError(
            f"--output_dir {folder} holds the model that is trained, {base}: no run writes over that, choose another"
        )
    put_back(folder)
    has_model = any((folder / name).is_file() for name in (*MODEL_MARKS, SETTINGS_FILE))
    if not (folder / RUN_FILE).is_file() and not named_as_checkpoints(folder):
        if has_model:
            raise UserError(f"--output_dir {folder} holds a model that no training wrote there: choose another folder")
        return
    if force or (resume and (resume != IF_ANY or not has_model or has_checkpoint(folder))):
        return
    if has_model:
        state = "a finished run"
    elif checkpoints(folder):
        state = "an unfinished run"
    else:
        state = "a run that was stopped before its first checkpoint"
    go_on = "go on with --resume auto, " if checkpoints(folder) else ""
    raise UserError(
        f"--output_dir {folder} holds {state}: choose another folder, {go_on}or start again with --force True"
    )


def begin_output(args: TrainingArguments, checkpoint: str | None, settings: Settings, data: dict, *flags) -> None:
    """Delete an earlier run where --force or --resume says so, and write run.json.

    Args:
        data: what the run records of its data: "path", "sha256", "pairs".
        flags: the other dataclasses of the command line.
    """
    if (args.force or args.resume == IF_ANY) and not checkpoint:
        on_first_process(lambda: clear_output(args.output_dir))
    if is_first_process():
        arguments = {name: value for group in flags for name, value in asdict(group).items()} | args.to_dict()
        write_run_record(args.output_dir, settings, arguments, data)
        Path(args.output_dir, PREEMPTED).unlink(missing_ok=True)


def clear_output(folder: str | Path) -> None:
    """Delete what belongs to an earlier run, and nothing else; of links, the links."""
    # What marks a model goes first, the run's record last: a kill leaves nothing that would load with other settings.
    order = {name: position for position, name in enumerate((*MODEL_MARKS, None, SETTINGS_FILE, RUN_FILE))}
    for path in sorted(_of_a_run(Path(folder)), key=lambda path: order.get(path.name, order[None])):
        remove(path)


def _of_a_run(folder: Path) -> list[Path]:
    found = {path for pattern in OF_A_RUN for path in folder.glob(pattern)}
    return [*found, *named_as_checkpoints(folder)]
