"""The command line and what it stands on. Nothing of the library imports it, but for FUSEDLOSS_AUTOTUNE=1.

doctor  demo  report  tune  ->  sweep  footprint  roofline  compiling  ->  gpus  sass  workloads  measure  console
choices
"""

import importlib.util


def autotune() -> None:
    """Tune a kernel when it is first used, where there are Triton and a GPU."""
    if importlib.util.find_spec("triton") is not None:
        from . import sweep

        sweep.at_first_use()
