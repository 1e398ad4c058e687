"""On a device: what `bench/gpu.py` trains there, the trainers that do it, and the clocks that look on."""
