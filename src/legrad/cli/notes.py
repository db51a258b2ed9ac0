"""What ``legrad explain`` says beside its results, a line each: what may mislead whoever looks at the maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import legrad
from legrad.cli.consoles import print_error

if TYPE_CHECKING:
    from legrad.cli.sources import Source
    from legrad.results.explanation import Explanation

_MUCH = 0.2  # of an image, hidden by the model's crop


def tell_of_embedded(files: "Sequence[Source]") -> None:
    """That the embedded model, which nobody asked for, knows nothing of images that are no scenes."""
    others = [file.path for file in files if not legrad.embedded.is_scene(file.path)]
    if others:
        print_error(
            f"without --model the embedded model answers, which knows drawn scenes only: for {_first_of(others)} its "
            "maps and scores mean little. For photographs take a real one, such as --model "
            "open_clip:ViT-B-16/laion2b_s34b_b88k; see `legrad models`",
            "[yellow]warning:[/yellow]",
        )


class Crops:
    """How much of images the model's crop hides."""

    def __init__(self) -> None:
        self._hidden: list[tuple[str, float]] = []

    def add(self, explanation: "Explanation", index: int, path: str) -> None:
        """Look at one image of an explanation."""
        hidden = 1 - explanation.view(index).seen_share()
        if explanation.axes[0] == "rows" and explanation.settings["fit"] == "model" and hidden > _MUCH:
            self._hidden.append((path, hidden))

    def tell(self) -> None:
        """One line, if there is anything to tell."""
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
