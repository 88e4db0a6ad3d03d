"""What is known of an index before torch is imported: where it lies, and whether LanceDB is there to read it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lamra.common.errors import UserError
from lamra.eval.flags import run_name

GET_GALLERY = 'pip install -e ".[gallery]"'
TABLE = "items"


def require_lancedb() -> None:
    """Refuse to go on without LanceDB, an optional extra."""
    if importlib.util.find_spec("lancedb") is None:
        raise UserError(f"an index needs LanceDB, which is not installed: {GET_GALLERY}")


def default_folder(model_id: str, source: str | Path) -> Path:
    """results/<model>/index/<source>."""
    return Path("results", run_name(model_id), "index", run_name(str(source)))


def require_index(folder: str | Path, flag: str = "index") -> None:
    """Refuse a folder without an index."""
    if not Path(folder, f"{TABLE}.lance").is_dir():
        raise UserError(f"--{flag} {folder} is no index: bash scripts/index.sh FOLDER makes one")
