"""One file for each table or figure of a paper that can be made again."""
