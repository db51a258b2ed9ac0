"""An explanation as a collection: of its images, of its targets, out of files."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

from legrad import viz
from legrad.checks import brief
from legrad.errors import InputError
from legrad.results import display, parts


class Collection:
    """What ``Explanation`` can do as a whole, beside its fields."""

    @property
    def _explanation(self) -> Any:
        return self

    def __len__(self) -> int:
        """How many images."""
        return len(self._explanation.names)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: int | slice | str) -> Self:
        """Some images, or one target: ``e[0]``, ``e[:3]``, ``e["a photo of a cat"]``; ``e[0]["a photo of a cat"]``.

        >>> images = [scene.image for scene in legrad.embedded.scenes(3)]
        >>> explanation = legrad.load("embedded").explain(images, ["a cow", "a pig"])
        >>> len(explanation), len(explanation[1:]), explanation[0]["a pig"].relevance.shape
        (3, 2, torch.Size([1, 1, 12, 12]))

        Returns:
            An explanation of one image, of a range of images, or of all images and the target with this label; images
            without it are not ``valid``. It has no more targets and cells than its images have.

        Raises:
            InputError: no such image or label.
        """
        if isinstance(key, str):
            return replace(self._explanation, **parts.of_label(self._explanation, key))
        images = list(range(len(self)))[key] if isinstance(key, slice) else [self._explanation.index_of(key)]
        if not images:
            raise InputError(f"no image in {brief(key)}: there are {len(self)}")
        return replace(self._explanation, **parts.of_images(self._explanation, images))

    def __iter__(self) -> Iterator[Self]:
        """An explanation for every image."""
        return (self[image] for image in range(len(self)))

    def __contains__(self, label: object) -> bool:
        """Whether an image has a target with this label."""
        explanation = self._explanation
        images = range(len(self))
        return any(explanation.labels[i][target] == label for i in images for target in explanation.targets_of(i))

    @classmethod
    def cat(cls, explanations: Iterable[Self]) -> Self:
        """Several explanations of one model and method as one, their images in order.

        >>> explainer = legrad.load("embedded")
        >>> parts = [explainer.explain(scene.image, "a cow") for scene in legrad.embedded.scenes(2)]
        >>> legrad.Explanation.cat(parts).relevance.shape
        torch.Size([2, 1, 12, 12])

        Args:
            explanations: at least one. Where they differ in their numbers of targets, or in their grids, zeros follow
                the smaller ones, see ``valid`` and ``grids``; settings that differ are left out.

        Raises:
            InputError: nothing, something else, or explanations of different models, methods, layers or kinds.
        """
        return cls(**parts.joined(parts.all_explanations(explanations, cls)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What ``save``, or ``legrad explain --out``, wrote; its numbers are equal to those that were saved.

        >>> explanation = legrad.load("embedded").explain(next(legrad.embedded.scenes(1)).image, "a cow")
        >>> files = explanation.save("out")
        >>> torch.equal(legrad.Explanation.load("out").relevance, explanation.relevance)
        True

        Args:
            path: the folder, its manifest, or the NPZ file of one image.

        Returns:
            All images of the folder in the order of its manifest. Originals that are files are read again when they are
            shown, from where they were or from beside the results; those given in memory lie in the NPZ file.

        Raises:
            InputError: nothing there, a file that is foreign, newer or damaged, or results of different models or
                methods in one folder.
        """
        explanations: list[Any] = parts.loaded(path, cls)
        return explanations[0] if len(explanations) == 1 else cls.cat(explanations)

    def show(self, image: int = 0, **options: Any) -> None:
        """Show the figure of an image: in a notebook below the cell, elsewhere in the system's viewer of images.

        Args:
            image: index of the image.
            options: as of ``figure``.

        Raises:
            InputError: as of ``figure``.

        Warns:
            UserWarning: there is no screen.
        """
        display.show(viz.png(self._explanation.figure(image, **options)))
