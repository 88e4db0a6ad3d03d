"""What only a GPU shows: started by gpu.sh. Random weights in Qwen2-VL-7B's shape; nothing is read but this repository.

    a  stage-1 step, 72 pairs: packed, recomputed, padded; 576 pairs through the gradient cache; a profile
    b  the encode loop on captions and on photographs
    c  attention kernels for packed rows, against SDPA and against float32 on the CPU
    d  gradients in bf16 against float32
    e  search on the GPU against the CPU's
    f  stage-2 step with pictures
    g  LamRA-Rank: a training step, and pointwise answers
    h  4-bit base weights under LoRA
    i  a batch's pictures on their way to the device: bytes and time, against float32 with each half twice
    j  search with the gallery's blocks from disk, in the page cache and not
    k  host work beside the device: a stage-2 step whose batches data workers prepare

Each part is a process of its own within its own time, so that a part that fails, hangs or fills the memory does not
stop the next. Results are written as they come: results.jsonl, results.md, profile.txt. Neither deepspeed nor
flash-attn is needed. `--tiny` runs everything in a small size, also on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from shapes import AFTER, batches, build, build_stock, right_padded, sentence_lengths, with_lora
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lamra.collators.processing import Processor
from lamra.collators.rerank import IGNORED, RankPrompts
from lamra.common.processes import default_workers
from lamra.datasets.items import Item
from lamra.eval.cache.shards import Shards
from lamra.eval.encode import encode
from lamra.eval.rerank.judge import Judge
from lamra.eval.search import Blocks, search
from lamra.miniature.model import build_tokenizer
from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.models.lora import leave_casts_to_autocast
from lamra.models.losses import info_nce
from lamra.models.packing import Packing, _padded_attention, _varlen_attention, _varlen_kernel
from lamra.models.reranker import Reranker
from lamra.models.settings import Settings
from lamra.train.throughput import flops_per_token, peak_flops

GIB = 2**30
RESULTS, TABLE, PROFILE = "results.jsonl", "results.md", "profile.txt"
Model = TypeVar("Model", Embedder, Reranker)
WORDS = ("a", "red", "dog", "runs", "over", "the", "green", "grass", "beside", "two", "people", "who", "hold", "kites")


class NotHere(Exception):
    """A part, or the rest of it, that this machine cannot run."""


@dataclass(frozen=True)
class Machine:
    """Where a part runs and how large it is."""

    device: str
    tiny: bool
    folder: Path  # of the results

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.cuda else torch.float32

    @property
    def size(self) -> str:
        return "tiny" if self.tiny else "7b"

    def of(self, full: int, tiny: int) -> int:
        """`full`, or `tiny` where everything runs in a small size."""
        return tiny if self.tiny else full

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16, enabled=self.cuda)

    def timed(self, step: Callable[[], object], warm_up: int, count: int) -> dict:
        """Median seconds of `count` calls and the peak memory."""
        seconds = []
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(warm_up + count):
            self.synchronize()
            start = time.perf_counter()
            step()
            self.synchronize()
            seconds.append(time.perf_counter() - start)
        found = {"seconds": statistics.median(seconds[warm_up:])}
        return found | ({"peak_gib": torch.cuda.max_memory_allocated() / GIB} if self.cuda else {})


def trained_in(dtype: torch.dtype, model: Model) -> Model:
    """As in training: frozen weights in bf16, what is trained in float32, or in bf16 under DeepSpeed."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    leave_casts_to_autocast(model)
    return model


