"""Parts that the experiments on labelled files of one's own share."""
