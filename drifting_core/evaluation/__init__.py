"""Room of drifting_core: see docs/architecture.md."""
