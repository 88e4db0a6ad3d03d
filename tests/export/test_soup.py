"""A soup is the mean of the weights that its models stand for, as one model that goes on like any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import call, run_script
from full_disk import largest_file
from safetensors.torch import load_file, save_file

from lamra import load
from lamra.eval.zeroshot import evaluate_captions
from lamra.export import greedy, merge_lora, sentence_transformers, soup
from lamra.miniature.model import random_model
from lamra.models import averaging
from lamra.models.digests import model_sha256
from lamra.models.families import FAMILIES
from lamra.models.loading import load_model, load_trained
from lamra.models.lora import add_lora, vision_projector_modules
from lamra.models.settings import Settings
from lamra.models.shapes import todays_name
from lamra.train import train_nli

WEIGHTS = (1, 2, 1)
TEXTS = ["", "a red circle", "A blue square at top left.", "two words"]


def write_base(folder: Path, world: Path, family: str, seed: int = 0) -> Path:
    model, _ = random_model(folder, (world / "nli.csv").read_text().splitlines(), seed, family)
    model.save_pretrained(folder)
    return folder


def write_adapter(folder: Path, base: Path, seed: int, alpha: float = 8, rslora: bool = False, r: int = 4) -> Path:
    """LoRA on both towers and a projector trained in full, with random weights; one linear has a rank of its own."""
    torch.manual_seed(seed)
    stock = load_model(base, dtype=torch.float32)
    model = add_lora(stock, r=r, alpha=alpha, dropout=0.0, vision=True, trained=vision_projector_modules(stock))
    model.save_pretrained(folder, save_embedding_layers=False)
    tensors = load_file(folder / "adapter_model.safetensors")
    own = [name for name in tensors if "layers.0.mlp.up_proj" in name]
    for name in own:
        tensors[name] = torch.cat([tensors[name]] * 2, dim=0 if "lora_A" in name else 1)  # rank 2 r
    random = {name: tensor + 0.05 * torch.randn(tensor.shape) for name, tensor in tensors.items()}
    save_file(random, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    pattern = own[0].removeprefix("base_model.model.").split(".lora_")[0]
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"use_rslora": rslora, "rank_pattern": {pattern: 2 * r}, "alpha_pattern": {pattern: alpha + 1}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    settings = Settings(str(base), FAMILIES[stock.config.model_type].position_ids, base_sha256=model_sha256(base))
    settings.write(folder)
    return folder


def make_soup(output: Path, *models: Path, **flags) -> Path:
    call(soup.main, *models, output_dir=output, **flags)
    return output


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a whole model by today's names."""
    return {todays_name(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}


def embeddings(folder: Path) -> torch.Tensor:
    model = load(folder, dtype=torch.float32, device="cpu")
    return model.encode([*TEXTS, {"text": "both", "instruction": "find it"}], None)


@pytest.fixture(scope="module", params=FAMILIES)
def parts(request, world, tmp_path_factory):
    """Three adapters on a base model: of other scalings, but of the same ranks."""
    folder = tmp_path_factory.mktemp(request.param)
    base = write_base(folder / "base", world, request.param)
    return [
        write_adapter(folder / "a", base, 1),
        write_adapter(folder / "b", base, 2, alpha=3),
        write_adapter(folder / "c", base, 3, rslora=True),
    ]


@pytest.fixture(scope="module")
def pair(world, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return [write_adapter(folder / name, tiny_model, seed) for seed, name in enumerate("ab")]


def test_of_adapters_and_of_merged_models_it_is_the_mean_of_their_weights(parts, tmp_path):
    """Of both kinds tensor by tensor against a sum in float64, and the embeddings of both."""
    merged = []
    for part in parts:
        merged.append(tmp_path / part.name)
        call(merge_lora.main, model_id=part, save_path=merged[-1], dtype="fp32")
    weights = ",".join(map(str, WEIGHTS))
    stacked = make_soup(tmp_path / "stacked", *parts, weights=weights)
    whole = make_soup(tmp_path / "whole", *merged, weights=weights)

    of_parts, of_whole = [stored(folder) for folder in merged], stored(whole)
    of_stacked = load_trained(stacked, dtype=torch.float32)[0].state_dict()
    assert of_stacked.keys() == of_whole.keys()
    untouched = 0
    for name, found in of_stacked.items():
        tensors = [of[name] for of in of_parts]
        wanted = sum(weight / sum(WEIGHTS) * tensor.double() for weight, tensor in zip(WEIGHTS, tensors)).float()
        assert torch.equal(of_whole[name], wanted), name
        if torch.equal(tensors[0], tensors[1]):
            untouched += 1
            assert torch.equal(found, wanted) and torch.equal(tensors[0], wanted)
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert 0 < untouched < len(of_stacked)
    torch.testing.assert_close(embeddings(stacked), embeddings(whole), rtol=0, atol=1e-5)

    # What is wrong with the mean of each factor: it is another matrix.
    files = [load_file(part / "adapter_model.safetensors") for part in parts]
    a = next(name for name in files[0] if "layers.1.mlp.up_proj.lora_A" in name)
    wrong = sum(of[a.replace("lora_A", "lora_B")] for of in files) @ sum(of[a] for of in files) / 9
    product = load_file(stacked / "adapter_model.safetensors")
    right = product[a.replace("lora_A", "lora_B")] @ product[a]
    assert (wrong - right).norm() > 0.1 * right.norm()

    recipe = json.loads((stacked / "soup.json").read_text())
    assert [model["weight"] for model in recipe["models"]] == [0.25, 0.5, 0.25]
    assert [model["sha256"] for model in recipe["models"]] == [model_sha256(part) for part in parts]
    assert Settings.read(stacked) == Settings.read(parts[0])
    assert Settings.read(whole) == Settings.read(merged[0])


def test_it_is_trained_on_merged_and_exported(pair, world, tmp_path):
    stacked = make_soup(tmp_path / "stacked", *pair)
    call(merge_lora.main, model_id=stacked, save_path=tmp_path / "merged", dtype="fp32")
    call(sentence_transformers.main, model_id=stacked, save_path=tmp_path / "export", dtype="fp32")
    flags = dict(model_id="miniature", model_local_path=tmp_path / "merged", data_path=world / "nli.csv")
    flags |= dict(output_dir=tmp_path / "run", max_steps=1, report_to="none", dataloader_num_workers=0)
    call(train_nli.main, per_device_train_batch_size=4, learning_rate=1e-12, lora_r=2, **flags)
    wanted = embeddings(stacked)
    for folder in ("merged", "export", "run"):
        torch.testing.assert_close(embeddings(tmp_path / folder), wanted, rtol=0, atol=1e-5)


def test_whole_models_are_added_exactly_and_rounded_once_in_files_of_a_limited_size(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "SHARD", 100_000)
    merged = []
    for part in pair:
        merged.append(tmp_path / part.name)
        call(merge_lora.main, model_id=part, save_path=merged[-1], dtype="bf16")
    (merged[0] / "trainer_state.json").write_text("{}")
    whole = make_soup(tmp_path / "whole", *merged, weights="3,1")
    weights = [load_file(folder / "model.safetensors") for folder in merged]
    files = sorted(whole.glob("*.safetensors"))
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert len(files) > 2 and found.keys() == weights[0].keys()
    for name, tensor in found.items():
        wanted = (0.75 * weights[0][name].double() + 0.25 * weights[1][name].double()).bfloat16()
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, wanted), name
    assert load_model(whole, dtype=torch.bfloat16) and not (whole / "trainer_state.json").exists()


@pytest.fixture
def variant(pair, tmp_path):
    """A copy of the second model with other settings or another adapter_config.json."""

    def build(config=(), **settings) -> Path:
        folder = shutil.copytree(pair[1], tmp_path / "variant", dirs_exist_ok=True)
        replace(Settings.read(folder), **settings).write(folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(config)))
        return folder

    return build


