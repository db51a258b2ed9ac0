"""The benchmark harness itself: order of measuring, arithmetic, verdicts, resuming. Nothing here looks at a clock."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny as models

from performance import __main__ as run
from performance import goals, growth, memory, page, sampling, store, tables, worker, workloads
from performance.cases import B16, BIGG, CASES, TIMM, Case, select
from performance.contenders import RIVALS, prove
from performance.results import Results
from tools import publish_study

SETTINGS = {"device": "cpu", "threads": 2, "quick": False}
MACHINE = {
    "cpu": "Some CPU",
    "instructions": "AVX2",
    "cores": 2,
    "memory_gb": 25.0,
    "system": "Linux 6",
    "python": "3.11.7",
    "libraries": {"torch": "2.15.0"},
}


def timed(case, bare, warm, first=None, **more):
    seconds = {"bare": bare, "warm": warm, **more}
    return {"case": case.as_dict(), "seconds": seconds, "first": first or {}, "load": 0.1, "revision": "abc"}


def weighed(case, before, peak, weights=1e9, empty=4e8):
    one = {"empty": empty, "before": before, "peak": peak, "weights": weights, "how": "VmHWM", "seconds": 1.0}
    return {"case": case.as_dict(), "runs": [one], "load": 0.1, "revision": "abc"}


def entries(factor=1.0):
    """Every case measured: ``factor`` bare forwards, or ``factor`` GB above the weights."""
    found = {}
    for case in CASES:
        if case.measure == "time":
            found[case.key] = timed(case, [1.0, 2.0, 1.0], [factor, 2 * factor, factor])
        else:
            found[case.key] = weighed(case, 1e9, 1e9 + factor * 1e9)
    return found


# -- sampling ---------------------------------------------------------------------------------------------------------


class Clock:
    """Advances only when a contender says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_contenders_take_turns_after_one_warm_up_each():
    clock, calls = Clock(), []

    def contender(name, seconds):
        def call():
            calls.append(name)
            clock.now += seconds

        return call

    contenders = {"bare": contender("A", 1.0), "warm": contender("B", 2.0)}
    samples, first = sampling.interleave(contenders, repeats=3, budget=0, clock=clock)
    assert "".join(calls) == "AB" + "ABABAB"
    assert samples == {"bare": [1.0] * 3, "warm": [2.0] * 3}
    assert first == {"bare": 1.0, "warm": 2.0}


@pytest.mark.parametrize(("seconds", "rounds"), [(100.0, 3), (2.0, 5), (1e-3, 15)])
def test_rounds_fit_the_budget_within_limits(seconds, rounds):
    clock = Clock()

    def call():
        clock.now += seconds

    samples, _ = sampling.interleave({"bare": call}, repeats=None, budget=10, clock=clock)
    assert len(samples["bare"]) == rounds


def test_the_device_is_waited_for_before_both_readings():
    seen = []
    sampling.interleave(
        {"bare": lambda: seen.append("call")}, repeats=1, budget=0, synchronise=lambda: seen.append("wait")
    )
    assert seen == ["wait", "call", "wait"] * 2


def test_ratios_are_taken_within_a_round():
    # the second round ran on a machine half as fast; the ratio does not notice
    assert sampling.ratios([1.5, 3.0, 1.6], [1.0, 2.0, 1.0]) == sampling.Spread(1.5, 1.5, 1.6, 3)


def test_a_quotient_has_the_widest_range():
    above, below = sampling.Spread(8.0, 7.0, 9.0, 5), sampling.Spread(2.0, 1.0, 3.0, 3)
    assert sampling.quotient(above, below) == sampling.Spread(4.0, 7 / 3, 9.0, 3)


def test_a_line_through_points():
    slope, start = sampling.line([(1, 1.5), (4, 3.0), (8, 5.0)])
    assert (slope, start) == (pytest.approx(0.5), pytest.approx(1.0))
    assert growth.number_or_none(sampling.line([(1, 2.0)])[0]) is None


# -- the cases --------------------------------------------------------------------------------------------------------


def test_keys_are_unique_and_read_back():
    assert len({case.key for case in CASES}) == len(CASES)
    assert all(Case(**json.loads(json.dumps(case.as_dict()))) == case for case in CASES)


def test_selection():
    assert not any(case.cuda for case in select(CASES, False, None, cuda=False))
    quick = select(CASES, True, None, cuda=False)
    assert 0 < len(quick) < len(CASES) / 3
    assert {case.contender for case in select(CASES, False, "authors", cuda=False)} == {"authors"}
    only = select(CASES, False, "time:ours:*:batch8:prompts1:last2:auto:*", cuda=False)
    assert {(case.batch, case.layers) for case in only} == {(8, 2)}


