"""The flags of LamRA's published code ("upstream"), in this project's terms: a user's commands run as they stand.

Upstream names each file of M-BEIR by its own path, and here they lie below --data_path: an absolute path there is taken
as it is. A flag of upstream's that means nothing here is ignored with a note that says why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lamra.common import cli
from lamra.common.errors import UserError

BELOW_DATA_PATH = ("queries", "pool", "instructions")
BATCHES = "batches are filled to --max_tokens_per_batch"
POSITIVES = "what a query looks for is read from its own candidates"


@dataclass(frozen=True)
class Flags:
    """Of an entrypoint: upstream's flags beside those of this project.

    Attributes:
        paths: upstream's -> ours, for the same file or folder.
        ignored: upstream's -> why it is not needed.
    """

    paths: dict[str, str]
    ignored: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        known = [f"--{name} (as --{ours})" for name, ours in self.paths.items()]
        return f"Upstream's flags are taken too: {', '.join(known + [f'--{name} (ignored)' for name in self.ignored])}."


FOLDERS = {"instructions_path": "instructions", "image_path_prefix": "data_path"}
FILES = {"query_data_path": "queries", "cand_pool_path": "pool"}
TRAINING = Flags(FILES | FOLDERS)
RERANK_TRAINING = Flags(FILES | FOLDERS | {"rerank_data_path": "mined"})
EVALUATION = Flags(
    FOLDERS,
    {
        "query_cand_pool_path": POSITIVES,
        "query_cand_pool": POSITIVES,  # as upstream's eval_mbeir.sh abbreviates it
        "batch_size": BATCHES,
        "save_for_rerank": "rankings are always written",
    },
)
MINING = Flags(
    FILES | FOLDERS,
    {
        "query_cand_pool_path": POSITIVES,
        "qrels_path": "the positives of a training query are in its pos_cand_list",
        "batch_size": BATCHES,
    },
)
RERANKING = Flags({}, {"batch_size": BATCHES})
ZEROSHOT = Flags({}, {"batch_size": BATCHES})
ZEROSHOT_SUITE = Flags({}, {"batch_size": BATCHES, "save_for_rerank": "rankings are always written"})
ZEROSHOT_RERANKING = Flags(
    {}, {"batch_size": BATCHES, "protocol": "a reranker's prompts are the same in both, and the rankings say theirs"}
)


def parse(flags: Flags, *dataclasses: type) -> list[Any]:
    """common.cli.parse for a command line that may have upstream's flags."""
    defaults = {of.name: of.default for dataclass in dataclasses for of in fields(dataclass)}
    command_line = translated(sys.argv[1:], flags, str(defaults.get("data_path", "")))
    return cli.parse(*dataclasses, command_line=command_line, epilog=flags.describe())


def translated(command_line: Sequence[str], flags: Flags, data_path: str = "") -> list[str]:
    """The command line with this project's flags only.

    Args:
        data_path: where --data_path points by default.

    Raises:
        UserError: a flag of upstream's has no value, or contradicts ours for the same thing; names both.
    """
    tokens, kept, given = list(command_line), [], {}
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            kept.append(token)
            continue
        name, equals, value = token[2:].partition("=")
        name = name.replace("-", "_")
        follows = not equals and bool(tokens) and not tokens[0].startswith("--")
        given[name] = tokens[0] if follows else value
        if name not in flags.paths and name not in flags.ignored:
            kept.append(token)
            continue
        if follows:
            tokens.pop(0)
        if name in flags.ignored:
            cli.note(f"--{name} is ignored: {flags.ignored[name]}")
        elif not given[name]:
            raise UserError(f"--{name} needs a path")
    root = given.get("image_path_prefix") or given.get("data_path") or data_path
    for name, ours in flags.paths.items():
        if name not in given:
            continue
        path = given[name] if ours == "data_path" else os.path.abspath(given[name])
        if ours not in given:
            kept += [f"--{ours}", path]
            continue
        same = os.path.join(root if ours in BELOW_DATA_PATH else "", given[ours])
        if os.path.abspath(same) != os.path.abspath(path):
            raise UserError(
                f"--{name} {given[name]} contradicts --{ours} {given[ours]}: the two mean the same, leave one out"
            )
    return kept
