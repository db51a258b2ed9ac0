"""What nobody should hand to the library: strategies of hypothesis, and the one rule for what may come of it."""

import contextlib
import math
import socket
import socketserver
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

import legrad
from legrad import Contrast, Prompts, Similar, ZeroShot

LONGEST_MESSAGE = 2000


def outcome(call: Callable[[], Any]) -> Any:
    """The result, or None if the library refused in a line of its own; anything else is raised: a defect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except legrad.LeGradError as error:
            message = str(error)
            assert message.strip(), "an error without a message"
            assert "\n" not in message, f"more than one line: {message!r}"
            assert len(message) < LONGEST_MESSAGE, f"{len(message)} letters: {message[:200]!r}"
            return None


def check_explanation(explanation: legrad.Explanation | None) -> None:
    """An explanation that was not refused has finite numbers of the right shapes."""
    if explanation is None:
        return
    images, targets = explanation.relevance.shape[:2]
    assert explanation.relevance.isfinite().all()
    assert explanation.scores.shape == (images, targets)
    assert explanation.scores.isfinite().all()
    assert len(explanation.images) == len(explanation.names) == images
    assert all(image.dtype == np.uint8 and image.shape[-1] == 3 for image in explanation.images)


# -- values of the wrong kind ----------------------------------------------------------------------

texts = st.text(max_size=12) | st.sampled_from(
    ["a cow", "", " ", "\0", "\udcff", "x" * 3000, "{}", "[/x]", "%s", "../.."]
)
numbers = (
    st.integers(-3, 40)
    | st.sampled_from([2**31, -(2**63), 10**30])
    | st.floats(width=32)
    | st.sampled_from([True, False, 1j])
    | st.sampled_from([np.int64(1), np.float32(0.5), np.bool_(True), np.array(2), np.array([0, 1])])
)
oddities = st.sampled_from([None, b"bytes", object(), int, len, Ellipsis, NotImplemented, slice(1), {}, set(), (), []])
values = st.recursive(
    numbers | texts | oddities,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2) | st.tuples(inner, inner),
    max_leaves=4,
)

_shapes = st_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9)
arrays = st_numpy.arrays(
    st.sampled_from(
        [np.uint8, np.int16, np.uint16, np.int64, np.float16, np.float32, np.float64, np.bool_, np.complex64]
    ),
    _shapes,
)


def _odd_tensors() -> list[torch.Tensor]:
    image = torch.rand(1, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layouts that torch calls a prototype
        return [
            image.to_sparse(),
            image.to("meta"),
            image.to(torch.float8_e4m3fn),
            image.to(torch.complex64),
            torch.quantize_per_tensor(image, 0.1, 0, torch.qint8),
            torch.full_like(image, math.nan),
            image * 1e30,
            image.expand(2, 3, 32, 32),
            image.requires_grad_(),
            torch.nn.Parameter(image.detach()),
            torch.empty(0, 3, 32, 32),
            torch.zeros(1, 3, 0, 0),
            torch.rand(3, 32, 32),
            torch.rand(1, 4, 32, 32),
            torch.rand(1, 3, 33, 47),
            torch.randint(0, 255, (1, 3, 32, 32)),
            torch.rand(128),
            torch.rand(2, 32),
            torch.zeros(32),
        ]


tensors = st.deferred(lambda: st.sampled_from(_odd_tensors()))

_MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "I;16")


@st.composite
def pil_images(draw: st.DrawFn) -> Image.Image:
    mode = draw(st.sampled_from(_MODES))
    return Image.new(mode, (draw(st.integers(1, 40)), draw(st.integers(1, 40))))


def _in_place(feature: torch.Tensor) -> torch.Tensor:
    return feature.mul_(2).sum(-1)


def _emptied(feature: torch.Tensor) -> torch.Tensor:
    result = feature[:, 0] * 1.0
    feature.data.zero_()
    return result


def _without_gradients(feature: torch.Tensor) -> torch.Tensor:
    torch.set_grad_enabled(False)
    return feature.sum(-1)


def _raises(feature: torch.Tensor) -> torch.Tensor:
    raise legrad.InputError("the user's own function refuses")


callables = st.sampled_from(
    [
        _in_place,
        _emptied,
        _without_gradients,
        _raises,
        lambda feature: feature,
        lambda feature: feature.sum(),
        lambda feature: feature.detach().sum(-1),
        lambda feature: feature.sum(-1) * math.nan,
        lambda feature: feature.argmax(-1),
        lambda feature: None,
        lambda feature: 3,
        lambda feature: feature.sum(-1).numpy(force=True),
        lambda feature: feature.sum(-1, keepdim=True),
        lambda feature: feature.norm(dim=-1),
    ]
)

targets = st.recursive(
    values | arrays | tensors | callables | st.just(legrad.PREDICTED),
    lambda inner: (
        st.builds(Contrast, inner, inner)
        | st.builds(Prompts, inner, inner)
        | st.builds(ZeroShot, inner)
        | st.builds(ZeroShot, inner, inner)
        | st.builds(Similar, inner)
        | st.builds(legrad.Audio, inner)
        | st.lists(inner, max_size=3)
    ),
    max_leaves=3,
)
images = values | arrays | tensors | pil_images() | st.lists(arrays | pil_images(), max_size=3)


# -- files and servers ----------------------------------------------------------------------


def _encoded(kind: str) -> bytes:
    buffer = BytesIO()
    mode = {"JPEG": "RGB", "PPM": "RGB", "BMP": "RGB"}.get(kind, "P" if kind == "GIF" else "RGBA")
    pixels = np.arange(24 * 20 * 4, dtype=np.uint8).reshape(24, 20, 4)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def _wav() -> bytes:
    samples = (np.sin(np.arange(800) / 5) * 9000).astype("<i2").tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    body = head + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


GOOD_IMAGES = {kind: _encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}
GOOD_SOUND = _wav()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content cut, or with some bytes changed, inserted or repeated."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        change = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "number"]))
        if change == "flip" and data:
            data[place] = draw(st.integers(0, 255))
        elif change == "cut":
            del data[place:]
        elif change == "insert":
            data[place:place] = draw(st.binary(max_size=8))
        elif change == "repeat":
            data[place:place] = data[: draw(st.integers(0, 64))]
        else:
            data[place : place + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]))
    return bytes(data)


json_texts = st.sampled_from(
    [
        "",
        "[" * 100_000,
        '{"a":' * 50_000,
        "null",
        "7",
        '"x"',
        "[1",
        "{}",
        "[]",
        '{"images": 3}',
        "\udcff",
        "NaN",
        "1e999",
    ]
) | st.text(max_size=30)

_status_lines = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 302 Found", b"HTTP/1.1 100 Continue", b"HTTP/9.9 999", b"ICY 200", b"", b"\xff\xfe"]
)
_header_lines = st.sampled_from(
    [
        b"Content-Length: 10",
        b"Content-Length: -1",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: x",
        b"Transfer-Encoding: chunked",
        b"Content-Encoding: gzip",
        b"Location: http://127.0.0.1:1/",
        b"Location: file:///etc/hostname",
        b"Location: //[",
        b"Location: \xff\xff",
        b"X: " + b"y" * 70_000,
        b"no colon",
    ]
)


@st.composite
def http_answers(draw: st.DrawFn) -> bytes:
    head = [draw(_status_lines), *draw(st.lists(_header_lines, max_size=3))]
    body = draw(st.binary(max_size=40) | st.sampled_from([GOOD_IMAGES["PNG"], b"ffffffffffffffffff\r\n", b"5\r\nabc"]))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


class RawServer:
    """Answers every connection with the same bytes, whatever was asked, and hangs up."""

    def __init__(self) -> None:
        self.answer = b""
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    self.request.recv(65536)
                    self.request.sendall(outer.answer)
                    self.request.shutdown(socket.SHUT_WR)
                    while self.request.recv(65536):
                        pass

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host}:{port}/image.png"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def raw_server() -> Iterator[RawServer]:
    server = RawServer()
    try:
        yield server
    finally:
        server.close()
