"""The first method of a run compared with every other one, on the images that both have."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from legrad.bench import registry
from legrad.bench.classes import TEMPLATES

Verdict = Literal["better", "level", "worse", "too few"]
FEWEST = 30  # items below which nothing is called better or worse
_ROUNDING = 1e-6  # maps that are equal on paper differ by it, all in one direction
# what a first look needs of each benchmark; the sections have all metrics
_HEADLINES: Mapping[str, tuple[str, ...]] = {
    "localisation": ("pointing", "energy"),
    "openvocab": ("p_miou",),
    "segmentation": ("miou", "miou_half", "map"),
    "perturbation": ("negative_predicted", "positive_predicted"),
}
_MARKS: Mapping[Verdict | None, str] = {"better": " ▲", "worse": " ▼", "level": "", "too few": "", None: ""}


def verdict(numbers: Mapping[str, Any], better: str | None) -> Verdict | None:
    """Of a method against the first one: the interval of their difference lies on one side of zero, or it does not.

    "too few" below ``FEWEST`` images that both have. None where they were not compared: no common image, or neither
    direction is good.
    """
    low, high = numbers["difference_low"], numbers["difference_high"]
    if better is None or low is None:
        return None
    if numbers.get("pairs", FEWEST) < FEWEST:
        return "too few"
    if low <= _ROUNDING and high >= -_ROUNDING:
        return "level"
    return "better" if (low > 0) == (better == "higher") else "worse"


def verdict_mark(numbers: Mapping[str, Any], better: str | None) -> str:
    """The verdict behind a number in a table."""
    return _MARKS[verdict(numbers, better)]


def title(content: Mapping[str, Any]) -> str:
    """Of a benchmark, with the switches that tell its runs apart."""
    protocol = content["settings"]["protocol"]
    switch = {"segmentation": "explained", "ablation": "scored by"}.get(content["benchmark"], "")
    parts = [str(protocol[switch])] if switch in protocol else []
    parts += [f"{name} = {value}" for name, value in non_default_settings(content).items() if name != switch]
    return f"{content['benchmark']} ({', '.join(parts)})" if parts else str(content["benchmark"])


def non_default_settings(content: Mapping[str, Any]) -> dict[str, str]:
    """Settings of a run that are not the defaults: of the model under test, and switches of the protocol."""
    settings = content["settings"]
    defaults: dict[str, Any] = {
        "layers": None,
        "readout": "auto",
        "templates": list(TEMPLATES),
        "names": {},
        "size": None,
        **_switch_defaults(content),
    }
    values = {**settings["protocol"], **settings.get("subject", {})}
    differences = {
        name: values[name] for name, value in defaults.items() if values.get(name, value) not in (value, None)
    }
    templates = differences.get("templates", [])
    if templates:
        more = f" and {len(templates) - 1} more" if len(templates) > 1 else ""
        differences["templates"] = f"{templates[0]!r}{more}"
    if "names" in differences:
        differences["names"] = f"{len(differences['names'])} given"
    return {name: str(value) for name, value in differences.items()}


def settings_text(content: Mapping[str, Any]) -> str:
    """The settings that are not the defaults in one line; "" if all are."""
    return "; ".join(f"{name} = {value}" for name, value in non_default_settings(content).items())


def _switch_defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """Switches of a benchmark, or of that which scores an ablation, with their defaults."""
    base = content["settings"]["protocol"].get("scored by", content["benchmark"])
    return {name: switch.default for name, switch in registry.switches(base).items()}


def summary_sentence(content: Mapping[str, Any], metric: str) -> str:
    """Who is better, level and worse in one metric."""
    methods, better = content["methods"], content["metrics"][metric]["better"]
    reference = content["statistics"]["paired with"]
    groups: dict[Verdict, list[str]] = {"better": [], "level": [], "worse": [], "too few": []}
    for method, numbers in ranked(content, metric):
        group = verdict(numbers, better)
        if group is not None:
            groups[group].append(method_label(content, method))
    too_few = groups.pop("too few")
    verdicts = [] if too_few and not any(groups.values()) else list(groups.items())
    sentences = [f"{group.capitalize()}: {', '.join(names) or 'none'}" for group, names in verdicts]
    if too_few:
        sentences.append(f"Too few images for a verdict (below {FEWEST}): {', '.join(too_few)}")
    text = ". ".join(sentences)
    numbers = methods[reference]["metrics"].get(metric, {"value": None})
    return f"{reference} {cell(numbers) or 'has no value'}, {methods[reference]['items']} images. {text}."


def has_fewer(content: Mapping[str, Any], method: str) -> bool:
    """Whether a method was measured on fewer images than the first one: its value compares with no other."""
    return int(content["methods"][method]["items"]) < num_images(content)


def method_label(content: Mapping[str, Any], method: str) -> str:
    """A method with its number of images in brackets, if it has fewer."""
    return f"{method} ({content['methods'][method]['items']})" if has_fewer(content, method) else method


def ranked(content: Mapping[str, Any], metric: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Methods with their numbers, best first."""
    lower_is_better = content["metrics"][metric]["better"] == "lower"
    return sorted(with_value(content, metric), key=lambda row: row[1]["value"], reverse=not lower_is_better)


