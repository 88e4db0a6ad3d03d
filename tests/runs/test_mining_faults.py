"""Mining on a disk that fills: one sentence, and what is half-written is never read as whole."""

from __future__ import annotations

import shutil

from conftest import call, run_script

from lamra.datasets.columns import SUFFIX
from lamra.eval import mine_negatives


def test_a_disk_that_fills(mbeir, tiny_model, mined, disk, tmp_path):
    folder, resize = disk
    output, whole = folder / "negatives", tmp_path / "negatives"
    for copy in (output, whole):
        shutil.copytree(mined / "embeddings", copy / "embeddings")
    used = shutil.disk_usage(folder).used
    resize(used + 40 * 1024)  # for the first four files, of which each has 3 kB, and not for the fifth of 34
    result = run_script(
        *("bash", "scripts/lamra_ret/mine_negatives.sh", "--num_workers", 0),
        **dict(DATA_PATH=mbeir, MODEL_ID=tiny_model, RANKS="0:500", KEEP=400, NUM_GPUS=2, OUTPUT_DIR=output),
        check=False,
    )
    assert result.returncode == 2
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    words = f"error: {output}/mined/00004{SUFFIX} cannot be written, the disk, a quota or a limit is full"
    assert error.startswith(words)
    there = {path.name: path.stat().st_mtime_ns for path in (output / "mined").iterdir()}
    assert there.keys() == {"manifest.json", *(f"{number:05d}{SUFFIX}" for number in range(4))}
    assert not list(output.glob("negatives*"))

    resize("1m")
    how = dict(data_path=mbeir, model_id=tiny_model, ranks="0:500", keep=400, num_workers=0)
    for folder in (output, whole):
        call(mine_negatives.main, **how, output_dir=folder)
    assert all((output / "mined" / name).stat().st_mtime_ns == time for name, time in there.items())
    assert (output / "negatives.arrow").read_bytes() == (whole / "negatives.arrow").read_bytes()
