"""What of a reranker is trained, and what it remembers."""

from __future__ import annotations

import shutil

import pytest

from lamra.models.digests import model_sha256
from lamra.models.settings import Settings, settings_to_rerank, settings_to_train
from lamra.train.arguments import training_arguments
from lamra.train.build import build_embedder, build_reranker
from lamra.train.flags import ModelArguments, RerankTrainingFlags


def test_what_is_trained_in_full(tiny_model):
    """Without LoRA a reranker learns the words of its answers too; an embedder has no use for them."""
    args = training_arguments(RerankTrainingFlags(output_dir="x", use_cpu=True))
    flags = ModelArguments(use_lora=False)
    for build, trained in ((build_reranker, True), (build_embedder, False)):
        model = build(tiny_model, flags, args, Settings("base", "mrope")).stock
        assert model.lm_head.weight.requires_grad is trained and model.get_input_embeddings().weight.requires_grad
        assert not any(parameter.requires_grad for parameter in model.model.visual.parameters())


def test_a_reranker_goes_its_own_way_from_a_retriever(tiny_model, tmp_path):
    merged = shutil.copytree(tiny_model, tmp_path / "merged")
    kept = dict(max_pixels=28 * 28 * 100, text_max_tokens=480)
    Settings("base", "sequential", attention="bidirectional", pooling="mean", **kept).write(merged)
    flags = dict(rank_style="clean", text_max_tokens=256, min_pixels=None, max_pixels=None, train_position_ids=None)
    settings = settings_to_rerank(merged, position_ids=None, **flags)
    as_retriever = dict(text_max_tokens=256, role="reranker", rank_style="clean", max_pixels=28 * 28 * 100)
    as_retriever |= dict(base_model=str(merged), base_sha256=model_sha256(merged))
    assert settings == Settings(position_ids="mrope", train_position_ids="sequential", **as_retriever)  # as upstream
    both = settings_to_rerank(merged, position_ids=None, **flags | {"train_position_ids": "mrope"})
    assert both == Settings(position_ids="mrope", **as_retriever)  # as this project's first rerankers remember
    asked = settings_to_rerank(merged, position_ids="sequential", **flags)
    assert asked == Settings(position_ids="sequential", **as_retriever)
    with pytest.raises(ValueError, match="--max_pixels 784 contradicts the checkpoint"):
        settings_to_rerank(merged, position_ids=None, **flags | {"max_pixels": 784})
    settings.write(merged)
    with pytest.raises(ValueError, match="merged is a reranker, and a retriever is needed: give a retriever here"):
        settings_to_train(merged, text_max_tokens=None, temperature=0.05)
