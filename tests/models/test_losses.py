"""The loss and each of its options worked by hand, in blocks, and with what the collator says of equal items."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from plain_loss import OPTIONS, plain_loss
from test_golden import close
from torch.utils._python_dispatch import TorchDispatchMode

from lamra.collators.processing import Processor
from lamra.collators.retrieval import RetrievalCollator
from lamra.datasets.items import Item, Pair
from lamra.datasets.usable import UsablePairs
from lamra.models import losses
from lamra.models.losses import PLAIN, distillation, info_nce
from lamra.models.temperature import Temperature

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


def unit(rows: int, seed: int, size: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)), dim=1)


def before_the_options(query, target, temperature, item_ids=None, hit_ids=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and accuracy in the operations that the loss was made of before it had options; one process, one block."""
    labels = torch.arange(len(query))
    scores = losses.inner_products(query.float(), target.float()) / temperature
    if item_ids is not None:
        of_query, of_target = item_ids.split([len(query), len(target)])
        queries = torch.cat([of_query, of_target[len(query) :]])
        own_target, own_query = of_target[: len(query), None], of_query[:, None]
        equal = (of_target == own_query) | (of_target == own_target) | (queries == own_query)
        scores = scores.masked_fill(equal.scatter(1, labels.unsqueeze(1), False), -torch.inf)
    best = scores.argmax(dim=1)
    hits = best == labels
    if hit_ids is not None:
        of_query, of_target = hit_ids.split([len(query), len(target)])
        of_query = F.pad(of_query, (0, len(target) - len(query)), value=-1)
        hits |= (of_target[best] == of_target[labels]) | (of_query[best] == of_query[labels])
    sums = F.cross_entropy(scores, labels, reduction="sum"), hits.float().sum()
    return tuple(torch.stack([value]).sum() / len(query) for value in sums)


@pytest.mark.parametrize("ids", [(None, None), (ITEM_IDS, None), (None, ITEM_IDS), (ITEM_IDS, ITEM_IDS)])
def test_without_options_no_bit_changes(rows, ids):
    expected, accuracy = before_the_options(*rows, 0.05, *ids)
    for options in ({}, {"options": PLAIN}):
        found = info_nce(*rows, 0.05, *ids, **options)
        assert torch.equal(found.loss, expected) and torch.equal(found.accuracy, accuracy)
        assert found.false_negatives == 0
        gradients = (torch.autograd.grad(loss, rows, retain_graph=True) for loss in (found.loss, expected))
        assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("block", [1024, 2])
@pytest.mark.parametrize("hard_negatives", [0, 1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_as_its_paper_writes_it(monkeypatch, name, hard_negatives, block):
    monkeypatch.setattr(losses, "QUERIES_PER_BLOCK", block)
    size, options = 5, OPTIONS[name]
    temperature = torch.tensor(0.5, requires_grad=True)
    for item_ids in (None, torch.randint(0, 9, (size * (2 + hard_negatives),), generator=torch.Generator())):
        rows = [unit(n, seed).requires_grad_() for seed, n in enumerate((size, size * (1 + hard_negatives)))]
        expected, dropped = plain_loss(*rows, temperature, item_ids, options)
        found = info_nce(*rows, temperature, item_ids, options=options)
        assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert found.false_negatives.item() == pytest.approx(dropped)
        assert bool(dropped) == options.drop
        of = [*rows, temperature]
        for gradient, other in zip(*(torch.autograd.grad(loss, of) for loss in (found.loss, expected))):
            assert torch.allclose(gradient, other, rtol=1e-5, atol=1e-6)
        assert found.accuracy == info_nce(*rows, 0.5, item_ids).accuracy  # a dropped negative that was best is a miss


def test_a_row_without_negatives_left_has_no_loss():
    """Its own positive stays, above the threshold though it is."""
    query, target = (unit(n, seed).abs().requires_grad_() for seed, n in enumerate((3, 6)))
    drop = PLAIN._replace(symmetric=True, false_negative_above=1e-6)
    for item_ids, dropped in ((None, 1.0), (torch.zeros(9, dtype=torch.long), 0.0)):
        found = info_nce(query, target, 0.5, item_ids, options=drop)
        assert found.loss == 0 and found.false_negatives == dropped
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(found.loss, (query, target)))


def test_a_learnt_temperature_is_bounded_and_comes_back_from_its_bounds():
    temperature = Temperature(0.05, 0.04, 0.1)
    assert temperature().item() == pytest.approx(0.05, rel=1e-7) and temperature.at(0.0) == 0.05
    optimizer = torch.optim.SGD(temperature.parameters(), lr=1.0)

    def step(direction: float) -> float:
        optimizer.zero_grad()
        (direction * temperature()).backward()
        optimizer.step()
        value = temperature().item()
        assert value == pytest.approx(temperature.at(temperature.offset.item()))
        return value

    assert step(1e3) == pytest.approx(0.04)
    beyond = temperature.offset.item()
    assert step(1e3) == pytest.approx(0.04) and temperature.offset.item() == beyond  # no further
    assert step(-1e4) == pytest.approx(0.1)  # and back at once, to the other bound
    assert step(-1.0) == pytest.approx(0.1)
    assert 0.04 <= step(1e4) < 0.1


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
