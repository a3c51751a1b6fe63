"""The engine: requests come in, one loop schedules, runs, samples and emits, tokens go out."""
