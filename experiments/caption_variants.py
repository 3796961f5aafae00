"""What the captioning experiments' variants share: their data, and the sizes that go with them."""

from typing import Any

from flaxnets.training.config import nearest

VARIANTS = ("flickr8k", "coco", "moving_shapes", "smoke")


def configure(config: Any, experiment: str, variant: str | None) -> Any:
    """Sets the data of a variant: ``flickr8k`` (the default), ``coco``, embedded videos.

    ``moving_shapes`` captions the embedded videos; ``smoke`` does so for seconds.

    Raises:
      ValueError: an unknown variant.
    """
    variant = variant or "flickr8k"
    if variant not in VARIANTS:
        raise ValueError(f"{experiment}:{variant}: no such variant{nearest(variant, VARIANTS)}")
    config.name = f"{config.name}, {variant}"
    if variant == "coco":
        config.data.kind = "karpathy"
    if variant not in ("moving_shapes", "smoke"):
        return config
    config.data.kind, config.data.min_count = "moving_shapes", 1
    config.data.num_train, config.data.all_captions = 20_000, True
    config.batch_size, config.num_steps = 32, 2_000
    config.eval_every = config.checkpoint_every = 500
    # Not every step of a video says as much as every other; sentences are exact.
    config.attention_penalty = config.label_smoothing = 0.0
    config.search.max_steps = 24
    config.optimizer.learning_rate, config.optimizer.schedule = 2e-3, "cosine"
    config.optimizer.warmup_steps, config.optimizer.clip_norm = 50, 1.0
    config.model.features = config.model.embed_features = 128
    config.model.attention_features = 128
    config.model.dropout_rate = config.model.embed_dropout_rate = 0.1
    config.model.region_dropout_rate, config.model.region_features = 0.0, 0
    if variant == "smoke":
        config.model.encoder_features = (4, 4)
        config.model.recurrent_features = config.model.attention_features = 8
        config.model.features = config.model.embed_features = 16
        config.batch_size, config.num_steps = 8, 6
        config.eval_every = config.checkpoint_every = 3
        config.log_every = 1
        config.optimizer.warmup_steps = 0
        config.search.method = "greedy"
        config.data.num_train, config.data.num_validation, config.data.num_test = 32, 12, 12
        config.data.num_buckets = 1
    return config
