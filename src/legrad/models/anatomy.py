"""``ViTAnatomy``, what has to be known about a model to explain it: data plus small functions."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad import relevance
from legrad.checks import brief
from legrad.deprecation import renamed_fields
from legrad.errors import InputError, TruthCheckError
from legrad.inputs.geometry import PatchGrid, Size
from legrad.models import checks
from legrad.models.functions import Forward, Head, TokenLayout, description, first_tensor
from legrad.models.sizes import SizedCopies


@dataclass(frozen=True)
class Readout:
    """Tokens -> the vector that is scored.

    Attributes:
        function: (batch, tokens, dim) -> (batch, features), made of the model's own modules.
        normalize: L2-normalise the result; None stands for the usual: yes for embeddings and features, no for logits.
    """

    function: Callable[[Tensor], Tensor]
    normalize: bool | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, dim) -> (batch, features)."""
        feature = self.function(tokens)
        return F.normalize(feature, dim=-1) if self.normalize else feature


class _Derived:
    """Base of values that an anatomy computed for a field that was left out.

    ``dataclasses.replace`` passes all fields of the old record to the new one; by their type the new record tells these
    from values that a user gave, and computes them again.
    """


class _DerivedInt(_Derived, int):
    pass


class _DerivedStr(_Derived, str):
    pass


class _DerivedTuple(_Derived, tuple[int, ...]):
    pass


@dataclass(frozen=True)
class _DerivedReadout(_Derived, Readout):
    """A read-out with its normalisation; ``source`` is the user's read-out, None if the anatomy added it."""

    source: Readout | None = None


def readouts_given(readouts: Mapping[str, Readout]) -> dict[str, Readout]:
    """The read-outs of a record without those that it made itself."""
    sources = {
        name: readout.source if isinstance(readout, _DerivedReadout) else readout for name, readout in readouts.items()
    }
    return {name: readout for name, readout in sources.items() if readout is not None}


def published(native: Callable[[Tensor], Tensor], num_prefix_tokens: int) -> Callable[[Tensor], Tensor]:
    """The authors' read-out of a class-token or averaged model: its own head on the mean over all tokens.

    A head that only sees copies of the mean gives the same whichever token it takes or averages: the final norms, then
    the projection or classifier, of the mean. Heads with two inputs (class and distillation token, class token and mean
    of patches) get the mean at both.
    """

    return lambda tokens: native(tokens.mean(1, keepdim=True).expand(-1, num_prefix_tokens + 1, -1))


