"""The fused RMSNorm equals the library's, and no input is copied to float32 for LoRA."""

from __future__ import annotations

import pytest
import torch
from test_golden import close

from lamra.models.embedder import Embedder
from lamra.models.loading import load_model
from lamra.models.lora import add_lora, leave_casts_to_autocast
from lamra.models.norm import rms_norm


@pytest.fixture
def stock(golden_folder):
    return load_model(golden_folder, dtype=torch.float32)


def test_the_fused_norm_equals_the_librarys(stock):
    norm = type(stock.model.language_model.norm)(64, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    x, cotangent = 3 * torch.randn(1, 50, 64), torch.randn(1, 50, 64)

    def of(forward, dtype):
        given = x.to(dtype, copy=True).requires_grad_()
        norm.to(dtype).zero_grad()
        out = forward(given)
        (out.float() * cotangent).sum().backward()
        assert out.dtype == dtype
        return torch.cat([t.detach().flatten().double() for t in (out, given.grad, norm.weight.grad)])

    exact = of(norm.forward, torch.float64)
    close(of(lambda x: rms_norm(norm, x), torch.float32), of(norm.forward, torch.float32), 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        fused = of(lambda x: rms_norm(norm, x), torch.bfloat16)
    library = of(norm.forward, torch.bfloat16)
    assert (fused - exact).norm() <= 1.05 * (library - exact).norm() < 0.02 * exact.norm()


def test_every_norm_of_the_language_model_is_fused_on_a_gpu(stock, monkeypatch):
    text = stock.model.language_model
    embedder = Embedder(stock, "sequential")
    calls = []
    monkeypatch.setattr("lamra.models.norm.rms_norm", lambda norm, x: calls.append(norm) or x)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamra.models.packing._varlen_kernel", lambda *_: None)
        embedder(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
    assert set(calls) == {m for m in text.modules() if type(m).__name__ == "Qwen2VLRMSNorm"}
    assert len(set(calls)) == 2 * len(text.layers) + 1


def test_autocast_alone_casts_for_lora(stock):
    """Bit for bit as with PEFT's own casts, in the loss and in every gradient, with no float32 copy of an input."""
    batch = {"input_ids": torch.arange(3, 43).view(2, 20), "attention_mask": torch.ones(2, 20, dtype=torch.long)}
    torch.manual_seed(0)
    model = add_lora(stock, r=4, alpha=8, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
        elif not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    embedder, seen = Embedder(model, "sequential").train(), set()
    for module in model.modules():
        if type(module).__name__ == "Dropout" or type(module).__name__ == "Identity":
            module.register_forward_hook(lambda module, inputs, out: seen.add(inputs[0].dtype))

    def found():
        seen.clear()
        embedder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = embedder(**batch)
        embeddings[:, :7].sum().backward()
        return torch.cat(
            [embeddings.detach().flatten(), *(p.grad.flatten() for p in model.parameters() if p.requires_grad)]
        )

    with_casts, dtypes = found(), set(seen)
    leave_casts_to_autocast(model)
    torch.testing.assert_close(found(), with_casts, rtol=0, atol=0)
    assert dtypes == {torch.float32} and seen == {torch.bfloat16}
