"""Settings of a published model, of a training and of a checkpoint, without a model and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from lamra.common.errors import UserError
from lamra.models.settings import Settings, default_settings, settings_to_rerank, settings_to_train


@pytest.fixture
def model(tmp_path):
    """A folder of a published model of this type: config.json alone."""

    def folder(model_type: str):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        return tmp_path

    return folder


@pytest.mark.parametrize(("model_type", "positions"), [("qwen2_vl", "sequential"), ("qwen2_5_vl", "mrope")])
def test_a_published_model_is_used_as_lamra_trained_its_type(model, model_type, positions):
    folder = model(model_type)
    assert default_settings(folder) == Settings(str(folder), positions)
    assert default_settings(folder, position_ids="mrope", max_pixels=None).position_ids == "mrope"
    reranker = default_settings(folder, "reranker")
    assert (reranker.position_ids, reranker.role, reranker.rank_style) == ("mrope", "reranker", "released")
    trained = settings_to_rerank(
        folder, rank_style="released", position_ids=None, train_position_ids=None, text_max_tokens=256
    )
    assert trained.position_ids == "mrope"
    assert trained.train_position_ids == (None if positions == "mrope" else positions)


def test_a_training_on_a_checkpoint_goes_on_with_its_settings(model, tmp_path):
    folder = model("qwen2_vl")
    Settings("base", "mrope", max_pixels=200 * 28 * 28).write(folder)
    settings = settings_to_train(folder, text_max_tokens=77, temperature=0.1, position_ids=None, max_pixels=None)
    assert (settings.position_ids, settings.max_pixels, settings.base_model) == ("mrope", 200 * 28 * 28, str(folder))
    with pytest.raises(UserError, match="--position_ids sequential contradicts the checkpoint .* trained with mrope"):
        settings_to_train(folder, text_max_tokens=77, temperature=0.1, position_ids="sequential")


def test_special_tokens_are_plain_in_new_trainings_and_special_where_nothing_says_it(model, tmp_path):
    folder = model("qwen2_vl")
    assert default_settings(folder).special_tokens_in_text == "special"  # as released
    assert default_settings(folder, special_tokens_in_text="plain").special_tokens_in_text == "plain"
    options = dict(text_max_tokens=77, temperature=0.1)
    ranks = dict(rank_style="released", position_ids=None, train_position_ids=None, text_max_tokens=256)
    for given, trained in ((None, "plain"), ("plain", "plain"), ("special", "special")):
        for settings in (
            settings_to_train(folder, **options, special_tokens_in_text=given),
            settings_to_rerank(folder, **ranks, special_tokens_in_text=given),
        ):
            assert settings.special_tokens_in_text == trained
    (tmp_path / "lamra.json").write_text(json.dumps({"base_model": "b", "position_ids": "sequential"}))  # an older one
    assert settings_to_train(folder, **options).special_tokens_in_text == "special"
    assert settings_to_rerank(folder, **ranks).special_tokens_in_text == "special"
    with pytest.raises(UserError, match="--special_tokens_in_text plain contradicts the checkpoint .* with special"):
        settings_to_train(folder, **options, special_tokens_in_text="plain")
    (tmp_path / "lamra.json").write_text(
        '{"base_model": "b", "position_ids": "mrope", "special_tokens_in_text": "odd"}'
    )
    with pytest.raises(UserError, match="--special_tokens_in_text odd: expected plain or special"):
        Settings.read(folder)


def test_pictures_are_turned_only_where_the_training_said_so(model, tmp_path):
    folder, options = model("qwen2_vl"), dict(text_max_tokens=77, temperature=0.1)
    for given, turned in ((None, False), (False, False), (True, True)):
        assert settings_to_train(folder, **options, exif_rotation=given).exif_rotation is turned
    settings_to_train(folder, **options, exif_rotation=True).write(folder)
    assert settings_to_train(folder, **options).exif_rotation
    with pytest.raises(UserError, match="--exif_rotation False contradicts the checkpoint .* trained with True"):
        Settings.read(folder).with_flags(folder, exif_rotation=False)


def test_what_cannot_be_used_is_refused_in_a_sentence(model, tmp_path):
    with pytest.raises(UserError, match="config.json is missing"):
        default_settings(tmp_path)
    with pytest.raises(UserError, match="holds a .llama. model: supported are Qwen2-VL"):
        default_settings(model("llama"))
    with pytest.raises(UserError, match=r"--min_pixels 3136: expected 1 to --max_pixels \(100\)"):
        default_settings(model("qwen2_vl"), max_pixels=100)
    (tmp_path / "lamra.json").write_text('{"unknown": 1}')
    with pytest.raises(UserError, match=r"lamra\.json is not a checkpoint's settings"):
        Settings.read(tmp_path)


def test_flags_are_checked_before_torch_is_imported():
    modules = "base_model, digests, folders, saving, settings"
    code = f"import sys; from lamra.models import {modules}; print(sys.modules.keys() & {{'torch', 'transformers'}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"position_ids": None}, "position_ids None: expected text"),
        ({"position_ids": "rope"}, "position_ids rope: expected sequential or mrope"),
        ({"min_pixels": "4"}, "min_pixels 4: expected a whole number"),
        ({"min_pixels": True}, "min_pixels True: expected a whole number"),
        ({"max_pixels": 1e300}, "max_pixels 1e+300: expected a whole number"),
        ({"temperature": float("nan")}, "temperature nan: expected a finite number"),
        ({"temperature": 0}, "temperature 0: expected more than 0"),
        ({"role": "judge"}, "role judge: expected retriever or reranker"),
        ({"quantized": "yes"}, "quantized yes: expected True or False"),
        ({"base_model": 7}, "base_model 7: expected text"),
        ({"trust": 1}, "unexpected keyword argument 'trust'"),
        ([], "must be a mapping"),
        (b"\xff", "can't decode byte 0xff"),
        (b"[" * 100_000, "maximum recursion depth"),
    ],
)
def test_what_a_checkpoint_remembers_is_checked_as_flags_are(tmp_path, content, words):
    good = asdict(Settings("base", "mrope"))
    Settings("base", "mrope").write(tmp_path)
    assert Settings.read(tmp_path) == Settings("base", "mrope")
    if isinstance(content, dict):
        content = good | content
    path = tmp_path / "lamra.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError) as error:
        Settings.read(tmp_path)
    assert str(path) in str(error.value) and words in str(error.value)
