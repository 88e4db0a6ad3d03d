"""Whatever text, csv, jsonl, ranking or file of M-BEIR a user brings: one sentence, or a result that is right."""

from __future__ import annotations

import gc

from cases import count, faults, run_forked
from cases.data import Bench, cases

from lamra.collators.processing import Processor


def test_every_text_and_every_file_of_texts(tiny_model, tmp_path):
    processors = {kind: Processor(tiny_model, special_tokens_in_text=kind) for kind in ("plain", "special")}
    gc.freeze()  # what is here is looked at in no fork: each ends with a collection
    outcomes = run_forked(cases(Bench(processors)), tmp_path)
    gc.unfreeze()
    print(count(outcomes))
    assert not (wrong := faults(outcomes)), "\n\n".join([f"{len(wrong)} of {len(outcomes)}", *wrong])
