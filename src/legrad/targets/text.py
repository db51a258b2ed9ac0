"""Texts -> embeddings: tokenize them, find those that were truncated silently, encode them in batches that fit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.checks import brief, first_line
from legrad.core.finite import nonfinite_weight
from legrad.core.memory import ran_out, texts_per_forward
from legrad.defaults import usual_defaults, with_usual_defaults
from legrad.errors import InputError, LeGradError, warn
from legrad.models.adapter import Adapter
from legrad.models.anatomy import ViTAnatomy

Tokenize = Callable[[Sequence[str]], Any]

_TOKENIZED = 4096  # texts that are tokenized at once
_LONG = 10_000  # letters: of longer texts the beginning is tokenized first, for a tokenizer may take their square


class TextEncoder:
    """The text tower of a model. Encodes every text once, in batches that fit into memory.

    Args:
        adapter: with ``tokenize`` and ``encode_text``.
        anatomy: of its vision tower.
        memory: bytes, or "auto".
    """

    def __init__(self, adapter: Adapter, anatomy: ViTAnatomy, memory: str | int = "auto") -> None:
        self._adapter, self._anatomy, self._memory = adapter, anatomy, memory
        self._embeddings: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised embeddings (texts, features), at least float32.

        Raises:
            InputError: a tokenizer or text tower that does not do what it should, or gives NaN.

        Warns:
            UserWarning: a text that is longer than the model's context, or has words that the model never read.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._embeddings]
        truncated: list[str] = []
        for first in range(0, len(new), _TOKENIZED):
            some = new[first : first + _TOKENIZED]
            truncated += self._encode(some)
        if truncated:
            _warn_of_truncation(truncated)
        if self._adapter.unknown_words is not None:
            unknown = {word: None for text in new for word in self._adapter.unknown_words(text)}
            if unknown:
                _warn_of_words(list(unknown), self._adapter.name)
        return torch.stack([self._embeddings[text] for text in texts])

    def _encode(self, texts: Sequence[str]) -> list[str]:
        """Encode texts; returns those that were truncated."""
        assert self._adapter.tokenize is not None
        tokenize = self._adapter.tokenize
        beginnings = [beginning_read(tokenize, text) for text in texts]
        ids = token_ids(tokenize, beginnings)
        cut = set(truncated_texts(tokenize, beginnings, ids))
        embeddings = self._embed_ids(ids, len(texts))
        self._check(texts, embeddings)
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        self._embeddings.update(zip(texts, F.normalize(embeddings, dim=-1), strict=True))
        return [
            text for text, beginning in zip(texts, beginnings, strict=True) if beginning in cut or beginning != text
        ]

    def _embed_ids(self, ids: Any, count: int) -> Tensor:
        """(texts, features) as the text tower gives them, in passes that fit into memory."""
        table = _table(ids)
        step = count
        if table is not None and _rows(ids, 0, 1) is not None:
            adapter = self._adapter
            step = texts_per_forward(adapter.model, self._anatomy.tower, table.shape[1], self._memory)
        embeddings: list[Tensor] = []
        start = 0
        while start < count:
            part = ids if step >= count else _rows(ids, start, start + step)
            try:
                embeddings.append(self._embed_part(part, min(step, count - start)))
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error) or step == 1:
                    raise
                step = max(1, min(step, count) // 2)
            else:
                start += step
        return torch.cat(embeddings)

    def _embed_part(self, ids: Any, count: int) -> Tensor:
        assert self._adapter.encode_text is not None
        try:
            embedding = self._adapter.encode_text(ids.to(self._anatomy.device))
        except Exception as error:  # whatever a text tower makes of the wrong ids
            if ran_out(error) or isinstance(error, LeGradError):
                raise
            shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise InputError(
                f"the text tower does not take what the tokenizer gives ({shape}): {first_line(error)}; is it the "
                "tokenizer of this very model?"
            ) from error
        if not isinstance(embedding, Tensor) or embedding.ndim != 2 or len(embedding) != count:
            raise InputError(f"the text tower gave {brief(embedding)} for {count} texts, expected (texts, features)")
        return embedding.detach()

    def _check(self, texts: Sequence[str], embeddings: Tensor) -> None:
        """Raise ``InputError`` for embeddings that hold NaN, with where it comes from."""
        finite = torch.isfinite(embeddings).all(-1)
        if bool(finite.all()):
            return
        text = texts[int((~finite).nonzero()[0])]
        weight = nonfinite_weight(self._adapter.model)
        reason = "" if weight is None else f": the model's weight {weight} does (diverged training, or a damaged file?)"
        raise InputError(f"the text embedding of {brief(text)} holds NaN or infinite values{reason}")


def beginning_read(tokenize: Tokenize, text: str) -> str:
    """A text, or so much of a very long one that a tokenizer truncates it all the same."""
    length = _LONG
    while length < len(text):
        beginning = text[:length]
        if truncated_texts(tokenize, [beginning], token_ids(tokenize, [beginning])):
            return beginning
        length *= 4
    return text


def _rows(ids: Any, start: int, stop: int) -> Any:
    """Some rows of token ids; None where the tokenizer's object cannot be cut."""
    if isinstance(ids, Tensor):
        return ids[start:stop]
    try:
        return type(ids)({name: values[start:stop] for name, values in ids.items()})
    except Exception:  # an object of a user's own tokenizer
        return None