def test_each_rival_is_compared_with_ours_on_the_same_model():
    found = {case.key for case in CASES}
    for case in CASES:
        if case.contender in RIVALS:
            assert replace(case, contender="ours").key in found, case.key


# -- the verdicts -----------------------------------------------------------------------------------------------------


def test_every_goal_finds_its_cases():
    rows = tables.goals(Results(entries()))[2]
    assert [row[0] for row in rows if row[3] == "not measured"] == []


def test_nothing_measured_is_no_verdict():
    assert {row[3] for row in tables.goals(Results({}))[2]} == {"not measured"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.10, "met"), (1.11, "not met")])
def test_an_upper_limit(factor, verdict):
    row = goals.GOALS[0].row(Results(entries(factor)))
    assert row == (
        "1 prompt, last 2 layers, batch 8",
        "at most 1.1",
        f"{factor:.2f} [{factor:.2f}, {factor:.2f}]",
        verdict,
    )


def test_goals_by_hand():
    found = entries()
    for prompts, ratio in ((1, 1.4), (4, 2.6), (8, 4.2), (16, 7.4)):
        case = Case("time", "ours", B16, batch=8, prompts=prompts)
        found[case.key] = timed(case, [1.0], [ratio])
    for contender, seconds, extra in (("authors", 31.0, 5.5e9), ("ours", 6.2, 0.5e9)):
        case = Case("time", contender, B16, prompts=16)
        found[case.key] = timed(case, [1.0], [seconds])
        case = Case("memory", contender, B16, prompts=16)
        found[case.key] = weighed(case, 1e9, 1e9 + extra)
    big = Case("memory", "ours", BIGG, dtype="bfloat16")
    found[big.key] = weighed(big, 4e9, 5.6e9, weights=4e9)
    rows = {row[0]: row[2:] for row in tables.goals(Results(found))[2]}
    assert rows["each further prompt, batch 8 (slope)"] == ("0.40", "met")
    assert rows["authors / ours, time, 16 prompts, batch 1"] == ("5.00", "met")
    assert rows["authors / ours, extra memory, 16 prompts, batch 1"] == ("11.00", "met")
    bigg = "ViT-bigG/14, bf16, 48 layers, peak of the process / weights"
    assert rows[bigg] == ("1.40", "not met")


def test_a_series_holds_everything_else_still():
    ratios = {"layers": [(2, 1.1), (4, 1.2), (8, 1.4), (12, 1.6)], "tokens": [(197, 1.5), (785, 1.6), (3970, 2.0)]}
    found = entries()
    for layers, ratio in ((2, 1.1), (4, 1.2), (8, 1.4), (None, 1.6)):
        case = Case("time", "ours", B16, batch=8, layers=layers)
        found[case.key] = timed(case, [1.0], [ratio])
    for size, ratio in ((224, 1.5), (448, 1.6), (1022, 2.0)):
        case = Case("time", "ours", B16, size=size)
        found[case.key] = timed(case, [1.0], [ratio])
    series = {one.title: one for one in growth.SERIES}
    assert series["ours, 1 prompt, batch 8"].points(Results(found)) == ratios["layers"]
    assert series["ours, 1 prompt, batch 8"].slope(Results(found)) == pytest.approx(0.05)
    assert series["ours, 1 prompt, all layers"].points(Results(found)) == ratios["tokens"]


# -- tables and page --------------------------------------------------------------------------------------------------


def test_the_table_of_times():
    case = Case("time", "ours", B16, batch=8, layers=2)
    found = {case.key: timed(case, [1.0, 2.0, 1.0], [1.1, 2.2, 1.3], cold=[1.5, 3.0, 1.5])}
    assert tables.markdown(tables.times(Results(found))) == (
        "## Time, in bare forwards\n\n"
        "| model | px | batch | prompts | layers | read-out | bare forward, s | ours / bare | with check | n |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| ViT-B-16 | 224 | 8 | 1 | last 2 | auto | 1.000 [1.000, 2.000] | 1.10 [1.10, 1.30] | 1.50 [1.50, 1.50] | 3 |"
    )


def test_a_first_use_that_was_read_once_has_no_range():
    case = Case("time", "ours", B16, batch=8)
    results = Results({case.key: timed(case, [1.0, 2.0, 1.0], [1.1, 2.2, 1.3], first={"bare": 1.0, "warm": 1.9})})
    assert results.first_use(case).show() == "1.90"


