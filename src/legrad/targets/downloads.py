"""Targets that name URLs -> the same with what is there: nobody waits for a server while a model is locked."""

from dataclasses import replace
from typing import Any

from legrad.checks import check_switch
from legrad.inputs import urls
from legrad.targets.kinds import Audio, Contrast, Similar


def downloaded(targets: Any, allow_private_urls: bool = True) -> Any:
    """The same targets with the URLs of ``Similar`` and ``Audio`` read; a text that is a URL stays a text.

    Args:
        targets: one, or lists of them, as ``Explainer.explain`` takes them.
        allow_private_urls: as there.

    Raises:
        InputError: a URL that cannot be read, see ``urls.download``.
    """
    check_switch("allow_private_urls", allow_private_urls)
    if isinstance(targets, list | tuple):
        return [downloaded(target, allow_private_urls) for target in targets]
    if isinstance(targets, Similar):
        return replace(targets, image=_content(targets.image, allow_private_urls))
    if isinstance(targets, Audio):
        return replace(targets, sound=_content(targets.sound, allow_private_urls))
    if isinstance(targets, Contrast):
        return Contrast(downloaded(targets.a, allow_private_urls), downloaded(targets.b, allow_private_urls))
    return targets


def _content(source: Any, allow_private_urls: bool) -> Any:
    if isinstance(source, list):
        return [_content(item, allow_private_urls) for item in source]
    return urls.fetched(source, public_only=not allow_private_urls)
