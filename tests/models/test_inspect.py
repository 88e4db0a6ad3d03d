"""The inspection of a folder: shapes as transformers makes them, the published files, what it prints, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import call

from lamra.models import inspect
from lamra.models.inspect import inspect_processor
from lamra.models.template import template_fault


def test_published_files_are_sound(shared):
    template = inspect_processor(shared / "data/qwen2vl_processor")
    assert template_fault(template) is None and len(template) > 1000


def test_it_says_what_a_folder_holds_without_torch(tiny_model):
    code = "import sys; from lamra.models.inspect import main; main(); print(sys.modules.keys() & {'torch', 'peft'})"
    command = [sys.executable, "-c", code, str(tiny_model)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "qwen2_vl: 1." in printed and " M weights in float32; 4 layers, 128 wide" in printed
    assert "settings: none" in printed and printed.endswith("nothing is wrong with it\nset()\n")


def test_it_says_what_an_adapter_changes(tiny_model, golden_folder, golden_adapter, fails, monkeypatch, capsys):
    monkeypatch.setattr(inspect, "inspect_processor", lambda folder: None)  # the golden model has no tokenizer
    call(inspect.main, golden_adapter, "--original_model_id", golden_folder)
    assert "LoRA of rank 8, alpha 16, on 14 linears" in capsys.readouterr().out
    assert "does not fit the base model" in fails(inspect.main, golden_adapter, "--original_model_id", tiny_model)


@pytest.mark.parametrize("what", ["range(9)", "'a' * 9", "x.replace('a', 'aa')", "x | replace('a', 'aa')", "9 ** 9"])
def test_a_template_that_may_grow_is_not_run(what):
    assert "is not run" in template_fault("{% for message in messages %}{{ " + what + " }}{% endfor %}")


def test_a_tokenizer_that_asks_for_files_elsewhere_is_refused(tiny_model, tmp_path):
    for path in tiny_model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    inspect_processor(tmp_path)
    config = json.loads((tiny_model / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_file": "/etc/passwd"}))
    with pytest.raises(ValueError, match=r"tokenizer_config.json names a file \(tokenizer_file '/etc/passwd'\)"):
        inspect_processor(tmp_path)
