"""The case study of arXiv 2407.06519: one command for each of its tables and figures."""
