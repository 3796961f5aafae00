"""Use of a model without its training code: reading of files, preprocessing, results.

An export copies this folder beside its functions and parameters, so it imports nothing of flaxnets:
the standard library, JAX, NumPy, Pillow and safetensors, and PyAV where a video is read. Its
modules import each other by relative names. ``containers.py`` is a link to the one in
``data/video``, which may not import this package.
"""
