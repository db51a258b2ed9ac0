"""Every odd input becomes an upright RGB image or one clear InputError."""

import http.server
import io
import itertools
import os
import struct
import threading
import time
import types
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import legrad
from legrad.inputs import images, urls

ORIENTATION = 0x0112


def checks(size=(6, 4)):
    """An image whose corners differ: red, green, blue, white, in reading order, rest grey."""
    picture = Image.new("RGB", size, (120, 120, 120))
    right, bottom = size[0] - 1, size[1] - 1
    for place, colour in {
        (0, 0): (255, 0, 0),
        (right, 0): (0, 255, 0),
        (0, bottom): (0, 0, 255),
        (right, bottom): (255, 255, 255),
    }.items():
        picture.putpixel(place, colour)
    return picture


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


# -- files --------------------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(legrad.InputError, match=r"no such image: .*absent\.png"):
        images.read(tmp_path / "absent.png")


@pytest.mark.parametrize("name", ["", "a" * 5000, "nul\0byte.png"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(legrad.InputError, match="no such image") as caught:
        images.read(name)
    assert len(str(caught.value)) < 400
    with pytest.raises(legrad.InputError, match="no such image"):
        list(images.expand([name]))


def test_folder(tmp_path):
    with pytest.raises(legrad.InputError, match="is a folder"):
        images.read(tmp_path)


def test_text_called_png(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    with pytest.raises(legrad.InputError, match=r"notes\.png is not an image that Pillow can read"):
        images.read(path)


def test_empty_file(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(legrad.InputError, match="not an image"):
        images.read(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif"])
def test_truncated_files(tmp_path, suffix):
    rng = np.random.default_rng(0)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(legrad.InputError, match=rf"cut\.{suffix} is not an image that Pillow can read"):
        images.read(path)


def test_truncated_image_opened_by_the_caller(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:800])
    with Image.open(path) as picture, pytest.raises(legrad.InputError, match="cannot read the PIL image"):
        images.read(picture)


def test_image_closed_by_the_caller(tmp_path):
    checks().save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pass
    with pytest.raises(legrad.InputError, match="cannot read the PIL image"):
        images.read(picture)


def test_broken_reader_is_one_clear_error(tmp_path, monkeypatch):
    checks().save(tmp_path / "a.png")

    def broken(*_):
        raise struct.error("unpack requires 4 bytes")

    monkeypatch.setattr(images.depth, "declared", broken)
    with pytest.raises(legrad.InputError, match=r"a\.png is not an image.*unpack requires 4 bytes"):
        images.read(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_knows_its_name(tmp_path, kind):
    checks().save(tmp_path / "a.png")
    picture = images.read(kind(tmp_path / "a.png"))
    assert (picture.mode, picture.size) == ("RGB", (6, 4))
    assert picture.info == {images.SOURCE: str(tmp_path / "a.png")}
    assert images.read(picture).info == picture.info


# -- modes --------------------------------------------------------------------------------------------------------


def test_cmyk_jpeg(tmp_path):
    Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    picture = images.read(tmp_path / "a.jpg")
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture, int) - (200, 30, 60)).max() < 12


def test_16_bit_grey(tmp_path):
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    grey = np.asarray(images.read(tmp_path / "a.png"))
    assert np.abs(grey[0, :, 0].astype(int) - (0, 1, 128, 255)).max() <= 1
    assert (grey[..., :1] == grey).all()
    # the scale is that of 16 bits, not of the image's own brightest value
    assert images.read(Image.fromarray(values // 4)).getpixel((3, 0)) == (64, 64, 64)


def test_8_bit_values_in_a_wide_mode_are_kept():
    assert images.read(Image.fromarray(np.array([[0, 100, 255]], np.int32))).getpixel((1, 0)) == (100, 100, 100)


@pytest.mark.parametrize(("values", "expected"), [((0, 0.5, 1), (0, 128, 255)), ((0, 100, 255), (0, 100, 255))])
def test_float_images(values, expected):
    picture = images.read(Image.fromarray(np.array([values], np.float32)))
    assert tuple(np.asarray(picture)[0, :, 0]) == expected


def test_transparency_is_laid_on_white(tmp_path):
    picture = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    picture.putpixel((2, 0), (255, 0, 0, 128))
    picture.save(tmp_path / "a.png")
    read = images.read(tmp_path / "a.png")
    assert [read.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (255, 255, 255), (255, 127, 127)]


def test_palette_with_transparency(tmp_path):
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for x in range(3):
        picture.putpixel((x, 0), x)
    for name, transparency in {"index.gif": 1, "bytes.png": bytes([255, 0, 255])}.items():
        picture.save(tmp_path / name, transparency=transparency)
        read = images.read(tmp_path / name)
        assert [read.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (255, 255, 255), (0, 0, 255)], name


def test_transparent_colour_of_rgb_and_grey(tmp_path):
    checks().save(tmp_path / "rgb.png", transparency=(255, 0, 0))
    assert images.read(tmp_path / "rgb.png").getpixel((0, 0)) == (255, 255, 255)
    assert images.read(tmp_path / "rgb.png").getpixel((5, 0)) == (0, 255, 0)
    Image.new("L", (2, 2), 0).save(tmp_path / "grey.png", transparency=0)
    assert images.read(tmp_path / "grey.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa"])
def test_other_modes_with_alpha(mode):
    # every value is 0: black in colour, nothing in opacity
    assert images.read(Image.new(mode, (2, 2))).getpixel((0, 0)) == (255, 255, 255)


def test_grey_with_alpha(tmp_path):
    picture = Image.new("LA", (2, 1), (40, 255))
    picture.putpixel((1, 0), (40, 0))
    picture.save(tmp_path / "a.png")
    read = images.read(tmp_path / "a.png")
    assert [read.getpixel((x, 0)) for x in range(2)] == [(40, 40, 40), (255, 255, 255)]


def test_1_bit(tmp_path):
    picture = Image.new("1", (2, 1), 0)
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png")
    read = images.read(tmp_path / "a.png")
    assert [read.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "CMYK", "P", "L", "I;16", "RGBX"])
def test_every_other_mode_is_read(mode):
    assert images.read(Image.new(mode, (3, 2))).mode == "RGB"


# -- shapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    upright = checks((48, 32)).resize((96, 64), Image.Resampling.NEAREST)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    read = images.read(tmp_path / "a.jpg")
    assert read.size == (96, 64)
    assert np.abs(np.asarray(read, int) - np.asarray(upright, int)).max() < 40
    # reading twice does not turn it again, and the caller's own image is not changed
    assert np.array_equal(np.asarray(images.read(read)), np.asarray(read))
    with Image.open(tmp_path / "a.jpg") as own:
        assert images.read(own).size == (96, 64)
        assert own.getexif()[ORIENTATION] == orientation


@pytest.mark.parametrize("size", [(1, 1), (10000, 10), (10, 10000)])
def test_extreme_shapes(tmp_path, size):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    read = images.read(tmp_path / "a.png")
    assert read.size == size
    assert read.getpixel((size[0] - 1, size[1] - 1)) == (1, 2, 3)


@pytest.mark.parametrize("factor", [1.5, 5])
def test_decompression_bomb(tmp_path, monkeypatch, factor):
    # Pillow itself only warns up to twice its limit
    picture = Image.new("RGB", (100, int(10 * factor)))
    picture.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(legrad.InputError, match=r"bomb\.png has too many pixels"):
        images.read(tmp_path / "bomb.png")
    with pytest.raises(legrad.InputError, match=r"100 x \d+ pixels, more than Pillow's limit of 1000"):
        images.read(picture)


def test_a_claimed_size_is_not_allocated(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(legrad.InputError, match="too many pixels"):
        images.read(tmp_path / "a.png")


# -- what is in memory --------------------------------------------------------------------------------------------


def test_arrays():
    rgb = np.asarray(checks())
    assert np.array_equal(np.asarray(images.read(rgb)), rgb)
    assert np.array_equal(np.asarray(images.read(rgb[::-1, ::-1])), rgb[::-1, ::-1])
    assert images.read(rgb[..., 0]).getpixel((0, 0)) == (255, 255, 255)
    assert images.read(rgb).info == {}


def test_pil_images_are_not_changed():
    own = checks()
    own.info = {"dpi": (72, 72)}
    read = images.read(own)
    assert np.array_equal(np.asarray(read), np.asarray(own))
    assert read.info == {}
    assert read is not own
    assert own.info == {"dpi": (72, 72)}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((4, 6, 3), np.float32),
        ((4, 6, 3), np.int64),
        ((4, 6, 3), bool),
        ((4, 6, 4), np.uint8),
        ((4, 6, 1), np.uint8),
        ((3, 4, 6), np.uint8),
        ((6,), np.uint8),
        ((2, 4, 6, 3), np.uint8),
        ((0, 6, 3), np.uint8),
        ((4, 0), np.uint8),
    ],
)
def test_wrong_arrays(shape, dtype):
    with pytest.raises(legrad.InputError, match=r"\(height, width, 3\) uint8, got \(") as caught:
        images.read(np.zeros(shape, dtype))
    assert str(np.dtype(dtype)) in str(caught.value)


@pytest.mark.parametrize("source", [None, 3, b"a.png", io.BytesIO(b""), {"path": "a.png"}])
def test_other_kinds(source):
    with pytest.raises(legrad.InputError, match=f"got {type(source).__name__}"):
        images.read(source)


def test_empty_pil_image():
    with pytest.raises(legrad.InputError, match=r"empty \(0 x 4 pixels\)"):
        images.read(Image.new("RGB", (0, 4)))


# -- URLs ---------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Paths name what happens."""

    drops: ClassVar[list[int]] = []  # pieces of the slow one that were sent

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", query)
            self.end_headers()
        elif path == "/drip.png":
            self.send_response(200)
            self.end_headers()
            unless_hung_up(self.drip)
        elif path in ("/a.png", "/a%20b%C3%BC.png", "/text.png"):
            self.send_response(200)
            self.end_headers()
            unless_hung_up(lambda: self.wfile.write(b"hello" if path == "/text.png" else png(checks())))
        else:
            self.send_error(404)

    def drip(self):
        for _ in range(200):
            self.wfile.write(b"x")
            self.drops.append(1)
            time.sleep(0.01)

    def log_message(self, *_):
        pass


def unless_hung_up(write):
    """A client that hangs up early is part of the tests."""
    try:
        write()
    except OSError:
        return


@contextmanager
def serving(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def server():
    with serving(Handler) as address:
        yield address


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_url(server):
    picture = images.read(f"{server}/a.png")
    assert np.array_equal(np.asarray(picture), np.asarray(checks()))
    assert picture.info == {images.SOURCE: f"{server}/a.png"}


@pytest.mark.parametrize("path", ["/a b\u00fc.png", "/a%20b%C3%BC.png", "/to/x?/a.png"])
def test_urls_as_people_write_them(server, path):
    assert images.read(server + path).size == (6, 4)


def test_url_of_something_else(server):
    with pytest.raises(legrad.InputError, match=r"text\.png is not an image"):
        images.read(f"{server}/text.png")


def test_404(server):
    with pytest.raises(legrad.InputError, match=rf"cannot read {server}/absent\.png: HTTP Error 404"):
        images.read(f"{server}/absent.png")


def test_nobody_answers():
    with pytest.raises(legrad.InputError, match="cannot read http"):
        images.read("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "gopher://a/b", "http://", "http:///a.png", "http://[bad/a.png"],
)
def test_urls_that_are_not_read(url):
    with pytest.raises(legrad.InputError, match="URL"):
        images.read(url)


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "data:text/plain,a", "http://[bad/"]
)
def test_redirects_are_checked_again(server, target):
    with pytest.raises(legrad.InputError, match=r"is not allowed|only http and https|Invalid IPv6"):
        images.read(f"{server}/to/x?{target}")


def test_redirect_loop(server):
    with pytest.raises(legrad.InputError, match="redirect"):
        images.read(f"{server}/to/x?/to/x?/to/x")


def test_too_large(server, monkeypatch):
    monkeypatch.setattr(urls, "URL_BYTES", 20)
    with pytest.raises(legrad.InputError, match=r"a\.png is larger than"):
        images.read(f"{server}/a.png")


def test_too_slow(server, monkeypatch):
    """What dribbles in is looked at as it comes, not when all of it has come."""
    ten_seconds_later = itertools.count(0, 10)
    monkeypatch.setattr(urls, "time", types.SimpleNamespace(monotonic=lambda: next(ten_seconds_later)))
    Handler.drops.clear()
    with pytest.raises(legrad.InputError, match="took longer than 30 s"):
        images.read(f"{server}/drip.png")
    assert len(Handler.drops) < 100


# -- many ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ["b.png", "a.JPG", "c[1].png", "notes.txt", "._a.png", "sub/d.webp", "sub/sub/e.webp"]:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "photos" / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    return tmp_path / "photos"


def names(found):
    return [Path(path).name for path in found]


def test_expand(folder):
    # with those of sub-folders
    assert names(images.expand([str(folder)])) == ["a.JPG", "b.png", "c[1].png", "d.webp", "e.webp"]
    assert list(images.expand([f"{folder}/b.png", "https://a.b/c?d=*"])) == [f"{folder}/b.png", "https://a.b/c?d=*"]
    assert names(images.expand([f"{folder}/*.png"])) == ["b.png", "c[1].png"]
    assert names(images.expand([f"{folder}/**/*.webp"])) == ["d.webp", "e.webp"]
    assert names(images.expand([f"{folder}/c[1].png"])) == ["c[1].png"]
    assert names(images.expand([f"{folder}/notes.txt"])) == ["notes.txt"]
    assert list(images.expand([])) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [("../empty", "no images in the folder"), ("*.gif", "no file matches"), ("absent.png", "no such image")],
)
def test_expand_finds_nothing(folder, source, message):
    with pytest.raises(legrad.InputError, match=message):
        list(images.expand([f"{folder}/{source}"]))


def test_expand_of_a_folder_that_may_not_be_read(folder, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(legrad.InputError, match="cannot read the folder"):
        list(images.expand([str(folder)]))


@pytest.mark.skipif(os.name == "nt", reason="names there are not bytes")
def test_a_file_name_that_is_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        checks().save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert images.read(tmp_path / name).size == (6, 4)
    assert names(images.expand([str(tmp_path)])) == [name]


# -- animations where single images are wanted ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tiff"])
def test_other_frames_than_the_first_are_told(tmp_path, name):
    first, *others = (Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(3))
    first.save(tmp_path / name, save_all=True, append_images=others)
    with pytest.warns(UserWarning, match=rf"{name} holds 3 frames or pages and this model takes single") as told:
        images.read(tmp_path / name)
    assert len(told) == 1
    with Image.open(tmp_path / name) as opened, pytest.warns(UserWarning, match="the PIL image holds 3 frames"):
        images.read(opened)


def test_a_single_frame_is_nothing_to_tell(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif")
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (4, 4))
    first.save(tmp_path / "phone.mpo", save_all=True, append_images=[second])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = [images.read(tmp_path / name) for name in ("a.gif", "phone.mpo")]
    assert [one.size for one in read] == [(8, 8), (8, 8)]
