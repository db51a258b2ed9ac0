"""Tokenize texts, check what the tokenizer returned, and find texts that it truncated silently."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from legrad.defaults import usual_defaults, with_usual_defaults
from legrad.errors import InputError

Tokenize = Callable[[Sequence[str]], Any]


def token_ids(tokenize: Tokenize, texts: Sequence[str]) -> Any:
    """Token ids of all texts: a tensor (texts, length), or another object with ``.to(device)``, as a ``BatchEncoding``.

    Raises:
        InputError: the tokenizer failed, or returned something that is no table of ids.
    """
    try:
        with usual_defaults():
            ids = tokenize(texts)
    except Exception as error:  # anything that users wrote
        raise InputError(f"the tokenizer failed for {_quoted(texts)}: {error or type(error).__name__}") from error
    if isinstance(ids, list | tuple):
        try:
            ids = torch.as_tensor(ids, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the tokenizer returned a list that is no table of token ids ({error}); it has to return a tensor "
                "(texts, length), padded to one length"
            ) from error
    table = _table(ids)
    wrong_shape = table is not None and (table.ndim != 2 or len(table) != len(texts))
    if not hasattr(ids, "to") or wrong_shape:
        result = f"ids of shape {tuple(table.shape)}" if table is not None and wrong_shape else type(ids).__name__
        raise InputError(
            f"the tokenizer returned {result} for {len(texts)} texts; it has to return a tensor (texts, length)"
        )
    return ids


def truncated_texts(tokenize: Tokenize, texts: Sequence[str], ids: Any) -> list[str]:
    """Texts that are longer than the tokenizer's ids have room for, so that their ends were dropped.

    A tokenizer does not say so: a text is truncated if it fills its row (twice the text gives the same ids) and its
    last letter or word makes no difference.

    Args:
        tokenize: the tokenizer.
        texts: its input.
        ids: its output for them.
    """
    table = _table(ids)
    if table is None:
        return []
    try:
        tokenize = with_usual_defaults(tokenize)
        doubled = _table(tokenize([_twice(text) for text in texts]))
        if doubled is None or doubled.shape[1] > table.shape[1]:
            return []  # there was room for more than the longest of them
        # a token is at least one byte, two are for start and end
        long = [text for text in texts if len(text.encode("utf-8", "replace")) + 2 > table.shape[1]]
        return [text for text in long if _is_truncated(tokenize, text)]
    except Exception:  # this tokenizer raises on long texts: nothing can be truncated
        return []


def _is_truncated(tokenize: Tokenize, text: str) -> bool:
    # signs at the end are ignored by some tokenizers anyway
    while text and not text[-1].isalnum():
        text = text[:-1]
    shorter = (text[:-1], text.rpartition(" ")[0])
    return _same(tokenize, text, _twice(text)) and any(
        _same(tokenize, text, short) for short in shorter if short.strip()
    )


def _twice(text: str) -> str:
    return f"{text} {text}"


def _same(tokenize: Tokenize, first: str, second: str) -> bool:
    """Whether two texts get the same ids."""
    a, b = (_table(tokenize([text])) for text in (first, second))
    return a is not None and b is not None and torch.equal(a, b)


def _table(ids: Any) -> Tensor | None:
    """The ids as a tensor (texts, length); None if the tokenizer returned something else."""
    if isinstance(ids, Mapping):
        ids = ids.get("input_ids")
    return ids if isinstance(ids, Tensor) else None


def _quoted(texts: Sequence[str]) -> str:
    text = repr(texts[0] if len(texts[0]) <= 60 else texts[0][:60] + "…")
    return text if len(texts) == 1 else f"{text} and {len(texts) - 1} more texts"
