"""``python -m legrad.cli``, the same as ``python -m legrad``."""

from legrad.cli.main import main

main()
