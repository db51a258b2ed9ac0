"""Metrics of maps: pure functions of arrays.

Every module works in two steps. ``measure`` (or a record) holds the counts of one image, ready for JSON; a
``bootstrap.Statistic`` computes the number of the data set from them, given how often each image counts: once for the
number itself, as often as it was drawn for its interval. So a run can be stopped and resumed, and shards can be merged
by joining their lists.
"""
