"""The losses of other libraries under their own names, computed by fusedloss: a script changes one import.

    from fusedloss.compat.pytorch_metric_learning import losses, miners      # pytorch_metric_learning
    from fusedloss.compat.sentence_transformers import SentenceTransformer, losses  # sentence_transformers
    from fusedloss.compat.open_clip import ClipLoss                          # open_clip
    from fusedloss.compat.lightly.loss import NTXentLoss                     # lightly.loss

Each class is a subclass of the library's class, with the same constructor, attributes and values. Where fusedloss has
the same loss, a call is fused; elsewhere the library's own code runs. `fused_calls` says which calls did what, and why.
Everything else in a library is handed through. A library is imported with its module here, and never by
`import fusedloss`.
"""

from .calls import Call, fused_calls

__all__ = ["Call", "fused_calls"]
