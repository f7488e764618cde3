"""What a configuration would run and cost, and why it cannot. Light."""
