"""Every training flag is honoured, noted as meaningless here, or refused by name; nothing to learn is refused too."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import transformers
from conftest import ROOT
from transformers import HfArgumentParser

from lamra.common.cli import parser_of
from lamra.models.settings import Settings
from lamra.train import inherited, train_nli
from lamra.train.arguments import TrainingArguments
from lamra.train.flags import (
    CONTRASTIVE,
    DataArguments,
    MBEIRDataArguments,
    ModelArguments,
    RerankModelArguments,
    RerankTrainingFlags,
)
from lamra.train.record import CANNOT_CHANGE, DECISIVE, check_unchanged, run_record

HERE = {argument.name for argument in fields(transformers.TrainingArguments)}


@pytest.fixture
def make(tmp_path):
    def make(kind=TrainingArguments, **flags):
        return kind(**({"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"} | flags))

    return make


def test_what_becomes_of_each_inherited_argument_is_said():
    """A new version of transformers that adds an argument fails here: put it into one of the three tables."""
    tables = (inherited.HONOURED, inherited.NOTED, inherited.REFUSED)
    assert HERE - set().union(*tables) == set()
    assert sum(map(len, tables)) == len(set().union(*tables))
    assert (ROOT / "docs" / "flags.md").read_text() == inherited.table()


def test_inherited_flags_are_parsed_as_transformers_own():
    """The light table stands in for transformers.TrainingArguments, whose import takes seconds."""
    ours, theirs = (
        {tuple(action.option_strings): action for action in parser(kind)._actions}
        for parser, kind in ((parser_of, inherited.InheritedFlags), (HfArgumentParser, transformers.TrainingArguments))
    )
    assert list(ours) == list(theirs)
    long_lists = {"lr_scheduler_type", "optim", "hub_strategy"}  # their values are transformers' own to refuse
    refused_anyway = {"parallelism_config", "debug"}
    for options, action in theirs.items():
        mine = ours[options]
        if action.dest in refused_anyway:
            continue
        assert (mine.dest, mine.default, mine.const) == (action.dest, action.default, action.const)
        if action.dest in long_lists:
            assert mine.type is str and mine.choices is None
        else:
            assert mine.nargs == action.nargs and (mine.type == action.type or action.choices)
            assert set(mine.choices or ()) == set(action.choices or ()), action.dest


def other_than_default(name: str):
    (argument,) = (argument for argument in fields(TrainingArguments) if argument.name == name)
    if isinstance(argument.default, bool):
        return not argument.default
    return {"ddp_find_unused_parameters": False, "local_rank": 0, "include_for_metrics": ["loss"]}.get(name, "x")


@pytest.mark.parametrize("name", sorted(HERE & set(inherited.REFUSED)))
def test_what_cannot_be_honoured_is_refused(make, name):
    value = other_than_default(name)
    with pytest.raises(ValueError) as error:
        make(**{name: value})
    given = "" if name == "hub_token" else f" {value}"
    assert str(error.value) == f"--{name}{given}: {inherited.REFUSED[name]}; leave the flag out"


@pytest.mark.parametrize("name", sorted(HERE & set(inherited.NOTED)))
def test_what_means_nothing_here_is_noted(make, capsys, name):
    value = other_than_default(name)
    make(**{name: value})
    assert capsys.readouterr().out == f"note: --{name} {value} is ignored: {inherited.NOTED[name]}\n"


NAN, INF = float("nan"), float("inf")
LEARNT = {"learn_temperature": True}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"adam_epsilon": 0.0}, "--adam_epsilon 0.0: expected 1.17549e-38 to 1"),
        ({"adam_epsilon": 1e-60}, "--adam_epsilon 1e-60: expected 1.17549e-38 to 1"),
        ({"adam_beta2": 1.0}, "--adam_beta2 1.0: expected 0 or more and below 1"),
        ({"learning_rate": 0.0}, "--learning_rate 0.0: expected more than 0 and at most 100"),
        ({"num_train_epochs": 0.0}, "--num_train_epochs 0.0: expected more than 0"),
        ({"num_train_epochs": -1.0}, "--num_train_epochs -1.0"),
        ({"gradient_accumulation_steps": -1}, "--gradient_accumulation_steps -1: expected 1 to 1048576"),
        ({"max_steps": 0}, "--max_steps 0: expected 1 or more, or -1"),
        ({"max_steps": -2}, "--max_steps -2"),
        ({"weight_decay": -0.1}, "--weight_decay -0.1: expected 0 to 100"),
        ({"max_grad_norm": -1.0}, "--max_grad_norm -1.0: expected 0 or more"),
        ({"optim": "x"}, "--optim x: expected one of adamw_torch, "),
        ({"lr_scheduler_type": "x"}, "--lr_scheduler_type x: expected one of linear, cosine, "),
        ({"optim": "galore_adamw"}, "--optim galore_adamw --optim_args None: "),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "--lr_scheduler_type reduce_lr_on_plateau: expected another"),
        ({"report_to": "nowhere"}, "--report_to nowhere: expected one that is installed"),
        ({"metric_for_best_model": "loss"}, "--metric_for_best_model loss: expected recall@1 or accuracy"),
        ({"greater_is_better": False}, "--greater_is_better False: expected True"),
        ({"load_best_model_at_end": True}, "--load_best_model_at_end True needs --eval_strategy steps or epoch"),
        ({"early_stopping_patience": 2}, "--early_stopping_patience 2 needs --eval_strategy steps or epoch"),
        ({"save_strategy": "best"}, "--save_strategy best needs --eval_strategy steps or epoch"),
        (
            dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=4),
            "it evaluates every steps 2 and saves every steps 4; make them equal",
        ),
        ({"fp16": True}, "--fp16 True needs a CUDA GPU"),
        ({"resume": "a", "resume_from_checkpoint": "b"}, "--resume_from_checkpoint b: expected the same as --resume a"),
        ({"deepspeed": '{"bf16": {"check_grad_overflow": false}}'}, '"check_grad_overflow": false in "bf16" writes'),
        ({"deepspeed": "README.md"}, "--deepspeed README.md is no json"),
        ({"false_negative_margin": -0.1}, "--false_negative_margin -0.1: expected 0 to 2"),
        ({"false_negative_above": 1.0}, "--false_negative_above 1.0: expected more than 0 and below 1"),
        ({"hardness_weight": -9.0}, "--hardness_weight -9.0: expected 0 to 100"),
        ({"temperature_lr": 0.1}, "--temperature_lr 0.1 needs --learn_temperature True"),
        (LEARNT | {"temperature_lr": 0.0}, "--temperature_lr 0.0: expected more than 0 and at most 100"),
        (LEARNT | {"temperature_min": 0.5, "temperature_max": 0.1}, "--temperature_min 0.5: expected less than --temp"),
        (LEARNT | {"temperature": 2.0}, "--temperature 2.0: expected 0.01 to 1.0, --temperature_min and --temperature"),
        (LEARNT | {"deepspeed": '{"optimizer": {"type": "Adam"}}'}, 'has an "optimizer" of its own, which knows no'),
        *(
            ({argument.name: value}, f"--{argument.name} {value}: expected a finite number")
            for argument in fields(TrainingArguments)
            if argument.type in (float, "float") and argument.name not in inherited.REFUSED
            for value in (NAN, INF)
        ),
    ],
)
def test_a_value_with_which_nothing_can_be_learnt_is_refused(make, monkeypatch, flags, words):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError) as error:
        make(**flags)
    assert words in str(error.value)


def test_what_users_ask_for_is_accepted(make):
    assert make(resume_from_checkpoint="True").resume == "auto"
    assert make(resume_from_checkpoint="x/checkpoint-5").resume == "x/checkpoint-5"
    args = make(early_stopping_patience=2, eval_strategy="epoch")
    assert args.load_best_model_at_end and args.metric_for_best_model == "recall@1" and args.greater_is_better
    make(save_strategy="best", eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_accuracy")
    for optim in ("adafactor", "sgd", "adamw_torch", "rmsprop"):
        make(optim=optim)
    make(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs='{"min_lr": 1e-5}')


def test_a_reranker_has_no_contrastive_loss(make):
    with pytest.raises(ValueError, match="--temperature 0.1: expected no value: a reranker's loss has none"):
        make(RerankTrainingFlags, temperature=0.1)
    for name, value in {"learn_temperature": True, "symmetric_loss": True, "false_negative_margin": 0.0}.items():
        with pytest.raises(ValueError, match=f"--{name} {value}: expected no value: only the loss of stages 1 and 2"):
            make(RerankTrainingFlags, **{name: value})
    with pytest.raises(ValueError, match="--last_token_only False: expected no value"):
        RerankModelArguments(last_token_only=False)


def test_data_from_which_nothing_can_be_learnt(fails, no_model, world, tiny_model, tmp_path):
    def refused(*, content=None, **flags):
        path = world / "nli.csv"
        if content:
            path = tmp_path / "data.csv"
            path.write_text("sent0,sent1,hard_neg\n" + content)
        named = dict(model_id="miniature", model_local_path=tiny_model, data_path=path, output_dir=tmp_path / "o")
        return fails(train_nli.main, **(named | dict(per_device_train_batch_size=8) | flags))

    assert "--per_device_train_batch_size 1 on 1 process: a pair alone has no" in refused(per_device_train_batch_size=1)
    assert "nothing to learn from" in refused(content="a,b,c\n" * 8)
    assert "data.csv: its 8 targets are all the same" in refused(content="".join(f"q{i},b,b\n" for i in range(8)))
    assert "has no row with sent0 and sent1 and hard_neg" in refused(content="a,b,\n" * 8, use_hard_negatives=True)
    assert "--lora_alpha 0: expected 1 to 1048576" in refused(lora_alpha=0)
    best = dict(eval_strategy="epoch", load_best_model_at_end=True)
    assert "the best checkpoint by --metric_for_best_model recall@1 needs pairs to evaluate on" in refused(**best)


def test_what_decides_a_result_is_recorded(make, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = make(lr_scheduler_kwargs='{"num_cycles": 1}', optim_args="a=b", data_seed=3)
    args.deepspeed = "ds_configs/zero2.json"
    data, settings = {"path": "nli.csv", "sha256": "x"}, Settings("base", "sequential")
    record = run_record(settings, data, ModelArguments(), DataArguments(image_root="p"), args)
    assert record["lr_scheduler_kwargs"] == {"num_cycles": 1} and record["optim_args"] == "a=b"
    assert record["image_root"] == "p" and record["dataloader_drop_last"] is True and record["tf32"] is None
    assert record["deepspeed"] == "zero2.json" and record["model_max_length"] == 1024
    assert record["deepspeed_config"] == json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    for stage in (2, 3):
        config = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
        assert config["bf16"]["check_grad_overflow"] is True


def test_a_run_from_before_the_options_of_the_loss_goes_on_without_them(make, tmp_path, capsys):
    now = run_record(
        Settings("base", "sequential"), {"path": "nli.csv", "sha256": "x"}, ModelArguments(), DataArguments(), make()
    )
    (tmp_path / "manifest.json").write_text(json.dumps({k: v for k, v in now.items() if k not in CONTRASTIVE}))
    check_unchanged(tmp_path, now, allow_changes=False)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="learn_temperature was False and is True; set them back$"):
        check_unchanged(tmp_path, now | {"learn_temperature": True}, allow_changes=True)


def test_an_older_run_goes_on_with_special_tokens_in_texts_as_it_began(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    groups = [ModelArguments(), DataArguments(), MBEIRDataArguments(), make()]
    special = run_record(Settings("base", "sequential"), {"path": "nli.csv", "sha256": "x"}, *groups)
    before = {name: value for name, value in special.items() if name != "special_tokens_in_text"}
    (tmp_path / "manifest.json").write_text(json.dumps(before))
    check_unchanged(tmp_path, special, allow_changes=False)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="special_tokens_in_text was special and is plain"):
        check_unchanged(tmp_path, special | {"special_tokens_in_text": "plain"}, allow_changes=False)


@pytest.mark.parametrize(
    "flag", sorted(DECISIVE | {"max_pixels", "position_ids", "temperature", "text_max_tokens", "matryoshka_dims"})
)
def test_what_decides_a_result_may_not_change_at_a_resume(make, tmp_path, monkeypatch, capsys, flag):
    monkeypatch.chdir(ROOT)
    settings, data = Settings("base", "sequential"), {"path": "nli.csv", "sha256": "x"}
    groups = [ModelArguments(), DataArguments(), MBEIRDataArguments(), make()]

    def record() -> dict:
        return run_record(settings, data, *groups)

    (tmp_path / "manifest.json").write_text(json.dumps(record()))
    check_unchanged(tmp_path, record(), allow_changes=False)
    changed = {"deepspeed": "ds_configs/zero2.json", "position_ids": "mrope", "matryoshka_dims": [64]}.get(flag, 4000)
    if flag in vars(settings):
        settings = replace(settings, **{flag: changed})
    else:
        (group,) = (group for group in groups if hasattr(group, flag))
        setattr(group, flag, changed)
    with pytest.raises(ValueError, match=f"belongs to another run: .*{flag} was "):
        check_unchanged(tmp_path, record(), allow_changes=False)
    if flag in CANNOT_CHANGE:
        with pytest.raises(ValueError, match=f"{flag} was .*; set them back$"):
            check_unchanged(tmp_path, record(), allow_changes=True)
    else:
        check_unchanged(tmp_path, record(), allow_changes=True)
        assert f"note: {flag} changes from " in capsys.readouterr().out
