"""What a configuration costs: multiply-adds, GPU-hours, bytes and files, by arithmetic only. Light."""
