"""From samples to numbers: ratios to the bare forward, bytes beyond the warm-up, images per second."""

from collections.abc import Iterator, Mapping
from typing import Any

from performance.cases import CASES, Case
from performance.sampling import Spread, ratios

GB = 1e9


class Results:
    """The measurements so far, by case. Missing and failed ones are None.

    Args:
        entries: as in ``Store.entries``.
    """

    def __init__(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._entries = {key: entry for key, entry in entries.items() if "error" not in entry}

    def cases(self, measure: str) -> Iterator[Case]:
        """The measured cases, in the order of ``CASES``."""
        place = {case.key: index for index, case in enumerate(CASES)}
        for key in sorted(self._entries, key=lambda key: place.get(key, len(place))):
            entry = self._entries[key]
            if entry["case"]["measure"] == measure:
                yield Case(**entry["case"])

    def seconds(self, case: Case, name: str = "warm") -> Spread | None:
        """Seconds of a call: "bare", "warm" or "cold"."""
        samples = self._entries.get(case.key, {}).get("seconds", {})
        return Spread.of(samples[name]) if name in samples else None

    def ratio(self, case: Case, name: str = "warm") -> Spread | None:
        """Ratio to the bare forward of the same round."""
        samples = self._entries.get(case.key, {}).get("seconds", {})
        return ratios(samples[name], samples["bare"]) if name in samples else None

    def first_use(self, case: Case) -> Spread | None:
        """Ratio of a first use, truth check inside; of the single warm-up where no more was measured."""
        cold = self.ratio(case, "cold")
        bare, first = self.seconds(case, "bare"), self._entries.get(case.key, {}).get("first", {})
        if cold is None and bare is not None and "warm" in first:
            return Spread.of([first["warm"] / bare.median])
        return cold

    def rate(self, case: Case, name: str = "warm") -> Spread | None:
        """Images per second."""
        seconds = self._entries.get(case.key, {}).get("seconds", {}).get(name)
        return None if seconds is None else Spread.of([case.batch / duration for duration in seconds])

    def extra(self, case: Case) -> Spread | None:
        """GB at the peak beyond those after the warm-up forward at batch 1."""
        return self._runs(case, lambda run: (run["peak"] - run["before"]) / GB)

    def total(self, case: Case) -> Spread | None:
        """GB at the peak, of the whole process."""
        return self._runs(case, lambda run: run["peak"] / GB)

    def weights(self, case: Case) -> Spread | None:
        """GB of parameters."""
        return self._runs(case, lambda run: run["weights"] / GB)

    def empty(self, case: Case) -> Spread | None:
        """GB of the process before the model was built: Python and its libraries."""
        return self._runs(case, lambda run: run["empty"] / GB)

    def _runs(self, case: Case, value: Any) -> Spread | None:
        runs = self._entries.get(case.key, {}).get("runs")
        return Spread.of([value(run) for run in runs]) if runs else None
