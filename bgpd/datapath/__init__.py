"""eBPF from Python: prebuilt objects, pinned maps and programs, and what this kernel can do with them."""