@contextmanager
def processor_of(size: str) -> Iterator[tuple[Processor, Path]]:
    """A processor with a byte-level tokenizer of a few words, and a folder for other files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tokenizer([" ".join(WORDS)] * 3).save_pretrained(folder)
        Qwen2VLImageProcessorPil().save_pretrained(folder)
        yield Processor(folder, max_length=4096, max_pixels=(16 if size == "tiny" else 300) * 28 * 28), folder


def photographs(folder: Path, count: int) -> list[Path]:
    """640 x 480 JPEG files of smooth noise, about as long to decode as photographs."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        paths.append(folder / f"{i}.jpg")
        small.resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def stage1_step(embedder: Embedder, machine: Machine, optimizer: torch.optim.Optimizer, inputs: list[dict]) -> Callable:
    """A whole step (forward, loss, backward, AdamW) on the next of `inputs`, again and again."""
    turn = iter(range(10**9))

    def step() -> None:
        batch = inputs[next(turn) % len(inputs)]
        with machine.autocast():
            embeddings = embedder(**batch)
        half = len(embeddings) // 2
        info_nce(embeddings[:half], embeddings[half:], temperature=0.05).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def optimizer_of(model: torch.nn.Module, machine: Machine) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0, fused=machine.cuda)


def throughput(found: dict, tokens: float, model: Embedder | Reranker, machine: Machine) -> dict:
    """Tokens that can influence the loss a second, and the share of the device's peak that they need."""
    found["useful_tokens_per_second"] = tokens / found["seconds"]
    if peak := peak_flops(torch.device(machine.device)):
        found["mfu"] = tokens * flops_per_token(model) / found["seconds"] / peak
    return found


def part_a(machine: Machine) -> Iterator[tuple[str, dict]]:
    lengths = sentence_lengths(argparse.Namespace(lengths_from=None, seed=0))
    embedder = trained_in(torch.float32, build(machine.size, machine.device, machine.dtype))
    optimizer = optimizer_of(embedder, machine)
    vocabulary = embedder.config.text_config.vocab_size
    sentences, warm_up, count = machine.of(144, 4), machine.of(3, 0), machine.of(8, 1)
    drawn = batches(lengths, sentences, 4, seed=0)
    tokens = statistics.fmean(map(sum, drawn))
    inputs = [right_padded(of_batch, vocabulary, machine.device) for of_batch in drawn]

    def measured(model: Embedder, given: list[dict], useful: float, warm: int = warm_up, timed: int = count) -> dict:
        found = machine.timed(stage1_step(model, machine, optimizer, given), warm, timed)
        return throughput(found, useful, model, machine)

    yield f"{sentences // 2} pairs, packed", measured(embedder, inputs, tokens)
    yield "profile of it", profiled(stage1_step(embedder, machine, optimizer, inputs), machine)
    for name, selective in (("selective", True), ("full", False)):
        embedder.selective_checkpointing = selective
        embedder.activation_checkpointing_enable()
        yield f"{sentences // 2} pairs, packed, {name} checkpointing", measured(embedder, inputs, tokens)
    embedder.stock.gradient_checkpointing_disable()
    trained_in(machine.dtype, embedder)
    optimizer = optimizer_of(embedder, machine)
    yield f"{sentences // 2} pairs, packed, LoRA in bf16 as under DeepSpeed", measured(embedder, inputs, tokens)
    trained_in(torch.float32, embedder)
    optimizer = optimizer_of(embedder, machine)

    embedder.grad_cache_chunk = sentences
    large = batches(lengths, 8 * sentences, 1, seed=1)
    given = [right_padded(large[0], vocabulary, machine.device)]
    found = measured(embedder, given, sum(large[0]), machine.of(1, 0), machine.of(2, 1))
    yield f"{4 * sentences} pairs, gradient cache", found
    embedder.grad_cache_chunk = 0

    reference = Embedder(embedder.model, "sequential", padding_free=False).train()
    reference.config.text_config._attn_implementation = "sdpa"
    reference.activation_checkpointing_enable()
    padded = [{name: F.pad(rows, (0, AFTER)) for name, rows in batch.items()} for batch in inputs]
    yield (
        f"{sentences // 2} pairs, padded, full checkpointing",
        measured(reference, padded, tokens, machine.of(1, 0), machine.of(4, 1)),
    )


