"""Tables of results and the programs that write them."""
