"""The Python of the README's first screen runs as it stands, on the fixtures' model and pictures.

It runs as in a program of the user's own: no entrypoint, no variable of ours, and half of a launcher's left over.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_first_screen_runs(tiny_model, world):
    code = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)[1]
    for shown, here in (
        ("checkpoints/miniature_LamRA_Ret_Pretrain", tiny_model),
        ("data/miniature/test/images", world / "test" / "images"),
    ):
        assert code.count(shown) == 1
        code = code.replace(shown, str(here))
    code += "\nassert captions.shape == pictures.shape and captions.dtype.is_floating_point"
    code += "\nassert all((x.norm(dim=1) - 1).abs().max() < 1e-5 for x in (captions, pictures))"
    code += "\nimport torch\nassert not torch.distributed.is_initialized()"
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment = kept | {"RANK": "1", "WORLD_SIZE": "2"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"-?\d+\.\d+", result.stdout)) == 4, result.stdout  # (2, 2) similarities
