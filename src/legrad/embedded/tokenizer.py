"""A word-and-byte tokenizer: known words are one token each, everything else falls back to its UTF-8 bytes."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY = Path(__file__).parent / "data" / "vocabulary.txt"
CONTEXT_LENGTH = 32


class WordTokenizer:
    """Text -> token ids, with the call signature of open_clip's tokenizers.

    Lower-cases; splits at everything that is neither letter nor digit; takes the longest known piece from the left
    of each word ("dogs" -> "dog", "s"). Ids: 0 padding, 1 to 256 the bytes, then the words, start and end of text.

    Args:
        words: the known words, in id order.
        context_length: default number of ids per text.
    """

    def __init__(self, words: Sequence[str], context_length: int = CONTEXT_LENGTH) -> None:
        self.words = tuple(words)
        self.context_length = context_length
        self._ids = {word: 257 + index for index, word in enumerate(self.words)}
        self._longest = max(map(len, self.words), default=1)
        self.sot_token_id = 257 + len(self.words)
        # the text tower pools at the largest id, so the end of text has to be the last one
        self.eot_token_id = self.sot_token_id + 1
        self.vocab_size = self.eot_token_id + 1

    @classmethod
    def shipped(cls) -> "WordTokenizer":
        """The tokenizer of the shipped model."""
        return cls(VOCABULARY.read_text(encoding="utf-8").split())

    def unknown(self, text: str) -> list[str]:
        """Words of a text that the model has never read: neither known, nor the plural of a known one."""
        words = dict.fromkeys(re.findall(r"[^\W_]+", text.lower()))
        return [word for word in words if not self._knows(word)]

    def _knows(self, word: str) -> bool:
        stems = (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
        return not any(letter.isalpha() for letter in word) or any(stem in self._ids for stem in stems)

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without start, end and padding."""
        ids: list[int] = []
        for word in re.findall(r"[^\W_]+|[^\w\s]", text.lower()):
            while word:
                for length in range(min(self._longest, len(word)), 0, -1):
                    if word[:length] in self._ids:
                        ids.append(self._ids[word[:length]])
                        break
                else:
                    length = 1
                    ids.extend(1 + byte for byte in word[0].encode("utf-8", "replace"))
                word = word[length:]
        return ids

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Token ids, (texts, context_length) int64; longer texts are truncated."""
        length = context_length or self.context_length
        texts = [texts] if isinstance(texts, str) else list(texts)
        result = torch.zeros(len(texts), length, dtype=torch.long, device="cpu")
        for row, text in enumerate(texts):
            ids = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            result[row, : len(ids)] = torch.tensor(ids, device="cpu")
        return result
