"""Configuration, data and scoring shared by the captioning experiments."""
