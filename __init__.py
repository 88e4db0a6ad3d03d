"""LamRA, rebuilt: universal multimodal retrieval with large multimodal models.

The repository's folders are this package's modules: lamra.models.losses is models/losses.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamra.eval.inference import Retriever


def load(model_id: str | Path, **flags: Any) -> Retriever:
    """A retriever for use in Python: `load("checkpoints/my_run").embed(["two dogs in the snow"])`.

    Args:
        model_id: folder, or published name, of an adapter, a merged model or a base model.
        flags: of eval/embed.py's command line, such as `max_pixels` or `bf16`.
    """
    from lamra.eval.flags import RetrieverArguments
    from lamra.eval.inference import load_retriever  # torch and transformers: seconds

    return load_retriever(RetrieverArguments(str(model_id), **flags))