def profiled(step: Callable[[], None], machine: Machine) -> dict:
    """Write the top kernels and the largest gaps of two steps to profile.txt; the share of the time that is busy."""
    on = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * machine.cuda
    with profile(activities=on) as profiler:
        for _ in range(machine.of(2, 1)):
            step()
        machine.synchronize()
    order = "self_cuda_time_total" if machine.cuda else "self_cpu_time_total"
    text = profiler.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=80)
    kernels = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
        for event in profiler.profiler.kineto_results.events()
        if "CUDA" in str(event.device_type()) and event.duration_ns()
    )
    if not kernels:
        (machine.folder / PROFILE).write_text(f"{text}\ngaps between kernels: only on CUDA\n")
        return {"busy_share": None}
    gaps, busy, end = [], 0, kernels[0][0]
    for i, (start, stop, name) in enumerate(kernels):
        if start > end:
            gaps.append((start - end, kernels[i - 1][2], name))
        busy += max(0, stop - max(start, end))
        end = max(end, stop)
    gaps.sort(reverse=True)
    lines = [f"{gap / 1e3:10.0f} us  after {before[:60]}  before {after[:60]}" for gap, before, after in gaps]
    (machine.folder / PROFILE).write_text(f"{text}\nlargest gaps between kernels\n" + "\n".join(lines[:30]) + "\n")
    long = sum(gap > 1e5 for gap, *_ in gaps)
    return {"busy_share": busy / (end - kernels[0][0]), "kernels": len(kernels), "gaps_over_100us": long}


def part_b(machine: Machine) -> Iterator[tuple[str, dict]]:
    with processor_of(machine.size) as (processor, folder):
        stock = build_stock(machine.size, machine.device, machine.dtype, tokenizer=processor.tokenizer, vision=True)
        embedder = Embedder(stock.requires_grad_(False), "sequential").eval()
        rng = random.Random(0)
        captions = [Item(f"c{i}", f"{i} {sentence(rng, 12)}") for i in range(machine.of(4000, 6))]
        pictures = [Item(path.name, None, (path,)) for path in photographs(folder, machine.of(384, 3))]
        budget, workers = machine.of(32768, 512), machine.of(default_workers(), 0)
        for name, items in (("captions", captions), ("photographs", pictures)):
            encode(embedder, processor, items[: machine.of(64, 2)], max_tokens_per_batch=budget)  # warm-up
            encode_all = partial(encode, embedder, processor, items, max_tokens_per_batch=budget, num_workers=workers)
            found = machine.timed(encode_all, 0, 1)
            yield f"{len(items)} {name}", found | {"items_per_second": len(items) / found["seconds"]}


def part_c(machine: Machine) -> Iterator[tuple[str, dict]]:
    """Error of each kernel against float32 on the CPU, of the output and of the gradients."""
    heads, groups, size = machine.of(28, 4), machine.of(4, 2), 128
    lengths = [machine.of(n, n % 7 + 1) for n in (1, 69, 300, 27, 1024, 33, 128)]
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    tokens, kernel = sum(lengths), _varlen_kernel(machine.device, torch.bfloat16)
    for name, queries, before in (("all tokens", tokens, 0), ("last tokens", len(lengths), 0), ("prefix", tokens, 14)):
        shapes = [
            (queries, heads, size),
            (tokens, groups, size),
            (tokens, groups, size),
            *2 * [(1, groups, before, size)],
        ]
        rows = [torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes]
        exact = attended(_padded_attention, rows, mask, "cpu", torch.float32)
        found = {}
        for way, attend in (("sdpa", _padded_attention), ("varlen", _varlen_attention)):
            if way == "sdpa" or kernel:
                values = attended(attend, rows, mask, machine.device, torch.bfloat16)
                found[f"{way}_bf16_relative_error"] = ((values - exact).norm() / exact.norm()).item()
        yield name, found
    if not kernel:
        raise NotHere("kernels for packed rows need CUDA")
    library = "flash-attn" if importlib.util.find_spec("flash_attn") else "torch.nn.attention.varlen"
    yield "kernel", {"library": library}


