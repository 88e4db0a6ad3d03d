"""Checkpoints: written whole, checked before a run goes on from one, and the weights in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError

from peft import set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers.trainer import TRAINER_STATE_NAME

from lamra.collators.processing import Processor
from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import appears, path_inside, remove, sha256
from lamra.common.processes import of_all_processes, on_first_process
from lamra.models.embedder import Embedder
from lamra.models.folders import read_object
from lamra.models.inspect import read_header
from lamra.models.reranker import Reranker
from lamra.models.saving import follow_umask, fsync, whole_model
from lamra.models.settings import Settings
from lamra.models.shapes import todays_name
from lamra.train.flags import AUTO, IF_ANY

MANIFEST = "manifest.json"
# What the pickles of a checkpoint are made of, beside what torch itself takes for safe: DeepSpeed and the state of
# NumPy's generator. One name after the module: a dotted one would lead on to what the module imports.
PICKLED = re.compile(
    r"numpy\.(dtype|ndarray)|numpy\.(_core|core)\.multiarray\._reconstruct|numpy\.dtypes\.\w+|_codecs\.encode"
    r"|deepspeed\.(runtime\.zero\.config|runtime\.fp16\.loss_scaler|utils\.tensor_fragment)\.\w+"
)
# What reading a damaged pickle without running it ends in.
PICKLE_FAULTS = (RuntimeError, ValueError, EOFError, IndexError, AssertionError, UnpicklingError, struct.error)
PARTIAL = ".partial"  # folder where a checkpoint is written until it is complete
ASIDE = ".aside"  # end of the name of a checkpoint that another replaces


def save_model(
    model: Embedder | Reranker,
    processor: Processor,
    settings: Settings,
    folder: str | Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write lamra.json, the adapter (or the whole model where there is none), tokenizer and image settings.

    Args:
        state_dict: the model's tensors where they are sharded over processes (ZeRO-3); by default its own.
    """
    if state_dict is not None:
        state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
    is_peft = model.model is not model.stock
    with whole_model(folder) as unfinished:
        settings.write(unfinished)
        model.model.save_pretrained(
            unfinished, state_dict=state_dict, **({"save_embedding_layers": False} if is_peft else {})
        )
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's model card, an empty form
        processor.save_pretrained(unfinished)


def load_weights(model: Embedder | Reranker, folder: str | Path) -> None:
    """Load what `save_model` wrote into a model of the same structure.

    Raises:
        UserError: a trained tensor is missing in the folder, or does not belong to the model.
    """
    state = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        state.update(load_file(file))
    if model.model is model.stock:
        state = {todays_name(name): tensor for name, tensor in state.items()}  # written as published models are
        result = model.stock.load_state_dict(state, strict=False)
    else:
        result = set_peft_model_state_dict(model.model, state)
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    lacking = sorted(trained & set(result.missing_keys)) + sorted(result.unexpected_keys)
    if lacking or not state:
        raise UserError(f"the weights in {folder} are not those of this model, for example {(lacking or ['none'])[0]}")


def commit_checkpoint(partial: Path, final: Path, *, record: dict, keep: int | None, best: Path | None = None) -> None:
    """Make a written folder a checkpoint: manifest, fsync, rename; then delete the oldest complete beyond `keep`.

    The `best` is never deleted.

    Until the rename there is no checkpoint, afterwards it is complete, whenever the machine stops. What has its name
    already, damaged or the same state saved before, stands aside until then.

    Args:
        record: what record.check_unchanged compares when a run goes on from here.
        keep: so many complete checkpoints; None or 0 keeps all.
    """
    follow_umask(partial)
    files = {str(path.relative_to(partial)): path for path in sorted(partial.rglob("*")) if path.is_file()}
    manifest = record | {
        "files": {name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, default=str) + "\n")
    for path in [*files.values(), partial / MANIFEST, *(p for p in partial.rglob("*") if p.is_dir()), partial]:
        fsync(path)
    aside = final.with_name(final.name + ASIDE)
    remove(aside)
    with suppress(FileNotFoundError):
        os.rename(final, aside)
    os.rename(partial, final)
    fsync(final.parent)
    remove(aside)
    if keep:
        complete = [folder for folder in checkpoints(final.parent) if (folder / MANIFEST).is_file()]
        for old in complete[keep:]:
            if old != best:
                shutil.rmtree(old)


