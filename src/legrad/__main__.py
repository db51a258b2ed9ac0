"""``python -m legrad``."""

from legrad.cli.main import main

main()
