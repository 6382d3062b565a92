r"""Measurements of fusedloss against dense PyTorch, torch.compile and other libraries.

    test_in_batch (pytest-benchmark)   cpu_table (the CPU targets)   gpu, gpu_losses, gpu_timings (one command on a GPU)
                            \                   |                  /                    |
          workloads (cases, parity) -> peers -> rivals, forms      files (result files, and what they depend on)
                                                |                                       |
                          fusedloss.tools.measure (time and peak of a process)   report (the README's tables, and plots)

drop_ins times `fusedloss.compat` beside the libraries that it stands in for, by their own scripts.
accuracy measures errors beside those of eager PyTorch, for the rows of regimes: short, long, far from the origin.
dense times the losses of ranks beside dense PyTorch, up to the sizes that PyTorch can hold. group_memory measures the
memory of a process for the loss of a whole batch, group_cost computes on paper that of one of many GPUs; traffic counts
what a process sends, for both. group_traps shows which gradients are wrong if rows are gathered by hand. pieces times
the CPU's own forms of some pieces against the device code. compile_report writes what compilers make of each loss, by
`python -m fusedloss report`, to results/compiled/LOSS.csv, with which the tests compare the kernels.
A quoted number comes from a file in results/: `python -m bench.report bench/results/FILE.json ...` writes it.
"""
