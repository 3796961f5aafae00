"""Convolutional encoders: images (N,H,W,C) to maps (N,h,w,D)."""
