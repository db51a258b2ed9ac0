"""The result: an ``Explanation``, how it is assembled, its folder of files, and tables of folders.

legrad.results.load("legrad-bench")  # pandas.DataFrame
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legrad.results.table import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from legrad.results.table import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
