"""The networks that look at images: Inception, DINOv2, CLIP and a small classifier."""
