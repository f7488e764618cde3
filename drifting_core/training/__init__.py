"""The trainings of encoder and generator: loop, state and resume, ranks, records."""
