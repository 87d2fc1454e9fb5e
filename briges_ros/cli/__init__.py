"""The command line: `briges` and its subcommands."""
