"""Parts that several subcommands and train.py share."""
