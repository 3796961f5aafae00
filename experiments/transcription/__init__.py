"""Parts that the experiments on lines of text and speech share."""
