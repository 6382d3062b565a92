"""sentence-transformers with fused losses: `losses` is the library's module, with classes that fusedloss computes.

from fusedloss.compat.sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses
"""

from ..library import handed_through, require

_library = require("sentence_transformers", "sentence-transformers", "6.2", "sentence-transformers")

from . import losses, sentence_transformer  # noqa: E402 they import the library

__all__ = ["losses", "sentence_transformer"]

__getattr__, __dir__ = handed_through(_library, __all__)
