"""The evaluation's numbers: pure functions of arrays.

Every module has the same two steps. ``measure`` (or a record) is one image's counts, ready for JSON; ``summarise`` is
the data set's numbers out of them. So a run can be stopped and resumed, shards can be merged by joining their lists,
and ``bootstrap`` can resample images.
"""
