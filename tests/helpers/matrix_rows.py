"""Rows of the support matrix: one name of every kind of model, and one for every reason of a refusal."""

import json

from tools import support_matrix

MATRIX = json.loads((support_matrix.DOCS / "support-matrix.json").read_text())
ROWS = [support_matrix.Row(**row) for row in MATRIX["rows"]]


def kind(row):
    return row.library, row.model, row.block, row.prefix_tokens, row.route, row.attention, row.readout, row.sizes


SAMPLE = list({kind(row): row for row in reversed(ROWS) if row.verdict == "exact"}.values())
REFUSED = list({(row.library, row.reason): row for row in ROWS if row.verdict == "refused"}.values())


def identity(row):
    return f"{row.library}:{row.name}"
