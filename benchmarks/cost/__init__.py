"""What `benchmarks/overhead.py` is made of: models, instruments, workers that take turns, charts."""
