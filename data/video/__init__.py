"""Video: decoding, clip sampling, transforms, motion."""