def published_on_grid(native: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``published`` for heads that look at the grid, or have weights for every place: the mean, as every token."""
    return lambda tokens: native(tokens.mean(1, keepdim=True).expand_as(tokens))


def _unless_derived(value: Any) -> Any:
    return None if isinstance(value, _Derived) else value


def _channels(tower: nn.Module, patch_size: Size) -> int:
    """Input channels of the first convolution over patches; 3 if there is none."""
    convolutions = (module for module in tower.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    return 3 if first is None or first.kernel_size != tuple(patch_size) else first.in_channels


def _derived_grid(
    axes: tuple[str, ...], image_size: Size, patch_size: Size, stride: Size | None = None
) -> tuple[int, ...]:
    """As many patches of an image as fit; () for other inputs, whose grids do not follow from the pixels."""
    if axes != ("rows", "cols"):
        return ()
    sides = zip(image_size, patch_size, stride or patch_size, strict=True)
    grid = _DerivedTuple((side - patch) // step + 1 for side, patch, step in sides)
    if min(grid) < 1:
        raise InputError(f"an image_size of {image_size} is smaller than one patch of {patch_size}")
    return grid


@renamed_fields(
    taps="explained_attentions",
    lay="keys_to_grid",
    key_prefix="num_prefix_keys",
    key_suffix="num_suffix_keys",
    switches="call_settings",
    resized="at_size",
)
@dataclass(frozen=True)
class ViTAnatomy:
    """Where things are in one vision transformer, for one input size.

    Attributes:
        library: name for humans, e.g. "open_clip".
        tower: the vision tower; all modules named below live in it.
        run: (batch, *shape) -> (batch, features), the tower's own plain output, before any L2. What it takes beside the
            images, by name, can be given as ``explain(..., inputs={...})``, one row per image; so can what a read-out's
            function takes beside the tokens. Of a tuple, list or
            mapping that it returns the first tensor is taken.
        blocks: the transformer blocks in order.
        image_size: (height, width) that the tower takes as it is; (frequency, time) of a spectrogram.
        patch_size: (height, width) of a patch in pixels.
        grid: patches at ``image_size``, (rows, cols) or as ``axes`` says. Images' follows from ``image_size``,
            ``patch_size`` and ``stride`` if it is left out; of models that pad the image it has to be given.
        num_prefix_tokens: class and register tokens in front of the patches.
        readouts: "native" (the model's own head) and "published" (as the authors' code pools); where the latter is not
            given it is made from the native one, except for poolers, see ``published``. Functions are taken as they
            are.
        default_readout: what ``readout="auto"`` means; by default "published" if that is among the ``readouts`` given,
            else "native".
        output: "embedding" (compared with texts by cosine similarity), "logits" or "feature" (no head at all; compared
            with other features by cosine similarity).
        route: "self-attention" inside the blocks, or "pooler": the attentional pooler on each block's tokens.
        attention: "fused" (``F.scaled_dot_product_attention``, ``nn.MultiheadAttention``), or "softmax" for models that
            write attention out.
        attentions: how many attentions fire in a block (or in the pooler).
        explained_attentions: which of them enter the map, as indices; their relevances are averaged.
        num_prefix_keys: keys in front of the patches in the explained attention; default all prefix tokens.
        num_suffix_keys: keys after the patches.
        keys_to_grid: (relevance of an attention's keys (batch', keys), its index) -> (batch, *grid), for attention
            whose batch or keys are not simply images and tokens (windows, heads folded into the batch, frames apart).
        to_tokens: block output -> (batch, tokens, dim); default the first tensor in it.
        call_settings: (owner, attribute, value) set during a call and put back: checkpointing off, fused attention on.
        at_size: (height, width) -> the same weights for another input size, raises ``InputError`` if impossible; None
            for a model of fixed size.
        stride: (height, width) in pixels from one patch to the next; default ``patch_size``, side by side.
        axes: names of the grid's axes: ("rows", "cols"), ("frames", "rows", "cols") or ("frequency", "time").
        shape: of one input; default (channels, height, width), with the channels of the tower's patch embedding, or 3
            where that is no convolution over patches. A spectrogram's is (time, frequency); a waveform's (samples,),
            with one row of patches and an ``image_size`` of (1, samples).
        notes: limits and policies that a user should know, one sentence each.

    What is left out follows from the rest, also after ``dataclasses.replace``.

    Raises:
        InputError: a value that is none of those named or of another type, no blocks, no native read-out, or a grid
            that does not fit.
    """

    library: str
    tower: nn.Module
    run: Callable[[Tensor], Tensor]
    blocks: Sequence[nn.Module]
    image_size: Size
    patch_size: Size
    num_prefix_tokens: int
    readouts: Mapping[str, Readout]
    output: Literal["embedding", "logits", "feature"]
    grid: tuple[int, ...] = ()
    default_readout: Literal["native", "published"] | None = None
    at_size: Callable[[Size], "ViTAnatomy"] | None = None
    route: Literal["self-attention", "pooler"] = "self-attention"
    attention: Literal["fused", "softmax"] = "fused"
    attentions: int = 1
    explained_attentions: tuple[int, ...] = (0,)
    num_prefix_keys: int = _DerivedInt(-1)
    num_suffix_keys: int = 0
    keys_to_grid: Callable[[Tensor, int], Tensor] | None = None
    to_tokens: Callable[[Any], Any] = first_tensor
    call_settings: tuple[tuple[Any, str, Any], ...] = ()
    stride: Size | None = None
    axes: tuple[str, ...] = ("rows", "cols")
    shape: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks.fields(self)
        checked: dict[str, Any] = {
            "run": self.run if isinstance(self.run, Forward) else Forward(self.run),
            "to_tokens": self.to_tokens if isinstance(self.to_tokens, TokenLayout) else TokenLayout(self.to_tokens),
        }
        sides = {
            name: checks.sides(name, getattr(self, name), ("height", "width"))
            for name in ("image_size", "patch_size", "stride")
            if name != "stride" or self.stride is not None
        }
        grid = _unless_derived(self.grid) or _derived_grid(self.axes, **sides)
        checked["grid"] = grid if isinstance(grid, _Derived) else checks.sides("grid", grid, self.axes)
        readouts = self._readouts_of_user()
        if readouts.keys() - {"native", "published"} or "native" not in readouts:
            raise InputError(
                f'readouts has "native" (the model\'s own head) and may have "published", got {sorted(readouts)}'
            )
        # no head is asked for a mean token unless it is known to take one: a decoder or a detector reads many
        automatic = "published" if "published" in readouts else "native"
        derived = {
            "readouts": self._all_readouts(readouts),
            "default_readout": _unless_derived(self.default_readout) or _DerivedStr(automatic),
            "num_prefix_keys": _DerivedInt(self.num_prefix_tokens)
            if isinstance(self.num_prefix_keys, _Derived) or self.num_prefix_keys < 0
            else self.num_prefix_keys,
            "shape": _unless_derived(self.shape)
            or _DerivedTuple((_channels(self.tower, sides["patch_size"]), *sides["image_size"])),
        }
        for name, value in (checked | sides | derived).items():
            object.__setattr__(self, name, value)
        if self.default_readout not in self.readouts:
            raise InputError(f"default_readout={brief(self.default_readout)}, but readouts has {sorted(self.readouts)}")
        if self.axes == ("rows", "cols"):
            self._check_grid()

    def _readouts_of_user(self) -> dict[str, Readout]:
        """The read-outs without what this class added; plain functions are taken for read-outs."""
        readouts = {}
        for name, readout in self.readouts.items():
            if isinstance(readout, _DerivedReadout):
                if readout.source is not None:
                    readouts[name] = readout.source
            elif isinstance(readout, Readout) and callable(readout.function):
                readouts[name] = readout
            elif callable(readout) and not isinstance(readout, Readout):
                readouts[name] = Readout(readout)
            else:
                value = readout.function if isinstance(readout, Readout) else readout
                raise InputError(f"the read-out {name!r} is a legrad.Readout or a function, got {type(value).__name__}")
        return readouts

    def _all_readouts(self, readouts: dict[str, Readout]) -> dict[str, Readout]:
        """Every read-out with its normalisation, and the published one where it can be made."""
        # name -> (read-out, the user's that it stands for)
        sources: dict[str, tuple[Readout, Readout | None]] = {name: (value, value) for name, value in readouts.items()}
        if "published" not in readouts and self.route == "self-attention":
            native = readouts["native"]
            sources["published"] = Readout(published(native.function, self.num_prefix_tokens), native.normalize), None
        usual = self.output != "logits"
        return {
            name: _DerivedReadout(
                Head(name, value.function), usual if value.normalize is None else value.normalize, source
            )
            for name, (value, source) in sources.items()
        }

    def is_made(self, readout: str) -> bool:
        """Whether a read-out was made here, of the native one, and not given."""
        value = self.readouts[readout]
        return isinstance(value, _DerivedReadout) and value.source is None

    def _check_grid(self) -> None:
        """As many patches as fit; one more where the model pads the image."""
        if self.shape[-2:] != self.image_size:
            raise InputError(f"shape {tuple(self.shape)} does not end in the image_size {self.image_size}")
        stride = self.stride or self.patch_size
        for axis, (count, side, patch, step) in enumerate(
            zip(self.grid, self.image_size, self.patch_size, stride, strict=True)
        ):
            fits = (side - patch) // step + 1
            if not fits <= count <= -(-(side - patch) // step) + 1:
                raise InputError(
                    f"the grid has {count} {self.axes[axis]}, but {side} pixels ({'height' if axis == 0 else 'width'} "
                    f"of image_size {self.image_size}) hold {fits} patches of {patch}, one every {step} pixels: check "
                    "grid, image_size, patch_size and stride"
                )

    @property
    def device(self) -> torch.device:
        """Of the tower's weights."""
        return next(itertools.chain(self.tower.parameters(), self.tower.buffers())).device

    @property
    def dtype(self) -> torch.dtype:
        """Type that images are cast to: that of the tower's patch embedding (its convolution, else any matrix)."""
        dtype_of_matrix = None
        for weight in itertools.chain(self.tower.parameters(), self.tower.buffers()):
            if weight.ndim == 4 and weight.is_floating_point():
                return weight.dtype
            if dtype_of_matrix is None and weight.ndim > 1 and weight.is_floating_point():
                dtype_of_matrix = weight.dtype
        if dtype_of_matrix is None:
            raise InputError(f"{type(self.tower).__name__} holds no floating-point matrix: no type to cast images to")
        return dtype_of_matrix

    @property
    def patch_grid(self) -> PatchGrid:
        """Where the patches of one image or frame lie in the input."""
        return PatchGrid((self.grid[-2], self.grid[-1]), self.patch_size, self.stride or self.patch_size)

    def on_grid(self, keys: Tensor, tap: int, batch: int) -> Tensor:
        """Relevance of the keys of attention ``tap``, (batch', keys) -> (batch, *grid).

        Raises:
            TruthCheckError: the keys do not fit the grid.
            InputError: ``keys_to_grid`` returns something else.
        """
        if self.keys_to_grid is not None:
            grids = self.keys_to_grid(keys, tap)
            if not isinstance(grids, Tensor) or grids.shape[1:] != self.grid:
                raise InputError(
                    f"keys_to_grid returned {description(grids)}, it has to return (batch, "
                    f"{', '.join(map(str, self.grid))})"
                )
            return grids
        count = self.num_prefix_keys + math.prod(self.grid) + self.num_suffix_keys
        if len(keys) != batch or keys.shape[1] != count:
            raise TruthCheckError(
                f"attention {tap} has {keys.shape[1]} keys for each of {len(keys)} rows, expected {count} "
                f"({self.num_prefix_keys} keys in front of a grid of {self.grid}, {self.num_suffix_keys} behind it) "
                f"for each of {batch} images"
            )
        return relevance.on_grid(keys, self.num_prefix_keys, self.grid)

    @property
    def side_inputs(self) -> tuple[str, ...]:
        """Names of what its forward pass gets beside the images, ascending."""
        return ()

    def for_images(self, indices: Sequence[int]) -> "ViTAnatomy":
        """The anatomy for some of the images of a batch: the same, but where they have inputs beside the pixels."""
        return self

    def at(self, size: Size) -> "ViTAnatomy":
        """The anatomy for an input size: this one if it fits, else one with resampled positions.

        Raises:
            InputError: smaller than one patch, or a size that the architecture does not allow.
        """
        if size == self.image_size:
            return self
        if size[0] < self.patch_size[0] or size[1] < self.patch_size[1]:
            raise InputError(f"an input of {size[0]} x {size[1]} pixels is smaller than one patch of {self.patch_size}")
        if self.at_size is None:
            raise InputError(f"{type(self.tower).__name__} takes images of {self.image_size} pixels only, got {size}")
        # no field: a record that was made of this one has other copies
        copies: SizedCopies = vars(self).setdefault("_copies", SizedCopies(self.tower, self.at_size))
        anatomy = copies.at(size)
        if not isinstance(anatomy, ViTAnatomy) or anatomy.output != self.output:
            raise InputError(
                f"at_size gives {anatomy!r} for {size}, expected a ViTAnatomy of the same model, whose output is "
                f"{self.output!r}; an anatomy that dataclasses.replace made of another needs at_size=None, or its own"
            )
        return anatomy

    def __repr__(self) -> str:
        return self.described(self.image_size)

    def described(self, size: Size) -> str:
        """In one line, with the grid that an input of this (height, width) has."""
        grid = self.grid
        if size != self.image_size:
            follows = self.grid == _derived_grid(self.axes, self.image_size, self.patch_size, self.stride)
            grid = _derived_grid(self.axes, size, self.patch_size, self.stride) if follows else ()
        cells = f", grid {' x '.join(map(str, grid))}" if grid else ""
        return (
            f"ViTAnatomy({self.library} {type(self.tower).__name__}: {len(self.blocks)} x "
            f"{type(self.blocks[0]).__name__}, {size[0]} x {size[1]} px{cells}, "
            f"{self.num_prefix_tokens} prefix tokens, route {self.route}, auto = {self.default_readout})"
        )
