"""The names of the authors' package ``legrad_torch``, built on this one: same calls, right answers for batches too.

The published maps differ from ``Explanation.saliency`` in the order of resizing and min-max, see ``published_maps``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad import relevance, viz
from legrad.checks import brief, check_count, whole_number
from legrad.errors import InputError
from legrad.explainer import wrap
from legrad.names import slug
from legrad.results import stamp

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL.Image import Image

_NULL_PROMPT = "a photo of a"


def published_maps(grid_relevance: Tensor, patch_size: tuple[int, int], stretch_first: bool) -> Tensor:
    """Raw relevance -> maps in [0, 1] at the model's input size, in the order of the authors' code.

    Args:
        grid_relevance: (images, targets, rows, cols), merged over layers, after the null correction if there is one.
        patch_size: (height, width) of a patch in pixels.
        stretch_first: min-max on the grid, then bilinear upsampling (SigLIP); else upsampling first (CLIP, CoCa).

    Returns:
        (images, targets, rows * patch height, cols * patch width).
    """

    def upsample(maps: Tensor) -> Tensor:
        size = [cells * pixels for cells, pixels in zip(maps.shape[-2:], patch_size, strict=True)]
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    if stretch_first:
        return upsample(relevance.min_max(grid_relevance))
    return relevance.min_max(upsample(grid_relevance))


class LeWrapper(nn.Module):
    """An open_clip model that can also ``compute_legrad``; everything else goes to the model, which is not changed.

    Args:
        model: from ``open_clip.create_model_and_transforms``.
        layer_index: first block used; negative numbers count from the end.

    Raises:
        InputError: the model has no such block.
        UnsupportedModelError: the model cannot be explained.
    """

    def __init__(self, model: nn.Module, layer_index: int = -2) -> None:
        super().__init__()
        self.model = model
        self._explainer = wrap(model)
        depth = len(self._explainer.anatomy.blocks)
        index = whole_number(layer_index)
        if index is None:
            raise InputError(f"layer_index is a whole number, got {brief(layer_index)}")
        if not -depth <= index < depth:
            raise InputError(f"layer_index={index} is outside the model's {depth} blocks")
        self._layers = list(range(index % depth, depth))
        self._image: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward."""
        return self.model(*args, **kwargs)

    def encode_image(self, image: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's own; ``compute_legrad`` without an image explains the one given last."""
        self._image = image
        return self.model.encode_image(image, *args, **kwargs)  # type: ignore[operator]

    def compute_legrad(
        self,
        text_embedding: Tensor,
        image: Tensor | None = None,
        apply_correction: bool = True,
        correction_threshold: float = 0.8,
    ) -> Tensor:
        """One published map per image and text.

        Args:
            text_embedding: (texts, features).
            image: (images, 3, height, width), normalised; None for the last one that went through ``encode_image``.
            apply_correction: SigLIP-like models only: zero what lights up for "a photo of a".
            correction_threshold: see ``Explainer.explain``.

        Returns:
            (images, texts, height, width) in [0, 1], on the device of the image.

        Raises:
            InputError: there is no image, or it or the embedding does not fit the model.
        """
        for name, value in (("text_embedding", text_embedding), ("image", image)):
            if not isinstance(value, Tensor) and (value is not None or name != "image"):
                raise InputError(f"{name} is a tensor, got {type(value).__name__}")
        image = self._image if image is None else image
        if image is None:
            raise InputError("compute_legrad needs image=(images, 3, height, width), or encode_image before it")
        anatomy = self._explainer.anatomy
        stretch_first = anatomy.route == "pooler" and self._is_timm()
        null = self._empty_embedding() if stretch_first and apply_correction else None
        explanation = self._explainer.explain(
            image,
            text_embedding,
            layers=self._layers,
            readout="published",
            null_target=null,
            null_threshold=correction_threshold,
        )
        return published_maps(explanation.relevance, anatomy.patch_size, stretch_first).to(image.device)

    def compute_legrad_clip(self, text_embedding: Tensor, image: Tensor | None = None) -> Tensor:
        """``compute_legrad`` for class-token models."""
        return self.compute_legrad(text_embedding, image)

    def compute_legrad_coca(self, text_embedding: Tensor, image: Tensor | None = None) -> Tensor:
        """``compute_legrad`` for CoCa."""
        return self.compute_legrad(text_embedding, image)

    def compute_legrad_siglip(
        self,
        text_embedding: Tensor,
        image: Tensor | None = None,
        apply_correction: bool = True,
        correction_threshold: float = 0.8,
    ) -> Tensor:
        """``compute_legrad`` for SigLIP."""
        return self.compute_legrad(text_embedding, image, apply_correction, correction_threshold)

    def _is_timm(self) -> bool:
        return hasattr(self._explainer.anatomy.tower, "trunk")

    def _empty_embedding(self) -> Tensor:
        """Embedding of the null prompt, (features,); ``model.empty_embedding`` (features, 1) replaces it if set."""
        embedding = getattr(self, "empty_embedding", None)
        if embedding is None:
            import open_clip

            tokens = open_clip.get_tokenizer("ViT-B-16-SigLIP")([_NULL_PROMPT])
            with torch.no_grad():
                embedding = self.model.encode_text(tokens.to(self._explainer.anatomy.device)).T  # type: ignore[operator]
            self.empty_embedding = embedding
        return embedding[:, 0]


class LePreprocess(nn.Module):
    """open_clip's preprocessing with another, square input size: the whole image is squashed, nothing cropped.

    Args:
        preprocess: open_clip's transform; its last three steps are kept.
        image_size: side of the square in pixels.

    Raises:
        InputError: no such transform, or no such size.
    """

    def __init__(self, preprocess: Any, image_size: int) -> None:
        super().__init__()
        from torchvision.transforms import Compose, InterpolationMode, Resize

        image_size, steps = check_count("image_size", image_size), getattr(preprocess, "transforms", ())
        if len(steps) < 3:
            raise InputError(
                "preprocess is open_clip's transform, a Compose of at least three steps, got "
                f"{type(preprocess).__name__}"
            )
        resize = Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
        self.transform = Compose([resize, *steps[-3:]])

    def forward(self, image: "Image") -> Tensor:
        """Image -> (3, image_size, image_size)."""
        result: Tensor = self.transform(image)
        return result


def visualize(
    image: "Tensor | Image",
    heatmaps: Tensor,
    alpha: float = 0.6,
    text_prompts: Sequence[str] | None = None,
    save_path: str | Path | None = None,
) -> "Figure":
    """The image and its heatmaps in the authors' jet colours; displayed in notebooks and on interactive backends.

    Args:
        image: PIL image, or a normalised tensor (1, 3, H, W) or (3, H, W) with OpenAI's mean and std.
        heatmaps: (1, texts, H, W) or (texts, H, W) in [0, 1].
        alpha: opacity of the colours.
        text_prompts: titles.
        save_path: folder that gets a ``heatmap_TEXT.png`` per map; a file that is not of an earlier call is never
            replaced, the new one gets a number.

    Raises:
        InputError: ``image`` is neither a PIL image nor a tensor, ``heatmaps`` are no maps or of another number than
            ``text_prompts``, or the folder cannot be written.
    """
    if not isinstance(heatmaps, Tensor) or heatmaps.ndim < 3:
        shape = f" {tuple(heatmaps.shape)}" if isinstance(heatmaps, Tensor) else ""
        raise InputError(
            f"heatmaps are a tensor (1, texts, H, W) or (texts, H, W), got {type(heatmaps).__name__}{shape}"
        )
    viz.check_alpha(alpha)
    maps = heatmaps.detach().float().cpu().flatten(0, -3)
    pixels = _pixels(image, (maps.shape[-2], maps.shape[-1]))
    text_prompts = [text_prompts] if isinstance(text_prompts, str) else text_prompts
    titles = [str(title) for title in (text_prompts if text_prompts is not None else range(len(maps)))]
    if len(titles) != len(maps):
        raise InputError(f"one text per map: got {len(titles)} text_prompts for {len(maps)} heatmaps")
    panels = [viz.overlay(pixels, heatmap.numpy(), alpha=alpha, cmap="jet") for heatmap in maps]
    if save_path is not None:
        stamp.save_pngs(
            save_path, [(f"heatmap_{slug(title)}", panel) for title, panel in zip(titles, panels, strict=True)]
        )
    from legrad import figures

    figure = figures.figure(pixels, panels, titles, cmap="jet", alpha=alpha)
    _display(figure)
    return figure


def _pixels(image: "Tensor | Image", size: tuple[int, int]) -> "NDArray[np.uint8]":
    """(H, W, 3) uint8: a PIL image resized to ``size`` (height, width), or a tensor without OpenAI's normalisation."""
    import numpy as np
    from PIL.Image import Image as PilImage

    if isinstance(image, PilImage):
        return np.asarray(image.convert("RGB").resize(size[::-1]))
    if isinstance(image, Tensor):
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        values = image.detach().float().cpu().reshape(-1, *image.shape[-3:])[0].permute(1, 2, 0)
        values = values * values.new_tensor(OPENAI_DATASET_STD) + values.new_tensor(OPENAI_DATASET_MEAN)
        pixels: NDArray[np.uint8] = (values.clamp(0, 1) * 255).round().byte().numpy()
        return pixels
    raise InputError(f"image is a PIL image or a tensor, got {type(image).__name__}")


def _display(figure: "Figure") -> None:
    """Display a figure in a notebook, or in a window where matplotlib's backend has one."""
    viz.load_matplotlib()
    import matplotlib.pyplot as plt
    import numpy as np

    shell = sys.modules.get("IPython")
    if shell is not None and shell.get_ipython() is not None:
        sys.modules["IPython"].display.display(figure)
    elif plt.get_backend().lower() not in ("agg", "pdf", "svg", "ps", "cairo", "template"):
        window = plt.figure(figsize=figure.get_size_inches())
        window.figimage(np.asarray(_rendered(figure)))
        plt.show()


def _rendered(figure: "Figure") -> Any:
    """The figure as an RGBA buffer: figures of ``viz`` do not belong to pyplot, which can only show pixels of them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.buffer_rgba()


def list_pretrained() -> list[tuple[str, str]]:
    """Print and return open_clip's (model name, tag of the weights) pairs that can be explained."""
    import open_clip

    from legrad.models.open_clip import not_supported

    pairs = [(name, tag) for name, tag in open_clip.list_pretrained() if not not_supported(name)]
    print(f"{'model_name':25}: pretrained")
    for name, tag in pairs:
        print(f"{name:25}: {tag}")
    return pairs