def attended(attend: Callable, rows: list[Tensor], mask: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """The output of attention and its gradients as one vector, in float32 on the CPU.

    Args:
        rows: query, key and value (tokens, heads, E); keys and values of the prefix (1, heads, P, E), P 0 for none.
    """
    query, key, value, *prefix = (row.to(device, dtype, copy=True).requires_grad_() for row in rows)
    packing = Packing.of(mask.to(device))
    out = attend(query, key, value, packing, tuple(prefix) if prefix[0].numel() else None, query.shape[-1] ** -0.5)
    (out.float() * torch.cos(torch.arange(out.numel(), device=device)).view_as(out)).sum().backward()
    found = [out, *(row.grad for row in (query, key, value, *prefix) if row.grad is not None)]
    return torch.cat([x.detach().flatten().float().cpu() for x in found])


def part_d(machine: Machine) -> Iterator[tuple[str, dict]]:
    lengths = sentence_lengths(argparse.Namespace(lengths_from=None, seed=0))
    (drawn,) = batches(lengths, machine.of(64, 8), 1, seed=0)
    gradients = []
    for dtype, device in ((torch.float32, "cpu"), (torch.float32, machine.device), (torch.bfloat16, machine.device)):
        torch.manual_seed(0)
        embedder = build("tiny", "cpu", torch.float32, dropout=0.0)
        for name, parameter in embedder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)  # zeros would hide lora_A's gradient
            elif not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        embedder.to(device)
        batch = right_padded(drawn, embedder.config.text_config.vocab_size, device, torch.Generator().manual_seed(0))
        with torch.autocast(device, torch.bfloat16, enabled=dtype is torch.bfloat16):
            embeddings = embedder(**batch)
        half = len(embeddings) // 2
        info_nce(embeddings[:half], embeddings[half:], temperature=0.05).loss.backward()
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in embedder.parameters() if p.grad is not None]))
    exact, in_float32, in_bf16 = gradients
    yield (
        "against float32 on the CPU",
        {
            "float32_relative_error": ((in_float32 - exact).norm() / exact.norm()).item(),
            "bf16_relative_error": ((in_bf16 - exact).norm() / exact.norm()).item(),
            "bf16_cosine": F.cosine_similarity(in_bf16, exact, dim=0).item(),
            "finite": bool(in_bf16.isfinite().all()),
        },
    )


def part_e(machine: Machine) -> Iterator[tuple[str, dict]]:
    rows, queries, size = machine.of(200_000, 500), machine.of(512, 8), machine.of(3584, 32)
    rng = torch.Generator().manual_seed(0)
    gallery, query = (F.normalize(torch.randn(n, size, generator=rng), dim=1) for n in (rows, queries))
    blocks = Blocks.within(4 * GIB, size, 50)
    found, results = {}, {}
    for device in dict.fromkeys((machine.device, "cpu")):
        start = time.perf_counter()
        results[device] = search(query, gallery, 50, blocks, device)
        found[f"{device}_seconds"] = time.perf_counter() - start
    (scores, indices), (exact, expected) = results[machine.device], results["cpu"]
    found["equal_indices"] = (indices == expected).float().mean().item()
    found["largest_score_difference"] = (scores - exact).abs().max().item()
    yield f"{queries} queries in {rows} x {size}, top 50", found


def part_f(machine: Machine) -> Iterator[tuple[str, dict]]:
    with processor_of(machine.size) as (processor, folder):
        stock = build_stock(machine.size, machine.device, machine.dtype, tokenizer=processor.tokenizer, vision=True)
        embedder = trained_in(torch.float32, Embedder(with_lora(stock, r=machine.of(128, 8)), "sequential").train())
        embedder.activation_checkpointing_enable()
        rng, pairs = random.Random(0), machine.of(16, 2)
        paths = photographs(folder, 2 * pairs)
        queries = [Item("q", sentence(rng, 12), (path,), "Find a picture.") for path in paths[:pairs]]
        embedder.pixels_from_bytes = processor.visuals.floats
        items = [*queries, *(Item("t", None, (path,)) for path in paths[pairs:])]
        batch = processor.pad([processor.encode(item) for item in items])
        batch = {name: tensor.to(machine.device) for name, tensor in batch.items()}
        step = stage1_step(embedder, machine, optimizer_of(embedder, machine), [batch])
        found = machine.timed(step, machine.of(2, 0), machine.of(5, 1))
        tokens = int(batch["attention_mask"].sum())
        yield f"{pairs} pairs, {tokens} tokens, recomputed", throughput(found, tokens, embedder, machine)


