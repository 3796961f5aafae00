"""Configuration, data and scoring that the captioning experiments share."""
