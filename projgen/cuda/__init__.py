"""The CUDA backend: CUDA C++ from templates, compiled by NVRTC, launched through CuPy."""
