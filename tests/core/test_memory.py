"""How much fits into a pass: free memory, limits of containers, and the estimates that passes are cut by."""

import psutil
import pytest
import torch
from helpers import tiny

import legrad
from legrad.core import memory

CPU = torch.device("cpu")


def test_free_memory_of_the_cpu_is_what_the_system_has_left(monkeypatch):
    monkeypatch.setattr(memory, "_bytes_left_in_control_group", lambda group: None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 5 << 30}))
    assert memory.free_bytes(CPU) == 5 << 30
    assert memory.allowed_bytes(CPU, "auto") == 5 << 29
    assert memory.allowed_bytes(CPU, 7) == 7


@pytest.mark.parametrize(("left", "expected"), [(1 << 30, 1 << 30), (9 << 30, 5 << 30), (-3, 0)])
def test_a_container_has_no_more_than_its_limit(left, expected, monkeypatch):
    monkeypatch.setattr(memory, "_bytes_left_in_control_group", lambda group: left)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 5 << 30}))
    assert memory.free_bytes(CPU) == expected


@pytest.mark.parametrize(
    ("limit", "current", "expected"), [("1000\n", "400\n", 600), ("max\n", "400\n", None), ("1000\n", "", None)]
)
def test_the_limit_of_a_control_group(limit, current, expected, tmp_path):
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(current)
    assert memory._bytes_left_in_control_group(tmp_path) == expected


def test_a_system_without_control_groups(tmp_path):
    assert memory._bytes_left_in_control_group(tmp_path) is None


def test_a_whole_graph_takes_more_than_one_block_at_a_time():
    anatomy = legrad.wrap(tiny.clip()).anatomy
    with_graph, without = (memory.images_per_whole_pass(anatomy, graph, 1 << 26) for graph in (True, False))
    assert 1 < with_graph < without
    assert memory.images_per_whole_pass(anatomy, graph=True, memory=1) == 1
