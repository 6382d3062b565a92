r"""Measurements of fusedloss against dense PyTorch, torch.compile and other libraries.

    test_in_batch (pytest-benchmark)   cpu_table (the CPU targets)   gpu, gpu_timings (one command on a GPU)
                            \                   |                  /
          workloads (losses, implementations, parity)   report (tables, result files)
                                                |
                          fusedloss.measure (time and peak of a process)

compile_report needs none of it: what the compiler makes of the kernels, without a GPU.
A quoted number comes from a file in results/; `report.show` prints one.
"""
