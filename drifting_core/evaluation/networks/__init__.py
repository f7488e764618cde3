"""The networks that look at images: Inception, DINOv2, CLIP, a small classifier; made and loaded."""
