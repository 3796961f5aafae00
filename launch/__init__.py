"""Thin absl programs that train, evaluate, predict and report an experiment."""
