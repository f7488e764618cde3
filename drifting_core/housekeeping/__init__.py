"""What may go from the disk, what stays and why."""
