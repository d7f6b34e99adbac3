"""Models as files of other runtimes, each checked against the model it came from."""