def test_what_makes_no_soup_is_refused(pair, variant, tiny_model, stage1, world, fails, tmp_path, no_model):
    a, b = pair

    def refused(*words, **flags) -> str:
        return fails(soup.main, *words, **({"output_dir": tmp_path / "out"} | flags))

    assert "a soup is of two models or more, and 1 given" in refused(a)
    assert f"{a} and {a}/. are the same folder" in refused(a, f"{a}/.")
    assert f"{world} is no model" in refused(a, world)
    assert "nowhere is no model" in refused(a, "nowhere")
    assert f"{a} is an adapter and {tiny_model} a whole model: merge" in refused(a, tiny_model)
    assert f"{a} has text_max_tokens None and " in refused(a, variant(text_max_tokens=9))
    assert "has role retriever and" in refused(a, variant(role="reranker", rank_style="released"))
    assert "has attention causal and" in refused(a, variant(attention="bidirectional"))
    assert "were trained on different base models" in refused(a, variant(base_sha256="0" * 64))
    unlike = write_adapter(tmp_path / "unlike", tiny_model, 5, r=2)
    assert f"{a} has LoRA of r 4 and {unlike} of 2" in refused(a, unlike)
    assert f"{stage1} was trained by LamRA and {tiny_model} was not" in refused(tiny_model, stage1)
    for weights in ("1", "1,1,1", "1,0", "1,-1", "1,nan", "1,inf", "a,b", "1,,1", ""):
        assert "--weights" in refused(a, b, f"--weights={weights}")
    full = tmp_path / "full"
    (full / "notes").mkdir(parents=True)
    assert f"--output_dir {full} is not empty" in refused(a, b, output_dir=full)
    assert f"--output_dir {a} is not empty" in refused(a, b, output_dir=a)
    assert "--greedy True: expected --eval captions or mbeir beside it" in refused(a, b, greedy=True)
    assert "--tasks x: expected --greedy True" in refused(a, b, tasks="x")
    assert "--mode finetuned: expected --eval captions" in refused(a, b, greedy=True, eval="mbeir", mode="finetuned")
    assert "--weights 1,2" in refused(a, b, greedy=True, eval="mbeir", weights="1,2")
    assert "--tasks 'x' is unknown" in refused(a, b, greedy=True, eval="mbeir", data_path=world, tasks="x")
    assert "--image_data_path" in refused(a, b, greedy=True, eval="captions", text_data_path=world)
    assert not (tmp_path / "out").exists()


