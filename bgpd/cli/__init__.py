"""The command line, one file per command. Commands parse, ask and print; they decide nothing."""