def part_g(machine: Machine) -> Iterator[tuple[str, dict]]:
    with processor_of(machine.size) as (processor, folder):
        stock = build_stock(machine.size, machine.device, machine.dtype, tokenizer=processor.tokenizer, vision=True)
        prompts = RankPrompts(processor, "released")
        rng, count = random.Random(0), machine.of(50, 3)
        items = [Item(path.name, sentence(rng, 8), (path,)) for path in photographs(folder, count + 1)]
        query, *candidates = map(prompts.prepare, items)

        model = Reranker(stock.requires_grad_(False), "mrope").eval()
        settings = Settings("random weights", "mrope", role="reranker", rank_style="released")
        judge = Judge(model, processor, settings, machine.of(32768, 2048), 0, True)
        found = machine.timed(lambda: judge.pointwise(query, candidates), machine.of(1, 0), machine.of(5, 1))
        yield f"pointwise, {count} pictures known", found | {"queries_per_second": 1 / found["seconds"]}
        judge = Judge(model, processor, settings, machine.of(32768, 2048), 0, True, picture_memory=0)
        found = machine.timed(lambda: judge.pointwise(query, candidates), machine.of(1, 0), machine.of(2, 1))
        yield f"pointwise, {count} pictures new", found | {"queries_per_second": 1 / found["seconds"]}

        model = trained_in(torch.float32, Reranker(with_lora(stock), "mrope").train())
        model.activation_checkpointing_enable()
        model.pixels_from_bytes = processor.visuals.floats
        encoded = [prompts.pointwise(query, candidates[0], "Yes"), prompts.pointwise(query, candidates[1], "No")]
        encoded.append(prompts.listwise(query, candidates[: machine.of(5, 2)], "Ans: (1)"))
        batch = processor.pad(machine.of(4, 1) * encoded)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, prompt in zip(labels, machine.of(4, 1) * encoded):
            row[len(prompt["input_ids"]) - prompt["labels"] : len(prompt["input_ids"])] = 1
        batch["answer_mask"] = F.pad(labels[:, 1:] != IGNORED, (0, 1))
        answers = batch["input_ids"][labels != IGNORED].to(machine.device)
        batch = {name: tensor.to(machine.device) for name, tensor in batch.items()}
        optimizer = optimizer_of(model, machine)

        def step() -> None:
            with machine.autocast():
                logits = model(**batch)
            F.cross_entropy(logits, answers).backward()
            optimizer.step()
            optimizer.zero_grad()

        found = machine.timed(step, machine.of(2, 0), machine.of(5, 1))
        tokens = int(batch["attention_mask"].sum())
        yield f"training step of {machine.of(4, 1)} queries", throughput(found, tokens, model, machine)


def part_i(machine: Machine) -> Iterator[tuple[str, dict]]:
    with processor_of(machine.size) as (processor, folder):
        count = machine.of(60, 2)
        items = [Item(path.name, None, (path,)) for path in photographs(folder, count)]
        start = time.perf_counter()
        batch = processor(items)
        prepared = time.perf_counter() - start
        if machine.cuda:
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        found = machine.timed(lambda: [tensor.to(machine.device, non_blocking=True) for tensor in batch.values()], 1, 5)
        patches = int(batch["image_grid_thw"].prod(dim=1).sum())
        found |= {f"{name}_dtype": str(x.dtype) for name, x in batch.items() if name.startswith("pixel")}
        found |= {"megabytes": sum(x.nbytes for x in batch.values()) / 1e6, "prepared_seconds": prepared}
        yield f"{count} photographs", found | {"float32_megabytes": 4 * patches * 3 * 2 * 14**2 / 1e6}


