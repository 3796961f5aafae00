"""Captions: vocabulary, examples, images, scores."""