def test_the_page_has_the_hand_written_part_and_the_failures(tmp_path):
    folder = tmp_path / "performance"
    folder.mkdir()
    (folder / page.ARGUMENTS).write_text("Because of the cache.\n")
    failed = CASES[-1]
    cases = entries() | {failed.key: {"case": failed.as_dict(), "error": "Traceback\nMemoryError: no", "revision": "x"}}
    content = {"machine": MACHINE, "settings": SETTINGS, "cases": cases}
    path = page.write(content, folder, ["prompts.png"])
    text = path.read_text()
    assert path == tmp_path / "performance.md"
    assert "Some CPU, 2 cores" in text
    assert text.index("## Targets") < text.index("Because of the cache.") < text.index("## Time, in bare forwards")
    assert "(performance/prompts.png)" in text
    assert f"- `{failed.key}`: MemoryError: no" in text


def test_growth_is_drawn(tmp_path):
    from performance import plots

    assert plots.draw(Results(entries()), tmp_path) == [f"{group}.png" for group in plots.AXES]
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")


# -- a run ------------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_and_failures_are_tried_again(tmp_path):
    path, cases = tmp_path / "out" / "results.json", CASES[:4]
    measured = []

    def measuring(case):
        measured.append(case)
        if len(measured) == 2:
            raise RuntimeError("out of luck")
        if len(measured) == 4:
            raise KeyboardInterrupt
        return {"seconds": {"bare": [1.0], "warm": [2.0]}}

    first = store.Store(path, SETTINGS, MACHINE)
    outcome = []
    with pytest.raises(KeyboardInterrupt):
        outcome.extend(run.measure_all(first, first.begin(cases, full=True), measuring, "abc"))
    assert list(json.loads(path.read_text())["cases"]) == [case.key for case in cases[:3]]
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]

    second = store.Store(path, SETTINGS, MACHINE)
    todo = second.begin(cases, full=True)
    assert todo == [cases[1], cases[3]]
    outcome = list(run.measure_all(second, todo, measuring, "def"))
    assert outcome == [(cases[1], None), (cases[3], None)]
    second.finish(cases)
    assert {entry["revision"] for entry in second.entries.values()} == {"abc", "def"}

    # complete: a full run measures anew, a run of some keeps the others
    third = store.Store(path, SETTINGS, MACHINE)
    assert third.complete
    assert third.begin(cases[:1], full=False) == [cases[0]]
    assert len(third.entries) == 4
    assert third.begin(cases, full=True) == list(cases)
    assert third.entries == {}


def test_a_failure_ends_only_its_case(tmp_path):
    results = store.Store(tmp_path / "results.json", SETTINGS, MACHINE)

    def measuring(case):
        if case is CASES[0]:
            raise RuntimeError("out of luck")
        return {"seconds": {}}

    assert list(run.measure_all(results, list(CASES[:2]), measuring, "abc")) == [
        (CASES[0], "out of luck"),
        (CASES[1], None),
    ]
    results.finish(CASES[:2])
    assert not results.complete


@pytest.mark.parametrize(
    ("settings", "machine"), [({**SETTINGS, "threads": 4}, MACHINE), (SETTINGS, {**MACHINE, "cpu": "Another"})]
)
def test_samples_of_other_settings_or_machines_are_not_mixed_in(tmp_path, settings, machine):
    first = store.Store(tmp_path / "results.json", SETTINGS, MACHINE)
    first.add(CASES[0], {"seconds": {}})
    other = store.Store(tmp_path / "results.json", settings, machine)
    assert (other.dropped, other.entries) == (1, {})


# -- what is measured -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(workloads._BUILDERS, "open_clip", lambda name, size: models.clip())
    monkeypatch.setattr(workloads, "_width", lambda name: 32)


@pytest.mark.parametrize(("prompts", "names"), [(1, ["bare", "warm", "cold"]), (2, ["bare", "warm"])])
def test_ours_is_measured_beside_the_bare_forward(tiny, prompts, names):
    case = Case("time", "ours", B16, size=32, batch=2, prompts=prompts, layers=2)
    found = worker.measure_time(case, torch.device("cpu"), repeats=2, budget=0)
    assert {name: len(samples) for name, samples in found["seconds"].items()} == dict.fromkeys(names, 2)


def test_memory_is_read_around_the_first_call(tiny):
    case = Case("memory", "ours", B16, size=32, batch=2)
    found = worker.measure_memory(case, torch.device("cpu"))
    assert found["peak"] >= found["before"] > 0
    assert found["weights"] == sum(p.numel() * 4 for p in models.clip().parameters())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_the_peak_is_that_of_the_call():
    cpu = torch.device("cpu")
    torch.ones(100_000_000)  # 400 MB that are over before the call
    before = memory.resident(cpu)
    peak, how = memory.peak(lambda: torch.ones(50_000_000), cpu)
    if how == memory.BY_USAGE:
        pytest.skip("this kernel does not let the mark be reset")
    assert 180e6 < peak - before < 260e6


