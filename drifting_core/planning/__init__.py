"""What a configuration would run, how long it takes, and why it cannot."""
