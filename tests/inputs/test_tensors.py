"""Tensors and transforms: what a model cannot take is one line that names the input; any channels can be seen."""

import numpy as np
import pytest
import timm
import torch
from helpers import limits, tiny
from PIL import Image
from torchvision import transforms

import legrad
from legrad.inputs import tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*maps hardly depend")
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def explainer():
    return legrad.wrap(tiny.clip())


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))


def classifier(channels):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=channels, num_classes=3, depth=2)
    return legrad.wrap(tiny.randomised(model))


def with_transform(*steps):
    return legrad.wrap(
        tiny.clip(), transform=transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), *steps])
    )


# -- tensors ------------------------------------------------------------------------------------------------------

ODD = {
    "no pixels": lambda: torch.zeros(1, 3, 0, 0),
    "no width": lambda: torch.zeros(1, 3, 32, 0),
    "no images": lambda: torch.zeros(0, 3, 32, 32),
    "sparse": lambda: torch.zeros(1, 3, 32, 32).to_sparse(),
    "float8": lambda: torch.zeros(1, 3, 32, 32).to(torch.float8_e4m3fn),
    "float8 of another kind": lambda: torch.zeros(1, 3, 32, 32).to(torch.float8_e5m2),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(1, 3, 32, 32), 0.1, 0, torch.quint8),
    "meta": lambda: torch.zeros(1, 3, 32, 32, device="meta"),
    "complex": lambda: torch.zeros(1, 3, 32, 32, dtype=torch.complex64),
    "integers": lambda: torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
    "bools": lambda: torch.zeros(1, 3, 32, 32, dtype=torch.bool),
    "one image": lambda: torch.zeros(3, 32, 32),
    "channels last": lambda: torch.zeros(1, 32, 32, 3),
    "four channels": lambda: torch.zeros(1, 4, 32, 32),
}


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("call", ["explain", "predict", "prepare"])
def test_tensors_that_no_model_takes(explainer, name, call):
    arguments = [VECTOR] if call == "explain" else []
    with pytest.raises(
        legrad.InputError, match=r"tensor input is normalised float \(batch, 3, height, width\).* got \("
    ):
        getattr(explainer, call)(ODD[name](), *arguments)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "input 2 holds NaN or infinite values"),
        (np.inf, "input 2 holds NaN or infinite values"),
        (-np.inf, "input 2 holds NaN or infinite values"),
        (1e30, r"input 2 is far out of range: its values go from .* to 1e\+30"),
        (-1e30, "input 2 is far out of range"),
    ],
)
def test_bad_values_are_named_where_they_are(explainer, value, message):
    batch = torch.rand(4, 3, 32, 32)
    batch[2, 1, 5, 5] = value
    for call in (lambda: explainer.explain(batch, VECTOR), lambda: explainer.predict(batch)):
        with pytest.raises(legrad.InputError, match=message):
            call()


def test_values_beyond_half_precision():
    half = legrad.wrap(tiny.clip().half())
    with pytest.raises(legrad.InputError, match="image 1 holds values beyond those of float16"):
        half.explain(torch.stack([torch.rand(3, 32, 32), torch.full((3, 32, 32), 1e5)]), VECTOR)


def test_pixels_that_are_not_normalised_are_told(explainer):
    with pytest.warns(UserWarning, match="the input has values up to 2.*, as pixels of 8 bits have them"):
        explainer.explain(torch.rand(1, 3, 32, 32) * 254, VECTOR)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(explainer, layout):
    nested = torch.nested.nested_tensor([torch.rand(3, 32, 32)] * 2, layout=layout)
    with pytest.raises(legrad.InputError, match=r"a nested tensor is no input; give \(batch, 3, height, width\)"):
        explainer.explain(nested, VECTOR)


def test_inputs_of_another_model_are_refused(explainer):
    inputs = classifier(4).prepare(torch.rand(1, 4, 32, 32))
    with pytest.raises(legrad.InputError, match=r"image 0 was prepared for another model: it is \(4, 32, 32\)"):
        explainer.explain(inputs, VECTOR)


# -- transforms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "the transform returned Image for image 0, a tensor is expected: is a ToTensor"),
        (
            [transforms.ToTensor(), transforms.Grayscale()],
            r"the transform made \(1, 32, 32\) of image 0, the model takes \(3, h",
        ),
        ([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.0] * 3)], "the transform fails on image 0: .*zero"),
        ([transforms.ToTensor(), transforms.Normalize([0.5] * 5, [1.0] * 5)], "the transform fails on image 0: "),
        (
            [transforms.ToTensor(), transforms.Normalize([np.nan] * 3, [1.0] * 3)],
            "the transform made of image 0 holds NaN",
        ),
        (
            [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [1e-30] * 3)],
            "what the transform made of image 0 is far out",
        ),
    ],
)
def test_transforms_that_give_no_input(steps, message, picture):
    with pytest.raises(legrad.InputError, match=message):
        with_transform(*steps).explain(picture, VECTOR)