class Nudge(torch.nn.Module):
    """Adds zeros that can be differentiated: their gradient is the attention's."""

    def forward(self, attention):
        self.attention = attention.detach()
        self.zeros = torch.zeros_like(attention, requires_grad=True)
        return attention + self.zeros


def test_chefer_relevance_is_the_product_over_blocks():
    import timm

    from performance.chefer import CheferCAM

    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = models.randomised(timm.create_model(TIMM.split("/")[1], **settings)).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = CheferCAM(copy.deepcopy(model))(images, 3)
    nudges = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop = Nudge()
        nudges.append(block.attn.attn_drop)
    model(images)[:, 3].sum().backward()
    first, second = ((n.zeros.grad * n.attention).clamp(min=0).mean(1) + torch.eye(17) for n in nudges)
    assert found.shape == (2, 16)
    torch.testing.assert_close(found, (second @ first)[:, 0, 1:])


def test_a_package_from_elsewhere_is_noticed(tmp_path):
    with pytest.raises(RuntimeError, match="legrad was imported from"):
        prove(RIVALS["authors"], tmp_path)


# -- the study's page ------------------------------------------------------------------------------------------------


def study_result(benchmark, protocol, metrics, methods):
    """A result of a study: methods -> (items, a value for every metric)."""

    def numbers(method, place):
        value, reference = methods[method][place + 1], methods["legrad"][place + 1]
        paired = (None, None) if method == "legrad" else (value - reference - 0.05, value - reference + 0.05)
        return {"value": value, "difference_low": paired[0], "difference_high": paired[1]}

    return {
        "benchmark": benchmark,
        "settings": {"protocol": protocol, "subject": {"model": "tiny"}},
        "statistics": {"paired with": "legrad"},
        "metrics": {name: {"title": name, "better": "higher"} for name in metrics},
        "chance": dict.fromkeys(metrics, 0.25),
        "scores": {method: dict.fromkeys(range(items)) for method, (items, *_) in methods.items()},
        "methods": {
            method: {"items": items, "metrics": {name: numbers(method, place) for place, name in enumerate(metrics)}}
            for method, (items, *_) in methods.items()
        },
    }


def test_the_tables_of_the_studys_page():
    methods = {"legrad": (40, 0.5, 0.2), "good": (40, 0.7, 0.3), "near": (40, 0.52, 0.2), "slow": (34, 0.9, 0.1)}
    predicted = {name: (items, 0.0, 0.0) for name, (items, *_) in methods.items()}
    contents = [
        study_result("localisation", {}, ["pointing", "energy"], methods),
        study_result("segmentation", {"explained": "predicted"}, ["miou", "map"], predicted),
        study_result("segmentation", {"explained": "truth"}, ["miou", "map"], methods),
        study_result("speed", {}, ["slowdown"], {"legrad": (9, 1.5), "slow": (2, 123.4)}),
        study_result(
            "ablation",
            {"scored by": "localisation"},
            ["pointing"],
            {
                "legrad": (48, 0.5),
                "legrad-norelu:layers=2:readout=native": (48, 0.3),
                "legrad:layers=1:heads=0": (48, 0.1),
            },
        ),
    ]
    markers = ("standing tiny", "variants tiny")
    old = "\n".join(f"words\n<!-- {name} -->\nold\n<!-- end -->" for name in markers) + "\nlast words\n"
    found = publish_study.fill(old, contents).splitlines()
    assert found == [
        "words",
        "<!-- standing tiny -->",
        "| method | pointing game | energy | mIoU | mAP | cost |",
        "| --- | --- | --- | --- | --- | --- |",
        "| legrad | 0.500 | 0.200 | 0.500 | 0.200 | 1.5 |",
        "| good | **0.700 ▲** | **0.300 ▲** | **0.700 ▲** | **0.300 ▲** |  |",
        "| near | 0.520 | 0.200 | 0.520 | 0.200 |  |",
        "| slow | 0.900 (34) ▲ | 0.100 (34) ▼ | 0.900 (34) ▲ | 0.100 (34) ▼ | 123 |",
        "| *chance* | 0.250 | 0.250 | 0.250 | 0.250 | |",
        "",
        "Images: localisation 40, segmentation (predicted) 40, segmentation (truth) 40, speed 9, "
        "ablation (localisation) 48.",
        "<!-- end -->",
        "words",
        "<!-- variants tiny -->",
        "| variant | pointing game |",
        "| --- | --- |",
        "| legrad | 0.500 |",
        "| no ReLU, last 2, native | 0.300 ▼ |",
        "<!-- end -->",
        "last words",
    ]
    assert publish_study.fill("\n".join(found), contents) == "\n".join(found)
