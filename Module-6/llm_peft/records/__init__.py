"""What a machine measures of fine-tuning: our layers beside the libraries', and large models on a GPU."""
