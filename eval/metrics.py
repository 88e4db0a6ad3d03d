"""Retrieval metrics: pure functions from rankings to numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lamra.eval.reporting.tables import KS
from lamra.eval.search import top_k


def recall_at_k(ranking: Tensor, relevant: Sequence[Collection[int]], k: int) -> float:
    """Share of queries with at least one relevant candidate among their first k: M-BEIR's recall and Flickr's.

    Args:
        ranking: (Q, K) gallery indices, best first, K >= k.
        relevant: for each query the gallery indices that answer it. A query without any is a miss, as in M-BEIR.

    Raises:
        ValueError: sizes that do not fit, or no query.
    """
    if len(ranking) != len(relevant) or not 1 <= k <= ranking.shape[1]:
        raise ValueError(f"recall@{k} of a {tuple(ranking.shape)} ranking with relevant candidates of {len(relevant)}")
    if len(relevant) == 0:
        raise ValueError("recall of no queries is undefined")
    hits = (not set(answers).isdisjoint(found) for answers, found in zip(relevant, ranking[:, :k].tolist()))
    return sum(hits) / len(relevant)


def retrieval_recalls(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_of_text: Sequence[int],
    ks: Sequence[int] = KS,
    *,
    image_query: Tensor | None = None,
    text_query: Tensor | None = None,
) -> dict[str, float]:
    """Recall in both directions between pictures and their captions.

    Args:
        image_embeddings: (I, D).
        text_embeddings: (T, D).
        image_of_text: (T,) index of the picture that each caption describes; every picture has a caption.
        image_query, text_query: (I, D) and (T, D) where they are embedded otherwise as queries than as candidates,
            with an instruction for example; by default the embeddings above.

    Returns:
        image_retrieval_recall@k (captions look for their picture), then text_retrieval_recall@k (pictures look for any
        of their captions), for each of ks. A k beyond the gallery counts the whole gallery.

    Raises:
        ValueError: sizes that do not fit, a picture without caption, or NaN in the embeddings.
    """
    picture = torch.as_tensor(image_of_text).tolist()
    texts_of_image: list[list[int]] = [[] for _ in image_embeddings]
    if len(picture) != len(text_embeddings) or not all(0 <= i < len(texts_of_image) for i in picture):
        raise ValueError(
            f"image_of_text must give each of {len(text_embeddings)} captions one of {len(texts_of_image)} pictures"
        )
    for text, image in enumerate(picture):
        texts_of_image[image].append(text)
    if not all(texts_of_image):
        bare = [image for image, texts in enumerate(texts_of_image) if not texts]
        raise ValueError(f"{len(bare)} pictures have no caption, the first is {bare[0]}: leave them out")

    recalls = {}
    for name, query, gallery, relevant in (
        ("image", text_embeddings if text_query is None else text_query, image_embeddings, [[i] for i in picture]),
        ("text", image_embeddings if image_query is None else image_query, text_embeddings, texts_of_image),
    ):
        _, ranking = top_k(query, gallery, max(ks))  # (queries, K)
        for k in ks:
            recalls[f"{name}_retrieval_recall@{k}"] = recall_at_k(ranking, relevant, min(k, ranking.shape[1]))
    return recalls
