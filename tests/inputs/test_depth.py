"""Values of any depth: scaled by what the file or the user says, told where that is a guess or little of it is used."""

import io
import itertools
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from helpers import limits, tiny
from PIL import Image, TiffImagePlugin

import legrad
from legrad.inputs import images

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.fixture(scope="module")
def explainer():
    from torchvision import transforms

    transform = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()])
    return legrad.wrap(tiny.clip(), transform=transform, tokenizer=tiny.tokenizer)


def ramp(white, dtype=np.uint16):
    return (RAMP * white).round().astype(dtype)


def grey(image):
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def is_ramp(image, tolerance=1):
    return np.abs(grey(image).astype(int) - RAMP * 255).max() <= tolerance


def png_16(values, bits=None):
    """A 16-bit PNG, grey (H, W) or colour (H, W, 3), with an sBIT chunk if ``bits`` is given."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    kind = 0 if values.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    significant = b"" if bits is None else chunk(b"sBIT", bytes([bits] * (1 if kind == 0 else 3)))
    body = chunk(b"IHDR", header) + significant + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def put(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


# -- what files declare -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
@pytest.mark.parametrize("white", [65535, 30000])
def test_sixteen_bits_are_scaled_by_their_own_range(tmp_path, name, white):
    read = images.read(saved(tmp_path, Image.fromarray(ramp(white)), name))
    assert np.abs(grey(read).astype(int) - RAMP * 255 * white / 65535).max() <= 1


def test_there_is_no_jump_at_a_maximum_of_255():
    """Files that are nearly the same look nearly the same."""
    below, above = (np.full((4, 4), top, np.uint16) for top in (255, 256))
    for values in (below, above):
        values[0, 0] = 0
    with pytest.warns(UserWarning, match="hardly any contrast"):
        pair = [int(grey(images.read(Image.fromarray(values))).max()) for values in (below, above)]
    assert pair == [1, 1]


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_significant_bits_of_a_png(tmp_path, bits):
    assert is_ramp(images.read(put(tmp_path, "a.png", png_16(ramp((1 << bits) - 1), bits).getvalue())))
    # as the standard wants it, they are the upper ones
    high = ramp((1 << bits) - 1).astype(np.uint32) << (16 - bits)
    assert is_ramp(images.read(Image.open(png_16(high.astype(np.uint16), bits))))


def test_significant_bits_of_colours():
    colours = np.repeat(ramp(4095)[..., None], 3, -1)
    assert is_ramp(images.read(Image.open(png_16(colours, 12))), tolerance=18)  # of which Pillow keeps four bits
    with pytest.warns(UserWarning, match=r"uses 5\.9% of its range"):
        images.read(Image.open(png_16(colours)))


@pytest.mark.parametrize("tag", [{281: 4095}, {258: 12}])
def test_depth_in_the_tags_of_a_tiff(tmp_path, tag):
    if 281 in tag:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[281] = tag[281]
        path = saved(tmp_path, Image.fromarray(ramp(4095)), "a.tif", tiffinfo=info)
    else:
        values = ramp(4095).reshape(-1, 2)
        packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], -1)
        entries = [(256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 16), (279, 384)]
        directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in entries)
        head = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)
        path = put(tmp_path, "a.tif", head + packed.astype(np.uint8).tobytes())
        assert len(head) == 122
    assert is_ramp(images.read(path))


def test_one_transparent_value_of_sixteen_bits(tmp_path):
    values = ramp(65535)
    path = saved(tmp_path, Image.fromarray(values), "a.png", transparency=int(values[3, 3]))
    read = grey(images.read(path)).astype(int)
    expected = RAMP * 255
    expected[3, 3] = 255
    assert np.abs(read - expected).max() <= 1


# -- what is told -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "colour file", "PIL", "array", "tiff"])
def test_twelve_bits_in_sixteen_are_told(tmp_path, kind):
    colours = np.repeat(ramp(4095)[..., None], 3, -1)
    source = {
        "file": lambda: saved(tmp_path, Image.fromarray(ramp(4095)), "12in16.png"),
        "colour file": lambda: put(tmp_path, "12in16.png", png_16(colours).getvalue()),
        "PIL": lambda: Image.fromarray(ramp(4095)),
        "array": lambda: (colours >> 8).astype(np.uint8),
        "tiff": lambda: saved(tmp_path, Image.fromarray(ramp(4095)), "12in16.tif"),
    }[kind]()
    with pytest.warns(UserWarning, match=r"uses \d\.\d% of its range, .*hardly any contrast.*value_range=") as told:
        read = images.read(source)
    assert len(told) == 1
    assert grey(read).max() <= 16


def test_an_image_is_judged_once(explainer, tmp_path):
    path = saved(tmp_path, Image.fromarray(ramp(4095)), "12in16.png")
    with pytest.warns(UserWarning, match="hardly any contrast") as told:
        explainer.explain(images.read(path), torch.randn(32))
    assert len(told) == 1


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4), 9), RAMP * 255])
def test_plain_and_full_images_are_nothing_to_tell(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (np.uint8, np.uint16, np.int32, np.float32):
            scale = 257 if dtype == np.uint16 else 1
            images.read(Image.fromarray((values * scale).astype(dtype)))


@pytest.mark.parametrize(
    ("low", "high", "dtype", "black", "white"),
    [
        (-1, 1, np.float32, -1, 1),
        (-0.5, 1, np.float32, -1, 1),
        (0, 1000, np.float32, 0, 1000),
        (-1024, 3071, np.int32, -1024, 3071),
        (-1024, 3071, np.float32, -1024, 3071),
        (0, 1_000_000, np.int32, 0, 1_000_000),
    ],
)
def test_a_range_that_is_guessed_is_told(low, high, dtype, black, white, tmp_path):
    values = (low + RAMP * (high - low)).astype(dtype)
    for source in (Image.fromarray(values), saved(tmp_path, Image.fromarray(values), "scan.tif")):
        with pytest.warns(UserWarning, match=r"does not say what its values .* mean: .*black .*white") as told:
            read = grey(images.read(source))
        assert len(told) == 1
        assert np.abs(read.astype(int) - np.clip((values - black) / (white - black), 0, 1) * 255).max() <= 1


def test_nan_in_an_image_is_told():
    with pytest.warns(UserWarning, match="the PIL image holds 3 NaN or infinite values; they become black"):
        read = images.read(Image.fromarray(np.array([[np.nan, np.inf, -np.inf, 1, 0.5]], np.float32)))
    assert grey(read).tolist() == [[0, 0, 0, 255, 128]]


# -- what the user says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_twelve_bits_by_the_users_word(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_ramp(images.read(saved(tmp_path, Image.fromarray(ramp(4095)), name), value_range=(0, 4095)))


def test_a_window_of_hounsfield_units(tmp_path):
    values = np.array([[-1000, -160, 40, 240, 3000]], np.int32)
    path = saved(tmp_path, Image.fromarray(values), "ct.tif")
    assert grey(images.read(path, value_range=(-160, 240))).tolist() == [[0, 0, 128, 255, 255]]


def test_arrays_of_any_numbers_by_the_users_word():
    for dtype, shape in itertools.product((np.uint16, np.int16, np.float32, np.float64, np.uint8), ((), (3,))):
        values = np.broadcast_to((RAMP * 200).astype(dtype)[..., *([None] * len(shape))], RAMP.shape + shape)
        assert is_ramp(images.read(values, value_range=(0, 200)), tolerance=2)
    with pytest.raises(legrad.InputError, match="NaN"):
        images.read(np.full((4, 4), np.nan), value_range=(0, 1))
    with pytest.raises(legrad.InputError, match="a masked array is no image"):
        images.read(np.ma.masked_array(np.zeros((4, 4), np.uint8), mask=True))
    with pytest.raises(legrad.InputError, match=r"uint8, got .*float64; other numbers need value_range="):
        images.read(np.zeros((4, 4)))


def test_colours_by_the_users_word(tmp_path):
    colours = np.repeat((RAMP * 100).round().astype(np.uint8)[..., None], 3, -1)
    for source in (colours, Image.fromarray(colours), saved(tmp_path, Image.fromarray(colours), "a.png")):
        assert is_ramp(images.read(source, value_range=(0, 100)), tolerance=2)
    wide = np.repeat(ramp(4095)[..., None], 3, -1)
    assert is_ramp(images.read(Image.open(png_16(wide)), value_range=(0, 4095)), tolerance=18)


def test_an_image_is_scaled_once(tmp_path):
    path = saved(tmp_path, Image.fromarray(ramp(4095)), "12in16.png")
    once = images.read(path, value_range=(0, 4095))
    assert np.array_equal(np.asarray(images.read(once, value_range=(0, 4095))), np.asarray(once))
    assert np.asarray(images.read(once, value_range=(100, 200))).tolist() != np.asarray(once).tolist()


def test_a_range_that_leaves_nothing_is_told():
    with pytest.warns(
        UserWarning, match=r"no pixel differs within value_range=\(1000, 2000\); its values go from 0 to"
    ):
        images.read(Image.fromarray(ramp(900)), value_range=(1000, 2000))


@pytest.mark.parametrize(
    "wrong",
    [
        *((1,), (1, 1), (2, 1), (0, np.nan), (0, np.inf), (0, 1, 2), ("x", "y"), [[0], [1]], np.zeros((2, 2))),
        *(5, "ab", "01", b"ab", {0: 1, 9: 2}, {0, 9}, (False, True), (0, 10**400), (0, 1j), iter((0, 1))),
    ],
)
def test_what_is_no_range(explainer, wrong):
    with pytest.raises(legrad.InputError, match=r"value_range is \(low, high\)"):
        explainer.explain(np.zeros((40, 40, 3), np.uint8), torch.randn(32), value_range=wrong)


def test_explain_and_prepare_take_a_range(explainer, tmp_path):
    values = ramp(4095)
    path = saved(tmp_path, Image.fromarray(values), "12in16.png")
    alone = explainer.explain(
        saved(tmp_path, Image.fromarray((values / 4095 * 255).round().astype(np.uint8)), "8.png"), torch.ones(32)
    )
    found = explainer.explain([path, values], torch.ones(32), value_range=(0, 4095))
    assert all(np.array_equal(image, alone.images[0]) for image in found.images)
    assert limits.close(found.relevance[:1], alone.relevance, maps=True)
    assert found.settings["value_range"] == [0, 4095]
    assert "value_range" not in alone.settings
    assert np.array_equal(explainer.prepare(path, value_range=np.array([0, 4095]))[0].image, alone.images[0])


def test_tensors_and_sounds_have_no_range(explainer):
    for source in (torch.rand(1, 3, 32, 32), explainer.prepare(torch.rand(1, 3, 32, 32))):
        with pytest.raises(legrad.InputError, match="value_range is for images"):
            explainer.explain(source, torch.ones(32), value_range=(0, 1))
