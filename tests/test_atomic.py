"""Files that appear whole."""

import os
import stat

import pytest

from legrad.atomic import draft_of, write_atomically
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
