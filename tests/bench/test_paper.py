"""Tables and figures for a paper: the same numbers in every format, and BibTeX."""

import csv
import io
import re

import pytest
from helpers import fakes
from helpers.fakes import block

import legrad
from legrad import citations
from legrad.bench.report import comparison, report
from legrad.bench.report.page import results_in
from legrad.bench.report.tables import escaped, table
from legrad.bench.runner import run
from legrad.bench.tasks.segmentation import Segmentation


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of results with a report: two methods on three scenes."""
    folder = tmp_path_factory.mktemp("results")
    scenes = [fakes.scene(f"item-{i}", {"square": block((0, 4), (0, 2 + i))}) for i in range(3)]
    data = fakes.Data(scenes)
    maps = {"legrad": block((0, 4), (0, 4)), "rollout": block((2, 7), (0, 5))}
    model = fakes.ModelUnderTest(data, lambda sample, name, method: maps[method])
    run(Segmentation("truth"), model, data, list(maps), folder)
    report(folder)
    return folder


def numbers(text):
    return re.findall(r"-?\d+\.\d+", text)


def test_the_same_numbers_in_every_format(results):
    texts = {
        path.suffix: path.read_text()
        for path in (results / "paper").iterdir()
        if path.suffix in (".tex", ".md", ".csv")
    }
    assert set(texts) == {".tex", ".md", ".csv"}
    assert numbers(texts[".tex"].split("midrule", 1)[1]) == numbers(texts[".md"].split("---", 1)[1])
    assert numbers(texts[".csv"].split("\n", 1)[1]) == numbers(texts[".md"].split("---", 1)[1])
    ((_, content),) = results_in(results)
    value = comparison.number(content["methods"]["rollout"]["metrics"]["miou"]["value"])
    assert value in numbers(texts[".tex"])
    rows = list(csv.DictReader(io.StringIO(texts[".csv"])))
    assert [row["method"] for row in rows] == ["legrad", "rollout", "chance"]
    assert rows[1]["mIoU"] == value


def test_latex_is_booktabs(results):
    (path,) = (results / "paper").glob("*.tex")
    text = path.read_text()
    for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
        assert rule in text
    assert "|" not in text.split("toprule")[1]
    columns = re.search(r"begin{tabular}{(l+r+)}", text)[1]
    body = text.split("\\toprule")[1].split("\\bottomrule")[0]
    rows = [line for line in body.splitlines() if "&" in line]
    assert {line.count("&") + 1 for line in rows} == {len(columns)}
    assert escaped("50 % of_a {b} & \\") == r"50 \% of\_a \{b\} \& \textbackslash{}"


def test_figures_for_print(results):
    names = {path.suffix: path for path in (results / "paper").iterdir()}
    pdf, svg = names[".pdf"].read_bytes(), names[".svg"].read_text()
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert "<svg" in svg
    report(results)
    assert names[".pdf"].read_bytes() == pdf  # nothing changes from run to run
    assert names[".svg"].read_text() == svg


def test_some_metrics_in_a_table(results):
    ((_, content),) = results_in(results)
    assert [title for title, _ in table(content, ["map", "miou"]).heads] == ["mAP", "mIoU"]
    with pytest.raises(legrad.InputError, match="metric is one of"):
        table(content, ["nonsense"])
    with pytest.raises(legrad.InputError, match="format is one of 'latex'"):
        table(content).text("word")


def test_tables_on_the_command_line(results, script):
    done = script("legrad.cli", "bench", "table", str(results), "--metric", "miou")
    assert done.returncode == 0
    assert done.stdout.count("\\toprule") == 1
    assert "mIoU" in done.stdout
    assert script("legrad.cli", "bench", "table", str(results), "--format", "csv").stdout.startswith("method,images,")
    for arguments, message in (
        (["--format", "word"], "--format is one of"),
        (["--benchmark", "speed"], "has no result of 'speed'; there are segmentation"),
        (["--metric", "x"], "no result has the metrics x; there are miou"),
    ):
        done = script("legrad.cli", "bench", "table", str(results), *arguments)
        assert done.returncode == 2
        assert message in " ".join(done.stderr.split())


def test_every_method_and_every_entry_is_cited():
    assert set(citations.METHODS) == set(legrad.list_methods())
    entries = citations._entries()
    cited = {key for keys in (*citations.METHODS.values(), *citations.DATA_SETS.values()) for key in keys}
    assert cited == set(entries)
    for entry in entries.values():
        assert entry.count("{") == entry.count("}")
        fields = re.findall(r"^  (\w+) +=", entry, re.M)
        assert {"author", "title", "year"} <= set(fields)
        assert len(fields) == len(set(fields))
    # names and years are those of the tables of methods
    for name, method in legrad.methods.METHODS.items():
        for key in citations.METHODS[name][:1]:
            year, author = re.search(r"\d{4}", method.source)[0], re.search(r"[A-Z]\w+", key, re.I)[0]
            assert year in entries[key] or name in ("gradient-attention",)
            assert author
    everything = citations.bibtex()
    assert all(everything.count(entry) == 1 for entry in entries.values())


def test_cite_on_the_command_line(script):
    done = script("legrad.cli", "cite", "legrad", "GradCAM", "imagenet-segmentation", "random", "legrad:layers=2")
    assert done.returncode == 0
    assert re.findall(r"@\w+{(\w+),", done.stdout) == [
        "bousselham2025legrad",
        "selvaraju2017gradcam",
        "guillaumin2014imagenet",
        "russakovsky2015imagenet",
    ]
    assert "% random: a control" in done.stdout
    done = script("legrad.cli", "cite", "gradcamm")
    assert done.returncode == 2
    assert "nothing to cite for 'gradcamm'; did you mean 'gradcam'?" in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert script("legrad.cli", "cite").stdout.count("@") == len(citations._entries())


def test_what_cannot_be_cited():
    for name in ("nonsense", 3, None):
        with pytest.raises(legrad.InputError, match="nothing to cite for"):
            citations.bibtex([name])
    own = {"mine": "@misc{mine, title={Mine}}"}
    assert citations.bibtex(["mine"], own) == own["mine"]
