"""What every job stands on: log and exit code, stop requests, progress, leases, devices, the GPU pool, stub mode."""
