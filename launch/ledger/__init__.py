"""The ledger of papers: its rows, the runs that fill them, and its pages."""
