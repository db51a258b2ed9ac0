"""What earlier runs measured, held against the benchmark and the data as they are now."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from legrad.bench.benchmark import Benchmark
from legrad.bench.content import Contents
from legrad.bench.journal import Journal, Key
from legrad.datasets import Dataset
from legrad.errors import LeGradError
from legrad.methods import own_digest


class Records:
    """The records of a journal under one settings.

    Args:
        journal: open.
        settings: digest under which the records are filed.
        data: the samples.
        keys: of all samples.
    """

    def __init__(self, journal: Journal, settings: str, data: Dataset, keys: Sequence[str]) -> None:
        self._journal, self._settings, self._keys = journal, settings, keys
        self._contents = Contents(data)
        self._indices = {key: index for index, key in enumerate(keys)}

    def check(self, benchmark: Benchmark) -> str:
        """Look at what earlier runs measured.

        Returns:
            A line about items that have changed since, or "".

        Raises:
            InputError: a record whose scores are none of this benchmark's; it names the line of the journal.
        """
        records = [record for record in self._journal.of(self._settings) if "scores" in record]
        timeless = next((record for record in records if "seconds" not in record), None)
        if timeless is not None:
            raise self._journal.damaged(timeless, "no 'seconds'")
        if records and _why_useless(benchmark, [record["scores"] for record in records]):
            for record in records:
                why = _why_useless(benchmark, [record["scores"]])
                if why:
                    raise self._journal.damaged(record, why)
        stale_keys = {record["key"] for record in records if not self._is_current(record)} & self._indices.keys()
        if not stale_keys:
            return ""
        return (
            f"{len(stale_keys)} items have changed since they were measured, such as {min(stale_keys)}; they are "
            "measured again"
        )

    def content(self, key: str, method: str) -> str:
        """Digest of what the item of a key is made of now, and of the method, if it is a user's own."""
        return self._contents[self._indices[key]] + own_digest(method)

    def is_done(self, index: int, method: str) -> bool:
        """Whether an item, as it is now, has been measured."""
        key = Key(self._keys[index], method, self._settings)
        return self._journal.has(key) and self._journal.done(key, self.content(self._keys[index], method))

    def current(self) -> list[dict[str, Any]]:
        """The records of items that the data has, as they are now."""
        return [record for record in self._journal.of(self._settings) if self._is_current(record)]

    def _is_current(self, record: Mapping[str, Any]) -> bool:
        if record["key"] not in self._indices:
            return False
        return "scores" not in record or record.get("content", "") == self.content(record["key"], record["method"])


def _why_useless(benchmark: Benchmark, items: list[dict[str, Any]]) -> str:
    """What is wrong with scores, or ""."""
    try:
        for metric in benchmark.metrics.values():
            metric.statistic(items)(np.ones(len(items)))
    except Exception as error:  # whatever arithmetic makes of them
        return one_line(error)
    return ""


def one_line(error: Exception) -> str:
    """An exception as one line; its kind is named if it is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, LeGradError) else f"{type(error).__name__}: {text}"
