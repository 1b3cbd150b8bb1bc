"""From a checked config to a trained network: build, train, save, resume, summarize."""
