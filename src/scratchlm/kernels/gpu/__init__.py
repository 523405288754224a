"""Our kernels for NVIDIA GPUs, in Triton: imported only where `scratchlm.kernels.choose` takes them.

support.py says where they run, ahead.py compiles them for a GPU that need not be there. Every kernel file has
the kernel, the function around it, and the configurations that ahead.py compiles.
"""
