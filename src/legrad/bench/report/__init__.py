"""Markdown, CSV and figures out of result files."""

from legrad.bench.report.page import report

__all__ = ["report"]