@pytest.mark.parametrize("odd", [lambda x: x.to("meta"), lambda x: x.to(torch.complex64), lambda x: x.to_sparse()])
def test_odd_tensors_of_a_transform(odd, picture):
    class ToTensor(transforms.ToTensor):
        def __call__(self, image):
            return odd(super().__call__(image))

    with pytest.raises(legrad.InputError, match=r"the transform made a tensor .* of image 0, dense floats are exp"):
        with_transform(ToTensor()).explain(picture, VECTOR)


def test_integers_of_a_transform_are_told(picture):
    with pytest.warns(UserWarning, match=r"the transform makes uint8 of image 0, which is not normalised"):
        with_transform(transforms.PILToTensor()).explain(picture, VECTOR)


def test_pixels_of_a_transform_are_told(picture):
    scaled = transforms.Normalize([0.0] * 3, [1 / 255] * 3)
    with pytest.warns(UserWarning, match="as pixels of 8 bits have them"):
        with_transform(transforms.ToTensor(), scaled).explain(picture, VECTOR)


# -- channels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8])
def test_any_number_of_channels_is_seen(channels, tmp_path):
    explainer = classifier(channels)
    batch = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))
    found = explainer.explain(batch, 0)
    assert [(image.shape, image.dtype) for image in found.images] == [((32, 32, 3), np.uint8)] * 2
    assert all(np.ptp(image) == 255 for image in found.images)
    assert (np.ptp(found.images[0], -1).max() > 0) == (channels > 3)
    assert found.overlay().size == (32, 32)
    found.figure()
    found.save(tmp_path)
    with pytest.raises(legrad.InputError, match=rf"\(batch, {channels}, height, width\).*got \(1, 3, 32, 32\)"):
        explainer.explain(torch.rand(1, 3, 32, 32), 0)


def test_grey_is_the_mean_of_the_channels_and_false_colour_the_first_three():
    two, five = torch.rand(1, 2, 32, 32), torch.rand(1, 5, 32, 32)
    grey = classifier(2).explain(two, 0).images[0][..., 0]
    mean = two[0].mean(0)
    assert np.abs(grey - (255 * (mean - mean.min()) / (mean.max() - mean.min())).numpy()).max() <= 1
    colour = classifier(5).explain(five, 0).images[0]
    first = five[0, :3]
    assert (
        np.abs(colour - (255 * (first - first.min()) / (first.max() - first.min())).permute(1, 2, 0).numpy()).max() <= 1
    )


def test_a_transform_of_three_channels_for_a_model_of_four(picture):
    own = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()])
    explainer = legrad.wrap(classifier(4).model, transform=own)
    with pytest.raises(legrad.InputError, match=r"made \(3, 32, 32\) of image 0, the model takes \(4, height, width\)"):
        explainer.explain(picture, 0)


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_another_image_is_shown(size):
    explainer = classifier(4)
    batch = torch.rand(2, 4, 32, 32)
    views = [np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8) for i in range(2)]
    found = explainer.explain(explainer.prepare(batch).with_views(views), 0)
    plain = explainer.explain(batch, 0)
    assert limits.close(found.relevance, plain.relevance, maps=True)
    assert all(np.array_equal(a, b) for a, b in zip(found.images, views, strict=True))
    assert found.overlay().size == size[::-1]
    assert found.saliency().shape == (2, 1, *size)
    assert bool(torch.stack(list(found.seen)).all())
    if size == (32, 32):
        assert limits.close(found.saliency(), plain.saliency(), maps=True)


def test_views_lie_where_the_original_lies(picture):
    inputs = with_transform(transforms.ToTensor()).prepare(picture.resize((80, 40)))
    doubled = inputs.with_views([picture.resize((160, 80))])[0].placement
    before = inputs[0].placement
    assert doubled.offset == before.offset
    assert doubled.scale == (before.scale[0] / 2, before.scale[1] / 2)
    assert doubled.original == (80, 160)


@pytest.mark.parametrize("views", [[], None, "a.png", [np.zeros((4, 4, 3), np.uint8)] * 3])
def test_as_many_views_as_inputs(views):
    with pytest.raises(legrad.InputError, match="one image for each of 2 inputs"):
        classifier(4).prepare(torch.rand(2, 4, 32, 32)).with_views(views)


# -- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["explain", "prepare"])
def test_a_size_that_takes_for_ever_is_refused(call, picture):
    embedded = legrad.load("embedded")
    arguments = ["a cow"] if call == "explain" else []
    message = r"5000 x 5000 pixels has 678 times as many patches as the model's own of 192 x 192, and attention takes"
    with pytest.raises(legrad.InputError, match=message):
        getattr(embedded, call)(picture, *arguments, size=5000)
    with pytest.raises(legrad.InputError, match=message):
        getattr(embedded, call)(torch.zeros(1, 3, 1, 1).expand(1, 3, 5000, 5000), *arguments)


def test_a_size_that_takes_long_is_told():
    layout = legrad.wrap(tiny.clip()).anatomy
    with pytest.warns(UserWarning, match="2100 x 2100 pixels has 4,307 times as many patches"):
        tensors.check_size(2100, 2100, layout)
    tensors.check_size(2000, 2000, layout)


def test_messages_have_the_models_own_channels():
    assert tensors.tensor_shape(classifier(8).anatomy) == "(batch, 8, height, width)"
