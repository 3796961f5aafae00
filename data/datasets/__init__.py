"""One file per format of data set."""
