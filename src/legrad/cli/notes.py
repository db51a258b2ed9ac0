"""What ``legrad explain`` says beside its results, a line each: what may mislead whoever looks at the maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import legrad
from legrad.cli.consoles import print_error

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

_MUCH = 0.2  # of an image, hidden by the model's crop


class Notes:
    """What is noticed about the images of a run, told at its end.

    Args:
        is_default: whether nobody named the model, which is an embedded one then.
    """

    def __init__(self, is_default: bool) -> None:
        self._is_default = is_default
        self._strange: list[str] = []  # no scenes
        self._hidden: list[tuple[str, float]] = []

    def add(self, explanation: "Explanation", index: int, path: str) -> None:
        """Look at one image of an explanation."""
        if explanation.axes[0] != "rows":
            return
        if self._is_default and not legrad.embedded.is_scene(path):
            self._strange.append(path)
        from legrad.inputs.geometry import seen_share

        hidden = 1 - seen_share(explanation.placements[index], explanation.patch_grids[index])
        if explanation.settings["fit"] == "model" and hidden > _MUCH:
            self._hidden.append((path, hidden))

    def tell(self) -> None:
        """A line for each kind of note."""
        if self._strange:
            print_error(
                "without --model the embedded model answers, which knows drawn scenes only: for "
                f"{_first_of(self._strange)} its maps and scores mean little. For photographs take a real one, such as "
                "--model open_clip:ViT-B-16/laion2b_s34b_b88k; see `legrad models`",
                "[yellow]warning:[/yellow]",
            )
        if self._hidden:
            (_, most), paths = max(self._hidden, key=lambda item: item[1]), [path for path, _ in self._hidden]
            share = f"{100 * most:.0f} %" if len(paths) == 1 else f"up to {100 * most:.0f} %"
            print_error(
                f"the model's crop hides {share} of {_first_of(paths)}; --fit squash | pad shows the model all of it",
                "[yellow]note:[/yellow]",
            )


def _first_of(paths: Sequence[str]) -> str:
    from legrad.inputs import urls

    name = Path(urls.safe_url(paths[0])).name
    return name if len(paths) == 1 else f"{name} and {len(paths) - 1} more"
