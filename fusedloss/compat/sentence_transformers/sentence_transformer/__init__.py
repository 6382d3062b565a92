"""`sentence_transformers.sentence_transformer`, where the library keeps its losses."""

from sentence_transformers import sentence_transformer as _library

from ...library import handed_through
from . import losses

__all__ = ["losses"]

__getattr__, __dir__ = handed_through(_library, __all__)
