"""What a query of LamRA-Rank is trained with follows from seed and epoch."""

from __future__ import annotations

from mbeir_pairs import pairs_of

from lamra.datasets.rerank import RerankExamples


def test_draws_repeat_and_change_with_seed_and_epoch(mbeir, mined):
    def draws(source="mined.jsonl", seed=0, epoch=0):
        examples = RerankExamples(pairs_of(mbeir, seed=seed), [mined / source])
        examples.set_epoch(epoch)
        return [examples[i] for i in range(len(examples))]

    first = draws()
    assert first == draws() == draws("mined.json") == draws("mined.arrow")
    assert first != draws(seed=1) and first != draws(epoch=1)
    assert {len(example.others) for example in first} == {1, 2, 3, 4}
    assert {example.position for example in first} == {0, 1, 2, 3, 4}
    for example in first:
        assert example.positive.id not in {example.negative.id, *(item.id for item in example.others)}
        assert 0 <= example.position <= len(example.others) == len({item.id for item in example.others})