def test_damage_and_a_full_disk_leave_nothing(pair, variant, tiny_model, fails, tmp_path):
    out = tmp_path / "out"
    with largest_file(50_000):
        assert f"error: {out} cannot be written, the disk" in fails(soup.main, *pair, output_dir=out)
    broken = variant()
    tensors = load_file(broken / "adapter_model.safetensors")
    name = next(iter(tensors))
    tensors[name][0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors", metadata={"format": "pt"})
    assert f"{broken}/adapter_model.safetensors holds values that are not finite" in fails(
        soup.main, pair[0], broken, output_dir=out
    )
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"bos_token_id": 3}))
    assert "have not the same bos_token_id in config.json" in fails(soup.main, tiny_model, other, output_dir=out)
    (other / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    text = (other / "preprocessor_config.json").read_text()
    (other / "preprocessor_config.json").write_text(text + " ")
    assert "have not the same preprocessor_config.json" in fails(soup.main, tiny_model, other, output_dir=out)
    assert not out.exists()


def test_greedy_leaves_out_what_makes_it_worse():
    """Worked by hand: 2 is best alone, then 0, 3, 1; with 0 it gets no worse, with 3 it does, with 1 it gets better."""
    recalls = {(0,): 0.6, (1,): 0.1, (2,): 0.7, (3,): 0.6, (2, 0): 0.7, (2, 0, 3): 0.65, (2, 0, 1): 0.8}
    trials = greedy.choose(4, recalls.__getitem__)
    assert trials == [
        ((2,), 0.7, True),
        ((2, 0), 0.7, True),
        ((2, 0, 3), 0.65, False),
        ((2, 0, 1), 0.8, True),
    ]


def test_greedy_measures_by_the_evaluation_and_goes_on_where_it_was_stopped(pair, world, tmp_path, monkeypatch):
    """Stopped after the recalls of both models; two processes finish it, and find what the evaluation script finds."""
    data = dict(image_data_path=world / "val/images", text_data_path=world / "val/captions.json")
    out, measured = tmp_path / "greedy", []
    evaluate = greedy.evaluate_captions_of

    def stopped(args, name):
        measured.append(args.model_id)
        if len(measured) == 3:
            raise KeyboardInterrupt
        evaluate(args, name)

    monkeypatch.setattr(greedy, "evaluate_captions_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_soup(out, *pair, greedy=True, eval="captions", **data)
    assert measured[:2] == list(map(str, pair)) and len(json.loads((out / "soup.json").read_text())["recalls"]) == 2
    flags = ["--greedy", "True", "--eval", "captions", *(part for name in data for part in (f"--{name}", data[name]))]
    done = run_script("bash", "scripts/soup.sh", *pair, *flags, NUM_GPUS=2, OUTPUT_DIR=out)
    assert done.stdout.count("validation: ") == 1 and not list(out.glob("trial-*"))

    recipe = json.loads((out / "soup.json").read_text())
    best, both = recipe["greedy"]["tried"]
    plain = make_soup(tmp_path / "plain", *both["models"])
    for model, trial in ((best["models"][0], best), (plain, both)):
        call(lambda: evaluate_captions("x"), model_id=model, output_dir=tmp_path / "eval", **data)
        found = json.loads((tmp_path / "eval/metrics.json").read_text())
        assert trial["recall"] == (found["image_retrieval_recall@1"] + found["text_retrieval_recall@1"]) / 2
    assert best["recall"] == max(recipe["greedy"]["alone"].values())
    assert best["kept"] and both["kept"] == (both["recall"] >= best["recall"])
    kept = both if both["kept"] else best
    assert [model["folder"] for model in recipe["models"]] == kept["models"]
    same = plain if both["kept"] else Path(kept["models"][0])
    torch.testing.assert_close(embeddings(out), embeddings(same), rtol=0, atol=1e-6)
