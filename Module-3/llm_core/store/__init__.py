"""Models on disk: folders of transformers, checkpoints, and what resumes a run."""
