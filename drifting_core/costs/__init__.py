"""What a configuration costs: operations, GPU-hours, bytes and files, by arithmetic only."""
