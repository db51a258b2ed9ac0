"""Runs a benchmark over a data set, item by item, into a journal; the result file is computed from the journal."""

import hashlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from legrad.bench.benchmark import Benchmark
from legrad.bench.code import code_digest
from legrad.bench.journal import Journal
from legrad.bench.model import ModelUnderTest
from legrad.bench.records import Records, one_line
from legrad.bench.result import Result, finite, summarise
from legrad.bench.variants import Variant
from legrad.checks import check_count
from legrad.datasets import Dataset, Sample
from legrad.errors import InputError, UnsupportedModelError
from legrad.names import slug

_LARGEST_SPLIT = 8  # samples; a benchmark with larger batches gets whole ones only
_GIVE_UP = 20  # samples that fail at their first try, without any success, after which a method is given up


@dataclass(frozen=True)
class Limits:
    """How much is measured.

    Attributes:
        items: samples per method; None for all.
        per_method: fewer samples for some methods; 0 leaves a method out, and the result says so.
        seconds: time for this call; item counts are cut to fit it by the cost measured on the way. None for no limit.
    """

    items: int | None = None
    per_method: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None

    def of(self, method: str, available: int) -> int:
        """Samples for one method."""
        counts = [available, self.items, self.per_method.get(method.partition(":")[0])]
        return min(count for count in counts if count is not None)


@dataclass
class Progress:
    """Callbacks for what the runner does; the command line draws it."""

    started: Callable[[str, int], None] = lambda name, total: None
    advanced: Callable[[int], None] = lambda items: None
    problem: Callable[[str], None] = lambda line: None


