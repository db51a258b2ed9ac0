"""Metrics of maps: pure functions of arrays.

Every module works in two steps. ``measure`` (or a record) holds the counts of one image, ready for JSON; ``summarise``
computes the numbers of the data set from them. So a run can be stopped and resumed, shards can be merged by joining
their lists, and ``bootstrap`` can resample images.
"""
