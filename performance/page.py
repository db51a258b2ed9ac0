"""The page: machine, targets, the hand-written part, all tables, plots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from performance import tables
from performance.results import Results

ARGUMENTS = "arguments.md"
WHOLE = "whole.md"  # the section that ``performance.whole`` writes


def write(content: Mapping[str, Any], folder: Path, images: list[str]) -> Path:
    """``FOLDER.md`` beside the folder of the run; returns its path."""
    path = folder.with_name(f"{folder.name}.md")
    arguments = folder / ARGUMENTS
    # what performance.first_call, .whole and .gpu measured
    parts = [arguments, folder / "first-call.md", folder / WHOLE, folder / "gpu.md"]
    text = "\n\n".join(part.read_text().strip() for part in parts if part.exists())
    path.write_text(page(content, folder.name, text, images))
    return path


def page(content: Mapping[str, Any], folder: str, arguments: str, images: list[str]) -> str:
    """The page's text.

    Args:
        content: the run's JSON.
        folder: where its files lie, seen from the page.
        arguments: Markdown that is put under the targets as it is.
        images: file names of the plots.
    """
    results = Results(content["cases"])
    measured = [make(results) for make in (tables.times, tables.rivals, tables.memory, tables.growth)]
    sections = [
        "# Performance",
        f"Made by `make performance`; do not edit ({folder}/{ARGUMENTS} is the part written by hand). Every sample: "
        f"[{folder}/results.json]({folder}/results.json).",
        _machine(content),
        _method(content),
        tables.markdown(tables.goals(results)),
        arguments,
        *(tables.markdown(table) for table in measured if table[2]),
        *(f"![Cost against {Path(name).stem}]({folder}/{name})" for name in images),
        _failures(content),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _machine(content: Mapping[str, Any]) -> str:
    facts, settings = content["machine"], content["settings"]
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    loads = [entry["load"] for entry in content["cases"].values() if "load" in entry]
    revisions = sorted({entry["revision"] for entry in content["cases"].values()})
    lines = [
        f"- Machine: {facts['cpu']}, {facts['cores']} cores ({facts['instructions']}), {facts['memory_gb']} GB, "
        f"{facts['system']}" + (f", {facts['gpu']}" if "gpu" in facts else "") + ".",
        f"- Python {facts['python']}, {libraries}.",
        f"- Device {settings['device']}, {settings['threads']} threads{', quick subset' if settings['quick'] else ''}.",
        f"- Code: {', '.join(revisions) or 'none'}.",
    ]
    if loads:
        lines.append(f"- Load average when a case began: at most {max(loads):.1f} (each case begins after another).")
    return "\n".join(lines)


def _method(content: Mapping[str, Any]) -> str:
    how = sorted({run["how"] for entry in content["cases"].values() for run in entry.get("runs", ())})
    return (
        "Random weights, random normalised images; targets are embeddings, so no text tower is timed. One process per "
        "case; in it the bare forward (no_grad, fused attention, same batch) and the contender take turns after a "
        "warm-up each, and a ratio is taken within each round: median [lowest, highest] of n rounds. Where two such "
        'ratios are divided, the range is the widest that they allow. "With check" is the first use of an input shape: '
        "wrapping the model and the truth check are inside; without a range it is one reading of the first use. "
        "Ours ends with relevance on the patch grid; the others also resize it to pixels, which is milliseconds.\n\n"
        'Memory is that of fresh processes: peak during one first call, truth check inside; "extra" is the peak less '
        "what was there after one bare forward at batch 1" + (f". Read from {'; '.join(how)}." if how else ".")
    )


def _failures(content: Mapping[str, Any]) -> str:
    failed = [(key, entry["error"]) for key, entry in content["cases"].items() if "error" in entry]
    if not failed:
        return ""
    return "\n".join(["## Failed", "", *(f"- `{key}`: {error.splitlines()[-1]}" for key, error in failed)])