def part_j(machine: Machine) -> Iterator[tuple[str, dict]]:
    rows, queries, size = machine.of(200_000, 500), machine.of(512, 8), machine.of(3584, 32)
    rng = torch.Generator().manual_seed(0)
    gallery, query = (F.normalize(torch.randn(n, size, generator=rng), dim=1) for n in (rows, queries))
    blocks = Blocks.within(machine.of(4 * GIB, 2**20), size, 50)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.npy") for number in range(4)]
        for file, part in zip(files, gallery.chunk(4)):
            np.save(file, part.numpy())
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        found, results = {}, []
        for name, of in (("memory", gallery), ("disk", Shards(files)), ("cold_disk", Shards(files))):
            for file in files if name == "cold_disk" else ():
                with open(file, "rb") as forgotten:
                    os.posix_fadvise(forgotten.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            results.append(search(query, of, 50, blocks, machine.device))
            found[f"{name}_seconds"] = time.perf_counter() - start
    (scores, indices), *others = results
    found["equal"] = all(torch.equal(scores, s) and torch.equal(indices, i) for s, i in others)
    found["cold_gigabytes_per_second"] = gallery.nbytes / found["cold_disk_seconds"] / 1e9
    yield f"{queries} queries in {rows} x {size} on disk, top 50", found


def part_k(machine: Machine) -> Iterator[tuple[str, dict]]:
    with processor_of(machine.size) as (processor, folder):
        stock = build_stock(machine.size, machine.device, machine.dtype, tokenizer=processor.tokenizer, vision=True)
        embedder = trained_in(torch.float32, Embedder(with_lora(stock, r=machine.of(128, 8)), "sequential").train())
        embedder.activation_checkpointing_enable()
        rng, pairs, steps = random.Random(0), machine.of(16, 2), machine.of(8, 2)
        paths = photographs(folder, 2 * pairs)
        queries = [Item("q", sentence(rng, 12), (path,), "Find a picture.") for path in paths[:pairs]]
        items = [*queries, *(Item("t", None, (path,)) for path in paths[pairs:])]
        optimizer, workers = optimizer_of(embedder, machine), machine.of(default_workers(), 1)

        def on_device(batch: dict) -> dict:
            return {name: tensor.to(machine.device, non_blocking=True) for name, tensor in batch.items()}

        step = stage1_step(embedder, machine, optimizer, [on_device(processor(items))])
        found = machine.timed(step, machine.of(2, 0), machine.of(5, 1))
        rows: Any = [items] * (steps + 2)  # lists are data sets too
        of_workers = iter(
            DataLoader(rows, batch_size=None, collate_fn=processor, num_workers=workers, pin_memory=machine.cuda)
        )
        fed = machine.timed(
            lambda: stage1_step(embedder, machine, optimizer, [on_device(next(of_workers))])(), 2, steps
        )
        found = {"resident_seconds": found["seconds"], "fed_seconds": fed["seconds"], "workers": workers}
        yield f"{pairs} pairs of photographs", found | {"waited_share": 1 - found["resident_seconds"] / fed["seconds"]}


def part_h(machine: Machine) -> Iterator[tuple[str, dict]]:
    if not machine.cuda or importlib.util.find_spec("bitsandbytes") is None:
        raise NotHere("4-bit weights need CUDA and bitsandbytes")
    lengths = sentence_lengths(argparse.Namespace(lengths_from=None, seed=0))
    (drawn,) = batches(lengths, machine.of(64, 8), 1, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        build_stock(machine.size, "cuda", torch.bfloat16, num_hidden_layers=2).save_pretrained(folder)
        embeddings = []
        for quantize in (False, True):
            stock = load_model(folder, dtype=torch.bfloat16, quantize=quantize)
            stock = stock if quantize else stock.to("cuda")
            embedder = trained_in(torch.float32, Embedder(with_lora(stock, dropout=0.0), "sequential").train())
            inputs = right_padded(drawn, stock.config.text_config.vocab_size, "cuda", torch.Generator().manual_seed(0))
            with torch.no_grad(), machine.autocast():
                embeddings.append(embedder(**inputs))
            step = stage1_step(embedder, machine, optimizer_of(embedder, machine), [inputs])
            found = machine.timed(step, 2, 5)
            if quantize:
                found["mean_cosine_to_bf16"] = F.cosine_similarity(*embeddings).mean().item()
            yield "2 layers, NF4" if quantize else "2 layers, bf16", found
            del stock, embedder, step


# Part -> what it is called, its seconds in full size, and what runs it.
PARTS = {
    "a": ("stage-1 step", 160, part_a),
    "b": ("encode loop", 90, part_b),
    "c": ("attention kernels", 30, part_c),
    "d": ("gradients in bf16", 30, part_d),
    "e": ("search", 40, part_e),
    "f": ("stage-2 step", 70, part_f),
    "g": ("LamRA-Rank", 70, part_g),
    "h": ("4-bit", 40, part_h),
    "i": ("pictures to the device", 20, part_i),
    "j": ("search from disk", 60, part_j),
    "k": ("host beside the device", 60, part_k),
}


def run_part(name: str, machine: Machine, reader: Connection, writer: Connection) -> None:
    """In a process of its own."""
    reader.close()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = replace(machine, device=device)
    writer.send({"device": torch.cuda.get_device_name() if device == "cuda" else "CPU"})
    if device == "cpu" and not machine.tiny:
        writer.send({"note": "there is no CUDA device; --tiny tries this on a CPU"})
        return
    torch.manual_seed(0)
    try:
        for case, found in PARTS[name][2](machine):
            writer.send({"case": case, **found})
    except NotHere as reason:
        writer.send({"note": str(reason)})
    except Exception as error:  # the next part runs all the same
        writer.send({"note": f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


def collect(name: str, seconds: float, machine: Machine) -> Iterator[dict]:
    """What a part says, until it ends or its time is over."""
    # To ask for a GPU is to use CUDA, which does not live through a fork; libraries ask as they are imported.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=run_part, args=(name, machine, reader, writer))
    end = time.monotonic() + seconds
    process.start()
    writer.close()
    try:
        while reader.poll(max(0, end - time.monotonic())):
            yield reader.recv()
        yield {"note": f"its time of {seconds:.0f} s is over"}
    except EOFError:
        process.join(5)
        if process.exitcode:
            yield {"note": f"failed: the process ended with status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def table(device: str, results: list[dict]) -> str:
    """Markdown: a line a case."""
    lines = [f"# {device}", "", f"torch {torch.__version__}, random weights, benchmarks/gpu.sh", ""]
    lines += ["| part | case | found |", "|---|---|---|"]
    for found in results:
        name, case = found["part"], found.get("case", "-")
        values = {key: value for key, value in found.items() if key not in ("part", "case", "note")}
        figures = [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        ]
        lines.append(f"| {name} {PARTS[name][0]} | {case} | {found.get('note', ', '.join(figures))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("results/gpu"))
    parser.add_argument("--seconds", type=float, default=510, help="of all parts together")
    parser.add_argument("--parts", default="".join(PARTS), help="letters")
    parser.add_argument("--tiny", action="store_true", help="a small size, on any machine")
    args = parser.parse_args()
    if not set(args.parts) <= set(PARTS):
        parser.error(f"--parts {args.parts}: expected letters of {''.join(PARTS)}")

    end = time.monotonic() + args.seconds
    args.output_dir.mkdir(parents=True, exist_ok=True)
    machine, device, results = Machine("cpu", args.tiny, args.output_dir), "unknown device", []
    with open(args.output_dir / RESULTS, "w") as file:
        for name in args.parts:
            # A small size is there to run to its end, also on a machine that does much else.
            left, wanted = end - time.monotonic(), PARTS[name][1] * machine.of(1, 10)
            skipped = [{"note": "skipped: the time is used up"}]
            for line in collect(name, min(left, wanted), machine) if left > wanted / 4 else skipped:
                if "device" in line:
                    device = line["device"]
                    continue
                results.append({"part": name, **line})
                file.write(json.dumps(results[-1]) + "\n")
                file.flush()
                (args.output_dir / TABLE).write_text(table(device, results))
                print(json.dumps(results[-1]), flush=True)
    print(f"\n{table(device, results)}")
    print(json.dumps({"device": device, "size": machine.size, "results": results}))


if __name__ == "__main__":
    main()
