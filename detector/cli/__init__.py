"""The command line: the only place that prints, shows progress and exits."""
