"""Numbers are what they say: no NaN is saved, a shared target is a hit, and looking does not change the training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from training import batch_of

import lamra
from lamra.common.cli import run
from lamra.datasets.items import Item, Pair
from lamra.export import sentence_transformers
from lamra.models.losses import info_nce
from lamra.train import train_nli
from lamra.train.checkpoints import checkpoint_to_resume, checkpoints, commit_checkpoint, fault
from lamra.train.contrastive_trainer import ContrastiveTrainer
from lamra.train.guards.nonfinite import NonFinite
from lamra.train.record import check_unchanged
from lamra.train.trainer import LamRATrainer

EVERY_STEP = "--save_strategy steps --save_steps 1 --save_total_limit 20"


@pytest.fixture
def train(monkeypatch, capsys, world, tiny_model):
    """train_nli.main in this process; returns what it printed, or the sentence with which it stopped."""

    def train(output: Path, flags: str, model: str = "--lora_r 8 --lora_alpha 16 --lora_dropout 0.1") -> str:
        fixed = f"""--model_id miniature --model_local_path {tiny_model} --data_path {world}/nli.csv --report_to none
            --output_dir {output} --per_device_train_batch_size 8 --learning_rate 3e-3 --dataloader_num_workers 0"""
        monkeypatch.setattr(sys, "argv", ["train_nli.py", *f"{fixed} {model} {flags}".split()])
        try:
            run(train_nli.main)
        except SystemExit:
            return capsys.readouterr().err.strip().splitlines()[-1]
        return capsys.readouterr().out

    return train


def weights(folder: Path, name: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# Texts that the model sees otherwise are told at the end.


def test_a_training_tells_its_cut_texts_and_special_tokens_once(train, tmp_path):
    rows = [f'a red circle at the top left,"{word}"' for word in ["a blue box", "<|im_end|>", *["a box"] * 6]]
    (tmp_path / "a.csv").write_text("\n".join(["sent0,sent1", *rows]))
    flags = f"--data_path {tmp_path}/a.csv --max_steps 2 --text_max_tokens 4 --save_strategy no"
    for given, kind in (("", "plain"), ("--special_tokens_in_text special", "special")):
        printed = train(tmp_path / kind, f"{flags} {given}")
        notes = [line for line in printed.splitlines() if "texts are" in line]
        assert "after the cut" not in printed  # what was equal before it is no news
        cut = 9 if kind == "plain" else 8  # the letters of <|im_end|> are more than 4 tokens
        assert notes[0].startswith(f"note: {cut} texts are cut after --text_max_tokens: 0.sent0, 1.sent0, ")
        assert [note.rpartition(": ")[2] for note in notes[1:]] == ["1.sent1"] * (kind == "special")
        assert json.loads((tmp_path / kind / "lamra.json").read_text())["special_tokens_in_text"] == kind


def test_a_checkpoint_remembers_attention_and_pooling(train, fails, world, tmp_path):
    """Trained, gone on from, evaluated and merged: with what the first command said, which later ones cannot change."""
    flags = "--max_steps 3 --save_strategy steps --save_steps 2 --grad_cache_chunk 4"
    chosen = "--attention bidirectional --pooling mean"
    train(tmp_path / "a", f"{flags} {chosen}")
    ours = weights(tmp_path / "a")
    again = train(tmp_path / "a", f"{flags} --force True --resume_from_checkpoint {tmp_path}/a/checkpoint-2")
    assert "attention was bidirectional and is causal, pooling was mean and is last_token" in again
    train(tmp_path / "c", f"{flags} {chosen} --resume_from_checkpoint {tmp_path}/a/checkpoint-2")
    assert equal(weights(tmp_path / "c"), ours)
    settings = json.loads((tmp_path / "a" / "lamra.json").read_text())
    assert (settings["attention"], settings["pooling"]) == ("bidirectional", "mean")
    model = lamra.load(tmp_path / "a", dtype=torch.float32, device="cpu")
    items = [Item(str(i), text) for i, text in enumerate(["a red circle", "a blue box at the left", "x"])]
    alone = torch.cat([model.encode([item], None) for item in items])
    torch.testing.assert_close(model.encode(items, None), alone, atol=1e-6, rtol=0)
    assert model.embedder.pooling == "mean" and not model.embedder.causal
    said = train(tmp_path / "d", f"{flags} {chosen} --share_prefix True")
    assert "--share_prefix True needs --attention causal, and the model has bidirectional" in said
    assert "was trained with --attention bidirectional" in fails(
        sentence_transformers.main, model_id=tmp_path / "a", save_path=tmp_path / "export"
    )


# Looking does not change the training.


def test_evaluating_saving_and_logging_change_no_bit(train, world, tmp_path):
    train(tmp_path / "plain", "--max_steps 4 --save_strategy no --logging_steps 4")
    train(
        tmp_path / "watched",
        f"""--max_steps 4 --save_strategy steps --save_steps 2 --eval_data_path {world}/nli_eval.csv
        --eval_on_start True --eval_strategy steps --eval_steps 1 --include_num_input_tokens_seen True
        --skip_memory_metrics False --logging_first_step True --torch_empty_cache_steps 2 --disable_tqdm True""",
    )
    assert equal(weights(tmp_path / "plain"), weights(tmp_path / "watched"))


# The best checkpoint.


def test_the_best_checkpoint_is_kept_and_training_stops_early(train, monkeypatch, world, tmp_path):
    recalls = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.9, 5: 0.2, 6: 0.95}

    def evaluate(self, ignore_keys=None):
        metrics = {"eval_recall@1": recalls[self.state.global_step], "eval_accuracy": 0.0}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    monkeypatch.setattr(ContrastiveTrainer, "evaluate", evaluate)
    output = tmp_path / "run"
    flags = f"""--max_steps 6 --save_strategy steps --save_steps 1 --save_total_limit 1 --early_stopping_patience 3
        --eval_data_path {world}/nli_eval.csv --eval_strategy steps --eval_steps 1"""
    assert "note: the weights are those of step 2: recall@1 0.9000" in train(output, flags)
    assert [path.name for path in checkpoints(output)] == ["checkpoint-5", "checkpoint-2"]
    best = weights(output / "checkpoint-2")
    assert equal(weights(output), best) and not equal(weights(output / "checkpoint-5"), best)
    state = json.loads((output / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(output / "checkpoint-2")

    shutil.rmtree(output / "checkpoint-5")
    assert "step 2: recall@1 0.9000" in train(output, f"{flags} --resume_from_checkpoint True")
    assert [path.name for path in checkpoints(output)] == ["checkpoint-5", "checkpoint-2"]
    assert equal(weights(output), best)


# No weight that is not finite is saved.


@pytest.mark.parametrize(("flags", "last"), [(EVERY_STEP, "checkpoint-2"), ("--save_strategy no", None)])
def test_an_update_that_breaks_the_weights_is_not_saved(train, monkeypatch, tmp_path, flags, last):
    steps, step = [], torch.optim.AdamW.step

    def breaking(self, *args, **kwargs):
        step(self, *args, **kwargs)
        steps.append(1)
        if len(steps) == 3:
            self.param_groups[0]["params"][5].data[0, 0] = torch.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    error = train(tmp_path / "run", f"--max_steps 3 {flags}")
    assert error.startswith("error: step 3: trained weights are not finite after the update, such as model.base_model.")
    where = f"The last checkpoint is {tmp_path}/run/{last}" if last else "There is no checkpoint to go on from"
    assert error.endswith(where) and not (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert all(fault(checkpoint) is None for checkpoint in checkpoints(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoint-3").exists()


def write_checkpoint(folder: Path, step: int, value: float, **record) -> Path:
    partial = folder / ".partial"
    partial.mkdir(parents=True)
    save_file({"w": torch.tensor([1.0, value])}, partial / "adapter_model.safetensors")
    commit_checkpoint(partial, folder / f"checkpoint-{step}", record=record, keep=None)
    return folder / f"checkpoint-{step}"


def test_what_is_no_checkpoint_to_go_on_from(tmp_path):
    good = write_checkpoint(tmp_path, 1, 0.0)
    model = write_checkpoint(tmp_path, 2, 0.0, save_only_model=True)
    broken = write_checkpoint(tmp_path, 3, torch.nan)
    assert checkpoint_to_resume(tmp_path, "auto") == str(good)
    with pytest.raises(ValueError, match="adapter_model.safetensors: the weights w are not finite; give a complete"):
        checkpoint_to_resume(tmp_path, str(broken))
    with pytest.raises(ValueError, match="it was saved with --save_only_model True: no run can go on from it"):
        checkpoint_to_resume(tmp_path, str(model))


def test_an_older_checkpoint_is_gone_on_from_and_a_changed_config_is_not(tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path, 1, 0.0, seed=1, deepspeed_config={"a": 1})
    check_unchanged(checkpoint, {"seed": 1, "tf32": None, "image_root": "p"}, allow_changes=False)
    assert "is of an older version and does not say its tf32, image_root: they are not" in capsys.readouterr().out
    with pytest.raises(ValueError, match="deepspeed_config was {'a': 1} and is {'a': 2}"):
        check_unchanged(checkpoint, {"seed": 1, "deepspeed_config": {"a": 2}}, allow_changes=False)


def test_after_a_skipped_update_the_loss_is_shown_again_and_a_resumed_run_remembers(train, monkeypatch, tmp_path):
    compute_loss, steps = ContrastiveTrainer.compute_loss, (2, 4)

    def faulty(self, model, inputs, **kwargs):
        loss = compute_loss(self, model, inputs, **kwargs)
        return loss * torch.nan if self.state.global_step + 1 in steps else loss

    monkeypatch.setattr(ContrastiveTrainer, "compute_loss", faulty)
    output = tmp_path / "run"
    flags = f"--max_steps 6 {EVERY_STEP} --on_nonfinite skip --max_nonfinite 1"
    assert "step 4: more than --max_nonfinite 1 updates were not finite" in train(output, flags)
    history = json.loads((output / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    assert np.isfinite([entry["loss"] for entry in history]).tolist() == [True, False, True]
    assert "step 4: more than --max_nonfinite 1 updates were not finite" in train(output, f"{flags} --resume auto")


def test_an_overflow_of_fp16_is_noted_while_its_scale_can_be_lowered(capsys, monkeypatch):
    """A stand-in for the Trainer: fp16 itself needs a GPU."""
    trainer = object.__new__(LamRATrainer)
    scale = 2.0
    trainer.args = SimpleNamespace(fp16=True, on_nonfinite="skip", max_nonfinite=0, output_dir="nowhere")
    trainer.state, trainer.is_deepspeed_enabled = SimpleNamespace(global_step=4), False
    trainer.nonfinite = NonFinite(trainer.args)
    trainer.accelerator = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: scale))
    monkeypatch.setattr("transformers.Trainer._get_grad_norm", lambda *_: torch.inf)
    assert trainer._get_grad_norm(None) == torch.inf and trainer.nonfinite.skipped == 0
    assert "note: step 5: fp16 overflows, the loss scale 2 is lowered" in capsys.readouterr().out
    scale = 1.0
    with pytest.raises(ValueError, match="step 5: more than --max_nonfinite 0 updates were not finite"):
        trainer._get_grad_norm(None)


# Going on.


def test_a_run_that_trains_the_whole_model_goes_on(train, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = "--max_steps 3 --save_strategy steps --save_steps 2"
    train(whole, flags, model="--use_lora False")
    broken.mkdir()
    shutil.copytree(whole / "checkpoint-2", broken / "checkpoint-2")
    assert "going on from" in train(broken, f"{flags} --resume auto", model="--use_lora False")
    assert equal(*(weights(folder, "model.safetensors") for folder in (whole, broken)))


# A temperature that is trained, with all else that the loss may have.

LEARNT = """--learn_temperature True --temperature_lr 0.3 --temperature_min 0.03 --symmetric_loss True
    --false_negative_margin 0.1 --hardness_weight 9 --grad_cache_chunk 5"""


def temperatures(checkpoint: Path) -> list[float]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert all(0 <= entry["false_negatives"] < 1 for entry in history)
    return [entry["temperature"] for entry in history]


def test_a_learnt_temperature_is_kept_and_gone_on_with(train, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, f"--max_steps 4 {EVERY_STEP} {LEARNT}")
    seen = temperatures(whole / "checkpoint-4")
    assert pytest.approx(seen[0], rel=1e-7) == 0.05 and seen[0] > seen[1] > seen[2] and seen[3] >= 0.03
    for step in (1, 2, 3):  # what a checkpoint says is what the next step computes with
        learnt = json.loads((whole / f"checkpoint-{step}" / "lamra.json").read_text())["temperature"]
        assert learnt == pytest.approx(seen[step], rel=1e-6)
    assert not any("temperature" in name for name in weights(whole))

    shutil.copytree(whole / "checkpoint-2", broken / "checkpoint-2")
    going_on = f"--max_steps 4 {EVERY_STEP} --resume auto"
    assert "learn_temperature was True and is False" in train(broken, going_on)
    assert "hardness_weight was 9.0 and is 8.0" in train(broken, f"{going_on} {LEARNT} --hardness_weight 8")
    manifest = broken / "checkpoint-2" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace('"temperature.offset"', '"x"'))
    assert "checkpoint-2 has no learnt temperature" in train(broken, f"{going_on} {LEARNT}")
    manifest.write_text(before)
    train(broken, f"{going_on} {LEARNT}")
    assert temperatures(broken / "checkpoint-4") == seen
    assert equal(weights(whole), weights(broken))
    assert (whole / "lamra.json").read_text() == (broken / "lamra.json").read_text()
    groups = torch.load(whole / "checkpoint-4" / "optimizer.pt")["param_groups"]
    assert [(group["initial_lr"], group["weight_decay"], len(group["params"])) for group in groups][-1] == (0.3, 0, 1)


# A shared target is a hit.

CAPTIONS, PICTURE = [f"caption {i}" for i in range(5)], "0.png"


def embeddings_of_a_perfect_model(items: list[Item]) -> torch.Tensor:
    """One direction for the picture and its captions, another for all else; nothing tells equal ones apart."""
    belongs = torch.tensor([(item.text or "").startswith("caption") or bool(item.images) for item in items])
    return torch.stack([belongs, ~belongs], dim=1).float()


@pytest.mark.parametrize("picture_is", ["target", "query"])
def test_a_target_of_the_same_content_is_a_hit(tiny_model, monkeypatch, picture_is):
    captions = [Item(f"c{i}", text) for i, text in enumerate(CAPTIONS)]
    pictures = [Item(f"p{i}", images=(PICTURE,)) for i in range(5)]
    sides = (captions, pictures) if picture_is == "target" else (pictures, captions)
    pairs = [Pair(Item("x", "else"), Item("y", "other"))] + [Pair(*both) for both in zip(*sides)]

    trainer = object.__new__(ContrastiveTrainer)
    trainer.model, trainer.eval_dataset = SimpleNamespace(context_length=9), pairs
    trainer.processing_class = SimpleNamespace(for_evaluation=lambda _length: None)
    trainer.state, trainer.control = None, None
    trainer.args = SimpleNamespace(
        per_device_train_batch_size=3,
        world_size=1,
        model_max_length=9,
        per_device_eval_batch_size=1,
        dataloader_num_workers=0,
    )
    trainer.callback_handler = SimpleNamespace(on_evaluate=lambda *_: None)
    trainer.throughput = SimpleNamespace(restart_clock=lambda: None)
    trainer.log = lambda _metrics: None
    monkeypatch.setattr(
        "lamra.train.contrastive_trainer.encode", lambda _m, _p, items, **_: embeddings_of_a_perfect_model(items)
    )
    assert trainer.evaluate() == {"eval_accuracy": 1.0, "eval_recall@1": 1.0}

    texts = [Pair(*(Item(i.id, i.text or PICTURE) for i in (pair.query, pair.target))) for pair in pairs]
    batch = batch_of(tiny_model, texts, list(range(6)))
    query, target = (embeddings_of_a_perfect_model([getattr(p, side) for p in pairs]) for side in ("query", "target"))
    plain = info_nce(query, target, 0.05, batch["item_ids"])
    counted = info_nce(query, target, 0.05, batch["item_ids"], batch["hit_ids"])
    assert plain.loss == counted.loss and counted.accuracy == 1 > plain.accuracy
    other = query.clone()
    other[1] = 1 - other[1]  # answers with what belongs to another query
    assert info_nce(other, target, 0.05, batch["item_ids"], batch["hit_ids"]).accuracy == pytest.approx(5 / 6)
    # A hard negative that looks like the query is no hit.
    hit_ids = torch.tensor([1, 2, 11, 12, 1, 21])
    negative = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    two = torch.eye(2)
    targets = torch.cat([two * 0.5, negative])
    assert info_nce(two, targets, 0.05, torch.arange(6), hit_ids).accuracy == 0


# What stands in for a faulty row.
