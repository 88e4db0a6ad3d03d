"""The benchmark that is for a GPU runs to its end on any machine, in a small size."""

from __future__ import annotations

import json

from conftest import run_script


def test_gpu_train_step_on_a_cpu():
    small = ("--size", "tiny", "--sentences", 8, "--pairs", 12, "--chunk", 5, "--warm-up", 1, "--timed", 1)
    result = run_script("python", "benchmarks/gpu_train_step.py", *small)
    found = json.loads(result.stdout.splitlines()[-1])
    assert len(found["cases"]) == 5 and found["speed_up"] > 0
    assert all(case["useful_tokens_per_second"] > 0 for case in found["cases"].values())
