"""Numeric kernels, one folder each: reference.py (the equations), torch.py (fast on any device), triton.py (GPU)."""
