"""Errors and warnings.

LeGradError
├── InputError        an argument, image, text or file that cannot be used
├── UnsupportedModelError  a model without plain global attention, or one that we do not know
└── TruthCheckError   the instrumented pass and the model disagree: the maps would be wrong

FlatMapWarning        (UserWarning) a relevance map without any contrast
"""


class LeGradError(Exception):
    """Base of everything that this library raises on purpose."""


class InputError(LeGradError, ValueError):
    """An argument that cannot be used; the message says what was expected, what came and what to do."""


class UnsupportedModelError(LeGradError):
    """The model cannot be explained with LeGrad, or is not known to this library."""


class TruthCheckError(LeGradError):
    """What was captured does not reproduce what the model computes, so its maps cannot be trusted."""


class FlatMapWarning(UserWarning):
    """A map (or score) does not depend on the image's patches; it is returned as zeros."""
