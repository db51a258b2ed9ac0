"""Content decides nothing: no program is started, no other file opened; what is damaged is one line with its name."""

import io
import os
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import legrad
from legrad.datasets import names
from legrad.inputs import formats, images, sounds, videos

RATE = 16000


def noise(size=(40, 40)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))


def wav(seconds=0.5, rate=RATE):
    tone = (9000 * np.sin(np.arange(round(seconds * RATE)) / 5)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(tone.tobytes())
    return buffer.getvalue()


def read_video(path):
    return videos.read(path, 2)


def read_sound(path):
    return sounds.read(path, RATE)


READERS = {"image": images.read, "video": read_video, "sound": read_sound}

# -- programs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH whose Ghostscript notes that it was started."""
    log, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin64c", "ffmpeg", "convert"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {log}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    yield log
    assert not log.exists()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
DOS_EPS = b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("data", [EPS, DOS_EPS])
@pytest.mark.parametrize("name", ["photo.png", "photo.eps", "clip.gif", "photo"])
def test_postscript_starts_no_program(programs, tmp_path, kind, data, name):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(legrad.InputError, match=name) as caught:
        READERS[kind](tmp_path / name)
    if kind == "image":
        assert "PostScript, which is a program" in str(caught.value)


def test_postscript_that_the_caller_opened(programs):
    opened = Image.open(io.BytesIO(EPS))
    for read in (images.read, read_video):
        with pytest.raises(legrad.InputError, match="the PIL image is of the format EPS, which is not read"):
            read(opened)


def test_masks_start_no_program(programs, tmp_path):
    from legrad.datasets.files import read_mask

    (tmp_path / "mask.png").write_bytes(EPS)
    with pytest.raises(legrad.InputError, match=r"mask\.png is not a mask .*PostScript"):
        read_mask(tmp_path / "mask.png")


def test_only_image_formats_are_opened():
    assert not {"EPS", "PDF", "WMF", "GRIB", "HDF5", "BUFR", "FPX", "MIC", "PSD"} & set(formats.FORMATS)
    assert {"PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"} <= set(formats.FORMATS)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile {other}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>file://{other}</BaseURL></MPD>',
    ],
)
@pytest.mark.parametrize("name", ["clip.mp4", "clip.m3u8", "clip.ffconcat"])
def test_videos_do_not_open_other_files(tmp_path, text, name):
    pytest.importorskip("av")
    other = tmp_path / "other.gif"
    noise().save(other, save_all=True, append_images=[noise((40, 40)).rotate(90)])
    (tmp_path / name).write_text(text.format(other=other))
    with pytest.raises(legrad.InputError, match=rf"cannot read .*{name} as a video"):
        read_video(tmp_path / name)


# -- what is no image ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image, as phones make them: pip install pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "pip install pillow-heif"),
        (b"%PDF-1.7\n", "a PDF document: convert it to PNG first"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing: convert it"),
        (b"<?xml version='1.0'?>\n<svg/>", "an SVG drawing: convert it"),
        (bytes(128) + b"DICM", "a DICOM file: read its pixels, and give the array with value_range="),
        (b"\xff\x0a\0\0", "a JPEG XL image"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"II*\0" + bytes(60), r"a TIFF of a kind that Pillow does not read .* give the array with value_range="),
        (b"hello", r"cannot identify its format \(PNG, JPEG, "),
        (b"", "the file is empty"),
    ],
)
def test_other_files_say_what_they_are(tmp_path, data, message):
    (tmp_path / "IMG_1.HEIC").write_bytes(data)
    with pytest.raises(legrad.InputError, match=rf"IMG_1\.HEIC is not an image that Pillow can read: .*{message}"):
        images.read(tmp_path / "IMG_1.HEIC")


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.jp2", "a.j2k", "a.avif"])
def test_all_image_files_of_a_folder_are_found(tmp_path, name):
    noise().save(tmp_path / name, format="JPEG" if name.lower().endswith(("jfif", "jpe")) else None)
    assert list(images.expand([str(tmp_path)])) == [str(tmp_path / name)]
    assert images.read(tmp_path / name).size == (40, 40)