def token_ids(tokenize: Tokenize, texts: Sequence[str]) -> Any:
    """Token ids of all texts: a tensor (texts, length), or another object with ``.to(device)``, as a ``BatchEncoding``.

    Raises:
        InputError: the tokenizer failed, or returned something that is no table of ids.
    """
    try:
        with usual_defaults():
            ids = tokenize(texts)
    except Exception as error:  # anything that users wrote
        raise InputError(f"the tokenizer failed for {_quoted(texts)}: {first_line(error)}") from error
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
        doubled = _table(with_usual_defaults(tokenize)([f"{text} {text}" for text in texts]))
        if doubled is None or doubled.shape[1] > table.shape[1]:
            return []  # there was room for more than the longest of them
        # a token is at least one byte, two are for start and end
        rows = [
            row
            for row, text in enumerate(texts)
            if len(text.encode("utf-8", "replace")) + 2 > table.shape[1] and torch.equal(table[row], doubled[row])
        ]
        if not rows:
            return []
        # signs at the end are ignored by some tokenizers anyway
        stems = [_without_signs_at_the_end(texts[row]) for row in rows]
        unchanged = torch.zeros(len(rows), dtype=torch.bool, device="cpu")
        for shorter in ([stem[:-1] for stem in stems], [stem.rpartition(" ")[0] for stem in stems]):
            indices = [index for index, text in enumerate(shorter) if text.strip()]
            ids_of_shorter = _table(tokenize([shorter[index] for index in indices])) if indices else None
            if ids_of_shorter is not None and ids_of_shorter.shape[1] == table.shape[1]:
                same = (ids_of_shorter == table[[rows[index] for index in indices]]).all(1)
                unchanged[indices] |= same.cpu()
        return [texts[row] for row, is_cut in zip(rows, unchanged.tolist(), strict=True) if is_cut]
    except Exception:  # this tokenizer raises on long texts: nothing can be truncated
        return []


def _without_signs_at_the_end(text: str) -> str:
    while text and not text[-1].isalnum():
        text = text[:-1]
    return text


def _table(ids: Any) -> Tensor | None:
    """The ids as a tensor (texts, length); None if the tokenizer returned something else."""
    if isinstance(ids, Mapping):
        ids = ids.get("input_ids")
    return ids if isinstance(ids, Tensor) else None


def _quoted(texts: Sequence[str]) -> str:
    text = repr(texts[0] if len(texts[0]) <= 60 else texts[0][:60] + "…")
    return text if len(texts) == 1 else f"{text} and {len(texts) - 1} more texts"


def _warn_of_truncation(texts: Sequence[str]) -> None:
    first = texts[0] if len(texts[0]) <= 80 else f"{texts[0][:60]} … {texts[0][-15:]}"
    others = f" ({len(texts) - 1} more texts are cut too)" if len(texts) > 1 else ""
    warn(f"the text {first!r} is longer than the model's context: its end is cut off and plays no part{others}")


def _warn_of_words(words: Sequence[str], model: str) -> None:
    names = ", ".join(map(brief, words[:6])) + (f" and {len(words) - 6} more" if len(words) > 6 else "")
    warn(
        f"the {model} model never read {names}: scores and maps for such words mean nothing. It knows what "
        "legrad.embedded.NAMES has; load a real model for other words (`legrad models`)"
    )
