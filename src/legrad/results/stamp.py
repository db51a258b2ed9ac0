"""PNG files that say themselves whether they are still as we wrote them, for folders without a manifest."""

import hashlib
import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from legrad.atomic import WriteError, publish
from legrad.names import fold
from legrad.results.manifest import folder_path, numbered

_KEY = "legrad"  # of the text in the file, which is a digest of its pixels


def save_pngs(folder: str | os.PathLike[str], images: Sequence[tuple[str, Image.Image]]) -> list[Path]:
    """Write RGB images as ``STEM.png``, numbered where two have one stem or a file of somebody else is there.

    Args:
        folder: made if missing.
        images: (stem, image).

    Returns:
        The files. Those of an earlier call are replaced, unless they have been changed since.

    Raises:
        InputError: the folder cannot be written.
    """
    root, names, paths = folder_path(folder), set[str](), []
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write into {root}: {error.strerror or error}") from error
    for stem, image in images:
        path = next(
            path
            for name in numbered(stem)
            if fold(name) not in names and (not os.path.lexists(path := root / f"{name}.png") or is_stamped(path))
        )
        names.add(fold(path.stem))
        draft = root / f".legrad-{secrets.token_hex(6)}"
        try:
            draft.write_bytes(stamped(image))
            if is_stamped(path):
                draft.replace(path)
            else:
                publish(draft, path)
        except OSError as error:
            raise WriteError.of(path, error) from error
        finally:
            draft.unlink(missing_ok=True)
        paths.append(path)
    return paths


def stamped(image: Image.Image) -> bytes:
    """An RGB image as PNG."""
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text(_KEY, _digest(image))
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def is_stamped(path: Path) -> bool:
    """Whether ``stamped`` made this file, and nobody has changed it."""
    try:
        if path.is_symlink():
            return False
        with Image.open(path, formats=["PNG"]) as image:
            stamp = image.info.get(_KEY)  # before the pixels: those of a stranger are not read
            return isinstance(stamp, str) and stamp == _digest(image)
    except Exception:  # Pillow's reader lets anything through when a file is broken
        return False


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