def test_what_a_folder_holds_besides_is_told(tmp_path):
    for name in ("a.png", "phone.heic", "notes.txt", "drawing.svg", "scan.dcm", "movie.mp4", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert [Path(path).name for path in images.expand([str(tmp_path)])] == ["a.png", "phone.heic"]
    told = images.left_out(str(tmp_path), images.SUFFIXES)
    assert told.endswith("this is left out, for its suffix or as a link: drawing.svg, movie.mp4, notes.txt and 1 more")
    assert images.left_out(str(tmp_path / "a.png"), images.SUFFIXES) is None
    assert images.left_out(str(tmp_path / "more"), images.SUFFIXES) is None


# -- damaged files ------------------------------------------------------------------------------------------------


def broken(data, count=120, seed=0):
    """Copies with a byte flipped, cut or overwritten, mostly in the header."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        copy = bytearray(data)
        place = int(rng.integers(0, min(len(copy), 64 if index % 3 else len(copy))))
        if index % 4 == 0:
            copy = copy[:place]
        elif index % 4 == 1:
            copy[place : place + 4] = struct.pack("<I", int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])))
        else:
            copy[place] ^= 1 << int(rng.integers(8))
        yield bytes(copy)


def message(read, path):
    """What is said of a file: nothing but its name if it can be read."""
    try:
        read(path)
    except legrad.InputError as error:
        return str(error)
    return path.name


def encoded(name):
    buffer = io.BytesIO()
    many = {"save_all": True, "append_images": [noise().rotate(90), noise().rotate(180)]}
    animated = name in ("gif", "webp", "apng")
    kind = {"apng": "PNG", "jp2": "JPEG2000", "jpg": "JPEG", "tif": "TIFF"}.get(name, name.upper())
    noise().save(buffer, format=kind, **(many if animated else {}))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["png", "jpg", "gif", "webp", "bmp", "tif", "ppm", "jp2", "avif", "apng"])
def test_damaged_images_and_animations(tmp_path, name):
    path = tmp_path / f"bad.{name}"
    for data in broken(encoded(name), 60):
        path.write_bytes(data)
        for read in (images.read, read_video):
            assert "bad." in message(read, path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["wav", "float wav", "flac", "ogg", "aiff"])
def test_damaged_sounds(tmp_path, kind):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / f"bad.{kind.split()[-1]}"
    if kind == "wav":
        path.write_bytes(wav())
    else:
        tone = 0.3 * np.sin(np.arange(8000) / 5)
        soundfile.write(path, tone, RATE, subtype="FLOAT" if kind == "float wav" else None)
    for data in broken(path.read_bytes(), 150):
        path.write_bytes(data)
        assert "bad." in message(read_sound, path)


def test_a_chunk_length_that_is_flipped(tmp_path):
    """The standard library raises an error without a text."""
    data = bytearray(wav())
    data[16:20] = struct.pack("<I", 0x80000010)
    (tmp_path / "bad.wav").write_bytes(data)
    with pytest.raises(legrad.InputError, match=r"bad\.wav"):
        read_sound(tmp_path / "bad.wav")


@pytest.mark.parametrize(
    "error", [RuntimeError(), RecursionError("deep"), struct.error("unpack"), KeyError("x"), MemoryError()]
)
@pytest.mark.parametrize("kind", READERS)
def test_whatever_a_reader_raises(tmp_path, monkeypatch, kind, error):
    def raise_it(*_, **__):
        raise error

    path = tmp_path / "bad.file"
    path.write_bytes(wav() if kind == "sound" else encoded("gif"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", raise_it)
    monkeypatch.setattr(Image, "open", raise_it)
    monkeypatch.setattr(wave, "open", raise_it)
    monkeypatch.setattr("soundfile.SoundFile", raise_it)
    with pytest.raises(legrad.InputError, match=r"bad\.file"):
        READERS[kind](path)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, '["a", ' * 100_000 + "]" * 100_000])
def test_deep_json_of_names(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(legrad.InputError, match=r"names\.json does not hold class names"):
        names.read(tmp_path / "names.json")


# -- paths --------------------------------------------------------------------------------------------------------


class OfBytes:
    def __init__(self, path):
        self.path = os.fsencode(path)

    def __fspath__(self):
        return self.path


class OfNothing:
    def __fspath__(self):
        return 7


def test_paths_of_bytes(tmp_path):
    noise().save(tmp_path / "c.png")
    noise().save(tmp_path / "c.gif", save_all=True, append_images=[noise().rotate(90)])
    (tmp_path / "c.wav").write_bytes(wav())
    (tmp_path / "c.txt").write_text("0 cow\n")
    assert images.read(OfBytes(tmp_path / "c.png")).info[images.SOURCE] == str(tmp_path / "c.png")
    assert read_video(OfBytes(tmp_path / "c.gif"))[1] == str(tmp_path / "c.gif")
    assert read_sound(OfBytes(tmp_path / "c.wav"))[1] == str(tmp_path / "c.wav")
    assert names.read(OfBytes(tmp_path / "c.txt")) == {"0": "cow"}


@pytest.mark.parametrize("name", ["a\nb.png", "a\r\nb.png", "a\u2028b.png"])
@pytest.mark.parametrize("read", [*READERS.values(), names.read])
def test_names_of_several_lines(tmp_path, read, name):
    for exists in (False, True):
        if exists:
            (tmp_path / name).write_text("x")
        with pytest.raises(legrad.InputError) as caught:
            read(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
        assert "b.png" in str(caught.value)


@pytest.mark.parametrize("read", [*READERS.values(), names.read])
def test_paths_that_are_none(read):
    with pytest.raises(legrad.InputError, match="OfNothing gives no path"):
        read(OfNothing())


def test_links_to_the_folder_itself_have_an_end(tmp_path):
    inner = tmp_path / "photos" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent, tmp_path):
        noise().save(folder / "a.png")
    for name in ("here", "again"):
        (inner / name).symlink_to(tmp_path / "photos")
        (tmp_path / "photos" / name).symlink_to(tmp_path / "photos")
    below = [str(inner.parent / "a.png"), str(inner / "a.png")]
    for pattern in ("photos/**/*.png", "photos/**/a.png", "**/photos/**/*.png", "photos/**"):
        assert list(images.expand([f"{tmp_path}/{pattern}"])) == below
    assert list(images.expand([f"{tmp_path}/**/*.png"])) == [str(tmp_path / "a.png"), *below]
    # a link that is named is followed
    assert list(images.expand([f"{tmp_path}/photos/here/**/*.png"])) == [
        f"{tmp_path}/photos/here/a.png",
        f"{tmp_path}/photos/here/inner/a.png",
    ]
    assert list(images.expand([f"{tmp_path}/photos/h*/a.png"])) == [f"{tmp_path}/photos/here/a.png"]


def test_patterns_below_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "x" / "y").mkdir(parents=True)
    noise().save(tmp_path / "a.png")
    noise().save(tmp_path / "x" / "y" / "b.png")
    monkeypatch.chdir(tmp_path)
    assert list(images.expand(["**/*.png"])) == ["a.png", "x/y/b.png"]
    assert list(images.expand(["./**/*.png"])) == ["a.png", "x/y/b.png"]
    assert list(images.expand(["x/**/*.png"])) == ["x/y/b.png"]


# -- bounds of videos and sounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["long.gif", "long.mp4"])
def test_videos_that_never_end(tmp_path, monkeypatch, name):
    path = tmp_path / name
    if name == "long.gif":
        noise().save(path, save_all=True, append_images=[noise().rotate(10 * i) for i in range(1, 6)])
    else:
        av = pytest.importorskip("av")
        with av.open(str(path), "w") as file:
            stream = file.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            for _ in range(6):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            file.mux(stream.encode())
    assert len(read_video(path)[0]) == 2
    monkeypatch.setattr(videos, "_MOST_FRAMES", 5)
    with pytest.raises(legrad.InputError, match=rf"{name} holds more than 5 frames; cut it into pieces"):
        read_video(path)


def test_a_rate_of_one_hertz_is_no_sound(tmp_path):
    (tmp_path / "slow.wav").write_bytes(wav(rate=1))
    with pytest.raises(legrad.InputError, match=r"slow\.wav: 1 Hz is no sampling rate of a sound"):
        read_sound(tmp_path / "slow.wav")
    for rate in (1, 100, 4_000_000_000, 2**40):
        with pytest.raises(legrad.InputError, match="is no sampling rate of a sound"):
            read_sound((np.sin(np.arange(8000) / 5).astype(np.float32), rate))


def test_sounds_that_never_end():
    tone = np.sin(np.arange(1_900_000) / 5).astype(np.float32)
    with pytest.raises(legrad.InputError, match="lasts 1,900 s, at most 1,800 s are heard at once"):
        read_sound((tone, 1000))


def test_resampling_is_bounded(monkeypatch):
    monkeypatch.setattr(sounds, "_MOST_SAMPLES", 50_000)
    tone = np.sin(np.arange(8000) / 5).astype(np.float32)
    with pytest.raises(legrad.InputError, match="at 16000 Hz, the waveform holds 64000 samples, at most 50000"):
        sounds.resampled(tone, 2000, RATE, "the waveform")


@pytest.mark.parametrize("rate", [True, 1.5, None, "16000", float("nan"), 1j, [16000]])
def test_rates_that_are_no_numbers(rate):
    with pytest.raises(legrad.InputError, match="a sampling rate is a whole number of Hz"):
        read_sound((np.ones(8000, np.float32), rate))
