"""``legrad report``: a folder of results as one file."""

import json

from helpers.commands import assert_error
from helpers.handmade import explanation


def test_a_folder_becomes_one_file(run, tmp_path):
    explanation(2, 2).save(tmp_path / "results")
    manifest = tmp_path / "results" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["failures"] = [{"image": "broken <b>.png", "error": "cannot be read"}]
    manifest.write_text(json.dumps(content))
    status, out, err = run("report", str(tmp_path / "results"))
    assert (status, err) == (0, "")
    assert out.startswith("report: ")
    page = (tmp_path / "results" / "report.html").read_text()
    assert "image 0.jpg" in page
    assert "broken &lt;b&gt;.png" in page
    assert "cannot be read" in page
    assert run("report", str(tmp_path / "results"), "--out", str(tmp_path / "other.html"))[0] == 0
    assert (tmp_path / "other.html").read_text() == page


def test_nothing_to_report(run, tmp_path):
    assert_error(run("report", str(tmp_path / "absent")), "absent")
    (tmp_path / "mine.html").write_text("mine")
    explanation(1, 1).save(tmp_path / "results")
    assert_error(run("report", str(tmp_path / "results"), "--out", str(tmp_path / "mine.html")), "is there already")
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_html_of_a_run(run, tmp_path):
    status, out, _ = run("explain", "--html", "--arrays", "only", "--out", str(tmp_path / "out"))
    assert status == 0
    assert str(tmp_path / "out" / "report.html") in out.replace("\n", "")
    assert "a photo of a cow" in (tmp_path / "out" / "report.html").read_text()
    assert_error(run("explain", "--html", "--arrays", "no", "--out", str(tmp_path / "other")), "--arrays no")
    assert not (tmp_path / "other").exists()
