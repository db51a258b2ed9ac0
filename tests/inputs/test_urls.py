"""Downloads: one limit of time and of size whatever the server does, addresses that services forbid, no secret told."""

import contextlib
import http.server
import io
import re
import socket
import threading

import numpy as np
import pytest
import torch
from helpers import tiny
from PIL import Image

import legrad
from legrad.inputs import images, sounds, urls, videos

SECRET = "s3cret"
PRIVATE = "local or private address"


def png(size=(40, 40)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def speaking(speak):
    """A server that answers every connection by ``speak(connection)``; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            connection.recv(65536)
            speak(connection)

    def serve():
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def whole(body, head=b"HTTP/1.1 200 OK\r\n"):
    return lambda connection: connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def dribbling(text, pause=0.05):
    """One letter after the other, then for ever the last."""

    def speak(connection):
        for index in range(10_000):
            connection.sendall(text[min(index, len(text) - 1) :][:1])
            threading.Event().wait(pause)

    return speak


def endless(start, piece):
    def speak(connection):
        connection.sendall(start)
        while True:
            connection.sendall(piece)

    return speak


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


# -- time and size ------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
SLOW = {
    "nothing": lambda connection: threading.Event().wait(3),
    "status": dribbling(OK),
    "headers": dribbling(OK + b"X-Long: aaaa"),
    "interim answers": dribbling(b"HTTP/1.1 100 Continue\r\n\r\n" * 400, 0.001),
    "chunk sizes": dribbling(OK + b"Transfer-Encoding: chunked\r\n\r\n0000", 0.01),
    "trailers": dribbling(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: aaaa", 0.01),
    "body": dribbling(OK + b"\r\n" + b"x", 0.01),
}


@pytest.mark.parametrize("part", SLOW)
def test_the_deadline_is_over_all_parts_of_an_answer(part, monkeypatch):
    monkeypatch.setattr(urls, "URL_SECONDS", 0.4)
    with speaking(SLOW[part]) as address, pytest.raises(legrad.InputError, match=r"a\.png took longer than 0 s"):
        urls.download(f"{address}/a.png")


ENDLESS = {
    "interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "headers of interim answers": endless(b"HTTP/1.1 100 Continue\r\n", b"X-Long: " + b"a" * 60000 + b"\r\n"),
    "headers": endless(OK, b"X-Long: " + b"a" * 60000 + b"\r\n"),
    "status line": endless(b"HTTP/1.1 200 ", b"O" * 65536),
    "chunk size": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
    "chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
    # the limit is met where a length is read, whose errors http.client takes for damage
    "lengths of chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 60_000 + b"\r\nx\r\n"),
    "trailers": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n" * 1000),
    "body": endless(OK + b"\r\n", b"x" * 65536),
    "claimed body": endless(OK + b"Content-Length: 999999999999999\r\n\r\n", b"x" * 65536),
    "body of a redirect": endless(b"HTTP/1.1 302 Found\r\nLocation: /a.png\r\n\r\n", b"x" * 65536),
    "body of an error": endless(b"HTTP/1.1 404 Not Found\r\n\r\n", b"x" * 65536),
}


@pytest.mark.parametrize("part", ENDLESS)
def test_what_has_no_end_is_given_up(part, monkeypatch):
    monkeypatch.setattr(urls, "URL_BYTES", 1_000_000)
    with speaking(ENDLESS[part]) as address, pytest.raises(legrad.InputError) as caught:
        urls.download(f"{address}/a.png")
    assert re.search(
        r"a\.png( is larger than 1 MB|: more than 10 redirects|: got more than|: HTTP Error 404)", str(caught.value)
    )
    assert len(str(caught.value)) < 300


def test_bytes_of_all_redirects_count_together(monkeypatch):
    monkeypatch.setattr(urls, "URL_BYTES", 100_000)
    head = b"HTTP/1.1 302 Found\r\nLocation: /a.png\r\n" + b"X-Long: " + b"a" * 30_000 + b"\r\n"
    with speaking(whole(b"", head)) as address, pytest.raises(legrad.InputError, match="is larger than"):
        urls.download(f"{address}/a.png")


def test_a_body_that_ends_too_soon():
    def short(connection):
        connection.sendall(OK + b"Content-Length: 9\r\n\r\nabc")

    with speaking(short) as address, pytest.raises(legrad.InputError, match="ended 6 bytes before the file did"):
        urls.download(f"{address}/a.png")


def test_the_name_system_may_be_slow(monkeypatch):
    monkeypatch.setattr(urls, "URL_SECONDS", 0.2)
    monkeypatch.setattr(urls.socket, "getaddrinfo", lambda *_: threading.Event().wait(2) or [])
    with pytest.raises(legrad.InputError, match="took longer than"):
        urls.download("http://slow.example/a.png")


def test_chunks_and_interim_answers_are_understood():
    body = b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    with speaking(lambda connection: connection.sendall(body)) as address:
        assert urls.download(f"{address}/a.png") == b"abcde"


@pytest.mark.parametrize(
    "answer",
    [b"", b"\r\n\r\n", b"hello\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
)
def test_an_answer_that_is_none(answer):
    message = r"cannot read http.*a\.png: "
    with speaking(lambda it: it.sendall(answer)) as address, pytest.raises(legrad.InputError, match=message):
        urls.download(f"{address}/a.png")


# -- addresses ----------------------------------------------------------------------------------------------------

LOCAL = [
    *("127.0.0.1", "localhost", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1"),
    *("[::1]", "[::]", "[fe80::1]", "[fe80::1%25lo]", "[fc00::1]", "[ff02::1]", "[fec0::1]", "[::127.0.0.1]"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[64:ff9b::127.0.0.1]"),
    *("[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]", "[2001:0:7f00:1::]", "[2001:db8::1]", "2130706433", "0x7f.1", "127.1"),
]


@pytest.mark.parametrize("host", LOCAL)
def test_local_and_private_addresses_are_forbidden_in_every_spelling(host, monkeypatch):
    def refuse(*_):
        raise AssertionError("connected")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(legrad.InputError, match=rf"{PRIVATE}|cannot read http|cannot be read"):
        urls.download(f"http://{host}:1/a.png", public_only=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("2002:5db8:d822::1", True),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
    ],
)
def test_what_is_public(address, public):
    assert urls.is_public(address) == public


def answers(*addresses):
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]


def test_one_private_address_of_a_name_is_enough(monkeypatch):
    monkeypatch.setattr(urls.socket, "getaddrinfo", lambda *_: answers("93.184.216.34", "10.1.2.3"))
    with pytest.raises(legrad.InputError, match=PRIVATE):
        urls.download("http://inside.example/a.png", public_only=True)


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(monkeypatch):
    """A name server that answers otherwise the second time."""
    given, asked = [answers("93.184.216.34"), answers("127.0.0.1")], []

    def connect(_, address):
        asked.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(urls.socket, "getaddrinfo", lambda *_: given.pop(0))
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(legrad.InputError, match=r"cannot read http://rebinding\.example/a\.png: .*refused"):
        urls.download("http://rebinding.example/a.png", public_only=True)
    assert asked == ["93.184.216.34"]


def test_redirects_to_private_addresses(monkeypatch):
    """The first server stands for a public one."""
    real = urls.is_public
    with speaking(whole(png())) as private:
        head = f"HTTP/1.1 302 Found\r\nLocation: {private.replace('127.0.0.1', '127.0.0.2')}/a.png\r\n".encode()
        with speaking(whole(b"", head)) as public:
            monkeypatch.setattr(urls, "is_public", lambda address: address == "127.0.0.1" or real(address))
            with pytest.raises(legrad.InputError, match=PRIVATE):
                urls.download(f"{public}/a.png", public_only=True)


@pytest.fixture(scope="module")
def explainer():
    from torchvision import transforms

    transform = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()])
    return legrad.wrap(tiny.clip(), transform=transform, tokenizer=tiny.tokenizer, audio_encoder=tiny.hearing())


def test_services_can_forbid_private_addresses(explainer, monkeypatch):
    vector, x = torch.randn(32), torch.rand(1, 3, 32, 32)
    with speaking(whole(png())) as address:
        url = f"{address}/a.png"
        assert explainer.explain(url, vector).names == [url]
        forbidden = [
            lambda: explainer.explain(url, vector, allow_private_urls=False),
            lambda: explainer.prepare(url, allow_private_urls=False),
            lambda: explainer.predict(url, allow_private_urls=False),
            lambda: explainer.embed(legrad.Similar(url), allow_private_urls=False),
            lambda: explainer.explain(x, [legrad.Similar(url)], allow_private_urls=False),
            lambda: explainer.explain(x, [[legrad.Contrast(legrad.Similar([url]), "a cow")]], allow_private_urls=False),
            lambda: explainer.explain(x, legrad.Audio([url]), allow_private_urls=False),
            lambda: explainer.explain(x, "a cow", null_target=legrad.Similar(url), allow_private_urls=False),
        ]
        for call in forbidden:
            with pytest.raises(legrad.InputError, match=PRIVATE):
                call()
        monkeypatch.setenv(urls.PRIVATE_SWITCH, "0")
        for call in (lambda: explainer.predict(url), lambda: explainer.explain(x, legrad.Similar(url))):
            with pytest.raises(legrad.InputError, match=PRIVATE):
                call()


def test_a_text_that_is_a_url_stays_a_text(explainer):
    found = explainer.explain(torch.rand(1, 3, 32, 32), "http://127.0.0.1:1/a.png")
    assert found.labels == [["http://127.0.0.1:1/a.png"]]


# -- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@127.0.0.1:1/a.png",
        f"http://{SECRET}@127.0.0.1:1/a.png",
        f"http://user:{SECRET}%40x@127.0.0.1:1/a.png",
        f"http://user:p@{SECRET}@127.0.0.1:1/a.png",
        f"http://user:a/{SECRET}@127.0.0.1:1/a.png",
        f"http://user:a?{SECRET}@127.0.0.1:1/a.png",
        f"http://user:{SECRET}@[::1/a.png",
        f"http://user:{SECRET}@127.0.0.1:99999/a.png",
        f"http://127.0.0.1:1/a.png?token={SECRET}",
        f"http://127.0.0.1:1/a.png#{SECRET}",
        f"http://127.0.0.1:{SECRET}/a.png",
        f"ftp://user:{SECRET}@127.0.0.1/a.png",
        f"http://127.0.0.1:1/a\ud800.png?{SECRET}",
        f"http://{'a' * 70}.example/a.png?{SECRET}",
    ],
)
def test_messages_keep_secrets(url):
    for read in (images.read, lambda source: videos.read(source, 2), lambda source: sounds.read(source, 16000)):
        with pytest.raises(legrad.InputError) as caught:
            read(url)
        error = caught.value
        while error is not None:
            assert SECRET not in str(error) or not isinstance(error, legrad.InputError)
            error = error.__cause__


def test_user_names_are_refused_in_one_line():
    with pytest.raises(legrad.InputError, match=r"^http://127\.0\.0\.1:1/a\.png: user names and passwords in URLs are"):
        images.read(f"http://user:{SECRET}@127.0.0.1:1/a.png")


def test_a_redirect_may_not_bring_a_password_or_another_scheme():
    for target in (f"http://user:{SECRET}@127.0.0.1:1/", "file:///etc/hostname", "//user@127.0.0.1:1/"):
        head = f"HTTP/1.1 301 Moved\r\nLocation: {target}\r\n".encode()
        with (
            speaking(whole(b"", head)) as address,
            pytest.raises(legrad.InputError, match=r"user names|only http") as caught,
        ):
            urls.download(address)
        assert SECRET not in str(caught.value)


def test_results_keep_secrets(explainer, tmp_path):
    with speaking(whole(png())) as address:
        found = explainer.explain(
            f"{address}/cat.png?token={SECRET}#x", [legrad.Similar(f"{address}/dog.png?{SECRET}")]
        )
    assert found.names == [f"{address}/cat.png"]
    assert found.labels == [["similar to dog"]]
    found.save(tmp_path)
    for path in tmp_path.rglob("*"):
        assert SECRET not in path.name
        assert SECRET.encode() not in path.read_bytes()


def test_a_tls_server_that_says_nothing(monkeypatch):
    monkeypatch.setattr(urls, "URL_SECONDS", 0.3)
    with speaking(SLOW["nothing"]) as address, pytest.raises(legrad.InputError, match="took longer than"):
        urls.download(address.replace("http", "https"))


def test_names_of_urls():
    assert urls.safe_url("https://user:pw@host:8080/a/b@c.png?q=1#f") == "https://host:8080/a/b@c.png"
    assert urls.safe_url("http://[::1]:80/a.png") == "http://[::1]:80/a.png"
    assert urls.safe_url("folder/a?b.png") == "folder/a?b.png"


# -- what goes out ------------------------------------------------------------------------------------------------


def test_the_request_is_quoted_and_names_the_host():
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers["Host"]))
            self.send_response(302 if self.path == "/to" else 200)
            if self.path == "/to":
                self.wfile.write(b"".join(self._headers_buffer) + b"Location: /\xc3\xbc.png\r\n")
                self._headers_buffer.clear()
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        host = f"127.0.0.1:{server.server_port}"
        for path in ("", "/a b\u00fc.png?x=\u00e4 b", "/\udcff.png", "/a%20b", "/to"):
            urls.download(f"http://{host}{path}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    paths = ["/", "/a%20b%C3%BC.png?x=%C3%A4%20b", "/%FF.png", "/a%20b", "/to", "/%C3%BC.png"]
    assert requests == [(path, host) for path in paths]


def test_proxies_are_used_but_not_by_services(monkeypatch):
    seen = []

    def proxy(connection):
        seen.append(1)
        whole(b"from the proxy")(connection)

    monkeypatch.delenv("no_proxy")
    with speaking(proxy) as address:
        monkeypatch.setenv("http_proxy", address)
        assert urls.download("http://93.184.216.34/a.png") == b"from the proxy"
        monkeypatch.setattr(socket.socket, "connect", lambda *_: (_ for _ in ()).throw(OSError("no network")))
        with pytest.raises(legrad.InputError, match="no network"):
            urls.download("http://93.184.216.34/a.png", public_only=True)
    assert len(seen) == 1


# -- nobody waits for another's server ----------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["image", "target"])
def test_a_slow_url_blocks_no_other_thread(explainer, asked):
    x, vector = torch.rand(1, 3, 32, 32), torch.randn(32)
    requested, go_on = threading.Event(), threading.Event()

    def speak(connection):
        requested.set()
        go_on.wait(10)
        whole(png())(connection)

    done = []
    with speaking(speak) as address:
        url = f"{address}/a.png"
        call = (url, vector) if asked == "image" else (x, legrad.Similar(url))
        slow = threading.Thread(target=lambda: done.append(explainer.explain(*call)))
        slow.start()
        assert requested.wait(10)
        quick = threading.Thread(target=lambda: done.append("quick" if explainer.explain(x, vector) else ""))
        quick.start()
        quick.join(10)
        assert done == ["quick"]
        go_on.set()
        slow.join(10)
    assert len(done) == 2
