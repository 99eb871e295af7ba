"""Is what the probes say true? One experiment a file; ``bench_soundness.py`` runs them."""
