"""The runner and its journal: nothing lost, nothing doubled, nothing hidden."""

import json
import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from helpers.fakes import Data, ModelUnderTest, block, scene
from PIL import Image

from legrad.atomic import write_atomically
from legrad.bench.benchmark import Metric
from legrad.bench.code import code_digest
from legrad.bench.content import Contents
from legrad.bench.journal import Journal, Key
from legrad.bench.report.page import report
from legrad.bench.result import Result
from legrad.bench.runner import Limits, Progress, run, share_out
from legrad.bench.summaries import compare, mean, ratio
from legrad.datasets import ImageFolder
from legrad.errors import InputError, UnsupportedModelError


@dataclass(frozen=True)
class Area:
    """Counts the pixels of the first mask; ``method`` may break it."""

    scale: float = 1.0
    name: ClassVar[str] = "area"
    batch: ClassVar[int] = 2
    question: ClassVar[str] = "How large?"
    reading: ClassVar[str] = "Larger is larger."
    metrics: ClassVar[dict] = {"area": Metric("area", mean(lambda item: item["area"]), "higher", "pixels", 1.0)}

    def protocol(self):
        return {"scale": self.scale}

    def prepare(self, model, data):
        pass

    def measure(self, model, samples, method):
        model.asked.append((method, [s.key for s in samples]))
        if method == "legrad:layers=9":
            raise UnsupportedModelError("no such layer")
        if any(s.label == "bad" for s in samples):
            raise ValueError("bad\nsample")
        return [{"area": self.scale * int(next(iter(s.masks.values())).sum())} for s in samples]


def five():
    return Data([scene(f"item-{i}", {"square": block((0, 1), (0, i + 1))}) for i in range(5)])


def areas(result, method="legrad"):
    return {key: one["area"] for key, one in result.content["scores"][method].items()}


@pytest.fixture
def go(tmp_path):
    def call(data, methods=("legrad",), benchmark=None, **options):
        model = ModelUnderTest(data, None)
        result = run(benchmark or Area(), model, data, methods, tmp_path, **options)
        return result, model.asked

    return call


def test_every_item_is_measured_once_and_written(go, tmp_path):
    result, asked = go(five(), ("legrad", "legrad:layers=1"))
    expected = {f"item-{i}": i + 1 for i in range(5)}
    assert areas(result) == areas(result, "legrad:layers=1") == expected
    assert sorted(key for method, keys in asked for key in keys if method == "legrad") == sorted(expected)
    (path,) = tmp_path.glob("*.json")
    assert path.name.startswith("area-fake-")
    written = Result.read(path).content
    assert written == json.loads(json.dumps(result.content))
    assert written["complete"] is True
    assert written["methods"]["legrad"]["metrics"]["area"]["value"] == 3
    assert written["methods"]["legrad"]["items"] == 5
    assert written["settings"]["protocol"] == {"scale": 1.0}
    assert written["chance"] == {"area": 1.0}
    assert len((tmp_path / "area.jsonl").read_text().splitlines()) == 10


def test_a_second_run_measures_nothing(go):
    first, _ = go(five())
    second, asked = go(five())
    assert asked == []
    assert areas(first) == areas(second)


