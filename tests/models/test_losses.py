"""Equal items of a batch as false negatives: the loss worked by hand, in blocks, and through the collator."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_golden import close
from torch.utils._python_dispatch import TorchDispatchMode

from lamra.collators.processing import Processor
from lamra.collators.retrieval import RetrievalCollator
from lamra.datasets.items import Item, Pair
from lamra.datasets.usable import UsablePairs
from lamra.models import losses
from lamra.models.losses import distillation, info_nce

# Three queries; their targets, and a hard negative of each.
ITEM_IDS = torch.tensor([1, 2, 1, 11, 12, 13, 11, 1, 30])
# Against whom each query is compared, worked by hand. Query 0: target 2 belongs to an equal query, negative 0 equals
# its own target, negative 1 the query itself. Query 2: the same, but negative 0 is not its target.
COMPARED = [[0, 1, 5], [0, 1, 2, 3, 4, 5], [1, 2, 3, 5]]


@pytest.fixture
def rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(n, 4, generator=generator), dim=1).requires_grad_() for n in (3, 6)]


def test_equal_items_are_no_negatives(rows):
    query, target = rows
    result = info_nce(query, target, temperature=0.5, item_ids=ITEM_IDS)
    scores = (query @ target.T / 0.5).tolist()
    by_hand = [math.log(sum(math.exp(scores[i][j]) for j in few)) - scores[i][i] for i, few in enumerate(COMPARED)]
    close(result.loss, torch.tensor(sum(by_hand) / 3))
    best = [max(few, key=lambda j: scores[i][j]) for i, few in enumerate(COMPARED)]
    assert result.accuracy.item() == pytest.approx(sum(j == i for i, j in enumerate(best)) / 3)
    result.loss.backward()
    assert query.grad.isfinite().all() and target.grad.isfinite().all()


def test_different_items_change_nothing_and_blocks_neither(rows, monkeypatch):
    plain, numbered = info_nce(*rows, 0.5), info_nce(*rows, 0.5, torch.arange(9))
    assert torch.equal(plain.loss, numbered.loss) and torch.equal(plain.accuracy, numbered.accuracy)
    whole = info_nce(*rows, 0.5, ITEM_IDS)
    expected = torch.autograd.grad(whole.loss, rows)
    monkeypatch.setattr(losses, "QUERIES_PER_BLOCK", 2)
    blocks = info_nce(*rows, 0.5, ITEM_IDS)
    close(blocks.loss, whole.loss)
    for gradient, other in zip(torch.autograd.grad(blocks.loss, rows), expected):
        close(gradient, other)


def test_scores_are_float32_in_both_directions_where_tf32_is_on(rows):
    """TF32 needs a GPU; here the setting is read at every matrix product, also of the backward pass."""
    scores = rows[0] @ rows[1].T / 0.5
    plain = torch.autograd.grad(F.cross_entropy(scores, torch.arange(3), reduction="sum") / 3, rows)
    matmul, settings = torch.backends.cuda.matmul, []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, op, _types, args=(), kwargs=None):
            if op is torch.ops.aten.mm.default:
                settings.append(matmul.fp32_precision)
            return op(*args, **(kwargs or {}))

    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with Products():
            found = torch.autograd.grad(info_nce(*rows, 0.5).loss, rows)
        assert settings == ["ieee"] * 3 and matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
    assert all(map(torch.equal, found, plain))


def test_equal_is_what_the_model_sees(tiny_model, tmp_path):
    red, red_too, blue = (tmp_path / f"{name}.png" for name in ("red", "red_too", "blue"))
    for path in (red, red_too, blue):
        Image.new("RGB", (56, 28), path.stem.removesuffix("_too")).save(path)
    pairs = [
        Pair(Item("0", "A red box."), Item("a", images=(red,)), (Item("n", "A red box."),)),
        Pair(Item("1", "A box."), Item("b", images=(red_too,)), (Item("m", images=(blue,)),)),
    ]

    def item_ids(mask_duplicates: bool, rows: list[int]) -> list[int]:
        collator = RetrievalCollator(Processor(tiny_model), mask_duplicates)
        return collator(UsablePairs(pairs, collator.encode, most_faults=0).__getitems__(rows))["item_ids"].tolist()

    query, other, target, same_target, negative, different = item_ids(True, [0, 1])
    assert query == negative and target == same_target and len({query, other, target, different}) == 4
    assert item_ids(True, [1, 0]) == [other, query, target, target, different, negative]  # the same in any process
    query, other, target, same_target, *negatives = item_ids(False, [0, 1])
    assert len({query, other, target, same_target, *negatives}) == 5 and negatives == [-1, -1]
    assert item_ids(False, [1, 1])[::2] == [other, same_target, -1]  # a row that stands twice knows itself


def plain_distillation(query, target, teacher, temperature, teacher_temperature) -> torch.Tensor:
    """Mean KL over each query's candidates that have a score, one query after the other, in float64."""
    negatives, total = len(target) // len(query) - 1, torch.zeros((), dtype=torch.float64)
    for i, scores in enumerate(teacher.double()):
        rows = [i, *range(len(query) + i * negatives, len(query) + (i + 1) * negatives)]
        scored = [j for j in range(1 + negatives) if scores[j] > -math.inf]
        if scored:
            p = (scores[scored] / teacher_temperature).softmax(dim=0)
            cosines = torch.stack([query[i] @ target[rows[j]] for j in scored])
            total = total + (p * (p.log() - (cosines / temperature).log_softmax(dim=0))).sum()
    return total / len(query)


@pytest.mark.parametrize("temperatures", [(0.05, 1.0), (1.0, 4.0), (0.02, 0.5)])
def test_distillation_is_the_divergence_from_the_teacher(temperatures):
    """Queries 0 to 4: all scored; negatives without a score; only the positive; no score at all; a score that rules."""
    generator = torch.Generator().manual_seed(0)
    query, target = (F.normalize(torch.randn(n, 8, generator=generator), dim=1).requires_grad_() for n in (5, 20))
    teacher = 4 * torch.randn(5, 4, generator=generator)
    teacher[1, 2:] = teacher[2, 1:] = teacher[3] = -math.inf
    teacher[4] = torch.tensor([80.0, -30, -80, -90])
    exact = [rows.detach().double().requires_grad_() for rows in (query, target)]
    expected = plain_distillation(*exact, teacher, *temperatures)
    found = distillation(query, target, teacher, *temperatures)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and found > 0.01
    expected.backward()
    found.backward()
    for rows, of_exact in zip((query, target), exact):
        assert (rows.grad - of_exact.grad).abs().max() < 1e-5 * of_exact.grad.abs().max()
        assert rows.grad.abs().sum() > 0
    assert (query.grad[2:4] == 0).all() and (target.grad[5 + 3 * 2 : 5 + 3 * 4] == 0).all()  # nothing to learn
    # Where the student is the teacher, there is nothing to learn either.
    agreed = torch.stack([query @ target[rows].T for rows in ([i, *range(5 + 3 * i, 8 + 3 * i)] for i in range(5))])
    own = agreed[torch.arange(5), torch.arange(5)].detach() / temperatures[0] * temperatures[1]
    assert distillation(query, target, own, *temperatures).abs() < 1e-6
