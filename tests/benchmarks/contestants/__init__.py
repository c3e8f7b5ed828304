"""Programs that the benchmarks run beside clipray; most of them by the peers' Python."""
