"""TFDS builders that are prepared and read without TensorFlow."""
