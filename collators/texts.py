"""Texts that the model sees otherwise than they are written: counted while inputs are prepared, told at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from lamra.common.cli import note
from lamra.common.processes import of_all_processes

CUT_TEXT = "cut after --text_max_tokens"
CUT_PROMPT = "cut, because their prompts are longer than the model or --model_max_length takes"
SPECIAL = (
    "with special tokens (<|im_end|>, ...), read as such, as LamRA's released checkpoints do "
    "(--special_tokens_in_text special)"
)
LONG = "nearly too long"  # told nowhere: an item that was cut, which leaves about as much, may be equal to it
CUTS = {CUT_TEXT, CUT_PROMPT}
NAMED = 5  # ids in a sentence

# What befell a text -> digests of what the model sees of its item, and of the item.
TextNotes = dict[str, tuple[int, int]]


def digest_of(*parts: object) -> int:
    """64 bits of their representation, the same in all processes."""
    digest = hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little", signed=True)


class ToldTexts:
    """Collects the notes that an encoded item or prompt has, and tells each kind once."""

    def __init__(self) -> None:
        self.found: dict[str, TextNotes] = {}  # id -> its notes

    def add(self, notes: Iterable[tuple[str, TextNotes]]) -> None:
        """Args: notes: id of an item or prompt, and its notes; those without are passed over."""
        self.found.update((identifier, found) for identifier, found in notes if found)

    def tell(self, description: str = "") -> None:
        """Say how many texts there are of each kind, with the first ids. All processes must call this."""
        found = dict(of_all_processes(list(self.found.items())))
        self.found = {}
        begin = f"{description}: " if description else ""
        for kind in (CUT_TEXT, CUT_PROMPT, SPECIAL):
            if ids := sorted(identifier for identifier, notes in found.items() if kind in notes):
                note(f"{begin}{len(ids)} texts are {kind}: {_first(ids)}")
        alike: dict[int, dict[int, str]] = {}  # what the model sees -> the different items that look so, an id of each
        for identifier, notes in found.items():
            for seen, item in notes.values():  # one and the same
                alike.setdefault(seen, {}).setdefault(item, identifier)
        cut = {identifier for identifier, notes in found.items() if CUTS & notes.keys()}
        groups = [sorted(ids.values()) for ids in alike.values() if len(ids) > 1]
        same = [" = ".join(ids) for ids in groups if cut.intersection(ids)]
        if same:
            note(f"{begin}after the cut, {len(same)} groups of different items are equal to the model: {_first(same)}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