def test_a_killed_run_goes_on_behind_its_last_whole_line(go, tmp_path):
    go(five())
    journal = tmp_path / "area.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    kept, torn = lines[:2], lines[2]
    journal.write_bytes(b"".join(kept) + torn[: len(torn) // 2])
    done = [json.loads(line)["key"] for line in kept]
    result, asked = go(five())
    assert areas(result) == {f"item-{i}": i + 1 for i in range(5)}
    again = [key for _, keys in asked for key in keys]
    assert sorted(again + done) == [f"item-{i}" for i in range(5)]
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sorted(record["key"] for record in records) == [f"item-{i}" for i in range(5)]


def test_a_damaged_line_before_the_last_is_an_error(go, tmp_path):
    go(five())
    journal = tmp_path / "area.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(lines[0] + "{nonsense\n" + lines[1])
    with pytest.raises(InputError, match=r"area.jsonl, line 2, is damaged .*delete that line"):
        go(five())


def test_other_settings_are_other_items(go, tmp_path):
    go(five())
    result, asked = go(five(), benchmark=Area(scale=2.0))
    assert areas(result)["item-4"] == 10
    assert sum(len(keys) for _, keys in asked) == 5
    assert len(list(tmp_path.glob("area-fake-*.json"))) == 2


def test_methods_added_later_join_the_same_result(go):
    go(five())
    result, asked = go(five(), ("legrad:layers=1",))
    assert {method for method, _ in asked} == {"legrad:layers=1"}
    assert set(result.content["methods"]) == {"legrad", "legrad:layers=1"}


def test_bad_items_are_listed_and_counted_and_tried_again(go):
    data = five()
    good = data.samples[1]
    data.samples[1] = None
    data.samples[3] = scene("item-3", {"square": block((0, 1), (0, 4))}, label="bad")
    told = []
    result, _ = go(data, progress=Progress(problem=told.append))
    assert areas(result) == {"item-0": 1, "item-2": 3, "item-4": 5}
    problems = {one["key"]: one for one in result.content["problems"]}
    assert problems["item-1"]["problem"] == "item-1 is torn"
    assert problems["item-3"]["problem"] == "ValueError: bad sample"
    assert problems["item-3"]["methods"] == ["legrad"]
    assert result.content["methods"]["legrad"]["problems"] == 2
    assert sorted(told) == ["item-1: item-1 is torn", "item-3, legrad: ValueError: bad sample"]
    data.samples[1] = good
    mended, asked = go(data)
    assert areas(mended) == {"item-0": 1, "item-1": 2, "item-2": 3, "item-4": 5}
    assert [one["key"] for one in mended.content["problems"]] == ["item-3"]
    assert {key for _, keys in asked for key in keys} == {"item-1", "item-3"}


@pytest.mark.parametrize(("index", "message"), [(1, "item-1: item-1 is torn"), (3, "item-3, legrad: ValueError: bad")])
def test_strict_stops_at_the_first_problem(go, index, message):
    data = five()
    data.samples[index] = None if index == 1 else scene("item-3", {"square": block((0, 1), (0, 4))}, label="bad")
    if index == 3:
        data.samples = data.samples[3:4]
        data.keys = lambda: ["item-3"]
    with pytest.raises(InputError, match=message):
        go(data, strict=True)


def test_strict_stops_at_an_unsupported_method_and_at_the_readers_problems(go):
    with pytest.raises(InputError, match="legrad:layers=9: no such layer"):
        go(five(), ("legrad", "legrad:layers=9"), strict=True)
    data, told = five(), []
    data.facts["problems"] = ["2 x a point that is unsure; first: line 3"]
    go(data, progress=Progress(problem=told.append))
    assert told == ["tiny: 2 x a point that is unsure; first: line 3"]
    with pytest.raises(InputError, match="tiny: 2 x a point that is unsure"):
        go(data, strict=True)


def test_a_bad_image_that_was_taken_out_is_no_problem_any_more(go):
    data = five()
    data.samples[4] = None
    assert len(go(data)[0].content["problems"]) == 1
    data.samples.pop()
    result, _ = go(data)
    assert (result.content["problems"], result.content["methods"]["legrad"]["problems"]) == ([], 0)
    assert result.content["methods"]["legrad"]["items"] == 4


def test_a_method_that_the_model_cannot_support_is_one_line(go):
    result, asked = go(five(), ("legrad", "legrad:layers=9"))
    assert result.content["unsupported"] == {"legrad:layers=9": "no such layer"}
    assert result.content["methods"]["legrad:layers=9"]["items"] == 0
    assert len(areas(result)) == 5
    assert sum(method == "legrad:layers=9" for method, _ in asked) == 1


def test_a_method_that_always_fails_is_given_up(go):
    data = Data([scene(f"item-{i}", {"square": block((0, 1), (0, 1))}, label="bad") for i in range(40)])
    result, _ = go(data)
    assert result.content["unsupported"] == {"legrad": "20 items failed in a row: ValueError: bad sample"}
    assert result.content["methods"]["legrad"]["problems"] == 20


def forty(bad):
    """Images of which ``bad`` cannot be measured."""
    made = [scene(f"item-{i}", {"square": block((0, 1), (0, 1))}, label="bad" if i in bad else None) for i in range(40)]
    return Data(made)


def test_old_failures_that_come_first_do_not_end_a_method_that_works(go):
    """A run that was cut at 25 of 40 items, 22 of which fail, goes on with the other 15."""
    order = np.random.default_rng(0).permutation(40).tolist()
    data = forty(set(order[3:25]))
    first, _ = go(data, limits=Limits(items=25))
    assert (first.content["methods"]["legrad"]["items"], first.content["methods"]["legrad"]["problems"]) == (3, 22)
    second, _ = go(data)
    assert second.content["unsupported"] == {}
    assert (second.content["methods"]["legrad"]["items"], second.content["methods"]["legrad"]["problems"]) == (18, 22)


def test_old_failures_alone_do_not_end_a_method(go):
    """The first 20 items fail, 19 of them in a run before, and the others succeed."""
    order = np.random.default_rng(0).permutation(40).tolist()
    data = forty(set(order[:20]))
    go(data, limits=Limits(items=19))
    second, _ = go(data)
    assert second.content["unsupported"] == {}
    assert second.content["methods"]["legrad"]["items"] == 20


def test_an_interrupt_leaves_a_result_and_is_resumed(go, tmp_path):
    calls = []

    class Interrupting(Area):
        def measure(self, model, samples, method):
            calls.append(method)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return super().measure(model, samples, method)

    with pytest.raises(KeyboardInterrupt):
        go(five(), benchmark=Interrupting())
    (path,) = tmp_path.glob("*.json")
    written = Result.read(path).content
    assert (written["complete"], written["methods"]["legrad"]["items"]) == (False, 1)
    result, asked = go(five())
    assert result.content["complete"] is True
    assert len(areas(result)) == 5
    assert sum(len(keys) for _, keys in asked) == 4


@pytest.mark.parametrize(("batch", "sizes"), [(8, [1, 1, 2, 1]), (16, [5])])
def test_the_first_samples_come_one_by_one_unless_batches_are_large(go, monkeypatch, batch, sizes):
    monkeypatch.setattr(Area, "batch", batch)
    _, asked = go(five())
    assert [len(keys) for _, keys in asked] == sizes


def test_limits_on_items(go):
    data = five()
    limits = Limits(items=4, per_method={"legrad": 3})
    result, _ = go(data, limits=limits)
    assert len(areas(result)) == 3
    assert len(areas(go(data, limits=Limits(items=4))[0])) == 4
    left_out, asked = go(data, ("legrad", "random"), limits=Limits(per_method={"random": 0}))
    assert left_out.content["cuts"] == ["random: left out by this run's limits"]
    assert {method for method, _ in asked} == {"legrad"}


def test_time_cuts_items_and_says_so(go):
    data = Data([scene(f"item-{i}", {"square": block((0, 1), (0, 1))}) for i in range(40)])
    now = [0.0]

    class Slow(Area):
        def measure(self, model, samples, method):
            now[0] += len(samples) * (1.0 if method == "legrad:layers=1" else 0.1)
            return super().measure(model, samples, method)

    result, _ = go(
        data,
        ("legrad", "legrad:layers=1"),
        benchmark=Slow(),
        limits=Limits(seconds=14.0),
        clock=lambda: now[0],
    )
    # the cheap method needs 4 s for all, the other one gets the remaining 10 s
    assert result.content["methods"]["legrad"]["items"] == 40
    assert result.content["methods"]["legrad:layers=1"]["items"] == 10
    assert result.content["cuts"] == ["legrad:layers=1: 10 of 40 items, cut to fit 14 s at 1.00 s per item"]
    assert now[0] == pytest.approx(14)


def test_a_slow_first_call_does_not_decide(go):
    data = Data([scene(f"item-{i}", {"square": block((0, 1), (0, 1))}) for i in range(40)])
    now = [0.0]

    class Warming(Area):
        def measure(self, model, samples, method):
            now[0] += 0.1 * len(samples) if now[0] else 4.0
            return super().measure(model, samples, method)

    result, _ = go(data, benchmark=Warming(), limits=Limits(seconds=9.0), clock=lambda: now[0])
    assert result.content["methods"]["legrad"]["items"] == 40
    assert result.content["cuts"] == []


def test_share_out():
    assert share_out({"a": 1, "b": 10, "c": 10}, 30) == {"a": 1, "b": 10, "c": 10}
    assert share_out({"a": 1, "b": 10, "c": 40}, 13) == {"a": 1, "b": 6, "c": 6}
    assert share_out({}, 13) == {}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((), "at least one"),
        (("legrad", "legrad"), "twice"),
        (("legrat",), "no method 'legrat'; known: legrad"),
        (("legrad:layers=x",), "METHOD:layers=K"),
        (("legrad:readout=mine",), "got 'readout=mine'"),
    ],
)
def test_wrong_methods(go, methods, message):
    with pytest.raises(InputError, match=message):
        go(five(), methods)


def test_two_items_of_one_name(go):
    data = five()
    data.keys = lambda: ["a", "b", "a", "c", "d"]
    with pytest.raises(InputError, match="two items with the key 'a'"):
        go(data)


def test_two_runs_do_not_write_one_journal(go, tmp_path):
    with Journal(tmp_path / "area.jsonl"), pytest.raises(InputError, match="another run writes"):
        go(five())


def test_the_last_record_of_an_item_counts(tmp_path):
    key = {"key": "a", "method": "legrad", "settings": "x"}
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append([{**key, "problem": "torn"}])
        assert not journal.done(Key("a", "legrad", "x"))
        journal.append([{**key, "scores": {"area": 1}}])
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.done(Key("a", "legrad", "x"))
        assert not journal.done(Key("a", "legrad", "y"))
        assert [record["scores"] for record in journal.of("x")] == [{"area": 1}]


# -- statistics ---------------------------------------------------------------------------------------------------


def test_a_paired_difference_is_tighter_than_its_parts():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 200)
    items = {
        "a": {str(i): {"x": x} for i, x in enumerate(base)},
        "b": {str(i): {"x": x + 0.1 + 0.01 * rng.normal()} for i, x in enumerate(base)},
    }
    found = compare(items, mean(lambda item: item["x"]), "a")
    assert found["a"]["high"] - found["a"]["low"] > 0.2
    assert found["a"]["difference"] is None
    assert found["b"]["difference_low"] == pytest.approx(0.1, abs=0.01)
    assert found["b"]["difference_high"] == pytest.approx(0.1, abs=0.01)


