"""What whole commands take: files that are made, tables and verdicts. Nothing here looks at a clock."""

import pytest
from PIL import Image

from performance import page, whole
from performance.cases import CASES


def content(factor=1.0):
    seconds = {"import torch": [2.0, 4.0], "legrad --help": [0.3, 0.6], "legrad --version": [0.2, 0.4]}
    seconds |= {"legrad methods": [0.2, 0.4], "libraries": [5.0, 6.0], "legrad explain": [5.5, 6.9], "spinner": [0.2]}
    row = {"size": "12 MP", "images": 1, "prompts": 4, "format": "jpg"}
    return {
        "commands": {name: [factor * value for value in values] for name, values in seconds.items()},
        "saves": [{**row, "seconds": {"model": [1.0], "explain": [1.5], "save": [2.0, 3.0]}}],
        "rate": {"tensors": 95.0, "files": 100.0 * factor},
        "large image": {"explain": 1e9 * factor, "save": 1.2e9 * factor},
        "revision": "abc",
        "load": 0.1,
    }


def verdicts(values):
    return [row[-1] for row in whole.tables(values)[0][2]]


def test_verdicts():
    assert verdicts(content()) == ["met"] * 7
    slow = content(2)
    slow["commands"]["import torch"] = [1.0, 2.0]
    assert verdicts(slow) == ["not met"] * 7


def test_the_section():
    text = whole.page(content(), "**Why.** Because.")
    assert text.startswith("## Whole commands\n")
    assert "| `legrad --help` / `import torch` | at most 0.2 | 0.15 [0.15, 0.15] | met |" in text
    assert "| 12 MP | 1 | 4 | jpg | 1.00 | 1.50 | 2.50 [2.00, 3.00] |" in text
    assert "**Why.** Because." in text


def test_the_section_is_part_of_the_page(tmp_path):
    facts = {"machine": {"cpu": "x", "cores": 2, "instructions": "", "memory_gb": 1, "system": "", "python": ""}}
    facts["machine"]["libraries"] = {}
    facts |= {"settings": {"device": "cpu", "threads": 2, "quick": False}, "cases": {}}
    folder = tmp_path / "performance"
    folder.mkdir()
    assert "Whole commands" not in page.write(facts, folder, []).read_text()
    (folder / page.WHOLE).write_text(whole.page(content(), ""))
    assert "\n\n## Whole commands\n" in page.write(facts, folder, []).read_text()


def test_images_are_photographs_of_a_size(tmp_path):
    with Image.open(whole.image_file(tmp_path / "a.jpg", (48, 64))) as image:
        assert (image.size, image.mode, image.format) == ((64, 48), "RGB", "JPEG")


def test_every_number_of_images_and_prompts_is_measured():
    assert {images for _, images, _, _ in whole.SAVES} == {1, 10, 100}
    assert {prompts for _, _, prompts, _ in whole.SAVES} == {1, 4, 16}
    assert {form for _, _, _, form in whole.SAVES} == {"png", "jpg", "webp"}
    assert len(set(whole.SAVES)) == len(whole.SAVES)
    assert CASES


@pytest.mark.parametrize("name", whole.SIZES)
def test_sizes(name):
    height, width = whole.SIZES[name]
    assert name == f"{height * width / 1e6:.1f} MP".replace("12.0", "12")