def put_back(folder: Path) -> None:
    """Give a checkpoint its name again that stood aside when a commit was killed before the new one had it."""
    for aside in folder.glob(f"checkpoint-*{ASIDE}"):
        final = aside.with_name(aside.name.removesuffix(ASIDE))
        if os.path.lexists(final):
            remove(aside)
        else:
            os.rename(aside, final)


def require_shared(folder: Path) -> None:
    """Refuse a checkpoint that the first process does not see in full; all must call this, after a barrier.

    Raises:
        UserError: a process wrote a file where the first does not see it: machines without a common file system.
    """
    written = set(of_all_processes([str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]))

    if lacks := on_first_process(lambda: sorted(name for name in written if not appears(folder / name))):
        raise UserError(
            f"--output_dir {folder.parent.parent}: the first machine does not see {lacks[0]}, which another process "
            "wrote there: all machines must share the folder"
        )


def checkpoints(folder: Path) -> list[Path]:
    """checkpoint-N folders, newest first; no links, which lead out of the run."""
    named = [path for path in named_as_checkpoints(folder) if path.is_dir() and not path.is_symlink()]
    return sorted(named, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def named_as_checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None when all are as its manifest says."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = {path_inside(checkpoint, name): (of["size"], of["sha256"]) for name, of in manifest["files"].items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} is damaged"
    for path, (size, digest) in files.items():
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size} bytes, not {size}"
        if sha256(path) != digest:
            return f"{path.name} has other content than was written"
    if manifest.get("save_only_model"):
        return "it was saved with --save_only_model True: no run can go on from it"
    try:
        Settings.read(checkpoint)
        if (checkpoint / TRAINER_STATE_NAME).is_file():
            read_object(checkpoint / TRAINER_STATE_NAME)
        for path in sorted(checkpoint.rglob("*.safetensors")):
            read_header(path)
    except UserError as error:
        return str(error)
    return next(filter(None, map(_pickle_fault, sorted(checkpoint.rglob("*.pt*")))), None) or not_finite(checkpoint)


def _pickle_fault(path: Path) -> str | None:
    """What is wrong with a pickle, which is not run: DeepSpeed would run whatever it names."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except PICKLE_FAULTS as error:
        return f"{path.name} is damaged ({' '.join(str(error).split())[:200]})"
    if unknown := sorted(name for name in names if not PICKLED.fullmatch(name)):
        return f"{path.name} names {unknown[0]}, which no checkpoint needs: it may run code, and is not read"
    return None


def not_finite(folder: Path) -> str | None:
    """Which weights of a folder are not finite, or None."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if not tensors.get_tensor(name).isfinite().all():
                    return f"{file.name}: the weights {name} are not finite"
    return None


def has_checkpoint(folder: str | Path) -> bool:
    """Whether a run in the folder has come to a checkpoint that was written to its end."""
    return any((path / MANIFEST).is_file() for path in named_as_checkpoints(Path(folder)))


def checkpoint_to_resume(folder: str | Path, resume: str) -> str | None:
    """The folder to go on from: for AUTO the newest complete checkpoint, else `resume` itself if it is complete.

    IF_ANY is AUTO, and None where no checkpoint was ever written.

    Raises:
        UserError: there is none; says what is wrong with each.
    """
    if resume == IF_ANY:
        if not has_checkpoint(folder):
            return None
        resume = AUTO
    if resume != AUTO:
        if reason := fault(Path(resume)):
            raise UserError(f"--resume {resume}: {reason}; give a complete checkpoint, or auto")
        return resume
    links = [path for path in named_as_checkpoints(Path(folder)) if path.is_symlink()]
    reasons = [f"{path}: it is a link; --resume {path.resolve()} would follow it" for path in links]
    for checkpoint in checkpoints(Path(folder)):
        reason = fault(checkpoint)
        if reason is None:
            for skipped in reasons:
                note(f"skipped {skipped}")
            note(f"going on from {checkpoint}")
            return str(checkpoint)
        reasons.append(f"{checkpoint}: {reason}")
    found = "; ".join(reasons) or f"no checkpoint-N in {folder}"
    raise UserError(f"--resume auto: nothing complete to go on from ({found}); start again with --force True")
