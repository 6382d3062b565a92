r"""Measurements of fusedloss against dense PyTorch, torch.compile and other libraries.

    test_in_batch (pytest-benchmark)   cpu_table (the CPU targets)   gpu, gpu_losses, gpu_timings (one command on a GPU)
                            \                   |                  /                    |
          workloads (cases, parity) -> peers -> rivals, forms      files (result files, and what they depend on)
                                                |                                       |
                          fusedloss.tools.measure (time and peak of a process)   report (the README's tables, and plots)

compile_report needs none of it: `python -m fusedloss report` of what the tests hold the kernels to.
A quoted number comes from a file in results/: `python -m bench.report results/FILE.json ...` writes it.
"""