def test_a_difference_is_over_common_items():
    items = {"a": {"0": {"x": 1.0}, "1": {"x": 5.0}}, "b": {"0": {"x": 2.0}, "7": {"x": 9.0}}, "c": {}}
    found = compare(items, mean(lambda item: item["x"]), "a")
    assert (found["a"]["value"], found["b"]["value"]) == (3, 5.5)
    assert found["b"]["difference"] == 1
    assert set(found) == {"a", "b"}


def test_ratio_of_sums():
    items = [{"hit": 1, "of": 3}, {"hit": 1, "of": 1}]
    statistic = ratio(lambda i: i["hit"], lambda i: i["of"])(items)
    assert statistic(np.array([1.0, 1.0])) == 0.5
    assert statistic(np.array([2.0, 0.0])) == pytest.approx(1 / 3)
    assert np.isnan(statistic(np.zeros(2)))


# -- records that are not what they should be -----------------------------------------------------------------------


def damage(tmp_path, change):
    """Change the second line of the journal."""
    journal = tmp_path / "area.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    record = json.loads(lines[1])
    lines[1] = change(record)
    journal.write_text("".join(lines))
    return journal.read_bytes()


def replaced(**values):
    return lambda record: json.dumps({**record, **values}) + "\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "[" * 100_000 + "\n",
        lambda _: "{}\n",
        lambda _: "7\n",
        replaced(scores="text"),
        replaced(scores={}),
        replaced(scores=None),
        replaced(scores=[1]),
        replaced(scores={"other": 1}),
        replaced(scores={"area": "large"}),
        replaced(scores={"area": [1, 2]}),
        replaced(scores={"area": {}}),
        replaced(seconds="long"),
        replaced(seconds=None),
        replaced(seconds=-1),
        replaced(seconds=True),
        lambda record: json.dumps({key: value for key, value in record.items() if key != "seconds"}) + "\n",
        lambda record: json.dumps({key: value for key, value in record.items() if key != "scores"}) + "\n",
        replaced(key=7),
        replaced(method=None),
        replaced(settings=[]),
        replaced(content=3),
    ],
)
def test_a_damaged_record_is_named_by_its_line(go, tmp_path, change):
    go(five())
    before = damage(tmp_path, change)
    with pytest.raises(InputError, match=r"area\.jsonl, line 2, is damaged \(.*\); delete that line") as raised:
        go(five())
    assert "\n" not in str(raised.value)
    assert (tmp_path / "area.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", [b"mine", b'{"a": 1}', b'{"a": 1}\n{"b"', b"# notes\n"])
