"""sentence-transformers with its losses fused: `losses` is the library's, in which fusedloss computes, see there.

from fusedloss.compat.sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses
"""

from ..library import handed_through, require

_library = require("sentence_transformers", "sentence-transformers", "6.2", "sentence-transformers")

from . import losses, sentence_transformer  # noqa: E402 they import the library

__all__ = ["losses", "sentence_transformer"]

__getattr__, __dir__ = handed_through(_library, __all__)
