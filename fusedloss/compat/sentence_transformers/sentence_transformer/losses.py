"""The losses of `fusedloss.compat.sentence_transformers.losses`, at the path that they have in the library."""

from ..losses import *  # noqa: F403
from ..losses import __all__, __dir__, __getattr__  # noqa: F401
