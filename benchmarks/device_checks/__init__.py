"""Parts of benchmarks/gpu.py: agreement with the CPU, ranks, precision and speed on a device."""
