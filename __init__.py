"""LamRA, rebuilt: universal multimodal retrieval with large multimodal models.

The repository's folders are this package's modules: lamra.models.losses is models/losses.py.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    import torch

    from lamra.eval.inference import Retriever
    from lamra.eval.rerank.judge import Judge


@overload
def load(model_id: str | Path, *, role: Literal["retriever"], **options: Any) -> Retriever: ...
@overload
def load(model_id: str | Path, *, role: Literal["reranker"], **options: Any) -> Judge: ...
@overload
def load(model_id: str | Path, *, role: None = None, **options: Any) -> Any: ...


def load(
    model_id: str | Path,
    *,
    role: Literal["retriever", "reranker"] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    num_workers: int = 0,
    **flags: Any,
) -> Retriever | Judge:
    """A model for use in Python: `load("checkpoints/my_run").encode(["two dogs in the snow"])`.

    Starts no process and no process group, reads no environment variable of the entrypoints, reaches for no hub.

    Args:
        model_id: folder, or published name, of an adapter, a merged model or a base model.
        role: "retriever" has encode and search (eval.inference.Retriever), "reranker" has rerank
            (eval.rerank.judge.Judge). None takes what the folder was trained as; a base model is a retriever.
        device: default: the current GPU, or the CPU without any.
        dtype: of the weights, torch.float32 or torch.bfloat16; default: bfloat16 where the GPU has it, else float32.
            Embeddings and scores are float32 in any case.
        num_workers: processes that prepare inputs while the model works. They are forked: leave 0 in a program with
            threads of its own.
        flags: the others of eval/embed.py's command line, such as `max_pixels` or `max_tokens_per_batch`, or
            `library="sentence-transformers"` for a model of that library.

    Raises:
        UserError: the folder is no such model, or a flag contradicts it.
    """
    import torch  # seconds

    from lamra.common.errors import UserError
    from lamra.eval.flags import GuestArguments
    from lamra.eval.inference import ONE_AT_A_TIME, load_retriever
    from lamra.eval.rerank.judge import load_judge
    from lamra.models.settings import Settings

    if dtype not in (None, torch.float32, torch.bfloat16):
        raise UserError(f"dtype {dtype}: expected torch.float32 or torch.bfloat16")
    chosen: dict[str, Any] = {} if dtype is None else {"bf16": dtype == torch.bfloat16}
    args = GuestArguments(str(model_id), num_workers=num_workers, **chosen, **flags)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = None if args.library else Settings.read(args.model_id)
    reranks = (role or (settings.role if settings else "retriever")) == "reranker"
    if reranks and args.library:
        raise UserError(f"--library {args.library}: its guests embed, none is a reranker here")
    # transformers sets the dtype of the whole process while it loads. Its FutureWarnings are for its developers.
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return load_judge(args, device) if reranks else load_retriever(args, device)
