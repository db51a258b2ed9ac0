"""Files that appear whole."""

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from legrad.atomic import draft_of, fingerprint, fits, one_at_a_time, publish, write_atomically
from legrad.errors import InputError


def test_a_file_is_replaced_and_no_draft_stays(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "atomic", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [(KeyError("mine"), KeyError, "mine"), (OSError("disk full"), InputError, r"cannot write .*a\.txt: disk full")],
)
def test_a_block_that_fails_leaves_the_old_file(tmp_path, error, raised, message):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with draft_of(path) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(raised, match=message):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_drafts_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with draft_of(path) as first, draft_of(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert not path.exists()
    assert path.read_text() == "first"  # the outer block ends last
    assert os.listdir(tmp_path) == ["a.txt"]


def test_nowhere_to_write(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_atomically(tmp_path / "missing" / "a.txt", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_atomically(tmp_path / "folder", b"")
    assert os.listdir(tmp_path) == ["folder"]


def test_threads_that_write_one_file_leave_a_whole_one(tmp_path):
    contents = {bytes([number]) * 50_000 for number in range(8)}

    def write(data):
        for _ in range(5):
            write_atomically(tmp_path / "a", data)
            assert (tmp_path / "a").read_bytes() in contents

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))
    assert os.listdir(tmp_path) == ["a"]


def test_publish_replaces_nothing(tmp_path, monkeypatch):
    for without_links in (False, True):
        if without_links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
        (tmp_path / "draft").write_text("new")
        (tmp_path / "mine").write_text("mine")
        with pytest.raises(FileExistsError):
            publish(tmp_path / "draft", tmp_path / "mine")
        publish(tmp_path / "draft", tmp_path / f"free-{without_links}")
        assert (tmp_path / f"free-{without_links}").read_text() == "new"
        assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "draft").exists()


def test_fits(tmp_path):
    (tmp_path / "a").write_bytes(b"data")
    (tmp_path / "link").symlink_to("a")
    assert fits(tmp_path / "a", fingerprint(b"data"))
    for name, data in (("a", b"dato"), ("a", b"data2"), ("link", b"data"), ("absent", b""), (".", b"")):
        assert not fits(tmp_path / name, fingerprint(data))
    assert not fits(tmp_path / "a", None)


def test_one_at_a_time(tmp_path):
    inside, most = [0], [0]

    def work(_):
        for _ in range(200):
            with one_at_a_time(tmp_path / "lock"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                os.listdir(tmp_path)  # another thread may run here
                inside[0] -= 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places between any two lines
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
    finally:
        sys.setswitchinterval(interval)
    assert most == [1]
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match="cannot write"), one_at_a_time(tmp_path / "absent" / "lock"):
        pass
