"""One paper, one file: each states the paper, its numbers, the command and every deviation."""
