"""What may be removed from the disk, what stays, and why."""
