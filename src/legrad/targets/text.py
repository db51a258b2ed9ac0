"""Texts -> token ids, whatever a tokenizer returns, and which texts it cuts without a word."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from legrad.errors import InputError

Tokenize = Callable[[Sequence[str]], Any]


def tokenized(tokenize: Tokenize, texts: Sequence[str]) -> Any:
    """Token ids of all texts: a tensor (texts, length), or what else has ``.to(device)``, as tokenizers return.

    Raises:
        InputError: the tokenizer failed, or returned something that is no table of ids.
    """
    try:
        ids = tokenize(texts)
    except Exception as error:  # anything that users wrote
        raise InputError(f"the tokenizer failed for {_shown(texts)}: {error or type(error).__name__}") from error
    if isinstance(ids, list | tuple):
        try:
            ids = torch.as_tensor(ids)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the tokenizer returned a list that is no table of token ids ({error}); it has to return a tensor "
                "(texts, length), padded to one length"
            ) from error
    found = _table(ids)
    wrong_shape = found is not None and (found.ndim != 2 or len(found) != len(texts))
    if not hasattr(ids, "to") or wrong_shape:
        came = f"ids of shape {tuple(found.shape)}" if found is not None and wrong_shape else type(ids).__name__
        raise InputError(
            f"the tokenizer returned {came} for {len(texts)} texts; it has to return a tensor (texts, length)"
        )
    return ids


def cut(tokenize: Tokenize, texts: Sequence[str], ids: Any) -> list[str]:
    """Texts that are longer than the tokenizer's ids have room for, so that their ends were dropped.

    A tokenizer does not say so: a text is cut if it fills its row (twice the text gives the same ids) although its last
    letter or word does not matter.

    Args:
        tokenize: the tokenizer.
        texts: what went in.
        ids: what came out.
    """
    table = _table(ids)
    if table is None:
        return []
    try:
        longest = _table(tokenize([_twice(text) for text in texts]))
        if longest is None or longest.shape[1] > table.shape[1]:
            return []  # there was room for more than the longest of them
        # a token is at least one byte, two are for start and end
        long = [text for text in texts if len(text.encode("utf-8", "replace")) + 2 > table.shape[1]]
        return [text for text in long if _is_cut(tokenize, text)]
    except Exception:  # this tokenizer does not cut, it refuses
        return []


def _is_cut(tokenize: Tokenize, text: str) -> bool:
    # signs at the end are ignored by some tokenizers anyway
    while text and not text[-1].isalnum():
        text = text[:-1]
    shorter = (text[:-1], text.rpartition(" ")[0])
    return _same(tokenize, text, _twice(text)) and any(_same(tokenize, text, one) for one in shorter if one.strip())


def _twice(text: str) -> str:
    return f"{text} {text}"


def _same(tokenize: Tokenize, one: str, other: str) -> bool:
    found = [_table(tokenize([text])) for text in (one, other)]
    return found[0] is not None and found[1] is not None and torch.equal(found[0], found[1])


def _table(ids: Any) -> Tensor | None:
    """The ids themselves, (texts, length); None if it cannot be told."""
    if isinstance(ids, Mapping):
        ids = ids.get("input_ids")
    return ids if isinstance(ids, Tensor) else None


def _shown(texts: Sequence[str]) -> str:
    text = repr(texts[0] if len(texts[0]) <= 60 else texts[0][:60] + "…")
    return text if len(texts) == 1 else f"{text} and {len(texts) - 1} more texts"
