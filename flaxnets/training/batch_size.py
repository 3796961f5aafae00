"""Which batches the devices can share."""


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raises ValueError where the devices cannot divide a batch evenly."""
    if batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        above = below + num_devices
        choice = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"batch_size: expected a multiple of the {num_devices} devices, received {batch_size}; "
            f"{choice} would do"
        )
