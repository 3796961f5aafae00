"""Training of any model on any task: state, step, devices, checkpoints and the loop."""