def test_a_file_of_somebody_else_is_no_journal_and_stays(go, tmp_path, content):
    (tmp_path / "area.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"area\.jsonl, line 1, is damaged"):
        go(five())
    assert (tmp_path / "area.jsonl").read_bytes() == content


def test_a_result_does_not_replace_what_is_none(go, tmp_path):
    go(five())
    (path,) = tmp_path.glob("*.json")
    path.write_text("{}")
    with pytest.raises(InputError, match=r"area-fake-.*\.json is in the way, and is not replaced"):
        go(five())
    assert path.read_text() == "{}"


@pytest.mark.parametrize("seed", [-1, 1.5, "x", None, True])
def test_a_seed_is_a_whole_number(go, seed):
    with pytest.raises(InputError, match="seed is a whole number from 0, got"):
        go(five(), seed=seed)


def test_a_full_disk_ends_a_run_in_one_line(go, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*area\.jsonl: No space left on device"):
        go(five())


# -- what has changed since -----------------------------------------------------------------------------------------


def test_an_item_with_new_content_is_measured_again(go):
    data, told = five(), []
    go(data)
    data.samples[2] = scene("item-2", {"square": block((0, 2), (0, 3))})
    result, asked = go(data, progress=Progress(problem=told.append))
    assert areas(result) == {"item-0": 1, "item-1": 2, "item-2": 6, "item-3": 4, "item-4": 5}
    assert [keys for _, keys in asked] == [["item-2"]]
    assert told == ["tiny: 1 items have changed since they were measured, such as item-2; they are measured again"]
    again, asked = go(data)
    assert (areas(again), asked) == (areas(result), [])


def test_an_item_that_is_gone_is_in_no_result(go):
    data = five()
    go(data)
    data.samples.pop()
    result, _ = go(data)
    assert set(areas(result)) == {f"item-{i}" for i in range(4)}


def test_files_decide_about_the_items_of_a_folder(tmp_path):
    paths = []
    for index in range(3):
        path = tmp_path / "data" / f"class-{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
        paths.append(path)
    contents = Contents(ImageFolder(tmp_path / "data"))
    before = [contents[index] for index in range(3)]
    assert len(set(before)) == 3
    stat = paths[0].stat()
    data = bytearray(paths[0].read_bytes())
    data[-20] ^= 1
    paths[0].write_bytes(data)
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # neither size nor time says anything
    data_set = ImageFolder(tmp_path / "data")
    after = dict(zip(data_set.keys(), map(Contents(data_set).__getitem__, range(3)), strict=True))
    assert {key for key, value in after.items() if value not in before} == {"class-0/0.png"}


def test_files_that_cannot_be_named_are_one_items_problem(go):
    data = five()

    def files(index):
        if index == 1:
            raise InputError("leads out of its folder")
        return []

    data.files = files
    data.samples[1] = None
    result, _ = go(data)
    assert set(areas(result)) == {"item-0", "item-2", "item-3", "item-4"}
    assert [one["problem"] for one in result.content["problems"]] == ["item-1 is torn"]


def test_other_code_measures_anew(go, monkeypatch):
    go(five())
    assert go(five())[1] == []
    monkeypatch.setattr("legrad.bench.runner.code_digest", lambda: "other")
    assert sum(len(keys) for _, keys in go(five())[1]) == 5


def test_the_code_is_what_computes(tmp_path, monkeypatch):
    root = tmp_path / "legrad"
    for name in ("__init__.py", "core/a.py", "cli/b.py", "viz.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("1")
    monkeypatch.setattr("legrad.__file__", str(root / "__init__.py"))

    def changed(name):
        before = code_digest.__wrapped__()
        (root / name).write_text("2")
        return code_digest.__wrapped__() != before

    assert [changed(name) for name in ("core/a.py", "cli/b.py", "viz.py", "__init__.py")] == [True, False, False, True]


# -- reports --------------------------------------------------------------------------------------------------------


def test_a_report_replaces_its_own_files_only(go, tmp_path):
    go(five())
    mine = {"report.md": "# mine", "report.csv": "a,b"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    for _ in range(2):
        assert report(tmp_path) == tmp_path / "report-2.md"
        assert {name: (tmp_path / name).read_text() for name in mine} == mine
        assert (tmp_path / "report-2.csv").is_file()
        (figure,) = (tmp_path / "figures").iterdir()
    figure.write_bytes(b"painted over")
    report(tmp_path)
    assert figure.read_bytes() == b"painted over"
    assert f"figures/{figure.stem}-2.png" in (tmp_path / "report-2.md").read_text()
    (tmp_path / "report-2.md").write_text((tmp_path / "report-2.md").read_text().replace("Benchmark", "My"))
    assert report(tmp_path) == tmp_path / "report-3.md"


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_a_report_that_was_killed_leaves_nothing_behind(go, tmp_path, monkeypatch, written):
    go(five())
    report(tmp_path)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    go(five(), ("legrad", "random"))  # other figures and tables

    class Killed(BaseException):
        pass

    room = [written]

    def write(path, data, write=write_atomically):
        if not room[0]:
            raise Killed
        room[0] -= 1
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("legrad.bench.report.record.write_atomically", write)
        with pytest.raises(Killed):
            report(tmp_path)
    report(tmp_path)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == names


def test_a_file_where_the_figures_should_be(go, tmp_path):
    go(five())
    (tmp_path / "figures").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write .*figures"):
        report(tmp_path)


def test_a_report_of_names_that_are_no_utf8(go, tmp_path):
    data = five()
    data.samples[1] = None
    data.keys = lambda: ["item-0", os.fsdecode(b"\xff.png"), "item-2", "item-3", "item-4"]
    go(data)
    assert rb"\udcff.png" in report(tmp_path).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [],
        lambda content: {**content, "methods": "text"},
        lambda content: {**content, "methods": {}},
        lambda content: {**content, "metrics": {}},
        lambda content: {**content, "settings": {}},
        lambda content: {**content, "settings": {**content["settings"], "subject": 7}},
        lambda content: {**content, "scores": {"legrad": [1]}},
        lambda content: {**content, "problems": ["text"]},
        lambda content: {**content, "chance": None},
        lambda content: {**content, "statistics": {"paired with": "other"}},
        lambda content: {**content, "metrics": {"area": {"title": 7, "better": "higher", "meaning": ""}}},
        lambda content: {
            **content,
            "methods": {"legrad": {"items": 5, "problems": 0, "metrics": {"area": {"value": 1}}}},
        },
        lambda content: {**content, "versions": {"legrad": None}},
        lambda content: {**content, "cuts": [None]},
    ],
)
def test_a_damaged_result_is_left_out_of_a_report(go, tmp_path, change):
    result, _ = go(five())
    (tmp_path / "other.json").write_text(json.dumps(change(result.content)))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.warns(UserWarning, match=r"left out of the report: .*(other|deep)\.json is not a result") as told:
        page = report(tmp_path)
    assert len([one for one in told if "left out" in str(one.message)]) == 2
    assert page.read_text().count("## area") == 1
