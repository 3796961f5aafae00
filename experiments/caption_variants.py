"""What the captioning experiments' variants share: their data, and the sizes that go with them."""

from typing import Any

from flaxnets.training.config import nearest

VARIANTS = ("flickr8k", "flickr8k_sampled", "coco", "moving_shapes", "smoke")
COCO_IMAGES, COCO_CAPTIONS = 113_287, 566_747
"""Of Karpathy's training split of COCO."""
COCO_EPOCHS = 10


def configure(config: Any, experiment: str, variant: str | None) -> Any:
    """Sets the data of a variant: ``flickr8k`` (the default), ``coco``, embedded videos.

    ``flickr8k_sampled`` goes on from a run of ``flickr8k``, whose workdir ``initialize_from`` is:
    each word read is one of the model's own with a probability of 1/4, and captions weigh as much
    as they agree with their image's others. ``moving_shapes`` captions the embedded videos;
    ``smoke`` does so for seconds.

    Raises:
      ValueError: an unknown variant.
    """
    variant = variant or "flickr8k"
    self_critical = getattr(config, "self_critical", False)
    variants = [name for name in VARIANTS if not (self_critical and name == "flickr8k_sampled")]
    if variant not in variants:
        raise ValueError(f"{experiment}:{variant}: no such variant{nearest(variant, variants)}")
    config.name = f"{config.name}, {variant}"
    if variant == "flickr8k_sampled":
        config.num_steps, config.eval_every, config.checkpoint_every = 1_200, 400, 400
        config.sampling_increase, config.sampling_every = config.sampling_maximum, 1
        config.data.consensus = 1.0
        config.ema_decay = 0.995
        config.optimizer.learning_rate, config.optimizer.warmup_steps = 2.5e-4, 50
    if variant == "coco":
        config.data.kind, config.data.num_corners = "karpathy", 0
        rows = COCO_IMAGES if self_critical else COCO_CAPTIONS
        # Half of an epoch, which has the mirror images, too.
        config.eval_every = config.checkpoint_every = rows // config.batch_size
        config.num_steps = COCO_EPOCHS * config.eval_every
    if variant not in ("moving_shapes", "smoke"):
        return config
    config.data.kind, config.data.min_count = "moving_shapes", 1
    config.data.num_train, config.data.all_captions = 20_000, True
    config.batch_size, config.num_steps = 32, 6_000
    config.eval_every = config.checkpoint_every = 1_000
    # Not every step of a video says as much as every other; sentences are exact.
    config.attention_penalty = config.label_smoothing = config.ema_decay = 0.0
    config.search.max_steps = 24
    config.optimizer.name, config.optimizer.weight_decay = "adam", 0.0
    config.optimizer.learning_rate, config.optimizer.schedule = 2e-3, "cosine"
    config.optimizer.warmup_steps, config.optimizer.clip_norm = 50, 1.0
    config.model.features = config.model.embed_features = 128
    config.model.attention_features = 128
    config.model.dropout_rate = config.model.embed_dropout_rate = 0.1
    config.model.region_dropout_rate = config.model.place_dropout_rate = 0.0
    config.model.region_features = 0
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
