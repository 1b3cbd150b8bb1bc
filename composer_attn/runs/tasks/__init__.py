"""The tasks that a run can name: what its models, its data and its main figure are."""
