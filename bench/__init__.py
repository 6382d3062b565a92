r"""Measurements of fusedloss against dense PyTorch, torch.compile and other libraries.

    test_in_batch (pytest-benchmark)   cpu_table (the CPU targets)   gpu, gpu_losses, gpu_timings (one command on a GPU)
                            \                   |                  /                    |
          workloads (cases, parity) -> peers -> rivals, forms      files (result files, and what they depend on)
                                                |                                       |
                          fusedloss.tools.measure (time and peak of a process)   report, front (tables, plots)

drop_ins times `fusedloss.compat` beside the libraries that it stands in for, by their own scripts.
accuracy measures errors beside those of eager PyTorch, for the rows of regimes: short, long, far from the origin.
dense times losses beside dense forms, as far as these go. group_memory measures what a process takes
for the loss of a whole batch, group_cost says on paper what one of many GPUs would; traffic counts what a process sends
for both; group_traps says what gradients are wrong where rows are gathered by hand. pieces times what the CPU has of
its own for some pieces against the device code. host_time times what the host does for a step with Triton.
compile_report writes what compilers make of each loss to results/compiled/LOSS.csv, which the tests hold the kernels
to, by `python -m fusedloss report`.
A quoted number comes from a file in results/: report writes it into a page of docs, and front into the README.
"""
