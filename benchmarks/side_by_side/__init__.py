"""Peers and ours in one process: import this package before numpy.

BLAS and FFT get one thread, ours and theirs: CPU time then compares algorithms.
"""

import os

for _library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
