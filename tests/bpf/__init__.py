"""Programs in the kernel, judged by BPF_PROG_TEST_RUN, and real maps and pins in a bpffs of the tests' own."""
