"""open_clip.factory, whose `create_loss` makes the losses of fusedloss."""

from types import FunctionType

from open_clip import factory as _library

from ..library import handed_through
from . import loss

__all__ = ["create_loss"]
__getattr__, __dir__ = handed_through(_library, __all__)

_classes = {name: getattr(loss, name) for name in loss.__all__}
# The library's own function, in which the names of the losses mean ours.
create_loss = FunctionType(_library.create_loss.__code__, {**vars(_library), **_classes}, "create_loss")
