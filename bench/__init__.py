"""Measurements of fusedloss against dense PyTorch, torch.compile and other libraries.

    test_in_batch (pytest-benchmark)   cpu_table (the CPU targets)   gpu (one command on a GPU)
                            \\                   |                  /
                       workloads (losses, implementations, parity)   report (tables, result files)
                                             |
                          fusedloss.measure (time and peak of a process)

A quoted number comes from a file in results/; `report.show` prints one.
"""