def with_value(content: Mapping[str, Any], metric: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Methods that have a value of a metric, with their numbers, in the order of the run."""
    rows = [(method, result["metrics"].get(metric)) for method, result in content["methods"].items()]
    return [(method, numbers) for method, numbers in rows if numbers is not None and numbers["value"] is not None]


def best(content: Mapping[str, Any], metric: str) -> str | None:
    """The best value among methods measured on the first one's images.

    None if it is alone, if nothing is good, or if there are too few images to say so.
    """
    if content["metrics"][metric]["better"] is None or num_images(content) < FEWEST:
        return None
    images = content["scores"][content["statistics"]["paired with"]].keys()
    methods = [method for method, _ in ranked(content, metric) if content["scores"][method].keys() == images]
    return methods[0] if len(methods) > 1 else None


def headlines(contents: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """What a first look shows: results and one of their metrics each.

    Of several runs of a benchmark on the same data (other switches) the one with the most images, which is the first
    of equals.
    """
    largest: dict[Any, Mapping[str, Any]] = {}
    for content in contents:
        key = content["benchmark"], content["settings"]["data"]["path"]
        if key not in largest or num_images(content) > num_images(largest[key]):
            largest[key] = content
    names = [(content, name) for content in largest.values() for name in _HEADLINES.get(content["benchmark"], ())]
    return [(content, name) for content, name in names if name in content["metrics"]]


def num_images(content: Mapping[str, Any]) -> int:
    """The most images that any method of a result has."""
    return int(content["methods"][content["statistics"]["paired with"]]["items"])


def overview(contents: Sequence[Mapping[str, Any]]) -> str:
    """All headline metrics of one model: a sentence each, all in one table, and a table each with the differences."""
    columns = headlines(contents)
    if not columns:
        return ""
    costs = _costs(contents)
    sentences = [f"- **{metric_title(content, name)}**: {summary_sentence(content, name)}" for content, name in columns]
    tables = [
        f"### {metric_title(content, name)}, {content['metrics'][name]['better']} is better\n\n"
        f"{_table(content, name, costs)}"
        for content, name in columns
    ]
    return "\n\n".join(["\n".join(sentences), _matrix(columns, costs), *tables])


def metric_title(content: Mapping[str, Any], metric: str) -> str:
    """Benchmark and metric."""
    return f"{title(content)}: {content['metrics'][metric]['title']}"


def _matrix(columns: Sequence[tuple[Mapping[str, Any], str]], costs: Mapping[str, float]) -> str:
    methods = list(dict.fromkeys(method for content, _ in columns for method in content["methods"]))
    heads = [metric_title(content, name) for content, name in columns]
    lines = [f"| method | {' | '.join(heads)} | bare forwards |", "| --- |" + " --- |" * (len(heads) + 1)]
    for method in methods:
        cells = [_matrix_cell(content, name, method) for content, name in columns]
        lines.append(f"| {method} | {' | '.join(cells)} | {_cost(costs, method)} |")
    chance = [number(content["chance"].get(name)) for content, name in columns]
    return "\n".join([*lines, f"| *chance* | {' | '.join(chance)} | |"])


def _matrix_cell(content: Mapping[str, Any], metric: str, method: str) -> str:
    """A method's value with its number of images, if it has others than the first one, and its verdict."""
    result = content["methods"].get(method, {"items": 0, "metrics": {}})
    numbers = result["metrics"].get(metric)
    text = ""
    if numbers is not None and numbers["value"] is not None:
        images = f" ({result['items']})" if result["items"] != num_images(content) else ""
        text = number(numbers["value"]) + images + verdict_mark(numbers, content["metrics"][metric]["better"])
    return f"**{text}**" if method == best(content, metric) else text


def _table(content: Mapping[str, Any], metric: str, costs: Mapping[str, float]) -> str:
    reference, better = content["statistics"]["paired with"], content["metrics"][metric]["better"]
    lines = [
        f"| method | images | value | minus {reference}, same images | is | bare forwards |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, numbers in ranked(content, metric):
        names = ("value", "low", "high")
        paired = {name: numbers[key] for name, key in zip(names, ("difference", *BOUNDS), strict=True)}
        paired["items"] = numbers.get("pairs", FEWEST)
        lines.append(
            f"| {method} | {content['methods'][method]['items']} | {cell(numbers)} | {cell(paired, signed=True)} | "
            f"{verdict(numbers, better) or ''} | {_cost(costs, method)} |"
        )
    return "\n".join(lines)


BOUNDS = ("difference_low", "difference_high")


def _costs(contents: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Time of one image and one prompt over that of the bare forward pass, where it was measured."""
    return {
        method: numbers["value"]
        for content in contents
        if content["benchmark"] == "speed"
        for method, numbers in ranked(content, "slowdown")
    }


def _cost(costs: Mapping[str, float], method: str) -> str:
    return f"{costs[method]:.3g}" if method in costs else ""


def cell(numbers: Mapping[str, Any], signed: bool = False) -> str:
    """A value with its interval."""
    if numbers["value"] is None:
        return ""
    value = number(numbers["value"], signed)
    low, high = numbers["low"], numbers["high"]
    if low is None:
        return value
    return f"{value} [too few]" if is_point(numbers) else f"{value} [{number(low)}, {number(high)}]"


def is_point(numbers: Mapping[str, Any], count: str = "items", bounds: tuple[str, str] = ("low", "high")) -> bool:
    """Whether an interval is none: resampling few items, or a single one, gives always the same."""
    few: int = numbers.get(count, FEWEST)
    low, high = (numbers[name] for name in bounds)
    return few < 2 or (few < FEWEST and low is not None and low == high)


def number(value: float | None, signed: bool = False) -> str:
    """Three decimals of a share, one of an area."""
    if value is None:
        return ""
    return f"{value:{'+' if signed else ''}.{3 if abs(value) < 10 else 1}f}"