def run(
    benchmark: Benchmark,
    model: ModelUnderTest,
    data: Dataset,
    methods: Sequence[str],
    out: Path,
    limits: Limits = Limits(),
    seed: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Measure what is not in the journal yet, and write the result.

    Items come in an order that is shuffled with ``seed``, so that the first ones of a sorted data set stand for all. A
    sample that cannot be read or measured is a problem in the result, and is tried again by the next run.

    Args:
        benchmark: what is measured, with its switches.
        model: the model under test.
        data: the samples.
        methods: names or variants, see ``variants.Variant``; the first is what the others are compared with.
        out: folder; ``NAME.jsonl`` is the journal, ``NAME-MODEL-SETTINGS.json`` the result.
        limits: item counts and time.
        seed: of the order and of the bootstrap.
        strict: raise at the first problem: an item's, a method that the model does not support, or one that the data
            set's reader found.
        progress: called with the work done, and with every problem.
        clock: in seconds.

    Returns:
        The result, as written. On Ctrl-C it is written too, marked as incomplete, and the interrupt goes on.

    Raises:
        InputError: unknown methods, unusable data or folder; with ``strict`` any problem.
    """
    _check_methods(methods)
    check_count("seed", seed, 0)
    keys = _unique_keys(data)
    progress = progress or Progress()
    for line in data.facts.get("problems", ()):
        if strict:
            raise InputError(f"{data.name}: {line}")
        progress.problem(f"{data.name}: {line}")
    benchmark.prepare(model, data)
    described = describe(benchmark, model, data, seed)
    with Journal(out / f"{benchmark.name}.jsonl") as journal:
        work = _Run(benchmark, model, data, keys, list(methods), limits, seed, strict, progress, clock, journal)
        work.settings = digest(described)
        work.records = Records(journal, work.settings, data, keys)
        message = work.records.check(benchmark)
        if message:
            progress.problem(f"{data.name}: {message}")
        try:
            work.all_items()
        finally:  # an interrupted run leaves a result of what there is
            result = summarise(
                benchmark,
                described,
                work.records.current(),
                methods=methods,
                unsupported=work.unsupported,
                cuts=work.cuts,
                complete=work.complete,
                seed=seed,
            )
            name = f"{benchmark.name}-{slug(described['subject']['model'])}-{work.settings[:8]}"
            result.write(out / f"{name}.json")
    return result


def describe(benchmark: Benchmark, model: ModelUnderTest, data: Dataset, seed: int) -> dict[str, Any]:
    """All that decides about an item's scores; records of other settings are never mixed in."""
    import legrad

    return {
        "benchmark": benchmark.name,
        "protocol": dict(benchmark.protocol()),
        "subject": model.settings,
        "data": {"name": data.name, **data.facts},
        "seed": seed,
        "legrad": legrad.__version__,
        "code": code_digest(),
    }


def digest(described: Mapping[str, Any]) -> str:
    """Short name of settings; what a data set's reader found wrong does not count, it may be mended."""
    data = {key: value for key, value in described["data"].items() if key not in ("problems", "items")}
    text = json.dumps({**described, "data": data}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unique_keys(data: Dataset) -> list[str]:
    """The keys of all items; raises ``InputError`` if there is none, or one twice."""
    keys = list(data.keys())
    if not keys:
        raise InputError(f"{data.name} has no items")
    if len(set(keys)) < len(keys):
        double = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{data.name} has two items with the key {double!r}")
    return keys


def _check_methods(methods: Sequence[str]) -> None:
    if not methods:
        raise InputError("name at least one method")
    if len(set(methods)) < len(methods):
        raise InputError(f"a method is named twice: {', '.join(methods)}")
    for method in methods:
        Variant.parse(method)


def share_out(needs: Mapping[str, float], budget: float) -> dict[str, float]:
    """Seconds for each method: all that it needs, or an equal share of what the cheaper ones leave."""
    granted: dict[str, float] = {}
    rest = budget
    for place, (method, need) in enumerate(sorted(needs.items(), key=lambda pair: pair[1])):
        granted[method] = min(need, rest / (len(needs) - place))
        rest -= granted[method]
    return granted


@dataclass
class _Run:
    """One call of ``run``: what it works with, and what it has measured so far.

    Attributes:
        settings: digest of the settings, under which the journal files the records.
        unsupported: methods that were given up, with the reason.
        cuts: what the limits left out, a sentence each.
        complete: whether all items were reached.
        seconds: method -> of every item that this call measured.
        failures: method -> problems of the items that failed at their first try.
        working: methods that have measured an item, in this call or before.
        tried: (method, key) of the items that earlier calls measured, or tried to.
        records: what is in the journal under the settings.
    """

    benchmark: Benchmark
    model: ModelUnderTest
    data: Dataset
    keys: list[str]
    methods: list[str]
    limits: Limits
    seed: int
    strict: bool
    progress: Progress
    clock: Callable[[], float]
    journal: Journal
    settings: str = ""
    unsupported: dict[str, str] = field(default_factory=dict)
    cuts: list[str] = field(default_factory=list)
    complete: bool = False
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    working: set[str] = field(default_factory=set)
    tried: set[tuple[str, str]] = field(default_factory=set)
    records: Records = field(init=False)

    def all_items(self) -> None:
        """Batch by batch, every method on the same samples; each batch is on disk before the next one starts."""
        order = np.random.default_rng(self.seed).permutation(len(self.keys)).tolist()
        targets = {method: self.limits.of(method, len(order)) for method in self.methods}
        self.progress.started(self.benchmark.name, sum(targets.values()))
        start = self.clock()
        for record in self.journal.of(self.settings):
            self.tried.add((record["method"], record["key"]))
            if "scores" in record:
                self.working.add(record["method"])
        allowed = dict(targets)
        edges = self._batch_edges(max(targets.values()))
        for first, end, after in zip(edges, edges[1:], [*edges[2:], edges[-1]], strict=False):
            records = self._measure_batch(self._pending(order[first:end], first, allowed))
            if records:
                self.journal.append(records)
            if self.limits.seconds is not None:
                overhead = self.clock() - start - sum(map(sum, self.seconds.values()))
                budget = self.limits.seconds - overhead
                before, allowed = allowed, self._plan(targets, allowed, end, budget)
                if self.clock() - start < self.limits.seconds / 2:
                    # the first calls of a method are its slowest: they decide nothing while there is time
                    still = [method for method in self.methods if before[method] >= end]
                    allowed |= {method: max(allowed[method], min(after, targets[method])) for method in still}
        self._note_cuts(targets, allowed)
        self.complete = True

    def _batch_edges(self, most: int) -> list[int]:
        """Where batches begin and end in the order of items, up to ``most``."""
        # the first sample alone: its cost is known before a whole batch is spent on a slow method
        # ... but where batches are that large, it is the batch that costs, not the sample
        early = {min(count, most) for count in (0, 1, 2, 4)} if self.benchmark.batch <= _LARGEST_SPLIT else {0}
        return sorted({*early, *range(0, most, self.benchmark.batch), most})

    def _pending(self, batch: Sequence[int], first: int, allowed: Mapping[str, int]) -> dict[str, list[int]]:
        """Method -> those samples of a batch that it may have and that are not in the journal.

        Args:
            batch: indices of samples.
            first: place of the first one in the order.
            allowed: how many samples of the order each method may have.
        """
        pending: dict[str, list[int]] = {}
        for method in self.methods:
            if method in self.unsupported:
                continue
            within = batch[: max(0, allowed[method] - first)]
            new = [i for i in within if not self.records.is_done(i, method)]
            self.progress.advanced(len(within) - len(new))
            if new:
                pending[method] = new
        return pending

    def _measure_batch(self, pending: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
        """Records of all methods; a method without any success is given up after some failures."""
        samples, records = self._read(pending)
        for method, indices in pending.items():
            readable = [samples[i] for i in indices if i in samples]
            new_records = self._measure(readable, method) if readable else []
            self.progress.advanced(len(indices))
            for record in new_records:
                if "problem" not in record:
                    self.seconds[method].append(record["seconds"])
                    self.working.add(method)
                elif (method, record["key"]) not in self.tried:
                    # one that failed before, and is tried again first, says nothing new about the method
                    self.failures[method].append(record["problem"])
            records.extend(new_records)
            failures = self.failures[method]
            if method not in self.working and len(failures) >= _GIVE_UP:
                self._drop(method, f"{len(failures)} items failed in a row: {failures[-1]}")
        return records

    def _note_cuts(self, targets: Mapping[str, int], allowed: Mapping[str, int]) -> None:
        for method in self.methods:
            if not targets[method]:
                self.cuts.append(f"{method}: left out by this run's limits")
            elif allowed[method] < targets[method] and method not in self.unsupported:
                seconds = self.seconds[method]
                cost = statistics.median(seconds) if seconds else float("nan")
                self.cuts.append(
                    f"{method}: {allowed[method]} of {targets[method]} items, cut to fit {self.limits.seconds:.0f} s "
                    f"at {cost:.2f} s per item"
                )

    def _plan(
        self,
        targets: Mapping[str, int],
        allowed: Mapping[str, int],
        done: int,
        budget: float,
    ) -> dict[str, int]:
        """How many items each method may have in all, by its median cost so far.

        Args:
            targets: as the limits on items have it.
            allowed: by the last plan.
            done: how far the run is in the order.
            budget: seconds for all measurements of the run, the past ones included.
        """
        active = [m for m in self.methods if allowed[m] >= done and self.seconds[m] and m not in self.unsupported]
        budget -= sum(sum(spent) for method, spent in self.seconds.items() if method not in active)
        costs = {method: max(statistics.median_low(self.seconds[method]), 1e-9) for method in active}
        granted = share_out({m: sum(self.seconds[m]) + costs[m] * (targets[m] - done) for m in active}, budget)
        plan = dict(allowed)
        for method in active:
            more = (granted[method] - sum(self.seconds[method])) / costs[method]
            plan[method] = min(targets[method], done + max(0, round(more)))
        return plan

    def _read(self, pending: Mapping[str, Sequence[int]]) -> tuple[dict[int, Sample], list[dict[str, Any]]]:
        """The samples of any method, and for each that cannot be read a problem of every method that needs it."""
        samples, records = {}, []
        for index in sorted({index for indices in pending.values() for index in indices}):
            try:
                sample = self.data[index]
                if sample.key != self.keys[index]:
                    raise InputError(f"{self.data.name} calls it {sample.key!r}, its keys() {self.keys[index]!r}")
                samples[index] = sample
            except Exception as error:
                line = self._problem(self.keys[index], error)
                records += [
                    self._record(self.keys[index], method, problem=line)
                    for method, indices in pending.items()
                    if index in indices
                ]
        return samples, records

    def _measure(self, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """One record per sample; a batch that fails is taken apart."""
        self.model.synchronize()
        start = self.clock()
        try:
            scores = self.benchmark.measure(self.model, samples, method)
        except UnsupportedModelError as error:
            self._drop(method, one_line(error))
            return []
        except Exception as error:
            if len(samples) == 1 or self.strict:
                line = self._problem(f"{samples[0].key}, {method}", error)
                return [self._record(samples[0].key, method, problem=line)]
            records = []
            for sample in samples:
                if method not in self.unsupported:
                    records += self._measure([sample], method)
            return records
        self.model.synchronize()
        seconds = (self.clock() - start) / len(samples)
        return [
            self._record(sample.key, method, seconds=seconds, scores=finite(item))
            for sample, item in zip(samples, scores, strict=True)
        ]

    def _record(self, key: str, method: str, **content: Any) -> dict[str, Any]:
        return {
            "key": key,
            "method": method,
            "settings": self.settings,
            "content": self.records.content(key, method),
            **content,
        }

    def _problem(self, where: str, error: Exception) -> str:
        """Report an item that failed, in one line; raise it if the run is strict."""
        line = one_line(error)
        if self.strict:
            raise InputError(f"{where}: {line}") from error
        self.progress.problem(f"{where}: {line}")
        return line

    def _drop(self, method: str, why: str) -> None:
        self.unsupported[method] = why
        if self.strict:
            raise InputError(f"{method}: {why}")
        self.progress.problem(f"{method}: {why}")
